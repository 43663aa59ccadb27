//! Tags and manifests: what a name means now, and the document behind it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::FillOptions;
use super::error::FillError;
use super::flight::{Flights, Lost};
use super::found::Found;
use super::lately::{Lately, Noted};
use super::learned::Learned;
use super::policy::TagPolicy;
use super::recorded::Recorded;
use crate::cache::{StoredManifest, TagRecord};
use crate::clock::Clock;
use crate::oci::{Digest, Reference, RepoKey, Tag};
use crate::telemetry::{FillMetrics, Outcome, StaleReason};
use crate::upstream::{Absent, FetchedManifest, ManifestHead, UpstreamError, Upstreams};

/// Tags that were answered as they last were since upstream last confirmed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staleness {
    /// When the first was.
    pub since: SystemTime,
    /// Why the last was.
    pub reason: StaleReason,
    /// How many were.
    pub answers: u64,
    last: Instant,
}

/// How long after the last stale answer there is still talk of it.
const TALK: Duration = Duration::from_secs(60);

/// How long a check in the background that came to nothing is not repeated, however often its subject is
/// asked for.
pub(super) const CHECK_PAUSE: Duration = Duration::from_secs(60);

/// What a tag means, as upstream says it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// What it meant before, if that was recorded.
    pub before: Option<Digest>,
    /// What it means.
    pub now: Digest,
}

type Answer = Result<Found<StoredManifest>, UpstreamError>;

/// Finds manifests by tag and digest. Questions to the upstream are asked once for all who wait.
pub(super) struct Manifests {
    recorded: Recorded,
    upstreams: Upstreams,
    clock: Clock,
    options: Arc<ArcSwap<FillOptions>>,
    questions: Flights<(RepoKey, Reference), Answer>,
    absent: Lately<Absent>,
    /// What somebody waited for in vain, and is still being asked.
    slow: Noted,
    /// What is checked in the background, or was a moment ago.
    checked: Noted,
    staleness: Mutex<Option<Staleness>>,
    learned: Learned,
    metrics: FillMetrics,
    /// Pinned manifests that upstream said it has no more; asked about again after as long as a record is
    /// believed.
    gone: Noted,
    /// When a tag was last changed through this proxy: an answer to a question asked before then is older.
    changed: Noted,
}

/// What a question needs once it runs in a task of its own.
#[derive(Clone)]
struct Asker {
    recorded: Recorded,
    upstreams: Upstreams,
    clock: Clock,
    gone: Noted,
    changed: Noted,
    repo: RepoKey,
    asked_at: Instant,
}

impl Manifests {
    pub(super) fn new(
        recorded: Recorded,
        upstreams: Upstreams,
        clock: Clock,
        options: Arc<ArcSwap<FillOptions>>,
        metrics: FillMetrics,
    ) -> Self {
        let learned = Learned::new(upstreams.clone());
        let absent = Lately::optional(&options, |options| options.absent_ttl);
        let gone = Noted::optional(&options, |options| options.record_ttl);
        Self {
            recorded,
            upstreams,
            clock,
            options,
            questions: Flights::default(),
            absent,
            slow: Noted::lasting(CHECK_PAUSE),
            checked: Noted::lasting(CHECK_PAUSE),
            staleness: Mutex::default(),
            learned,
            metrics,
            gone,
            changed: Noted::lasting(CHECK_PAUSE),
        }
    }

