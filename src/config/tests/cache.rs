use super::*;
use crate::oci::RepoKey;

#[test]
fn pins_are_written_as_clients_write_images() {
    let pins = |pins: &str| {
        Scene::file(&format!(
            "[server]\ndomains = [\"a.test\"]\n[cache]\npins = [{pins}]\n[[upstream]]\nregistry = \"{ECR}\"\n"
        ))
    };
    let ours = format!("\"a.test/team/app:v1\", \"{ECR}/team/db:*\"");
    let config = pins(&ours).load().expect("config");
    let kept: Vec<String> = config.cache.pins.iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["team/app:v1", "team/db:*"]);
    for (wrong, why) in [
        (
            "\"quay.io/a:b\"",
            "line 4: cache.pins: \"quay.io/a:b\": quay.io is neither",
        ),
        (
            "\"a.test/app\"",
            "line 4: cache.pins: \"a.test/app\": which of its images?",
        ),
    ] {
        let faults = pins(wrong).faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(why), "{faults:?}");
    }
}

#[test]
fn pins_come_from_the_file_or_the_environment() {
    let pins = |scene: Scene| {
        let pins = scene.load().expect("config").cache.pins;
        pins.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let file = format!(
        "[server]\ndomains = [\"a.test\"]\n[cache]\npins = [\"team/app:v1\", \"team/**:release-*\"]\n[[upstream]]\nregistry = \"{ECR}\"\n"
    );
    let written = ["team/app:v1", "team/**:release-*"];
    assert_eq!(pins(Scene::file(&file)), written);
    let scene = Scene::file(&file).variable("ECR_PROXY_CACHE_PINS", "a:1,b:*");
    assert_eq!(pins(scene), ["a:1", "b:*"]);
}

#[test]
fn freshness_is_of_the_cache_unless_the_upstream_or_a_route_says_otherwise() {
    let file = "[server]\ndomains = [\"a.test\"]\n\
        [cache]\nstale_if_error = \"1h\"\nimmutable_tags = [\"v*\"]\n\
        [[upstream]]\nname = \"hub\"\nregistry = \"registry.example\"\noffline = false\n\
        [[route]]\nrepository = \"team/**\"\nupstream = \"hub\"\nimmutable_tags = true\ntag_ttl = \"1d\"\n\
        [[route]]\nrepository = \"old\"\nimmutable_tags = false\nstale_if_error = \"forever\"\noffline = true\n";
    let config = Scene::file(file).load().expect("config");
    let tags = config.fill_options().tags;
    let of = |name: &str| {
        tags.of(&RepoKey {
            upstream: "hub".into(),
            repository: name.parse().expect("a name"),
        })
        .clone()
    };
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    let patterns = |policy: &TagPolicy| {
        let patterns = policy.immutable_tags.iter().map(ToString::to_string);
        patterns.collect::<Vec<_>>().join(",")
    };
    for (name, ttl, stale, immutable) in [
        ("app", Duration::from_secs(5), Some(hour), "v*"),
        ("team/app", day, Some(hour), "*"),
        ("old", Duration::from_secs(5), None, ""),
    ] {
        let policy = of(name);
        assert_eq!(
            (policy.tag_ttl, policy.stale_if_error),
            (ttl, stale),
            "{name}"
        );
        assert_eq!(patterns(&policy), immutable, "{name}");
    }
    let options = config.upstream_options().expect("options");
    let offline = &options[0].offline;
    assert!(*offline.of_name("old") && !*offline.of_name("app"));
}

#[test]
fn freshness_is_set_by_the_environment() {
    let scene = flags_of_the_first_example()
        .variable("ECR_PROXY_CACHE_OFFLINE", "true")
        .variable("ECR_PROXY_CACHE_STALE_IF_ERROR", "2h")
        .variable("ECR_PROXY_CACHE_IMMUTABLE_TAGS", "v*, 1.*")
        .variable("ECR_PROXY_CACHE_TAG_WAIT", "3s");
    let config = scene.load().expect("config");
    assert!(config.upstreams[0].freshness.offline);
    let tags = &config.upstreams[0].freshness.tags;
    assert_eq!(tags.stale_if_error, Some(Duration::from_secs(7200)));
    assert_eq!(tags.immutable_tags.len(), 2);
    assert_eq!(config.fill_options().tag_wait, Duration::from_secs(3));
}

#[test]
fn what_is_kept_warm_is_read_table_by_table() {
    let base = format!("[server]\ndomains = [\"r.test\"]\n[[upstream]]\nregistry = \"{ECR}\"\n");
    let text = format!(
        "{base}[[warm]]\nimages = [\"team/app:v1\", \"r.test/team/db\"]\n\
         [[warm]]\nimages = [\"team/web\"]\nevery = \"5m\"\nplatforms = [\"all\"]\nreferrers = false\n"
    );
    let warm = Scene::file(&text).load().expect("config").warm;
    let names =
        |warm: &Warm| -> Vec<String> { warm.images.iter().map(ToString::to_string).collect() };
    assert_eq!(names(&warm[0]), ["team/app:v1", "r.test/team/db:latest"]);
    assert_eq!(warm[0].every, Duration::from_secs(3600));
    assert_eq!(warm[0].platforms, [Platform::of_this_machine()]);
    assert!(warm[0].referrers);
    assert_eq!(names(&warm[1]), ["team/web:latest"]);
    assert_eq!(warm[1].every, Duration::from_secs(300));
    assert_eq!((warm[1].platforms.len(), warm[1].referrers), (0, false));

    for (table, starts) in [
        ("every = \"1h\"", &["line 5: warm.images: "][..]),
        ("images = \"a\"", &["line 6: warm.images: expected a list"]),
        (
            "images = [\"APP\"]\nevery = \"0s\"",
            &["line 6: warm.images: ", "line 7: warm.every: "],
        ),
        (
            "images = [\"a\"]\nplatforms = [\"amd64\"]",
            &["line 7: warm.platforms: "],
        ),
        (
            "images = [\"a\"]\nplatforms = []",
            &["line 7: warm.platforms: is empty"],
        ),
        (
            "images = [\"quay.io/a\"]",
            &["line 6: warm.images: \"quay.io/a\": quay.io is neither"],
        ),
        (
            "imgs = [\"a\"]\nimages = [\"a\"]",
            &["line 6: warm.imgs: unknown key"],
        ),
    ] {
        let faults = Scene::file(&format!("{base}[[warm]]\n{table}\n")).faults();
        assert_eq!(faults.len(), starts.len(), "{faults:#?}");
        for (fault, start) in faults.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault} / {start}");
        }
    }
}
