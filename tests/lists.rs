//! Lists are upstream's own in the order that the specification wants, page by page: every tag can be reached
//! by following our links, which name no host but ours and nothing that only upstream understands, and
//! referrers come whole, or those of one artifact type. What upstream cannot tell the cache does.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ecr_proxy::simulator::{
    CannedAnswer, FULL_ACCESS_KEY, Fault, Listener, Outage, Pattern, Simulator, Stored,
};
use support::blobs::metric;
use support::image::{REPOSITORY, TAG};
use support::proxy::Builder;
use support::real::DockerRegistry;
use support::users::{login, user_line};
use support::{Answer, Client, Connection, Proxy, image, store};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The address of the next page, which has to be a path of ours.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let target = link
        .strip_prefix('<')
        .and_then(|rest| rest.strip_suffix(">; rel=\"next\""))
        .unwrap_or_else(|| panic!("not a link to the next page: {link}"));
    assert!(
        target.starts_with(&format!("/v2/{REPOSITORY}/")) && !target.contains("amazonaws"),
        "a link away from here: {link}"
    );
    Some(target.to_owned())
}

/// The names of a page of tags.
fn names(answer: &Answer) -> Vec<String> {
    let list = answer.json();
    let tags = list["tags"].as_array().expect("an array of tags").iter();
    tags.map(|tag| tag.as_str().expect("a tag").to_owned())
        .collect()
}

/// Every tag, by following the links, and the number of pages; fails if a tag comes twice, or out of order.
async fn all_tags(client: &Client, query: &str) -> (BTreeSet<String>, usize) {
    let mut tags = BTreeSet::new();
    let mut pages = 0;
    let mut target = Some(format!("/v2/{REPOSITORY}/tags/list{query}"));
    while let Some(path) = target {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.json()["name"], REPOSITORY);
        let page = names(&answer);
        for tag in &page {
            let before = tags.last();
            assert!(before < Some(tag), "{tag} came after {before:?}");
            tags.insert(tag.clone());
        }
        pages += 1;
        assert!(pages < 300, "the links go round");
        target = next(&answer);
        if let Some(target) = &target {
            let last = page.last().expect("a page with a next one");
            assert!(target.ends_with(&format!("last={last}")), "{target}");
        }
    }
    (tags, pages)
}

