//! What was found damaged: remembered before it is taken away, and fetched again.
//!
//! The invariant: whatever was taken away for damage is remembered durably until it is there again or
//! nobody would be given it, whoever found it and however the process ends.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::metrics::ScrubMetrics;
use crate::cache::{Damage, ScrubProgress, Store};
use crate::fill::{FillError, Fills};
use crate::oci::Digest;
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

/// Most damaged blobs that are remembered. Beyond, they are fetched again when somebody asks.
const WANTED: usize = 10_000;

/// Pauses between attempts to fetch what is wanted: doubled while nothing comes of it.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10 * 60);

/// What came of an attempt to have a damaged blob whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healed {
    /// It was fetched, by this attempt or by somebody else's.
    Whole,
    /// No repository holds it any more, so nobody would be given it.
    Unneeded,
    /// It cannot be fetched now, and stays wanted.
    Later,
}

/// Has damaged blobs fetched again. Clones are the same.
#[derive(Clone)]
pub struct Healer {
    inner: Arc<Inner>,
}

struct Inner {
    fills: Fills,
    store: Store,
    metrics: ScrubMetrics,
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
    leaving: BTreeSet<Digest>,
}

/// A damaged blob that is remembered and still on disk. Dropped once it is gone, it is to be fetched.
#[must_use = "what is dropped is fetched at once"]
pub struct Leaving {
    healer: Healer,
    digest: Digest,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let digest = self.digest;
        let is_wanted = self.healer.with(|state| {
            let was_leaving = state.leaving.remove(&digest);
            was_leaving && state.wanted.insert(digest)
        });
        if is_wanted {
            self.healer.inner.wanted.notify_one();
        }
    }
}

impl Healer {
    /// Reads what an earlier process has left; nothing is fetched before [`Self::run`] or
    /// [`Self::heal`]. Blocks on the disk.
    pub fn new(fills: Fills, store: Store, metrics: ScrubMetrics) -> Self {
        let progress = store.scrub_progress();
        let state = State {
            wanted: progress.wanted().into_iter().collect(),
            progress,
            leaving: BTreeSet::new(),
        };
        Self {
            inner: Arc::new(Inner {
                fills,
                store,
                metrics,
                state: Mutex::new(state),
                wanted: Notify::new(),
                keeping: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Remembers that a blob is damaged, durably where the disk allows. To be called before it is taken
    /// away; what is returned is dropped after that.
    ///
    /// # Cancel safety
    /// Safe: it is then wanted at once.
    pub async fn remember(&self, digest: Digest, damage: Damage) -> Leaving {
        self.inner.metrics.found(kind(damage));
        self.with(|state| {
            if state.wanted.len() + state.leaving.len() < WANTED {
                state.leaving.insert(digest);
            }
        });
        let healer = self.clone();
        let leaving = Leaving { healer, digest };
        self.keep().await;
        leaving
    }

    /// Tries once to have a blob fetched, through a repository that is recorded to hold it.
    ///
    /// # Cancel safety
    /// Safe: it stays wanted.
    pub async fn heal(&self, digest: Digest) -> Healed {
        let (healed, is_new) = match self.fetch(digest).await {
            None => return Healed::Later,
            Some(None) => (Healed::Unneeded, false),
            Some(Some(outcome)) => (Healed::Whole, outcome != Outcome::Hit),
        };
        if self.with(|state| state.wanted.remove(&digest)) {
            if is_new {
                self.inner.metrics.healed.inc();
            }
            tracing::info!(oci.digest = %digest, ?healed, "a damaged blob is no longer wanted");
            self.keep().await;
        }
        healed
    }

    /// Fetches again what is wanted, one blob after the other, for ever.
    pub(super) async fn run(&self) {
        let mut retry = RETRY;
        self.count_wanted(self.wanted().len());
        loop {
            let wanted = self.wanted();
            if wanted.is_empty() {
                self.inner.wanted.notified().await;
                continue;
            }
            let mut came = false;
            for digest in wanted {
                came |= self.heal(digest).await != Healed::Later;
            }
            retry = if came {
                RETRY
            } else {
                (retry * 2).min(RETRY_MAX)
            };
            tokio::time::sleep(retry).await;
        }
    }

    /// How far the background scrub has come. Changes last when [`Self::keep`] is called.
    pub(super) fn progress<T>(&self, f: impl FnOnce(&mut ScrubProgress) -> T) -> T {
        self.with(|state| f(&mut state.progress))
    }

    /// Keeps what is noted. What cannot be written is done once more after a restart.
    pub(super) async fn keep(&self) {
        let _keeping = self.inner.keeping.lock().await;
        let progress = self.with(|state| {
            let wanted: BTreeSet<_> = state.wanted.union(&state.leaving).copied().collect();
            self.count_wanted(wanted.len());
            state.progress.set_wanted(wanted);
            state.progress.clone()
        });
        let kept = blocking(&self.inner.store, move |store| {
            store.keep_scrub_progress(&progress)
        });
        if let Some(Err(error)) = kept.await {
            tracing::debug!(%error, "how far the scrub has come is not kept");
        }
    }

    pub(super) fn fills(&self) -> &Fills {
        &self.inner.fills
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(super) fn metrics(&self) -> &ScrubMetrics {
        &self.inner.metrics
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let state = self.inner.state.lock();
        f(&mut state.unwrap_or_else(PoisonError::into_inner))
    }

    fn wanted(&self) -> Vec<Digest> {
        self.with(|state| state.wanted.iter().copied().collect())
    }

    fn count_wanted(&self, wanted: usize) {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        self.inner.metrics.wanted.set(wanted);
    }

    /// How it came; `None` within if no repository holds it, `None` to try again later.
    async fn fetch(&self, digest: Digest) -> Option<Option<Outcome>> {
        let holders = blocking(&self.inner.store, move |store| {
            let records = store.records();
            let mut holders = records.repositories();
            holders.retain(|repo| records.holds(repo, &digest).is_some());
            holders
        });
        let mut later = false;
        for repo in holders.await? {
            match self.inner.fills.fetch(&repo, digest, &|_, _| ()).await {
                Ok(fetched) => return Some(Some(fetched.how.outcome())),
                // Said of this repository; others may still have it.
                Err(FillError::Upstream(UpstreamError::Absent(_))) => {}
                Err(error) => {
                    tracing::debug!(oci.digest = %digest, oci.repository = %repo, %error, "a damaged blob is still wanted");
                    later = true;
                }
            }
        }
        (!later).then_some(None)
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

/// Runs `work` on a thread that may wait for the disk; `None` if it panicked.
pub(super) async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> T + Send + 'static,
) -> Option<T> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await.ok()
}
