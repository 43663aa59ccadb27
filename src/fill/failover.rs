//! Upstreams that stand in for one that cannot answer.
//!
//! The same repository elsewhere is a repository of its own: it is asked, recorded and proven for itself,
//! and only while the first cannot answer. A no of the first is final, and a no of another is none.
//!
//! Not for whoever is here by an ECR token: what its registry said is about its own repositories, and says
//! nothing of what the bearer may read elsewhere.

use std::sync::Arc;

use super::error::FillError;
use super::fetch::Fetched;
use super::manifests::FoundManifest;
use super::opening::{Content, Want};
use super::proof::Pass;
use super::{Fills, Shared};
use crate::oci::{Digest, Reference, RepoKey};
use crate::telemetry::{Outcome, StaleReason};
use crate::upstream::UpstreamError;

impl FillError {
    /// True where another upstream may answer instead: its own could not, and is meant to be asked.
    pub(super) fn wants_another(&self) -> bool {
        match self {
            Self::Upstream(UpstreamError::Offline | UpstreamError::Unconfigured) => false,
            Self::Upstream(error) => error.cannot_answer(),
            Self::TooSlow => true,
            _ => false,
        }
    }
}

impl FoundManifest {
    /// True where another upstream may know better: this is what was last confirmed.
    fn wants_another(&self) -> bool {
        let is_by_choice = |reason| {
            matches!(
                reason,
                StaleReason::Offline | StaleReason::Pinned | StaleReason::Slow
            )
        };
        self.outcome == Outcome::Stale && self.reason.is_none_or(|reason| !is_by_choice(reason))
    }
}

impl Fills {
    /// A manifest of a repository, or of the same one elsewhere where its upstream cannot answer.
    pub(super) async fn find_manifest(
        &self,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Result<(RepoKey, FoundManifest), FillError> {
        let manifests = &self.shared.manifests;
        let found = manifests.find(repo, reference).await;
        let wants_another = match &found {
            Ok(found) => found.wants_another(),
            Err(error) => error.wants_another(),
        };
        let mut kept = None;
        if wants_another {
            for other in self.shared.stand_ins(repo) {
                let Ok(found) = manifests.find(&other, reference).await else {
                    continue;
                };
                let found = FoundManifest {
                    is_of_another: true,
                    ..found
                };
                if found.outcome != Outcome::Stale {
                    self.shared.metrics.stood_in();
                    return Ok((other, found));
                }
                kept.get_or_insert((other, found));
            }
        }
        match (found, kept) {
            (Ok(found), _) => Ok((repo.clone(), found)),
            // None of them answers, and this one was served for it before.
            (Err(_), Some(kept)) => Ok(kept),
            (Err(error), None) => Err(error),
        }
    }

    /// The proof of a repository, or of the same one elsewhere where its upstream cannot answer.
    pub(super) async fn establish_anywhere(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Pass, FillError> {
        let proof = self.establish(repo, digest).await;
        let Err(error) = &proof else { return proof };
        for other in self.shared.instead_of(repo, error) {
            if let Ok(pass) = self.establish(&other, digest).await {
                return Ok(Pass {
                    is_of_another: true,
                    ..pass
                });
            }
        }
        proof
    }

    /// What the same repository elsewhere has of a blob, where its own upstream could not answer: `error`
    /// otherwise.
    pub(super) async fn open_elsewhere(
        &self,
        pass: &Pass,
        want: &Want,
        error: FillError,
    ) -> Result<Content, FillError> {
        for other in self.shared.instead_of_proven(pass, &error) {
            if let Ok(pass) = self.establish(&other, pass.digest).await
                && let Ok(content) = self.open_of(&pass, want).await
            {
                self.shared.metrics.stood_in();
                return Ok(Content {
                    is_of_another: true,
                    ..content
                });
            }
        }
        Err(error)
    }

    /// A blob whole on disk in the same way, for nobody in particular.
    pub(super) async fn make_whole_elsewhere(
        &self,
        pass: &Pass,
        progress: &mut (dyn FnMut(u64, u64) + Send),
        error: FillError,
    ) -> Result<Fetched, FillError> {
        for other in self.shared.instead_of_proven(pass, &error) {
            if let Ok(pass) = self.establish(&other, pass.digest).await
                && let Ok(fetched) = self.make_whole(&pass, progress).await
            {
                self.shared.metrics.stood_in();
                return Ok(fetched);
            }
        }
        Err(error)
    }

    /// The size of a blob in the same way.
    pub(super) async fn size_elsewhere(
        &self,
        pass: &Pass,
        error: FillError,
    ) -> Result<(u64, Outcome), FillError> {
        for other in self.shared.instead_of_proven(pass, &error) {
            if let Ok(pass) = self.establish(&other, pass.digest).await
                && let Ok(found) = self.find_size(&pass).await
            {
                return Ok(found);
            }
        }
        Err(error)
    }
}

impl Shared {
    /// The stand-ins to be asked after `error`: none unless another may answer.
    pub(super) fn instead_of(&self, repo: &RepoKey, error: &FillError) -> Vec<RepoKey> {
        match error.wants_another() {
            true => self.stand_ins(repo),
            false => Vec::new(),
        }
    }

    /// The same for somebody who has shown a pass.
    fn instead_of_proven(&self, pass: &Pass, error: &FillError) -> Vec<RepoKey> {
        match pass.stays {
            false => self.instead_of(&pass.repo, error),
            true => Vec::new(),
        }
    }

    /// The same repository of the upstreams that stand in for its own, in order.
    pub(super) fn stand_ins(&self, repo: &RepoKey) -> Vec<RepoKey> {
        let of = |upstream| RepoKey {
            upstream,
            repository: repo.repository.clone(),
        };
        self.fallback(&repo.upstream).into_iter().map(of).collect()
    }

    /// The upstreams to be asked in the place of this one after `error`.
    pub(super) fn standing_in(&self, upstream: &str, error: &FillError) -> Vec<Arc<str>> {
        match error.wants_another() {
            true => self.fallback(upstream),
            false => Vec::new(),
        }
    }

    fn fallback(&self, upstream: &str) -> Vec<Arc<str>> {
        let upstream = self.upstreams.named(upstream);
        upstream.map_or_else(Vec::new, |upstream| upstream.fallback().to_vec())
    }
}
