//! Metric handles of the store.
//!
//! The store only moves them; names and registration are in [`CacheMetrics::register`]. The default
//! is silent: handles that no registry knows.

use std::fmt::{self, Write as _};
use std::io;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::io::Errno;

/// Handles of everything that the store counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {
    /// Bytes on disk by the state of the file they belong to; equal to a walk of the disk.
    pub bytes: Family<BytesLabels, Gauge>,
    /// Blobs under a final name.
    pub blobs: Gauge,
    /// Blobs removed to make room.
    pub evictions: Counter,
    /// Manifests whose records went because a blob of theirs did.
    pub evicted_manifests: Counter,
    /// Bytes of all that pins lead to, on disk or not.
    pub pinned_bytes: Gauge,
    /// Removals of a name that the disk refused, by eviction or of a temporary file.
    pub unlink_failures: Counter,
    /// Blobs that reached their final name.
    pub commits: Counter,
    /// Blobs taken away because they were damaged.
    pub quarantined: Counter,
    /// Failed writes, syncs, renames and creations, by error.
    pub write_errors: Family<WriteErrorLabels, Counter>,
    /// Files in the store's directories that are not of the store; they are left alone.
    pub foreign_files: Gauge,
}

/// Label of [`CacheMetrics::bytes`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BytesLabels {
    /// State of the file.
    pub state: BytesState,
}

/// The states a stored byte can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BytesState {
    /// In a blob under its final name.
    Final,
    /// In a download in progress; the whole declared length counts.
    Temporary,
    /// In a file that has lost its name and is still being read.
    Unlinked,
    /// In repository logs and the index.
    Records,
}

impl EncodeLabelValue for BytesState {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(match self {
            Self::Final => "final",
            Self::Temporary => "temporary",
            Self::Unlinked => "unlinked",
            Self::Records => "records",
        })
    }
}

/// Label of [`CacheMetrics::write_errors`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteErrorLabels {
    /// Symbolic name of the error (`ENOSPC`), `other` for one that disks do not normally give.
    pub errno: &'static str,
}

impl CacheMetrics {
    /// Registers all handles under their names, without the program's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "cache",
            "Bytes on disk by state of the file",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register("cache_blobs", "Blobs in the cache", self.blobs.clone());
        registry.register(
            "cache_evictions",
            "Blobs removed to make room",
            self.evictions.clone(),
        );
        registry.register(
            "cache_evicted_manifests",
            "Manifests forgotten because a blob of theirs was removed to make room",
            self.evicted_manifests.clone(),
        );
        registry.register_with_unit(
            "cache_pinned",
            "Bytes of all that pins lead to, cached or not",
            Unit::Bytes,
            self.pinned_bytes.clone(),
        );
        registry.register(
            "cache_unlink_failures",
            "Removals of a file that the disk refused",
            self.unlink_failures.clone(),
        );
        registry.register(
            "cache_commits",
            "Blobs verified and stored",
            self.commits.clone(),
        );
        registry.register(
            "cache_quarantined",
            "Damaged blobs taken away",
            self.quarantined.clone(),
        );
        registry.register(
            "cache_write_errors",
            "Failed writes to the cache by error",
            self.write_errors.clone(),
        );
        registry.register(
            "cache_foreign_files",
            "Files in the cache directory that are not the cache's",
            self.foreign_files.clone(),
        );
    }

    /// Counts one failed write.
    pub(super) fn write_failed(&self, error: &io::Error) {
        let errno = errno_name(error);
        self.write_errors
            .get_or_create(&WriteErrorLabels { errno })
            .inc();
    }

    pub(super) fn set_bytes(&self, state: BytesState, bytes: u64) {
        self.bytes
            .get_or_create(&BytesLabels { state })
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

fn errno_name(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC) => "ENOSPC",
        Some(Errno::DQUOT) => "EDQUOT",
        Some(Errno::IO) => "EIO",
        Some(Errno::ROFS) => "EROFS",
        Some(Errno::ACCESS) => "EACCES",
        Some(Errno::PERM) => "EPERM",
        Some(Errno::NOENT) => "ENOENT",
        Some(Errno::NOTDIR) => "ENOTDIR",
        Some(Errno::ISDIR) => "EISDIR",
        Some(Errno::LOOP) => "ELOOP",
        Some(Errno::XDEV) => "EXDEV",
        Some(Errno::MFILE) => "EMFILE",
        Some(Errno::NFILE) => "ENFILE",
        Some(Errno::FBIG) => "EFBIG",
        Some(Errno::STALE) => "ESTALE",
        _ => "other",
    }
}
