//! Hashing everything stored again, behind whatever else is to do, and fetching again what was damaged.
//!
//! A pass begins weeks after the one before, or after the store was new, reads at a bounded rate, goes on after a restart where it
//! stopped, and gives way while clients wait for the upstream. What it finds is noted durably, taken
//! away, and fetched again as soon as the upstream answers, whenever that is.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::{Damage, Scrub, ScrubProgress, Scrubbed, Store};
use crate::clock::Clock;
use crate::fill::{FillError, Fills};
use crate::oci::Digest;
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

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

/// Most damaged blobs that are remembered. Beyond, they are fetched again when somebody asks.
const WANTED: usize = 10_000;

/// Pauses between attempts to fetch what is wanted: doubled while nothing comes of it.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10 * 60);

/// How long a pass that cannot go on waits before it does.
const UNABLE: Duration = Duration::from_secs(60 * 60);

/// Handles of what the background scrub counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ScrubMetrics {
    /// Bytes read.
    pub bytes: Counter,
    /// Blobs that were hashed to their end.
    pub blobs: Counter,
    found: Family<DamageLabel, Counter>,
    /// Damaged blobs that are whole again.
    pub healed: Counter,
    /// Damaged blobs that are still to be fetched again.
    pub wanted: Gauge,
    /// When the last pass over everything ended, or the store was new; seconds since 1970.
    pub finished: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DamageLabel {
    damage: &'static str,
}

impl ScrubMetrics {
    /// Registers all handles under their names, without the program's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "scrub",
            "Bytes that the background scrub has read",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "scrub_blobs",
            "Blobs that the background scrub has hashed",
            self.blobs.clone(),
        );
        registry.register(
            "scrub_found",
            "Damage that the background scrub has found, by kind",
            self.found.clone(),
        );
        registry.register(
            "scrub_healed",
            "Damaged blobs that were fetched again",
            self.healed.clone(),
        );
        registry.register(
            "scrub_wanted",
            "Damaged blobs that are still to be fetched again",
            self.wanted.clone(),
        );
        registry.register(
            "scrub_finished_timestamp_seconds",
            "When the last pass over everything ended, or the cache was new, seconds since 1970",
            self.finished.clone(),
        );
    }

    fn found(&self, damage: &'static str) {
        self.found.get_or_create(&DamageLabel { damage }).inc();
    }
}

fn kind(damage: Damage) -> &'static str {
    match damage {
        Damage::Digest(_) => "digest",
        Damage::Length(_) => "length",
        Damage::Unreadable => "unreadable",
        Damage::NotAFile => "no_file",
    }
}

/// Scrubs for as long as it is not dropped.
///
/// # Cancel safety
/// Safe: a pass goes on where it stopped, and what was found is remembered.
pub async fn scrub(
    fills: Fills,
    store: Store,
    clock: Clock,
    options: ScrubOptions,
    metrics: ScrubMetrics,
) {
    let progress = blocking(&store, Store::scrub_progress).await;
    let job = Job {
        notes: Notes::new(progress.unwrap_or_default()),
        fills,
        store,
        clock,
        options,
        metrics,
    };
    tokio::join!(job.passes(), job.heal());
}

struct Job {
    fills: Fills,
    store: Store,
    clock: Clock,
    options: ScrubOptions,
    metrics: ScrubMetrics,
    notes: Notes,
}

/// What is kept of the scrub's progress, and what is wanted.
#[derive(Default)]
struct Notes {
    state: Mutex<State>,
    /// Told when something is wanted.
    wanted: Notify,
    /// One writes at a time, and what is newest comes last.
    keeping: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    progress: ScrubProgress,
    wanted: BTreeSet<Digest>,
    /// Damaged, and still on disk: whoever fetched it now would find it there.
    leaving: Option<Digest>,
}

