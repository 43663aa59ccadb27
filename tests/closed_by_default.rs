//! Nobody is served until told whom: without users or anonymous access everything is 401, a user is let
//! in by the user file alone, and a blob on disk is readable only where a repository holds it.

mod support;

use ecr_proxy::simulator::{Listener, Outage, PushedImage, Simulator};
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::users::{login, user_line};
use support::{Proxy, image};

const PASSWORD: &str = "correct horse battery staple";

async fn simulator() -> (Simulator, PushedImage) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    (simulator, image)
}

/// Requests that reached the registry or its storage.
fn asked(simulator: &Simulator) -> usize {
    simulator
        .journal()
        .count(|entry| entry.listener != Listener::Api)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nobody_let_in_it_says_so_at_start_and_answers_401_to_all() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .unset("access.anonymous")
        .start();
    let told = proxy
        .log_until("that nobody is let in", |event| {
            event.line.contains("nobody is let in")
        })
        .await;
    assert_eq!(told.level(), "WARN", "{}", told.line);

    let paths = [
        "/v2/".to_owned(),
        format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        format!("/v2/{REPOSITORY}/blobs/{}", image.blobs()[0].digest),
        format!("/v2/{REPOSITORY}/tags/list"),
        "/v2/no/such/manifests/x".to_owned(),
        "/v2/_catalog".to_owned(),
    ];
    let mut challenges = Vec::new();
    for path in &paths {
        for client in [
            proxy.client(),
            login(proxy.client(), "anybody", "anything"),
            login(proxy.client(), "AWS", "a token"),
            proxy.client().with("authorization", "Bearer abc"),
            proxy.client().with("authorization", "Basic ????"),
        ] {
            let answer = client.get(path).await;
            assert_eq!(answer.status, 401, "{path}: {}", answer.text());
            assert_eq!(answer.error_code(), "UNAUTHORIZED");
            challenges.push(answer.header("www-authenticate").map(str::to_owned));
        }
    }
    assert!(
        challenges[0]
            .as_deref()
            .is_some_and(|c| c.starts_with("Basic realm="))
    );
    challenges.dedup();
    assert_eq!(
        challenges.len(),
        1,
        "one constant challenge: {challenges:?}"
    );
    assert_eq!(asked(&simulator), 0, "something went upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_a_hit_needs_a_login_and_a_wrong_one_learns_nothing() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .users(&user_line("ci", PASSWORD))
        .env("RUST_LOG", "trace")
        .start();
    // As `docker login` does: a question without credentials, then the same with them.
    let without = proxy.tls_client().get("/v2/").await;
    assert_eq!(without.status, 401);
    let ci = login(proxy.tls_client(), "ci", PASSWORD);
    assert_eq!(ci.get("/v2/").await.status, 200);

    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", image.top.digest);
    let layer = &image.manifests[0].layers[0];
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    for path in [&manifest, &by_digest, &blob] {
        let answer = ci.get(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    // All of it is cached now, and none of it is for these.
    let unknown = "/v2/no/such/blobs/".to_owned() + &layer.digest;
    let before = asked(&simulator);
    for client in [
        proxy.tls_client(),
        login(proxy.tls_client(), "ci", "wrong"),
        login(proxy.tls_client(), "ci", ""),
        login(proxy.tls_client(), "CI", PASSWORD),
        login(proxy.tls_client(), "nobody", PASSWORD),
    ] {
        let mut lengths = Vec::new();
        for path in [&manifest, &by_digest, &blob, &unknown] {
            let etag = format!("\"{}\"", layer.digest);
            for (method, headers) in [
                ("GET", &[][..]),
                ("HEAD", &[]),
                ("GET", &[("range", "bytes=0-0")]),
                ("GET", &[("if-none-match", etag.as_str())]),
                ("GET", &[("if-none-match", "*")]),
            ] {
                let answer = client.ask(method, path, headers).await;
                assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
                for told in ["etag", "docker-content-digest", "accept-ranges", "x-cache"] {
                    assert_eq!(answer.header(told), None, "{method} {path} tells {told}");
                }
                lengths.push(answer.header("content-length").map(str::to_owned));
            }
        }
        lengths.dedup();
        assert_eq!(lengths.len(), 1, "the length tells what is there");
    }
    assert_eq!(
        asked(&simulator),
        before,
        "a stranger's question went upstream"
    );
    let metrics = proxy.metrics().await;
    let denied = metrics.sum("ecr_proxy_denied_total", &["reason=\"unauthenticated\""]);
    assert!(denied >= 100.0, "{denied}");
    proxy.assert_no_secrets(&[PASSWORD.to_owned()]).await;
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_authorization_is_no_login() {
    let (simulator, _) = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .users(&user_line("ci", PASSWORD))
        .start();
    let twice = login(login(proxy.client(), "ci", PASSWORD), "ci", PASSWORD);
    let answer = twice.get("/v2/").await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_pulls_are_for_the_networks_that_were_named() {
    let (simulator, _) = simulator().await;
    let elsewhere = Proxy::builder()
        .simulator(&simulator)
        .set("access.anonymous_networks", vec!["192.0.2.0/24"])
        .start();
    let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    for path in ["/v2/", path.as_str()] {
        assert_eq!(elsewhere.client().get(path).await.status, 401, "{path}");
    }
    // What a client says of where it is from is not believed.
    let claims = elsewhere.client().with("x-forwarded-for", "192.0.2.7");
    assert_eq!(claims.get(&path).await.status, 401);
    assert_eq!(asked(&simulator), 0);

    let here = Proxy::builder()
        .simulator(&simulator)
        .set("access.anonymous_networks", vec!["127.0.0.0/8"])
        .start();
    assert_eq!(here.client().get(&path).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_a_cached_blob_is_not_readable_through_another_repository() {
    let (simulator, _) = simulator().await;
    let secret = simulator.put_blob("private/other", vec![42; 200_000]);
    let proxy = Proxy::before(&simulator);
    let allowed = format!("/v2/private/other/blobs/{secret}");
    assert_eq!(proxy.client().get(&allowed).await.digest(), secret);
    until("the blob on disk", async || {
        metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await >= 1.0
    })
    .await;
    let again = proxy.client().get(&allowed).await;
    assert_eq!(again.header("x-cache"), Some("hit"));

    let crossed = format!("/v2/{REPOSITORY}/blobs/{secret}");
    let etag = format!("\"{secret}\"");
    let ways = [
        ("GET", &[][..]),
        ("HEAD", &[]),
        ("GET", &[("range", "bytes=0-9")]),
        ("GET", &[("if-none-match", etag.as_str())]),
    ];
    for (method, headers) in ways {
        let answer = proxy.client().ask(method, &crossed, headers).await;
        assert_eq!(
            answer.status,
            404,
            "{method} {headers:?}: {}",
            answer.text()
        );
        if method == "GET" {
            assert_eq!(answer.error_code(), "BLOB_UNKNOWN");
        }
    }
    let asked_there = simulator.journal().count(|entry| {
        entry.repository.as_deref() == Some(REPOSITORY)
            && entry.digest.as_deref() == Some(secret.as_str())
    });
    assert!(asked_there > 0, "upstream was not asked about {REPOSITORY}");

    // Cut off, nobody can say that the other repository holds it.
    simulator.outage(Outage::Refused).await;
    assert_eq!(proxy.client().get(&allowed).await.digest(), secret);
    let third = format!("/v2/third/repository/blobs/{secret}");
    for path in [&crossed, &third] {
        for (method, headers) in ways {
            let answer = proxy.client().ask(method, path, headers).await;
            assert!(
                matches!(answer.status, 404 | 503 | 504),
                "{method} {path} {headers:?}: {}",
                answer.status
            );
            for told in ["etag", "docker-content-digest"] {
                assert_eq!(answer.header(told), None, "{method} {path} tells {told}");
            }
        }
    }
}
