//! How fresh tags are is policy: for how long they are believed, for how long past that without an
//! answer, which of them never move, and what is never asked at all. Whatever is served without
//! upstream's word says so.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{
    Entry, FULL_ACCESS_KEY, Fault, Gate, ImageSpec, Listener, Outage, PULL_ONLY_ACCESS_KEY,
    PushedImage, Simulator,
};
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::{Answer, Client, Proxy, Stopwatch, image, within};

struct Rig {
    simulator: Simulator,
    image: PushedImage,
    proxy: Proxy,
    path: String,
}

impl Rig {
    /// The proxy has the tag, and asked for it once.
    async fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = image::push(&simulator);
        let proxy = Proxy::builder().simulator(&simulator);
        let proxy = configure(proxy.set("cache.tag_ttl", "0s")).start();
        let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
        let rig = Self {
            simulator,
            image,
            proxy,
            path,
        };
        assert_eq!(rig.pull().await.header("x-cache"), Some("miss"));
        rig.simulator.journal().clear();
        rig
    }

    async fn pull(&self) -> Answer {
        self.proxy.client().get(&self.path).await
    }

    /// The tag names another image upstream.
    fn move_tag(&self) -> PushedImage {
        let spec = ImageSpec::generated(9, [1000]);
        self.simulator.push_image(REPOSITORY, TAG, spec)
    }

    /// How often upstream was asked, and how often by HEAD.
    fn asked(&self) -> (usize, usize) {
        let about = |entry: &Entry| {
            entry.listener == Listener::Registry && entry.path.contains("/manifests/")
        };
        let journal = self.simulator.journal();
        let heads = journal.count(|entry| about(entry) && entry.method == "HEAD");
        (journal.count(about), heads)
    }
}

/// Fails unless the answer is the image's, stale, and says so with this code.
fn assert_stale(answer: &Answer, image: &PushedImage, code: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.digest(), image.top.digest);
    assert_eq!(answer.header("x-cache"), Some("stale"));
    let age = answer.header("age").expect("an Age");
    assert!(age.parse::<u64>().is_ok(), "{age}");
    let warnings = answer.head.header_values("warning");
    let codes: Vec<&str> = warnings.iter().filter_map(|w| w.get(..3)).collect();
    assert_eq!(codes, ["299", code], "{warnings:?}");
}

