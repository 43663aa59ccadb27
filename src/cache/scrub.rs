//! Hashing everything that is stored again: what finds rot that leaves a file's stamp alone.
//!
//! A [`Scrub`] is one pass over the store, a step at a time: the blobs in the order of their digests,
//! then the repositories' logs. Between two steps it holds no file and no lock, so it may be left
//! alone for as long as its owner likes, keeps nothing from eviction, and can be begun again behind any
//! digest. What the page cache holds stays there, and what is read for the scrub alone leaves it again.
//!
//! The invariant: **damage is told before the file is taken away**, which the step after it does, so
//! that whoever has to remember it can do so first.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use rustix::fs::Advice;

use crate::oci::{Digest, Hasher, RepoKey};

use super::content::{Identity, read_at, read_now};
use super::janitor::names_in;
use super::layout::{self, BLOBS, REPOSITORIES};
use super::store::{Damage, Shared, Store};

mod looking;
mod progress;

use looking::Looked;
pub use progress::ScrubProgress;

/// Most that one step reads, in bytes.
const PIECE: usize = 256 << 10;

/// So many files one after the other that cannot be read are a disk that fails, not files that do.
const FAILING: usize = 4;

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// So many bytes of a blob were read; it is not done yet.
    Read(u64),
    /// The blob is what its name says.
    Sound {
        /// Its name.
        digest: Digest,
        /// What of it was read in this last step, in bytes.
        read: u64,
    },
    /// The blob is damaged, and will be gone with the next step.
    Damaged {
        /// Its name.
        digest: Digest,
        /// In which way.
        damage: Damage,
    },
    /// It was removed or replaced while it was being read.
    Gone(Digest),
    /// Not a file of the store; it is left alone. Below the store's directory.
    Foreign(String),
    /// A directory or a file that cannot be read at the moment. Nothing is known against what is in
    /// it.
    Unreadable {
        /// Below the store's directory.
        path: String,
        /// The disk's word.
        error: String,
    },
    /// A repository's log was checked.
    Log {
        /// The repository.
        repository: RepoKey,
        /// Stretches of it that did not check. What is readable is kept, and the log written anew.
        damaged: usize,
    },
    /// One file after the other cannot be read: the pass is over, and none of them is held against
    /// its file.
    Failing,
}

/// One pass over the store. Every step blocks on the disk.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    position: Option<Digest>,
    /// The next directory to list.
    shard: Option<u8>,
    /// The blobs of the directory listed last that are still to be read.
    names: VecDeque<Digest>,
    /// Known, and not yet told.
    told: VecDeque<Scrubbed>,
    current: Option<Examination>,
    /// The last files that could not be read, one after the other.
    unreadable: Vec<Condemned>,
    /// Damaged, and not yet told.
    condemned: VecDeque<Condemned>,
    /// Told, and to be taken away.
    leaving: Option<Condemned>,
    /// `None` until the blobs are done.
    logs: Option<VecDeque<RepoKey>>,
    piece: Vec<u8>,
}

/// A damaged file.
#[derive(Debug)]
struct Condemned {
    digest: Digest,
    /// `None` for what is no file, which the next commit puts out of its way.
    identity: Option<Identity>,
    damage: Damage,
}

impl Store {
    /// A pass over everything stored whose digest comes after `after`, or over all.
    pub fn scrub(&self, after: Option<Digest>) -> Scrub {
        Scrub {
            store: self.clone(),
            position: after,
            shard: Some(after.map_or(0, |after| after.as_bytes()[0])),
            names: VecDeque::new(),
            told: VecDeque::new(),
            current: None,
            unreadable: Vec::new(),
            condemned: VecDeque::new(),
            leaving: None,
            logs: None,
            piece: Vec::new(),
        }
    }
}

impl Iterator for Scrub {
    type Item = Scrubbed;

