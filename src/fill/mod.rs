//! The one gate to content: proof that a repository holds a digest, one upstream body, its readers, the
//! disk.
//!
//! Three rules are held by construction:
//! - **No content without proof.** [`Fills::open`] wants a [`Pass`], only [`Fills::prove`] makes one, and it
//!   wants a [`Right`] and the repository's own record, or the upstream's word, that it holds the digest.
//!   That another repository holds the same blob is never enough.
//! - **Fetched once.** A fill is a task of its own, one a digest; whoever asks meanwhile follows it, and
//!   whoever leaves changes nothing. Only where the upstream that it asks does not answer is another asked as well.
//! - **Right bytes or no end.** What a [`Reader`] yields is bounded by the front of its flow, and only
//!   `Front::released` says how far that is.
//!
//! | file | is |
//! | --- | --- |
//! | `opening.rs`, `starting.rs` | where a blob comes from: hit, join, fill or bypass; one fill a digest |
//! | `proof.rs` | who may have it: that a repository holds a digest |
//! | `filling.rs`, `writer.rs` | the task of a fill; its thread that writes and hashes |
//! | `lanes.rs`, `stretches.rs`, `steering.rs`, `busy.rs` | the connections it comes by: who fetches what, how many are worth it, and whether we are the limit |
//! | `download.rs`, `pieces.rs` | one connection's bytes, continued past what breaks it; put together for the disk |
//! | `found.rs` | what was found, and how: what the gate answers |
//! | `failover.rs`, `elsewhere.rs` | the same repository elsewhere, while its own upstream cannot answer: for a question, and for a download under way |
//! | `fetch.rs` | a blob or manifest for nobody in particular |
//! | `origin.rs` | the place that a blob comes from, and how to tell that it is the same still |
//! | `interrupted.rs` | what is noted beside a download, to go on with it after a restart |
//! | `waiting.rs` | reads that may have to wait for the disk |
//! | `flow.rs`, `front.rs` | what a fill and its readers share; how far readers may go |
//! | `reader.rs`, `solo.rs`, `room.rs` | one client's way through a blob |
//! | `stored.rs`, `verifying.rs` | what is whole on disk; a file that is not yet believed |
//! | `manifests.rs`, `asker.rs` | tags and manifests: what is believed, and until when; what upstream is asked, and what is recorded of its answers |
//! | `policy.rs`, `learned.rs` | how long tags are believed; which never move |
//! | `recorded.rs`, `lately.rs`, `flight.rs` | what records say; what was noted a moment ago; one question at a time |
//! | `received.rs`, `pushed.rs` | a push on its way through; what upstream took of it |
//! | `lists.rs`, `tags.rs`, `catalog.rs` | lists of names, whole and in order; a repository's tags and a registry's repositories, also when upstream cannot tell |
//! | `referrers.rs` | what refers to a manifest, also when upstream cannot tell |
//!
//! It knows nothing of HTTP requests and answers.

mod asker;
mod busy;
mod catalog;
mod download;
mod elsewhere;
mod error;
mod failover;
mod fetch;
mod filling;
mod flight;
mod flow;
mod found;
mod front;
mod interrupted;
mod lanes;
mod lately;
mod learned;
mod lists;
mod manifests;
mod opening;
mod options;
mod origin;
mod pieces;
mod policy;
mod proof;
mod pushed;
mod reader;
mod received;
mod recorded;
mod referrers;
mod room;
mod solo;
mod starting;
mod steering;
mod stored;
mod stretches;
mod tags;
#[cfg(test)]
mod tests;
mod verifying;
mod waiting;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};

pub use catalog::Repositories;
pub use error::FillError;
pub use found::{Found, How, Stale};
pub use manifests::{Refreshed, Staleness};
pub use opening::{Content, Parts, Want};
pub use options::FillOptions;
pub use policy::{TagPolicies, TagPolicy};
pub use proof::Pass;
pub use reader::{Reader, Step};
pub use received::Received;
pub use referrers::referrers_tag;
pub use tags::TagPage;

