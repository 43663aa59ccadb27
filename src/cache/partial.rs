//! A blob on its way in: a temporary file under `fills/`, hashed as it is written.
//!
//! The invariant: [`Partial::verify`] is the only maker of [`Verified`], and a file that is not
//! committed loses its name when its `Partial` goes.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::oci::{Digest, Hasher};

use super::content::ContentFile;
use super::store::Shared;

/// The open temporary file, for readers that follow it; stays valid after commit and after removal.
pub type PartialReader = ContentFile;

/// A blob being written. Dropping it removes the file; its space is returned when the last reader
/// has closed it.
pub struct Partial {
    shared: Arc<Shared>,
    content: ContentFile,
    /// Name under `fills/`; `None` once the file has another name or none.
    name: Option<String>,
    hasher: Hasher,
    written: u64,
}

/// A complete blob whose length and digest agree with its name. Only [`Partial::verify`] makes one.
#[derive(Debug)]
pub struct Verified(Partial);

/// Why bytes were not added to a [`Partial`]. What was written before is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// More bytes than were declared.
    #[error("more than the declared {declared} bytes")]
    TooLong {
        /// The declared length.
        declared: u64,
    },
    /// The disk refused them.
    #[error("cannot write to the cache")]
    Disk(#[source] io::Error),
}

/// Why a [`Partial`] is not what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Not complete.
    #[error("{written} of {declared} bytes")]
    Length {
        /// Bytes there are.
        written: u64,
        /// Bytes there should be.
        declared: u64,
    },
    /// Complete, and something else.
    #[error("content is {actual}, expected {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What the content hashes to.
        actual: Digest,
    },
}

impl Partial {
    pub(super) fn new(shared: Arc<Shared>, content: ContentFile, name: String) -> Self {
        Self {
            shared,
            content,
            name: Some(name),
            hasher: Hasher::new(),
            written: 0,
        }
    }

    /// Writes and hashes `piece`. Pieces of 256 KiB and more make cheap reads later.
    ///
    /// # Errors
    /// See [`AppendError`]; `piece` then does not count as written and is not in the hash, so the
    /// caller can go on without the disk, see [`Self::abandon`].
    pub fn append(&mut self, piece: &[u8]) -> Result<(), AppendError> {
        let len = piece.len() as u64;
        if len > self.content.len() - self.written {
            return Err(AppendError::TooLong {
                declared: self.content.len(),
            });
        }
        let content = self.content.content();
        if let Err(error) = content.file.write_all_at(piece, self.written) {
            self.shared.write_failed(&error);
            return Err(AppendError::Disk(error));
        }
        content.space.allocated(len);
        self.hasher.update(piece);
        self.written += len;
        Ok(())
    }

    /// The digest the content is to have.
    pub fn digest(&self) -> Digest {
        self.content.digest()
    }

    /// The length the content is to have, in bytes.
    pub fn declared(&self) -> u64 {
        self.content.len()
    }

    /// Bytes written so far; readers may read up to here.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The file, for reading while it grows.
    pub fn reader(&self) -> PartialReader {
        self.content.clone()
    }

    /// Gives the file up; returns the hash over what was [`written`](Self::written), so that a fill
    /// whose disk fails can still verify the whole.
    pub fn abandon(self) -> (Hasher, u64) {
        (self.hasher.clone(), self.written)
    }

    /// Tells whether length and digest agree. Does not touch the disk.
    ///
    /// # Errors
    /// What disagrees, with the partial: one that is merely short can go on.
    #[expect(
        clippy::result_large_err,
        reason = "handed back whole once for each blob, not on a hot path"
    )]
    pub fn verify(self) -> Result<Verified, (Self, Mismatch)> {
        if self.written != self.content.len() {
            let mismatch = Mismatch::Length {
                written: self.written,
                declared: self.content.len(),
            };
            return Err((self, mismatch));
        }
        let expected = self.content.digest();
        let actual = self.hasher.clone().finish();
        if actual != expected {
            return Err((self, Mismatch::Digest { expected, actual }));
        }
        Ok(Verified(self))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.shared.remove_temporary(name, &self.content);
        }
    }
}

impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial")
            .field("digest", &self.content.digest())
            .field("declared", &self.content.len())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Verified {
    /// The digest of the content.
    pub fn digest(&self) -> Digest {
        self.0.digest()
    }

    /// Length in bytes.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a length in bytes, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.0.declared()
    }

    /// The file, for reading.
    pub fn reader(&self) -> PartialReader {
        self.0.reader()
    }

    pub(super) fn content(&self) -> &ContentFile {
        &self.0.content
    }

    /// Its name under `fills/`.
    pub(super) fn temporary_name(&self) -> &str {
        self.0.name.as_deref().unwrap_or_default()
    }

    /// The file has its final name now.
    pub(super) fn renamed(mut self) -> ContentFile {
        self.0.name = None;
        self.0.content.clone()
    }

    /// True if `shared` is the store that this was written to.
    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.0.shared, shared)
    }
}