    /// One step, which reads 256 KiB or one log at most; `None` when the pass is over.
    fn next(&mut self) -> Option<Scrubbed> {
        if let Some(leaving) = self.leaving.take() {
            self.shared().condemn(&leaving);
            self.done(leaving.digest);
        }
        loop {
            if let Some(told) = self.told.pop_front() {
                return Some(told);
            }
            if let Some(condemned) = self.condemned.pop_front() {
                let Condemned { digest, damage, .. } = condemned;
                self.leaving = Some(condemned);
                return Some(Scrubbed::Damaged { digest, damage });
            }
            if let Some(examination) = self.current.take() {
                if let Some(told) = self.examine(examination) {
                    return Some(told);
                }
            } else if let Some(digest) = self.names.pop_front() {
                self.look(digest);
            } else if let Some(shard) = self.shard {
                self.shard = shard.checked_add(1);
                self.list(shard);
            } else if !self.unreadable.is_empty() {
                // Too few to tell that it is the disk.
                self.condemned.extend(self.unreadable.drain(..));
            } else {
                return self.next_log();
            }
        }
    }
}

impl Scrub {
    /// The last blob that is done, and all before it: where to begin again.
    pub fn position(&self) -> Option<Digest> {
        self.position
    }

    fn shared(&self) -> &Shared {
        self.store.shared()
    }

    fn done(&mut self, digest: Digest) {
        // What comes after a file that is still to be judged is done once that is.
        if self.unreadable.is_empty() && self.condemned.is_empty() {
            self.position = self.position.max(Some(digest));
        }
    }

    /// Notes the blobs of one directory, and tells of what is none.
    fn list(&mut self, first_byte: u8) {
        let name = layout::shard_name(first_byte);
        let path = |name: &str| format!("{}/{}/{name}", BLOBS[0], BLOBS[1]);
        let listed = self
            .shared()
            .layout
            .directory(&[BLOBS[0], BLOBS[1], &name])
            .and_then(|shard| names_in(&shard));
        let found = match listed {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return self.cannot_read(path(&name), &error),
        };
        let mut digests = Vec::with_capacity(found.len());
        for file in found {
            match Digest::from_hex(&file) {
                Ok(digest) if digest.as_bytes()[0] == first_byte => digests.push(digest),
                _ => {
                    let path = path(&format!("{name}/{file}"));
                    self.told.push_back(Scrubbed::Foreign(path));
                }
            }
        }
        // Nothing can be said of a store that cannot be seen.
        if self.shared().layout.directory(&BLOBS).is_ok() {
            self.shared().forget_missing(first_byte, &digests);
        }
        let after = self.position;
        digests.retain(|digest| after.is_none_or(|after| *digest > after));
        digests.sort_unstable();
        self.names = digests.into();
    }

    fn cannot_read(&mut self, path: String, error: &io::Error) {
        self.told.push_back(Scrubbed::Unreadable {
            path,
            error: error.to_string(),
        });
    }

    /// Looks at what has a blob's name.
    fn look(&mut self, digest: Digest) {
        let damaged = |identity, damage| Condemned {
            digest,
            identity,
            damage,
        };
        match self.shared().look(&digest) {
            Ok(Looked::File(identity)) => {
                self.current = Some(Examination::new(digest, identity));
            }
            Ok(Looked::OtherLength(identity)) => {
                let damage = Damage::Length(identity.size);
                self.condemned.push_back(damaged(Some(identity), damage));
            }
            Ok(Looked::NotAFile { was_stored: true }) => {
                self.condemned.push_back(damaged(None, Damage::NotAFile));
            }
            Ok(Looked::NotAFile { was_stored: false }) => {
                self.told.push_back(Scrubbed::Foreign(path_of(&digest)));
                self.done(digest);
            }
            Ok(Looked::Nothing) => self.done(digest),
            Err(error) => {
                self.cannot_read(path_of(&digest), &error);
                self.done(digest);
            }
        }
    }

