//! Whatever is malformed, ambiguous or not a pull is answered by the proxy alone: no request can be
//! hidden in another, and nothing of it reaches the upstream.

mod support;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, ImageSpec, Listener, PushedImage, Simulator};
use support::image::{REPOSITORY, TAG};
use support::network::in_own_network;
use support::store::files_below;
use support::{Answer, Client, DOMAIN, Proxy, image};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MIB: u64 = 1 << 20;

struct Rig {
    simulator: Simulator,
    image: PushedImage,
    proxy: Proxy,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|proxy| proxy).await
    }

    async fn with(change: impl FnOnce(support::proxy::Builder) -> support::proxy::Builder) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = image::push(&simulator);
        let proxy = change(Proxy::builder().simulator(&simulator)).start();
        Self {
            simulator,
            image,
            proxy,
        }
    }

    /// Requests that reached the registry or its storage.
    fn asked(&self) -> usize {
        let journal = self.simulator.journal();
        journal.count(|entry| entry.listener != Listener::Api)
    }

    /// Sends these bytes on a connection of their own: the first answer, and what came after it until
    /// the proxy closed.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> (Answer, Vec<u8>) {
        let mut connection = self.proxy.client().connect().await;
        connection.send(bytes).await.expect("send");
        let answer = connection.answer("GET").await.expect("an answer");
        let (rest, _) = connection.until_closed().await;
        (answer, rest)
    }

    /// How many requests were answered so far, by their completion events.
    async fn answered(&self, marker: &str) -> usize {
        let asked = self.proxy.client().with("user-agent", marker);
        assert_eq!(asked.get("/v2/").await.status, 200);
        let is_marker = |event: &support::Event| event.field("client.agent") == Some(marker.into());
        self.proxy.log_until("the marker", is_marker).await;
        let logs = self.proxy.logs();
        logs.iter()
            .filter(|event| event.message() == "request" && !is_marker(event))
            .count()
    }

    async fn refuses(&self, head: &str) {
        let hidden =
            format!("GET /v2/{REPOSITORY}/manifests/{TAG} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
        let (answer, rest) = self.raw(format!("{head}{hidden}")).await;
        assert!(
            matches!(answer.status, 400 | 501),
            "{head:?}: {}",
            answer.status
        );
        assert_eq!(rest, b"", "{head:?}: something followed the refusal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p01_p02_p03_what_can_be_framed_in_two_ways_ends_the_connection() {
    let rig = Rig::start().await;
    let upload = format!("/v2/{REPOSITORY}/blobs/uploads/");
    let host = format!("Host: {DOMAIN}\r\n");
    let heads = [
        // P01
        format!(
            "GET /v2/ HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "PATCH {upload} HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "PUT {upload} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"
        ),
        format!("GET /v2/ HTTP/1.1\r\n{host}Content-Length: 4\r\n\r\nbody"),
        // P02
        format!(
            "POST {upload} HTTP/1.1\r\n{host}Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody"
        ),
        format!("POST {upload} HTTP/1.1\r\n{host}Content-Length: 4, 4\r\n\r\nbody"),
        format!("POST {upload} HTTP/1.1\r\n{host}Content-Length: +4\r\n\r\nbody"),
        format!("POST {upload} HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST {upload} HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!(
            "POST {upload} HTTP/1.1\r\n{host}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST {upload} HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST {upload} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        // P03
        format!("GET /v2/ HTTP/1.1\nHost: {DOMAIN}\n\n"),
        format!("GET /v2/ HTTP/1.1\r\n{host}X: a\rB: c\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\n{host}X: a\r\n folded\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost : {DOMAIN}\r\n\r\n"),
    ];
    for head in &heads {
        rig.refuses(head).await;
    }
    assert_eq!(
        rig.answered("after").await,
        heads.len(),
        "a hidden request ran"
    );
    // Each is told once, with no method: who cannot be understood has asked for nothing.
    let logs = rig.proxy.logs();
    let refused = logs
        .iter()
        .filter(|event| event.field("http.status").as_deref() == Some("400"));
    let methods: Vec<_> = refused.map(|event| event.field("http.method")).collect();
    assert_eq!(methods, vec![None; heads.len()]);
    assert_eq!(rig.asked(), 0);
}

#[test]
fn p05_from_elsewhere_only_our_names_are_answered() {
    const HERE: &str = "10.54.0.1";
    in_own_network(&[HERE], async || {
        let rig = Rig::with(|proxy| proxy.listen(["https://0.0.0.0:0"])).await;
        let ca = rig.proxy.pki().ca();
        let port = rig.proxy.https().port();
        let client = |address: &str| {
            let address = format!("{address}:{port}").parse();
            Client::tls(address.expect("an address"), &ca)
        };
        let target = format!("/v2/{REPOSITORY}/manifests/{TAG}");
        let others = [
            "evil.test",
            HERE,
            "127.0.0.1",
            "localhost",
            "evil.registry.mydomain.test",
        ];
        for host in others {
            for path in ["/v2/", target.as_str()] {
                let there = client(HERE).get_with(path, &[("host", host)]).await;
                assert_eq!(there.status, 421, "{host} {path}: {}", there.text());
                // One's own machine reaches it by whatever name it likes.
                let here = client("127.0.0.1")
                    .get_with("/v2/", &[("host", host)])
                    .await;
                assert_eq!(here.status, 200, "{host}: {}", here.text());
            }
        }
        assert_eq!(rig.asked(), 0);
        let metrics = rig.proxy.metrics().await;
        let denied = metrics.sum("ecr_proxy_denied_total", &["reason=\"domain\""]);
        assert_eq!(denied, 2.0 * others.len() as f64);
        for host in [DOMAIN, "REGISTRY.MYDOMAIN.TEST:5000"] {
            let ours = client(HERE).get_with(&target, &[("host", host)]).await;
            assert_eq!(ours.status, 200, "{host}: {}", ours.text());
        }
        assert_eq!(client(HERE).get_h2(&target).await.status, 200);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn p05_there_is_one_host_or_none() {
    let rig = Rig::start().await;
    let target = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    for (target, hosts) in [
        (target.clone(), vec![]),
        (target.clone(), vec![DOMAIN, DOMAIN]),
        (target.clone(), vec![DOMAIN, "evil.test"]),
        (target.clone(), vec!["user@registry.mydomain.test"]),
        (target.clone(), vec!["registry.mydomain.test:99999"]),
        (target.clone(), vec![""]),
        (format!("http://evil.test{target}"), vec![DOMAIN]),
        (format!("http://user@{DOMAIN}{target}"), vec![DOMAIN]),
    ] {
        let hosts: String = hosts.iter().map(|h| format!("Host: {h}\r\n")).collect();
        // Nothing behind it runs, and the connection ends.
        let hidden = format!("GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
        let request = format!("GET {target} HTTP/1.1\r\n{hosts}\r\n{hidden}");
        let (answer, rest) = rig.raw(&request).await;
        assert!(
            matches!(answer.status, 400 | 421),
            "{request:?}: {}",
            answer.status
        );
        assert_eq!(rest, b"");
    }
    let crossed = rig.proxy.tls_client().with("host", "evil.test");
    let answer = crossed.get_h2(&target).await;
    assert!(matches!(answer.status, 400 | 421), "h2: {}", answer.status);
    assert_eq!(rig.asked(), 0);

    // By the host it is decided, and not by the name that the handshake gave, whichever of ours that is.
    let of_both = |builder: support::proxy::Builder| {
        let domains = vec![DOMAIN, "127.0.0.1", "public.mydomain.test"];
        builder
            .set("server.domains", domains)
            .rule("users = ['@anonymous']\ndomains = ['public.mydomain.test']\nactions = ['pull']")
    };
    let two = Rig::with(of_both).await;
    let ca = two.proxy.pki().ca();
    for named in [DOMAIN, "127.0.0.1"] {
        for (host, status) in [
            ("public.mydomain.test", 200),
            (DOMAIN, 401),
            ("evil.test", 401),
            ("public.mydomain.test.evil.test", 401),
        ] {
            let connection = support::Connection::tls(two.proxy.https(), named, &ca).await;
            let mut connection = connection.expect("a handshake");
            let asked = connection.request("GET", "/v2/", &[("host", host)]).await;
            asked.expect("sent");
            let answer = connection.answer("GET").await.expect("an answer");
            assert_eq!(answer.status, status, "{host}, named {named}");
        }
    }

    // The same name written otherwise is the same name.
    for host in [format!("{DOMAIN}:5000"), format!("{DOMAIN}.")] {
        let answer = rig
            .proxy
            .client()
            .get_with("/v2/", &[("host", &host)])
            .await;
        assert_eq!(answer.status, 200, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_no_method_makes_a_tunnel_or_a_push() {
    let rig = Rig::start().await;
    for line in [
        format!("CONNECT {DOMAIN}:443"),
        "TRACE /v2/".to_owned(),
        "OPTIONS *".to_owned(),
        "BREW /v2/".to_owned(),
        format!("get /v2/{REPOSITORY}/manifests/{TAG}"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
        let (answer, _) = rig.raw(&request).await;
        assert!(
            matches!(answer.status, 400 | 405),
            "{line}: {}",
            answer.status
        );
    }

    let upload = format!("/v2/{REPOSITORY}/blobs/uploads/");
    let session = format!("{upload}0f3a");
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", rig.image.blobs()[0].digest);
    let mount = format!("{upload}?mount={}&from=private/other", rig.image.top.digest);
    for (method, path) in [
        ("POST", &upload),
        ("POST", &mount),
        ("PATCH", &session),
        ("PUT", &session),
        ("GET", &session),
        ("PUT", &manifest),
        ("DELETE", &manifest),
        ("DELETE", &blob),
    ] {
        let answer = rig.proxy.client().ask(method, path, &[]).await;
        assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text());
    }
    assert_eq!(rig.asked(), 0);

    // A header does not change the method, and asking to change the protocol changes nothing.
    let overridden = [("x-http-method-override", "DELETE")];
    let answer = rig.proxy.client().get_with(&manifest, &overridden).await;
    assert_eq!(answer.status, 200);
    let request = format!(
        "GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n\
         DELETE {manifest} HTTP/1.1\r\n"
    );
    let (answer, rest) = rig.raw(&request).await;
    assert!(matches!(answer.status, 200 | 400), "{}", answer.status);
    assert_eq!(rest, b"", "bytes after an Upgrade were taken for a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn p08_no_name_escapes() {
    let rig = Rig::start().await;
    let before = files_below(rig.proxy.dir());
    let long = "a".repeat(256);
    for name in [
        "..",
        "../..",
        "team/../app",
        "team//app",
        "/team/app",
        "team/./app",
        "team%2fapp",
        "team%2Fapp",
        "%2e%2e/app",
        "%252e%252e/app",
        "team\\app",
        "team%00app",
        "team;app",
        "%c0%ae%c0%ae/app",
        "Team/App",
        "team/app/",
        "-team",
        "team..app",
        long.as_str(),
    ] {
        for tail in ["manifests/v1", "tags/list", "referrers/"] {
            let path = format!("/v2/{name}/{tail}");
            let answer = rig.proxy.client().get(&path).await;
            assert!(
                matches!(answer.status, 400 | 404),
                "{path}: {}",
                answer.status
            );
            assert!(
                matches!(
                    answer.error_code().as_str(),
                    "NAME_INVALID" | "NAME_UNKNOWN" | "DIGEST_INVALID"
                ),
                "{path}: {}",
                answer.text()
            );
        }
    }
    assert_eq!(rig.asked(), 0);
    assert_eq!(files_below(rig.proxy.dir()), before, "files were made");
}

#[tokio::test(flavor = "multi_thread")]
async fn p09_a_digest_is_64_small_hexadecimal_digits_of_sha256() {
    let rig = Rig::start().await;
    let hex = rig
        .image
        .top
        .digest
        .trim_start_matches("sha256:")
        .to_owned();
    for digest in [
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{}", hex.replace(|_: char| true, "A")),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}{hex}"),
        format!("md5:{}", &hex[..32]),
        "sha256:".to_owned(),
        "sha256".to_owned() + "%3a" + &hex,
        format!("sha256:{}%2f", &hex[3..]),
        format!("sha256:..{}", &hex[2..]),
    ] {
        for place in ["blobs", "manifests", "referrers"] {
            let path = format!("/v2/{REPOSITORY}/{place}/{digest}");
            let answer = rig.proxy.client().get(&path).await;
            let expected = match place {
                "manifests" if !digest.contains(':') => (404, "MANIFEST_UNKNOWN"),
                _ => (400, "DIGEST_INVALID"),
            };
            let code = answer.error_code();
            assert_eq!((answer.status, code.as_str()), expected, "{path}");
        }
    }
    let tag = format!("/v2/{REPOSITORY}/manifests/{}", "t".repeat(129));
    assert_eq!(rig.proxy.client().get(&tag).await.status, 404);
    assert_eq!(rig.asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_query_selects_no_host_and_nothing_unknown_is_passed_on() {
    // To pull alone is not enough to list.
    let rig = Rig::with(|proxy| proxy.env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)).await;
    let client = rig.proxy.client();
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    for ns in ["evil.test", "127.0.0.1:1", "169.254.169.254", ""] {
        let answer = client.get(&format!("{manifest}?ns={ns}")).await;
        assert_eq!(answer.status, 404, "ns={ns}: {}", answer.text());
    }
    let twice = client
        .get(&format!("{manifest}?ns={DOMAIN}&ns=evil.test"))
        .await;
    assert_eq!(twice.status, 400, "{}", twice.text());
    for query in [
        "n=-1",
        "n=x",
        "n=1&n=2",
        "last=a&last=b",
        "last=%00",
        "n=+5",
    ] {
        let answer = client
            .get(&format!("/v2/{REPOSITORY}/tags/list?{query}"))
            .await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    assert_eq!(rig.asked(), 0);

    let registry = rig.simulator.registry_host();
    for ns in [registry.as_str(), DOMAIN] {
        let answer = client.get(&format!("{manifest}?ns={ns}")).await;
        assert_eq!(answer.status, 200, "ns={ns}: {}", answer.text());
    }
    let layer = &rig.image.manifests[0].layers[1];
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let tampered = format!(
        "{blob}?digest={}&digest=x&mount=y&from=z&X-Amz-Signature=s",
        layer.digest
    );
    assert_eq!(client.get(&tampered).await.digest(), layer.digest);
    let list = format!("/v2/{REPOSITORY}/tags/list?n=1000000000&canary=1");
    assert_eq!(client.get(&list).await.status, 200);
    let entries = rig.simulator.journal().snapshot();
    for entry in entries.iter().filter(|e| e.listener == Listener::Registry) {
        assert!(
            entry.query.is_empty() || entry.query == "n=1000",
            "{} {}?{}",
            entry.method,
            entry.path,
            entry.query
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_what_the_client_has_is_not_sent_again() {
    let rig = Rig::with(|proxy| proxy.set("cache.tag_ttl", "0s")).await;
    let client = rig.proxy.client();
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let layer = &rig.image.manifests[0].layers[1];
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    for path in [&manifest, &blob] {
        let whole = client.get(path).await;
        let etag = whole.header("etag").expect("an ETag").to_owned();
        assert_eq!(etag, format!("\"{}\"", whole.digest()));
        for matching in [
            etag.clone(),
            format!("W/{etag}"),
            "*".to_owned(),
            format!("\"x\", {etag}"),
        ] {
            let same = client.get_with(path, &[("if-none-match", &matching)]).await;
            assert_eq!(
                (same.status, same.body.len()),
                (304, 0),
                "{path} {matching}"
            );
            assert_eq!(same.header("etag"), Some(etag.as_str()));
        }
        let other = client.get_with(path, &[("if-none-match", "\"x\"")]).await;
        assert_eq!((other.status, other.body), (200, whole.body));
    }
    // A tag that moved is not what the client has.
    let old = format!("\"{}\"", rig.image.top.digest);
    let new = ImageSpec::generated(9, [1000]);
    let new = rig.simulator.push_image(REPOSITORY, TAG, new);
    let moved = client.get_with(&manifest, &[("if-none-match", &old)]).await;
    assert_eq!((moved.status, moved.digest()), (200, new.top.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_one_variant_is_served_as_it_came_or_not_at_all() {
    let rig = Rig::start().await;
    let client = rig.proxy.client();
    let by_tag = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", rig.image.top.digest);
    let (media_type, bytes) = rig.simulator.manifest(REPOSITORY, TAG).expect("pushed");
    assert_eq!(media_type, OCI_INDEX);
    let both = format!("{OCI_MANIFEST}, {OCI_INDEX};q=0.5");
    for path in [&by_tag, &by_digest] {
        for accept in [
            vec![],
            vec![("accept", "*/*")],
            vec![("accept", OCI_INDEX)],
            vec![("accept", both.as_str())],
            vec![("accept", OCI_MANIFEST), ("accept", OCI_INDEX)],
            vec![("accept", "application/*")],
        ] {
            let answer = client.get_with(path, &accept).await;
            assert_eq!(answer.status, 200, "{accept:?}: {}", answer.text());
            assert_eq!(answer.body, bytes);
            assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
        }
        let answer = client.get_with(path, &[("accept", OCI_MANIFEST)]).await;
        assert!(
            matches!(answer.status, 404 | 406),
            "an index went to a client that takes none: {}",
            answer.status
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p16_a_manifest_that_can_be_read_in_two_ways_is_nobodys() {
    let rig = Rig::with(|proxy| proxy.set("cache.tag_ttl", "0s")).await;
    let (_, good) = rig
        .simulator
        .manifest(REPOSITORY, TAG)
        .expect("it was pushed");
    let good = String::from_utf8(good.to_vec()).expect("JSON");
    let inner = good.trim().trim_start_matches('{');
    let client = rig.proxy.client();
    for (number, (what, text)) in [
        ("an index and an image", format!(r#"{{"manifests":[],"layers":[],{inner}"#)),
        ("another type than it is sent as", r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#.to_owned()),
        ("its layers twice", format!(r#"{{"layers":[],"layers":[],{inner}"#)),
        ("a byte order mark", format!("\u{feff}{good}")),
        ("more behind it", format!("{good}{good}")),
        ("depth without end", format!(r#"{{"annotations":{}"#, "[".repeat(100_000))),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = format!("odd{number}");
        let digest = rig.simulator.put_manifest(REPOSITORY, &tag, OCI_MANIFEST, text);
        for reference in [tag, digest] {
            let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
            for _ in 0..2 {
                let answer = client.get(&path).await;
                assert_eq!(answer.status, 502, "{what}, {path}: {}", answer.text());
                assert_eq!(answer.header("x-cache"), None, "{what}");
            }
        }
    }
    let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    assert_eq!(client.get(&path).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn p18_what_is_too_large_is_refused_before_it_is_held() {
    let rig = Rig::start().await;
    let client = rig.proxy.client();
    let long = format!("GET /v2/{} HTTP/1.1\r\n", "a".repeat(64 * 1024));
    let flood = format!(
        "GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\n{}",
        "X: y\r\n".repeat(200)
    );
    let fat = format!(
        "GET /v2/ HTTP/1.1\r\nHost: {DOMAIN}\r\nX: {}\r\n",
        "y".repeat(64 * 1024)
    );
    for (head, status) in [(long, 414), (flood, 431), (fat, 431)] {
        let mut connection = client.connect().await;
        // It may close before it has read all of it.
        let _refused_early = connection.send(head + "\r\n").await;
        let answer = connection.answer("GET").await.expect("an answer");
        assert_eq!(answer.status, status);
    }
    assert_eq!(rig.asked(), 0);

    let before = rig.proxy.memory();
    let padding = "x".repeat(64 << 20);
    let manifest = format!("{{\"schemaVersion\":2,\"padding\":\"{padding}\"}}");
    rig.simulator
        .put_manifest(REPOSITORY, "huge", OCI_MANIFEST, manifest);
    let path = format!("/v2/{REPOSITORY}/manifests/huge");
    let told = client.get(&path).await;
    assert_eq!(told.status, 502, "{}", told.text());
    let faults = rig.simulator.faults();
    faults
        .on(Listener::Registry, "GET", "/manifests/huge")
        .then(Fault::CloseDelimited(None));
    let untold = client.get(&path).await;
    assert_eq!(untold.status, 502, "{}", untold.text());
    let grown = rig.proxy.memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "grown by {grown} bytes");
}
