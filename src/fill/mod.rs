//! The one gate to content: proof that a repository holds a digest, one upstream body, its readers, the
//! disk.
//!
//! Three rules are held by construction:
//! - **No content without proof.** [`Fills::open`] wants a [`Pass`], only [`Fills::prove`] makes one, and it
//!   wants a [`Right`] and the repository's own record, or the upstream's word, that it holds the digest.
//!   That another repository holds the same blob is never enough.
//! - **Fetched once.** A fill is a task of its own, one a digest; whoever asks meanwhile follows it, and
//!   whoever leaves changes nothing.
//! - **Right bytes or no end.** What a [`Reader`] yields is bounded by the front of its flow, and only
//!   `Front::released` says how far that is.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | where a blob comes from: hit, join, fill or bypass |
//! | `proof.rs` | who may have it: that a repository holds a digest |
//! | `filling.rs`, `writer.rs` | the task of a fill; its thread that writes and hashes |
//! | `lanes.rs`, `stretches.rs`, `steering.rs`, `busy.rs` | the connections it comes by: who fetches what, how many are worth it, and whether we are the limit |
//! | `download.rs`, `pieces.rs` | one connection's bytes, continued past what breaks it; put together for the disk |
//! | `fetch.rs` | a blob or manifest for nobody in particular |
//! | `interrupted.rs` | what is noted beside a download, to go on with it after a restart |
//! | `waiting.rs` | reads that may have to wait for the disk |
//! | `flow.rs`, `front.rs` | what a fill and its readers share; how far readers may go |
//! | `reader.rs`, `solo.rs`, `room.rs` | one client's way through a blob |
//! | `stored.rs`, `verifying.rs` | what is whole on disk; a file that is not yet believed |
//! | `manifests.rs`, `policy.rs`, `learned.rs` | tags and manifests; how long tags are believed; which never move |
//! | `recorded.rs`, `flight.rs` | what records say; one question at a time |
//! | `referrers.rs` | what refers to a manifest, also when upstream cannot tell |
//!
//! It knows nothing of HTTP requests and answers.

mod busy;
mod download;
mod error;
mod fetch;
mod filling;
mod flight;
mod flow;
mod front;
mod interrupted;
mod lanes;
mod learned;
mod manifests;
mod pieces;
mod policy;
mod proof;
mod reader;
mod recorded;
mod referrers;
mod room;
mod solo;
mod steering;
mod stored;
mod stretches;
#[cfg(test)]
mod tests;
mod verifying;
mod waiting;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

pub use error::FillError;
pub use fetch::Fetched;
pub use manifests::{FoundManifest, Refreshed, Staleness};
pub use policy::TagPolicy;
pub use proof::Pass;
pub use reader::{Reader, Step};
pub use referrers::{FoundReferrers, referrers_tag};

use crate::access::Right;
use crate::buffers::BufferPool;
use crate::cache::Store;
use crate::clock::Clock;
use crate::oci::{ByteRange, Digest, RangeSet, RepoKey, RepositoryName, Routed};
use crate::telemetry::{FillMetrics, Outcome};
use crate::upstream::{Absent, BlobBody, Interest, Span, Upstream, UpstreamError, Validator};
use filling::Filling;
use flight::Flights;
use flow::{Attendance, Flow};
use front::{Front, Phase, TAIL};
use manifests::Manifests;
use proof::KnownSize;
use reader::{Following, Source};
use recorded::Recorded;

/// How far ahead of a fill's front a range may begin and still wait for it, in bytes; and the size from
/// which a single range from the start is taken for the wish to have it all (design, "Ranges").
const NEAR: u64 = 8 * 1024 * 1024;

/// Of a cold blob, what part of it must have been asked for by ranges before the whole is fetched.
const ASKED_ENOUGH: u64 = 4;

/// How often a blob is looked for that is always kept just after. More than once takes a file that is
/// there and cannot be served, which is nothing to go round in circles for.
const LOOKS: u32 = 3;

