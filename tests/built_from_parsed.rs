//! What goes upstream is built from what was parsed, and what comes back to a client likewise: no header that
//! either side nominates, no bytes that would begin another header, no address that a manifest names, no
//! encoding that hides how large something is.

mod support;

use std::io::Write as _;
use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, CannedAnswer, FULL_ACCESS_KEY, Fault, ImageSpec, Listener, PushedImage, Simulator,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use support::blobs::MIB;
use support::image::{REPOSITORY, TAG};
use support::{Answer, DOMAIN, Proxy, image};
use tokio::net::TcpListener;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn scene() -> (Simulator, PushedImage, Proxy) {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        // To pull alone is not enough to list.
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    (simulator, image, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn p07_nominated_headers_change_neither_what_goes_upstream_nor_what_comes_back() {
    let (simulator, image, proxy) = scene().await;
    for (name, value) in [
        ("connection", "x-canary, content-length"),
        ("x-canary", "1"),
        ("keep-alive", "timeout=canary"),
        ("proxy-authenticate", "Basic realm=\"canary\""),
        ("trailer", "x-canary"),
        ("upgrade", "canary"),
    ] {
        for listener in [Listener::Registry, Listener::Storage] {
            let rule = simulator.faults().on(listener, "*", "/");
            rule.then(Fault::AddHeader(name, value.to_owned()));
        }
    }
    let nominated = "authorization, content-length, host, accept, range, user-agent, x-any";
    let client = proxy.client().with("connection", nominated);
    let client = client.with("x-any", "1");
    let layer = &image.manifests[0].layers[1];
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    for path in [
        format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        format!("/v2/{REPOSITORY}/tags/list"),
        blob.clone(),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.clean_end);
        let length = answer.body.len() as u64;
        assert_eq!(answer.head.content_length(), Some(length), "{path}");
        for (name, value) in &answer.head.headers {
            assert!(!value.contains("canary"), "{path}: {name}: {value}");
            assert!(
                ![
                    "keep-alive",
                    "proxy-authenticate",
                    "trailer",
                    "upgrade",
                    "x-canary"
                ]
                .contains(&name.to_ascii_lowercase().as_str()),
                "{path}: {name}: {value}"
            );
        }
    }
    let part = client.get_with(&blob, &[("range", "bytes=1-4")]).await;
    assert_eq!((part.status, part.body.len()), (206, 4));
    let entries = simulator.journal().snapshot();
    let registry = entries.iter().filter(|e| e.listener == Listener::Registry);
    assert!(registry.clone().count() > 2);
    for entry in registry {
        let path = &entry.path;
        let credentials = entry.header("authorization").unwrap_or_default();
        assert!(credentials.starts_with("Basic "), "{path}: {credentials}");
        assert_eq!(entry.header("host"), Some(&*simulator.registry_host()));
        for name in ["connection", "x-any", "content-length", "transfer-encoding"] {
            assert_eq!(entry.header(name), None, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_the_addresses_of_foreign_layers_are_never_dialled() {
    let (simulator, _, proxy) = scene().await;
    let trap = TcpListener::bind("127.0.0.2:0").await.expect("a port");
    let address = trap.local_addr().expect("a bound listener");
    let config = simulator.put_blob(REPOSITORY, "{}");
    let foreign = format!("sha256:{}", "5".repeat(64));
    let kept = simulator.put_blob(REPOSITORY, BlobSource::generated(5, 1000));
    let layer = |digest: &str, size: u64, urls: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{digest}","size":{size},"urls":[{urls}]}}"#
        )
    };
    let urls = format!(
        r#""http://{address}/a","https://{address}/b","http://169.254.169.254/latest/meta-data/","https://attacker.example/c","file:///etc/passwd""#
    );
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{},{}]}}"#,
        layer(&foreign, 1000, &urls),
        layer(&kept, 1000, &urls),
    );
    let manifest = simulator.put_manifest(REPOSITORY, "foreign", MANIFEST, text.clone());
    let client = proxy.client();
    for reference in ["foreign", manifest.as_str()] {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        let answer = client.get(&path).await;
        assert_eq!((answer.status, answer.text()), (200, text.clone()));
    }
    // What the registry does not have is absent, whoever else may have it.
    let path = format!("/v2/{REPOSITORY}/blobs/{foreign}");
    for answer in [client.get(&path).await, client.head(&path).await] {
        assert_eq!(answer.status, 404, "{}", answer.text());
    }
    // What it has comes from it.
    let path = format!("/v2/{REPOSITORY}/blobs/{kept}");
    assert_eq!(client.get(&path).await.digest(), kept);
    // A whole image is what its registry has of it.
    let image = format!("{DOMAIN}/{REPOSITORY}:foreign");
    let warmed = proxy.run(["warm", &image]);
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    let came = tokio::time::timeout(Duration::ZERO, trap.accept()).await;
    assert!(came.is_err(), "somebody connected to {address}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p19_compression_hides_nothing() {
    let (simulator, image, proxy) = scene().await;
    let before = proxy.memory();
    // 64 MiB of nothing in 64 KiB.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..64 {
        bomb.write_all(&zeros).expect("memory");
    }
    let bomb = bomb.finish().expect("memory");
    assert!(bomb.len() < 128 * 1024);
    let faults = simulator.faults();
    let answer = |body: &[u8]| {
        Fault::Answer(CannedAnswer {
            status: 200,
            headers: vec![
                ("content-type", MANIFEST.to_owned()),
                ("content-encoding", "gzip".to_owned()),
            ],
            body: body.to_vec().into(),
        })
    };
    let rule = faults.on(Listener::Registry, "*", "/manifests/bomb");
    rule.then(answer(&bomb));
    let client = proxy.client().with("accept-encoding", "gzip, br, zstd");
    let told = client
        .get(&format!("/v2/{REPOSITORY}/manifests/bomb"))
        .await;
    assert_eq!(told.status, 502, "{}", told.text());
    // A blob that comes in an encoding is not what was asked for, whatever it is when it is decoded.
    let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(9, 100_000));
    let rule = faults.on(Listener::Storage, "GET", "/").times(1);
    rule.then(Fault::Gzip);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let encoded = client.get(&path).await;
    assert!(
        !(encoded.status == 200 && encoded.clean_end) || encoded.digest() == digest,
        "{:?}",
        encoded.head
    );
    assert_eq!(encoded.header("content-encoding"), None);
    let plain = client.get(&path).await;
    assert_eq!((plain.status, plain.digest()), (200, digest));
    // Nothing is compressed for a client that would take it, either.
    for path in [
        format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        format!("/v2/{REPOSITORY}/blobs/{}", image.blobs()[0].digest),
        format!("/v2/{REPOSITORY}/tags/list"),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-encoding"), None, "{path}");
        assert_eq!(answer.header("vary"), None, "{path}");
    }
    let entries = simulator.journal().snapshot();
    for entry in entries.iter().filter(|e| e.listener != Listener::Api) {
        assert_eq!(
            entry.header("accept-encoding"),
            Some("identity"),
            "{}",
            entry.path
        );
    }
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "grown by {grown} bytes");
}

