//! Everything stored is hashed again by itself, and what has gone bad is fetched again before anybody
//! asks for it.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use ecr_proxy::cache::{CacheMetrics, Store, StoreOptions};
use ecr_proxy::simulator::{Outage, Simulator};
use futures_util::StreamExt as _;
use support::blobs::{assert_whole, blob, blob_file, metric, pull, simulator, until};
use support::disk::{Injection, rot};
use support::image::REPOSITORY;
use support::store::digest;
use support::{Client, Proxy};

/// What a pass hashes in a second at most, in files: what opening one counts for.
const FILES_PER_SECOND: f64 = 256.0;

/// What reads of a disk do that is dying.
const UNREADABLE: [&str; 2] = ["preadv2:error=EIO", "pread64:error=EIO"];

/// Ends the proxy in order; at its next start a pass is long due.
fn stop(proxy: &mut Proxy) {
    proxy.terminate();
    assert!(proxy.wait().success());
    let options = StoreOptions::new(proxy.cache_dir());
    let store = Store::open(options, CacheMetrics::default()).expect("nobody has it");
    let mut progress = store.scrub_progress();
    progress.finished = Some(1);
    store.keep_scrub_progress(&progress).expect("keep it");
}

/// Starts it anew, so that calls of it fail before the pass has looked at anything: a while after the start.
async fn restart_into(proxy: &mut Proxy, inject: impl Fn(&Proxy) -> Injection) -> Injection {
    loop {
        proxy.restart();
        let injection = inject(proxy);
        if metric(proxy, "ecr_proxy_scrub_blobs_total", &[]).await == 0.0 {
            return injection;
        }
        drop(injection);
        stop(proxy);
    }
}

/// So many small blobs, pulled.
async fn fill(simulator: &Simulator, proxy: &Proxy, count: u64) -> Vec<(String, String)> {
    let blobs: Vec<_> = (0..count)
        .map(|n| blob(simulator, n, 2000 + n * 11))
        .collect();
    let client = proxy.client();
    let pulls = futures_util::stream::iter(&blobs).map(|(digest, target)| {
        let client = client.clone();
        async move { assert_whole(&client.get(target).await, digest) }
    });
    pulls.buffer_unordered(16).collect::<Vec<()>>().await;
    support::blobs::idle(proxy).await;
    blobs
}

/// Those that are on disk and what their names say.
fn whole(proxy: &Proxy, digests: &[String]) -> BTreeSet<String> {
    let is_whole = |name: &&String| {
        let bytes = fs::read(blob_file(proxy, name));
        bytes.is_ok_and(|bytes| digest(&bytes) == **name)
    };
    digests.iter().filter(is_whole).cloned().collect()
}

async fn finished(proxy: &Proxy) -> bool {
    metric(proxy, "ecr_proxy_scrub_finished_timestamp_seconds", &[]).await > 1.0
        && metric(proxy, "ecr_proxy_scrub_wanted", &[]).await == 0.0
}

