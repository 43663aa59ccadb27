//! SIGHUP replaces upstreams and routes while the proxy runs: the next request goes by the new ones, what was
//! begun with an upstream ends with it, and one that is configured as before stays what it is.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ecr_proxy::simulator::{
    BlobSource, Fault, Gate, Listener, Outage, Pattern, Simulator, path_contains,
};
use support::blobs::{MIB, assert_whole, metric, until};
use support::two::{Two, put};
use support::users::login;
use support::{Answer, Client, Event, Pki, Proxy, push, within};
use tokio::task::JoinSet;
use toml::Table;

/// `team/**` leads to the first upstream, `base/**` to the second.
async fn before(two: &Two) -> Proxy {
    two.builder()
        .route([("repository", "team/**"), ("upstream", "prod")])
        .route([("repository", "base/**"), ("upstream", "base")])
        .set("cache.absent_ttl", "1h")
        .start()
}

fn changed(event: &Event) -> Vec<String> {
    assert_eq!(event.message(), "reloaded", "{}", event.line);
    let keys = event.field("reload.changed").expect("the keys");
    keys.split(", ").map(str::to_owned).collect()
}

fn edited<'a>(tables: &'a mut [Table], name: &str) -> &'a mut Table {
    let mut tables = tables.iter_mut();
    let is_it = |table: &&mut Table| table["name"].as_str() == Some(name);
    tables.find(is_it).expect("an upstream of that name")
}

/// The account of the second upstream is the first's from now on.
fn become_base(proxy: &mut Proxy) {
    proxy.edit("upstream", |all| {
        let theirs = edited(all, "base").clone();
        let prod = edited(all, "prod");
        for key in ["registry", "endpoint", "profile"] {
            prod.insert(key.to_owned(), theirs[key].clone());
        }
    });
}

async fn tag(client: &Client, repository: &str, tag: &str) -> Answer {
    client
        .get(&format!("/v2/{repository}/manifests/{tag}"))
        .await
}

