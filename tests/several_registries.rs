//! Several registries behind one proxy: each is logged in to for itself, names lead by route, and what
//! one holds is no other's.

mod support;

use ecr_proxy::simulator::{
    BlobSource, Entry, FULL_ACCESS_KEY, Fault, Listener, Simulator, path_contains,
};
use serde_json::Value;
use support::blobs::{MIB, assert_whole, idle, outcome, until};
use support::two::{Two, put, side_by_side};
use support::users::{login, user_line};
use support::{Client, DOMAIN, Proxy};

async fn status(client: &Client, path: &str) -> u16 {
    client.get(path).await.status
}

/// How often something of `digest` was asked for at either.
fn bodies(simulator: &Simulator, digest: &str) -> u64 {
    let journal = simulator.journal();
    journal.body_bytes(|entry| {
        entry.listener == Listener::Storage && entry.digest.as_deref() == Some(digest)
    })
}

/// Fails if one refused the proxy, or was shown a credential of the other's.
fn assert_each_has_its_own(two: &Two) {
    for (simulator, other) in [(&two.prod, &two.base), (&two.base, &two.prod)] {
        let secrets = other.secrets();
        assert!(!secrets.is_empty());
        for entry in simulator.journal().snapshot() {
            assert_ne!(entry.status, Some(401), "{} {}", entry.method, entry.path);
            for value in entry.headers.values() {
                let shown = String::from_utf8_lossy(value.as_bytes());
                for secret in &secrets {
                    assert!(!shown.contains(secret), "{} {}", entry.method, entry.path);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k08_two_accounts_answer_under_one_name_each_with_its_own_token() {
    let two = Two::start().await;
    let (layer, _) = put(&two.prod, "team/app", "v1", BlobSource::generated(1, MIB));
    let (base, _) = put(&two.base, "jdk", "21", BlobSource::generated(2, MIB));
    let proxy = side_by_side(two.builder()).start();
    let client = proxy.client();
    for (repository, tag, digest) in [("team/app", "v1", &layer), ("base/jdk", "21", &base)] {
        let path = format!("/v2/{repository}/manifests/{tag}");
        assert_eq!(status(&client, &path).await, 200, "{path}");
        let path = format!("/v2/{repository}/blobs/{digest}");
        assert_whole(&client.get(&path).await, digest);
        let path = format!("/v2/{repository}/tags/list");
        let tags = client.get(&path).await;
        assert_eq!(tags.json()["name"], repository, "{}", tags.text());
        assert_eq!(tags.json()["tags"][0], tag);
    }
    // Under the name that its own registry has for it there is nothing: that one is prod's.
    assert_eq!(status(&client, "/v2/jdk/manifests/21").await, 404);
    assert_each_has_its_own(&two);
    let mut secrets = two.prod.secrets();
    secrets.extend(two.base.secrets());
    proxy.assert_no_secrets(&secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_ecrs_pull_through_cache_stands_for_the_registry_it_is_of() {
    let two = Two::start().await;
    let name = "docker-hub/library/busybox";
    let (layer, _) = put(&two.prod, name, "v1", BlobSource::generated(1, MIB));
    let proxy = two
        .builder()
        .route([
            ("ns", "docker.io"),
            ("upstream", "prod"),
            ("add_prefix", "docker-hub"),
        ])
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let client = proxy.client();
    let path = "/v2/library/busybox/manifests/v1?ns=docker.io";
    assert_eq!(status(&client, path).await, 200);
    let path = format!("/v2/library/busybox/blobs/{layer}?ns=docker.io");
    assert_whole(&client.get(&path).await, &layer);
    let tags = client
        .get("/v2/library/busybox/tags/list?ns=docker.io")
        .await;
    assert_eq!(
        tags.json()["name"],
        "library/busybox",
        "as the client writes it"
    );
    // The same by the name that ECR has for it; and without the registry it is no such repository.
    assert_eq!(
        status(&client, &format!("/v2/{name}/manifests/v1")).await,
        200
    );
    assert_eq!(
        status(&client, "/v2/library/busybox/manifests/v1").await,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k08_a_redirect_to_the_other_account_takes_no_token_there() {
    let two = Two::start().await;
    let (layer, _) = put(&two.prod, "app", "v1", BlobSource::generated(1, MIB));
    put(&two.base, "app", "v1", BlobSource::generated(1, MIB));
    let proxy = side_by_side(two.builder()).start();
    let client = proxy.client();
    // The proxy is logged in to both.
    assert_eq!(status(&client, "/v2/base/app/manifests/v1").await, 200);
    let path = format!("/v2/app/blobs/{layer}");
    for location in [
        // On the host that storage is on, too, so it is followed, as nobody in particular.
        format!("{}/v2/app/blobs/{layer}", two.base.endpoint()),
        format!("https://{}/v2/app/blobs/{layer}", two.base.registry_host()),
    ] {
        let sent = two.prod.faults();
        let sent = sent.on(Listener::Registry, "GET", path_contains("/blobs/"));
        let sent = sent.then(Fault::redirect(&location));
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 502, "{location}: {}", answer.text());
        sent.remove();
    }
    let asked = two.base.journal().snapshot();
    let mut asked = asked.iter().filter(|entry| entry.path.contains("/blobs/"));
    let shown = asked.next().expect("the first").header("authorization");
    assert!(shown.is_none() && asked.next().is_none());
    assert_whole(&client.get(&path).await, &layer);
}

/// Two accounts whose roles want external ids of their own, and a layer in each: what a client asks for.
async fn with_roles(prod: (&str, &str), base: (&str, &str)) -> (Two, Proxy, [(String, String); 2]) {
    let two = Two::start().await;
    two.prod
        .trust_role("pull-only", FULL_ACCESS_KEY, Some("id-for-prod"));
    two.base
        .trust_role("pull-only", FULL_ACCESS_KEY, Some("id-for-base"));
    two.base
        .trust_role("denied", FULL_ACCESS_KEY, Some("id-for-base"));
    let (in_prod, _) = put(&two.prod, "app", "v1", BlobSource::generated(1, MIB));
    let (in_base, _) = put(&two.base, "app", "v1", BlobSource::generated(2, MIB));
    let proxy = side_by_side(two.with_roles(prod, base)).start();
    let blobs = [("app", in_prod), ("base/app", in_base)]
        .map(|(name, digest)| (format!("/v2/{name}/blobs/{digest}"), digest));
    (two, proxy, blobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn k08_two_roles_in_two_regions_are_assumed_each_with_its_own_external_id() {
    let roles = [("pull-only", "id-for-prod"), ("pull-only", "id-for-base")];
    let (two, proxy, blobs) = with_roles(roles[0], roles[1]).await;
    for (path, digest) in &blobs {
        assert_whole(&proxy.client().get(path).await, digest);
    }
    assert_each_has_its_own(&two);
    for (simulator, region) in [(&two.prod, "us-west-2"), (&two.base, "eu-west-1")] {
        let asked = simulator.journal().snapshot();
        let token = |entry: &&Entry| entry.operation == "GetAuthorizationToken";
        let tokens: Vec<&Entry> = asked.iter().filter(token).collect();
        assert_eq!(tokens.len(), 1);
        let signed = tokens[0].header("authorization").expect("a signature");
        assert!(signed.contains(&format!("/{region}/ecr/")), "{signed}");
        // By the role's keys, not by those that it was assumed with.
        assert!(tokens[0].header("x-amz-security-token").is_some());
    }
    let mut secrets = two.prod.secrets();
    secrets.extend(two.base.secrets());
    proxy.assert_no_secrets(&secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k08_a_role_that_is_refused_or_may_nothing_takes_nothing_from_the_other() {
    let prod = ("pull-only", "id-for-prod");
    for base in [
        // The other's external id does not open it.
        ("pull-only", "id-for-prod"),
        // It is opened, and gets no token.
        ("denied", "id-for-base"),
    ] {
        let (two, proxy, [(in_prod, digest), (in_base, _)]) = with_roles(prod, base).await;
        let client = proxy.client();
        for _ in 0..3 {
            let refused = client.get(&in_base).await;
            assert_eq!(refused.status, 503, "{base:?}: {}", refused.text());
            assert_whole(&client.get(&in_prod).await, &digest);
        }
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        assert!(ready.text().contains("base: "), "{}", ready.text());
        assert!(!ready.text().contains("prod: "), "{}", ready.text());
        for secret in two.prod.secrets() {
            let shown = two.base.journal().snapshot();
            let of_prod = |entry: &Entry| {
                let mut values = entry.headers.values();
                values.any(|value| String::from_utf8_lossy(value.as_bytes()).contains(&secret))
            };
            assert!(!shown.iter().any(of_prod));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_one_file_for_a_blob_of_two_registries_and_a_proof_for_each() {
    let two = Two::start().await;
    let blob = || BlobSource::generated(7, 2 * MIB);
    let (digest, _) = put(&two.prod, "app", "v1", blob());
    let proxy = side_by_side(two.builder()).start();
    let client = proxy.client();
    let in_prod = format!("/v2/app/blobs/{digest}");
    assert_whole(&client.get(&in_prod).await, &digest);
    idle(&proxy).await;
    // It is on disk, and no repository of the other registry holds it.
    let in_base = format!("/v2/base/app/blobs/{digest}");
    assert_eq!(status(&client, &in_base).await, 404);

    put(&two.base, "app", "v1", blob());
    assert_eq!(status(&client, "/v2/base/app/manifests/v1").await, 200);
    until("the absence is forgotten", async || {
        status(&client, &in_base).await == 200
    })
    .await;
    let hit = client.get(&in_base).await;
    assert_whole(&hit, &digest);
    assert_eq!(outcome(&hit), Some("hit"));
    assert_eq!(bodies(&two.prod, &digest), 2 * MIB);
    assert_eq!(bodies(&two.base, &digest), 0);
    assert_eq!(proxy.assert_blobs_are_sound().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_route_is_about_is_refused_and_nobody_is_asked() {
    let two = Two::start().await;
    put(&two.prod, "app", "v1", BlobSource::generated(1, 1000));
    put(&two.base, "app", "v1", BlobSource::generated(2, 1000));
    let proxy = two
        .builder()
        .route([("repository", "team/**"), ("upstream", "prod")])
        .start();
    let client = proxy.client();
    let path = "/v2/app/manifests/v1";
    for ns in [
        "",
        "?ns=docker.io",
        "?ns=169.254.169.254",
        "?ns=127.0.0.1:1",
    ] {
        let answer = client.get(&format!("{path}{ns}")).await;
        assert_eq!(answer.status, 404, "{ns}: {}", answer.text());
        assert_eq!(answer.error_code(), "NAME_UNKNOWN", "{ns}");
    }
    for simulator in [&two.prod, &two.base] {
        let asked = simulator.journal().snapshot();
        let of_app = asked.iter().filter(|entry| entry.path.contains("/app/"));
        assert_eq!(of_app.count(), 0);
    }
    // The registry that an image is named after is a route of its own.
    for simulator in [&two.prod, &two.base] {
        let ns = simulator.registry_host();
        assert_eq!(
            status(&client, &format!("{path}?ns={ns}")).await,
            200,
            "{ns}"
        );
        let tags = format!("/v2/app/tags/list?n=1&ns={ns}");
        assert_eq!(status(&client, &tags).await, 200, "{ns}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_is_not_told_what_leads_nowhere() {
    let two = Two::start().await;
    let proxy = two
        .builder()
        .route([("repository", "team/**"), ("upstream", "prod")])
        .rule(&format!(
            "users = [\"@anonymous\"]\nactions = [\"pull\"]\nrepositories = [\"team/**\", \"gone/**\"]\ndomains = [\"{DOMAIN}\"]"
        ))
        .start();
    let client = proxy.client();
    let refused = client.get("/v2/other/app/manifests/v1").await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    let unrouted = client.get("/v2/gone/app/manifests/v1").await;
    assert_eq!(unrouted.status, 404, "{}", unrouted.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_and_metrics_tell_of_each_upstream_and_readiness_of_the_one_that_is_away() {
    let two = Two::start().await;
    put(&two.prod, "app", "v1", BlobSource::generated(1, 1000));
    put(&two.base, "app", "v1", BlobSource::generated(2, 1000));
    let proxy = side_by_side(two.builder().set("cache.tag_ttl", "0s")).start();
    let client = proxy.client();
    two.base.outage(ecr_proxy::simulator::Outage::Refused).await;
    until("the outage is noticed", async || {
        client.get("/v2/base/app/manifests/v1").await;
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200);
        ready.text().contains("base: ")
    })
    .await;
    // The other does not suffer.
    assert_eq!(status(&client, "/v2/app/manifests/v1").await, 200);
    let page: Value = Client::operator(proxy.admin())
        .get("/api/v1/status")
        .await
        .json();
    let answering = |name: &str| {
        let upstreams = page["upstreams"].as_array().expect("upstreams");
        let upstream = upstreams.iter().find(|upstream| upstream["name"] == name);
        upstream.expect(name)["is_answering"].clone()
    };
    assert_eq!(answering("prod"), true, "{page}");
    assert_eq!(answering("base"), false, "{page}");
    let metrics = proxy.metrics().await;
    for upstream in ["prod", "base"] {
        let label = format!("upstream=\"{upstream}\"");
        let asked = metrics.sum("ecr_proxy_upstream_requests_total", &[&label]);
        assert!(asked > 0.0, "{upstream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_the_list_of_images_speak_of_names_as_clients_write_them() {
    let two = Two::start().await;
    put(&two.base, "jdk", "21", BlobSource::generated(2, 1000));
    let proxy = two
        .builder()
        .route([
            ("repository", "base/**"),
            ("upstream", "base"),
            ("strip_prefix", "base/"),
        ])
        .start();
    let base = two.base.registry_host();
    for (arguments, status, said) in [
        (
            vec!["check", "--route", "base/jdk"],
            0,
            format!(
                "base/jdk:latest is {base}/jdk (upstream \"base\"), by [[route]] 1: repository"
            ),
        ),
        (
            vec!["check", "--route", "jdk", "--ns", &base],
            0,
            "by the registry that it is named after".to_owned(),
        ),
        (
            vec!["check", "--route", "jdk"],
            1,
            "leads nowhere".to_owned(),
        ),
        (
            vec!["check", "--route", "jdk", "--ns", "quay.io"],
            1,
            "nothing leads from quay.io".to_owned(),
        ),
    ] {
        let ended = proxy.run(arguments.clone());
        assert_eq!(ended.code, Some(status), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.contains(&said), "{arguments:?}: {ended:?}");
    }
    let warmed = proxy.run(["warm", "base/jdk:21"]);
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    for pattern in ["base/jdk", "base/*", &format!("{base}/jdk")] {
        let listed = proxy.run(["cache", "list", pattern]);
        assert!(
            listed.stdout.contains("base/jdk:21"),
            "{pattern}: {listed:?}"
        );
    }
    let pinned = proxy.run(["cache", "pin", "base/jdk:21"]);
    assert_eq!(pinned.code, Some(0), "{pinned:?}");
    let listed = proxy.run(["cache", "list", "--json"]);
    assert!(listed.stdout.contains("\"is_pinned\":true"), "{listed:?}");
    let unrouted = proxy.run(["cache", "pin", "jdk:21"]);
    assert_eq!(unrouted.code, Some(2), "{unrouted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_its_registry_alone_leads_to_is_listed_by_it() {
    let two = Two::start().await;
    put(&two.base, "jdk", "21", BlobSource::generated(2, 1000));
    let proxy = two.builder().start();
    let image = format!("{}/jdk:21", two.base.registry_host());
    let warmed = proxy.run(["warm", &image]);
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    let listed = proxy.run(["cache", "list"]);
    assert!(listed.stdout.contains(&image), "{listed:?}");
    let row = format!("<code>{image}</code>");
    let operator = Client::operator(proxy.admin());
    until("the status page has it", async || {
        operator.get("/").await.text().contains(&row)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_open_for_one_registry_is_not_for_another_and_a_rule_that_says_so_is_warned_of()
 {
    const OPEN: &str = "open.mydomain.test";
    let two = Two::start().await;
    put(&two.prod, "app", "v1", BlobSource::generated(1, 1000));
    put(&two.base, "app", "v1", BlobSource::generated(2, 1000));
    let ns = two.prod.registry_host();
    for (limit, told) in [("", true), ("upstreams = ['base']", false)] {
        let proxy = two
            .builder()
            .set("server.domains", vec![DOMAIN, OPEN])
            .rule(&format!(
                "users = ['@anonymous']\nactions = ['pull']\ndomains = ['{OPEN}']\n{limit}"
            ))
            .rule(&format!(
                "users = ['*']\nactions = ['pull']\ndomains = ['{DOMAIN}']"
            ))
            .route([("domain", OPEN), ("upstream", "base")])
            .route([("domain", DOMAIN), ("upstream", "prod")])
            .start();
        let client = proxy.client().with("Host", OPEN);
        assert_eq!(status(&client, "/v2/app/manifests/v1").await, 200);
        let other = format!("/v2/app/manifests/v1?ns={ns}");
        let expected = if told { 200 } else { 401 };
        assert_eq!(status(&client, &other).await, expected, "{limit}");
        let checked = proxy.run(["check"]);
        let warned = checked
            .stdout
            .contains(&format!("anybody pull from \"prod\" at {OPEN}"));
        assert_eq!(warned, told, "{checked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_what_is_told_of_the_name_that_clients_write_under_the_domain_that_leads() {
    const TEAM: &str = "team.mydomain.test";
    let two = Two::start().await;
    for name in ["jdk", "secret/jdk"] {
        put(&two.base, name, "21", BlobSource::generated(2, 1000));
    }
    let proxy = two
        .builder()
        .set("server.domains", vec![DOMAIN, TEAM])
        .users(&user_line("ci", "a password"))
        .rule("users = ['*']\nrepositories = ['base/secret/**']\nactions = []")
        .rule(&format!(
            "users = ['*']\nrepositories = ['base/**']\ndomains = ['{TEAM}']\nactions = ['pull']"
        ))
        .rule("users = ['*']\nrepositories = ['secret/**']\nactions = ['pull']")
        .route([
            ("domain", TEAM),
            ("repository", "base/**"),
            ("upstream", "base"),
            ("strip_prefix", "base"),
        ])
        .start();
    let client = login(proxy.client(), "ci", "a password").with("Host", TEAM);
    let ns = two.base.registry_host();
    for (name, named, expected) in [
        ("base/jdk", None, 200),
        ("base/secret/jdk", None, 403),
        ("secret/jdk", Some(&*ns), 200),
        ("jdk", Some(&*ns), 403),
    ] {
        let query = named.map_or_else(String::new, |ns| format!("?ns={ns}"));
        let path = format!("/v2/{name}/manifests/21{query}");
        assert_eq!(status(&client, &path).await, expected, "{path}");
        let image = format!("{TEAM}/{name}");
        for image in [&*image, name] {
            let mut arguments = vec!["check", "--as", "ci", image, "pull"];
            arguments.extend(named.iter().flat_map(|ns| ["--ns", ns]));
            let ended = proxy.run(arguments.clone());
            let allows = ended.code == Some(0);
            assert_eq!(allows, expected == 200, "{arguments:?}: {ended:?}");
            assert!(
                ended.stdout.contains(&format!(" pull {name} on ")),
                "{ended:?}"
            );
        }
    }
    // That is hardly meant, and told.
    let checked = proxy.run(["check"]);
    let told = format!(
        "[[access.rule]] 1: any user may not pull base/secret/any, and may ([[access.rule]] 3) as secret/any, \
         its name at its registry, by ?ns={ns}"
    );
    assert!(checked.stdout.contains(&told), "{checked:?}");

    let refused = client.get("/v2/elsewhere/manifests/21").await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    let ended = |repository: &'static str, status: &'static str, ns: Option<&str>| {
        let ns = ns.map(str::to_owned);
        proxy.log_until(repository, move |event| {
            event.message() == "request"
                && event.field("oci.repository").as_deref() == Some(repository)
                && event.field("http.status").as_deref() == Some(status)
                && event.field("oci.ns") == ns
        })
    };
    for (repository, status, ns) in [
        ("base/jdk", "200", None),
        ("base/secret/jdk", "403", None),
        ("secret/jdk", "200", Some(&*ns)),
    ] {
        let event = ended(repository, status, ns).await;
        assert_eq!(event.field("upstream.name").as_deref(), Some("base"));
        assert_eq!(event.field("upstream.is_fallback"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_nowhere_is_logged_with_where_it_was_asked() {
    let two = Two::start().await;
    let proxy = two
        .builder()
        .route([("repository", "base/**"), ("upstream", "base")])
        .start();
    let client = proxy.client().with("Host", DOMAIN);
    for (path, ns) in [
        ("/v2/any/manifests/21", None),
        ("/v2/any/manifests/21?ns=quay.io", Some("quay.io")),
    ] {
        assert_eq!(status(&client, path).await, 404, "{path}");
        let target = format!("{DOMAIN}{path}");
        let told = proxy.log_until(path, |event| {
            event.field("http.target").as_deref() == Some(&*target)
        });
        let event = told.await;
        assert_eq!(event.field("oci.ns").as_deref(), ns);
        assert_eq!(event.field("upstream.name"), None);
    }
}
