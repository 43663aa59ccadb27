//! Whoever floods an HTTP/2 connection with frames loses it, and costs nobody else memory, time or upstream calls.

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{BlobSource, Listener, Simulator};
use support::Proxy;
use support::blobs::{MIB, metric, until};
use support::h2::{
    self, ACK, CALM, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED,
    PING, PRIORITY, RST_STREAM, Raw, WINDOW_UPDATE, field, frame, request,
};
use tokio::io::AsyncWriteExt as _;

const REPOSITORY: &str = "team/app";

/// More than a flood may hold on to, in bytes.
const TOO_MUCH: u64 = 32 * MIB;

/// What is sent in each round.
type Flood = fn(u32) -> Vec<u8>;

/// How a flood ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The proxy said so, with this code.
    GoAway(u32),
    /// The connection was closed, or nothing was taken any more.
    Cut,
    /// All of it was taken.
    Taken,
}

struct Flooder(Raw);

impl Flooder {
    /// Sends what `next` makes, again and again, and reads beside it.
    async fn flood(self, rounds: u32, mut next: impl FnMut(u32) -> Vec<u8> + Send) -> End {
        let (mut reading, mut writing) = self.0.split();
        let writes = async {
            for round in 0..rounds {
                if writing.write_all(&next(round)).await.is_err() {
                    // Why can still be read.
                    break;
                }
            }
            let _gone = writing.flush().await;
            // What was sent last is answered, too.
            let _gone = writing.write_all(&h2::ping()).await;
            let _gone = writing.flush().await;
            std::future::pending::<Infallible>().await
        };
        let reads = async {
            while let Some(frame) = h2::next_frame(&mut reading).await {
                match frame.kind {
                    GOAWAY => {
                        let code = frame.payload[4..8].try_into().expect("a code");
                        return End::GoAway(u32::from_be_bytes(code));
                    }
                    PING if frame.answers_ping() => return End::Taken,
                    _ => {}
                }
            }
            End::Cut
        };
        let end = async {
            tokio::select! {
                never = writes => match never {},
                end = reads => end,
            }
        };
        tokio::time::timeout(Duration::from_secs(30), end)
            .await
            .unwrap_or(End::Cut)
    }
}

struct Scene {
    simulator: Simulator,
    proxy: Proxy,
    blob: String,
    before: u64,
}

impl Scene {
    async fn new() -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let digest = simulator.put_blob(REPOSITORY, BlobSource::generated(1, 8 * MIB));
        let proxy = Proxy::before(&simulator);
        assert_eq!(proxy.client().get("/v2/").await.status, 200);
        let before = proxy.memory();
        let blob = format!("/v2/{REPOSITORY}/blobs/{digest}");
        Self {
            simulator,
            proxy,
            blob,
            before,
        }
    }

    async fn flooder(&self) -> Flooder {
        Flooder(Raw::connect(&self.proxy.tls_client(), &[]).await)
    }

    /// Nothing is left of the flood, and others are served.
    async fn is_unharmed(&self) {
        let grown = self.proxy.memory().saturating_sub(self.before);
        assert!(grown < TOO_MUCH, "{grown} bytes");
        for client in [self.proxy.client(), self.proxy.tls_client()] {
            let answer = client.get(&self.blob).await;
            assert!(answer.status == 200 && answer.clean_end);
        }
        until("nothing is under way", async || {
            metric(&self.proxy, "ecr_proxy_requests_active", &[]).await == 0.0
        })
        .await;
    }

    fn bodies(&self) -> usize {
        let entries = self.simulator.journal().snapshot();
        let is_body = |entry: &&_| -> bool {
            let entry: &ecr_proxy::simulator::Entry = entry;
            entry.listener == Listener::Storage
        };
        entries.iter().filter(is_body).count()
    }
}

