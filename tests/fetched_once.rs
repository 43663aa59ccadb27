//! A blob crosses the upstream link once, however many clients ask for it and whenever they leave
//! (promise 3).

mod support;

use std::collections::BTreeMap;

use ecr_proxy::simulator::{BlobSource, End, Fault, Gate};
use support::client::Head;
use support::stage::{REPOSITORY, Stage, TestBlob, assert_whole};
use support::{Answer, Connection, within};
use tokio::task::JoinSet;

const MIB: u64 = 1024 * 1024;

/// Reads what is left of an answer whose head was read.
async fn rest(mut connection: Connection, head: Head) -> Answer {
    let (body, clean_end) = connection.body("GET", &head).await;
    Answer {
        status: head.status,
        head,
        body,
        clean_end,
    }
}

async fn begin_many(stage: &Stage, blob: &TestBlob, count: usize) -> Vec<(Connection, Head)> {
    let mut begun = Vec::new();
    for _ in 0..count {
        begun.push(stage.begin(blob).await);
    }
    begun
}

fn assert_crossed_once(stage: &Stage, blob: &TestBlob) {
    assert_eq!(stage.bodies(blob).len(), 1, "{}", stage.simulator.journal());
    assert_eq!(stage.bytes_sent(blob), blob.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn l01_a_herd_on_one_cold_blob_costs_one_upstream_body() {
    let stage = Stage::new().await;
    let blob = stage.blob(16 * MIB + 1);
    let mut herd = JoinSet::new();
    for number in 0..48 {
        let client = match number % 3 {
            0 => stage.proxy.tls_client(),
            _ => stage.proxy.client(),
        };
        let path = blob.path.clone();
        herd.spawn(async move {
            match number % 6 {
                0 => client.get_h2(&path).await,
                _ => client.get(&path).await,
            }
        });
    }
    let mut outcomes = BTreeMap::new();
    while let Some(answer) = herd.join_next().await {
        let answer = answer.expect("a client");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_whole(&answer, &blob);
        let outcome = answer.header("x-cache").expect("X-Cache").to_owned();
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    assert_crossed_once(&stage, &blob);
    assert_eq!(outcomes.get("miss"), Some(&1), "{outcomes:?}");
    assert!(stage.keeps(&blob).await);
    let again = stage.assert_pulls(&blob).await;
    assert_eq!(again.header("x-cache"), Some("hit"));
    assert_crossed_once(&stage, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_reads_from_the_unfinished_file_at_once() {
    let stage = Stage::new().await;
    let blob = stage.blob(8 * MIB);
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(5 * MIB, gate.clone())]);
    let (mut first, head) = stage.begin(&blob).await;
    assert_eq!(head.header("x-cache"), Some("miss"));
    let begun = first.read_exactly(5 * MIB).await.expect("what has arrived");
    assert!(begun == blob.part(0, 5 * MIB));
    gate.arrived(1).await;

    let (mut second, head) = stage.begin(&blob).await;
    assert_eq!(head.header("x-cache"), Some("joined"));
    let joined = second
        .read_exactly(5 * MIB)
        .await
        .expect("what has arrived");
    assert!(joined == blob.part(0, 5 * MIB));
    assert_eq!(stage.bodies(&blob)[0].end, End::InFlight);

    gate.open();
    for mut connection in [first, second] {
        let end = connection.read_exactly(3 * MIB).await.expect("the rest");
        assert!(end == blob.part(5 * MIB, 8 * MIB));
    }
    assert_crossed_once(&stage, &blob);
}

/// The client that began the fill leaves once it has read `read` bytes, while `held` bytes have come.
async fn leader_leaves(held: u64, read: u64) {
    let stage = Stage::new().await;
    let blob = stage.blob(8 * MIB);
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(held, gate.clone())]);
    let (mut leader, head) = stage.begin(&blob).await;
    assert_eq!(head.header("x-cache"), Some("miss"));
    let followers = begin_many(&stage, &blob, 20).await;
    for (_, head) in &followers {
        assert_eq!(head.header("x-cache"), Some("joined"));
    }
    leader.read_exactly(read).await.expect("what has arrived");
    drop(leader);
    let left = stage.proxy.log_until("the leader's end", |event| {
        event.message() == "request"
            && event.field("cache.outcome").as_deref() == Some("miss")
            && event.field("end").as_deref() == Some("aborted")
    });
    left.await;
    gate.open();
    for (connection, head) in followers {
        assert_whole(&rest(connection, head).await, &blob);
    }
    assert_crossed_once(&stage, &blob);
    assert!(stage.keeps(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_the_leader_leaves_at_the_start_and_its_followers_finish() {
    leader_leaves(0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_the_leader_leaves_half_way_and_its_followers_finish() {
    leader_leaves(4 * MIB, 4 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c07_the_leader_leaves_just_before_the_end_and_its_followers_finish() {
    let nearly = 8 * MIB - 8 * MIB / 100;
    leader_leaves(nearly, nearly).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_another_repository_joins_the_fill_only_after_its_own_proof() {
    let stage = Stage::new().await;
    let blob = stage.blob(2 * MIB);
    let other = BlobSource::generated(blob.size, blob.size);
    assert_eq!(stage.simulator.put_blob("other/app", other), blob.digest);
    stage.simulator.create_repository("third/app");
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(MIB, gate.clone())]);
    let (first, first_head) = stage.begin(&blob).await;
    gate.arrived(1).await;

    let elsewhere = |repository: &str| blob.path.replace(REPOSITORY, repository);
    let client = stage.proxy.client();
    let refused = client.get(&elsewhere("third/app")).await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (404, "BLOB_UNKNOWN"),
        "a repository that does not hold the blob was served from another's fill"
    );
    let mut second = client.start("GET", &elsewhere("other/app"), &[]).await;
    let second_head = second.head().await.expect("a head");
    assert_eq!(second_head.header("x-cache"), Some("joined"));
    let proofs = |repository: &str| {
        let path = elsewhere(repository);
        stage.simulator.journal().count(|entry| entry.path == path)
    };
    assert_eq!((proofs("other/app"), proofs("third/app")), (1, 1));

    gate.open();
    assert_whole(&rest(first, first_head).await, &blob);
    assert_whole(&rest(second, second_head).await, &blob);
    assert_crossed_once(&stage, &blob);
    // Whole on disk it is still nobody's who cannot prove it.
    assert!(stage.keeps(&blob).await);
    assert_eq!(client.get(&elsewhere("third/app")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u23_a_slow_reader_keeps_nobody_waiting() {
    let stage = Stage::new().await;
    // More than the sockets between would hold for a client that does not read.
    let blob = stage.blob(32 * MIB);
    let (slow, slow_head) = stage.begin(&blob).await;
    let fast = within("the fast reader", stage.assert_pulls(&blob)).await;
    assert!(matches!(fast.header("x-cache"), Some("joined" | "hit")));
    assert!(stage.keeps(&blob).await, "the fill waited for the slow one");
    assert_whole(&rest(slow, slow_head).await, &blob);
    assert_crossed_once(&stage, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn u23_all_readers_leave_and_the_fill_completes() {
    let stage = Stage::new().await;
    let blob = stage.blob(8 * MIB);
    let gate = Gate::new();
    stage.spoil(&blob, [Fault::HoldAfter(MIB, gate.clone())]);
    let readers = begin_many(&stage, &blob, 3).await;
    gate.arrived(1).await;
    drop(readers);
    within("the readers' end", async {
        let left = |stage: &Stage| {
            let aborted =
                |event: &&support::Event| event.field("end").as_deref() == Some("aborted");
            stage.proxy.logs().iter().filter(aborted).count()
        };
        while left(&stage) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.open();
    assert!(stage.keeps(&blob).await);
    let again = stage.assert_pulls(&blob).await;
    assert_eq!(again.header("x-cache"), Some("hit"));
    assert_crossed_once(&stage, &blob);
}