/// How fills behave.
#[derive(Clone, Debug)]
pub struct FillOptions {
    /// How many fills for clients run at once; more wait for their turn.
    pub max_fills: usize,
    /// How many fills that no client asked for run beside them.
    pub max_background_fills: usize,
    /// How long a request waits for the head of an upstream's answer. Below the 30 s after which
    /// containerd gives up.
    pub head_deadline: Duration,
    /// How long a broken or stalled transfer is continued without getting anywhere, before every
    /// reader is told. Beyond the time for which the upstream waits for one body, so that one stalled
    /// connection is not the end.
    pub patience: Duration,
    /// A repository's record of a digest, where it rests on upstream's word, is asked for again in the
    /// background after this.
    pub record_ttl: Duration,
    /// How tags are believed.
    pub tags: Routed<TagPolicy>,
    /// How long a client waits for the check of a tag that it may have stale. The check goes on, for the
    /// next. A person hardly notices so much, and most lines answer within.
    pub tag_wait: Duration,
    /// How long a tag is believed that the registry keeps from moving, where that is longer. It may still
    /// be deleted, and pushed anew after that.
    pub immutable_ttl: Duration,
    /// How long absence is remembered.
    pub absent_ttl: Duration,
}

impl Default for FillOptions {
    fn default() -> Self {
        Self {
            max_fills: 64,
            // As many as docker fetches at once for one pull, and one to go on with what broke off.
            max_background_fills: 4,
            head_deadline: Duration::from_secs(25),
            patience: Duration::from_secs(60),
            record_ttl: Duration::from_secs(24 * 60 * 60),
            tags: Routed::from(TagPolicy::default()),
            tag_wait: Duration::from_secs(2),
            immutable_ttl: Duration::from_secs(24 * 60 * 60),
            absent_ttl: Duration::from_secs(5),
        }
    }
}

/// What of a blob is wanted, and how.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// Only these ranges.
    pub ranges: Option<RangeSet>,
    /// The bytes go to a socket as they are, so they may come as a mapping of the file.
    pub mapped: bool,
}

/// A blob, or parts of it, ready to be sent.
pub struct Content {
    /// The size of the whole blob in bytes.
    pub size: u64,
    /// Where it comes from.
    pub outcome: Outcome,
    /// What was wanted of it.
    pub parts: Parts,
}

/// What was wanted of a blob.
pub enum Parts {
    /// All of it; nothing to read when it is empty.
    Whole(Option<Reader>),
    /// One range.
    One(ByteRange, Reader),
    /// Several ranges, in the order asked.
    Many(Vec<(ByteRange, Reader)>),
}

/// The gate. Clone is cheap and shares everything.
#[derive(Clone)]
pub struct Fills {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    upstream: Upstream,
    buffers: BufferPool,
    options: FillOptions,
    metrics: FillMetrics,
    clock: Clock,
    manifests: Manifests,
    recorded: Recorded,
    running: Mutex<HashMap<Digest, Running>>,
    verifying: Mutex<HashMap<Digest, Arc<Flow>>>,
    /// How much of cold blobs was asked for by ranges: bounded, lost on restart.
    asked: moka::sync::Cache<Digest, u64>,
    /// Absent blobs, remembered for a moment.
    absent: moka::sync::Cache<(RepoKey, Digest), Absent>,
    probes: Flights<(RepoKey, Digest), Result<Option<u64>, UpstreamError>>,
    /// Records that are checked in the background, or were a moment ago.
    checked: moka::sync::Cache<(RepoKey, Digest), ()>,
    slots: Arc<Semaphore>,
    /// Apart from those of clients, who never wait for what nobody asked for.
    background_slots: Arc<Semaphore>,
    /// For connections of fills beside each one's first.
    spare_lanes: Arc<Semaphore>,
    /// One at a time: hashing a file again must not take both cores from those who are served.
    verifiers: Arc<Semaphore>,
}

/// A fill in progress, and the repository that it asks for the blob.
struct Running {
    repo: RepoKey,
    flow: Arc<Flow>,
}

/// Where a fill's bytes come from, and how to tell that they still do.
#[derive(Clone)]
struct Origin {
    upstream: Upstream,
    repository: RepositoryName,
    validator: Arc<OnceLock<Validator>>,
    /// Whether anybody waits for what comes from here.
    interest: Interest,
}

impl Origin {
    fn new(upstream: Upstream, repository: RepositoryName) -> Self {
        Self {
            upstream,
            repository,
            validator: Arc::default(),
            interest: Interest::default(),
        }
    }

    /// The same place, for bytes that are waited for as long as there is this interest.
    fn wanted_by(self, interest: Interest) -> Self {
        Self { interest, ..self }
    }

