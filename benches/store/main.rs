//! What a store costs by its size: at the start, while its index loads, at rest, and for each blob that is
//! served, evicted and hashed again.
//!
//! Stores of a thousand, ten thousand and a hundred thousand blobs are made; what a million would take
//! is a line through the last two. See `benches/README.md`.

#![deny(unsafe_code)]

#[path = "../../tests/support/large.rs"]
mod large;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ecr_proxy::cache::{CacheMetrics, Limit};
use ecr_proxy::oci::Digest;
use large::Small;
use tempfile::TempDir;

const SIZES: [u64; 3] = [1_000, 10_000, 100_000];

/// What a million is told from.
const MILLION: f64 = 1e6;

/// Hits that are timed at a time.
const HITS: usize = 500;

/// How often room is made, each time for an eighth of the store more.
const EVICTIONS: u64 = 5;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The figures of one store, in the order of [`ROWS`].
type Figures = [f64; ROWS.len()];

/// What is measured, its unit, and what it is to be at a hundred thousand blobs.
const ROWS: [(&str, &str, Option<f64>); 10] = [
    ("start to listening", "ms", Some(1000.0)),
    ("start to the first hit", "ms", Some(1000.0)),
    ("start to the index", "ms", None),
    ("resident memory", "MiB", Some(200.0)),
    ("hit", "us", None),
    ("without an index: start to listening", "ms", Some(1000.0)),
    ("without an index: until it is rebuilt", "ms", None),
    ("without an index: hit meanwhile", "us", None),
    ("evicting a blob", "us", None),
    ("hashing a blob of 4 KiB again, at full speed", "us", None),
];

fn main() {
    let mut table = Vec::new();
    for size in SIZES {
        table.push(measure(size));
    }
    print(&table);
}

fn measure(size: u64) -> Figures {
    let dir = TempDir::new().expect("a temporary folder");
    let cache = dir.path().join("cache");
    let blobs = large::make(&cache, size);

    let mut whole = Server::start(dir.path());
    let listening = whole.listening;
    whole.hit(&blobs[0]);
    let first_hit = whole.started.elapsed();
    whole.until_known(size);
    let index = whole.started.elapsed();
    let hit = whole.hits(&blobs, HITS);
    // The walk that follows, and what it frees.
    std::thread::sleep(Duration::from_secs(3));
    let memory = whole.resident();
    drop(whole);

    for name in ["index", "index.journal"] {
        fs::remove_file(cache.join(name)).expect("there is one");
    }
    let mut bare = Server::start(dir.path());
    let bare_listening = bare.listening;
    let bare_hit = bare.hits(&blobs, HITS);
    bare.until_known(size);
    let rebuilt = bare.started.elapsed();
    bare.end();

    let hashed = {
        let store = large::open(&cache, Limit::Percent(100.0), CacheMetrics::default());
        let began = Instant::now();
        store.scrub(None).for_each(drop);
        began.elapsed().as_secs_f64() / size as f64
    };
    let evicted = evict(&cache);
    [
        millis(listening),
        millis(first_hit),
        millis(index),
        memory as f64 / f64::from(1 << 20),
        hit * 1e6,
        millis(bare_listening),
        millis(rebuilt),
        bare_hit * 1e6,
        evicted * 1e6,
        hashed * 1e6,
    ]
}

