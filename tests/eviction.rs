//! The cache stays within its quota by giving up what was not used for longest, and never what is
//! being read.

mod support;

use ecr_proxy::simulator::{Outage, Simulator};
use support::Proxy;
use support::blobs::{
    MIB, assert_whole, blob, blob_file, idle, metric, outcome, pull, simulator, until,
};
use support::disk::Injection;
use support::large;

/// A proxy that may keep three blobs of [`LEN`] bytes and what it notes about them.
fn small(simulator: &Simulator) -> Proxy {
    let builder = Proxy::builder().simulator(simulator);
    builder
        .set("cache.max_size", (3 * LEN + SPARE) as i64)
        .start()
}

/// More than a socket's buffers hold, so that a client that does not read holds its file open.
const LEN: u64 = 24 * MIB;

/// Keeps three of them under the share of the quota at which room is made ahead of need.
const SPARE: u64 = 4 * MIB;

fn blobs<const N: usize>(simulator: &Simulator) -> [(String, String); N] {
    std::array::from_fn(|n| blob(simulator, n as u64, LEN))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_longest_ago_goes_first_whenever_it_came() {
    let simulator = simulator().await;
    let proxy = small(&simulator);
    let [a, b, c, d] = &blobs::<4>(&simulator);
    for blob in [a, b, c] {
        assert_eq!(pull(&proxy, blob).await, "miss");
    }
    assert_eq!(pull(&proxy, a).await, "hit");
    assert_eq!(pull(&proxy, d).await, "miss");
    let mut kept = proxy.assert_blobs_are_sound();
    kept.sort();
    let mut expected = [a, c, d].map(|(digest, _)| digest.clone());
    expected.sort();
    assert_eq!(kept, expected);
    simulator.outage(Outage::Refused).await;
    for blob in [a, c, d] {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
    assert_eq!(proxy.client().get(&b.1).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn d04_d17_what_is_being_read_stays_and_the_newcomer_is_passed_through() {
    let simulator = simulator().await;
    let proxy = small(&simulator);
    let [a, b, c, d, e] = &blobs::<5>(&simulator);
    for blob in [a, b, c] {
        pull(&proxy, blob).await;
    }
    let mut readers = Vec::new();
    for blob in [a, b, c] {
        let mut reader = proxy.client().start("GET", &blob.1, &[]).await;
        let head = reader.head().await.expect("a head");
        assert_eq!(head.header("x-cache"), Some("hit"));
        readers.push((reader, head, &blob.0));
    }
    assert_eq!(pull(&proxy, d).await, "miss");
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_evictions_total", &[]).await,
        0.0
    );
    assert!(!blob_file(&proxy, &d.0).exists());
    for (mut reader, head, digest) in readers {
        let (body, clean_end) = reader.body("GET", &head).await;
        assert!(clean_end);
        assert_eq!(&support::store::digest(&body), digest);
    }
    assert_eq!(pull(&proxy, e).await, "miss");
    assert!(blob_file(&proxy, &e.0).exists());
    assert!(
        !blob_file(&proxy, &a.0).exists(),
        "the one used longest ago"
    );
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_larger_than_the_quota_is_passed_through_and_costs_no_other_its_place() {
    let simulator = simulator().await;
    let proxy = small(&simulator);
    let [a, b] = &blobs::<2>(&simulator);
    pull(&proxy, a).await;
    pull(&proxy, b).await;
    let huge = blob(&simulator, 9, 4 * LEN);
    assert_whole(&proxy.client().get(&huge.1).await, &huge.0);
    idle(&proxy).await;
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_evictions_total", &[]).await,
        0.0
    );
    for blob in [a, b] {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_made_smaller_holds_after_a_restart() {
    let simulator = simulator().await;
    let mut proxy = small(&simulator);
    let [a, b, c] = &blobs::<3>(&simulator);
    for blob in [a, b, c] {
        pull(&proxy, blob).await;
    }
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.set("cache.max_size", (LEN + SPARE) as i64);
    proxy.restart();
    support::blobs::until("room is made", async || {
        proxy.assert_blobs_are_sound().len() == 1
    })
    .await;
    let answer = proxy.client().get(&c.1).await;
    assert_whole(&answer, &c.0);
    assert_eq!(outcome(&answer), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn d18_a_file_that_cannot_be_removed_does_not_stop_the_others() {
    let simulator = simulator().await;
    let proxy = small(&simulator);
    let [a, b, c, d] = &blobs::<4>(&simulator);
    for blob in [a, b, c] {
        pull(&proxy, blob).await;
    }
    let injection = Injection::into(&proxy, ["unlinkat:error=EPERM:when=1"]);
    pull(&proxy, d).await;
    drop(injection);
    let failures = metric(&proxy, "ecr_proxy_cache_unlink_failures_total", &[]).await;
    assert_eq!(failures, 1.0);
    let there = [a, b, c, d].map(|(digest, _)| blob_file(&proxy, digest).exists());
    assert_eq!(there, [true, false, true, true]);
    pull(&proxy, b).await;
    pull(&proxy, d).await;
    assert_eq!(proxy.assert_blobs_are_sound().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn d18_a_thousand_files_that_cannot_be_removed_stop_nothing_and_go_when_they_can() {
    const COUNT: u64 = 1500;
    const NEWCOMER: u64 = 4 * MIB;
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    proxy.terminate();
    assert!(proxy.wait().success());
    let cache = proxy.cache_dir();
    std::fs::remove_dir_all(&cache).expect("its empty store");
    let old = large::make(&cache, COUNT);
    // Full, and just not so full that room is made ahead of need.
    let quota = COUNT * large::LEN + 2 * MIB;
    proxy.set("cache.max_size", quota as i64);
    proxy.restart();
    until("the index is there", async || {
        metric(&proxy, "ecr_proxy_cache_blobs", &[]).await == COUNT as f64
    })
    .await;
    for (seed, errno) in [(1, "EPERM"), (2, "EIO")] {
        let failed = metric(&proxy, "ecr_proxy_cache_unlink_failures_total", &[]).await;
        let newcomer = blob(&simulator, seed, NEWCOMER);
        let injection = Injection::into(&proxy, [&*format!("unlinkat:error={errno}")]);
        assert_eq!(pull(&proxy, &newcomer).await, "miss");
        let now = metric(&proxy, "ecr_proxy_cache_unlink_failures_total", &[]).await;
        drop(injection);
        assert!(now - failed >= 1000.0, "{} failures", now - failed);
        assert!(!blob_file(&proxy, &newcomer.0).exists(), "there was room");
        for blob in old.iter().step_by(100) {
            let answer = proxy.client().get(&blob.path()).await;
            assert_eq!(outcome(&answer), Some("hit"));
            assert_eq!(answer.digest(), blob.digest().to_string());
        }
    }
    for seed in 3..6 {
        let newcomer = blob(&simulator, seed, NEWCOMER);
        assert_eq!(pull(&proxy, &newcomer).await, "miss");
        assert_eq!(pull(&proxy, &newcomer).await, "hit");
        let used = metric(&proxy, "ecr_proxy_cache_bytes", &[]).await;
        assert!(used <= quota as f64, "{used} bytes");
    }
    let kept = proxy.assert_blobs_are_sound().len() as f64;
    assert_eq!(metric(&proxy, "ecr_proxy_cache_blobs", &[]).await, kept);
    assert!(kept < COUNT as f64 - 1000.0);
}