    /// The same place, with no memory of what was there.
    fn afresh(&self) -> Self {
        Self::new(self.upstream.clone(), self.repository.clone()).wanted_by(self.interest.clone())
    }

    /// A body from `from` to `to` (or the end), of the content that was opened first.
    async fn open(
        &self,
        digest: Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<BlobBody, FillError> {
        let (span, same_as) = (Span { from, to }, self.validator.get());
        let body = self
            .upstream
            .blob(&self.repository, &digest, span, same_as)
            .await?;
        let _ = self.validator.set(body.validator().clone());
        Ok(body.wanted_by(self.interest.clone()))
    }
}

impl Fills {
    /// Puts the parts together. Nothing runs until something is asked.
    pub fn new(
        store: Store,
        upstream: Upstream,
        buffers: BufferPool,
        clock: Clock,
        options: FillOptions,
        metrics: FillMetrics,
    ) -> Self {
        let recorded = Recorded::new(store.clone());
        let manifests = Manifests::new(
            recorded.clone(),
            upstream.clone(),
            clock.clone(),
            &options,
            metrics.clone(),
        );
        Self {
            shared: Arc::new(Shared {
                manifests,
                recorded,
                running: Mutex::default(),
                verifying: Mutex::default(),
                asked: moka::sync::Cache::builder()
                    .max_capacity(10_000)
                    .time_to_idle(Duration::from_secs(60 * 60))
                    .build(),
                absent: moka::sync::Cache::builder()
                    .max_capacity(10_000)
                    .time_to_live(options.absent_ttl)
                    .build(),
                probes: Flights::default(),
                checked: moka::sync::Cache::builder()
                    .max_capacity(10_000)
                    .time_to_live(manifests::CHECK_PAUSE)
                    .build(),
                slots: Arc::new(Semaphore::new(options.max_fills)),
                background_slots: Arc::new(Semaphore::new(options.max_background_fills)),
                spare_lanes: Arc::new(Semaphore::new(lanes::SPARE_LANES)),
                verifiers: Arc::new(Semaphore::new(1)),
                store,
                upstream,
                buffers,
                options,
                metrics,
                clock,
            }),
        }
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
        reference: &crate::oci::Reference,
    ) -> Result<FoundManifest, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let found = self.shared.manifests.find(repo, reference).await?;
        let digest = &found.manifest.digest;
        self.shared.store.manifest_used(repo, digest);
        Ok(found)
    }

    /// The size of a blob in bytes, and where it was learned, as a GET would tell it.
    ///
    /// # Errors
    /// The upstream's, where neither the store nor a record tells.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is kept of a question half asked.
    pub async fn size(&self, pass: &Pass) -> Result<(u64, Outcome), FillError> {
        let found = self.find_size(pass).await;
        self.shared.hear(pass, found.as_ref().err()).await;
        found
    }

    async fn find_size(&self, pass: &Pass) -> Result<(u64, Outcome), FillError> {
        if let Some(blob) = self.shared.stored(pass).await? {
            return Ok((blob.len(), Outcome::Hit));
        }
        let running = self
            .shared
            .running()
            .get(&pass.digest)
            .and_then(|running| running.flow.len());
        if let Some(len) = running {
            return Ok((len, Outcome::Joined));
        }
        self.size_when_cold(pass)
            .await
            .map(|size| (size, Outcome::Miss))
    }

    async fn size_when_cold(&self, pass: &Pass) -> Result<u64, FillError> {
        if let Some(size) = pass.size.described.or(pass.size.told) {
            return Ok(size);
        }
        let repository = &pass.repo.repository;
        let size = self
            .shared
            .upstream
            .blob_size(repository, &pass.digest)
            .await?;
        let now = self.shared.clock.now();
        self.shared
            .recorded
            .note_held(&pass.repo, pass.digest, Some(size), now)
            .await;
        Ok(size)
    }

    /// Opens a blob, or parts of it: from the store, from a running fill, from a fill begun now, or past
    /// the cache, as design 2.3 "Ranges" has it.
    ///
    /// # Errors
    /// When there is nothing to send: the upstream's error, an unsatisfiable range, or several ranges of
    /// a blob that is not whole on disk.
    ///
    /// # Cancel safety
    /// A fill that was begun goes on without the caller.
    pub async fn open(&self, pass: &Pass, want: &Want) -> Result<Content, FillError> {
        let mut opened = Ok(None);
        for _ in 0..LOOKS {
            opened = self.try_open(pass, want).await;
            if !matches!(opened, Ok(None)) {
                break;
            }
        }
        self.shared.hear(pass, opened.as_ref().err()).await;
        opened?.ok_or(FillError::Lost)
    }

