//! Credentials go to the one registry they are for and to nobody it names, and what is secret stands in
//! no log, metric, answer or file. Nothing of a client's request goes upstream, and of upstream's
//! headers only those of the registry API come back.

mod support;

use std::collections::BTreeSet;

use ecr_proxy::simulator::{
    CannedAnswer, FULL_ACCESS_KEY, Fault, ImageSpec, Listener, Pattern, PushedImage, Simulator,
};
use support::image::{REPOSITORY, TAG};
use support::names::{NameServer, Says};
use support::{Answer, Proxy, image, store};
use tokio::net::TcpListener;

/// A listener that nobody may ever connect to.
struct Trap(TcpListener);

impl Trap {
    async fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await;
        Self(listener.expect("a free port"))
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("a bound listener").to_string()
    }

    async fn assert_nobody_came(&self) {
        let came = tokio::time::timeout(std::time::Duration::ZERO, self.0.accept()).await;
        assert!(came.is_err(), "somebody connected to {}", self.address());
    }
}

/// Every header and the body, as text.
fn whole(answer: &Answer) -> String {
    format!("{:?}\n{}", answer.head.headers, answer.text())
}

async fn simulator() -> (Simulator, PushedImage) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    (simulator, image)
}

fn challenge(realm: &str) -> Fault {
    let value = format!("Bearer realm=\"{realm}\",service=\"canary-service\",scope=\"x\"");
    Fault::Answer(CannedAnswer {
        status: 401,
        headers: vec![("www-authenticate", value)],
        body: "who are you?".into(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_challenge_sends_no_credentials_to_the_realm_it_names() {
    let (simulator, _) = simulator().await;
    let trap = Trap::set().await;
    let ecr = Proxy::before(&simulator);
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let password = dir.path().join("password");
    std::fs::write(&password, "canary-password").expect("the directory is writable");
    let bearer = Proxy::builder()
        .registry("registry.upstream.test", &simulator.endpoint())
        .upstream_key("auth", "basic")
        .upstream_key("username", "canary-user")
        .upstream_key("password_file", password.to_str().expect("UTF-8"))
        .start();
    for realm in [
        format!("http://{}/token", trap.address()),
        format!("https://{}/token", trap.address()),
        "https://evil.example/token".to_owned(),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "https://sibling.upstream.test/token".to_owned(),
        format!("http://user:pass@{}/token", trap.address()),
    ] {
        simulator.faults().clear();
        let rule = simulator.faults().on(Listener::Registry, "*", "/v2/");
        rule.then(challenge(&realm));
        for (proxy, name) in [(&ecr, "an ECR"), (&bearer, "another registry")] {
            let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
            let answer = proxy.client().get(&path).await;
            assert!(
                matches!(answer.status, 502 | 503),
                "{name}, {realm}: {} {}",
                answer.status,
                answer.text()
            );
            for told in ["canary", "evil", "169.254", "sibling"] {
                assert!(!whole(&answer).contains(told), "{}", whole(&answer));
            }
        }
    }
    trap.assert_nobody_came().await;
    let passwords = ["canary-password".to_owned(), "Y2FuYXJ5".to_owned()];
    bearer.assert_no_secrets(&passwords).await;
    let secrets: Vec<String> = [simulator.secrets(), passwords.to_vec()].concat();
    ecr.assert_no_secrets(&secrets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_redirects_are_followed_to_known_storage_only_and_never_handed_on() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let trap = Trap::set().await;
    let digest = &image.manifests[0].layers[1].digest;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let signed = "X-Amz-Signature=canary-signature";
    let storage = simulator.address(Listener::Storage);
    for location in [
        format!("http://{}/x?{signed}", trap.address()),
        format!("https://{}/x?{signed}", trap.address()),
        format!("https://evil.example/x?{signed}"),
        format!("http://169.254.169.254/latest/meta-data/?{signed}"),
        format!("https://169.254.169.254/latest/meta-data/?{signed}"),
        format!("http://canary:canary@{storage}/x?{signed}"),
        format!("https://localhost.evil.example:1/x?{signed}"),
        "file:///etc/passwd".to_owned(),
        format!("/v2/{REPOSITORY}/blobs/{digest}?{signed}"),
        String::new(),
    ] {
        simulator.faults().clear();
        let rule = simulator.faults().on(Listener::Registry, "GET", "/blobs/");
        rule.then(Fault::redirect(&location));
        let answer = proxy.client().get(&path).await;
        assert_eq!(answer.status, 502, "{location}: {}", answer.text());
        assert_eq!(answer.header("location"), None);
        for told in ["canary", "evil", "169.254", "Amz", &trap.address()] {
            assert!(!whole(&answer).contains(told), "{}", whole(&answer));
        }
    }
    trap.assert_nobody_came().await;
    proxy
        .assert_no_secrets(&["canary-signature".to_owned()])
        .await;
    proxy.assert_no_secrets(&simulator.secrets()).await;

    simulator.faults().clear();
    assert_eq!(proxy.client().get(&path).await.digest(), *digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_s13_nothing_of_a_clients_goes_upstream_and_storage_sees_no_credentials() {
    let (simulator, image) = simulator().await;
    // To pull alone is not enough to list.
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    let mut client = proxy.client();
    let sent = [
        ("authorization", "Basic Y2FuYXJ5OmNhbmFyeS1wYXNzd29yZA=="),
        ("cookie", "session=canary-cookie"),
        ("proxy-authorization", "Basic canary-proxy"),
        ("x-amz-security-token", "canary-amz"),
        ("x-amz-date", "canary-date"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-host", "canary.example"),
        ("forwarded", "for=198.51.100.7;host=canary.example"),
        ("user-agent", "canary-agent"),
        ("referer", "https://canary.example/"),
        ("x-request-id", "canary-id"),
        ("connection", "x-canary"),
        ("x-canary", "canary"),
    ];
    for (name, value) in sent {
        client = client.with(name, value);
    }
    let subject = &image.top.digest;
    let mut paths = vec![
        format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{subject}"),
    ];
    let blobs = image.blobs();
    paths.extend(
        blobs
            .iter()
            .map(|b| format!("/v2/{REPOSITORY}/blobs/{}", b.digest)),
    );
    for path in &paths {
        let answer = client.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let entries = simulator.journal().snapshot();
    let mut at_storage = 0;
    for entry in entries {
        let said = format!("{} {}", entry.query, entry.path);
        for (name, value) in &entry.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            for canary in ["canary", "Y2FuYXJ5", "198.51.100.7"] {
                assert!(!value.contains(canary), "{said}: {name}: {value}");
            }
            let crossing = [
                "cookie",
                "proxy-authorization",
                "forwarded",
                "referer",
                "connection",
            ];
            assert!(!crossing.contains(&name.as_str()), "{said} carries {name}");
            assert!(
                !name.as_str().starts_with("x-forwarded"),
                "{said} carries {name}"
            );
        }
        if entry.listener == Listener::Storage {
            at_storage += 1;
            assert_eq!(entry.header("authorization"), None);
        }
    }
    assert!(
        at_storage >= blobs.len(),
        "{at_storage} requests to storage"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_signed_addresses_are_told_nowhere_however_a_blob_fails() {
    let (simulator, _) = simulator().await;
    let names = NameServer::start(Says::NoName);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .upstream_key("redirect_hosts", vec!["storage.nowhere.test"])
        .mount(&names.mount())
        .env("RUST_LOG", "trace")
        .start();
    let storage = simulator.address(Listener::Storage);
    let signed = "x?X-Amz-Signature=canary-signature";
    let faults = [
        // No name, no TLS, and nobody who listens.
        Fault::redirect(&format!("https://storage.nowhere.test/{signed}")),
        Fault::redirect(&format!("https://{storage}/{signed}")),
        Fault::redirect(&format!("http://127.0.0.1:1/{signed}")),
        Fault::Reset,
        Fault::ResetAfter(100_000),
        Fault::TruncateAfter(100_000),
        Fault::Corrupt(5),
        Fault::status(403, "SignatureDoesNotMatch"),
        Fault::status(400, "InvalidArgument"),
        Fault::status(500, "InternalError"),
        Fault::Expired,
        Fault::rubbish(),
        Fault::Raw("HTTP/9.9 nonsense\r\n\r\n".into()),
        Fault::redirect("https://evil.example/?X-Amz-Signature=canary-signature"),
        Fault::AddHeader("x-amz-canary", "canary-header".into()),
    ];
    let mut asking = tokio::task::JoinSet::new();
    for (number, fault) in faults.into_iter().enumerate() {
        let bytes = vec![u8::try_from(number).expect("a dozen"); 300_000];
        let digest = simulator.put_blob(REPOSITORY, bytes);
        let of_blob = Pattern::digest(&digest);
        let rule = simulator.faults().on(Listener::Storage, "GET", of_blob);
        rule.then(fault);
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
        let client = proxy.client();
        asking.spawn(async move {
            let range = [("range", "bytes=100000-100009")];
            [
                client.get(&path).await,
                client.head(&path).await,
                client.get_with(&path, &range).await,
            ]
        });
    }
    let answers = asking.join_all().await.into_iter().flatten();
    let answers: Vec<Answer> = answers.collect();
    assert!(answers.iter().any(|a| a.status == 502), "nothing failed");
    let mut secrets = simulator.secrets();
    secrets.extend(["canary-signature", "canary-header"].map(str::to_owned));
    secrets.extend(["X-Amz-Signature=", "X-Amz-Credential="].map(str::to_owned));
    for answer in answers {
        assert!(
            !(300..400).contains(&answer.status),
            "a redirect was handed on"
        );
        store::assert_absent("an answer", whole(&answer).as_bytes(), &secrets);
    }
    // At this level the HTTP client's own events are in the log, too.
    let logs = proxy.logs();
    assert!(
        logs.iter()
            .any(|event| event.level() == "TRACE" || event.level() == "DEBUG"),
        "nothing was logged in detail"
    );
    proxy.assert_no_secrets(&secrets).await;
    proxy
        .assert_no_secrets(&["secret-of-the-simulator".to_owned()])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_s15_only_headers_of_the_registry_api_come_back() {
    let (simulator, _) = simulator().await;
    let spec = ImageSpec::generated(7, [100_000]);
    let pushed = simulator.push_image(REPOSITORY, "headers", spec);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    let added = [
        ("x-amz-request-id", "canary"),
        ("x-amz-id-2", "canary"),
        ("x-amz-copy-source", "canary"),
        ("x-amz-server-side-encryption", "canary"),
        ("x-canary", "canary"),
        ("set-cookie", "canary=1"),
        ("www-authenticate", "Basic realm=\"canary\""),
        ("server", "canary"),
        ("via", "1.1 canary"),
        ("alt-svc", "h3=\"canary:443\""),
        ("strict-transport-security", "max-age=1"),
        ("docker-upload-uuid", "canary"),
        ("content-disposition", "attachment; filename=canary"),
        ("x-cache", "canary"),
        ("x-request-id", "canary"),
        ("location", "https://canary.example/"),
        ("last-modified", "canary"),
    ];
    let all = || added.map(|(name, value)| Fault::AddHeader(name, value.to_owned()));
    simulator
        .faults()
        .on(Listener::Storage, "*", "/")
        .all(all());
    for path in ["/manifests/", "/tags/", "/referrers/"] {
        simulator
            .faults()
            .on(Listener::Registry, "*", path)
            .all(all());
    }
    let allowed: BTreeSet<&str> = [
        "accept-ranges",
        "age",
        "cache-control",
        "connection",
        "content-length",
        "content-range",
        "content-type",
        "date",
        "docker-content-digest",
        "docker-distribution-api-version",
        "etag",
        "link",
        "oci-filters-applied",
        "warning",
        "x-cache",
        "x-content-type-options",
        "x-request-id",
    ]
    .into();
    let layer = &pushed.manifests[0].layers[0].digest;
    for path in [
        format!("/v2/{REPOSITORY}/manifests/headers"),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{}", pushed.top.digest),
        format!("/v2/{REPOSITORY}/blobs/{layer}"),
        format!("/v2/{REPOSITORY}/manifests/absent"),
    ] {
        for turn in ["first", "second"] {
            let answer = proxy.client().get(&path).await;
            assert!(
                matches!(answer.status, 200 | 404),
                "{path}: {}",
                answer.status
            );
            for (name, value) in &answer.head.headers {
                let name = name.to_ascii_lowercase();
                assert!(
                    allowed.contains(name.as_str()),
                    "{turn} {path}: {name}: {value}"
                );
                assert!(!value.contains("canary"), "{turn} {path}: {name}: {value}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_names_aws() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let client = proxy.client();
    let digest = &image.top.digest;
    let layer = &image.manifests[0].layers[0].digest;
    let mut answers = Vec::new();
    let paths = [
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        format!("/v2/{REPOSITORY}/manifests/absent"),
        "/v2/no/such/manifests/v1".to_owned(),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{digest}"),
        format!("/v2/{REPOSITORY}/blobs/{layer}"),
        format!("/v2/no/such/blobs/{layer}"),
    ];
    for path in &paths {
        answers.push(client.get(path).await);
    }
    let denied = Fault::status(
        403,
        "User: arn:aws:sts::000042290000:assumed-role/x is not authorized",
    );
    for fault in [denied, Fault::status(500, "000042290000.dkr.ecr.")] {
        simulator.faults().clear();
        simulator
            .faults()
            .on(Listener::Registry, "*", "/v2/")
            .times(4)
            .then(fault);
        answers.push(
            client
                .get(&format!("/v2/{REPOSITORY}/manifests/other"))
                .await,
        );
    }
    for answer in answers {
        let media_type = answer.header("content-type").unwrap_or_default();
        let is_content = media_type.contains("octet-stream") || media_type.contains("vnd.");
        let said = match is_content {
            true => format!("{:?}", answer.head.headers),
            false => whole(&answer),
        };
        for aws in ["arn:", "000042290000", "amazonaws", "dkr.ecr", "X-Amz"] {
            assert!(!said.contains(aws), "{said}");
        }
    }
}
