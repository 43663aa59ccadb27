//! How fills behave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use moka::Expiry;

use super::policy::TagPolicies;

/// How fills behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillOptions {
    /// How many fills for clients run at once, those that one client began being no more than half; more
    /// wait for their turn.
    pub max_fills: usize,
    /// How many fills that no client asked for run beside them.
    pub max_background_fills: usize,
    /// How many ranges are fetched past the cache at once, in the same way.
    pub max_bypasses: usize,
    /// How long a request waits for the head of an upstream's answer. Below the 30 s after which
    /// containerd gives up.
    pub head_deadline: Duration,
    /// How long a broken or stalled transfer is continued without getting anywhere, before every
    /// reader is told. Beyond the time for which the upstream waits for one body, so that one stalled
    /// connection is not the end.
    pub patience: Duration,
    /// A repository's record of a digest, where it rests on upstream's word, is asked for again in the
    /// background after this.
    pub record_ttl: Duration,
    /// How tags are believed.
    pub tags: TagPolicies,
    /// How long a client waits for the check of a tag that it may have stale. The check goes on, for the
    /// next. A person hardly notices so much, and most lines answer within.
    pub tag_wait: Duration,
    /// How long a tag is believed that the registry keeps from moving, where that is longer. It may still
    /// be deleted, and pushed anew after that.
    pub immutable_ttl: Duration,
    /// How long absence is remembered.
    pub absent_ttl: Duration,
}

impl Default for FillOptions {
    fn default() -> Self {
        Self {
            max_fills: 64,
            // As many as docker fetches at once for one pull, and one to go on with what broke off.
            max_background_fills: 4,
            // Fills, and their further connections, find as many free at the upstream.
            max_bypasses: 128,
            head_deadline: Duration::from_secs(25),
            patience: Duration::from_secs(60),
            record_ttl: Duration::from_secs(24 * 60 * 60),
            tags: TagPolicies::default(),
            tag_wait: Duration::from_secs(2),
            immutable_ttl: Duration::from_secs(24 * 60 * 60),
            absent_ttl: Duration::from_secs(5),
        }
    }
}

/// What is remembered for as long as the options say when it is noted.
pub(super) struct For {
    options: Arc<ArcSwap<FillOptions>>,
    time: fn(&FillOptions) -> Duration,
}

impl For {
    pub(super) fn new(
        options: &Arc<ArcSwap<FillOptions>>,
        time: fn(&FillOptions) -> Duration,
    ) -> Self {
        Self {
            options: Arc::clone(options),
            time,
        }
    }
}

impl<K, V> Expiry<K, V> for For {
    fn expire_after_create(&self, _: &K, _: &V, _: Instant) -> Option<Duration> {
        Some((self.time)(&self.options.load()))
    }

    fn expire_after_update(
        &self,
        _: &K,
        _: &V,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some((self.time)(&self.options.load()))
    }
}
