//! A broken upstream transfer goes on where it broke, past dropped links, expired addresses and
//! expired tokens; different content is never spliced (promise 5).

mod support;

use ecr_proxy::simulator::{ExpiredForm, Fault, Gate, Listener, Pattern};
use support::stage::{REPOSITORY, Stage, TestBlob, assert_never_wrong, assert_whole};

const MIB: u64 = 1024 * 1024;

/// What is resumed: large enough that a resume begins in the middle.
const SIZE: u64 = 4 * MIB;

fn ranges(stage: &Stage, blob: &TestBlob) -> Vec<Option<String>> {
    let bodies = stage.bodies(blob);
    let ranges = bodies.iter().map(|body| body.header("range"));
    ranges.map(|range| range.map(str::to_owned)).collect()
}

/// The next body of `blob` is reset after `bytes`, once the gate opens: what the proxy has read by then
/// is not lost with the connection.
fn reset_after(stage: &Stage, blob: &TestBlob, bytes: u64) -> Gate {
    let gate = Gate::new();
    let faults = stage.simulator.faults();
    faults
        .on(Listener::Storage, "GET", Pattern::digest(&blob.digest))
        .times(1)
        .all([
            Fault::HoldAfter(bytes, gate.clone()),
            Fault::ResetAfter(bytes),
        ]);
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_resets_are_resumed_by_range_and_the_client_does_not_notice() {
    let stage = Stage::new().await;
    let blob = stage.blob(10 * MIB);
    let (first, second) = (3 * MIB, 8 * MIB);
    let first_reset = reset_after(&stage, &blob, first);
    let second_reset = reset_after(&stage, &blob, second - first);

    let (mut connection, _) = stage.begin(&blob).await;
    let mut body = connection.read_exactly(first).await.expect("30 %");
    first_reset.open();
    body.extend(connection.read_exactly(second - first).await.expect("80 %"));
    second_reset.open();
    let left = blob.size - second;
    body.extend(connection.read_exactly(left).await.expect("the rest"));
    assert!(body == blob.part(0, blob.size));

    assert_eq!(
        ranges(&stage, &blob),
        [
            None,
            Some(format!("bytes={first}-")),
            Some(format!("bytes={second}-"))
        ]
    );
    assert_eq!(stage.bytes_sent(&blob), blob.size);
    assert!(stage.keeps(&blob).await);
    let metrics = stage.proxy.metrics().await;
    let resumed = metrics.sum("ecr_proxy_upstream_resumes_total", &[r#"result="resumed""#]);
    assert_eq!(resumed, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_everybody_who_follows_is_carried_over_the_break() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let gate = reset_after(&stage, &blob, MIB);
    let mut begun = Vec::new();
    for _ in 0..5 {
        begun.push(stage.begin(&blob).await);
    }
    gate.arrived(1).await;
    gate.open();
    for (mut connection, head) in begun {
        let (body, clean_end) = connection.body("GET", &head).await;
        assert!(clean_end);
        assert!(body == blob.part(0, blob.size));
    }
    assert_eq!(stage.bodies(&blob).len(), 2);
    assert!(stage.keeps(&blob).await);
}

/// The transfer breaks half way, and every attempt to go on is answered with this lie.
async fn lying_resume(stage: &Stage, salt: u64, lies: Vec<Fault>) {
    let told = format!("{lies:?}");
    let blob = stage.blob(SIZE + salt);
    let of_it = || Pattern::digest(&blob.digest);
    let faults = stage.simulator.faults();
    faults
        .on(Listener::Storage, "GET", of_it())
        .times(1)
        .then(Fault::TruncateAfter(SIZE / 2));
    let lie = faults.on(Listener::Storage, "GET", of_it()).all(lies);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_eq!(answer.status, 200, "{told}: {}", answer.text());
    assert_never_wrong(&answer, &blob);
    assert!(lie.taken() > 0, "{told}: it was never resumed");
    assert!(
        answer.clean_end || !stage.keeps(&blob).await,
        "{told}: aborted and yet kept"
    );
    let received = answer.body.len() as u64;
    let right = blob.part(0, received);
    // What the client has must be good for its own resume, but for content that looks the same.
    if !told.contains("OtherContent") {
        assert!(
            answer.body == right,
            "{told}: spliced within {received} bytes"
        );
    }
    lie.remove();
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_resume_answered_with_the_whole_is_never_spliced() {
    let stage = Stage::new().await;
    lying_resume(&stage, 0, vec![Fault::IgnoreRange]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_resume_at_another_offset_is_never_spliced() {
    let stage = Stage::new().await;
    lying_resume(&stage, 0, vec![Fault::ShiftRange(1)]).await;
    lying_resume(&stage, 1, vec![Fault::ShiftRange(65_536)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_resume_whose_content_range_lies_is_never_spliced() {
    let stage = Stage::new().await;
    for (salt, lie) in [
        format!("bytes 0-{}/{SIZE}", SIZE - 1),
        format!("bytes {}-{}/{}", SIZE / 2, SIZE + 1, SIZE + 2),
        format!("bytes */{SIZE}"),
        "bytes 5-1/2".to_owned(),
        format!("bytes {}-{}/*", SIZE / 2, SIZE / 2 + 9),
        "lies".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        lying_resume(
            &stage,
            salt as u64,
            vec![Fault::SetHeader("content-range", lie)],
        )
        .await;
    }
    lying_resume(&stage, 100, vec![Fault::RemoveHeader("content-range")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_resume_of_changed_content_is_never_spliced() {
    let stage = Stage::new().await;
    let changed = || Fault::SetHeader("etag", "\"another\"".to_owned());
    lying_resume(&stage, 0, vec![changed()]).await;
    lying_resume(&stage, 1, vec![changed(), Fault::OtherContent(7)]).await;
    let metrics = stage.proxy.metrics().await;
    let changed = metrics.sum("ecr_proxy_upstream_resumes_total", &[r#"result="changed""#]);
    assert_eq!(changed, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_other_content_under_the_same_etag_is_found_by_the_digest() {
    let stage = Stage::new().await;
    lying_resume(&stage, 0, vec![Fault::OtherContent(8)]).await;
    let metrics = stage.proxy.metrics().await;
    assert!(metrics.sum("ecr_proxy_digest_mismatch_total", &[]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_a_resume_that_is_refused_or_rubbish_is_never_spliced() {
    let stage = Stage::new().await;
    for (salt, lie) in [
        Fault::status(416, ""),
        Fault::status(404, "gone"),
        Fault::rubbish(),
        Fault::Gzip,
    ]
    .into_iter()
    .enumerate()
    {
        lying_resume(&stage, salt as u64, vec![lie]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u10_an_address_that_expired_before_its_first_use_is_asked_for_anew() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    stage.spoil_times(&blob, 1, Fault::Expired);
    stage.assert_pulls(&blob).await;
    assert!(stage.keeps(&blob).await);
    assert_eq!(stage.bodies(&blob).len(), 2);
    let metrics = stage.proxy.metrics().await;
    assert_eq!(metrics.sum("ecr_proxy_redirect_renewals_total", &[]), 1.0);
    stage
        .proxy
        .assert_no_secrets(&stage.simulator.secrets())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u10_an_address_that_expired_when_the_transfer_broke_is_asked_for_anew() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let reset = reset_after(&stage, &blob, SIZE / 2);
    let (mut connection, _) = stage.begin(&blob).await;
    let mut body = connection.read_exactly(SIZE / 2).await.expect("half");
    stage.simulator.expire_urls();
    stage.spoil_times(&blob, 1, Fault::Expired);
    reset.open();
    body.extend(connection.read_exactly(SIZE / 2).await.expect("the rest"));
    assert!(body == blob.part(0, SIZE));
    assert!(stage.keeps(&blob).await);
    let statuses: Vec<_> = stage.bodies(&blob).iter().map(|body| body.status).collect();
    assert_eq!(statuses, [Some(200), Some(403), Some(206)]);
    let metrics = stage.proxy.metrics().await;
    assert_eq!(metrics.sum("ecr_proxy_redirect_renewals_total", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u10_a_storage_that_refuses_every_address_is_502_after_few_renewals() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    let rule = stage.spoil(&blob, [Fault::Expired]);
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(
        stage.bodies(&blob).len() <= 3,
        "{}",
        stage.simulator.journal()
    );
    assert!(!stage.keeps(&blob).await);
    rule.remove();
    stage.assert_pulls(&blob).await;
}

/// How often the proxy asked for a token.
fn tokens(stage: &Stage) -> usize {
    let journal = stage.simulator.journal();
    journal.count(|entry| entry.operation == "GetAuthorizationToken")
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_token_that_expires_mid_pull_is_renewed_once_for_all() {
    for form in [ExpiredForm::Json, ExpiredForm::Text] {
        let stage = Stage::new().await;
        stage.simulator.set_expired_form(form);
        let broken = stage.blob(SIZE);
        let others: Vec<TestBlob> = (1..5).map(|number| stage.blob(SIZE + number)).collect();
        let gate = reset_after(&stage, &broken, MIB);
        let (mut connection, head) = stage.begin(&broken).await;
        gate.arrived(1).await;
        let before = tokens(&stage);
        stage.simulator.expire_tokens();
        gate.open();
        let pulls = others.iter().map(|blob| stage.assert_pulls(blob));
        futures_util::future::join_all(pulls).await;
        let (body, clean_end) = connection.body("GET", &head).await;
        assert!(clean_end && body == broken.part(0, broken.size));
        assert_eq!(tokens(&stage) - before, 1, "{}", stage.simulator.journal());
        for blob in others.iter().chain([&broken]) {
            assert!(stage.keeps(blob).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_token_refused_as_unknown_is_renewed_once() {
    for refusal in [401, 400] {
        let stage = Stage::new().await;
        let blob = stage.blob(SIZE);
        stage.assert_pulls(&stage.blob(1)).await;
        let before = tokens(&stage);
        stage
            .simulator
            .faults()
            .on(Listener::Registry, "GET", Pattern::digest(&blob.digest))
            .times(1)
            .then(Fault::status(refusal, "Not Authorized\n"));
        let answer = stage.proxy.client().get(&blob.path).await;
        assert_eq!(answer.status, 200, "{refusal}: {}", answer.text());
        assert_whole(&answer, &blob);
        assert_eq!(tokens(&stage) - before, 1, "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_refusal_that_is_no_expiry_is_final() {
    let stage = Stage::new().await;
    let blob = stage.blob(SIZE);
    stage.assert_pulls(&stage.blob(1)).await;
    let before = tokens(&stage);
    let refused = r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:sts::000042290000:assumed-role/x is not authorized to perform: ecr:BatchGetImage"}]}"#;
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "GET", Pattern::digest(&blob.digest))
        .then(Fault::status(403, refused));
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (403, "DENIED")
    );
    assert!(!answer.text().contains("000042290000") && !answer.text().contains("arn:"));
    assert_eq!((rule.taken(), tokens(&stage)), (1, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn u11_a_token_that_is_never_taken_is_not_looped() {
    let stage = Stage::new().await;
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "*", "/manifests/")
        .then(Fault::Expired);
    let answer = stage.proxy.client().get(&path).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert!(rule.taken() <= 2, "{}", stage.simulator.journal());
}
