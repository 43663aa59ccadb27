//! What an archive is found to hold while it is read, in whatever order it comes, and which of it is
//! needed.
//!
//! Manifests are kept in memory until the end, blobs go to the store at once. As long as the index at
//! the top and the manifests that it leads to are not all known, anything small that looks like a
//! manifest may be one. Once they are known, what nobody needs is passed over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::oci::layout::{LayoutImage, LayoutIndex, annotation};
use crate::oci::{Descriptor, Digest, Manifest, ManifestKind, Platform};

/// Most bytes of manifests that are kept in memory. An image has some ten KiB of them.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 8;

/// What an entry of the archive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A manifest is to be kept, a blob to be stored; which of both shows when it is read.
    Either,
    /// It goes to the store.
    Blob,
    /// Nobody needs it.
    None,
}

/// Where a blob stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// In the store, with so many bytes.
    Stored(u64),
    /// It cannot be had from this archive: why.
    Bad(String),
}

/// What is known of an archive so far.
pub(super) struct Contents {
    /// The only platforms that are wanted, whatever an index says; all if empty.
    platforms: Vec<Platform>,
    max_manifest_bytes: u64,
    index: Option<LayoutIndex>,
    /// What may be a manifest, or is one.
    kept: HashMap<Digest, Bytes>,
    kept_bytes: usize,
    /// Manifests that are needed, with the type they are to have and the platforms wanted of them.
    needed: HashMap<Digest, (String, Arc<[Platform]>)>,
    /// How many of those have not come.
    awaited: usize,
    needed_blobs: HashSet<Digest>,
    blobs: HashMap<Digest, Known>,
}

/// An image that is all there.
#[derive(Debug)]
pub(super) struct Whole {
    /// Its manifests with their media types, each after those that it names.
    pub(super) manifests: Vec<(Digest, String, Bytes)>,
    /// Its blobs with their sizes.
    pub(super) blobs: BTreeMap<Digest, u64>,
}

/// There are more manifests than are taken into memory.
#[derive(Debug)]
pub(super) struct TooMany;

impl Contents {
    pub(super) fn new(platforms: Vec<Platform>, max_manifest_bytes: u64) -> Self {
        Self {
            platforms,
            max_manifest_bytes,
            index: None,
            kept: HashMap::new(),
            kept_bytes: 0,
            needed: HashMap::new(),
            awaited: 0,
            needed_blobs: HashSet::new(),
            blobs: HashMap::new(),
        }
    }

    /// The index at the top, once it has come.
    pub(super) fn index(&self) -> Option<&LayoutIndex> {
        self.index.as_ref()
    }

    /// The index at the top has come, and names these images.
    pub(super) fn put_index(&mut self, index: LayoutIndex) {
        for image in &index.manifests {
            let platforms = self.wanted_of(image).into();
            self.need(image.digest, &image.media_type, &platforms);
        }
        self.index = Some(index);
    }

    /// What an entry that is to hash to `digest` and is `size` bytes long is for.
    pub(super) fn role(&self, digest: &Digest, size: u64) -> Role {
        let is_known = self.index.is_some() && self.awaited == 0;
        let is_manifest = self.needed.contains_key(digest) || !is_known;
        if is_manifest && size <= self.max_manifest_bytes {
            Role::Either
        } else if !is_known || self.needed_blobs.contains(digest) {
            Role::Blob
        } else {
            Role::None
        }
    }

    /// Keeps bytes that hash to `digest` if they may be a manifest; false if they are none.
    pub(super) fn keep(&mut self, digest: Digest, bytes: &Bytes) -> Result<bool, TooMany> {
        if !looks_like_a_manifest(bytes) && !self.needed.contains_key(&digest) {
            return Ok(false);
        }
        self.kept_bytes += bytes.len();
        if self.kept_bytes > MAX_KEPT {
            return Err(TooMany);
        }
        self.kept.insert(digest, bytes.clone());
        if let Some((media_type, platforms)) = self.needed.get(&digest).cloned() {
            self.awaited -= 1;
            for (child, media_type) in self.named_by(bytes, &media_type, &platforms) {
                self.need(child, &media_type, &platforms);
            }
        }
        Ok(true)
    }

