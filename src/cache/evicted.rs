//! Which blobs went before the log of their repository said on disk that their image does not stay.
//!
//! Who waits for room does not wait until the logs of all repositories are synced, so for some tenths of a
//! second the records of what was evicted are gone only in memory. This note, synced before the files go,
//! is what a kill or a power cut leaves to the next process, which forgets the records then. It is one
//! small sync for all that goes together.
//!
//! The file is a row of digests, of 32 bytes each. Zeros are no digest: a place is used again rather than
//! cut off, so that there is one when the disk is full. Whatever else is in there harms nobody, as only
//! what is not on disk is forgotten.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use crate::oci::Digest;

use super::{layout, lock};

const NAME: &str = "evicted";

const LEN: usize = 32;

/// Longest file that is read back, in bytes: a million blobs.
const MAX: u64 = (LEN as u64) << 20;

/// The note of one store.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    /// From earlier runs, whose records are still to be forgotten.
    left: Vec<Digest>,
    /// Of this run; their records are forgotten and not all of that is on disk.
    noted: Vec<Digest>,
    /// Places in the file.
    places: usize,
}

impl Evicted {
    /// Notes durably that these go now. Their records are forgotten and queued to be written.
    ///
    /// # Errors
    /// The disk's. Nothing is lost by it but what a kill or a power cut costs.
    pub(super) fn note(&self, root: &OwnedFd, digests: &[Digest]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.open(root)?;
        let at = state.count();
        state.noted.extend_from_slice(digests);
        state.write(at, digests)?;
        state.sync()
    }

    /// How many are noted in this run: what [`Self::settle`] is told once all records that were queued by
    /// now are on disk.
    pub(super) fn mark(&self) -> usize {
        lock(&self.state).noted.len()
    }

    /// The records of the first `mark` are on disk, so nobody needs to be told of these any more. Not
    /// synced.
    ///
    /// # Errors
    /// The disk's. What stays in the file is done once more after a restart, which harms nobody.
    pub(super) fn settle(&self, mark: usize) -> io::Result<()> {
        let mut state = lock(&self.state);
        if mark == 0 {
            return Ok(());
        }
        state.noted.drain(..mark);
        // What moves goes to an earlier place, which is written first: cut short, it is in one of them.
        let all: Vec<Digest> = state.left.iter().chain(&state.noted).copied().collect();
        state.write(0, &all)
    }

    /// What earlier runs left.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn left(&self, root: &OwnedFd) -> io::Result<Vec<Digest>> {
        let mut state = lock(&self.state);
        if let Err(error) = state.open_if_there(root) {
            return match error.kind() {
                io::ErrorKind::NotFound => Ok(Vec::new()),
                _ => Err(error),
            };
        }
        Ok(state.left.clone())
    }

    /// The records of all that was left are forgotten, and queued to be written.
    pub(super) fn left_is_forgotten(&self) {
        let state = &mut *lock(&self.state);
        state.noted.append(&mut state.left);
    }
}

impl State {
    fn count(&self) -> usize {
        self.left.len() + self.noted.len()
    }

    fn open(&mut self, root: &OwnedFd) -> io::Result<()> {
        match self.open_if_there(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.file = Some(layout::create_file(root, NAME)?);
                Ok(rustix::fs::fsync(root)?)
            }
            opened => opened,
        }
    }

    fn open_if_there(&mut self, root: &OwnedFd) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let file = layout::open_for_append(root, NAME)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        (&file).take(MAX).read_to_end(&mut bytes)?;
        let (places, _torn) = bytes.as_chunks::<LEN>();
        self.places = places.len();
        let digests = places.iter().filter(|place| **place != [0; LEN]);
        self.left = digests.map(|place| Digest::from_sha256(*place)).collect();
        self.file = Some(file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// Writes these from place `at` on, and zeros behind them where the file is longer.
    fn write(&mut self, at: usize, digests: &[Digest]) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut bytes: Vec<u8> = digests.iter().flat_map(|d| *d.as_bytes()).collect();
        let end = at + digests.len();
        bytes.resize(bytes.len() + self.places.saturating_sub(end) * LEN, 0);
        file.write_all_at(&bytes, (at * LEN) as u64)?;
        self.places = self.places.max(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn root(dir: &tempfile::TempDir) -> OwnedFd {
        File::open(dir.path()).unwrap().into()
    }

    #[test]
    fn what_is_not_settled_is_left_to_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        let first = Evicted::default();
        assert_eq!(first.left(&root).unwrap(), []);
        first.note(&root, &[digest(0), digest(1)]).unwrap();
        let mark = first.mark();
        first.note(&root, &[digest(2)]).unwrap();
        first.settle(mark).unwrap();

        let second = Evicted::default();
        // Before anybody has asked what was left.
        second.note(&root, &[digest(3)]).unwrap();
        assert_eq!(second.left(&root).unwrap(), [digest(2)]);
        second.settle(second.mark()).unwrap();

        let third = Evicted::default();
        assert_eq!(third.left(&root).unwrap(), [digest(2)]);
        third.left_is_forgotten();
        third.settle(third.mark()).unwrap();
        assert_eq!(Evicted::default().left(&root).unwrap(), []);
    }

    #[test]
    fn a_torn_end_and_what_is_no_file_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut bytes = digest(7).as_bytes().to_vec();
        bytes.extend([1; 20]);
        std::fs::write(&path, bytes).unwrap();
        let left = Evicted::default().left(&root(&dir)).unwrap();
        assert_eq!(left, [digest(7)]);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        Evicted::default().left(&root(&dir)).unwrap_err();
    }
}
