//! How long tags are believed, and how much longer when upstream cannot answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Pattern, RepoKey, Routed, Tag};

/// How the tags of a repository are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPolicy {
    /// For how long without asking.
    pub tag_ttl: Duration,
    /// For how long past that where upstream cannot answer; for ever without.
    pub stale_if_error: Option<Duration>,
    /// Tags like these never move: once seen, they are never asked for again.
    pub immutable_tags: Vec<Pattern>,
}

impl Default for TagPolicy {
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_secs(5),
            stale_if_error: None,
            immutable_tags: Vec::new(),
        }
    }
}

/// How tags are believed, by upstream and repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPolicies {
    upstreams: BTreeMap<Arc<str>, Routed<TagPolicy>>,
    otherwise: TagPolicy,
}

impl TagPolicies {
    /// What counts for the tags of `repo`.
    pub fn of(&self, repo: &RepoKey) -> &TagPolicy {
        let routed = self.upstreams.get(&repo.upstream);
        routed.map_or(&self.otherwise, |routed| routed.of(&repo.repository))
    }

    /// What counts for an upstream where no repository is meant.
    pub(super) fn of_upstream(&self, upstream: &str) -> &TagPolicy {
        let routed = self.upstreams.get(upstream);
        routed.map_or(&self.otherwise, Routed::otherwise)
    }
}

impl FromIterator<(Arc<str>, Routed<TagPolicy>)> for TagPolicies {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Routed<TagPolicy>)>>(upstreams: I) -> Self {
        Self {
            upstreams: upstreams.into_iter().collect(),
            otherwise: TagPolicy::default(),
        }
    }
}

impl TagPolicy {
    /// For how long `tag` is believed without asking, for ever without; `learned` is what the registry's
    /// own word that it does not move is worth.
    pub(super) fn ttl(&self, tag: &Tag, learned: Option<Duration>) -> Option<Duration> {
        let never_moves = |pattern: &Pattern| pattern.matches(tag.as_str());
        if self.immutable_tags.iter().any(never_moves) {
            return None;
        }
        Some(self.tag_ttl.max(learned.unwrap_or_default()))
    }

    /// Whether a tag of this age may be served although it could not be asked for.
    pub(super) fn permits_stale(&self, age: Duration, ttl: Duration) -> bool {
        let limit = self.stale_if_error.map(|limit| ttl.saturating_add(limit));
        limit.is_none_or(|limit| age <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    #[test]
    fn what_never_moves_is_told_by_pattern_and_by_the_registry() {
        let policy = TagPolicy {
            tag_ttl: MINUTE,
            immutable_tags: vec!["v*".parse().unwrap(), "1.*".parse().unwrap()],
            ..TagPolicy::default()
        };
        assert_eq!(policy.ttl(&tag("v1"), None), None);
        assert_eq!(policy.ttl(&tag("1.2.3"), None), None);
        assert_eq!(policy.ttl(&tag("latest"), None), Some(MINUTE));
        assert_eq!(
            policy.ttl(&tag("latest"), Some(MINUTE * 9)),
            Some(MINUTE * 9)
        );
        assert_eq!(policy.ttl(&tag("latest"), Some(MINUTE / 9)), Some(MINUTE));
    }

    #[test]
    fn o02_stale_has_an_end_where_one_is_set() {
        let mut policy = TagPolicy::default();
        assert!(policy.permits_stale(Duration::MAX, MINUTE));
        policy.stale_if_error = Some(MINUTE * 10);
        assert!(policy.permits_stale(MINUTE * 11, MINUTE));
        assert!(!policy.permits_stale(MINUTE * 11 + Duration::from_secs(1), MINUTE));
        assert!(!policy.permits_stale(Duration::MAX, MINUTE));
    }
}
