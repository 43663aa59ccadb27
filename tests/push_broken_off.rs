//! A push that does not come to its end, whoever ends it: the client is told, upstream takes no part for the
//! whole, and nothing is left of it.

mod support;

use std::path::PathBuf;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, Gate, Listener, Simulator, path_contains};
use support::blobs::{metric, outcome, until};
use support::disk::Injection;
use support::push::{
    APP, MANIFEST, OTHER, Rig, begin, bytes, manifest, push_image, put, send, users,
};
use support::store::{digest, files_below};
use support::{Answer, Proxy, within};

#[tokio::test(flavor = "multi_thread")]
async fn u24_an_early_refusal_reaches_a_client_that_still_sends() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    for (status, code) in [(400, "TAG_INVALID"), (403, "DENIED"), (413, "SIZE_INVALID")] {
        let place = begin(&ann, APP).await;
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"no"}}]}}"#);
        let refusal = rig
            .ecr
            .faults()
            .on(
                Listener::Registry,
                "PATCH",
                path_contains("/blobs/uploads/"),
            )
            .times(1)
            .then(Fault::status(status, &body));
        let headers = [("content-length", "1073741824")];
        let mut connection = ann.start("PATCH", &place, &headers).await;
        for _ in 0..16 {
            connection
                .send(bytes(64 * 1024))
                .await
                .expect("it is taken");
        }
        let answer = connection
            .answer("PATCH")
            .await
            .expect("an answer, no reset");
        assert_eq!((answer.status, answer.error_code()), (status, code.into()));
        drop(refusal);
        assert_eq!(ann.get(&place).await.status, 404, "the session is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u05_a_yes_before_the_body_has_come_is_no_yes() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let whole = bytes(1_000_000);
    for (method, status) in [("PATCH", 202), ("PATCH", 201), ("PUT", 201), ("PUT", 204)] {
        let place = begin(&ann, APP).await;
        let early = Fault::status(status, "");
        let uploads = path_contains("/blobs/uploads/");
        let rule = rig.ecr.faults().on(Listener::Registry, method, uploads);
        let rule = rule.times(1).then(early);
        let asked = rig.asked(method, "/blobs/uploads/");
        let target = format!("{place}?digest={}", digest(&whole));
        let headers = [("content-length", "1000000")];
        let mut connection = ann.start(method, &target, &headers).await;
        connection.send(&whole[..200_000]).await.expect("sent");
        until("it is answered", async || rule.taken() == 1).await;
        let _refused_early = connection.send(&whole[200_000..]).await;
        let answer = connection.answer(method).await.expect("an answer");
        let told = format!("{method} {status}: {}", answer.text());
        assert_eq!(answer.status, 502, "{told}");
        assert_eq!(ann.get(&place).await.status, 404, "the session is over");
        assert_eq!(rig.asked(method, "/blobs/uploads/") - asked, 1, "{told}");
    }
    let blob = format!("/v2/{APP}/blobs/{}", digest(&whole));
    assert_eq!(ann.get(&blob).await.status, 404, "nothing of it is kept");
    let (pushed, _) = push_image(&ann, APP, "v1", &whole).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
}

/// How many bytes of uploads the proxy has sent upstream.
const SENT: &str = "ecr_proxy_upstream_sent_bytes_total";