use crate::access::{Right, Turn, Turns};
use crate::buffers::BufferPool;
use crate::cache::{Store, StoredManifest};
use crate::clock::Clock;
use crate::oci::{Digest, Reference, RepoKey};
use crate::telemetry::FillMetrics;
use crate::upstream::{Absent, Upstream, UpstreamError, Upstreams};
use elsewhere::{Elsewhere, any_answers};
use failover::Place as _;
use flight::Flights;
use flow::Flow;
use lately::{Lately, Noted};
use lists::Lists;
use manifests::Manifests;
use origin::Origin;
use recorded::Recorded;
use verifying::Verifiers;

/// The gate. Clone is cheap and shares everything.
#[derive(Clone)]
pub struct Fills {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    upstreams: Upstreams,
    buffers: BufferPool,
    options: Arc<ArcSwap<FillOptions>>,
    metrics: FillMetrics,
    clock: Clock,
    manifests: Manifests,
    lists: Lists,
    recorded: Recorded,
    /// See [`starting`]; no list is empty.
    running: Mutex<HashMap<Digest, Vec<Running>>>,
    /// Told when a fill begins beside another of the same blob.
    beside: watch::Sender<()>,
    verifying: Mutex<HashMap<Digest, Arc<Flow>>>,
    /// How much of cold blobs was asked for by ranges: bounded, lost on restart.
    asked: moka::sync::Cache<Digest, u64>,
    /// Absent blobs, remembered for a moment.
    absent: Lately<Absent>,
    probes: Flights<(RepoKey, Digest), Result<Option<u64>, UpstreamError>>,
    /// Records that are checked in the background, or were a moment ago.
    checked: Noted,
    /// When a blob was last deleted through this proxy: an answer to a question asked before then is older.
    deleted: Noted,
    slots: Turns,
    /// For ranges that go past the cache.
    bypasses: Turns,
    /// Apart from those of clients, who never wait for what nobody asked for.
    background_slots: Turns,
    /// For connections of fills beside each one's first.
    spare_lanes: Arc<Semaphore>,
    verifiers: Verifiers,
}

/// A fill in progress, and whom it asks for the blob.
struct Running {
    asked: Asked,
    flow: Arc<Flow>,
    /// Where it takes a turn, for as long as it waits for one.
    turns: mpsc::Sender<Turn>,
}

/// A repository, and the registry that speaks for it.
#[derive(Clone)]
struct Asked {
    repo: RepoKey,
    upstream: Upstream,
    /// Whether it is waited for even where another might answer instead.
    stays: bool,
}

impl Fills {
    /// Puts the parts together. Nothing runs until something is asked.
    pub fn new(
        store: Store,
        upstreams: Upstreams,
        buffers: BufferPool,
        clock: Clock,
        options: FillOptions,
        metrics: FillMetrics,
    ) -> Self {
        let recorded = Recorded::new(store.clone(), upstreams.clone());
        let (slots, bypasses) = (options.max_fills, options.max_bypasses);
        let background_slots = options.max_background_fills;
        let options = Arc::new(ArcSwap::from_pointee(options));
        let manifests = Manifests::new(
            recorded.clone(),
            upstreams.clone(),
            clock.clone(),
            Arc::clone(&options),
            metrics.clone(),
        );
        Self {
            shared: Arc::new(Shared {
                manifests,
                lists: Lists::new(upstreams.clone()),
                recorded,
                running: Mutex::default(),
                beside: watch::Sender::new(()),
                verifying: Mutex::default(),
                asked: moka::sync::Cache::builder()
                    .max_capacity(10_000)
                    .time_to_idle(Duration::from_secs(60 * 60))
                    .build(),
                absent: Lately::optional(&options, |options| options.absent_ttl),
                probes: Flights::default(),
                checked: Noted::lasting(manifests::CHECK_PAUSE),
                deleted: Noted::lasting(manifests::CHECK_PAUSE),
                slots: Turns::new(slots),
                bypasses: Turns::new(bypasses),
                background_slots: Turns::new(background_slots),
                spare_lanes: Arc::new(Semaphore::new(lanes::SPARE_LANES)),
                verifiers: Verifiers::default(),
                store,
                upstreams,
                buffers,
                options,
                metrics,
                clock,
            }),
        }
    }

