use super::*;

#[test]
fn flags_alone_are_enough_and_the_rest_has_defaults() {
    let config = flags_of_the_first_example().load().expect("config");
    assert_eq!(config.server.listen.len(), 1);
    assert_eq!(config.server.listen[0].to_string(), "https://[::]:443");
    assert_eq!(config.server.domains, ["registry.mydomain.com"]);
    assert_eq!(config.server.state_dir, Path::new("/var/lib/ecr-proxy"));
    let admin = config.server.admin.map(|a| a.to_string());
    assert_eq!(admin.as_deref(), Some("127.0.0.1:9090"));
    let socket = config.server.admin_socket.expect("a socket");
    assert_eq!(socket.path, Path::new("/run/ecr-proxy/admin.sock"));
    assert!(!socket.is_required);
    assert_eq!(config.server.drain_timeout, Duration::from_secs(25));
    assert_eq!(config.tls, Tls::LocalCa);
    assert_eq!(config.cache.dir, Path::new("/var/cache/ecr-proxy"));
    assert_eq!(config.cache.max_size, Size::Percent(70.0));
    assert_eq!(config.cache.min_free, Size::Percent(5.0));
    assert_eq!(config.cache.freshness.tags.tag_ttl, Duration::from_secs(5));
    assert_eq!(config.cache.absent_ttl, Duration::from_secs(5));
    assert_eq!(config.cache.record_ttl, Duration::from_secs(86_400));
    assert_eq!(config.cache.max_manifest_size, 4 << 20);
    assert_eq!(config.cache.prefetch, Prefetch::Off);
    assert_eq!(config.cache.pins, []);
    assert_eq!(config.access.anonymous, Anonymous::Pull);
    assert_eq!(
        config.access.anonymous_networks,
        [Network::Loopback, Network::Private]
    );
    assert_eq!(config.upstreams[0].name, ECR);
    assert_eq!(
        config.upstreams[0].auth,
        Auth::Aws {
            profile: None,
            role: None
        }
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn all_faults_are_reported_together_with_key_and_place() {
    let scene = Scene::file(
        "[server]\nlisten = [\"https://[::]:443\", \"[::]:80\"]\ndrain_timeout = \"25\"\nfoo = 1\n\
         [cache]\nmax_size = \"lots\"\nprefetch = \"all\"\npins = [\"app\"]\n[[upstream]]\nregistry = \"https://docker.io\"\nauth = \"magic\"\n",
    )
    .variable("ECR_PROXY_CACHE_TAG_TTL", "soon")
    .flag("server.domains", "--domain", "a.test:443");
    let faults = scene.faults();
    let starts = [
        "line 2: server.listen: ",
        "line 3: server.drain_timeout: ",
        "line 4: server.foo: unknown key",
        "line 6: cache.max_size: ",
        "line 7: cache.prefetch: ",
        "line 8: cache.pins: \"app\": which of its images? app:TAG is one",
        "line 10: upstream.registry: ",
        "line 11: upstream.auth: ",
        "ECR_PROXY_CACHE_TAG_TTL: cache.tag_ttl: ",
        "--domain: server.domains: ",
    ];
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
    for (fault, start) in faults.iter().zip(starts) {
        assert!(fault.starts_with(start), "{fault} / {start}");
    }
}

#[test]
fn what_is_missing_is_not_known_of_a_file_that_cannot_be_read() {
    let faults = Scene::file("[server]\nlisten = [\n").faults();
    assert!(!faults.is_empty());
    for fault in &faults {
        assert!(!fault.contains("missing"), "{faults:?}");
    }
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let file = format!(
        "[server]\ndomains = [\"file.test\"]\n[cache]\ntag_ttl = \"1s\"\nabsent_ttl = \"1s\"\nrecord_ttl = \"1s\"\n[[upstream]]\nregistry = \"{ECR}\"\n"
    );
    let config = Scene::file(&file)
        .variable("ECR_PROXY_CACHE_ABSENT_TTL", "2s")
        .variable("ECR_PROXY_CACHE_RECORD_TTL", "2s")
        .flag("cache.record_ttl", "--record-ttl", "3s")
        .load()
        .expect("config");
    assert_eq!(config.server.domains, ["file.test"]);
    assert_eq!(config.cache.freshness.tags.tag_ttl, Duration::from_secs(1));
    assert_eq!(config.cache.absent_ttl, Duration::from_secs(2));
    assert_eq!(config.cache.record_ttl, Duration::from_secs(3));
}

#[test]
fn relative_paths_of_the_file_are_relative_to_it() {
    let file = "[server]\nlisten = [\"https://127.0.0.1:0\"]\nstate_dir = \"state\"\n\
                [tls]\ncert = \"tls.crt\"\nkey = \"tls.key\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    let scene = Scene::file(file)
        .beside("tls.crt", "")
        .beside("tls.key", "")
        .flag("cache.dir", "--cache-dir", "cache");
    let folder = scene
        .file
        .as_deref()
        .and_then(Path::parent)
        .expect("folder");
    let config = scene.load().expect("config");
    assert_eq!(config.server.state_dir, folder.join("state"));
    assert_eq!(config.cache.dir, Path::new("cache"));
    let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    assert_eq!(config.tls, Tls::Files(vec![PairFiles { cert, key }]));
}

#[test]
fn files_that_are_named_must_be_there_unless_only_printing() {
    let scene = flags_of_the_first_example()
        .flag("tls.cert", "--tls-cert", "/nonexistent/tls.crt")
        .flag("tls.key", "--tls-key", "/nonexistent/tls.key")
        .flag("upstream.ca", "--upstream-ca", "/nonexistent/ca.pem");
    assert_eq!(scene.faults().len(), 3, "{:?}", scene.faults());
    let config = Config::load(Sources {
        file: scene.file.as_deref(),
        environment: &scene.environment,
        flags: scene.flags.clone(),
        files: Files::Ignored,
    });
    assert!(config.is_ok());
}

#[test]
fn what_is_needed_and_missing_is_told() {
    let faults = Scene::file("").faults();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("server.domains: is missing"));
    assert!(faults[1].starts_with("upstream.registry: is missing"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let mut scene = flags_of_the_first_example();
    scene.file = Some("/nonexistent/config.toml".into());
    let faults = scene.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("cannot read /nonexistent/config.toml"));
}

#[test]
fn effective_values_name_every_key_once() {
    let config = flags_of_the_first_example().load().expect("config");
    let values = config.effective();
    for (index, (key, _)) in values.iter().enumerate() {
        assert!(values[..index].iter().all(|(other, _)| other != key));
    }
    assert!(values.contains(&("upstream.registry".to_owned(), ECR.to_owned())));
}

#[test]
fn what_has_changed_is_told_by_key_and_by_when_it_counts() {
    let rule = |users: &str| format!("[[access.rule]]\nusers = [{users}]\nactions = [\"pull\"]\n");
    let file = |server: &str, rules: &[&str]| {
        let rules: String = rules.iter().map(|users| rule(users)).collect();
        let text = format!("[server]\ndomains = [\"a.test\"]\n{server}\n{rules}");
        let scene = Scene::file(&text).flag("upstream.registry", "--upstream", ECR);
        scene.load().expect("config")
    };
    let start = file("", &["\"a\"", "\"b\""]);
    let none = Changes::default();
    assert_eq!(start.changes(&start, &start), none);
    // Where it is written makes no difference.
    let moved = Scene::file("").variable("ECR_PROXY_SERVER_DOMAINS", "a.test");
    let moved = moved.flag("upstream.registry", "--upstream", ECR);
    let moved = moved.load().expect("config").changes(&start, &start);
    assert_eq!(moved.now, ["access.rule.actions", "access.rule.users"]);
    assert_eq!(moved.at_start, Vec::<&str>::new());

    for (server, rules, now, at_start) in [
        (
            "",
            &["\"b\"", "\"a\""][..],
            &["access.rule.users"][..],
            &[][..],
        ),
        (
            "",
            &["\"a\""],
            &["access.rule.actions", "access.rule.users"],
            &[],
        ),
        (
            "drain_timeout = \"1s\"\nadmin = \"off\"",
            &["\"a\"", "\"b\""],
            &["server.drain_timeout"],
            &["server.admin"],
        ),
    ] {
        let changes = file(server, rules).changes(&start, &start);
        assert_eq!((&changes.now[..], &changes.at_start[..]), (now, at_start));
    }
    // What waits is told until it counts; what was taken over is no change any more.
    let waiting = file(
        "drain_timeout = \"1s\"\nadmin = \"off\"",
        &["\"a\"", "\"b\""],
    );
    let changes = waiting.changes(&waiting, &start);
    assert_eq!(
        (changes.now.len(), &changes.at_start[..]),
        (0, &["server.admin"][..])
    );

    // A certificate from elsewhere is taken over, but for listeners that do not speak TLS it has to wait.
    let own = "[tls]\ncert = \"a.pem\"\nkey = \"a.pem\"\n[server]\ndomains = [\"a.test\"]\n";
    let own = Scene::file(own).beside("a.pem", "");
    let own = own.flag("upstream.registry", "--upstream", ECR).load();
    let own = own.expect("config");
    let changes = own.changes(&start, &start);
    assert_eq!(changes.at_start, Vec::<&str>::new());
    assert!(changes.now.contains(&"tls.cert") && changes.now.contains(&"tls.key"));
    assert_eq!(own.clone().with_fixed(&start).tls, own.tls);

    let plain = Scene::file("[server]\nlisten = [\"http://127.0.0.1:0\"]\n");
    let plain = plain.flag("upstream.registry", "--upstream", ECR).load();
    let plain = plain.expect("config");
    let changes = own.changes(&plain, &plain);
    assert_eq!(changes.at_start, ["server.listen", "tls.cert", "tls.key"]);
    assert_eq!(own.clone().with_fixed(&plain).tls, Tls::Off);
    assert_eq!(plain.with_fixed(&own).tls, own.tls);
}
