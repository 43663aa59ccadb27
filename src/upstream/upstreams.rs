//! The registries behind the proxy, by name.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::{pending, select_all};

use super::{Upstream, UpstreamError};
use crate::oci::RepoKey;

/// The registries behind the proxy. Clones are handles of the same set.
#[derive(Clone, Debug)]
pub struct Upstreams {
    set: Arc<ArcSwap<Vec<Upstream>>>,
}

impl Upstreams {
    /// These, each of a name of its own.
    pub fn new(all: Vec<Upstream>) -> Self {
        Self {
            set: Arc::new(ArcSwap::from_pointee(all)),
        }
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> Arc<Vec<Upstream>> {
        self.set.load_full()
    }

    /// The upstream of a repository.
    ///
    /// # Errors
    /// [`UpstreamError::Unconfigured`]: the cache outlives configurations.
    pub fn of(&self, repo: &RepoKey) -> Result<Upstream, UpstreamError> {
        self.named(&repo.upstream)
            .ok_or(UpstreamError::Unconfigured)
    }

    /// The upstreams of these repositories, as far as they are configured.
    pub fn of_all(&self, repos: &[RepoKey]) -> Vec<Upstream> {
        repos.iter().filter_map(|repo| self.of(repo).ok()).collect()
    }

    /// The upstream that the operator calls so.
    pub fn named(&self, name: &str) -> Option<Upstream> {
        let set = self.set.load();
        set.iter()
            .find(|upstream| **upstream.name() == *name)
            .cloned()
    }

    /// True once one of them has answered a question, for as long as none is known to have stopped.
    pub fn are_answering(&self) -> bool {
        let set = self.set.load();
        let is_away = |upstream: &Upstream| upstream.outage().is_some();
        set.iter().any(Upstream::is_answering) && !set.iter().any(is_away)
    }

    /// Waits until one that does not answer now does again; for ever where there is none.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn one_returns(&self) {
        let all = self.all();
        let away = all.iter().filter(|upstream| upstream.outage().is_some());
        let returning: Vec<_> = away.map(|upstream| Box::pin(upstream.answers())).collect();
        match returning.is_empty() {
            true => pending().await,
            false => drop(select_all(returning).await),
        }
    }

    /// Keeps the tokens of all of them fresh: see [`Upstream::keep_token_fresh`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn keep_tokens_fresh(&self) {
        let all = self.all();
        let each = all.iter().map(Upstream::keep_token_fresh);
        futures_util::future::join_all(each).await;
    }
}

impl From<Upstream> for Upstreams {
    fn from(only: Upstream) -> Self {
        Self::new(vec![only])
    }
}
