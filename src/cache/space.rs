//! The account of the disk: how many bytes may be used, and what uses them.
//!
//! The invariant: **every byte the store has on disk is in exactly one state of the ledger until it
//! is really gone**: a temporary file counts with its whole declared length until it is committed or
//! closed by its last reader, a file without a name until its last reader closed it. 64-bit
//! throughout. Not counted, and so the stated slack: directories, inodes and the rounding of a file
//! to blocks (under 4 KiB each), records of the last second, and the store's own notes at its top: what
//! is pinned, how far the scrub is, and what was evicted within the last second (32 bytes a blob).

use std::sync::{Arc, Mutex};

use super::metrics::{BytesState, CacheMetrics};
use super::{health::StoreHealth, lock};

/// An amount of a file system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file system's size, 0 to 100.
    Percent(f64),
}

impl Limit {
    /// In bytes, on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // A float holds sizes to 2^53 exactly, and a share of more is no worse for rounding.
            Self::Percent(percent) => (total as f64 * (percent / 100.0).clamp(0.0, 1.0)) as u64,
        }
    }
}

/// What the store uses, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blobs under their final names.
    pub final_bytes: u64,
    /// Declared lengths of downloads in progress.
    pub temporary_bytes: u64,
    /// Files without a name that are still being read.
    pub unlinked_bytes: u64,
    /// Repository logs and the index.
    pub record_bytes: u64,
    /// The most that the sum of the above may be.
    pub limit: u64,
    /// Number of blobs under final names.
    pub blobs: u64,
    /// False until the index is loaded: before that `final_bytes` and `blobs` are too low.
    pub complete: bool,
    /// What is wrong at the moment.
    pub health: StoreHealth,
}

