//! A repository's tags: as upstream lists them, or those that the cache knows where it cannot.

use std::sync::Arc;
use std::time::Duration;

use super::error::FillError;
use super::lists::{Names, PAGING};
use super::manifests::stale_because;
use super::{Fills, Shared};
use crate::access::{Right, Turn};
use crate::oci::RepoKey;
use crate::telemetry::{Outcome, StaleReason};

/// A page of a repository's tags.
#[derive(Clone, Debug)]
pub struct FoundTags {
    /// In order, each once.
    pub names: Vec<String>,
    /// There are more after the last of them.
    pub more: bool,
    /// `Bypass` from upstream, `Hit` from the list whose earlier page was from there, `Stale` from what is
    /// recorded.
    pub outcome: Outcome,
    /// How long ago the oldest was confirmed, where the answer is stale.
    pub age: Option<Duration>,
    /// Why it is stale, where it is.
    pub reason: Option<StaleReason>,
    /// It is that of the same repository elsewhere, whose own upstream cannot answer.
    pub is_of_another: bool,
}

impl Fills {
    /// The tags of `repo` after `last`, `limit` of them at most. Without a `last` upstream is asked anew.
    ///
    /// Whoever is here by a token of their own is told what upstream tells that token, and nothing else. A
    /// question that this begins keeps `turn` until it ends.
    ///
    /// # Errors
    /// The upstream's, where nothing is recorded that may be told instead.
    ///
    /// # Cancel safety
    /// The question is shared and goes on without the caller.
    pub async fn tags(
        &self,
        right: &Right,
        repo: &RepoKey,
        last: Option<&str>,
        limit: usize,
        turn: &Arc<Turn>,
    ) -> Result<FoundTags, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let shared = &self.shared;
        let age = last.map_or(Duration::ZERO, |_| PAGING);
        let found = |(names, outcome): (Arc<Names>, Outcome)| {
            let (names, more) = names.page(last, limit);
            FoundTags {
                names,
                more,
                outcome,
                age: None,
                reason: None,
                is_of_another: false,
            }
        };
        let bearer = right.credential();
        let error = match shared.lists.tags(repo, bearer, age, turn).await {
            Ok(list) => return Ok(found(list)),
            Err(error) => error,
        };
        if bearer.is_some() {
            return Err(error);
        }
        for other in shared.instead_of(repo, &error) {
            if let Ok(list) = shared.lists.tags(&other, None, age, turn).await {
                shared.metrics.stood_in();
                return Ok(FoundTags {
                    is_of_another: true,
                    ..found(list)
                });
            }
        }
        let FillError::Upstream(cause) = &error else {
            return Err(error);
        };
        let Some(reason) = stale_because(cause) else {
            return Err(error);
        };
        let (names, age) = shared.known_tags(repo, reason).await?.ok_or(error)?;
        Ok(FoundTags {
            age: Some(age),
            reason: Some(reason),
            ..found((Arc::new(names), Outcome::Stale))
        })
    }
}

impl Shared {
    /// The tags that a client would be given, and how long ago the oldest was confirmed; `None` if there
    /// are none.
    async fn known_tags(
        &self,
        repo: &RepoKey,
        reason: StaleReason,
    ) -> Result<Option<(Names, Duration)>, FillError> {
        let policy = self.manifests.policy(repo);
        let mut oldest = Duration::ZERO;
        let mut names = Vec::new();
        for (tag, record) in self.recorded.pullable_tags(repo).await? {
            let age = self.clock.since(record.checked_at);
            let ttl = policy.ttl(&tag, None);
            let is_fit = ttl.is_none_or(|ttl| policy.permits_stale(age, ttl));
            // What the operator keeps offline is served for as long as it is there.
            if is_fit || reason == StaleReason::Offline {
                oldest = oldest.max(age);
                names.push(tag.to_string());
            }
        }
        Ok((!names.is_empty()).then(|| (Names::of_records(names), oldest)))
    }
}