/// Pulls what is whole, over and over.
async fn load(client: Client, blobs: Vec<(String, String)>) {
    for (digest, target) in blobs.iter().cycle() {
        assert_whole(&client.get(target).await, digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d19_ten_of_a_thousand_are_found_and_healed_under_load_and_across_a_kill() {
    const COUNT: usize = 1000;
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blobs = fill(&simulator, &proxy, COUNT as u64).await;
    stop(&mut proxy);
    let mut in_order: Vec<_> = blobs.iter().map(|(digest, _)| digest.clone()).collect();
    in_order.sort();
    let bad: BTreeSet<String> = (0..10).map(|n| in_order[50 + n * 100].clone()).collect();
    for digest in &bad {
        rot(&blob_file(&proxy, digest));
    }
    let scrubbed = async |proxy: &Proxy| metric(proxy, "ecr_proxy_scrub_blobs_total", &[]).await;
    let good = blobs.iter().filter(|(digest, _)| !bad.contains(digest));
    let good: Vec<_> = good.cloned().collect();

    proxy.restart();
    let loads = tokio::spawn(load(proxy.client(), good.clone()));
    until("a third is done", async || scrubbed(&proxy).await >= 350.0).await;
    loads.abort();
    proxy.kill9();
    // What was found by now is gone, or there again.
    let kept = whole(&proxy, &in_order);
    let found = bad
        .iter()
        .filter(|digest| kept.contains(*digest) || !blob_file(&proxy, digest).exists());
    let found = found.count();
    assert!((1..10).contains(&found), "{found} found before the kill");
    assert!(good.iter().all(|(digest, _)| kept.contains(digest)));

    proxy.restart();
    let loads = tokio::spawn(load(proxy.client(), good));
    let pace = async {
        let (began, first) = loop {
            let asked = Instant::now();
            let now = scrubbed(&proxy).await;
            if now > 0.0 {
                break (asked, now);
            }
        };
        loop {
            let now = scrubbed(&proxy).await - first;
            let most = FILES_PER_SECOND * began.elapsed().as_secs_f64() + 1.0;
            assert!(now <= most, "{now} files where {most} may be");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        never = pace => never,
        () = until("the pass ends and all is healed", async || finished(&proxy).await) => {}
    }
    assert!(!loads.is_finished(), "no pull failed");
    loads.abort();
    let rest = scrubbed(&proxy).await;
    assert!(
        rest < 750.0,
        "begun from the start: {rest} after the restart"
    );
    let quarantined = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
    assert_eq!(quarantined, (10 - found) as f64);
    let kept = whole(&proxy, &in_order);
    let lost: Vec<_> = in_order
        .iter()
        .filter(|digest| !kept.contains(*digest))
        .collect();
    assert!(lost.is_empty(), "{lost:?} of {bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn d19_what_is_found_while_the_upstream_is_away_is_healed_when_it_is_back() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blobs = fill(&simulator, &proxy, 20).await;
    stop(&mut proxy);
    let bad = &blobs[7];
    rot(&blob_file(&proxy, &bad.0));
    simulator.outage(Outage::Refused).await;
    let wanted = async |proxy: &Proxy| metric(proxy, "ecr_proxy_scrub_wanted", &[]).await;
    proxy.restart();
    until("it is found", async || wanted(&proxy).await == 1.0).await;
    until("it is taken away", async || {
        !blob_file(&proxy, &bad.0).exists()
    })
    .await;
    // Whoever needs it meanwhile is told the truth.
    assert_eq!(proxy.client().get(&bad.1).await.status, 503);
    proxy.kill9();
    proxy.restart();
    until("it is remembered", async || wanted(&proxy).await == 1.0).await;
    simulator.outage(Outage::None).await;
    until("it is healed", async || wanted(&proxy).await == 0.0).await;
    let healed = metric(&proxy, "ecr_proxy_scrub_healed_total", &[]).await;
    assert_eq!(healed, 1.0);
    simulator.outage(Outage::Refused).await;
    assert_eq!(pull(&proxy, bad).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_d19_a_file_that_cannot_be_read_is_fetched_again_before_anybody_asks() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blobs = fill(&simulator, &proxy, 20).await;
    stop(&mut proxy);
    let file = blob_file(&proxy, &blobs[7].0);
    let injection = restart_into(&mut proxy, |proxy| Injection::at(&file, proxy, UNREADABLE));
    let injection = injection.await;
    let found = [r#"damage="unreadable""#];
    until("it is found and healed", async || {
        metric(&proxy, "ecr_proxy_scrub_found_total", &found).await == 1.0
            && metric(&proxy, "ecr_proxy_scrub_healed_total", &[]).await == 1.0
    })
    .await;
    drop(injection);
    simulator.outage(Outage::Refused).await;
    for blob in &blobs {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
    let quarantined = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
    assert_eq!(quarantined, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_a_disk_that_reads_nothing_costs_no_blob_its_place() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blobs = fill(&simulator, &proxy, 20).await;
    stop(&mut proxy);
    let injection = restart_into(&mut proxy, |proxy| Injection::into(proxy, UNREADABLE));
    let injection = injection.await;
    proxy
        .log_until("the scrub gives up", |event| {
            event.message().contains("the scrub stops for now")
        })
        .await;
    drop(injection);
    simulator.outage(Outage::Refused).await;
    for blob in &blobs {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_a_damaged_log_is_found_and_written_anew() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blobs = fill(&simulator, &proxy, 20).await;
    stop(&mut proxy);
    let log = proxy.cache_dir().join("repositories/prod").join(REPOSITORY);
    let log = log.join("_log");
    rot(&log);
    let damaged = fs::read(&log).expect("the log");
    let found = [r#"damage="record""#];
    let found = async |proxy: &Proxy| metric(proxy, "ecr_proxy_scrub_found_total", &found).await;
    proxy.restart();
    until("it is found", async || found(&proxy).await == 1.0).await;
    until("it is written anew", async || {
        fs::read(&log).expect("the log") != damaged
    })
    .await;
    for blob in &blobs {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
    stop(&mut proxy);
    proxy.restart();
    until("everything is seen", async || finished(&proxy).await).await;
    assert_eq!(found(&proxy).await, 0.0);
}