/// Bytes that would end a header or its line, in the ways in which they can be written.
const BREAKS: &[&str] = &[
    "\r\nx-canary: 1",
    "%0d%0ax-canary:%201",
    "%0A",
    "\u{85}",
    "%E5%98%8A%E5%98%8D",
    "\u{ff}",
    "%ff",
    "%00",
];

#[tokio::test(flavor = "multi_thread")]
async fn s18_nothing_that_anybody_says_begins_a_header_of_an_answer() {
    let (simulator, _, proxy) = scene().await;
    let client = proxy.client();
    let digest = format!("sha256:{}", "0".repeat(64));
    for broken in BREAKS {
        for path in [
            format!("/v2/{REPOSITORY}/manifests/v1{broken}"),
            format!("/v2/{REPOSITORY}{broken}/manifests/v1"),
            format!("/v2/{REPOSITORY}/blobs/{digest}{broken}"),
            format!("/v2/{REPOSITORY}/tags/list?n=1&last=a{broken}"),
            format!("/v2/{REPOSITORY}/tags/list?n=1{broken}"),
            format!("/v2/{REPOSITORY}/referrers/{digest}?artifactType=a{broken}"),
            format!("/v2/{REPOSITORY}/manifests/v1?ns=a{broken}"),
            format!("/v2/{REPOSITORY}/blobs/uploads/?mount={digest}{broken}&from=x"),
        ] {
            let mut connection = client.connect().await;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
            connection.send(request).await.expect("sent");
            let answer = connection.answer("GET").await.expect("an answer");
            assert!(
                matches!(answer.status, 200 | 400 | 401 | 404),
                "{path:?}: {}",
                answer.status
            );
            assert_is_whole(&answer, &path);
        }
        // A user's name, and whatever else a client tells.
        let login = support::users::basic(&format!("user{broken}"), broken);
        let answer = client.get_with("/v2/", &[("authorization", &login)]).await;
        assert!(matches!(answer.status, 200 | 401), "{}", answer.status);
        assert_is_whole(&answer, "a login");
    }
    // What an upstream says reaches a client in headers of ours, or not at all.
    let spec = ImageSpec::generated(3, [1000]);
    let pushed = simulator.push_image(REPOSITORY, "said", spec);
    let faults = simulator.faults();
    for (name, value) in [
        ("link", "</v2/x/tags/list?last=\u{ff}&n=1>; rel=\"next\""),
        (
            "link",
            "</v2/x/tags/list?last=a%0d%0ax-canary:1&n=1>; rel=\"next\"",
        ),
        ("content-type", "application/json\u{ff}; x-canary=1"),
        ("etag", "\"\u{ff}canary\""),
        ("docker-content-digest", "sha256:\u{ff}"),
        ("oci-filters-applied", "artifactType\u{ff}"),
    ] {
        faults.clear();
        let rule = faults.on(Listener::Registry, "*", "/v2/");
        rule.then(Fault::SetHeader(name, value.to_owned()));
        for path in [
            format!("/v2/{REPOSITORY}/tags/list?n=1"),
            format!("/v2/{REPOSITORY}/manifests/said"),
            format!("/v2/{REPOSITORY}/manifests/{}", pushed.top.digest),
            format!("/v2/{REPOSITORY}/referrers/{}", pushed.top.digest),
        ] {
            let answer = client.get(&path).await;
            // 404 where the registry does not know the page that it named itself.
            assert!(
                matches!(answer.status, 200 | 404 | 502),
                "{name}: {value:?}, {path}: {}",
                answer.status
            );
            assert_is_whole(&answer, &path);
        }
    }
    let is_panic = |event: &support::Event| event.line.contains("panicked");
    assert!(!proxy.logs().iter().any(is_panic));
}

/// Nothing was smuggled into the head.
fn assert_is_whole(answer: &Answer, path: &str) {
    assert!(answer.clean_end);
    for (name, value) in &answer.head.headers {
        assert!(
            !name.eq_ignore_ascii_case("x-canary"),
            "{path:?}: {name}: {value}"
        );
        let is_plain = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        assert!(is_plain, "{path:?}: {name}: {value:?}");
    }
}
