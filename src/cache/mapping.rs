//! The one place that maps a file into memory.
//!
//! A mapping may feed a socket, whose `write(2)` reports a bad page as an error, and nothing else:
//! hashing or sealing from it dies by SIGBUS when the disk fails or the file shrinks. It measured
//! 0.16 CPU-seconds per GiB on plain listeners, as `sendfile` does, in the hit bench.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::io::Errno;

use super::content::ContentFile;

/// The pages of one open blob, shared by everybody who reads it. Holds the blob open.
///
/// Only a socket may read what [`AsRef`] gives.
#[derive(Clone)]
pub struct Mapping {
    /// Keeps both the pages and the account of an unlinked file.
    content: ContentFile,
}

impl Mapping {
    /// Brings `range` into memory, waiting for the disk; what is there already costs next to nothing.
    ///
    /// # Errors
    /// The disk cannot give these pages: a socket would end abnormally there.
    pub fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.content
            .pages()
            .map_or(Ok(()), |pages| pages.populate(range))
    }

    /// `None` if `content` has not been mapped.
    pub(super) fn of(content: ContentFile) -> Option<Self> {
        content.pages().is_some().then_some(Self { content })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self.content.pages().map_or(&[], Pages::as_slice)
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("bytes", &self.as_ref().len())
            .finish()
    }
}

/// A mapped file, or nothing for an empty one.
#[derive(Debug)]
pub(super) struct Pages(Option<memmap2::Mmap>);

impl Pages {
    /// Maps the first `len` bytes of `file` for reading.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    pub(super) fn map(file: &File, len: u64) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self(None));
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: files under a final name are written once, before they get that name, by this
        // process alone (it holds the store's lock), in a directory closed to others. What remains,
        // a failing disk or an administrator truncating the file, makes pages unreadable; their only
        // reader is `write(2)`, which then reports EFAULT.
        let pages = unsafe { memmap2::MmapOptions::new().len(len).map(file) }?;
        Ok(Self(Some(pages)))
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let Some(pages) = &self.0 else {
            return Ok(());
        };
        // A mapping is addressable, so its offsets fit a usize.
        let end = range.end.min(pages.len() as u64) as usize;
        let start = (range.start as usize).min(end);
        match pages.advise_range(memmap2::Advice::PopulateRead, start, end - start) {
            Err(error) => match Errno::from_io_error(&error) {
                // Kernels before 5.14 do not know how; and that memory is short says nothing about the
                // file. The socket finds the pages, or ends there.
                Some(Errno::INVAL | Errno::NOMEM | Errno::AGAIN | Errno::INTR) => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
