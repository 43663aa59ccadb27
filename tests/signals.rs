//! Operators see what happens: every request has exactly one completion event that tells who asked for
//! what and how it went, the metrics count what the log tells, and readiness names what is degraded.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Outage, PushedImage, Simulator, TokenReply};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use support::blobs::{metric, until};
use support::image::{REPOSITORY, TAG};
use support::pki::trusting;
use support::users::{basic, user_line};
use support::{Answer, Client, Connection, DOMAIN, Event, Pki, Proxy, image, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

async fn simulator() -> (Simulator, PushedImage) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    (simulator, image)
}

/// The completion event of an answer, by the id that the answer carries.
async fn completion(proxy: &Proxy, answer: &Answer) -> Event {
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let is_of = |event: &Event| {
        event.message() == "request" && event.field("request.id").as_deref() == Some(&id)
    };
    let event = proxy.log_until("the completion", is_of).await;
    assert_eq!(event.level(), "INFO");
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_exactly_one_completion_event() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let client = proxy.client().with("user-agent", "tester/1.0");
    let layer = &image.manifests[0].layers[1];
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let mut answers = Vec::new();
    for (method, path) in [
        ("GET", "/v2/"),
        ("GET", &manifest),
        ("HEAD", &manifest),
        ("GET", &blob),
        ("GET", &blob),
        ("GET", "/v2/Bad/manifests/x"),
        ("DELETE", &manifest),
        ("GET", "/elsewhere"),
    ] {
        answers.push((method, path, client.ask(method, path, &[]).await));
    }
    for (method, path, answer) in &answers {
        let event = completion(&proxy, answer).await;
        let field = |name: &str| event.field(name);
        assert_eq!(field("http.method").as_deref(), Some(*method), "{path}");
        assert_eq!(
            field("http.status"),
            Some(answer.status.to_string()),
            "{path}"
        );
        assert_eq!(
            field("body.bytes"),
            Some(answer.body.len().to_string()),
            "{path}"
        );
        assert_eq!(field("client.agent").as_deref(), Some("tester/1.0"));
        assert_eq!(field("client.user").as_deref(), Some("@anonymous"));
        assert_eq!(field("end").as_deref(), Some("clean"), "{method} {path}");
        assert!(field("client.addr").is_some_and(|a| a.starts_with("127.0.0.1:")));
        let elapsed = field("elapsed_ms").and_then(|ms| ms.parse::<f64>().ok());
        assert!(elapsed.is_some_and(|ms| ms >= 0.0), "{}", event.line);
        assert_eq!(
            field("error").is_some(),
            answer.status >= 400,
            "{}",
            event.line
        );
        if answer.status >= 400 && *method != "HEAD" {
            let id = answer.header("x-request-id").expect("an id");
            assert!(
                answer.text().contains(id),
                "the error does not name the request"
            );
        }
    }
    let of = |at: usize| {
        let logs = proxy.logs();
        let id = answers[at].2.header("x-request-id").map(str::to_owned);
        logs.into_iter()
            .find(|event| event.field("request.id") == id && event.message() == "request")
            .expect("found before")
    };
    let manifest_event = of(1);
    assert_eq!(
        manifest_event.field("oci.repository").as_deref(),
        Some(REPOSITORY)
    );
    assert_eq!(manifest_event.field("oci.reference").as_deref(), Some(TAG));
    assert_eq!(
        manifest_event.field("cache.outcome").as_deref(),
        Some("miss")
    );
    assert_eq!(manifest_event.field("http.target"), None);
    let elsewhere = of(7).field("http.target").expect("where it went");
    assert!(elsewhere.ends_with("/elsewhere"), "{elsewhere}");
    let blob_event = of(3);
    assert_eq!(
        blob_event.field("oci.reference"),
        Some(layer.digest.clone())
    );
    assert_eq!(blob_event.field("cache.outcome").as_deref(), Some("miss"));

    let mut seen = BTreeMap::new();
    for event in proxy.logs() {
        if event.message() == "request" {
            *seen.entry(event.field("request.id")).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), answers.len());
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_told_as_an_aborted_end() {
    let (simulator, _) = simulator().await;
    let digest = simulator.put_blob(
        REPOSITORY,
        ecr_proxy::simulator::BlobSource::generated(1, 64 << 20),
    );
    let proxy = Proxy::before(&simulator);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let mut connection = proxy.client().start("GET", &path, &[]).await;
    let head = connection.head().await.expect("a head");
    assert_eq!(head.status, 200);
    drop(connection);
    let aborted = proxy
        .log_until("the aborted request", |event| {
            event.field("end").as_deref() == Some("aborted")
        })
        .await;
    assert_eq!(
        aborted.field("request.id").as_deref(),
        head.header("x-request-id")
    );
    let sent = aborted
        .field("body.bytes")
        .and_then(|b| b.parse::<u64>().ok());
    assert!(sent.is_some_and(|sent| sent < 64 << 20), "{}", aborted.line);
}

/// What would be a line of the log, or colour one, where it is written as it is.
const FORGED: &str = "\n{\"message\":\"forged\"}\r\n\u{1b}[31m\u{9b}31m\"}\\";

/// Requests with such text, or too much of any, wherever a client writes some.
fn forgeries() -> Vec<Vec<u8>> {
    // What a header may hold of it.
    let shown = FORGED.replace(['\n', '\r', '\u{1b}'], " ");
    let encoded = utf8_percent_encode(FORGED, NON_ALPHANUMERIC).to_string();
    let long = "long".repeat(7_500);
    let request = |line: &str, headers: &str, body: &str| {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {DOMAIN}\r\n{headers}Connection: close\r\n\r\n{body}"
        );
        head.into_bytes()
    };
    let get = |target: &str| request(&format!("GET {target}"), "", "");
    let agent = |agent: &str| request("GET /v2/", &format!("User-Agent: {agent}\r\n"), "");
    let user = |user: &str, password: &str| {
        let login = basic(user, password);
        request("GET /v2/", &format!("Authorization: {login}\r\n"), "")
    };
    let manifest = |media_type: &str| {
        let body = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type }).to_string();
        let headers = format!(
            "Authorization: {}\r\nContent-Length: {}\r\n\
             Content-Type: application/vnd.oci.image.manifest.v1+json\r\n",
            basic("ann", "open-sesame"),
            body.len()
        );
        request(
            &format!("PUT /v2/{REPOSITORY}/manifests/v1"),
            &headers,
            &body,
        )
    };
    let mut all = vec![
        request(&format!("{} /v2/", long.to_uppercase()), "", ""),
        request(&format!("BREW{} /v2/", "!#$%&'*+-.^_`|~"), "", ""),
        [
            b"GET /v2/\xff\x1b[31m\xc2\x9b31m HTTP/1.1\r\nHost: ".as_slice(),
            DOMAIN.as_bytes(),
            b"\r\n\r\n",
        ]
        .concat(),
        [
            b"GET /v2/ HTTP/1.1\r\nUser-Agent: \xff\x9b31m\r\nConnection: close\r\nHost: "
                .as_slice(),
            DOMAIN.as_bytes(),
            b"\r\n\r\n",
        ]
        .concat(),
    ];
    for text in [&shown, &long] {
        all.push(agent(text));
        all.push(manifest(text));
        all.push(user(text, "x"));
        all.push(user("ann", text));
    }
    all.extend([
        user(FORGED, "x"),
        user(&format!("ann{FORGED}"), "open-sesame"),
        manifest(FORGED),
    ]);
    for text in [&encoded, &long] {
        all.push(get(&format!("/{text}")));
        all.push(get(&format!("/v2/{text}/manifests/v1")));
        all.push(get(&format!("/v2/{REPOSITORY}/manifests/{text}")));
        all.push(get(&format!("/v2/{REPOSITORY}/blobs/{text}")));
        all.push(get(&format!("/v2/{REPOSITORY}/manifests/v1?ns={text}")));
        all.push(get(&format!(
            "/v2/{REPOSITORY}/tags/list?n={text}&last={text}"
        )));
    }
    all
}

