//! What blobs there are, how large, in which order they were used, and which of them are verified.
//!
//! A hint in memory: the disk is the truth, and whatever is missing or wrong here is put right when
//! the file is met. Order of use is a sequence, not a time, so a clock that jumps evicts nothing; there
//! is one for each [`Standing`], so that what may go next is found without passing what may not.
//! Knows no files; changes are kept as [`Event`]s for the journal.

use std::collections::{BTreeMap, HashSet};

use crate::oci::{Digest, Reference, RepoKey};

use super::content::Identity;
use super::pins::Pins;
use super::references::{Casualties, Change, References, Standing};

/// Uses by way of a manifest are written down once in so many seconds for each: an image that is pulled
/// all day must not keep the disk busy. The order in memory is exact.
const USE_INTERVAL: i64 = 60;

/// Proof that the file with this identity was hashed in full, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) identity: Identity,
    /// Seconds since the epoch.
    pub(super) when: i64,
}

/// What is known of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) size: u64,
    /// Seconds since the epoch, for people; the order is kept apart from it.
    pub(super) last_use: i64,
    pub(super) stamp: Option<Stamp>,
}

/// A change, as the journal tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Put(Digest, Known),
    Removed(Digest),
    Used(Digest, i64),
}

/// What may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Game<'a> {
    /// Blobs of these standings...
    pub(super) standings: &'a [Standing],
    /// ... that were not used after this sequence...
    pub(super) last: i64,
    /// ... nor at or after this time, in seconds since the epoch.
    pub(super) unused_since: i64,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    sequence: i64,
    standing: Standing,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Digest, Entry>,
    /// In order of use, by standing.
    by_use: [BTreeMap<i64, Digest>; Standing::COUNT],
    references: References,
    /// Blobs whose last use is newer than the journal says.
    unlogged: HashSet<Digest>,
    newest: i64,
    oldest: i64,
    loaded: bool,
    ready: bool,
    events: Vec<Event>,
}

impl Index {
    pub(super) fn new(pins: Pins) -> Self {
        Self {
            references: References::new(pins),
            ..Self::default()
        }
    }

    /// True once the store's content is known in full.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// True once what was stored has been taken in.
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn known(&self, digest: &Digest) -> Option<Known> {
        self.entries.get(digest).map(|entry| entry.known)
    }

    /// Adds or replaces a blob as the most recently used; returns the size it had.
    pub(super) fn put(&mut self, digest: Digest, known: Known) -> Option<u64> {
        self.events.push(Event::Put(digest, known));
        self.newest += 1;
        self.place(digest, known, self.newest)
    }

    /// Adds a blob as the least recently used, unless it is known.
    pub(super) fn put_oldest(&mut self, digest: Digest, known: Known) -> bool {
        if self.entries.contains_key(&digest) {
            return false;
        }
        self.oldest -= 1;
        self.place(digest, known, self.oldest);
        true
    }

    fn place(&mut self, digest: Digest, known: Known, sequence: i64) -> Option<u64> {
        let standing = self.references.standing(&digest);
        let entry = Entry {
            known,
            sequence,
            standing,
        };
        let old = self.entries.insert(digest, entry);
        if let Some(old) = &old {
            self.by_use[old.standing as usize].remove(&old.sequence);
        }
        self.by_use[standing as usize].insert(sequence, digest);
        self.references.set_present(&digest, true);
        self.follow_standings();
        old.map(|old| old.known.size)
    }

