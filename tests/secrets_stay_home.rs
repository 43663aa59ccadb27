//! Credentials go to the one registry they are for and to nobody it names, and what is secret stands in
//! no log, metric, answer or file. Nothing of a client's request goes upstream, and of upstream's
//! headers only those of the registry API come back.

mod support;

use std::collections::BTreeSet;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use ecr_proxy::simulator::{
    CannedAnswer, FULL_ACCESS_KEY, Fault, ImageSpec, Listener, PULL_ONLY_ACCESS_KEY, Pattern,
    PushedImage, Simulator,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use support::blobs::{idle, until};
use support::image::{REPOSITORY, TAG};
use support::names::{NameServer, Says};
use support::real::DockerRegistry;
use support::secrets::Search;
use support::users::{basic, login, user_line};
use support::{Answer, DOMAIN, Proxy, TokenService, image, secrets};
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
        secrets::assert_absent("an answer", whole(&answer).as_bytes(), &secrets);
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

/// What users, the registry and AWS know in this test and nobody else may.
const PASSWORD: &str = "canary of ci's password?";
const WRONG: &str = "canary~of~a~wrong~password";
const QUERY: &str = "canary-of-a-query";
const WEB_IDENTITY: &str = "canary-of-the-web-identity-token";
const KEY_ID: &str = "ASIACANARYOFSESSION1";
const SECRET_KEY: &str = "canary/of+the/secret+access+key";
const SESSION: &str = "canary-of-the-session-token";

/// Whatever somebody shows to be let in, and wherever they write it.
async fn knock(proxy: &Proxy, path: &str, shown: &[String]) {
    let mut requests = vec![String::new()];
    for authorization in shown {
        requests.push(format!("Authorization: {authorization}\r\n"));
    }
    let in_a_query = utf8_percent_encode(PASSWORD, NON_ALPHANUMERIC);
    for target in [
        path.to_owned(),
        format!("{path}?password={in_a_query}&token={QUERY}"),
        format!("/elsewhere?account=ci&password={in_a_query}&token={QUERY}"),
        format!("http://ci:{in_a_query}@{DOMAIN}{path}"),
    ] {
        for headers in &requests {
            let mut connection = proxy.client().connect().await;
            let sent = format!(
                "GET {target} HTTP/1.1\r\nHost: {DOMAIN}\r\n{headers}Connection: close\r\n\r\n"
            );
            connection.send(sent).await.expect("send");
            let answer = connection.answer("GET").await.expect("an answer");
            assert!(!(300..400).contains(&answer.status), "{target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_secrets_of_every_kind_are_told_nowhere_at_any_level() {
    let (simulator, _) = simulator().await;
    simulator.trust_web_identity(WEB_IDENTITY);
    let tokens = TokenService::start().await;
    let registry = DockerRegistry::start_behind(&tokens);
    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let token = folder.path().join("token");
    fs::write(&token, WEB_IDENTITY).expect("the directory is writable");
    // By the token of another identity, and by keys that AWS does not know.
    let by_web_identity = |builder: support::proxy::Builder| {
        builder
            .env("AWS_ENDPOINT_URL_STS", &simulator.api_endpoint())
            .env("AWS_REGION", "us-west-2")
            .env("AWS_ROLE_ARN", "arn:aws:iam::000042290000:role/pull-only")
            .env("AWS_ROLE_SESSION_NAME", "edge-1")
            .env(
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                token.to_str().expect("UTF-8"),
            )
    };
    let by_keys = |builder: support::proxy::Builder| {
        builder
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_SESSION_TOKEN", SESSION)
    };
    let proxy = |set: &dyn Fn(support::proxy::Builder) -> support::proxy::Builder| {
        let another = format!(
            "name = 'hub'\nregistry = 'registry.upstream.test'\nauth = 'basic'\nusername = '{}'\n\
             password_file = '{}'\nendpoint = '{}'",
            support::token_service::ACCOUNT,
            tokens.password_file().display(),
            registry.endpoint()
        );
        let builder = Proxy::builder()
            .upstream_key("registry", simulator.registry_host())
            .upstream_key("endpoint", simulator.endpoint())
            .env("AWS_ENDPOINT_URL_ECR", &simulator.api_endpoint())
            .another_upstream(another.parse().expect("a table"))
            .route([("repository", "hub/**"), ("upstream", "hub")])
            .route([("repository", "**"), ("upstream", "prod")])
            .users(&user_line("ci", PASSWORD))
            .set("access.aws_tokens", true)
            .env("RUST_LOG", "trace");
        set(builder).start()
    };
    let (proxy, refused) = (proxy(&by_web_identity), proxy(&by_keys));

    let of_aws = simulator.token(PULL_ONLY_ACCESS_KEY).expect("a principal");
    let shown = [
        basic("ci", PASSWORD),
        basic("ci", WRONG),
        basic("nobody", WRONG),
        basic("AWS", &of_aws.password),
        basic("AWS", WRONG),
        format!("Bearer {}", of_aws.authorization_token),
        format!("Basic {WRONG}"),
        WRONG.to_owned(),
    ];
    let tag = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let at_hub = "/v2/hub/app/manifests/v1";
    let told = format!("{WRONG} {} {}", of_aws.password, tokens.secrets()[0]);
    for path in [tag.as_str(), at_hub] {
        knock(&proxy, path, &shown).await;
    }
    knock(&refused, &tag, &shown[..1]).await;
    // Nor is what they say of it who are asked next.
    let ci = login(proxy.client(), "ci", PASSWORD);
    let of_aws = login(proxy.client(), "AWS", &of_aws.password);
    let blob = |bytes: &str| {
        let digest = simulator.put_blob(REPOSITORY, bytes.as_bytes().to_vec());
        format!("/v2/{REPOSITORY}/blobs/{digest}")
    };
    let faults = [
        Fault::status(500, &told),
        Fault::status(400, &told),
        Fault::status(403, &told),
        Fault::Expired,
        Fault::Reset,
        Fault::rubbish(),
        challenge(&format!("https://{WRONG}.example/")),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        for listener in [Listener::Registry, Listener::Storage, Listener::Api] {
            if listener == Listener::Api {
                // So that it is asked.
                simulator.expire_tokens();
            }
            let rule = simulator.faults().on(listener, "*", "/").times(3);
            let rule = rule.then(fault.clone());
            ci.get(&blob(&format!("{listener:?} {number}"))).await;
            assert!(rule.taken() > 0, "{listener:?} {number}: nobody was asked");
            of_aws.get(&tag).await;
            simulator.faults().clear();
            until("it is well again", async || {
                let good = format!("{listener:?} {number}, well again");
                ci.get(&blob(&good)).await.status == 200
            })
            .await;
        }
    }
    idle(&proxy).await;

    let logs = proxy.logs();
    assert!(logs.iter().any(|event| event.level() == "TRACE"));
    let mut secrets = [simulator.secrets(), tokens.secrets()].concat();
    assert!(secrets.len() > 20, "few secrets: {}", secrets.len());
    let known = [
        PASSWORD,
        WRONG,
        QUERY,
        WEB_IDENTITY,
        KEY_ID,
        SECRET_KEY,
        SESSION,
    ];
    secrets.extend(known.map(str::to_owned));
    secrets.extend(["X-Amz-Signature=", "X-Amz-Credential="].map(str::to_owned));
    proxy.assert_no_secrets(&secrets).await;
    refused.assert_no_secrets(&secrets).await;
}

/// What finds nothing finds nothing because there is nothing.
#[test]
fn the_search_for_secrets_finds_them_however_they_are_written() {
    let secret = "canary?of>a~password";
    let search = Search::new(&[secret.to_owned()]);
    let percent = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let mut written = vec![
        secret.to_owned(),
        percent.to_lowercase(),
        utf8_percent_encode(&STANDARD.encode(secret), NON_ALPHANUMERIC).to_string(),
        percent,
    ];
    for before in ["", "c", "ci", "ci:", "AWS:"] {
        for behind in ["", "x", "xx", "xxx"] {
            let text = format!("{before}{secret}{behind}");
            written.extend([STANDARD.encode(&text), URL_SAFE.encode(&text)]);
        }
    }
    for text in written {
        let line = format!(r#"{{"authorization":"Basic {text}"}}"#);
        assert!(search.in_text(line.as_bytes()).is_some(), "{line}");
    }
    let spaced = Search::new(&["correct horse battery".to_owned()]);
    assert!(
        spaced
            .in_text(b"password=correct+horse+battery&x")
            .is_some()
    );
    let other = ["canary?of>a-password", "canary?of>a~passwor", ""];
    for text in other
        .into_iter()
        .flat_map(|text| [text.to_owned(), STANDARD.encode(text)])
    {
        assert_eq!(search.in_text(text.as_bytes()), None, "{text}");
    }

    let folder = tempfile::TempDir::new().expect("a temporary directory");
    let is_found = || {
        let looked = std::panic::AssertUnwindSafe(|| search.assert_absent_below(folder.path()));
        std::panic::catch_unwind(looked).is_err()
    };
    let file = folder.path().join("file");
    fs::write(&file, "nothing").expect("writable");
    assert!(!is_found());
    fs::write(&file, STANDARD.encode(secret)).expect("writable");
    assert!(is_found(), "in a short file");
    let long = [&vec![b'x'; 2 << 20], secret.as_bytes()].concat();
    fs::write(&file, long).expect("writable");
    assert!(is_found(), "in a long file");
    fs::rename(&file, folder.path().join(secret)).expect("writable");
    fs::write(folder.path().join(secret), "nothing").expect("writable");
    assert!(is_found(), "in a name");
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
