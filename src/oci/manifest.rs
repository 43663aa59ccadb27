//! Manifests and indexes (image-spec `manifest.md`, `image-index.md`; Docker image manifest V2, schema 2).
//!
//! Only what a cache must understand is read: which content a manifest names. The bytes themselves are
//! never rewritten.

use serde::Deserialize;

use super::digest::Digest;
use super::platform::Platform;

/// Media types that a registry serves as manifests.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// All four, as an `Accept` names them.
    pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

    /// The type without its parameters.
    pub fn essence(content_type: &str) -> &str {
        content_type.split(';').next().unwrap_or_default().trim()
    }
}

/// What a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What sort of manifest it is, with its parts.
    pub kind: ManifestKind,
    /// The manifest this one refers to (signatures, SBOMs).
    pub subject: Option<Descriptor>,
}

/// The sorts of manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    /// One image or artifact: a config and layers.
    Image {
        /// The config blob.
        config: Option<Descriptor>,
        /// The layer blobs, lowest first.
        layers: Vec<Descriptor>,
    },
    /// Several manifests, one a platform.
    Index {
        /// The manifests.
        manifests: Vec<Descriptor>,
    },
    /// A type we do not look into.
    Other,
}

/// A reference to content (image-spec `descriptor.md`). Descriptors whose digest is not sha256 are left
/// out of a parsed manifest: no client could ask us for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The type of the content.
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// Where else the content may be had: foreign layers. Never dialled by us.
    pub urls: Vec<String>,
    /// What the manifest runs on, in an index.
    pub platform: Option<Platform>,
    /// The image beside it in the index that this manifest attests to, as BuildKit notes it: such a
    /// manifest holds an SBOM or provenance and runs on nothing.
    pub attests: Option<Digest>,
}

/// Why bytes are not a manifest that may be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ParseManifestError {
    /// Not JSON of the right shape: syntax, repeated keys, nesting too deep, trailing bytes.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// The document says one media type and the Content-Type another (CVE-2021-41190).
    #[error("the manifest calls itself {inner} but came as {outer}")]
    MediaTypeMismatch {
        /// `mediaType` in the document.
        inner: String,
        /// The Content-Type it came with.
        outer: String,
    },
    /// It has both `layers` (or `config`) and `manifests`, so two readers may disagree on what it is.
    #[error("the manifest is both an image and an index")]
    Ambiguous,
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    subject: Option<RawDescriptor>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    platform: Option<RawPlatform>,
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize)]
struct RawAnnotations {
    #[serde(rename = "vnd.docker.reference.digest")]
    attests: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl RawDescriptor {
    fn checked(self) -> Option<Descriptor> {
        Some(Descriptor {
            media_type: self.media_type,
            digest: self.digest.parse().ok()?,
            size: self.size,
            urls: self.urls.unwrap_or_default(),
            platform: self.platform.map(|raw| Platform {
                os: raw.os,
                architecture: raw.architecture,
                variant: raw.variant,
            }),
            attests: self
                .annotations
                .and_then(|annotations| annotations.attests?.as_str()?.parse().ok()),
        })
    }
}

fn checked(raw: Option<Vec<RawDescriptor>>) -> Vec<Descriptor> {
    raw.unwrap_or_default()
        .into_iter()
        .filter_map(RawDescriptor::checked)
        .collect()
}

impl Manifest {
    /// Reads a manifest that came with the Content-Type `content_type`; parameters of it are ignored.
    ///
    /// # Errors
    /// When the document is not JSON of the right shape, or could be read in two ways.
    pub fn parse(content_type: &str, bytes: &[u8]) -> Result<Self, ParseManifestError> {
        let content_type = media_type::essence(content_type);
        let raw: RawManifest = serde_json::from_slice(bytes)?;
        if let Some(inner) = raw
            .media_type
            .as_deref()
            .filter(|inner| *inner != content_type)
        {
            return Err(ParseManifestError::MediaTypeMismatch {
                inner: inner.to_owned(),
                outer: content_type.to_owned(),
            });
        }
        let is_image = raw.layers.is_some() || raw.config.is_some() || raw.fs_layers.is_some();
        if is_image && raw.manifests.is_some() {
            return Err(ParseManifestError::Ambiguous);
        }
        let kind = match content_type {
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => ManifestKind::Image {
                config: raw.config.and_then(RawDescriptor::checked),
                layers: checked(raw.layers),
            },
            media_type::OCI_INDEX | media_type::DOCKER_LIST => ManifestKind::Index {
                manifests: checked(raw.manifests),
            },
            _ => ManifestKind::Other,
        };
        Ok(Self {
            kind,
            subject: raw.subject.and_then(RawDescriptor::checked),
        })
    }

