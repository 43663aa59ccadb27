//! A tag is believed for `tag_ttl`, then costs one HEAD however many ask; a manifest comes exactly as
//! upstream has it under a digest that is ours; what upstream cannot answer is answered stale, and what
//! it denies to have is not asked for again at once.

mod support;

use ecr_proxy::simulator::{
    Entry, FULL_ACCESS_KEY, Fault, Flavour, Gate, ImageSpec, Listener, Outage, PushedImage,
    Simulator,
};
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::{Proxy, image, within};

struct Rig {
    simulator: Simulator,
    image: PushedImage,
    proxy: Proxy,
    path: String,
}

impl Rig {
    async fn with(tag_ttl: &str) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = image::push(&simulator);
        let proxy = Proxy::builder()
            .simulator(&simulator)
            .set("cache.tag_ttl", tag_ttl)
            .set("cache.absent_ttl", "1h")
            .start();
        let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
        Self {
            simulator,
            image,
            proxy,
            path,
        }
    }

    /// How often upstream was asked for manifests by this method.
    fn asked(&self, method: &str) -> usize {
        self.simulator.journal().count(|entry| is(entry, method))
    }
}

fn is(entry: &Entry, method: &str) -> bool {
    entry.listener == Listener::Registry
        && entry.method == method
        && entry.path.contains("/manifests/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_believed_for_its_time_without_a_question() {
    let rig = Rig::with("1h").await;
    let client = rig.proxy.client();
    assert_eq!(client.get(&rig.path).await.header("x-cache"), Some("miss"));
    let asked = rig.asked("GET") + rig.asked("HEAD");
    let other = rig
        .simulator
        .push_image(REPOSITORY, TAG, ImageSpec::generated(9, [1000]));
    for method in ["GET", "HEAD", "GET"] {
        let answer = client.ask(method, &rig.path, &[]).await;
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(rig.image.top.digest.as_str())
        );
        assert_eq!(answer.header("x-cache"), Some("hit"));
    }
    assert_eq!(rig.asked("GET") + rig.asked("HEAD"), asked);
    // By its digest the other is to be had all the same.
    let path = format!("/v2/{REPOSITORY}/manifests/{}", other.top.digest);
    assert_eq!(client.get(&path).await.digest(), other.top.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_tag_costs_one_head_and_no_body() {
    let rig = Rig::with("0s").await;
    let client = rig.proxy.client();
    let first = client.get(&rig.path).await;
    let (heads, gets) = (rig.asked("HEAD"), rig.asked("GET"));
    let second = client.get(&rig.path).await;
    assert_eq!(second.body, first.body);
    assert_eq!((rig.asked("HEAD"), rig.asked("GET")), (heads + 1, gets));

    // Moved, it costs the HEAD and the new manifest.
    let other = rig
        .simulator
        .push_image(REPOSITORY, TAG, ImageSpec::generated(9, [1000]));
    assert_eq!(client.get(&rig.path).await.digest(), other.top.digest);
    assert_eq!(rig.asked("GET"), gets + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_revalidations_are_one() {
    let rig = Rig::with("0s").await;
    let first = rig.proxy.client().get(&rig.path).await;
    let (heads, gets) = (rig.asked("HEAD"), rig.asked("GET"));
    let gate = Gate::new();
    let held = rig
        .simulator
        .faults()
        .on(Listener::Registry, "HEAD", "/manifests/");
    held.then(Fault::Hold(gate.clone()));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, path) = (rig.proxy.client(), rig.path.clone());
        asking.spawn(async move { client.get(&path).await });
    }
    within("the one HEAD", gate.arrived(1)).await;
    // All sixteen are being answered before the one question is.
    until("sixteen requests", async || {
        metric(&rig.proxy, "ecr_proxy_requests_active", &[]).await >= 16.0
    })
    .await;
    gate.open();
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.expect("no panic").body, first.body);
    }
    assert_eq!((rig.asked("HEAD"), rig.asked("GET")), (heads + 1, gets));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_first_pulls_of_a_tag_are_one_question() {
    let rig = Rig::with("1h").await;
    let gate = Gate::new();
    let held = rig
        .simulator
        .faults()
        .on(Listener::Registry, "*", "/manifests/");
    held.times(1).then(Fault::Hold(gate.clone()));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, path) = (rig.proxy.client(), rig.path.clone());
        asking.spawn(async move { client.get(&path).await });
    }
    within("the one question", gate.arrived(1)).await;
    until("sixteen requests", async || {
        metric(&rig.proxy, "ecr_proxy_requests_active", &[]).await >= 16.0
    })
    .await;
    gate.open();
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.expect("no panic").digest(), rig.image.top.digest);
    }
    assert_eq!(rig.asked("GET"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_upstream_a_tag_is_stale_and_says_so() {
    let rig = Rig::with("0s").await;
    let client = rig.proxy.client();
    let first = client.get(&rig.path).await;
    assert_eq!((first.header("age"), first.header("warning")), (None, None));
    let rules = [
        Fault::status(503, "later"),
        Fault::status(500, "oops"),
        Fault::Reset,
    ];
    for fault in rules {
        let rule = rig.simulator.faults().on(Listener::Registry, "*", "/v2/");
        let rule = rule.then(fault.clone());
        let stale = client.get(&rig.path).await;
        assert_eq!(stale.status, 200, "{fault:?}: {}", stale.text());
        assert_eq!(stale.header("x-cache"), Some("stale"), "{fault:?}");
        rule.remove();
    }
    rig.simulator.outage(Outage::Refused).await;
    for (method, body) in [("GET", first.body.as_slice()), ("HEAD", b"")] {
        let stale = client.ask(method, &rig.path, &[]).await;
        assert_eq!((stale.status, stale.body.as_slice()), (200, body));
        assert_eq!(stale.header("x-cache"), Some("stale"));
        let age = stale.header("age").expect("an Age");
        assert!(age.parse::<u64>().is_ok(), "{age}");
        assert!(
            stale.head.header_values("warning")[0].starts_with("299 - \""),
            "{:?}",
            stale.head.header_values("warning")
        );
    }
    // By digest there is nothing to be stale.
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", rig.image.top.digest);
    let exact = client.get(&by_digest).await;
    assert_eq!(exact.header("x-cache"), Some("hit"));
    // What was never seen is not absent: nobody can say.
    let unseen = client
        .get(&format!("/v2/{REPOSITORY}/manifests/unseen"))
        .await;
    assert_eq!(unseen.status, 503, "{}", unseen.text());
    assert!(unseen.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn u17_a_no_is_never_papered_over() {
    let rig = Rig::with("0s").await;
    let client = rig.proxy.client();
    assert_eq!(client.get(&rig.path).await.status, 200);
    rig.simulator.delete_manifest(REPOSITORY, TAG);
    let gone = client.get(&rig.path).await;
    assert_eq!(
        (gone.status, gone.error_code().as_str()),
        (404, "MANIFEST_UNKNOWN")
    );
    assert_eq!(gone.header("x-cache"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_remembered_for_its_time() {
    let rig = Rig::with("0s").await;
    let client = rig.proxy.client();
    let path = format!("/v2/{REPOSITORY}/manifests/absent");
    for _ in 0..3 {
        let answer = client.get(&path).await;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (404, "MANIFEST_UNKNOWN")
        );
    }
    let asked = |entry: &Entry| entry.path.ends_with("/manifests/absent");
    let asked = rig.simulator.journal().count(asked);
    assert!((1..=2).contains(&asked), "asked {asked} times");
    let missing = client.get("/v2/no/such/manifests/v1").await;
    assert_eq!(
        (missing.status, missing.error_code().as_str()),
        (404, "NAME_UNKNOWN")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_forgotten_after_its_time() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.absent_ttl", "0s")
        .start();
    let path = format!("/v2/{REPOSITORY}/manifests/later");
    assert_eq!(proxy.client().get(&path).await.status, 404);
    simulator.tag(REPOSITORY, "later", &image.top.digest);
    assert_eq!(proxy.client().get(&path).await.digest(), image.top.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_come_byte_for_byte_with_their_type_and_a_digest_of_ours() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    let client = proxy.client();
    for (tag, flavour) in [("oci", Flavour::Oci), ("docker", Flavour::Docker)] {
        let spec = ImageSpec::generated(3, [1000, 2000]).flavour(flavour);
        simulator.push_image(
            REPOSITORY,
            tag,
            spec.platforms(["linux/amd64", "linux/arm64"]),
        );
    }
    // Spaces, order and repeated keys are the publisher's own, and part of the digest.
    let odd = "{ \"schemaVersion\" : 2,\n\t\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\
               \"x\":1,\"manifests\":[]}\n";
    let index = "application/vnd.oci.image.index.v1+json";
    simulator.put_manifest(REPOSITORY, "odd", index, odd.as_bytes().to_vec());
    for tag in ["oci", "docker", "odd"] {
        let (media_type, bytes) = simulator.manifest(REPOSITORY, tag).expect("just pushed");
        let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
        for turn in ["first", "second"] {
            let answer = client.get(&path).await;
            assert_eq!(answer.status, 200, "{turn} {tag}: {}", answer.text());
            assert_eq!(answer.body, bytes, "{turn} {tag}");
            assert_eq!(answer.header("content-type"), Some(media_type.as_str()));
            // ECR sends none with a GET.
            let digest = answer.digest();
            assert_eq!(
                answer.header("docker-content-digest"),
                Some(digest.as_str())
            );
            let head = client.head(&path).await;
            for same in [
                "content-type",
                "content-length",
                "docker-content-digest",
                "etag",
            ] {
                assert_eq!(
                    head.header(same),
                    answer.header(same),
                    "{turn} {tag}: {same}"
                );
            }
        }
    }
}