    /// `None` if the blob was kept meanwhile.
    async fn try_open(&self, pass: &Pass, want: &Want) -> Result<Option<Content>, FillError> {
        if let Some(content) = self.open_stored(pass, want).await? {
            return Ok(Some(content));
        }
        if let Some(ranges) = &want.ranges {
            if ranges.is_multiple() {
                return Err(FillError::OneRangeAtATime);
            }
            let is_running = self.shared.running().contains_key(&pass.digest);
            if !is_running {
                let size = self.size_when_cold(pass).await?;
                let range = only(ranges, size)?;
                if !self.goes_on(pass.digest, range)
                    && !self.wants_it_all(pass.digest, ranges, range, size)
                {
                    return self.bypass(pass, size, range).await.map(Some);
                }
            }
        }
        let Some(Begun {
            outcome,
            size,
            attendance,
        }) = self.fill(pass).await?
        else {
            return Ok(None);
        };
        let parts = match &want.ranges {
            None => {
                let whole = (size > 0).then_some(ByteRange {
                    start: 0,
                    end: size,
                });
                Parts::Whole(whole.map(|range| self.follow(range, attendance)))
            }
            Some(ranges) => {
                let range = only(ranges, size)?;
                if range.start > attendance.flow().at_hand() + NEAR {
                    return self.bypass(pass, size, range).await.map(Some);
                }
                Parts::One(range, self.follow(range, attendance))
            }
        };
        Ok(Some(Content {
            size,
            outcome,
            parts,
        }))
    }

    /// One range of a blob that is not whole on disk, past the cache.
    async fn bypass(&self, pass: &Pass, size: u64, range: ByteRange) -> Result<Content, FillError> {
        let origin = self.shared.origin(&pass.repo);
        let body = origin
            .open(pass.digest, range.start, Some(range.end))
            .await?;
        if let Some(declared) = body.total().filter(|declared| *declared != size) {
            if pass.size.described.is_none() {
                // What upstream told before is not so; the next request begins with what it tells now.
                let now = self.shared.clock.now();
                self.shared
                    .recorded
                    .note_held(&pass.repo, pass.digest, Some(declared), now)
                    .await;
            }
            return Err(FillError::SizeMismatch {
                expected: size,
                declared,
            });
        }
        let reader = Reader::new(
            range,
            Source::Relay(Box::new(body)),
            self.shared.buffers.clone(),
        );
        Ok(Content {
            size,
            outcome: Outcome::Bypass,
            parts: Parts::One(range, reader),
        })
    }

    /// Begins a fill or joins one, and waits until it can be answered from. `None` if the blob was kept
    /// meanwhile.
    async fn fill(&self, pass: &Pass) -> Result<Option<Begun>, FillError> {
        let deadline = Instant::now() + self.shared.options.head_deadline;
        loop {
            let Some((outcome, attendance, is_own)) =
                self.start(&pass.repo, pass.digest, pass.size, None)
            else {
                return Ok(None);
            };
            match begun(attendance, deadline).await {
                // A no to another repository is none to this one. That fill is off the map by now.
                Err(error) if !is_own && error.is_of_its_repository() => {}
                Err(error) => return Err(error),
                Ok((size, attendance)) => {
                    return Ok(Some(Begun {
                        outcome,
                        size,
                        attendance,
                    }));
                }
            }
        }
    }

    /// Whether a range begins in what a broken download has of the blob, or just behind: whoever asks
    /// for it was cut off with that download, as by a restart of ours.
    fn goes_on(&self, digest: Digest, range: ByteRange) -> bool {
        let present = self.shared.store.interrupted_at(&digest);
        present.is_some_and(|present| range.start <= present + NEAR)
    }

    /// Whether a range of a cold blob is the beginning of having it all.
    fn wants_it_all(&self, digest: Digest, ranges: &RangeSet, range: ByteRange, size: u64) -> bool {
        if range.start == 0 && (ranges.is_open_ended() || range.len() > NEAR) {
            return true;
        }
        let asked = self
            .shared
            .asked
            .get(&digest)
            .unwrap_or(0)
            .saturating_add(range.len());
        self.shared.asked.insert(digest, asked);
        asked >= size / ASKED_ENOUGH
    }

