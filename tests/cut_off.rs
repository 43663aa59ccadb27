//! Nothing reachable: what is cached is served at once, what is not is told within 5 s and never as
//! absent, and the first second of a returned link is already used (promise 6).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, End, Fault, Gate, Journal, Listener, Outage, Pattern, PushedImage, Simulator,
};
use support::blobs::{MIB, metric, until};
use support::image::{REPOSITORY, TAG};
use support::stage::{Stage, TestBlob, assert_whole};
use support::{Answer, Client, Proxy, Stopwatch, image, within};
use tokio::task::JoinSet;

/// For what takes no time of its own, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(750);

/// The second in which a return has to be noticed, and what a busy machine adds to it.
const NOTICED: Duration = Duration::from_millis(1750);

/// Within which a client is told, with the same addition.
const TOLD: Duration = Duration::from_millis(5750);

fn tag_path() -> String {
    format!("/v2/{REPOSITORY}/manifests/{TAG}")
}

/// A proxy that has cached the manifest of the sample image, and asks for its tag each time.
async fn cached() -> (Simulator, PushedImage, Proxy) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let proxy = Proxy::builder().simulator(&simulator);
    let proxy = proxy.set("cache.tag_ttl", "0s").start();
    assert_eq!(proxy.client().get(&tag_path()).await.status, 200);
    (simulator, image, proxy)
}

async fn is_open(proxy: &Proxy) -> bool {
    metric(proxy, "ecr_proxy_upstream_breaker_open", &[]).await == 1.0
}