    /// Notes what became of a blob.
    pub(super) fn put_blob(&mut self, digest: Digest, known: Known) {
        self.blobs.insert(digest, known);
    }

    /// What became of a blob that came.
    pub(super) fn blob(&self, digest: &Digest) -> Option<&Known> {
        self.blobs.get(digest)
    }

    /// The bytes of what was kept.
    pub(super) fn kept(&self, digest: &Digest) -> Option<&Bytes> {
        self.kept.get(digest)
    }

    /// A manifest is needed, and what it leads to as far as that is known. Nothing here can go round in
    /// circles: a manifest cannot hold its own digest.
    fn need(&mut self, digest: Digest, media_type: &str, platforms: &Arc<[Platform]>) {
        let mut left = vec![(digest, media_type.to_owned())];
        while let Some((digest, media_type)) = left.pop() {
            if self.needed.contains_key(&digest) {
                continue;
            }
            match self.kept.get(&digest) {
                Some(bytes) => {
                    let bytes = bytes.clone();
                    left.extend(self.named_by(&bytes, &media_type, platforms));
                }
                None => self.awaited += 1,
            }
            let known = (media_type, Arc::clone(platforms));
            self.needed.insert(digest, known);
        }
    }

    /// What a manifest names is needed: notes its blobs, and answers the manifests that are wanted of it.
    fn named_by(
        &mut self,
        bytes: &[u8],
        media_type: &str,
        platforms: &[Platform],
    ) -> Vec<(Digest, String)> {
        // One that does not parse is told when its image is looked at.
        let Ok(manifest) = Manifest::parse(media_type, bytes) else {
            return Vec::new();
        };
        self.needed_blobs.extend(manifest.blobs().map(|b| b.digest));
        let children = manifest.children().iter();
        let children = children.filter(|child| is_wanted(child, platforms));
        children
            .map(|child| (child.digest, child.media_type.clone()))
            .collect()
    }

    /// The platforms that are wanted of an image; all if empty.
    fn wanted_of(&self, image: &LayoutImage) -> Vec<Platform> {
        if !self.platforms.is_empty() {
            return self.platforms.clone();
        }
        let listed = image.annotations.get(annotation::PLATFORMS);
        let listed = listed.map_or("", String::as_str).split(',');
        listed.filter_map(|text| text.parse().ok()).collect()
    }

    /// Puts an image together. `stored` tells the size of a blob that did not come and is in the store.
    ///
    /// # Errors
    /// Everything that is wrong with it or missing.
    pub(super) fn whole(
        &self,
        image: &LayoutImage,
        stored: &dyn Fn(&Digest) -> Option<u64>,
    ) -> Result<Whole, Vec<String>> {
        let mut assembly = Assembly {
            contents: self,
            stored,
            platforms: self.wanted_of(image),
            whole: Whole {
                manifests: Vec::new(),
                blobs: BTreeMap::new(),
            },
            seen: HashSet::new(),
            wrong: Vec::new(),
        };
        let top = Descriptor {
            media_type: image.media_type.clone(),
            digest: image.digest,
            size: image.size,
            urls: Vec::new(),
            platform: None,
            attests: None,
        };
        assembly.manifest(&top, 0);
        match assembly.wrong.is_empty() {
            true => Ok(assembly.whole),
            false => Err(assembly.wrong),
        }
    }
}

/// Whether a manifest that an index names is wanted.
fn is_wanted(child: &Descriptor, platforms: &[Platform]) -> bool {
    let is = |platform: &Platform| platforms.iter().any(|wanted| platform.is(wanted));
    platforms.is_empty() || child.platform.as_ref().is_some_and(is)
}

/// Every manifest tells the version of its schema (image-spec `manifest.md`, `image-index.md`), and
/// no config does.
fn looks_like_a_manifest(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(rename = "schemaVersion")]
        _version: u32,
    }
    serde_json::from_slice::<Versioned>(bytes).is_ok()
}

