//! Warming again and again, as the configuration says.

use std::time::Duration;

use futures_util::StreamExt as _;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::{Choice, Target, Warmed, Warmer};
use crate::telemetry::WarmResult;

/// After a round in which something failed, the next begins this much later, then after twice as long,
/// and so on up to the usual time between two.
const RETRY: Duration = Duration::from_secs(15);

/// What is warmed, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The images, all of one upstream.
    pub targets: Vec<Target>,
    /// What of them.
    pub choice: Choice,
    /// Between the end of a round and the next.
    pub every: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: WarmResult,
}

/// What came of scheduled images. Cloning is cheap; clones count together.
#[derive(Clone, Debug, Default)]
pub struct WarmMetrics {
    images: Family<ResultLabel, Counter>,
    bytes: Counter,
}

impl WarmMetrics {
    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "warm_images",
            "Images of [[warm]] looked at, by whether all of each is in the cache",
            self.images.clone(),
        );
        registry.register(
            "warm_bytes",
            "Bytes of blobs fetched for [[warm]]",
            self.bytes.clone(),
        );
    }

    fn count(&self, warmed: &Warmed) {
        let result = match warmed.is_complete() {
            true => WarmResult::Complete,
            false => WarmResult::Failed,
        };
        self.images.get_or_create(&ResultLabel { result }).inc();
        self.bytes.inc_by(warmed.fetched_bytes);
    }
}

impl Warmer {
    /// Warms what is scheduled at once and then again and again, for as long as it is not dropped. The
    /// schedules may become others: one that stays goes on as it was, and one that goes is broken off. While
    /// the upstream cannot answer nothing is tried, and when it can again everything is.
    ///
    /// # Cancel safety
    /// Safe: a fill that was begun is its own.
    pub async fn keep_warm(self, mut wanted: watch::Receiver<Vec<Schedule>>, metrics: WarmMetrics) {
        let mut running: Vec<(Schedule, AbortHandle)> = Vec::new();
        // Ends all of them with this.
        let mut rounds = JoinSet::new();
        loop {
            let schedules = wanted.borrow_and_update().clone();
            running.retain(|(schedule, task)| {
                let stays = schedules.contains(schedule);
                if !stays {
                    task.abort();
                }
                stays
            });
            for schedule in schedules {
                if !running.iter().any(|(running, _)| *running == schedule) {
                    let keep = self.clone().keep(schedule.clone(), metrics.clone());
                    running.push((schedule, rounds.spawn(keep)));
                }
            }
            if wanted.changed().await.is_err() {
                // They stay as they are.
                return std::future::pending().await;
            }
            while rounds.try_join_next().is_some() {}
        }
    }

    async fn keep(self, schedule: Schedule, metrics: WarmMetrics) {
        let mut failures = 0;
        loop {
            if let Some(first) = schedule.targets.first() {
                self.fills.until_answered(&first.repo).await;
            }
            failures = match self.round(&schedule, &metrics).await {
                true => 0,
                false => failures + 1,
            };
            tokio::time::sleep(pause(schedule.every, failures)).await;
        }
    }

    /// True if every image is in the cache now.
    async fn round(&self, schedule: &Schedule, metrics: &WarmMetrics) -> bool {
        let targets = schedule.targets.clone();
        let warming = self.images(targets, &schedule.choice, |_, _| ());
        let mut warming = std::pin::pin!(warming);
        let mut is_complete = true;
        while let Some((number, warmed)) = warming.next().await {
            metrics.count(&warmed);
            is_complete &= warmed.is_complete();
            let image = &schedule.targets[number].name;
            match warmed.errors.first() {
                Some(error) => tracing::warn!(
                    image,
                    error,
                    errors = warmed.errors.len(),
                    "an image could not be warmed"
                ),
                None if warmed.fetched_blobs > 0 => tracing::info!(
                    image,
                    blobs = warmed.fetched_blobs,
                    body.bytes = warmed.fetched_bytes,
                    "warmed"
                ),
                None => tracing::debug!(image, "warm already"),
            }
        }
        is_complete
    }
}

/// How long to wait after so many rounds in a row in which something failed.
fn pause(every: Duration, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => every,
        Some(doublings) => every.min(RETRY.saturating_mul(1 << doublings.min(16))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_sooner_and_ever_later() {
        let hour = Duration::from_secs(3600);
        for (failures, seconds) in [(0, 3600), (1, 15), (2, 30), (5, 240), (9, 3600), (99, 3600)] {
            assert_eq!(pause(hour, failures).as_secs(), seconds, "{failures}");
        }
        assert_eq!(pause(Duration::from_secs(1), 1).as_secs(), 1);
    }
}
