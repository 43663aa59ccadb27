//! Making room: what is reserved, and who has to go for it.
//!
//! The invariants: a blob in use is never evicted, nor one that a pin leads to; room is promised only
//! when it is there; and no image is left in the records that eviction has taken a blob of. With a blob go
//! the manifests that name it, their tags, and the indexes that are left without an image; what nothing
//! needs then goes next. That costs nothing but a question while the upstream can be asked. While it
//! cannot, what is complete stays for as long as there is anything else.
//!
//! Records go before files, so a crash in between leaves files that nobody needs. They are durably gone
//! first where nobody waits for the room. Where somebody does, what goes is durably noted for the next
//! start instead, see `evicted`, and the records follow within the second that all records take.
//!
//! A file that cannot be removed is passed over and counted; it does not stop the others.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use rustix::fs::AtFlags;

use crate::oci::{Digest, Reference, RepoKey};

use super::index::Game;
use super::layout::{self, Room};
use super::lock;
use super::open_files::Forgotten;
use super::pins::Pins;
use super::records::Records;
use super::references::Standing;
use super::removal::Removed;
use super::space::Space;
use super::store::{BeginError, Limits, Shared, Store, now};

/// Share of the limit at which the janitor begins to make room ahead of need.
const HIGH_WATER: f64 = 0.98;

/// How long a download that does not obviously fit waits for the index: loading takes 0.2 s for a
/// million blobs; rebuilding takes longer, and is not waited for.
const INDEX_WAIT: Duration = Duration::from_secs(1);

/// Blobs whose records are dropped together, before their files are removed.
const BATCH: usize = 64;

/// Whether somebody waits for the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    Awaited,
    /// Nobody, so the records go durably before the files do.
    AheadOfNeed,
}

/// Blobs that are to go together.
#[derive(Debug, Default)]
struct Victims {
    /// With their sizes.
    blobs: Vec<(Digest, u64)>,
    /// Those of them that records were dropped for.
    needed: Vec<Digest>,
}

impl Store {
    /// Counts a pull of a manifest as a use of all that it leads to; does not wait for the disk.
    pub fn manifest_used(&self, repo: &RepoKey, digest: &Digest) {
        self.shared().touch_manifest(repo, digest);
    }

    /// From now on `cut_off` is asked, where room has to be made, whether what is given up could not be
    /// fetched again: then complete images go last. It must not block. The first one stays.
    pub fn when_cut_off(&self, cut_off: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.shared().cut_off.set(CutOff(Box::new(cut_off)));
    }

    /// What is never evicted.
    pub fn pins(&self) -> &Pins {
        &self.shared().pins
    }

    /// Whether a pin leads to this tag, or to this manifest or blob of the repository by stored
    /// manifests: then upstream's no does not remove its record.
    pub fn is_pinned(&self, repo: &RepoKey, reference: &Reference) -> bool {
        match reference {
            Reference::Tag(_) => self.pins().names(&repo.repository, reference),
            Reference::Digest(digest) => {
                // The index knows of its records from here on.
                self.records().load(repo);
                lock(&self.shared().index).is_pinned(repo, digest)
            }
        }
    }
}

/// Says whether what is given up now could not be fetched again.
pub(super) struct CutOff(Box<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CutOff")
    }
}

