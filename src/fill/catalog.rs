//! Which repositories a registry has: as it lists them, or those that the cache knows of where it does not.
//!
//! The list is of the registry and for nobody in particular: who may be told of which is not decided here.

use std::sync::Arc;
use std::time::Duration;

use super::Fills;
use super::error::FillError;
use super::lists::{Names, PAGING, is_a_no};
use super::manifests::stale_because;
use crate::access::{ClientToken, Turn};
use crate::telemetry::{Outcome, StaleReason};

/// The repositories of one registry.
#[derive(Debug)]
pub struct FoundRepositories {
    names: Arc<Names>,
    /// `Bypass` from upstream just now, `Hit` from what it said a moment ago or from the cache of a registry
    /// that has no such list for us, `Stale` from the cache of one that cannot answer.
    pub outcome: Outcome,
    /// How long upstream has not answered, where the list is stale.
    pub age: Option<Duration>,
    /// Why it is stale, where it is.
    pub reason: Option<StaleReason>,
    /// It is that of a registry that stands in for one that cannot answer.
    pub is_of_another: bool,
}

impl FoundRepositories {
    /// What the registry calls them, in order but for the case of letters, from the first on that is not before
    /// `first`. Not all need be names that a client could write.
    pub fn names_from(&self, first: &str) -> &[String] {
        self.names.from(first)
    }

    /// These, as a registry tells them.
    #[cfg(test)]
    pub(crate) fn of_test(names: Vec<String>) -> Self {
        Self {
            names: Arc::new(Names::of_records(names)),
            outcome: Outcome::Bypass,
            age: None,
            reason: None,
            is_of_another: false,
        }
    }
}

impl Fills {
    /// The repositories of an upstream: all of them, or for the `bearer` of a token those that upstream tells
    /// that token. Upstream is asked once in as long as tags are believed, and by those who go on with a list
    /// that they have the beginning of, once a minute. A question that this begins keeps `turn` until it ends.
    ///
    /// # Errors
    /// The upstream's, where nothing else is known. To a bearer nothing else is told.
    ///
    /// # Cancel safety
    /// The question is shared and goes on without the caller.
    pub async fn repositories(
        &self,
        upstream: &Arc<str>,
        bearer: Option<&ClientToken>,
        goes_on: bool,
        turn: &Arc<Turn>,
    ) -> Result<FoundRepositories, FillError> {
        let shared = &self.shared;
        let age = match goes_on {
            true => PAGING,
            false => shared.manifests.catalog_ttl(upstream).min(PAGING),
        };
        let found = |(names, outcome): (Arc<Names>, Outcome)| FoundRepositories {
            names,
            outcome,
            age: None,
            reason: None,
            is_of_another: false,
        };
        let error = match shared.lists.repositories(upstream, bearer, age, turn).await {
            Ok(list) => return Ok(found(list)),
            Err(error) => error,
        };
        let FillError::Upstream(cause) = &error else {
            return Err(error);
        };
        if bearer.is_some() {
            return Err(error);
        }
        for other in shared.standing_in(upstream, &error) {
            if let Ok(list) = shared.lists.repositories(&other, None, age, turn).await {
                shared.metrics.stood_in();
                return Ok(FoundRepositories {
                    is_of_another: true,
                    ..found(list)
                });
            }
        }
        let reason = stale_because(cause);
        if reason.is_none() && !is_a_no(cause) {
            return Err(error);
        }
        let kept = shared.recorded.repositories(upstream).await?;
        match reason {
            Some(_) if kept.is_empty() => Err(error),
            Some(reason) => {
                let outage = shared.upstreams.named(upstream).and_then(|it| it.outage());
                let age = outage.map(|outage| shared.clock.since(outage.since));
                Ok(FoundRepositories {
                    age: Some(age.unwrap_or_default()),
                    reason: Some(reason),
                    ..found((Arc::new(Names::of_records(kept)), Outcome::Stale))
                })
            }
            None => Ok(found((Arc::new(Names::of_records(kept)), Outcome::Hit))),
        }
    }
}
