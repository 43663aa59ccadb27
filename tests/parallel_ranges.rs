//! Where each connection is slower than the line, a big blob comes by several at once, and by one where
//! they do not help; every byte crosses the link once, and different content is never spliced.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{End, Fault, Gate, Listener, Pattern, RuleHandle};
use support::blobs::until;
use support::disk::Injection;
use support::stage::{Stage, TestBlob, assert_never_wrong, assert_whole};
use support::{Connection, Stopwatch, within};

const MIB: u64 = 1024 * 1024;

/// Large enough to be worth several connections, at this rate for each.
const SIZE: u64 = 64 * MIB;
const RATE: u64 = 8 * MIB;

/// A blob each of whose connections is limited.
async fn limited(stage: &Stage) -> TestBlob {
    let blob = stage.blob(SIZE);
    stage.spoil(&blob, [Fault::Rate(RATE)]);
    blob
}

/// All connections but the first are answered so.
fn others(stage: &Stage, blob: &TestBlob, faults: impl IntoIterator<Item = Fault>) -> RuleHandle {
    let pattern = || Pattern::digest(&blob.digest);
    let script = stage.simulator.faults();
    let first = script.on(Listener::Storage, "GET", pattern()).times(1);
    first.then(Fault::Rate(RATE));
    script.on(Listener::Storage, "GET", pattern()).all(faults)
}

fn under_way(stage: &Stage, blob: &TestBlob) -> usize {
    let is_open = |end: &End| matches!(end, End::InFlight);
    let bodies = stage.bodies(blob);
    bodies.iter().filter(|body| is_open(&body.end)).count()
}