    /// Takes other options, which count from the next question on; how many fills run at once stays as it is.
    /// What was absent a moment ago is asked for again.
    pub fn set_options(&self, options: FillOptions) {
        if **self.shared.options.load() != options {
            self.shared.options.store(Arc::new(options));
            self.shared.absent.forget_all();
            self.shared.manifests.forget_absences();
        }
    }

    /// Forgets what upstreams were heard to say, apart from what is recorded, and does not wait for what they
    /// are being asked: they may be others by now.
    pub fn forget_answers(&self) {
        self.shared.absent.forget_all();
        self.shared.checked.forget_all();
        self.shared.probes.abandon();
        self.shared.manifests.forget_answers();
        self.shared.lists.forget_answers();
    }

    /// The manifest that `reference` names in `repo`, by its record or from upstream.
    ///
    /// # Errors
    /// The upstream's, where nothing kept may be served instead.
    ///
    /// # Cancel safety
    /// Questions to the upstream run in tasks of their own and are shared; a caller may leave.
    pub async fn manifest(
        &self,
        right: &Right,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Result<Found<StoredManifest>, FillError> {
        debug_assert_ne!(right.action(), crate::access::Action::Delete);
        let shared = &self.shared;
        let find = |repo: RepoKey| async move {
            let found = shared.manifests.find(&repo, reference).await?;
            shared.store.manifest_used(&repo, &found.what.digest);
            Ok(found)
        };
        match right.credential() {
            None => shared.anywhere(repo, find).await,
            Some(_) => find(repo.clone()).await,
        }
    }

    /// As [`Self::manifest`], to somebody who sends what is not there: what is recorded under a digest counts only
    /// while upstream's word is fresh, for the image may have been deleted since. Where upstream cannot answer the
    /// record does.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    ///
    /// # Cancel safety
    /// As [`Self::manifest`].
    pub async fn confirm_manifest(
        &self,
        right: &Right,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Result<Found<StoredManifest>, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Push);
        if let Reference::Digest(digest) = reference {
            self.shared.manifests.confirm(repo, *digest).await?;
        }
        self.manifest(right, repo, reference).await
    }

    /// Tags that were answered as they last were since upstream last confirmed one, if a moment ago.
    pub fn stale_tags(&self) -> Option<Staleness> {
        self.shared.manifests.stale()
    }

    /// Returns at once while the upstream of `repo` or one that stands in for it answers, and otherwise soon
    /// after one does again, or the set of upstreams is replaced.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn until_answered(&self, repo: &RepoKey) {
        let replaced = self.shared.upstreams.replaced();
        let mut repos = repo.stand_ins(&self.shared);
        repos.push(repo.clone());
        let upstreams = self.shared.upstreams.of_all(&repos);
        // What is not configured any more is not waited for.
        if !upstreams.is_empty() {
            tokio::select! {
                _ = any_answers(&upstreams) => {}
                () = replaced => {}
            }
        }
    }

    /// Waits until an upstream that does not answer now does again, or there are others; for ever where all
    /// answer.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn until_one_returns(&self) {
        self.shared.upstreams.one_returns().await;
    }

    /// Waits until every fill that was begun for a client has ended and its blob is kept, until
    /// `deadline` at the latest. What nobody asked for is gone on with another time.
    pub async fn drain(&self, deadline: Instant) {
        // Every such fill has a turn until its end, or waits for one.
        let _ = timeout_at(deadline, self.shared.slots.until_unwanted()).await;
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<Digest, Vec<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to ask about a repository now.
    fn asked(&self, repo: &RepoKey) -> Result<Asked, UpstreamError> {
        Ok(Asked {
            repo: repo.clone(),
            upstream: self.upstreams.of(repo)?,
            stays: false,
        })
    }

    /// Whom to ask on the strength of a pass.
    fn asked_by(&self, pass: &Pass) -> Result<Asked, UpstreamError> {
        let asked = self.asked(&pass.repo)?;
        let stays = pass.stays;
        Ok(Asked { stays, ..asked })
    }

    fn origin(self: &Arc<Self>, asked: &Asked) -> Origin {
        let Asked {
            repo,
            upstream,
            stays,
        } = asked.clone();
        let repository = repo.repository.clone();
        let elsewhere = Elsewhere::new(Arc::downgrade(self), repo, stays);
        Origin::new(upstream, repository).or(elsewhere)
    }
}
