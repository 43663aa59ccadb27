//! Open files and how they are read: one reading type for finished blobs and growing ones.
//!
//! The invariant: an open file is one inode for as long as anybody holds it, whatever happens to its
//! name; its bytes stay in the ledger until then.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::{Errno, ReadWriteFlags};

use crate::oci::Digest;

use super::mapping::{Mapping, Pages};
use super::space::Space;

/// What tells that a file is still the one that was verified: rewriting it, replacing it or setting
/// its times changes at least `ctime`, which nobody can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Nanoseconds since the epoch, saturating.
    pub(super) mtime: i64,
    /// Nanoseconds since the epoch, saturating.
    pub(super) ctime: i64,
}

impl Identity {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file of the store, open for reading; cheap to clone. Holding it keeps the bytes readable and
/// counted, and keeps a blob from being evicted.
///
/// The same file serves before and after its commit, so a reader need not notice it.
#[derive(Clone)]
pub struct ContentFile(Arc<Content>);

pub(super) struct Content {
    pub(super) file: File,
    digest: Digest,
    len: u64,
    /// Set when the file is known under its final name; the state it had then.
    identity: OnceLock<Identity>,
    verified: AtomicBool,
    pages: OnceLock<Pages>,
    pub(super) space: Space,
}

impl ContentFile {
    pub(super) fn new(file: File, digest: Digest, len: u64, space: Space) -> Self {
        Self(Arc::new(Content {
            file,
            digest,
            len,
            identity: OnceLock::new(),
            verified: AtomicBool::new(false),
            pages: OnceLock::new(),
            space,
        }))
    }

    /// The digest the content has, or is to have.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Length in bytes that the content has, or is to have when it is complete.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a length in bytes, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Reads at `offset` into `buffer`; blocks on the disk.
    ///
    /// Short only at the end of what has been written so far: 0 means there is nothing at `offset`
    /// (yet). A reader of a growing file has to know from elsewhere how far it may read.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        read_at(&self.0.file, offset, buffer)
    }

    /// Like [`Self::read_at`] without waiting for the disk: `None` when nothing at `offset` is in
    /// the page cache, or when the file system cannot tell. May be short.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        read_now(&self.0.file, offset, buffer)
    }

    pub(super) fn content(&self) -> &Content {
        &self.0
    }

    /// How many hold this open, the open-file memory included.
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn pages(&self) -> Option<&Pages> {
        self.0.pages.get()
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.0.identity.get().copied()
    }

    /// Notes the state of the file under its final name. Only the first counts.
    pub(super) fn named(&self, identity: Identity) {
        let _ = self.0.identity.set(identity);
    }

    pub(super) fn verified(&self) {
        self.0.verified.store(true, Ordering::Release);
    }

    pub(super) fn distrusted(&self) {
        self.0.verified.store(false, Ordering::Release);
    }

    pub(super) fn is_verified(&self) -> bool {
        self.0.verified.load(Ordering::Acquire)
    }
}

/// Reads at `offset` into `buffer`, short only at the end of the file.
pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Reads what of `buffer` the page cache has at `offset`; `None` if it has nothing there.
pub(super) fn read_now(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let buffers = &mut [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(Some(read)),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl fmt::Debug for ContentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentFile")
            .field("digest", &self.0.digest)
            .field("len", &self.0.len)
            .field("verified", &self.is_verified())
            .finish_non_exhaustive()
    }
}

/// A blob under its final name, open. Cheap to clone; while one is held the blob is not evicted.
#[derive(Clone, Debug)]
pub struct Blob {
    content: ContentFile,
}

impl Blob {
    pub(super) fn new(content: ContentFile) -> Self {
        Self { content }
    }

    /// The name that the content is to hash to.
    pub fn digest(&self) -> Digest {
        self.content.digest()
    }

    /// Length in bytes.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a length in bytes, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.content.len()
    }

    /// True when this very file has been hashed in full since it was last changed. Otherwise it has
    /// to be hashed while it is served, and [`Store::mark_verified`](super::Store::mark_verified) or
    /// [`Store::quarantine`](super::Store::quarantine) told what came of it.
    pub fn stamped(&self) -> bool {
        self.content.is_verified()
    }

    /// The open file, for reading.
    pub fn content(&self) -> &ContentFile {
        &self.content
    }

    /// The whole blob mapped, shared by all who ask while it is open. For a socket only, see
    /// [`Mapping`].
    ///
    /// # Errors
    /// The operating system's refusal to map.
    pub fn map(&self) -> io::Result<Mapping> {
        let content = &self.content.0;
        if content.pages.get().is_none() {
            // Two may map at once; one mapping is kept, the other undone.
            let _ = content.pages.set(Pages::map(&content.file, content.len)?);
        }
        Mapping::of(self.content.clone()).ok_or_else(|| io::ErrorKind::Other.into())
    }
}
