use super::*;
use crate::oci::RepoKey;

#[test]
fn the_login_is_told_from_the_registry_and_its_keys_must_belong_to_it() {
    let upstream = |text: &str| {
        let file = format!("[server]\ndomains = [\"a.test\"]\n[[upstream]]\n{text}");
        Scene::file(&file).beside("password", "x\n")
    };
    let auth = |text: &str| {
        upstream(text).load().expect("config").upstreams[0]
            .auth
            .clone()
    };
    assert_eq!(
        auth(&format!("registry = \"{ECR}\"\nprofile = \"p\"\n")),
        Auth::Aws {
            profile: Some("p".into()),
            role: None
        }
    );
    let role = "arn:aws:iam::000042290000:role/path/puller";
    assert_eq!(
        auth(&format!(
            "registry = \"{ECR}\"\nrole_arn = \"{role}\"\nexternal_id = \"x:1\"\n"
        )),
        Auth::Aws {
            profile: None,
            role: Some(Role {
                arn: role.into(),
                external_id: Some("x:1".into()),
                session_name: "ecr-proxy".into()
            })
        }
    );
    assert_eq!(auth("registry = \"public.ecr.aws\"\n"), Auth::Anonymous);
    let basic = auth("registry = \"r.test\"\nusername = \"u\"\npassword_file = \"password\"\n");
    assert!(matches!(basic, Auth::Basic { username, .. } if username == "u"));
    for (text, fault) in [
        (
            "registry = \"r.test\"\nauth = \"aws\"\n",
            "upstream.auth: \"aws\" is for",
        ),
        (
            "registry = \"r.test\"\nusername = \"u\"\n",
            "upstream.password_file: is missing",
        ),
        (
            &format!("registry = \"{ECR}\"\ntoken_hosts = [\"auth.test\"]\n"),
            "upstream.token_hosts: has no meaning with",
        ),
        (
            "registry = \"r.test\"\ntoken_hosts = [\"https://auth.test\"]\n",
            "upstream.token_hosts: \"https://auth.test\": expected a host",
        ),
        (
            "registry = \"r.test\"\nprofile = \"p\"\n",
            "upstream.profile: belongs to",
        ),
        (
            "registry = \"r.test\"\nrole_arn = \"arn:aws:iam::000042290000:role/r\"\n",
            "upstream.role_arn: belongs to",
        ),
        (
            "registry = \"public.ecr.aws\"\nrole_session_name = \"edge\"\n",
            "upstream.role_session_name: has no meaning without",
        ),
        (
            &format!("registry = \"{ECR}\"\nrole_arn = \"arn:aws:iam::42:role/r\"\n"),
            "upstream.role_arn: \"arn:aws:iam::42:role/r\" is no role's ARN",
        ),
        (
            &format!("registry = \"{ECR}\"\nrole_arn = \"arn:aws:iam::000042290000:user/u\"\n"),
            "is no role's ARN",
        ),
        (
            &format!("registry = \"{ECR}\"\nrole_arn = \"{role}\"\nexternal_id = \"a b\"\n"),
            "upstream.external_id: \"a b\" is no external id",
        ),
        (
            &format!("registry = \"{ECR}\"\nrole_arn = \"{role}\"\nrole_session_name = \"a/b\"\n"),
            "upstream.role_session_name: \"a/b\" is no session's name",
        ),
        (
            "registry = \"r.test\"\nendpoint_tls_name = \"e.test\"\n",
            "upstream.endpoint_tls_name: has no",
        ),
    ] {
        let faults = upstream(text).faults();
        assert_eq!(faults.len(), 1, "{text} {faults:?}");
        assert!(faults[0].contains(fault), "{}", faults[0]);
    }
}

