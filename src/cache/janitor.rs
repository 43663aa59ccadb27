//! What the store does by itself, on one supervised thread: loads the index, compares it with the
//! disk, removes what earlier runs left behind, makes room ahead of need, and writes the index.
//!
//! Nothing waits for it but eviction, and that only for the index. It may panic: it is started again.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType};

use crate::oci::Digest;

use super::health::Degradation;
use super::index::Known;
use super::index_file::IndexFile;
use super::interrupted::noted;
use super::layout::{self, BLOBS, FILLS};
use super::lock;
use super::records::Records;
use super::store::{Shared, digest_of};

/// How often uses are brought into the index and changes written.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between attempts to write while the store is degraded.
const PROBE_TICKS: u32 = 5;

/// Pause between the directories of the walk: it has all the time there is.
const WALK_PAUSE: Duration = Duration::from_millis(1);

/// How long before the index was last written a change may have missed it: a blob gets its name before the
/// index learns of it.
const UNSURE_SECONDS: i64 = 2;

/// Which directories of blobs are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    All,
    /// Those in which a name came or went since then, in seconds as the file system counts them.
    ChangedSince(i64),
}

impl Walk {
    fn takes(self, directory: &OwnedFd) -> bool {
        match self {
            Self::All => true,
            // One that cannot be asked is looked at.
            Self::ChangedSince(at) => {
                rustix::fs::fstat(directory).map_or(true, |stat| stat.st_mtime >= at)
            }
        }
    }
}

/// The thread, while it runs.
#[derive(Debug)]
pub(super) struct Janitor {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    wake: bool,
}

impl Signal {
    /// Waits for a tick or a wake; false when it is time to stop.
    fn wait(&self, timeout: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| !state.stop && !state.wake);
        let (mut state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.wake = false;
        !state.stop
    }

    fn stopped(&self) -> bool {
        lock(&self.state).stop
    }
}