    fn follow(&self, range: ByteRange, attendance: Attendance) -> Reader {
        let following = Following::new(attendance);
        Reader::new(range, Source::Flow(following), self.shared.buffers.clone())
    }

    /// Begins a fill, or joins the one that somebody began, and tells whether that is one of this very
    /// repository. `None` if the blob is on disk by now: a fill leaves the map after the blob was
    /// kept, so who looked into the store a moment too early does not fetch it once more. Without a
    /// `slot` the fill waits for one of those for clients.
    fn start(
        &self,
        repo: &RepoKey,
        digest: Digest,
        size: KnownSize,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Option<(Outcome, Attendance, bool)> {
        let mut running = self.shared.running();
        if let Some(fill) = running.get(&digest)
            && let Some(attendance) = fill.flow.join()
        {
            return Some((Outcome::Joined, attendance, fill.repo == *repo));
        }
        if self.shared.store.blob_now(&digest).is_some() {
            return None;
        }
        let flow = Flow::new(digest, Front::connecting(), None);
        running.insert(
            digest,
            Running {
                repo: repo.clone(),
                flow: Arc::clone(&flow),
            },
        );
        drop(running);
        let attendance = flow.attend();
        let filling = Filling {
            origin: self.shared.origin(repo).wanted_by(flow.interest()),
            flow,
            size,
            store: self.shared.store.clone(),
            buffers: self.shared.buffers.clone(),
            patience: self.shared.options.patience,
            spare: Arc::clone(&self.shared.spare_lanes),
            metrics: self.shared.metrics.clone(),
        };
        filling.launch(Arc::clone(&self.shared), slot);
        Some((Outcome::Miss, attendance, true))
    }

    /// Tags that were answered as they last were since upstream last confirmed one, if a moment ago.
    pub fn stale_tags(&self) -> Option<Staleness> {
        self.shared.manifests.stale()
    }

    /// Returns at once while upstream answers, and otherwise soon after it does again; true if it was away.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn until_upstream_answers(&self) -> bool {
        self.shared.upstream.answers().await
    }

    /// Waits until every fill that was begun for a client has ended and its blob is kept, until
    /// `deadline` at the latest. What nobody asked for is gone on with another time.
    pub async fn drain(&self, deadline: Instant) {
        // Every such fill holds a slot until its end, and a semaphore serves in order.
        let all = u32::try_from(self.shared.options.max_fills).unwrap_or(u32::MAX);
        let _ = timeout_at(deadline, self.shared.slots.acquire_many(all)).await;
    }
}

/// A fill that can be answered from.
struct Begun {
    outcome: Outcome,
    size: u64,
    attendance: Attendance,
}

/// Waits for the head of the upstream's answer, and for the verdict on a blob that is sent only when
/// verified, so that what fails so far is still an answer of its own.
async fn begun(attendance: Attendance, deadline: Instant) -> Result<(u64, Attendance), FillError> {
    let mut front = attendance.flow().subscribe();
    let ready = front.wait_for(|front| match front.phase {
        Phase::Connecting => false,
        Phase::Running { len } => len > TAIL,
        Phase::Verified { .. } | Phase::Failed(_) => true,
    });
    let phase = match timeout_at(deadline, ready).await {
        Ok(Ok(front)) => front.phase.clone(),
        Ok(Err(_)) => return Err(FillError::Lost),
        Err(_elapsed) => return Err(FillError::TooSlow),
    };
    match phase {
        Phase::Running { len } | Phase::Verified { len } => Ok((len, attendance)),
        Phase::Failed(error) => Err(error),
        Phase::Connecting => Err(FillError::TooSlow),
    }
}

/// The one range of a blob that is not whole on disk.
fn only(ranges: &RangeSet, size: u64) -> Result<ByteRange, FillError> {
    let resolved = ranges
        .resolve(size)
        .map_err(|_| FillError::Unsatisfiable { size })?;
    resolved
        .first()
        .copied()
        .ok_or(FillError::Unsatisfiable { size })
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<Digest, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self, repo: &RepoKey) -> Origin {
        Origin::new(self.upstream.clone(), repo.repository.clone())
    }
}
