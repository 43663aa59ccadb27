//! A blob that arrives before anybody says what it is: the bytes of a push, kept beside their way upstream.
//!
//! It becomes a blob only through [`Candidate::verify`], which hands its hash and file to
//! [`Partial::verify`](super::Partial::verify), and until then it is a temporary file that no restart finds
//! again. Its length is not known, so its room is reserved as it grows; the room of blobs is evicted for it
//! as for any download.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::oci::{Digest, Hasher};

use super::content::ContentFile;
use super::layout::{self, FILLS};
use super::partial::{Mismatch, Partial, Verified};
use super::records::Records;
use super::space::Space;
use super::store::{BeginError, Shared, Store, temporary_name};

/// By how much the reservation grows, in bytes: as much again, within these.
const LEAST_GROWTH: u64 = 1024 * 1024;
const MOST_GROWTH: u64 = 64 * 1024 * 1024;

/// What stands for the digest in its name. Nothing hashes to it.
const NO_DIGEST: [u8; 32] = [0; 32];

/// See the module. Dropping it removes the file.
pub struct Candidate {
    shared: Arc<Shared>,
    records: Records,
    hasher: Hasher,
    written: u64,
    /// `None` once it has become something else.
    open: Option<Open>,
}

struct Open {
    file: File,
    name: String,
    space: Space,
    reserved: u64,
}

impl Store {
    /// Begins to keep bytes of which neither length nor digest is known.
    ///
    /// # Errors
    /// See [`BeginError`]; nothing is left behind.
    pub fn begin_candidate(&self) -> Result<Candidate, BeginError> {
        let shared = self.shared();
        let space = shared.reserve(LEAST_GROWTH, self.records())?;
        let number = shared.temporaries.fetch_add(1, Ordering::Relaxed);
        let name = temporary_name(&Digest::from_sha256(NO_DIGEST), shared.run, number);
        let created = shared
            .layout
            .make_directory(&FILLS)
            .and_then(|fills| layout::create_file(&fills, &name));
        let file = created.map_err(|error| {
            // No file holds these bytes.
            space.unlinked();
            shared.write_failed(&error);
            BeginError::Disk(error)
        })?;
        Ok(Candidate {
            shared: Arc::clone(shared),
            records: self.records().clone(),
            hasher: Hasher::new(),
            written: 0,
            open: Some(Open {
                file,
                name,
                space,
                reserved: LEAST_GROWTH,
            }),
        })
    }
}

impl Candidate {
    /// Writes and hashes the next bytes.
    ///
    /// # Errors
    /// See [`BeginError`]; `piece` is not in the hash then, so that the caller can go on without the disk,
    /// see [`Self::abandon`].
    pub fn append(&mut self, piece: &[u8]) -> Result<(), BeginError> {
        let len = piece.len() as u64;
        let Some(open) = &mut self.open else {
            return Err(BeginError::Disk(io::ErrorKind::BrokenPipe.into()));
        };
        let end = self.written.saturating_add(len);
        if end > open.reserved {
            let growth = open.reserved.clamp(LEAST_GROWTH, MOST_GROWTH);
            let growth = growth.max(end - open.reserved);
            open.space.grow(self.shared.reserve(growth, &self.records)?);
            open.reserved += growth;
        }
        if let Err(error) = open.file.write_all_at(piece, self.written) {
            self.shared.write_failed(&error);
            return Err(BeginError::Disk(error));
        }
        open.space.allocated(len);
        // Last, so that what is refused is in no hash.
        self.hasher.update(piece);
        self.written = end;
        Ok(())
    }

    /// The digest of what was written.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Gives the file up; returns the hash over what was written.
    pub fn abandon(mut self) -> Hasher {
        std::mem::take(&mut self.hasher)
    }

    /// Tells whether what was written is `digest`. Does not touch the disk, unless it is not.
    ///
    /// # Errors
    /// What it is instead; the file is gone then.
    pub fn verify(mut self, digest: Digest) -> Result<Verified, Mismatch> {
        let Some(mut open) = self.open.take() else {
            return Err(Mismatch::Length {
                written: 0,
                declared: self.written,
            });
        };
        open.space.shrink_to(self.written);
        let content = ContentFile::new(open.file, digest, self.written, open.space);
        let hasher = std::mem::take(&mut self.hasher);
        let shared = Arc::clone(&self.shared);
        let partial = Partial::received(shared, content, open.name, hasher, self.written);
        partial.verify().map_err(|(_, mismatch)| mismatch)
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            let digest = Digest::from_sha256(NO_DIGEST);
            let content = ContentFile::new(open.file, digest, open.reserved, open.space);
            self.shared.remove_temporary(open.name, &content);
        }
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
