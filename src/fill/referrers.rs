//! What refers to a manifest: signatures, SBOMs, whatever was attached to an image.
//!
//! Upstream keeps the list and is asked each time. When it cannot answer the same repository elsewhere is
//! asked; when nobody can, what was said before, which is recorded, and the manifests that are stored are the
//! answer. Without anything recorded there is none:
//! that nothing refers to an image is not ours to say.

use tokio::time::timeout;

use super::error::FillError;
use super::found::Found;
use super::lists::WALK;
use super::{Fills, Shared};
use crate::access::Right;
use crate::oci::{Digest, Reference, Referrers, RepoKey, Tag, media_type};
use crate::telemetry::{Outcome, StaleReason};
use crate::upstream::{Deadline, Upstream, UpstreamError, Wrong};

/// Longest list that is recorded, in bytes: lists stay in memory with their repository.
const MAX_RECORDED: usize = 256 * 1024;

/// Most pages of a list that are put together, and most bytes. ECR gives 50 entries a page and more.
const MAX_PAGES: usize = 100;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The tag under which a manifest's referrers are listed in a registry that does not list them itself
/// (distribution-spec "Referrers Tag Schema").
pub fn referrers_tag(subject: &Digest) -> Option<Tag> {
    format!("sha256-{}", subject.hex()).parse().ok()
}

