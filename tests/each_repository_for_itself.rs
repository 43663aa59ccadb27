//! What upstream says of a blob in one repository is no answer for another that holds it, although
//! the bytes and the fill are shared.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, Entry, Fault, Gate, Listener, Pattern, Simulator, path_contains,
};
use support::blobs::{metric, until};
use support::stage::{REPOSITORY, Stage, TestBlob, assert_whole};
use support::two::{Two, put, side_by_side};
use support::within;

const MIB: u64 = 1024 * 1024;
const OTHER: &str = "team/other";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The path of `blob` in [`OTHER`], which holds it from now on.
fn in_other(stage: &Stage, blob: &TestBlob) -> String {
    let source = stage.simulator.blob(REPOSITORY, &blob.digest);
    stage
        .simulator
        .put_blob(OTHER, source.expect("the blob of the test"));
    format!("/v2/{OTHER}/blobs/{}", blob.digest)
}

/// Pulls a manifest through [`OTHER`] that gives `blob` a size of its own.
async fn describe_in_other(stage: &Stage, blob: &TestBlob, size: u64) {
    let config = stage.simulator.put_blob(OTHER, "{}");
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{size}}}]}}"#,
        blob.digest
    );
    let digest = stage
        .simulator
        .put_manifest(OTHER, "v1", MANIFEST, text.into_bytes());
    let path = format!("/v2/{OTHER}/manifests/{digest}");
    assert_eq!(stage.proxy.client().get(&path).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_a_no_to_the_repository_that_began_a_fill_is_none_to_the_one_that_joined_it() {
    let stage = Stage::new().await;
    let blob = stage.blob(MIB);
    stage.introduce(&blob).await;
    let path = in_other(&stage, &blob);
    describe_in_other(&stage, &blob, blob.size).await;

    // The manifest still says that the first repository holds it.
    stage.simulator.delete_blob(REPOSITORY, &blob.digest);
    let gate = Gate::new();
    stage
        .simulator
        .faults()
        .on(
            Listener::Registry,
            "GET",
            path_contains(&format!("/v2/{REPOSITORY}/blobs/")),
        )
        .then(Fault::Hold(gate.clone()));
    let (client, gone) = (stage.proxy.client(), blob.path.clone());
    let first = tokio::spawn(async move { client.get(&gone).await });
    within("the fill", gate.arrived(1)).await;
    let client = stage.proxy.client();
    let second = tokio::spawn(async move { client.get(&path).await });
    until("the second request", async || {
        metric(&stage.proxy, "ecr_proxy_requests_active", &[]).await >= 2.0
    })
    .await;
    gate.open();

    let first = first.await.expect("the first answer");
    assert_eq!(
        (first.status, first.error_code().as_str()),
        (404, "BLOB_UNKNOWN")
    );
    let second = second.await.expect("the second answer");
    assert_eq!(second.status, 200, "{}", second.text());
    assert_whole(&second, &blob);
    assert_eq!(stage.bodies(&blob).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_no_to_get_is_a_no_to_head_from_then_on() {
    let stage = Stage::new().await;
    let blob = stage.blob(MIB);
    stage.introduce(&blob).await;
    stage.simulator.delete_blob(REPOSITORY, &blob.digest);
    let client = stage.proxy.client();
    assert_eq!(client.get(&blob.path).await.status, 404);
    assert_eq!(client.head(&blob.path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u04_a_descriptor_that_lies_costs_no_other_repository_its_blob() {
    let stage = Stage::new().await;
    let blob = stage.blob(MIB);
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await);

    let path = in_other(&stage, &blob);
    describe_in_other(&stage, &blob, MIB + 1).await;
    let client = stage.proxy.client();
    assert_eq!(client.get(&path).await.status, 502);
    assert_eq!(client.head(&path).await.status, 502);

    assert!(stage.keeps(&blob).await);
    let again = stage.assert_pulls(&blob).await;
    assert_eq!(again.header("x-cache"), Some("hit"));
    assert_eq!(stage.bodies(&blob).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn u04_a_descriptor_that_lies_costs_no_download_what_came_of_it() {
    const SIZE: u64 = 24 * MIB;
    let mut stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let path = in_other(&stage, &blob);
    let gate = Gate::new();
    stage.spoil_times(&blob, 1, Fault::HoldAfter(SIZE / 2, gate.clone()));
    let (mut connection, _) = stage.begin(&blob).await;
    let half = connection.read_exactly(SIZE / 2 - MIB);
    within("half of it", half).await.expect("half of it");
    // It waits until somebody asks for it.
    let failing = stage.spoil(&blob, [Fault::status(503, "down")]);
    stage.proxy.kill9();
    gate.open();
    stage.proxy.restart();
    let has_failed = |event: &support::Event| event.message() == "fill failed";
    stage.proxy.log_until("a first try", has_failed).await;

    describe_in_other(&stage, &blob, SIZE + 1).await;
    failing.remove();
    // Nothing of what is said of its size has to be sent for.
    let gate = Gate::new();
    let asked = stage.spoil_times(&blob, 1, Fault::HoldAfter(0, gate.clone()));
    assert_eq!(stage.proxy.client().get(&path).await.status, 502);
    gate.open();
    asked.remove();
    assert_whole(&stage.proxy.client().get(&blob.path).await, &blob);
    let sent = stage.bytes_sent(&blob);
    assert!(sent <= SIZE + SIZE / 10, "{sent} of {SIZE} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_not_modified_tells_what_a_get_would_and_no_length() {
    let stage = Stage::new().await;
    let blob = stage.blob(MIB);
    stage.assert_pulls(&blob).await;
    let etag = format!("\"{}\"", blob.digest);
    let client = stage.proxy.client();
    let answer = client
        .get_with(&blob.path, &[("if-none-match", &etag)])
        .await;
    assert_eq!(answer.status, 304);
    assert_eq!(answer.header("etag"), Some(etag.as_str()));
    assert_eq!(answer.header("x-cache"), Some("hit"));
    assert_eq!(answer.header("content-length"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_a_no_to_another_repository_costs_no_download_what_came_of_it() {
    const SIZE: u64 = 24 * MIB;
    let mut stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let path = in_other(&stage, &blob);
    describe_in_other(&stage, &blob, SIZE).await;
    stage.introduce(&blob).await;
    // An orderly end keeps all that is recorded by now.
    stage.proxy.terminate();
    assert!(stage.proxy.wait().success());
    stage.proxy.restart();
    let gate = Gate::new();
    stage.spoil_times(&blob, 1, Fault::HoldAfter(SIZE / 2, gate.clone()));
    let (mut connection, _) = stage.begin(&blob).await;
    let half = connection.read_exactly(SIZE / 2 - MIB);
    within("half of it", half).await.expect("half of it");

    // The manifest still says that the other repository holds it.
    stage.simulator.delete_blob(OTHER, &blob.digest);
    let is_asked = path_contains(&format!("/v2/{REPOSITORY}/blobs/"));
    let faults = stage.simulator.faults();
    let failing = faults
        .on(Listener::Registry, "GET", is_asked)
        .then(Fault::status(503, "down"));
    stage.proxy.kill9();
    gate.open();
    stage.proxy.restart();
    until("the other repository's no", async || {
        stage.proxy.client().get(&path).await.status == 404
    })
    .await;
    failing.remove();
    let pulled = async {
        loop {
            let answer = stage.proxy.client().get(&blob.path).await;
            if answer.status == 200 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_whole(&within("the whole of it", pulled).await, &blob);
    let sent = stage.bytes_sent(&blob);
    assert!(sent <= SIZE + SIZE / 10, "{sent} of {SIZE} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_keeps_no_other_from_sending_the_same_blob() {
    let two = Two::start().await;
    let same = || BlobSource::generated(1, 1 << 20);
    let (layer, _) = put(&two.prod, "app", "v1", same());
    put(&two.base, "app", "v1", same());
    let proxy = side_by_side(two.builder()).start();
    let never = Gate::new();
    let faults = two.prod.faults();
    let held = faults.on(Listener::Storage, "GET", Pattern::any());
    held.then(Fault::Hold(never.clone()));
    let (there, here) = (
        format!("/v2/app/blobs/{layer}"),
        format!("/v2/base/app/blobs/{layer}"),
    );
    let mut first = proxy.client().start("GET", &there, &[]).await;
    never.arrived(1).await;
    let second = proxy.client().get(&here).await;
    assert_eq!(support::store::digest(&second.body), layer);
    // Who began before it has it from there, too.
    let first = first.answer("GET").await.expect("an answer");
    assert_eq!(support::store::digest(&first.body), layer);
    assert_eq!((times_asked(&two.prod), times_asked(&two.base)), (1, 1));
}

/// The next blob that storage is asked for comes with these faults.
fn spoil_once<const N: usize>(simulator: &Simulator, faults: [Fault; N]) {
    let faults_of = simulator.faults();
    let next = faults_of.on(Listener::Storage, "GET", Pattern::any());
    next.times(1).all(faults);
}

/// How often storage was asked for a blob.
fn times_asked(simulator: &Simulator) -> usize {
    let is_asked = |entry: &Entry| entry.listener == Listener::Storage && entry.method == "GET";
    simulator.journal().count(is_asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_is_joined_again_where_the_one_after_it_has_failed() {
    let two = Two::start().await;
    let same = || BlobSource::generated(1, MIB);
    let (layer, _) = put(&two.prod, "app", "v1", same());
    put(&two.base, "app", "v1", same());
    let proxy = side_by_side(two.builder()).start();
    let (there, here) = (
        format!("/v2/app/blobs/{layer}"),
        format!("/v2/base/app/blobs/{layer}"),
    );
    let (head, half) = (Gate::new(), Gate::new());
    let late = Fault::HoldAfter(MIB / 2, half.clone());
    spoil_once(&two.prod, [Fault::Hold(head.clone()), late]);
    spoil_once(&two.base, [Fault::status(404, "gone")]);
    let mut first = proxy.client().start("GET", &there, &[]).await;
    head.arrived(1).await;
    assert_eq!(proxy.client().get(&here).await.status, 502);
    head.open();
    half.arrived(1).await;
    let mut others = Vec::new();
    for path in [&there, &here] {
        let mut other = proxy.client().start("GET", path, &[]).await;
        other.head().await.expect("an answer");
        others.push(other);
    }
    half.open();
    let first = first.answer("GET").await.expect("an answer");
    assert_eq!(support::store::digest(&first.body), layer);
    assert_eq!(times_asked(&two.prod), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_upstream_begins_to_send_late_reaches_those_who_wait_for_another() {
    let two = Two::start().await;
    let same = || BlobSource::generated(1, MIB);
    let (layer, _) = put(&two.prod, "app", "v1", same());
    put(&two.base, "app", "v1", same());
    let proxy = side_by_side(two.builder()).start();
    let (there, here) = (
        format!("/v2/app/blobs/{layer}"),
        format!("/v2/base/app/blobs/{layer}"),
    );
    let (head, never) = (Gate::new(), Gate::new());
    spoil_once(&two.prod, [Fault::Hold(head.clone())]);
    spoil_once(&two.base, [Fault::Hold(never.clone())]);
    let mut first = proxy.client().start("GET", &there, &[]).await;
    head.arrived(1).await;
    let mut second = proxy.client().start("GET", &here, &[]).await;
    never.arrived(1).await;
    head.open();
    for waiting in [&mut first, &mut second] {
        let answer = waiting.answer("GET").await.expect("an answer");
        assert_eq!(support::store::digest(&answer.body), layer);
    }
    let third = proxy.client().get(&there).await;
    assert_eq!(support::store::digest(&third.body), layer);
    assert_eq!((times_asked(&two.prod), times_asked(&two.base)), (1, 1));
    never.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_of_a_blob_that_another_upstream_brought_is_given_up() {
    let two = Two::start().await;
    let same = || BlobSource::generated(1, 4 * MIB);
    let (layer, _) = put(&two.prod, "app", "v1", same());
    put(&two.base, "app", "v1", same());
    let mut proxy = side_by_side(two.builder()).start();
    let (head, half) = (Gate::new(), Gate::new());
    let late = Fault::HoldAfter(2 * MIB, half.clone());
    spoil_once(&two.prod, [Fault::Hold(head.clone()), late]);
    let _first = proxy
        .client()
        .start("GET", &format!("/v2/app/blobs/{layer}"), &[])
        .await;
    head.arrived(1).await;
    let here = format!("/v2/base/app/blobs/{layer}");
    let second = proxy.client().get(&here).await;
    assert_eq!(support::store::digest(&second.body), layer);
    head.open();
    half.arrived(1).await;
    let fills = proxy.cache_dir().join("fills");
    // Bytes of what is under way, of one blob alone.
    let present = || {
        let entries = std::fs::read_dir(&fills).expect("a folder").flatten();
        let parts = entries.filter(|entry| entry.path().extension() != Some("note".as_ref()));
        parts
            .map(|part| part.metadata().map_or(0, |of| of.len()))
            .sum::<u64>()
    };
    until("some of it is on disk", async || present() >= MIB).await;
    // That the other one's was hashed is forgotten, too.
    proxy.kill9();
    half.open();
    proxy.restart();
    until("it is given up", async || {
        support::store::files_below(&fills).is_empty()
    })
    .await;
    let again = proxy.client().get(&here).await;
    assert_eq!(again.header("x-cache"), Some("hit"));
    assert_eq!(times_asked(&two.prod), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_took_the_place_of_one_that_has_ended_is_waited_for_no_longer_than_that() {
    let two = Two::start().await;
    let same = || BlobSource::generated(1, 1 << 20);
    let (layer, _) = put(&two.prod, "app", "v1", same());
    put(&two.base, "app", "v1", same());
    let proxy = side_by_side(two.builder()).start();
    let (there, here) = (
        format!("/v2/app/blobs/{layer}"),
        format!("/v2/base/app/blobs/{layer}"),
    );
    let (first_gate, never) = (Gate::new(), Gate::new());
    let ended = Fault::status(404, "gone");
    spoil_once(&two.prod, [Fault::Hold(first_gate.clone()), ended]);
    spoil_once(&two.base, [Fault::Hold(never.clone())]);
    let mut first = proxy.client().start("GET", &there, &[]).await;
    first_gate.arrived(1).await;
    // Passed over, by one that does not get on, either.
    let mut second = proxy.client().start("GET", &here, &[]).await;
    never.arrived(1).await;
    first_gate.open();
    assert_eq!(first.answer("GET").await.expect("an answer").status, 502);
    let third = proxy.client().get(&there).await;
    assert_eq!(support::store::digest(&third.body), layer);
    let second = second.answer("GET").await.expect("an answer");
    assert_eq!(support::store::digest(&second.body), layer);
}
