//! What was found, and how: the one form of whatever the gate answers, for clients and for jobs.

use std::time::Duration;

use crate::telemetry::{Outcome, StaleReason};

/// Something that was found, and how.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The thing itself.
    pub what: T,
    /// How it was come by.
    pub how: How,
}

/// How an answer was come by: what `X-Cache`, `Age` and `Warning` tell.
///
/// The invariant: it is stale exactly where it says since when and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    outcome: Outcome,
    stale: Option<Stale>,
    is_of_another: bool,
}

/// What is told as it last was, without upstream's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How long ago the oldest of it was confirmed.
    pub age: Duration,
    /// Why upstream's word is not to be had.
    pub reason: StaleReason,
}

impl How {
    /// From the cache, upstream or both, as good as upstream's word.
    pub(super) fn by(outcome: Outcome) -> Self {
        debug_assert_ne!(outcome, Outcome::Stale);
        Self {
            outcome,
            stale: None,
            is_of_another: false,
        }
    }

    /// As it last was, without upstream's word.
    pub fn stale(age: Duration, reason: StaleReason) -> Self {
        Self {
            outcome: Outcome::Stale,
            stale: Some(Stale { age, reason }),
            is_of_another: false,
        }
    }

    /// Where it comes from.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Since when and why it is stale, where it is.
    pub fn staleness(&self) -> Option<Stale> {
        self.stale
    }

    /// True for what is not upstream's word.
    pub fn is_stale(&self) -> bool {
        self.stale.is_some()
    }

    /// True for what is of the same repository, or registry, elsewhere, whose own upstream cannot answer.
    pub fn is_of_another(&self) -> bool {
        self.is_of_another
    }

    /// How an answer that is put together of this and `other` was come by: it is as stale as the worse of them,
    /// and from upstream where either is.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let outcomes = [self.outcome, other.outcome];
        let is_any = |outcome| outcomes.contains(&outcome);
        let stale = match (self.stale, other.stale) {
            (Some(one), Some(other)) => Some(Stale {
                age: one.age.max(other.age),
                ..one
            }),
            (one, other) => one.or(other),
        };
        let outcome = match stale {
            Some(_) => Outcome::Stale,
            None if is_any(Outcome::Bypass) => Outcome::Bypass,
            None => self.outcome,
        };
        Self {
            outcome,
            stale,
            is_of_another: self.is_of_another || other.is_of_another,
        }
    }
}

impl<T> Found<T> {
    /// What was found, as good as upstream's word.
    pub(super) fn by(outcome: Outcome, what: T) -> Self {
        let how = How::by(outcome);
        Self { what, how }
    }

    /// What was found as it last was.
    pub(super) fn stale(what: T, age: Duration, reason: StaleReason) -> Self {
        let how = How::stale(age, reason);
        Self { what, how }
    }

    /// The same, of whoever stands in for one that cannot answer.
    pub(super) fn of_another(mut self) -> Self {
        self.how.is_of_another = true;
        self
    }

    /// Something made of what was found, come by in the same way.
    pub(super) fn map<U>(self, make: impl FnOnce(T) -> U) -> Found<U> {
        Found {
            what: make(self.what),
            how: self.how,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_no_better_than_its_worst_part() {
        let [hit, bypass] = [Outcome::Hit, Outcome::Bypass].map(How::by);
        let stale = |seconds, reason| How::stale(Duration::from_secs(seconds), reason);
        let old = stale(9, StaleReason::Unreachable);
        for (one, other, expected) in [
            (hit, hit, hit),
            (hit, bypass, bypass),
            (bypass, hit, bypass),
            (bypass, old, old),
            (old, bypass, old),
            (
                stale(1, StaleReason::Offline),
                old,
                stale(9, StaleReason::Offline),
            ),
        ] {
            assert_eq!(one.and(other), expected, "{one:?} and {other:?}");
        }
        let of_another = Found::by(Outcome::Hit, ()).of_another().how;
        assert!(hit.and(of_another).is_of_another());
        assert!(of_another.and(old).is_of_another());
    }
}