fn assert_cannot_tell(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn o02_past_its_limit_a_stale_tag_is_not_served_and_not_absent() {
    let rig = Rig::with(|builder| builder.set("cache.stale_if_error", "0s")).await;
    let kept_longer = Rig::with(|builder| {
        let builder = builder.set("cache.stale_if_error", "0s");
        builder.route([("repository", "team/**"), ("stale_if_error", "1h")])
    })
    .await;
    for rig in [&rig, &kept_longer] {
        rig.simulator.outage(Outage::Refused).await;
    }
    assert_cannot_tell(&rig.pull().await);
    assert_stale(&kept_longer.pull().await, &kept_longer.image, "111");
    let unseen = format!("/v2/{REPOSITORY}/manifests/unseen");
    assert_cannot_tell(&rig.proxy.client().get(&unseen).await);
    // By digest nothing can be stale.
    let exact = format!("/v2/{REPOSITORY}/manifests/{}", rig.image.top.digest);
    assert_eq!(rig.proxy.client().get(&exact).await.status, 200);
    rig.simulator.outage(Outage::None).await;
    until("the tag is confirmed", async || {
        rig.pull().await.header("x-cache") == Some("hit")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o02_an_unchanged_tag_costs_one_head_and_its_check_survives_a_restart() {
    let mut rig =
        Rig::with(|builder| builder.route([("repository", REPOSITORY), ("tag_ttl", "1h")])).await;
    assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
    rig.proxy.terminate();
    assert!(rig.proxy.wait().success());
    rig.proxy.restart();
    assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
    assert_eq!(rig.asked(), (0, 0), "believed across the restart");

    let rig = Rig::with(|builder| builder).await;
    assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
    assert_eq!(rig.asked(), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn immutable_tags_are_never_asked_for_again() {
    let by_pattern = Rig::with(|builder| {
        let patterns = vec![TAG.replace(|c: char| c.is_ascii_digit(), "*")];
        builder.upstream_key("immutable_tags", patterns)
    })
    .await;
    let by_route = Rig::with(|builder| {
        let immutable = toml::Value::from(true);
        builder.route([
            ("repository", "team/*".into()),
            ("immutable_tags", immutable),
        ])
    })
    .await;
    for rig in [by_pattern, by_route] {
        rig.move_tag();
        let answer = rig.pull().await;
        assert_eq!(answer.digest(), rig.image.top.digest);
        assert_eq!(answer.header("x-cache"), Some("hit"));
        assert_eq!(rig.asked(), (0, 0));
        // Only what it is said of.
        let other = format!("/v2/other/manifests/{TAG}");
        rig.simulator
            .push_image("other", "latest", ImageSpec::generated(3, [10]));
        assert_eq!(rig.proxy.client().get(&other).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_nothing_is_asked_and_what_is_kept_is_served() {
    let mut rig = Rig::with(|builder| builder.set("cache.stale_if_error", "0s")).await;
    rig.proxy.terminate();
    assert!(rig.proxy.wait().success());
    rig.proxy.set("cache.offline", true);
    rig.proxy.restart();
    rig.simulator.journal().clear();
    assert_stale(&rig.pull().await, &rig.image, "112");
    let client = rig.proxy.client();
    for path in [
        format!("/v2/{REPOSITORY}/manifests/unseen"),
        format!("/v2/{REPOSITORY}/blobs/sha256:{}", "0".repeat(64)),
    ] {
        let began = Stopwatch::start();
        assert_cannot_tell(&client.get(&path).await);
        assert!(began.took() < Duration::from_secs(4), "{path}");
    }
    let tags = client.get(&format!("/v2/{REPOSITORY}/tags/list")).await;
    assert_eq!(tags.status, 200, "{}", tags.text());
    assert_eq!(tags.header("x-cache"), Some("stale"));
    let labels = [r#"reason="offline""#];
    assert_eq!(
        metric(&rig.proxy, "ecr_proxy_stale_answers_total", &labels).await,
        1.0
    );
    assert_eq!(
        rig.simulator.journal().snapshot().len(),
        0,
        "asked nothing at all"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_may_be_one_route() {
    let rig = Rig::with(|builder| {
        let offline = toml::Value::from(true);
        builder.route([("repository", "frozen/**".into()), ("offline", offline)])
    })
    .await;
    rig.simulator
        .push_image("frozen/app", "v1", ImageSpec::generated(3, [10]));
    let frozen = rig.proxy.client().get("/v2/frozen/app/manifests/v1").await;
    assert_cannot_tell(&frozen);
    assert_eq!(rig.asked(), (0, 0));
    assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_slow_line_a_stale_tag_is_served_while_it_is_checked() {
    let rig = Rig::with(|builder| builder.set("cache.tag_wait", "3s")).await;
    let other = rig.move_tag();
    let gate = Gate::new();
    let faults = rig.simulator.faults();
    let held = faults.on(Listener::Registry, "*", "/manifests/");
    held.then(Fault::Hold(gate.clone()));
    assert_stale(&rig.pull().await, &rig.image, "110");
    within("the question that goes on", gate.arrived(1)).await;
    // Those who come while it is asked do not wait again.
    let began = Stopwatch::start();
    for _ in 0..10 {
        assert_stale(&rig.pull().await, &rig.image, "110");
    }
    assert!(began.took() < Duration::from_secs(20), "{:?}", began.took());
    assert_eq!(rig.asked(), (1, 1));
    let ready = Client::operator(rig.proxy.admin()).get("/readyz").await;
    assert!(
        ready.text().contains("11 answers as last confirmed since"),
        "{}",
        ready.text()
    );
    let labels = [r#"reason="slow""#];
    assert_eq!(
        metric(&rig.proxy, "ecr_proxy_stale_answers_total", &labels).await,
        11.0
    );
    gate.open();
    // It may be in the records a moment before nobody waits for it any more.
    until("the answer counts for the next", async || {
        let answer = rig.pull().await;
        answer.digest() == other.top.digest && answer.header("x-cache") != Some("stale")
    })
    .await;
    let ready = Client::operator(rig.proxy.admin()).get("/readyz").await;
    assert!(
        !ready.text().contains("as last confirmed"),
        "{}",
        ready.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_a_no_however_stale_answers_are_allowed() {
    let rig = Rig::with(|builder| builder.set("cache.stale_if_error", "forever")).await;
    let denial = r#"{"errors":[{"code":"DENIED","message":"not authorized"}]}"#;
    let faults = rig.simulator.faults();
    let denied = faults.on(Listener::Registry, "*", "/manifests/");
    let denied = denied.then(Fault::status(403, denial));
    assert_eq!(rig.pull().await.status, 403);
    denied.remove();
    assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
    rig.simulator.delete_manifest(REPOSITORY, TAG);
    assert_eq!(rig.pull().await.status, 404);
    // Known to be absent, and not for longer than that is believed.
    rig.simulator.outage(Outage::Refused).await;
    assert_eq!(rig.pull().await.status, 404);
    until("absence is forgotten", async || {
        let answer = rig.pull().await;
        answer.status == 503
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o07_a_record_past_its_time_is_not_asked_for_by_every_hit() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let proxy = Proxy::builder().simulator(&simulator);
    let proxy = proxy.set("cache.record_ttl", "0s").start();
    let client = proxy.client();
    let layer = &image.manifests[0].layers[0].digest;
    let paths = [
        format!("/v2/{REPOSITORY}/manifests/{}", image.top.digest),
        format!("/v2/{REPOSITORY}/blobs/{layer}"),
    ];
    let by_digest = format!(
        "/v2/{REPOSITORY}/manifests/{}",
        image.manifests[0].manifest.digest
    );
    assert_eq!(client.get(&by_digest).await.status, 200);
    for path in &paths {
        assert_eq!(client.get(path).await.status, 200);
    }
    simulator.journal().clear();
    let faults = simulator.faults();
    faults
        .on(Listener::Registry, "*", REPOSITORY)
        .then(Fault::status(500, "oops"));
    for _ in 0..20 {
        for path in &paths {
            assert_eq!(client.get(path).await.status, 200);
        }
    }
    // Each is asked once, with its attempts.
    let about = |entry: &Entry| entry.path.contains(REPOSITORY);
    let asked = simulator.journal().count(about);
    assert!(asked <= 2 * 3, "asked {asked} times for 40 hits");
}

/// A proxy that may ask which tags are immutable, in front of a repository where they are, but for some.
async fn learning(access_key: &str) -> Rig {
    let access_key = access_key.to_owned();
    let rig = Rig::with(|builder| builder.env("AWS_ACCESS_KEY_ID", &access_key)).await;
    rig.simulator.set_immutable(REPOSITORY, true);
    rig.simulator
        .tag(REPOSITORY, "latest", &rig.image.top.digest);
    rig.simulator.set_exclusions(REPOSITORY, &["late*"]);
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn immutability_is_learned_and_exceptions_are_honoured() {
    let rig = learning(FULL_ACCESS_KEY).await;
    let descriptions = "ecr_proxy_upstream_descriptions_total";
    rig.pull().await;
    until("it is learned", async || {
        metric(&rig.proxy, descriptions, &[r#"result="ok""#]).await == 1.0
    })
    .await;
    until("the tag is not asked for any more", async || {
        let (before, _) = rig.asked();
        rig.pull().await;
        rig.asked().0 == before
    })
    .await;
    let latest = format!("/v2/{REPOSITORY}/manifests/latest");
    for _ in 0..3 {
        let (before, _) = rig.asked();
        assert_eq!(rig.proxy.client().get(&latest).await.status, 200);
        assert!(rig.asked().0 > before, "an exception may move");
    }
    assert_eq!(
        metric(&rig.proxy, descriptions, &[]).await,
        1.0,
        "once a repository"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_learn_it_goes_on_asking_and_says_so_once() {
    let rig = learning(PULL_ONLY_ACCESS_KEY).await;
    let descriptions = "ecr_proxy_upstream_descriptions_total";
    rig.pull().await;
    until("it is refused", async || {
        metric(&rig.proxy, descriptions, &[r#"result="refused""#]).await == 1.0
    })
    .await;
    for _ in 0..3 {
        let (before, _) = rig.asked();
        assert_eq!(rig.pull().await.header("x-cache"), Some("hit"));
        assert_eq!(rig.asked().0, before + 1);
    }
    assert_eq!(
        metric(&rig.proxy, descriptions, &[]).await,
        1.0,
        "not again soon"
    );
    // It is counted before it is told.
    let is_told = |event: &support::Event| event.line.contains("DescribeRepositories");
    rig.proxy.log_until("the refusal", is_told).await;
    let mut told = rig.proxy.logs();
    told.retain(is_told);
    assert_eq!(
        told.iter().map(|event| event.level()).collect::<Vec<_>>(),
        ["INFO"]
    );
}
