//! Certificates look after themselves: the name chooses the pair, a renewal is in use within seconds without
//! a failed handshake, and one that is no good changes nothing and is told (K01, K02, K03).

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion};
use support::blobs::{MIB, blob, metric, simulator, until};
use support::pki::{Leaf, trusting, trusting_by};
use support::{Client, Clock, Connection, DOMAIN, Event, Proxy, Stopwatch, program, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use toml::{Table, Value as Toml};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The names of the certificates that replace one another.
const NAMES: [&str; 2] = [DOMAIN, "127.0.0.1"];

/// The promise is 5 s; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(5);

async fn handshake(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TcpStream::connect(address).await?;
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    within("a handshake", connecting).await
}

fn leaf_of(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates();
    chain
        .and_then(|chain| chain.first())
        .expect("a certificate")
        .to_vec()
}

/// What a client of `name` is shown; one that names an address sends no server name.
async fn shown(proxy: &Proxy, name: &str) -> Vec<u8> {
    let config = trusting(&proxy.pki().ca(), &[b"http/1.1"]);
    let stream = handshake(proxy.https(), name, &config).await;
    leaf_of(&stream.expect("a handshake"))
}

/// Waits until `leaf` is shown; fails where that takes longer than promised.
async fn in_use(proxy: &Proxy, leaf: &Leaf) {
    let began = Stopwatch::start();
    until("the renewal is in use", async || {
        shown(proxy, DOMAIN).await == leaf.der
    })
    .await;
    assert!(began.took() < SOON, "after {:?}", began.took());
}

async fn readyz(proxy: &Proxy) -> String {
    let answer = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(answer.status, 200, "hits are served: {}", answer.text());
    answer.text()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(path, text).expect("the directory is writable");
}

/// Puts a whole new file in the place of the old one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    write(&new, text);
    fs::rename(new, path).expect("the directory is writable");
}

/// The ways in which renewals arrive.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// Written over in place, the certificate first.
    CertificateFirst,
    /// Written over in place, the key first.
    KeyFirst,
    /// Renamed over.
    Renamed,
    /// As Kubernetes and certbot do: a link that the paths lead through is swapped.
    Link,
}

/// A folder of a certificate that arrives in any of the ways: `live` is a link to the current one.
struct Folder(PathBuf);

impl Folder {
    fn new(folder: PathBuf, first: &Leaf) -> Self {
        let this = Self(folder);
        this.arrive(first, Arrival::Link, 0);
        this
    }