/// An image being put together.
struct Assembly<'a> {
    contents: &'a Contents,
    stored: &'a dyn Fn(&Digest) -> Option<u64>,
    platforms: Vec<Platform>,
    whole: Whole,
    seen: HashSet<(Digest, String, u64)>,
    wrong: Vec<String>,
}

impl Assembly<'_> {
    fn manifest(&mut self, named: &Descriptor, depth: usize) {
        if let Err(why) = self.try_manifest(named, depth) {
            self.wrong.push(format!("manifest {}: {why}", named.digest));
        }
    }

    fn try_manifest(&mut self, named: &Descriptor, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("indexes lie too deep in each other".to_owned());
        }
        let Some(bytes) = self.contents.kept.get(&named.digest) else {
            return Err(match self.contents.blobs.get(&named.digest) {
                Some(Known::Bad(why)) => why.clone(),
                Some(Known::Stored(_)) => "it is none".to_owned(),
                None => "it is not in the bundle".to_owned(),
            });
        };
        if bytes.len() as u64 != named.size {
            return Err(format!("{} bytes, not {}", bytes.len(), named.size));
        }
        let seen = (named.digest, named.media_type.clone(), named.size);
        if !self.seen.insert(seen) {
            return Ok(());
        }
        let manifest =
            Manifest::parse(&named.media_type, bytes).map_err(|error| error.to_string())?;
        if manifest.kind == ManifestKind::Other {
            return Err(format!("{:?} is not understood", named.media_type));
        }
        for blob in manifest.blobs() {
            self.blob(blob);
        }
        let mut wanted = 0;
        for child in manifest.children() {
            if is_wanted(child, &self.platforms) {
                self.manifest(child, depth + 1);
                wanted += 1;
            }
        }
        if wanted == 0 && !manifest.children().is_empty() {
            return Err("it has none of the platforms asked for".to_owned());
        }
        self.whole
            .manifests
            .push((named.digest, named.media_type.clone(), bytes.clone()));
        Ok(())
    }

    fn blob(&mut self, named: &Descriptor) {
        let digest = &named.digest;
        let kept = self.contents.kept.get(digest);
        let size = match self.contents.blobs.get(digest) {
            Some(Known::Bad(why)) => return self.wrong.push(format!("blob {digest}: {why}")),
            Some(Known::Stored(size)) => Some(*size),
            None => kept
                .map(|bytes| bytes.len() as u64)
                .or_else(|| (self.stored)(digest)),
        };
        match size {
            Some(size) if size == named.size => {
                self.whole.blobs.insert(*digest, size);
            }
            Some(size) => {
                let expected = named.size;
                self.wrong
                    .push(format!("blob {digest}: {size} bytes, not {expected}"));
            }
            None => self
                .wrong
                .push(format!("blob {digest}: it is not in the bundle")),
        }
    }
}

