//! Tags and manifests: what a name means now, and the document behind it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::FillOptions;
use super::asker::{Answer, Asker};
use super::error::FillError;
use super::flight::{Flights, Lost};
use super::found::Found;
use super::lately::{Lately, Noted};
use super::learned::Learned;
use super::policy::TagPolicy;
use super::proof::is_fresh;
use super::recorded::Recorded;
use crate::cache::StoredManifest;
use crate::clock::Clock;
use crate::oci::{Digest, Reference, RepoKey, Tag};
use crate::telemetry::{FillMetrics, Outcome, StaleReason};
use crate::upstream::{Absent, Upstream, UpstreamError, Upstreams};

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
    /// When a tag or manifest was last pushed or deleted through this proxy: an answer to a question asked before
    /// then is older.
    changed: Noted,
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
                    let digest = *digest;
                    self.ask(repo, reference, move |asker| asker.by_digest(digest))
                        .await
                }
            },
            Reference::Tag(tag) => self.find_tag(repo, reference, tag).await,
        }
    }

    /// Whether upstream still has a manifest that is recorded, unless its word is fresh; where it does not say so in
    /// the time that a tag is waited for, the record counts.
    ///
    /// # Errors
    /// Upstream's no.
    pub(super) async fn confirm(&self, repo: &RepoKey, digest: Digest) -> Result<(), FillError> {
        let Some(kept) = self.recorded.kept(repo, digest).await? else {
            return Ok(());
        };
        let checked = self.recorded.manifest_checked(repo, digest);
        if checked.is_some_and(|at| is_fresh(&self.clock, at)) {
            return Ok(());
        }
        let reference = Reference::Digest(digest);
        let asking = self.ask(repo, &reference, move |asker| asker.confirm(kept.what));
        let wait = self.options.load().tag_wait;
        match timeout(wait, asking).await {
            Ok(Err(error @ FillError::Upstream(UpstreamError::Absent(_)))) => Err(error),
            Ok(_) | Err(_) => Ok(()),
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

    fn asker(&self, repo: &RepoKey) -> Result<Asker, UpstreamError> {
        Ok(Asker {
            recorded: self.recorded.clone(),
            upstreams: self.upstreams.clone(),
            upstream: self.upstreams.of(repo)?,
            clock: self.clock.clone(),
            gone: self.gone.clone(),
            changed: self.changed.clone(),
            repo: repo.clone(),
            asked_at: Instant::now(),
        })
    }

    /// A manifest that `by` took under `reference` just now.
    pub(super) async fn pushed(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        reference: &Reference,
        media_type: String,
        bytes: Bytes,
    ) {
        let digest = Digest::of(&bytes);
        self.gone.forget(repo, digest);
        let now = self.clock.now();
        for name in [Reference::Digest(digest), reference.clone()] {
            self.changed.note(repo, name, Instant::now());
        }
        self.ask_anew(repo);
        self.recorded
            .note_manifest(by, repo, media_type, bytes, now)
            .await;
        if let Reference::Tag(tag) = reference
            && !self.recorded.note_tag(by, repo, tag, digest, now).await
        {
            // What it means now is to be asked.
            self.recorded.forget_tag(repo, tag).await;
        }
        for name in [Reference::Digest(digest), reference.clone()] {
            self.absent.forget(repo, name.clone());
            self.slow.forget(repo, name);
        }
    }

    /// What `reference` named in `repo` is gone upstream, at somebody's wish.
    pub(super) async fn deleted(&self, repo: &RepoKey, reference: &Reference) {
        self.changed.note(repo, reference.clone(), Instant::now());
        self.ask_anew(repo);
        match reference {
            Reference::Tag(tag) => {
                let meant = self.recorded.tag(repo, tag).await.ok().flatten();
                self.recorded.forget_tag(repo, tag).await;
                // ECR deletes an image with its last tag.
                if let Some(record) = meant
                    && let Ok(Some(kept)) = self.recorded.kept(repo, record.digest).await
                {
                    self.confirm_soon(repo, kept.what);
                }
            }
            Reference::Digest(digest) => self.recorded.forget_manifest(repo, *digest).await,
        }
    }

    /// Nobody who asks about this repository from now on is answered by what was asked before: a tag, or an image
    /// by whatever name, may have changed.
    fn ask_anew(&self, repo: &RepoKey) {
        self.questions.abandon_those(|(asked, _)| asked == repo);
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
        let reference = Reference::Tag(tag.clone());
        self.absent.forget(repo, reference.clone());
        let tag = tag.clone();
        let found = self
            .ask(repo, &reference, move |asker| asker.by_tag(tag, record))
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
            let tag = tag.clone();
            move |asker: Asker| asker.by_tag(tag, record)
        };
        let (record, kept) = match self.recorded.tagged(repo, tag).await? {
            None => return self.ask(repo, reference, question(None)).await,
            Some((record, None)) => {
                return self.ask(repo, reference, question(Some(record))).await;
            }
            Some((record, Some(manifest))) => (record, Found::by(Outcome::Hit, manifest)),
        };
        // A check time in the future is one whose clock was wrong: ask again.
        let age = self.clock.now().duration_since(record.checked_at);
        let is_within = |ttl| age.as_ref().is_ok_and(|age| *age < ttl);
        let ttl = self.options.load().tags.of(repo).ttl(tag, None);
        let Some(ttl) = ttl.filter(|ttl| !is_within(*ttl)) else {
            return Ok(kept);
        };
        let options = self.options.load_full();
        let policy = options.tags.of(repo);
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
    /// ago than records are believed.
    fn confirm_in_time(&self, repo: &RepoKey, manifest: &StoredManifest) {
        let checked = self.recorded.manifest_checked(repo, manifest.digest);
        if checked.is_none_or(|at| self.clock.since(at) <= self.options.load().record_ttl) {
            return;
        }
        if self.checked.is_first(repo, manifest.digest) {
            self.confirm_soon(repo, manifest.clone());
        }
    }

    /// Asks so now. Only a no removes it.
    fn confirm_soon(&self, repo: &RepoKey, manifest: StoredManifest) {
        let (Ok(asker), questions) = (self.asker(repo), self.questions.clone()) else {
            return;
        };
        let key = (repo.clone(), Reference::Digest(manifest.digest));
        tokio::spawn(async move { questions.run(key, || asker.confirm(manifest)).await });
    }

    async fn ask<F>(
        &self,
        repo: &RepoKey,
        reference: &Reference,
        question: impl FnOnce(Asker) -> F,
    ) -> Result<Found<StoredManifest>, FillError>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let key = (repo.clone(), reference.clone());
        if let Some(absent) = self.absent.get(repo, reference.clone()) {
            return Err(UpstreamError::Absent(absent).into());
        }
        let asker = self.asker(repo)?;
        let (absences, slow) = (self.absent.clone(), self.slow.clone());
        let noted = key.clone();
        let question = move || {
            let asked = asker.clone();
            let question = question(asker);
            async move {
                let found = question.await;
                slow.forget(&noted.0, noted.1.clone());
                if let Err(UpstreamError::Absent(absent)) = &found
                    && !asked.was_overtaken(&noted.1)
                {
                    let note = || absences.note(&noted.0, noted.1, *absent);
                    asked.upstreams.note(&asked.upstream, note);
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
