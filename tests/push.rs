//! What a push is told, step by step: sessions of the proxy's own, ECR's quirks corrected and its refusals
//! kept, and nothing readable that upstream did not take.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{Fault, Gate, Listener, Outage, path_contains};
use support::image::spec_saying;
use support::push::{
    APP, MANIFEST, OTHER, Rig, begin, bytes, location, manifest, push_image, put, send,
};
use support::store::digest;
use support::{Client, Clock};
use tokio::task::JoinHandle;

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_chunks_is_told_the_truth_where_ecr_is_not() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let blob = bytes(1_000_000);
    let mut place = begin(&ann, APP).await;
    for (at, end, is_chunked) in [
        (0, 10, false),
        (10, 700_000, true),
        (700_000, 700_000, false),
    ] {
        let answer = send(&ann, "PATCH", &place, &[], &blob[at..end], is_chunked).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.header("range"), Some(&*format!("0-{}", end - 1)));
        assert!(answer.header("docker-upload-uuid").is_some());
        place = location(&answer);
        let status = ann.get(&place).await;
        assert_eq!(
            (status.status, status.header("range")),
            (204, answer.header("range"))
        );
    }
    // A part that does not follow on the last one changes nothing, here or upstream.
    let before = rig.asked("PATCH", "uploads");
    for range in ["5-9", "700001-700005"] {
        let answer = send(
            &ann,
            "PATCH",
            &place,
            &[("content-range", range)],
            b"again",
            false,
        )
        .await;
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.header("range"), Some("0-699999"));
        assert_eq!(location(&answer), place);
    }
    for range in ["700000-700001", "x", "9-5"] {
        let answer = send(
            &ann,
            "PATCH",
            &place,
            &[("content-range", range)],
            b"again",
            false,
        )
        .await;
        assert_eq!(
            (answer.status, answer.error_code()),
            (400, "BLOB_UPLOAD_INVALID".into())
        );
    }
    assert_eq!(rig.asked("PATCH", "uploads"), before);

    // In chunks there is no length to compare it with; where it begins is.
    for (range, status) in [("5-9", 416), ("700000-799999", 202)] {
        let range = [("content-range", range)];
        let part = &blob[700_000..800_000];
        let answer = send(&ann, "PATCH", &place, &range, part, true).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    // As the SDK of .NET writes it, which puts its own behind whatever query there is.
    let last = [("content-range", "800000-999999")];
    let target = format!("{place}?&digest={}", digest(&blob).replace(':', "%3A"));
    let done = put(&ann, &target, &last, &blob[800_000..]).await;
    assert_eq!(done.status, 201, "{}", done.text());
    assert_eq!(done.header("docker-content-digest"), Some(&*digest(&blob)));
    assert_eq!(
        location(&done),
        format!("/v2/{APP}/blobs/{}", digest(&blob))
    );
    let stored = rig.ecr.blob(APP, &digest(&blob)).expect("in ECR");
    assert_eq!(stored.read(0..1_000_000), blob);
    // It is over.
    let again = ann.get(&place).await;
    assert_eq!(
        (again.status, again.error_code()),
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_what_was_pushed_is_pulled_from_the_cache_at_once() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let path = format!("/v2/{APP}/manifests/latest");
    // An absence that was just noted does not outlive the push (U17).
    assert_eq!(ann.get(&path).await.status, 404);
    for length in [100_000, 200_000] {
        let layer = bytes(length);
        let (answer, manifest) = push_image(&ann, APP, "latest", &layer).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(answer.header("docker-content-digest"), Some(&*manifest));
        assert_eq!(location(&answer), format!("/v2/{APP}/manifests/{manifest}"));
        let pulled = ann.get(&path).await;
        assert_eq!(pulled.header("docker-content-digest"), Some(&*manifest));
        assert_eq!(pulled.header("x-cache"), Some("hit"));
        let blob = ann
            .get(&format!("/v2/{APP}/blobs/{}", digest(&layer)))
            .await;
        assert_eq!(
            (blob.header("x-cache"), blob.digest()),
            (Some("hit"), digest(&layer))
        );
        // Another repository does not have it for that.
        let elsewhere = format!("/v2/{OTHER}/blobs/{}", digest(&layer));
        assert_eq!(ann.get(&elsewhere).await.status, 404);
    }
    let fetched = rig
        .ecr
        .journal()
        .count(|entry| entry.listener == Listener::Storage);
    assert_eq!(fetched, 0, "nothing came back from ECR");
    rig.proxy.assert_no_secrets(&rig.ecr.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_ecr_has_taken_away_is_not_left_out_of_the_next_push() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = rig.ecr.put_blob(APP, "a layer");
    let config = rig.ecr.put_blob(APP, "{}");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":7}}]}}"#
    );
    rig.ecr.put_manifest(APP, "v1", kind, manifest.into_bytes());
    let path = format!("/v2/{APP}/blobs/{layer}");
    assert_eq!(
        ann.get(&format!("/v2/{APP}/manifests/v1")).await.status,
        200
    );
    assert_eq!(ann.get(&path).await.status, 200);
    support::blobs::idle(&rig.proxy).await;

    rig.ecr.delete_blob(APP, &layer);
    // Who pulls has it from the cache, by the manifest that names it; who may push is told the truth.
    let pulled = ann.get(&path).await;
    assert_eq!(
        (pulled.status, pulled.header("x-cache")),
        (200, Some("hit"))
    );
    assert_eq!(rig.user("push").head(&path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_nothing_of_a_refused_push_is_readable() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let (blob, promised) = (bytes(300_000), digest(b"something else"));
    // All in one, then in two steps: in neither does upstream get to the end.
    let whole = format!("{}?digest={promised}", begin(&ann, APP).await);
    let answer = put(&ann, &whole, &[], &blob).await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (400, "DIGEST_INVALID".into())
    );
    let place = begin(&ann, APP).await;
    let part = send(&ann, "PATCH", &place, &[], &blob, true).await;
    assert_eq!(part.status, 202);
    let ended = rig
        .ecr
        .journal()
        .count(|e| e.method == "PUT" && e.status.is_some());
    let answer = put(&ann, &format!("{place}?digest={promised}"), &[], b"").await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (400, "DIGEST_INVALID".into())
    );
    assert_eq!(
        rig.ecr
            .journal()
            .count(|e| e.method == "PUT" && e.status.is_some()),
        ended
    );
    for digest in [digest(&blob), promised] {
        let path = format!("/v2/{APP}/blobs/{digest}");
        assert_eq!(ann.get(&path).await.status, 404);
        assert!(rig.ecr.blob(APP, &digest).is_none());
    }
    // A manifest whose layer is missing.
    let text = manifest(&blob);
    let path = format!("/v2/{APP}/manifests/latest");
    let answer = put(&ann, &path, &[("content-type", MANIFEST)], text.as_bytes()).await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
    assert_eq!(ann.get(&path).await.status, 404);
    assert_eq!(rig.proxy.assert_blobs_are_sound(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_a_session_is_its_owners_and_its_repositorys() {
    let mut rig = Rig::start().await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    let place = begin(&ann, APP).await;
    let id = place.rsplit('/').next().expect("an id").to_owned();
    assert_eq!(id.len(), 32, "{id}");
    assert!(begin(&ann, APP).await != place);
    let elsewhere = format!("/v2/{OTHER}/blobs/uploads/{id}");
    let forged = format!("/v2/{APP}/blobs/uploads/{}", "0".repeat(32));
    for (client, target) in [(&bob, &place), (&ann, &elsewhere), (&ann, &forged)] {
        for method in ["GET", "DELETE", "PATCH", "PUT"] {
            let answer = match method {
                "PATCH" | "PUT" => {
                    send(
                        client,
                        method,
                        &format!("{target}?digest={}", digest(b"x")),
                        &[],
                        b"x",
                        false,
                    )
                    .await
                }
                method => client.ask(method, target, &[]).await,
            };
            let told = (answer.status, answer.error_code());
            assert_eq!(
                told,
                (404, "BLOB_UPLOAD_UNKNOWN".into()),
                "{method} {target}"
            );
        }
    }
    assert_eq!(
        rig.asked("PATCH", "uploads") + rig.asked("PUT", "uploads"),
        0
    );
    assert_eq!(ann.get(&place).await.status, 204, "it is there still");
    // C12: a restart forgets it, and a client begins again.
    rig.proxy.restart();
    let ann = rig.user("ann");
    let answer = ann.get(&place).await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
    let (answer, _) = push_image(&ann, APP, "after", b"a layer").await;
    assert_eq!(answer.status, 201);
    // Given up is gone.
    let place = begin(&ann, APP).await;
    assert_eq!(ann.ask("DELETE", &place, &[]).await.status, 204);
    assert_eq!(ann.get(&place).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn ecr_refuses_in_its_own_words_without_its_names() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    rig.ecr.set_immutable(APP, true);
    let (answer, _) = push_image(&ann, APP, "v1", b"first").await;
    assert_eq!(answer.status, 201);
    let empty = format!("{}?digest={}", begin(&ann, APP).await, digest(b""));
    let absent = "/v2/team/absent/blobs/uploads/";
    let [v1, v2, plus] = ["v1", "v2", "1.0+x"].map(|tag| format!("/v2/{APP}/manifests/{tag}"));
    let index = r#"{"schemaVersion":2,"layers":[]}"#;
    let (first, large) = (manifest(b"first"), " ".repeat(4 << 20) + "{}");
    for (method, target, body, status, code, words) in [
        (
            "PUT",
            v1.as_str(),
            first.as_str(),
            400,
            "TAG_INVALID",
            "because the repository is immutable",
        ),
        ("PUT", &v2, index, 405, "UNSUPPORTED", "Invalid JSON syntax"),
        (
            "PUT",
            &empty,
            "",
            400,
            "BLOB_UPLOAD_INVALID",
            "does not have any parts",
        ),
        (
            "POST",
            absent,
            "",
            404,
            "NAME_UNKNOWN",
            "does not exist in the registry with id '…'",
        ),
        (
            "PUT",
            &v2,
            "no json",
            400,
            "MANIFEST_INVALID",
            "not a manifest",
        ),
        ("PUT", &v2, &large, 413, "SIZE_INVALID", "is not taken"),
        // No registry has such a tag, so this one is refused before it is asked.
        ("PUT", &plus, &first, 400, "NAME_INVALID", "a tag begins"),
    ] {
        let typed = [("content-type", MANIFEST)];
        let answer = send(&ann, method, target, &typed, body.as_bytes(), false).await;
        let told = (answer.status, answer.error_code());
        assert_eq!(told, (status, code.into()), "{target}: {}", answer.text());
        let text = answer.text();
        assert!(text.contains(words), "{text}");
        let account = rig.ecr.registry_host();
        let account = account.split('.').next().expect("an account");
        assert!(
            !text.contains(account) && !text.contains("amazonaws"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o10_a_token_that_ends_between_two_steps_is_renewed() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let blob = bytes(100_000);
    let place = begin(&ann, APP).await;
    let half = send(&ann, "PATCH", &place, &[], &blob[..50_000], true).await;
    assert_eq!(half.status, 202);
    rig.ecr.expire_tokens();
    // Nothing flows by these, so they are asked again.
    let status = ann
        .ask("POST", &format!("/v2/{APP}/blobs/uploads/"), &[])
        .await;
    assert_eq!(status.status, 202, "{}", status.text());
    let rest = send(&ann, "PATCH", &place, &[], &blob[50_000..], true).await;
    assert_eq!(rest.status, 202, "{}", rest.text());
    rig.ecr.expire_tokens();
    let done = put(&ann, &format!("{place}?digest={}", digest(&blob)), &[], b"").await;
    assert_eq!(done.status, 201, "{}", done.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn u25_a_session_that_is_to_go_on_elsewhere_is_refused() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let begins = path_contains("/blobs/uploads/");
    let rule = rig.ecr.faults().on(Listener::Registry, "POST", begins);
    let _rule = rule.then(Fault::SetHeader(
        "location",
        "https://evil.test/v2/x".into(),
    ));
    let answer = ann
        .ask("POST", &format!("/v2/{APP}/blobs/uploads/"), &[])
        .await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(!answer.text().contains("evil"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_from_the_cache_at_once() {
    let rig = Rig::start().await;
    let (ann, push) = (rig.user("ann"), rig.user("push"));
    let (_, manifest) = push_image(&ann, APP, "v1", b"a layer").await;
    let (by_tag, by_digest) = (
        format!("/v2/{APP}/manifests/v1"),
        format!("/v2/{APP}/manifests/{manifest}"),
    );
    assert_eq!(push.ask("DELETE", &by_tag, &[]).await.status, 403);
    assert_eq!(ann.get(&by_tag).await.status, 200);
    assert_eq!(ann.ask("DELETE", &by_tag, &[]).await.status, 202);
    assert_eq!(ann.get(&by_tag).await.status, 404);
    assert_eq!(ann.get(&by_digest).await.status, 200);
    assert_eq!(ann.ask("DELETE", &by_digest, &[]).await.status, 202);
    assert_eq!(ann.get(&by_digest).await.status, 404);
    // ECR deletes no blobs.
    let blob = format!("/v2/{APP}/blobs/{}", digest(b"a layer"));
    let answer = ann.ask("DELETE", &blob, &[]).await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (405, "UNSUPPORTED".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_behind_us_is_gone_once_somebody_wants_it_deleted() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let (_, manifest) = push_image(&ann, APP, "v1", b"a layer").await;
    let by_digest = format!("/v2/{APP}/manifests/{manifest}");
    // As if the answer to the first wish had been lost.
    rig.ecr.delete_manifest(APP, &manifest);
    assert_eq!(ann.get(&by_digest).await.status, 200, "in the cache");
    let answer = ann.ask("DELETE", &by_digest, &[]).await;
    let said = (answer.status, answer.error_code());
    assert_eq!(said, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(ann.get(&by_digest).await.status, 404);
    let by_tag = format!("/v2/{APP}/manifests/v1");
    assert_eq!(ann.get(&by_tag).await.status, 404);
    // A no of another kind takes nothing away, nor does what is no word of the registry's.
    let (_, manifest) = push_image(&ann, APP, "v2", b"another layer").await;
    let by_digest = format!("/v2/{APP}/manifests/{manifest}");
    for (status, words) in [(405, "no"), (404, "404 page not found")] {
        let deletes = path_contains("/manifests/");
        let rule = rig.ecr.faults().on(Listener::Registry, "DELETE", deletes);
        let _rule = rule.times(1).then(Fault::status(status, words));
        assert_eq!(ann.ask("DELETE", &by_digest, &[]).await.status, status);
        assert_eq!(ann.get(&by_digest).await.header("x-cache"), Some("hit"));
    }
}

/// Longer than upstream's word counts for whoever pushes.
const NOT_FRESH: Duration = Duration::from_secs(61);

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_ecr_has_lost_is_not_left_out_of_the_next_push() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern(proxy)).await;
    let ann = rig.user("ann");
    let (_, lost) = push_image(&ann, APP, "v1", b"a layer").await;
    let (_, kept) = push_image(&ann, APP, "v2", b"another layer").await;
    rig.ecr.delete_manifest(APP, &lost);
    clock.ahead(NOT_FRESH);
    let head = async |reference: &str| {
        let path = format!("/v2/{APP}/manifests/{reference}");
        ann.head(&path).await.status
    };
    assert_eq!(head(&lost).await, 404);
    assert_eq!(head("v1").await, 404);
    assert_eq!(head(&kept).await, 200);
    // Where upstream cannot tell, the record does.
    clock.ahead(2 * NOT_FRESH);
    rig.ecr.outage(Outage::Refused).await;
    assert_eq!((head(&kept).await, head("v2").await), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_ecr_deletes_with_its_last_tag_is_gone_here_too() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let (_, manifest) = push_image(&ann, APP, "v1", b"a layer").await;
    let by_digest = format!("/v2/{APP}/manifests/{manifest}");
    assert_eq!(ann.get(&by_digest).await.header("x-cache"), Some("hit"));
    let by_tag = format!("/v2/{APP}/manifests/v1");
    // As if the tag had been the last.
    rig.ecr.delete_manifest(APP, &manifest);
    let deleted = ann.ask("DELETE", &by_tag, &[]).await;
    let said = (deleted.status, deleted.error_code());
    assert_eq!(said, (404, "MANIFEST_UNKNOWN".into()));
    support::blobs::until("it is gone by digest", async || {
        ann.get(&by_digest).await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_a_push_that_came_to_no_end_is_not_sent_again() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern(proxy)).await;
    let ann = rig.user("ann");
    let layer = b"a layer";
    let target = format!("{}?digest={}", begin(&ann, APP).await, digest(layer));
    assert_eq!(put(&ann, &target, &[], layer).await.status, 201);
    clock.ahead(NOT_FRESH);
    // ECR has it, and does not hand it out before an image names it.
    let path = format!("/v2/{APP}/blobs/{}", digest(layer));
    assert_eq!(ann.head(&path).await.status, 200);
}

/// A GET to which upstream has begun to answer, and goes on once the gate opens; the status that it is told.
async fn asks(rig: &Rig, client: Client, path: &str) -> (JoinHandle<u16>, Gate) {
    let gate = Gate::new();
    let faults = rig.ecr.faults();
    let rule = faults.on(Listener::Registry, "GET", path);
    let _held = rule.times(1).then(Fault::HoldAfter(1, gate.clone()));
    let path = path.to_owned();
    let asking = tokio::spawn(async move { client.get(&path).await.status });
    gate.arrived(1).await;
    (asking, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_a_no_from_before_a_push_does_not_take_it_away() {
    // Whether or not an image is recorded that names the layer, which ECR has lost.
    for is_named in [false, true] {
        let rig = Rig::start().await;
        let (ann, bob) = (rig.user("ann"), rig.user("bob"));
        let layer = b"a layer";
        let path = format!("/v2/{APP}/blobs/{}", digest(layer));
        if is_named {
            rig.ecr.put_blob(APP, "{}");
            rig.ecr.put_blob(APP, "a layer");
            rig.ecr
                .put_manifest(APP, "v1", MANIFEST, manifest(layer).into_bytes());
            let tag = format!("/v2/{APP}/manifests/v1");
            assert_eq!(bob.get(&tag).await.status, 200);
            rig.ecr.delete_blob(APP, &digest(layer));
        }
        let (asking, gate) = asks(&rig, bob, &path).await;
        let target = format!("{}?digest={}", begin(&ann, APP).await, digest(layer));
        assert_eq!(put(&ann, &target, &[], layer).await.status, 201);
        gate.open();
        let told = asking.await.expect("no panic");
        assert!(is_named || told == 404, "it was not there: {told}");
        assert_eq!(ann.head(&path).await.status, 200, "named: {is_named}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_what_was_asked_before_a_delete_is_not_kept_after_it() {
    let rig = Rig::start().await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    let image = rig.ecr.push_image(APP, "v1", spec_saying("hello"));
    let path = format!("/v2/{APP}/manifests/{}", image.manifests[0].manifest.digest);
    let (asking, gate) = asks(&rig, bob, &path).await;
    assert_eq!(ann.ask("DELETE", &path, &[]).await.status, 202);
    gate.open();
    assert_eq!(asking.await.expect("no panic"), 200, "it was there");
    assert_eq!(ann.get(&path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_a_yes_from_before_a_delete_does_not_bring_it_back() {
    let clock = Clock::right();
    let rig = Rig::with(|proxy| clock.govern(proxy)).await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    let (_, deleted) = push_image(&ann, APP, "v1", b"a layer").await;
    let path = format!("/v2/{APP}/manifests/{deleted}");
    clock.ahead(NOT_FRESH);
    let gate = Gate::new();
    let manifests = path_contains("/manifests/");
    let rule = rig.ecr.faults().on(Listener::Registry, "HEAD", manifests);
    let _held = rule.times(1).then(Fault::Hold(gate.clone()));
    // Who asks leaves; what upstream says is heard all the same.
    let asking = bob.start("HEAD", &path, &[]).await;
    gate.arrived(1).await;
    drop(asking);
    assert_eq!(ann.ask("DELETE", &path, &[]).await.status, 202);
    let kept = manifest(b"a layer").into_bytes();
    rig.ecr.put_manifest(APP, "v2", MANIFEST, kept);
    gate.open();
    support::blobs::until("it is said", async || {
        let journal = rig.ecr.journal();
        journal.count(|entry| entry.method == "HEAD" && entry.status == Some(200)) == 1
    })
    .await;
    let asked = ann.get(&path).await;
    assert_eq!((asked.status, asked.header("x-cache")), (200, Some("miss")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_part_that_the_registry_takes_is_told() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let uploads = format!("/v2/{APP}/blobs/uploads/");
    let begins = path_contains("/blobs/uploads/");
    let rule = rig.ecr.faults().on(Listener::Registry, "POST", begins);
    let _rule = rule
        .times(1)
        .then(Fault::SetHeader("oci-chunk-min-length", "5242880".into()));
    let answer = ann.ask("POST", &uploads, &[]).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.header("oci-chunk-min-length"), Some("5242880"));
    let answer = ann.ask("POST", &uploads, &[]).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.header("oci-chunk-min-length"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_told_by_its_type_alone_however_it_came() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    push_image(&ann, APP, "v1", b"a layer").await;
    let path = format!("/v2/{APP}/manifests/v2");
    let kind = format!("{MANIFEST}; charset=utf-8");
    let text = manifest(b"a layer");
    let headers = [("content-type", &*kind)];
    let answer = put(&ann, &path, &headers, text.as_bytes()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    for method in ["HEAD", "GET"] {
        let answer = ann.ask(method, &path, &[]).await;
        assert_eq!(answer.header("content-type"), Some(MANIFEST), "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_by_a_method_that_there_is_not_is_told_which_there_are() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let upload = begin(&ann, APP).await;
    for (path, method, methods) in [
        ("/v2/", "DELETE", "GET, HEAD"),
        ("/v2/_catalog", "PUT", "GET, HEAD"),
        ("/v2/team/app/tags/list", "DELETE", "GET, HEAD"),
        (
            "/v2/team/app/manifests/v1",
            "POST",
            "GET, HEAD, PUT, DELETE",
        ),
        (
            "/v2/team/app/manifests/v1",
            "OPTIONS",
            "GET, HEAD, PUT, DELETE",
        ),
        ("/v2/team/app/blobs/uploads/", "GET", "POST"),
        (&upload, "POST", "GET, HEAD, PATCH, PUT, DELETE"),
    ] {
        let answer = ann.ask(method, path, &[]).await;
        assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("allow"), Some(methods), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_for_one_upload_at_once_do_not_mix() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let place = begin(&ann, APP).await;
    let target = format!("{place}?digest={}", digest(b"helloworld"));
    let mut first = ann
        .start("PATCH", &place, &[("content-length", "10")])
        .await;
    first.send("hello").await.expect("send");
    support::blobs::until("it is taken up", async || {
        rig.asked("PATCH", "uploads") == 1
    })
    .await;
    let typed: &[(&str, &str)] = &[];
    for (method, target) in [("PATCH", &place), ("PUT", &target)] {
        let second = send(&ann, method, target, typed, b"other", false).await;
        let told = (second.status, second.error_code());
        assert_eq!(told, (409, "BLOB_UPLOAD_INVALID".into()), "{method}");
    }
    assert_eq!(ann.ask("DELETE", &place, typed).await.status, 409);
    first.send("world").await.expect("send");
    let part = first.answer("PATCH").await.expect("an answer");
    assert_eq!((part.status, part.header("range")), (202, Some("0-9")));
    let done = put(&ann, &target, typed, b"").await;
    assert_eq!(done.status, 201, "{}", done.text());
    let stored = rig.ecr.blob(APP, &digest(b"helloworld")).expect("in ECR");
    assert_eq!(&stored.read(0..10)[..], b"helloworld");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_yes_in_other_words_is_understood() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let faults = rig.ecr.faults();
    let blob = bytes(200_000);
    for status in [200, 201, 202, 204] {
        let say = |method, part| {
            let rule = faults.on(Listener::Registry, method, path_contains(part));
            rule.times(1).then(Fault::SetStatus(status))
        };
        let part_said = say("PATCH", "/blobs/uploads/");
        let place = begin(&ann, APP).await;
        let part = send(&ann, "PATCH", &place, &[], &blob, false).await;
        assert_eq!(part.status, 202, "{status}: {}", part.text());
        let target = format!("{}?digest={}", location(&part), digest(&blob));
        let done = put(&ann, &target, &[], b"").await;
        assert_eq!(done.status, 201, "{status}: {}", done.text());
        assert_eq!(part_said.taken(), 1);
        if status == 204 {
            continue;
        }
        let manifest_said = say("PUT", "/manifests/");
        let tag = format!("said-{status}");
        let (pushed, named) = push_image(&ann, APP, &tag, &blob).await;
        assert_eq!(pushed.status, 201, "{status}: {}", pushed.text());
        assert_eq!(pushed.header("docker-content-digest"), Some(&*named));
        assert_eq!(manifest_said.taken(), 1);
        let pulled = ann.get(&format!("/v2/{APP}/manifests/{tag}")).await;
        assert_eq!(pulled.status, 200, "{status}: {}", pulled.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_who_asks_after_a_delete_is_not_answered_by_a_question_from_before() {
    let rig = Rig::start().await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    let layer = rig.ecr.put_blob(APP, b"a layer".to_vec());
    assert_eq!(layer, support::store::digest(b"a layer"));
    rig.ecr.put_blob(APP, b"{}".to_vec());
    rig.ecr
        .put_manifest(APP, "v1", MANIFEST, manifest(b"a layer").into_bytes());
    let path = format!("/v2/{APP}/manifests/v1");
    let gate = Gate::new();
    let manifests = path_contains("/manifests/");
    let rule = rig.ecr.faults().on(Listener::Registry, "GET", manifests);
    let _late = rule.times(1).then(Fault::Late(gate.clone()));
    let mut before = bob.start("GET", &path, &[]).await;
    gate.arrived(1).await;
    assert_eq!(ann.ask("DELETE", &path, &[]).await.status, 202);
    let after = support::within("an answer of its own", bob.get(&path)).await;
    assert_eq!(
        (after.status, &*after.error_code()),
        (404, "MANIFEST_UNKNOWN")
    );
    gate.open();
    assert_eq!(before.answer("GET").await.expect("an answer").status, 200);
    let after = bob.get(&path).await;
    assert_eq!(after.status, 404, "it is not recorded, either");
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_a_yes_from_before_a_blob_was_deleted_does_not_bring_it_back() {
    let rig = Rig::start().await;
    let (ann, bob) = (rig.user("ann"), rig.user("bob"));
    let layer = rig.ecr.put_blob(OTHER, b"a layer".to_vec());
    rig.ecr.put_blob(APP, b"a layer".to_vec());
    let in_other = format!("/v2/{OTHER}/blobs/{layer}");
    assert_eq!(bob.get(&in_other).await.status, 200, "it is in the cache");
    let path = format!("/v2/{APP}/blobs/{layer}");
    let faults = rig.ecr.faults();
    let answered = |status, code: &str| {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":""}}]}}"#);
        Fault::status(status, &body)
    };
    let gate = Gate::new();
    for method in ["GET", "HEAD"] {
        let asked = faults.on(Listener::Registry, method, &*path);
        asked.times(1).then(Fault::Late(gate.clone()));
        let gone = faults.on(Listener::Registry, method, &*path);
        gone.then(answered(404, "BLOB_UNKNOWN"));
    }
    let deleted = faults.on(Listener::Registry, "DELETE", &*path);
    deleted.then(answered(202, ""));
    let mut before = bob.start("GET", &path, &[]).await;
    gate.arrived(1).await;
    assert_eq!(ann.ask("DELETE", &path, &[]).await.status, 202);
    gate.open();
    let before = before.answer("GET").await.expect("an answer");
    assert_eq!(before.status, 200, "{}", before.text());
    let after = bob.get(&path).await;
    assert_eq!((after.status, &*after.error_code()), (404, "BLOB_UNKNOWN"));
}
