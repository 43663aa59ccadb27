//! Export: what belongs to the images asked for, and writing it so that the same content is the same
//! bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::archive::{self, PIECE, Writer};
use super::search::Search;
use crate::cache::{Damage, Store, StoredManifest};
use crate::oci::layout::{INDEX_FILE, LAYOUT, LAYOUT_FILE, LayoutIndex, LayoutPath};
use crate::oci::{Digest, Hasher, ImageName, Platform, RepoKey};

/// An image to be exported.
#[derive(Clone, Debug)]
pub struct ExportImage {
    /// Where its records are.
    pub repo: RepoKey,
    /// Its name, as clients write it: what other tools will call it.
    pub name: ImageName,
}

/// What of the images is exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Of an index, only the manifests for these; all of them if empty.
    pub platforms: Vec<Platform>,
    /// What refers to the images, too: signatures, SBOMs.
    pub referrers: bool,
}

/// What a bundle will hold; everything was there when the plan was made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) layout: LayoutIndex,
    pub(super) manifests: BTreeMap<Digest, StoredManifest>,
    pub(super) blobs: BTreeMap<Digest, u64>,
}

/// What is missing for an export, a line each: nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Incomplete(pub Vec<String>);

/// Why a bundle was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A blob is not what its name says. It was taken out of the cache.
    #[error("{0} is damaged and was taken out of the cache")]
    Damaged(Digest),
    /// A blob was evicted, or removed, since the plan was made.
    #[error("{0} is not in the cache any more")]
    Gone(Digest),
    /// The disk of the cache.
    #[error("cannot read {0} in the cache")]
    Read(Digest, #[source] io::Error),
    /// Where the bundle goes.
    #[error("cannot write the bundle")]
    Write(#[source] io::Error),
}

impl Plan {
    /// Finds everything that belongs to `images`. Blocks on the disk.
    ///
    /// # Errors
    /// All that is missing, of all images.
    pub fn make(
        store: &Store,
        images: &[ExportImage],
        options: &ExportOptions,
    ) -> Result<Self, Incomplete> {
        let mut search = Search::new(store, options);
        for image in images {
            search.image(image);
        }
        search.end()
    }

    /// Number of images and of what refers to them.
    pub fn images(&self) -> usize {
        self.layout.manifests.len()
    }

    /// Number of blobs, manifests not among them.
    pub fn blobs(&self) -> usize {
        self.blobs.len()
    }

    /// What [`Self::write`] will write, in bytes.
    pub fn bytes(&self) -> u64 {
        let manifests = self.manifests.values().map(|m| m.bytes.len() as u64);
        let tops = [LAYOUT.len() as u64, self.layout.to_json().len() as u64];
        let folders = 2 * archive::occupied(0);
        let sizes = manifests.chain(tops).chain(self.blobs.values().copied());
        folders + sizes.map(archive::occupied).sum::<u64>() + archive::END
    }

    /// Writes the bundle: what tells of the rest comes first, so that who reads it as a stream knows
    /// what to expect.
    ///
    /// # Errors
    /// Where what was written has no end and is to be thrown away.
    pub fn write(&self, store: &Store, out: impl Write) -> Result<(), ExportError> {
        let mut writer = Writer::new(out);
        self.write_manifests(&mut writer)
            .map_err(ExportError::Write)?;
        for digest in self.blobs.keys() {
            copy(store, digest, &mut writer)?;
        }
        writer.finish().map_err(ExportError::Write)
    }

    fn write_manifests(&self, writer: &mut Writer<impl Write>) -> io::Result<()> {
        writer.file(LAYOUT_FILE, LAYOUT.as_bytes())?;
        writer.file(INDEX_FILE, &self.layout.to_json())?;
        writer.folder("blobs/")?;
        writer.folder("blobs/sha256/")?;
        for (digest, manifest) in &self.manifests {
            writer.file(&LayoutPath::of_blob(digest), &manifest.bytes)?;
        }
        Ok(())
    }
}

/// Copies a blob into the archive, hashing it on the way.
fn copy(
    store: &Store,
    digest: &Digest,
    writer: &mut Writer<impl Write>,
) -> Result<(), ExportError> {
    let opened = store.blob(digest);
    let blob = opened.map_err(|error| ExportError::Read(*digest, error.source))?;
    let blob = blob.ok_or(ExportError::Gone(*digest))?;
    let damaged = |damage| {
        store.quarantine(&blob, damage);
        ExportError::Damaged(*digest)
    };
    writer
        .begin(&LayoutPath::of_blob(digest), blob.len())
        .map_err(ExportError::Write)?;
    let (mut hasher, mut at, mut piece) = (Hasher::new(), 0, vec![0; PIECE]);
    while at < blob.len() {
        let read = match blob.content().read_at(at, &mut piece) {
            Ok(0) => return Err(damaged(Damage::Length(at))),
            Ok(read) => read,
            Err(error) => {
                store.quarantine(&blob, Damage::Unreadable);
                return Err(ExportError::Read(*digest, error));
            }
        };
        // A file that grew is not longer than it was for that: its length is in the header.
        let read = read.min(usize::try_from(blob.len() - at).unwrap_or(read));
        hasher.update(&piece[..read]);
        writer
            .out()
            .write_all(&piece[..read])
            .map_err(ExportError::Write)?;
        at += read as u64;
    }
    match hasher.finish() {
        actual if actual == *digest => store.mark_verified(&blob),
        actual => return Err(damaged(Damage::Digest(actual))),
    }
    writer.end(blob.len()).map_err(ExportError::Write)
}
