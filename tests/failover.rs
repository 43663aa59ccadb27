//! A name survives its region: while an upstream cannot answer, the same repository is served from the
//! next one, and what says no is not gone around.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, FULL_ACCESS_KEY, Fault, Gate, Listener, Outage, Pattern, Simulator,
};
use support::blobs::{MIB, assert_content, blob_file, idle, metric, outcome, until};
use support::push::{self, APP, MANIFEST, PASSWORD, push_image, users};
use support::two::{Two, pull, put};
use support::users::login;
use support::{Answer, Client, Proxy, Stopwatch, store};

const SIZE: u64 = 1 << 18;

fn before(two: &Two) -> Proxy {
    two.with_fallback().start()
}

/// Bytes of a blob that storage there sent.
fn sent(simulator: &Simulator, digest: &str) -> u64 {
    let journal = simulator.journal();
    journal.body_bytes(|entry| {
        entry.listener == Listener::Storage && entry.digest.as_deref() == Some(digest)
    })
}

/// The head that several clients of one blob were sent, and what they go on to read.
async fn begin(
    proxy: &Proxy,
    digest: &str,
    clients: usize,
) -> Vec<(support::Connection, support::client::Head)> {
    let path = format!("/v2/team/app/blobs/{digest}");
    let mut begun = Vec::new();
    for _ in 0..clients {
        let mut connection = proxy.client().start("GET", &path, &[]).await;
        let head = connection.head().await.expect("a head");
        assert_eq!(head.status, 200);
        begun.push((connection, head));
    }
    begun
}

/// Storage there stops in the middle of the next body of a blob, until the gate opens.
fn hold_after(simulator: &Simulator, digest: &str, bytes: u64) -> Gate {
    let gate = Gate::new();
    let faults = simulator.faults();
    faults
        .on(Listener::Storage, "GET", Pattern::digest(digest))
        .then(Fault::HoldAfter(bytes, gate.clone()));
    gate
}