    /// The blobs that a repository holding this manifest holds as well: config and layers, foreign
    /// layers (with `urls`) left out because registries need not have them.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, layers) = match &self.kind {
            ManifestKind::Image { config, layers } => (config.as_ref(), layers.as_slice()),
            ManifestKind::Index { .. } | ManifestKind::Other => (None, [].as_slice()),
        };
        config
            .into_iter()
            .chain(layers)
            .filter(|blob| blob.urls.is_empty())
    }

    /// The layers of an image, lowest first, foreign ones left out; empty for an index.
    pub fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        let layers = match &self.kind {
            ManifestKind::Image { layers, .. } => layers.as_slice(),
            ManifestKind::Index { .. } | ManifestKind::Other => [].as_slice(),
        };
        layers.iter().filter(|layer| layer.urls.is_empty())
    }

    /// The manifests that an index names; empty for an image.
    pub fn children(&self) -> &[Descriptor] {
        match &self.kind {
            ManifestKind::Index { manifests } => manifests,
            ManifestKind::Image { .. } | ManifestKind::Other => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(data: &[u8]) -> String {
        format!(
            r#"{{"mediaType":"x/y","digest":"{}","size":{}}}"#,
            Digest::of(data),
            data.len()
        )
    }

    fn parse(content_type: &str, json: &str) -> Result<Manifest, ParseManifestError> {
        Manifest::parse(content_type, json.as_bytes())
    }

    #[test]
    fn an_image_names_its_config_and_layers_and_no_foreign_layer() {
        let foreign = format!(
            r#"{{"mediaType":"x","digest":"{}","size":1,"urls":["http://169.254.169.254/"]}}"#,
            Digest::of(b"f")
        );
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{},{foreign}]}}"#,
            media_type::OCI_MANIFEST,
            descriptor(b"c"),
            descriptor(b"l1"),
        );
        let manifest = parse(
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            &json,
        )
        .unwrap();
        let blobs: Vec<_> = manifest.blobs().map(|blob| blob.digest).collect();
        assert_eq!(blobs, [Digest::of(b"c"), Digest::of(b"l1")]);
        assert!(manifest.children().is_empty());
    }

    #[test]
    fn an_index_names_its_children_with_their_platforms() {
        let child = format!(
            r#"{{"mediaType":"x","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}"#,
            Digest::of(b"m")
        );
        let attestation = format!(
            r#"{{"mediaType":"x","digest":"{}","size":1,"annotations":{{"vnd.docker.reference.digest":"{}","x":7}}}}"#,
            Digest::of(b"a"),
            Digest::of(b"m")
        );
        let manifest = parse(
            media_type::DOCKER_LIST,
            &format!(r#"{{"manifests":[{child},{attestation}]}}"#),
        )
        .unwrap();
        let attests: Vec<_> = manifest.children().iter().map(|c| c.attests).collect();
        assert_eq!(attests, [None, Some(Digest::of(b"m"))]);
        assert_eq!(manifest.blobs().count(), 0);
        let platform = manifest.children()[0].platform.as_ref().unwrap();
        assert_eq!(platform.architecture, "arm64");
    }

    #[test]
    fn a_layer_with_a_digest_we_do_not_serve_is_left_out() {
        let json = format!(
            r#"{{"layers":[{{"mediaType":"x","digest":"sha512:{}","size":1}},{}]}}"#,
            "a".repeat(128),
            descriptor(b"l")
        );
        assert_eq!(
            parse(media_type::OCI_MANIFEST, &json)
                .unwrap()
                .blobs()
                .count(),
            1
        );
    }

    #[test]
    fn p16_ambiguous_manifests_are_refused() {
        let oci = media_type::OCI_MANIFEST;
        let both = format!(
            r#"{{"layers":[{}],"manifests":[{}]}}"#,
            descriptor(b"l"),
            descriptor(b"m")
        );
        assert!(matches!(
            parse(oci, &both),
            Err(ParseManifestError::Ambiguous)
        ));
        let lying = format!(
            r#"{{"mediaType":"{}","manifests":[]}}"#,
            media_type::OCI_INDEX
        );
        assert!(matches!(
            parse(oci, &lying),
            Err(ParseManifestError::MediaTypeMismatch { .. })
        ));
        for json in [
            r#"{"layers":[],"layers":[]}"#.to_owned(),
            "\u{feff}{}".to_owned(),
            "{} x".to_owned(),
            "<html></html>".to_owned(),
            "[]".to_owned(),
            String::new(),
            format!("{}{}", r#"{"annotations":"#, "[".repeat(100_000)),
        ] {
            assert!(
                matches!(parse(oci, &json), Err(ParseManifestError::Json(_))),
                "{json:.60}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, index: bool) {
            let content_type = if index { media_type::OCI_INDEX } else { media_type::OCI_MANIFEST };
            let _ = Manifest::parse(content_type, &bytes);
        }
    }
}
