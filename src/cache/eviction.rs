//! Making room: what is reserved, and who has to go for it.
//!
//! The invariant: a blob in use is never evicted, and room is promised only when it is there. A file
//! that cannot be removed is passed over and counted; it does not stop the others.

use std::time::Duration;

use crate::oci::Digest;

use super::layout::{self, Room};
use super::lock;
use super::open_files::Forgotten;
use super::space::Space;
use super::store::{BeginError, Shared, now};

/// Share of the limit at which the janitor begins to make room ahead of need.
const HIGH_WATER: f64 = 0.98;

/// How long a download that does not obviously fit waits for the index: loading takes 0.2 s for a
/// million blobs; rebuilding takes longer, and is not waited for.
const INDEX_WAIT: Duration = Duration::from_secs(1);

/// Candidates taken from the index at a time.
const BATCH: usize = 64;

impl Shared {
    /// Reserves `len` bytes, evicting for them if it must.
    pub(super) fn reserve(&self, len: u64) -> Result<Space, BeginError> {
        let room = self.room()?;
        let limit = self.options.max_size.of(room.total);
        if len > limit {
            return Err(BeginError::TooLarge { len, limit });
        }
        let free = self.free(&room);
        if !lock(&self.index).is_ready() {
            // All that is used on the file system may be ours.
            let certain = free.min(limit.saturating_sub(room.used));
            if let Ok(space) = self.ledger.reserve(len, limit, certain) {
                return Ok(space);
            }
            if !self.wait_ready(INDEX_WAIT) {
                return Err(BeginError::NoRoom { missing: len });
            }
        }
        if let Ok(space) = self.ledger.reserve(len, limit, free) {
            return Ok(space);
        }

        let _evicting = lock(&self.evicting);
        let mut free = self.free(&self.room()?);
        loop {
            let missing = match self.ledger.reserve(len, limit, free) {
                Ok(space) => return Ok(space),
                Err(missing) => missing,
            };
            let spare = limit.saturating_sub(self.low_water(limit));
            let mut freed = self.evict(missing.saturating_add(spare.min(limit / 20)));
            if freed == 0 {
                // What was being fetched is wanted more than what was not used for longest.
                freed = self.discard_oldest();
            }
            if freed == 0 {
                return Err(BeginError::NoRoom { missing });
            }
            // Credited rather than asked again: file systems free blocks some time after the
            // unlink, and asking too early would evict everything.
            free = free.saturating_add(freed);
        }
    }

    /// Makes room ahead of need.
    pub(super) fn trim(&self) {
        if !lock(&self.index).is_ready() {
            return;
        }
        let Ok(room) = self.layout.room() else {
            return;
        };
        let _evicting = lock(&self.evicting);
        let limit = self.options.max_size.of(room.total);
        let used = self.ledger.counts().total();
        let over_limit = if used > high_water(limit) {
            used - self.low_water(limit).min(used)
        } else {
            0
        };
        let min_free = self.options.min_free.of(room.total);
        let want = over_limit.max(min_free.saturating_sub(room.available));
        if want > 0 {
            self.evict(want);
        }
    }

    pub(super) fn is_above_high_water(&self) -> bool {
        self.layout.room().is_ok_and(|room| {
            self.ledger.counts().total() > high_water(self.options.max_size.of(room.total))
        })
    }

    pub(super) fn wait_ready(&self, timeout: Duration) -> bool {
        let index = lock(&self.index);
        self.index_ready
            .wait_timeout_while(index, timeout, |index| !index.is_ready())
            .is_ok_and(|(index, _)| index.is_ready())
    }

    fn room(&self) -> Result<Room, BeginError> {
        self.layout.room().map_err(|error| {
            self.write_failed(&error);
            BeginError::Disk(error)
        })
    }

    fn free(&self, room: &Room) -> u64 {
        let min_free = self.options.min_free.of(room.total);
        room.available.saturating_sub(min_free)
    }

    fn low_water(&self, limit: u64) -> u64 {
        share(limit, self.options.low_water)
    }

    /// Removes blobs, the least recently used first, until `want` bytes are freed or none is left
    /// that may go; returns the bytes freed. The caller holds `evicting`.
    fn evict(&self, want: u64) -> u64 {
        self.apply_touches();
        let last = lock(&self.index).newest();
        let mut freed = 0u64;
        let mut after = None;
        loop {
            let batch = lock(&self.index).least_used(after, BATCH);
            if batch.is_empty() {
                return freed;
            }
            for (sequence, digest, size) in batch {
                // What was used since we began, or could not be removed, comes after `last`.
                if freed >= want || sequence > last {
                    return freed;
                }
                after = Some(sequence);
                if self.evict_one(&digest) {
                    freed = freed.saturating_add(size);
                }
            }
        }
    }

    fn evict_one(&self, digest: &Digest) -> bool {
        let _name = self.name_lock(digest.as_bytes()[0]);
        if matches!(self.open.forget_unused(digest), Forgotten::InUse) {
            return false;
        }
        let removed = self
            .shard_directory(digest)
            .and_then(|shard| layout::remove_name(&shard, &digest.hex()));
        match removed {
            Ok(()) => {
                self.forget(digest);
                self.metrics.evictions.inc();
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.forget(digest);
                true
            }
            Err(error) => {
                self.unlink_failed(&error);
                // To the end of the queue, or every eviction would try it first.
                lock(&self.index).touch(digest, now());
                false
            }
        }
    }

    /// Brings the uses since the last time into the index.
    pub(super) fn apply_touches(&self) {
        let touched = std::mem::take(&mut *lock(&self.touched));
        if touched.is_empty() {
            return;
        }
        let mut touched: Vec<_> = touched.into_iter().collect();
        touched.sort_unstable_by_key(|(_, sequence)| *sequence);
        let now = now();
        let mut index = lock(&self.index);
        for (digest, _) in touched {
            index.touch(&digest, now);
        }
    }
}

fn high_water(limit: u64) -> u64 {
    share(limit, HIGH_WATER)
}

fn share(limit: u64, share: f64) -> u64 {
    (limit as f64 * share.clamp(0.0, 1.0)) as u64
}
