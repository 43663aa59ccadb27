//! A line that comes and goes, and everything behind it with it: one blob, whole and right, for little
//! more than its own bytes (O04, U08, U10, U11; promises 3 and 5).
//!
//! `ECR_PROXY_TEST_FLAPPING_MIB` sets the size of the blob, 256 where it is not set. What a GiB costs is
//! printed by `ECR_PROXY_TEST_FLAPPING_MIB=1024 cargo test --test flapping o04 -- --nocapture`.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, End, Entry, Fault, Gate, Listener, Outage, Pattern, Simulator,
};
use sha2::{Digest as _, Sha256};
use support::blobs::{MIB, assert_whole, blob_file, idle, metric, until};
use support::client::Connection;
use support::image::REPOSITORY;
use support::{Proxy, in_place_of};

/// How long the blob would take undisturbed: long enough that each mishap comes in its midst, whatever
/// else the machine does.
const UNDISTURBED: Duration = Duration::from_secs(12);

/// What befalls the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mishap {
    /// The connections break, and the line is back at once.
    Dropped,
    /// Nothing listens for a while.
    Refused,
    /// Storage takes the next connection and never answers on it.
    BlackHole,
    /// The address that the registry hands out is refused as expired.
    AddressExpired,
    /// The token is refused as expired.
    TokenExpired,
    /// Storage answers 503 some times.
    StorageFails,
    /// The registry answers 500 some times.
    RegistryFails,
    /// The registry wants to be left alone.
    Throttled,
    /// Everything upstream ends and comes back on the same ports, with no memory of what it handed out.
    UpstreamRestarts,
    /// The proxy is killed, and started again.
    ProxyKilled,
    /// The proxy is told to end, does not wait for the download, and is started again.
    ProxyStopped,
}

const COURSE: [Mishap; 14] = [
    Mishap::Dropped,
    Mishap::AddressExpired,
    Mishap::Refused,
    Mishap::ProxyKilled,
    Mishap::StorageFails,
    Mishap::TokenExpired,
    Mishap::UpstreamRestarts,
    Mishap::Dropped,
    Mishap::ProxyKilled,
    Mishap::Throttled,
    Mishap::ProxyStopped,
    Mishap::RegistryFails,
    Mishap::UpstreamRestarts,
    // The last: while one connection is in the hole, others may bring all that lies ahead.
    Mishap::BlackHole,
];

/// The upstream with its past, and the proxy.
struct Line {
    upstream: Simulator,
    /// Upstreams that have ended; their journals stay.
    earlier: Vec<Simulator>,
    source: BlobSource,
    digest: String,
    proxy: Proxy,
    happened: BTreeMap<Mishap, u32>,
    /// What storage sends, in bytes a second.
    rate: u64,
    /// Opened by the last mishap. Until then the last upstream keeps the end of the blob to itself: where
    /// several connections bring it, or the client is late, it may be whole before that mishap comes.
    end: Gate,
}

impl Line {
    /// `undisturbed` is how long the blob would take.
    async fn new(len: u64, undisturbed: Duration) -> Self {
        let source = BlobSource::generated(4, len);
        let upstream = Simulator::builder().start().await.expect("a simulator");
        let digest = upstream.put_blob(REPOSITORY, source.clone());
        let proxy = Proxy::builder()
            .simulator(&upstream)
            .set("server.drain_timeout", "100ms")
            .start();
        let line = Self {
            upstream,
            earlier: Vec::new(),
            source,
            digest,
            proxy,
            happened: BTreeMap::new(),
            rate: len / undisturbed.as_secs(),
            end: Gate::new(),
        };
        line.pace();
        line
    }

    fn pace(&self) {
        let faults = self.upstream.faults();
        faults.total_rate(Listener::Storage, Some(self.rate));
    }

    fn hold_end(&self) {
        let last = self.source.len() - 1;
        let has_end = move |entry: &Entry| {
            let range = entry.headers.get("range");
            let range = range.and_then(|range| range.to_str().ok());
            range.is_none_or(|range| range.ends_with('-') || range.ends_with(&format!("-{last}")))
        };
        let faults = self.upstream.faults();
        let rule = faults.on(Listener::Storage, "GET", Pattern::matching(has_end));
        rule.then(Fault::HoldBefore(MIB, self.end.clone()));
    }

    fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.digest)
    }

    /// Bytes of the blob that storage has sent in all.
    fn sent(&self) -> u64 {
        let all = self.earlier.iter().chain([&self.upstream]);
        all.map(|upstream| {
            upstream
                .journal()
                .body_bytes(|entry| entry.listener == Listener::Storage)
        })
        .sum()
    }

    /// How often storage's sending was cut short.
    fn cut(&self) -> usize {
        let is_cut = |entry: &Entry| entry.listener == Listener::Storage && entry.end == End::Early;
        self.upstream.journal().count(is_cut)
    }

    /// Returns when some of the blob is on its way: between two of its parts nothing may be.
    async fn under_way(&self) {
        until("something is under way", async || {
            let journal = self.upstream.journal();
            let comes = |entry: &Entry| {
                entry.listener == Listener::Storage
                    && entry.end == End::InFlight
                    && entry.body_bytes > 0
            };
            journal.count(comes) > 0
        })
        .await;
    }

    /// Breaks the connections to storage, one of which brings the blob.
    async fn drop_connections(&self) {
        let before = self.cut();
        until("what is under way breaks", async || {
            self.under_way().await;
            self.upstream
                .outage_of(Listener::Storage, Outage::Reset)
                .await;
            self.upstream
                .outage_of(Listener::Storage, Outage::None)
                .await;
            self.cut() > before
        })
        .await;
    }

    /// How often the proxy has said that it goes on.
    fn continued(&self) -> usize {
        let logs = self.proxy.logs();
        let said = logs.iter().map(support::Event::message);
        said.filter(|said| said.contains("continuing a broken transfer"))
            .count()
    }

    /// The next `times` answers about the blob go wrong, and the connections break.
    async fn go_wrong(&self, listener: Listener, times: u64, fault: Fault) {
        let of_it = Pattern::digest(&*self.digest);
        let rule = self.upstream.faults().on(listener, "GET", of_it);
        let rule = rule.times(times).then(fault);
        self.drop_connections().await;
        until("every answer has gone wrong", async || {
            rule.taken() == times
        })
        .await;
    }

    async fn befall(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::Dropped => self.drop_connections().await,
            Mishap::Refused => {
                let before = self.continued();
                self.upstream.outage(Outage::Refused).await;
                // It tries again, or has found out by something else that trying is of no use.
                until("the proxy finds nobody", async || {
                    let open = metric(&self.proxy, "ecr_proxy_upstream_breaker_open", &[]).await;
                    open > 0.0 || self.continued() >= before + 2
                })
                .await;
                self.upstream.outage(Outage::None).await;
            }
            Mishap::BlackHole => {
                let connections = || self.upstream.journal().connections(Listener::Storage);
                let before = connections();
                self.upstream
                    .outage_of(Listener::Storage, Outage::Silent)
                    .await;
                until("the proxy has fallen in", async || connections() > before).await;
                self.end.open();
                self.upstream
                    .outage_of(Listener::Storage, Outage::None)
                    .await;
            }
            Mishap::AddressExpired => {
                self.upstream.expire_urls();
                self.go_wrong(Listener::Storage, 1, Fault::Expired).await;
            }
            Mishap::TokenExpired => {
                let asked = |operation: &str| {
                    let journal = self.upstream.journal();
                    journal.count(|entry| entry.operation == operation)
                };
                let before = asked("GetAuthorizationToken");
                self.upstream.expire_tokens();
                self.drop_connections().await;
                until("another token is asked for", async || {
                    asked("GetAuthorizationToken") > before
                })
                .await;
            }
            Mishap::StorageFails => {
                let fault = Fault::status(503, "SlowDown");
                self.go_wrong(Listener::Storage, 4, fault).await;
            }
            Mishap::RegistryFails => {
                let fault = Fault::status(500, "InternalFailure");
                self.go_wrong(Listener::Registry, 4, fault).await;
            }
            Mishap::Throttled => {
                let fault = Fault::throttled(Some("1"));
                self.go_wrong(Listener::Registry, 2, fault).await;
            }
            Mishap::UpstreamRestarts => {
                self.under_way().await;
                self.upstream.shutdown().await;
                let upstream = in_place_of(&self.upstream, Simulator::builder).await;
                upstream.put_blob_as(REPOSITORY, &self.digest, self.source.clone());
                self.earlier
                    .push(std::mem::replace(&mut self.upstream, upstream));
                self.pace();
                self.hold_end();
            }
            Mishap::ProxyKilled => {
                assert!(!blob_file(&self.proxy, &self.digest).exists());
                self.proxy.kill9();
                self.proxy.restart();
            }
            Mishap::ProxyStopped => {
                assert!(!blob_file(&self.proxy, &self.digest).exists());
                self.proxy.terminate();
                self.proxy.wait();
                self.proxy.restart();
            }
        }
        *self.happened.entry(mishap).or_default() += 1;
    }
}

/// A client that goes on by Range where it was cut, as docker and containerd do.
struct Puller {
    connection: Option<Connection>,
    etag: String,
    len: u64,
    at: u64,
    hash: Sha256,
    cuts: u32,
}

