//! Images as the store has them: what a manifest leads to, and how much of it is here.
//!
//! The invariant: only *stored* manifests are followed, and only within their own repository; what they
//! name and is not here is told as missing. Nothing is opened for reading and nothing counts as a use.
//! A walk visits each manifest once and [`MAX_MANIFESTS`] of them at most, whatever they name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::oci::{Descriptor, Digest, Manifest, Platform, RepoKey};

use super::lock;
use super::record::StoredManifest;
use super::store::Store;

/// Most manifests of one image that are looked at. Indexes in use name some dozens.
const MAX_MANIFESTS: usize = 4096;

/// A stored manifest and everything that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Every manifest that is reached, each once: the image's own first, then those that it names, then
    /// theirs.
    pub manifests: Vec<ImageManifest>,
    /// True if there is more to it than was looked at. It is not complete then.
    pub is_cut: bool,
}

/// A manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes: its own where it is stored, else as the index says that names it.
    pub size: u64,
    /// What it runs on, where an index tells. BuildKit gives its attestations `unknown/unknown`.
    pub platform: Option<Platform>,
    /// What it holds; `None` if it is not stored.
    pub content: Option<ImageContent>,
}

/// What a stored manifest holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageContent {
    /// The Content-Type it came with.
    pub media_type: Arc<str>,
    /// The manifests that an index names; all of them are among [`Image::manifests`].
    pub children: Vec<Digest>,
    /// Config and layers, each once. Foreign layers, which have `urls`, are not among them.
    pub blobs: Vec<ImageBlob>,
    /// The manifest that this one is about.
    pub subject: Option<Digest>,
}

/// A blob of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, as the manifest says.
    pub size: u64,
    /// Its type, as the manifest says.
    pub media_type: String,
    /// Whether it is on disk, with that length.
    pub is_stored: bool,
}

impl Image {
    /// The digest of the image's own manifest.
    pub fn digest(&self) -> Digest {
        self.manifests[0].digest
    }

    /// One of its manifests.
    pub fn manifest(&self, digest: &Digest) -> Option<&ImageManifest> {
        self.manifests.iter().find(|known| known.digest == *digest)
    }

    /// Whether every manifest is stored and every blob on disk: all platforms of an index.
    pub fn is_complete(&self) -> bool {
        !self.is_cut && self.is_complete_under(&self.digest())
    }

    /// Whether that holds of one of its manifests and what that leads to.
    pub fn is_complete_under(&self, digest: &Digest) -> bool {
        is_complete_under(&self.by_digest(), digest)
    }

    /// The manifests that an index names itself, with whether each is here with all it leads to; none
    /// for an image of one platform.
    pub fn children(&self) -> impl Iterator<Item = (&ImageManifest, bool)> {
        let by_digest = self.by_digest();
        let content = self.manifests[0].content.as_ref();
        let children = content.map_or([].as_slice(), |content| &content.children);
        children.iter().filter_map(move |digest| {
            let complete = is_complete_under(&by_digest, digest);
            Some((*by_digest.get(digest)?, complete))
        })
    }
    /// Whether somebody could pull it from here alone: it is complete, or one of its platforms is.
    pub fn is_pullable(&self) -> bool {
        self.is_complete()
            || self.children().any(|(child, is_complete)| {
                let platform = child.platform.as_ref();
                is_complete && platform.is_none_or(|platform| platform.os != "unknown")
            })
    }

    /// Its blobs, each once, in the order in which manifests name them.
    pub fn blobs(&self) -> Vec<&ImageBlob> {
        let mut seen = HashSet::new();
        let contents = self.manifests.iter().filter_map(|m| m.content.as_ref());
        contents
            .flat_map(|content| &content.blobs)
            .filter(|blob| seen.insert(blob.digest))
            .collect()
    }

    /// The manifests that are named and not stored.
    pub fn missing_manifests(&self) -> impl Iterator<Item = &ImageManifest> {
        self.manifests.iter().filter(|m| m.content.is_none())
    }

    /// The blobs that are named by stored manifests and not on disk.
    pub fn missing_blobs(&self) -> Vec<&ImageBlob> {
        let mut blobs = self.blobs();
        blobs.retain(|blob| !blob.is_stored);
        blobs
    }

