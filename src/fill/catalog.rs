//! Which repositories a registry has: as it lists them, or those that the cache knows of where it does not.
//!
//! The list is of the registry and for nobody in particular: who may be told of which is not decided here.

use std::sync::Arc;

use super::error::FillError;
use super::found::Found;
use super::lists::{Names, PAGING, is_a_no};
use super::{Fills, Shared};
use crate::access::{ClientToken, Turn};
use crate::telemetry::Outcome;

/// The repositories of one registry.
#[derive(Clone, Debug)]
pub struct Repositories(Arc<Names>);

impl Repositories {
    /// What the registry calls them, in order but for the case of letters, from the first on that is not before
    /// `first`. Not all need be names that a client could write.
    pub fn names_from(&self, first: &str) -> &[String] {
        self.0.from(first)
    }

    /// These, as a registry tells them.
    #[cfg(test)]
    pub(crate) fn of_test(names: Vec<String>) -> Self {
        Self(Arc::new(Names::of_records(names)))
    }
}

impl Fills {
    /// The repositories of an upstream: all of them, or for the `bearer` of a token those that upstream tells
    /// that token. `Bypass` is from upstream just now, `Hit` from what it said a moment ago or from the cache of a
    /// registry that has no such list for us, stale from the cache of one that has not answered for so long.
    ///
    /// Upstream is asked once in as long as tags are believed, and by those who go on with a list that they have
    /// the beginning of, once a minute. A question that this begins keeps `turn` until it ends.
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
    ) -> Result<Found<Repositories>, FillError> {
        let shared = &self.shared;
        let age = match goes_on {
            true => PAGING,
            false => shared.manifests.catalog_ttl(upstream).min(PAGING),
        };
        let lists = &shared.lists;
        let ask = |upstream: Arc<str>| async move {
            match lists.repositories(&upstream, None, age, turn).await {
                Ok(found) => Ok(found),
                Err(error) => shared.known_repositories(&upstream, error).await,
            }
        };
        let found = match bearer {
            Some(_) => lists.repositories(upstream, bearer, age, turn).await,
            None => shared.anywhere(upstream, ask).await,
        };
        Ok(found?.map(Repositories))
    }
}

impl Shared {
    /// The repositories that the cache knows of, after an `error` of upstream; the error where the cache may not
    /// answer instead.
    async fn known_repositories(
        &self,
        upstream: &Arc<str>,
        error: FillError,
    ) -> Result<Found<Arc<Names>>, FillError> {
        let reason = error.stale_reason();
        if reason.is_none() && !is_a_no(&error) {
            return Err(error);
        }
        let kept = self.recorded.repositories(upstream).await?;
        if reason.is_some() && kept.is_empty() {
            return Err(error);
        }
        let kept = Arc::new(Names::of_records(kept));
        Ok(match reason {
            Some(reason) => {
                let outage = self.upstreams.named(upstream).and_then(|it| it.outage());
                let age = outage.map(|outage| self.clock.since(outage.since));
                Found::stale(kept, age.unwrap_or_default(), reason)
            }
            None => Found::by(Outcome::Hit, kept),
        })
    }
}
