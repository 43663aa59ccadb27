//! `/v2/_catalog` tells everybody the repositories that they may pull, as they would write them, and nothing
//! of any other: neither by name, nor by where a page ends.

mod support;

use ecr_proxy::simulator::{
    BlobSource, FULL_ACCESS_KEY, Fault, Listener, Outage, PULL_ONLY_ACCESS_KEY, Simulator,
};
use support::blobs::until;
use support::image::TAG;
use support::two::{Two, put, side_by_side};
use support::users::{login, user_line};
use support::{Answer, Client, Proxy, image};

const PASSWORD: &str = "correct horse battery staple";
const CATALOG: &str = "/v2/_catalog";

async fn simulator(repositories: &[&str]) -> Simulator {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    for repository in repositories {
        simulator.push_image(repository, TAG, image::spec());
    }
    simulator
}

fn listed(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let list = answer.json();
    let names = list["repositories"].as_array().expect("an array").iter();
    names
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect()
}

/// The pages of a list, by following the links, which have to be paths of ours.
async fn pages(client: &Client, query: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut target = Some(format!("{CATALOG}{query}"));
    while let Some(path) = target {
        let answer = client.get(&path).await;
        pages.push(listed(&answer));
        assert!(pages.len() < 100, "the links go round");
        target = answer.header("link").map(|link| {
            let path = link.strip_prefix('<').expect("a link");
            let path = path.strip_suffix(">; rel=\"next\"").expect("a link");
            assert!(path.starts_with(CATALOG), "{path}");
            path.to_owned()
        });
    }
    pages
}

/// How often upstream was asked for its list.
fn asked(simulator: &Simulator) -> usize {
    let journal = simulator.journal();
    journal.count(|entry| entry.listener == Listener::Registry && entry.path == CATALOG)
}

