//! The cache, the upstreams and the gate between them, built from the configuration: for the proxy, and
//! for commands that tend the cache of one that is stopped.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Failure, chain};
use crate::buffers::BufferPool;
use crate::cache::{CacheMetrics, OpenError, Store};
use crate::clock::Clock;
use crate::config::Config;
use crate::fill::Fills;
use crate::jobs::operations::{self, AnswersNow, Operations};
use crate::jobs::warm::Warmer;
use crate::jobs::{Healer, ScrubMetrics};
use crate::telemetry::{FillMetrics, Metrics};
use crate::upstream::{SetupError, UpstreamMetrics, UpstreamOptions, Upstreams};

/// Size of a read buffer, in bytes: with smaller ones the number of socket writes begins to cost, larger
/// ones pin more memory for each slow reader.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How many read buffers there are at most. With the coalescing buffers of the server they bound what
/// bodies in flight hold to some 32 MiB; beyond, readers make do with less.
const READ_BUFFERS: usize = 64;

/// Why they cannot be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// The store's fault.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The upstream's.
    #[error(transparent)]
    Upstream(#[from] SetupError),
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Failed(chain(&error))
    }
}

/// What serves content. Clone is cheap and shares everything.
#[derive(Clone)]
pub(super) struct Mechanisms {
    pub(super) store: Store,
    pub(super) upstreams: Upstreams,
    pub(super) fills: Fills,
    /// One for all, so that what it fetches at once is bounded.
    pub(super) warmer: Warmer,
    pub(super) healer: Healer,
    pub(super) setting: Arc<ArcSwap<operations::Setting>>,
}

impl Mechanisms {
    /// Opens the store and sets the rest up; nothing is sent to the upstream yet.
    ///
    /// # Errors
    /// What cannot be built, and why.
    pub(super) fn build(
        config: &Config,
        upstreams: Vec<UpstreamOptions>,
        metrics: &mut Metrics,
    ) -> Result<Self, BuildError> {
        let cache_metrics = CacheMetrics::default();
        let upstream_metrics = UpstreamMetrics::default();
        let fill_metrics = FillMetrics::default();
        cache_metrics.register(metrics.registry());
        upstream_metrics.register(metrics.registry());
        fill_metrics.register(metrics.registry());
        let scrub_metrics = ScrubMetrics::default();
        scrub_metrics.register(metrics.registry());
        let store = Store::open(config.store_options(), cache_metrics)?;
        let bandwidth = config.cache.max_upstream_bandwidth;
        let upstreams = Upstreams::open(upstreams, bandwidth, upstream_metrics)?;
        let asked = upstreams.clone();
        store.when_cut_off(move || !asked.are_answering());
        let fills = Fills::new(
            store.clone(),
            upstreams.clone(),
            BufferPool::new(READ_BUFFER_BYTES, READ_BUFFERS),
            Clock::system(),
            config.fill_options(),
            fill_metrics,
        );
        let warmer = Warmer::new(fills.clone());
        let healer = Healer::new(fills.clone(), store.clone(), scrub_metrics);
        Ok(Self {
            store,
            upstreams,
            fills,
            warmer,
            healer,
            setting: Arc::new(ArcSwap::from_pointee(config.operations_setting())),
        })
    }

    /// What tends the cache, and what tells how clients were answered where any are.
    pub(super) fn operations(&self, answers: Option<AnswersNow>) -> Operations {
        Operations::new(operations::Parts {
            store: self.store.clone(),
            fills: self.fills.clone(),
            answers,
            warmer: self.warmer.clone(),
            healer: self.healer.clone(),
            setting: Arc::clone(&self.setting),
        })
    }
}
