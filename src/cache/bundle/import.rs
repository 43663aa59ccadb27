//! Import: an archive read once from its beginning to its end, and what is whole in it applied.
//!
//! Blobs are committed as they come, so an import that was cut off goes on from there when it is
//! started again. Records are written last, an image at a time and only of one that is whole; before
//! that nobody can be served any of it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::time::SystemTime;

use bytes::Bytes;

use super::apply::Leases;
use super::archive::{PIECE, each_file};
use super::contents::{Contents, Known, Role, TooMany};

use crate::cache::{AppendError, BeginError, Blob, CommitError, Damage, Store};
use crate::oci::layout::{LayoutImage, LayoutIndex, LayoutPath, ParseLayoutError, check_layout};
use crate::oci::{Digest, Hasher, Platform, RepoKey, Tag};

/// Most bytes of the two documents that a layout begins with.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

/// How an archive is taken in.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Of an index, only the manifests for these; all that it was exported for if empty.
    pub platforms: Vec<Platform>,
    /// Longest manifest, in bytes.
    pub max_manifest_bytes: u64,
    /// When tags and holdings count as checked.
    pub at: SystemTime,
}

/// Where an image of an archive goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is called in messages.
    pub name: String,
    /// The repository that holds it from then on.
    pub repo: RepoKey,
    /// The tag that names it from then on.
    pub tag: Option<Tag>,
}

/// Tells where an image goes, or why nobody can know.
pub type Placing<'a> = dyn Fn(&LayoutIndex, &LayoutImage) -> Result<Place, String> + 'a;

/// What became of one image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// What it is called; its digest, where nobody can know.
    pub name: String,
    /// Its manifest.
    pub digest: Digest,
    /// What the tag named before, where that was something else.
    pub replaced: Option<Digest>,
    /// Why nothing of it was applied, where nothing was.
    pub failed: Option<String>,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of files read from the archive.
    pub read_bytes: u64,
    /// Blobs that the store did not have.
    pub new_blobs: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Blobs that it had.
    pub known_blobs: u64,
    /// Their bytes.
    pub known_bytes: u64,
}

