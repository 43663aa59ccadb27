//! What was fetched is not fetched again: a download that broke off goes on where it stopped, past a
//! kill of the proxy itself and an outage that outlasts every client's patience.

mod support;

use ecr_proxy::simulator::{BlobSource, Fault, Gate, Journal, Listener, Pattern, Simulator};
use support::{Proxy, within};

const REPOSITORY: &str = "team/app";
const SIZE: u64 = 24 * 1024 * 1024;
const HALF: u64 = SIZE / 2;

async fn simulator() -> (Simulator, String) {
    let simulator = Simulator::builder().start().await.expect("simulator");
    let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(11, SIZE));
    (simulator, digest)
}

fn target(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

/// Bytes of bodies that storage sent.
fn fetched(journal: &Journal) -> u64 {
    journal.body_bytes(|entry| entry.listener == Listener::Storage)
}

/// Begins a download and returns when half of it has reached a client.
async fn half_way(proxy: &Proxy, simulator: &Simulator, digest: &str) -> Gate {
    let gate = Gate::new();
    simulator
        .faults()
        .on(Listener::Storage, "GET", Pattern::digest(digest))
        .times(1)
        .then(Fault::HoldAfter(HALF, gate.clone()));
    let mut client = proxy.client().start("GET", &target(digest), &[]).await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    let reached = client.read_exactly(HALF - 512 * 1024);
    within("half of the blob", reached)
        .await
        .expect("half of it");
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_u08_a_kill_half_way_costs_no_byte_twice() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    proxy.restart();
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest.clone()));
    assert!(answer.clean_end);
    // What was on its way between storage and disk when the kill came, and no more.
    let sent = fetched(simulator.journal());
    assert!(
        sent <= SIZE + SIZE / 10,
        "{sent} of {SIZE} bytes were fetched"
    );
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("ecr_proxy_upstream_resumes_total", &["result=\"resumed\""]) >= 1.0);
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_is_finished_for_nobody_in_particular() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    proxy.restart();
    let kept = async {
        while !proxy.assert_blobs_are_sound().contains(&digest) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within("the blob on disk", kept).await;
    let sent = fetched(simulator.journal());
    assert!(
        sent <= SIZE + SIZE / 10,
        "{sent} of {SIZE} bytes were fetched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_other_content_after_a_restart_is_begun_anew_and_never_spliced() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    simulator
        .faults()
        .on(Listener::Storage, "GET", Pattern::digest(&*digest))
        .then(Fault::SetHeader("etag", "\"another\"".into()));
    proxy.restart();
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest));
    assert!(fetched(simulator.journal()) >= SIZE, "begun anew");
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_beginning_is_never_passed_on_whole() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    let part = std::fs::read_dir(proxy.cache_dir().join("fills"))
        .expect("fills")
        .map(|entry| entry.expect("entry").path())
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "part")
        })
        .expect("the broken download");
    let mut bytes = std::fs::read(&part).expect("its bytes");
    bytes[1000] ^= 1;
    std::fs::write(&part, bytes).expect("damage");
    proxy.restart();
    let damaged = proxy.client().get(&target(&digest)).await;
    // Found at the end at the latest: an abnormal end, or right bytes from a second transfer.
    assert!(!damaged.clean_end || damaged.digest() == digest);
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest));
    proxy.assert_blobs_are_sound();
}
