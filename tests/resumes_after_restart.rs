//! What was fetched is not fetched again: a download that broke off goes on where it stopped, past a
//! kill of the proxy itself and an outage that outlasts every client's patience.
//!
//! `ECR_PROXY_TEST_RESUMED_MIB` sets the size of the blob that is interrupted ten times, 176 where it is
//! not set.

mod support;

use ecr_proxy::cache::{CacheMetrics, Store, StoreOptions};
use ecr_proxy::simulator::{
    BlobSource, Fault, Gate, Journal, Listener, Outage, Pattern, Simulator,
};
use support::blobs::until;
use support::disk::Injection;
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

/// What was on its way between storage and disk when it broke off, and no more.
fn assert_little_came_twice(simulator: &Simulator) {
    let sent = fetched(simulator.journal());
    assert!(
        sent <= SIZE + SIZE / 10,
        "{sent} of {SIZE} bytes were fetched"
    );
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
    assert_little_came_twice(&simulator);
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
    until("the blob is on disk", async || {
        proxy.assert_blobs_are_sound().contains(&digest)
    })
    .await;
    assert_little_came_twice(&simulator);
}

/// Waits until going on with the download has failed since the last start.
async fn fails_to_go_on(proxy: &Proxy) {
    let has_failed = |event: &support::Event| event.message() == "fill failed";
    proxy.log_until("that it cannot go on", has_failed).await;
}

/// Pulls until the upstream is asked again; fails if more was fetched than was missing.
async fn assert_only_the_rest_is_fetched(proxy: &Proxy, simulator: &Simulator, digest: &str) {
    until("the whole of it", async || {
        let answer = proxy.client().get(&target(digest)).await;
        if answer.status == 200 {
            assert!(answer.clean_end);
            assert_eq!(answer.digest(), digest);
        }
        answer.status == 200
    })
    .await;
    assert_little_came_twice(simulator);
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_what_broke_off_is_still_there_after_a_time_offline() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    proxy.set("cache.offline", true);
    proxy.restart();
    assert_eq!(proxy.client().get(&target(&digest)).await.status, 503);
    proxy.set("cache.offline", false);
    proxy.restart();
    assert_only_the_rest_is_fetched(&proxy, &simulator, &digest).await;
}

