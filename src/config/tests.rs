use std::collections::BTreeMap;

use super::*;
use crate::oci::RepoKey;
use crate::tls::Proof;

const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

/// A configuration under construction: a file in a folder of its own, variables, flags.
#[derive(Default)]
struct Scene {
    folder: Option<tempfile::TempDir>,
    file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    flags: Flags,
}

impl Scene {
    fn file(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).expect("file");
        Self {
            folder: Some(folder),
            file: Some(file),
            ..Self::default()
        }
    }

    fn flags(flags: &[(&'static str, &'static str, &str)]) -> Self {
        let mut scene = Self::file("");
        for (key, flag, value) in flags {
            scene.flags.set(key, flag, [(*value).to_owned()]);
        }
        scene
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, value: &str) -> Self {
        self.flags.set(key, flag, [value.to_owned()]);
        self
    }

    fn beside(self, name: &str, text: &str) -> Self {
        let folder = self.folder.as_ref().expect("a scene with a file");
        std::fs::write(folder.path().join(name), text).expect("file");
        self
    }

    fn load(&self) -> Result<Config, Faults> {
        Config::load(Sources {
            file: self.file.as_deref(),
            environment: &self.environment,
            flags: self.flags.clone(),
            files: Files::Required,
        })
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.load().expect_err("faults");
        faults.iter().map(ToString::to_string).collect()
    }
}

fn flags_of_the_first_example() -> Scene {
    Scene::flags(&[
        ("upstream.registry", "--upstream", ECR),
        ("server.domains", "--domain", "registry.mydomain.com"),
        ("access.anonymous", "--anonymous-pull", "pull"),
    ])
}

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
fn the_admin_socket_is_a_path_or_off() {
    let socket = |value: &str| {
        let scene = flags_of_the_first_example();
        scene.flag("server.admin_socket", "--admin-socket", value)
    };
    let config = socket("run/admin.sock").load().expect("config");
    let named = config.server.admin_socket.expect("a socket");
    assert_eq!(named.path, Path::new("run/admin.sock"));
    assert!(named.is_required);
    assert_eq!(
        socket("off").load().expect("config").server.admin_socket,
        None
    );
    for wrong in ["", "..", "/", &format!("/{}", "a".repeat(100))] {
        let faults = socket(wrong).faults();
        assert_eq!(faults.len(), 1, "{wrong}: {faults:?}");
        assert!(faults[0].contains("admin_socket"), "{faults:?}");
    }
}

#[test]
fn nobody_let_in_is_told() {
    let mut scene = flags_of_the_first_example();
    scene = scene.flag("access.anonymous", "--x", "none");
    let warnings = scene.load().expect("config").warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("nobody is let in"));
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
fn several_pairs_are_read_in_their_order() {
    let file = "[server]\ndomains = [\"a.test\"]\n[tls]\ncert = \"a.crt\"\nkey = \"a.key\"\n\
                [[tls.pair]]\ncert = \"b.crt\"\nkey = \"b.key\"\n[[tls.pair]]\ncert = \"c.crt\"\n\
                key = \"c.key\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    let mut scene = Scene::file(file);
    for name in ["a.crt", "a.key", "b.crt", "b.key", "c.crt", "c.key"] {
        scene = scene.beside(name, "");
    }
    let config = scene.load().expect("config");
    let Tls::Files(pairs) = &config.tls else {
        panic!("{:?}", config.tls)
    };
    let name = |path: &Path| path.file_name().map(|name| name.display().to_string());
    let names: Vec<_> = pairs.iter().map(|pair| name(&pair.cert)).collect();
    assert_eq!(
        names,
        ["a.crt", "b.crt", "c.crt"].map(|name| Some(name.to_owned()))
    );
    let shown = format!("{:?}", config.effective());
    assert!(
        shown.contains("a.crt") && shown.contains("c.key"),
        "{shown}"
    );

    let alone = file.replace("cert = \"a.crt\"\nkey = \"a.key\"\n", "");
    let mut scene = Scene::file(&alone);
    for name in ["b.crt", "b.key", "c.crt", "c.key"] {
        scene = scene.beside(name, "");
    }
    let config = scene.load().expect("config");
    assert!(matches!(config.tls, Tls::Files(pairs) if pairs.len() == 2));
}

