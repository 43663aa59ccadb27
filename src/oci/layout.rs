//! Image layouts (image-spec `image-layout.md`): what their files are called, and the index at their top.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::media_type;

/// What tells that a folder is an image layout.
pub const LAYOUT_FILE: &str = "oci-layout";

/// What [`LAYOUT_FILE`] says.
pub const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The name of the index at the top.
pub const INDEX_FILE: &str = "index.json";

/// Keys of the annotations in the index at the top.
pub mod annotation {
    /// What tools call an image by (image-spec, `annotations.md`): its full name, or its tag.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// The full name of an image, as containerd and docker write it.
    pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
    /// The repository that a manifest is for, as clients write it without a domain. Ours.
    pub const REPOSITORY: &str = "io.ecr-proxy.repository";
    /// The tag that names it there. Ours.
    pub const TAG: &str = "io.ecr-proxy.tag";
    /// Of the index at the top itself: what its images hash to, written as the index writes them, so that a
    /// bit that flips on the way does not give one another name. Ours.
    pub const SUM: &str = "io.ecr-proxy.sum";
    /// The platforms of an index that are in the layout, with commas between them; all, where it is
    /// missing. Ours.
    pub const PLATFORMS: &str = "io.ecr-proxy.platforms";
}

/// What a path of a layout leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutPath {
    /// [`LAYOUT_FILE`].
    Layout,
    /// [`INDEX_FILE`].
    Index,
    /// A blob, which is to hash to this.
    Blob(Digest),
    /// `manifest.json`, which docker's own archives have at their top, with or without the rest.
    DockerManifest,
    /// A folder, or a file of which the layout says nothing. May be passed over.
    Other,
}

/// Why a path may not stand in an archive: who unpacked it would write elsewhere, or two would read it
/// differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a plain relative path")]
pub struct UnsafePath;

impl LayoutPath {
    /// Reads the path of an archive's entry. One leading `./` and one trailing `/` are passed over.
    ///
    /// # Errors
    /// When the path is absolute, climbs, is not UTF-8, or has empty parts.
    pub fn parse(path: &[u8]) -> Result<Self, UnsafePath> {
        let path = str::from_utf8(path).map_err(|_| UnsafePath)?;
        if path.contains(['\0', '\\']) {
            return Err(UnsafePath);
        }
        if matches!(path, "." | "./") {
            return Ok(Self::Other);
        }
        let path = path.strip_prefix("./").unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut parts = path.split('/');
        if parts.clone().any(|part| matches!(part, "" | "." | "..")) {
            return Err(UnsafePath);
        }
        let parts = [(); 4].map(|()| parts.next());
        Ok(match parts {
            [Some(LAYOUT_FILE), None, ..] => Self::Layout,
            [Some(INDEX_FILE), None, ..] => Self::Index,
            [Some("manifest.json"), None, ..] => Self::DockerManifest,
            [Some("blobs"), Some("sha256"), Some(hex), None] => {
                Digest::from_hex(hex).map_or(Self::Other, Self::Blob)
            }
            _ => Self::Other,
        })
    }

    /// The path of a blob.
    pub fn of_blob(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }
}

/// The index at the top of a layout: the images in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutIndex {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType", default = "index_type")]
    media_type: String,
    /// The images, and what refers to them.
    pub manifests: Vec<LayoutImage>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// One manifest that a layout has at its top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutImage {
    /// The manifest's media type.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What is said of it, by the keys in [`annotation`] and others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why a layout is not one that we read.
#[derive(Debug, thiserror::Error)]
pub enum ParseLayoutError {
    /// Not JSON of the right shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A later version, or none.
    #[error("a layout of version {0:?}; 1.0.0 is understood")]
    Version(String),
    /// It is not as it was written.
    #[error("it was changed since it was written: its sum is not that of what it lists")]
    Changed,
    /// It calls itself something else.
    #[error("it calls itself {0}, and is no index of version 2")]
    MediaType(String),
}

/// image-spec `image-index.md`: always 2.
const SCHEMA_VERSION: u32 = 2;

fn sum(manifests: &[LayoutImage]) -> String {
    // As in `to_json`, nothing in it can fail.
    Digest::of(&serde_json::to_vec(manifests).unwrap_or_default()).to_string()
}

fn index_type() -> String {
    media_type::OCI_INDEX.to_owned()
}