/// Whatever is answered first when a download is gone on with, what came of it stays.
async fn costs_no_byte_twice(listener: Listener, fault: Fault) {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    let blob = Pattern::digest(&*digest);
    let faults = simulator.faults();
    let rule = faults.on(listener, "GET", blob).then(fault);
    proxy.restart();
    fails_to_go_on(&proxy).await;
    rule.remove();
    assert_only_the_rest_is_fetched(&proxy, &simulator, &digest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u20_a_page_in_the_registrys_place_costs_no_byte_twice() {
    costs_no_byte_twice(Listener::Registry, Fault::rubbish()).await;
    costs_no_byte_twice(Listener::Storage, Fault::rubbish()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_an_identity_that_is_refused_for_a_while_costs_no_byte_twice() {
    let denied = r#"{"errors":[{"code":"DENIED","message":"not now"}]}"#;
    costs_no_byte_twice(Listener::Registry, Fault::status(403, denied)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_a_storage_that_has_it_not_for_a_while_costs_no_byte_twice() {
    costs_no_byte_twice(Listener::Storage, Fault::status(404, "no such key")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_part_as_nobody_asked_for_it_is_answered_by_beginning_anew() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    let faults = simulator.faults();
    let rule = faults.on(Listener::Storage, "GET", Pattern::digest(&*digest));
    rule.then(Fault::ShiftRange(1));
    proxy.restart();
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest));
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_storage_that_has_no_parts_and_no_word_for_it_is_asked_for_the_whole() {
    let (simulator, digest) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    let of_a_part = Pattern::matching(|entry| entry.header("range").is_some());
    let faults = simulator.faults();
    let rule = faults.on(Listener::Storage, "GET", of_a_part);
    let rule = rule.then(Fault::status(400, "no ranges"));
    proxy.restart();
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest));
    assert!(rule.taken() > 0, "a part was asked for");
    proxy.assert_blobs_are_sound();
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

/// As several connections leave it that were broken off: what comes behind `from` is in the file as well.
fn add_what_lies_behind(proxy: &Proxy, digest: &str, source: &BlobSource, from: u64) {
    let options = StoreOptions::new(proxy.cache_dir());
    let store = Store::open(options, CacheMetrics::default()).expect("the killed proxy's store");
    let digest = digest.parse().expect("a digest");
    let (mut partial, _) = store.resume(&digest).expect("what broke off");
    // As much at a time as is noted at once.
    for at in (from..SIZE).step_by(2 * 1024 * 1024) {
        let piece = source.read(at..SIZE.min(at + 2 * 1024 * 1024));
        partial.write(at, &piece).expect("room on the disk");
    }
    assert_eq!(partial.present().gaps(0..SIZE).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_a_disk_that_fails_while_a_gap_is_filled_costs_no_client_a_byte() {
    let (simulator, digest) = simulator().await;
    let source = BlobSource::generated(11, SIZE);
    let mut proxy = Proxy::before(&simulator);
    let gate = half_way(&proxy, &simulator, &digest).await;
    proxy.kill9();
    gate.open();
    add_what_lies_behind(&proxy, &digest, &source, SIZE / 4 * 3);
    let gate = Gate::new();
    let faults = simulator.faults();
    let rule = faults.on(Listener::Storage, "GET", Pattern::digest(&*digest));
    rule.times(1)
        .then(Fault::HoldAfter(1024 * 1024, gate.clone()));
    proxy.restart();
    let mut client = proxy.client().start("GET", &target(&digest), &[]).await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    // All that was there is hashed by then, and what comes is what is wanted next.
    let begun = HALF + 256 * 1024;
    let mut body = within("the beginning", client.read_exactly(begun)).await;
    let injection = Injection::into(&proxy, ["pwrite64:error=EIO"]);
    gate.open();
    let rest = within("the rest", client.read_exactly(SIZE - begun)).await;
    drop(injection);
    let body = body.as_mut().expect("the beginning");
    body.extend(rest.expect("the rest"));
    assert!(*body == source.read(0..SIZE));
    let sent = fetched(simulator.journal());
    assert!(sent <= SIZE + SIZE / 10, "{sent} of {SIZE}");
}

/// What happens to a transfer.
#[derive(Clone, Copy, Debug)]
enum Interruption {
    /// The connection is reset.
    Reset,
    /// It is closed before its time.
    Closed,
    /// The same, and the address of the content has expired.
    ExpiredAddress,
    /// The same, and so has the token.
    ExpiredToken,
    /// The upstream goes away and comes back.
    UpstreamRestart,
    /// We are killed.
    Kill,
}

const INTERRUPTIONS: [Interruption; 10] = [
    Interruption::Reset,
    Interruption::Kill,
    Interruption::ExpiredAddress,
    Interruption::UpstreamRestart,
    Interruption::Closed,
    Interruption::ExpiredToken,
    Interruption::Kill,
    Interruption::Reset,
    Interruption::UpstreamRestart,
    Interruption::Kill,
];

/// Scripts what storage does: each of its answers brings `part` bytes and is then interrupted, once its
/// gate opens.
fn script(simulator: &Simulator, digest: &str, part: u64) -> Vec<Gate> {
    // By one connection, so that every interruption finds something to interrupt.
    let plain = || Fault::RemoveHeader("etag");
    let answer = || {
        let faults = simulator.faults();
        faults.on(Listener::Storage, "GET", Pattern::digest(digest))
    };
    let gates = INTERRUPTIONS.map(|interruption| {
        let gate = Gate::new();
        let held = Fault::HoldAfter(part, gate.clone());
        let answered = answer().times(1);
        match interruption {
            Interruption::Reset => answered.all([plain(), held, Fault::ResetAfter(part)]),
            Interruption::Kill | Interruption::UpstreamRestart => answered.all([plain(), held]),
            Interruption::Closed | Interruption::ExpiredToken | Interruption::ExpiredAddress => {
                answered.all([plain(), held, Fault::TruncateAfter(part)])
            }
        };
        if matches!(interruption, Interruption::ExpiredAddress) {
            answer().times(1).then(Fault::Expired);
        }
        gate
    });
    answer().then(plain());
    gates.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_c01_ten_interruptions_of_every_kind_cost_a_tenth_at_most() {
    const MIB: u64 = 1024 * 1024;
    let mib = std::env::var("ECR_PROXY_TEST_RESUMED_MIB").ok();
    let size = MIB * mib.map_or(176, |mib| mib.parse().expect("a number of MiB"));
    let source = BlobSource::generated(12, size);
    let simulator = Simulator::builder().start().await.expect("simulator");
    let digest = simulator.put_blob(REPOSITORY, source.clone());
    let part = size / (INTERRUPTIONS.len() as u64 + 1);
    let gates = script(&simulator, &digest, part);
    let mut proxy = Proxy::before(&simulator);

    // What one client reads, until the next kill of ours cuts it off and another one comes.
    let mut reading = None;
    for (number, interruption) in INTERRUPTIONS.into_iter().enumerate() {
        let (mut client, mut at) = match reading.take() {
            Some(reading) => reading,
            None => {
                let mut client = proxy.client().start("GET", &target(&digest), &[]).await;
                assert_eq!(client.head().await.expect("a head").status, 200);
                (client, 0)
            }
        };
        let until = (number as u64 + 1) * part - MIB;
        while at < until {
            let step = (until - at).min(4 * MIB);
            let read = within("the next bytes", client.read_exactly(step)).await;
            let read = read.unwrap_or_else(|error| panic!("{number} {interruption:?}: {error}"));
            assert!(read == source.read(at..at + step), "wrong bytes at {at}");
            at += step;
        }
        within("the interruption", gates[number].arrived(1)).await;
        match interruption {
            Interruption::Reset | Interruption::Closed | Interruption::ExpiredAddress => {}
            Interruption::ExpiredToken => simulator.expire_tokens(),
            Interruption::UpstreamRestart => {
                simulator.outage(Outage::Refused).await;
                simulator.outage(Outage::None).await;
            }
            Interruption::Kill => proxy.kill9(),
        }
        gates[number].open();
        if matches!(interruption, Interruption::Kill) {
            proxy.restart();
        } else {
            reading = Some((client, at));
        }
    }
    let answer = proxy.client().get(&target(&digest)).await;
    assert_eq!((answer.status, answer.digest()), (200, digest));
    assert!(answer.clean_end);
    let sent = fetched(simulator.journal());
    eprintln!(
        "{sent} of {size} bytes were fetched: {:.3} x",
        sent as f64 / size as f64
    );
    assert!(sent <= size + size / 10, "{}", simulator.journal());
    proxy.assert_blobs_are_sound();
}
