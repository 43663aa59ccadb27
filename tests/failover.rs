//! A name survives its region: while an upstream cannot answer, the same repository is served from the
//! next one, and what says no is not gone around.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ecr_proxy::simulator::{BlobSource, Listener, Outage, Simulator};
use support::blobs::{assert_whole, idle, metric, outcome, until};
use support::image::spec_saying;
use support::two::{Two, put};
use support::{Client, DOMAIN, Proxy, Sandbox};

const SIZE: u64 = 1 << 18;

/// `prod`, for which `base` stands in.
fn before(two: &Two) -> Proxy {
    let proxy = two.builder().upstream_key("fallback", vec!["base"]);
    proxy
        .set("cache.tag_ttl", "0s")
        .route([("repository", "**"), ("upstream", "prod")])
        .start()
}

/// Whether anything was asked of the repository there.
fn is_asked(simulator: &Simulator) -> bool {
    let journal = simulator.journal().snapshot();
    journal.iter().any(|entry| entry.path.contains("team/app"))
}

/// Pulls an image of one layer by its tag; what `X-Cache` said of manifest and layer.
async fn pull(client: &Client, tag: &str) -> Option<(String, String)> {
    let manifest = client.get(&format!("/v2/team/app/manifests/{tag}")).await;
    if manifest.status != 200 {
        return None;
    }
    let json = manifest.json();
    let layer = json["layers"][0]["digest"].as_str().expect("a layer");
    let blob = client.get(&format!("/v2/team/app/blobs/{layer}")).await;
    if blob.status != 200 {
        return None;
    }
    assert_whole(&blob, layer);
    let said = |answer| outcome(answer).unwrap_or_default().to_owned();
    Some((said(&manifest), said(&blob)))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_region_serves_while_the_first_is_away_and_no_longer() {
    let two = Two::start().await;
    for simulator in [&two.prod, &two.base] {
        put(simulator, "team/app", "v1", BlobSource::generated(1, SIZE));
        put(simulator, "team/app", "v2", BlobSource::generated(2, SIZE));
    }
    let proxy = before(&two);
    let client = proxy.client();
    let (manifest, layer) = pull(&client, "v1").await.expect("the first region");
    assert_eq!((&*manifest, &*layer), ("miss", "miss"));

    two.prod.outage(Outage::Refused).await;
    // What is not cached comes from the second, which had no part in it so far.
    assert!(!is_asked(&two.base));
    let (manifest, layer) = pull(&client, "v2").await.expect("the second region");
    assert_eq!(manifest, "miss; fallback");
    assert!(
        layer == "miss; fallback" || layer == "joined; fallback",
        "{layer}"
    );
    // A tag that would be stale is fresh there.
    until("the second region tells of the tag", async || {
        pull(&client, "v1")
            .await
            .expect("v1")
            .0
            .ends_with("; fallback")
    })
    .await;
    assert!(metric(&proxy, "ecr_proxy_fallback_answers_total", &[]).await >= 2.0);
    let status = Client::operator(proxy.admin()).get("/api/v1/status").await;
    assert_eq!(status.json()["upstreams"][0]["stand_in"], "base");

    two.prod.outage(Outage::None).await;
    until("the first region is back", async || {
        pull(&client, "v2").await.expect("v2").0 == "miss"
    })
    .await;
    let (manifest, layer) = pull(&client, "v2").await.expect("v2");
    assert_eq!((&*manifest, &*layer), ("hit", "hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_not_gone_around_and_a_no_elsewhere_is_none() {
    let two = Two::start().await;
    put(
        &two.base,
        "team/app",
        "only-there",
        BlobSource::generated(1, SIZE),
    );
    put(
        &two.prod,
        "team/app",
        "only-here",
        BlobSource::generated(2, SIZE),
    );
    let proxy = before(&two);
    let client = proxy.client();
    let there = client.get("/v2/team/app/manifests/only-there").await;
    assert_eq!(there.status, 404, "{}", there.text());
    assert!(!is_asked(&two.base));
    pull(&client, "only-here").await.expect("it is there");
    idle(&proxy).await;

    two.prod.outage(Outage::Refused).await;
    let kept = client.get("/v2/team/app/manifests/only-here").await;
    assert_eq!((kept.status, outcome(&kept)), (200, Some("stale")));
    let never_seen = client.get("/v2/team/app/manifests/neither").await;
    assert_eq!(never_seen.status, 503, "{}", never_seen.text());
    // Neither has what the other's credential opens.
    let refused = |entry: &ecr_proxy::simulator::Entry| {
        entry.listener == Listener::Registry && entry.status == Some(401)
    };
    assert!(!two.base.journal().snapshot().iter().any(refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_the_loss_of_the_first_region_fails_nobody_for_long() {
    const CLIENTS: usize = 8;
    const TAGS: u64 = 40;
    let two = Two::start().await;
    for seed in 0..TAGS {
        for simulator in [&two.prod, &two.base] {
            let layer = BlobSource::generated(seed, SIZE);
            put(simulator, "team/app", &format!("v{seed}"), layer);
        }
    }
    let proxy = before(&two);
    let (pulled, is_cut) = (AtomicUsize::new(0), AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|number| {
        let (proxy, pulled, is_cut) = (&proxy, &pulled, &is_cut);
        async move {
            let client = proxy.client();
            let mut after = 0;
            for turn in 0..TAGS {
                let tag = format!("v{}", (turn + number as u64 * 5) % TAGS);
                let cut_before = is_cut.load(Ordering::SeqCst);
                // A client tries again, as docker does; what it gets is right.
                until("a pull succeeds", async || {
                    pull(&client, &tag).await.is_some()
                })
                .await;
                pulled.fetch_add(1, Ordering::SeqCst);
                after += usize::from(cut_before);
            }
            after
        }
    });
    let cut = async {
        until("some pulls", async || {
            pulled.load(Ordering::SeqCst) >= CLIENTS * 4
        })
        .await;
        two.prod.outage(Outage::Refused).await;
        is_cut.store(true, Ordering::SeqCst);
    };
    let (after, ()) = tokio::join!(futures_util::future::join_all(clients), cut);
    let after: usize = after.into_iter().sum();
    assert!(after > 0, "nothing was pulled after the cut");
    assert!(metric(&proxy, "ecr_proxy_fallback_answers_total", &[]).await > 0.0);
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_one_image_after_another_while_the_first_region_is_cut_and_comes_back() {
    const TAGS: usize = 12;
    let two = Two::start().await;
    for tag in 0..TAGS {
        for simulator in [&two.prod, &two.base] {
            let spec = spec_saying(&format!("image {tag}"));
            simulator.push_image("team/app", &format!("v{tag}"), spec);
        }
    }
    let proxy = two.builder().upstream_key("fallback", vec!["base"]);
    let proxy = proxy
        .listen(["https://[::1]:0", "http://127.0.0.1:0"])
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let sandbox = Sandbox::new();
    let host = format!("{DOMAIN}:{}", proxy.https().port());
    let certs = Path::new("/etc/containers/certs.d").join(&host);
    sandbox.trust(&proxy.pki().ca(), &certs.join("ca.crt"));
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    let (root, run) = (path("podman"), path("podman-run"));
    let own = [
        "--root",
        &root,
        "--runroot",
        &run,
        "--storage-driver",
        "overlay",
    ];
    let done = AtomicUsize::new(0);
    let client = || {
        for tag in 0..TAGS {
            let image = format!("{host}/team/app:v{tag}");
            let podman = |words: &[&str]| {
                let words = own.into_iter().chain(words.iter().copied());
                sandbox.must("podman", words)
            };
            podman(&["pull", "--quiet", &image]);
            let greeting = format!("{}/greeting", podman(&["image", "mount", &image]).trim());
            let greeting = sandbox.must("cat", [&*greeting]);
            assert_eq!(greeting, format!("image {tag}"));
            done.fetch_add(1, Ordering::SeqCst);
        }
    };
    let pulled = async |count: usize| {
        until("podman pulls", async || {
            done.load(Ordering::SeqCst) >= count
        })
        .await;
    };
    let region = async {
        pulled(TAGS / 3).await;
        two.prod.outage(Outage::Refused).await;
        pulled(2 * TAGS / 3).await;
        assert!(
            is_asked(&two.base),
            "nothing was pulled from the second region"
        );
        two.prod.outage(Outage::None).await;
        pulled(TAGS).await;
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(client);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(region));
        client.join().expect("podman got what it asked for");
    });
    let asked_of = |simulator: &Simulator, tag: usize| {
        let path = format!("/v2/team/app/manifests/v{tag}");
        let journal = simulator.journal().snapshot();
        journal
            .iter()
            .any(|entry| entry.path == path && entry.status == Some(200))
    };
    assert!(asked_of(&two.prod, 0) && !asked_of(&two.base, 0));
    assert!(
        asked_of(&two.prod, TAGS - 1),
        "the first region is not asked again"
    );
    proxy.assert_blobs_are_sound();
}