    pub(super) async fn find(
        &self,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Result<Found<StoredManifest>, FillError> {
        match reference {
            Reference::Digest(digest) => match self.recorded.kept(repo, *digest).await? {
                Some(found) if self.gone.get(repo, *digest).is_some() => {
                    let checked = self.recorded.manifest_checked(repo, *digest);
                    let age = checked.map_or(Duration::ZERO, |at| self.clock.since(at));
                    Ok(Found::stale(found.what, age, StaleReason::Pinned))
                }
                Some(found) => {
                    self.confirm_in_time(repo, &found.what);
                    Ok(found)
                }
                None => {
                    let (asker, digest) = (self.asker(repo), *digest);
                    self.ask(repo, reference, move || asker.by_digest(digest))
                        .await
                }
            },
            Reference::Tag(tag) => self.find_tag(repo, reference, tag).await,
        }
    }

    /// See [`super::Fills::set_options`].
    pub(super) fn forget_absences(&self) {
        self.absent.forget_all();
    }

    /// See [`super::Fills::forget_answers`].
    pub(super) fn forget_answers(&self) {
        self.forget_absences();
        self.slow.forget_all();
        self.checked.forget_all();
        self.gone.forget_all();
        self.questions.abandon();
        self.learned.forget();
    }

    /// How the tags of a repository are believed.
    pub(super) fn policy(&self, repo: &RepoKey) -> TagPolicy {
        self.options.load().tags.of(repo).clone()
    }

    /// For how long the list of an upstream's repositories is believed.
    pub(super) fn catalog_ttl(&self, upstream: &str) -> Duration {
        self.options.load().tags.of_upstream(upstream).tag_ttl
    }

    fn asker(&self, repo: &RepoKey) -> Asker {
        Asker {
            recorded: self.recorded.clone(),
            upstreams: self.upstreams.clone(),
            clock: self.clock.clone(),
            gone: self.gone.clone(),
            changed: self.changed.clone(),
            repo: repo.clone(),
            asked_at: Instant::now(),
        }
    }

    /// A manifest that upstream took under `reference` just now.
    pub(super) async fn pushed(
        &self,
        repo: &RepoKey,
        reference: &Reference,
        media_type: String,
        bytes: Bytes,
    ) {
        let digest = Digest::of(&bytes);
        self.gone.forget(repo, digest);
        let now = self.clock.now();
        self.recorded
            .note_manifest(repo, media_type, bytes, now)
            .await;
        if let Reference::Tag(tag) = reference {
            self.changed.note(repo, tag.clone(), Instant::now());
            self.recorded.note_tag(repo, tag, digest, now).await;
        }
        for name in [Reference::Digest(digest), reference.clone()] {
            self.absent.forget(repo, name.clone());
            self.slow.forget(repo, name);
        }
    }

    /// What `reference` named in `repo` is gone upstream, at somebody's wish.
    pub(super) async fn deleted(&self, repo: &RepoKey, reference: &Reference) {
        match reference {
            Reference::Tag(tag) => {
                self.changed.note(repo, tag.clone(), Instant::now());
                self.recorded.forget_tag(repo, tag).await;
            }
            Reference::Digest(digest) => self.recorded.forget_manifest(repo, *digest).await,
        }
    }

    /// Asks upstream what a tag means, however fresh its record and however lately it was absent.
    ///
    /// # Errors
    /// The upstream's; what is kept stays as it was.
    pub(super) async fn refresh(
        &self,
        repo: &RepoKey,
        tag: &Tag,
    ) -> Result<Found<Refreshed>, FillError> {
        let record = self.recorded.tag(repo, tag).await?;
        let before = record.map(|record| record.digest);
        let asker = self.asker(repo);
        let reference = Reference::Tag(tag.clone());
        self.absent.forget(repo, reference.clone());
        let tag = tag.clone();
        let found = self
            .ask(repo, &reference, move || asker.by_tag(tag, record))
            .await?;
        Ok(found.map(|manifest| Refreshed {
            before,
            now: manifest.digest,
        }))
    }

    async fn find_tag(
        &self,
        repo: &RepoKey,
        reference: &Reference,
        tag: &Tag,
    ) -> Result<Found<StoredManifest>, FillError> {
        let question = |record| {
            let (asker, tag) = (self.asker(repo), tag.clone());
            move || asker.by_tag(tag, record)
        };
        let (record, kept) = match self.recorded.tagged(repo, tag).await? {
            None => return self.ask(repo, reference, question(None)).await,
            Some((record, None)) => {
                return self.ask(repo, reference, question(Some(record))).await;
            }
            Some((record, Some(manifest))) => (record, Found::by(Outcome::Hit, manifest)),
        };
        let options = self.options.load_full();
        let policy = options.tags.of(repo);
        let Some(ttl) = policy.ttl(tag, None) else {
            return Ok(kept);
        };
        // A check time in the future is one whose clock was wrong: ask again.
        let age = self.clock.now().duration_since(record.checked_at);
        let is_within = |ttl| age.as_ref().is_ok_and(|age| *age < ttl);
        if is_within(ttl) {
            return Ok(kept);
        }
        let learned = self.learned.is_immutable(repo, tag);
        let ttl = policy
            .ttl(tag, learned.then_some(options.immutable_ttl))
            .unwrap_or(ttl);
        if is_within(ttl) {
            return Ok(kept);
        }
        let age = age.unwrap_or_default();
        let may_be_stale = policy.permits_stale(age, ttl);
        let wait = match (
            may_be_stale,
            self.slow.get(repo, reference.clone()).is_some(),
        ) {
            (false, _) => Duration::MAX,
            (true, false) => options.tag_wait,
            // Somebody waited for this very answer already.
            (true, true) => Duration::ZERO,
        };
        let question = self.ask(repo, reference, question(Some(record)));
        let reason = match timeout(wait, question).await {
            Err(_elapsed) => {
                self.slow.note(repo, reference.clone(), Instant::now());
                StaleReason::Slow
            }
            Ok(Err(error)) => match error.stale_reason() {
                // What the operator keeps offline is served for as long as it is there.
                Some(reason) if may_be_stale || reason == StaleReason::Offline => reason,
                Some(_) | None => return Err(error),
            },
            Ok(Ok(found)) => {
                *self.staleness() = None;
                return Ok(found);
            }
        };
        self.note_stale(reason);
        Ok(Found::stale(kept.what, age, reason))
    }

    /// What was answered stale since upstream last confirmed a tag, if that was a moment ago.
    pub(super) fn stale(&self) -> Option<Staleness> {
        let staleness = self.staleness();
        let talked_of = |stale: &&Staleness| stale.last.elapsed() < TALK;
        staleness.as_ref().filter(talked_of).cloned()
    }

    fn staleness(&self) -> std::sync::MutexGuard<'_, Option<Staleness>> {
        self.staleness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note_stale(&self, reason: StaleReason) {
        self.metrics.stale(reason);
        let mut staleness = self.staleness();
        let before = staleness.take();
        *staleness = Some(Staleness {
            since: before
                .as_ref()
                .map_or_else(|| self.clock.now(), |before| before.since),
            answers: before.map_or(0, |before| before.answers) + 1,
            reason,
            last: Instant::now(),
        });
    }

    /// Asks in the background whether the repository still holds a manifest that was confirmed longer
    /// ago than records are believed. Only a no removes it.
    fn confirm_in_time(&self, repo: &RepoKey, manifest: &StoredManifest) {
        let checked = self.recorded.manifest_checked(repo, manifest.digest);
        if checked.is_none_or(|at| self.clock.since(at) <= self.options.load().record_ttl) {
            return;
        }
        if !self.checked.is_first(repo, manifest.digest) {
            return;
        }
        let (asker, questions) = (self.asker(repo), self.questions.clone());
        let manifest = manifest.clone();
        let key = (repo.clone(), Reference::Digest(manifest.digest));
        tokio::spawn(async move { questions.run(key, || asker.confirm(manifest)).await });
    }

    async fn ask<F>(
        &self,
        repo: &RepoKey,
        reference: &Reference,
        question: impl FnOnce() -> F,
    ) -> Result<Found<StoredManifest>, FillError>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let key = (repo.clone(), reference.clone());
        if let Some(absent) = self.absent.get(repo, reference.clone()) {
            return Err(UpstreamError::Absent(absent).into());
        }
        let (absences, slow) = (self.absent.clone(), self.slow.clone());
        let noted = key.clone();
        let question = move || {
            let question = question();
            async move {
                let found = question.await;
                slow.forget(&noted.0, noted.1.clone());
                if let Err(UpstreamError::Absent(absent)) = &found {
                    absences.note(&noted.0, noted.1, *absent);
                }
                found
            }
        };
        // In memory of its own, which what is kept needs none of.
        match Box::pin(self.questions.run(key, question)).await {
            Ok(found) => Ok(found?),
            Err(Lost) => Err(FillError::Lost),
        }
    }
}