/// Any bytes as an archive that is brought.
#[cfg(any(test, fuzzing))]
pub fn fuzz_bundle(data: &[u8]) {
    use std::io::Read as _;

    use super::archive::each_file;
    use crate::oci::layout::LayoutPath;

    let mut contents = Contents::new(Vec::new(), 1024 * 1024);
    let mut seen = HashSet::new();
    let read = each_file(data, |path, size, content| {
        let mut bytes = Vec::new();
        let read = content.take(data.len() as u64).read_to_end(&mut bytes);
        assert!(bytes.len() as u64 <= size);
        match path {
            LayoutPath::Index if contents.index().is_none() => {
                if let Ok(index) = LayoutIndex::parse(&bytes) {
                    contents.put_index(index);
                }
            }
            // Whoever brings them can give them the right names, and a fuzzer cannot.
            LayoutPath::Blob(named) if read.is_ok() && seen.insert(named) => {
                let bytes = Bytes::from(bytes);
                if contents.role(&named, size) != Role::None
                    && !contents.keep(named, &bytes).unwrap_or(true)
                {
                    contents.put_blob(named, Known::Stored(size));
                }
            }
            _ => {}
        }
        Ok(())
    });
    drop(read);
    for image in contents.index().map_or(&[][..], |index| &index.manifests) {
        if let Ok(whole) = contents.whole(image, &|_| None) {
            assert!(!whole.manifests.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type::{OCI_INDEX, OCI_MANIFEST};

    fn manifest(blobs: &[&[u8]]) -> Bytes {
        let layers: Vec<_> = blobs
            .iter()
            .map(|blob| {
                let (digest, size) = (Digest::of(blob).to_string(), blob.len());
                serde_json::json!({"mediaType": "x", "digest": digest, "size": size})
            })
            .collect();
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers});
        manifest.to_string().into()
    }

    fn index(children: &[(&Bytes, &str)]) -> Bytes {
        let manifests: Vec<_> = children
            .iter()
            .map(|(child, architecture)| {
                let (digest, size) = (Digest::of(child).to_string(), child.len());
                serde_json::json!({
                    "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                    "platform": {"os": "linux", "architecture": architecture},
                })
            })
            .collect();
        let index =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        index.to_string().into()
    }

    fn image(media_type: &str, bytes: &Bytes, platforms: &str) -> LayoutImage {
        let listed = (annotation::PLATFORMS.to_owned(), platforms.to_owned());
        LayoutImage {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: [listed].into_iter().filter(|l| !l.1.is_empty()).collect(),
        }
    }

    fn contents() -> Contents {
        Contents::new(Vec::new(), 1 << 20)
    }

    fn whole(contents: &Contents) -> Result<Whole, Vec<String>> {
        contents.whole(&contents.index().unwrap().manifests[0], &|_| None)
    }

    #[test]
    fn order_does_not_matter_and_once_all_is_known_the_rest_is_passed_over() {
        let (a, b) = (manifest(&[b"a"]), manifest(&[b"b"]));
        let top = index(&[(&a, "amd64"), (&b, "arm64")]);
        let layout = LayoutIndex::new(vec![image(OCI_INDEX, &top, "")]);
        let unknown = Digest::of(b"unknown");
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut contents = contents();
            for step in order {
                assert_eq!(contents.role(&unknown, 7), Role::Either, "{order:?}");
                assert_eq!(contents.role(&unknown, 1 << 30), Role::Blob, "{order:?}");
                match step {
                    0 => contents.put_index(layout.clone()),
                    n => {
                        let bytes = [&top, &a, &b][n - 1];
                        assert!(contents.keep(Digest::of(bytes), bytes).unwrap());
                    }
                }
            }
            assert_eq!(contents.role(&unknown, 7), Role::None);
            assert_eq!(contents.role(&Digest::of(b"a"), 1), Role::Blob);
            assert_eq!(whole(&contents).unwrap_err().len(), 2, "no blob came");
            for blob in [b"a", b"b"] {
                contents.put_blob(Digest::of(blob), Known::Stored(1));
            }
            let whole = whole(&contents).unwrap();
            let manifests: Vec<_> = whole.manifests.iter().map(|m| m.0).collect();
            assert_eq!(manifests, [&a, &b, &top].map(|bytes| Digest::of(bytes)));
            assert_eq!(whole.blobs.len(), 2);
        }
    }

    #[test]
    fn a_layer_that_looks_like_a_manifest_is_a_blob_all_the_same() {
        let layer = manifest(&[]);
        let top = manifest(&[&layer]);
        let mut contents = contents();
        assert!(contents.keep(Digest::of(&layer), &layer).unwrap());
        assert!(contents.keep(Digest::of(&top), &top).unwrap());
        contents.put_index(LayoutIndex::new(vec![image(OCI_MANIFEST, &top, "")]));
        let whole = whole(&contents).unwrap();
        assert_eq!(whole.manifests.len(), 1);
        assert_eq!(whole.blobs[&Digest::of(&layer)], layer.len() as u64);
    }

    #[test]
    fn only_what_an_index_was_exported_for_is_needed() {
        let (a, b) = (manifest(&[]), manifest(&[b"b"]));
        let top = index(&[(&a, "amd64"), (&b, "arm64")]);
        let mut partial = contents();
        partial.put_index(LayoutIndex::new(vec![image(
            OCI_INDEX,
            &top,
            "linux/amd64",
        )]));
        for bytes in [&top, &a] {
            partial.keep(Digest::of(bytes), bytes).unwrap();
        }
        assert_eq!(whole(&partial).unwrap().manifests.len(), 2);
        assert_eq!(partial.role(&Digest::of(&b), 7), Role::None);

        let mut all = contents();
        all.put_index(LayoutIndex::new(vec![image(OCI_INDEX, &top, "")]));
        for bytes in [&top, &a] {
            all.keep(Digest::of(bytes), bytes).unwrap();
        }
        let wrong = whole(&all).unwrap_err();
        assert!(wrong[0].contains("not in the bundle"), "{wrong:?}");
    }

    #[test]
    fn descriptors_must_agree_with_what_they_name() {
        let top = manifest(&[b"blob"]);
        let good = image(OCI_MANIFEST, &top, "");
        let mut contents = contents();
        contents.keep(Digest::of(&top), &top).unwrap();
        contents.put_index(LayoutIndex::new(vec![good.clone()]));
        let digest = Digest::of(b"blob");
        let tell = |contents: &Contents, image: &LayoutImage| {
            let wrong = contents.whole(image, &|_| None).map(|_| ());
            wrong.map_err(|wrong| wrong.join(";"))
        };
        contents.put_blob(digest, Known::Stored(5));
        assert!(
            tell(&contents, &good)
                .unwrap_err()
                .contains("5 bytes, not 4")
        );
        contents.put_blob(digest, Known::Bad("broken".to_owned()));
        assert!(tell(&contents, &good).unwrap_err().contains("broken"));
        contents.put_blob(digest, Known::Stored(4));
        assert_eq!(tell(&contents, &good), Ok(()));
        let long = LayoutImage {
            size: good.size + 1,
            ..good.clone()
        };
        assert!(tell(&contents, &long).is_err());
        let other = LayoutImage {
            media_type: OCI_INDEX.to_owned(),
            ..good.clone()
        };
        assert!(tell(&contents, &other).is_err());
        let strange = LayoutImage {
            media_type: "text/html".to_owned(),
            ..good
        };
        assert!(tell(&contents, &strange).is_err());
    }

    #[test]
    fn a_blob_that_is_in_the_store_need_not_come() {
        let top = manifest(&[b"blob"]);
        let image = image(OCI_MANIFEST, &top, "");
        let mut contents = contents();
        contents.keep(Digest::of(&top), &top).unwrap();
        contents.put_index(LayoutIndex::new(vec![image.clone()]));
        assert!(contents.whole(&image, &|_| Some(4)).is_ok());
        assert!(contents.whole(&image, &|_| Some(3)).is_err());
    }

    #[test]
    fn indexes_in_indexes_in_indexes_are_no_way_to_exhaust_the_stack() {
        let mut contents = Contents::new(Vec::new(), 4096);
        let mut top = manifest(&[b"layer"]);
        for _ in 0..50_000 {
            assert!(contents.keep(Digest::of(&top), &top).unwrap());
            let (digest, size) = (Digest::of(&top).to_string(), top.len());
            let child = serde_json::json!({"mediaType": OCI_INDEX, "digest": digest, "size": size});
            let index = serde_json::json!({
                "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child],
            });
            top = index.to_string().into();
        }
        assert!(contents.keep(Digest::of(&top), &top).unwrap());
        let image = image(OCI_INDEX, &top, "");
        contents.put_index(LayoutIndex::new(vec![image.clone()]));
        let wrong = contents.whole(&image, &|_| None).unwrap_err();
        assert!(wrong[0].contains("too deep"), "{wrong:?}");
    }
}
