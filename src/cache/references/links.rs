//! What manifests name, how that changes, and what follows from it: the words of [`References`].
//!
//! [`References`]: super::References

use std::collections::HashSet;
use std::sync::Arc;

use crate::oci::{Digest, Manifest, RepoKey, Tag};

/// Why a blob is worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cache) enum Standing {
    /// No stored manifest names it.
    Loose,
    /// Every manifest that names it lacks some other blob.
    Partial,
    /// A manifest that names it has all its blobs.
    Whole,
    /// A pin leads to it.
    Pinned,
}

impl Standing {
    pub(in crate::cache) const COUNT: usize = 4;
}

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct Links {
    /// Config and layers, each once, with their lengths in bytes.
    pub(in crate::cache) blobs: Arc<[(Digest, u64)]>,
    pub(in crate::cache) children: Box<[Child]>,
    pub(in crate::cache) subject: Option<Digest>,
}

/// A manifest that an index names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Child {
    pub(in crate::cache) digest: Digest,
    /// False for what no client runs, as BuildKit's attestations: an index of nothing else is no image.
    pub(in crate::cache) is_image: bool,
}

impl Links {
    pub(in crate::cache) fn of(manifest: &Manifest) -> Self {
        let mut seen = HashSet::new();
        let blobs = manifest.blobs().filter(|blob| seen.insert(blob.digest));
        let blobs = blobs.map(|blob| (blob.digest, blob.size)).collect();
        let mut seen = HashSet::new();
        let children = manifest.children().iter();
        let children = children.filter(|child| seen.insert(child.digest));
        let children = children.map(|child| Child {
            digest: child.digest,
            is_image: child
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os != "unknown"),
        });
        Self {
            blobs,
            children: children.collect(),
            subject: manifest.subject.as_ref().map(|subject| subject.digest),
        }
    }
}

/// A change of what a repository's records say.
#[derive(Clone, Debug)]
pub(in crate::cache) enum Change {
    Manifest(Digest, Links),
    ManifestGone(Digest),
    Tag(Tag, Digest),
    TagGone(Tag),
}

/// The records of one repository that have to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Casualties {
    pub(in crate::cache) repo: RepoKey,
    pub(in crate::cache) manifests: Vec<Digest>,
    /// Those that name one of `manifests`.
    pub(in crate::cache) tags: Vec<Tag>,
    /// What the manifests named.
    pub(in crate::cache) blobs: Vec<Digest>,
}
