//! SIGHUP takes over what the configuration says of the cache, of what is kept warm and of ECR's own tokens:
//! it counts from the next request on, and what runs by itself goes by it.

mod support;

use std::time::{Duration, Instant};

use ecr_proxy::simulator::{FULL_ACCESS_KEY, ImageSpec, Listener, Simulator};
use support::blobs::{MIB, assert_whole, blob, metric, outcome, pull, simulator, until};
use support::image::{REPOSITORY, TAG};
use support::users::login;
use support::{Client, Proxy, image, within};
use toml::Table;

fn manifest(tag: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{tag}")
}

async fn reload(proxy: &Proxy, expected: &[&str]) {
    let told = proxy.reload().await;
    assert_eq!(told.message(), "reloaded", "{}", told.line);
    let keys = told.field("reload.changed").expect("the keys");
    assert_eq!(keys.split(", ").collect::<Vec<_>>(), expected);
}

/// How often the registry was asked for anything.
fn asked(simulator: &Simulator) -> usize {
    let journal = simulator.journal().snapshot();
    let asked = journal.iter();
    asked
        .filter(|entry| entry.listener == Listener::Registry)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_how_fresh_things_have_to_be_counts_from_the_next_request_on() {
    let simulator = simulator().await;
    simulator.push_image(REPOSITORY, TAG, ImageSpec::generated(1, [1000]));
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.tag_ttl", "1h")
        .set("cache.absent_ttl", "1h")
        .start();
    let client = proxy.client();
    let old = client.get(&manifest(TAG)).await;
    assert_eq!(client.get(&manifest("later")).await.status, 404);
    for tag in [TAG, "later"] {
        simulator.push_image(REPOSITORY, tag, ImageSpec::generated(2, [1000]));
    }
    assert_eq!(client.get(&manifest(TAG)).await.digest(), old.digest());
    assert_eq!(client.get(&manifest("later")).await.status, 404);

    proxy.set("cache.tag_ttl", "0s");
    proxy.set("cache.absent_ttl", "0s");
    reload(&proxy, &["cache.absent_ttl", "cache.tag_ttl"]).await;
    let new = client.get(&manifest(TAG)).await;
    assert_ne!(new.digest(), old.digest());
    assert_eq!(client.get(&manifest("later")).await.status, 200);

    // Nothing is asked any more, and then everything is as it was.
    proxy.set("cache.offline", true);
    reload(&proxy, &["cache.offline"]).await;
    let before = asked(&simulator);
    let kept = client.get(&manifest(TAG)).await;
    assert_eq!((kept.status, outcome(&kept)), (200, Some("stale")));
    assert_eq!(client.get(&manifest("other")).await.status, 503);
    assert_eq!(asked(&simulator), before);
    proxy.set("cache.offline", false);
    reload(&proxy, &["cache.offline"]).await;
    assert_eq!(client.get(&manifest("other")).await.status, 404);
    let logins = metric(&proxy, "ecr_proxy_token_refresh_total", &[]).await;
    assert_eq!(logins, 1.0, "the upstream is what it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_a_smaller_quota_is_kept_at_once_but_for_what_is_pinned() {
    let simulator = simulator().await;
    let image = simulator.push_image(REPOSITORY, TAG, ImageSpec::generated(9, [8 * MIB]));
    let layer = image.manifests[0].layers[0].digest.clone();
    let mut proxy = Proxy::before(&simulator);
    assert_eq!(proxy.client().get(&manifest(TAG)).await.status, 200);
    let of_image = (layer.clone(), format!("/v2/{REPOSITORY}/blobs/{layer}"));
    pull(&proxy, &of_image).await;
    for seed in 1..4 {
        pull(&proxy, &blob(&simulator, seed, 8 * MIB)).await;
    }
    assert_eq!(proxy.assert_blobs_are_sound().len(), 4);
    proxy.set("cache.pins", vec![format!("{REPOSITORY}:{TAG}")]);
    proxy.set("cache.max_size", "20MiB");
    reload(&proxy, &["cache.max_size", "cache.pins"]).await;
    until("two are gone", async || {
        proxy.assert_blobs_are_sound().len() == 2
    })
    .await;
    assert!(proxy.assert_blobs_are_sound().contains(&layer));
    let listed = proxy.run(["cache", "stats", "--json"]).fine();
    let limit = (20 * MIB).to_string();
    assert!(listed.stdout.contains(&limit), "{listed:?}");

    // What is not pinned any more goes like others.
    proxy.set("cache.pins", Vec::<String>::new());
    reload(&proxy, &["cache.pins"]).await;
    for seed in 4..6 {
        pull(&proxy, &blob(&simulator, seed, 8 * MIB)).await;
    }
    assert!(!proxy.assert_blobs_are_sound().contains(&layer));
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_a_bandwidth_limit_comes_and_goes_in_the_midst_of_a_download() {
    let simulator = simulator().await;
    for section in ["cache", "upstream"] {
        let mut proxy = Proxy::before(&simulator);
        let mut limit = async |rate: &str| {
            let key = format!("{section}.max_upstream_bandwidth");
            match section {
                "cache" => proxy.set(&key, rate),
                _ => proxy.edit("upstream", |all| {
                    all[0].insert("max_upstream_bandwidth".to_owned(), rate.into());
                }),
            }
            reload(&proxy, &[&key]).await;
            proxy.client()
        };
        let client = limit("256KiB/s").await;
        let (digest, path) = blob(&simulator, 1, 64 * MIB);
        // At that rate it takes four minutes.
        let download = tokio::spawn(async move { client.get(&path).await });
        let (small, target) = blob(&simulator, 2, MIB / 2);
        let began = Instant::now();
        let client = limit("512KiB/s").await;
        assert_whole(&client.get(&target).await, &small);
        assert!(began.elapsed() > Duration::from_millis(800), "{section}");
        limit("unlimited").await;
        let whole = within("the rest of it", download).await.expect("an answer");
        assert_whole(&whole, &digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_what_is_kept_warm_and_fetched_ahead_is_what_the_configuration_says_now() {
    let simulator = simulator().await;
    let warmed = image::push(&simulator);
    let ahead = simulator.push_image(REPOSITORY, "ahead", ImageSpec::generated(5, [70_000; 4]));
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "0s")
        .start();
    let kept = |proxy: &Proxy| proxy.assert_blobs_are_sound();
    let rounds = async |proxy: &Proxy| metric(proxy, "ecr_proxy_warm_images_total", &[]).await;

    let mut schedule = Table::new();
    let name = format!("{}/{REPOSITORY}:{TAG}", support::DOMAIN);
    schedule.insert("images".to_owned(), vec![name].into());
    schedule.insert("every".to_owned(), "1h".into());
    proxy.edit("warm", |all| all.push(schedule));
    reload(&proxy, &["warm.every", "warm.images"]).await;
    let blobs = warmed.manifests[0].layers.iter();
    until("it is warm", async || {
        let kept = kept(&proxy);
        rounds(&proxy).await == 1.0 && blobs.clone().all(|blob| kept.contains(&blob.digest))
    })
    .await;
    // Another change leaves it alone: its hour is not over.
    proxy.set("cache.prefetch", "layers");
    reload(&proxy, &["cache.prefetch"]).await;
    let layers = &ahead.manifests[0].layers;
    let client = proxy.client();
    assert_eq!(client.get(&manifest("ahead")).await.status, 200);
    let first = format!("/v2/{REPOSITORY}/blobs/{}", layers[0].digest);
    assert_eq!(client.get(&first).await.status, 200);
    until("the others were fetched", async || {
        let kept = kept(&proxy);
        layers.iter().all(|layer| kept.contains(&layer.digest))
    })
    .await;
    assert_eq!(rounds(&proxy).await, 1.0);
    // A schedule that is gone is not kept, and one that is another begins.
    proxy.edit("warm", |all| {
        all[0].insert("every".to_owned(), "1s".into());
    });
    reload(&proxy, &["warm.every"]).await;
    until("it goes on", async || rounds(&proxy).await > 2.0).await;
    let other = format!("{}/{REPOSITORY}:ahead", support::DOMAIN);
    proxy.edit("warm", |all| {
        all[0].insert("images".to_owned(), vec![other].into());
    });
    reload(&proxy, &["warm.images"]).await;
    simulator.journal().clear();
    let last = rounds(&proxy).await;
    until("that goes on", async || rounds(&proxy).await > last + 2.0).await;
    let journal = simulator.journal();
    assert_eq!(
        journal.count(|entry| entry.path.ends_with(&manifest(TAG))),
        0
    );
    assert!(journal.count(|entry| entry.path.ends_with("/manifests/ahead")) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn k11_tokens_of_ecr_are_logins_for_as_long_as_the_configuration_says_so() {
    let simulator = simulator().await;
    image::push(&simulator);
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .unset("access.anonymous")
        .start();
    let token = simulator.token(FULL_ACCESS_KEY).expect("a principal");
    let bearer: Client = login(proxy.client(), "AWS", &token.password);
    assert_eq!(bearer.get(&manifest(TAG)).await.status, 401);
    for (is_taken, status) in [(true, 200), (false, 401), (true, 200)] {
        proxy.set("access.aws_tokens", is_taken);
        reload(&proxy, &["access.aws_tokens"]).await;
        assert_eq!(bearer.get(&manifest(TAG)).await.status, status);
        assert_eq!(bearer.get("/v2/").await.status, status);
    }
}
