//! Sample images: manifests, configs and layers as a real build would push them.

use std::io::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

use super::content::BlobSource;
use super::shelf::{Manifest, Shelf};

/// Which family of media types an image is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// OCI image manifests and index.
    #[default]
    Oci,
    /// Docker schema 2 manifests and manifest list.
    Docker,
}

impl Flavour {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// A file of a runnable layer.
#[derive(Clone, Debug)]
pub struct LayerFile {
    /// Relative, e.g. `bin/sh`; the folders above are made.
    pub path: String,
    /// Permission bits, e.g. `0o755`.
    pub mode: u32,
    /// The content, or where a symbolic link leads.
    pub content: FileContent,
}

/// What a [`LayerFile`] is.
#[derive(Clone, Debug)]
pub enum FileContent {
    /// An ordinary file.
    Bytes(Bytes),
    /// A symbolic link to this path.
    Link(String),
}

impl LayerFile {
    /// An executable.
    pub fn executable(path: &str, bytes: impl Into<Bytes>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            content: FileContent::Bytes(bytes.into()),
        }
    }

    /// A file readable by all.
    pub fn plain(path: &str, bytes: impl Into<Bytes>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            content: FileContent::Bytes(bytes.into()),
        }
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            path: path.into(),
            mode: 0o777,
            content: FileContent::Link(target.into()),
        }
    }
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub enum Layer {
    /// Any bytes; enough for pulling, not for running.
    Blob(BlobSource),
    /// A gzipped tar of these files.
    Files(Vec<LayerFile>),
}

impl Layer {
    /// The blob and the digest of its uncompressed form.
    fn build(&self) -> std::io::Result<(BlobSource, String)> {
        match self {
            Self::Blob(source) => Ok((source.clone(), source.digest())),
            Self::Files(files) => {
                let tar = tar(files)?;
                let diff_id = BlobSource::from(tar.clone()).digest();
                Ok((BlobSource::from(gzip(&tar)), diff_id))
            }
        }
    }
}

/// What to make an image of.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    layers: Vec<Layer>,
    platforms: Vec<String>,
    flavour: Flavour,
    command: Vec<String>,
}

impl ImageSpec {
    /// An image of these layers for `linux/amd64`.
    pub fn layers(layers: impl IntoIterator<Item = Layer>) -> Self {
        Self {
            layers: layers.into_iter().collect(),
            platforms: vec!["linux/amd64".into()],
            flavour: Flavour::default(),
            command: Vec::new(),
        }
    }

    /// An image of generated layers of these sizes, told apart by `seed`.
    pub fn generated(seed: u64, sizes: impl IntoIterator<Item = u64>) -> Self {
        let sizes = sizes.into_iter().zip(0_u64..);
        Self::layers(sizes.map(|(len, number)| {
            Layer::Blob(BlobSource::generated(seed.wrapping_mul(1000) + number, len))
        }))
    }

    /// The same layers for each of these platforms (`os/architecture[/variant]`). With two or
    /// more, the tag names an index.
    #[must_use]
    pub fn platforms<'a>(mut self, platforms: impl IntoIterator<Item = &'a str>) -> Self {
        self.platforms = platforms.into_iter().map(str::to_owned).collect();
        self
    }

    /// The family of media types.
    #[must_use]
    pub fn flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = flavour;
        self
    }

    /// What the image runs.
    #[must_use]
    pub fn command<'a>(mut self, command: impl IntoIterator<Item = &'a str>) -> Self {
        self.command = command.into_iter().map(str::to_owned).collect();
        self
    }
}

/// A descriptor of something stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// As the descriptor says it.
    pub media_type: String,
}

impl Stored {
    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// One platform's image.
#[derive(Clone, Debug)]
pub struct PushedManifest {
    /// `os/architecture[/variant]`
    pub platform: String,
    /// The manifest.
    pub manifest: Stored,
    /// Its config.
    pub config: Stored,
    /// Its layers, lowest first.
    pub layers: Vec<Stored>,
}

/// What an image became.
#[derive(Clone, Debug)]
pub struct PushedImage {
    /// What the tag names: an index, or the only manifest.
    pub top: Stored,
    /// One for each platform.
    pub manifests: Vec<PushedManifest>,
}

impl PushedImage {
    /// Every config and layer, each once.
    pub fn blobs(&self) -> Vec<Stored> {
        let mut blobs: Vec<Stored> = Vec::new();
        for manifest in &self.manifests {
            for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if !blobs.contains(blob) {
                    blobs.push(blob.clone());
                }
            }
        }
        blobs
    }
}