/// Whether anything was asked of the repository there.
fn is_asked(simulator: &Simulator) -> bool {
    let journal = simulator.journal().snapshot();
    journal.iter().any(|entry| entry.path.contains("team/app"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_region_serves_while_the_first_is_away_and_no_longer() {
    let two = Two::start().await;
    for simulator in [&two.prod, &two.base] {
        put(simulator, "team/app", "v1", BlobSource::generated(1, SIZE));
        put(simulator, "team/app", "v2", BlobSource::generated(2, SIZE));
    }
    let proxy = before(&two);
    let client = proxy.client();
    let (manifest, layer) = pull(&client, "v1").await.expect("the first region");
    assert_eq!((&*manifest, &*layer), ("miss", "miss"));

    two.prod.outage(Outage::Refused).await;
    // What is not cached comes from the second, which had no part in it so far.
    assert!(!is_asked(&two.base));
    let (manifest, layer) = pull(&client, "v2").await.expect("the second region");
    assert_eq!(manifest, "miss; fallback");
    assert!(
        layer == "miss; fallback" || layer == "joined; fallback",
        "{layer}"
    );
    // A tag that would be stale is fresh there.
    until("the second region tells of the tag", async || {
        pull(&client, "v1")
            .await
            .expect("v1")
            .0
            .ends_with("; fallback")
    })
    .await;
    assert!(metric(&proxy, "ecr_proxy_fallback_answers_total", &[]).await >= 2.0);
    let status = Client::operator(proxy.admin()).get("/api/v1/status").await;
    assert_eq!(status.json()["upstreams"][0]["stand_in"], "base");
    let told = proxy.log_until("who answered", |event| {
        event.field("upstream.is_fallback").as_deref() == Some("true")
    });
    let event = told.await;
    assert_eq!(event.field("upstream.name").as_deref(), Some("prod"));

    two.prod.outage(Outage::None).await;
    until("the first region is back", async || {
        pull(&client, "v2").await.expect("v2").0 == "miss"
    })
    .await;
    let (manifest, layer) = pull(&client, "v2").await.expect("v2");
    assert_eq!((&*manifest, &*layer), ("hit", "hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_not_gone_around_and_a_no_elsewhere_is_none() {
    let two = Two::start().await;
    put(
        &two.base,
        "team/app",
        "only-there",
        BlobSource::generated(1, SIZE),
    );
    put(
        &two.prod,
        "team/app",
        "only-here",
        BlobSource::generated(2, SIZE),
    );
    let proxy = before(&two);
    let client = proxy.client();
    let there = client.get("/v2/team/app/manifests/only-there").await;
    assert_eq!(there.status, 404, "{}", there.text());
    assert!(!is_asked(&two.base));
    pull(&client, "only-here").await.expect("it is there");
    idle(&proxy).await;

    two.prod.outage(Outage::Refused).await;
    let kept = client.get("/v2/team/app/manifests/only-here").await;
    assert_eq!((kept.status, outcome(&kept)), (200, Some("stale")));
    let never_seen = client.get("/v2/team/app/manifests/neither").await;
    assert_eq!(never_seen.status, 503, "{}", never_seen.text());
    // Neither has what the other's credential opens.
    let refused = |entry: &ecr_proxy::simulator::Entry| {
        entry.listener == Listener::Registry && entry.status == Some(401)
    };
    assert!(!two.base.journal().snapshot().iter().any(refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_means_what_it_does_where_it_is_asked_and_its_digest_is_not_denied() {
    let two = Two::start().await;
    let (_, old) = put(&two.base, "team/app", "v1", BlobSource::generated(1, SIZE));
    let (layer, new) = put(&two.prod, "team/app", "v1", BlobSource::generated(2, SIZE));
    let (_, unseen) = put(&two.prod, "team/app", "v2", BlobSource::generated(3, SIZE));
    let proxy = before(&two);
    let client = proxy.client();
    let head = client.head("/v2/team/app/manifests/v1").await;
    assert_eq!(head.header("docker-content-digest"), Some(&*new));

    two.prod.outage(Outage::Refused).await;
    let by_digest = async |digest: &str| {
        let path = format!("/v2/team/app/manifests/{digest}");
        client.get(&path).await
    };
    let kept = by_digest(&new).await;
    assert_eq!((kept.status, outcome(&kept)), (200, Some("hit")));
    // That the other region has not got them is no word of the first.
    let blob = client.get(&format!("/v2/team/app/blobs/{layer}")).await;
    for answer in [by_digest(&unseen).await, blob] {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    // One that lags behind tells what it has, and is named.
    let (manifest, _) = pull(&client, "v1").await.expect("the second region");
    assert!(manifest.ends_with("; fallback"), "{manifest}");
    let there = client.head("/v2/team/app/manifests/v1").await;
    assert_eq!(there.header("docker-content-digest"), Some(&*old));

    two.prod.outage(Outage::None).await;
    until("the first region's word counts", async || {
        let head = client.head("/v2/team/app/manifests/v1").await;
        head.header("docker-content-digest") == Some(&*new)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_region_that_throttles_without_end_is_not_waited_for_where_another_has_it() {
    const TAGS: u64 = 4;
    let two = Two::start().await;
    for seed in 0..TAGS {
        for simulator in [&two.prod, &two.base] {
            let layer = BlobSource::generated(seed, SIZE);
            put(simulator, "team/app", &format!("v{seed}"), layer);
        }
    }
    let proxy = before(&two);
    let client = proxy.client();
    // The first image's manifest is known, and proves its layer here.
    let known = client.get("/v2/team/app/manifests/v0").await;
    assert_eq!((known.status, outcome(&known)), (200, Some("miss")));
    let asked = || {
        let journal = two.prod.journal();
        journal.count(|entry| entry.listener == Listener::Registry)
    };
    let faults = two.prod.faults();
    faults
        .on(Listener::Registry, "*", Pattern::any())
        .then(Fault::throttled(None));
    let (before, watch) = (asked(), Stopwatch::start());
    for seed in 0..TAGS {
        let (manifest, layer) = pull(&client, &format!("v{seed}")).await.expect("an image");
        let by_another = |said: &str| said.ends_with("; fallback");
        assert!(by_another(&manifest), "{manifest}");
        assert!(by_another(&layer), "{layer}");
    }
    let tags = client.get("/v2/team/app/tags/list").await;
    assert_eq!(outcome(&tags), Some("bypass; fallback"));
    // Less than throttling is waited out for one question where nobody else is to be asked.
    let took = watch.took();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let asked = asked() - before;
    assert!(asked <= 8, "asked {asked} times meanwhile");

    // It is asked again as soon as it answers.
    faults.clear();
    until("the first region is back", async || {
        pull(&client, "v0").await.expect("v0").0 == "hit"
    })
    .await;
}

/// The first region throttles the next question about a blob, for longer than another is left unasked.
fn throttle_next(two: &Two, digest: &str) {
    let faults = two.prod.faults();
    let next = faults.on(Listener::Registry, "GET", Pattern::digest(digest));
    next.times(1).then(Fault::throttled(Some("4")));
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_region_that_throttles_is_waited_for_where_the_next_has_lost_the_blob() {
    let two = Two::start().await;
    let mut layer = String::new();
    for simulator in [&two.prod, &two.base] {
        layer = put(simulator, "team/app", "v0", BlobSource::generated(0, SIZE)).0;
    }
    let proxy = before(&two);
    let client = proxy.client();
    // Both manifests are known, and prove the layer.
    let outage = two.prod.faults();
    outage
        .on(Listener::Registry, "*", Pattern::any())
        .then(Fault::status(503, "away"));
    let known = client.get("/v2/team/app/manifests/v0").await;
    assert_eq!(
        (known.status, outcome(&known)),
        (200, Some("miss; fallback"))
    );
    outage.clear();
    until("the first region is back", async || {
        let manifest = client.get("/v2/team/app/manifests/v0").await;
        outcome(&manifest).is_some_and(|outcome| !outcome.ends_with("fallback"))
    })
    .await;
    two.base.delete_blob("team/app", &layer);
    throttle_next(&two, &layer);
    let answer = client.get(&format!("/v2/team/app/blobs/{layer}")).await;
    assert_content(&answer, &layer);
    assert_eq!(outcome(&answer), Some("miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn u12_a_region_that_throttles_is_waited_for_by_whom_nothing_stands_in_for() {
    let two = Two::start().await;
    let mut layer = String::new();
    for simulator in [&two.prod, &two.base] {
        layer = put(simulator, "team/app", "v0", BlobSource::generated(0, SIZE)).0;
    }
    let proxy = two
        .with_fallback()
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
        .start();
    let token = two.prod.token(FULL_ACCESS_KEY).expect("a principal");
    let client = login(proxy.client(), "AWS", &token.password);
    let manifest = client.get("/v2/team/app/manifests/v0").await;
    assert_eq!(manifest.status, 200, "{}", manifest.text());
    // What ECR says of the token is known from here on.
    let config = format!("/v2/team/app/blobs/{}", store::digest(b"{}"));
    assert_eq!(client.get(&config).await.status, 200);
    throttle_next(&two, &layer);
    let answer = client.get(&format!("/v2/team/app/blobs/{layer}")).await;
    assert_content(&answer, &layer);
    assert_eq!(outcome(&answer), Some("miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_the_loss_of_the_first_region_fails_nobody() {
    const CLIENTS: usize = 8;
    const TAGS: u64 = 40;
    let two = Two::start().await;
    for seed in 0..TAGS {
        for simulator in [&two.prod, &two.base] {
            let layer = BlobSource::generated(seed, SIZE);
            put(simulator, "team/app", &format!("v{seed}"), layer);
        }
    }
    let proxy = before(&two);
    let (pulled, is_cut) = (AtomicUsize::new(0), AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|number| {
        let (proxy, pulled, is_cut) = (&proxy, &pulled, &is_cut);
        async move {
            let client = proxy.client();
            let mut after = 0;
            for turn in 0..TAGS {
                let tag = format!("v{}", (turn + number as u64 * 5) % TAGS);
                let cut_before = is_cut.load(Ordering::SeqCst);
                // Not even those that were under way.
                assert!(pull(&client, &tag).await.is_some(), "{tag} failed");
                pulled.fetch_add(1, Ordering::SeqCst);
                after += usize::from(cut_before);
            }
            after
        }
    });
    let cut = async {
        until("some pulls", async || {
            pulled.load(Ordering::SeqCst) >= CLIENTS * 4
        })
        .await;
        two.prod.outage(Outage::Refused).await;
        is_cut.store(true, Ordering::SeqCst);
    };
    let (after, ()) = tokio::join!(futures_util::future::join_all(clients), cut);
    let after: usize = after.into_iter().sum();
    assert!(after > 0, "nothing was pulled after the cut");
    assert!(metric(&proxy, "ecr_proxy_fallback_answers_total", &[]).await > 0.0);
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_under_way_goes_on_in_the_next_region_and_every_reader_gets_the_whole() {
    // By one connection, and by as many as are worth it.
    for (size, rate) in [(24 * MIB, None), (64 * MIB, Some(12 * MIB))] {
        let two = Two::start().await;
        let mut digest = String::new();
        for simulator in [&two.prod, &two.base] {
            digest = put(simulator, "team/app", "v1", BlobSource::generated(1, size)).0;
        }
        let gate = hold_after(&two.prod, &digest, size / 3);
        if let Some(rate) = rate {
            let slow = two.base.faults();
            slow.on(Listener::Storage, "GET", Pattern::digest(&digest))
                .then(Fault::Rate(rate));
        }
        let proxy = before(&two);
        let begun = begin(&proxy, &digest, 5).await;
        gate.arrived(1).await;
        assert_eq!(sent(&two.base, &digest), 0);
        // The region is gone for good, registry and storage.
        two.prod.outage(Outage::Refused).await;
        let readers = begun.into_iter().map(async |(mut connection, head)| {
            let (body, clean_end) = connection.body("GET", &head).await;
            assert!(clean_end, "cut after {} bytes", body.len());
            assert_eq!(store::digest(&body), digest, "{} bytes", body.len());
        });
        let readers = futures_util::future::join_all(readers);
        support::within("every reader is through", readers).await;
        idle(&proxy).await;
        assert_eq!(proxy.assert_blobs_are_sound(), [digest.clone()]);
        let (first, second) = (sent(&two.prod, &digest), sent(&two.base, &digest));
        assert!(first > 0 && second > 0, "{first} and {second}");
        let most = size + size / 20;
        assert!(first + second <= most, "{first} + {second} of {size}");
        assert!(metric(&proxy, "ecr_proxy_fallback_answers_total", &[]).await >= 1.0);
        let hit = proxy
            .client()
            .get(&format!("/v2/team/app/blobs/{digest}"))
            .await;
        assert_eq!(outcome(&hit), Some("hit"));
        assert_content(&hit, &digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u09_what_the_next_region_has_under_the_digest_is_hashed_all_the_same() {
    let two = Two::start().await;
    let (digest, _) = put(
        &two.prod,
        "team/app",
        "v1",
        BlobSource::generated(1, 8 * MIB),
    );
    let other = BlobSource::generated(2, 8 * MIB);
    two.base.put_blob_as("team/app", &digest, other);
    hold_after(&two.prod, &digest, 2 * MIB);
    let proxy = before(&two);
    let mut begun = begin(&proxy, &digest, 1).await;
    let (mut connection, head) = begun.remove(0);
    let first = connection.read_exactly(MIB).await.expect("the beginning");
    assert_eq!(first, BlobSource::generated(1, 8 * MIB).read(0..MIB));
    two.prod.outage(Outage::Refused).await;
    let (_, clean_end) = connection.body("GET", &head).await;
    assert!(!clean_end, "what is not the blob ended as if it were");
    idle(&proxy).await;
    assert!(sent(&two.base, &digest) > 0);
    assert!(!blob_file(&proxy, &digest).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_waits_for_its_region_where_the_next_has_not_the_blob() {
    let two = Two::start().await;
    let (digest, _) = put(
        &two.prod,
        "team/app",
        "v1",
        BlobSource::generated(1, 8 * MIB),
    );
    two.base.create_repository("team/app");
    let gate = hold_after(&two.prod, &digest, 2 * MIB);
    let proxy = before(&two);
    let mut begun = begin(&proxy, &digest, 1).await;
    gate.arrived(1).await;
    two.prod.outage(Outage::Refused).await;
    until("the next region was asked", async || is_asked(&two.base)).await;
    two.prod.faults().clear();
    two.prod.outage(Outage::None).await;
    let (mut connection, head) = begun.remove(0);
    let (body, clean_end) = connection.body("GET", &head).await;
    assert!(clean_end, "cut after {} bytes", body.len());
    assert_eq!(store::digest(&body), digest);
    assert_eq!(sent(&two.base, &digest), 0);
}

/// The artifact types of a list of referrers.
fn kinds(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let index = answer.json();
    let entries = index["manifests"].as_array().expect("an index").iter();
    entries
        .map(|entry| {
            entry["artifactType"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_from_the_next_region_and_are_remembered_when_that_is_away_too() {
    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
    let two = Two::start().await;
    let mut subject = String::new();
    for simulator in [&two.prod, &two.base] {
        subject = put(simulator, "team/app", "v1", BlobSource::generated(1, SIZE)).1;
        for kind in ["a/sbom", "a/signature"] {
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"{TYPE}","artifactType":"{kind}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"{TYPE}","digest":"{subject}","size":2}}}}"#,
                store::digest(b"{}")
            );
            simulator.put_manifest("team/app", "", TYPE, manifest);
        }
    }
    let proxy = before(&two);
    let client = proxy.client();
    let referrers = format!("/v2/team/app/referrers/{subject}");
    two.prod.outage(Outage::Refused).await;
    let all = client.get(&referrers).await;
    assert_eq!(
        (kinds(&all).len(), outcome(&all)),
        (2, Some("bypass; fallback"))
    );
    let one = client
        .get(&format!("{referrers}?artifactType=a%2Fsbom"))
        .await;
    assert_eq!(kinds(&one), ["a/sbom"]);
    assert_eq!(one.header("oci-filters-applied"), Some("artifactType"));
    let tags = client.get("/v2/team/app/tags/list").await;
    assert_eq!(tags.json()["tags"], serde_json::json!(["v1"]));
    assert_eq!(outcome(&tags), Some("bypass; fallback"));

    two.base.outage(Outage::Refused).await;
    let stale = client.get(&referrers).await;
    assert_eq!(
        (kinds(&stale).len(), outcome(&stale)),
        (2, Some("stale; fallback"))
    );
    // Upstream's own word counts as soon as there is one.
    two.prod.outage(Outage::None).await;
    until("the first region is back", async || {
        outcome(&client.get(&referrers).await) == Some("bypass")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stands_in_for_what_ecr_said_of_a_callers_token() {
    let two = Two::start().await;
    two.put_two_tags();
    let proxy = two
        .with_fallback()
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
        .start();
    let token = two.prod.token(FULL_ACCESS_KEY).expect("a principal");
    let client = login(proxy.client(), "AWS", &token.password);
    let (_, layer) = pull(&client, "v1").await.expect("the first region");
    assert_eq!(layer, "miss");
    idle(&proxy).await;
    two.prod.outage(Outage::Refused).await;
    let other = two.base.manifest("team/app", "v2").expect("it is there").1;
    let other = store::digest(&other);
    for path in [
        "manifests/v2".to_owned(),
        format!("manifests/{other}"),
        format!(
            "blobs/{}",
            put(&two.base, "team/app", "v3", BlobSource::generated(3, SIZE)).0
        ),
        "tags/list".to_owned(),
        format!("referrers/{other}"),
    ] {
        let answer = client.get(&format!("/v2/team/app/{path}")).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
    }
    let answer = client.get("/v2/_catalog").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(!is_asked(&two.base), "the next region was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_the_next_region_alone_is_told_when_that_is_away_too() {
    let two = Two::start().await;
    two.put_two_tags();
    let proxy = before(&two);
    let client = proxy.client();
    two.prod.outage(Outage::Refused).await;
    pull(&client, "v1").await.expect("the second region");
    idle(&proxy).await;
    two.base.outage(Outage::Refused).await;
    let (manifest, layer) = pull(&client, "v1").await.expect("the cache");
    assert_eq!((&*manifest, &*layer), ("stale; fallback", "hit; fallback"));
    let digest = client.get("/v2/team/app/manifests/v1").await.json();
    let digest = digest["layers"][0]["digest"].as_str().expect("a layer");
    let head = client.head(&format!("/v2/team/app/blobs/{digest}")).await;
    assert_eq!((head.status, outcome(&head)), (200, Some("hit; fallback")));
    for (path, key, expected) in [
        ("/v2/team/app/tags/list", "tags", "v1"),
        ("/v2/_catalog", "repositories", "team/app"),
    ] {
        let list = client.get(path).await;
        assert_eq!(list.status, 200, "{path}: {}", list.text());
        assert_eq!(list.json()[key], serde_json::json!([expected]));
        assert_eq!(outcome(&list), Some("stale; fallback"), "{path}");
        assert!(list.header("age").is_some(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_and_a_delete_go_to_their_own_region_or_nowhere() {
    let two = Two::start().await;
    two.put_two_tags();
    let proxy = users(two.with_fallback()).start();
    let ann = login(proxy.client(), "ann", PASSWORD);
    let tag = format!("/v2/{APP}/manifests/v1");
    assert_eq!(ann.get(&tag).await.status, 200);
    two.prod.outage(Outage::Refused).await;
    until("the next region stands in", async || {
        let pulled = ann.get(&tag).await;
        pulled
            .header("x-cache")
            .is_some_and(|it| it.ends_with("; fallback"))
    })
    .await;
    let asked = |simulator: &Simulator| {
        let journal = simulator.journal();
        journal.count(|e| e.listener == Listener::Registry && !matches!(&*e.method, "GET" | "HEAD"))
    };
    let uploads = format!("/v2/{APP}/blobs/uploads/");
    let (_, content) = two.base.manifest(APP, "v1").expect("an image");
    let typed = [("content-type", MANIFEST)];
    for answer in [
        ann.ask("POST", &uploads, &[]).await,
        push::put(&ann, &format!("/v2/{APP}/manifests/new"), &typed, &content).await,
        ann.ask("DELETE", &tag, &[]).await,
    ] {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!((asked(&two.prod), asked(&two.base)), (0, 0));
    assert_eq!(ann.get(&tag).await.status, 200, "it is there still");
    // Who may push pulls as others do.
    let (_, manifest) = two.base.manifest(APP, "v2").expect("an image");
    let by_digest = store::digest(&manifest);
    two.base.tag(APP, "elsewhere", &by_digest);
    for reference in ["elsewhere", &by_digest] {
        let head = ann.head(&format!("/v2/{APP}/manifests/{reference}")).await;
        let is_of_another = outcome(&head).is_some_and(|it| it.ends_with("; fallback"));
        assert_eq!((head.status, is_of_another), (200, true), "{reference}");
    }
    two.prod.outage(Outage::None).await;
    until("the first region is back", async || {
        ann.ask("POST", &uploads, &[]).await.status == 202
    })
    .await;
    let (pushed, _) = push_image(&ann, APP, "new", b"a layer").await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    assert!(two.prod.manifest(APP, "new").is_some() && two.base.manifest(APP, "new").is_none());
    assert_eq!(asked(&two.base), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_first_stand_in_is_away_too_or_says_no_the_second_is_asked() {
    let two = Two::start().await;
    let third = Simulator::builder().public().start().await;
    let third = third.expect("a simulator");
    let upstream = [
        ("name", "third".to_owned()),
        ("registry", third.registry_host()),
        ("endpoint", third.endpoint()),
        ("auth", "anonymous".to_owned()),
    ];
    let upstream = upstream.map(|(key, value)| (key.to_owned(), value.into()));
    let proxy = two
        .builder()
        .upstream_key("fallback", vec!["base", "third"])
        .another_upstream(upstream.into_iter().collect())
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let client = proxy.client();
    two.prod.outage(Outage::Refused).await;
    for is_away in [false, true] {
        let mut layer = String::new();
        let tag = if is_away { "v1" } else { "v2" };
        for simulator in [&two.prod, &two.base, &third] {
            let seed = u64::from(is_away);
            (layer, _) = put(simulator, APP, tag, BlobSource::generated(seed, SIZE));
        }
        let path = format!("/v2/{APP}/blobs/{layer}");
        let head = client.head(&path).await;
        assert_eq!((head.status, sent(&two.base, &layer)), (200, 0));
        // It is recorded as the second one's, which is away now, or has it no more.
        match is_away {
            true => two.base.outage(Outage::Refused).await,
            false => two.base.delete_blob(APP, &layer),
        }
        let blob = client.get(&path).await;
        assert_eq!(blob.status, 200, "{}", blob.text());
        assert_eq!((blob.digest(), sent(&third, &layer)), (layer, SIZE));
    }
}