impl Fills {
    /// The manifests that refer to `subject`, each once and in the registry's order, of one artifact type where
    /// one is given: `Bypass` from an upstream, stale from what is recorded. Upstream is asked for all of them, so
    /// that what is recorded tells of each type.
    ///
    /// # Errors
    /// The upstream's, where nothing is recorded that could be told instead.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn referrers(
        &self,
        right: &Right,
        repo: &RepoKey,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Found<Referrers>, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let shared = &self.shared;
        let ask = |repo: RepoKey| async move {
            match shared.listed_referrers(&repo, subject).await {
                Ok(list) => Ok(Found::by(Outcome::Bypass, list)),
                Err(error) => shared.known_referrers(&repo, subject, error).await,
            }
        };
        let found = match right.credential() {
            Some(_) => ask(repo.clone()).await,
            None => shared.anywhere(repo, ask).await,
        };
        let found = found.map_err(|error| match shared.may_keep_no_referrers(repo, &error) {
            // It never listed any here that this could hide. Clients look under the tag for them then.
            true => UpstreamError::Unsupported.into(),
            false => error,
        })?;
        Ok(match artifact_type {
            Some(artifact_type) => found.map(|list| list.of_type(artifact_type)),
            None => found,
        })
    }

    /// Everything that refers to `subject`, as upstream lists it now: itself, or where it keeps no lists
    /// under the tag for them; the same repository elsewhere where it cannot answer. It is recorded.
    ///
    /// # Errors
    /// The upstream's.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn fetch_referrers(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Referrers, FillError> {
        let ask = |repo: RepoKey| async move {
            let list = self.referrers_of(&repo, subject).await?;
            Ok(Found::by(Outcome::Bypass, list))
        };
        let found = self.shared.anywhere(repo, ask).await?;
        Ok(found.what)
    }

    async fn referrers_of(&self, repo: &RepoKey, subject: Digest) -> Result<Referrers, FillError> {
        match self.shared.listed_referrers(repo, subject).await {
            Err(FillError::Upstream(UpstreamError::Absent(_) | UpstreamError::Unsupported)) => {
                let upstream = self.shared.upstreams.of(repo)?;
                let list = self.listed_by_tag(repo, subject).await?;
                let noting = self.shared.note_referrers(&upstream, repo, subject, &list);
                noting.await;
                Ok(list)
            }
            // That is not known for sure, so it is not recorded.
            Err(error) if self.shared.may_keep_no_referrers(repo, &error) => {
                self.listed_by_tag(repo, subject).await
            }
            listed => listed,
        }
    }

    async fn listed_by_tag(&self, repo: &RepoKey, subject: Digest) -> Result<Referrers, FillError> {
        let Some(tag) = referrers_tag(&subject) else {
            return Ok(Referrers::default());
        };
        let manifests = &self.shared.manifests;
        match manifests.find(repo, &Reference::Tag(tag)).await {
            Ok(found) if *found.what.media_type == *media_type::OCI_INDEX => {
                // One that cannot be read is not one that names nothing.
                let malformed = |_| UpstreamError::Wrong(Wrong::Malformed);
                Ok(Referrers::from_index(&found.what.bytes).map_err(malformed)?)
            }
            // Some call images by their own digests in this way.
            Ok(_) => Ok(Referrers::default()),
            Err(FillError::Upstream(UpstreamError::Absent(_))) => Ok(Referrers::default()),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    /// All pages of the registry's own list, which are recorded.
    async fn listed_referrers(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Referrers, FillError> {
        let upstream = self.upstreams.of(repo)?;
        let pages = async {
            let (mut list, mut bytes) = (Referrers::default(), 0);
            let mut next = None;
            for _ in 0..MAX_PAGES {
                let page = upstream
                    .referrers(&repo.repository, &subject, next.as_deref())
                    .await?;
                bytes += page.size;
                if bytes > MAX_BYTES {
                    break;
                }
                list.extend(page.list);
                next = page.next;
                if next.is_none() {
                    return Ok(list);
                }
            }
            Err(UpstreamError::Wrong(Wrong::TooLarge))
        };
        let slow = Err(UpstreamError::TooSlow(Deadline::Progress));
        let list = timeout(WALK, pages).await.unwrap_or(slow)?;
        self.note_referrers(&upstream, repo, subject, &list).await;
        Ok(list)
    }

    async fn note_referrers(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        subject: Digest,
        list: &Referrers,
    ) {
        let entries = list.to_array();
        if entries.len() > MAX_RECORDED {
            tracing::warn!(
                oci.repository = %repo,
                oci.digest = %subject,
                bytes = entries.len(),
                "a list of referrers is too long to be recorded"
            );
            return;
        }
        let now = self.clock.now();
        self.recorded
            .note_referrers(by, repo, subject, entries.into(), now)
            .await;
    }

    fn may_keep_no_referrers(&self, repo: &RepoKey, error: &FillError) -> bool {
        let upstream = self.upstreams.of(repo);
        matches!((upstream, error), (Ok(upstream), FillError::Upstream(error)) if upstream.may_keep_no_referrers(error))
    }

    /// What is known to refer to a manifest after an `error` of upstream, as long ago as the oldest of it was
    /// confirmed; the error if nothing is, if it is a no, or if the registry may keep no lists and never gave one. A
    /// list that upstream gave counts before the index under the fallback tag, and either before manifests that were
    /// confirmed no later.
    async fn known_referrers(
        &self,
        repo: &RepoKey,
        subject: Digest,
        error: FillError,
    ) -> Result<Found<Referrers>, FillError> {
        // Where the registry may keep none, only what it once listed shows that it does: clients that are told of none
        // look under the tag for them, which tells of newer ones than are known here.
        let may_keep_none = self.may_keep_no_referrers(repo, &error);
        let reason = match error.stale_reason() {
            Some(reason) => reason,
            None if may_keep_none => StaleReason::Unreachable,
            None => return Err(error),
        };
        let listed = self.recorded.referrer_list(repo, subject).await?;
        let mut known = listed.and_then(|listed| {
            let list = Referrers::from_array(&listed.entries).ok()?;
            Some((list, listed.checked_at))
        });
        if known.is_none() && may_keep_none {
            return Err(error);
        }
        if known.is_none()
            && let Some(tag) = referrers_tag(&subject)
            && let Some(record) = self.recorded.tag(repo, &tag).await?
            && let Some(index) = self.recorded.manifest(repo, record.digest).await?
            && let Ok(list) = Referrers::from_index(&index.bytes)
        {
            known = Some((list, record.checked_at));
        }
        let listed_at = known.as_ref().map(|(_, listed_at)| *listed_at);
        for (manifest, checked_at) in self.recorded.referring(repo, subject).await? {
            if listed_at.is_some_and(|listed_at| checked_at <= listed_at) {
                continue;
            }
            let (list, oldest) = known.get_or_insert_with(|| (Referrers::default(), checked_at));
            list.add_manifest(manifest.digest, &manifest.media_type, &manifest.bytes);
            *oldest = checked_at.min(*oldest);
        }
        match known {
            Some((list, checked_at)) => {
                Ok(Found::stale(list, self.clock.since(checked_at), reason))
            }
            None => Err(error),
        }
    }
}
