//! Whether a big blob comes as fast as several connections bring it, where that is faster than one, and as
//! fast as one where it is not.

use std::time::Instant;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, Listener, Pattern};

use super::table::{Row, median};
use super::work::Figures;

/// The blob, in bytes.
const BYTES: u64 = 192 << 20;
/// What storage gives each connection, in bytes a second.
const OF_EACH: u64 = 24 << 20;
/// What a line gives all together.
const OF_ALL: u64 = 48 << 20;

impl Figures {
    pub(super) async fn ranges(&self) -> Vec<Row> {
        let faults = self.stage.simulator.faults();
        let limit = faults
            .on(Listener::Storage, "*", Pattern::any())
            .then(Fault::Rate(OF_EACH));
        let [direct, ours] = self.direct_and_ours(7000).await;
        limit.remove();
        faults.total_rate(Listener::Storage, Some(OF_ALL));
        let [line, ours_by_line] = self.direct_and_ours(8000).await;
        faults.total_rate(Listener::Storage, None);
        vec![
            Row::ratio(
                "big blob, each connection limited: total",
                ours,
                ("direct", direct),
                "s",
                0.35,
            ),
            Row::ratio(
                "big blob, the line limited: total",
                ours_by_line,
                ("direct", line),
                "s",
                1.02,
            ),
        ]
    }

    /// Seconds that a client takes for a cold blob without us and with us.
    async fn direct_and_ours(&self, seed: u64) -> [f64; 2] {
        let stage = &self.stage;
        let token = stage.simulator.token(FULL_ACCESS_KEY).expect("a principal");
        let authorization = format!("Basic {}", token.authorization_token);
        let mut totals = [Vec::new(), Vec::new()];
        for round in 0..self.rounds.min(3) as u64 {
            let image = stage.cold_image(seed + round, BYTES);
            let began = Instant::now();
            let taken = self.direct(&image.layer(), &authorization).await;
            assert_eq!(taken.bytes, BYTES);
            totals[0].push((taken.end - began).as_secs_f64());

            let mut connection = stage.proxy.tls().connect().await;
            connection.get(&image.manifest()).await;
            let began = Instant::now();
            let taken = connection.get(&image.layer()).await;
            assert_eq!(taken.bytes, BYTES);
            totals[1].push((taken.end - began).as_secs_f64());
            let [direct, ours] = [&totals[0], &totals[1]].map(|times| times[round as usize]);
            eprintln!("ranges: direct {direct:.2} s, ecr-proxy {ours:.2} s");
        }
        totals.map(median)
    }
}
