//! Who may do what is decided by the rules, before the store or an upstream is touched, and to those who
//! may not, what is there and what is not look the same.

mod support;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Simulator};
use support::blobs::{metric, until};
use support::image::TAG;
use support::proxy::Builder;
use support::users::{basic, login, user_line};
use support::{Answer, Client, DOMAIN, Proxy, image};

const PASSWORD: &str = "correct horse battery staple";
const MIRROR: &str = "mirror.mydomain.test";

/// Three repositories of which somebody may see a part.
const REPOSITORIES: [&str; 3] = ["team/app", "team/secret", "other/app"];

async fn simulator() -> Simulator {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    for repository in REPOSITORIES {
        simulator.push_image(repository, TAG, image::spec());
    }
    simulator
}

fn before(simulator: &Simulator, users: &[&str]) -> Builder {
    let lines: String = users.iter().map(|name| user_line(name, PASSWORD)).collect();
    Proxy::builder().simulator(simulator).users(&lines)
}

/// Requests that reached the registry or its storage.
fn asked(simulator: &Simulator) -> usize {
    simulator
        .journal()
        .count(|entry| entry.listener != Listener::Api)
}

fn manifest(repository: &str) -> String {
    format!("/v2/{repository}/manifests/{TAG}")
}

async fn status(client: &Client, method: &str, path: &str) -> u16 {
    client.ask(method, path, &[]).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_is_about_a_request_decides_it() {
    let simulator = simulator().await;
    // The role that may only pull lists no tags.
    let proxy = before(&simulator, &["ci", "dev", "eve"])
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .rule("users = ['ci']\nrepositories = ['team/**']\nactions = ['pull', 'push']")
        .rule("users = ['*']\nrepositories = ['team/secret']\nactions = []")
        .rule("users = ['dev']\nactions = ['pull', 'delete']")
        .rule("users = ['*']\nrepositories = ['other/*']\nactions = ['pull']")
        .start();
    let upload = |repository: &str| format!("/v2/{repository}/blobs/uploads/");
    for (user, repository, pull, push, delete) in [
        ("ci", "team/app", 200, 202, 403),
        ("ci", "team/secret", 200, 202, 403),
        ("ci", "other/app", 200, 403, 403),
        ("dev", "team/app", 200, 403, 404),
        ("dev", "team/secret", 403, 403, 403),
        ("dev", "other/app", 200, 403, 404),
        ("eve", "team/app", 403, 403, 403),
        ("eve", "team/secret", 403, 403, 403),
        ("eve", "other/app", 200, 403, 403),
    ] {
        let client = login(proxy.client(), user, PASSWORD);
        let of = format!("{user} in {repository}");
        let path = manifest(repository);
        assert_eq!(status(&client, "GET", "/v2/").await, 200, "{of}");
        assert_eq!(status(&client, "GET", &path).await, pull, "{of}: pull");
        assert_eq!(status(&client, "HEAD", &path).await, pull, "{of}: HEAD");
        let tags = format!("/v2/{repository}/tags/list");
        assert_eq!(status(&client, "GET", &tags).await, pull, "{of}: tags");
        let post = status(&client, "POST", &upload(repository)).await;
        assert_eq!(post, push, "{of}: an upload");
        // Who may push is told that nothing is no manifest.
        let put = if push == 202 { 400 } else { push };
        assert_eq!(status(&client, "PUT", &path).await, put, "{of}: push");
        let absent = format!("/v2/{repository}/manifests/absent");
        let deleted = status(&client, "DELETE", &absent).await;
        assert_eq!(deleted, delete, "{of}: delete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rule_every_user_may_pull_and_none_may_push() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["ci"]).start();
    let ci = login(proxy.client(), "ci", PASSWORD);
    let before = asked(&simulator);
    for repository in REPOSITORIES {
        for method in ["PUT", "POST", "PATCH", "DELETE"] {
            let answer = ci.ask(method, &manifest(repository), &[]).await;
            assert_eq!(answer.status, 403, "{method}: {}", answer.text());
            assert_eq!(answer.error_code(), "DENIED");
        }
    }
    assert_eq!(asked(&simulator), before);
    for repository in REPOSITORIES {
        assert_eq!(status(&ci, "GET", &manifest(repository)).await, 200);
    }
}

/// All that an answer tells but what is different each time.
fn told(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let mut headers: Vec<(String, String)> = answer.head.headers.clone();
    headers.retain(|(name, _)| {
        !name.eq_ignore_ascii_case("x-request-id") && !name.eq_ignore_ascii_case("date")
    });
    (answer.status, headers, answer.text().replace(&id, "ID"))
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_s19_forbidden_absent_and_unknown_look_the_same_and_nobody_is_asked() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["ci", "eve"])
        .set("server.domains", vec![DOMAIN, MIRROR])
        .rule("users = ['ci']\nactions = ['pull']")
        .rule("users = ['eve']\nrepositories = ['eve/**']\nactions = ['pull']")
        .start();
    // Of one repository all is cached, of another nothing, and the others are not there.
    let ci = login(proxy.client(), "ci", PASSWORD);
    let image = image::push(&simulator);
    let top = &image.top.digest;
    let layer = &image.manifests[0].layers[0].digest;
    for path in [
        manifest("team/app"),
        format!("/v2/team/app/manifests/{top}"),
        format!("/v2/team/app/blobs/{layer}"),
    ] {
        assert_eq!(status(&ci, "GET", &path).await, 200, "{path}");
    }
    until("the blob on disk", async || {
        metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await >= 1.0
    })
    .await;

    let eve = login(proxy.client(), "eve", PASSWORD);
    let before = asked(&simulator);
    let etag = format!("\"{layer}\"");
    let ns = format!("?ns={}", simulator.registry_host());
    for what in [
        format!("manifests/{TAG}"),
        format!("manifests/{top}"),
        format!("blobs/{layer}"),
        "tags/list".to_owned(),
        format!("referrers/{top}"),
        "blobs/uploads/".to_owned(),
        format!("blobs/uploads/?mount={layer}&from=team/app"),
    ] {
        for (method, headers) in [
            ("GET", &[][..]),
            ("HEAD", &[]),
            ("GET", &[("range", "bytes=0-9")]),
            ("GET", &[("if-none-match", etag.as_str())]),
            ("GET", &[("if-none-match", "*")]),
            ("POST", &[]),
            ("PUT", &[]),
            ("PATCH", &[]),
            ("DELETE", &[]),
        ] {
            let mut answers = Vec::new();
            for repository in ["team/app", "other/app", "no/such", "eve"] {
                for query in ["", "?ns=elsewhere.test", ns.as_str()] {
                    let path = match what.contains('?') {
                        true => format!("/v2/{repository}/{what}"),
                        false => format!("/v2/{repository}/{what}{query}"),
                    };
                    // What the pattern `eve/**` is about is `eve` itself, too: its absence may be known.
                    if repository != "eve" {
                        answers.push(told(&eve.ask(method, &path, headers).await));
                    }
                }
            }
            assert_eq!(answers[0].0, 403, "{method} {what} {headers:?}");
            answers.dedup();
            assert_eq!(
                answers.len(),
                1,
                "{method} {what} {headers:?}: {answers:#?}"
            );
        }
    }
    assert_eq!(
        asked(&simulator),
        before,
        "a forbidden question went upstream"
    );
    let metrics = proxy.metrics().await;
    let forbidden = metrics.sum("ecr_proxy_denied_total", &["reason=\"forbidden\""]);
    assert!(forbidden > 100.0, "{forbidden}");

    // Where eve has a right the truth is told.
    let own = eve.get(&manifest("eve/app")).await;
    assert_eq!(own.status, 404, "{}", own.text());
    // A refused user learns nothing else of what is cached for others.
    assert_eq!(status(&ci, "GET", &manifest("team/app")).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_rules_are_about_whole_names() {
    let simulator = simulator().await;
    for repository in ["team", "team/x", "team-evil/app", "teams/x/y"] {
        simulator.push_image(repository, TAG, image::spec());
    }
    let proxy = before(&simulator, &["team", "teammate", "tea"])
        .rule("users = ['team']\nrepositories = ['team', 'team/x', 'teams/*']\nactions = ['pull']")
        .start();
    let team = login(proxy.client(), "team", PASSWORD);
    for (name, expected) in [
        ("team", 200),
        ("team/x", 200),
        ("team/app", 403),
        ("team-evil/app", 403),
        ("teams/x/y", 403),
        ("TEAM", 400),
        ("team%2fx", 400),
        ("team/../team", 400),
    ] {
        let answer = team.get(&manifest(name)).await;
        assert_eq!(answer.status, expected, "{name}: {}", answer.text());
    }
    for user in ["teammate", "tea"] {
        let client = login(proxy.client(), user, PASSWORD);
        assert_eq!(
            status(&client, "GET", &manifest("team")).await,
            403,
            "{user}"
        );
    }
    let upper = login(proxy.client(), "Team", PASSWORD);
    assert_eq!(status(&upper, "GET", &manifest("team")).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn s06_every_verb_needs_its_own_right_and_without_it_nothing_goes_upstream() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["puller", "pusher"])
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .rule("users = ['puller']\nactions = ['pull']")
        .rule("users = ['pusher']\nactions = ['push']")
        .start();
    let before = asked(&simulator);
    let upload = "/v2/team/app/blobs/uploads/";
    let (manifest, session) = (manifest("team/app"), format!("{upload}id"));
    let blob = format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64));
    for (user, method, path, expected) in [
        ("puller", "PUT", manifest.as_str(), 403),
        ("puller", "DELETE", &manifest, 403),
        ("puller", "POST", upload, 403),
        ("puller", "PATCH", &session, 403),
        ("puller", "PUT", &session, 403),
        ("puller", "GET", &session, 403),
        ("puller", "DELETE", &session, 403),
        ("puller", "DELETE", &blob, 403),
        ("puller", "BREW", &manifest, 405),
        ("puller", "PROPFIND", &manifest, 405),
        ("pusher", "DELETE", &manifest, 403),
        ("pusher", "DELETE", &blob, 403),
        ("pusher", "GET", &manifest, 403),
        ("pusher", "GET", "/v2/team/app/tags/list", 403),
    ] {
        let client = login(proxy.client(), user, PASSWORD);
        let answer = client.ask(method, path, &[]).await;
        assert_eq!(answer.status, expected, "{user} {method} {path}");
    }
    assert_eq!(asked(&simulator), before);
    // Push includes the HEADs that a push makes, and they show no content.
    let pusher = login(proxy.client(), "pusher", PASSWORD);
    let (_, content) = simulator.manifest("team/app", TAG).expect("an image");
    let content: serde_json::Value = serde_json::from_slice(&content).expect("a manifest");
    let child = content["manifests"][0]["digest"].as_str().expect("a child");
    for (method, path, expected) in [
        ("HEAD", manifest.as_str(), 200),
        ("HEAD", &format!("/v2/team/app/manifests/{child}"), 200),
        (
            "HEAD",
            &format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64)),
            404,
        ),
        ("POST", upload, 202),
    ] {
        assert_eq!(status(&pusher, method, path).await, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_anonymous_belong_to_a_domain() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["ci"])
        .set("server.domains", vec![DOMAIN, MIRROR])
        .rule(&format!(
            "users = ['@anonymous']\ndomains = ['{MIRROR}']\nnetworks = ['loopback']\nrepositories = ['other/**']\nactions = ['pull']"
        ))
        .rule(&format!("users = ['*']\ndomains = ['{DOMAIN}']\nactions = ['pull']"))
        .start();
    let credentials = basic("ci", PASSWORD);
    let on = |domain: &str| proxy.client().with("host", domain);
    let login_on = |domain: &str| on(domain).with("authorization", &credentials);
    // Clients decide by this question whether to send credentials.
    assert_eq!(status(&on(MIRROR), "GET", "/v2/").await, 200);
    let closed = on(DOMAIN).get("/v2/").await;
    assert_eq!(closed.status, 401);
    assert!(closed.header("www-authenticate").is_some());

    let other = manifest("other/app");
    let team = manifest("team/app");
    for (client, path, expected) in [
        (on(MIRROR), &other, 200),
        (on(&MIRROR.to_uppercase()), &other, 200),
        (on(&format!("{MIRROR}:443")), &other, 200),
        // Without a right the anonymous are asked for credentials.
        (on(MIRROR), &team, 401),
        (on(DOMAIN), &other, 401),
        (login_on(DOMAIN), &other, 200),
        (login_on(DOMAIN), &team, 200),
        // A login of another domain opens no more here.
        (login_on(MIRROR), &team, 401),
        (login_on(MIRROR), &other, 200),
        // A name that only a loopback listener answers to is no domain of a rule.
        (on("127.0.0.1"), &other, 401),
        (login_on("127.0.0.1"), &other, 403),
    ] {
        let answer = client.get(path).await;
        assert_eq!(
            answer.status,
            expected,
            "{client:?} {path}: {}",
            answer.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_about_networks_and_upstreams() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["near", "far"])
        .rule("users = ['near']\nnetworks = ['127.0.0.0/8']\nupstreams = ['prod']\nactions = ['pull']")
        .rule("users = ['far']\nnetworks = ['192.0.2.0/24']\nactions = ['pull']")
        .start();
    let path = manifest("team/app");
    let near = login(proxy.client(), "near", PASSWORD);
    assert_eq!(status(&near, "GET", &path).await, 200);
    let far = login(proxy.client(), "far", PASSWORD);
    assert_eq!(status(&far, "GET", &path).await, 403);
    let claims = far.with("x-forwarded-for", "192.0.2.7");
    assert_eq!(status(&claims, "GET", &path).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_as_names_the_rule_that_decides() {
    let simulator = simulator().await;
    let proxy = before(&simulator, &["ci", "eve"])
        .set("server.domains", vec![DOMAIN, MIRROR])
        .rule(&format!("users = ['@anonymous']\ndomains = ['{MIRROR}']\nactions = ['pull']"))
        .rule(&format!(
            "users = ['ci']\ndomains = ['{DOMAIN}']\nrepositories = ['team/**']\nactions = ['pull']"
        ))
        .rule(&format!(
            "users = ['*']\ndomains = ['{DOMAIN}']\nnetworks = ['private']\nrepositories = ['other/*']\nactions = ['pull']"
        ))
        .start();
    for (user, image, action, code, told) in [
        (
            "ci",
            "team/app:v1",
            "pull",
            0,
            r#"ok    access: ci may pull team/app on registry.mydomain.test, by [[access.rule]] 2: users = ["ci"]"#,
        ),
        (
            "ci",
            "team/app",
            "push",
            1,
            "may not push team/app on registry.mydomain.test, by [[access.rule]] 2",
        ),
        (
            "eve",
            "team/app",
            "pull",
            1,
            "eve may not pull team/app on registry.mydomain.test: no rule is about it",
        ),
        (
            "eve",
            "other/app",
            "pull",
            1,
            "ok    access: from private eve may pull other/app",
        ),
        (
            "eve",
            "other/app",
            "pull",
            1,
            "FAIL  access: from elsewhere eve may not pull other/app",
        ),
        (
            "@anonymous",
            &format!("{MIRROR}/team/app"),
            "pull",
            0,
            "@anonymous may pull",
        ),
        (
            "ci",
            &format!("{MIRROR}/team/app"),
            "pull",
            0,
            "a login counts for nothing there",
        ),
        ("@anonymous", "team/app", "pull", 1, "no rule is about it"),
        (
            "mallory",
            "team/app",
            "pull",
            1,
            "mallory is not in the user file",
        ),
        ("ci", "team/app", "read", 2, "\"read\" is none of"),
        ("ci", "elsewhere.test/team/app", "pull", 2, "elsewhere.test"),
    ] {
        let ended = proxy.run(["check", "--as", user, image, action]);
        assert_eq!(ended.code, Some(code), "{user} {image} {action}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(told), "{told} in {said}");
    }
    let json = proxy.run(["check", "--json", "--as", "ci", "team/app", "pull"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json[0]["verdict"], "ok");
}
