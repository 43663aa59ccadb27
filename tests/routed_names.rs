//! Names and registries written in every odd way lead to the one repository that they mean, or nowhere: a
//! client's spelling never reaches what another spelling of it would not.

mod support;

use ecr_proxy::simulator::{BlobSource, Simulator};
use support::two::{Two, put};
use support::{Client, DOMAIN, Proxy};

/// Where a request came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Led<'a> {
    /// At the image of this repository.
    To(&'a str),
    /// Nowhere, with this status and code.
    Refused(u16, &'a str),
}

/// `team/**` leads to the second upstream without `team`; quay.io and whatever `ns` at a name of its own to the
/// first, under prefixes; the rest to the first.
async fn before() -> (Two, Proxy, Vec<(&'static str, String)>) {
    let two = Two::start().await;
    let mut seed = 0;
    let mut image = |simulator: &Simulator, repository: &str| {
        seed += 1;
        put(
            simulator,
            repository,
            "v1",
            BlobSource::generated(seed, 100),
        )
        .1
    };
    let deep = "a/".repeat(100) + "b";
    let images = vec![
        ("app", image(&two.prod, "app")),
        ("team", image(&two.prod, "team")),
        ("teams/app", image(&two.prod, "teams/app")),
        ("quay/app", image(&two.prod, "quay/app")),
        ("any/app", image(&two.prod, "any/app")),
        ("deep", image(&two.prod, &deep)),
        ("base:app", image(&two.base, "app")),
        ("base:team/app", image(&two.base, "team/app")),
    ];
    let proxy = two
        .builder()
        .set("server.domains", vec![DOMAIN, "any.mydomain.test"])
        .listen(["https://127.0.0.1:0", "http://127.0.0.1:0"])
        .route([
            ("domain", "any.mydomain.test"),
            ("ns", "*"),
            ("upstream", "prod"),
            ("add_prefix", "any"),
        ])
        .route([
            ("repository", "team/**"),
            ("upstream", "base"),
            ("strip_prefix", "team"),
        ])
        .route([
            ("ns", "quay.io"),
            ("upstream", "prod"),
            ("add_prefix", "quay"),
        ])
        .route([("upstream", "prod")])
        .start();
    (two, proxy, images)
}

async fn assert_leads(
    client: &Client,
    images: &[(&str, String)],
    name: &str,
    query: &str,
    expected: Led<'_>,
) {
    let path = format!("/v2/{name}/manifests/v1{query}");
    let answer = client.get(&path).await;
    match expected {
        Led::To(image) => {
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let found = answer.header("docker-content-digest").expect("a digest");
            let found = images.iter().find(|(_, digest)| digest == found);
            assert_eq!(found.map(|(image, _)| *image), Some(image), "{path}");
        }
        Led::Refused(status, code) => {
            let told = (answer.status, answer.error_code());
            assert_eq!(told, (status, code.to_owned()), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p08_names_of_every_shape_lead_to_what_they_mean_or_nowhere() {
    let (two, proxy, images) = before().await;
    let client = proxy.client().with("Host", DOMAIN);
    let deep = "a/".repeat(100) + "b";
    let longest = format!("team/{}", "a".repeat(250));
    let malformed = Led::Refused(400, "NAME_INVALID");
    let unknown = Led::Refused(404, "NAME_UNKNOWN");
    for (name, expected) in [
        ("app", Led::To("app")),
        ("team/app", Led::To("base:app")),
        // What is stripped is whole components, once, and never the whole name.
        ("team", Led::To("team")),
        ("teams/app", Led::To("teams/app")),
        ("team/team/app", Led::To("base:team/app")),
        (&*deep, Led::To("deep")),
        (&*longest, unknown),
        ("team/", malformed),
        ("team//app", malformed),
        ("/team/app", malformed),
        ("./team/app", malformed),
        ("team/../app", malformed),
        ("team%2Fapp", malformed),
        ("team%2fapp", malformed),
        ("%74eam/app", malformed),
        ("Team/app", malformed),
        ("TEAM/APP", malformed),
        ("team/app:v2", malformed),
        ("team;x/app", malformed),
        ("quay.io/app", unknown),
        ("team/app@sha256", malformed),
    ] {
        assert_leads(&client, &images, name, "", expected).await;
    }
    let too_long = "a".repeat(256);
    assert_leads(&client, &images, &too_long, "", malformed).await;
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_an_ns_is_looked_up_as_a_whole_and_once() {
    let (two, proxy, images) = before().await;
    let client = proxy.client().with("Host", DOMAIN);
    let base = two.base.registry_host();
    let (of_base, of_base_443) = (format!("?ns={base}"), format!("?ns={base}:443"));
    let (shouted, with_dot) = (
        format!("?ns={}", base.to_uppercase()),
        format!("?ns={base}."),
    );
    let (below, before_it) = (format!("?ns={base}/x"), format!("?ns=x.{base}"));
    let ours = format!("?ns={DOMAIN}:8443");
    let nowhere = Led::Refused(404, "NAME_UNKNOWN");
    let malformed = Led::Refused(400, "UNSUPPORTED");
    for (query, expected) in [
        ("", Led::To("app")),
        ("?", Led::To("app")),
        (&*ours, Led::To("app")),
        ("?ns=quay.io", Led::To("quay/app")),
        ("?ns=QUAY.IO", Led::To("quay/app")),
        ("?ns=quay.io:443", Led::To("quay/app")),
        ("?ns=quay%2Eio", Led::To("quay/app")),
        ("?x=y&ns=quay.io&z", Led::To("quay/app")),
        (&*of_base, Led::To("base:app")),
        (&*of_base_443, Led::To("base:app")),
        (&*shouted, Led::To("base:app")),
        // Of another port, name or kind it is another registry.
        ("?ns=quay.io:80", nowhere),
        ("?ns=quay.io:", nowhere),
        ("?ns=quay.io.", nowhere),
        ("?ns=quay.io/", nowhere),
        ("?ns=quay.io%2F..", nowhere),
        ("?ns=https%3A%2F%2Fquay.io", nowhere),
        ("?ns=user@quay.io", nowhere),
        ("?ns=%20quay.io", nowhere),
        ("?ns=*", nowhere),
        ("?ns=", nowhere),
        ("?ns", nowhere),
        ("?ns=[::1]:5000", nowhere),
        ("?ns=169.254.169.254", nowhere),
        (&*with_dot, nowhere),
        (&*below, nowhere),
        (&*before_it, nowhere),
        // Who says it twice, or what is no text, says nothing that could be looked up.
        ("?ns=quay.io&ns=quay.io", malformed),
        ("?ns=&ns=quay.io", malformed),
        ("?ns=quay.io%00", malformed),
        ("?ns=%ff", malformed),
        ("?ns=quay.io%0d%0aHost:%20x", malformed),
    ] {
        assert_leads(&client, &images, "app", query, expected).await;
    }
    // A route that names a repository is for that, whatever it is said to be of; one for any `ns` for any.
    assert_leads(
        &client,
        &images,
        "team/app",
        "?ns=quay.io",
        Led::To("base:app"),
    )
    .await;
    let any = proxy.client().with("Host", "any.mydomain.test");
    for query in [
        "",
        "?ns=quay.io",
        "?ns=nobody.test",
        "?ns=",
        "?ns=any.mydomain.test",
    ] {
        assert_leads(&any, &images, "app", query, Led::To("any/app")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_an_upload_goes_on_where_it_began_whatever_its_ns_is_made_of() {
    let two = Two::start().await;
    two.prod.create_repository("app");
    let proxy = two
        .builder()
        .rule("users = ['@anonymous']\nactions = ['pull', 'push']")
        .route([("ns", "*"), ("upstream", "prod")])
        .start();
    let client = proxy.client();
    for ns in [
        "quay.io",
        "a%26digest%3Dsha256:00",
        "%C3%A9",
        "a%23b",
        "a%20b",
        "",
        "%25",
    ] {
        let begun = client
            .ask(
                "POST",
                &format!("/v2/app/blobs/uploads/?ns={ns}"),
                &[("content-length", "0")],
            )
            .await;
        assert_eq!(begun.status, 202, "{ns}: {}", begun.text());
        let location = begun.header("location").expect("a Location").to_owned();
        let (path, query) = location.split_once('?').expect("ns");
        assert!(!path.contains(ns) || ns.is_empty(), "{location}");
        assert!(
            query.starts_with("ns=") && !query.contains('&'),
            "{location}"
        );
        let state = client.get(&location).await;
        assert_eq!(state.status, 204, "{location}: {}", state.text());
    }
}
