//! What is pinned is never evicted, and stays when upstream deletes it.

mod support;

use ecr_proxy::simulator::{BlobSource, ImageSpec, Outage, PushedImage, Simulator};
use support::blobs::{MIB, idle, metric, outcome, simulator, until};
use support::image::{self, REPOSITORY, TAG};
use support::{Answer, Proxy};

/// Pulls a tag and all that it leads to for every platform, and waits until it is kept.
async fn pull(proxy: &Proxy, image: &PushedImage, tag: &str) {
    assert_eq!(manifest(proxy, tag).await.status, 200);
    for platform in &image.manifests {
        let answer = manifest(proxy, &platform.manifest.digest).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for blob in image.blobs() {
        let answer = get(proxy, "blobs", &blob.digest).await;
        assert_eq!(answer.digest(), blob.digest);
    }
    idle(proxy).await;
}

async fn get(proxy: &Proxy, kind: &str, reference: &str) -> Answer {
    let path = format!("/v2/{REPOSITORY}/{kind}/{reference}");
    proxy.client().get(&path).await
}

fn has_warning(answer: &Answer) -> bool {
    let warnings = answer.head.header_values("warning");
    warnings.iter().any(|warning| warning.contains("pinned"))
}

async fn manifest(proxy: &Proxy, reference: &str) -> Answer {
    get(proxy, "manifests", reference).await
}

/// Pulls blobs of 2 MiB that no manifest names, several times what the cache may hold.
async fn press(proxy: &Proxy, simulator: &Simulator) {
    for seed in 0..20 {
        let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(1000 + seed, 2 * MIB));
        assert_eq!(get(proxy, "blobs", &digest).await.digest(), digest);
    }
    idle(proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o12_a_pinned_image_outlives_any_pressure_and_pulls_whole_without_upstream() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let pinned = image::push(&simulator);
    let other = simulator.push_image(
        REPOSITORY,
        "other",
        ImageSpec::generated(7, [2 << 20, 1 << 20]),
    );
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.max_size", "16MiB")
        .set("cache.pins", vec!["team/*:v*"])
        .start();
    pull(&proxy, &pinned, TAG).await;
    pull(&proxy, &other, "other").await;
    press(&proxy, &simulator).await;
    let evictions = metric(&proxy, "ecr_proxy_cache_evictions_total", &[]).await;
    assert!(evictions > 5.0, "{evictions}");
    let bytes: u64 = pinned.blobs().iter().map(|blob| blob.size).sum();
    until("what is pinned is told", async || {
        metric(&proxy, "ecr_proxy_cache_pinned_bytes", &[]).await == bytes as f64
    })
    .await;

    simulator.outage(Outage::Refused).await;
    proxy.restart();
    pull(&proxy, &pinned, TAG).await;
    assert_eq!(
        manifest(&proxy, "other").await.status,
        503,
        "it went, and its tag"
    );
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_survives_its_deletion_upstream_and_says_that_it_is_stale() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let pinned = image::push(&simulator);
    let other = simulator.push_image(REPOSITORY, "other", ImageSpec::generated(7, [1000]));
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.tag_ttl", "0s")
        .set("cache.absent_ttl", "0s")
        // Every record is soon asked for again.
        .set("cache.record_ttl", "1s")
        .set("cache.pins", vec![format!("{REPOSITORY}:{TAG}")])
        .start();
    for (image, tag) in [(&pinned, TAG), (&other, "other")] {
        pull(&proxy, image, tag).await;
    }
    simulator.delete_repository(REPOSITORY);
    simulator.create_repository(REPOSITORY);

    assert_eq!(
        manifest(&proxy, "other").await.status,
        404,
        "upstream's no counts"
    );
    until("the other is forgotten", async || {
        manifest(&proxy, &other.top.digest).await.status == 404
    })
    .await;
    for _ in 0..2 {
        let answer = manifest(&proxy, TAG).await;
        assert_eq!(answer.digest(), pinned.top.digest);
        assert_eq!(outcome(&answer), Some("stale"));
        assert!(has_warning(&answer) && answer.header("age").is_some());
        for platform in &pinned.manifests {
            let digest = &platform.manifest.digest;
            until("its manifests are said to be stale", async || {
                let answer = manifest(&proxy, digest).await;
                assert_eq!(&answer.digest(), digest);
                outcome(&answer) == Some("stale") && has_warning(&answer)
            })
            .await;
        }
        pull(&proxy, &pinned, TAG).await;
        proxy.terminate();
        assert!(proxy.wait().success());
        proxy.restart();
    }

    // Where it is no longer pinned, upstream's no counts.
    proxy.set("cache.pins", Vec::<String>::new());
    proxy.restart();
    assert_eq!(manifest(&proxy, TAG).await.status, 404);
    let blob = pinned.blobs()[0].digest.clone();
    until("its blobs are gone with it", async || {
        get(&proxy, "blobs", &blob).await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_that_exceed_the_quota_are_told() {
    let simulator = simulator().await;
    let pinned = simulator.push_image(REPOSITORY, TAG, ImageSpec::generated(7, [9 << 20]));
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.max_size", "8MiB")
        .set("cache.pins", vec!["**:*"])
        .start();
    pull(&proxy, &pinned, TAG).await;
    until("readiness tells it", async || {
        let ready = support::Client::operator(proxy.admin())
            .get("/readyz")
            .await;
        assert_eq!(ready.status, 200);
        ready.text().contains("pinned content exceeds")
    })
    .await;
    proxy
        .log_until("a warning", |event| {
            event.level() == "WARN" && event.line.contains("pinned content exceeds")
        })
        .await;
}
