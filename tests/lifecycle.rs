//! The program starts with nothing but a configuration, tells where it listens, keeps what it
//! fetched across a kill, and ends in order when it is asked to.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{Listener, Outage, Simulator};
use support::image::{REPOSITORY, TAG};
use support::store::files_below;
use support::{Proxy, image, within};

async fn simulator() -> Simulator {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    simulator
}

/// Until the blob is under `blobs/` and the repository's log names it, in text or in bytes: an
/// answer waits for neither, and both outlive the process.
async fn on_disk(proxy: &Proxy, digest: &str) {
    let hex = digest.trim_start_matches("sha256:");
    let raw: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect();
    let names = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    loop {
        for file in files_below(&proxy.cache_dir().join("repositories")) {
            // A log that is not yet under its name is not yet there.
            let bytes = match file.ends_with("_log") {
                true => std::fs::read(&file).unwrap_or_default(),
                false => continue,
            };
            let recorded = names(&bytes, hex.as_bytes()) || names(&bytes, &raw);
            if recorded && proxy.assert_blobs_are_sound().iter().any(|d| d == digest) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_gets_the_same_verified_bytes() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let (_, index) = simulator
        .manifest(REPOSITORY, TAG)
        .expect("the pushed image");
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let answers = [
        proxy.client().get(&manifest).await,
        proxy.tls_client().get(&manifest).await,
        proxy.tls_client().get_h2(&manifest).await,
    ];
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.clean_end);
        assert_eq!(answer.body, index);
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(answer.digest().as_str())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_survives_a_kill() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let layer = simulator.put_blob(REPOSITORY, vec![7; 300_000]);
    let blob = format!("/v2/{REPOSITORY}/blobs/{layer}");
    assert_eq!(proxy.client().get(&blob).await.digest(), layer);
    within("the blob and its record on disk", on_disk(&proxy, &layer)).await;
    proxy.kill9();
    proxy.restart();
    simulator.outage(Outage::Refused).await;
    let again = proxy.client().get(&blob).await;
    assert_eq!(
        (again.status, again.digest()),
        (200, layer),
        "{}",
        again.text()
    );
    assert_eq!(again.header("x-cache"), Some("hit"));
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_served_until_somebody_is_let_in() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .unset("access.anonymous")
        .start();
    for path in ["/v2/", &format!("/v2/{REPOSITORY}/manifests/{TAG}")] {
        let answer = proxy.client().get(path).await;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (401, "UNAUTHORIZED")
        );
        assert!(
            answer
                .header("www-authenticate")
                .is_some_and(|c| c.starts_with("Basic "))
        );
    }
    let asked = simulator
        .journal()
        .count(|entry| entry.listener != Listener::Api);
    assert_eq!(asked, 0, "requests went upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_end_is_answered_with_exit_code_0() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
    assert!(proxy.metrics().await.has("ecr_proxy_requests_total"));
    proxy.terminate();
    assert_eq!(proxy.wait().code(), Some(0));
}
