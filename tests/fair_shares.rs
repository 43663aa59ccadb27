//! Whatever one client takes, the others get their share: of handshakes, of fills, of the upstream's
//! connections, of the bytes that leave.

mod support;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{
    BlobSource, End, Entry, FULL_ACCESS_KEY, Fault, Gate, Listener, Pattern, path_contains,
};
use futures_util::future::join_all;
use support::blobs::{MIB, assert_whole, blob, metric, pull, simulator, until};
use support::h2::{DATA, Raw, WINDOW_UPDATE, frame, get};
use support::image::{REPOSITORY, TAG};
use support::{Client, DOMAIN, Proxy, Stopwatch, image, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Where the one is that wants it all.
const GREEDY: &str = "127.0.0.2";

/// For what has to wait for nobody, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Fails unless `client` is served at once.
async fn is_served(client: &Client, target: &str, digest: &str) {
    let began = Stopwatch::start();
    assert_whole(&client.get(target).await, digest);
    let took = began.took();
    assert!(took < AT_ONCE, "{target}: {took:?}");
}

/// The first message of a client, without the head of its record.
fn hello(proxy: &Proxy) -> Vec<u8> {
    first_message(support::pki::trusting(&proxy.pki().ca(), &[b"http/1.1"]))
}

fn first_message(config: Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from(DOMAIN).expect("a name");
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    let mut record = Vec::new();
    client.write_tls(&mut record).expect("memory");
    record.split_off(5)
}

/// Where a hello says how long its extensions are (RFC 8446, 4.1.2).
fn extensions_at(hello: &[u8]) -> usize {
    let session = 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let length = u16::from_be_bytes([hello[suites], hello[suites + 1]]);
    let compression = suites + 2 + usize::from(length);
    compression + 1 + usize::from(hello[compression])
}

/// The same hello with no key in it, so that the server has to ask for another (RFC 8446, 4.2.8).
fn without_keys(hello: &[u8]) -> Vec<u8> {
    const KEY_SHARE: [u8; 2] = [0, 51];
    let extensions_at = extensions_at(hello);
    let mut left = &hello[extensions_at + 2..];
    let mut extensions = Vec::new();
    while let [a, b, c, d, rest @ ..] = left {
        let (data, rest) = rest.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        match [*a, *b] {
            KEY_SHARE => extensions.extend([0, 51, 0, 2, 0, 0]),
            _ => extensions.extend_from_slice(&left[..4 + data.len()]),
        }
        left = rest;
    }
    let length = u16::try_from(extensions.len()).expect("short");
    let mut without = hello[..extensions_at].to_vec();
    without.extend(length.to_be_bytes());
    without.extend(extensions);
    let length = u16::try_from(without.len() - 4).expect("short");
    without[2..4].copy_from_slice(&length.to_be_bytes());
    without
}

/// A record of a handshake (RFC 8446, 5.1).
fn record(part: &[u8]) -> Vec<u8> {
    let length = u16::try_from(part.len()).expect("a part").to_be_bytes();
    [&[22, 3, 1], &length[..], part].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_handshakes_that_are_left_undone_keep_nobody_else_out() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let whole = record(&hello(&proxy));
    // From none more than its half of the turns, from both more than all; and each stays for 10 s.
    for said in [&b""[..], b"\x16\x03\x01\x02\x00", &whole] {
        let mut left = Vec::new();
        for greedy in ["127.0.0.2", "127.0.0.3"] {
            let greedy = proxy.tls_client().at(greedy);
            for _ in 0..200 {
                let mut connection = greedy.dial().await;
                connection.write_all(said).await.expect("sent");
                left.push(connection);
            }
        }
        let began = Stopwatch::start();
        assert_eq!(proxy.tls_client().get("/v2/").await.status, 200);
        let took = began.took();
        assert!(took < AT_ONCE, "behind {said:?} a handshake took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_a_hello_in_fifty_records_is_one_and_one_beyond_measure_is_refused() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let hello = hello(&proxy);
    let answered = async |records: Vec<u8>| {
        let mut stream = proxy.tls_client().dial().await;
        let _refused_early = stream.write_all(&records).await;
        let mut kind = [0];
        let answer = stream.read_exact(&mut kind);
        within("an answer", answer).await.map(|_| kind[0])
    };
    let pieces = hello.chunks(hello.len().div_ceil(50));
    let records: Vec<u8> = pieces.flat_map(record).collect();
    // A handshake goes on; what is refused gets an alert, or nothing.
    assert_eq!(answered(records).await.expect("an answer"), 22);
    let before = proxy.memory();
    // One that is as good, with as much padding (RFC 7685).
    let padded = |padding: u16| {
        let mut padded = hello.clone();
        let extensions_at = extensions_at(&hello);
        let extensions = u16::from_be_bytes([hello[extensions_at], hello[extensions_at + 1]]);
        let longer = extensions + padding + 4;
        padded[extensions_at..extensions_at + 2].copy_from_slice(&longer.to_be_bytes());
        padded.extend([0, 21]);
        padded.extend(padding.to_be_bytes());
        padded.resize(padded.len() + usize::from(padding), 0);
        let length = u32::try_from(padded.len() - 4)
            .expect("a length")
            .to_be_bytes();
        padded[1..4].copy_from_slice(&length[1..]);
        padded
    };
    let in_records = |hello: Vec<u8>| hello.chunks(16 * 1024).flat_map(record).collect();
    let long = answered(in_records(padded(14_000))).await;
    assert_eq!(long.expect("an answer"), 22);
    let too_long = answered(in_records(padded(17_000))).await;
    assert!(!matches!(too_long, Ok(22)), "{too_long:?}");
    for length in [0x0001_0000_u32, 0x00ff_ffff] {
        let mut beyond = [&[1], &length.to_be_bytes()[1..], &hello[4..]].concat();
        beyond.resize(beyond.len().max(0x0001_0000), 0);
        let records: Vec<u8> = beyond.chunks(16 * 1024).flat_map(record).collect();
        let refused = answered(records).await;
        assert!(!matches!(refused, Ok(22)), "{length}: {refused:?}");
    }
    assert!(proxy.memory().saturating_sub(before) < 4 * MIB);
    assert_eq!(proxy.tls_client().get("/v2/").await.status, 200);
    let failed = metric(&proxy, "ecr_proxy_handshake_failures_total", &[]).await;
    assert!(failed >= 3.0, "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_what_follows_a_hello_is_no_longer_than_it_either() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let trusting = support::pki::trusting_by(
        &proxy.pki().ca(),
        &[b"http/1.1"],
        &[&rustls::version::TLS12],
    );
    let mut stream = proxy.tls_client().dial().await;
    let hello = record(&first_message(trusting));
    stream.write_all(&hello).await.expect("sent");
    // A ClientKeyExchange (RFC 5246, 7.4.7) of which the end never comes.
    let mut endless = vec![16, 0, 0xff, 0xf0];
    endless.resize(48 * 1024, 0);
    let records: Vec<u8> = endless.chunks(16 * 1024).flat_map(record).collect();
    let _refused_early = stream.write_all(&records).await;
    let mut answer = Vec::new();
    let _reset = within("an end", stream.read_to_end(&mut answer)).await;
    let ended = async |metric_name| metric(&proxy, metric_name, &[]).await;
    assert_eq!(ended("ecr_proxy_handshake_failures_total").await, 1.0);
    assert_eq!(ended("ecr_proxy_connections_expired_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_come_with_the_last_message_of_the_handshake() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let config = support::pki::trusting(&proxy.pki().ca(), &[b"http/1.1"]);
    let name = rustls::pki_types::ServerName::try_from(DOMAIN).expect("a name");
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    let mut stream = proxy.tls_client().dial().await;
    let mut said = Vec::new();
    client.write_tls(&mut said).expect("memory");
    stream.write_all(&said).await.expect("sent");
    let hear = async |client: &mut rustls::ClientConnection, stream: &mut TcpStream| {
        let mut heard = [0; 4096];
        let count = within("an answer", stream.read(&mut heard)).await;
        let count = count.expect("an answer");
        assert_ne!(count, 0, "an end");
        let mut heard = &heard[..count];
        while !heard.is_empty() {
            client.read_tls(&mut heard).expect("TLS");
            client.process_new_packets().expect("TLS");
        }
    };
    while client.is_handshaking() {
        hear(&mut client, &mut stream).await;
    }
    // Records as long as they may be.
    let head = format!("PUT /v2/none HTTP/1.1\r\nhost: {DOMAIN}\r\ncontent-length: 60000\r\n\r\n");
    let request = [head.as_bytes(), &[0; 60_000]].concat();
    client.set_buffer_limit(None);
    client.writer().write_all(&request).expect("memory");
    said.clear();
    while client.wants_write() {
        client.write_tls(&mut said).expect("memory");
    }
    assert!(said.len() > request.len());
    stream.write_all(&said).await.expect("sent");
    let mut answer = [0; 8];
    while client.reader().read(&mut answer).is_err() {
        hear(&mut client, &mut stream).await;
    }
    assert_eq!(&answer, b"HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn l06_one_address_is_asked_for_another_hello_half_of_the_times_only() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    // Each has 10 s: on a machine so busy that they have passed, it tells nothing.
    for _ in 0..5 {
        let began = Stopwatch::start();
        ask_for_other_hellos(&proxy, &began).await;
        if began.took() < AT_ONCE {
            return;
        }
    }
    panic!("a machine too busy for it");
}

async fn ask_for_other_hellos(proxy: &Proxy, began: &Stopwatch) {
    let asks_again = record(&without_keys(&hello(proxy)));
    let greedy = proxy.tls_client().at(GREEDY);
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut stream = greedy.dial().await;
        stream.write_all(&asks_again).await.expect("sent");
        let mut kind = [0];
        let asked = stream.read_exact(&mut kind);
        within("another hello is asked for", asked)
            .await
            .expect("an answer");
        assert_eq!(kind, [22]);
        silent.push(stream);
    }
    let whole = |address: &str| {
        let client = std::process::Command::new(support::program("openssl"))
            .args(["s_client", "-verify_return_error", "-servername", DOMAIN])
            // It sends a key of the first alone, which nobody here takes.
            .args(["-groups", "P-521:X25519", "-bind"])
            .arg(format!("{address}:0"))
            .arg("-connect")
            .arg(proxy.https().to_string())
            .arg("-CAfile")
            .arg(proxy.pki().ca())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn();
        client.expect("openssl runs")
    };
    let is_served = |client: std::process::Child| {
        let said = client.wait_with_output().expect("an end").stdout;
        String::from_utf8_lossy(&said).contains("Verification: OK")
    };
    let mut one_more = whole(GREEDY);
    assert!(is_served(whole("127.0.0.1")));
    let is_over = one_more.try_wait().expect("a child").is_some();
    let is_in_time = began.took() < AT_ONCE;
    assert!(!is_over || !is_in_time);
    drop(silent);
    assert!(is_served(one_more) || !is_in_time);
}

#[tokio::test(flavor = "multi_thread")]
async fn l16_whoever_begins_every_fill_leaves_others_theirs() {
    let simulator = simulator().await;
    let cold = blob(&simulator, 1, 100_000);
    let never = Gate::new();
    let held: Vec<_> = (0..100).map(|n| blob(&simulator, 100 + n, MIB)).collect();
    let also_queued = blob(&simulator, 2, 100_001);
    let faults = simulator.faults();
    for (digest, _) in &held {
        let pattern = Pattern::digest(digest.as_str());
        let rule = faults.on(Listener::Storage, "GET", pattern);
        rule.then(Fault::HoldAfter(1000, never.clone()));
    }
    let proxy = Proxy::before(&simulator);
    let greedy = proxy.client().at(GREEDY);
    let mut waiting = Vec::new();
    for (_, target) in &held {
        waiting.push(greedy.start("GET", target, &[]).await);
    }
    let mut last = greedy.start("GET", &also_queued.1, &[]).await;
    within("fills that hold what they got", never.arrived(32)).await;
    is_served(&proxy.client(), &cold.1, &cold.0).await;
    // What the greedy one waits for as well waits for nobody else.
    is_served(&proxy.client(), &also_queued.1, &also_queued.0).await;
    assert_whole(
        &last.answer("GET").await.expect("an answer"),
        &also_queued.0,
    );
    never.open();
    // And nothing is lost to the greedy one, either.
    let answers = waiting
        .iter_mut()
        .map(|connection| connection.answer("GET"));
    for (answer, (digest, _)) in join_all(answers).await.into_iter().zip(&held) {
        assert_whole(&answer.expect("an answer"), digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l16_whoever_takes_ranges_past_the_cache_leaves_others_the_upstream() {
    let simulator = simulator().await;
    let cold = blob(&simulator, 1, 100_000);
    let proxy = Proxy::before(&simulator);
    let greedy = proxy.client().at(GREEDY);
    let never = Gate::new();
    let is_range = |entry: &Entry| {
        entry
            .header("range")
            .is_some_and(|r| r.starts_with("bytes=9"))
    };
    let faults = simulator.faults();
    let rule = faults.on(Listener::Storage, "GET", Pattern::matching(is_range));
    rule.then(Fault::HoldAfter(1000, never.clone()));
    let mut waiting = Vec::new();
    for number in 0..300 {
        let digest = format!("sha256:{number:064}");
        let never_looked_at = BlobSource::generated(number, 64 * MIB);
        simulator.put_blob_as(REPOSITORY, &digest, never_looked_at);
        let target = format!("/v2/{REPOSITORY}/blobs/{digest}");
        let range = [("range", "bytes=9000000-9999999")];
        waiting.push(greedy.start("GET", &target, &range).await);
    }
    let under_way = || {
        let journal = simulator.journal();
        journal.count(|entry| is_range(entry) && entry.end == End::InFlight)
    };
    within("ranges on their way", never.arrived(64)).await;
    is_served(&proxy.client(), &cold.1, &cold.0).await;
    assert!(under_way() <= 64, "{} at once for one client", under_way());
}

/// How much has come in on a connection, and whether it still comes.
async fn read_on(mut raw: Raw, streams: u32, path: String, came: Arc<AtomicU64>) {
    for stream in 0..streams {
        raw.send(get(2 * stream + 1, &path)).await.expect("sent");
    }
    while let Some(frame) = raw.frame().await {
        if frame.kind != DATA || frame.payload.is_empty() {
            continue;
        }
        let length = frame.payload.len() as u32;
        came.fetch_add(u64::from(length), Ordering::Relaxed);
        let mut updates = window_update(0, length);
        updates.extend(window_update(frame.stream, length));
        raw.send(updates).await.expect("sent");
    }
}

fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn l16_a_thousand_streams_are_no_more_than_the_connections_they_come_on() {
    const CONNECTIONS: u32 = 8;
    const STREAMS: u32 = 125;
    let simulator = simulator().await;
    let warm = blob(&simulator, 1, 256 * MIB);
    let small = blob(&simulator, 2, 8 * MIB);
    let proxy = Proxy::before(&simulator);
    for blob in [&warm, &small] {
        pull(&proxy, blob).await;
    }
    let greedy = proxy.tls_client().at(GREEDY);
    let came = Arc::new(AtomicU64::new(0));
    let mut reading = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let raw = Raw::connect(&greedy, &[]).await;
        reading.spawn(read_on(raw, STREAMS, warm.1.clone(), Arc::clone(&came)));
    }
    let flooded = || came.load(Ordering::Relaxed);
    until("all of them read", async || flooded() > 16 * MIB).await;
    let before = flooded();
    assert_whole(&proxy.tls_client().get(&small.1).await, &small.0);
    let shares = (flooded() - before) as f64 / (8 * MIB) as f64;
    println!("{shares:.1} times as much went to {CONNECTIONS} connections of {STREAMS} streams");
    // By streams it would be a thousand times.
    assert!(shares < 10.0 * f64::from(CONNECTIONS), "{shares}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l03_thousands_of_streams_with_windows_of_one_byte_cost_bounded_memory() {
    const CONNECTIONS: usize = 20;
    const STREAMS: u32 = 125;
    let simulator = simulator().await;
    let warm = blob(&simulator, 1, 64 * MIB);
    let small = blob(&simulator, 2, 100_000);
    let proxy = Proxy::before(&simulator);
    for blob in [&warm, &small] {
        pull(&proxy, blob).await;
    }
    let before = proxy.memory();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        // SETTINGS_INITIAL_WINDOW_SIZE
        let mut raw = Raw::connect(&proxy.tls_client(), &[(4, 0)]).await;
        for stream in 0..STREAMS {
            raw.send(get(2 * stream + 1, &warm.1)).await.expect("sent");
        }
        for stream in 0..STREAMS {
            let one_byte = window_update(2 * stream + 1, 1);
            raw.send(one_byte).await.expect("sent");
        }
        held.push(raw);
    }
    let all = (CONNECTIONS * STREAMS as usize) as f64;
    let active = async || metric(&proxy, "ecr_proxy_requests_active", &[]).await;
    until("all are answered", async || active().await == all).await;
    for raw in &mut held {
        // One byte of each has come.
        let mut bytes = 0;
        while bytes < STREAMS {
            let frame = raw.frame().await.expect("a frame");
            bytes += u32::from(frame.kind == DATA);
        }
    }
    let grown = proxy.memory().saturating_sub(before);
    println!("{} MiB for {all} streams", grown / MIB);
    assert!(grown < 128 * MIB, "{grown} bytes");
    is_served(&proxy.client(), &small.1, &small.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_lists_that_are_asked_for_and_left_count_until_upstream_has_told_them() {
    const MOST_OF_ONE: u64 = 4;
    let simulator = simulator().await;
    let path = |name: &str| format!("/v2/{name}/tags/list");
    for name in ["held-0", "held-1", "held-2", "held-3", "held-4", "free"] {
        simulator.push_image(name, TAG, image::spec());
    }
    let gate = Gate::new();
    let faults = simulator.faults();
    let held = faults.on(Listener::Registry, "GET", path_contains("/held-"));
    let held = held.then(Fault::Hold(gate.clone()));
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .start();
    let greedy = proxy.client().at(GREEDY);
    for number in 0..MOST_OF_ONE {
        let path = path(&format!("held-{number}"));
        let leaving = greedy.start("GET", &path, &[]).await;
        until("upstream is asked", async || held.taken() > number).await;
        drop(leaving);
    }
    // Its clients have left, and the questions are there.
    let one_more = tokio::spawn(async move { greedy.get(&path("held-4")).await.status });
    for _ in 0..20 {
        let other = proxy.client().get(&path("free")).await;
        assert_eq!(other.status, 200, "{}", other.text());
    }
    assert_eq!(held.taken(), MOST_OF_ONE);
    gate.open();
    assert_eq!(one_more.await.expect("an answer"), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn l12_beyond_its_requests_a_client_is_refused_at_once_and_others_are_served() {
    const CONNECTIONS: usize = 40;
    const STREAMS: usize = 125;
    /// Half of those that there may be.
    const MOST: usize = 4096;
    let simulator = simulator().await;
    let warm = blob(&simulator, 1, MIB);
    let proxy = Proxy::before(&simulator);
    pull(&proxy, &warm).await;
    let greedy = proxy.tls_client().at(GREEDY);
    let mut held = Vec::new();
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..CONNECTIONS {
        // Nothing of a body is taken, so no request ends that has one.
        let mut raw = Raw::connect(&greedy, &[(4, 0)]).await;
        for stream in 0..STREAMS as u32 {
            raw.send(get(2 * stream + 1, &warm.1)).await.expect("sent");
        }
        for _ in 0..STREAMS {
            let status = loop {
                if let Some(status) = raw.frame().await.expect("a frame").status() {
                    break status;
                }
            };
            match status {
                200 => answered += 1,
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
        held.push(raw);
    }
    assert_eq!((answered, refused), (MOST, CONNECTIONS * STREAMS - MOST));
    let told = greedy.get("/v2/").await;
    assert_eq!((told.status, &*told.error_code()), (429, "TOOMANYREQUESTS"));
    assert!(told.header("retry-after").is_some());
    is_served(&proxy.tls_client(), &warm.1, &warm.0).await;
    drop(held);
    until("all are forgotten", async || {
        greedy.get("/v2/").await.status == 200
    })
    .await;
}
