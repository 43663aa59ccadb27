//! What is whole in an archive becomes records, an image at a time.
//!
//! The invariant: no record is written of an image before all of its blobs are in the store, and each is
//! written after those that it rests on, so that wherever it is cut nobody is shown a part.

use std::collections::HashMap;

use super::contents::{Known, Whole};
use super::import::{Import, ImportError, Imported, Place, Placing, disk};
use crate::cache::Blob;
use crate::oci::Digest;
use crate::oci::layout::LayoutImage;

/// How many faults of one image are told one by one.
const MAX_FAULTS: usize = 5;

impl Import<'_> {
    /// Applies every image that is whole.
    pub(super) fn apply(&mut self, place: &Placing<'_>) -> Result<Vec<Imported>, ImportError> {
        let index = self.contents.index().cloned();
        let Some(index) = index else {
            return Ok(Vec::new());
        };
        let mut images = Vec::new();
        for image in &index.manifests {
            let mut imported = Imported {
                name: image.digest.to_string(),
                digest: image.digest,
                replaced: None,
                failed: None,
            };
            match place(&index, image) {
                Ok(place) => {
                    imported.name.clone_from(&place.name);
                    match self.apply_one(image, &place)? {
                        Ok(replaced) => imported.replaced = replaced,
                        Err(why) => imported.failed = Some(why),
                    }
                }
                Err(why) => imported.failed = Some(why),
            }
            images.push(imported);
        }
        // What is told as done is to survive a power cut.
        self.store
            .flush()
            .map_err(|source| disk("write to", source))?;
        Ok(images)
    }

    /// Applies an image if it is whole; answers what its tag named before, or what is wrong.
    fn apply_one(
        &mut self,
        image: &LayoutImage,
        place: &Place,
    ) -> Result<Result<Option<Digest>, String>, ImportError> {
        let stored = |digest: &Digest| self.believed(digest).map(|blob| blob.len());
        let whole = match self.contents.whole(image, &stored) {
            Ok(whole) => whole,
            Err(faults) => return Ok(Err(listed(&faults))),
        };
        // A layer that looked like a manifest is still in memory.
        for (digest, size) in &whole.blobs {
            if self.contents.blob(digest).is_none()
                && let Some(bytes) = self.contents.kept(digest).cloned()
            {
                self.blob(*digest, *size, &mut &*bytes)?;
                if let Some(Known::Bad(why)) = self.contents.blob(digest) {
                    return Ok(Err(format!("blob {digest}: {why}")));
                }
            }
        }
        // Held until the records tell that they are needed.
        let mut held = Leases::new();
        for digest in whole.blobs.keys() {
            match self.believed(digest) {
                Some(blob) => held.hold(blob),
                None => {
                    return Ok(Err(format!(
                        "there is no room in the cache for blob {digest}"
                    )));
                }
            }
        }
        Ok(self.record(&whole, place))
    }

    /// Writes the records of an image, each after those that it rests on.
    fn record(&self, whole: &Whole, place: &Place) -> Result<Option<Digest>, String> {
        let (records, at) = (self.store.records(), self.options.at);
        let mut top = None;
        for (digest, media_type, bytes) in &whole.manifests {
            records.put_manifest(&place.repo, media_type, bytes.clone(), at);
            if records.manifest(&place.repo, digest).is_none() {
                return Err("its records cannot be written".to_owned());
            }
            top = Some(*digest);
        }
        for (digest, size) in &whole.blobs {
            records.put_held(&place.repo, *digest, Some(*size), at);
        }
        let (Some(tag), Some(top)) = (&place.tag, top) else {
            return Ok(None);
        };
        let before = records.tag(&place.repo, tag).map(|record| record.digest);
        records.put_tag(&place.repo, tag, top, at);
        Ok(before.filter(|before| *before != top))
    }
}

fn listed(faults: &[String]) -> String {
    let mut text = faults[..faults.len().min(MAX_FAULTS)].join("; ");
    if faults.len() > MAX_FAULTS {
        text += &format!("; and {} more", faults.len() - MAX_FAULTS);
    }
    text
}

/// Blobs held open, so that they are not evicted before a record tells that they are needed. No more of
/// them than leaves descriptors to everybody else: beyond, it is only looked whether they are still there.
pub(super) struct Leases {
    held: HashMap<Digest, Blob>,
    most: usize,
}

impl Leases {
    pub(super) fn new() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.and_then(|limit| usize::try_from(limit / 8).ok());
        Self {
            held: HashMap::new(),
            most: most.unwrap_or(1024).clamp(16, 1024),
        }
    }

    pub(super) fn hold(&mut self, blob: Blob) {
        if self.held.len() < self.most {
            self.held.insert(blob.digest(), blob);
        }
    }
}
