//! The cache stays within its quota by giving up what was not used for longest, and never what is
//! being read.

mod support;

use ecr_proxy::simulator::{BlobSource, ImageSpec, Layer, Outage, PushedImage, Simulator};
use support::Proxy;
use support::blobs::{
    MIB, assert_whole, blob, blob_file, idle, metric, outcome, pull, simulator, until,
};
use support::disk::Injection;
use support::image::REPOSITORY;
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
    until("room is made", async || {
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

/// An image under `tag` of a base that all share and a layer of its own, both of 4 MiB.
fn push(simulator: &Simulator, tag: &str, seed: u64) -> PushedImage {
    let layer = |seed| Layer::Blob(BlobSource::generated(seed, 4 * MIB));
    let spec = ImageSpec::layers([layer(1), layer(seed)]);
    simulator.push_image(REPOSITORY, tag, spec)
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}

/// Pulls an image as a client does that has `count` of its layers, lowest first, already.
async fn pull_image(proxy: &Proxy, image: &PushedImage, tag: &str, has: usize) {
    let client = proxy.client();
    assert_eq!(client.get(&manifest_path(tag)).await.status, 200);
    let platform = &image.manifests[0];
    for blob in std::iter::once(&platform.config).chain(&platform.layers[has..]) {
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        assert_whole(&client.get(&path).await, &blob.digest);
    }
    idle(proxy).await;
}

/// Whether a tag is served, with upstream cut off. What is served can be pulled whole.
async fn pulls_whole(proxy: &Proxy, image: &PushedImage, tag: &str) -> bool {
    let status = proxy.client().get(&manifest_path(tag)).await.status;
    assert!([200, 503].contains(&status), "{tag}: {status}");
    if status == 200 {
        pull_image(proxy, image, tag, 0).await;
    }
    status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_is_left_listed_that_cannot_be_pulled_and_a_shared_base_stays() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let proxy = builder.set("cache.max_size", "24MiB").start();
    let tags: Vec<String> = (0..10).map(|n| format!("v{n}")).collect();
    let mut images = Vec::new();
    for (tag, seed) in tags.iter().zip(10..) {
        let image = push(&simulator, tag, seed);
        // The base is pulled once: later clients have it, and only see that the manifest names it.
        let has = usize::from(!images.is_empty());
        pull_image(&proxy, &image, tag, has).await;
        images.push(image);
    }
    let evicted = metric(&proxy, "ecr_proxy_cache_evicted_manifests_total", &[]).await;
    assert!(evicted >= 5.0, "{evicted} manifests");
    let base = &images[0].manifests[0].layers[0].digest;
    assert!(
        blob_file(&proxy, base).exists(),
        "the base was in use all the time"
    );

    simulator.outage(Outage::Refused).await;
    let mut served = Vec::new();
    for (tag, image) in tags.iter().zip(&images) {
        if pulls_whole(&proxy, image, tag).await {
            served.push(tag.as_str());
        }
    }
    assert!((3..=5).contains(&served.len()), "{served:?}");
    let latest: Vec<&str> = tags[10 - served.len()..]
        .iter()
        .map(String::as_str)
        .collect();
    assert_eq!(served, latest, "those used last");
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_kill_before_the_records_of_what_was_evicted_are_written_leaves_no_image_half() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder.set("cache.max_size", "14MiB").start();
    let images = ["first", "second", "third"]
        .map(|tag| push(&simulator, tag, 10 + u64::from(tag.as_bytes()[1])));
    pull_image(&proxy, &images[0], "first", 0).await;
    pull_image(&proxy, &images[1], "second", 1).await;
    let log = proxy
        .cache_dir()
        .join(format!("repositories/prod/{REPOSITORY}/_log"));
    until("both are written down", async || {
        let written = std::fs::read(&log).unwrap_or_default();
        written.windows(6).any(|word| word == b"second")
    })
    .await;
    // Nothing is written to it from now on.
    let injection = Injection::at(&log, &proxy, ["pwrite64:delay_enter=60000000"]);
    pull_image(&proxy, &images[2], "third", 1).await;
    let own = &images[0].manifests[0].layers[1].digest;
    assert!(!blob_file(&proxy, own).exists(), "room was made");
    proxy.kill9();
    drop(injection);

    simulator.outage(Outage::Refused).await;
    proxy.restart();
    until("the image is not listed", async || {
        proxy.client().get(&manifest_path("first")).await.status == 503
    })
    .await;
    assert!(pulls_whole(&proxy, &images[1], "second").await);
    // And so it stays.
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.restart();
    assert!(!pulls_whole(&proxy, &images[0], "first").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn o12_without_upstream_complete_images_stay_and_partial_newcomers_go() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder.set("cache.max_size", "40MiB").start();
    let (old, newcomer) = (push(&simulator, "old", 10), push(&simulator, "new", 20));
    pull_image(&proxy, &old, "old", 0).await;
    // A layer of the newcomer comes, and its config does not; then something that nothing names.
    let client = proxy.client();
    assert_eq!(client.get(&manifest_path("new")).await.status, 200);
    let layer = &newcomer.manifests[0].layers[1].digest;
    let partial = (layer.clone(), format!("/v2/{REPOSITORY}/blobs/{layer}"));
    pull(&proxy, &partial).await;
    let loose = blob(&simulator, 99, 4 * MIB);
    pull(&proxy, &loose).await;

    simulator.outage(Outage::Refused).await;
    proxy.terminate();
    assert!(proxy.wait().success());
    // Room for the old image alone, which was used longest ago.
    proxy.set("cache.max_size", "10MiB");
    proxy.restart();
    until("room is made", async || {
        let there = [&loose.0, layer].map(|digest| blob_file(&proxy, digest).exists());
        there == [false, false]
    })
    .await;
    assert!(pulls_whole(&proxy, &old, "old").await);
    assert!(
        !pulls_whole(&proxy, &newcomer, "new").await,
        "nor is it listed"
    );
}
