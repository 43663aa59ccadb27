//! Taking things away because the operator says so: an image, or what was not used for long.
//!
//! The same rules as for eviction hold: nothing that is pinned and nothing that is being read goes, images
//! go whole, and what others need stays.

use std::collections::HashSet;
use std::time::SystemTime;

use crate::oci::{Reference, RepoKey};

use super::eviction::Haste;
use super::index::Game;
use super::lock;
use super::references::{Casualties, Standing};
use super::store::{Store, seconds};

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records of manifests.
    pub manifests: u64,
    /// Records of tags.
    pub tags: u64,
}

impl Removed {
    pub(super) fn add_blob(&mut self, size: u64) {
        self.blobs += 1;
        self.bytes = self.bytes.saturating_add(size);
    }

    pub(super) fn add_records(&mut self, image: &Casualties) {
        self.manifests += image.manifests.len() as u64;
        self.tags += image.tags.len() as u64;
    }
}

/// Why nothing was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// Nothing of that name is recorded.
    #[error("it is not in the cache")]
    NotFound,
    /// A pin leads to it.
    #[error("it is pinned; unpin it first")]
    Pinned,
}

/// What is to go by a prune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// Only what no stored manifest names.
    pub unreferenced: bool,
    /// Only what was not used since then.
    pub unused_since: Option<SystemTime>,
    /// Only until the store uses no more than so many bytes, the least recently used first.
    pub down_to: Option<u64>,
}

impl Store {
    /// Removes a tag, or a manifest with its tags: with what only it leads to, what is about it, and
    /// indexes that are left without an image. A tag goes alone where its manifest has another one, is
    /// part of an index or is pinned. Blobs that are being read stay until eviction meets them. Nothing happens in a
    /// dry run, and it is told what would.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove(
        &self,
        repo: &RepoKey,
        reference: &Reference,
        is_dry: bool,
    ) -> Result<Removed, RemoveError> {
        let (shared, records) = (self.shared(), self.records());
        let _evicting = lock(&shared.evicting);
        records.load(repo);
        if self.is_pinned(repo, reference) {
            return Err(RemoveError::Pinned);
        }
        let planned = {
            let mut index = lock(&shared.index);
            index.settle_pins();
            index.removal(repo, reference)
        };
        let (image, blobs) = planned.ok_or(RemoveError::NotFound)?;
        let mut removed = Removed::default();
        removed.add_records(&image);
        if is_dry {
            for (_, size) in blobs {
                removed.add_blob(size);
            }
            return Ok(removed);
        }
        records.forget_image(repo, &image.manifests, &image.tags);
        if let Reference::Tag(tag) = reference {
            records.forget_tag(repo, tag);
        }
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        shared.before_files(&digests, records, Haste::AheadOfNeed);
        for (digest, size) in blobs {
            // Somebody may have recorded another image of it meanwhile.
            let is_loose = lock(&shared.index).standing(&digest) == Standing::Loose;
            if is_loose && shared.remove_unused(&digest) {
                removed.add_blob(size);
            } else {
                lock(&shared.index).age_if_loose(&[digest]);
            }
        }
        Ok(removed)
    }

    /// Removes what `prune` describes, the least recently used first, with the images that need it. In a
    /// dry run nothing happens, and it is told what would.
    pub fn prune(&self, prune: &Prune, is_dry: bool) -> Removed {
        use Standing::{Loose, Partial, Whole};

        let (shared, records) = (self.shared(), self.records());
        let _evicting = lock(&shared.evicting);
        shared.apply_touches();
        let last = {
            let mut index = lock(&shared.index);
            index.settle_pins();
            index.newest()
        };
        let game = Game {
            standings: match prune.unreferenced {
                true => &[Loose],
                false => &[Loose, Partial, Whole],
            },
            last,
            unused_since: prune.unused_since.map_or(i64::MAX, seconds),
        };
        let want = prune.down_to.map_or(u64::MAX, |target| {
            shared.ledger.counts().total().saturating_sub(target)
        });
        if !is_dry {
            return shared.evict_among(&game, want, records, Haste::AheadOfNeed);
        }
        let mut removed = Removed::default();
        let (mut manifests, mut tags) = (HashSet::new(), HashSet::new());
        let victims: Vec<_> = lock(&shared.index).victims(&game).collect();
        for (digest, size) in victims {
            if removed.bytes >= want {
                break;
            }
            if shared.open.is_in_use(&digest) {
                continue;
            }
            removed.add_blob(size);
            for Casualties {
                repo,
                manifests: gone,
                tags: with_them,
                ..
            } in lock(&shared.index).casualties(&digest)
            {
                manifests.extend(gone.into_iter().map(|digest| (repo.clone(), digest)));
                tags.extend(with_them.into_iter().map(|tag| (repo.clone(), tag)));
            }
        }
        removed.manifests = manifests.len() as u64;
        removed.tags = tags.len() as u64;
        removed
    }
}
