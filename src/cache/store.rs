//! The store as others see it: opening, finding, beginning and committing blobs.
//!
//! The invariant: [`Store::commit`] is the only writer under `blobs/`. How names change hands is in
//! `names`, making room in `eviction`, what runs by itself in `janitor`.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::oci::{Digest, RepoKey};

use super::content::{Blob, ContentFile, Identity};
use super::evicted::Evicted;
use super::eviction::CutOff;
use super::health::{Health, StoreHealth};
use super::index::{Index, Stamp};
use super::index_file::IndexFile;
use super::interrupted::{Interrupted, Interruptions};
use super::janitor::Janitor;
use super::layout::{self, FILLS, Layout, OpenError};
use super::lock;
use super::metrics::CacheMetrics;
use super::open_files::OpenFiles;
use super::partial::{Partial, Verified};
use super::pins::Pins;
use super::records::Records;
use super::space::{Ledger, Limit, Usage};

/// How large the store may grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) max_size: Limit,
    pub(super) min_free: Limit,
}

/// Where a store is and how large it may grow.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The directory; made if missing.
    pub dir: PathBuf,
    /// The most that the store may use.
    pub max_size: Limit,
    /// What is to stay free on the file system, whoever uses it.
    pub min_free: Limit,
    /// Eviction, once begun, goes on down to this share of `max_size`, 0 to 1: low enough that room
    /// is made in batches and ahead of need, high enough that the quota is used.
    pub low_water: f64,
    /// Most blob files kept open while nobody reads them.
    pub open_files: usize,
    /// What is never evicted.
    pub pins: Pins,
}

impl StoreOptions {
    /// The defaults of the configuration for a store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            max_size: Limit::Percent(70.0),
            min_free: Limit::Percent(5.0),
            low_water: 0.95,
            open_files: idle_files(),
            pins: Pins::default(),
        }
    }
}

/// An eighth of the descriptors we may have: the rest is for connections.
fn idle_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit
        .and_then(|limit| usize::try_from(limit / 8).ok())
        .unwrap_or(512)
        .clamp(16, 512)
}

/// Why a blob that may be there could not be opened. The caller goes on as if it were missing.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {digest} in the cache")]
pub struct ReadError {
    /// The blob.
    pub digest: Digest,
    /// The disk's error.
    pub source: io::Error,
}

/// Why a download cannot go to disk. The caller goes on in memory.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The blob alone is larger than the store may be.
    #[error("{len} bytes are more than the cache may use, {limit}")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
        /// The store's limit.
        limit: u64,
    },
    /// Everything that could be evicted is in use.
    #[error("no room in the cache: {missing} bytes are missing")]
    NoRoom {
        /// Bytes that could not be freed.
        missing: u64,
    },
    /// The disk refused.
    #[error("cannot write to the cache")]
    Disk(#[source] io::Error),
}

/// Why a verified blob was not kept. Its readers are not harmed: they have the open file.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The length on disk is not what was written.
    #[error("{found} bytes on disk, {declared} written")]
    Length {
        /// Bytes on disk.
        found: u64,
        /// Bytes written.
        declared: u64,
    },
    /// It was begun in another store.
    #[error("the blob belongs to another store")]
    Foreign,
    /// A step failed.
    #[error("cannot {step} in the cache")]
    Disk {
        /// Which one.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a blob that is to be quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It hashes to something else.
    Digest(Digest),
    /// It is not as long as it should be.
    Length(u64),
    /// It cannot be read.
    Unreadable,
    /// Something that is no regular file has its name.
    NotAFile,
}

/// The store. Clones are handles of one store; the last one that goes writes out what is pending and
/// gives the lock up (later, if downloads are still in progress).
#[derive(Clone, Debug)]
pub struct Store {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    records: Records,
    janitor: Janitor,
}

