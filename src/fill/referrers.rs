//! What refers to a manifest: signatures, SBOMs, whatever was attached to an image.
//!
//! Upstream keeps the list and is asked each time. What it says is recorded, and with the manifests that
//! are stored it is the answer when upstream cannot give one. Without anything recorded there is none:
//! that nothing refers to an image is not ours to say.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::error::FillError;
use super::{Fills, Shared};
use crate::access::Right;
use crate::oci::{Digest, Reference, Referrers, RepoKey, Tag};
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

/// Longest list that is recorded, in bytes: lists stay in memory with their repository.
const MAX_RECORDED: usize = 256 * 1024;

/// Most pages of a list that are put together. ECR gives 50 entries a page and more.
const MAX_PAGES: usize = 100;

/// A page of the manifests that refer to another.
#[derive(Clone, Debug)]
pub struct FoundReferrers {
    /// An image index.
    pub bytes: Bytes,
    /// True if only the artifact type that was asked for is listed.
    pub filters_applied: bool,
    /// What to give as `page` for the next page.
    pub next: Option<String>,
    /// `Bypass` from upstream, `Stale` from what is recorded.
    pub outcome: Outcome,
    /// How long ago the list was last confirmed, where the answer is stale.
    pub age: Option<Duration>,
}

/// The tag under which a manifest's referrers are listed in a registry that does not list them itself
/// (distribution-spec "Referrers Tag Schema").
pub fn referrers_tag(subject: &Digest) -> Option<Tag> {
    format!("sha256-{}", subject.hex()).parse().ok()
}

impl Fills {
    /// A page of the manifests that refer to `subject`, of one artifact type where one is given.
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
        page: Option<&str>,
    ) -> Result<FoundReferrers, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let shared = &self.shared;
        let upstream = shared.upstreams.of(repo)?;
        let answer = upstream
            .referrers(&repo.repository, &subject, artifact_type, page)
            .await;
        match answer {
            Ok(answer) => {
                let is_all = page.is_none() && answer.next.is_none() && !answer.filters_applied;
                if is_all && let Ok(list) = Referrers::from_index(&answer.bytes) {
                    shared.note_referrers(repo, subject, &list).await;
                }
                Ok(FoundReferrers {
                    bytes: answer.bytes,
                    filters_applied: answer.filters_applied,
                    next: answer.next,
                    outcome: Outcome::Bypass,
                    age: None,
                })
            }
            Err(error) if error.cannot_answer() && page.is_none() => {
                let known = shared.known_referrers(repo, subject).await?;
                let (list, checked_at) = known.ok_or(error)?;
                let list = match artifact_type {
                    Some(artifact_type) => list.of_type(artifact_type),
                    None => list,
                };
                Ok(FoundReferrers {
                    bytes: list.to_index().into(),
                    filters_applied: artifact_type.is_some(),
                    next: None,
                    outcome: Outcome::Stale,
                    age: Some(shared.clock.since(checked_at)),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Everything that refers to `subject`, as upstream lists it now: itself, or where it keeps no lists
    /// under the tag for them. It is recorded.
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
        let upstream = shared.upstreams.of(repo)?;
        let mut list = Referrers::default();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let answer = upstream
                .referrers(&repo.repository, &subject, None, next.as_deref())
                .await;
            let page = match answer {
                Ok(page) => page,
                Err(UpstreamError::Absent(_) | UpstreamError::Unsupported) if next.is_none() => {
                    list = self.listed_by_tag(repo, subject).await?;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if let Ok(page) = Referrers::from_index(&page.bytes) {
                list.extend(page);
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        shared.note_referrers(repo, subject, &list).await;
        Ok(list)
    }

    async fn listed_by_tag(&self, repo: &RepoKey, subject: Digest) -> Result<Referrers, FillError> {
        let Some(tag) = referrers_tag(&subject) else {
            return Ok(Referrers::default());
        };
        match self.fetch_manifest(repo, &Reference::Tag(tag)).await {
            Ok(found) => Ok(Referrers::from_index(&found.manifest.bytes).unwrap_or_default()),
            Err(FillError::Upstream(UpstreamError::Absent(_))) => Ok(Referrers::default()),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
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
