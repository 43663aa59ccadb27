//! The admin listener shows how things stand, to people and to scripts, without a secret and without a way
//! to change anything.

mod support;

use ecr_proxy::simulator::Outage;
use rustix::process::Signal;
use serde_json::Value;
use support::blobs::until;
use support::image::{REPOSITORY, TAG, pull_all, push};
use support::{Client, Proxy};

async fn get(proxy: &Proxy, path: &str) -> Value {
    let answer = Client::operator(proxy.admin()).get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_and_its_json_tell_what_is_there() {
    let simulator = ecr_proxy::simulator::Simulator::builder();
    let simulator = simulator.start().await.expect("a simulator");
    let image = push(&simulator);
    let proxy = Proxy::before(&simulator);
    pull_all(&proxy, TAG, &image).await;
    until("the image is seen", async || {
        let told = get(&proxy, "/api/v1/cache/images").await;
        told["images"][0]["state"] == "complete"
    })
    .await;

    let status = get(&proxy, "/api/v1/status").await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["ready"], true);
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["degraded"], Value::Array(Vec::new()));
    assert_eq!(status["upstreams"][0]["name"], "prod");
    assert_eq!(status["upstreams"][0]["is_answering"], true);
    assert!(status["upstreams"][0]["token_valid_until"].is_string());
    assert_eq!(status["cache"]["blobs"], image.blobs().len());
    assert!(status["cache"]["answers"]["misses"].as_u64() > Some(0));
    let stats = get(&proxy, "/api/v1/cache/stats").await;
    assert_eq!(stats["bytes"], status["cache"]["bytes"]);

    let page = Client::operator(proxy.admin()).get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let text = page.text();
    assert!(text.contains("all is well"), "{text}");
    assert!(
        text.contains(&format!("<code>{REPOSITORY}:{TAG}</code>")),
        "{text}"
    );
    assert!(!text.contains("<script"), "{text}");
    for path in ["/", "/api/v1/status", "/api/v1/cache/images"] {
        let told = Client::operator(proxy.admin()).get(path).await;
        support::secrets::assert_absent(path, &told.body, &simulator.secrets());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_away_is_told_and_the_page_still_comes() {
    let simulator = ecr_proxy::simulator::Simulator::builder();
    let simulator = simulator.start().await.expect("a simulator");
    let image = push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.tag_ttl", "0s");
    let proxy = proxy.start();
    pull_all(&proxy, TAG, &image).await;
    simulator.outage(Outage::Refused).await;
    let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    until("the outage is told", async || {
        proxy.client().get(&path).await;
        let status = get(&proxy, "/api/v1/status").await;
        status["upstreams"][0]["is_answering"] == false
    })
    .await;
    let page = Client::operator(proxy.admin()).get("/").await.text();
    assert!(page.contains("no, since"), "{page}");
    support::secrets::assert_absent("the page", page.as_bytes(), &simulator.secrets());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_nothing() {
    let simulator = support::blobs::simulator().await;
    let proxy = Proxy::before(&simulator);
    proxy.signal(Signal::HUP);
    let told = |event: &support::Event| event.message().contains("SIGHUP");
    proxy.log_until("the hangup", told).await;
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
}
