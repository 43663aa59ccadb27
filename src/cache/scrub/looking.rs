//! What a scrub asks of names, and what it tells them.

use std::io;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::oci::Digest;

use super::Condemned;
use crate::cache::content::Identity;
use crate::cache::index::Stamp;
use crate::cache::layout;
use crate::cache::lock;
use crate::cache::store::{Shared, now};

/// What has a blob's name.
pub(super) enum Looked {
    /// A file, which may be the blob.
    File(Identity),
    /// A file of another length than the blob's.
    OtherLength(Identity),
    /// Something else, in the place of a blob or of none.
    NotAFile { was_stored: bool },
    /// Nothing, or what is known to be damaged and cannot be removed.
    Nothing,
}

impl Shared {
    pub(super) fn look(&self, digest: &Digest) -> io::Result<Looked> {
        let _name = self.name_lock(digest.as_bytes()[0]);
        let known = lock(&self.index).known(digest);
        let opened = self.shard_directory(digest).and_then(|shard| {
            let found = rustix::fs::statat(&shard, digest.hex(), AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile => layout::open_file(&shard, &digest.hex()).map(Some),
                _ => Ok(None),
            }
        });
        let file = match opened {
            Ok(Some(file)) => file,
            Ok(None) => {
                let was_stored = known.is_some();
                return Ok(Looked::NotAFile { was_stored });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Looked::Nothing),
            Err(error) => return Err(error),
        };
        let identity = Identity::of(&file.metadata()?);
        if lock(&self.barred).get(digest) == Some(&identity) {
            return Ok(Looked::Nothing);
        }
        Ok(match known {
            Some(known) if known.size != identity.size => Looked::OtherLength(identity),
            _ => Looked::File(identity),
        })
    }

    /// The file with this identity was hashed in full and found right; false if it is another one by
    /// now.
    pub(super) fn confirm(&self, digest: &Digest, identity: Identity) -> bool {
        let _name = self.name_lock(digest.as_bytes()[0]);
        let metadata = self
            .shard_directory(digest)
            .and_then(|shard| layout::open_file(&shard, &digest.hex()))
            .and_then(|file| file.metadata());
        let Some(metadata) = metadata
            .ok()
            .filter(|metadata| Identity::of(metadata) == identity)
        else {
            return false;
        };
        if lock(&self.index).known(digest).is_none() {
            self.learn(*digest, &metadata);
        }
        let mut index = lock(&self.index);
        let stamp = index.known(digest).and_then(|known| known.stamp);
        // A stamp that says so already is not written again: a pass would write the whole index.
        if stamp.is_none_or(|stamp| stamp.identity != identity) {
            let when = now();
            index.set_stamp(digest, Stamp { identity, when });
        }
        true
    }

    /// Takes a damaged file away, if it still has its name.
    pub(super) fn condemn(&self, condemned: &Condemned) {
        let digest = &condemned.digest;
        match condemned.identity {
            Some(identity) => self.quarantine_file(digest, identity, condemned.damage),
            None => {
                let _name = self.name_lock(digest.as_bytes()[0]);
                self.forget(digest);
            }
        }
    }

    /// Forgets the blobs of a directory that are not among the `found` ones, nor there by now.
    pub(super) fn forget_missing(&self, first_byte: u8, found: &[Digest]) {
        let known = lock(&self.index).in_shard(first_byte);
        if known.is_empty() {
            return;
        }
        let found: std::collections::HashSet<&Digest> = found.iter().collect();
        let _name = self.name_lock(first_byte);
        for digest in known.iter().filter(|digest| !found.contains(digest)) {
            let there = self.shard_directory(digest).and_then(|shard| {
                Ok(rustix::fs::statat(
                    &shard,
                    digest.hex(),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?)
            });
            let is_gone =
                |error: &io::Error| matches!(Errno::from_io_error(error), Some(Errno::NOENT));
            if there.as_ref().is_err_and(is_gone) {
                self.forget(digest);
            }
        }
    }
}