/// Seconds for each blob that has to go for another.
fn evict(cache: &Path) -> f64 {
    let metrics = CacheMetrics::default();
    let used = {
        let store = large::open(cache, Limit::Percent(100.0), CacheMetrics::default());
        let usage = store.usage();
        usage.final_bytes + usage.record_bytes
    };
    // No more than the index, which is being written as well, under the mark at which room is made by
    // itself.
    let store = large::open(cache, Limit::Bytes(used + used / 40), metrics.clone());
    std::thread::sleep(Duration::from_secs(2));
    let mut costs = Vec::new();
    for eighths in 1..=EVICTIONS {
        let before = metrics.evictions.get();
        let began = Instant::now();
        let digest = Digest::of(&eighths.to_le_bytes());
        let partial = store.begin(digest, used / 8 * eighths, b"");
        let took = began.elapsed().as_secs_f64();
        drop(partial.expect("room"));
        let evicted = metrics.evictions.get() - before;
        assert!(evicted > 0, "there was room");
        costs.push(took / evicted as f64);
    }
    costs.sort_by(f64::total_cmp);
    costs[costs.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The proxy in front of nothing.
struct Server {
    child: Child,
    admin: SocketAddr,
    started: Instant,
    listening: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let (http, admin) = (free_port(), free_port());
        let file = dir.join("config.toml");
        let config = format!(
            r#"
[server]
listen = ["http://{http}"]
admin = "{admin}"
admin_socket = "off"
state_dir = "state"
[cache]
dir = "cache"
max_size = "100%"
min_free = "1MiB"
[access]
anonymous = "pull"
[[upstream]]
name = "{}"
registry = "registry.upstream.test"
endpoint = "http://127.0.0.1:9"
auth = "anonymous"
"#,
            large::UPSTREAM
        );
        fs::write(&file, config).expect("a writable folder");
        let log = fs::File::create(dir.join("log")).expect("a writable folder");
        let started = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"))
            .args(["serve", "--log-format", "json", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut server = Self {
            child: child.expect("a program that starts"),
            admin,
            started,
            listening: Duration::ZERO,
            connection: None,
        };
        while server.connection.is_none() {
            assert!(started.elapsed() < PATIENCE, "it does not listen");
            server.connection = TcpStream::connect(http).ok().map(BufReader::new);
            std::thread::sleep(Duration::from_millis(1));
        }
        server.listening = started.elapsed();
        server
    }

    fn hit(&mut self, blob: &Small) {
        let connection = self.connection.as_mut().expect("connected");
        let body = get(connection, &blob.path());
        assert_eq!(Digest::of(&body), blob.digest());
    }

    /// Seconds for each of so many blobs, from all over the store.
    fn hits(&mut self, blobs: &[Small], count: usize) -> f64 {
        let began = Instant::now();
        for n in 0..count {
            self.hit(&blobs[n * 7919 % blobs.len()]);
        }
        began.elapsed().as_secs_f64() / count as f64
    }

    /// Until the index knows so many blobs.
    fn until_known(&self, size: u64) {
        let admin = TcpStream::connect(self.admin).expect("the admin listener");
        let mut admin = BufReader::new(admin);
        let known = format!("ecr_proxy_cache_blobs {size}");
        loop {
            let page = get(&mut admin, "/metrics");
            let page = String::from_utf8_lossy(&page).into_owned();
            if page.lines().any(|line| line == known) {
                return;
            }
            assert!(self.started.elapsed() < PATIENCE, "it never knows {size}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
    }

    /// Ends it in order.
    fn end(mut self) {
        let pid = self.child.id().to_string();
        self.connection = None;
        let asked = Command::new("kill").arg(pid).status();
        assert!(asked.expect("start kill").success());
        self.child.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket")
}

/// The body of a 200.
fn get(connection: &mut BufReader<TcpStream>, path: &str) -> Vec<u8> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let socket = connection.get_mut();
    socket.write_all(request.as_bytes()).expect("it listens");
    let (mut length, mut line) = (0, String::new());
    connection.read_line(&mut line).expect("an answer");
    assert!(line.starts_with("HTTP/1.1 200"), "{path}: {line}");
    while line != "\r\n" {
        line.clear();
        connection.read_line(&mut line).expect("a head");
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).expect("a body");
    body
}

fn print(table: &[Figures]) {
    println!(
        "\n| Work | 1,000 blobs | 10,000 | 100,000 | a million, by a line | goal at 100,000 | |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (row, (work, unit, goal)) in ROWS.into_iter().enumerate() {
        let [small, middle, large] = std::array::from_fn(|n| table[n][row]);
        let slope = (large - middle) / (SIZES[2] - SIZES[1]) as f64;
        let million = large + slope * (MILLION - SIZES[2] as f64);
        let (goal, verdict) = match goal {
            None => (String::new(), ""),
            Some(goal) if large <= goal => (format!("<= {goal} {unit}"), "ok"),
            Some(goal) => (format!("<= {goal} {unit}"), "MISSED"),
        };
        println!(
            "| {work} | {small:.1} {unit} | {middle:.1} | {large:.1} | {:.1} | {goal} | {verdict} |",
            million.max(0.0)
        );
    }
}