fn layer(seed: u64) -> BlobSource {
    BlobSource::generated(seed, 70_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_a_route_leads_elsewhere_from_the_next_request_on_and_nobody_logs_in_again() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "v1", layer(1));
    let (_, moved) = put(&two.base, "team/app", "v1", layer(2));
    put(&two.base, "team/app", "v2", layer(3));
    let mut proxy = before(&two).await;
    let client = proxy.client();
    assert_ne!(tag(&client, "team/app", "v1").await.digest(), moved);
    assert_eq!(tag(&client, "team/app", "v2").await.status, 404);
    assert_eq!(tag(&client, "base/app", "v1").await.status, 404);
    let logins = metric(&proxy, "ecr_proxy_token_refresh_total", &[]).await;

    proxy.edit("route", |routes| {
        routes[0].insert("upstream".to_owned(), "base".into());
    });
    assert_eq!(changed(&proxy.reload().await), ["route.upstream"]);
    assert_eq!(tag(&client, "team/app", "v1").await.digest(), moved);
    assert_eq!(tag(&client, "team/app", "v2").await.status, 200);
    // What tends the cache goes by the same routes.
    let listed = proxy.run(["cache", "list", "team/app", "--json"]).fine();
    assert!(listed.stdout.contains(&moved), "{listed:?}");
    let now = metric(&proxy, "ecr_proxy_token_refresh_total", &[]).await;
    assert_eq!(now, logins, "both upstreams are what they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_an_upstream_that_moved_is_asked_where_it_is_now() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "v1", layer(1));
    put(&two.base, "team/app", "v2", layer(2));
    put(&two.base, "base/app", "v1", layer(3));
    let (begun, _) = put(
        &two.prod,
        "team/app",
        "big",
        BlobSource::generated(9, 4 * MIB),
    );
    let mut proxy = before(&two).await;
    let client = proxy.client();
    assert_eq!(tag(&client, "team/app", "v1").await.status, 200);
    assert_eq!(tag(&client, "team/app", "v2").await.status, 404);
    assert_eq!(tag(&client, "base/app", "v1").await.status, 200);
    // A download is in its midst.
    let gate = Gate::new();
    let content = Pattern::digest(&begun);
    let content = two.prod.faults().on(Listener::Storage, "GET", content);
    content.then(Fault::HoldAfter(MIB, gate.clone()));
    let path = format!("/v2/team/app/blobs/{begun}");
    let mut download = client.start("GET", &path, &[]).await;
    let head = download.head().await.expect("a head");
    within("it is under way", gate.arrived(1)).await;

    // The second account is the first upstream now, under the name of that.
    become_base(&mut proxy);
    proxy.edit("upstream", |all| {
        all.retain(|upstream| upstream["name"].as_str() != Some("base"));
    });
    proxy.edit("route", |routes| routes.truncate(1));
    let keys = changed(&proxy.reload().await);
    for key in ["upstream.endpoint", "upstream.name", "upstream.registry"] {
        assert!(
            keys.iter().any(|changed| changed == key),
            "{key} in {keys:?}"
        );
    }
    // It was absent a moment ago, where it was asked for then.
    assert_eq!(tag(&client, "team/app", "v2").await.status, 200);
    // The other is gone, and with it the way to what is cached of it.
    let refused = tag(&client, "base/app", "v1").await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    let metrics = proxy.metrics().await;
    for (upstream, is_shown) in [("prod", true), ("base", false)] {
        let label = format!("upstream=\"{upstream}\"");
        let until = metrics.sum("ecr_proxy_token_expiry_seconds", &[&label]);
        assert_eq!(until > 0.0, is_shown, "{upstream}");
    }
    // What was begun ends where it was begun.
    gate.open();
    let (body, clean_end) = download.body("GET", &head).await;
    assert!(clean_end);
    assert_eq!(support::store::digest(&body), begun);
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_who_waits_for_an_upstream_that_is_replaced_waits_no_longer() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "v1", layer(1));
    put(&two.base, "team/app", "v1", layer(1));
    let mut proxy = before(&two).await;
    let client = proxy.client();
    two.prod.outage(Outage::Silent).await;
    let path = "/v2/team/app/manifests/v1";
    let _waiting = client.start("GET", path, &[]).await;
    until("the outage is noticed", async || {
        metric(&proxy, "ecr_proxy_upstream_breaker_open", &[]).await == 1.0
    })
    .await;
    become_base(&mut proxy);
    proxy.reload().await;
    assert_eq!(client.get(path).await.status, 200);
    assert_eq!(
        metric(&proxy, "ecr_proxy_upstream_breaker_open", &[]).await,
        0.0
    );
    let page = Client::operator(proxy.admin()).get("/readyz?strict").await;
    assert_eq!(page.status, 200, "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_what_an_upstream_said_or_is_being_asked_counts_no_more_once_it_is_another() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "held", layer(1));
    for tag in ["held", "absent"] {
        put(&two.base, "team/app", tag, layer(2));
    }
    let mut proxy = before(&two).await;
    let client = proxy.client();
    assert_eq!(tag(&client, "team/app", "absent").await.status, 404);
    let gate = Gate::new();
    let held = path_contains("/manifests/held");
    let held = two.prod.faults().on(Listener::Registry, "GET", held);
    held.then(Fault::Hold(gate.clone()));
    let path = "/v2/team/app/manifests/held";
    let mut waiting = client.start("GET", path, &[]).await;
    within("it is asked", gate.arrived(1)).await;
    become_base(&mut proxy);
    proxy.reload().await;
    let answer = client.get(path).await;
    assert_eq!(answer.status, 200, "it joins no question to another");
    assert_eq!(tag(&client, "team/app", "absent").await.status, 200);
    gate.open();
    let theirs = waiting.answer("GET").await.expect("an answer");
    assert_eq!(theirs.status, 200);
    assert_ne!(theirs.digest(), answer.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_what_an_upstream_answers_once_another_has_its_name_is_told_to_who_asked_it_and_kept_nowhere()
 {
    let two = Two::start().await;
    put(&two.prod, "team/app", "held", layer(1));
    let (blob, _) = put(&two.base, "team/app", "held", layer(2));
    put(&two.base, "team/app", "new", layer(3));
    let mut proxy = two
        .builder()
        .route([("repository", "team/**"), ("upstream", "prod")])
        .set("cache.tag_ttl", "1h")
        .set("cache.absent_ttl", "1h")
        .start();
    let client = proxy.client();
    let paths = [
        "manifests/held".to_owned(),
        "manifests/new".to_owned(),
        "tags/list".to_owned(),
        format!("blobs/{blob}"),
    ];
    let path = |path: &String| format!("/v2/team/app/{path}");
    let gate = Gate::new();
    for asked in &paths {
        let held = two
            .prod
            .faults()
            .on(Listener::Registry, "GET", path_contains(asked));
        held.then(Fault::Hold(gate.clone()));
    }
    let mut waiting = Vec::new();
    for asked in &paths {
        waiting.push(client.start("GET", &path(asked), &[]).await);
    }
    within("all of it is asked", gate.arrived(paths.len())).await;
    become_base(&mut proxy);
    proxy.reload().await;
    let said = async || {
        let mut said = Vec::new();
        for asked in &paths {
            let answer = client.get(&path(asked)).await;
            assert_eq!(answer.status, 200, "{asked}: {}", answer.text());
            said.push(answer.digest());
        }
        said
    };
    let now = said().await;
    gate.open();
    let mut theirs = Vec::new();
    for mut waiting in waiting {
        theirs.push(waiting.answer("GET").await.expect("an answer"));
    }
    let statuses: Vec<_> = theirs.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 404, 200, 404]);
    assert_ne!(theirs[0].digest(), now[0]);
    assert_eq!(theirs[2].json()["tags"], serde_json::json!(["held"]));

    // Nothing of that counts, neither on disk nor in memory.
    assert_eq!(said().await, now);
    let last = client.get("/v2/team/app/tags/list?last=a").await;
    assert_eq!(last.json()["tags"], serde_json::json!(["held", "new"]));
    two.base.outage(Outage::Refused).await;
    assert_eq!(tag(&client, "team/app", "held").await.digest(), now[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_an_upstream_that_cannot_be_set_up_changes_nothing() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "v1", layer(1));
    let mut proxy = before(&two).await;
    let client = proxy.client();
    assert_eq!(tag(&client, "team/app", "v1").await.status, 200);
    proxy.edit("upstream", |all| {
        let mut other = edited(all, "base").clone();
        other.insert("name".to_owned(), "other".into());
        other.insert("ca".to_owned(), "missing.pem".into());
        all.push(other);
        edited(all, "prod").insert("tag_ttl".to_owned(), "1h".into());
    });
    proxy.edit("route", |routes| {
        routes[0].insert("upstream".to_owned(), "other".into());
    });
    let told = proxy.reload().await;
    assert_eq!(told.level(), "ERROR", "{}", told.line);
    let error = told.field("error").expect("the fault");
    assert!(error.contains("ca"), "{error}");
    let page = Client::operator(proxy.admin()).get("/readyz").await;
    assert!(page.text().contains("configuration"), "{}", page.text());
    two.prod.journal().clear();
    until("the tag is asked for as before", async || {
        tag(&client, "team/app", "v1").await.status == 200
            && !two.prod.journal().snapshot().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_an_upload_ends_where_it_was_begun() {
    let two = Two::start().await;
    for simulator in [&two.prod, &two.base] {
        simulator.create_repository(push::APP);
    }
    let builder = push::users(two.builder());
    let mut proxy = builder
        .route([("repository", "team/**"), ("upstream", "prod")])
        .start();
    let ann = login(proxy.client(), "ann", push::PASSWORD);
    let blob = push::bytes(300_000);
    let digest = support::store::digest(&blob);
    let place = push::begin(&ann, push::APP).await;
    let part = push::send(&ann, "PATCH", &place, &[], &blob[..100_000], false).await;
    assert_eq!(part.status, 202, "{}", part.text());
    become_base(&mut proxy);
    proxy.reload().await;
    let place = push::location(&part);
    let part = push::send(&ann, "PATCH", &place, &[], &blob[100_000..], false).await;
    assert_eq!(part.status, 202, "{}", part.text());
    let last = format!("{}?digest={digest}", push::location(&part));
    let end = push::put(&ann, &last, &[], b"").await;
    assert_eq!(end.status, 201, "{}", end.text());
    assert!(two.prod.blob(push::APP, &digest).is_some());
    assert!(two.base.blob(push::APP, &digest).is_none());
    // Whoever has that name now does not hold it.
    let path = format!("/v2/{}/blobs/{digest}", push::APP);
    assert_eq!(ann.get(&path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_what_the_files_of_an_upstream_hold_now_counts_as_its_keys_do() {
    let (right, wrong) = (Pki::new(["127.0.0.1"]), Pki::new(["127.0.0.1"]));
    let leaf = right.issue(["127.0.0.1"], None);
    let simulator = Simulator::builder().tls(leaf.certificate, leaf.key);
    let simulator = simulator.start().await.expect("a simulator");
    put(&simulator, "team/app", "v1", layer(1));
    let builder = Proxy::builder().simulator(&simulator);
    let file = builder.pki().dir().join("upstream.pem");
    fs::copy(wrong.ca(), &file).expect("writable");
    let file = file.to_str().expect("a UTF-8 path").to_owned();
    let proxy = builder.upstream_key("ca", file.as_str()).start();
    let client = proxy.client();
    let refused = tag(&client, "team/app", "v1").await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    let same = proxy.reload().await;
    assert_eq!(same.message(), "read again, nothing has changed");
    fs::copy(right.ca(), &file).expect("writable");
    assert_eq!(changed(&proxy.reload().await), ["upstream.ca"]);
    assert_eq!(tag(&client, "team/app", "v1").await.status, 200);
}

/// The rounds of [`k11_two_hundred_reloads_under_load_fail_no_request`].
const ROUNDS: usize = 200;

/// Pulls `path` again and again until told to stop; every answer is one of `expected`, whole.
fn pull_on(
    load: &mut JoinSet<()>,
    client: Client,
    path: String,
    expected: Vec<String>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) {
    load.spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let answer = client.get(&path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert!(answer.clean_end, "{path}");
            assert!(expected.contains(&answer.digest()), "{path}");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_two_hundred_reloads_under_load_fail_no_request() {
    let two = Two::start().await;
    let (_, old) = put(&two.prod, "team/app", "v1", layer(1));
    let (_, new) = put(&two.base, "team/app", "v1", layer(2));
    let mut proxy = two
        .builder()
        .set("cache.tag_ttl", "0s")
        .route([("repository", "team/**"), ("upstream", "prod")])
        .start();
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    let either = vec![old.clone(), new.clone()];
    let path = "/v2/team/app/manifests/v1".to_owned();
    for client in [proxy.client(), proxy.client(), proxy.tls_client()] {
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        pull_on(
            &mut load,
            client,
            path.clone(),
            either.clone(),
            stop,
            answered,
        );
    }
    let big = downloads(&two.prod, 40);
    let (downloading, stopped) = (proxy.client(), Arc::clone(&stop));
    let downloads = tokio::spawn(async move {
        let mut whole = 0;
        for digest in big {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let path = format!("/v2/team/app/blobs/{digest}");
            let answer = downloading.get(&path).await;
            // Where the other registry is asked there is none of it.
            if answer.status != 404 {
                assert_whole(&answer, &digest);
                whole += 1;
            }
        }
        whole
    });
    let mut upstreams = Vec::new();
    proxy.edit("upstream", |all| upstreams.clone_from(all));
    for round in 0..ROUNDS {
        let is_valid = round % 2 == 0;
        let is_elsewhere = round % 4 == 0;
        let name = if is_elsewhere { "base" } else { "prod" };
        proxy.edit("route", |routes| {
            routes[0].insert("upstream".to_owned(), name.into());
        });
        // The one that nobody is led to any more is gone, and is built anew when it comes back.
        proxy.edit("upstream", |all| {
            let mut one = edited(&mut upstreams, name).clone();
            if !is_valid {
                one.insert("tag_ttl".to_owned(), "soon".into());
            }
            *all = vec![one];
        });
        let told = proxy.reload().await;
        let expected = if is_valid { "INFO" } else { "ERROR" };
        assert_eq!(told.level(), expected, "{round}: {}", told.line);
        if is_valid {
            let expected = if is_elsewhere { &new } else { &old };
            let answer = tag(&proxy.client(), "team/app", "v1").await;
            assert_eq!(&answer.digest(), expected, "{round}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("every request was answered");
    }
    assert!(downloads.await.expect("none failed") > 0);
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > ROUNDS, "{answered} requests");
}

/// Blobs of a MiB whose content comes slowly.
fn downloads(simulator: &Simulator, count: u64) -> Vec<String> {
    let blobs = (0..count).map(|seed| {
        let source = BlobSource::generated(100 + seed, MIB);
        let digest = simulator.put_blob("team/app", source);
        let content = Pattern::digest(&digest);
        let content = simulator.faults().on(Listener::Storage, "GET", content);
        content.then(Fault::Rate(4 * MIB));
        digest
    });
    blobs.collect()
}
