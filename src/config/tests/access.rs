use super::*;

#[test]
fn nobody_let_in_is_told() {
    let mut scene = flags_of_the_first_example();
    scene = scene.flag("access.anonymous", "--x", "none");
    let warnings = scene.load().expect("config").warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("nobody is let in"));
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
         [[access.rule]]\nrepositories = []\nrepository = \"a\"\n\
         [[access.rule]]\nusers = [\"*\"]\nactions = []\nrepositories = [\"b.test/a\", \"docker.io/a\", \"b.test\"]\n",
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
        "access.rule.repositories: \"b.test/a\" begins with b.test, and names are matched without it: write \"a\"",
    ] {
        let found = faults.iter().any(|fault| fault.contains(expected));
        assert!(found, "{expected} in {faults:#?}");
    }
    assert_eq!(faults.len(), 12, "{faults:#?}");
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
fn a_rule_that_keeps_nobody_by_another_name_warns() {
    let rules = |denied: &str| {
        with_rules(&format!(
            "[[upstream]]\nname = \"quay\"\nregistry = \"quay.io\"\n\
             [[route]]\nrepository = \"hub/**\"\nupstream = \"prod\"\nstrip_prefix = \"hub\"\n\
             [access]\naws_tokens = false\n\
             [[access.rule]]\nusers = [\"*\"]\nactions = []\n{denied}\n\
             [[access.rule]]\nusers = [\"*\"]\nactions = [\"pull\"]\n"
        ))
    };
    let told = |denied| {
        let warnings = rules(denied).load().expect("config").warnings;
        let mut told = warnings.into_iter();
        told.find(|warning| warning.contains("?ns="))
    };
    let open = told("repositories = [\"hub/secret/**\"]").expect("a warning");
    assert!(
        open.starts_with(
            "[[access.rule]] 1: any user may not pull hub/secret/any, and may ([[access.rule]] 2) as \
             secret/any, its name at its registry, by ?ns=docker.io: "
        ),
        "{open}"
    );
    for closed in [
        "repositories = [\"hub/secret/**\", \"secret/**\"]\nupstreams = [\"prod\"]",
        "repositories = [\"secret/**\"]",
        "upstreams = [\"prod\"]",
    ] {
        assert_eq!(told(closed), None, "{closed}");
    }
}

#[test]
fn an_empty_user_file_is_one_that_could_not_be_written() {
    let scene = |users: &str| {
        let file = "[server]\ndomains = [\"a.test\"]\n[access]\nusers = \"users\"\n\
                    [[upstream]]\nregistry = \"docker.io\"\nauth = \"anonymous\"\n";
        Scene::file(file).beside("users", users)
    };
    let faults = scene("").faults();
    let [fault] = &faults[..] else {
        panic!("{faults:?}")
    };
    assert!(
        fault.contains("access.users") && fault.contains("is empty"),
        "{fault}"
    );
    assert!(scene("# nobody\n").load().is_ok());
}