    /// Reads on; `None` if there is nothing to tell but a damage.
    fn examine(&mut self, mut examination: Examination) -> Option<Scrubbed> {
        let Examination {
            digest, identity, ..
        } = examination;
        self.piece.resize(PIECE, 0);
        let file = match examination.open(self.store.shared()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.done(digest);
                return Some(Scrubbed::Gone(digest));
            }
            // As where descriptors are short: that says nothing about the file.
            Err(error) => {
                self.cannot_read(path_of(&digest), &error);
                self.done(digest);
                return None;
            }
        };
        let read = match examination.read(&file, &mut self.piece) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.done(digest);
                return Some(Scrubbed::Gone(digest));
            }
            Err(error) => return self.cannot_be_read(digest, identity, &error),
        };
        if examination.at < identity.size {
            self.current = Some(examination);
            return Some(Scrubbed::Read(read));
        }
        let actual = examination.hasher.finish();
        if actual != digest && !examination.is_second {
            // Once more, from the disk: what was wrong may have been the memory.
            self.current = Some(Examination::second(digest, identity));
            return Some(Scrubbed::Read(read));
        }
        // The disk reads, so what it did not read is damaged.
        self.condemned.extend(self.unreadable.drain(..));
        if actual != digest {
            self.condemned.push_back(Condemned {
                digest,
                identity: Some(identity),
                damage: Damage::Digest(actual),
            });
            return Some(Scrubbed::Read(read));
        }
        let confirmed = self.shared().confirm(&digest, identity);
        self.done(digest);
        Some(match confirmed {
            true => Scrubbed::Sound { digest, read },
            false => Scrubbed::Gone(digest),
        })
    }

    fn cannot_be_read(
        &mut self,
        digest: Digest,
        identity: Identity,
        error: &io::Error,
    ) -> Option<Scrubbed> {
        tracing::warn!(oci.digest = %digest, %error, "a cached blob cannot be read");
        self.unreadable.push(Condemned {
            digest,
            identity: Some(identity),
            damage: Damage::Unreadable,
        });
        if self.unreadable.len() < FAILING {
            return None;
        }
        self.shared().health.failed(error);
        self.unreadable.clear();
        self.names.clear();
        self.shard = None;
        self.logs = Some(VecDeque::new());
        Some(Scrubbed::Failing)
    }

    fn next_log(&mut self) -> Option<Scrubbed> {
        let records = self.store.records();
        let logs = self
            .logs
            .get_or_insert_with(|| records.repositories().into());
        let repository = logs.pop_front()?;
        Some(match records.check(&repository) {
            Ok(damaged) => Scrubbed::Log {
                repository,
                damaged,
            },
            // What is not written yet has no log.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Scrubbed::Log {
                repository,
                damaged: 0,
            },
            Err(error) => Scrubbed::Unreadable {
                path: format!("{REPOSITORIES}/{repository}"),
                error: error.to_string(),
            },
        })
    }
}

/// Below the store's directory.
fn path_of(digest: &Digest) -> String {
    let shard = layout::shard(digest);
    format!("{}/{}/{shard}/{}", BLOBS[0], BLOBS[1], digest.hex())
}

/// A blob being read.
#[derive(Debug)]
struct Examination {
    digest: Digest,
    identity: Identity,
    hasher: Hasher,
    at: u64,
    /// It was read to its end before, and was not what it should be.
    is_second: bool,
}

impl Examination {
    fn new(digest: Digest, identity: Identity) -> Self {
        Self {
            digest,
            identity,
            hasher: Hasher::new(),
            at: 0,
            is_second: false,
        }
    }

    fn second(digest: Digest, identity: Identity) -> Self {
        Self {
            is_second: true,
            ..Self::new(digest, identity)
        }
    }

    fn open(&self, shared: &Shared) -> io::Result<File> {
        let shard = shared.shard_directory(&self.digest)?;
        let file = layout::open_file(&shard, &self.digest.hex())?;
        // Nothing is read ahead, so what `read_now` finds is there for others' sake.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        if self.is_second && self.at == 0 {
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        }
        Ok(file)
    }

    /// Hashes the next piece and returns its length; `None` if the file is another one by now.
    fn read(&mut self, file: &File, piece: &mut [u8]) -> io::Result<Option<u64>> {
        let read = match read_now(file, self.at, piece)? {
            Some(read) if read > 0 => read,
            _ => self.read_from_disk(file, piece)?,
        };
        self.hasher.update(&piece[..read]);
        self.at += read as u64;
        // After the bytes were read, so that they were this file's.
        if Identity::of(&file.metadata()?) != self.identity {
            return Ok(None);
        }
        if read == 0 && self.at < self.identity.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(read as u64))
    }

    fn read_from_disk(&self, file: &File, piece: &mut [u8]) -> io::Result<usize> {
        let read = read_at(file, self.at, piece)?;
        let len = std::num::NonZeroU64::new(read as u64);
        if len.is_some() {
            let _ = rustix::fs::fadvise(file, self.at, len, Advice::DontNeed);
        }
        Ok(read)
    }
}