impl Usage {
    /// All that is used, in bytes.
    pub fn total(&self) -> u64 {
        let parts = [
            self.final_bytes,
            self.temporary_bytes,
            self.unlinked_bytes,
            self.record_bytes,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// What is used, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) r#final: u64,
    pub(super) temporary: u64,
    pub(super) unlinked: u64,
    pub(super) records: u64,
    /// Part of `temporary` that the file system has not set aside yet, so that its own figure of
    /// free space does not know of it.
    pub(super) unallocated: u64,
}

impl Counts {
    pub(super) fn total(&self) -> u64 {
        self.r#final
            .saturating_add(self.temporary)
            .saturating_add(self.unlinked)
            .saturating_add(self.records)
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    counts: Mutex<Counts>,
    metrics: CacheMetrics,
}

impl Ledger {
    pub(super) fn new(metrics: CacheMetrics) -> Arc<Self> {
        let ledger = Self {
            counts: Mutex::default(),
            metrics,
        };
        ledger.change(|_| ());
        Arc::new(ledger)
    }

    pub(super) fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        let mut counts = lock(&self.counts);
        let result = change(&mut counts);
        for (state, bytes) in [
            (BytesState::Final, counts.r#final),
            (BytesState::Temporary, counts.temporary),
            (BytesState::Unlinked, counts.unlinked),
            (BytesState::Records, counts.records),
        ] {
            self.metrics.set_bytes(state, bytes);
        }
        result
    }

    /// Reserves `len` bytes if they fit under `limit`, and under `free`, what the file system can
    /// still give.
    ///
    /// # Errors
    /// How many bytes are missing.
    pub(super) fn reserve(self: &Arc<Self>, len: u64, limit: u64, free: u64) -> Result<Space, u64> {
        self.change(|counts| {
            let Some(total) = counts.total().checked_add(len) else {
                return Err(len);
            };
            let over_limit = total.saturating_sub(limit);
            let over_free = counts.unallocated.saturating_add(len).saturating_sub(free);
            match over_limit.max(over_free) {
                0 => {
                    counts.temporary += len;
                    counts.unallocated += len;
                    Ok(())
                }
                missing => Err(missing),
            }
        })?;
        Ok(Space {
            ledger: self.clone(),
            len,
            standing: Mutex::new(Standing::Temporary { unallocated: len }),
        })
    }

    /// The space of a blob that is already under its final name, where the index counts it.
    pub(super) fn settled(self: &Arc<Self>, len: u64) -> Space {
        Space {
            ledger: self.clone(),
            len,
            standing: Mutex::new(Standing::Final),
        }
    }

    /// The index learned of `added` bytes under final names and forgot `removed`.
    pub(super) fn final_changed(&self, added: u64, removed: u64) {
        self.change(|counts| {
            counts.r#final = counts.r#final.saturating_add(added).saturating_sub(removed);
        });
    }

    /// A temporary file's name, which could not be removed at first, is gone.
    pub(super) fn temporary_gone(&self, len: u64) {
        self.change(|counts| counts.temporary = counts.temporary.saturating_sub(len));
    }

    /// A log grew or shrank.
    pub(super) fn records_changed(&self, added: u64, removed: u64) {
        self.change(|counts| {
            counts.records = counts.records.saturating_add(added).saturating_sub(removed);
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Counted here, in full.
    Temporary { unallocated: u64 },
    /// Counted by the index.
    Final,
    /// Counted here until the last reader closes it.
    Unlinked,
}

/// The bytes of one file on disk; given back when the file is closed and its name gone.
#[derive(Debug)]
pub(super) struct Space {
    ledger: Arc<Ledger>,
    len: u64,
    standing: Mutex<Standing>,
}

impl Space {
    /// The file system has set aside, or been given, `bytes` more of the reservation.
    pub(super) fn allocated(&self, bytes: u64) {
        if let Standing::Temporary { unallocated } = &mut *lock(&self.standing) {
            let now = bytes.min(*unallocated);
            if now > 0 {
                *unallocated -= now;
                self.ledger.change(|counts| counts.unallocated -= now);
            }
        }
    }

    /// Takes `more` into this reservation: both are of one temporary file.
    pub(super) fn grow(&mut self, mut more: Self) {
        let mut theirs = lock(&more.standing);
        if let (Standing::Temporary { unallocated }, Standing::Temporary { unallocated: added }) =
            (&mut *lock(&self.standing), &mut *theirs)
        {
            *unallocated += std::mem::take(added);
            self.len += more.len;
        }
        drop(theirs);
        // Counted here from now on, and not to be given back with `more`.
        more.len = 0;
    }

    /// Gives back what is reserved of a temporary file beyond `len` bytes.
    pub(super) fn shrink_to(&mut self, len: u64) {
        let excess = self.len.saturating_sub(len);
        if let Standing::Temporary { unallocated } = &mut *lock(&self.standing) {
            let never = excess.min(*unallocated);
            *unallocated -= never;
            self.len -= excess;
            self.ledger.change(|counts| {
                counts.temporary -= excess;
                counts.unallocated -= never;
            });
        }
    }

    /// The file got its final name, and the index counts it from now on.
    pub(super) fn settle(&self) {
        let mut standing = lock(&self.standing);
        if let Standing::Temporary { unallocated } = *standing {
            self.ledger.change(|counts| {
                counts.temporary -= self.len;
                counts.unallocated -= unallocated;
                counts.r#final = counts.r#final.saturating_add(self.len);
            });
            *standing = Standing::Final;
        }
    }

    /// The file lost its name, final or temporary.
    pub(super) fn unlinked(&self) {
        let mut standing = lock(&self.standing);
        let was = std::mem::replace(&mut *standing, Standing::Unlinked);
        self.ledger.change(|counts| match was {
            Standing::Temporary { unallocated } => {
                counts.temporary -= self.len;
                counts.unallocated -= unallocated;
                counts.unlinked += self.len;
            }
            Standing::Final => counts.unlinked += self.len,
            Standing::Unlinked => {}
        });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let standing = *lock(&self.standing);
        self.ledger.change(|counts| match standing {
            // Its name could not be removed: the bytes are still there.
            Standing::Temporary { unallocated } => counts.unallocated -= unallocated,
            Standing::Final => {}
            Standing::Unlinked => counts.unlinked -= self.len,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_bytes_or_a_share() {
        assert_eq!(Limit::Bytes(7).of(1000), 7);
        assert_eq!(Limit::Percent(70.0).of(1000), 700);
        assert_eq!(Limit::Percent(700.0).of(1000), 1000);
    }

    #[test]
    fn u22_sizes_over_4_gib_do_not_wrap() {
        let ledger = Ledger::new(CacheMetrics::default());
        let big = (5 << 30) + 1;
        let space = ledger.reserve(big, u64::MAX, u64::MAX).unwrap();
        assert_eq!(ledger.counts().temporary, big);
        assert_eq!(ledger.reserve(big, 2 * big - 1, u64::MAX).unwrap_err(), 1);
        space.settle();
        assert_eq!(ledger.counts().r#final, big);
        assert!(ledger.reserve(u64::MAX, u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn what_is_reserved_but_not_allocated_is_not_promised_twice() {
        let ledger = Ledger::new(CacheMetrics::default());
        let first = ledger.reserve(60, 1000, 100).unwrap();
        assert_eq!(ledger.reserve(60, 1000, 100).unwrap_err(), 20);
        first.allocated(60);
        assert!(ledger.reserve(60, 1000, 100).is_ok());
    }

    #[test]
    fn d17_a_file_without_a_name_counts_until_it_is_closed() {
        let ledger = Ledger::new(CacheMetrics::default());
        let space = ledger.reserve(10, 100, 100).unwrap();
        space.unlinked();
        space.unlinked();
        let counts = ledger.counts();
        assert_eq!((counts.temporary, counts.unlinked), (0, 10));
        drop(space);
        assert_eq!(ledger.counts(), Counts::default());
    }
}