/// Few bytes came twice: what was on its way when a connection was not needed any more.
fn assert_crossed_once(stage: &Stage, blob: &TestBlob) {
    let sent = stage.bytes_sent(blob);
    assert!(
        sent <= blob.size + blob.size / 20,
        "{sent} of {}: {}",
        blob.size,
        stage.simulator.journal()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_each_connection_are_met_with_several() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    // Slow enough that a busy machine is not what decides.
    stage.spoil(&blob, [Fault::Rate(RATE / 2)]);
    let began = Stopwatch::start();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, blob) = (stage.proxy.client(), blob.clone());
        readers.spawn(async move { assert_whole(&client.get(&blob.path).await, &blob) });
    }
    while let Some(reader) = within("the readers", readers.join_next()).await {
        reader.expect("a reader");
    }
    let alone = Duration::from_secs(SIZE / (RATE / 2));
    assert!(began.took() < alone * 3 / 4, "{:?}", began.took());
    assert!(
        stage.bodies(&blob).len() >= 4,
        "{}",
        stage.simulator.journal()
    );
    assert_crossed_once(&stage, &blob);
    assert!(stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_line_is_the_limit_one_does() {
    let stage = Stage::new().await;
    let faults = stage.simulator.faults();
    faults.total_rate(Listener::Storage, Some(16 * MIB));
    let blob = stage.blob(SIZE);
    let began = Stopwatch::start();
    stage.assert_pulls(&blob).await;
    let took = began.took();
    assert!(took < Duration::from_secs(6), "{took:?}");
    // One trial, whose connection goes on where the first one ended.
    assert!(
        stage.bodies(&blob).len() <= 3,
        "{}",
        stage.simulator.journal()
    );
    assert_crossed_once(&stage, &blob);
    assert!(stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_our_own_is_not_shared_by_more() {
    let stage = Stage::with(|builder| builder.set("cache.max_upstream_bandwidth", "12MiB/s")).await;
    let blob = stage.blob(SIZE);
    stage.assert_pulls(&blob).await;
    assert_eq!(
        stage.bodies(&blob).len(),
        1,
        "{}",
        stage.simulator.journal()
    );
    assert_crossed_once(&stage, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_comes_by_one() {
    let stage = Stage::new().await;
    let blob = limited(&stage).await;
    let (connection, _) = stage.begin(&blob).await;
    drop(connection);
    assert!(stage.keeps(&blob).await);
    assert_eq!(
        stage.bodies(&blob).len(),
        1,
        "{}",
        stage.simulator.journal()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_ends_no_fill_that_comes_by_several() {
    let stage = Stage::new().await;
    let blob = limited(&stage).await;
    let (connection, _) = stage.begin(&blob).await;
    several(&stage, &blob).await;
    drop(connection);
    assert!(stage.keeps(&blob).await);
    assert_crossed_once(&stage, &blob);
}

async fn several(stage: &Stage, blob: &TestBlob) {
    until("several connections", async || under_way(stage, blob) >= 2).await;
}

/// Whatever other connections answer, the blob comes whole by the first.
async fn goes_on_by_the_first(faults: Vec<Fault>) {
    let told = format!("{faults:?}");
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let spoiled = others(&stage, &blob, faults);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_eq!(answer.status, 200, "{told}: {}", answer.text());
    assert_whole(&answer, &blob);
    assert!(spoiled.taken() > 0, "{told}: nothing else was tried");
    assert!(spoiled.taken() <= 12, "{told}: {}", spoiled.taken());
    assert!(stage.keeps(&blob).await, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_storage_that_throttles_is_asked_no_more() {
    let slow_down = r#"<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>"#;
    goes_on_by_the_first(vec![Fault::status(503, slow_down)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_serves_by_one() {
    goes_on_by_the_first(vec![Fault::IgnoreRange]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_another_offset_or_other_content_is_not_joined() {
    goes_on_by_the_first(vec![Fault::ShiftRange(1)]).await;
    goes_on_by_the_first(vec![
        Fault::SetHeader("etag", "\"another\"".to_owned()),
        Fault::OtherContent(7),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_past_where_another_was_to_begin_that_never_does() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let gate = Gate::new();
    let held = others(&stage, &blob, [Fault::HoldAfter(0, gate.clone())]);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_whole(&answer, &blob);
    assert!(held.taken() > 0, "nothing else was tried");
    assert!(stage.keeps(&blob).await);
    assert_crossed_once(&stage, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_names_no_version_serves_by_one() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    stage.spoil(&blob, [Fault::Rate(2 * RATE), Fault::RemoveHeader("etag")]);
    stage.assert_pulls(&blob).await;
    assert_eq!(
        stage.bodies(&blob).len(),
        1,
        "{}",
        stage.simulator.journal()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_connection_that_lies_under_the_same_version_is_found_by_the_digest() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let lie = others(&stage, &blob, [Fault::OtherContent(7), Fault::Rate(RATE)]);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_never_wrong(&answer, &blob);
    assert!(lie.taken() > 0, "it was never asked");
    assert!(!stage.keeps(&blob).await, "aborted and yet kept");
    lie.remove();
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await);
}

/// Begins a blob and waits until it comes by several connections.
async fn begun(stage: &Stage) -> (TestBlob, Connection, Vec<u8>) {
    let blob = limited(stage).await;
    let (mut connection, head) = stage.begin(&blob).await;
    assert_eq!(head.status, 200);
    several(stage, &blob).await;
    let body = connection.read_exactly(SIZE / 3).await.expect("a third");
    (blob, connection, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_a_kill_while_it_comes_by_several_costs_few_bytes_twice() {
    let mut stage = Stage::new().await;
    let (blob, connection, _) = begun(&stage).await;
    stage.proxy.kill9();
    drop(connection);
    stage.proxy.restart();
    stage.assert_pulls(&blob).await;
    let sent = stage.bytes_sent(&blob);
    assert!(
        sent <= blob.size + blob.size * 3 / 10,
        "{sent}: {}",
        stage.simulator.journal()
    );
    assert!(stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_a_disk_that_fails_while_it_comes_by_several_costs_no_client_a_byte() {
    let stage = Stage::new().await;
    let (blob, mut connection, mut body) = begun(&stage).await;
    let injection = Injection::into(&stage.proxy, ["pwrite64:error=EIO:when=3+"]);
    body.extend(
        connection
            .read_exactly(SIZE - SIZE / 3)
            .await
            .expect("the rest"),
    );
    drop(injection);
    assert!(body == blob.part(0, SIZE));
    assert!(!stage.keeps(&blob).await, "there was no disk");
}
