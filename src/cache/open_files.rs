//! The bounded memory of open blob files.
//!
//! A blob that is asked for again costs no open. The table also knows who is in use: an entry that
//! somebody besides the table holds. Written by hand rather than on moka because eviction has to
//! test *in use* and forget in one step.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::oci::Digest;

use super::content::ContentFile;
use super::lock;

#[derive(Debug)]
pub(super) struct OpenFiles {
    /// Most files kept open for nobody; those in use come on top.
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    files: HashMap<Digest, Slot>,
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    file: ContentFile,
    used: u64,
}

impl Slot {
    fn in_use(&self) -> bool {
        self.file.holders() > 1
    }
}

/// What came of asking the table to give a file up.
#[derive(Debug)]
pub(super) enum Forgotten {
    /// Somebody is reading it; it stays.
    InUse,
    /// Closed, or not open at all.
    Closed,
}

impl OpenFiles {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            table: Mutex::default(),
        }
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<ContentFile> {
        let table = &mut *lock(&self.table);
        table.clock += 1;
        let slot = table.files.get_mut(digest)?;
        slot.used = table.clock;
        Some(slot.file.clone())
    }

    /// Remembers an open file; returns the one it takes the place of.
    pub(super) fn insert(&self, file: ContentFile) -> Option<ContentFile> {
        let table = &mut *lock(&self.table);
        table.clock += 1;
        let used = table.clock;
        let old = table.files.insert(file.digest(), Slot { file, used });
        trim(table, self.capacity);
        old.map(|slot| slot.file)
    }

    /// Forgets `file`, in use or not, if the table still has it.
    pub(super) fn remove(&self, file: &ContentFile) {
        let mut table = lock(&self.table);
        let digest = file.digest();
        if table
            .files
            .get(&digest)
            .is_some_and(|slot| slot.file.same_as(file))
        {
            table.files.remove(&digest);
        }
    }

    /// True if somebody is reading it.
    pub(super) fn is_in_use(&self, digest: &Digest) -> bool {
        lock(&self.table)
            .files
            .get(digest)
            .is_some_and(Slot::in_use)
    }

    /// Closes `digest` unless somebody is reading it.
    pub(super) fn forget_unused(&self, digest: &Digest) -> Forgotten {
        let mut table = lock(&self.table);
        match table.files.get(digest) {
            Some(slot) if slot.in_use() => Forgotten::InUse,
            _ => {
                table.files.remove(digest);
                Forgotten::Closed
            }
        }
    }

    /// Closes what is unused beyond the capacity.
    pub(super) fn trim(&self) {
        trim(&mut lock(&self.table), self.capacity);
    }
}

fn trim(table: &mut Table, capacity: usize) {
    if table.files.len() <= capacity {
        return;
    }
    let mut idle: Vec<(u64, Digest)> = table
        .files
        .iter()
        .filter(|(_, slot)| !slot.in_use())
        .map(|(digest, slot)| (slot.used, *digest))
        .collect();
    // A quarter at once, so that the search is not repeated for each file opened.
    let target = capacity - capacity / 4;
    if idle.len() <= target {
        return;
    }
    let surplus = idle.len() - target;
    idle.sort_unstable();
    for (_, digest) in &idle[..surplus] {
        table.files.remove(digest);
    }
}