/// Builds the image of `spec` and puts it into a repository that exists.
pub(super) fn store(
    shelf: &Shelf,
    repository: &str,
    tag: &str,
    spec: &ImageSpec,
) -> std::io::Result<PushedImage> {
    let flavour = spec.flavour;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in &spec.layers {
        let (source, diff_id) = layer.build()?;
        layers.push(put(shelf, repository, source, flavour.layer()));
        diff_ids.push(diff_id);
    }
    let mut manifests = Vec::new();
    for platform in &spec.platforms {
        let config = json!({
            "created": "2026-01-01T00:00:00Z",
            "os": part(platform, 0),
            "architecture": part(platform, 1),
            "config": {
                "Cmd": spec.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({
                "created": "2026-01-01T00:00:00Z", "created_by": "simulator",
            })).collect::<Vec<_>>(),
        });
        let source = BlobSource::from(config.to_string().into_bytes());
        let config = put(shelf, repository, source, flavour.config());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": flavour.manifest(),
            "config": config.descriptor(),
            "layers": layers.iter().map(Stored::descriptor).collect::<Vec<_>>(),
        });
        manifests.push(PushedManifest {
            platform: platform.clone(),
            manifest: put_manifest(shelf, repository, None, flavour.manifest(), &manifest),
            config,
            layers: layers.clone(),
        });
    }
    let top = match &manifests[..] {
        [only] => {
            let digest = &only.manifest.digest;
            shelf.change(repository, |r| r.tags.insert(tag.into(), digest.clone()));
            only.manifest.clone()
        }
        several => {
            let children = several.iter().map(|pushed| {
                let mut descriptor = pushed.manifest.descriptor();
                let platform = &pushed.platform;
                descriptor["platform"] =
                    json!({"os": part(platform, 0), "architecture": part(platform, 1)});
                if let Some(variant) = platform.split('/').nth(2) {
                    descriptor["platform"]["variant"] = variant.into();
                }
                descriptor
            });
            let index = json!({
                "schemaVersion": 2,
                "mediaType": flavour.index(),
                "manifests": children.collect::<Vec<_>>(),
            });
            put_manifest(shelf, repository, Some(tag), flavour.index(), &index)
        }
    };
    Ok(PushedImage { top, manifests })
}

fn part(platform: &str, place: usize) -> &str {
    platform.split('/').nth(place).unwrap_or_default()
}

fn put(shelf: &Shelf, repository: &str, source: BlobSource, media_type: &str) -> Stored {
    let stored = Stored {
        digest: source.digest(),
        size: source.len(),
        media_type: media_type.into(),
    };
    shelf.put_blob(repository, &stored.digest, source, true);
    stored
}

fn put_manifest(
    shelf: &Shelf,
    repository: &str,
    tag: Option<&str>,
    media_type: &str,
    json: &Value,
) -> Stored {
    let bytes = Bytes::from(json.to_string());
    let stored = Stored {
        digest: BlobSource::from(bytes.clone()).digest(),
        size: bytes.len() as u64,
        media_type: media_type.into(),
    };
    let manifest = Manifest {
        media_type: media_type.into(),
        bytes,
    };
    shelf.change(repository, |r| r.store(&stored.digest, manifest, tag));
    stored
}

/// The same bytes for the same files, whenever made.
fn tar(files: &[LayerFile]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut folders = std::collections::BTreeSet::new();
    for file in files {
        for (at, _) in file.path.match_indices('/') {
            let folder = &file.path[..=at];
            if folders.insert(folder) {
                let mut header = tar::Header::new_ustar();
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                archive.append_data(&mut header, folder, std::io::empty())?;
            }
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        match &file.content {
            FileContent::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, &file.path, &bytes[..])?;
            }
            FileContent::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive.append_link(&mut header, &file.path, target)?;
            }
        }
    }
    archive.into_inner()
}

/// Compressed with no time in the header, so that the digest is stable.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let compression = flate2::Compression::fast();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), compression);
    gzip.write_all(bytes)
        .and_then(|()| gzip.finish())
        .expect("writing to a Vec does not fail")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_layer_of_files_unpacks_and_its_diff_id_is_that_of_the_tar() {
        let layer = Layer::Files(vec![
            LayerFile::executable("bin/busybox", &b"#!"[..]),
            LayerFile::link("bin/sh", "busybox"),
        ]);
        let (blob, diff_id) = layer.build().unwrap();
        assert_eq!(layer.build().unwrap().0.digest(), blob.digest());
        let packed = blob.read(0..blob.len());
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(BlobSource::from(tar.clone()).digest(), diff_id);
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin/", "bin/busybox", "bin/sh"]);
    }
}
