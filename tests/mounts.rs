//! Blobs of other repositories, mounted by upstream for those who may read them there, and for nobody else.

mod support;

use ecr_proxy::simulator::{
    Action, Entry, FULL_ACCESS_KEY, Fault, Listener, Pattern, Principal, Simulator, path_contains,
};
use support::blobs::outcome;
use support::push::{
    APP, MANIFEST, OTHER, PASSWORD, Rig, bytes, location, manifest, push_image, put, users,
};
use support::real::DockerRegistry;
use support::store::digest;
use support::two::Two;
use support::users::{basic, login};
use support::{Answer, Client, Proxy};

/// Asks to have a blob of `from` in `into`.
async fn mount(client: &Client, into: &str, digest: &str, from: &str) -> Answer {
    let target = format!("/v2/{into}/blobs/uploads/?mount={digest}&from={from}");
    client.ask("POST", &target, &[]).await
}

fn is_mount(entry: &Entry) -> bool {
    entry.listener == Listener::Registry && entry.query.contains("mount=")
}

fn is_begin(entry: &Entry) -> bool {
    entry.listener == Listener::Registry && entry.method == "POST"
}

/// Fails unless it says where an ordinary upload goes on; returns what it says beside that.
fn session(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status, 202, "{}", answer.text());
    let mut headers = answer.head.headers.clone();
    let own = ["location", "docker-upload-uuid", "x-request-id", "date"];
    headers.retain(|(name, _)| !own.contains(&name.as_str()));
    headers
}