    /// Bytes of its stored manifests and blobs, shared ones counted once.
    pub fn stored_bytes(&self) -> u64 {
        let manifests = self.manifests.iter().filter(|m| m.content.is_some());
        let manifests = manifests.fold(0u64, |sum, m| sum.saturating_add(m.size));
        let blobs = self.blobs().into_iter().filter(|blob| blob.is_stored);
        blobs.fold(manifests, |sum, blob| sum.saturating_add(blob.size))
    }

    fn by_digest(&self) -> HashMap<Digest, &ImageManifest> {
        self.manifests.iter().map(|m| (m.digest, m)).collect()
    }
}

fn is_complete_under(manifests: &HashMap<Digest, &ImageManifest>, digest: &Digest) -> bool {
    let mut seen = HashSet::new();
    let mut left = vec![*digest];
    while let Some(digest) = left.pop() {
        if !seen.insert(digest) {
            continue;
        }
        let manifest = manifests.get(&digest);
        let Some(content) = manifest.and_then(|manifest| manifest.content.as_ref()) else {
            return false;
        };
        if !content.blobs.iter().all(|blob| blob.is_stored) {
            return false;
        }
        left.extend(&content.children);
    }
    true
}

impl Store {
    /// The manifest of `repo` that names `blob`; of several the one that was pulled last, as far as that was
    /// written down. May read from the disk.
    pub fn manifest_naming(&self, repo: &RepoKey, blob: &Digest) -> Option<StoredManifest> {
        // The index knows of its records from here on.
        self.records().load(repo);
        let digest = lock(&self.shared().index).naming(repo, blob)?;
        self.records().manifest(repo, &digest)
    }

    /// The image whose manifest in `repo` is `digest`; `None` if that is not stored. May read each of
    /// its manifests from the disk.
    pub fn image(&self, repo: &RepoKey, digest: &Digest) -> Option<Image> {
        let (root, children) = self.image_manifest(repo, digest, None);
        root.content.as_ref()?;
        let mut image = Image {
            manifests: vec![root],
            is_cut: false,
        };
        let mut seen = HashSet::from([*digest]);
        let mut left = VecDeque::from(children);
        while let Some(named) = left.pop_front() {
            if !seen.insert(named.digest) {
                continue;
            }
            if image.manifests.len() == MAX_MANIFESTS {
                image.is_cut = true;
                break;
            }
            let digest = named.digest;
            let (manifest, children) = self.image_manifest(repo, &digest, Some(named));
            image.manifests.push(manifest);
            left.extend(children);
        }
        Some(image)
    }

    /// A manifest, and those that it names.
    fn image_manifest(
        &self,
        repo: &RepoKey,
        digest: &Digest,
        named: Option<Descriptor>,
    ) -> (ImageManifest, Vec<Descriptor>) {
        let named_size = named.as_ref().map_or(0, |named| named.size);
        let mut manifest = ImageManifest {
            digest: *digest,
            size: named_size,
            platform: named.and_then(|named| named.platform),
            content: None,
        };
        let Some(stored) = self.records().manifest(repo, digest) else {
            return (manifest, Vec::new());
        };
        // One that cannot be understood leads nowhere, and is whole as it is.
        let parsed = Manifest::parse(&stored.media_type, &stored.bytes).ok();
        let mut seen = HashSet::new();
        let blobs = parsed.iter().flat_map(Manifest::blobs);
        let blobs = blobs.filter(|blob| seen.insert(blob.digest));
        let blobs = blobs.map(|blob| ImageBlob {
            digest: blob.digest,
            size: blob.size,
            media_type: blob.media_type.clone(),
            is_stored: self.stored_len(&blob.digest) == Some(blob.size),
        });
        let blobs = blobs.collect();
        let children = parsed.as_ref().map_or([].as_slice(), Manifest::children);
        let children = children.to_vec();
        manifest.size = stored.bytes.len() as u64;
        manifest.content = Some(ImageContent {
            media_type: stored.media_type.clone(),
            children: children.iter().map(|child| child.digest).collect(),
            blobs,
            subject: parsed
                .and_then(|parsed| parsed.subject)
                .map(|subject| subject.digest),
        });
        (manifest, children)
    }
}
