//! With `cache.prefetch = "layers"`, the other layers of an image begin once a client asks for one, behind
//! what clients ask for; whoever only reads manifests and configs begins nothing.

mod support;

use ecr_proxy::simulator::{
    Fault, Gate, ImageSpec, Journal, Listener, Outage, Pattern, PushedImage, Simulator, Stored,
};
use support::blobs::{MIB, idle, metric, outcome, simulator, until};
use support::image::REPOSITORY;
use support::{Answer, Proxy, within};

const RESULTS: &str = "ecr_proxy_prefetch_layers_total";

fn eager(simulator: &Simulator) -> Proxy {
    let builder = Proxy::builder().simulator(simulator);
    builder.set("cache.prefetch", "layers").start()
}

fn push(simulator: &Simulator, tag: &str, seed: u64, layers: usize) -> PushedImage {
    let spec = ImageSpec::generated(seed, vec![MIB; layers]);
    simulator.push_image(REPOSITORY, tag, spec)
}

fn path(blob: &Stored) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)
}

async fn get(proxy: &Proxy, path: &str) -> Answer {
    let answer = proxy.client().get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert!(answer.clean_end, "{path}");
    answer
}

async fn inspect(proxy: &Proxy, tag: &str, image: &PushedImage) {
    get(proxy, &format!("/v2/{REPOSITORY}/manifests/{tag}")).await;
    get(proxy, &path(&image.manifests[0].config)).await;
}

/// Bytes of `blob` that storage sent.
fn sent(journal: &Journal, blob: &Stored) -> u64 {
    journal.body_bytes(|entry| {
        entry.listener == Listener::Storage && entry.digest.as_ref() == Some(&blob.digest)
    })
}

async fn until_kept(proxy: &Proxy, blobs: &[Stored]) {
    until("every layer is kept", async || {
        let kept = proxy.assert_blobs_are_sound();
        blobs.iter().all(|blob| kept.contains(&blob.digest))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_brings_the_others_and_an_inspector_none() {
    let simulator = simulator().await;
    let seen = push(&simulator, "seen", 1, 4);
    let pulled = push(&simulator, "pulled", 2, 6);
    let proxy = eager(&simulator);

    inspect(&proxy, "seen", &seen).await;
    let head = proxy
        .client()
        .head(&path(&seen.manifests[0].layers[0]))
        .await;
    assert_eq!(head.status, 200);
    inspect(&proxy, "pulled", &pulled).await;
    let layers = &pulled.manifests[0].layers;
    get(&proxy, &path(&layers[2])).await;
    until_kept(&proxy, layers).await;

    for layer in layers {
        assert_eq!(sent(simulator.journal(), layer), layer.size);
        let answer = get(&proxy, &path(layer)).await;
        assert_eq!(outcome(&answer), Some("hit"));
    }
    // What came first was looked at first.
    for layer in &seen.manifests[0].layers {
        assert_eq!(sent(simulator.journal(), layer), 0, "an inspector began it");
    }
    until("every layer is counted", async || {
        metric(&proxy, RESULTS, &["result=\"fetched\""]).await == 5.0
    })
    .await;
    let bytes = metric(&proxy, "ecr_proxy_prefetch_bytes_total", &[]).await;
    assert_eq!(bytes, (5 * MIB) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_never_waits_behind_what_nobody_asked_for() {
    let simulator = simulator().await;
    let image = push(&simulator, "v1", 1, 8);
    let layers = &image.manifests[0].layers;
    let proxy = eager(&simulator);
    inspect(&proxy, "v1", &image).await;
    // Whatever is fetched ahead stands still.
    let gate = Gate::new();
    let (first, last) = (layers[0].digest.clone(), layers[7].digest.clone());
    let others = Pattern::matching(move |entry| {
        let digest = entry.digest.as_ref();
        digest.is_some_and(|digest| *digest != first && *digest != last)
    });
    let rule = simulator.faults().on(Listener::Storage, "GET", others);
    rule.then(Fault::HoldAfter(1000, gate.clone()));
    get(&proxy, &path(&layers[0])).await;
    within("layers are fetched ahead", gate.arrived(2)).await;
    let answer = within("the last in line", get(&proxy, &path(&layers[7]))).await;
    assert_eq!(outcome(&answer), Some("miss"));
    let asked = simulator.journal().count(|entry| {
        entry.listener == Listener::Storage
            && layers[1..7]
                .iter()
                .any(|layer| entry.digest.as_ref() == Some(&layer.digest))
    });
    assert_eq!(asked, 2, "more at once than two");
    gate.open();
    until_kept(&proxy, layers).await;
    for layer in layers {
        assert_eq!(sent(simulator.journal(), layer), layer.size);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_answer_is_left_alone_until_clients_ask_again() {
    let simulator = simulator().await;
    let image = push(&simulator, "v1", 1, 12);
    let layers = &image.manifests[0].layers;
    let manifest = format!("/v2/{REPOSITORY}/manifests/{}", image.top.digest);
    let mut proxy = Proxy::before(&simulator);
    get(&proxy, &manifest).await;
    get(&proxy, &path(&layers[0])).await;
    idle(&proxy).await;
    assert_eq!(
        metric(&proxy, "ecr_proxy_prefetch_bytes_total", &[]).await,
        0.0
    );
    let others = layers[1..].iter();
    for layer in others.clone() {
        assert_eq!(sent(simulator.journal(), layer), 0, "nobody wanted that");
    }

    proxy.set("cache.prefetch", "layers");
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.restart();
    simulator.outage(Outage::Refused).await;
    get(&proxy, &manifest).await;
    assert_eq!(outcome(&get(&proxy, &path(&layers[0])).await), Some("hit"));
    until("the rest is given up", async || {
        metric(&proxy, RESULTS, &["result=\"dropped\""]).await > 0.0
            && metric(&proxy, RESULTS, &[]).await == others.len() as f64
    })
    .await;

    simulator.outage(Outage::None).await;
    until("the link's return is noticed", async || {
        proxy.client().get(&path(&layers[1])).await.status == 200
    })
    .await;
    until_kept(&proxy, layers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_a_restart_came_into_is_helped_as_well() {
    let simulator = simulator().await;
    let image = push(&simulator, "v1", 1, 6);
    let layers = &image.manifests[0].layers;
    let mut proxy = eager(&simulator);
    inspect(&proxy, "v1", &image).await;
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.restart();
    // The client has the manifest already, and another look at the config begins nothing.
    get(&proxy, &path(&image.manifests[0].config)).await;
    get(&proxy, &path(&layers[3])).await;
    until_kept(&proxy, layers).await;
    for layer in layers {
        assert_eq!(sent(simulator.journal(), layer), layer.size);
    }
}