/// What the store, its threads and the downloads in progress share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) limits: Mutex<Limits>,
    pub(super) low_water: f64,
    pub(super) pins: Pins,
    pub(super) ledger: Arc<Ledger>,
    pub(super) index: Mutex<Index>,
    /// Told when the index becomes ready.
    pub(super) index_ready: Condvar,
    pub(super) index_file: Mutex<IndexFile>,
    /// One lock for each shard of `blobs/`, see `names`.
    pub(super) names: Vec<Mutex<()>>,
    pub(super) open: OpenFiles,
    /// Uses not yet in the index.
    pub(super) touched: Mutex<Touched>,
    pub(super) touches: AtomicU64,
    /// Damaged files whose name could not be removed.
    pub(super) barred: Mutex<HashMap<Digest, Identity>>,
    /// Temporary files whose name could not be removed, with the bytes still counted for them.
    pub(super) debris: Mutex<Vec<(String, u64)>>,
    /// Downloads that broke off.
    pub(super) interrupted: Mutex<Interruptions>,
    /// Names under `fills/` of what earlier runs left and nobody can go on with.
    pub(super) leftovers: Mutex<Vec<String>>,
    /// One at a time makes room.
    pub(super) evicting: Mutex<()>,
    pub(super) evicted: Evicted,
    pub(super) cut_off: OnceLock<CutOff>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: CacheMetrics,
    /// In the names of this run's temporary files, so that none is that of an older one.
    pub(super) run: u64,
    pub(super) temporaries: AtomicU64,
}

/// Uses by sequence: a hit must not wait for the index.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) blobs: foldhash::HashMap<Digest, u64>,
    /// With the repositories that each was used in.
    pub(super) manifests: foldhash::HashMap<Digest, Vec<(RepoKey, u64)>>,
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.manifests.is_empty()
    }
}