/// 10^5 of them in all. A connection is over long before, so that it takes several.
#[tokio::test(flavor = "multi_thread")]
async fn l09_rapid_resets_end_the_connection_and_cost_one_upstream_body() {
    const RESETS: u32 = 100_000;
    const AT_ONCE: u32 = 100;
    let scene = Scene::new().await;
    let path = scene.blob.clone();
    let sent = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&sent);
    let resets = move |round: u32| -> Vec<u8> {
        count.fetch_add(AT_ONCE, Ordering::Relaxed);
        let each = (0..AT_ONCE).flat_map(|each| {
            let stream = 2 * (round * AT_ONCE + each) + 1;
            [
                h2::get(stream, &path),
                frame(RST_STREAM, 0, stream, &CANCEL),
            ]
            .concat()
        });
        each.collect()
    };
    let mut connections = 0;
    // Cold the first time, warm from then on.
    while sent.load(Ordering::Relaxed) < RESETS {
        let flooder = scene.flooder().await;
        let end = flooder.flood(RESETS / AT_ONCE, resets.clone()).await;
        assert_eq!(end, End::GoAway(CALM));
        connections += 1;
        if connections == 1 {
            scene.is_unharmed().await;
        }
    }
    println!("{connections} connections");
    scene.is_unharmed().await;
    assert_eq!(scene.bodies(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn l10_making_us_reset_streams_ends_the_connection() {
    let scene = Scene::new().await;
    let head = |stream| frame(HEADERS, END_HEADERS, stream, &request("POST", "/v2/"));
    let zero = |round: u32| {
        let stream = 2 * round + 1;
        let mut both = head(stream);
        both.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
        both
    };
    let end = scene.flooder().await.flood(10_000, zero).await;
    assert!(
        matches!(end, End::GoAway(_) | End::Cut),
        "updates by nothing: {end:?}"
    );
    let over = |round: u32| {
        let stream = 2 * round + 1;
        let mut both = head(stream);
        both.extend(frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]));
        both
    };
    let end = scene.flooder().await.flood(10_000, over).await;
    assert!(
        matches!(end, End::GoAway(_) | End::Cut),
        "updates by too much: {end:?}"
    );
    let after_the_end = |round: u32| {
        let stream = 2 * round + 1;
        let mut all = frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &request("GET", "/v2/"),
        );
        all.extend(frame(DATA, 0, stream, b"more"));
        all
    };
    let end = scene.flooder().await.flood(10_000, after_the_end).await;
    assert!(
        matches!(end, End::GoAway(_) | End::Cut),
        "data after the end: {end:?}"
    );
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l11_heads_without_end_and_tables_that_grow_end_the_connection() {
    let scene = Scene::new().await;
    let begun = || frame(HEADERS, 0, 1, &request("GET", "/v2/"));
    let endless = |round: u32| match round {
        0 => begun(),
        _ => frame(
            CONTINUATION,
            0,
            1,
            &field("x", "y".repeat(100).as_bytes()).repeat(100),
        ),
    };
    let end = scene.flooder().await.flood(100_000, endless).await;
    assert_eq!(end, End::GoAway(CALM), "heads without end");
    let empty = |round: u32| match round {
        0 => begun(),
        _ => frame(CONTINUATION, 0, 1, &[]),
    };
    let end = scene.flooder().await.flood(100_000, empty).await;
    assert_eq!(end, End::GoAway(CALM), "heads of nothing");
    // One entry of 4 KB in the table, named by one byte as often as fits.
    let bomb = |round: u32| {
        let mut head = request("GET", "/v2/");
        if round == 0 {
            head.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
            head.extend([b'y'; 4000]);
        }
        head.extend(std::iter::repeat_n(0xbe, 8000));
        frame(HEADERS, END_STREAM | END_HEADERS, 2 * round + 1, &head)
    };
    let end = scene.flooder().await.flood(1000, bomb).await;
    assert_eq!(end, End::GoAway(CALM), "a table that grows");
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l11_floods_of_small_frames_end_the_connection_and_cost_nobody_anything() {
    const AT_ONCE: u32 = 100;
    /// Of no type that there is (RFC 9113, 4.1).
    const UNKNOWN: u8 = 0xfa;
    let scene = Scene::new().await;
    let floods: [(&str, Flood); 9] = [
        ("settings", |_| h2::settings(&[(3, 100)])),
        ("pings", |_| frame(PING, 0, 0, b"flooding")),
        ("answers to pings", |_| frame(PING, ACK, 0, b"flooding")),
        ("priorities", |round| {
            frame(PRIORITY, 0, 2 * (round % 1000) + 1, &[0, 0, 0, 0, 16])
        }),
        ("empty data", |round| match round {
            0 => frame(HEADERS, END_HEADERS, 1, &request("POST", "/v2/")),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("padding", |round| match round {
            0 => frame(HEADERS, END_HEADERS, 1, &request("POST", "/v2/")),
            _ => frame(DATA, PADDED, 1, &[1, 0]),
        }),
        ("resets of what has ended", |round| match round {
            0 => h2::get(1, "/v2/"),
            _ => frame(RST_STREAM, 0, 1, &CANCEL),
        }),
        ("windows", |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("who knows what", |_| frame(UNKNOWN, 0, 0, &[])),
    ];
    for (what, next) in floods {
        let many = move |round: u32| -> Vec<u8> {
            let each = 0..AT_ONCE;
            each.flat_map(|each| next(round * AT_ONCE + each)).collect()
        };
        let flood = scene.flooder().await.flood(100_000 / AT_ONCE, many);
        let flooding = tokio::spawn(flood);
        let other = scene.proxy.tls_client().get(&scene.blob).await;
        assert!(other.status == 200 && other.clean_end, "{what}");
        let end = flooding.await.expect("a flood");
        assert_eq!(end, End::GoAway(CALM), "{what}");
        scene.is_unharmed().await;
    }
    let ended = metric(&scene.proxy, "ecr_proxy_connections_flooded_total", &[]).await;
    // h2 itself ends two of them.
    assert!(ended >= 7.0, "{ended}");
}

/// A client that has little room makes some for each KiB, twice, and asks with every 16 how far away we are.
#[tokio::test(flavor = "multi_thread")]
async fn l11_a_client_that_takes_little_at_a_time_is_no_flood() {
    const WINDOW: u32 = 1024;
    let scene = Scene::new().await;
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut raw = Raw::connect(&scene.proxy.tls_client(), &[(4, WINDOW)]).await;
    raw.send(h2::get(1, &scene.blob)).await.expect("sent");
    let (mut came, mut frames) = (0, 0);
    while came < 8 * MIB {
        let frame = raw.frame().await.expect("a frame");
        assert!(frame.kind != GOAWAY, "after {came} bytes");
        if frame.kind != DATA || frame.payload.is_empty() {
            continue;
        }
        came += frame.payload.len() as u64;
        frames += 1;
        let room = (frame.payload.len() as u32).to_be_bytes();
        let mut said = h2::frame(WINDOW_UPDATE, 0, 0, &room);
        said.extend(h2::frame(WINDOW_UPDATE, 0, 1, &room));
        if frames % 16 == 0 {
            said.extend(h2::frame(PING, 0, 0, b"how far?"));
        }
        // What follows the last byte may find nobody.
        let _gone = raw.send(said).await;
    }
    println!("{frames} frames");
}

/// Whoever answers nobody's pings and takes no byte is not written to without end.
#[tokio::test(flavor = "multi_thread")]
async fn l11_answers_that_nobody_takes_are_bounded() {
    let scene = Scene::new().await;
    let mut flooder = scene.flooder().await;
    let pings: Vec<u8> = (0..1000)
        .flat_map(|_| frame(PING, 0, 0, b"flooding"))
        .collect();
    let taken = async {
        for _ in 0..10_000 {
            let write = flooder.0.send(&pings);
            match tokio::time::timeout(Duration::from_secs(2), write).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        true
    };
    assert!(!taken.await, "170 MB of pings were taken");
    scene.is_unharmed().await;
    drop(flooder);
}
