//! Reading a repository's log, as far as the disk gives it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use rustix::io::Errno;

use super::LOG;
use crate::cache::content::read_at;
use crate::cache::frames::Frames;
use crate::cache::layout;
use crate::oci::Digest;

/// What a disk gives at once, or does not, in bytes.
const PLACE: usize = 4096;

/// The log in `directory`, if there is one. Places of it that cannot be read are zeros, which are damage
/// like any other.
///
/// # Errors
/// The disk's, where it is more than some places.
pub(super) fn read(directory: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let file = match layout::open_file(directory, LOG) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let read = |offset, piece: &mut [u8]| read_at(&file, offset, piece);
    read_around(metadata.len(), read).map(Some)
}

fn read_around(
    len: u64,
    read: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    match read(0, &mut bytes) {
        Ok(read) => bytes.truncate(read),
        Err(error) if is_of_the_medium(&error) => {
            let mut lost = 0;
            for (n, place) in bytes.chunks_mut(PLACE).enumerate() {
                match read((n * PLACE) as u64, place) {
                    Ok(_) => {}
                    // Where most is not to be had it is the disk that fails, and may come back.
                    Err(error) if is_of_the_medium(&error) && 2 * lost * PLACE < len => {
                        place.fill(0);
                        lost += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            if 2 * lost * PLACE >= len {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    Ok(bytes)
}

/// How many stretches of the log in `directory` do not check; 0 if there is none.
///
/// # Errors
/// The disk's.
pub(in crate::cache) fn damaged(directory: &OwnedFd) -> io::Result<usize> {
    let Some(bytes) = read(directory)? else {
        return Ok(0);
    };
    let Some(mut frames) = Frames::read(&bytes) else {
        return Ok(1);
    };
    frames.by_ref().for_each(drop);
    Ok(frames.skipped())
}

/// The body of a manifest; `None` if it is not what it was any more.
///
/// # Errors
/// The disk's.
pub(super) fn read_body(
    file: &File,
    offset: u64,
    len: usize,
    digest: &Digest,
) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; len];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok((Digest::of(&bytes) == *digest).then(|| bytes.into())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the disk says that it cannot read what is asked for, rather than that it is not there.
pub(super) fn is_of_the_medium(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `content` from a disk on which `bad` places cannot be read.
    fn read_from(content: &[u8], bad: &[usize]) -> io::Result<Vec<u8>> {
        read_around(content.len() as u64, |offset, piece| {
            let from = usize::try_from(offset).unwrap();
            let asked = from..from + piece.len();
            let is_asked =
                |place: &usize| place * PLACE < asked.end && (place + 1) * PLACE > asked.start;
            if bad.iter().any(is_asked) {
                return Err(Errno::IO.into());
            }
            piece.copy_from_slice(&content[asked]);
            Ok(piece.len())
        })
    }

    #[test]
    fn d08_places_that_cannot_be_read_cost_what_is_in_them() {
        let content: Vec<u8> = (0..10 * PLACE + 7).map(|n| (n % 251) as u8).collect();
        assert_eq!(read_from(&content, &[]).unwrap(), content);
        let read = read_from(&content, &[0, 3, 10]).unwrap();
        assert_eq!(read.len(), content.len());
        for (n, (place, expected)) in read.chunks(PLACE).zip(content.chunks(PLACE)).enumerate() {
            match n {
                0 | 3 | 10 => assert!(place.iter().all(|byte| *byte == 0), "{n}"),
                _ => assert_eq!(place, expected, "{n}"),
            }
        }
    }

    #[test]
    fn d08_a_disk_that_gives_next_to_nothing_says_nothing_of_a_log() {
        let content = vec![7; 10 * PLACE];
        read_from(&content, &[0, 1, 2, 3, 4, 5]).unwrap_err();
        read_from(&content[..PLACE], &[0]).unwrap_err();
        assert!(read_from(&[], &[0]).unwrap().is_empty());
    }

    #[test]
    fn a_log_longer_than_memory_is_an_error() {
        read_around(u64::MAX / 4, |_, piece| Ok(piece.len())).unwrap_err();
    }
}
