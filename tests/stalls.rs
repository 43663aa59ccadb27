//! An upstream that stops sending is found by a limit of our own, and everybody who waits is told or
//! carried on. The parts are put together here with limits short enough to wait for; the defaults
//! are half a minute and more.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::BytesMut;
use ecr_proxy::access::{
    Access, AccessOptions, Action, Content as Reads, Login, Right, Rule, Rules, Shown, Subject,
    Wanted,
};
use ecr_proxy::buffers::BufferPool;
use ecr_proxy::cache::{CacheMetrics, Limit, Store, StoreOptions};
use ecr_proxy::clock::Clock;
use ecr_proxy::fill::{
    Content, FillError, FillOptions, Fills, Found, Parts, Pass, Reader, Step, Want,
};
use ecr_proxy::oci::{Digest, RepoKey};
use ecr_proxy::simulator::{
    BlobSource, FULL_ACCESS_KEY, Fault, Gate, Listener, Pattern, Simulator,
};
use ecr_proxy::telemetry::{FillMetrics, Outcome};
use ecr_proxy::upstream::{
    Auth, AwsOptions, Limits, Registry, Secret, StaticKeys, Upstream, UpstreamError,
    UpstreamMetrics, UpstreamOptions,
};
use futures_util::future::join_all;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use support::{Stopwatch, within};
use tempfile::TempDir;

const SIZE: u64 = 2 * 1024 * 1024;
const STALL_AT: u64 = SIZE / 2;

/// How long an upstream may be silent, and how long a transfer may get nowhere.
const PROGRESS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_millis(1500);

/// Fills in front of a simulator, without sockets of their own.
struct Rig {
    simulator: Simulator,
    fills: Fills,
    right: Right,
    repo: RepoKey,
    store: Store,
    _dir: TempDir,
}

async fn rig() -> Rig {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let registry = Registry::parse(&simulator.registry_host()).expect("an ECR host");
    let auth = Auth::Aws(AwsOptions {
        keys: Some(StaticKeys {
            access_key_id: FULL_ACCESS_KEY.to_owned(),
            secret_access_key: Secret::new("secret-of-the-simulator"),
        }),
        api_endpoint: Some(simulator.api_endpoint()),
        ..AwsOptions::default()
    });
    let upstream = UpstreamOptions {
        endpoint: Some(simulator.endpoint().parse().expect("an address")),
        limits: Limits {
            first_byte: PROGRESS,
            progress: PROGRESS,
            ..Limits::default()
        },
        ..UpstreamOptions::new("test", registry, auth)
    };
    let upstream = Upstream::new(upstream, &UpstreamMetrics::default()).expect("an upstream");
    let dir = TempDir::new().expect("a temporary directory");
    let options = StoreOptions {
        max_size: Limit::Bytes(1 << 30),
        min_free: Limit::Bytes(0),
        ..StoreOptions::new(dir.path().join("cache"))
    };
    let store = Store::open(options, CacheMetrics::default()).expect("a store");
    let fills = Fills::new(
        store.clone(),
        upstream.into(),
        BufferPool::new(256 * 1024, 16),
        Clock::system(),
        FillOptions {
            patience: PATIENCE,
            ..FillOptions::default()
        },
        FillMetrics::default(),
    );
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let access = Access::new(AccessOptions {
        rules: Rules::new(vec![Rule::everywhere(
            "all",
            vec![Subject::Anonymous],
            vec![Action::Pull],
        )]),
        ..AccessOptions::default()
    });
    let access = access.expect("a thread for passwords");
    let (headers, login) = (HeaderMap::new(), Login::default());
    let caller = access.identify(Shown {
        authorization: headers.get_all(AUTHORIZATION),
        certificate: None,
        login: &login,
        address: loopback,
        domain: None,
    });
    let repository = "app".parse().expect("a name");
    let caller = caller.await.expect("anybody");
    let wanted = Wanted {
        repository: &repository,
        upstream: "test",
        repo: None,
        action: Action::Pull,
        content: Reads::Uncached,
    };
    let right = access.decide(&caller, &wanted).await;
    Rig {
        simulator,
        fills,
        right: right.expect("anybody may pull"),
        repo: RepoKey {
            upstream: "test".into(),
            repository,
        },
        store,
        _dir: dir,
    }
}

impl Rig {
    fn put(&self, seed: u64) -> Digest {
        let source = BlobSource::generated(seed, SIZE);
        let digest = self.simulator.put_blob("app", source);
        digest.parse().expect("a digest")
    }

    fn stall(&self, digest: Digest, times: u64, fault: Fault) {
        let pattern = Pattern::digest(digest.to_string());
        let faults = self.simulator.faults();
        faults
            .on(Listener::Storage, "GET", pattern)
            .times(times)
            .then(fault);
    }

    async fn pass(&self, digest: Digest) -> Pass {
        let proof = self.fills.prove(&self.right, &self.repo, digest);
        proof.await.expect("the repository holds it")
    }