#[tokio::test(flavor = "multi_thread")]
async fn s06_everybody_is_told_what_they_may_pull_and_nothing_of_the_rest() {
    let all: Vec<String> = (0..40)
        .map(|n| format!("{}/app-{n:02}", ["a", "b"][n % 2]))
        .collect();
    let simulator = Simulator::builder().start().await.expect("a simulator");
    for repository in &all {
        simulator.create_repository(repository);
    }
    let users: String = ["ci", "dev", "eve", "pusher"]
        .map(|name| user_line(name, PASSWORD))
        .concat();
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "10m")
        .users(&users)
        .rule("users = ['ci']\nrepositories = ['b/app-13']\nactions = []")
        .rule("users = ['ci']\nrepositories = ['b/**']\nactions = ['pull']")
        .rule("users = ['pusher']\nactions = ['push']")
        .rule("users = ['dev']\nactions = ['pull']")
        .start();
    let may = |user: &str| -> Vec<String> {
        let mut names = all.clone();
        names.retain(|name| match user {
            "ci" => name.starts_with("b/") && name != "b/app-13",
            "dev" => true,
            _ => false,
        });
        names.sort();
        names
    };
    for user in ["ci", "dev", "eve", "pusher"] {
        let client = login(proxy.client(), user, PASSWORD);
        let may = may(user);
        for n in [1, 3, 7, 19, 1000] {
            let pages = pages(&client, &format!("?n={n}")).await;
            assert_eq!(pages.concat(), may, "{user} n={n}");
            // Whatever lies between, a page is full unless it is the last, and the last is not empty.
            let (last, full) = pages.split_last().expect("a page");
            assert!(full.iter().all(|page| page.len() == n), "{user} n={n}");
            assert!(!last.is_empty() || may.is_empty(), "{user} n={n}");
        }
        let none = client.get(&format!("{CATALOG}?n=0")).await;
        assert_eq!((listed(&none).len(), none.header("link")), (0, None));
        assert_eq!(client.ask("DELETE", CATALOG, &[]).await.status, 405);
        assert_eq!(client.get(&format!("{CATALOG}?n=x")).await.status, 400);
    }
    // One list did for all of them.
    assert_eq!(asked(&simulator), 1);
    for stranger in [proxy.client(), login(proxy.client(), "ci", "wrong")] {
        let answer = stranger.get(CATALOG).await;
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_ask_upstream_once_and_what_failed_is_asked_again() {
    let simulator = simulator(&["a/b", "c"]).await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "10m")
        .start();
    simulator.outage(Outage::Refused).await;
    let nothing = proxy.client().get(CATALOG).await;
    assert_eq!(nothing.status, 503, "{}", nothing.text());
    assert!(nothing.header("retry-after").is_some());
    simulator.outage(Outage::None).await;
    until("the link is back", async || {
        proxy.client().get(CATALOG).await.status == 200
    })
    .await;
    let client = proxy.client();
    let answers = (0..4).map(|_| client.get(CATALOG));
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(listed(&answer), ["a/b", "c"]);
        assert_eq!(answer.header("x-cache"), Some("hit"));
    }
    let answered = simulator
        .journal()
        .count(|entry| entry.path == CATALOG && entry.status == Some(200));
    assert_eq!(answered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_those_that_clients_write_and_lead_where_they_are_from() {
    let two = Two::start().await;
    for (simulator, repository) in [
        (&two.prod, "team/app"),
        (&two.prod, "base/hidden"),
        (&two.base, "jdk"),
        (&two.base, "deep/er"),
    ] {
        put(simulator, repository, "v1", BlobSource::generated(1, 1000));
    }
    let proxy = side_by_side(two.builder()).start();
    let client = proxy.client();
    let names = listed(&client.get(CATALOG).await);
    assert_eq!(names, ["base/deep/er", "base/jdk", "team/app"]);
    for name in &names {
        let manifest = client.get(&format!("/v2/{name}/manifests/v1")).await;
        assert_eq!(manifest.status, 200, "{name}: {}", manifest.text());
    }
    let pages = pages(&client, "?n=2").await;
    assert_eq!(pages, [&names[..2], &names[2..]]);
    // For containerd a registry's names are its own.
    let ns = format!("{CATALOG}?n=1&ns={}", two.prod.registry_host());
    let of_ns = client.get(&ns).await;
    assert_eq!(listed(&of_ns), ["base/deep/er"]);
    let link = of_ns.header("link").expect("a next page");
    assert!(link.contains("&ns="), "{link}");
}

#[tokio::test(flavor = "multi_thread")]
async fn o01_where_upstream_does_not_list_them_those_in_the_cache_are() {
    let simulator = simulator(&["a/b", "c", "never/pulled"]).await;
    for key in [PULL_ONLY_ACCESS_KEY, FULL_ACCESS_KEY] {
        let mut proxy = Proxy::builder()
            .simulator(&simulator)
            .env("AWS_ACCESS_KEY_ID", key)
            .set("cache.tag_ttl", "0s")
            .start();
        let client = proxy.client();
        for repository in ["a/b", "c"] {
            let manifest = format!("/v2/{repository}/manifests/{TAG}");
            assert_eq!(client.get(&manifest).await.status, 200);
        }
        let online = client.get(CATALOG).await;
        match key {
            // Its role may not list them, which is no outage.
            PULL_ONLY_ACCESS_KEY => {
                assert_eq!(listed(&online), ["a/b", "c"]);
                assert_eq!(online.header("x-cache"), Some("hit"));
                let before = asked(&simulator);
                assert_eq!(listed(&client.get(CATALOG).await), ["a/b", "c"]);
                assert_eq!(asked(&simulator), before, "a no is remembered");
            }
            _ => assert_eq!(listed(&online), ["a/b", "c", "never/pulled"]),
        }
        for again in [false, true] {
            simulator.outage(Outage::Refused).await;
            if again {
                proxy.terminate();
                assert!(proxy.wait().success());
                proxy.restart();
            }
            if key == FULL_ACCESS_KEY || again {
                let stale = proxy.client().get(CATALOG).await;
                assert_eq!(listed(&stale), ["a/b", "c"], "{key} {again}");
                assert_eq!(stale.header("x-cache"), Some("stale"));
                assert!(!stale.head.header_values("warning").is_empty());
            }
        }
        simulator.outage(Outage::None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_bearer_is_told_what_ecr_tells_that_token() {
    let simulator = simulator(&["a/b", "c"]).await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
        .set("cache.tag_ttl", "10m")
        .users(&user_line("dev", PASSWORD))
        .start();
    let dev = login(proxy.client(), "dev", PASSWORD);
    assert_eq!(listed(&dev.get(CATALOG).await), ["a/b", "c"]);
    let token = |key| simulator.token(key).expect("a principal");
    let bearer = |key| login(proxy.client(), "AWS", &token(key).password);
    // What is known from our own question is nothing to somebody who may not ask it.
    let refused = bearer(PULL_ONLY_ACCESS_KEY).get(CATALOG).await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (403, "DENIED")
    );
    let full = bearer(FULL_ACCESS_KEY);
    let before = asked(&simulator);
    assert_eq!(listed(&full.get(CATALOG).await), ["a/b", "c"]);
    assert_eq!(asked(&simulator), before + 1);
    proxy.assert_no_secrets(&simulator.secrets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_bearer_is_told_where_a_registry_could_not_be_asked() {
    let two = Two::start().await;
    put(&two.prod, "team/app", "v1", BlobSource::generated(1, 1000));
    let proxy = two
        .builder()
        .unset("access.anonymous")
        .set("access.aws_tokens", true)
        .route([("repository", "base/**"), ("upstream", "base")])
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let rule = |status| {
        let faults = two.base.faults();
        let rule = faults.on(Listener::Registry, "GET", CATALOG);
        rule.then(Fault::status(status, "{}"))
    };
    let bearer = || {
        let token = two.prod.token(FULL_ACCESS_KEY).expect("a principal");
        login(proxy.client(), "AWS", &token.password)
    };
    for (status, x_cache) in [(500, "stale"), (403, "bypass")] {
        let rule = rule(status);
        let answer = bearer().get(CATALOG).await;
        assert_eq!(listed(&answer), ["team/app"], "{status}");
        assert_eq!(answer.header("x-cache"), Some(x_cache), "{status}");
        rule.remove();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_region_lists_them_while_the_first_is_away() {
    let two = Two::start().await;
    for simulator in [&two.prod, &two.base] {
        put(simulator, "team/app", "v1", BlobSource::generated(1, 1000));
        simulator.create_repository("team/empty");
    }
    let proxy = two
        .builder()
        .upstream_key("fallback", vec!["base"])
        .set("cache.tag_ttl", "0s")
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let client = proxy.client();
    two.prod.outage(Outage::Refused).await;
    let lists = [CATALOG, "/v2/team/app/tags/list"];
    for path in lists {
        let answer = client.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("x-cache"), Some("bypass; fallback"), "{path}");
    }
    assert_eq!(
        listed(&client.get(CATALOG).await),
        ["team/app", "team/empty"]
    );
    two.prod.outage(Outage::None).await;
    for path in lists {
        until("the first region is back", async || {
            client.get(path).await.header("x-cache") == Some("bypass")
        })
        .await;
    }
}
