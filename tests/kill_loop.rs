//! The program is killed at times that nobody chose, again and again, in the middle of pulls and
//! evictions, and each time starts by itself with a store that holds nothing but what it says.
//!
//! A few rounds here; `tests/kill-loop` runs a thousand and prints the seed that repeats them.

mod support;

use std::time::Duration;

use ecr_proxy::simulator::{ImageSpec, Simulator};
use fastrand::Rng;
use support::blobs::{MIB, assert_whole, blob, idle, pull, simulator, until};
use support::image::REPOSITORY;
use support::store::{bytes_below, digest, files_below};
use support::{Client, Proxy, Stopwatch};

/// So small that every round evicts.
const QUOTA: u64 = 8 * MIB;

/// What may lie in the store's folder beyond the quota: directories do not count, the records of the
/// last second and an index being replaced do.
const SLACK: u64 = MIB;

/// Requests of one round.
const PULLS: usize = 6;

/// A number of the environment.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// What one client asks for, and the digest that a whole 200 has.
fn request(simulator: &Simulator, images: &[(String, String)], random: &mut Rng) -> Request {
    let (digest, target) = match random.u8(..4) {
        0 => images[random.usize(..images.len())].clone(),
        _ => blob(simulator, random.u64(..24), random.u64(1..3) * MIB),
    };
    let is_part = random.u8(..5) == 0;
    Request {
        digest,
        target,
        range: is_part.then(|| format!("bytes={}-", random.u64(..MIB))),
    }
}

struct Request {
    digest: String,
    target: String,
    range: Option<String>,
}

impl Request {
    /// Whatever comes to its end has the right bytes.
    async fn ask(self, client: Client) {
        let range = self.range.as_deref().map(|range| ("range", range));
        let mut connection = client.start("GET", &self.target, range.as_slice()).await;
        if let Ok(answer) = connection.answer("GET").await
            && answer.clean_end
            && answer.status == 200
        {
            assert_eq!(digest(&answer.body), self.digest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_kills_at_random_times_leave_only_what_hashes_to_its_name() {
    let named = given("ECR_PROXY_TEST_KILLS");
    let rounds = named.unwrap_or(20);
    let seed = given("ECR_PROXY_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ECR_PROXY_TEST_SEED={seed} ECR_PROXY_TEST_KILLS={rounds}");
    // The figure is the named command's, which has the machine for itself.
    let ready_within = Duration::from_secs(if named.is_some() { 2 } else { 10 });
    let mut random = Rng::with_seed(seed);

    let simulator = simulator().await;
    let images: Vec<_> = (0..4)
        .map(|n| {
            let tag = format!("v{n}");
            let image = simulator.push_image(REPOSITORY, &tag, ImageSpec::generated(n, [1000]));
            let target = format!("/v2/{REPOSITORY}/manifests/{tag}");
            (image.top.digest, target)
        })
        .collect();
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder.set("cache.max_size", QUOTA as i64).start();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let pulls: Vec<_> = (0..PULLS)
            .map(|_| {
                let request = request(&simulator, &images, &mut random);
                tokio::spawn(request.ask(proxy.client()))
            })
            .collect();
        // The point of the test: a time that nobody chose. Now and then one in which the store writes
        // what it does by itself.
        let longest = if random.u8(..8) == 0 {
            1_500_000
        } else {
            60_000
        };
        tokio::time::sleep(Duration::from_micros(random.u64(..longest))).await;
        proxy.kill9();
        for pull in pulls {
            // A client whose connection was never taken says so by a panic of its own.
            if let Err(error) = pull.await
                && error.is_panic()
            {
                let panic = error.into_panic();
                let said = panic.downcast_ref::<String>().map_or("", String::as_str);
                assert!(!said.contains("assertion"), "round {round}: {said}");
            }
        }
        proxy.assert_blobs_are_sound();
        let on_disk = bytes_below(&proxy.cache_dir());
        assert!(on_disk <= QUOTA + SLACK, "round {round}: {on_disk} bytes");
        let began = Stopwatch::start();
        proxy.restart();
        let took = began.took();
        assert!(took <= ready_within, "round {round}: ready after {took:?}");
        slowest = slowest.max(took);
    }
    println!("{rounds} kills; ready after {slowest:?} at the latest");

    let last = blob(&simulator, 1000, MIB);
    pull(&proxy, &last).await;
    assert_eq!(pull(&proxy, &last).await, "hit");
    for (digest, target) in &images {
        assert_whole(&proxy.client().get(target).await, digest);
    }
    until("nothing is left over", async || {
        files_below(&proxy.cache_dir().join("fills")).is_empty()
    })
    .await;
    idle(&proxy).await;
    proxy.assert_blobs_are_sound();
}
