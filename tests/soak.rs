//! Pulls without end, a third of them left in the middle, from an upstream that breaks off now and then: memory,
//! descriptors and threads stay where they are, and nothing is under way when nobody asks (L14).
//!
//! A few seconds here; `tests/soak 60` goes on for an hour and prints what memory does.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use ecr_proxy::simulator::{Fault, Listener, Simulator};
use fastrand::Rng;
use support::blobs::{MIB, blob, idle, metric, simulator, until};
use support::image::{REPOSITORY, TAG};
use support::{Client, Proxy, image};
use tokio::task::JoinSet;

/// So small that there is eviction all the time.
const QUOTA: u64 = 32 * MIB;

/// Clients at once.
const CLIENTS: usize = 8;

/// How long this goes on where nothing is said, in seconds.
const USUAL: u64 = 8;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    after: Duration,
    memory: u64,
    descriptors: usize,
    threads: u64,
}

fn held(proxy: &Proxy, began: Instant) -> Held {
    let process = format!("/proc/{}", proxy.pid());
    let descriptors = fs::read_dir(format!("{process}/fd")).expect("a process");
    let status = fs::read_to_string(format!("{process}/status")).expect("a process");
    let threads = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    Held {
        after: began.elapsed(),
        memory: proxy.memory(),
        descriptors: descriptors.count(),
        threads: threads
            .and_then(|t| t.trim().parse().ok())
            .expect("threads"),
    }
}

/// One thing that goes wrong with the next body of storage.
fn spoil(simulator: &Simulator, random: &mut Rng) {
    let fault = match random.u8(..4) {
        0 => Fault::ResetAfter(random.u64(..MIB)),
        1 => Fault::TruncateAfter(random.u64(..MIB)),
        2 => Fault::status(503, "SlowDown"),
        _ => Fault::Delay(Duration::from_millis(random.u64(..200))),
    };
    let rule = simulator.faults().on(Listener::Storage, "GET", "/");
    rule.times(1).then(fault);
}

/// One request, whole or left; what comes whole is right.
async fn ask(client: &Client, blobs: &[(String, String)], random: &mut Rng) {
    let (digest, target) = random.choice(blobs).expect("blobs");
    match random.u8(..10) {
        0..=2 => {
            // A refusal is shorter than that, and is the end as well.
            let closing = [("connection", "close")];
            let mut connection = client.start("GET", target, &closing).await;
            let bytes = random.u64(..MIB);
            let _left_or_cut = connection.read_exactly(bytes).await;
        }
        3 => {
            let from = random.u64(..MIB);
            let range = format!("bytes={from}-{}", from + 1000);
            let answer = client.get_with(target, &[("range", &range)]).await;
            assert!(
                matches!(answer.status, 206 | 502..=504),
                "{}",
                answer.status
            );
        }
        4 | 5 => {
            let path = format!("/v2/{REPOSITORY}/manifests/{TAG}");
            assert_eq!(client.get(&path).await.status, 200);
        }
        6 => {
            let path = format!("/v2/{REPOSITORY}/manifests/absent-{}", random.u64(..));
            assert_eq!(client.head(&path).await.status, 404);
        }
        _ => {
            let answer = client.get(target).await;
            let whole = answer.status == 200 && answer.clean_end;
            assert!(
                !whole || answer.digest() == *digest,
                "wrong bytes ended cleanly"
            );
        }
    }
}

/// How fast memory grows by these samples, in bytes a second: the slope of the line nearest to them.
fn slope(samples: &[Held]) -> f64 {
    let count = samples.len() as f64;
    let points = samples
        .iter()
        .map(|held| (held.after.as_secs_f64(), held.memory as f64));
    let (times, sizes) = points
        .clone()
        .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
    let (time, size) = (times / count, sizes / count);
    let (above, below) = points.fold((0.0, 0.0), |sum, (t, s)| {
        (sum.0 + (t - time) * (s - size), sum.1 + (t - time).powi(2))
    });
    above / below
}

#[tokio::test(flavor = "multi_thread")]
async fn l14_pulls_without_end_leave_nothing_behind() {
    let seconds = std::env::var("ECR_PROXY_TEST_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(USUAL, |seconds| seconds.parse().expect("a number"));
    let simulator = simulator().await;
    image::push(&simulator);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.max_size", format!("{QUOTA}B"))
        .set("cache.tag_ttl", "0s")
        .start();
    let blobs: Vec<_> = (0..40)
        .map(|n| blob(&simulator, n, (1 + n % 3) * MIB))
        .collect();
    let began = Instant::now();
    let until_then = began + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (blobs, simulator) = (blobs.clone(), simulator.clone());
        let client = match number % 2 {
            0 => proxy.client(),
            _ => proxy.tls_client(),
        };
        clients.spawn(async move {
            let mut random = Rng::with_seed(number as u64);
            let mut asked = 0_u64;
            while Instant::now() < until_then {
                if random.u8(..10) == 0 {
                    spoil(&simulator, &mut random);
                }
                ask(&client, &blobs, &mut random).await;
                asked += 1;
            }
            asked
        });
    }
    let mut samples = Vec::new();
    while Instant::now() < until_then {
        tokio::time::sleep(Duration::from_millis(500)).await;
        samples.push(held(&proxy, began));
        // Of a long run nobody reads the first hours.
        simulator.journal().clear();
    }
    let asked: u64 = clients.join_all().await.into_iter().sum();
    idle(&proxy).await;
    until("nothing is under way", async || {
        metric(&proxy, "ecr_proxy_requests_active", &[]).await == 0.0
            && metric(&proxy, "ecr_proxy_connections_open", &[]).await == 0.0
    })
    .await;
    let (warm_up, rest) = samples.split_at(samples.len() / 3);
    let most = |of: fn(&Held) -> u64, samples: &[Held]| samples.iter().map(of).max();
    let by_hour = slope(rest) * 3600.0 / MIB as f64;
    println!(
        "{asked} requests in {seconds} s, {:.1} MiB/h after a third of it",
        by_hour
    );
    for (when, samples) in [("warming up", warm_up), ("from then on", rest)] {
        println!(
            "{when}: at most {:?} bytes, {:?} descriptors, {:?} threads",
            most(|held| held.memory, samples),
            most(|held| held.descriptors as u64, samples),
            most(|held| held.threads, samples),
        );
    }
    let last = held(&proxy, began);
    println!("at the end {last:?}");
    assert!(asked > 10 * seconds, "{asked} requests");
    assert!(last.descriptors < 100, "{last:?}");
    assert!(last.threads < 64, "{last:?}");
    assert!(last.memory < 64 * MIB, "{last:?}");
    proxy.assert_blobs_are_sound();
}