impl Store {
    /// Opens the store in `options.dir`, making what is missing, and locks it for this process.
    /// Reads nothing that grows with the store: the index loads on a thread of its own.
    ///
    /// A directory that cannot be written gives a store that serves what it has, see
    /// [`Self::health`].
    ///
    /// # Errors
    /// When the directory cannot be used or not be trusted.
    pub fn open(options: StoreOptions, metrics: CacheMetrics) -> Result<Self, OpenError> {
        let (layout, read_only) = Layout::open(&options.dir)?;
        let ledger = Ledger::new(metrics.clone());
        let health = Arc::new(Health::default());
        if let Some(error) = read_only {
            metrics.write_failed(&error);
            health.failed(&error);
        }
        let shared = Arc::new(Shared {
            open: OpenFiles::new(options.open_files),
            layout,
            ledger,
            index: Mutex::new(Index::new(options.pins.clone())),
            index_ready: Condvar::new(),
            index_file: Mutex::new(IndexFile::empty()),
            names: (0..=u8::MAX).map(|_| Mutex::default()).collect(),
            touched: Mutex::default(),
            touches: AtomicU64::new(0),
            barred: Mutex::default(),
            debris: Mutex::default(),
            interrupted: Mutex::default(),
            leftovers: Mutex::default(),
            evicting: Mutex::default(),
            evicted: Evicted::default(),
            cut_off: OnceLock::new(),
            limits: Mutex::new(Limits {
                max_size: options.max_size,
                min_free: options.min_free,
            }),
            low_water: options.low_water,
            pins: options.pins,
            health,
            metrics,
            run: fastrand::u64(..),
            temporaries: AtomicU64::new(0),
        });
        // Before anybody asks: who comes right after a restart goes on where it stopped.
        shared.adopt_interrupted();
        let records = Records::start(shared.clone()).map_err(OpenError::Thread)?;
        let janitor = Janitor::start(shared.clone(), records.clone()).map_err(OpenError::Thread)?;
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                records,
                janitor,
            }),
        })
    }

    /// Opens a blob, if it is there, and counts this as a use. `Ok(None)` is a miss.
    ///
    /// A file of another length than the index knows is a miss and is removed; anything but a
    /// regular file is a miss. While the index still loads, lengths are not known: compare
    /// [`Blob::len`] with the descriptor's where there is one.
    ///
    /// # Errors
    /// When the disk cannot tell.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, ReadError> {
        if let Some(blob) = self.blob_now(digest) {
            return Ok(Some(blob));
        }
        let shared = &self.handle.shared;
        let found = shared.open_blob(digest).map_err(|source| ReadError {
            digest: *digest,
            source,
        })?;
        Ok(found.map(|file| {
            shared.touch(digest);
            shared.believe_if_stamped(&file);
            Blob::new(file)
        }))
    }

    /// The length in bytes of a blob that is on disk. Not a use, and nothing is opened.
    pub fn stored_len(&self, digest: &Digest) -> Option<u64> {
        self.handle.shared.stored_len(digest)
    }

    /// When a blob was last used, to the second; `None` if it is not known, or not by the time the index
    /// was loaded.
    pub fn last_use(&self, digest: &Digest) -> Option<SystemTime> {
        let shared = &self.handle.shared;
        shared.apply_touches();
        let known = lock(&shared.index).known(digest)?;
        let since = u64::try_from(known.last_use).ok().filter(|at| *at > 0)?;
        UNIX_EPOCH.checked_add(Duration::from_secs(since))
    }

    /// Like [`Self::blob`] for a blob that is already open, without waiting for the disk: `None` says
    /// only that [`Self::blob`] has to be asked.
    pub fn blob_now(&self, digest: &Digest) -> Option<Blob> {
        let shared = &self.handle.shared;
        let file = shared.open.find(digest)?;
        if !shared.is_current(&file) {
            return None;
        }
        shared.touch(digest);
        shared.believe_if_stamped(&file);
        Some(Blob::new(file))
    }

    /// Begins a download of `len` bytes: reserves room, evicting what was not used for longest if it
    /// must, and makes the temporary file.
    ///
    /// `note` is what the caller wants to know again when it goes on with a download that broke off,
    /// after a restart as well, see [`Self::resume`]. Without one, or for a small blob, the file goes
    /// when the partial does.
    ///
    /// # Errors
    /// See [`BeginError`]; nothing is left behind.
    pub fn begin(&self, digest: Digest, len: u64, note: &[u8]) -> Result<Partial, BeginError> {
        let shared = &self.handle.shared;
        let space = shared.reserve(len, &self.handle.records)?;
        let number = shared.temporaries.fetch_add(1, Ordering::Relaxed);
        let name = temporary_name(&digest, shared.run, number);
        let created = shared
            .layout
            .make_directory(&FILLS)
            .and_then(|fills| layout::create_file(&fills, &name));
        let file = match created {
            Ok(file) => file,
            Err(error) => {
                // No file holds these bytes.
                space.unlinked();
                shared.write_failed(&error);
                return Err(BeginError::Disk(error));
            }
        };
        let content = ContentFile::new(file, digest, len, space);
        let note = match shared.write_note(&name, digest, len, note) {
            true => Bytes::copy_from_slice(note),
            false => Bytes::new(),
        };
        // From here on the partial decides what becomes of the file.
        let partial = Partial::new(shared.clone(), content.clone(), name, note);
        if len > 0 {
            let file = &content.content().file;
            // The file's length stays what has been written: it is checked at the commit.
            match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
                Ok(()) => content.content().space.allocated(len),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(error) => {
                    let error = error.into();
                    shared.write_failed(&error);
                    return Err(BeginError::Disk(error));
                }
            }
        }
        Ok(partial)
    }

    /// Takes up a download of `digest` that broke off, in this run or an earlier one, and what was noted
    /// when it began. Its bytes are to be hashed again first, see [`Partial::catch_up`].
    pub fn resume(&self, digest: &Digest) -> Option<(Partial, Bytes)> {
        self.handle.shared.take_interrupted(digest)
    }

    /// The downloads that broke off and wait for somebody to go on with them.
    pub fn interrupted(&self) -> Vec<Interrupted> {
        self.handle.shared.list_interrupted()
    }

    /// How many bytes there are of a download of `digest` that broke off, if there is one.
    pub fn interrupted_at(&self, digest: &Digest) -> Option<u64> {
        self.handle.shared.interrupted_at(digest)
    }

    /// Gives a verified blob its final name, durably: sync, check, rename, sync of the directory.
    ///
    /// # Errors
    /// Any failing step discards the file; nothing is retried, because a sync that succeeds after
    /// one that failed proves nothing.
    pub fn commit(&self, verified: Verified) -> Result<Blob, CommitError> {
        let shared = &self.handle.shared;
        if !verified.belongs_to(shared) {
            return Err(CommitError::Foreign);
        }
        let committed = shared.commit(verified);
        match &committed {
            Ok(_) => {
                shared.metrics.commits.inc();
                shared.health.written();
                self.handle.janitor.wake_if(shared.is_above_high_water());
            }
            Err(CommitError::Disk { source, .. }) => shared.write_failed(source),
            Err(CommitError::Length { .. } | CommitError::Foreign) => {}
        }
        committed.map(Blob::new)
    }

    /// Takes a damaged blob away at once, so that nobody opens it again. Who has it open keeps the
    /// open file, and should stop.
    pub fn quarantine(&self, blob: &Blob, damage: Damage) {
        self.handle.shared.quarantine(blob.content(), damage);
    }

    /// Notes that `blob` was hashed in full, through this very handle, and found right.
    ///
    /// Does nothing if the file was changed since it was opened.
    pub fn mark_verified(&self, blob: &Blob) {
        let shared = &self.handle.shared;
        let file = blob.content();
        let Some(identity) = file.identity().filter(|_| shared.is_current(file)) else {
            return;
        };
        let when = now();
        lock(&shared.index).set_stamp(&blob.digest(), Stamp { identity, when });
        file.verified();
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// What repositories hold.
    pub fn records(&self) -> &Records {
        &self.handle.records
    }

    /// What is used at the moment.
    pub fn usage(&self) -> Usage {
        let shared = &self.handle.shared;
        let counts = shared.ledger.counts();
        let index = lock(&shared.index);
        Usage {
            final_bytes: counts.r#final,
            temporary_bytes: counts.temporary,
            unlinked_bytes: counts.unlinked,
            record_bytes: counts.records,
            limit: shared
                .layout
                .room()
                .map_or(0, |room| shared.limits().max_size.of(room.total)),
            blobs: index.len() as u64,
            complete: index.is_ready(),
            health: shared.health.snapshot(),
        }
    }

    /// Grows and shrinks within other limits from now on; what is too much for them goes soon.
    pub fn set_limits(&self, max_size: Limit, min_free: Limit) {
        let limits = Limits { max_size, min_free };
        let before = std::mem::replace(&mut *lock(&self.handle.shared.limits), limits);
        self.handle.janitor.wake_if(before != limits);
    }

    /// What is wrong at the moment.
    pub fn health(&self) -> StoreHealth {
        self.handle.shared.health.snapshot()
    }

    /// Waits until the index is loaded, or `timeout` is over; true if it is.
    pub fn wait_ready(&self, timeout: std::time::Duration) -> bool {
        self.handle.shared.wait_ready(timeout)
    }

    /// Writes out all that is pending, records and index, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&self) -> io::Result<()> {
        let records = self.handle.records.flush();
        self.handle.shared.flush_index()?;
        records
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.janitor.stop();
        self.records.stop();
        self.shared.apply_touches();
        lock(&self.shared.index).log_uses();
        if let Err(error) = self.shared.flush_index() {
            tracing::warn!(%error, "the cache's index was not written; it will be rebuilt");
        }
    }
}

impl Shared {
    pub(super) fn write_failed(&self, error: &io::Error) {
        self.metrics.write_failed(error);
        self.health.failed(error);
    }
}

/// Now, in seconds since the epoch.
pub(super) fn now() -> i64 {
    seconds(SystemTime::now())
}

/// Seconds since the epoch.
pub(super) fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// The name under `fills/` of a download of `digest`.
pub(super) fn temporary_name(digest: &Digest, run: u64, number: u64) -> String {
    format!("{}.{run:016x}-{number}.part", digest.hex())
}

/// The digest that a temporary file's name tells; `None` if the file is not ours.
pub(super) fn digest_of(name: &str) -> Option<Digest> {
    let (hex, rest) = name.strip_suffix(".part")?.split_once('.')?;
    let (run, number) = rest.split_once('-')?;
    u64::from_str_radix(run, 16)
        .ok()
        .filter(|_| run.len() == 16)?;
    number.parse::<u64>().ok()?;
    Digest::from_hex(hex).ok()
}