#[test]
fn every_fault_of_every_pair_is_told() {
    let faults = Scene::file(
        "[server]\ndomains = [\"a.test\"]\n[tls]\ncert = \"a.crt\"\npair = [\n\
         { cert = \"b.crt\", key = \"b.key\" },\n{ key = \"c.key\" },\n{},\n{ crt = \"d\" }]\n\
         [[upstream]]\nregistry = \"docker.io\"\n",
    )
    .beside("a.crt", "")
    .beside("c.key", "")
    .faults();
    let told = faults.join("\n");
    for expected in [
        "tls.key: is missing: tls.cert needs its private key",
        "line 6: tls.pair.cert: cannot read",
        "line 6: tls.pair.key: cannot read",
        "tls.pair.cert: is missing: tls.pair.key needs its certificate chain",
        "tls.pair: is empty: name its cert and key",
        "line 9: tls.pair.crt: unknown key; the nearest known one is tls.pair.cert",
    ] {
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    let [fault] = &Scene::file("[tls.pair]\ncert = \"a\"\n")
        .flag("upstream.registry", "--upstream", ECR)
        .flag("server.domains", "--domain", "a.test")
        .faults()[..]
    else {
        panic!("one fault")
    };
    assert_eq!(fault, "line 1: tls.pair: is written as [[tls.pair]]");
}

fn with_acme(acme: &str) -> Scene {
    Scene::file(&format!(
        "[server]\ndomains = [\"a.test\", \"b.test\"]\nstate_dir = \"state\"\n\
         [[upstream]]\nregistry = \"docker.io\"\n[tls.acme]\n{acme}"
    ))
}

#[test]
fn a_certificate_may_be_obtained_for_all_domains() {
    let scene = with_acme("directory = \"https://acme.test/dir\"\nemail = \"ops@a.test\"\n");
    let Tls::Acme {
        options,
        http_listen,
    } = scene.load().expect("config").tls
    else {
        panic!("not ACME")
    };
    assert_eq!(options.directory, "https://acme.test/dir");
    assert_eq!(options.domains, ["a.test", "b.test"]);
    assert_eq!(options.proof, Proof::TlsAlpn);
    assert_eq!(options.email.as_deref(), Some("ops@a.test"));
    assert!(options.state_dir.ends_with("state"));
    assert_eq!(http_listen, None);
    for (further, at) in [
        ("", "[::]:80"),
        (
            "http_listen = \"http://127.0.0.1:8080\"\n",
            "127.0.0.1:8080",
        ),
    ] {
        let acme =
            format!("directory = \"https://acme.test/dir\"\nchallenge = \"http-01\"\n{further}");
        let Tls::Acme { http_listen, .. } = with_acme(&acme).load().expect("config").tls else {
            panic!("not ACME")
        };
        assert_eq!(http_listen.map(|at| at.to_string()).as_deref(), Some(at));
    }
}

#[test]
fn faults_of_acme_name_their_keys() {
    let whole = "directory = \"https://acme.test/dir\"\n";
    for (acme, expected) in [
        ("email = \"ops@a.test\"", "tls.acme.directory: is missing"),
        (
            "directory = \"http://acme.test/dir\"",
            "line 7: tls.acme.directory: \"http://acme.test/dir\" is not an https:// URL",
        ),
        (
            "directory = \"letsencrypt\"",
            "line 7: tls.acme.directory: \"letsencrypt\" is not an https:// URL",
        ),
        (
            &format!("{whole}challenge = \"dns-01\""),
            "line 8: tls.acme.challenge: \"dns-01\" is neither \"tls-alpn-01\" nor \"http-01\"",
        ),
        (
            &format!("{whole}http_listen = \"http://[::]:80\""),
            "tls.acme.http_listen: belongs to challenge = \"http-01\" only",
        ),
        (
            &format!("{whole}challenge = \"http-01\"\nhttp_listen = \"https://[::]:80\""),
            "line 9: tls.acme.http_listen: \"https://[::]:80\" is not http://",
        ),
        (
            &format!("{whole}email = \"nobody\""),
            "line 8: tls.acme.email: \"nobody\" is not an address",
        ),
        (
            &format!("{whole}eab_kid = \"kid-1\""),
            "tls.acme.eab_key_file: is missing: tls.acme.eab_kid needs its key",
        ),
        (
            &format!("{whole}eab_kid = \"kid 1\"\neab_key_file = \"none.key\""),
            "line 8: tls.acme.eab_kid: \"kid 1\" is no identifier of an account",
        ),
        (
            &format!("{whole}eab_kid = \"kid-1\"\neab_key_file = \"none.key\""),
            "line 9: tls.acme.eab_key_file: cannot read",
        ),
        (
            &format!("{whole}ca = \"none.pem\""),
            "line 8: tls.acme.ca: cannot read",
        ),
        (
            &format!("{whole}mail = \"x\""),
            "line 8: tls.acme.mail: unknown key; the nearest known one is tls.acme.email",
        ),
        (
            &format!("{whole}[tls]\ncert = \"a.pem\"\nkey = \"a.pem\""),
            "tls.acme.directory: is set beside tls.cert",
        ),
    ] {
        let told = with_acme(acme).beside("a.pem", "").faults().join("\n");
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    let acme = "[tls.acme]\ndirectory = \"https://acme.test/dir\"\n[[upstream]]\nregistry = \"docker.io\"\n";
    for (server, expected) in [
        (
            "listen = [\"https://127.0.0.1:443\"]",
            "server.domains: is missing: tls.acme obtains a certificate for them",
        ),
        (
            "domains = [\"a.test\", \"192.0.2.1\"]",
            "server.domains: 192.0.2.1 is an address: tls.acme is for names",
        ),
        (
            "domains = [\"a.test\"]\nlisten = [\"http://[::]:80\"]",
            "tls.acme.directory: has no use: no listener speaks TLS",
        ),
    ] {
        let scene = Scene::file(&format!("[server]\n{server}\n{acme}"));
        let told = scene.faults().join("\n");
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
}

#[test]
fn users_beside_anonymous_pull_is_a_fault_that_explains() {
    let hash = bcrypt::hash("secret", 4).expect("hash");
    let scene = flags_of_the_first_example().beside("users", &format!("ci:{hash}\n"));
    let folder = scene
        .file
        .as_deref()
        .and_then(Path::parent)
        .expect("folder");
    let users = folder.join("users").display().to_string();
    let faults = scene.flag("access.users", "--users", &users).faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("--anonymous-pull: access.anonymous: "));
    assert!(faults[0].contains("/v2/"), "{}", faults[0]);
}

const RULED: &str = "[server]\ndomains = [\"a.test\", \"b.test\"]\n[[upstream]]\n\
                     name = \"prod\"\nregistry = \"docker.io\"\n";

fn with_rules(rules: &str) -> Scene {
    Scene::file(&format!("{RULED}{rules}"))
}

#[test]
fn rules_are_read_in_their_order_with_all_their_keys() {
    let scene = with_rules(
        "[access]\nanonymous_networks = [\"loopback\"]\n\
         [[access.rule]]\nusers = [\"ci\", \"*\"]\ndomains = [\"A.test\"]\nupstreams = [\"prod\"]\n\
         networks = [\"10.0.0.0/8\"]\nrepositories = [\"team/**\"]\nactions = [\"pull\", \"delete\"]\n\
         [[access.rule]]\nusers = [\"@anonymous\"]\ndomains = [\"b.test\"]\nactions = []\n",
    );
    let config = scene.load().expect("config");
    let rules: Vec<String> = config
        .access
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        rules,
        [
            r#"[[access.rule]] 1: users = ["ci", "*"], domains = ["a.test"], upstreams = ["prod"], networks = ["10.0.0.0/8"], repositories = ["team/**"], actions = ["pull", "delete"]"#,
            r#"[[access.rule]] 2: users = ["@anonymous"], domains = ["b.test"], actions = []"#,
        ]
    );
    assert_eq!(config.access.written_rules, 2);
}

#[test]
fn without_a_rule_users_may_pull_and_anonymous_pull_is_short_for_one() {
    let rules = |text: &str| {
        let config = with_rules(text).load().expect("config");
        let rules = config.access.rules.iter();
        rules.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        rules(""),
        [r#"the default, as there is no [[access.rule]]: users = ["*"], actions = ["pull"]"#]
    );
    assert_eq!(
        rules("[access]\nanonymous = \"pull\"\nanonymous_networks = [\"192.0.2.0/24\"]\n"),
        [
            r#"anonymous = "pull": users = ["@anonymous"], networks = ["192.0.2.0/24"], actions = ["pull"]"#
        ]
    );
}

#[test]
fn a_domain_for_both_the_anonymous_and_users_is_a_fault_that_explains() {
    let rule = |users: &str, domains: &str| {
        format!("[[access.rule]]\nusers = {users}\n{domains}\nactions = [\"pull\"]\n")
    };
    let (a, b) = ("domains = [\"a.test\"]", "domains = [\"b.test\"]");
    let (anonymous, users) = (r#"["@anonymous"]"#, r#"["*"]"#);
    let apart = rule(anonymous, a) + &rule(users, b);
    with_rules(&apart).load().expect("each has its own");
    for (text, on) in [
        (rule(anonymous, a) + &rule(users, a), "on a.test both"),
        (rule(users, "") + &rule(anonymous, b), "on b.test both"),
        (
            rule(users, "") + &rule(anonymous, ""),
            "on a.test, b.test both",
        ),
        (
            rule(r#"["ci", "@anonymous"]"#, ""),
            "on a.test, b.test both",
        ),
        (
            "[access]\nanonymous = \"pull\"\n".to_owned() + &rule(users, b),
            "on b.test both",
        ),
    ] {
        let faults = with_rules(&text).faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(on), "{} says not {on}", faults[0]);
        assert!(faults[0].contains("/v2/"), "{}", faults[0]);
    }
}

#[test]
fn ecr_tokens_are_logins_of_ecr_upstreams_on_domains_where_clients_log_in() {
    const ECR_UPSTREAM: &str = "[server]\ndomains = [\"a.test\", \"b.test\"]\n[[upstream]]\n\
                                registry = \"000042290000.dkr.ecr.us-west-2.amazonaws.com\"\n";
    let scene = |access: &str| Scene::file(&format!("{ECR_UPSTREAM}[access]\n{access}"));
    let config = scene("aws_tokens = true").load().expect("config");
    assert!(config.access.aws_tokens);
    assert_eq!(config.warnings, [""; 0], "somebody is let in");
    let config = scene("").variable("ECR_PROXY_ACCESS_AWS_TOKENS", "true");
    assert!(config.load().expect("config").access.aws_tokens);
    assert!(!scene("").load().expect("config").access.aws_tokens);

    let everywhere = scene("aws_tokens = true\nanonymous = \"pull\"").faults();
    assert_eq!(everywhere.len(), 1, "{everywhere:?}");
    assert!(everywhere[0].contains("access.aws_tokens") && everywhere[0].contains("/v2/"));
    let on_one = "aws_tokens = true\n[[access.rule]]\nusers = [\"@anonymous\"]\n\
                  domains = [\"b.test\"]\nactions = [\"pull\"]\n";
    scene(on_one).load().expect("they log in on a.test");

    let elsewhere = format!("{RULED}[access]\naws_tokens = true\n");
    let faults = Scene::file(&elsewhere).faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("access.aws_tokens: cannot be true"));

    let denied = "aws_tokens = true\n[[access.rule]]\nusers = [\"*\"]\nactions = []\n";
    let warnings = scene(denied).load().expect("config").warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.starts_with("[[access.rule]] 1: does not hold"))
    );
}

