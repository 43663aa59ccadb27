//! The figures, one function each.

use std::time::{Duration, Instant};

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, Listener, Pattern};
use futures_util::future::join_all;
use http::{StatusCode, header};

use super::load::{Connection, Protocol, Taken, Target};
use super::process::{Process, foreign_cpu_seconds, have_memory_ready};
use super::skim::Skimmer;
use super::stage::{Server, Stage, WARM_BYTES};
use super::table::{Row, median};

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;

/// Connections that take warm blobs at once, and how many each takes in a round.
const BLOB_CONNECTIONS: usize = 4;
const BLOBS_EACH: usize = 2;
/// The same for manifests.
const MANIFEST_CONNECTIONS: usize = 8;
const MANIFESTS_EACH: usize = 10_000;
/// The cold blob, in bytes, and how many clients ask for it at once.
const COLD_BYTES: u64 = 200 << 20;
const STAMPEDE: usize = 32;
/// The slow line: a blob, its rate, and the delay of each request.
const SLOW_BYTES: u64 = 24 << 20;
const SLOW_RATE: u64 = 12 << 20;
const SLOW_DELAY: Duration = Duration::from_millis(40);
/// Connections that do nothing.
const IDLE: usize = 1000;

/// What others may use of the machine during a measurement of processor time, in cores; and how often a
/// disturbed one is repeated. Two processes that share a core or a cache cost each other more than
/// what is compared here.
const DISTURBANCE: f64 = 0.06;
const ATTEMPTS: usize = 12;

pub struct Figures {
    pub stage: Stage,
    pub rounds: usize,
}

/// What came of a stampede.
#[derive(Default)]
struct Stampede {
    last: f64,
    spread: f64,
    upstream: f64,
    anonymous: f64,
}

impl Figures {
    /// Measures what is wanted, or everything where nothing is named.
    pub async fn measure(&self, wanted: &[String]) -> Vec<Row> {
        let mut rows = Vec::new();
        let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        if wants("rest") {
            rows.push(self.at_rest().await);
        }
        if wants("h1") {
            rows.push(self.warm_blob("warm blob, TLS h1", Server::tls, 0.42).await);
        }
        if wants("h2") {
            rows.push(
                self.warm_blob("warm blob, TLS h2, 16 KiB frames", Server::h2, 0.48)
                    .await,
            );
        }
        if wants("plain") {
            rows.push(
                self.warm_blob("warm blob, plain HTTP", Server::plain, 1.1)
                    .await,
            );
        }
        if wants("manifest") {
            rows.extend(self.manifest().await);
        }
        if wants("stampede") {
            rows.extend(self.stampede().await);
        }
        if wants("cold") {
            rows.extend(self.cold().await);
        }
        if wants("slow") {
            rows.extend(self.slow().await);
        }
        if wants("ranges") {
            rows.extend(self.ranges().await);
        }
        if wants("streams") {
            rows.push(self.streams().await);
        }
        if wants("idle") {
            rows.push(self.idle().await);
        }
        rows
    }

    async fn at_rest(&self) -> Row {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let resident = |server: &Server| server.process.memory().resident as f64 / MIB;
        Row::limit("memory at rest", resident(&self.stage.proxy), "MiB", 16.0)
            .beside("nginx", resident(&self.stage.nginx), "MiB")
            .beside("docker-registry", resident(&self.stage.registry), "MiB")
    }

    /// Processor seconds of the server for each GiB of a blob that it has.
    async fn warm_blob(&self, work: &str, target: fn(&Server) -> Target, goal: f64) -> Row {
        let stage = &self.stage;
        let path = stage.warm.layer();
        self.fetch_warm_manifest().await;
        // docker-registry has neither a plain listener here nor better h2 than Go's.
        let is_h1 = matches!(target(&stage.proxy).protocol, Protocol::Tls(_));
        let mut servers = vec![&stage.nginx, &stage.proxy];
        servers.extend(is_h1.then_some(&stage.registry));
        let mut costs = vec![Vec::new(); servers.len()];
        for round in 0..=self.rounds {
            for (server, costs) in servers.iter().zip(&mut costs) {
                let target = target(server);
                if round == 0 {
                    target.connect().await.get(&path).await;
                    continue;
                }
                let gib = (BLOB_CONNECTIONS * BLOBS_EACH) as f64 * WARM_BYTES as f64 / GIB;
                let take = async || take_blobs(&target, &path).await;
                let cost = undisturbed(&server.process, take).await / gib;
                eprintln!("{work}: {} {cost:.3} s/GiB", server.name);
                costs.push(cost);
            }
        }
        let mut costs = costs.into_iter().map(median);
        let (nginx, ours) = (costs.next().unwrap_or(0.0), costs.next().unwrap_or(0.0));
        let row = Row::ratio(work, ours, ("nginx", nginx), "s/GiB", goal);
        match costs.next() {
            Some(registry) => row.beside("docker-registry", registry, "s/GiB"),
            None => row,
        }
    }