impl Puller {
    async fn start(line: &Line) -> Self {
        let mut connection = line.proxy.client().start("GET", &line.path(), &[]).await;
        let head = connection.head().await.expect("a head");
        assert_eq!(head.status, 200);
        Self {
            connection: Some(connection),
            etag: head.header("etag").expect("an ETag").to_owned(),
            len: head.content_length().expect("a length"),
            at: 0,
            hash: Sha256::new(),
            cuts: 0,
        }
    }

    async fn go_on(&mut self, line: &Line) -> Connection {
        let range = format!("bytes={}-", self.at);
        let fields = [("Range", &*range), ("If-Range", &*self.etag)];
        let client = line.proxy.client();
        let mut connection = client.start("GET", &line.path(), &fields).await;
        let head = connection.head().await.expect("a head");
        assert_eq!(head.status, 206, "the same content, from there on");
        let wanted = format!("bytes {}-{}/{}", self.at, self.len - 1, self.len);
        assert_eq!(head.header("content-range"), Some(&*wanted));
        assert_eq!(head.header("etag"), Some(&*self.etag));
        connection
    }

    async fn read_to(&mut self, line: &Line, end: u64) {
        while self.at < end {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.go_on(line).await,
            };
            let piece = (end - self.at).min(MIB);
            match connection.read_exactly(piece).await {
                Ok(bytes) => {
                    self.hash.update(&bytes);
                    self.at += piece;
                    self.connection = Some(connection);
                }
                Err(_) => self.cuts += 1,
            }
        }
    }

    fn digest(self) -> String {
        let hash = self.hash.finalize();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o04_u08_one_blob_through_every_kind_of_break_costs_little_more_than_itself() {
    let mib = std::env::var("ECR_PROXY_TEST_FLAPPING_MIB").ok();
    let mib: u64 = mib.map_or(256, |mib| mib.parse().expect("a number of MiB"));
    let len = mib * MIB;
    let mut line = Line::new(len, UNDISTURBED).await;
    let mut client = Puller::start(&line).await;
    let part = len / (COURSE.len() as u64 + 1);
    for (count, mishap) in COURSE.into_iter().enumerate() {
        client.read_to(&line, (count as u64 + 1) * part).await;
        line.befall(mishap).await;
    }
    client.read_to(&line, len).await;
    let (cuts, received) = (client.cuts, client.digest());
    assert_eq!(received, line.digest);

    let happened = &line.happened;
    let ours = happened[&Mishap::ProxyKilled] + happened[&Mishap::ProxyStopped];
    assert_eq!(
        cuts, ours,
        "the client noticed what is none of its business"
    );
    let sent = line.sent();
    let share = sent as f64 / len as f64;
    println!(
        "{mib} MiB through {} breaks of {} kinds: {share:.3} of its bytes crossed the line; {happened:?}",
        COURSE.len(),
        happened.len(),
    );
    assert!(share <= 1.1, "{sent} of {len} bytes: {share:.3}");
    until("it is kept", async || {
        line.proxy.assert_blobs_are_sound() == [line.digest.clone()]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_client_goes_on_by_range_where_a_restart_cut_it_off() {
    let mut line = Line::new(24 * MIB, Duration::from_secs(4)).await;
    let mut client = Puller::start(&line).await;
    client.read_to(&line, 12 * MIB).await;
    // Another client's whole pull begins anew beside it.
    line.befall(Mishap::ProxyKilled).await;
    let whole = line.proxy.client();
    let path = line.path();
    let whole = tokio::spawn(async move { whole.get(&path).await });
    client.read_to(&line, 24 * MIB).await;
    let etag = client.etag.clone();
    assert_eq!((client.cuts, client.digest()), (1, line.digest.clone()));
    let whole = whole.await.expect("the other client");
    assert_whole(&whole, &line.digest);
    let sent = line.sent();
    assert!(sent <= 24 * MIB * 11 / 10, "{sent} bytes");

    // The same of what is kept; and who remembers something else gets it from its beginning.
    idle(&line.proxy).await;
    line.proxy.kill9();
    line.proxy.restart();
    let fields = |etag| [("Range", "bytes=5000000-5999999"), ("If-Range", etag)];
    let proxy = line.proxy.client();
    let part = proxy.get_with(&line.path(), &fields(&*etag)).await;
    assert_eq!((part.status, part.header("x-cache")), (206, Some("hit")));
    assert_eq!(part.header("etag"), Some(&*etag));
    assert!(part.body == line.source.read(5_000_000..6_000_000));
    let other = proxy.get_with(&line.path(), &fields("\"another\"")).await;
    assert_whole(&other, &line.digest);
    assert_eq!(line.sent(), sent, "fetched once more");
}