    /// Forgets a blob; returns the size it had.
    pub(super) fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let entry = self.entries.remove(digest)?;
        self.by_use[entry.standing as usize].remove(&entry.sequence);
        self.unlogged.remove(digest);
        self.events.push(Event::Removed(*digest));
        self.references.set_present(digest, false);
        self.follow_standings();
        Some(entry.known.size)
    }

    /// Makes a blob the most recently used.
    pub(super) fn touch(&mut self, digest: &Digest, now: i64) {
        self.newest += 1;
        if self.resequence(digest, self.newest, Some(now)) {
            self.unlogged.remove(digest);
            self.events.push(Event::Used(*digest, now));
        }
    }

    /// Makes all blobs that a manifest leads to the most recently used: who has pulled it may have them
    /// already, and wants them again on the next machine.
    pub(super) fn touch_image(&mut self, repo: &RepoKey, manifest: &Digest, now: i64) {
        let (blobs, is_noted) = self.references.uses(repo, manifest, now, USE_INTERVAL);
        for digest in blobs {
            if is_noted {
                self.touch(&digest, now);
            } else {
                self.newest += 1;
                if self.resequence(&digest, self.newest, Some(now)) {
                    self.unlogged.insert(digest);
                }
            }
        }
    }

    /// Writes down the uses that were not worth it at the time; for an orderly end.
    pub(super) fn log_uses(&mut self) {
        let unlogged = std::mem::take(&mut self.unlogged);
        let entries = unlogged.iter().filter_map(|digest| {
            let entry = self.entries.get(digest)?;
            Some((entry.sequence, *digest, entry.known.last_use))
        });
        let mut uses: Vec<_> = entries.collect();
        uses.sort_unstable();
        let uses = uses.into_iter();
        self.events
            .extend(uses.map(|(_, digest, at)| Event::Used(digest, at)));
    }

    /// Makes a blob the least recently used.
    fn age(&mut self, digest: &Digest) {
        self.oldest -= 1;
        self.resequence(digest, self.oldest, None);
    }

    fn resequence(&mut self, digest: &Digest, sequence: i64, used: Option<i64>) -> bool {
        let Some(entry) = self.entries.get_mut(digest) else {
            return false;
        };
        let order = &mut self.by_use[entry.standing as usize];
        order.remove(&entry.sequence);
        order.insert(sequence, *digest);
        entry.sequence = sequence;
        entry.known.last_use = used.unwrap_or(entry.known.last_use);
        true
    }

    // What repositories need.

    /// A repository's records were read: this is all that they say.
    pub(super) fn records_read(&mut self, repo: &RepoKey, changes: Vec<Change>) {
        let entries = &self.entries;
        self.references
            .replace(repo, changes, |digest| entries.contains_key(digest));
        self.follow_standings();
    }

    /// A repository's records changed.
    pub(super) fn records_changed(&mut self, repo: &RepoKey, changes: Vec<Change>) {
        let entries = &self.entries;
        self.references
            .apply(repo, changes, |digest| entries.contains_key(digest));
        self.follow_standings();
    }

    /// See [`References::naming`].
    pub(super) fn naming(&self, repo: &RepoKey, blob: &Digest) -> Option<Digest> {
        self.references.naming(repo, blob)
    }

    /// Follows the pins where they or what they name have changed.
    pub(super) fn settle_pins(&mut self) {
        self.references.settle_pins();
        self.follow_standings();
    }

    /// Whether a pin leads to a manifest or blob of a repository.
    pub(super) fn is_pinned(&mut self, repo: &RepoKey, digest: &Digest) -> bool {
        self.settle_pins();
        self.references.is_pinned(repo, digest)
    }

    /// Bytes of all that is pinned, on disk or not.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.references.pinned_bytes()
    }

    /// Whether no stored manifest names a blob.
    pub(super) fn is_loose(&self, digest: &Digest) -> bool {
        self.references.standing(digest) == Standing::Loose
    }

    /// The records that have to go with a blob.
    pub(super) fn casualties(&self, blob: &Digest) -> Vec<Casualties> {
        self.references.casualties(blob)
    }

    /// What goes when a tag or manifest is taken away, and the blobs on disk that nothing needs then, with
    /// their sizes.
    pub(super) fn removal(
        &self,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Option<(Casualties, Vec<(Digest, u64)>)> {
        let (casualties, loose) = self.references.removal(repo, reference)?;
        let loose = loose.into_iter();
        let stored = loose.filter_map(|digest| Some((digest, self.known(&digest)?.size)));
        Some((casualties, stored.collect()))
    }

    pub(super) fn standing(&self, digest: &Digest) -> Standing {
        self.references.standing(digest)
    }

    /// Records have gone that named these: what nothing needs any more is the next to go.
    pub(super) fn age_if_loose(&mut self, blobs: &[Digest]) {
        for digest in blobs {
            let entry = self.entries.get(digest);
            if entry.is_some_and(|entry| entry.standing == Standing::Loose) {
                self.age(digest);
            }
        }
    }

    fn follow_standings(&mut self) {
        for digest in self.references.take_changed() {
            let standing = self.references.standing(&digest);
            let Some(entry) = self.entries.get_mut(&digest) else {
                continue;
            };
            if entry.standing != standing {
                self.by_use[entry.standing as usize].remove(&entry.sequence);
                self.by_use[standing as usize].insert(entry.sequence, digest);
                entry.standing = standing;
            }
        }
    }

    pub(super) fn set_stamp(&mut self, digest: &Digest, stamp: Stamp) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.known.stamp = Some(stamp);
            self.events.push(Event::Put(*digest, entry.known));
        }
    }

    /// The least recently used blob that may go and is not among `passed`, with its size.
    pub(super) fn next_victim(
        &self,
        game: &Game<'_>,
        passed: &HashSet<Digest>,
    ) -> Option<(Digest, u64)> {
        self.victims(game)
            .find(|(digest, _)| !passed.contains(digest))
    }

    /// The blobs that may go with their sizes, the least recently used first.
    pub(super) fn victims(&self, game: &Game<'_>) -> impl Iterator<Item = (Digest, u64)> + '_ {
        let Game {
            last, unused_since, ..
        } = *game;
        self.in_order_of(game.standings)
            .take_while(move |(sequence, _)| *sequence <= last)
            .filter_map(move |(_, digest)| {
                let known = self.entries.get(&digest)?.known;
                (known.last_use < unused_since).then_some((digest, known.size))
            })
    }

    /// Blobs of these standings, the least recently used first.
    fn in_order_of(&self, standings: &[Standing]) -> impl Iterator<Item = (i64, Digest)> + '_ {
        let orders = standings.iter();
        let mut orders: Vec<_> = orders
            .map(|standing| self.by_use[*standing as usize].iter().peekable())
            .collect();
        std::iter::from_fn(move || {
            let nexts = orders.iter_mut().enumerate();
            let nexts = nexts.filter_map(|(at, order)| Some((*order.peek()?.0, at)));
            let (_, at) = nexts.min()?;
            let (sequence, digest) = orders[at].next()?;
            Some((*sequence, *digest))
        })
    }

    /// The sequence number of the latest use.
    pub(super) fn newest(&self) -> i64 {
        self.newest
    }

    /// The blobs whose digest begins with `first_byte`.
    pub(super) fn in_shard(&self, first_byte: u8) -> Vec<Digest> {
        let mut low = [0; 32];
        low[0] = first_byte;
        let mut high = [0xff; 32];
        high[0] = first_byte;
        self.entries
            .range(Digest::from_sha256(low)..=Digest::from_sha256(high))
            .map(|(digest, _)| *digest)
            .collect()
    }

    /// All blobs, the least recently used first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Digest, Known)> + '_ {
        use Standing::{Loose, Partial, Pinned, Whole};

        self.in_order_of(&[Loose, Partial, Whole, Pinned])
            .filter_map(|(_, digest)| Some((digest, self.entries.get(&digest)?.known)))
    }

    /// Takes in what was on disk. What happened since the start is newer and wins; returns the bytes
    /// that the ledger has not counted yet.
    pub(super) fn load(&mut self, stored: Vec<(Digest, Known)>) -> u64 {
        self.loaded = true;
        let mut added = 0u64;
        for (digest, known) in stored.into_iter().rev() {
            match self.entries.get_mut(&digest) {
                // Met before the index was loaded: the file is there, only its stamp is news.
                Some(entry) if entry.known.stamp.is_none() && entry.known.size == known.size => {
                    entry.known.stamp = known.stamp;
                    // The journal has it unstamped, from when it was met.
                    self.events.push(Event::Put(digest, entry.known));
                }
                Some(_) => {}
                None => {
                    self.put_oldest(digest, known);
                    added = added.saturating_add(known.size);
                }
            }
        }
        added
    }

    /// True when the changes would fill more than a snapshot of everything.
    pub(super) fn has_too_many_events(&self) -> bool {
        self.events.len() > 4096 + 2 * self.entries.len()
    }

    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The changes since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn known(size: u64) -> Known {
        Known {
            size,
            last_use: 0,
            stamp: None,
        }
    }

    fn order(index: &Index) -> Vec<Digest> {
        index.in_order().map(|(digest, _)| digest).collect()
    }

    #[test]
    fn c05_absurd_sizes_in_what_was_stored_are_no_panic() {
        let mut index = Index::default();
        let stored = vec![(digest(1), known(u64::MAX)), (digest(2), known(7))];
        assert_eq!(index.load(stored), u64::MAX);
    }

    #[test]
    fn use_decides_the_order_and_the_clock_does_not() {
        let mut index = Index::default();
        for n in 0..3 {
            index.put(digest(n), known(1));
        }
        index.touch(&digest(0), -5);
        assert_eq!(order(&index), [digest(1), digest(2), digest(0)]);
        index.remove(&digest(2));
        assert_eq!(order(&index), [digest(1), digest(0)]);
    }

    #[test]
    fn what_was_stored_is_older_than_what_was_met_since_the_start() {
        let mut index = Index::default();
        index.put(digest(1), known(10));
        let stored = vec![
            (digest(0), known(5)),
            (digest(1), known(10)),
            (digest(2), known(7)),
        ];
        assert_eq!(index.load(stored), 12);
        assert_eq!(order(&index), [digest(0), digest(2), digest(1)]);
    }

    #[test]
    fn a_stamp_that_was_stored_is_not_lost_to_a_use_before_loading() {
        let mut index = Index::default();
        index.put(digest(1), known(10));
        let stamped = Known {
            stamp: Some(Stamp {
                identity: Identity {
                    inode: 1,
                    size: 10,
                    mtime: 2,
                    ctime: 3,
                },
                when: 4,
            }),
            ..known(10)
        };
        index.load(vec![(digest(1), stamped)]);
        assert_eq!(index.known(&digest(1)), Some(stamped));
        assert_eq!(
            index.take_events().last(),
            Some(&Event::Put(digest(1), stamped))
        );
    }

    #[test]
    fn a_shard_is_a_range() {
        let mut index = Index::default();
        for n in 0..200 {
            index.put(digest(n), known(1));
        }
        let total: usize = (0..=255).map(|byte| index.in_shard(byte).len()).sum();
        assert_eq!(total, 200);
        let byte = digest(7).as_bytes()[0];
        assert!(index.in_shard(byte).contains(&digest(7)));
    }
}