/// Sends `layer` to where an ordinary upload goes on.
async fn finishes(client: &Client, begun: &Answer, layer: &[u8]) {
    let target = format!("{}?digest={}", location(begun), digest(layer));
    assert_eq!(put(client, &target, &[], layer).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_a_blob_elsewhere_has_it_mounted_and_pulls_it_from_the_cache() {
    let rig = Rig::start().await;
    rig.ecr.set_blob_mounting(true);
    let ann = rig.user("ann");
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    let blob = format!("/v2/{APP}/blobs/{}", digest(&layer));
    // An absence that was just noted does not outlive the mount.
    assert_eq!(ann.get(&blob).await.status, 404);
    rig.ecr.journal().clear();
    for part in [&b"{}"[..], &layer] {
        let answer = mount(&ann, APP, &digest(part), OTHER).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(
            location(&answer),
            format!("/v2/{APP}/blobs/{}", digest(part))
        );
        assert_eq!(answer.header("docker-content-digest"), Some(&*digest(part)));
    }
    assert_eq!(rig.ecr.journal().count(is_begin), 2, "no session beside it");
    assert!(rig.ecr.blob(APP, &digest(&layer)).is_some());
    let head = ann.head(&blob).await;
    assert_eq!(
        (head.status, head.head.content_length()),
        (200, Some(100_000))
    );
    let pulled = ann.get(&blob).await;
    assert_eq!(
        (outcome(&pulled), pulled.digest()),
        (Some("hit"), digest(&layer))
    );
    let manifest = manifest(&layer);
    let kind = [("content-type", MANIFEST)];
    let path = format!("/v2/{APP}/manifests/v1");
    assert_eq!(
        put(&ann, &path, &kind, manifest.as_bytes()).await.status,
        201
    );
    let fetched = rig.ecr.journal().count(|e| e.listener == Listener::Storage);
    assert_eq!(fetched, 0, "nothing came back from ECR");
    rig.proxy.assert_no_secrets(&rig.ecr.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_ecr_declines_its_very_session_goes_on() {
    let rig = Rig::start().await;
    let ann = rig.user("ann");
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    rig.ecr.journal().clear();
    let begun = mount(&ann, APP, &digest(&layer), OTHER).await;
    session(&begun);
    assert_eq!(
        (
            rig.ecr.journal().count(is_mount),
            rig.ecr.journal().count(is_begin)
        ),
        (1, 1)
    );
    finishes(&ann, &begun, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_mount_gives_nobody_what_they_may_not_read() {
    let rig = Rig::start().await;
    rig.ecr.set_blob_mounting(true);
    let ann = rig.user("ann");
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    // Who may push to one repository, and read none, names a blob of another; and what is not there.
    let push = rig.user("push");
    let (there, absent) = (digest(&layer), digest(b"absent"));
    let nobodys = "team/absent";
    let mut told = Vec::new();
    for (blob, from) in [
        (&there, OTHER),
        (&absent, OTHER),
        (&there, nobodys),
        (&there, APP),
    ] {
        told.push(session(&mount(&push, APP, blob, from).await));
    }
    let plain = format!("/v2/{APP}/blobs/uploads/");
    told.push(session(&push.ask("POST", &plain, &[]).await));
    assert!(told.iter().all(|headers| *headers == told[0]), "{told:?}");
    assert_eq!(
        rig.ecr.journal().count(is_mount),
        0,
        "never asked for upstream"
    );
    let blob = format!("/v2/{APP}/blobs/{there}");
    assert_eq!(push.head(&blob).await.status, 404);
    assert_eq!(ann.get(&blob).await.status, 404);
    // Who may read both is told no more of what is not there.
    for (blob, from) in [(&absent, OTHER), (&there, nobodys)] {
        session(&mount(&ann, APP, blob, from).await);
    }
    let asked = rig.ecr.journal().count(is_mount);
    assert_eq!(asked, 0, "what is not held there is not left to upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_what_upstream_says_of_the_other_repository_is_not_passed_on() {
    let rig = Rig::start().await;
    rig.ecr.set_blob_mounting(true);
    let ann = rig.user("ann");
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    let name_unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no team/other"}]}"#;
    for (status, body) in [
        (403, "denied"),
        (404, name_unknown),
        (400, name_unknown),
        (405, ""),
    ] {
        let asked = rig
            .ecr
            .faults()
            .on(Listener::Registry, "POST", Pattern::matching(is_mount));
        let refused = asked.times(1).then(Fault::status(status, body));
        let begun = mount(&ann, APP, &digest(&layer), OTHER).await;
        drop(refused);
        session(&begun);
        finishes(&ann, &begun, &layer).await;
    }
    // What is about the repository that is pushed to, is.
    let begins = path_contains("/blobs/uploads/");
    let asked = rig.ecr.faults().on(Listener::Registry, "POST", begins);
    let _refused = asked.times(2).then(Fault::status(404, name_unknown));
    let answer = mount(&ann, APP, &digest(&layer), OTHER).await;
    assert_eq!(
        (answer.status, answer.error_code()),
        (404, "NAME_UNKNOWN".into())
    );
}

/// May push to [`APP`], and read there.
const PUSHER: &str = "AKIASIMULATEDPUSHER1";
/// The same, and may read [`OTHER`].
const READER: &str = "AKIASIMULATEDREADER1";

#[tokio::test(flavor = "multi_thread")]
async fn s05_for_the_bearer_of_a_token_ecr_says_what_may_be_mounted() {
    let full = |key: &str, repositories: &[&str]| {
        Principal::with_actions(key, "user/x", &Action::ALL).only_in(repositories)
    };
    let ecr = Simulator::builder()
        .principal(full(PUSHER, &[APP]))
        .principal(full(READER, &[APP, OTHER]))
        .start();
    let ecr = ecr.await.expect("a simulator");
    ecr.create_repository(APP);
    ecr.set_blob_mounting(true);
    let layer = ecr.put_blob(OTHER, bytes(100_000));
    let proxy = Proxy::builder().simulator(&ecr);
    let proxy = proxy.env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY);
    let proxy = proxy
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
        .start();
    let bearer = |key: &str| {
        let token = ecr.token(key).expect("a principal");
        (
            login(proxy.client(), "AWS", &token.password),
            basic("AWS", &token.password),
        )
    };
    let (pusher, _) = bearer(PUSHER);
    session(&mount(&pusher, APP, &layer, OTHER).await);
    session(&mount(&pusher, APP, &layer, "team/absent").await);
    assert_eq!(ecr.journal().count(is_mount), 0);
    assert!(ecr.blob(APP, &layer).is_none());
    let (reader, authorization) = bearer(READER);
    assert_eq!(mount(&reader, APP, &layer, OTHER).await.status, 201);
    let with_its_own = |e: &Entry| is_mount(e) && e.header("authorization") == Some(&authorization);
    assert_eq!(ecr.journal().count(with_its_own), 1);
    assert!(ecr.blob(APP, &layer).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_mounted_from_another_registry() {
    let two = Two::start().await;
    let layer = two.prod.put_blob("app", bytes(100_000));
    two.base.put_blob("app", bytes(100_000));
    let proxy = two
        .builder()
        .route([
            ("repository", "team/base/**"),
            ("strip_prefix", "team/base/"),
            ("upstream", "base"),
        ])
        .route([
            ("repository", "team/**"),
            ("strip_prefix", "team/"),
            ("upstream", "prod"),
        ]);
    let proxy = users(proxy).start();
    let ann = login(proxy.client(), "ann", PASSWORD);
    for ecr in [&two.prod, &two.base] {
        ecr.set_blob_mounting(true);
        ecr.create_repository("new");
    }
    for (into, from) in [("team/new", "team/base/app"), ("team/base/new", "team/app")] {
        session(&mount(&ann, into, &layer, from).await);
    }
    let asked = |ecr: &Simulator| ecr.journal().count(is_mount);
    assert_eq!(asked(&two.prod) + asked(&two.base), 0);
    // In one registry the other repository is asked for by upstream's name of it.
    let answer = mount(&ann, "team/base/new", &layer, "team/base/app").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(two.base.blob("new", &layer).is_some() && two.prod.blob("new", &layer).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_mounts_what_it_has() {
    let registry = DockerRegistry::start();
    let proxy = Proxy::builder().registry("registry.upstream.test", &registry.endpoint());
    let proxy = users(proxy).start();
    let ann = login(proxy.client(), "ann", PASSWORD);
    let layer = bytes(100_000);
    push_image(&ann, OTHER, "v1", &layer).await;
    let direct = Client::plain(registry.address());
    let theirs = format!("/v2/{APP}/blobs/{}", digest(&layer));
    session(
        &mount(
            &login(proxy.client(), "push", PASSWORD),
            APP,
            &digest(&layer),
            OTHER,
        )
        .await,
    );
    assert_eq!(direct.head(&theirs).await.status, 404);
    assert_eq!(mount(&ann, APP, &digest(&layer), OTHER).await.status, 201);
    assert_eq!(direct.head(&theirs).await.status, 200);
    let pulled = ann.get(&theirs).await;
    assert_eq!(
        (outcome(&pulled), pulled.digest()),
        (Some("hit"), digest(&layer))
    );
    session(&mount(&ann, APP, &digest(b"absent"), OTHER).await);
}
