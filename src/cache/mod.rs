//! Verified blobs and records on disk within a quota.
//!
//! The invariant: **a file under a final name hashes to that name.** [`Store::commit`] is the only
//! writer under `blobs/`, it takes nothing but a [`Verified`], and only [`Partial::verify`] makes
//! one. What the disk does to a file afterwards (rot, truncation, exchange) is caught by the
//! verification stamp: a file whose stamp is missing or differs is not yet believed, see
//! [`Blob::stamped`].
//!
//! What is where:
//!
//! | name on disk | is | written by |
//! | --- | --- | --- |
//! | `VERSION`, `LOCK` | layout number; the lock of the one owning process | `layout` |
//! | `blobs/sha256/ab/<hex>` | a verified blob | `store` |
//! | `repositories/<upstream>/<name>/_log` | what a repository holds, with proof | `records` |
//! | `evicted` | blobs gone before the log of their repository says so | `evicted` |
//! | `index`, `index.journal` | sizes, order of use, stamps; a hint | `index_file` |
//! | `fills/` | downloads and pushes in progress | `partial`, `candidate` |
//! | `scrub` | how far hashing everything again has come | `scrub` |
//!
//! The pins are in the state directory, see [`Pins`]: they survive a cache that is thrown away.
//!
//! Everything here blocks on the disk and is meant for a blocking thread. Nothing here knows of
//! clients, of upstreams, or of who may read what.
//!
//! Lock order, outermost first: `evicting`, the records' own, a `names` shard, `open`, `index`, pins,
//! ledger. Who holds a shard, `open` or `index` asks no records.

pub mod bundle;
mod candidate;
mod content;
mod evicted;
mod eviction;
mod frames;
mod health;
mod images;
mod index;
mod index_file;
mod interrupted;
mod janitor;
mod layout;
mod mapping;
mod metrics;
mod names;
mod open_files;
mod partial;
mod pins;
mod record;
mod records;
mod references;
mod removal;
mod repository_log;
mod scrub;
mod space;
mod spans;
mod store;

#[cfg(any(test, fuzzing))]
pub use bundle::fuzz_bundle;
pub use candidate::Candidate;
pub use content::{Blob, ContentFile};
pub use health::{Degradation, StoreHealth};
pub use images::{Image, ImageBlob, ImageContent, ImageManifest};
pub use interrupted::Interrupted;
pub use layout::OpenError;
pub use mapping::Mapping;
pub use metrics::{BytesLabels, BytesState, CacheMetrics, WriteErrorLabels};
pub use partial::{AppendError, Mismatch, Partial, PartialReader, Verified};
pub use pins::{ParsePinError, Pin, PinError, PinSource, Pins};
pub use record::{Held, HeldBy, ReferrerList, Returned, StoredManifest, TagRecord};
pub use records::{ManifestRecord, Records};
pub use removal::{Prune, RemoveError, Removed};
pub use scrub::{Scrub, ScrubProgress, Scrubbed};
pub use space::{Limit, Usage};
pub use spans::Spans;
pub use store::{BeginError, CommitError, Damage, ReadError, Store, StoreOptions};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` whether or not a thread panicked while holding it.
///
/// One panicking task must not take the store from everybody else. Every critical section here
/// leaves its data usable at each step, and what could drift (byte counts) is reconciled with the
/// disk at the next start.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Any bytes as what the store keeps beside its blobs: the repositories' logs, the index, the pins.
#[cfg(any(test, fuzzing))]
pub fn fuzz_records(data: &[u8]) {
    repository_log::fuzz_log(data);
    index_file::fuzz_entry(data);
    pins::fuzz_pins(data);
}

#[cfg(test)]
mod tests;
