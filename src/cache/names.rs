//! Names: everything that gives, takes or follows a blob's final name.
//!
//! The invariant: a name, the open-file table and the index change together, under the lock of the
//! name's shard. The steps of a commit are in [`Shared::commit`] and nowhere else.

use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::oci::{Digest, RepoKey};

use super::content::{ContentFile, Identity};
use super::index::{Index, Known, Stamp};
use super::interrupted::note_name;
use super::layout::{self, BLOBS, FILLS};
use super::lock;
use super::partial::Verified;
use super::store::{CommitError, Damage, Shared};

impl Shared {
    pub(super) fn name_lock(&self, first_byte: u8) -> MutexGuard<'_, ()> {
        lock(&self.names[usize::from(first_byte)])
    }

    fn lock_name_of(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.name_lock(digest.as_bytes()[0])
    }

    pub(super) fn shard_directory(&self, digest: &Digest) -> io::Result<OwnedFd> {
        let shard = layout::shard(digest);
        self.layout.directory(&[BLOBS[0], BLOBS[1], &shard])
    }

    pub(super) fn stored_len(&self, digest: &Digest) -> Option<u64> {
        let (known, is_ready) = {
            let index = lock(&self.index);
            (index.known(digest), index.is_ready())
        };
        if known.is_some() || is_ready {
            return known.map(|known| known.size);
        }
        let shard = self.shard_directory(digest).ok()?;
        let name = digest.hex();
        let stat =
            rustix::fs::statat(&shard, &*name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        u64::try_from(stat.st_size).ok().filter(|_| is_file)
    }

    pub(super) fn touch(&self, digest: &Digest) {
        let sequence = self.touches.fetch_add(1, Ordering::Relaxed);
        lock(&self.touched).blobs.insert(*digest, sequence);
    }

    pub(super) fn touch_manifest(&self, repo: &RepoKey, digest: &Digest) {
        let sequence = self.touches.fetch_add(1, Ordering::Relaxed);
        let mut touched = lock(&self.touched);
        let uses = touched.manifests.entry(*digest).or_default();
        match uses.iter_mut().find(|(used, _)| used == repo) {
            Some((_, last)) => *last = sequence,
            None => uses.push((repo.clone(), sequence)),
        }
    }

    pub(super) fn believe_if_stamped(&self, file: &ContentFile) {
        if file.is_verified() {
            return;
        }
        let known = lock(&self.index).known(&file.digest());
        let stamp = known.and_then(|known| known.stamp);
        if stamp.is_some_and(|stamp| Some(stamp.identity) == file.identity()) {
            file.verified();
        }
    }

    /// True if an open file still has its name and is as it was when it got it or was opened.
    pub(super) fn is_current(&self, file: &ContentFile) -> bool {
        file.content().file.metadata().is_ok_and(|metadata| {
            metadata.nlink() > 0 && file.identity() == Some(Identity::of(&metadata))
        })
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<ContentFile>> {
        let _name = self.lock_name_of(digest);
        // Somebody may have opened it, or given it its name, meanwhile.
        if let Some(file) = self.open.find(digest) {
            if self.is_current(&file) {
                return Ok(Some(file));
            }
            self.disown(&file);
        }
        let opened = self
            .shard_directory(digest)
            .and_then(|shard| layout::open_file(&shard, &digest.hex()))
            .and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    // Missing; a link, a socket or a device without a driver in its place.
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                        self.forget(digest);
                        Ok(None)
                    }
                    _ => Err(error),
                };
            }
        };
        if !metadata.is_file() {
            self.forget(digest);
            return Ok(None);
        }
        let identity = Identity::of(&metadata);
        if lock(&self.barred).get(digest) == Some(&identity) {
            return Ok(None);
        }
        let known = lock(&self.index).known(digest);
        if known.is_some_and(|known| known.size != identity.size) {
            self.remove_damaged(digest, identity, Damage::Length(identity.size));
            return Ok(None);
        }
        let space = self.ledger.settled(identity.size);
        let file = ContentFile::new(file, *digest, identity.size, space);
        file.named(identity);
        if known.is_none() {
            self.learn(*digest, &metadata);
        }
        if let Some(old) = self.open.insert(file.clone()) {
            self.settle_displaced(&old, identity.inode);
        }
        Ok(Some(file))
    }

    /// Forgets an open file that is no longer what its name leads to, or was changed.
    fn disown(&self, file: &ContentFile) {
        self.open.remove(file);
        let nameless = file
            .content()
            .file
            .metadata()
            .is_ok_and(|metadata| metadata.nlink() == 0);
        if nameless {
            file.content().space.unlinked();
        }
    }

    /// An open file left the table because another took its place there.
    fn settle_displaced(&self, old: &ContentFile, inode: u64) {
        if old.identity().is_some_and(|old| old.inode != inode) {
            old.content().space.unlinked();
        }
    }

    /// The index learns of a file that it did not know.
    pub(super) fn learn(&self, digest: Digest, metadata: &Metadata) {
        let known = Known {
            size: metadata.len(),
            last_use: metadata.mtime(),
            stamp: None,
        };
        let mut index = lock(&self.index);
        let old = index.put(digest, known);
        self.blobs_changed(&index);
        self.ledger.final_changed(known.size, old.unwrap_or(0));
    }

    /// The index forgets a name that is not there any more.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut index = lock(&self.index);
        if let Some(size) = index.remove(digest) {
            self.blobs_changed(&index);
            self.ledger.final_changed(0, size);
        }
    }

    pub(super) fn blobs_changed(&self, index: &Index) {
        let blobs = i64::try_from(index.len()).unwrap_or(i64::MAX);
        self.metrics.blobs.set(blobs);
    }

    pub(super) fn commit(&self, verified: Verified) -> Result<ContentFile, CommitError> {
        let step = |step: &'static str| move |source: io::Error| CommitError::Disk { step, source };
        let digest = verified.digest();
        let file = &verified.content().content().file;
        file.sync_all().map_err(step("sync a blob"))?;
        let found = file.metadata().map_err(step("check a blob"))?.len();
        if found != verified.len() {
            return Err(CommitError::Length {
                found,
                declared: verified.len(),
            });
        }

        let shard_name = layout::shard(&digest);
        let shard = self
            .layout
            .make_directory(&[BLOBS[0], BLOBS[1], &shard_name])
            .map_err(step("make a directory"))?;
        let fills = self
            .layout
            .directory(&FILLS)
            .map_err(step("open a directory"))?;
        let name = digest.hex();
        let (content, metadata) = {
            let _name = self.lock_name_of(&digest);
            rename(&fills, verified.temporary_name(), &shard, &name)
                .map_err(step("rename a blob"))?;
            // Alone it is debris, which the next start removes.
            let _ = layout::remove_name(&fills, &note_name(verified.temporary_name()));
            let content = verified.renamed();
            // Taken after the rename, which changes it.
            let metadata = content.content().file.metadata();
            if let Ok(metadata) = &metadata {
                self.open_to_others(&content, Identity::of(metadata));
            }
            (content, metadata)
        };
        // The directory is synced without the lock: it may take seconds, and who asks for the blob in
        // the meantime shares this open file.
        let synced = rustix::fs::fsync(&shard)
            .map_err(io::Error::from)
            .and(metadata);

        let _name = self.lock_name_of(&digest);
        match synced {
            Ok(metadata) => {
                let now = content.content().file.metadata();
                if now.is_ok_and(|now| now.nlink() > 0) {
                    self.publish(&content, &metadata);
                } else {
                    // Another one has taken the name since, or somebody found it damaged.
                    content.content().space.unlinked();
                }
                Ok(content)
            }
            Err(error) => {
                // Another one may have opened it by its name since.
                if let Some(other) = self.open.find(&digest) {
                    self.open.remove(&other);
                    other.content().space.unlinked();
                }
                let removed = layout::remove_name(&shard, &name);
                if let Err(error) = &removed {
                    // Whole, synced, and perhaps gone after a power cut: it may stay.
                    self.unlink_failed(error);
                }
                content.content().space.unlinked();
                self.forget(&digest);
                Err(step("sync a directory")(error))
            }
        }
    }

    /// A verified file has its final name: whoever asks for it finds it open. The caller holds the
    /// lock of the name.
    fn open_to_others(&self, content: &ContentFile, identity: Identity) {
        content.named(identity);
        content.verified();
        lock(&self.barred).remove(&content.digest());
        if let Some(old) = self.open.insert(content.clone()) {
            self.settle_displaced(&old, identity.inode);
        }
    }

    /// A committed file becomes an entry, and a download of the same that broke off is not gone on with.
    /// The caller holds the lock of the name.
    fn publish(&self, content: &ContentFile, metadata: &Metadata) {
        let digest = content.digest();
        let identity = Identity::of(metadata);
        let known = Known {
            size: identity.size,
            last_use: metadata.ctime(),
            stamp: Some(Stamp {
                identity,
                when: metadata.ctime(),
            }),
        };
        let mut index = lock(&self.index);
        let old = index.put(digest, known);
        self.blobs_changed(&index);
        content.content().space.settle();
        self.ledger.final_changed(0, old.unwrap_or(0));
        drop(index);
        self.discard_interrupted(&digest);
    }

    pub(super) fn quarantine(&self, file: &ContentFile, damage: Damage) {
        let _name = self.lock_name_of(&file.digest());
        self.distrust(file);
        if let Some(identity) = file.identity() {
            self.remove_damaged(&file.digest(), identity, damage);
        }
        self.disown(file);
    }

    /// Like [`Self::quarantine`] for a file that the caller knows by its identity.
    pub(super) fn quarantine_file(&self, digest: &Digest, identity: Identity, damage: Damage) {
        let _name = self.lock_name_of(digest);
        let open = self.open.find(digest);
        let open = open.filter(|file| file.identity().is_some_and(|i| i.inode == identity.inode));
        if let Some(file) = &open {
            self.distrust(file);
        }
        self.remove_damaged(digest, identity, damage);
        if let Some(file) = &open {
            self.disown(file);
        }
    }

    fn distrust(&self, file: &ContentFile) {
        file.distrusted();
        self.open.remove(file);
    }

    /// Removes the name of a damaged file, if that file still has it. The caller holds its lock.
    fn remove_damaged(&self, digest: &Digest, identity: Identity, damage: Damage) {
        let name = digest.hex();
        let removed = self.shard_directory(digest).and_then(|shard| {
            let found = rustix::fs::statat(&shard, &*name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            if found.st_ino != identity.inode {
                // Another file has the name by now; nothing is known against it.
                return Err(io::ErrorKind::NotFound.into());
            }
            layout::remove_name(&shard, &name)
        });
        match removed {
            Ok(()) => {}
            // Somebody else saw the damage first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                self.unlink_failed(&error);
                lock(&self.barred).insert(*digest, identity);
            }
        }
        self.forget(digest);
        self.metrics.quarantined.inc();
        tracing::warn!(oci.digest = %digest, ?damage, "a damaged blob was taken out of the cache");
    }

    pub(super) fn unlink_failed(&self, error: &io::Error) {
        self.metrics.unlink_failures.inc();
        self.write_failed(error);
    }

    /// Removes a temporary file that will not be committed.
    pub(super) fn remove_temporary(&self, name: String, content: &ContentFile) {
        let removed = self.layout.directory(&FILLS).and_then(|fills| {
            // The note first: alone it is debris, and the file without it as well.
            layout::remove_name(&fills, &note_name(&name))?;
            layout::remove_name(&fills, &name)
        });
        match removed {
            Ok(()) => content.content().space.unlinked(),
            // Its directory is gone, and it with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                content.content().space.unlinked();
            }
            Err(error) => {
                self.unlink_failed(&error);
                lock(&self.debris).push((name, content.len()));
            }
        }
    }
}

/// Renames over whatever has the final name: a file is replaced, an empty directory removed, a full
/// one moved out of the way.
fn rename(from: &OwnedFd, old: &str, to: &OwnedFd, new: &str) -> io::Result<()> {
    let attempt = || rustix::fs::renameat(from, old, to, new);
    match attempt() {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            let aside = format!("obstruction-{new}-{:016x}", fastrand::u64(..));
            rustix::fs::renameat(to, new, from, &*aside)?;
            // Fails for a full one, which is left for the administrator.
            let _ = rustix::fs::unlinkat(from, &*aside, rustix::fs::AtFlags::REMOVEDIR);
            Ok(attempt()?)
        }
        result => Ok(result?),
    }
}
