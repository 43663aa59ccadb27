//! A bandwidth limit holds, is shared evenly and slows nothing that is cached; what nobody waits for
//! gives way to what somebody does, and ends nevertheless.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ecr_proxy::simulator::{Fault, Gate};
use support::client::Head;
use support::stage::{Stage, TestBlob, assert_whole};
use support::{Connection, within};
use tokio::task::JoinSet;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

async fn limited(key: &str, rate: &str) -> Stage {
    Stage::with(|builder| match key.strip_prefix("upstream.") {
        Some(key) => builder.upstream_key(key, rate),
        None => builder.set(key, rate),
    })
    .await
}

/// What the proxy has taken of bodies, in bytes.
async fn taken(stage: &Stage) -> u64 {
    let metrics = stage.proxy.metrics().await;
    metrics.sum(
        "ecr_proxy_upstream_body_bytes_total",
        &[r#"kind="storage""#],
    ) as u64
}

async fn rest(mut connection: Connection, head: Head, blob: &TestBlob) {
    let (body, clean_end) = connection.body("GET", &head).await;
    assert!(clean_end && body == blob.part(0, blob.size));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_all_upstreams_and_for_one() {
    for key in [
        "cache.max_upstream_bandwidth",
        "upstream.max_upstream_bandwidth",
    ] {
        let stage = limited(key, "1MiB/s").await;
        let blobs = [stage.blob(MIB), stage.blob(MIB + 1)];
        let began = Instant::now();
        let pulls = blobs.iter().map(|blob| stage.assert_pulls(blob));
        futures_util::future::join_all(pulls).await;
        // The first tenth of a second is free.
        assert!(began.elapsed() > Duration::from_millis(1700), "{key}");
        let metrics = stage.proxy.metrics().await;
        let waited = metrics.sum("ecr_proxy_upstream_held_back_seconds_total", &[]);
        assert!(waited > 1.0, "{key}: {waited}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_passes_while_the_line_is_taken() {
    let stage = limited("cache.max_upstream_bandwidth", "1MiB/s").await;
    let cached = stage.blob(512 * KIB);
    stage.assert_pulls(&cached).await;
    assert!(stage.keeps(&cached).await);

    let cold = stage.blob(4 * MIB);
    let (connection, head) = stage.begin(&cold).await;
    for _ in 0..40 {
        stage.assert_pulls(&cached).await;
    }
    // Forty times half a MiB, while not four came by the line.
    let passed = taken(&stage).await - cached.size;
    assert!(passed < cold.size, "{passed}");
    rest(connection, head, &cold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l17_fifty_misses_on_a_thin_line_progress_evenly() {
    // Thin enough that a busy machine is not what decides.
    let stage = limited("cache.max_upstream_bandwidth", "2MiB/s").await;
    let halfway = Arc::new(AtomicUsize::new(0));
    let together = Gate::new();
    let mut pulls = JoinSet::new();
    for number in 0..50 {
        // Many turns each, so that it does not matter who begins some moments ahead.
        let blob = stage.blob(MIB + number);
        stage.spoil(&blob, [Fault::Hold(together.clone())]);
        // One client never has more than half of the fills that there may be at once.
        let client = stage
            .proxy
            .client()
            .at(["127.0.0.1", "127.0.0.2"][number as usize % 2]);
        let halfway = Arc::clone(&halfway);
        pulls.spawn(async move {
            let mut connection = client.start("GET", &blob.path, &[]).await;
            let head = connection.head().await.expect("a head");
            assert_eq!(head.status, 200);
            let mut body = connection.read_exactly(blob.size / 2).await.expect("half");
            halfway.fetch_add(1, Ordering::SeqCst);
            let left = blob.size - blob.size / 2;
            body.extend(connection.read_exactly(left).await.expect("the rest"));
            assert!(body == blob.part(0, blob.size));
            halfway.load(Ordering::SeqCst)
        });
    }
    within("fifty questions", together.arrived(50)).await;
    together.open();
    // Those that come first share what the limit lets through at once.
    let mut at_half = 0;
    for _ in 0..5 {
        let ended = within("the first to end", pulls.join_next()).await;
        at_half = ended.expect("pulls").expect("a pull");
    }
    assert!(
        at_half >= 45,
        "only {at_half} were half through when five had ended"
    );
    while let Some(pull) = within("the others", pulls.join_next()).await {
        pull.expect("a pull");
    }
}

/// A blob that nobody waits for any more, held by the upstream until the gate opens.
async fn abandoned(stage: &Stage, size: u64) -> (TestBlob, Gate) {
    let blob = stage.blob(size);
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(MIB, gate.clone())]);
    let (connection, _) = stage.begin(&blob).await;
    gate.arrived(1).await;
    drop(connection);
    (blob, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_gives_way_and_ends_nevertheless() {
    let stage = Stage::new().await;
    let (background, gate) = abandoned(&stage, 24 * MIB).await;
    let wanted = stage.blob(8 * MIB);
    stage.spoil(&wanted, [Fault::Rate(4 * MIB)]);
    let (mut connection, _) = stage.begin(&wanted).await;
    let mut body = connection.read_exactly(MIB).await.expect("a MiB");
    gate.open();
    body.extend(
        connection
            .read_exactly(wanted.size - MIB)
            .await
            .expect("the rest"),
    );
    assert!(body == wanted.part(0, wanted.size));
    let passed = taken(&stage).await - wanted.size;
    assert!(
        passed < background.size / 2,
        "{passed} bytes that nobody waits for"
    );
    assert!(stage.keeps(&background).await);
    assert_eq!(stage.bodies(&background).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_comes_to_wait_for_gives_way_no_longer() {
    let stage = Stage::new().await;
    let (background, gate) = abandoned(&stage, 24 * MIB).await;
    let other = stage.blob(8 * MIB);
    let never = Gate::new();
    stage.spoil(
        &other,
        [Fault::Rate(MIB), Fault::HoldAfter(7 * MIB, never.clone())],
    );
    let (mut connection, _) = stage.begin(&other).await;
    connection.read_exactly(MIB).await.expect("a MiB");
    gate.open();
    // The other one goes on for seconds; this one ends before it.
    let answer = stage.proxy.client().get(&background.path).await;
    assert_whole(&answer, &background);
    let of_other = stage.bytes_sent(&other);
    assert!(of_other < 7 * MIB, "{of_other}");
    never.open();
}