#[test]
fn faults_of_rules_name_their_keys() {
    let faults = with_rules(
        "[[access.rule]]\nusers = [\"AWS\", \"te*m\"]\nactions = [\"read\"]\n\
         domains = [\"c.test\"]\nupstreams = [\"dev\"]\nnetworks = [\"lan\"]\nrepositories = [\"a//b\"]\n\
         [[access.rule]]\nrepositories = []\nrepository = \"a\"\n",
    )
    .faults();
    for expected in [
        "access.rule.users: \"AWS\" is no user: the name is reserved",
        "access.rule.users: \"te*m\" is no user: ",
        "access.rule.actions: \"read\" is none of",
        "access.rule.domains: \"c.test\" is not among server.domains",
        "access.rule.upstreams: \"dev\" is no upstream; there is \"prod\"",
        "access.rule.networks: \"lan\" is neither",
        "access.rule.repositories: \"a//b\" is no pattern",
        "access.rule.users: is missing or empty",
        "access.rule.actions: is missing",
        "access.rule.repositories: is empty",
        "access.rule.repository: unknown key; the nearest known one is",
    ] {
        let found = faults.iter().any(|fault| fault.contains(expected));
        assert!(found, "{expected} in {faults:#?}");
    }
    assert_eq!(faults.len(), 11, "{faults:#?}");
}

