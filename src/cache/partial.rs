//! A blob on its way in: a temporary file under `fills/`, hashed from its beginning as it is written.
//!
//! The invariant: [`Partial::verify`] is the only maker of [`Verified`], and a file that is not
//! committed loses its name when its `Partial` goes, or is kept with its note to be gone on with.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::{Digest, Hasher};

use super::content::ContentFile;
use super::interrupted::Marks;
use super::spans::Spans;
use super::store::Shared;

/// How often it is noted what is in a file with holes, in bytes written; and how many notes there are at
/// most, whatever its size. What is not noted when the process is killed is fetched again.
const MARKED_EVERY: u64 = 2 * 1024 * 1024;
const MOST_MARKS: u64 = 512;

/// The open temporary file, for readers that follow it; stays valid after commit and after removal.
pub type PartialReader = ContentFile;

/// A blob being written. Dropping it keeps the file for [`Store::resume`](super::Store::resume), where
/// a note was laid beside it, and else removes it; its space is returned when the last reader has
/// closed it.
pub struct Partial {
    shared: Arc<Shared>,
    content: ContentFile,
    /// Name under `fills/`; `None` once the file has another name or none.
    name: Option<String>,
    hasher: Hasher,
    /// Bytes that are hashed; readers may read up to here.
    written: u64,
    /// What is in the file.
    present: Spans,
    /// What is noted of that, once there is anything beyond a hole: the file's length does not tell it.
    marks: Option<Marks>,
    /// Bytes that are in the file and not yet in the marks.
    unmarked: u64,
    /// What its owner noted; empty if the file is not to outlive this value.
    note: Bytes,
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
    pub(super) fn new(
        shared: Arc<Shared>,
        content: ContentFile,
        name: String,
        note: Bytes,
    ) -> Self {
        Self::again(shared, content, name, Spans::default(), false, note)
    }

    /// One that was begun before, with this in its file; `is_marked` if that was told by marks.
    pub(super) fn again(
        shared: Arc<Shared>,
        content: ContentFile,
        name: String,
        present: Spans,
        is_marked: bool,
        note: Bytes,
    ) -> Self {
        let marks = is_marked.then(Marks::default);
        Self {
            shared,
            content,
            name: Some(name),
            hasher: Hasher::new(),
            written: 0,
            present,
            marks,
            unmarked: 0,
            note,
        }
    }

    /// A file of which all `written` bytes are in `hasher`.
    pub(super) fn received(
        shared: Arc<Shared>,
        content: ContentFile,
        name: String,
        hasher: Hasher,
        written: u64,
    ) -> Self {
        let present = Spans::up_to(written);
        let mut partial = Self::again(shared, content, name, present, false, Bytes::new());
        partial.hasher = hasher;
        partial.written = written;
        partial
    }

    /// What is in the file, hashed or not.
    pub fn present(&self) -> &Spans {
        &self.present
    }

    /// Whether there is anything to be hashed that is in the file already.
    pub fn is_behind(&self) -> bool {
        self.present.end_from(self.written) > self.written
    }

    /// Hashes the next bytes that are in the file, as many as go into `room`. Bytes that come next by
    /// [`Self::write`] need not be hashed so, unless something else is there before them.
    ///
    /// # Errors
    /// The disk's; nothing is lost by trying again.
    pub fn catch_up(&mut self, room: &mut [u8]) -> io::Result<()> {
        let left = self.present.end_from(self.written) - self.written;
        // In range: no more than the length of the room.
        let length = left.min(room.len() as u64) as usize;
        let piece = &mut room[..length];
        let read = self.content.read_at(self.written, piece)?;
        if read < piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(piece);
        self.written += read as u64;
        Ok(())
    }

    /// Gives the file up: it is not to be gone on with.
    pub fn discard(mut self) {
        self.note = Bytes::new();
    }

