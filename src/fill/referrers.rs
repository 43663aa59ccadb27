//! What refers to a manifest: signatures, SBOMs, whatever was attached to an image.
//!
//! Upstream keeps the list and is asked each time. When it cannot answer the same repository elsewhere is
//! asked; when nobody can, what was said before, which is recorded, and the manifests that are stored are the
//! answer. Without anything recorded there is none:
//! that nothing refers to an image is not ours to say.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::error::FillError;
use super::lists::WALK;
use super::manifests::stale_because;
use super::{Fills, Shared};
use crate::access::Right;
use crate::oci::{Digest, Reference, Referrers, RepoKey, Tag};
use crate::telemetry::{Outcome, StaleReason};
use crate::upstream::{Deadline, UpstreamError, Wrong};

/// Longest list that is recorded, in bytes: lists stay in memory with their repository.
const MAX_RECORDED: usize = 256 * 1024;

/// Most pages of a list that are put together, and most bytes. ECR gives 50 entries a page and more.
const MAX_PAGES: usize = 100;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The manifests that refer to another.
#[derive(Clone, Debug)]
pub struct FoundReferrers {
    /// Each once, in the registry's order.
    pub list: Referrers,
    /// `Bypass` from an upstream, `Stale` from what is recorded.
    pub outcome: Outcome,
    /// How long ago the list was last confirmed, where the answer is stale.
    pub age: Option<Duration>,
    /// Why it is stale, where it is.
    pub reason: Option<StaleReason>,
    /// It is that of the same repository elsewhere, whose own upstream cannot answer.
    pub is_of_another: bool,
}

/// The tag under which a manifest's referrers are listed in a registry that does not list them itself
/// (distribution-spec "Referrers Tag Schema").
pub fn referrers_tag(subject: &Digest) -> Option<Tag> {
    format!("sha256-{}", subject.hex()).parse().ok()
}

impl Fills {
    /// The manifests that refer to `subject`, of one artifact type where one is given. Upstream is asked for all
    /// of them, so that what is recorded tells of each type.
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
    ) -> Result<FoundReferrers, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let found = match self.shared.all_referrers(repo, subject).await {
            Ok(list) => {
                self.shared.note_referrers(repo, subject, &list).await;
                FoundReferrers {
                    list,
                    outcome: Outcome::Bypass,
                    age: None,
                    reason: None,
                    is_of_another: false,
                }
            }
            Err(error) => {
                let bearer = right.credential().is_some();
                self.referrers_without(repo, subject, error, bearer).await?
            }
        };
        let list = match artifact_type {
            Some(artifact_type) => found.list.of_type(artifact_type),
            None => found.list,
        };
        Ok(FoundReferrers { list, ..found })
    }

    /// All that refers to `subject`, after an `error` of upstream: as the same repository elsewhere lists it,
    /// else as it is recorded. The bearer of a token is told what is recorded of this repository only.
    async fn referrers_without(
        &self,
        repo: &RepoKey,
        subject: Digest,
        error: UpstreamError,
        bearer: bool,
    ) -> Result<FoundReferrers, FillError> {
        let shared = &self.shared;
        let Some(reason) = stale_because(&error) else {
            return Err(error.into());
        };
        let error = error.into();
        let mut places = vec![repo.clone()];
        if !bearer {
            places.extend(shared.instead_of(repo, &error));
        }
        for other in &places[1..] {
            if let Ok(list) = shared.all_referrers(other, subject).await {
                shared.note_referrers(other, subject, &list).await;
                shared.metrics.stood_in();
                return Ok(FoundReferrers {
                    list,
                    outcome: Outcome::Bypass,
                    age: None,
                    reason: None,
                    is_of_another: true,
                });
            }
        }
        for place in &places {
            if let Some((list, checked_at)) = shared.known_referrers(place, subject).await? {
                return Ok(FoundReferrers {
                    list,
                    outcome: Outcome::Stale,
                    age: Some(shared.clock.since(checked_at)),
                    reason: Some(reason),
                    is_of_another: place != repo,
                });
            }
        }
        Err(error)
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
        let shared = &self.shared;
        let error = match self.referrers_of(repo, subject).await {
            Ok(list) => {
                shared.note_referrers(repo, subject, &list).await;
                return Ok(list);
            }
            Err(error) => error,
        };
        for other in shared.instead_of(repo, &error) {
            if let Ok(list) = self.referrers_of(&other, subject).await {
                shared.note_referrers(&other, subject, &list).await;
                shared.metrics.stood_in();
                return Ok(list);
            }
        }
        Err(error)
    }

    async fn referrers_of(&self, repo: &RepoKey, subject: Digest) -> Result<Referrers, FillError> {
        match self.shared.all_referrers(repo, subject).await {
            Ok(list) => Ok(list),
            Err(UpstreamError::Absent(_) | UpstreamError::Unsupported) => {
                self.listed_by_tag(repo, subject).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn listed_by_tag(&self, repo: &RepoKey, subject: Digest) -> Result<Referrers, FillError> {
        let Some(tag) = referrers_tag(&subject) else {
            return Ok(Referrers::default());
        };
        match self.fetch_manifest(repo, &Reference::Tag(tag)).await {
            Ok((_, found)) => Ok(Referrers::from_index(&found.manifest.bytes).unwrap_or_default()),
            Err(FillError::Upstream(UpstreamError::Absent(_))) => Ok(Referrers::default()),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    /// All pages of the registry's own list.
    async fn all_referrers(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Referrers, UpstreamError> {
        let upstream = self.upstreams.of(repo)?;
        let pages = async {
            let (mut list, mut bytes) = (Referrers::default(), 0);
            let mut next = None;
            for _ in 0..MAX_PAGES {
                let page = upstream
                    .referrers(&repo.repository, &subject, next.as_deref())
                    .await?;
                bytes += page.bytes.len();
                if bytes > MAX_BYTES {
                    break;
                }
                if let Ok(page) = Referrers::from_index(&page.bytes) {
                    list.extend(page);
                }
                next = page.next;
                if next.is_none() {
                    return Ok(list);
                }
            }
            Err(UpstreamError::Wrong(Wrong::TooLarge))
        };
        let slow = Err(UpstreamError::TooSlow(Deadline::Progress));
        timeout(WALK, pages).await.unwrap_or(slow)
    }

    async fn note_referrers(&self, repo: &RepoKey, subject: Digest, list: &Referrers) {
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
            .note_referrers(repo, subject, entries.into(), now)
            .await;
    }

    /// What is known to refer to a manifest, and when the oldest of it was confirmed; `None` if nothing
    /// is. A list that upstream gave counts before the index under the fallback tag, and either before
    /// manifests that were confirmed no later.
    async fn known_referrers(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Option<(Referrers, SystemTime)>, FillError> {
        let listed = self.recorded.referrer_list(repo, subject).await?;
        let mut known = listed.and_then(|listed| {
            let list = Referrers::from_array(&listed.entries).ok()?;
            Some((list, listed.checked_at))
        });
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
        Ok(known)
    }
}
