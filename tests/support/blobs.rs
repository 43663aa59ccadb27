//! Single blobs: put to the upstream, pulled, looked for on disk.

use std::path::PathBuf;
use std::time::Duration;

use ecr_proxy::simulator::{BlobSource, Simulator};

use super::image::REPOSITORY;
use super::{Answer, Client, Proxy, within};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// A simulator with an empty [`REPOSITORY`].
pub async fn simulator() -> Simulator {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    simulator.create_repository(REPOSITORY);
    simulator
}

/// Puts a blob of `len` bytes to the upstream: its digest, and what clients ask for.
pub fn blob(simulator: &Simulator, seed: u64, len: u64) -> (String, String) {
    let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(seed, len));
    let target = format!("/v2/{REPOSITORY}/blobs/{digest}");
    (digest, target)
}

/// Fails unless the answer is all of the blob.
pub fn assert_whole(answer: &Answer, digest: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_content(answer, digest);
}

/// Fails unless the body ended cleanly and is all of the blob, whatever the answer is called.
pub fn assert_content(answer: &Answer, digest: &str) {
    assert!(answer.clean_end, "cut after {} bytes", answer.body.len());
    assert_eq!(answer.digest(), digest, "{} bytes", answer.body.len());
}

/// What `X-Cache` says.
pub fn outcome(answer: &Answer) -> Option<&str> {
    answer.header("x-cache")
}

/// Pulls a blob and waits until it is kept; returns what `X-Cache` said.
pub async fn pull(proxy: &Proxy, (digest, target): &(String, String)) -> String {
    let answer = proxy.client().get(target).await;
    assert_whole(&answer, digest);
    idle(proxy).await;
    outcome(&answer).expect("X-Cache").to_owned()
}

/// Several pulls at once, as one fill.
pub async fn pull_together(client: &Client, target: &str, count: usize) -> Vec<Answer> {
    futures_util::future::join_all((0..count).map(|_| client.get(target))).await
}

/// The sum of a metric's samples.
pub async fn metric(proxy: &Proxy, name: &str, labels: &[&str]) -> f64 {
    proxy.metrics().await.sum(name, labels)
}

/// Asks again until `condition` holds.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Until no fill runs any more.
pub async fn idle(proxy: &Proxy) {
    until("every fill ends", async || {
        let metrics = proxy.metrics().await;
        assert!(metrics.has("ecr_proxy_fills_active"));
        metrics.sum("ecr_proxy_fills_active", &[]) == 0.0
    })
    .await;
}

/// Where a blob lies on disk.
pub fn blob_file(proxy: &Proxy, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    let shard = proxy.cache_dir().join("blobs/sha256").join(&hex[..2]);
    shard.join(hex)
}
