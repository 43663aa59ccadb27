//! A repository's tags: as upstream lists them, or those that the cache knows where it cannot.

use std::sync::Arc;
use std::time::Duration;

use super::error::FillError;
use super::found::Found;
use super::lists::{Names, PAGING};
use super::{Fills, Shared};
use crate::access::{Right, Turn};
use crate::oci::RepoKey;
use crate::telemetry::StaleReason;

/// A page of a repository's tags.
#[derive(Clone, Debug)]
pub struct TagPage {
    /// In order, each once.
    pub names: Vec<String>,
    /// There are more after the last of them.
    pub more: bool,
}

impl Fills {
    /// The tags of `repo` after `last`, `limit` of them at most: `Bypass` from upstream, `Hit` from the list whose
    /// earlier page was from there, stale from what is recorded. Without a `last` upstream is asked anew.
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
    ) -> Result<Found<TagPage>, FillError> {
        debug_assert_eq!(right.action(), crate::access::Action::Pull);
        let shared = &self.shared;
        let age = last.map_or(Duration::ZERO, |_| PAGING);
        let lists = &shared.lists;
        let ask = |repo: RepoKey| async move {
            match lists.tags(&repo, None, age, turn).await {
                Ok(found) => Ok(found),
                Err(error) => shared.known_tags(&repo, error).await,
            }
        };
        let found = match right.credential() {
            Some(bearer) => lists.tags(repo, Some(bearer), age, turn).await,
            None => shared.anywhere(repo, ask).await,
        };
        Ok(found?.map(|names| {
            let (names, more) = names.page(last, limit);
            TagPage { names, more }
        }))
    }
}

impl Shared {
    /// The tags that a client would be given after an `error` of upstream, as long ago as the oldest was
    /// confirmed; the error if there are none, or it is a no.
    async fn known_tags(
        &self,
        repo: &RepoKey,
        error: FillError,
    ) -> Result<Found<Arc<Names>>, FillError> {
        let Some(reason) = error.stale_reason() else {
            return Err(error);
        };
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
        match names.is_empty() {
            true => Err(error),
            false => {
                let names = Arc::new(Names::of_records(names));
                Ok(Found::stale(names, oldest, reason))
            }
        }
    }
}
