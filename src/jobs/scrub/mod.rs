//! Hashing everything stored again, behind whatever else is to do, and fetching again what was damaged.
//!
//! A pass begins weeks after the one before, or after the store was new, reads at a bounded rate, goes on
//! after a restart where it stopped, and gives way while clients wait for the upstream. What it finds is
//! noted durably, taken away, and fetched again as soon as the upstream answers, whenever that is.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | passes over everything, at their pace |
//! | `healing.rs` | what was found damaged, by a pass or by whoever asked for one |
//! | `metrics.rs` | what is counted |

mod healing;
mod metrics;

use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

pub use healing::{Healed, Healer};
pub use metrics::ScrubMetrics;

use crate::cache::{Scrub, Scrubbed};
use crate::clock::Clock;
use healing::blocking;

/// How the background scrub behaves.
#[derive(Clone, Debug)]
pub struct ScrubOptions {
    /// How long after the process began, so that whoever waits for the start goes first.
    pub after_start: Duration,
    /// Pause between the end of a pass and the beginning of the next. Disks lose a block in years, and
    /// a dying one tells by errors.
    pub pause: Duration,
    /// Bytes that a pass reads in a second: some hundredths of what any disk and half a percent of what
    /// a core can do.
    pub rate: u64,
    /// A pass takes no longer than this, at whatever rate: a large store would never be seen whole.
    pub at_most: Duration,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self {
            after_start: Duration::from_secs(3),
            pause: Duration::from_secs(30 * 24 * 60 * 60),
            rate: 8 << 20,
            at_most: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// What opening a file counts for, in bytes: a million small blobs must not keep a disk seeking.
const PER_FILE: u64 = 32 << 10;

/// A step waits no longer than this for clients: a server that is busy all day is scrubbed as well.
const GIVE_WAY: Duration = Duration::from_secs(1);

/// How often it is looked whether clients still wait.
const LOOK: Duration = Duration::from_millis(50);

/// Progress is kept after so many blobs, or this time: what a kill costs to be done once more.
const KEEP_BLOBS: u32 = 64;
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// How long a pass that cannot go on waits before it does.
const UNABLE: Duration = Duration::from_secs(60 * 60);

/// Scrubs, and fetches again what is damaged, for as long as it is not dropped.
///
/// # Cancel safety
/// Safe: a pass goes on where it stopped, and what was found is remembered.
pub async fn scrub(healer: Healer, clock: Clock, options: ScrubOptions) {
    let job = Job {
        healer,
        clock,
        options,
    };
    tokio::join!(job.passes(), job.healer.run());
}

struct Job {
    healer: Healer,
    clock: Clock,
    options: ScrubOptions,
}

impl Job {
    async fn passes(&self) {
        tokio::time::sleep(self.options.after_start).await;
        while !self.index_is_ready().await {}
        if self.healer.progress(|progress| progress.is_new()) {
            // What is fetched from now on is hashed on the way in.
            self.end_pass().await;
        }
        loop {
            let (begun, wait) = self.healer.progress(|progress| {
                let since = progress.since_finished(self.clock.now());
                let wait = self.options.pause.saturating_sub(since);
                let finished = i64::try_from(progress.finished.unwrap_or(0)).unwrap_or(0);
                self.healer.metrics().finished.set(finished);
                (progress.begun.is_some(), wait)
            });
            if !begun {
                if !wait.is_zero() {
                    tokio::time::sleep(wait.min(UNABLE)).await;
                    continue;
                }
                let now = self.now();
                self.healer.progress(|progress| {
                    progress.begun = Some(now);
                    progress.set_after(None);
                });
            }
            match self.pass().await {
                true => self.end_pass().await,
                false => tokio::time::sleep(UNABLE).await,
            }
        }
    }

    async fn end_pass(&self) {
        let now = self.now();
        self.healer.progress(|progress| {
            progress.begun = None;
            progress.finished = Some(now);
            progress.set_after(None);
        });
        self.healer.keep().await;
    }

    /// Goes on with a pass; true if it came to its end.
    async fn pass(&self) -> bool {
        let after = self.healer.progress(|progress| progress.after());
        let mut pace = Pace::new(self.rate());
        let mut scrub = self.healer.store().scrub(after);
        let mut tally = Tally::default();
        // Taken away by the step after the one that told of it.
        let mut leaving = None;
        let mut kept = (Instant::now(), 0);
        loop {
            self.give_way().await;
            let Some((back, told)) = step(scrub).await else {
                return false;
            };
            scrub = back;
            drop(leaving.take());
            let Some(told) = told else {
                tally.report();
                return true;
            };
            let mut cost = 0;
            match &told {
                Scrubbed::Read(read) => cost = *read,
                Scrubbed::Sound { read, .. } => cost = (*read).max(PER_FILE),
                Scrubbed::Damaged { digest, damage } => {
                    leaving = Some(self.healer.remember(*digest, *damage).await);
                }
                Scrubbed::Log {
                    repository,
                    damaged,
                } if *damaged > 0 => {
                    tracing::warn!(oci.repository = %repository, damaged, "a repository's log is damaged and is written anew");
                    self.healer.metrics().found("record");
                }
                Scrubbed::Unreadable { path, error } => {
                    tracing::warn!(path, error, "the scrub cannot read a part of the cache");
                }
                Scrubbed::Failing => {
                    tracing::error!("the cache's disk does not read: the scrub stops for now");
                    return false;
                }
                Scrubbed::Gone(_) | Scrubbed::Foreign(_) | Scrubbed::Log { .. } => {}
            }
            tally.count(&told);
            self.healer.metrics().bytes.inc_by(read_in(&told));
            if matches!(told, Scrubbed::Sound { .. } | Scrubbed::Damaged { .. }) {
                self.healer.metrics().blobs.inc();
                kept.1 += 1;
            }
            if kept.1 >= KEEP_BLOBS || kept.0.elapsed() >= KEEP_EVERY {
                kept = (Instant::now(), 0);
                let position = scrub.position();
                self.healer
                    .progress(|progress| progress.set_after(position));
                self.healer.keep().await;
            }
            pace.spend(cost).await;
        }
    }

    async fn give_way(&self) {
        let deadline = Instant::now() + GIVE_WAY;
        while self.healer.fills().are_attended() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn index_is_ready(&self) -> bool {
        let ready = blocking(self.healer.store(), |store| {
            store.wait_ready(Duration::from_secs(1))
        });
        ready.await.unwrap_or(false)
    }

    fn rate(&self) -> u64 {
        let needed =
            self.healer.store().usage().final_bytes / self.options.at_most.as_secs().max(1);
        self.options.rate.max(needed)
    }

    fn now(&self) -> u64 {
        let since = self.clock.now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }
}

fn read_in(told: &Scrubbed) -> u64 {
    match told {
        Scrubbed::Read(read) | Scrubbed::Sound { read, .. } => *read,
        _ => 0,
    }
}

async fn step(mut scrub: Scrub) -> Option<(Scrub, Option<Scrubbed>)> {
    let step = tokio::task::spawn_blocking(move || {
        let told = scrub.next();
        (scrub, told)
    });
    step.await.ok()
}

/// Spends no more than so many bytes in a second, a second's worth of them at once.
struct Pace {
    rate: u64,
    due: Instant,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            due: Instant::now(),
        }
    }

    /// Waits until `cost` bytes may have been spent.
    async fn spend(&mut self, cost: u64) {
        // Time that was lost is not caught up.
        self.due = self.due.max(Instant::now());
        self.due += Duration::from_secs_f64(cost as f64 / self.rate as f64);
        tokio::time::sleep_until(self.due).await;
    }
}

/// What a pass met since the process began.
#[derive(Default)]
struct Tally {
    blobs: u64,
    bytes: u64,
    damaged: u64,
    foreign: u64,
    unreadable: u64,
}

impl Tally {
    fn count(&mut self, told: &Scrubbed) {
        self.bytes += read_in(told);
        match told {
            Scrubbed::Sound { .. } => self.blobs += 1,
            Scrubbed::Damaged { .. } => self.damaged += 1,
            Scrubbed::Foreign(_) => self.foreign += 1,
            Scrubbed::Unreadable { .. } => self.unreadable += 1,
            Scrubbed::Log { damaged, .. } => self.damaged += u64::from(*damaged > 0),
            Scrubbed::Read(_) | Scrubbed::Gone(_) | Scrubbed::Failing => {}
        }
    }

    fn report(&self) {
        tracing::info!(
            scrub.blobs = self.blobs,
            scrub.bytes = self.bytes,
            scrub.damaged = self.damaged,
            scrub.foreign = self.foreign,
            scrub.unreadable = self.unreadable,
            "everything in the cache was hashed again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_held_and_lost_time_is_not_caught_up() {
        let began = Instant::now();
        let mut pace = Pace::new(1000);
        for _ in 0..10 {
            pace.spend(500).await;
        }
        assert_eq!(began.elapsed().as_millis(), 5000);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let again = Instant::now();
        pace.spend(2000).await;
        assert_eq!(again.elapsed().as_millis(), 2000);
    }
}
