//! Whatever the upstream does wrong stays between it and the proxy: clients get what is right, or one
//! true error in good time, and nothing that failed is remembered longer than it lasts.

mod support;

use std::time::{Duration, Instant};

use ecr_proxy::simulator::{Fault, Listener, Outage, Pattern};
use futures_util::future::join_all;
use support::blobs::{metric, until};
use support::stage::{REPOSITORY, Stage, TestBlob};
use support::{Answer, Stopwatch, within};

const KIB: u64 = 1024;

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}

/// How many requests for manifests reached the registry.
fn manifest_requests(stage: &Stage, method: &str) -> usize {
    stage.simulator.journal().count(|entry| {
        entry.listener == Listener::Registry
            && entry.method == method
            && entry.path.contains("/manifests/")
    })
}

fn assert_waiting_helps(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(!answer.error_code().is_empty());
    let seconds = answer.header("retry-after").expect("Retry-After");
    assert!(seconds.parse::<u64>().is_ok(), "{seconds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn u05_a_malformed_answer_is_502_and_its_connection_is_not_used_again() {
    let stage = Stage::new().await;
    let layer = stage.blob(1000);
    stage.manifest_of("v1", &layer);
    for raw in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n",
        "this is no HTTP at all\r\n\r\n",
    ] {
        let rule = stage
            .simulator
            .faults()
            .on(Listener::Registry, "*", "/manifests/")
            .then(Fault::Raw(raw.into()));
        let answer = stage.proxy.client().get(&manifest_path("v1")).await;
        assert_eq!(answer.status, 502, "{raw:?}: {}", answer.text());
        rule.remove();
        let digest = stage.manifest_of("v1", &layer);
        let answer = stage.proxy.client().get(&manifest_path(&digest)).await;
        assert_eq!(answer.status, 200, "after {raw:?}: {}", answer.text());
        stage.simulator.faults().clear();
        // A record of it would answer for the next.
        stage.simulator.delete_manifest(REPOSITORY, "v1");
        let other = stage.blob(1001 + raw.len() as u64);
        stage.manifest_of("v1", &other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u05_floods_of_headers_and_of_interim_answers_end_and_take_no_memory() {
    const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let stage = Stage::new().await;
    let layer = stage.blob(1000);
    let digest = stage.manifest_of("v1", &layer);
    let (_, manifest) = stage
        .simulator
        .manifest(REPOSITORY, "v1")
        .expect("just pushed");
    let ask = async |raw: Vec<u8>| {
        let rule = stage
            .simulator
            .faults()
            .on(Listener::Registry, "*", "/manifests/")
            .then(Fault::Raw(raw.into()));
        let before = stage.proxy.memory();
        let answer = stage.proxy.client().get(&manifest_path(&digest)).await;
        let grown = stage.proxy.memory().saturating_sub(before);
        rule.remove();
        assert!(grown < 16 * KIB * KIB, "{grown} bytes");
        answer
    };
    for (what, raw) in [
        (
            "a header of a MiB",
            format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)),
        ),
        (
            "many headers",
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(20_000)),
        ),
        ("nothing but interim answers", INTERIM.repeat(1 << 20)),
    ] {
        let answer = ask(raw.into_bytes()).await;
        assert!(
            matches!(answer.status, 502 | 503),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
    }
    // A few are no fault (RFC 9110, 15.2).
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        manifest.len()
    );
    let few = [INTERIM.repeat(3).as_bytes(), head.as_bytes(), &*manifest].concat();
    assert_eq!(ask(few).await.status, 200);
    stage.assert_pulls(&layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u06_a_second_answer_on_a_kept_connection_reaches_nobody() {
    let stage = Stage::new().await;
    let evil = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: 4\r\n\r\nevil";
    let layers: Vec<TestBlob> = (0..5).map(|number| stage.blob(1000 + number)).collect();
    for listener in [Listener::Registry, Listener::Storage] {
        stage
            .simulator
            .faults()
            .on(listener, "*", Pattern::any())
            .then(Fault::Extra(evil.into()));
    }
    for (number, layer) in layers.iter().enumerate() {
        let digest = stage.manifest_of(&format!("v{number}"), layer);
        for reference in [&*digest, &format!("v{number}")] {
            // Where it crosses with a question it is taken for the answer, and refused.
            until("the right answer", async || {
                let answer = stage.proxy.client().get(&manifest_path(reference)).await;
                let is_right = (answer.status, answer.digest()) == (200, digest.clone());
                assert!(is_right || answer.status == 502, "{}", answer.text());
                is_right
            })
            .await;
        }
        stage.assert_pulls(layer).await;
    }
    stage.until_idle().await;
    assert_eq!(stage.proxy.assert_blobs_are_sound().len(), layers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_throttling_for_a_moment_is_absorbed() {
    let stage = Stage::new().await;
    let digest = stage.manifest_of("v1", &stage.blob(1000));
    for (number, retry_after) in [Some("1"), Some("-5"), Some("soon"), None]
        .into_iter()
        .enumerate()
    {
        let rule = stage
            .simulator
            .faults()
            .on(Listener::Registry, "*", "/manifests/absorbed")
            .times(1)
            .then(Fault::throttled(retry_after));
        let tag = format!("absorbed{number}");
        stage.simulator.tag(REPOSITORY, &tag, &digest);
        let answer = stage.proxy.client().get(&manifest_path(&tag)).await;
        assert_eq!(answer.status, 200, "{retry_after:?}: {}", answer.text());
        assert_eq!(rule.taken(), 1, "{retry_after:?}");
    }
    let metrics = stage.proxy.metrics().await;
    assert_eq!(metrics.sum("ecr_proxy_upstream_throttled_total", &[]), 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_quota_is_kept_to_so_that_no_request_has_to_be_refused() {
    let quotas = vec!["GetDownloadUrlForLayer=2"];
    let stage = Stage::with(|builder| builder.upstream_key("requests_per_second", quotas)).await;
    let cold: Vec<TestBlob> = (0..8).map(|number| stage.blob(1000 + number)).collect();
    let client = stage.proxy.client();
    let began = Instant::now();
    for answer in join_all(cold.iter().map(|blob| client.get(&blob.path))).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Two at once, and then one every half a second.
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let metrics = stage.proxy.metrics().await;
    assert!(metrics.sum("ecr_proxy_upstream_paced_total", &[]) >= 1.0);
    // What is cached waits for nothing.
    assert!(stage.keeps(&cold[0]).await);
    let cached = client.get(&cold[0].path).await;
    assert_eq!(cached.header("x-cache"), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_lasting_throttling_is_503_at_once_and_leaves_upstream_in_peace() {
    let stage = Stage::new().await;
    let cached = stage.blob(2000);
    stage.assert_pulls(&cached).await;
    assert!(stage.keeps(&cached).await);
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "*", Pattern::any())
        .then(Fault::throttled(Some("1000000000")));
    let cold: Vec<TestBlob> = (0..40).map(|number| stage.blob(3000 + number)).collect();
    let client = stage.proxy.client();
    let began = Stopwatch::start();
    for answer in join_all(cold.iter().map(|blob| client.get(&blob.path))).await {
        assert_waiting_helps(&answer, 503);
        let seconds: u64 = answer
            .header("retry-after")
            .expect("just seen")
            .parse()
            .expect("seconds");
        assert!(
            seconds <= 60,
            "an absurd Retry-After was passed on: {seconds}"
        );
    }
    assert!(began.took() < Duration::from_secs(15));
    // Those that were on their way together; then silence.
    let noticed = rule.taken();
    assert!(noticed <= 40, "{noticed}");
    for blob in &cold[..10] {
        assert_waiting_helps(&client.get(&blob.path).await, 503);
    }
    assert_eq!(rule.taken(), noticed, "asked in spite of Retry-After");
    let hit = stage.assert_pulls(&cached).await;
    assert_eq!(hit.header("x-cache"), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_a_failure_for_a_moment_is_not_seen() {
    let stage = Stage::new().await;
    for (number, status) in [500, 502, 503, 504, 507, 520, 529].into_iter().enumerate() {
        for listener in [Listener::Registry, Listener::Storage] {
            let blob =
                stage.blob(4000 + 2 * number as u64 + u64::from(listener == Listener::Storage));
            stage
                .simulator
                .faults()
                .on(listener, "GET", Pattern::digest(&blob.digest))
                .times(1)
                .then(Fault::status(status, "oops"));
            stage.assert_pulls(&blob).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_o07_a_failing_upstream_is_asked_a_few_times_and_not_remembered() {
    let stage = Stage::new().await;
    let blob = stage.blob(5000);
    let of_it = Pattern::digest(&blob.digest);
    let faults = stage.simulator.faults();
    let rule = faults
        .on(Listener::Registry, "GET", of_it)
        .then(Fault::status(
            500,
            "arn:aws:ecr:us-west-2:000042290000 fails",
        ));
    let answer = stage.proxy.client().get(&blob.path).await;
    assert_waiting_helps(&answer, 503);
    assert!(!answer.text().contains("000042290000"));
    assert!(rule.taken() <= 3, "{}", rule.taken());
    rule.remove();
    stage.assert_pulls(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_whatever_number_a_balancer_has_for_it_a_failure_is_one() {
    let stage = Stage::with(|builder| builder.set("cache.tag_ttl", "0s")).await;
    let named = stage.manifest_of("v1", &stage.blob(1000));
    let client = stage.proxy.client();
    assert_eq!(client.get(&manifest_path("v1")).await.digest(), named);
    for status in [507, 520, 522, 530] {
        let faults = stage.simulator.faults();
        let rule = faults
            .on(Listener::Registry, "HEAD", "/manifests/")
            .then(Fault::status(status, "oops"));
        let stale = client.get(&manifest_path("v1")).await;
        let told = (stale.status, stale.header("x-cache"));
        assert_eq!(told, (200, Some("stale")), "{status}");
        rule.remove();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_a_storm_of_failures_costs_upstream_little_more_than_the_requests() {
    let stage = Stage::new().await;
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "GET", "/blobs/")
        .then(Fault::status(503, "busy"));
    let cold: Vec<TestBlob> = (0..60).map(|number| stage.blob(6000 + number)).collect();
    let client = stage.proxy.client();
    for answer in join_all(cold.iter().map(|blob| client.get(&blob.path))).await {
        assert_waiting_helps(&answer, 503);
    }
    assert!(rule.taken() < 120, "{} requests for 60", rule.taken());
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_what_fails_by_itself_turns_nobody_else_away() {
    let stage = Stage::new().await;
    let failing: Vec<TestBlob> = (0..8).map(|number| stage.blob(7000 + number)).collect();
    for blob in &failing {
        let faults = stage.simulator.faults();
        let of_it = faults.on(Listener::Registry, "GET", Pattern::digest(&blob.digest));
        of_it.then(Fault::status(500, "oops"));
    }
    let client = stage.proxy.client();
    for answer in join_all(failing.iter().map(|blob| client.get(&blob.path))).await {
        assert_waiting_helps(&answer, 503);
    }
    let opened = "ecr_proxy_upstream_breaker_openings_total";
    assert_eq!(metric(&stage.proxy, opened, &[]).await, 0.0);
    stage.assert_pulls(&stage.blob(8000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u14_connections_that_went_stale_are_not_seen_by_clients() {
    let stage = Stage::new().await;
    for number in 0..30 {
        let blob = stage.blob(7000 + number);
        // A connection was kept by the request before; the server drops it as this one arrives.
        for listener in [Listener::Registry, Listener::Storage] {
            stage
                .simulator
                .faults()
                .on(listener, "GET", Pattern::digest(&blob.digest))
                .times(u64::from(number > 0))
                .then(Fault::Raw("".into()));
        }
        stage.assert_pulls(&blob).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_absence_is_remembered_for_a_moment_only() {
    let stage = Stage::with(|builder| builder.set("cache.absent_ttl", "1s")).await;
    stage.simulator.create_repository(REPOSITORY);
    let client = stage.proxy.client();
    let layer = support::store::digest(b"late");
    let blob = format!("/v2/{REPOSITORY}/blobs/{layer}");
    let (manifest, elsewhere) = (manifest_path("late"), "/v2/late/app/manifests/v1");
    for (path, code) in [
        (&*manifest, "MANIFEST_UNKNOWN"),
        (elsewhere, "NAME_UNKNOWN"),
        (&*blob, "BLOB_UNKNOWN"),
    ] {
        let asked = || stage.simulator.journal().count(|entry| entry.path == path);
        let began = Instant::now();
        let first = client.get(path).await;
        assert_eq!((first.status, &*first.error_code()), (404, code), "{path}");
        let cost = asked();
        let second = client.get(path).await;
        assert_eq!(
            (second.status, &*second.error_code()),
            (404, code),
            "{path}"
        );
        // On a machine so busy that the moment has passed, it tells nothing.
        if began.elapsed() < Duration::from_secs(1) {
            assert_eq!(asked(), cost, "{path} was asked for again");
        }
    }
    assert_eq!(stage.simulator.put_blob(REPOSITORY, "late"), layer);
    let config = stage.blob(10);
    stage.manifest_of("late", &config);
    let (media_type, bytes) = stage
        .simulator
        .manifest(REPOSITORY, "late")
        .expect("just put");
    stage
        .simulator
        .put_manifest("late/app", "v1", &media_type, bytes);
    for path in [&*manifest, elsewhere, &*blob] {
        within("what appeared upstream", async {
            while client.get(path).await.status != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_absence_in_one_repository_says_nothing_of_another() {
    let stage = Stage::with(|builder| builder.set("cache.absent_ttl", "1h")).await;
    let blob = stage.blob(1000);
    stage.simulator.create_repository("other/app");
    let elsewhere = blob.path.replace(REPOSITORY, "other/app");
    assert_eq!(stage.proxy.client().get(&elsewhere).await.status, 404);
    stage.assert_pulls(&blob).await;
    assert_eq!(stage.proxy.client().get(&elsewhere).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u18_within_its_freshness_a_tag_costs_nothing_and_stays() {
    let stage = Stage::with(|builder| builder.set("cache.tag_ttl", "1h")).await;
    let old = stage.manifest_of("v1", &stage.blob(1000));
    let client = stage.proxy.client();
    assert_eq!(client.get(&manifest_path("v1")).await.digest(), old);
    let asked = manifest_requests(&stage, "GET") + manifest_requests(&stage, "HEAD");
    stage.manifest_of("v1", &stage.blob(1001));
    for _ in 0..3 {
        let answer = client.get(&manifest_path("v1")).await;
        assert_eq!(answer.digest(), old);
        assert_eq!(answer.header("docker-content-digest"), Some(&*old));
        assert_eq!(answer.header("x-cache"), Some("hit"));
    }
    let now = manifest_requests(&stage, "GET") + manifest_requests(&stage, "HEAD");
    assert_eq!(now, asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn u18_after_its_freshness_a_tag_follows_upstream() {
    let stage = Stage::with(|builder| builder.set("cache.tag_ttl", "0s")).await;
    let old = stage.manifest_of("v1", &stage.blob(1000));
    let client = stage.proxy.client();
    assert_eq!(client.get(&manifest_path("v1")).await.digest(), old);
    let (gets, heads) = (
        manifest_requests(&stage, "GET"),
        manifest_requests(&stage, "HEAD"),
    );
    assert_eq!(client.get(&manifest_path("v1")).await.digest(), old);
    assert_eq!(
        (
            manifest_requests(&stage, "GET"),
            manifest_requests(&stage, "HEAD")
        ),
        (gets, heads + 1),
        "an unchanged tag costs one HEAD"
    );

    let new = stage.manifest_of("v1", &stage.blob(1001));
    let answer = client.get(&manifest_path("v1")).await;
    assert_eq!(answer.digest(), new);
    assert_eq!(answer.header("docker-content-digest"), Some(&*new));

    stage.simulator.outage(Outage::Refused).await;
    let stale = client.get(&manifest_path("v1")).await;
    assert_eq!((stale.status, stale.digest()), (200, new.clone()));
    assert_eq!(stale.header("x-cache"), Some("stale"));
    assert!(stale.header("age").is_some() && !stale.head.header_values("warning").is_empty());

    stage.simulator.outage(Outage::None).await;
    stage.simulator.delete_manifest(REPOSITORY, "v1");
    let gone = client.get(&manifest_path("v1")).await;
    assert_eq!(
        (gone.status, &*gone.error_code()),
        (404, "MANIFEST_UNKNOWN")
    );
    let by_digest = client.get(&manifest_path(&new)).await;
    assert_eq!(by_digest.digest(), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn u21_a_head_unlike_its_get_does_not_keep_a_pull_from_working() {
    let stage = Stage::with(|builder| builder.set("cache.tag_ttl", "0s")).await;
    let client = stage.proxy.client();
    let other = support::store::digest(b"other");
    for (number, fault) in [
        Fault::status(401, ""),
        Fault::status(403, ""),
        Fault::status(404, ""),
        Fault::status(405, ""),
        Fault::SetHeader("docker-content-digest", other),
        Fault::RemoveHeader("docker-content-digest"),
        Fault::SetHeader("docker-content-digest", "lies".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let told = format!("{fault:?}");
        let rule = stage
            .simulator
            .faults()
            .on(Listener::Registry, "HEAD", Pattern::any())
            .then(fault);
        for round in 0..2 {
            let layer = stage.blob(8000 + 2 * number as u64 + round);
            let digest = stage.manifest_of("v1", &layer);
            for _ in 0..2 {
                let answer = client.get(&manifest_path("v1")).await;
                assert_eq!(answer.status, 200, "{told}: {}", answer.text());
                assert_eq!(answer.digest(), digest, "{told}: an old manifest");
                let head = client.head(&manifest_path("v1")).await;
                assert_eq!(head.head.content_length(), Some(answer.body.len() as u64));
            }
            let head = client.head(&layer.path).await;
            assert_eq!(
                (head.status, head.head.content_length()),
                (200, Some(layer.size)),
                "{told}"
            );
            stage.assert_pulls(&layer).await;
        }
        rule.remove();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u21_a_size_that_only_head_tells_is_never_promised_and_then_broken() {
    let stage = Stage::new().await;
    let blob = stage.blob(100 * KIB);
    let lie = Fault::status(200, &"x".repeat(77));
    let rule = stage
        .simulator
        .faults()
        .on(Listener::Registry, "HEAD", Pattern::any())
        .then(lie);
    let _upstreams_word = stage.proxy.client().head(&blob.path).await;
    assert_eq!(rule.taken(), 1, "upstream was not asked by HEAD");
    rule.remove();
    let part = [("range", "bytes=0-9")];
    let first = stage.proxy.client().get_with(&blob.path, &part).await;
    let second = stage.proxy.client().get_with(&blob.path, &part).await;
    assert!(matches!(first.status, 206 | 502), "{}", first.text());
    assert_eq!(second.status, 206, "{}", second.text());
    let answer = stage.assert_pulls(&blob).await;
    assert_eq!(answer.head.content_length(), Some(blob.size));
}