/// Why an archive was not taken in. No record was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read to its end, or is no archive.
    #[error("the bundle cannot be read")]
    Archive(#[source] io::Error),
    /// It has something in it that a layout does not have.
    #[error("the bundle is refused for {name:?}: {why}")]
    Refused {
        /// The name of the entry.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is no image layout.
    #[error("this is no bundle: {0}")]
    NotALayout(&'static str),
    /// One of the documents at the top is wrong.
    #[error("{name} of the bundle")]
    Document {
        /// The file.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: ParseLayoutError,
    },
    /// The disk of the cache.
    #[error("cannot {step} the cache")]
    Disk {
        /// What was done.
        step: &'static str,
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// Who wanted it has left.
    #[error("the import was broken off")]
    Stopped,
}

/// Takes an archive in and applies every image of it that is whole, telling of each. `going` is told how
/// far it is and ends the import by false. Blocks on the disk.
///
/// # Errors
/// Where the archive itself cannot be believed. Then no record is written.
pub fn import(
    store: &Store,
    input: impl Read,
    place: &Placing<'_>,
    options: &ImportOptions,
    mut going: impl FnMut(&Tally) -> bool,
) -> Result<(Vec<Imported>, Tally), ImportError> {
    let mut import = Import {
        store,
        options,
        contents: Contents::new(options.platforms.clone(), options.max_manifest_bytes),
        seen: HashSet::new(),
        leases: Leases::new(),
        has_layout: false,
        has_docker_manifest: false,
        tally: Tally::default(),
        going: &mut going,
    };
    each_file(input, |path, size, content| {
        import.file(path, size, content)
    })?;
    import.check_layout()?;
    let images = import.apply(place)?;
    Ok((images, import.tally))
}

pub(super) struct Import<'a> {
    pub(super) store: &'a Store,
    pub(super) options: &'a ImportOptions,
    pub(super) contents: Contents,
    /// Blobs that came.
    seen: HashSet<Digest>,
    leases: Leases,
    has_layout: bool,
    has_docker_manifest: bool,
    tally: Tally,
    going: &'a mut dyn FnMut(&Tally) -> bool,
}

impl Import<'_> {
    fn file(
        &mut self,
        path: LayoutPath,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), ImportError> {
        let twice = |name: String| ImportError::Refused {
            name,
            why: "it comes twice".to_owned(),
        };
        match path {
            LayoutPath::Layout => {
                let bytes = document("oci-layout", size, content)?;
                let name = "oci-layout";
                check_layout(&bytes).map_err(|source| ImportError::Document { name, source })?;
                if std::mem::replace(&mut self.has_layout, true) {
                    return Err(twice(name.to_owned()));
                }
            }
            LayoutPath::Index => {
                let bytes = document("index.json", size, content)?;
                let name = "index.json";
                let index = LayoutIndex::parse(&bytes)
                    .map_err(|source| ImportError::Document { name, source })?;
                if self.contents.index().is_some() {
                    return Err(twice(name.to_owned()));
                }
                self.contents.put_index(index);
            }
            LayoutPath::Blob(digest) => {
                if !self.seen.insert(digest) {
                    return Err(twice(LayoutPath::of_blob(&digest)));
                }
                self.entry(digest, size, content)?;
            }
            LayoutPath::DockerManifest => self.has_docker_manifest = true,
            LayoutPath::Other => {}
        }
        Ok(())
    }

    fn entry(
        &mut self,
        digest: Digest,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), ImportError> {
        match self.contents.role(&digest, size) {
            Role::None => Ok(()),
            Role::Blob => self.blob(digest, size, content),
            Role::Either => {
                let bytes = read(size, content)?;
                self.advance(size)?;
                let actual = Digest::of(&bytes);
                if actual != digest {
                    self.contents.put_blob(digest, damaged(actual));
                    return Ok(());
                }
                let kept = self.contents.keep(digest, &bytes);
                let kept = kept.map_err(|TooMany| ImportError::Refused {
                    name: LayoutPath::of_blob(&digest),
                    why: "there are too many manifests".to_owned(),
                })?;
                match kept {
                    true => Ok(()),
                    false => self.blob(digest, size, &mut &*bytes),
                }
            }
        }
    }

    /// Takes a blob into the store, or reads over one that the store has, and notes what came of it.
    pub(super) fn blob(
        &mut self,
        digest: Digest,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), ImportError> {
        let known = match self.believed(&digest).filter(|blob| blob.len() == size) {
            Some(blob) => self.compare(blob, content)?,
            None => self.store(digest, size, content)?,
        };
        self.contents.put_blob(digest, known);
        Ok(())
    }

    /// A blob that the store has and that is what its name says, hashed anew where that is in doubt: as
    /// after a kill, which leaves blobs behind whose stamps are not written.
    pub(super) fn believed(&self, digest: &Digest) -> Option<Blob> {
        // One that cannot be opened is written anew.
        let blob = self.store.blob(digest).ok().flatten()?;
        if blob.stamped() {
            return Some(blob);
        }
        let damage = match hash(&blob) {
            Ok(actual) if actual == *digest => {
                self.store.mark_verified(&blob);
                return Some(blob);
            }
            Ok(actual) => Damage::Digest(actual),
            Err(_) => Damage::Unreadable,
        };
        self.store.quarantine(&blob, damage);
        None
    }

    fn compare(&mut self, blob: Blob, content: &mut dyn Read) -> Result<Known, ImportError> {
        let (mut hasher, mut left) = (Hasher::new(), blob.len());
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let length = self.piece(&mut piece, left, content)?;
            hasher.update(&piece[..length]);
            left -= length as u64;
        }
        let actual = hasher.finish();
        if actual != blob.digest() {
            return Ok(damaged(actual));
        }
        self.tally.known_blobs += 1;
        self.tally.known_bytes += blob.len();
        let known = Known::Stored(blob.len());
        self.leases.hold(blob);
        Ok(known)
    }

    fn store(
        &mut self,
        digest: Digest,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<Known, ImportError> {
        let mut partial = match self.store.begin(digest, size, &[]) {
            Ok(partial) => partial,
            Err(error @ (BeginError::TooLarge { .. } | BeginError::NoRoom { .. })) => {
                return Ok(Known::Bad(error.to_string()));
            }
            Err(BeginError::Disk(source)) => return Err(disk("write to", source)),
        };
        let mut piece = vec![0; PIECE];
        while partial.written() < size {
            let length = self.piece(&mut piece, size - partial.written(), content)?;
            match partial.append(&piece[..length]) {
                Ok(()) => {}
                Err(AppendError::Disk(source)) => return Err(disk("write to", source)),
                Err(AppendError::TooLong { .. }) => break,
            }
        }
        let verified = match partial.verify() {
            Ok(verified) => verified,
            Err((_, mismatch)) => return Ok(Known::Bad(mismatch.to_string())),
        };
        match self.store.commit(verified) {
            Ok(blob) => self.leases.hold(blob),
            Err(CommitError::Disk { source, .. }) => return Err(disk("write to", source)),
            Err(error @ (CommitError::Length { .. } | CommitError::Foreign)) => {
                return Err(disk("write to", io::Error::other(error)));
            }
        }
        self.tally.new_blobs += 1;
        self.tally.new_bytes += size;
        Ok(Known::Stored(size))
    }

    /// The next piece of a file of which `left` bytes are left.
    fn piece(
        &mut self,
        piece: &mut [u8],
        left: u64,
        content: &mut dyn Read,
    ) -> Result<usize, ImportError> {
        // In range: no more than the length of the piece.
        let length = left.min(piece.len() as u64) as usize;
        content
            .read_exact(&mut piece[..length])
            .map_err(ImportError::Archive)?;
        self.advance(length as u64)?;
        Ok(length)
    }

    fn advance(&mut self, bytes: u64) -> Result<(), ImportError> {
        self.tally.read_bytes += bytes;
        match (self.going)(&self.tally) {
            true => Ok(()),
            false => Err(ImportError::Stopped),
        }
    }

    fn check_layout(&self) -> Result<(), ImportError> {
        let why = match self.contents.index() {
            None if self.has_docker_manifest => {
                "it is what older dockers save, which has no manifests \
                 (skopeo copy docker-archive:FILE oci-archive:BUNDLE makes one of it)"
            }
            None => "there is no index.json in it",
            Some(_) if !self.has_layout => "there is no oci-layout in it",
            Some(index) if index.manifests.is_empty() => "there is no image in it",
            Some(_) => return Ok(()),
        };
        Err(ImportError::NotALayout(why))
    }
}

fn hash(blob: &Blob) -> io::Result<Digest> {
    let (mut hasher, mut at, mut piece) = (Hasher::new(), 0, vec![0; PIECE]);
    while at < blob.len() {
        match blob.content().read_at(at, &mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                hasher.update(&piece[..length]);
                at += length as u64;
            }
        }
    }
    Ok(hasher.finish())
}

fn damaged(actual: Digest) -> Known {
    Known::Bad(format!("its content is {actual}"))
}

pub(super) fn disk(step: &'static str, source: io::Error) -> ImportError {
    ImportError::Disk { step, source }
}

fn document(name: &'static str, size: u64, content: &mut dyn Read) -> Result<Bytes, ImportError> {
    if size > MAX_DOCUMENT {
        return Err(ImportError::Refused {
            name: name.to_owned(),
            why: format!("it is longer than {MAX_DOCUMENT} bytes"),
        });
    }
    read(size, content)
}

/// Reads a small file into memory.
fn read(size: u64, content: &mut dyn Read) -> Result<Bytes, ImportError> {
    let mut bytes = Vec::new();
    content
        .take(size)
        .read_to_end(&mut bytes)
        .map_err(ImportError::Archive)?;
    if bytes.len() as u64 != size {
        return Err(ImportError::Archive(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes.into())
}
