//! `[cache]`, and what it shares with upstreams and routes: how fresh content has to be.

use std::time::Duration;

use super::Resolver;
use crate::config::values::{self, Size};
use crate::config::{Cache, Freshness, Prefetch};
use crate::fill::TagPolicy;
use crate::jobs::operations::{Names, is_pinnable};
use crate::oci::ImagePattern;

/// The keys of [`Freshness`] here.
pub(super) const FRESHNESS: [&str; 4] = [
    "cache.tag_ttl",
    "cache.stale_if_error",
    "cache.immutable_tags",
    "cache.offline",
];
/// Of the file system, leaving room for what else lives there.
const DEFAULT_MAX_SIZE: Size = Size::Percent(70.0);
/// A file system that is nearly full becomes slow and fails others first.
const DEFAULT_MIN_FREE: Size = Size::Percent(5.0);
/// A person hardly notices so much, and most lines answer within.
const DEFAULT_TAG_WAIT: Duration = Duration::from_secs(2);
const DEFAULT_ABSENT_TTL: Duration = Duration::from_secs(5);
const DEFAULT_RECORD_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// What the distribution specification (1.1, "Pushing Manifests") says registries should take.
const DEFAULT_MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Manifests are buffered whole, several at once.
const MANIFEST_BYTES_LIMIT: u64 = 64 << 20;

impl Resolver {
    pub(super) fn cache(
        &mut self,
        freshness: Option<Freshness>,
        names: Option<&Names>,
    ) -> Option<Cache> {
        let dir = self.directory("cache.dir", "/var/cache/ecr-proxy");
        let max_size = self.one("cache.max_size", values::size);
        let min_free = self.one("cache.min_free", values::size);
        let tag_wait = self.one("cache.tag_wait", values::duration);
        let absent_ttl = self.one("cache.absent_ttl", values::duration);
        let record_ttl = self.one("cache.record_ttl", values::duration);
        let max_manifest_size = self.one("cache.max_manifest_size", |text| {
            let bytes = values::bytes(text)?;
            if (1024..=MANIFEST_BYTES_LIMIT).contains(&bytes) {
                Ok(bytes)
            } else {
                Err(format!("{text:?} is not between 1KiB and 64MiB"))
            }
        });
        let max_upstream_bandwidth = self.one("cache.max_upstream_bandwidth", values::bandwidth);
        let pins = self.many("cache.pins", |text| {
            let images = text.parse::<ImagePattern>();
            let images = images.map_err(|error| format!("{text:?}: {error}"))?;
            let pins = match names {
                Some(names) => names.pins(&images),
                // Where they lead is not known, for faults that are told.
                None => is_pinnable(&images).map(|()| Vec::new()),
            };
            pins.map_err(|error| format!("{text:?}: {error}"))
        });
        let prefetch = self.one("cache.prefetch", |text| {
            let known = [Prefetch::Off, Prefetch::Layers];
            let named = known.into_iter().find(|known| known.as_str() == text);
            named.ok_or_else(|| format!("{text:?} is neither \"off\" nor \"layers\""))
        });
        if let Some(Some(Size::Bytes(0) | Size::Percent(0.0))) = max_size {
            self.fault("cache.max_size", "is 0: nothing could be kept");
        }
        Some(Cache {
            dir: dir?,
            max_size: max_size?.unwrap_or(DEFAULT_MAX_SIZE),
            min_free: min_free?.unwrap_or(DEFAULT_MIN_FREE),
            freshness: freshness?,
            tag_wait: tag_wait?.unwrap_or(DEFAULT_TAG_WAIT),
            absent_ttl: absent_ttl?.unwrap_or(DEFAULT_ABSENT_TTL),
            record_ttl: record_ttl?.unwrap_or(DEFAULT_RECORD_TTL),
            max_manifest_size: max_manifest_size?.unwrap_or(DEFAULT_MAX_MANIFEST_BYTES),
            max_upstream_bandwidth: max_upstream_bandwidth?.flatten(),
            prefetch: prefetch?.unwrap_or(Prefetch::Off),
            pins: pins?.unwrap_or_default().concat(),
        })
    }

    /// The keys for tag_ttl, stale_if_error, immutable_tags and offline, over what counts without them.
    pub(super) fn freshness(
        &mut self,
        [tag_ttl, stale_if_error, immutable_tags, offline]: [&'static str; 4],
        default: Freshness,
    ) -> Option<Freshness> {
        let tag_ttl = self.one(tag_ttl, values::duration);
        let stale_if_error = self.one(stale_if_error, values::stale_if_error);
        let immutable_tags = self.many(immutable_tags, values::tag_pattern);
        let offline = self.one(offline, values::boolean);
        Some(Freshness {
            tags: TagPolicy {
                tag_ttl: tag_ttl?.unwrap_or(default.tags.tag_ttl),
                stale_if_error: stale_if_error?.unwrap_or(default.tags.stale_if_error),
                immutable_tags: immutable_tags?.map_or(default.tags.immutable_tags, |patterns| {
                    patterns.into_iter().flatten().collect()
                }),
            },
            offline: offline?.unwrap_or(default.offline),
        })
    }
}
