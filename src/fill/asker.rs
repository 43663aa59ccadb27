//! Questions about manifests and tags to upstream, and what is recorded of the answers.

use tokio::time::Instant;

use super::error::FillError;
use super::found::Found;
use super::lately::Noted;
use super::recorded::Recorded;
use crate::cache::{StoredManifest, TagRecord};
use crate::clock::Clock;
use crate::oci::{Digest, Reference, RepoKey, Tag};
use crate::telemetry::{Outcome, StaleReason};
use crate::upstream::{FetchedManifest, ManifestHead, Upstream, UpstreamError, Upstreams};

pub(super) type Answer = Result<Found<StoredManifest>, UpstreamError>;

/// What a question needs once it runs in a task of its own.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) recorded: Recorded,
    pub(super) upstreams: Upstreams,
    /// Who is asked.
    pub(super) upstream: Upstream,
    pub(super) clock: Clock,
    pub(super) gone: Noted,
    pub(super) changed: Noted,
    pub(super) repo: RepoKey,
    pub(super) asked_at: Instant,
}

impl Recorded {
    /// A manifest that is recorded for this repository: the record is the proof that it holds it.
    pub(super) async fn kept(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Option<Found<StoredManifest>>, FillError> {
        let manifest = self.manifest(repo, digest).await?;
        Ok(manifest.map(|manifest| Found::by(Outcome::Hit, manifest)))
    }
}

impl Asker {
    pub(super) async fn by_digest(self, digest: Digest) -> Answer {
        self.fetch(&Reference::Digest(digest)).await
    }

    pub(super) async fn confirm(self, manifest: StoredManifest) -> Answer {
        let reference = Reference::Digest(manifest.digest);
        match self.head(&reference).await {
            Ok(_) => self.note_manifest(&manifest).await,
            Err(error) => {
                if matches!(error, UpstreamError::Absent(_)) && !self.was_overtaken(&reference) {
                    if self.recorded.is_pinned(&self.repo, &reference).await {
                        self.upstreams.note(&self.upstream, || {
                            self.gone.note(&self.repo, manifest.digest, Instant::now());
                        });
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
    pub(super) async fn by_tag(self, tag: Tag, record: Option<TagRecord>) -> Answer {
        let found = self.revalidate(&tag, record.as_ref()).await;
        let Err(error) = &found else {
            return found;
        };
        let reference = Reference::Tag(tag.clone());
        let is_pinned = error.says_no() && self.recorded.is_pinned(&self.repo, &reference).await;
        match (found, record) {
            (Err(error), Some(record)) if is_pinned => self.stale(&record).await.ok_or(error),
            (Err(UpstreamError::Absent(absent)), _) if !is_pinned => {
                if !self.was_overtaken(&reference) {
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
        let repository = &self.repo.repository;
        let fetched = self.upstream.manifest(repository, reference).await?;
        Ok(self.keep(fetched).await)
    }

    async fn head(&self, reference: &Reference) -> Result<ManifestHead, UpstreamError> {
        let repository = &self.repo.repository;
        self.upstream.head_manifest(repository, reference).await
    }

    async fn keep(&self, fetched: FetchedManifest) -> Found<StoredManifest> {
        let media_type = fetched.media_type.as_str().into();
        let manifest = StoredManifest::new(fetched.digest, media_type, fetched.bytes);
        self.note_manifest(&manifest).await;
        Found::by(Outcome::Miss, manifest)
    }

    async fn note_manifest(&self, manifest: &StoredManifest) {
        if self.was_overtaken(&Reference::Digest(manifest.digest)) {
            return;
        }
        let (media_type, bytes) = (manifest.media_type.to_string(), manifest.bytes.clone());
        let now = self.clock.now();
        self.recorded
            .note_manifest(&self.upstream, &self.repo, media_type, bytes, now)
            .await;
    }

    async fn note_tag(&self, tag: &Tag, digest: Digest) {
        if self.was_overtaken(&Reference::Tag(tag.clone())) {
            return;
        }
        self.recorded
            .note_tag(&self.upstream, &self.repo, tag, digest, self.clock.now())
            .await;
    }

    /// True if a tag or manifest was changed since this was asked: what upstream says may be what was before.
    pub(super) fn was_overtaken(&self, reference: &Reference) -> bool {
        let changed = self.changed.get(&self.repo, reference.clone());
        changed.is_some_and(|changed| changed >= self.asked_at)
    }
}