#[test]
fn a_rule_about_a_user_who_is_not_in_the_file_warns() {
    let hash = bcrypt::hash("secret", 4).expect("hash");
    let scene = with_rules(
        "[access]\nusers = \"users\"\n[[access.rule]]\nusers = [\"ci\", \"dev\"]\nactions = [\"pull\"]\n",
    );
    let scene = scene.beside("users", &format!("ci:{hash}\n"));
    let warnings = scene.load().expect("config").warnings;
    assert_eq!(
        warnings,
        ["[[access.rule]] 1: \"dev\" is not in the user file"]
    );
}

#[test]
fn faults_of_the_user_file_name_its_lines() {
    let file = format!(
        "[server]\ndomains = [\"a.test\"]\n[access]\nusers = \"users\"\n[[upstream]]\nregistry = \"{ECR}\"\n"
    );
    let faults = Scene::file(&file)
        .beside("users", "a:hunter2\nAWS:x\n")
        .faults();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("line 4: access.users: "));
    assert!(faults[0].contains("line 1: "), "{}", faults[0]);
    assert!(faults[1].contains("line 2: "), "{}", faults[1]);
    assert!(faults.iter().all(|fault| !fault.contains("hunter2")));
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
fn a_certificate_without_its_key_is_a_fault() {
    let scene = flags_of_the_first_example().beside("tls.crt", "");
    let folder = scene
        .file
        .as_deref()
        .and_then(Path::parent)
        .expect("folder");
    let cert = folder.join("tls.crt").display().to_string();
    let faults = scene.flag("tls.cert", "--tls-cert", &cert).faults();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("tls.key: is missing"), "{faults:?}");
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
fn loopback_listeners_do_without_domains_and_plain_ones_without_tls() {
    let config = Scene::flags(&[
        ("upstream.registry", "--upstream", "127.0.0.1:5000"),
        ("server.listen", "--listen", "http://127.0.0.1:0"),
    ])
    .load()
    .expect("config");
    assert_eq!(config.tls, Tls::Off);
    assert_eq!(config.upstreams[0].auth, Auth::Anonymous);
    assert_eq!(config.upstreams[0].name, "127.0.0.1_5000");
}

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
    for (registry, written, fault) in [
        ("docker.io", written, "is about the quotas of private ECR"),
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
fn effective_values_name_every_key_once() {
    let config = flags_of_the_first_example().load().expect("config");
    let values = config.effective();
    for (index, (key, _)) in values.iter().enumerate() {
        assert!(values[..index].iter().all(|(other, _)| other != key));
    }
    assert!(values.contains(&("upstream.registry".to_owned(), ECR.to_owned())));
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

    // A certificate from elsewhere waits, and so does what it is made of.
    let pair = "[tls]\ncert = \"a.pem\"\nkey = \"a.pem\"\n[server]\ndomains = [\"a.test\"]\n";
    let own = Scene::file(pair).beside("a.pem", "");
    let own = own.flag("upstream.registry", "--upstream", ECR).load();
    let changes = own.expect("config").changes(&start, &start);
    assert_eq!(changes.at_start, ["tls.cert", "tls.key"]);
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
    let flagged = Scene::file(&format!("[server]\ndomains = [\"a.test\"]\n{upstreams}"));
    let faults = flagged
        .flag("upstream.registry", "--upstream", ECR)
        .faults();
    assert!(
        faults[0].contains("there are several [[upstream]] in the file"),
        "{faults:?}"
    );
}
