//! Every command tells what it did on its output, what went wrong on standard error, and how it
//! ended by its exit code.

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ecr_proxy::simulator::{Action, DENIED_ACCESS_KEY, PULL_ONLY_ACCESS_KEY, Principal, Simulator};

const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

/// A command of the program, cut off from the environment of the tests.
fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

fn ran(args: &[&str]) -> Output {
    program(args).output().expect("the program runs")
}

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = program(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that has heard enough closes its end first.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn config(folder: &Path, text: &str) -> String {
    let path = folder.join("config.toml");
    std::fs::write(&path, text).expect("file");
    path.display().to_string()
}

#[test]
fn help_of_every_command_has_an_example() {
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["iam-policy", "--help"],
        &["hash-password", "--help"],
        &["client-config", "--help"],
        &["export", "--help"],
        &["import", "--help"],
        &["ca", "--help"],
        &["ca", "print", "--help"],
    ] {
        let output = ran(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("Example"), "{args:?}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &["serve", "--upstraem", "x"][..],
        &["no-such-command"],
        &[],
        &["client-config", "lynx"],
        &["export", "-o", "x.tar"],
        &["export", "app:v1"],
        &["export", "App", "-o", "x.tar"],
        &["export", "app", "-o", "x.tar", "--platform", "linux"],
        &["export", "app", "-o", "-", "--json"],
        &["import"],
        &["hash-password"],
        &["hash-password", "a:b"],
    ] {
        let output = ran(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_neighbour() {
    let folder = tempfile::tempdir().expect("folder");
    let file = config(folder.path(), "[server]\nlisen = [\"https://[::]:443\"]\n");
    for command in ["serve", "check", "iam-policy"] {
        let output = ran(&[command, "--config", &file]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = format!("{}{}", stdout(&output), stderr(&output));
        let fault = "line 2: server.lisen: unknown key; the nearest known one is server.listen";
        assert!(said.contains(fault), "{command}: {said}");
    }
}

#[test]
fn all_faults_are_told_together() {
    let folder = tempfile::tempdir().expect("folder");
    let file = config(
        folder.path(),
        "[cache]\nmax_size = \"much\"\ntag_ttl = \"5\"\n[[upstream]]\nregistry = \"a b\"\n[[upstream]]\n",
    );
    let output = program(&["serve", "--config", &file, "--domain", "https://a.test"])
        .env("ECR_PROXY_SERVER_DRAIN_TIMEOUT", "long")
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    for fault in [
        "line 2: cache.max_size: ",
        "line 3: cache.tag_ttl: ",
        "line 5: upstream.registry: ",
        "line 6: upstream.registry: is missing",
        "ECR_PROXY_SERVER_DRAIN_TIMEOUT: server.drain_timeout: ",
        "--domain: server.domains: ",
    ] {
        assert!(said.contains(fault), "{fault} in {said}");
    }
}

#[test]
fn what_is_in_the_files_that_a_configuration_names_is_told_as_its_faults_are() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    for name in ["a.pem", "b.pem", "clients.pem"] {
        std::fs::write(path(name), "nothing of the kind").expect("file");
    }
    std::fs::write(path("users.htpasswd"), "ann:secret\nbob\n").expect("file");
    let server = "[server]\nlisten = [\"https://127.0.0.1:0\"]\ndomains = [\"a.test\"]\nadmin = \"off\"\n\
        admin_socket = \"s\"\nstate_dir = \"state\"\n[cache]\ndir = \"cache\"\n";
    for (text, told) in [
        (
            "[tls]\ncert = \"a.pem\"\nkey = \"a.pem\"\n[[tls.pair]]\ncert = \"b.pem\"\nkey = \"b.pem\"\n",
            &["a.pem", "b.pem", "tls"][..],
        ),
        (
            "[tls]\nclient_ca = \"clients.pem\"\n",
            &["clients.pem", "tls.client_ca"],
        ),
        (
            "[access]\nusers = \"users.htpasswd\"\n",
            &["users.htpasswd", "line 1", "line 2", "access.users"],
        ),
    ] {
        let text = format!("{server}{text}[[upstream]]\nregistry = \"{ECR}\"\n");
        let file = config(folder.path(), &text);
        let output = ran(&["serve", "--config", &file]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}: {said}");
        for part in told {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn no_pipe_and_no_directory_in_place_of_a_file_is_waited_for() {
    let folder = tempfile::tempdir().expect("folder");
    let pipe = folder.path().join("pipe").display().to_string();
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let output = ran(&["check", "--config", &pipe]);
    assert_eq!(output.status.code(), Some(2));
    let told = stdout(&output);
    assert!(told.contains("pipe: it is a pipe, and nothing"), "{told}");
    for (flag, path, kind) in [
        ("--users", &*pipe, "a pipe"),
        ("--tls-cert", &pipe, "a pipe"),
        ("--tls-key", "/dev/zero", "a device"),
        ("--upstream-ca", &pipe, "a pipe"),
        ("--users", "/etc", "a directory"),
    ] {
        let state = folder.path().display().to_string();
        let output = ran(&[
            "check",
            "--upstream",
            ECR,
            "--domain",
            "a.test",
            "--cache-dir",
            &state,
            "--state-dir",
            &state,
            flag,
            path,
        ]);
        let told = stdout(&output);
        assert_eq!(output.status.code(), Some(2), "{flag}: {told}");
        let wanted = format!("cannot read {path}: it is {kind}, and no regular file");
        assert!(told.contains(&wanted), "{flag}: {told}");
    }
}

#[test]
fn a_configuration_may_come_through_a_pipe() {
    let folder = tempfile::tempdir().expect("folder");
    let text = format!("[server]\ndomains = [\"a.test\"]\n[[upstream]]\nregistry = \"{ECR}\"\n");
    let piped = with_input(&["iam-policy", "--config", "/dev/stdin"], &text);
    assert_eq!(piped.status.code(), Some(0), "{}", stderr(&piped));
    let file = config(folder.path(), &text);
    assert_eq!(
        stdout(&piped),
        stdout(&ran(&["iam-policy", "--config", &file]))
    );
}

#[test]
fn a_hashed_password_is_a_line_that_the_user_file_takes() {
    let output = with_input(&["hash-password", "ci"], "correct horse\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let line = stdout(&output);
    let hash = line.trim_end().strip_prefix("ci:").expect("ci:");
    assert!(hash.starts_with("$2b$"), "{line}");
    assert_eq!(bcrypt::verify("correct horse", hash).ok(), Some(true));
    assert!(ecr_proxy::access::Users::parse(&line).is_ok());
    let long = "x".repeat(73);
    for (name, input) in [("ci", ""), ("ci", "\n"), ("ci", long.as_str())] {
        let output = with_input(&["hash-password", name], input);
        assert_eq!(output.status.code(), Some(1));
        assert!(stdout(&output).is_empty());
    }
    for name in ["AWS", "@anonymous", "a:b"] {
        let output = with_input(&["hash-password", name], "x\n");
        assert_eq!(output.status.code(), Some(2));
        let told = stderr(&output);
        assert!(told.contains(&format!("{name:?} is no user")), "{told}");
    }
}

#[test]
fn the_iam_policy_of_pushes_has_what_pushes_take_besides() {
    let output = ran(&[
        "iam-policy",
        "--push",
        "--upstream",
        ECR,
        "--domain",
        "a.test",
    ]);
    let policy: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let push = &policy["Statement"][2];
    assert_eq!(push["Sid"], "Push");
    let actions: Vec<&str> = push["Action"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    assert!(actions.contains(&"ecr:PutImage") && actions.contains(&"ecr:InitiateLayerUpload"));
    let arn = "arn:aws:ecr:us-west-2:000042290000:repository/*";
    assert_eq!(push["Resource"], arn);
}

#[test]
fn the_iam_policy_of_new_repositories_has_what_making_them_takes_besides() {
    let arguments = ["iam-policy", "--upstream", ECR, "--domain", "a.test"];
    let actions = |flags: &[&str]| {
        let output = ran(&[&arguments[..], flags].concat());
        let policy: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let statements = policy["Statement"].as_array().expect("statements").clone();
        let create = statements.into_iter().find(|it| it["Sid"] == "Create");
        create.map(|it| it["Action"].clone())
    };
    assert_eq!(actions(&["--push"]), None);
    let expected = [
        "ecr:CreateRepository",
        "ecr:GetLifecyclePolicy",
        "ecr:PutLifecyclePolicy",
        "ecr:TagResource",
    ];
    assert_eq!(
        actions(&["--push", "--create"]),
        Some(expected.as_slice().into())
    );
}

#[test]
fn the_iam_policy_of_ecr_public_is_its_login() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    let text =
        "[server]\ndomains = ['a.test']\n[[upstream]]\nregistry = 'public.ecr.aws'\nauth = 'aws'\n";
    std::fs::write(&file, text).expect("a file");
    let output = ran(&["iam-policy", "--config", &file.to_string_lossy()]);
    let policy: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    let [only] = &statements[..] else {
        panic!("one statement: {policy}");
    };
    let actions = [
        "ecr-public:GetAuthorizationToken",
        "sts:GetServiceBearerToken",
    ];
    assert_eq!(only["Action"], serde_json::json!(actions));
}

#[test]
fn the_iam_policy_of_a_role_is_its_own_and_the_proxys_identity_may_assume_it() {
    let folder = tempfile::tempdir().expect("folder");
    let role = |account: &str| format!("arn:aws:iam::{account}:role/puller");
    let (first, second) = (role("000042290001"), role("000042290002"));
    let upstream = |account: &str, keys: &str| {
        format!("[[upstream]]\nregistry = '{account}.dkr.ecr.eu-west-1.amazonaws.com'\n{keys}\n")
    };
    let text = [
        "[server]\ndomains = ['a.test']\n".to_owned(),
        upstream("000042290000", ""),
        upstream("000042290001", &format!("role_arn = '{first}'")),
        upstream("000042290002", &format!("role_arn = '{second}'")),
        "[[route]]\nrepository = 'a/**'\nupstream = '000042290000.dkr.ecr.eu-west-1.amazonaws.com'\n"
            .to_owned(),
    ];
    let file = config(folder.path(), &text.concat());
    let statements = |output: &Output| {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
        let policy: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        policy["Statement"].as_array().expect("statements").clone()
    };
    let of = |account: &str| format!("arn:aws:ecr:eu-west-1:{account}:repository/*");
    let own = ran(&["iam-policy", "--push", "--config", &file]);
    let sids_and_resources = |output: &Output| {
        let each = statements(output).into_iter();
        each.map(|it| (it["Sid"].clone(), it["Resource"].clone()))
            .collect::<Vec<_>>()
    };
    let expected = |account: &str| {
        let repositories = serde_json::Value::from(of(account));
        vec![
            ("Login".into(), "*".into()),
            ("Pull".into(), repositories.clone()),
            ("Push".into(), repositories),
        ]
    };
    let mut expected_own = expected("000042290000");
    let roles = serde_json::json!([first, second]);
    expected_own.push(("AssumeRole".into(), roles));
    assert_eq!(sids_and_resources(&own), expected_own);
    assert_eq!(statements(&own)[3]["Action"], "sts:AssumeRole");
    // Who pastes the one is told of the others.
    for role in [&first, &second] {
        let command = format!("ecr-proxy iam-policy --role {role} --push --config {file}");
        assert!(stderr(&own).contains(&command), "{}", stderr(&own));
    }
    for (role, account) in [(&first, "000042290001"), (&second, "000042290002")] {
        let words = ["iam-policy", "--role", role, "--push", "--config", &file];
        let output = ran(&words);
        assert_eq!(sids_and_resources(&output), expected(account));
        assert_eq!(stderr(&output), "");
    }
    let output = ran(&[
        "iam-policy",
        "--role",
        &role("000042290003"),
        "--config",
        &file,
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    let told = stderr(&output);
    let none = format!("no upstream assumes the role {}", role("000042290003"));
    for part in [&none, &first, &second] {
        assert!(told.contains(part.as_str()), "{told}");
    }
}

#[test]
fn the_iam_policy_of_identities_of_their_own_says_that_it_is_for_all_of_them() {
    let folder = tempfile::tempdir().expect("folder");
    let upstream = |name: &str, account: &str, keys: &str| {
        format!(
            "[[upstream]]\nname = '{name}'\nregistry = '{account}.dkr.ecr.eu-west-1.amazonaws.com'\n{keys}\n"
        )
    };
    let text = [
        "[server]\ndomains = ['a.test']\n".to_owned(),
        upstream("one", "000042290000", ""),
        upstream("two", "000042290001", "profile = 'edge'"),
        "[[route]]\nrepository = 'a/**'\nupstream = 'one'\n".to_owned(),
    ];
    let file = config(folder.path(), &text.concat());
    let output = ran(&["iam-policy", "--config", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let policy: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let resources = &policy["Statement"][1]["Resource"];
    assert_eq!(resources.as_array().map(Vec::len), Some(2), "{policy}");
    let told = stderr(&output);
    for part in ["the AWS default chain (one)", "profile \"edge\" (two)"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn the_iam_policy_is_json_and_the_least() {
    let output = ran(&["iam-policy", "--upstream", ECR, "--domain", "a.test"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let policy: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    assert_eq!(statements.len(), 2);
    assert_eq!(statements[0]["Action"], "ecr:GetAuthorizationToken");
    assert_eq!(statements[0]["Resource"], "*");
    assert_eq!(
        statements[1]["Action"],
        serde_json::json!(["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"])
    );
    assert_eq!(
        statements[1]["Resource"],
        "arn:aws:ecr:us-west-2:000042290000:repository/*"
    );
    let output = ran(&[
        "iam-policy",
        "--upstream",
        "docker.io",
        "--domain",
        "a.test",
    ]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn client_config_is_complete_for_each_client() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().display().to_string();
    let ca = folder.path().join("tls/ca.pem");
    std::fs::create_dir_all(folder.path().join("tls")).expect("folder");
    let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    std::fs::write(&ca, pem).expect("file");
    for (client, lines) in [
        (
            "docker",
            &[
                "/etc/docker/certs.d/registry.mydomain.com:8443/ca.crt",
                "docker login registry.mydomain.com:8443",
                "docker pull registry.mydomain.com:8443/",
            ][..],
        ),
        (
            "containerd",
            &[
                "/etc/containerd/certs.d/registry.mydomain.com:8443/hosts.toml",
                "server = \"https://registry.mydomain.com:8443\"",
                "ca = \"/etc/containerd/certs.d/registry.mydomain.com:8443/ca.crt\"",
                "server = \"https://000042290000.dkr.ecr.us-west-2.amazonaws.com\"",
                "nerdctl login registry.mydomain.com:8443",
            ],
        ),
        (
            "buildkit",
            &[
                "[registry.\"registry.mydomain.com:8443\"]",
                "ca = [\"/etc/buildkit/certs.d/registry.mydomain.com:8443/ca.crt\"]",
                "mirrors = [\"registry.mydomain.com:8443\"]",
                "docker login registry.mydomain.com:8443",
            ],
        ),
        (
            "kubernetes",
            &[
                "/etc/containerd/certs.d/registry.mydomain.com:8443/ca.crt",
                "kubectl create secret docker-registry ecr-proxy-registry.mydomain.com-8443 \
                 --docker-server=registry.mydomain.com:8443",
                "imagePullSecrets",
            ],
        ),
        (
            "k3s",
            &[
                "/etc/rancher/k3s/registries.yaml",
                "- \"https://registry.mydomain.com:8443\"",
                "ca_file: \"/etc/rancher/k3s/certs.d/registry.mydomain.com:8443/ca.crt\"",
                "password: \"PASSWORD\"",
            ],
        ),
        (
            "helm",
            &[
                "helm registry login --ca-file /usr/local/share/ecr-proxy/registry.mydomain.com:8443/ca.crt \
                 registry.mydomain.com:8443",
                "helm pull oci://registry.mydomain.com:8443/",
            ],
        ),
        (
            "podman",
            &[
                "/etc/containers/certs.d/registry.mydomain.com:8443/ca.crt",
                "location = \"registry.mydomain.com:8443\"",
                "podman login registry.mydomain.com:8443",
            ],
        ),
    ] {
        let output = ran(&[
            "client-config",
            client,
            "--upstream",
            ECR,
            "--domain",
            "registry.mydomain.com",
            "--listen",
            "https://[::]:8443",
            "--state-dir",
            &state,
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let script = stdout(&output);
        assert!(script.contains(pem), "{script}");
        for line in lines {
            assert!(script.contains(line), "{line} in {script}");
        }
        let parsed = with_shell(&script);
        assert!(parsed.status.success(), "{client}: {}", stderr(&parsed));
    }
}

#[test]
fn a_docker_mirror_that_cannot_work_is_refused_with_the_key_to_set() {
    for (upstream, told) in [
        ("docker.io", "access.anonymous"),
        (ECR, "registry = \"docker.io\""),
    ] {
        let mut given = vec!["client-config", "docker-mirror", "--upstream", upstream];
        given.extend(["--domain", "registry.mydomain.com"]);
        let output = ran(&given);
        assert_eq!(output.status.code(), Some(1), "{upstream}");
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

/// The shell's opinion of a script's form; nothing of it runs.
fn with_shell(script: &str) -> Output {
    let mut child = Command::new("/bin/sh")
        .arg("-n")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("script");
    drop(stdin);
    child.wait_with_output().expect("the shell ends")
}

#[test]
fn plain_listeners_need_no_trust_and_say_how_they_are_used() {
    for (client, line) in [
        ("docker", "insecure-registries"),
        ("containerd", "server = \"http://localhost:5000\""),
        ("podman", "insecure = true"),
        (
            "docker-mirror",
            "\"registry-mirrors\": [\"http://localhost:5000/\"]",
        ),
        ("buildkit", "http = true"),
        ("kubernetes", "server = \"http://localhost:5000\""),
        ("k3s", "- \"http://localhost:5000\""),
        ("helm", "--plain-http"),
    ] {
        let output = ran(&[
            "client-config",
            client,
            "--upstream",
            "docker.io",
            "--listen",
            "http://127.0.0.1:5000",
            "--anonymous-pull",
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let script = stdout(&output);
        assert!(script.contains(line), "{line} in {script}");
        assert!(!script.contains("ca.crt"), "{script}");
        assert!(script.contains("No login is needed"), "{script}");
    }
}

#[test]
fn the_ca_is_printed_once_there_is_one() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().display().to_string();
    let output = ran(&["ca", "print", "--state-dir", &state]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("serve"), "{}", stderr(&output));
    let now = std::time::SystemTime::now();
    let domains = ["registry.mydomain.com".to_owned()];
    let ca = ecr_proxy::tls::LocalCa::open(folder.path(), &domains, now).expect("CA");
    let output = ran(&["ca", "print", "--state-dir", &state]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), ca.ca_pem());
}

/// `check` against a simulated ECR by this access key; code, findings, and their text.
fn check(simulator: &Simulator, key: &str) -> (Option<i32>, Vec<serde_json::Value>, String) {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let output = program(&[
        "check",
        "--json",
        "--upstream",
        &simulator.registry_host(),
        "--endpoint",
        &simulator.endpoint(),
        "--listen",
        "http://127.0.0.1:0",
        "--admin",
        "off",
        "--anonymous-pull",
        "--cache-dir",
        &at("cache"),
        "--state-dir",
        &at("state"),
        "--max-size",
        "3GiB",
    ])
    // How full this machine is, is not the question.
    .env("ECR_PROXY_CACHE_MIN_FREE", "1MiB")
    .env("AWS_ENDPOINT_URL_ECR", simulator.api_endpoint())
    .env("AWS_ACCESS_KEY_ID", key)
    .env("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    .env("AWS_EC2_METADATA_DISABLED", "true")
    .output()
    .expect("the program runs");
    assert_eq!(stderr(&output), "", "the findings say all");
    let said = stdout(&output);
    assert!(!said.contains("canary-of-a-secret"), "{said}");
    let findings = serde_json::from_slice(&output.stdout).expect(&said);
    (output.status.code(), findings, said)
}

fn verdict<'a>(findings: &'a [serde_json::Value], subject: &str, detail: &str) -> &'a str {
    findings
        .iter()
        .find(|finding| {
            finding["subject"] == subject
                && finding["detail"]
                    .as_str()
                    .is_some_and(|d| d.contains(detail))
        })
        .and_then(|finding| finding["verdict"].as_str())
        .unwrap_or("not found")
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_a_pull_only_role() {
    let simulator = Simulator::builder().start().await.expect("simulator");
    let (code, findings, said) = check(&simulator, PULL_ONLY_ACCESS_KEY);
    assert_eq!(code, Some(0), "{said}");
    for (subject, detail) in [
        ("configuration", ""),
        ("certificate", "none needed"),
        ("credentials", ""),
        ("token", "valid until"),
        ("IAM", "ecr:BatchGetImage"),
        ("IAM", "ecr:GetDownloadUrlForLayer"),
        ("IAM", "ecr:ListImages is not granted, and not needed"),
        ("upstream", "answers"),
        ("clock", ""),
        ("cache.dir", ""),
        ("server.state_dir", ""),
        ("disk space", ""),
        ("server.listen", ""),
    ] {
        let verdict = verdict(&findings, subject, detail);
        assert_eq!(verdict, "ok", "{subject} {detail} in {said}");
    }
    // Nobody may push.
    assert!(!said.contains("ecr:PutImage"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_iam_actions_that_rules_want_and_it_cannot_try() {
    let simulator = Simulator::builder().start().await.expect("simulator");
    let proxy = support::Proxy::builder()
        .simulator(&simulator)
        .rule("users = ['*']\nactions = ['pull', 'push']")
        .rule("users = ['*']\nupstreams = ['prod']\nactions = ['delete']")
        .start();
    let checked = proxy.run(["check"]);
    for told in [
        "ecr:BatchCheckLayerAvailability, ecr:InitiateLayerUpload, ecr:UploadLayerPart, \
         ecr:CompleteLayerUpload and ecr:PutImage are not tried, which would write",
        "ecr:BatchDeleteImage is not tried, which would delete",
    ] {
        assert!(checked.stdout.contains(told), "{told} in {checked:?}");
    }
    assert!(
        !checked.stdout.contains("ecr:CreateRepository"),
        "{checked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_whose_credentials_it_has_and_what_to_attach_to_them() {
    use ecr_proxy::simulator::{DENIED_ACCESS_KEY, PULL_ONLY_ACCESS_KEY as KEY};
    const ROLE: &str = "arn:aws:iam::000042290000:role/denied";
    let simulator = Simulator::builder().start().await.expect("simulator");
    simulator.trust_role("denied", KEY, None);
    let folder = tempfile::tempdir().expect("folder");
    let profiles = |key: &str| {
        let file = folder.path().join(key);
        let text = format!("[edge]\naws_access_key_id = {key}\naws_secret_access_key = s\n");
        std::fs::write(&file, text).expect("file");
        file.display().to_string()
    };
    let checked = |keys: &[(&str, &str)], key: &str| {
        let mut proxy = support::Proxy::builder()
            .simulator(&simulator)
            .env("AWS_ENDPOINT_URL_STS", &simulator.api_endpoint())
            .env("AWS_SHARED_CREDENTIALS_FILE", &profiles(key))
            .env("AWS_ACCESS_KEY_ID", key);
        for (name, value) in keys {
            proxy = proxy.upstream_key(name, *value);
        }
        proxy.start().run(["check"]).stdout
    };
    let profile = ("profile", "edge");
    let by_role = ("role_arn", ROLE);
    for (keys, told) in [
        (&[][..], "found in the AWS default chain\n"),
        (&[profile], "found with profile \"edge\"\n"),
        (
            &[by_role],
            "role arn:aws:iam::000042290000:role/denied, assumed with what the AWS default chain has\n",
        ),
        (
            &[profile, by_role],
            "role arn:aws:iam::000042290000:role/denied, assumed with what profile \"edge\" has\n",
        ),
    ] {
        let said = checked(keys, KEY);
        assert!(said.contains(told), "{told} in {said}");
        // A role that is missing rights gets them, not whoever assumes it.
        let mend = "attach what `ecr-proxy iam-policy --role arn:aws:iam::000042290000:role/denied` prints \
                    to that role";
        assert_eq!(said.contains(mend), keys.contains(&by_role), "{said}");
    }
    // Who may not assume it is told of that, and not to look for keys.
    let said = checked(&[by_role], DENIED_ACCESS_KEY);
    assert!(
        said.contains("may assume the role arn:aws:iam::000042290000:role/denied"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_a_site_that_is_offline() {
    let simulator = Simulator::builder().start().await.expect("simulator");
    let proxy = support::Proxy::builder()
        .simulator(&simulator)
        .set("cache.offline", true)
        .start();
    let checked = proxy.run(["check"]);
    assert!(
        checked.stdout.contains("is not asked: offline"),
        "{checked:?}"
    );
    assert!(!checked.stdout.contains("FAIL"), "{checked:?}");
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn check_tells_addresses_that_are_in_each_others_way() {
    let port = support::pebble::free_port();
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    for (listen, admin, key) in [
        ("http://127.0.0.1", "127.0.0.1", "server.admin"),
        ("http://0.0.0.0", "127.0.0.1", "server.admin"),
        ("http://[::]", "0.0.0.0", "server.admin"),
    ] {
        let (listen, admin) = (format!("{listen}:{port}"), format!("{admin}:{port}"));
        let output = ran(&[
            "check",
            "--upstream",
            "docker.io",
            "--endpoint",
            &format!("http://127.0.0.1:{port}"),
            "--domain",
            "registry.mydomain.test",
            "--anonymous-pull",
            "--cache-dir",
            &at("cache"),
            "--state-dir",
            &at("state"),
            "--listen",
            &listen,
            "--admin",
            &admin,
        ]);
        let said = stdout(&output);
        let told = said.lines().any(|line| {
            line.starts_with("FAIL") && line.contains(key) && line.contains("do not meet")
        });
        assert!(told, "{listen} {admin}: {said}");
    }
}

#[test]
fn on_a_host_without_ipv6_all_addresses_are_those_of_ipv4() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let admin = taken.local_addr().expect("bound").to_string();
    // It binds one after the other, in its first thread, and fails at the one that is taken.
    let output = Command::new(support::program("strace"))
        .args(["-f", "-o", "/dev/null", "-e", "trace=socket"])
        .args(["-e", "inject=socket:error=EAFNOSUPPORT:when=1"])
        .args([env!("CARGO_BIN_EXE_ecr-proxy"), "serve", "--upstream", ECR])
        .args(["--domain", "registry.mydomain.test", "--anonymous-pull"])
        .args(["--cache-dir", &at("cache"), "--state-dir", &at("state")])
        .args(["--listen", "https://[::]:0", "--admin", &admin])
        .env_clear()
        .output()
        .expect("strace runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{admin} (server.admin)")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_iam_actions_that_are_missing() {
    let may = |key, actions: &[Action]| Principal::with_actions(key, "assumed-role/r/s", actions);
    let simulator = Simulator::builder()
        .principal(may("login", &[Action::GetAuthorizationToken]))
        .principal(may(
            "manifests",
            &[Action::GetAuthorizationToken, Action::BatchGetImage],
        ))
        .start()
        .await
        .expect("simulator");
    let manifest = "ecr:BatchGetImage";
    let blob = "ecr:GetDownloadUrlForLayer";
    let token = "ecr:GetAuthorizationToken";
    for (key, missing, fine) in [
        (DENIED_ACCESS_KEY, &[token][..], &[][..]),
        ("login", &[manifest, blob], &[]),
        ("manifests", &[blob], &[manifest]),
    ] {
        let (code, findings, said) = check(&simulator, key);
        assert_eq!(code, Some(1), "{said}");
        for action in missing {
            assert_eq!(verdict(&findings, "IAM", action), "FAIL", "{said}");
        }
        // Who it is, and why, in the words of AWS.
        let words = "is not authorized to perform";
        let subject = match key {
            DENIED_ACCESS_KEY => "token",
            _ => "IAM",
        };
        assert_eq!(verdict(&findings, subject, words), "FAIL", "{said}");
        for action in fine {
            assert_eq!(verdict(&findings, "IAM", action), "ok", "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_an_unreachable_upstream() {
    let simulator = Simulator::builder()
        .principal(Principal::full("other"))
        .start()
        .await
        .expect("simulator");
    simulator.shutdown().await;
    let (code, findings, said) = check(&simulator, "other");
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(verdict(&findings, "token", ""), "FAIL", "{said}");
}
