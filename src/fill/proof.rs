//! That a repository holds a blob: by its own record, or by upstream's word.
//!
//! The invariant: a [`Pass`] is made here alone, from a right and the repository's own proof, and only
//! upstream's no takes a proof away.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::error::FillError;
use super::flight::Lost;
use super::{Fills, Shared};
use crate::access::Right;
use crate::cache::{Held, HeldBy};
use crate::clock::Clock;
use crate::oci::{Digest, Reference, RepoKey};
use crate::upstream::{Absent, Upstream, UpstreamError};

/// How long upstream's word counts for a push that asks what it may leave out.
const FRESH: Duration = Duration::from_secs(60);

/// Whether it does still, for who pushes. What was noted while the clock was ahead is not.
pub(super) fn is_fresh(clock: &Clock, checked_at: SystemTime) -> bool {
    let age = clock.now().duration_since(checked_at);
    age.is_ok_and(|age| age <= FRESH)
}

/// Proof that somebody may have a blob: a right, and a repository that holds the digest. Made by
/// [`Fills::prove`] alone.
#[derive(Clone, Debug)]
pub struct Pass {
    pub(super) repo: RepoKey,
    pub(super) digest: Digest,
    pub(super) size: KnownSize,
    /// The repository's upstream when it was proven.
    pub(super) upstream: Option<Upstream>,
    /// The repository that was asked for, where this is the same one elsewhere, as its own upstream cannot answer.
    pub(super) instead_of: Option<RepoKey>,
    /// Whoever holds it may have it of this repository only: nothing stands in for it.
    pub(super) stays: bool,
}

/// What is known of a blob's size, in bytes, before it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownSize {
    /// By a manifest of the repository: content of another size is not what was asked for.
    pub(super) described: Option<u64>,
    /// By the upstream's answer to another question, which a GET may contradict (fault U21).
    pub(super) told: Option<u64>,
}

impl Fills {
    /// Proves that `repo` holds the blob `digest`: by a manifest that upstream returned for this very
    /// repository, where the registry takes no manifest without its blobs, or by upstream's word.
    ///
    /// # Errors
    /// [`UpstreamError::Absent`] where upstream says that the repository does not hold it; other errors
    /// where it could not be asked.
    ///
    /// # Cancel safety
    /// The question is shared and goes on without the caller.
    pub async fn prove(
        &self,
        right: &Right,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Pass, FillError> {
        debug_assert_ne!(right.action(), crate::access::Action::Delete);
        match right.credential() {
            None => self.establish_anywhere(repo, digest).await,
            Some(_) => Ok(Pass {
                stays: true,
                ..self.establish(repo, digest).await?
            }),
        }
    }

    /// As [`Fills::prove`], to somebody who sends what is not there: what a record says counts only while
    /// upstream's word is fresh, for a lifecycle policy may have taken the blob away since, and a push that
    /// leaves it out fails at its manifest. Where upstream cannot answer the record does.
    ///
    /// # Errors
    /// As [`Fills::prove`].
    ///
    /// # Cancel safety
    /// As [`Fills::prove`].
    pub async fn confirm(
        &self,
        right: &Right,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Pass, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Push);
        let held = self.shared.recorded.held(repo, digest).await?;
        let is_fresh = held.is_some_and(|held| {
            held.by == HeldBy::Upstream && is_fresh(&self.shared.clock, held.checked_at)
        });
        if !is_fresh && held.is_some() {
            let told = self.ask_for_push(repo, digest).await;
            if let Err(error @ FillError::Upstream(UpstreamError::Absent(_))) = told {
                return Err(error);
            }
        }
        self.establish(repo, digest).await
    }

    /// Whether upstream holds a blob, as whoever pushes is told: ECR has a layer that no image names yet by HEAD
    /// alone, for which they have the right.
    async fn ask_for_push(&self, repo: &RepoKey, digest: Digest) -> Result<(), FillError> {
        let shared = &self.shared;
        let (asked, asked_at) = (Instant::now(), shared.clock.now());
        let upstream = shared.upstreams.of(repo)?;
        let told = match upstream.is_ecr() {
            true => upstream.has_blob(&repo.repository, &digest).await,
            false => Err(UpstreamError::Unsupported),
        };
        match told {
            Ok(()) => {
                let noting = shared.note_told(&upstream, repo, digest, None, asked);
                noting.await;
                Ok(())
            }
            Err(UpstreamError::Absent(absent)) => {
                let noting = shared.note_absent(&upstream, repo, digest, absent, asked_at);
                noting.await;
                Err(UpstreamError::Absent(absent).into())
            }
            Err(error) if error.cannot_answer() => Err(error.into()),
            Err(_) => {
                let asking = shared.ask_whether_held((repo.clone(), digest));
                asking.await.map(drop)
            }
        }
    }