    fn certificate(&self) -> PathBuf {
        self.0.join("live/tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.0.join("live/tls.key")
    }

    fn arrive(&self, leaf: &Leaf, how: Arrival, number: usize) {
        match how {
            Arrival::CertificateFirst => {
                write(self.certificate(), &leaf.certificate);
                write(self.key(), &leaf.key);
            }
            Arrival::KeyFirst => {
                write(self.key(), &leaf.key);
                write(self.certificate(), &leaf.certificate);
            }
            Arrival::Renamed => {
                replace(&self.key(), &leaf.key);
                replace(&self.certificate(), &leaf.certificate);
            }
            Arrival::Link => {
                let data = self.0.join(format!("data-{number}"));
                fs::create_dir_all(&data).expect("the directory is writable");
                write(data.join("tls.crt"), &leaf.certificate);
                write(data.join("tls.key"), &leaf.key);
                symlink(&data, self.0.join("next")).expect("a link");
                fs::rename(self.0.join("next"), self.0.join("live")).expect("a link");
            }
        }
    }
}

/// A proxy whose certificate is in a [`Folder`], and its first certificate.
fn proxy_of(simulator: &ecr_proxy::simulator::Simulator) -> (Proxy, Folder, Leaf) {
    let builder = Proxy::builder().simulator(simulator);
    let first = builder.pki().issue(NAMES, None);
    let folder = Folder::new(builder.pki().dir().join("own"), &first);
    let proxy = builder
        .set("tls.cert", path(&folder.certificate()))
        .set("tls.key", path(&folder.key()))
        .start();
    (proxy, folder, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn k01_a_hundred_renewals_under_load_fail_no_handshake_and_cut_no_stream() {
    const RENEWALS: usize = 100;
    let simulator = simulator().await;
    let (proxy, folder, first) = proxy_of(&simulator);
    let (digest, target) = blob(&simulator, 1, 32 * MIB);
    let mut stream = proxy.tls_client().start("GET", &target, &[]).await;
    let head = stream.head().await.expect("a head");
    let mut body = stream.read_exactly(1000).await.expect("a first piece");
    // One that asks for nothing at all is soon closed.
    let mut idle = proxy.tls_client().connect().await;
    idle.request("GET", "/v2/", &[]).await.expect("open");
    assert_eq!(idle.answer("GET").await.expect("an answer").status, 200);

    // Two hundred a second, each of them a whole handshake.
    let ended = Arc::new(AtomicBool::new(false));
    let made = Arc::new(AtomicUsize::new(0));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (ended, made) = (Arc::clone(&ended), Arc::clone(&made));
        let (address, ca) = (proxy.https(), proxy.pki().ca());
        load.spawn(async move {
            let mut next = tokio::time::interval(Duration::from_millis(20));
            while !ended.load(Ordering::Relaxed) {
                next.tick().await;
                let config = trusting(&ca, &[b"http/1.1"]);
                if let Err(error) = handshake(address, DOMAIN, &config).await {
                    panic!("a handshake failed: {error}");
                }
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    let ways = [
        Arrival::CertificateFirst,
        Arrival::KeyFirst,
        Arrival::Renamed,
        Arrival::Link,
    ];
    let began = Instant::now();
    let mut last = first;
    for (number, how) in (1..=RENEWALS).zip(ways.into_iter().cycle()) {
        let leaf = proxy.pki().issue(NAMES, None);
        folder.arrive(&leaf, how, number);
        // A few are noticed by themselves, the others are told so that the test ends this day.
        if number > ways.len() {
            proxy.signal(Signal::HUP);
        }
        in_use(&proxy, &leaf).await;
        assert_ne!(leaf.der, last.der);
        last = leaf;
    }
    let elapsed = began.elapsed();
    ended.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("every handshake succeeds");
    }
    let made = made.load(Ordering::Relaxed);
    println!("{made} handshakes during {RENEWALS} renewals in {elapsed:?}");
    assert!(made > RENEWALS, "{made} handshakes are no load");

    // What was open before the first goes on after the last.
    let length = head.content_length().expect("a length");
    let rest = stream.read_exactly(length - 1000).await;
    body.extend(rest.expect("the rest of the blob"));
    assert_eq!(support::store::digest(&body), digest);
    idle.request("GET", "/v2/", &[]).await.expect("still open");
    assert_eq!(idle.answer("GET").await.expect("an answer").status, 200);

    let taken = ["what=\"certificates\"", "result=\"ok\""];
    let counted = metric(&proxy, "ecr_proxy_reloads_total", &taken).await;
    assert!(counted >= 100.0, "{counted}");
    assert!(!readyz(&proxy).await.contains("certificates"));
}

#[tokio::test(flavor = "multi_thread")]
async fn k02_a_bad_renewal_keeps_the_pair_and_is_told_until_it_is_mended() {
    let simulator = simulator().await;
    let (proxy, folder, first) = proxy_of(&simulator);
    let expiry = metric(&proxy, "ecr_proxy_certificate_expiry_seconds", &[]).await;
    let (certificate, key) = (folder.certificate(), folder.key());
    let refused = ["what=\"certificates\"", "result=\"refused\""];
    let good = proxy.pki().issue(NAMES, None);
    let ended = proxy.pki().issue(NAMES, Some(SystemTime::now() - DAY));
    let other = proxy.pki().issue(["other.mydomain.test"], None);
    let half = &good.certificate[..good.certificate.len() / 2];

    let mut told = 0.0;
    for (case, complaint, spoil) in [
        (
            "the key of another certificate",
            "does not belong to",
            &(|| write(&key, &good.key)) as &dyn Fn(),
        ),
        ("an empty certificate", "holds no certificate", &|| {
            write(&certificate, "")
        }),
        ("an empty key", "holds no private key", &|| write(&key, "")),
        ("a certificate cut in half", "PEM is broken", &|| {
            write(&certificate, half)
        }),
        ("no certificate", "cannot read", &|| {
            fs::remove_file(&certificate).expect("there is one");
        }),
        ("a folder in place of the key", "cannot read", &|| {
            fs::remove_file(&key).expect("there is one");
            fs::create_dir(&key).expect("the directory is writable");
        }),
        ("one that has ended", "ended", &|| {
            folder.arrive(&ended, Arrival::Renamed, 0);
        }),
        (
            "one for another name",
            "is not for registry.mydomain.test",
            &|| {
                folder.arrive(&other, Arrival::Link, 1);
            },
        ),
        ("a link to nowhere", "cannot read", &|| {
            symlink("nowhere", folder.0.join("next")).expect("a link");
            fs::rename(folder.0.join("next"), folder.0.join("live")).expect("a link");
        }),
    ] {
        let before = proxy.logs().len();
        spoil();
        until(case, async || {
            metric(&proxy, "ecr_proxy_reloads_total", &refused).await > told
        })
        .await;
        told += 1.0;
        let page = readyz(&proxy).await;
        assert!(
            page.contains("\"certificates\"") && page.contains(complaint),
            "{case}: {page}"
        );
        assert_eq!(shown(&proxy, DOMAIN).await, first.der, "{case}");
        // Asked for again it is no news.
        proxy.signal(Signal::HUP);
        // The last of what is read again, so that nothing reads any more what is written next.
        let last =
            |event: &Event| event.message().contains("again") && event.line.contains("client_ca");
        until("all is read again", async || {
            proxy.logs()[before..].iter().any(last)
        })
        .await;
        let complaints = |logs: &[Event]| {
            let of_reload = |event: &&Event| event.message().contains("cannot be reloaded");
            logs.iter().filter(of_reload).cloned().collect::<Vec<_>>()
        };
        let now = complaints(&proxy.logs()[before..]);
        assert_eq!(now.len(), 1, "{case}: {now:?}");
        assert_eq!(now[0].level(), "ERROR");
        assert!(now[0].line.contains(complaint), "{case}: {}", now[0].line);
        assert!(metric(&proxy, "ecr_proxy_reload_refused", &[]).await > 0.5);
        let shown_expiry = metric(&proxy, "ecr_proxy_certificate_expiry_seconds", &[]).await;
        assert!((shown_expiry - expiry).abs() < 0.5);

        // What was there before comes back, and nothing is wrong any more.
        if key.is_dir() {
            fs::remove_dir(&key).expect("an empty folder");
        }
        folder.arrive(&first, Arrival::Link, 0);
        until("it is mended", async || {
            !readyz(&proxy).await.contains("certificates")
        })
        .await;
        assert!(metric(&proxy, "ecr_proxy_reload_refused", &[]).await < 0.5);
    }
    folder.arrive(&good, Arrival::KeyFirst, 0);
    in_use(&proxy, &good).await;
    proxy
        .assert_no_secrets(&[secret(&good), secret(&first)])
        .await;
}

/// A line of the key.
fn secret(leaf: &Leaf) -> String {
    leaf.key.lines().nth(1).expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn k03_the_name_chooses_among_several_pairs() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let dir = builder.pki().dir().to_owned();
    let sets: [&[&str]; 3] = [&NAMES, &["other.mydomain.test"], &["*.apps.mydomain.test"]];
    let leaves = sets.map(|names| builder.pki().issue(names.iter().copied(), None));
    let mut pairs = Vec::new();
    for (index, leaf) in leaves.iter().enumerate() {
        let (certificate, key) = (
            dir.join(format!("{index}.crt")),
            dir.join(format!("{index}.key")),
        );
        write(&certificate, &leaf.certificate);
        write(&key, &leaf.key);
        pairs.push(Toml::Table(Table::from_iter([
            ("cert".to_owned(), Toml::from(path(&certificate))),
            ("key".to_owned(), Toml::from(path(&key))),
        ])));
    }
    let proxy = builder.set("tls.pair", pairs).start();
    for (name, expected) in [
        (DOMAIN, 0),
        ("127.0.0.1", 0),
        ("other.mydomain.test", 1),
        ("a.apps.mydomain.test", 2),
    ] {
        assert_eq!(shown(&proxy, name).await, leaves[expected].der, "{name}");
    }
    // A name nobody knows is shown the first, which is not for it.
    let config = trusting(&proxy.pki().ca(), &[b"http/1.1"]);
    let refused = handshake(proxy.https(), "unknown.test", &config).await;
    let refused = refused.expect_err("not its name").to_string();
    assert!(refused.contains("not valid for name"), "{refused}");

    // Each is renewed by itself, and a bad one keeps no other back.
    let renewed = proxy.pki().issue(["*.apps.mydomain.test"], None);
    write(dir.join("1.crt"), "");
    write(dir.join("2.crt"), &renewed.certificate);
    write(dir.join("2.key"), &renewed.key);
    until("the third is renewed", async || {
        shown(&proxy, "b.apps.mydomain.test").await == renewed.der
    })
    .await;
    assert_eq!(shown(&proxy, "other.mydomain.test").await, leaves[1].der);
    let metrics = proxy.metrics().await;
    for name in [DOMAIN, "other.mydomain.test", "*.apps.mydomain.test"] {
        let label = format!("name=\"{name}\"");
        assert!(
            metrics.sum("ecr_proxy_certificate_expiry_seconds", &[&label]) > 0.0,
            "{name}"
        );
    }
}

/// The first bytes of a client that speaks TLS 1.1 at most: a hello with two suites and nothing more.
fn old_hello() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
    let length = u8::try_from(hello.len()).expect("a short hello");
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn k03_versions_and_protocols_at_the_edge_are_answered() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let ca = proxy.pki().ca();
    for (version, expected) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        // Without a protocol HTTP/1.1 is spoken, as old clients expect.
        let config = trusting_by(&ca, &[], &[version]);
        let stream = handshake(proxy.https(), DOMAIN, &config)
            .await
            .expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        let suite = stream
            .get_ref()
            .1
            .negotiated_cipher_suite()
            .expect("a suite");
        let suite = format!("{:?}", suite.suite());
        assert!(
            suite.contains("GCM") || suite.contains("CHACHA20"),
            "{suite}"
        );
        let mut connection = Connection::over(stream);
        connection.request("GET", "/v2/", &[]).await.expect("sent");
        assert_eq!(
            connection.answer("GET").await.expect("an answer").status,
            200
        );

        let config = trusting_by(&ca, &[b"imap"], &[version]);
        let refused = handshake(proxy.https(), DOMAIN, &config)
            .await
            .expect_err("no such protocol");
        let alert = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert!(
            refused.to_string().contains(&alert.to_string()),
            "{refused}"
        );
    }
    let mut old = TcpStream::connect(proxy.https()).await.expect("a listener");
    old.write_all(&old_hello()).await.expect("sent");
    let mut answer = Vec::new();
    within("the refusal", old.read_to_end(&mut answer))
        .await
        .expect("read");
    // One record: a fatal alert (RFC 5246, 7.2), and the end.
    assert_eq!(
        (answer.len(), answer[0], answer[5]),
        (7, 21, 2),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_also_past_a_renewal_and_cost_no_memory_per_client() {
    let simulator = simulator().await;
    let (proxy, folder, _) = proxy_of(&simulator);
    let ca = proxy.pki().ca();
    let visit = async |config: &Arc<ClientConfig>| {
        let stream = handshake(proxy.https(), DOMAIN, config)
            .await
            .expect("a handshake");
        let kind = stream.get_ref().1.handshake_kind();
        // TLS 1.3 sends its tickets after the handshake.
        let mut connection = Connection::over(stream);
        connection.request("GET", "/v2/", &[]).await.expect("sent");
        assert_eq!(
            connection.answer("GET").await.expect("an answer").status,
            200
        );
        kind
    };
    let clients = [&TLS12, &TLS13].map(|version| trusting_by(&ca, &[b"http/1.1"], &[version]));
    for config in &clients {
        assert_eq!(visit(config).await, Some(HandshakeKind::Full));
        assert_eq!(visit(config).await, Some(HandshakeKind::Resumed));
    }
    let renewed = proxy.pki().issue(NAMES, None);
    folder.arrive(&renewed, Arrival::Renamed, 1);
    in_use(&proxy, &renewed).await;
    for config in &clients {
        assert_eq!(visit(config).await, Some(HandshakeKind::Resumed));
    }

    // Two thousand clients, each with a session of its own that could be resumed.
    let before = proxy.memory();
    for _ in 0..20 {
        let each =
            (0..100).map(|_| async { visit(&trusting_by(&ca, &[b"http/1.1"], &[&TLS13])).await });
        let kinds = futures_util::future::join_all(each).await;
        assert!(kinds.iter().all(|kind| *kind == Some(HandshakeKind::Full)));
    }
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "2000 sessions cost {grown} bytes");
    println!("2000 sessions left {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leaf_of_the_local_ca_is_renewed_as_it_runs() {
    let simulator = simulator().await;
    let clock = Clock::right();
    clock.set(SystemTime::now() - 345 * DAY);
    let builder = Proxy::builder().simulator(&simulator).local_ca();
    let proxy = clock.govern(builder).start();
    let config = trusting(&proxy.state_dir().join("tls/ca.pem"), &[b"http/1.1"]);
    let leaf = async || {
        let stream = handshake(proxy.https(), DOMAIN, &config).await;
        leaf_of(&stream.expect("clients trust it all the while"))
    };
    let expiry = async || metric(&proxy, "ecr_proxy_certificate_expiry_seconds", &[]).await;
    let (first, ends) = (leaf().await, expiry().await);
    clock.correct();
    until("the leaf is renewed", async || leaf().await != first).await;
    until("its end is shown", async || expiry().await > ends).await;
    let renewed = |event: &Event| event.message() == "the certificate was renewed";
    proxy.log_until("the renewal", renewed).await;
    assert!(!readyz(&proxy).await.contains("certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_told_and_its_renewal_ends_the_complaint() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .certificate_until(SystemTime::now() + 5 * DAY)
        .start();
    let page = readyz(&proxy).await;
    assert!(
        page.contains("\"certificate\"") && page.contains("ends in"),
        "{page}"
    );
    let renewed = proxy.pki().issue(NAMES, Some(SystemTime::now() + 90 * DAY));
    replace(&proxy.pki().key(), &renewed.key);
    replace(&proxy.pki().certificate(), &renewed.certificate);
    proxy.signal(Signal::HUP);
    in_use(&proxy, &renewed).await;
    assert!(!readyz(&proxy).await.contains("\"certificate\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_have_to_be_asked_for_another_hello_are_served() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    // More than there are turns for them at once.
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let client = std::process::Command::new(program("openssl"))
                .args(["s_client", "-msg", "-verify_return_error"])
                // It sends a key of the first alone, which nobody here takes.
                .args(["-groups", "P-521:X25519", "-servername", DOMAIN])
                .arg("-connect")
                .arg(proxy.https().to_string())
                .arg("-CAfile")
                .arg(proxy.pki().ca())
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn();
            client.expect("openssl runs")
        })
        .collect();
    for client in clients {
        let said = client.wait_with_output().expect("an end").stdout;
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("Verification: OK"), "{said}");
        assert_eq!(said.matches("ServerHello").count(), 2, "{said}");
    }
}