async fn before(simulator: &Simulator) -> Proxy {
    // To pull alone is not enough to list.
    Proxy::builder()
        .simulator(simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_all_of_250_tags_are_reached_by_following_our_links() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let digest = image::push(&simulator).top.digest;
    let mut pushed = BTreeSet::from([image::TAG.to_owned()]);
    for number in 0..249 {
        let tag = format!("tag-{number:03}");
        simulator.tag(REPOSITORY, &tag, &digest);
        pushed.insert(tag);
    }
    let proxy = before(&simulator).await;
    for (query, at_least) in [
        ("", 1),
        ("?n=100", 3),
        ("?n=40", 7),
        ("?n=1000", 1),
        ("?n=999999999", 1),
    ] {
        let (tags, pages) = all_tags(&proxy.client(), query).await;
        assert_eq!(tags, pushed, "{query}");
        assert!(pages >= at_least, "{query}: {pages} pages");
    }
    // What a page begins after need not be there.
    let path = format!("/v2/{REPOSITORY}/tags/list?n=2&last=tag-0105");
    let page = proxy.client().get(&path).await;
    assert_eq!(names(&page), ["tag-011", "tag-012"]);
    // Upstream was asked for a list once, and not once for each of its pages.
    let lists = simulator
        .journal()
        .count(|entry| entry.path.ends_with("/tags/list") && !entry.query.contains("last="));
    assert!(lists <= 6, "{lists}");
    let longest = simulator
        .journal()
        .snapshot()
        .into_iter()
        .filter_map(|entry| {
            let n = entry
                .query
                .split('&')
                .find_map(|pair| pair.strip_prefix("n="))?;
            n.parse::<u64>().ok()
        });
    assert_eq!(
        longest.max(),
        Some(1000),
        "more was asked for than ECR gives"
    );

    let none = proxy
        .client()
        .get(&format!("/v2/{REPOSITORY}/tags/list?n=0"))
        .await;
    assert_eq!(none.status, 200);
    assert_eq!(none.json()["tags"].as_array().map(Vec::len), Some(0));
    assert_eq!(next(&none), None);
    let absent = proxy.client().get("/v2/no/such/tags/list").await;
    assert_eq!(
        (absent.status, absent.error_code().as_str()),
        (404, "NAME_UNKNOWN")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_in_the_list_of_whoever_pages_on() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    for tag in ["a", "b"] {
        simulator.tag(REPOSITORY, tag, &image.top.digest);
    }
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .unset("access.anonymous")
        .users(&user_line("ci", "secret"))
        .rule("users = ['ci']\nactions = ['pull', 'push', 'delete']")
        .start();
    let client = login(proxy.client(), "ci", "secret");
    let rest = format!("/v2/{REPOSITORY}/tags/list?last=a");
    assert_eq!(names(&client.get(&rest).await), ["b", image::TAG]);
    let (media_type, bytes) = simulator
        .manifest(REPOSITORY, &image.top.digest)
        .expect("it was pushed");
    let path = format!("/v2/{REPOSITORY}/manifests/c");
    let length = bytes.len().to_string();
    let typed = [
        ("content-type", media_type.as_str()),
        ("content-length", length.as_str()),
    ];
    let mut connection = client.start("PUT", &path, &typed).await;
    connection.send(&bytes).await.expect("send");
    let put = connection.answer("PUT").await.expect("an answer");
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(names(&client.get(&rest).await), ["b", "c", image::TAG]);
    let path = format!("/v2/{REPOSITORY}/manifests/b");
    assert_eq!(client.ask("DELETE", &path, &[]).await.status, 202);
    assert_eq!(names(&client.get(&rest).await), ["c", image::TAG]);
}

#[tokio::test(flavor = "multi_thread")]
async fn o01_the_tags_that_are_here_are_listed_when_upstream_cannot() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let digest = image::push(&simulator).top.digest;
    for tag in ["b", "never-pulled", "a", "C"] {
        simulator.tag(REPOSITORY, tag, &digest);
    }
    let mut proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/tags/list");
    let online = proxy.client().get(&path).await;
    let all = ["a", "b", "C", "never-pulled", image::TAG];
    assert_eq!(
        (online.status, &names(&online)[..]),
        (200, &all.map(String::from)[..])
    );
    for tag in ["a", "b", "C"] {
        let manifest = format!("/v2/{REPOSITORY}/manifests/{tag}");
        assert_eq!(proxy.client().get(&manifest).await.status, 200);
    }

    simulator.outage(Outage::Refused).await;
    for again in [false, true] {
        if again {
            proxy.terminate();
            assert!(proxy.wait().success());
            proxy.restart();
        }
        let client = proxy.client();
        let first = client.get(&format!("{path}?n=2")).await;
        assert_kept(&first);
        assert_eq!(names(&first), ["a", "b"]);
        let second = next(&first).expect("a next page");
        assert!(second.ends_with("?n=2&last=b"), "{second}");
        let second = client.get(&second).await;
        let rest = match again {
            // Upstream's own list is remembered for those who page through it.
            false => &["C", "never-pulled"][..],
            true => &["C"],
        };
        assert_eq!(names(&second), rest);
        let is_from_list = second.header("x-cache") == Some("hit");
        assert_eq!(is_from_list, !again);
        let unknown = client.get("/v2/no/such/tags/list").await;
        assert_eq!(unknown.status, 503, "{}", unknown.text());
        assert!(unknown.header("retry-after").is_some());
    }

    // What failed is asked for anew, and what upstream says now counts.
    simulator.outage(Outage::None).await;
    support::within("the link is back", async {
        while names(&proxy.client().get(&path).await).len() < all.len() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let absent = proxy.client().get("/v2/no/such/tags/list").await;
    assert_eq!(absent.status, 404, "{}", absent.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_pages_go_round_in_upstream_has_an_end_here() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = before(&simulator).await;
    let paths = [
        format!("/v2/{REPOSITORY}/tags/list"),
        "/v2/_catalog".to_owned(),
    ];
    for (path, key) in paths.iter().zip(["tags", "repositories"]) {
        let round = Fault::Answer(CannedAnswer {
            status: 200,
            headers: vec![("link", format!("<{path}?last=x>; rel=\"next\""))],
            body: format!(r#"{{"{key}":["x"]}}"#).into(),
        });
        let faults = simulator.faults();
        let rule = faults.on(Listener::Registry, "GET", path.as_str());
        let rule = rule.then(round);
        let answer = proxy.client().get(path).await;
        assert_eq!(answer.status, 502, "{path}: {}", answer.text());
        assert_eq!(rule.taken(), 2, "{path}");
        rule.remove();
        let answer = proxy.client().get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

/// An upstream's page of tags, with the address of the next one.
fn page(tags: &[&str], next: Option<&str>) -> Fault {
    let tags = serde_json::json!({ "name": REPOSITORY, "tags": tags });
    let link = |next| ("link", format!("<{next}>; rel=\"next\""));
    Fault::Answer(CannedAnswer {
        status: 200,
        headers: next.map(link).into_iter().collect(),
        body: tags.to_string().into(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_registry_may_call_its_pages_what_it_likes() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/tags/list");
    let faults = simulator.faults();
    let pages = [
        page(&["b"], Some(&format!("{path}?next_page=x%2By%3D&n=9"))),
        page(&["c"], Some("https://elsewhere.test/else?token=z")),
        page(&["a"], None),
    ];
    for page in pages {
        let rule = faults.on(Listener::Registry, "GET", path.as_str());
        rule.times(1).then(page);
    }
    let answer = proxy.client().get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(names(&answer), ["a", "b", "c"]);
    let asked = simulator.journal().snapshot();
    let asked = asked.iter().filter(|entry| entry.path == path);
    let asked: Vec<_> = asked.map(|entry| entry.query.as_str()).collect();
    assert_eq!(
        asked,
        ["n=1000", "next_page=x%2By%3D&n=9", "token=z&n=1000"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_names_of_nothing_are_counted_too() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/tags/list");
    let faults = simulator.faults();
    let nothing = vec![""; 300_000];
    let rules = ["last=0", ""].map(|query| {
        let of_query = Pattern::matching(move |entry| {
            entry.path.ends_with("/tags/list") && entry.query.contains(query)
        });
        let number = usize::from(!query.is_empty());
        let next = page(&nothing, Some(&format!("{path}?last={number}")));
        let rule = faults.on(Listener::Registry, "GET", of_query);
        rule.times(4).then(next)
    });
    let answer = proxy.client().get(&path).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let asked: u64 = rules.iter().map(|rule| rule.taken()).sum();
    assert!(asked < 5, "{asked} pages of nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn o02_tags_are_listed_for_as_long_as_they_may_be_stale() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "0s")
        .set("cache.stale_if_error", "0s")
        .start();
    let manifest = format!("/v2/{REPOSITORY}/manifests/{}", image::TAG);
    assert_eq!(proxy.client().get(&manifest).await.status, 200);
    simulator.outage(Outage::Refused).await;
    let list = format!("/v2/{REPOSITORY}/tags/list");
    let gone = proxy.client().get(&list).await;
    assert_eq!(gone.status, 503, "{}", gone.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_pull_gets_no_list_and_no_word_of_aws() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let proxy = Proxy::before(&simulator);
    let answer = proxy
        .client()
        .get(&format!("/v2/{REPOSITORY}/tags/list"))
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (403, "DENIED"),
        "{}",
        answer.text()
    );
    for aws in ["arn:", "000042290000", "amazonaws", "ecr:"] {
        assert!(!answer.text().contains(aws), "{}", answer.text());
    }
}

const SBOM: &str = "application/spdx+json";
const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Puts a manifest of this artifact type that refers to `subject`; answers its digest.
fn refer(simulator: &Simulator, subject: &Stored, kind: &str) -> String {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": store::digest(b"{}"),
            "size": 2,
        },
        "layers": [],
        "subject": {
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": subject.size,
        },
        "annotations": { "org.example.kind": kind },
    });
    simulator.put_manifest(REPOSITORY, "", MANIFEST, manifest.to_string())
}

/// The digests of a list.
fn listed(answer: &Answer) -> BTreeSet<String> {
    let index = answer.json();
    let manifests = index["manifests"].as_array().expect("an index").iter();
    manifests
        .map(|m| m["digest"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Fails unless something is told without upstream, and says so.
fn assert_kept(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-cache"), Some("stale"));
    assert!(answer.header("age").is_some() && !answer.head.header_values("warning").is_empty());
}

/// The same of a list of referrers.
fn assert_stale(answer: &Answer) {
    assert_kept(answer);
    assert_eq!(answer.header("content-type"), Some(INDEX));
    assert_eq!(answer.json()["schemaVersion"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_referrers_is_told_again_when_upstream_cannot() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let subject = image::push(&simulator).top;
    let both = BTreeSet::from([SBOM, SIGNATURE].map(|kind| refer(&simulator, &subject, kind)));
    let mut proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/referrers/{}", subject.digest);
    let online = proxy.client().get(&path).await;
    assert_eq!((online.status, listed(&online)), (200, both.clone()));
    let nothing = format!("/v2/{REPOSITORY}/referrers/{}", store::digest(b"nothing"));
    // Who asked for one type is told of that type again, and of the others.
    let one = format!("{nothing}?artifactType=a%2Fb");
    assert_eq!(listed(&proxy.client().get(&one).await), BTreeSet::new());

    simulator.outage(Outage::Refused).await;
    for again in [false, true] {
        if again {
            proxy.terminate();
            assert!(proxy.wait().success());
            proxy.restart();
        }
        let stale = proxy.client().get(&path).await;
        assert_stale(&stale);
        assert_eq!(stale.json()["manifests"], online.json()["manifests"]);
        let filtered = format!("{path}?artifactType=application%2Fspdx%2Bjson");
        let filtered = proxy.client().get(&filtered).await;
        assert_stale(&filtered);
        assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
        assert_eq!(
            filtered.json()["manifests"].as_array().map(Vec::len),
            Some(1)
        );
        assert_eq!(filtered.json()["manifests"][0]["artifactType"], SBOM);
        let none = proxy.client().get(&nothing).await;
        assert_stale(&none);
        assert_eq!(
            listed(&none),
            BTreeSet::new(),
            "upstream said there are none"
        );
        // Of what was never asked, nothing is known: not that there is nothing.
        let unknown = format!("/v2/{REPOSITORY}/referrers/{}", store::digest(b"unknown"));
        let unknown = proxy.client().get(&unknown).await;
        assert_eq!(unknown.status, 503, "{}", unknown.text());
        assert!(unknown.header("retry-after").is_some());
    }

    // What upstream says now counts.
    simulator.outage(Outage::None).await;
    for digest in &both {
        simulator.delete_manifest(REPOSITORY, digest);
    }
    support::within("the link is back", async {
        while proxy.client().get(&path).await.header("x-cache") == Some("stale") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    simulator.outage(Outage::Refused).await;
    assert_eq!(listed(&proxy.client().get(&path).await), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_that_were_pulled_are_listed_when_upstream_cannot() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let (pulled, tagged) = (&image.top, &image.manifests[0].manifest);
    let sbom = refer(&simulator, pulled, SBOM);
    let never_pulled = refer(&simulator, pulled, SIGNATURE);
    let proxy = before(&simulator).await;
    let manifests = format!("/v2/{REPOSITORY}/manifests");
    let got = proxy.client().get(&format!("{manifests}/{sbom}")).await;
    assert_eq!(got.status, 200);
    // A client of a registry without lists keeps one under a tag.
    let entry = serde_json::json!({
        "mediaType": MANIFEST,
        "digest": never_pulled,
        "size": 7,
        "artifactType": SIGNATURE,
    });
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry],
    });
    let tag = tagged.digest.replace(':', "-");
    simulator.put_manifest(REPOSITORY, &tag, INDEX, index.to_string());
    let got = proxy.client().get(&format!("{manifests}/{tag}")).await;
    assert_eq!(got.status, 200);

    simulator.outage(Outage::Refused).await;
    let referrers = format!("/v2/{REPOSITORY}/referrers");
    let stale = proxy
        .client()
        .get(&format!("{referrers}/{}", pulled.digest))
        .await;
    assert_stale(&stale);
    assert_eq!(listed(&stale), BTreeSet::from([sbom.clone()]));
    let entry = &stale.json()["manifests"][0];
    let (media_type, bytes) = simulator.manifest(REPOSITORY, &sbom).expect("it is there");
    assert_eq!(entry["mediaType"], media_type);
    assert_eq!(entry["size"], bytes.len());
    assert_eq!(entry["artifactType"], SBOM);
    assert_eq!(entry["annotations"]["org.example.kind"], SBOM);
    let stale = proxy
        .client()
        .get(&format!("{referrers}/{}", tagged.digest))
        .await;
    assert_stale(&stale);
    assert_eq!(listed(&stale), BTreeSet::from([never_pulled]));
    assert_eq!(stale.header("oci-filters-applied"), None);
}

/// The same registry as one of no known kind.
fn by_basic(simulator: &Simulator, folder: &Path) -> Builder {
    let token = simulator.token(FULL_ACCESS_KEY).expect("a principal");
    let password = folder.join("password");
    fs::write(&password, token.password).expect("a writable folder");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("one's own file");
    Proxy::builder()
        .registry("registry.upstream.test", &simulator.endpoint())
        .upstream_key("auth", "basic")
        .upstream_key("username", "AWS")
        .upstream_key("password_file", password.to_str().expect("a UTF-8 path"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_pages_where_referrers_would_be_knows_of_none_and_is_there() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let known = image::push(&simulator).top;
    refer(&simulator, &known, SBOM);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = by_basic(&simulator, folder.path()).start();
    let known = format!("/v2/{REPOSITORY}/referrers/{}", known.digest);
    assert_eq!(listed(&proxy.client().get(&known).await).len(), 1);
    let other = |body: &'static str| {
        Fault::Answer(CannedAnswer {
            status: 200,
            headers: vec![("content-type", "application/json".into())],
            body: body.into(),
        })
    };
    for (number, fault) in [
        Fault::rubbish(),
        Fault::redirect("https://login.upstream.test/?next=x"),
        other(r#"{"message":"not here"}"#),
    ]
    .into_iter()
    .enumerate()
    {
        let faults = simulator.faults();
        let rule = faults.on(Listener::Registry, "GET", "/referrers/");
        let rule = rule.then(fault);
        for lookup in 0..10 {
            let subject = store::digest(format!("{number} {lookup}").as_bytes());
            let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
            let answer = proxy.client().get(&path).await;
            assert_eq!(answer.status, 404, "{number}: {}", answer.text());
        }
        // It hides none that were listed before.
        let stale = proxy.client().get(&known).await;
        assert_stale(&stale);
        assert_eq!(listed(&stale).len(), 1, "{number}");
        rule.remove();
    }
    let opened = "ecr_proxy_upstream_breaker_openings_total";
    assert_eq!(metric(&proxy, opened, &[]).await, 0.0);
    let tag = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    assert_eq!(proxy.client().get(&tag).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_hides_no_newer_referrers_of_a_registry_that_has_only_the_tag_for_them() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let subject = image::push(&simulator).top;
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = by_basic(&simulator, folder.path()).start();
    let faults = simulator.faults();
    let page = faults.on(Listener::Registry, "GET", "/referrers/");
    page.then(Fault::rubbish());
    // A client finds one under the tag, and pulls it.
    let first = refer(&simulator, &subject, SBOM);
    let tag = subject.digest.replace(':', "-");
    let entry = format!(r#"{{"mediaType":"{MANIFEST}","digest":"{first}","size":2}}"#);
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entry}]}}"#);
    simulator.put_manifest(REPOSITORY, &tag, INDEX, index);
    for reference in [&tag, &first] {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        assert_eq!(proxy.client().get(&path).await.status, 200, "{reference}");
    }
    let path = format!("/v2/{REPOSITORY}/referrers/{}", subject.digest);
    let answer = proxy.client().get(&path).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_host_of_the_registry_says_is_not_there_is_not() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let other = Simulator::builder().start().await.expect("a simulator");
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = by_basic(&simulator, folder.path()).start();
    for (path, code) in [
        ("/v2/team/app/manifests/v1", "MANIFEST_UNKNOWN"),
        ("/v2/team/gone/manifests/v1", "NAME_UNKNOWN"),
        ("/v2/team/gone/tags/list", "NAME_UNKNOWN"),
    ] {
        let sent = simulator.faults();
        let sent = sent.on(Listener::Registry, "GET", path);
        sent.then(Fault::redirect(&format!("{}{path}", other.endpoint())));
        let told = other.faults().on(Listener::Registry, "GET", path);
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"none"}}]}}"#);
        told.then(Fault::status(404, &body));
        let answer = proxy.client().get(path).await;
        let told = (answer.status, &*answer.error_code());
        assert_eq!(told, (404, code), "{path}");
    }
    // Storage is none that says so.
    let sent = simulator.faults();
    let sent = sent.on(Listener::Registry, "GET", "/v2/team/app/manifests/v2");
    sent.then(Fault::redirect(&format!("{}/bucket/x", other.endpoint())));
    let lost = other.faults().on(Listener::Registry, "GET", "/bucket/x");
    lost.then(Fault::status(404, "NoSuchKey"));
    let answer = proxy.client().get("/v2/team/app/manifests/v2").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_knows_of_no_referrers_is_understood_in_other_words() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let folder = tempfile::tempdir().expect("a folder");
    let by_basic = by_basic(&simulator, folder.path());
    let tag = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    for (number, proxy) in [by_basic.start(), before(&simulator).await]
        .into_iter()
        .enumerate()
    {
        assert_eq!(proxy.client().get(&tag).await.status, 200, "it is let in");
        for status in [400, 404, 405, 406] {
            // Of an image of its own each, for what was said of one is remembered.
            let subject = store::digest(format!("{number} {status}").as_bytes());
            let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
            let rule = simulator.faults().on(Listener::Registry, "GET", &*path);
            let rule = rule.then(Fault::status(status, "no such thing"));
            // Clients look under the tag for them then.
            let answer = proxy.client().get(&path).await;
            assert_eq!(answer.status, 404, "{status}: {}", answer.text());
            assert!(rule.taken() > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_told_whole_and_filtered() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let subject = image::push(&simulator).top;
    let referrers = [SBOM, SIGNATURE].map(|kind| refer(&simulator, &subject, kind));
    let proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/referrers/{}", subject.digest);
    let all = proxy.client().get(&path).await;
    assert_eq!(all.status, 200, "{}", all.text());
    assert_eq!(all.header("content-type"), Some(INDEX));
    assert_eq!(listed(&all), referrers.iter().cloned().collect());

    let one = format!("{path}?artifactType=application%2Fspdx%2Bjson");
    let one = proxy.client().get(&one).await;
    assert_eq!(one.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(listed(&one), BTreeSet::from([referrers[0].clone()]));

    // However many pages upstream makes of it, it is one list of ours.
    let there = format!("https://{}{path}", simulator.registry_host());
    let link = format!("<{there}?nextToken=abc>; rel=\"next\"");
    let rule = simulator
        .faults()
        .on(Listener::Registry, "GET", "/referrers/");
    rule.times(1).then(Fault::AddHeader("link", link));
    let both = proxy.client().get(&path).await;
    assert_eq!((listed(&both).len(), both.header("link")), (2, None));
    let last = simulator.journal().snapshot().pop().expect("a request");
    assert_eq!(last.query, "nextToken=abc");

    let nothing = format!("/v2/{REPOSITORY}/referrers/{}", store::digest(b"nothing"));
    let nothing = proxy.client().get(&nothing).await;
    assert_eq!((nothing.status, listed(&nothing)), (200, BTreeSet::new()));
    proxy.assert_no_secrets(&simulator.secrets()).await;
    let away = simulator
        .journal()
        .count(|entry| entry.listener == Listener::Storage);
    assert_eq!(away, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_referrers_that_cannot_be_read_is_not_a_page_of_none() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let subject = image::push(&simulator).top;
    for kind in [SBOM, SIGNATURE] {
        refer(&simulator, &subject, kind);
    }
    let proxy = before(&simulator).await;
    let path = format!("/v2/{REPOSITORY}/referrers/{}", subject.digest);
    assert_eq!(listed(&proxy.client().get(&path).await).len(), 2);
    let on = || {
        let faults = simulator.faults();
        faults.on(Listener::Registry, "GET", "/referrers/").times(1)
    };
    let link = format!("<{path}?nextToken=abc>; rel=\"next\"");
    on().then(Fault::AddHeader("link", link));
    on().then(Fault::Answer(CannedAnswer {
        status: 200,
        headers: vec![("content-type", INDEX.into())],
        body: r#"{"schemaVersion": 2, "manifests": 5}"#.into(),
    }));
    let refused = proxy.client().get(&path).await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    // And it is not remembered as fewer.
    simulator.outage(Outage::Refused).await;
    let stale = proxy.client().get(&path).await;
    assert_stale(&stale);
    assert_eq!(listed(&stale).len(), 2);
}

/// Sends a request with a body to a registry, and reads the answer.
async fn send(registry: &DockerRegistry, line: &str, media_type: &str, body: &[u8]) -> Answer {
    let mut connection = Connection::plain(registry.address()).await;
    let head = format!(
        "{line} HTTP/1.1\r\nHost: registry\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    connection.send(request).await.expect("send");
    connection.answer("PUT").await.expect("an answer")
}

/// Puts an empty config into [`REPOSITORY`]; answers its digest.
async fn put_config(registry: &DockerRegistry) -> String {
    let config = b"{}";
    let digest = store::digest(config);
    let octets = "application/octet-stream";
    let begin = format!("POST /v2/{REPOSITORY}/blobs/uploads/");
    let begun = send(registry, &begin, octets, b"").await;
    let location = begun.header("location").expect("an upload's address");
    let target = location.split_once("/v2/").expect("a path").1;
    let joint = if target.contains('?') { '&' } else { '?' };
    let line = format!("PUT /v2/{target}{joint}digest={digest}");
    assert_eq!(send(registry, &line, octets, config).await.status, 201);
    digest
}

/// Puts a manifest under a tag; answers its digest.
async fn put_manifest(
    registry: &DockerRegistry,
    tag: &str,
    media_type: &str,
    manifest: &serde_json::Value,
) -> String {
    let text = manifest.to_string();
    let line = format!("PUT /v2/{REPOSITORY}/manifests/{tag}");
    let answer = send(registry, &line, media_type, text.as_bytes()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    store::digest(text.as_bytes())
}

/// A manifest of that config alone.
fn bare_manifest(config: &str) -> serde_json::Value {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": 2,
        },
        "layers": [],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_docker_registry_are_paged_too() {
    let registry = DockerRegistry::start();
    let manifest = bare_manifest(&put_config(&registry).await);
    let mut pushed = BTreeSet::new();
    for number in 0..25 {
        let tag = format!("tag-{number:02}");
        put_manifest(&registry, &tag, MANIFEST, &manifest).await;
        pushed.insert(tag);
    }
    let proxy = Proxy::builder()
        .registry("registry.upstream.test", &registry.endpoint())
        .start();
    for query in ["", "?n=10", "?n=1", "?n=1000"] {
        let (tags, _) = all_tags(&proxy.client(), query).await;
        assert_eq!(tags, pushed, "{query}");
    }
    let catalog = proxy.client().get("/v2/_catalog").await;
    assert_eq!(
        catalog.json()["repositories"],
        serde_json::json!([REPOSITORY])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_referrers_says_so_and_when_it_is_away_the_tag_for_them_tells() {
    let mut registry = DockerRegistry::start();
    let image = bare_manifest(&put_config(&registry).await);
    let subject = put_manifest(&registry, "image", MANIFEST, &image).await;
    let mut entries = Vec::new();
    for kind in [SBOM, SIGNATURE] {
        let mut manifest = image.clone();
        manifest["artifactType"] = kind.into();
        manifest["subject"] = serde_json::json!({
            "mediaType": MANIFEST, "digest": subject, "size": image.to_string().len(),
        });
        let tag = kind.replace(['/', '+'], "-");
        let digest = put_manifest(&registry, &tag, MANIFEST, &manifest).await;
        entries.push(serde_json::json!({
            "mediaType": MANIFEST,
            "digest": digest,
            "size": manifest.to_string().len(),
            "artifactType": kind,
        }));
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": entries,
    });
    let tag = subject.replace(':', "-");
    put_manifest(&registry, &tag, INDEX, &index).await;

    let proxy = Proxy::builder()
        .registry("registry.upstream.test", &registry.endpoint())
        .set("cache.tag_ttl", "0s")
        .start();
    let client = proxy.client();
    // For clients this is the word to look at the tag; for those that attach something, to keep it.
    let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
    let answer = client.get(&path).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    let by_tag = client
        .get(&format!("/v2/{REPOSITORY}/manifests/{tag}"))
        .await;
    assert_eq!(by_tag.json(), index);

    registry.stop();
    let stale = client.get(&path).await;
    assert_stale(&stale);
    assert_eq!(stale.json()["manifests"], index["manifests"]);
    let query = "?artifactType=application%2Fspdx%2Bjson";
    let sboms = client.get(&format!("{path}{query}")).await;
    assert_stale(&sboms);
    assert_eq!(sboms.json()["manifests"], serde_json::json!([entries[0]]));
    assert_eq!(sboms.header("oci-filters-applied"), Some("artifactType"));
}
