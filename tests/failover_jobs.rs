//! What runs by itself, and what tends the cache, goes on while an upstream cannot answer: by the one that stands
//! in for it.

mod support;

use ecr_proxy::simulator::{BlobSource, Fault, Gate, ImageSpec, Listener, Outage, Pattern};
use support::blobs::{MIB, assert_whole, blob_file, metric, outcome, until};
use support::two::{Two, pull, put};
use support::{Proxy, within};

#[tokio::test(flavor = "multi_thread")]
async fn images_are_warmed_from_the_next_region_by_command_and_by_schedule() {
    let two = Two::start().await;
    two.put_two_tags();
    two.prod.outage(Outage::Refused).await;
    let mut scheduled = toml::Table::new();
    scheduled.insert("images".to_owned(), vec!["team/app:v2"].into());
    scheduled.insert("every".to_owned(), "1h".into());
    let proxy = two.with_fallback().push("warm", scheduled).start();
    proxy.run(["warm", "team/app:v1"]).fine();
    until("the schedule's image", async || {
        metric(
            &proxy,
            "ecr_proxy_warm_images_total",
            &[r#"result="complete""#],
        )
        .await
            >= 1.0
    })
    .await;

    // With neither of them it is pulled all the same.
    two.base.outage(Outage::Refused).await;
    for tag in ["v1", "v2"] {
        let (manifest, layer) = pull(&proxy.client(), tag).await.expect(tag);
        assert_eq!(manifest, "stale; fallback");
        assert!(layer.starts_with("hit"), "{layer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_layers_of_an_image_come_ahead_from_the_next_region_too() {
    let two = Two::start().await;
    let spec = || ImageSpec::generated(5, [200_000, 300_000, 400_000]);
    two.prod.push_image("team/app", "v1", spec());
    let image = two.base.push_image("team/app", "v1", spec());
    let proxy = two.with_fallback().set("cache.prefetch", "layers").start();
    let client = proxy.client();
    two.prod.outage(Outage::Refused).await;
    let manifest = client.get("/v2/team/app/manifests/v1").await;
    assert_eq!(manifest.status, 200, "{}", manifest.text());
    let layers = &image.manifests[0].layers;
    let first = format!("/v2/team/app/blobs/{}", layers[0].digest);
    assert_whole(&client.get(&first).await, &layers[0].digest);
    until("the other layers", async || {
        let fetched = [r#"result="fetched""#];
        metric(&proxy, "ecr_proxy_prefetch_layers_total", &fetched).await >= 2.0
    })
    .await;
    for layer in layers {
        let answer = client
            .get(&format!("/v2/team/app/blobs/{}", layer.digest))
            .await;
        assert_whole(&answer, &layer.digest);
        let said = outcome(&answer).expect("X-Cache");
        assert!(said.starts_with("hit"), "{said}");
    }
}

/// A proxy that was killed when about so many bytes of a blob had come from the first region, and is back when that
/// is gone.
async fn broken_off(two: &Two, digest: &str, bytes: u64) -> Proxy {
    let gate = Gate::new();
    let content = Pattern::digest(digest);
    let content = two.prod.faults().on(Listener::Storage, "GET", content);
    content.then(Fault::HoldAfter(bytes, gate.clone()));
    let mut proxy = two.with_fallback().start();
    let path = format!("/v2/team/app/blobs/{digest}");
    let mut client = proxy.client().start("GET", &path, &[]).await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    let begun = client.read_exactly(bytes - MIB);
    within("the beginning", begun).await.expect("the beginning");
    proxy.kill9();
    gate.open();
    two.prod.outage(Outage::Refused).await;
    proxy.restart();
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_what_broke_off_in_a_region_that_is_gone_is_finished_from_the_next_for_nobody_in_particular()
 {
    const SIZE: u64 = 24 * MIB;
    let two = Two::start().await;
    let mut digest = String::new();
    for simulator in [&two.prod, &two.base] {
        digest = put(simulator, "team/app", "v1", BlobSource::generated(1, SIZE)).0;
    }
    let proxy = broken_off(&two, &digest, SIZE / 2).await;
    until("the blob is whole", async || {
        blob_file(&proxy, &digest).exists()
    })
    .await;
    assert_eq!(proxy.assert_blobs_are_sound(), [digest.clone()]);
    let sent = two.base.journal().body_bytes(|entry| {
        entry.listener == Listener::Storage && entry.digest.as_deref() == Some(&*digest)
    });
    assert!(sent > 0 && sent <= SIZE / 2 + 2 * MIB, "{sent} of {SIZE}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_waits_where_the_next_region_does_not_hold_it() {
    const SIZE: u64 = 8 * MIB;
    let two = Two::start().await;
    let (digest, _) = put(&two.prod, "team/app", "v1", BlobSource::generated(1, SIZE));
    two.base.create_repository("team/app");
    // The same bytes are there in another repository, which proves nothing.
    put(&two.base, "other/app", "v1", BlobSource::generated(1, SIZE));
    let proxy = broken_off(&two, &digest, SIZE / 2).await;
    until("the next region was asked", async || {
        let journal = two.base.journal().snapshot();
        journal.iter().any(|entry| entry.path.contains(&digest))
    })
    .await;
    two.prod.faults().clear();
    two.prod.outage(Outage::None).await;
    until("the blob is whole", async || {
        blob_file(&proxy, &digest).exists()
    })
    .await;
    let sent = two
        .base
        .journal()
        .body_bytes(|entry| entry.listener == Listener::Storage);
    assert_eq!(sent, 0, "nothing came from where nothing was proven");
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_asks_the_next_region_and_says_so() {
    let two = Two::start().await;
    two.put_two_tags();
    let (_, moved) = put(&two.base, "team/app", "v2", BlobSource::generated(3, 1000));
    two.prod.outage(Outage::Refused).await;
    let mut proxy = two.with_fallback().set("cache.tag_ttl", "1h").start();
    let refresh = ["cache", "refresh", "team/app:v1", "team/app:v2"];
    // By the running proxy, and without one.
    for is_running in [true, false] {
        if !is_running {
            proxy.terminate();
            assert!(proxy.wait().success());
        }
        let told = proxy.run(refresh.iter().copied().chain(["--json"])).fine();
        let mut told = told.json_lines();
        told.retain(|event| event["event"] == "refreshed");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told.iter().all(|event| event["stand_in"] == true),
            "{told:?}"
        );
        assert_eq!(told[1]["now"], moved);
    }
    let text = proxy.run(refresh).fine();
    assert!(text.stdout.contains("stands in"), "{text:?}");

    two.base.outage(Outage::Refused).await;
    let cut_off = proxy.run(refresh);
    assert_eq!(cut_off.code, Some(1), "{cut_off:?}");
    two.prod.outage(Outage::None).await;
    let own = proxy.run(refresh).fine();
    assert!(!own.stdout.contains("stands in"), "{own:?}");
}