    /// The repository's part of the proof, which is all there is to show where nobody gets to see the
    /// content.
    pub(super) async fn establish(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Pass, FillError> {
        let upstream = self.shared.upstreams.named(&repo.upstream);
        let pass = |held: Option<Held>, told: Option<u64>| Pass {
            repo: repo.clone(),
            digest,
            upstream: upstream.clone(),
            instead_of: None,
            stays: false,
            size: KnownSize {
                described: held
                    .filter(|held| held.is_stated)
                    .and_then(|held| held.size),
                told: told.or(held.and_then(|held| held.size)),
            },
        };
        let key = (repo.clone(), digest);
        let trusts_manifests = upstream.as_ref().is_some_and(Upstream::trusts_manifests);
        match self.shared.recorded.held(repo, digest).await? {
            Some(held) if held.by == HeldBy::Upstream || trusts_manifests => {
                let is_due = self.shared.clock.since(held.checked_at)
                    > self.shared.options.load().record_ttl;
                if is_due && self.shared.checked.is_first(repo, digest) {
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move { shared.ask_whether_held(key).await });
                }
                Ok(pass(Some(held), None))
            }
            known => {
                if let Some(absent) = self.shared.absent.get(repo, digest) {
                    return Err(UpstreamError::Absent(absent).into());
                }
                match self.shared.ask_whether_held(key).await {
                    Err(FillError::Upstream(UpstreamError::Absent(_)))
                        if known.is_some() && self.shared.is_pinned(repo, digest).await =>
                    {
                        Ok(pass(known, None))
                    }
                    told => Ok(pass(known, told?)),
                }
            }
        }
    }
}

impl Shared {
    /// Upstream's no to the repository's own question is remembered, whichever question it was: a
    /// record of a blob that is gone would be a yes to HEAD and a no to GET.
    pub(super) async fn hear(&self, pass: &Pass, asked_at: SystemTime, error: &FillError) {
        if let FillError::Upstream(UpstreamError::Absent(absent)) = error
            && let Some(by) = &pass.upstream
        {
            self.note_absent(by, &pass.repo, pass.digest, *absent, asked_at)
                .await;
        }
    }

    async fn is_pinned(&self, repo: &RepoKey, digest: Digest) -> bool {
        let reference = Reference::Digest(digest);
        self.recorded.is_pinned(repo, &reference).await
    }

    /// Notes that upstream holds a blob, of `size` bytes where it told, as it said to a question from `asked` on;
    /// unless the blob was deleted since.
    pub(super) async fn note_told(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        digest: Digest,
        size: Option<u64>,
        asked: Instant,
    ) {
        let deleted = self.deleted.get(repo, digest);
        if deleted.is_none_or(|deleted| deleted < asked) {
            let now = self.clock.now();
            self.recorded.note_held(by, repo, digest, size, now).await;
        }
    }

    /// Notes what upstream said to a question asked at `asked_at`, unless it has said otherwise since.
    async fn note_absent(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        digest: Digest,
        absent: Absent,
        asked_at: SystemTime,
    ) {
        let held = self.recorded.held(repo, digest).await.ok().flatten();
        let now = self.clock.now();
        let is_newer = |held: Held| {
            held.by == HeldBy::Upstream && held.checked_at > asked_at && held.checked_at <= now
        };
        if held.is_some_and(is_newer) || self.is_pinned(repo, digest).await {
            return;
        }
        let note = || self.absent.note(repo, digest, absent);
        if self.upstreams.note(by, note).is_some() {
            self.recorded.forget_blob(repo, digest).await;
        }
    }

    async fn ask_whether_held(
        self: &Arc<Self>,
        key: (RepoKey, Digest),
    ) -> Result<Option<u64>, FillError> {
        let shared = Arc::clone(self);
        let (repo, digest) = key.clone();
        let answer = self
            .probes
            .run(key.clone(), move || async move {
                let (asked, asked_at) = (Instant::now(), shared.clock.now());
                let upstream = shared.upstreams.of(&repo)?;
                let answer = upstream.probe_blob(&repo.repository, &digest).await;
                match &answer {
                    Ok(size) => {
                        shared
                            .note_told(&upstream, &repo, digest, *size, asked)
                            .await;
                    }
                    Err(UpstreamError::Absent(absent)) => {
                        shared
                            .note_absent(&upstream, &repo, digest, *absent, asked_at)
                            .await;
                    }
                    Err(_) => {}
                }
                answer
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer?),
            Err(Lost) => Err(FillError::Lost),
        }
    }
}