    async fn open(&self, digest: Digest) -> Result<Found<Content>, FillError> {
        let pass = self.pass(digest).await;
        self.fills.open(&pass, &Want::default()).await
    }
}

fn reader(found: Found<Content>) -> Reader {
    match found.what.parts {
        Parts::Whole(Some(reader)) => reader,
        _ => panic!("the whole of a blob that is not empty"),
    }
}

/// Reads to the end: what came, and why no more.
async fn read(mut reader: Reader) -> (BytesMut, Result<(), FillError>) {
    let mut bytes = BytesMut::new();
    loop {
        match reader.step() {
            Step::Data(piece) => bytes.extend_from_slice(&piece),
            Step::Wait => reader.advance().await,
            Step::End => return (bytes, Ok(())),
            Step::Failed(error) => return (bytes, Err(error)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u07_o05_a_stall_for_good_is_told_to_every_reader_within_the_limits() {
    let rig = rig().await;
    let (stalled, other) = (rig.put(1), rig.put(2));
    rig.stall(stalled, 1, Fault::StallAfter(STALL_AT));
    rig.stall(stalled, u64::MAX, Fault::StallAfter(0));
    let mut readers = Vec::new();
    for _ in 0..5 {
        readers.push(reader(rig.open(stalled).await.expect("a head")));
    }
    let began = Stopwatch::start();
    let told = join_all(readers.into_iter().map(read));
    // Another blob is none the worse.
    let fine = async { read(reader(rig.open(other).await.expect("a head"))).await };
    let (told, fine) = within("every reader's end", async { tokio::join!(told, fine) }).await;
    assert_eq!((Digest::of(&fine.0), fine.1), (other, Ok(())));
    let right = BlobSource::generated(1, SIZE).read(0..SIZE);
    for (bytes, outcome) in told {
        let error = outcome.expect_err("it never came");
        assert!(
            matches!(error, FillError::Upstream(UpstreamError::TooSlow(_))),
            "{error}"
        );
        assert!(bytes == right[..bytes.len()], "wrong bytes");
        assert!(bytes.len() as u64 <= STALL_AT);
    }
    assert!(
        began.took() < (PROGRESS + PATIENCE) * 4,
        "{:?}",
        began.took()
    );
    assert!(
        rig.store
            .blob(&stalled)
            .expect("a readable store")
            .is_none()
    );

    // Its place is free, and nothing of the failure is remembered.
    rig.simulator.faults().clear();
    let again = rig.open(stalled).await.expect("a head");
    assert_eq!(again.how.outcome(), Outcome::Miss);
    let (bytes, outcome) = read(reader(again)).await;
    assert_eq!((Digest::of(&bytes), outcome), (stalled, Ok(())));
}

#[tokio::test(flavor = "multi_thread")]
async fn u07_one_stalled_connection_is_left_for_another() {
    let rig = rig().await;
    let blob = rig.put(3);
    rig.stall(blob, 1, Fault::StallAfter(STALL_AT));
    let readers = [rig.open(blob).await, rig.open(blob).await];
    let read = join_all(readers.map(|content| read(reader(content.expect("a head")))));
    for (bytes, outcome) in within("both readers' end", read).await {
        assert_eq!((Digest::of(&bytes), outcome), (blob, Ok(())));
    }
    let ranges = rig.simulator.journal().count(|entry| {
        entry.listener == Listener::Storage
            && entry.header("range") == Some(&*format!("bytes={STALL_AT}-"))
    });
    assert_eq!(ranges, 1, "{}", rig.simulator.journal());
}

#[tokio::test(flavor = "multi_thread")]
async fn u07_an_upstream_that_trickles_is_as_good_as_stalled() {
    let rig = rig().await;
    let blob = rig.put(4);
    rig.stall(blob, u64::MAX, Fault::Rate(64));
    let began = Stopwatch::start();
    let content = rig.open(blob).await.expect("a head");
    let (_, outcome) = within("the reader's end", read(reader(content))).await;
    let error = outcome.expect_err("it would take hours");
    assert!(
        matches!(error, FillError::Upstream(UpstreamError::TooSlow(_))),
        "{error}"
    );
    assert!(
        began.took() < (PROGRESS + PATIENCE) * 4,
        "{:?}",
        began.took()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn u07_an_upstream_that_gives_no_head_is_an_answer_of_its_own() {
    let rig = rig().await;
    let blob = rig.put(5);
    rig.stall(blob, u64::MAX, Fault::Hold(Gate::new()));
    let began = Stopwatch::start();
    let opened = join_all((0..3).map(|_| rig.open(blob)));
    for opened in within("every opener's answer", opened).await {
        let error = opened.err().expect("no head, no content");
        assert!(
            matches!(error, FillError::Upstream(UpstreamError::TooSlow(_))),
            "{error}"
        );
    }
    assert!(began.took() < PROGRESS * 6, "{:?}", began.took());
}
