//! Upstreams that stand in for one that cannot answer.
//!
//! The same repository elsewhere is a repository of its own: it is asked, recorded and proven for itself,
//! and only while the first cannot answer. A no of the first is final, and a no of another is none. One that throttles
//! is still waited for beside the others, or after them for a blob: it may answer where they do not.
//!
//! Not for whoever is here by an ECR token: what its registry said is about its own repositories, and says
//! nothing of what the bearer may read elsewhere.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::error::FillError;
use super::found::{Found, How};
use super::proof::Pass;
use super::{Fills, Shared};
use crate::oci::{Digest, RepoKey};
use crate::telemetry::{Outcome, StaleReason};
use crate::upstream::{Upstream, UpstreamError};

/// For how long an upstream's throttling is waited out where another may answer instead: it takes one pause and the
/// next question to see whether a burst was the matter. Where none may, it is for as long as upstream questions wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked of an upstream, and may be asked of others in its place.
pub(super) trait Place: Clone {
    /// The same of the upstreams that stand in for its own, in order.
    fn stand_ins(&self, shared: &Shared) -> Vec<Self>;

    /// The upstream itself, where it is configured.
    fn upstream(&self, shared: &Shared) -> Option<Upstream>;
}

impl Place for RepoKey {
    fn stand_ins(&self, shared: &Shared) -> Vec<Self> {
        let upstreams = self.upstream.stand_ins(shared).into_iter();
        let of = |upstream| Self {
            upstream,
            repository: self.repository.clone(),
        };
        upstreams.map(of).collect()
    }

    fn upstream(&self, shared: &Shared) -> Option<Upstream> {
        shared.upstreams.of(self).ok()
    }
}

/// An upstream by its name.
impl Place for Arc<str> {
    fn stand_ins(&self, shared: &Shared) -> Vec<Self> {
        let upstream = self.upstream(shared);
        upstream.map_or_else(Vec::new, |upstream| upstream.fallback())
    }

    fn upstream(&self, shared: &Shared) -> Option<Upstream> {
        shared.upstreams.named(self)
    }
}

impl FillError {
    /// Whether the upstream was not asked to the end, as another was believed to answer instead.
    fn made_way(&self) -> bool {
        let Self::Upstream(error) = self else {
            return false;
        };
        matches!(
            error,
            UpstreamError::Throttled { .. } | UpstreamError::Away(_)
        )
    }

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

impl How {
    /// True where another upstream may know better: this is what was last confirmed.
    fn wants_another(&self) -> bool {
        let is_by_choice = |reason| {
            matches!(
                reason,
                StaleReason::Offline | StaleReason::Pinned | StaleReason::Slow
            )
        };
        self.staleness()
            .is_some_and(|stale| !is_by_choice(stale.reason))
    }
}

impl Shared {
    /// What `ask` finds in a place, or in one that stands in for it while its upstream cannot answer. What is
    /// known elsewhere is told as it last was only where the place itself has nothing.
    ///
    /// # Errors
    /// Why there is nothing in the place itself.
    pub(super) async fn anywhere<P: Place, T, A>(
        &self,
        place: &P,
        ask: impl Fn(P) -> A,
    ) -> Result<Found<T>, FillError>
    where
        A: Future<Output = Result<Found<T>, FillError>>,
    {
        let found = self.first_of(place, ask).await?;
        if found.how.is_of_another() && !found.how.is_stale() {
            self.metrics.stood_in();
        }
        Ok(found)
    }