#[test]
fn quotas_are_those_of_aws_where_nothing_else_is_written() {
    let quotas = |registry: &str, written: &str| {
        let file = format!(
            "[server]\ndomains = [\"a.test\"]\n[[upstream]]\nregistry = \"{registry}\"\n{written}\n"
        );
        Scene::file(&file)
            .load()
            .map(|config| config.upstreams[0].quotas.clone())
    };
    let of_aws = Quotas::of_aws();
    assert_eq!(quotas(ECR, "").ok(), Some(of_aws.clone()));
    let more = of_aws.with("PutImage=20".parse().expect("a quota"));
    let written = "requests_per_second = [\"PutImage=20\"]";
    assert_eq!(quotas(ECR, written).ok(), Some(more));
    assert_eq!(quotas("docker.io", "").ok(), Some(Quotas::unlimited()));
    // What ECR Public counts is not known, so only the operator can say.
    let public = "public.ecr.aws";
    assert_eq!(quotas(public, "").ok(), Some(Quotas::unlimited()));
    let slow = Quotas::unlimited().with("BatchGetImage=1".parse().expect("a quota"));
    let written_slow = "requests_per_second = [\"BatchGetImage=1\"]";
    assert_eq!(quotas(public, written_slow).ok(), Some(slow));
    for (registry, written, fault) in [
        ("docker.io", written, "is about the quotas of ECR"),
        (
            ECR,
            "requests_per_second = [\"PutImages=1\"]",
            "a quota is ACTION=N",
        ),
        (ECR, "requests_per_second = [\"PutImage=0\"]", "at least 1"),
    ] {
        let faults = quotas(registry, written).expect_err("refused").to_string();
        assert!(
            faults.contains("upstream.requests_per_second: "),
            "{faults}"
        );
        assert!(faults.contains(fault), "{faults}");
    }
}