impl Recorded {
    /// A manifest that is recorded for this repository: the record is the proof that it holds it.
    async fn kept(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Option<Found<StoredManifest>>, FillError> {
        let manifest = self.manifest(repo, digest).await?;
        Ok(manifest.map(|manifest| Found::by(Outcome::Hit, manifest)))
    }
}

impl Asker {
    async fn by_digest(self, digest: Digest) -> Answer {
        self.fetch(&Reference::Digest(digest)).await
    }

    async fn confirm(self, manifest: StoredManifest) -> Answer {
        let reference = Reference::Digest(manifest.digest);
        match self.head(&reference).await {
            Ok(_) => {
                let (media_type, bytes) = (manifest.media_type.to_string(), manifest.bytes.clone());
                let now = self.clock.now();
                self.recorded
                    .note_manifest(&self.repo, media_type, bytes, now)
                    .await;
            }
            Err(error) => {
                if matches!(error, UpstreamError::Absent(_)) {
                    if self.recorded.is_pinned(&self.repo, &reference).await {
                        self.gone.note(&self.repo, manifest.digest, Instant::now());
                    } else {
                        self.recorded
                            .forget_manifest(&self.repo, manifest.digest)
                            .await;
                    }
                }
                return Err(error);
            }
        }
        Ok(Found::by(Outcome::Hit, manifest))
    }

