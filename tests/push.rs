//! What a push is told, step by step: sessions of the proxy's own, ECR's quirks corrected and its refusals
//! kept, and nothing readable that upstream did not take.

mod support;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, Listener, Simulator, path_contains};
use support::proxy::Builder;
use support::store::digest;
use support::users::{login, user_line};
use support::{Answer, Client, Proxy};

const PASSWORD: &str = "open-sesame";
const APP: &str = "team/app";
const OTHER: &str = "team/other";

/// ECR, and the proxy in front of it for two users who may do everything and one who may push only.
struct Rig {
    ecr: Simulator,
    proxy: Proxy,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|proxy| proxy).await
    }

    async fn with(set: impl FnOnce(Builder) -> Builder) -> Self {
        let ecr = Simulator::builder().start().await.expect("a simulator");
        ecr.create_repository(APP);
        ecr.create_repository(OTHER);
        let users: String = ["ann", "bob", "push"]
            .map(|name| user_line(name, PASSWORD))
            .concat();
        let proxy = Proxy::builder()
            .simulator(&ecr)
            .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
            .users(&users)
            .rule("users = ['ann', 'bob']\nrepositories = ['team/**']\nactions = ['pull', 'push', 'delete']")
            .rule("users = ['push']\nrepositories = ['team/app']\nactions = ['push']");
        let proxy = set(proxy).start();
        Self { ecr, proxy }
    }

    fn user(&self, name: &str) -> Client {
        login(self.proxy.client(), name, PASSWORD)
    }

    /// What reached the registry with this method and a path that ends so.
    fn asked(&self, method: &str, end: &str) -> usize {
        self.ecr.journal().count(|entry| {
            entry.listener == Listener::Registry
                && entry.method == method
                && entry.path.contains(end)
        })
    }
}

/// Sends a request with a body of a known length, or in chunks of at most 64 KiB.
async fn send(
    client: &Client,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    is_chunked: bool,
) -> Answer {
    let length = body.len().to_string();
    let framing = match is_chunked {
        true => ("transfer-encoding", "chunked"),
        false => ("content-length", length.as_str()),
    };
    let all: Vec<_> = headers.iter().copied().chain([framing]).collect();
    let mut connection = client.start(method, target, &all).await;
    if is_chunked {
        let mut text = Vec::new();
        for piece in body.chunks(64 * 1024) {
            text.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            text.extend_from_slice(piece);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        connection.send(text).await.expect("send");
    } else {
        connection.send(body).await.expect("send");
    }
    connection.answer(method).await.expect("an answer")
}

async fn put(client: &Client, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(client, "PUT", target, headers, body, false).await
}

/// Begins an upload and returns where it goes on.
async fn begin(client: &Client, repository: &str) -> String {
    let answer = client
        .ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[])
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    location(&answer)
}

/// Where an answer leads, which is a path of the proxy's own.
fn location(answer: &Answer) -> String {
    let location = answer.header("location").expect("a Location");
    assert!(location.starts_with("/v2/team/"), "{location}");
    location.to_owned()
}

fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest of a config and a layer that are pushed first.
async fn push_image(
    client: &Client,
    repository: &str,
    tag: &str,
    layer: &[u8],
) -> (Answer, String) {
    for blob in [b"{}".as_slice(), layer] {
        let place = begin(client, repository).await;
        let done = put(
            client,
            &format!("{place}?digest={}", digest(blob)),
            &[],
            blob,
        )
        .await;
        assert_eq!(done.status, 201, "{}", done.text());
    }
    let manifest = manifest(layer);
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = put(
        client,
        &path,
        &[("content-type", MANIFEST)],
        manifest.as_bytes(),
    )
    .await;
    (answer, digest(manifest.as_bytes()))
}

fn manifest(layer: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        digest(b"{}"),
        digest(layer),
        layer.len()
    )
}

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

    let last = [("content-range", "700000-999999")];
    let target = format!("{place}?digest={}", digest(&blob));
    let done = put(&ann, &target, &last, &blob[700_000..]).await;
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
async fn s05_a_mount_gives_nobody_what_they_may_not_read() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    // Who may push to one repository, and read none, names a blob of another.
    let push = rig.user("push");
    let query = format!("mount={}&from={OTHER}", digest(&layer));
    let answer = push
        .ask("POST", &format!("/v2/{APP}/blobs/uploads/?{query}"), &[])
        .await;
    assert_eq!(answer.status, 202, "an ordinary session: {}", answer.text());
    let mounts = |entry: &ecr_proxy::simulator::Entry| entry.query.contains("mount");
    assert_eq!(
        rig.ecr.journal().count(mounts),
        0,
        "never asked for upstream"
    );
    let blob = format!("/v2/{APP}/blobs/{}", digest(&layer));
    assert_eq!(push.head(&blob).await.status, 404);
    assert_eq!(ann.get(&blob).await.status, 404);
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
    let (v1, v2) = (
        format!("/v2/{APP}/manifests/v1"),
        format!("/v2/{APP}/manifests/v2"),
    );
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
            "no manifest",
        ),
        ("PUT", &v2, &large, 413, "SIZE_INVALID", "too large"),
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