    /// The same, of which nothing is told yet.
    async fn first_of<P: Place, T, A>(
        &self,
        place: &P,
        ask: impl Fn(P) -> A,
    ) -> Result<Found<T>, FillError>
    where
        A: Future<Output = Result<Found<T>, FillError>>,
    {
        let stood_in = async {
            let Some(upstream) = place.upstream(self) else {
                return pending().await;
            };
            upstream.throttles(PATIENCE).await;
            match self.elsewhere(place, &ask).await {
                Some(found) if !found.how.is_stale() => found,
                Some(_) | None => pending().await,
            }
        };
        let found = tokio::select! {
            biased;
            found = ask(place.clone()) => found,
            // Its own question goes on for those for whom nothing stands in.
            found = stood_in => return Ok(found),
        };
        let wants_another = match &found {
            Ok(found) => found.how.wants_another(),
            Err(error) => error.wants_another(),
        };
        if !wants_another {
            return found;
        }
        match self.elsewhere(place, &ask).await {
            Some(other) if !other.how.is_stale() => Ok(other),
            // None of them answers, and another one was served for it before.
            kept => found.or_else(|error| kept.ok_or(error)),
        }
    }

    /// What `ask` finds in the first place that answers of those that stand in for one; where none does, what
    /// was last known in the first that had something.
    async fn elsewhere<P: Place, T, A>(&self, place: &P, ask: impl Fn(P) -> A) -> Option<Found<T>>
    where
        A: Future<Output = Result<Found<T>, FillError>>,
    {
        let mut kept = None;
        for other in place.stand_ins(self) {
            if let Ok(found) = ask(other).await {
                let found = found.of_another();
                if !found.how.is_stale() {
                    return Some(found);
                }
                kept.get_or_insert(found);
            }
        }
        kept
    }
}

impl Fills {
    /// The proof of a repository, or of the same one elsewhere where its upstream cannot answer.
    pub(super) async fn establish_anywhere(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Pass, FillError> {
        let establish = |repo: RepoKey| async move {
            let pass = self.establish(&repo, digest).await?;
            Ok(Found::by(Outcome::Hit, pass))
        };
        let Found { what: pass, how } = self.shared.first_of(repo, establish).await?;
        Ok(Pass {
            instead_of: how.is_of_another().then(|| repo.clone()),
            ..pass
        })
    }

    /// What `ask` finds of a blob by a pass, or by that of the same repository elsewhere where its upstream
    /// cannot answer. A no is remembered.
    ///
    /// # Errors
    /// Why there is nothing by the pass itself.
    pub(super) async fn by_pass<T, A>(
        &self,
        pass: &Pass,
        ask: impl Fn(Pass) -> A,
    ) -> Result<Found<T>, FillError>
    where
        A: Future<Output = Result<Found<T>, FillError>>,
    {
        let ask = &ask;
        let heard = |pass: Pass| async move {
            let asked_at = self.shared.clock.now();
            let found = ask(pass.clone()).await;
            if let Err(error) = &found {
                self.shared.hear(&pass, asked_at, error).await;
            }
            found
        };
        let own = pass.instead_of.as_ref();
        let mut error = match heard(pass.clone()).await {
            Ok(found) if own.is_some() => {
                self.shared.metrics.stood_in();
                return Ok(found.of_another());
            }
            Err(error) if error.wants_another() && !pass.stays => error,
            // A no of what stands in is none.
            Err(FillError::Upstream(error)) if own.is_some() && error.says_no() => error.into(),
            found => return found,
        };
        let stand_ins = own.unwrap_or(&pass.repo).stand_ins(&self.shared);
        let made_way = own.is_none() && !stand_ins.is_empty() && error.made_way();
        let others = own.cloned().into_iter().chain(stand_ins);
        for other in others.filter(|other| *other != pass.repo) {
            let is_own = own == Some(&other);
            let found = match self.establish(&other, pass.digest).await {
                Ok(pass) => heard(pass).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(found) if is_own => return Ok(found),
                Ok(found) => {
                    self.shared.metrics.stood_in();
                    return Ok(found.of_another());
                }
                Err(told) if is_own => error = told,
                Err(_) => {}
            }
        }
        if made_way {
            // For others, of which none had it.
            let pass = Pass {
                stays: true,
                ..pass.clone()
            };
            return heard(pass).await;
        }
        Err(error)
    }
}