async fn readiness(proxy: &Proxy) -> String {
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 200, "hits can be served: {}", ready.text());
    ready.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn o07_an_outage_costs_one_wait_and_its_end_is_noticed_within_a_second() {
    for outage in [Outage::Refused, Outage::Reset, Outage::Silent] {
        let (simulator, _, proxy) = cached().await;
        let client = proxy.client();
        let unseen = format!("/v2/{REPOSITORY}/manifests/unseen");
        simulator.outage(outage).await;
        // The first who ask find out, in the time a client is given.
        until("the breaker opens", async || {
            let began = Stopwatch::start();
            let answer = client.get(&unseen).await;
            assert_eq!(answer.status, 503, "{outage:?}: {}", answer.text());
            assert!(began.took() < TOLD, "{outage:?}: {:?}", began.took());
            is_open(&proxy).await
        })
        .await;
        let refused = "ecr_proxy_upstream_breaker_refusals_total";
        let before = metric(&proxy, refused, &[]).await;
        let began = Stopwatch::start();
        let stale = client.get(&tag_path()).await;
        assert_eq!(stale.header("x-cache"), Some("stale"), "{outage:?}");
        let miss = client.get(&unseen).await;
        assert_eq!(miss.status, 503, "{outage:?}");
        assert!(miss.header("retry-after").is_some(), "{outage:?}");
        let took = began.took();
        assert!(took < AT_ONCE, "{outage:?}: {took:?} for two answers");
        assert!(metric(&proxy, refused, &[]).await >= before + 2.0);
        let ready = readiness(&proxy).await;
        assert!(
            ready.contains("the registry does not answer since"),
            "{ready}"
        );

        simulator.outage(Outage::None).await;
        let returned = Stopwatch::start();
        until("the breaker closes", async || !is_open(&proxy).await).await;
        let took = returned.took();
        assert!(took < NOTICED, "{outage:?}: noticed after {took:?}");
        let fresh = client.get(&tag_path()).await;
        assert_eq!(fresh.header("x-cache"), Some("hit"), "{outage:?}");
        assert_eq!(client.get(&unseen).await.status, 404, "{outage:?}");
        let ready = readiness(&proxy).await;
        assert!(!ready.contains("upstream"), "{ready}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o07_a_broken_download_goes_on_within_a_second_of_the_return() {
    let stage = Stage::new().await;
    let blob = stage.blob(8 * MIB);
    let gate = Gate::new();
    let faults = stage.simulator.faults();
    faults
        .on(Listener::Storage, "GET", Pattern::digest(&blob.digest))
        .times(1)
        .then(Fault::HoldAfter(5 * MIB, gate.clone()));
    let path = blob.path.clone();
    let client = stage.proxy.client();
    let pulling = tokio::spawn(async move { client.get(&path).await });
    gate.arrived(1).await;
    stage.simulator.outage(Outage::Refused).await;
    until("the breaker opens", async || is_open(&stage.proxy).await).await;
    stage.simulator.outage(Outage::None).await;
    let returned = Stopwatch::start();
    let resumed = async || {
        let resumes = "ecr_proxy_upstream_resumes_total";
        metric(&stage.proxy, resumes, &[r#"result="resumed""#]).await == 1.0
    };
    until("the download goes on", resumed).await;
    let took = returned.took();
    assert!(took < NOTICED, "went on after {took:?}");
    assert_whole(&pulling.await.expect("no panic"), &blob);
    assert!(stage.bytes_sent(&blob) <= blob.size + blob.size / 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_where_only_storage_is_away_all_else_is_asked_and_answered() {
    let (simulator, _, proxy) = cached().await;
    let client = proxy.client();
    simulator
        .outage_of(Listener::Storage, Outage::Refused)
        .await;
    for size in 1..10 {
        let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(size, 1000));
        let miss = client
            .get(&format!("/v2/{REPOSITORY}/blobs/{digest}"))
            .await;
        assert_eq!(miss.status, 503, "{}", miss.text());
        assert!(miss.header("retry-after").is_some());
    }
    assert!(!is_open(&proxy).await, "the registry answers");
    let fresh = client.get(&tag_path()).await;
    assert_eq!(fresh.header("x-cache"), Some("hit"));
    let away = async || metric(&proxy, "ecr_proxy_upstream_storage_away", &[]).await;
    let ready = readiness(&proxy).await;
    assert!(ready.contains("storage does not answer since"), "{ready}");
    assert!(!ready.contains("the registry"), "{ready}");
    assert_eq!(away().await, 1.0);
    let status = async || {
        let status = Client::operator(proxy.admin()).get("/api/v1/status").await;
        status.text()
    };
    assert!(status().await.contains("storage_outage"));

    simulator.outage_of(Listener::Storage, Outage::None).await;
    let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(77, 1000));
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    until("blobs come again", async || {
        client.get(&path).await.status == 200
    })
    .await;
    assert_eq!(away().await, 0.0);
    assert!(!readiness(&proxy).await.contains("storage"));
    assert!(!status().await.contains("storage_outage"));
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_where_only_the_token_service_is_away_its_token_is_used_to_the_end() {
    let (simulator, _, proxy) = cached().await;
    let client = proxy.client();
    simulator.outage_of(Listener::Api, Outage::Silent).await;
    let fresh = client.get(&tag_path()).await;
    assert_eq!(fresh.header("x-cache"), Some("hit"));
    simulator.expire_tokens();
    until("stale answers come at once", async || {
        let began = Stopwatch::start();
        let stale = client.get(&tag_path()).await;
        assert_eq!(stale.header("x-cache"), Some("stale"));
        began.took() < AT_ONCE
    })
    .await;
    until("/readyz tells", async || {
        readiness(&proxy).await.contains("no credentials since")
    })
    .await;
    simulator.outage_of(Listener::Api, Outage::None).await;
    until("the tag is asked for again", async || {
        let fresh = client.get(&tag_path()).await;
        fresh.header("x-cache") == Some("hit")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o01_o03_o06_it_starts_with_nothing_reachable_and_serves_what_it_has() {
    let (simulator, image, mut proxy) = cached().await;
    let by_digest = |kind: &str, digest: &str| format!("/v2/{REPOSITORY}/{kind}/{digest}");
    let [first, second, ..] = image.manifests[0].layers.as_slice() else {
        panic!("an image of several layers");
    };
    let manifest = by_digest("manifests", &image.manifests[0].manifest.digest);
    let (kept, missing) = (
        by_digest("blobs", &first.digest),
        by_digest("blobs", &second.digest),
    );
    for path in [&manifest, &kept] {
        assert_eq!(proxy.client().get(path).await.status, 200);
    }
    proxy.terminate();
    assert!(proxy.wait().success());
    simulator.outage(Outage::Silent).await;
    proxy.restart();
    let client = proxy.client();
    assert_eq!(client.get(&manifest).await.header("x-cache"), Some("hit"));
    assert_eq!(client.get(&kept).await.digest(), first.digest);
    // Only what is missing is told so, in time; what HEAD says of it is what its manifest says.
    let head = client.head(&missing).await;
    assert_eq!(
        (head.status, head.head.content_length()),
        (200, Some(second.size))
    );
    let foreign = format!("/v2/other/blobs/{}", first.digest);
    for path in [&missing, &foreign] {
        let began = Stopwatch::start();
        let miss = client.get(path).await;
        assert!(began.took() < TOLD, "{path}: {:?}", began.took());
        assert_eq!(miss.status, 503, "{path}: {}", miss.text());
        assert!(miss.header("retry-after").is_some());
    }
    let stale = client.get(&tag_path()).await;
    assert_eq!(stale.header("x-cache"), Some("stale"));
    let ready = readiness(&proxy).await;
    assert!(
        ready.contains("serving from cache: no credentials since"),
        "{ready}"
    );
    simulator.outage(Outage::None).await;
    let returned = Stopwatch::start();
    until("the missing layer comes", async || {
        client.get(&missing).await.status == 200
    })
    .await;
    assert!(returned.took() < NOTICED, "{:?}", returned.took());
}

/// Clients of each of three kinds that wait for the link: a thousand, with those whose downloads it interrupts.
const WAITING: usize = 330;

/// Downloads that the end of the link interrupts.
const INTERRUPTED: usize = 12;

/// Requests under way at once at most: at the registry those of fills beside all others, and at storage.
const CAPS: (usize, usize) = (256 + 64, 64);

/// Asks as a client does that is told to come again, until it is served.
async fn persist(client: Client, head: bool, path: String, told: Arc<AtomicUsize>) -> Answer {
    for attempt in 0.. {
        let answer = match head {
            true => client.head(&path).await,
            false => client.get(&path).await,
        };
        if answer.status != 503 {
            return answer;
        }
        assert!(answer.header("retry-after").is_some(), "{path}");
        if attempt == 0 {
            told.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    unreachable!("it asks for ever")
}

/// How many requests are under way at the registry and at storage.
fn under_way(journal: &Journal) -> (usize, usize) {
    let at =
        |listener| journal.count(|entry| entry.listener == listener && entry.end == End::InFlight);
    (at(Listener::Registry), at(Listener::Storage))
}

/// Has each blob on its way to a client, and holds it there.
async fn interrupted(stage: &Stage, pulls: &mut JoinSet<()>) {
    for number in 0..INTERRUPTED {
        let blob = stage.blob(2 * MIB + number as u64);
        let gate = Gate::new();
        stage.spoil_times(&blob, 1, Fault::HoldAfter(MIB, gate.clone()));
        let client = stage.proxy.client();
        pulls.spawn(async move { assert_whole(&client.get(&blob.path).await, &blob) });
        gate.arrived(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o11_a_thousand_who_wait_for_the_link_are_all_served_and_upstream_is_not_flooded() {
    let stage = Stage::new().await;
    let blobs: Vec<TestBlob> = (0..WAITING)
        .map(|number| stage.blob(10_000 + number as u64))
        .collect();
    let manifest = stage.manifest_of("v", &blobs[0]);
    for number in 0..2 * WAITING {
        let tag = format!("v{number}");
        stage
            .simulator
            .tag(support::stage::REPOSITORY, &tag, &manifest);
    }
    let mut pulls = JoinSet::new();
    interrupted(&stage, &mut pulls).await;
    stage.simulator.outage(Outage::Refused).await;
    let told = Arc::new(AtomicUsize::new(0));
    let ask =
        |head: bool, path: String| persist(stage.proxy.client(), head, path, Arc::clone(&told));
    for blob in blobs {
        let pull = ask(false, blob.path.clone());
        pulls.spawn(async move { assert_whole(&pull.await, &blob) });
    }
    for number in 0..2 * WAITING {
        let head = number % 2 == 0;
        let path = format!("/v2/{}/manifests/v{number}", support::stage::REPOSITORY);
        let (pull, manifest) = (ask(head, path), manifest.clone());
        pulls.spawn(async move {
            let answer = pull.await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("docker-content-digest"), Some(&*manifest));
        });
    }
    until("everybody waits", async || {
        told.load(Ordering::Relaxed) == 3 * WAITING && is_open(&stage.proxy).await
    })
    .await;

    // A registry that is slow, and wants less at first.
    let faults = stage.simulator.faults();
    let content = || format!("/v2/{}/", support::stage::REPOSITORY);
    let registry = faults.on(Listener::Registry, "*", &*content());
    let throttled = registry.times(5).then(Fault::throttled(Some("1")));
    let registry = faults.on(Listener::Registry, "*", &*content());
    registry.then(Fault::Delay(Duration::from_millis(100)));
    let journal = stage.simulator.journal();
    journal.clear();
    stage.simulator.outage(Outage::None).await;
    let mut most = (0, 0);
    let served = async {
        let mut look = tokio::time::interval(Duration::from_millis(2));
        loop {
            tokio::select! {
                pull = pulls.join_next() => match pull {
                    Some(pull) => pull.expect("served"),
                    None => return,
                },
                _ = look.tick() => {
                    let now = under_way(journal);
                    most = (most.0.max(now.0), most.1.max(now.1));
                }
            }
        }
    };
    within("everybody is served", served).await;
    println!("at most {most:?} at once at the registry and at storage");
    assert!(most.0 > 1 && most.0 <= CAPS.0, "{most:?}");
    assert!(most.1 <= CAPS.1, "{most:?}");
    assert_eq!(throttled.taken(), 5, "the registry throttled");
    // At most two questions for a blob, one for a tag, and again for who was throttled.
    let asked = journal
        .count(|entry| entry.listener == Listener::Registry && entry.path.starts_with(&content()));
    let needed = 4 * WAITING + INTERRUPTED;
    assert!(asked <= needed * 21 / 20, "{asked} questions for {needed}");
    assert!(!is_open(&stage.proxy).await);
}