impl Notes {
    fn new(progress: ScrubProgress) -> Self {
        let notes = Self::default();
        notes.with(|state| {
            state.wanted.extend(progress.wanted());
            state.progress = progress;
        });
        notes
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wanted(&self) -> Vec<Digest> {
        self.with(|state| state.wanted.iter().copied().collect())
    }

    /// What was leaving is gone.
    fn left(&self) {
        let left = self.with(|state| {
            let left = state.leaving.take();
            state.wanted.extend(left);
            left
        });
        if left.is_some() {
            self.wanted.notify_one();
        }
    }
}

impl Job {
    async fn passes(&self) {
        tokio::time::sleep(self.options.after_start).await;
        while !self.index_is_ready().await {}
        if self.notes.with(|State { progress, .. }| progress.is_new()) {
            // What is fetched from now on is hashed on the way in.
            self.end_pass().await;
        }
        loop {
            let (begun, wait) = self.notes.with(|State { progress, .. }| {
                let since = progress.since_finished(self.clock.now());
                let wait = self.options.pause.saturating_sub(since);
                let finished = i64::try_from(progress.finished.unwrap_or(0)).unwrap_or(0);
                self.metrics.finished.set(finished);
                (progress.begun.is_some(), wait)
            });
            if !begun {
                if !wait.is_zero() {
                    tokio::time::sleep(wait.min(UNABLE)).await;
                    continue;
                }
                let now = self.now();
                self.notes.with(|State { progress, .. }| {
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
        self.notes.with(|State { progress, .. }| {
            progress.begun = None;
            progress.finished = Some(now);
            progress.set_after(None);
        });
        self.keep().await;
    }

    /// Goes on with a pass; true if it came to its end.
    async fn pass(&self) -> bool {
        let after = self.notes.with(|State { progress, .. }| progress.after());
        let mut pace = Pace::new(self.rate());
        let mut scrub = self.store.scrub(after);
        let mut tally = Tally::default();
        let mut kept = (Instant::now(), 0);
        loop {
            self.give_way().await;
            let Some((back, told)) = step(scrub).await else {
                return false;
            };
            scrub = back;
            self.notes.left();
            let Some(told) = told else {
                tally.report();
                return true;
            };
            let mut cost = 0;
            match &told {
                Scrubbed::Read(read) => cost = *read,
                Scrubbed::Sound { read, .. } => cost = (*read).max(PER_FILE),
                Scrubbed::Damaged { digest, damage } => {
                    self.note_damage(*digest, *damage).await;
                }
                Scrubbed::Log {
                    repository,
                    damaged,
                } if *damaged > 0 => {
                    tracing::warn!(oci.repository = %repository, damaged, "a repository's log is damaged and is written anew");
                    self.metrics.found("record");
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
            self.metrics.bytes.inc_by(read_in(&told));
            if matches!(told, Scrubbed::Sound { .. } | Scrubbed::Damaged { .. }) {
                self.metrics.blobs.inc();
                kept.1 += 1;
            }
            if kept.1 >= KEEP_BLOBS || kept.0.elapsed() >= KEEP_EVERY {
                kept = (Instant::now(), 0);
                let position = scrub.position();
                self.notes
                    .with(|State { progress, .. }| progress.set_after(position));
                self.keep().await;
            }
            pace.spend(cost).await;
        }
    }

    async fn note_damage(&self, digest: Digest, damage: Damage) {
        self.metrics.found(kind(damage));
        self.notes.with(|state| {
            let room = state.wanted.len() < WANTED;
            state.leaving = room.then_some(digest);
        });
        // Before it is taken away.
        self.keep().await;
    }

    /// Keeps what is noted. What cannot be written is done once more after a restart.
    async fn keep(&self) {
        let _keeping = self.notes.keeping.lock().await;
        let progress = self.notes.with(|state| {
            let wanted: Vec<Digest> = state.wanted.iter().copied().chain(state.leaving).collect();
            self.count_wanted(wanted.len());
            state.progress.set_wanted(wanted);
            state.progress.clone()
        });
        let kept = blocking(&self.store, move |store| {
            store.keep_scrub_progress(&progress)
        });
        if let Some(Err(error)) = kept.await {
            tracing::debug!(%error, "how far the scrub has come is not kept");
        }
    }

    fn count_wanted(&self, wanted: usize) {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        self.metrics.wanted.set(wanted);
    }

    /// Fetches again what is wanted, one blob after the other.
    async fn heal(&self) {
        let mut retry = RETRY;
        self.count_wanted(self.notes.wanted().len());
        loop {
            let wanted = self.notes.wanted();
            if wanted.is_empty() {
                self.notes.wanted.notified().await;
                continue;
            }
            let mut came = false;
            for digest in wanted {
                let Some(healed) = self.fetch(digest).await else {
                    continue;
                };
                if healed {
                    self.metrics.healed.inc();
                }
                tracing::info!(oci.digest = %digest, healed, "a damaged blob is no longer wanted");
                came = true;
                self.notes.with(|state| state.wanted.remove(&digest));
                self.keep().await;
            }
            retry = if came {
                RETRY
            } else {
                (retry * 2).min(RETRY_MAX)
            };
            tokio::time::sleep(retry).await;
        }
    }

    /// Fetches a blob through a repository that is recorded to hold it: true if it came, false if it is
    /// there already or no repository holds it any more, so that nobody will be given it; `None` to try
    /// again later.
    async fn fetch(&self, digest: Digest) -> Option<bool> {
        let holders = blocking(&self.store, move |store| {
            let records = store.records();
            let mut holders = records.repositories();
            holders.retain(|repo| records.holds(repo, &digest).is_some());
            holders
        });
        let mut later = false;
        for repo in holders.await? {
            match self.fills.fetch(&repo, digest, &mut |_, _| ()).await {
                Ok(fetched) => return Some(fetched.outcome != Outcome::Hit),
                // Said of this repository; others may still have it.
                Err(FillError::Upstream(UpstreamError::Absent(_))) => {}
                Err(error) => {
                    tracing::debug!(oci.digest = %digest, oci.repository = %repo, %error, "a damaged blob is still wanted");
                    later = true;
                }
            }
        }
        (!later).then_some(false)
    }

    async fn give_way(&self) {
        let deadline = Instant::now() + GIVE_WAY;
        while self.fills.are_attended() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn index_is_ready(&self) -> bool {
        let ready = blocking(&self.store, |store| {
            store.wait_ready(Duration::from_secs(1))
        });
        ready.await.unwrap_or(false)
    }

    fn rate(&self) -> u64 {
        let needed = self.store.usage().final_bytes / self.options.at_most.as_secs().max(1);
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

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> Option<T> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await.ok()
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