    /// Writes and hashes `piece`, which comes next.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn append(&mut self, piece: &[u8]) -> Result<(), AppendError> {
        self.write(self.written, piece).map(drop)
    }

    /// Writes what is missing of `piece`, which begins at `offset`, and hashes it if it comes next; what lies
    /// ahead is hashed later, by [`Self::catch_up`]. What is in the file stays as it is, for it may be hashed
    /// already. Pieces of 256 KiB and more make cheap reads later.
    ///
    /// Returns the offsets that were hashed from `piece`: of these it holds what the file does.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of `piece` is then in the hash, so the caller can go on without the
    /// disk, see [`Self::abandon`].
    pub fn write(&mut self, offset: u64, piece: &[u8]) -> Result<Range<u64>, AppendError> {
        let declared = self.content.len();
        let end = offset.checked_add(piece.len() as u64);
        let Some(end) = end.filter(|end| *end <= declared) else {
            return Err(AppendError::TooLong { declared });
        };
        if offset > self.present.end_from(self.written) && self.marks.is_none() {
            // From here on the length of the file does not tell what is in it.
            self.marks = Some(Marks::default());
            self.mark()?;
        }
        let content = self.content.content();
        // In range: of offsets within the piece.
        let of = |span: &Range<u64>| {
            &piece[(span.start - offset) as usize..(span.end - offset) as usize]
        };
        let missing = self.present.gaps(offset..end);
        for gap in &missing {
            if let Err(error) = content.file.write_all_at(of(gap), gap.start) {
                self.shared.write_failed(&error);
                return Err(AppendError::Disk(error));
            }
            content.space.allocated(gap.end - gap.start);
            self.present.add(gap.clone());
            self.unmarked += gap.end - gap.start;
        }
        if self.marks.is_some() && self.unmarked >= MARKED_EVERY.max(declared / MOST_MARKS) {
            self.mark()?;
        }
        // Last, so that what is refused is in no hash.
        let Some(next) = missing.into_iter().find(|gap| gap.start == self.written) else {
            return Ok(offset..offset);
        };
        self.hasher.update(of(&next));
        self.written = next.end;
        Ok(next)
    }

    /// Notes what is in the file, if it may be gone on with at all.
    fn mark(&mut self) -> Result<(), AppendError> {
        let (Some(marks), Some(name)) = (&mut self.marks, &self.name) else {
            return Ok(());
        };
        if self.note.is_empty() {
            return Ok(());
        }
        self.unmarked = 0;
        let marked = marks.add(&self.shared.layout, name, &self.present);
        marked.map_err(|error| {
            self.shared.write_failed(&error);
            AppendError::Disk(error)
        })
    }

    /// The digest the content is to have.
    pub fn digest(&self) -> Digest {
        self.content.digest()
    }

    /// The length the content is to have, in bytes.
    pub fn declared(&self) -> u64 {
        self.content.len()
    }

    /// Bytes written without a hole and hashed so far; readers may read up to here.
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
        let hashed = (self.hasher.clone(), self.written);
        self.discard();
        hashed
    }

    /// Tells whether length and digest agree. Does not touch the disk.
    ///
    /// # Errors
    /// What disagrees, with the partial: one that is merely short can go on.
    #[expect(
        clippy::result_large_err,
        reason = "handed back whole once for each blob, not on a hot path"
    )]
    pub fn verify(mut self) -> Result<Verified, (Self, Mismatch)> {
        if self.written != self.content.len() {
            let mismatch = Mismatch::Length {
                written: self.written,
                declared: self.content.len(),
            };
            return Err((self, mismatch));
        }
        // Whole: it is committed or it goes, and there is nothing to go on with.
        self.note = Bytes::new();
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
        let Some(name) = self.name.take() else {
            return;
        };
        if self.note.is_empty() || self.present.is_empty() {
            self.shared.remove_temporary(name, &self.content);
        } else {
            let note = std::mem::take(&mut self.note);
            let present = std::mem::take(&mut self.present);
            self.shared
                .suspend(name, &self.content, present, self.marks.is_some(), note);
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