/// Sends each of them; the ids of the answers.
async fn forge(at: SocketAddr) -> Vec<String> {
    let mut ids = Vec::new();
    for request in forgeries() {
        let shown = String::from_utf8_lossy(&request[..request.len().min(100)]).into_owned();
        let mut connection = Connection::plain(at).await;
        connection.send(&request).await.expect("send");
        let answer = connection.answer("GET").await;
        let answer = answer.unwrap_or_else(|error| panic!("{shown}: {error}"));
        match answer.header("x-request-id") {
            Some(id) => ids.push(id.to_owned()),
            // A head that is no request's is of no request.
            None => assert_eq!(answer.status, 400, "{shown}"),
        }
    }
    // One that everybody may make, so that all before it were told.
    let last = Client::plain(at).with("authorization", &basic("ann", "open-sesame"));
    let last = last.get("/v2/").await;
    assert_eq!(last.status, 200);
    ids.push(last.header("x-request-id").expect("an id").to_owned());
    ids
}

fn assert_is_one_short_line(line: &str) {
    assert!(line.len() < 3000, "{} bytes: {line:.200}", line.len());
    assert!(!line.contains(char::is_control), "{line:?}");
}

async fn proxy_with_ann() -> (Simulator, Proxy) {
    let (simulator, _) = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .users(&user_line("ann", "open-sesame"))
        .rule("users = ['ann']\nactions = ['pull', 'push']")
        .start();
    (simulator, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_what_a_client_writes_forges_no_log_line() {
    let (_simulator, proxy) = proxy_with_ann().await;
    let ids = forge(proxy.http()).await;
    let last = ids.last().cloned();
    proxy
        .log_until("the last", |event| event.field("request.id") == last)
        .await;
    let logs = proxy.logs();
    for event in &logs {
        assert_is_one_short_line(&event.line);
        assert!(!event.message().is_empty(), "no event: {}", event.line);
        assert_ne!(event.message(), "forged");
    }
    for id in ids {
        let of = |event: &&Event| event.field("request.id").as_ref() == Some(&id);
        assert_eq!(logs.iter().filter(of).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_nor_one_of_the_text_format() {
    let (_simulator, mut proxy) = proxy_with_ann().await;
    proxy.terminate();
    assert!(proxy.wait().success());
    // Text is what it writes unless it is told otherwise.
    let mut serve = proxy.command(["serve"]);
    let serve = serve.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut serve = serve.expect("the program was built");
    let log = serve.stderr.take().expect("asked for a pipe");
    let (at, is_at) = tokio::sync::oneshot::channel();
    let reading = std::thread::spawn(move || {
        let mut at = Some(at);
        let mut lines = Vec::new();
        for line in BufReader::new(log).split(b'\n') {
            let line = String::from_utf8_lossy(&line.expect("a pipe")).into_owned();
            let address = line.split(" listening listen.addr=http://").nth(1);
            let address = address.filter(|_| !line.contains("admin listening"));
            let address = address.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            if let (Some(address), true) = (address, at.is_some()) {
                let _gone = at.take().map(|at| at.send(address));
            }
            lines.push(line);
        }
        lines
    });
    let at = within("it listens", is_at).await.expect("it starts");
    let ids = forge(at).await;
    let process = pidfd_open(Pid::from_child(&serve), PidfdFlags::empty());
    pidfd_send_signal(process.expect("one's own child"), Signal::TERM).expect("it runs");
    assert!(serve.wait().expect("one's own child").success());
    let lines = reading.join().expect("no panic");
    for line in &lines {
        assert_is_one_short_line(line);
        // Each begins with the time and how much it matters.
        let mut words = line.split_whitespace();
        let time = words.next().unwrap_or_default();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{line:?}");
        let level = words.next().unwrap_or_default();
        assert!(["INFO", "WARN", "ERROR"].contains(&level), "{line:?}");
    }
    for id in ids {
        let of = format!("request.id=\"{id}\"");
        assert_eq!(lines.iter().filter(|line| line.contains(&of)).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s18_what_a_client_writes_forges_no_header() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    let digest = &image.top.digest;
    let evil = [
        "%0d%0aX-Evil:1",
        "%0a%20X-Evil:1",
        "%00",
        "%ff%fe",
        "%c2%85X-Evil:1",
        "%22%3e,%3cx",
    ];
    let raw = [
        &b"\xffX-Evil:1"[..],
        b"\xc2\x85X-Evil:1",
        b"\x0bX-Evil:1",
        b"\x00",
        b"\rX-Evil:1",
    ];
    let evil = evil.into_iter().map(str::as_bytes).chain(raw);
    let mut asked = 0;
    for evil in evil {
        let at = |before: &str, after: &str| {
            [
                before.as_bytes(),
                evil,
                after.as_bytes(),
                b" HTTP/1.1\r\nHost: ",
            ]
            .concat()
        };
        let own = [DOMAIN.as_bytes(), b"\r\n"].concat();
        let in_header = |before: &str| {
            let host = format!("GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\n{before}");
            [host.as_bytes(), evil, b"\r\n"].concat()
        };
        let in_target = |before: &str, after: &str| [at(before, after), own.clone()].concat();
        let base = format!("GET /v2/{REPOSITORY}");
        for (must_be_refused, request) in [
            (true, in_target(&format!("{base}/manifests/v1"), "")),
            (true, in_target("GET /v2/team/app", "/manifests/v1")),
            (true, in_target(&format!("{base}/blobs/{digest}"), "")),
            (true, in_target(&format!("{base}/blobs/uploads/"), "")),
            (false, in_target(&format!("{base}/tags/list?n=1&last="), "")),
            (false, in_target(&format!("{base}/tags/list?n="), "&last=a")),
            (
                false,
                in_target(&format!("{base}/referrers/{digest}?artifactType="), ""),
            ),
            (false, in_target(&format!("{base}/manifests/v1?ns="), "")),
            (
                false,
                in_target(&format!("POST /v2/{REPOSITORY}/blobs/uploads/?mount="), ""),
            ),
            (true, [at("GET /v2/", ""), own.clone()].concat()),
            (
                true,
                [b"GET /v2/ HTTP/1.1\r\nHost: ", evil, b"\r\n"].concat(),
            ),
            (false, in_header("Authorization: Basic ")),
            (false, in_header("User-Agent: ")),
            (false, in_header("X-Request-Id: ")),
            (false, in_header(&format!("If-None-Match: \"{digest}\""))),
            (false, in_header("Range: bytes=0-")),
        ] {
            let shown = String::from_utf8_lossy(&request).into_owned();
            let mut connection = proxy.client().connect().await;
            let request = [&request[..], b"Connection: close\r\n\r\n"].concat();
            connection.send(request).await.expect("send");
            let head = connection.head().await.expect("a head");
            let (body, clean) = connection.body("GET", &head).await;
            let (rest, _) = connection.until_closed().await;
            assert!(clean && rest.is_empty(), "{shown}: {head:?} {rest:?}");
            assert!(head.status < 500, "{shown}: {}", head.status);
            assert!(
                !must_be_refused || (400..500).contains(&head.status),
                "{shown}: {}",
                head.status
            );
            for (name, value) in &head.headers {
                assert!(!name.eq_ignore_ascii_case("x-evil"), "{shown}: {head:?}");
                let is_plain = value.bytes().all(|b| (b' '..0x7f).contains(&b));
                assert!(is_plain, "{shown}: {name}: {value:?}");
            }
            assert_eq!(head.header_values("x-request-id").len(), 1, "{shown}");
            if head.status >= 400 {
                serde_json::from_slice::<serde_json::Value>(&body).expect("an error of the API");
            }
            asked += 1;
        }
    }
    assert_eq!(metric(&proxy, "ecr_proxy_panics_total", &[]).await, 0.0);
    assert!(asked > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_what_happened() {
    let (simulator, image) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let client = proxy.client();
    let layer = &image.manifests[0].layers[2];
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    assert_eq!(client.get(&blob).await.digest(), layer.digest);
    until("the blob on disk", async || {
        metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await >= 1.0
    })
    .await;
    assert_eq!(client.get(&blob).await.digest(), layer.digest);
    assert_eq!(client.get(&blob).await.digest(), layer.digest);
    assert_eq!(client.get("/v2/Bad/manifests/x").await.status, 400);
    until("the last completion", async || {
        metric(&proxy, "ecr_proxy_requests_total", &[]).await >= 4.0
    })
    .await;

    let metrics = proxy.metrics().await;
    #[expect(clippy::cast_precision_loss, reason = "a small image")]
    let size = layer.size as f64;
    for (name, labels, value) in [
        ("ecr_proxy_hits_total", &[][..], 2.0),
        ("ecr_proxy_misses_total", &[], 1.0),
        ("ecr_proxy_joins_total", &[], 0.0),
        (
            "ecr_proxy_requests_total",
            &["kind=\"blob\"", "status=\"200\""],
            3.0,
        ),
        ("ecr_proxy_requests_total", &["status=\"400\""], 1.0),
        (
            "ecr_proxy_response_bytes_total",
            &["cache=\"hit\""],
            2.0 * size,
        ),
        ("ecr_proxy_response_bytes_total", &["cache=\"miss\""], size),
        ("ecr_proxy_fills_total", &["result=\"kept\""], 1.0),
        ("ecr_proxy_fills_active", &[], 0.0),
        ("ecr_proxy_cache_commits_total", &[], 1.0),
        ("ecr_proxy_cache_evictions_total", &[], 0.0),
        ("ecr_proxy_cache_blobs", &[], 1.0),
        ("ecr_proxy_panics_total", &[], 0.0),
        ("ecr_proxy_log_dropped_total", &[], 0.0),
        ("ecr_proxy_token_refresh_total", &["result=\"ok\""], 1.0),
        ("ecr_proxy_requests_active", &[], 0.0),
    ] {
        assert!(metrics.has(name), "{name} is not there");
        let found = metrics.sum(name, labels);
        assert!(
            (found - value).abs() < 0.5,
            "{name} {labels:?}: {found}, not {value}"
        );
    }
    // What is on disk is at least the blob; what crossed the link is what upstream sent.
    assert!(metrics.sum("ecr_proxy_cache_bytes", &[]) >= size);
    #[expect(clippy::cast_precision_loss, reason = "a small image")]
    let crossed = simulator
        .journal()
        .body_bytes(|entry| entry.listener == Listener::Storage) as f64;
    let counted = metrics.sum("ecr_proxy_upstream_body_bytes_total", &["kind=\"storage\""]);
    assert!((counted - crossed).abs() < 1.0, "{counted}, not {crossed}");
    assert!(metrics.sum("ecr_proxy_upstream_requests_total", &[]) >= 2.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs_f64();
    for expiry in [
        "ecr_proxy_token_expiry_seconds",
        "ecr_proxy_certificate_expiry_seconds",
    ] {
        assert!(metrics.sum(expiry, &[]) > now, "{expiry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_nothing_that_changes_something() {
    let (simulator, _) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let admin = Client::operator(proxy.admin());
    assert_eq!(admin.get("/healthz").await.status, 200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(admin.ask("POST", path, &[]).await.status, 405, "{path}");
    }
    // Neither listener answers for the other.
    assert_eq!(admin.get("/v2/").await.status, 404);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(proxy.client().get(path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_is_degraded_while_hits_are_served() {
    let (simulator, image) = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let blob = format!(
        "/v2/{REPOSITORY}/blobs/{}",
        image.manifests[0].layers[1].digest
    );
    let manifest = format!(
        "/v2/{REPOSITORY}/manifests/{}",
        image.manifests[0].manifest.digest
    );
    assert_eq!(proxy.client().get(&manifest).await.status, 200);
    assert_eq!(proxy.client().get(&blob).await.status, 200);
    let admin = Client::operator(proxy.admin());
    for path in ["/readyz", "/readyz?strict"] {
        let ready = admin.get(path).await;
        assert_eq!(ready.status, 200, "{path}: {}", ready.text());
        assert_eq!(ready.json()["ready"], true);
        assert_eq!(ready.json()["degraded"], serde_json::json!([]));
    }
    until("blob and records on disk", async || {
        metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await >= 1.0
    })
    .await;
    // Ended in order, so that the records are on disk.
    proxy.terminate();
    assert_eq!(proxy.wait().code(), Some(0));

    // Started with no token to be had and nothing reachable.
    simulator.set_token_reply(TokenReply::ServerError);
    simulator
        .outage_of(Listener::Registry, Outage::Refused)
        .await;
    simulator
        .outage_of(Listener::Storage, Outage::Refused)
        .await;
    proxy.restart();
    let admin = Client::operator(proxy.admin());
    within("the failing token", async {
        while admin.get("/readyz?strict").await.status != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let ready = admin.get("/readyz").await;
    assert_eq!(ready.status, 200, "hits can be served: {}", ready.text());
    let told = ready.json();
    assert_eq!(told["degraded"][0]["what"], "upstream", "{told}");
    let why = told["degraded"][0]["why"].as_str().expect("a reason");
    assert!(
        why.contains("serving from cache") && why.contains("since 20"),
        "{why}"
    );
    assert_eq!(admin.get("/healthz").await.status, 200);
    let hit = proxy.client().get(&blob).await;
    assert_eq!((hit.status, hit.header("x-cache")), (200, Some("hit")));
    let warned = proxy
        .log_until("the failing token", |event| {
            event.level() == "WARN" && event.line.contains("token")
        })
        .await;
    assert!(warned.field("error").is_some(), "{}", warned.line);
    proxy.assert_no_secrets(&simulator.secrets()).await;

    // And it mends by itself.
    simulator.set_token_reply(TokenReply::Normal);
    simulator.outage_of(Listener::Registry, Outage::None).await;
    within("everything to be well", async {
        while admin.get("/readyz?strict").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_by_the_wrong_door_or_trusts_another_ca_is_told_of() {
    let (simulator, _) = simulator().await;
    let proxy = Proxy::before(&simulator);
    let why = async |what: &str| {
        let is_it = |event: &Event| event.field("why").as_deref() == Some(what);
        assert_eq!(proxy.log_until(what, is_it).await.level(), "INFO");
    };
    let config = trusting(&Pki::new([DOMAIN]).ca(), &[b"http/1.1"]);
    let tls = async |address| {
        let stream = TcpStream::connect(address).await.expect("open");
        let name = DOMAIN.try_into().expect("a name");
        let connecting = TlsConnector::from(config.clone()).connect(name, stream);
        within("the end", connecting).await.map(drop)
    };
    tls(proxy.https()).await.expect_err("it trusts another CA");
    why("the client does not trust our certificate").await;

    let mut plain = TcpStream::connect(proxy.https()).await.expect("open");
    let request = plain.write_all(b"GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n");
    request.await.expect("somebody takes it");
    let _ = within("the end", plain.read_to_end(&mut Vec::new())).await;
    why("the client speaks no TLS, or plain HTTP").await;

    // docker tries TLS first, and plain HTTP when it is answered so.
    tls(proxy.http()).await.expect_err("no TLS is spoken there");
    let refused = "TLS, where plain HTTP is spoken";
    let is_it = |event: &Event| event.field("error").as_deref() == Some(refused);
    let event = proxy.log_until(refused, is_it).await;
    assert_eq!(event.field("http.status").as_deref(), Some("400"));
}