impl LayoutIndex {
    /// An index of these.
    pub fn new(manifests: Vec<LayoutImage>) -> Self {
        let sum = sum(&manifests);
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: index_type(),
            manifests,
            annotations: BTreeMap::from([(annotation::SUM.to_owned(), sum)]),
        }
    }

    /// Reads [`INDEX_FILE`].
    ///
    /// # Errors
    /// When it is no index, or names something by another digest than sha256.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseLayoutError> {
        let index: Self = serde_json::from_slice(bytes)?;
        if index.media_type != media_type::OCI_INDEX || index.schema_version != SCHEMA_VERSION {
            return Err(ParseLayoutError::MediaType(index.media_type));
        }
        // Other tools write none.
        let told = index.annotations.get(annotation::SUM);
        match told.is_none_or(|told| *told == sum(&index.manifests)) {
            true => Ok(index),
            false => Err(ParseLayoutError::Changed),
        }
    }

    /// As it is written to [`INDEX_FILE`]: the same bytes for the same content.
    pub fn to_json(&self) -> Vec<u8> {
        // Maps with text for keys and no numbers but integers: nothing in it can fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Checks [`LAYOUT_FILE`].
///
/// # Errors
/// When it is not what a layout of version 1 says.
pub fn check_layout(bytes: &[u8]) -> Result<(), ParseLayoutError> {
    #[derive(Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let layout: Layout = serde_json::from_slice(bytes)?;
    match layout.version.starts_with("1.") {
        true => Ok(()),
        false => Err(ParseLayoutError::Version(layout.version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_lead_to_what_the_layout_says() {
        let digest = Digest::of(b"");
        let blob = LayoutPath::of_blob(&digest);
        for (path, expected) in [
            ("oci-layout", LayoutPath::Layout),
            ("./oci-layout", LayoutPath::Layout),
            ("index.json", LayoutPath::Index),
            ("manifest.json", LayoutPath::DockerManifest),
            (&blob, LayoutPath::Blob(digest)),
            (&format!("./{blob}"), LayoutPath::Blob(digest)),
            (&format!("{blob}/x"), LayoutPath::Other),
            (&blob.to_uppercase(), LayoutPath::Other),
            ("blobs/", LayoutPath::Other),
            ("blobs/sha256", LayoutPath::Other),
            ("blobs/sha256/short", LayoutPath::Other),
            ("x/index.json", LayoutPath::Other),
            ("./", LayoutPath::Other),
            (".", LayoutPath::Other),
            ("repositories", LayoutPath::Other),
        ] {
            assert_eq!(LayoutPath::parse(path.as_bytes()), Ok(expected), "{path}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [
            "",
            "/",
            ".//",
            "/etc/passwd",
            "//index.json",
            "../x",
            "..",
            "blobs/../index.json",
            "blobs//sha256/x",
            "././index.json",
            "blobs/./x",
            "index.json//",
            "a\0b",
            "..\\x",
        ] {
            assert_eq!(
                LayoutPath::parse(path.as_bytes()),
                Err(UnsafePath),
                "{path}"
            );
        }
        assert_eq!(LayoutPath::parse(b"\xff"), Err(UnsafePath));
    }

    #[test]
    fn an_index_reads_what_it_wrote() {
        let mut annotations = BTreeMap::new();
        annotations.insert(annotation::REF_NAME.to_owned(), "team/app:v1".to_owned());
        let index = LayoutIndex::new(vec![LayoutImage {
            media_type: media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::of(b"m"),
            size: 1,
            annotations,
        }]);
        let json = index.to_json();
        assert_eq!(LayoutIndex::parse(&json).unwrap(), index);
        for bit in 0..json.len() * 8 {
            let mut flipped = json.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = LayoutIndex::parse(&flipped);
            // What is flipped in a key that may be missing is missing.
            let is_same = |read: &LayoutIndex| read.manifests == index.manifests;
            assert!(read.as_ref().map_or(true, is_same), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn an_index_without_a_media_type_is_one() {
        let index = LayoutIndex::parse(br#"{"schemaVersion":2,"manifests":[]}"#);
        assert_eq!(index.unwrap().manifests, []);
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"imageLayoutVersion":"2.0.0"}"#,
            "<html>",
        ] {
            assert!(check_layout(text.as_bytes()).is_err(), "{text}");
        }
        assert!(check_layout(LAYOUT.as_bytes()).is_ok());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
            media_type::OCI_MANIFEST
        );
        for text in ["", "[]", "{}", &manifest] {
            assert!(LayoutIndex::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_path_leads_out(path in "[./a-z\\\\]{0,12}|.*") {
            if LayoutPath::parse(path.as_bytes()).is_ok() {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|part| part != ".."));
            }
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
            let _ = LayoutPath::parse(&bytes);
            let _ = LayoutIndex::parse(&bytes);
            let _ = check_layout(&bytes);
        }

        #[test]
        fn blobs_are_found_by_their_own_path(hash: [u8; 32]) {
            let digest = Digest::from_sha256(hash);
            let path = LayoutPath::of_blob(&digest);
            prop_assert_eq!(LayoutPath::parse(path.as_bytes()), Ok(LayoutPath::Blob(digest)));
        }
    }
}