impl Shared {
    /// Reserves `len` bytes, evicting for them if it must.
    pub(super) fn reserve(&self, len: u64, records: &Records) -> Result<Space, BeginError> {
        let room = self.room()?;
        let limit = self.limits().max_size.of(room.total);
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
            let want = missing.saturating_add(spare.min(limit / 20));
            let mut freed = self.evict(want, records, Haste::Awaited);
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
    pub(super) fn trim(&self, records: &Records) {
        if !lock(&self.index).is_ready() {
            return;
        }
        let Ok(room) = self.layout.room() else {
            return;
        };
        let _evicting = lock(&self.evicting);
        let limit = self.limits().max_size.of(room.total);
        let used = self.ledger.counts().total();
        let over_limit = if used > high_water(limit) {
            used - self.low_water(limit).min(used)
        } else {
            0
        };
        let min_free = self.limits().min_free.of(room.total);
        let want = over_limit.max(min_free.saturating_sub(room.available));
        if want > 0 {
            self.evict(want, records, Haste::AheadOfNeed);
        }
    }

    pub(super) fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    pub(super) fn is_above_high_water(&self) -> bool {
        self.layout.room().is_ok_and(|room| {
            self.ledger.counts().total() > high_water(self.limits().max_size.of(room.total))
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
        let min_free = self.limits().min_free.of(room.total);
        room.available.saturating_sub(min_free)
    }

    fn low_water(&self, limit: u64) -> u64 {
        share(limit, self.low_water)
    }

    /// Removes blobs until `want` bytes are freed or none is left that may go; returns the bytes freed.
    /// The caller holds `evicting`.
    fn evict(&self, want: u64, records: &Records, haste: Haste) -> u64 {
        use Standing::{Loose, Partial, Whole};

        self.apply_touches();
        lock(&self.index).settle_pins();
        // What cannot be fetched again is worth more than the order of use.
        let rounds: &[&[Standing]] = match self.is_cut_off() {
            false => &[&[Loose, Partial, Whole]],
            // What an image leaves behind is loose, and goes before the next image does.
            true => &[&[Loose], &[Loose, Partial], &[Loose, Partial, Whole]],
        };
        let mut freed = 0u64;
        for (round, standings) in rounds.iter().enumerate() {
            if round == 1 {
                while freed < want {
                    match self.discard_oldest() {
                        0 => break,
                        bytes => freed = freed.saturating_add(bytes),
                    }
                }
            }
            // What is used from now on, or could not be removed, comes after this.
            let last = lock(&self.index).newest();
            let game = Game {
                standings,
                last,
                unused_since: i64::MAX,
            };
            let want = want.saturating_sub(freed);
            let gone = self.evict_among(&game, want, records, haste);
            freed = freed.saturating_add(gone.bytes);
        }
        freed
    }

    /// Removes what may go, the least recently used first, until `want` bytes are freed. The caller holds
    /// `evicting`.
    pub(super) fn evict_among(
        &self,
        game: &Game<'_>,
        want: u64,
        records: &Records,
        haste: Haste,
    ) -> Removed {
        let mut passed = HashSet::new();
        let mut removed = Removed::default();
        while removed.bytes < want {
            let left = want - removed.bytes;
            let victims = self.choose(game, left, &mut passed, records, &mut removed);
            if victims.blobs.is_empty() {
                break;
            }
            self.before_files(&victims.needed, records, haste);
            for (digest, size) in victims.blobs {
                if self.remove_unused(&digest) {
                    self.metrics.evictions.inc();
                    removed.add_blob(size);
                }
            }
        }
        removed
    }

    /// Sees to it that the records which were dropped for these blobs stay so, also where the process is
    /// killed or the power cut once the files are gone.
    pub(super) fn before_files(&self, digests: &[Digest], records: &Records, haste: Haste) {
        if haste == Haste::AheadOfNeed {
            match records.flush() {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "records of removed images are not durably gone yet");
                }
            }
        }
        if digests.is_empty() {
            return;
        }
        let root = self.layout.directory(&[]);
        if let Err(error) = root.and_then(|root| self.evicted.note(&root, digests)) {
            tracing::warn!(%error, "cannot note which blobs are removed");
        }
    }

    /// Forgets the records of what an earlier run evicted, where it was killed before that was on disk.
    /// The index knows what all repositories need.
    pub(super) fn forget_evicted(&self, records: &Records) {
        let root = self.layout.directory(&[]);
        let left = match root.and_then(|root| self.evicted.left(&root)) {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(%error, "cannot read which blobs were removed");
                return;
            }
        };
        if left.is_empty() {
            return;
        }
        let _evicting = lock(&self.evicting);
        for digest in left {
            if self.is_on_disk(&digest) {
                continue;
            }
            let casualties = lock(&self.index).casualties(&digest);
            for image in casualties {
                records.forget_image(&image.repo, &image.manifests, &image.tags);
                lock(&self.index).age_if_loose(&image.blobs);
            }
        }
        self.evicted.left_is_forgotten();
        if let Err(error) = records.flush() {
            tracing::warn!(%error, "records of removed images are not durably gone yet");
        }
    }

