//! ECR Public, as anybody and with an account: Bearer tokens from its own token service or from its API in
//! the one region that has it.

mod support;

use std::time::{Duration, Instant};

use ecr_proxy::simulator::{DENIED_ACCESS_KEY, ImageSpec, Journal, Listener, Simulator};
use support::Proxy;
use support::proxy::Builder;

const REPOSITORY: &str = "team/app";

async fn public() -> Simulator {
    let ecr = Simulator::builder().public().start().await;
    let ecr = ecr.expect("a simulator");
    ecr.push_image(REPOSITORY, "v1", ImageSpec::generated(1, [100_000]));
    ecr
}

fn pulls(ecr: &Simulator, set: impl FnOnce(Builder) -> Builder) -> Proxy {
    let proxy = Proxy::builder().simulator(ecr).set("cache.tag_ttl", "0s");
    set(proxy).start()
}

async fn pull(proxy: &Proxy) -> u16 {
    let client = proxy.client();
    let answer = client.get(&format!("/v2/{REPOSITORY}/manifests/v1")).await;
    if answer.status != 200 {
        return answer.status;
    }
    let manifest: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a layer");
    let blob = client.get(&format!("/v2/{REPOSITORY}/blobs/{layer}")).await;
    blob.status
}

fn logins(journal: &Journal) -> (usize, usize) {
    let by_api = journal.count(|entry| entry.operation == "GetAuthorizationToken");
    let by_service = journal.count(|entry| entry.path == "/token/");
    (by_api, by_service)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_account_one_token_of_the_api_is_for_everything() {
    let ecr = public().await;
    let proxy = pulls(&ecr, |proxy| proxy.upstream_key("auth", "aws"));
    assert_eq!(pull(&proxy).await, 200);
    assert_eq!(logins(ecr.journal()), (1, 0));
    let bare = |entry: &ecr_proxy::simulator::Entry| {
        entry.listener == Listener::Registry && entry.status == Some(401)
    };
    assert_eq!(ecr.journal().count(bare), 0);
    // It ends, which ECR Public tells by a 400 without a challenge.
    ecr.expire_tokens();
    assert_eq!(pull(&proxy).await, 200);
    assert_eq!(logins(ecr.journal()), (2, 0));
    proxy.assert_no_secrets(&ecr.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_one_its_token_service_is_asked() {
    let ecr = public().await;
    let proxy = pulls(&ecr, |proxy| proxy);
    for expected in [(0, 1), (0, 2)] {
        assert_eq!(pull(&proxy).await, 200);
        assert_eq!(logins(ecr.journal()), expected);
        ecr.expire_tokens();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_log_in_is_told_from_one_that_may() {
    let ecr = public().await;
    let proxy = pulls(&ecr, |proxy| {
        let proxy = proxy.env("AWS_ACCESS_KEY_ID", DENIED_ACCESS_KEY);
        proxy.upstream_key("auth", "aws")
    });
    assert_eq!(pull(&proxy).await, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_manifests_go_at_the_rate_that_the_operator_says_and_layers_as_they_come() {
    let ecr = public().await;
    let paced = async |proxy: &Proxy| {
        let metrics = proxy.metrics().await;
        metrics.sum("ecr_proxy_upstream_paced_total", &[])
    };
    let as_ever = pulls(&ecr, |proxy| proxy.upstream_key("auth", "aws"));
    for _ in 0..3 {
        assert_eq!(pull(&as_ever).await, 200);
    }
    assert_eq!(paced(&as_ever).await, 0.0);
    let slow = pulls(&ecr, |proxy| {
        let proxy = proxy.upstream_key("auth", "aws");
        proxy.upstream_key("requests_per_second", vec!["BatchGetImage=1"])
    });
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(pull(&slow).await, 200);
    }
    // The first is at once, and layers are not counted.
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(paced(&slow).await, 2.0);
}