#[tokio::test(flavor = "multi_thread")]
async fn u13_a_body_that_upstream_failed_on_is_told_and_never_sent_again() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let whole = bytes(200_000);
    for status in [500, 502, 503, 504] {
        for method in ["PATCH", "PUT"] {
            let place = begin(&ann, APP).await;
            let uploads = path_contains("/blobs/uploads/");
            let rule = rig.ecr.faults().on(Listener::Registry, method, uploads);
            let gate = Gate::new();
            let rule = rule.all([Fault::Hold(gate.clone()), Fault::status(status, "oops")]);
            let target = format!("{place}?digest={}", digest(&whole));
            let sent = async || metric(&rig.proxy, SENT, &[]).await;
            let before = sent().await;
            let headers = [("content-length", "200000")];
            let mut connection = ann.start(method, &target, &headers).await;
            within("upstream is asked", gate.arrived(1)).await;
            connection.send(&whole[..100_000]).await.expect("sent");
            until("it flows", async || sent().await > before).await;
            gate.open();
            let _refused_early = connection.send(&whole[100_000..]).await;
            let answer = connection.answer(method).await.expect("an answer");
            let told = format!("{method} {status}: {}", answer.text());
            assert!(matches!(answer.status, 502..=504), "{told}");
            assert_eq!(rule.taken(), 1, "{told}");
            rule.remove();
            assert_eq!(ann.get(&place).await.status, 404, "{told}");
        }
    }
    let blob = format!("/v2/{APP}/blobs/{}", digest(&whole));
    assert_eq!(ann.get(&blob).await.status, 404, "nothing of it is kept");
    let (pushed, _) = push_image(&ann, APP, "v1", &whole).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn u24_nobody_is_told_to_go_on_before_the_right_is_checked() {
    let rig = Rig::start().await;
    let (ann, push) = (rig.user("ann"), rig.user("push"));
    let expecting = [("expect", "100-continue"), ("content-length", "5")];
    let refused = format!("/v2/{OTHER}/blobs/uploads/?digest={}", digest(b"hello"));
    let mut connection = push.start("POST", &refused, &expecting).await;
    assert_eq!(connection.head().await.expect("a head").status, 403);
    let place = format!("{}?digest={}", begin(&ann, APP).await, digest(b"hello"));
    let mut connection = ann.start("PUT", &place, &expecting).await;
    assert_eq!(connection.head().await.expect("a head").status, 100);
    connection.send("hello").await.expect("send");
    assert_eq!(connection.head().await.expect("a head").status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_p04_what_breaks_off_is_never_ended_upstream() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let blob = bytes(200_000);
    for body in [
        // Ends too early, is no chunk, overflows, has trailers and no end.
        b"ffff\r\nshort".as_slice(),
        b"5\r\nhello\r\nzz\r\n",
        b"5\r\nhello\r\nfffffffffffffffff\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
    ] {
        for method in ["PATCH", "PUT"] {
            let place = begin(&ann, APP).await;
            let target = format!("{place}?digest={}", digest(b"hello"));
            let headers = [("transfer-encoding", "chunked")];
            // A connection may end before its request was looked at; then nothing was done to the session.
            let gone = async {
                loop {
                    let mut connection = ann.start(method, &target, &headers).await;
                    connection.send(body).await.expect("send");
                    drop(connection);
                    for _ in 0..50 {
                        if ann.get(&place).await.status == 404 {
                            return;
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                }
            };
            support::within("the end of the session", gone).await;
        }
    }
    let finished = rig
        .ecr
        .journal()
        .count(|entry| matches!(&*entry.method, "PATCH" | "PUT") && entry.status.is_some());
    assert_eq!(finished, 0, "ECR never saw a whole body");
    until("every upload is given up upstream, too", async || {
        rig.asked("DELETE", "/blobs/uploads/") == rig.asked("POST", "/blobs/uploads/")
    })
    .await;
    assert!(rig.ecr.blob(APP, &digest(b"hello")).is_none());
    let left = std::fs::read_dir(rig.proxy.cache_dir().join("fills")).map_or(0, |dir| dir.count());
    assert_eq!(left, 0, "no remains");
    // The one behind it is none the worse, and trailers are no headers.
    let place = begin(&ann, APP).await;
    let target = format!("{place}?digest={}", digest(&blob));
    let mut connection = ann
        .start("PUT", &target, &[("transfer-encoding", "chunked")])
        .await;
    let mut text = format!("{:x}\r\n", blob.len()).into_bytes();
    text.extend_from_slice(&blob);
    text.extend_from_slice(b"\r\n0\r\nx-smuggled: yes\r\n\r\n");
    connection.send(text).await.expect("send");
    assert_eq!(
        connection.answer("PUT").await.expect("an answer").status,
        201
    );
    let smuggled = |entry: &ecr_proxy::simulator::Entry| entry.headers.contains_key("x-smuggled");
    assert_eq!(rig.ecr.journal().count(smuggled), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_a_client_that_says_nothing_more_in_the_middle_ends_its_upload() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    for (method, framing) in [
        ("PATCH", ("content-length", "1000000")),
        ("PUT", ("content-length", "1000000")),
        ("PATCH", ("transfer-encoding", "chunked")),
        ("PUT", ("transfer-encoding", "chunked")),
    ] {
        let before = answered(&rig, method);
        let place = begin(&ann, APP).await;
        let target = format!("{place}?digest={}", digest(b"hello"));
        let mut connection = ann.start(method, &target, &[framing]).await;
        connection.send(b"5\r\nhello\r\n").await.expect("send");
        connection.finish().await.expect("it is open");
        // What it is told, if anything, is no success.
        if let Ok(head) = connection.head().await {
            assert_eq!(head.status, 400, "{method}");
        }
        until("the upload is over", async || {
            ann.get(&place).await.status == 404
        })
        .await;
        assert_eq!(answered(&rig, method), before, "{method}: no whole body");
        until("nothing is left of it", async || {
            remains(&rig.proxy).is_empty()
        })
        .await;
    }
    until("every upload is given up upstream, too", async || {
        rig.asked("DELETE", "/blobs/uploads/") == rig.asked("POST", "/blobs/uploads/")
    })
    .await;
}

/// The files of unfinished downloads and pushes.
fn remains(proxy: &Proxy) -> Vec<PathBuf> {
    files_below(&proxy.cache_dir().join("fills"))
}

/// The requests with this method that upstream has answered.
fn answered(rig: &Rig, method: &str) -> usize {
    let journal = rig.ecr.journal();
    journal.count(|entry| entry.method == method && entry.status.is_some())
}

/// Restarts the proxy after a kill, and pushes from scratch.
async fn begins_again(rig: &mut Rig, layer: &[u8]) {
    let blob = format!("/v2/{APP}/blobs/{}", digest(layer));
    rig.proxy.restart();
    let ann = rig.user("ann");
    assert_eq!(
        ann.get(&blob).await.status,
        404,
        "nothing of it is readable"
    );
    until("nothing is left of it", async || {
        remains(&rig.proxy).is_empty()
    })
    .await;
    let (answer, manifest) = push_image(&ann, APP, "v1", layer).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let pulled = ann.get(&format!("/v2/{APP}/manifests/v1")).await;
    assert_eq!(pulled.header("docker-content-digest"), Some(&*manifest));
    let pulled = ann.get(&blob).await;
    assert_eq!(
        (outcome(&pulled), pulled.digest()),
        (Some("hit"), digest(layer))
    );
    let kept = rig.proxy.assert_blobs_are_sound();
    assert!(kept.contains(&digest(layer)), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_kill_in_the_middle_of_a_blob_leaves_nothing_of_it_and_the_push_begins_again() {
    let mut rig = Rig::start().await;
    for (method, length) in [("PATCH", 3_000_000), ("PUT", 3_000_001)] {
        let ann = rig.user("ann");
        let layer = bytes(length);
        let target = format!("{}?digest={}", begin(&ann, APP).await, digest(&layer));
        let before = answered(&rig, method);
        let declared = [("content-length", &*length.to_string())];
        let mut connection = ann.start(method, &target, &declared).await;
        connection.send(&layer[..length / 2]).await.expect("send");
        until("upstream has some of it", async || {
            let journal = rig.ecr.journal();
            journal
                .count(|e| e.method == method && e.status.is_none() && e.request_bytes > 1_000_000)
                > 0
        })
        .await;
        assert_ne!(
            remains(&rig.proxy),
            Vec::<PathBuf>::new(),
            "kept on its way"
        );
        rig.proxy.kill9();
        assert!(
            connection.head().await.is_err(),
            "the client is told nothing"
        );
        assert_eq!(answered(&rig, method), before, "{method} came to no end");
        assert!(rig.ecr.blob(APP, &digest(&layer)).is_none());
        begins_again(&mut rig, &layer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_kill_before_upstreams_word_leaves_nothing_and_the_push_begins_again() {
    let mut rig = Rig::start().await;
    // The end of a blob, then its manifest.
    for (part, length) in [("/blobs/uploads/", 300_000), ("/manifests/", 300_001)] {
        let ann = rig.user("ann");
        let layer = bytes(length);
        let gate = Gate::new();
        let puts = rig
            .ecr
            .faults()
            .on(Listener::Registry, "PUT", path_contains(part));
        let (target, body) = match part {
            "/manifests/" => {
                for blob in [&b"{}"[..], &layer] {
                    let target = format!("{}?digest={}", begin(&ann, APP).await, digest(blob));
                    assert_eq!(put(&ann, &target, &[], blob).await.status, 201);
                }
                (format!("/v2/{APP}/manifests/killed"), manifest(&layer))
            }
            _ => {
                let place = begin(&ann, APP).await;
                let sent = send(&ann, "PATCH", &place, &[], &layer, true).await;
                assert_eq!(sent.status, 202);
                (format!("{place}?digest={}", digest(&layer)), String::new())
            }
        };
        let held = puts.times(1).then(Fault::Hold(gate.clone()));
        let before = answered(&rig, "PUT");
        let length = body.len().to_string();
        let headers = [("content-type", MANIFEST), ("content-length", &*length)];
        let mut connection = ann.start("PUT", &target, &headers).await;
        connection.send(&body).await.expect("send");
        within("upstream is asked", gate.arrived(1)).await;
        rig.proxy.kill9();
        assert!(
            connection.head().await.is_err(),
            "the client is told nothing"
        );
        assert_eq!(answered(&rig, "PUT"), before);
        assert!(rig.ecr.manifest(APP, "killed").is_none());
        drop(held);
        if part == "/manifests/" {
            // What was pushed before it is still there, and all that is missing is pushed again.
            rig.proxy.restart();
            let ann = rig.user("ann");
            assert_eq!(
                ann.get(&format!("/v2/{APP}/manifests/killed")).await.status,
                404
            );
            let (again, _) = push_image(&ann, APP, "killed", &layer).await;
            assert_eq!(again.status, 201);
        } else {
            begins_again(&mut rig, &layer).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_kill_at_any_step_of_keeping_a_push_leaves_it_absent_or_complete() {
    let mut rig = Rig::start().await;
    for (number, step) in [
        "pwrite64:signal=KILL:when=1",
        "fsync:signal=KILL:when=1",
        "renameat:signal=KILL",
    ]
    .into_iter()
    .enumerate()
    {
        let layer = bytes(2_000_000 + number);
        let ann = rig.user("ann");
        let target = format!("{}?digest={}", begin(&ann, APP).await, digest(&layer));
        let injection = Injection::into(&rig.proxy, [step]);
        let length = layer.len().to_string();
        let mut connection = ann
            .start("PUT", &target, &[("content-length", &*length)])
            .await;
        // It is cut where the step comes before the answer.
        let _cut = connection.send(&layer).await;
        let _told_or_not = connection.answer("PUT").await;
        rig.proxy.wait();
        drop(injection);
        rig.proxy.assert_blobs_are_sound();
        rig.proxy.restart();
        let ann = rig.user("ann");
        until("nothing is left of it", async || {
            remains(&rig.proxy).is_empty()
        })
        .await;
        let (answer, _) = push_image(&ann, APP, "v1", &layer).await;
        assert_eq!(answer.status, 201, "{step}: {}", answer.text());
        let pulled = ann
            .get(&format!("/v2/{APP}/blobs/{}", digest(&layer)))
            .await;
        assert_eq!(
            (outcome(&pulled), pulled.digest()),
            (Some("hit"), digest(&layer)),
            "{step}"
        );
        rig.proxy.assert_blobs_are_sound();
    }
}

/// The next answers to this are lost: the registry has done what it was asked, and nobody hears of it.
fn lost(rig: &Rig, method: &'static str, path: &'static str) {
    let faults = rig.ecr.faults();
    let rule = faults.on(Listener::Registry, method, path_contains(path));
    rule.times(1).then(Fault::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_what_upstream_took_is_no_error_where_only_its_answer_was_lost() {
    let rig = Rig::start().await;
    rig.ecr.set_immutable(APP, true);
    let ann = rig.user("ann");
    // Asked again, ECR says of each that it cannot be: there is no such upload any more, the tag is taken,
    // and there is nothing to delete.
    let layer = bytes(100_000);
    let place = begin(&ann, APP).await;
    let part = send(&ann, "PATCH", &place, &[], &layer, true).await;
    assert_eq!(part.status, 202, "{}", part.text());
    lost(&rig, "PUT", "/blobs/uploads/");
    let target = format!("{place}?digest={}", digest(&layer));
    let end = put(&ann, &target, &[], &[]).await;
    assert_eq!(end.status, 201, "{}", end.text());
    lost(&rig, "PUT", "/manifests/v1");
    let (answer, manifest) = push_image(&ann, APP, "v1", &layer).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let path = format!("/v2/{APP}/manifests/v1");
    let pulled = ann.get(&path).await;
    let told = (pulled.digest(), pulled.header("x-cache"));
    assert_eq!(told, (manifest.clone(), Some("hit")));
    assert_eq!(rig.asked("PUT", "/manifests/v1"), 2);
    let path = format!("/v2/{APP}/manifests/{manifest}");
    lost(&rig, "DELETE", "/manifests/");
    let deleted = ann.ask("DELETE", &path, &[]).await;
    assert_eq!(deleted.status, 202, "{}", deleted.text());
}

/// Pushes what refers to an image to a repository whose tags do not move, by an answer that is lost; what is
/// told, and the subject.
async fn put_referrer_unheard(rig: &Rig) -> (Answer, String) {
    rig.ecr.set_immutable(APP, true);
    let ann = rig.user("ann");
    let (answer, subject) = push_image(&ann, APP, "v1", b"layer").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let image = manifest(b"layer");
    let referrer = format!(
        r#"{},"subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":{}}}}}"#,
        &image[..image.len() - 1],
        image.len()
    );
    lost(rig, "PUT", "/manifests/sbom");
    let target = format!("/v2/{APP}/manifests/sbom");
    let headers = [("content-type", MANIFEST)];
    let answer = put(&ann, &target, &headers, referrer.as_bytes()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(rig.asked("PUT", "/manifests/sbom"), 2);
    (answer, subject)
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_a_lost_answer_takes_no_subject_from_what_ecr_lists_as_a_referrer() {
    let (answer, subject) = put_referrer_unheard(&Rig::start().await).await;
    assert_eq!(answer.header("oci-subject"), Some(&*subject));
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_a_lost_answer_promises_no_referrers_of_a_registry_that_may_keep_none() {
    let ecr = Simulator::builder().start().await.expect("a simulator");
    ecr.create_repository(APP);
    let token = ecr.token(FULL_ACCESS_KEY).expect("a token");
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, &token.password).expect("a file");
    let proxy = users(Proxy::builder())
        .registry("registry.upstream.test", &ecr.endpoint())
        .upstream_key("auth", "basic")
        .upstream_key("username", "AWS")
        .upstream_key("password_file", password.to_str().expect("a UTF-8 path"))
        .start();
    let (answer, _) = put_referrer_unheard(&Rig { ecr, proxy }).await;
    assert_eq!(answer.header("oci-subject"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn u13_where_another_was_first_a_lost_answer_changes_nothing_of_the_refusal() {
    let rig = Rig::start().await;
    rig.ecr.set_immutable(APP, true);
    let ann = rig.user("ann");
    let (answer, theirs) = push_image(&ann, APP, "v1", b"first").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    lost(&rig, "PUT", "/manifests/v1");
    let (answer, _) = push_image(&ann, APP, "v1", b"second").await;
    let told = (answer.status, answer.error_code());
    assert_eq!(told, (400, "TAG_INVALID".into()), "{}", answer.text());
    let pulled = ann.get(&format!("/v2/{APP}/manifests/v1")).await;
    assert_eq!(pulled.digest(), theirs);
    // Nor where the upload never was.
    let place = begin(&ann, APP).await;
    let layer = bytes(1000);
    let part = send(&ann, "PATCH", &place, &[], &layer, true).await;
    assert_eq!(part.status, 202, "{}", part.text());
    let broken = rig.ecr.faults();
    let broken = broken.on(Listener::Registry, "PUT", path_contains("/blobs/uploads/"));
    let gone = r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"no such upload"}]}"#;
    broken.times(1).then(Fault::Reset);
    let refused = rig.ecr.faults();
    let refused = refused.on(Listener::Registry, "PUT", path_contains("/blobs/uploads/"));
    refused.times(1).then(Fault::status(404, gone));
    let target = format!("{place}?digest={}", digest(&layer));
    let end = put(&ann, &target, &[], &[]).await;
    let told = (end.status, end.error_code());
    assert_eq!(told, (404, "BLOB_UPLOAD_UNKNOWN".into()), "{}", end.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_what_upstream_took_from_a_client_that_has_left_is_known_at_once() {
    let rig = Rig::with(|proxy| proxy.set("cache.tag_ttl", "1h")).await;
    let ann = rig.user("ann");
    let (_, first) = push_image(&ann, APP, "v1", b"first").await;
    let (_, second) = push_image(&ann, APP, "v2", b"second").await;
    let path = |reference: &str| format!("/v2/{APP}/manifests/{reference}");
    assert_eq!(ann.get(&path("v1")).await.digest(), first);
    let leaves = async |method: &'static str, reference: &str, body: &str| {
        let gate = Gate::new();
        let faults = rig.ecr.faults();
        let late = faults.on(Listener::Registry, method, path_contains("/manifests/"));
        late.times(1).then(Fault::Late(gate.clone()));
        let length = body.len().to_string();
        let headers = [("content-type", MANIFEST), ("content-length", &*length)];
        let mut connection = ann.start(method, &path(reference), &headers).await;
        connection.send(body).await.expect("send");
        within("upstream has done it", gate.arrived(1)).await;
        drop(connection);
        let left = rig.proxy.log_until("the client has left", |event| {
            let is_its = event.field("http.method").as_deref() == Some(method);
            is_its && event.field("end").as_deref() == Some("aborted")
        });
        left.await;
        gate.open();
    };
    leaves("PUT", "v1", &manifest(b"second")).await;
    until("the tag has moved", async || {
        ann.get(&path("v1")).await.digest() == second
    })
    .await;
    leaves("DELETE", &second, "").await;
    for gone in [&*second, "v1", "v2"] {
        until("it is gone", async || {
            ann.get(&path(gone)).await.status == 404
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u26_the_end_of_the_program_waits_for_what_upstream_may_have_done() {
    let mut rig = Rig::with(|proxy| proxy.set("cache.tag_ttl", "1h")).await;
    let ann = rig.user("ann");
    let (_, image) = push_image(&ann, APP, "v1", b"layer").await;
    let path = format!("/v2/{APP}/manifests/{image}");
    assert_eq!(ann.get(&path).await.status, 200);
    let gate = Gate::new();
    let faults = rig.ecr.faults();
    let late = faults.on(Listener::Registry, "DELETE", path_contains("/manifests/"));
    late.times(1).then(Fault::Late(gate.clone()));
    let connection = ann.start("DELETE", &path, &[]).await;
    within("upstream has done it", gate.arrived(1)).await;
    drop(connection);
    let left = rig.proxy.log_until("the client has left", |event| {
        event.field("http.method").as_deref() == Some("DELETE")
    });
    left.await;
    rig.proxy.terminate();
    let draining = rig
        .proxy
        .log_until("it drains", |event| event.message() == "draining");
    draining.await;
    gate.open();
    assert!(rig.proxy.wait().success());
    rig.proxy.restart();
    assert_eq!(rig.user("ann").get(&path).await.status, 404);
}
