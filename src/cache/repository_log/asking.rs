//! What a repository's records say.

use std::io;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use crate::cache::layout;
use crate::cache::record::{Held, HeldBy, StoredManifest, TagRecord};
use crate::cache::records::ManifestRecord;
use crate::oci::{Digest, Tag};

use super::reading::read_body;
use super::{Body, LOG, RepositoryLog};

impl RepositoryLog {
    /// The media type of a stored manifest; `None` if it is not stored.
    pub(in crate::cache) fn media_type_of(&self, digest: &Digest) -> Option<&str> {
        Some(&self.manifests.get(digest)?.media_type)
    }

    pub(in crate::cache) fn manifest_checked_at(&self, digest: &Digest) -> Option<SystemTime> {
        Some(self.manifests.get(digest)?.checked.at)
    }

    /// Reads a manifest, from the log in `directory` if need be; one that does not hash to its name
    /// any more is forgotten.
    pub(in crate::cache) fn manifest(
        &mut self,
        digest: &Digest,
        directory: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Option<StoredManifest>> {
        let Some(manifest) = self.manifests.get(digest) else {
            return Ok(None);
        };
        let bytes = match &manifest.body {
            Body::Memory(bytes) => bytes.clone(),
            Body::Disk { offset, len } => {
                let file = layout::open_file(&directory()?, LOG)?;
                match read_body(&file, *offset, *len, digest)? {
                    Some(bytes) => bytes,
                    None => {
                        tracing::warn!(
                            oci.repository = %self.name,
                            oci.digest = %digest,
                            "a stored manifest was damaged and is forgotten"
                        );
                        self.forget_manifest(digest);
                        return Ok(None);
                    }
                }
            }
        };
        let media_type = manifest.media_type.clone();
        Ok(Some(StoredManifest::new(*digest, media_type, bytes)))
    }

    pub(in crate::cache) fn holds(&self, digest: &Digest) -> Option<Held> {
        let named = self.by_manifests.get(digest);
        if let Some(word) = self.by_upstream.get(digest) {
            return Some(Held {
                size: named.map(|named| named.size).or(word.size),
                is_stated: named.is_some(),
                by: HeldBy::Upstream,
                checked_at: word.checked.at,
            });
        }
        named.map(|named| Held {
            size: Some(named.size),
            is_stated: true,
            by: HeldBy::Manifest,
            checked_at: named.checked_at,
        })
    }

    pub(in crate::cache) fn tag(&self, tag: &Tag) -> Option<TagRecord> {
        self.tags.get(tag).map(|(digest, checked)| TagRecord {
            digest: *digest,
            checked_at: checked.at,
        })
    }

    pub(in crate::cache) fn tags(&self) -> Vec<(Tag, TagRecord)> {
        let tags = self.tags.iter();
        tags.map(|(tag, (digest, checked))| {
            let record = TagRecord {
                digest: *digest,
                checked_at: checked.at,
            };
            (tag.clone(), record)
        })
        .collect()
    }

    pub(in crate::cache) fn manifests(&self) -> Vec<ManifestRecord> {
        let manifests = self.manifests.iter();
        manifests
            .map(|(digest, stored)| ManifestRecord {
                digest: *digest,
                media_type: stored.media_type.clone(),
                size: stored.len() as u64,
                subject: stored.links.subject,
                checked_at: stored.checked.at,
            })
            .collect()
    }
}
