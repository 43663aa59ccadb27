//! What events carry: figures, images, what operations came to.

use serde::{Deserialize, Serialize};

use super::Time;
use crate::jobs::warm::{Reached, Warmed};
use crate::oci::{Digest, ImageName, RepositoryName, Tag};

/// The cache in figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes on disk.
    pub bytes: BytesByState,
    /// The most that the cache may use, in bytes.
    pub limit_bytes: u64,
    /// Blobs in the cache.
    pub blobs: u64,
    /// Repositories of which anything is recorded.
    pub repositories: u64,
    /// Their tags.
    pub tags: u64,
    /// Their manifests.
    pub manifests: u64,
    /// The figures are of all there is: false while the cache is still being counted after a start.
    pub is_counted: bool,
    /// Downloads that broke off and wait to be continued.
    pub interrupted_downloads: u64,
    /// Pins there are.
    pub pins: u64,
    /// How clients were answered since the start, where the proxy runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answers>,
    /// What is wrong with the cache.
    pub degraded: Vec<Fault>,
}

/// What an import came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportTally {
    /// Images that were applied.
    pub images: u64,
    /// Images of which nothing was applied.
    pub failed_images: u64,
    /// Blobs that the cache did not have.
    pub new_blobs: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Blobs that it had.
    pub known_blobs: u64,
    /// Their bytes.
    pub known_bytes: u64,
}

/// How clients were answered, by how the cache took part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// From the cache.
    pub hits: u64,
    /// By a fill that the request began.
    pub misses: u64,
    /// From a fill that was running.
    pub joins: u64,
    /// From the cache, though the upstream could not be asked.
    pub stale: u64,
    /// Past the cache.
    pub bypasses: u64,
}

/// Bytes on disk by the state of the file that they are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesByState {
    /// All of them.
    pub total: u64,
    /// Verified blobs.
    pub blobs: u64,
    /// Downloads in progress, or broken off; their whole length counts.
    pub downloads: u64,
    /// Removed, and still being read by a client.
    pub removed: u64,
    /// Records of repositories, and the index.
    pub records: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// What.
    pub what: String,
    /// Since when.
    pub since: Time,
}

/// An image in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedImage {
    /// The upstream it is from.
    pub upstream: String,
    /// The domain or registry that clients have to name with it, where it takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Its repository, as clients write it.
    pub repository: RepositoryName,
    /// A tag it has; an image with several is listed with each, one with none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
    /// How much of it is here.
    pub state: ImageState,
    /// What it runs on, where it is an index that says so, and whether that is here.
    pub platforms: Vec<ListedPlatform>,
    /// Bytes of it that are here, those it shares with others included.
    pub bytes: u64,
    /// What of it is not here.
    pub missing: Missing,
    /// Signatures, SBOMs and the like that are here, too, and are about it.
    pub referrers: u64,
    /// It is kept whatever happens.
    pub is_pinned: bool,
    /// When the upstream last confirmed it.
    pub checked: Time,
    /// When all of it was last used, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_use: Option<Time>,
}

impl ListedImage {
    /// Its repository, with the domain or registry that clients have to name with it.
    pub fn name(&self) -> String {
        match &self.domain {
            Some(domain) => format!("{domain}/{}", self.repository),
            None => self.repository.to_string(),
        }
    }
}

/// How much of an image is in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// All of it, for all platforms.
    Complete,
    /// All of it for some platforms: those can be pulled without the upstream.
    SomePlatforms,
    /// Not enough to be pulled without the upstream.
    Partial,
}

/// A platform of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedPlatform {
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// All of it is in the cache.
    pub is_complete: bool,
}

/// What of an image is not in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Manifests; what they name is not known.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// The bytes of those.
    pub bytes: u64,
}

/// Where a pin was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinnedBy {
    /// In `cache.pins` of the configuration.
    Configuration,
    /// By `ecr-proxy cache pin`.
    Operator,
}

/// An image that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The image.
    pub image: String,
    /// Its manifest or index.
    pub digest: Digest,
    /// Manifests that are gone with it; none if it stays by another name.
    pub manifests: u64,
    /// Blobs that are gone with it.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Nothing was done.
    pub dry_run: bool,
}

/// What pruning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Manifests that are gone.
    pub manifests: u64,
    /// Blobs that are gone.
    pub blobs: u64,
    /// Bytes that are free.
    pub bytes: u64,
    /// Bytes that are used now.
    pub used_bytes: u64,
    /// Nothing was done.
    pub dry_run: bool,
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Blobs that are what they should be.
    pub sound: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Blobs that were not what they should be.
    pub damaged: u64,
    /// Of these, what was fetched again.
    pub healed: u64,
    /// Repositories whose records were read.
    pub repositories: u64,
    /// Repositories some of whose records were damaged.
    pub damaged_records: u64,
    /// Files and directories that could not be read.
    pub unreadable: u64,
}

/// How far an image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    /// The image.
    pub image: ImageName,
    /// How far.
    #[serde(flatten)]
    pub reached: Reached,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmDone {
    /// The image.
    pub image: ImageName,
    /// What became of it.
    #[serde(flatten)]
    pub warmed: Warmed,
}

/// What became of all images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmSummary {
    /// How many there were.
    pub images: u64,
    /// Those that are in the cache, as upstream has them now.
    pub complete: u64,
    /// Bytes of their blobs; those that images share count for each.
    pub bytes: u64,
    /// Bytes that had to be fetched.
    pub fetched_bytes: u64,
    /// The images of which something is missing, as they were asked for.
    pub failed: Vec<ImageName>,
}
