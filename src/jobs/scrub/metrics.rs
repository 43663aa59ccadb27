//! What hashing everything again, and healing what was damaged, count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Handles of what the background scrub and healing count. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ScrubMetrics {
    /// Bytes read.
    pub bytes: Counter,
    /// Blobs that were hashed to their end.
    pub blobs: Counter,
    found: Family<DamageLabel, Counter>,
    /// Damaged blobs that are whole again.
    pub healed: Counter,
    /// Damaged blobs that are still to be fetched again.
    pub wanted: Gauge,
    /// When the last pass over everything ended, or the store was new; seconds since 1970.
    pub finished: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DamageLabel {
    damage: &'static str,
}

impl ScrubMetrics {
    /// Registers all handles under their names, without the program's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "scrub",
            "Bytes that the background scrub has read",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "scrub_blobs",
            "Blobs that the background scrub has hashed",
            self.blobs.clone(),
        );
        registry.register(
            "scrub_found",
            "Damage found by hashing what is stored again, by kind",
            self.found.clone(),
        );
        registry.register(
            "scrub_healed",
            "Damaged blobs that were fetched again",
            self.healed.clone(),
        );
        registry.register(
            "scrub_wanted",
            "Damaged blobs that are still to be fetched again",
            self.wanted.clone(),
        );
        registry.register(
            "scrub_finished_timestamp_seconds",
            "When the last pass over everything ended, or the cache was new, seconds since 1970",
            self.finished.clone(),
        );
    }

    pub(super) fn found(&self, damage: &'static str) {
        self.found.get_or_create(&DamageLabel { damage }).inc();
    }
}