impl Janitor {
    pub(super) fn start(shared: Arc<Shared>, records: Records) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let thread = {
            let signal = signal.clone();
            std::thread::Builder::new()
                .name("cache-janitor".into())
                .spawn(move || {
                    while !signal.stopped() {
                        let work = AssertUnwindSafe(|| run(&shared, &records, &signal));
                        if catch_unwind(work).is_err() {
                            tracing::error!("the cache's janitor panicked and is started again");
                            signal.wait(TICK);
                        }
                    }
                })?
        };
        Ok(Self {
            signal,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn wake_if(&self, needed: bool) {
        if needed {
            lock(&self.signal.state).wake = true;
            self.signal.changed.notify_all();
        }
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&self) {
        lock(&self.signal.state).stop = true;
        self.signal.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // Its panics are caught and logged inside.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, records: &Records, signal: &Signal) {
    if !lock(&shared.index).is_ready() {
        shared.load_index(records, signal);
    }
    records.measure();
    let mut ticks = 0u32;
    while signal.wait(TICK) {
        ticks = ticks.wrapping_add(1);
        shared.apply_touches();
        shared.trim(records);
        shared.open.trim();
        shared.retry_debris();
        shared.discard_expired();
        shared.look_at_pins();
        if shared.health.is_degraded() && ticks.is_multiple_of(PROBE_TICKS) {
            shared.probe();
        }
        if shared.health.is_degraded() {
            shared.drop_surplus_events();
        } else if let Err(error) = shared.flush_index() {
            shared.write_failed(&error);
        }
    }
}

impl Shared {
    /// Loads the index, lets it know what repositories need, and compares it with the disk. One that was
    /// whole is ready once the directories are looked at that changed since it was written: a process that
    /// is killed leaves files there that the quota has to know of. Else it is ready after all of them.
    fn load_index(&self, records: &Records, signal: &Signal) {
        let mut written_at = None;
        let whole = match self.layout.directory(&[]) {
            Ok(root) => {
                written_at = IndexFile::written_at(&root);
                let (file, loaded) = IndexFile::load(&root);
                self.index_file_changed(0, file.len());
                *lock(&self.index_file) = file;
                let mut index = lock(&self.index);
                let added = index.load(loaded.blobs);
                self.ledger.final_changed(added, 0);
                self.blobs_changed(&index);
                loaded.whole
            }
            Err(error) => {
                self.write_failed(&error);
                false
            }
        };
        records.survey(|| signal.stopped());
        if signal.stopped() {
            return;
        }
        self.forget_evicted(records);
        // What earlier runs left takes room that nobody counts.
        self.purge_temporaries(signal);
        match written_at.filter(|_| whole) {
            Some(written_at) => {
                self.walk(signal, Walk::ChangedSince(written_at - UNSURE_SECONDS));
                self.index_is_ready();
            }
            None => tracing::info!("no whole index of the cache yet: looking at what is there"),
        }
        self.walk(signal, Walk::All);
        if !signal.stopped() {
            self.index_is_ready();
        }
    }

    fn index_is_ready(&self) {
        lock(&self.index).set_ready();
        self.index_ready.notify_all();
    }

    /// Makes the index agree with the disk: a directory at a time, under the lock of its names.
    fn walk(&self, signal: &Signal, which: Walk) {
        let Ok(blobs) = self.layout.directory(&BLOBS) else {
            // Nothing can be said of a store that cannot be seen.
            return;
        };
        let mut unknown = Vec::new();
        let mut foreign = 0;
        for first_byte in 0..=u8::MAX {
            if signal.stopped() {
                return;
            }
            let names = self.name_lock(first_byte);
            match self
                .layout
                .directory(&[BLOBS[0], BLOBS[1], &layout::shard_name(first_byte)])
            {
                Ok(shard) if !which.takes(&shard) => continue,
                Ok(shard) => foreign += self.walk_shard(&shard, first_byte, &mut unknown),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let known = lock(&self.index).in_shard(first_byte);
                    for digest in known {
                        self.forget(&digest);
                    }
                    continue;
                }
                // Cannot be read: what is known of it stays.
                Err(error) => {
                    tracing::warn!(%error, "a directory of the cache cannot be read");
                }
            }
            drop(names);
            if which == Walk::All {
                std::thread::sleep(WALK_PAUSE);
            }
        }
        drop(blobs);
        // Their order of use is lost; the time of their last change is the next best.
        unknown.sort_unstable_by_key(|(_, known): &(Digest, Known)| known.last_use);
        let mut index = lock(&self.index);
        for (digest, known) in unknown.into_iter().rev() {
            if index.put_oldest(digest, known) {
                self.ledger.final_changed(known.size, 0);
            }
        }
        self.blobs_changed(&index);
        drop(index);
        if which == Walk::All {
            self.metrics.foreign_files.inc_by(foreign);
        }
    }

    /// Returns how many files are not ours. The caller holds the lock of the shard's names.
    fn walk_shard(
        &self,
        shard: &OwnedFd,
        first_byte: u8,
        unknown: &mut Vec<(Digest, Known)>,
    ) -> i64 {
        let known: Vec<Digest> = lock(&self.index).in_shard(first_byte);
        let known: HashSet<Digest> = known.into_iter().collect();
        let mut found = HashSet::new();
        let mut foreign = 0;
        let Ok(names) = names_in(shard) else {
            return 0;
        };
        for name in names {
            let digest = Digest::from_hex(&name)
                .ok()
                .filter(|digest| digest.as_bytes()[0] == first_byte);
            let Some(digest) = digest else {
                foreign += 1;
                continue;
            };
            if !known.contains(&digest) {
                let Ok(stat) = rustix::fs::statat(shard, &*name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    foreign += 1;
                    continue;
                }
                let blob = Known {
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    last_use: stat.st_mtime,
                    stamp: None,
                };
                unknown.push((digest, blob));
            }
            found.insert(digest);
        }
        for digest in known.difference(&found) {
            self.forget(digest);
        }
        foreign
    }

    /// Removes the temporary files that earlier runs left, as they were found at the start; counts what
    /// else was there.
    fn purge_temporaries(&self, signal: &Signal) {
        let leftovers = std::mem::take(&mut *lock(&self.leftovers));
        let Ok(fills) = self.layout.directory(&FILLS) else {
            return;
        };
        for name in leftovers {
            if signal.stopped() {
                return;
            }
            if digest_of(noted(&name)).is_none() {
                self.metrics.foreign_files.inc();
            } else if let Err(error) = layout::remove_name(&fills, &name) {
                self.unlink_failed(&error);
            }
        }
    }

    fn retry_debris(&self) {
        let debris = std::mem::take(&mut *lock(&self.debris));
        if debris.is_empty() {
            return;
        }
        let fills = self.layout.directory(&FILLS);
        for (name, len) in debris {
            let removed = fills
                .as_ref()
                .is_ok_and(|fills| layout::remove_name(fills, &name).is_ok());
            if removed {
                self.ledger.temporary_gone(len);
            } else {
                lock(&self.debris).push((name, len));
            }
        }
    }

    /// Tries whether a small file can be written again.
    fn probe(&self) {
        const NAME: &str = "probe";
        let written = self.layout.make_directory(&FILLS).and_then(|fills| {
            layout::replace_file(&fills, NAME, &[0; 4096])?;
            layout::remove_name(&fills, NAME)
        });
        if written.is_ok() {
            self.health.written();
        }
    }

    /// Writes what changed in the index: as a journal entry, or as a new snapshot when the journal
    /// has grown long.
    pub(super) fn flush_index(&self) -> io::Result<()> {
        self.apply_touches();
        let mut file = lock(&self.index_file);
        let before = file.len();
        let mut index = lock(&self.index);
        if !index.is_loaded() {
            // Events go after what is on disk, which has not been read yet.
            return Ok(());
        }
        // A rebuilt index has no events and no snapshot.
        let rebuilt = file.wants_snapshot() && index.len() > 0;
        if !index.has_events() && !rebuilt {
            return Ok(());
        }
        let written = if file.wants_snapshot() {
            let snapshot = file.snapshot(&mut index);
            drop(index);
            let root = self.layout.directory(&[]);
            root.and_then(|root| file.replace(&root, &snapshot))
        } else {
            let events = index.take_events();
            drop(index);
            file.append(&events)
        };
        self.index_file_changed(before, file.len());
        written
    }

    /// A disk may stay read-only for weeks, and the changes of weeks must not pile up: past a point
    /// they are dropped, and the next thing to be written is a snapshot.
    fn drop_surplus_events(&self) {
        let mut file = lock(&self.index_file);
        let mut index = lock(&self.index);
        if index.has_too_many_events() {
            index.take_events();
            let before = file.len();
            file.give_up_journal();
            self.index_file_changed(before, file.len());
        }
    }

    /// Whether all that is pinned fits, and the pins can be read.
    fn look_at_pins(&self) {
        let pinned = {
            let mut index = lock(&self.index);
            index.settle_pins();
            index.pinned_bytes()
        };
        let bytes = i64::try_from(pinned).unwrap_or(i64::MAX);
        self.metrics.pinned_bytes.set(bytes);
        let limit = self
            .layout
            .room()
            .map(|room| self.limits().max_size.of(room.total));
        if let Ok(limit) = limit {
            self.health.set(Degradation::PinsTooLarge, pinned > limit);
        }
        let is_damaged = self.pins.damage().is_some();
        self.health.set(Degradation::PinsDamaged, is_damaged);
    }

    fn index_file_changed(&self, before: u64, after: u64) {
        self.ledger.records_changed(after, before);
    }
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names_in(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        // A name that is not UTF-8 is not ours; it is counted under a name that is not either.
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}
