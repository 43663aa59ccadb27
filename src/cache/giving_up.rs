//! Giving content up because somebody says so: an image, what nothing needs, all beyond a size.
//!
//! The invariant is that of eviction, whose steps these are: records go before files, no image is left in
//! the records that lacks a blob for it, what is pinned stays, and who reads a blob keeps the open file.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::oci::{Digest, RepoKey};

use super::eviction::Haste;
use super::lock;
use super::references::Standing;
use super::store::{Shared, Store};

/// What was given up, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// Stored manifests.
    pub manifests: u64,
    /// Blobs whose files are gone.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Blobs that nothing needs and that stay for now: somebody reads them, or the disk refused.
    pub left: u64,
}

impl GivenUp {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            manifests: self.manifests + other.manifests,
            blobs: self.blobs + other.blobs,
            bytes: self.bytes.saturating_add(other.bytes),
            left: self.left + other.left,
        }
    }
}

/// Whether it is done, or only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earnest {
    /// It is done.
    Do,
    /// Nothing is changed.
    Rehearse,
}

impl Store {
    /// Gives up a stored manifest with all tags that name it, what it alone leads to and what is about
    /// it, unless it is pinned. An index that is left without an image goes with it.
    ///
    /// The index is to be ready: before, it is not known what is needed.
    pub fn give_up(&self, repo: &RepoKey, digest: &Digest, earnest: Earnest) -> GivenUp {
        self.records().load(repo);
        let shared = self.shared();
        let _evicting = lock(&shared.evicting);
        let (casualties, unneeded) = {
            let mut index = lock(&shared.index);
            index.settle_pins();
            index.casualties_of_manifest(repo, digest)
        };
        let manifests = casualties.iter().map(|image| image.manifests.len() as u64);
        let records = GivenUp {
            manifests: manifests.sum(),
            ..GivenUp::default()
        };
        if earnest == Earnest::Do {
            for image in casualties {
                let (manifests, tags) = (&image.manifests, &image.tags);
                self.records().forget_image(&image.repo, manifests, tags);
            }
            self.flush_records();
        }
        let known = |digest: &Digest| Some((*digest, lock(&shared.index).known(digest)?.size));
        let unneeded: Vec<_> = unneeded.iter().filter_map(known).collect();
        records.and(shared.give_up_loose(unneeded, earnest))
    }

    /// Gives up the blobs that no stored manifest names and that were not used since `used_before`.
    ///
    /// The index is to be ready: before, it is not known what is needed.
    pub fn give_up_unneeded(&self, used_before: Option<SystemTime>, earnest: Earnest) -> GivenUp {
        let shared = self.shared();
        let _evicting = lock(&shared.evicting);
        shared.apply_touches();
        let loose = lock(&shared.index).loose();
        let is_old = |last_use: i64| {
            used_before.is_none_or(|before| {
                let since = Duration::from_secs(u64::try_from(last_use).unwrap_or(0));
                UNIX_EPOCH.checked_add(since).is_none_or(|at| at < before)
            })
        };
        let loose = loose
            .into_iter()
            .filter(|(_, known)| is_old(known.last_use));
        let loose = loose.map(|(digest, known)| (digest, known.size)).collect();
        shared.give_up_loose(loose, earnest)
    }

    /// Evicts until no more than `bytes` are used, as if that were the limit; less is given up where what
    /// is left is pinned or in use. A rehearsal tells the blobs that would go, and no manifests.
    pub fn shrink_to(&self, bytes: u64, earnest: Earnest) -> GivenUp {
        let shared = self.shared();
        let _evicting = lock(&shared.evicting);
        let used = shared.ledger.counts().total();
        let want = used.saturating_sub(bytes);
        if earnest == Earnest::Rehearse {
            return shared.rehearse_eviction(want);
        }
        let (blobs, manifests) = (&shared.metrics.evictions, &shared.metrics.evicted_manifests);
        let before = (blobs.get(), manifests.get());
        let mut freed = shared.evict(want, self.records(), Haste::AheadOfNeed);
        while freed < want {
            match shared.discard_oldest() {
                0 => break,
                bytes => freed = freed.saturating_add(bytes),
            }
        }
        GivenUp {
            manifests: manifests.get() - before.1,
            blobs: blobs.get() - before.0,
            bytes: freed,
            left: 0,
        }
    }

    /// Records that are gone should be so before their files are; a crash in between then leaves files that
    /// nobody needs.
    fn flush_records(&self) {
        if let Err(error) = self.records().flush() {
            tracing::warn!(%error, "records of what was given up are not durably gone yet");
        }
    }
}

impl Shared {
    /// Removes these blobs, as far as nothing needs them. The caller holds `evicting`.
    fn give_up_loose(&self, blobs: Vec<(Digest, u64)>, earnest: Earnest) -> GivenUp {
        let mut given_up = GivenUp::default();
        for (digest, size) in blobs {
            let is_gone = match earnest {
                Earnest::Rehearse => !self.open.is_in_use(&digest),
                Earnest::Do => {
                    // A manifest that names it may have come meanwhile.
                    let standing = lock(&self.index).standing(&digest);
                    if standing != Some(Standing::Loose) {
                        continue;
                    }
                    self.evict_one(&digest)
                }
            };
            if is_gone {
                given_up.blobs += 1;
                given_up.bytes = given_up.bytes.saturating_add(size);
            } else {
                given_up.left += 1;
            }
        }
        given_up
    }

    fn rehearse_eviction(&self, want: u64) -> GivenUp {
        use Standing::{Loose, Partial, Whole};

        self.apply_touches();
        let mut index = lock(&self.index);
        index.settle_pins();
        let last = index.newest();
        let mut passed = HashSet::new();
        let mut given_up = GivenUp::default();
        while given_up.bytes < want
            && let Some((digest, size)) = index.next_victim(&[Loose, Partial, Whole], &passed, last)
        {
            passed.insert(digest);
            if !self.open.is_in_use(&digest) {
                given_up.blobs += 1;
                given_up.bytes = given_up.bytes.saturating_add(size);
            }
        }
        given_up
    }
}