    /// Asks whether the tag still means what it did, and fetches what it means if it does not.
    async fn by_tag(self, tag: Tag, record: Option<TagRecord>) -> Answer {
        let found = self.revalidate(&tag, record.as_ref()).await;
        let Err(error) = &found else {
            return found;
        };
        let reference = Reference::Tag(tag.clone());
        let is_pinned = error.says_no() && self.recorded.is_pinned(&self.repo, &reference).await;
        match (found, record) {
            (Err(error), Some(record)) if is_pinned => self.stale(&record).await.ok_or(error),
            (Err(UpstreamError::Absent(absent)), _) if !is_pinned => {
                if !self.was_overtaken(&tag) {
                    self.recorded.forget_tag(&self.repo, &tag).await;
                }
                Err(UpstreamError::Absent(absent))
            }
            (found, _) => found,
        }
    }

    async fn revalidate(&self, tag: &Tag, record: Option<&TagRecord>) -> Answer {
        let reference = Reference::Tag(tag.clone());
        if let Some(record) = record
            && let Ok(Some(kept)) = self.recorded.kept(&self.repo, record.digest).await
        {
            match self.head(&reference).await {
                Ok(head) if head.digest == record.digest => {
                    self.note_tag(tag, record.digest).await;
                    return Ok(kept);
                }
                // It moved, and came along where HEAD could not tell so.
                Ok(ManifestHead {
                    fetched: Some(fetched),
                    ..
                }) => {
                    let found = self.keep(fetched).await;
                    self.note_tag(tag, found.what.digest).await;
                    return Ok(found);
                }
                // A no is what GET said already.
                Err(error) if error.cannot_answer() || error.says_no() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let found = self.fetch(&reference).await?;
        self.note_tag(tag, found.what.digest).await;
        Ok(found)
    }

    async fn stale(&self, record: &TagRecord) -> Option<Found<StoredManifest>> {
        let kept = self.recorded.kept(&self.repo, record.digest).await.ok()??;
        let age = self.clock.since(record.checked_at);
        Some(Found::stale(kept.what, age, StaleReason::Pinned))
    }

    async fn fetch(&self, reference: &Reference) -> Answer {
        let upstream = self.upstreams.of(&self.repo)?;
        let fetched = upstream.manifest(&self.repo.repository, reference).await?;
        Ok(self.keep(fetched).await)
    }

    async fn head(&self, reference: &Reference) -> Result<ManifestHead, UpstreamError> {
        let upstream = self.upstreams.of(&self.repo)?;
        upstream
            .head_manifest(&self.repo.repository, reference)
            .await
    }

    async fn keep(&self, fetched: FetchedManifest) -> Found<StoredManifest> {
        let manifest = StoredManifest {
            media_type: fetched.media_type.as_str().into(),
            bytes: fetched.bytes.clone(),
            digest: fetched.digest,
        };
        let (media_type, now) = (fetched.media_type, self.clock.now());
        self.recorded
            .note_manifest(&self.repo, media_type, fetched.bytes, now)
            .await;
        Found::by(Outcome::Miss, manifest)
    }

    async fn note_tag(&self, tag: &Tag, digest: Digest) {
        if self.was_overtaken(tag) {
            return;
        }
        self.recorded
            .note_tag(&self.repo, tag, digest, self.clock.now())
            .await;
    }

    /// True if the tag was changed since this was asked: what upstream says may be what was before.
    fn was_overtaken(&self, tag: &Tag) -> bool {
        let changed = self.changed.get(&self.repo, tag.clone());
        changed.is_some_and(|changed| changed >= self.asked_at)
    }
}
