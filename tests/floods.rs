//! Whoever floods an HTTP/2 connection with frames loses it, and costs nobody else memory, time or upstream calls.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{BlobSource, Listener, Simulator};
use support::Proxy;
use support::blobs::{MIB, metric, until};
use support::h2::{
    self, CALM, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING,
    PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, field, frame, request,
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
                    return;
                }
            }
            let _gone = writing.flush().await;
            // What was sent last is answered, too.
            let _gone = writing.write_all(&h2::ping()).await;
            let _gone = writing.flush().await;
            std::future::pending::<()>().await;
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
                // A connection that broke while it was written to has said why, or nothing.
                () = writes => End::Cut,
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

#[tokio::test(flavor = "multi_thread")]
async fn l09_rapid_resets_end_the_connection_and_cost_one_upstream_body() {
    let scene = Scene::new().await;
    let path = scene.blob.clone();
    let reset = move |round: u32| {
        let stream = 2 * round + 1;
        let mut both = frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &request("GET", &path),
        );
        both.extend(frame(RST_STREAM, 0, stream, &CANCEL));
        both
    };
    for _ in 0..2 {
        // Cold the first time, warm the second.
        let end = scene.flooder().await.flood(10_000, reset.clone()).await;
        assert!(end == End::GoAway(CALM) || end == End::Cut, "{end:?}");
        scene.is_unharmed().await;
    }
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
    let endless = |round: u32| match round {
        0 => frame(HEADERS, 0, 1, &request("GET", "/v2/")),
        _ => frame(
            CONTINUATION,
            0,
            1,
            &field("x", "y".repeat(100).as_bytes()).repeat(100),
        ),
    };
    let end = scene.flooder().await.flood(10_000, endless).await;
    assert!(matches!(end, End::GoAway(_) | End::Cut), "{end:?}");
    let empty = |round: u32| match round {
        0 => frame(HEADERS, 0, 1, &request("GET", "/v2/")),
        _ => frame(CONTINUATION, 0, 1, &[]),
    };
    let end = scene.flooder().await.flood(100_000, empty).await;
    assert!(matches!(end, End::GoAway(_) | End::Cut), "{end:?}");
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
    let _whichever = scene.flooder().await.flood(1000, bomb).await;
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l11_floods_of_small_frames_cost_neither_memory_nor_others() {
    let scene = Scene::new().await;
    let floods: [(&str, Flood); 4] = [
        ("settings", |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("pings", |_| frame(PING, 0, 0, b"flooding")),
        ("priorities", |round| {
            frame(PRIORITY, 0, 2 * (round % 1000) + 1, &[0, 0, 0, 0, 16])
        }),
        ("empty data", |round| match round {
            0 => frame(HEADERS, END_HEADERS, 1, &request("POST", "/v2/")),
            _ => frame(DATA, 0, 1, &[]),
        }),
    ];
    for (what, next) in floods {
        let hundred = move |round: u32| -> Vec<u8> {
            (0..100).flat_map(|each| next(round * 100 + each)).collect()
        };
        let flooding = tokio::spawn(scene.flooder().await.flood(1000, hundred));
        let other = scene.proxy.tls_client().get(&scene.blob).await;
        assert!(other.status == 200 && other.clean_end, "{what}");
        let _whichever = flooding.await.expect("a flood");
        scene.is_unharmed().await;
    }
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
