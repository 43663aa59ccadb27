//! Docker Hub as an upstream: names of one word are below `library/`, a tag costs no pull to look at again,
//! and what is left of the pulls is told.

mod support;

use ecr_proxy::simulator::{
    Entry, FULL_ACCESS_KEY, Fault, ImageSpec, Listener, Pattern, Simulator,
};
use serde_json::Value;
use support::proxy::Builder;
use support::{Client, Proxy};

const OFFICIAL: &str = "library/alpine";

/// Something that counts pulls as Docker Hub does, and the proxy in front of it.
async fn hub(set: impl FnOnce(Builder) -> Builder) -> (Simulator, Proxy) {
    let hub = Simulator::builder().start().await.expect("a simulator");
    hub.push_image(OFFICIAL, "3", ImageSpec::generated(1, [50_000]));
    let manifests = || Pattern::from("/manifests/");
    for method in ["HEAD", "GET"] {
        hub.faults()
            .on(Listener::Registry, method, manifests())
            .all([
                Fault::AddHeader("ratelimit-limit", "100;w=21600".into()),
                Fault::AddHeader("ratelimit-remaining", "76;w=21600".into()),
                Fault::AddHeader("docker-ratelimit-source", "192.0.2.1".into()),
            ]);
    }
    let password = hub.token(FULL_ACCESS_KEY).expect("a token").password;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, password).expect("a file");
    let proxy = Proxy::builder()
        .registry("docker.io", &hub.endpoint())
        .upstream_key("auth", "basic")
        .upstream_key("username", "AWS")
        .upstream_key("password_file", file.to_str().expect("a UTF-8 path"))
        .set("cache.tag_ttl", "0s");
    let proxy = set(proxy).start();
    (hub, proxy)
}

/// How often the registry was asked this, by a request that it took.
fn asked(hub: &Simulator, method: &str, part: &str) -> usize {
    hub.journal().count(|entry: &Entry| {
        entry.listener == Listener::Registry
            && entry.method == method
            && entry.path.contains(part)
            && entry.status != Some(401)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_one_word_are_below_library() {
    let (hub, proxy) = hub(|proxy| proxy).await;
    let client = proxy.client();
    let manifest = client.get("/v2/alpine/manifests/3").await;
    assert_eq!(manifest.status, 200, "{}", manifest.text());
    let manifest: Value = serde_json::from_str(&manifest.text()).expect("JSON");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a layer");
    let blob = format!("/v2/alpine/blobs/{layer}");
    assert_eq!(client.head("/v2/alpine/manifests/3").await.status, 200);
    assert_eq!(client.head(&blob).await.status, 200);
    assert_eq!(client.get(&blob).await.status, 200);
    let tags = client.get("/v2/alpine/tags/list").await;
    assert_eq!(tags.status, 200, "{}", tags.text());
    let tags: Value = serde_json::from_str(&tags.text()).expect("JSON");
    // As the client calls it.
    assert_eq!(
        (&tags["name"], &tags["tags"][0]),
        (&"alpine".into(), &"3".into())
    );
    let elsewhere = |entry: &Entry| {
        let is_named = entry.path.contains("/manifests/") || entry.path.contains("/tags/");
        is_named && !entry.path.starts_with("/v2/library/alpine/")
    };
    assert_eq!(hub.journal().count(elsewhere), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_tag_again_costs_no_pull() {
    let (hub, proxy) = hub(|proxy| proxy).await;
    for _ in 0..5 {
        let answer = proxy.client().get("/v2/library/alpine/manifests/3").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(asked(&hub, "GET", "/manifests/"), 1, "each GET is a pull");
    assert!(asked(&hub, "HEAD", "/manifests/3") >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_the_pulls_is_told() {
    let (_hub, proxy) = hub(|proxy| proxy).await;
    let operator = Client::operator(proxy.admin());
    let before: Value =
        serde_json::from_str(&operator.get("/api/v1/status").await.text()).expect("JSON");
    assert!(before["upstreams"][0]["rate_limit"].is_null());
    assert!(
        !proxy
            .metrics()
            .await
            .has("ecr_proxy_upstream_ratelimit_remaining")
    );
    let answer = proxy.client().get("/v2/alpine/manifests/3").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status: Value =
        serde_json::from_str(&operator.get("/api/v1/status").await.text()).expect("JSON");
    let told = &status["upstreams"][0]["rate_limit"];
    assert_eq!(
        (&told["remaining"], &told["limit"]),
        (&76.into(), &100.into())
    );
    assert_eq!(
        (&told["window_seconds"], &told["source"]),
        (&21_600.into(), &"192.0.2.1".into())
    );
    let page = operator.get("/").await.text();
    assert!(page.contains("76 of 100 at "), "{page}");
    let metrics = proxy.metrics().await;
    for (name, value) in [
        ("ecr_proxy_upstream_ratelimit_remaining", 76.0),
        ("ecr_proxy_upstream_ratelimit_limit", 100.0),
    ] {
        assert_eq!(metrics.sum(name, &["upstream=\"prod\""]), value, "{name}");
    }
}