#[test]
fn every_fault_of_a_route_is_told_with_its_line() {
    let file = "[server]\ndomains = [\"a.test\"]\n[[upstream]]\nname = \"hub\"\nregistry = \"docker.io\"\n\
        [[route]]\nupstream = \"prod\"\nrepository = \"a**\"\n\
        [[route]]\ntag_ttl = \"soon\"\nimmutable_tags = [\"team/*\"]\nstrip = \"x\"\n";
    let faults = Scene::file(file).faults();
    let expected = [
        "line 7: route.upstream: \"prod\" is no upstream; there is \"hub\"",
        "line 8: route.repository: \"a**\" is no pattern over repositories",
        "line 10: route.tag_ttl: ",
        "line 11: route.immutable_tags: \"team/*\" is no pattern over tags",
        "line 12: route.strip: unknown key",
        "route.repository: is missing",
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for expected in expected {
        assert!(
            faults.iter().any(|f| f.contains(expected)),
            "{expected}: {faults:#?}"
        );
    }
}

#[test]
fn an_upstream_may_have_its_own_tag_ttl() {
    let file = "[server]\ndomains = [\"a.test\"]\n[cache]\ntag_ttl = \"7s\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    let config = Scene::file(file).load().expect("config");
    assert_eq!(
        config.upstreams[0].freshness.tags.tag_ttl,
        Duration::from_secs(7)
    );
    let config = Scene::file(&format!("{file}tag_ttl = \"9s\"\n"))
        .load()
        .expect("config");
    assert_eq!(
        config.upstreams[0].freshness.tags.tag_ttl,
        Duration::from_secs(9)
    );
    assert_eq!(config.cache.freshness.tags.tag_ttl, Duration::from_secs(7));
}

#[test]
fn several_upstreams_each_have_their_own_keys_and_routes_lead_to_them() {
    let upstreams = "[[upstream]]\nname = \"prod\"\nregistry = \"000042290000.dkr.ecr.us-west-2.amazonaws.com\"\n\
        [[upstream]]\nname = \"hub\"\nregistry = \"docker.io\"\ntag_ttl = \"1h\"\n";
    let file = format!(
        "[server]\ndomains = [\"a.test\", \"hub.test\"]\n\
        [cache]\nmax_upstream_bandwidth = \"1MiB/s\"\npins = [\"base/app:v1\", \"docker.io/alpine:3\"]\n\
        [[warm]]\nimages = [\"hub.test/alpine\", \"a.test/base/app\", \"docker.io/x/y\"]\n{upstreams}\
        [[route]]\ndomain = \"hub.test\"\nupstream = \"hub\"\n\
        [[route]]\nrepository = \"base/**\"\nupstream = \"prod\"\nstrip_prefix = \"base/\"\n\
        add_prefix = \"mirror/\"\ntag_ttl = \"2h\"\n"
    );
    let config = Scene::file(&file).load().expect("config");
    let options = config.upstream_options().expect("options");
    let names: Vec<&str> = options.iter().map(|options| &*options.name).collect();
    assert_eq!(names, ["prod", "hub"]);
    let pins: Vec<String> = config.cache.pins.iter().map(ToString::to_string).collect();
    assert_eq!(pins, ["mirror/app:v1", "library/alpine:3"]);
    let schedules = config.schedules().into_iter();
    let warmed: Vec<Vec<String>> = schedules
        .map(|schedule| {
            schedule
                .targets
                .iter()
                .map(|t| t.repo.to_string())
                .collect()
        })
        .collect();
    let hub = vec!["hub/library/alpine".to_owned(), "hub/x/y".to_owned()];
    assert_eq!(warmed, [hub, vec!["prod/mirror/app".to_owned()]]);
    let tags = config.fill_options().tags;
    for (upstream, repository, hours) in [("prod", "mirror/app", 2), ("hub", "x/y", 1)] {
        let policy = tags.of(&RepoKey {
            upstream: upstream.into(),
            repository: repository.parse().expect("a name"),
        });
        assert_eq!(
            policy.tag_ttl,
            Duration::from_secs(hours * 3600),
            "{upstream}"
        );
    }
}

#[test]
fn what_several_upstreams_and_their_routes_have_wrong_is_told_with_its_line() {
    let file = "[server]\ndomains = [\"a.test\"]\n\
        [[upstream]]\nname = \"one\"\nregistry = \"one.example\"\n\
        [[upstream]]\nname = \"one\"\nregistry = \"https://two.example\"\n\
        [[upstream]]\nname = \"one\"\nregistry = \"three.example\"\n";
    let faults = Scene::file(file).faults();
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(
        faults[0].contains("line 8: upstream.registry: \"https://two.example\": not a registry")
    );
    assert!(faults[1].contains("line 10: upstream.name: \"one\" is the name of another upstream"));
    let upstreams = "[[upstream]]\nname = \"one\"\nregistry = \"one.example\"\n\
        [[upstream]]\nname = \"two\"\nregistry = \"two.example\"\n";
    for (text, fault) in [
        (
            "[[route]]\nrepository = \"a\"\n",
            "route.upstream: is missing",
        ),
        (
            "[[route]]\nupstream = \"three\"\n",
            "there is \"one\", \"two\"",
        ),
        (
            "[[route]]\nupstream = \"one\"\ndomain = \"b.test\"\n",
            "is not among server.domains",
        ),
        (
            "[[route]]\nupstream = \"one\"\nns = \"https://x\"\n",
            "route.ns: ",
        ),
        (
            "[[route]]\nupstream = \"one\"\nns = \"A.test\"\n",
            "route.ns: \"A.test\" is a name of ours",
        ),
        (
            "[[route]]\nupstream = \"one\"\nrepository = \"a.test/x/**\"\n",
            "route.repository: \"a.test/x/**\" begins with a.test",
        ),
        (
            "[[route]]\nupstream = \"one\"\nadd_prefix = \"/x\"\n",
            "route.add_prefix: ",
        ),
        (
            "[[route]]\nupstream = \"one\"\nrepository = \"a/**\"\nstrip_prefix = \"b\"\n",
            "route.strip_prefix: is not what",
        ),
        (
            "[[upstream]]\nname = \"x\"\nregistry = \"x.example\"\nfallback = [\"one\", \"y\"]\n",
            "upstream.fallback: \"y\" is no upstream",
        ),
        ("[cache]\npins = [\"a:1\"]\n", "no [[route]] leads from it"),
        (
            "[[warm]]\nimages = [\"a:1\"]\n",
            "no [[route]] leads from it",
        ),
    ] {
        let file = format!("[server]\ndomains = [\"a.test\"]\n{upstreams}{text}");
        let faults = Scene::file(&file).faults();
        assert_eq!(faults.len(), 1, "{text}: {faults:#?}");
        assert!(faults[0].contains(fault), "{text}: {faults:#?}");
    }
    let unrouted = Scene::file(&format!("[server]\ndomains = [\"a.test\"]\n{upstreams}"));
    let warnings = unrouted.load().expect("mirrors may name either").warnings;
    let told = "there are 2 upstreams, and no [[route]] leads to one";
    assert!(warnings.iter().any(|it| it.contains(told)), "{warnings:?}");
    let flagged = Scene::file(&format!("[server]\ndomains = [\"a.test\"]\n{upstreams}"));
    let faults = flagged
        .flag("upstream.registry", "--upstream", ECR)
        .faults();
    assert!(
        faults[0].contains("there are several [[upstream]] in the file"),
        "{faults:?}"
    );
}

#[test]
fn a_route_that_an_earlier_one_leaves_nothing_is_told() {
    let warnings = |routes: &str| {
        let file = format!(
            "[server]\ndomains = [\"a.test\"]\n[access]\nanonymous = \"pull\"\n\
             [[upstream]]\nname = \"one\"\nregistry = \"{ECR}\"\n\
             [[upstream]]\nname = \"hub\"\nregistry = \"docker.io\"\nauth = \"anonymous\"\n{routes}"
        );
        let warnings = Scene::file(&file).load().expect("no fault").warnings;
        let routes = warnings.into_iter().filter(|it| it.starts_with("route: "));
        routes.collect::<Vec<_>>()
    };
    let base = "[[route]]\nrepository = \"base/**\"\nupstream = \"hub\"\n";
    let rest = "[[route]]\nupstream = \"one\"\n";
    assert_eq!(warnings(&format!("{base}{rest}")), [""; 0]);
    let told = warnings(&format!("{rest}{base}"));
    assert_eq!(told.len(), 1, "{told:?}");
    for words in [
        "[[route]] 2: repository = \"base/**\", upstream = \"hub\" leads only what",
        "are led by [[route]] 1: upstream = \"one\" before it",
    ] {
        assert!(told[0].contains(words), "{told:?}");
    }
    let told = warnings(&format!("{base}{base}{rest}"));
    assert!(
        told.len() == 1 && told[0].contains("leads nothing, "),
        "{told:?}"
    );
}

#[test]
fn an_upstream_that_has_a_name_of_ours_is_told() {
    let warnings = |registry: &str, more: &str| {
        let file = format!(
            "[server]\ndomains = [\"a.test\", \"localhost\", \"::1\"]\nlisten = [\"https://[::]:8443\"]\n\
             [access]\nanonymous = \"pull\"\n\
             [[upstream]]\nregistry = \"{registry}\"\nauth = \"anonymous\"\n{more}"
        );
        Scene::file(&file).load().expect("no fault").warnings
    };
    for registry in ["a.test", "A.test:8443", "localhost:8443", "[::1]:8443"] {
        let told = warnings(registry, "");
        let told = told.first().expect(registry);
        assert!(told.contains("is a name of ours, too"), "{told}");
    }
    let elsewhere = "endpoint = \"https://b.test\"\n";
    for (registry, more) in [
        ("a.test", elsewhere),
        ("b.test", ""),
        // Another server on the same machine.
        ("a.test:5000", ""),
        ("localhost:5000", ""),
        ("[::1]:5000", ""),
    ] {
        assert_eq!(warnings(registry, more), [""; 0], "{registry}");
    }
}

#[test]
fn names_that_no_route_leads_are_warned_of() {
    let warnings = |more: &str| {
        let file = format!(
            "[server]\ndomains = [\"a.test\", \"b.test\"]\n[access]\nanonymous = \"pull\"\n\
             [[upstream]]\nname = \"prod\"\nregistry = \"c.test\"\nauth = \"anonymous\"\n{more}"
        );
        Scene::file(&file).load().expect("no fault").warnings
    };
    let by_ns = "[[route]]\nns = \"docker.io\"\nupstream = \"prod\"\nadd_prefix = \"docker-hub\"\n";
    let told = warnings(by_ns);
    let [at_a, at_b] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(at_a.contains("plain name at a.test"), "{at_a}");
    assert!(at_b.contains("plain name at b.test"), "{at_b}");
    let at_one = format!("{by_ns}[[route]]\ndomain = \"a.test\"\nupstream = \"prod\"\n");
    let told = warnings(&at_one);
    assert!(
        matches!(&told[..], [only] if only.contains("b.test")),
        "{told:?}"
    );
    let all = format!("{by_ns}[[route]]\nupstream = \"prod\"\n");
    assert_eq!(warnings(&all), [""; 0]);
    assert_eq!(warnings(""), [""; 0]);
}
