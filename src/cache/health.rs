//! What is wrong with the store at the moment, for readiness and the status page.
//!
//! A fault is noted where it is met and forgotten when a write of the same kind works again, so a
//! disk that recovers needs no restart.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::io::Errno;

use super::lock;

/// A way in which the store is not whole. Hits and pass-through work in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Degradation {
    /// The directory cannot be written: nothing new is kept.
    ReadOnly,
    /// The file system is full, or has no inodes left.
    NoSpace,
    /// The directory is not there any more, or is another one.
    Missing,
    /// The disk reports errors.
    Failing,
    /// All that is pinned is more than the quota.
    PinsTooLarge,
    /// The file of pins is damaged.
    PinsDamaged,
}

impl Degradation {
    /// True for what a write tells, and a write that works ends.
    fn is_of_writing(self) -> bool {
        match self {
            Self::ReadOnly | Self::NoSpace | Self::Missing | Self::Failing => true,
            Self::PinsTooLarge | Self::PinsDamaged => false,
        }
    }
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "the cache directory is read-only: nothing new is kept",
            Self::NoSpace => "the cache's file system is full: nothing new is kept",
            Self::Missing => "the cache directory is gone: nothing is kept or served from it",
            Self::Failing => "the cache's disk reports errors",
            Self::PinsTooLarge => {
                "pinned content exceeds the cache's max_size: not all of it can be kept"
            }
            Self::PinsDamaged => "the file of pins is damaged: what can be read of it counts",
        })
    }
}

/// The faults of the moment, each with the wall time it was first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Empty when all is well.
    pub degraded: Vec<(Degradation, SystemTime)>,
}

impl StoreHealth {
    /// True when nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.degraded.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Health {
    since: Mutex<BTreeMap<Degradation, SystemTime>>,
    /// Whether writing is at fault. Spares the lock on the path of a write that works.
    any: AtomicBool,
}

impl Health {
    /// Notes a failed write.
    pub(super) fn failed(&self, error: &io::Error) {
        let degradation = match Errno::from_io_error(error) {
            Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Degradation::ReadOnly,
            Some(Errno::NOSPC | Errno::DQUOT) => Degradation::NoSpace,
            Some(Errno::NOENT | Errno::STALE | Errno::NODEV | Errno::NOTDIR) => {
                Degradation::Missing
            }
            // Our own shortage of descriptors says nothing about the disk.
            Some(Errno::MFILE | Errno::NFILE) => return,
            _ => Degradation::Failing,
        };
        let mut since = lock(&self.since);
        if let Entry::Vacant(entry) = since.entry(degradation) {
            tracing::warn!(%error, reason = %degradation, "the cache is degraded");
            entry.insert(SystemTime::now());
        }
        self.any.store(true, Ordering::Release);
    }

    /// Notes that data reached the disk: whatever was wrong with writing is over.
    pub(super) fn written(&self) {
        if self.any.swap(false, Ordering::AcqRel) {
            lock(&self.since).retain(|degradation, _| !degradation.is_of_writing());
            tracing::info!("the cache is whole again");
        }
    }

    /// Notes whether something is wrong that no write tells.
    pub(super) fn set(&self, degradation: Degradation, is_wrong: bool) {
        let mut since = lock(&self.since);
        if !is_wrong {
            since.remove(&degradation);
        } else if let Entry::Vacant(entry) = since.entry(degradation) {
            tracing::warn!(reason = %degradation, "the cache is degraded");
            entry.insert(SystemTime::now());
        }
    }

    pub(super) fn snapshot(&self) -> StoreHealth {
        StoreHealth {
            degraded: lock(&self.since).iter().map(|(d, t)| (*d, *t)).collect(),
        }
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_write_ends_every_fault() {
        let health = Health::default();
        health.failed(&Errno::NOSPC.into());
        health.failed(&Errno::IO.into());
        let degraded: Vec<_> = health.snapshot().degraded.iter().map(|(d, _)| *d).collect();
        assert_eq!(degraded, [Degradation::NoSpace, Degradation::Failing]);
        health.written();
        assert!(health.snapshot().is_whole());
    }

    #[test]
    fn what_no_write_told_no_write_ends() {
        let health = Health::default();
        health.set(Degradation::PinsTooLarge, true);
        health.failed(&Errno::NOSPC.into());
        health.written();
        let degraded: Vec<_> = health.snapshot().degraded.iter().map(|(d, _)| *d).collect();
        assert_eq!(degraded, [Degradation::PinsTooLarge]);
        health.set(Degradation::PinsTooLarge, false);
        assert!(health.snapshot().is_whole());
    }

    #[test]
    fn a_shortage_of_descriptors_is_not_the_disks_fault() {
        let health = Health::default();
        health.failed(&Errno::MFILE.into());
        assert!(health.snapshot().is_whole());
    }
}