    /// False only where the disk says so.
    fn is_on_disk(&self, digest: &Digest) -> bool {
        let found = self.shard_directory(digest).and_then(|shard| {
            let name = digest.hex();
            Ok(rustix::fs::statat(
                &shard,
                &*name,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        });
        !found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// The next blobs to go, `want` bytes of them or [`BATCH`]. The records that need them are dropped, in
    /// memory.
    fn choose(
        &self,
        game: &Game<'_>,
        want: u64,
        passed: &mut HashSet<Digest>,
        records: &Records,
        removed: &mut Removed,
    ) -> Victims {
        let mut victims = Victims::default();
        let mut sum = 0u64;
        while sum < want && victims.blobs.len() < BATCH {
            let next = lock(&self.index).next_victim(game, passed);
            let Some((digest, size)) = next else {
                break;
            };
            passed.insert(digest);
            if self.open.is_in_use(&digest) {
                continue;
            }
            let casualties = lock(&self.index).casualties(&digest);
            if !casualties.is_empty() {
                victims.needed.push(digest);
            }
            for image in casualties {
                records.forget_image(&image.repo, &image.manifests, &image.tags);
                removed.add_records(&image);
                self.metrics
                    .evicted_manifests
                    .inc_by(image.manifests.len() as u64);
                lock(&self.index).age_if_loose(&image.blobs);
            }
            victims.blobs.push((digest, size));
            sum = sum.saturating_add(size);
        }
        victims
    }

    /// Removes a blob unless somebody reads it, or an image that names it was recorded since it was chosen;
    /// true if it is gone.
    pub(super) fn remove_unused(&self, digest: &Digest) -> bool {
        let _name = self.name_lock(digest.as_bytes()[0]);
        if !lock(&self.index).is_loose(digest) {
            return false;
        }
        if matches!(self.open.forget_unused(digest), Forgotten::InUse) {
            return false;
        }
        let removed = self
            .shard_directory(digest)
            .and_then(|shard| layout::remove_name(&shard, &digest.hex()));
        match removed {
            Ok(()) => {
                self.forget(digest);
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
        let blobs = touched.blobs.into_iter();
        let blobs = blobs.map(|(digest, sequence)| (sequence, None, digest));
        let manifests = touched.manifests.into_iter().flat_map(|(digest, uses)| {
            let uses = uses.into_iter();
            uses.map(move |(repo, sequence)| (sequence, Some(repo), digest))
        });
        let mut touched: Vec<_> = blobs.chain(manifests).collect();
        touched.sort_unstable_by_key(|(sequence, ..)| *sequence);
        let now = now();
        let mut index = lock(&self.index);
        for (_, repo, digest) in touched {
            match repo {
                None => index.touch(&digest, now),
                Some(repo) => index.touch_image(&repo, &digest, now),
            }
        }
    }

    /// Whether content that is given up now could not be fetched again.
    fn is_cut_off(&self) -> bool {
        self.cut_off.get().is_some_and(|cut_off| (cut_off.0)())
    }
}

fn high_water(limit: u64) -> u64 {
    share(limit, HIGH_WATER)
}

fn share(limit: u64, share: f64) -> u64 {
    (limit as f64 * share.clamp(0.0, 1.0)) as u64
}