    /// Clients ask for the manifest first: with it the repository's right to its blobs is on record.
    async fn fetch_warm_manifest(&self) {
        let mut connection = self.stage.proxy.tls().connect().await;
        connection.get("/v2/app/manifests/v1").await;
    }

    /// Microseconds of processor time for each manifest by tag, nobody being asked upstream.
    async fn manifest(&self) -> Vec<Row> {
        let stage = &self.stage;
        let path = "/v2/app/manifests/v1";
        self.fetch_warm_manifest().await;
        stage.simulator.journal().clear();
        let servers = [&stage.nginx, &stage.proxy, &stage.floor];
        let mut costs = [const { Vec::new() }; 3];
        for round in 0..=self.rounds {
            for (server, costs) in servers.iter().zip(&mut costs) {
                let mut connections = Vec::new();
                for _ in 0..MANIFEST_CONNECTIONS {
                    let mut connection = server.tls().connect().await;
                    connection.get(path).await;
                    connections.push(connection);
                }
                let seconds = undisturbed(&server.process, async || {
                    join_all(connections.iter_mut().map(async |connection| {
                        for _ in 0..MANIFESTS_EACH {
                            connection.get(path).await;
                        }
                    }))
                    .await;
                    // Both write their log in the meantime; ours has a thread for it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                });
                let requests = (MANIFEST_CONNECTIONS * MANIFESTS_EACH) as f64;
                let cost = seconds.await / requests * 1e6;
                eprintln!("manifest: {} {cost:.1} us", server.name);
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        let asked = stage.simulator.journal().count(|_| true) as f64;
        let [nginx, ours, floor] = costs.map(median);
        vec![
            Row::ratio("warm manifest", ours, ("nginx", nginx), "us", 0.7).beside(
                stage.floor.name,
                floor,
                "us",
            ),
            Row::limit("warm manifests: upstream calls", asked, "", 0.0),
        ]
    }

    /// One cold blob and many clients at once.
    async fn stampede(&self) -> Vec<Row> {
        let stage = &self.stage;
        let mut ours = Vec::new();
        let mut nginx = Vec::new();
        let rounds = self.rounds.min(3);
        for round in 0..rounds {
            let image = stage.cold_image(1000 + round as u64, COLD_BYTES);
            let signed = stage.signed_path(&image).await;
            nginx.push(
                self.rush(
                    &stage.nginx_cache,
                    &stage.nginx.process,
                    &signed,
                    &image.digest,
                )
                .await,
            );

            let image = stage.cold_image(2000 + round as u64, COLD_BYTES);
            stage
                .proxy
                .tls()
                .connect()
                .await
                .get(&image.manifest())
                .await;
            let target = stage.proxy.tls();
            ours.push(
                self.rush(&target, &stage.proxy.process, &image.layer(), &image.digest)
                    .await,
            );
        }
        let image = stage.cold_image(3000, COLD_BYTES);
        stage.publish(&image);
        let before = stage.registry_upstream_bytes();
        let target = stage.registry.tls();
        let mut registry = self
            .rush(
                &target,
                &stage.registry.process,
                &image.layer(),
                &image.digest,
            )
            .await;
        registry.upstream = (stage.registry_upstream_bytes() - before) as f64 / COLD_BYTES as f64;

        let of = |runs: &[Stampede], figure: fn(&Stampede) -> f64| {
            median(runs.iter().map(figure).collect())
        };
        vec![
            Row::limit(
                "32 clients, one cold blob: upstream bytes",
                of(&ours, |s| s.upstream),
                "x",
                1.01,
            )
            .beside("nginx", of(&nginx, |s| s.upstream), "x")
            .beside("docker-registry", registry.upstream, "x"),
            Row::limit(
                "32 clients, one cold blob: first bytes apart",
                of(&ours, |s| s.spread) * 1e3,
                "ms",
                20.0,
            )
            .beside("nginx", of(&nginx, |s| s.spread) * 1e3, "ms")
            .beside("docker-registry", registry.spread * 1e3, "ms"),
            Row::ratio(
                "32 clients, one cold blob: last client",
                of(&ours, |s| s.last),
                ("nginx", of(&nginx, |s| s.last)),
                "s",
                0.45,
            )
            .beside("docker-registry", registry.last, "s"),
            Row::limit(
                "32 clients, one cold blob: anonymous memory",
                of(&ours, |s| s.anonymous) / MIB,
                "MiB",
                64.0,
            )
            .beside("nginx", of(&nginx, |s| s.anonymous) / MIB, "MiB")
            .beside("docker-registry", registry.anonymous / MIB, "MiB"),
        ]
    }

    async fn rush(&self, target: &Target, process: &Process, path: &str, digest: &str) -> Stampede {
        let connections = join_all((0..STAMPEDE).map(|_| Skimmer::connect(target))).await;
        have_memory_ready();
        self.stage.simulator.journal().clear();
        let began = Instant::now();
        let taking = join_all(
            connections
                .into_iter()
                .map(|connection| connection.get(path)),
        );
        let (taken, anonymous) = watched(process, taking).await;
        let whole = taken.iter().all(|taken| taken.bytes == COLD_BYTES);
        assert!(whole, "a client was cut short");
        let first = taken.iter().map(|taken| taken.first_byte);
        let (earliest, latest) = (first.clone().min(), first.max());
        let spread = latest
            .zip(earliest)
            .map(|(latest, earliest)| latest - earliest);
        let last = taken.iter().map(|taken| taken.end).max();
        let journal = self.stage.simulator.journal();
        let upstream = journal.body_bytes(|entry| {
            entry.listener == Listener::Storage && entry.digest.as_deref() == Some(digest)
        });
        Stampede {
            last: last.map_or(0.0, |last| (last - began).as_secs_f64()),
            spread: spread.map_or(0.0, |spread| spread.as_secs_f64()),
            upstream: upstream as f64 / COLD_BYTES as f64,
            anonymous,
        }
    }

    /// One client and a cold blob: time, and processor time though we hash.
    async fn cold(&self) -> Vec<Row> {
        let stage = &self.stage;
        let [mut times, mut costs] = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for round in 0..self.rounds as u64 {
            for (at, seed) in [(0, 4000 + round), (1, 5000 + round)] {
                let image = stage.cold_image(seed, COLD_BYTES);
                let (target, process, path) = if at == 0 {
                    let path = stage.signed_path(&image).await;
                    (stage.nginx_cache.clone(), &stage.nginx.process, path)
                } else {
                    stage
                        .proxy
                        .tls()
                        .connect()
                        .await
                        .get(&image.manifest())
                        .await;
                    (stage.proxy.tls(), &stage.proxy.process, image.layer())
                };
                let mut connection = target.connect().await;
                have_memory_ready();
                let before = process.cpu_seconds();
                let began = Instant::now();
                let taken = connection.get(&path).await;
                assert_eq!(taken.bytes, COLD_BYTES);
                let time = (taken.end - began).as_secs_f64();
                // What is still to be written and synced counts too.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let cost = (process.cpu_seconds() - before) / (COLD_BYTES as f64 / GIB);
                eprintln!(
                    "cold: {} {time:.3} s, {cost:.3} s/GiB",
                    ["nginx", "ecr-proxy"][at]
                );
                times[at].push(time);
                costs[at].push(cost);
            }
        }
        let [nginx_time, time] = times.map(median);
        let [nginx_cost, cost] = costs.map(median);
        vec![
            Row::ratio(
                "one client, cold blob, verified: time",
                time,
                ("nginx", nginx_time),
                "s",
                1.0,
            ),
            Row::ratio(
                "one client, cold blob, verified: CPU",
                cost,
                ("nginx", nginx_cost),
                "s/GiB",
                1.1,
            ),
        ]
    }

    /// A line slower than everything else: we may cost nothing.
    async fn slow(&self) -> Vec<Row> {
        let stage = &self.stage;
        let mut rules = Vec::new();
        for listener in [Listener::Registry, Listener::Storage] {
            let faults = stage.simulator.faults().on(listener, "*", Pattern::any());
            rules.push(faults.all([Fault::Delay(SLOW_DELAY), Fault::Rate(SLOW_RATE)]));
        }
        let token = stage.simulator.token(FULL_ACCESS_KEY).expect("a principal");
        let authorization = format!("Basic {}", token.authorization_token);
        let [mut totals, mut firsts] = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for round in 0..self.rounds.min(3) as u64 {
            let image = stage.cold_image(6000 + round, SLOW_BYTES);
            let path = image.layer();
            let began = Instant::now();
            let taken = self.direct(&path, &authorization).await;
            totals[0].push((taken.end - began).as_secs_f64());
            firsts[0].push((taken.first_byte - began).as_secs_f64());

            let mut connection = stage.proxy.tls().connect().await;
            connection.get(&image.manifest()).await;
            let began = Instant::now();
            let taken = connection.get(&path).await;
            totals[1].push((taken.end - began).as_secs_f64());
            firsts[1].push((taken.first_byte - began).as_secs_f64());
        }
        for rule in rules {
            rule.remove();
        }
        let [direct, ours] = totals.map(median);
        let [direct_first, first] = firsts.map(median);
        let mut first_byte = Row::limit(
            "slow upstream: first byte after the direct one's",
            (first - direct_first) * 1e3,
            "ms",
            30.0,
        );
        first_byte.ours = format!("{:.0} ms", first * 1e3);
        first_byte = first_byte.beside("direct", direct_first * 1e3, "ms");
        vec![
            Row::ratio("slow upstream: total", ours, ("direct", direct), "s", 1.02),
            first_byte,
        ]
    }

    /// As a client without a proxy does it: the registry, its redirect, the storage.
    pub(super) async fn direct(&self, path: &str, authorization: &str) -> Taken {
        let simulator = &self.stage.simulator;
        let target = |listener, host: String| Target {
            address: simulator.address(listener),
            host,
            protocol: Protocol::Plain,
        };
        let registry = target(Listener::Registry, simulator.registry_host());
        let mut connection = registry.connect().await;
        let redirect = connection.try_get(path, Some(authorization)).await;
        let location = redirect.headers[header::LOCATION].to_str().expect("text");
        let location: http::Uri = location.parse().expect("a URI");
        let host = location.authority().expect("an authority").to_string();
        let mut connection = target(Listener::Storage, host).connect().await;
        let path = location.path_and_query().expect("a path").as_str();
        // The URL is signed, and storage refuses who logs in besides.
        let taken = connection.try_get(path, None).await;
        assert_eq!(taken.status, StatusCode::OK, "{path}");
        taken
    }

    /// Many clients, each at its own pace, on a blob that is there.
    async fn streams(&self) -> Row {
        let stage = &self.stage;
        let path = stage.warm.layer();
        self.fetch_warm_manifest().await;
        let target = stage.proxy.tls();
        target.connect().await.get(&path).await;
        let connections = join_all((0..STAMPEDE).map(|_| target.connect())).await;
        let path = path.as_str();
        let taking = join_all(
            connections
                .into_iter()
                .map(|mut connection| async move { connection.get(path).await }),
        );
        let (_, anonymous) = watched(&stage.proxy.process, taking).await;
        Row::limit(
            "32 streams of a warm blob: anonymous memory",
            anonymous / MIB,
            "MiB",
            64.0,
        )
    }

    /// What a connection costs that does nothing.
    async fn idle(&self) -> Row {
        let mut kib = Vec::new();
        for server in [&self.stage.proxy, &self.stage.nginx] {
            let target = server.tls();
            // What the first connections allocate is not theirs alone.
            let warm: Vec<Connection> = join_all((0..8).map(|_| target.connect())).await;
            let before = server.process.memory().anonymous;
            let mut connections = Vec::new();
            for _ in 0..IDLE {
                let mut connection = target.connect().await;
                connection.get("/v2/app/manifests/v1").await;
                connections.push(connection);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let after = server.process.memory().anonymous;
            kib.push((after.saturating_sub(before)) as f64 / IDLE as f64 / 1024.0);
            drop((connections, warm));
        }
        Row::limit("idle TLS connection: anonymous memory", kib[0], "KiB", 40.0)
            .beside("nginx", kib[1], "KiB")
    }
}

/// Takes the blob over several connections at once.
async fn take_blobs(target: &Target, path: &str) {
    join_all((0..BLOB_CONNECTIONS).map(async |_| {
        let mut connection = target.connect().await;
        for _ in 0..BLOBS_EACH {
            let taken = connection.get(path).await;
            assert_eq!(taken.bytes, WARM_BYTES);
        }
    }))
    .await;
}

/// The processor seconds that `server` takes for `work`, in an attempt that nobody else disturbed or
/// else the least disturbed one.
async fn undisturbed(server: &Process, mut work: impl AsyncFnMut()) -> f64 {
    let mut best = (f64::INFINITY, 0.0);
    for _ in 0..ATTEMPTS {
        let before = (server.cpu_seconds(), foreign_cpu_seconds(server));
        let began = Instant::now();
        work().await;
        let cost = server.cpu_seconds() - before.0;
        let foreign = foreign_cpu_seconds(server) - before.1;
        let disturbance = foreign / began.elapsed().as_secs_f64();
        if disturbance < best.0 {
            best = (disturbance, cost);
        }
        if disturbance < DISTURBANCE {
            return best.1;
        }
    }
    eprintln!("disturbed: others used {:.2} cores", best.0);
    best.1
}

/// Runs `work` and tells the most anonymous memory that `process` held meanwhile, in bytes.
async fn watched<T>(process: &Process, work: impl Future<Output = T>) -> (T, f64) {
    let mut most = 0;
    let mut work = std::pin::pin!(work);
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            done = &mut work => return (done, most as f64),
            _ = look.tick() => most = most.max(process.memory().anonymous),
        }
    }
}
