//! What is asked and what is told. These are the words of the admin socket and of `--json`: fields are
//! added, not renamed.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::oci::{Digest, ImageName, ImagePattern, Platform, RepositoryName, Tag};

/// An operation and what it needs to know. A field that is not known is refused: it may be a `dry_run` that
/// somebody spelt otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "operation",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case",
    deny_unknown_fields
)]
pub enum Request {
    /// What is in the cache, in figures. Answered by one [`Event::Stats`].
    Stats,
    /// The images in the cache. Answered by an [`Event::Image`] for each, in order of name.
    List {
        /// Which; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        images: Option<ImagePattern>,
    },
    /// Hashes everything again. Answered by [`Event::Verifying`] from time to time, an event for each
    /// damage found, an [`Event::Healed`] for each blob that was fetched again, and [`Event::Verified`].
    Verify,
    /// What is pinned. Answered by an [`Event::Pin`] for each.
    Pins,
    /// Keeps these whatever happens. Answered by an [`Event::Pinned`] for each.
    Pin {
        /// Tags or digests of repositories.
        images: Vec<ImagePattern>,
    },
    /// Takes pins away. Answered by an [`Event::Unpinned`] for each.
    Unpin {
        /// As they were pinned.
        images: Vec<ImagePattern>,
    },
    /// Gives images up, with what they alone need. Answered by an [`Event::Removed`] for each.
    Remove {
        /// The images.
        images: Vec<ImageName>,
        /// Only tells what would go.
        #[serde(default)]
        dry_run: bool,
    },
    /// Gives up what all of these say that are there. Answered by one [`Event::Pruned`].
    Prune {
        /// Images that were not used for so many seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        older_than_seconds: Option<u64>,
        /// What was not used for longest, until so many bytes are used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to_bytes: Option<u64>,
        /// Blobs that no image in the cache needs.
        #[serde(default)]
        unreferenced: bool,
        /// Only tells what would go.
        #[serde(default)]
        dry_run: bool,
    },
    /// Asks the upstream now what tags mean. Answered by an [`Event::Refreshed`] for each.
    Refresh {
        /// The images, by tag.
        images: Vec<ImageName>,
    },
    /// Fill the cache with images. Answered by [`Event::WarmProgress`] while it goes on, an
    /// [`Event::WarmDone`] for each image and one [`Event::WarmSummary`].
    Warm(Warm),
    /// Images as a bundle. Answered by what [`Request::Warm`] is answered by, unless it is to stay
    /// offline, and then by [`Event::Bundle`] and the bundle's bytes.
    Export(Export),
    /// Takes in the bundle that follows as input. Answered by an [`Event::Imported`] for each image and
    /// one [`Event::ImportEnded`].
    Import {
        /// `repository[:tag]` to take the place of what the bundle says.
        #[serde(default)]
        rename: Option<String>,
        /// Of an index only the manifests for these; all that are in the bundle if empty.
        #[serde(default)]
        platforms: Vec<Platform>,
    },
}

/// Which images the cache is to be filled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    /// The images.
    pub images: Vec<ImageName>,
    /// Of an index only the manifests for these; all if empty.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Whatever refers to the images as well: signatures, SBOMs.
    pub referrers: bool,
}

/// Which images are exported, and what of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The images.
    pub images: Vec<ImageName>,
    /// Of an index only the manifests for these; all if empty.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Whatever refers to the images as well: signatures, SBOMs.
    pub referrers: bool,
    /// What is in the cache, as it is there; else the upstream is asked first, where it can be.
    #[serde(default)]
    pub offline: bool,
}

/// How far an image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    /// The image.
    pub image: ImageName,
    /// Its blobs.
    pub blobs: u64,
    /// Those of them that are in the cache.
    pub blobs_done: u64,
    /// Bytes of all its blobs.
    pub bytes: u64,
    /// Those of them that are in the cache.
    pub bytes_done: u64,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmDone {
    /// The image.
    pub image: ImageName,
    /// What its name means now.
    pub digest: Option<Digest>,
    /// Its manifests, those of referrers among them.
    pub manifests: u64,
    /// The manifests among them that only refer to the image.
    pub referrers: u64,
    /// Its blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The blobs that had to be fetched.
    pub fetched_blobs: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Why something of it is not in the cache, or may be another by now; none if all is well.
    pub errors: Vec<String>,
    /// What is odd without keeping anybody from pulling it.
    pub notes: Vec<String>,
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

impl Request {
    /// True for what changes the records of repositories on the way. An import makes its own durable, image by
    /// image.
    pub(super) fn writes_records(&self) -> bool {
        match self {
            Self::Verify
            | Self::Remove { .. }
            | Self::Prune { .. }
            | Self::Refresh { .. }
            | Self::Warm(_)
            | Self::Export(_) => true,
            Self::Stats
            | Self::List { .. }
            | Self::Pins
            | Self::Pin { .. }
            | Self::Unpin { .. }
            | Self::Import { .. } => false,
        }
    }
}

/// What an operation tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Event {
    /// The cache in figures.
    Stats(Stats),
    /// An image in the cache.
    Image(ListedImage),
    /// How far a verification has come.
    Verifying {
        /// Bytes hashed so far.
        bytes: u64,
        /// Bytes there were to hash when it began.
        total_bytes: u64,
    },
    /// A blob was damaged, and is taken away; it is wanted until it was fetched again.
    Damaged {
        /// The blob.
        digest: Digest,
        /// In which way.
        damage: String,
    },
    /// A blob that was damaged was fetched again.
    Healed {
        /// The blob.
        digest: Digest,
    },
    /// Some of a repository's records were damaged. What is readable is kept.
    DamagedRecords {
        /// The upstream it is of.
        upstream: String,
        /// The repository.
        repository: RepositoryName,
        /// How many stretches of its log were not readable.
        stretches: u64,
    },
    /// Something in the cache's directory that cannot be read, and of which nothing else is known.
    Unreadable {
        /// Where, below that directory.
        path: String,
        /// Why.
        reason: String,
    },
    /// Something in the cache's directory that is not of the cache; it is left alone.
    Foreign {
        /// Where, below that directory.
        path: String,
    },
    /// What a verification came to.
    Verified(Verified),
    /// A pin there is.
    Pin {
        /// What is pinned.
        pin: String,
        /// Where it was made.
        by: PinnedBy,
    },
    /// A pin is there from now on.
    Pinned {
        /// What is pinned.
        pin: String,
        /// It was not there before.
        is_new: bool,
        /// How many tags or manifests it describes that are in the cache.
        images: u64,
    },
    /// A pin is gone.
    Unpinned {
        /// What was pinned.
        pin: String,
    },
    /// An image was given up.
    Removed(Removed),
    /// What pruning came to.
    Pruned(Pruned),
    /// The upstream was asked what a tag means.
    Refreshed {
        /// The image.
        image: String,
        /// What it meant before, if that was known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Digest>,
        /// What it means.
        now: Digest,
    },
    /// How far an image has come; several times a second while it does.
    WarmProgress(WarmProgress),
    /// What became of an image.
    WarmDone(WarmDone),
    /// What became of all images.
    WarmSummary(WarmSummary),
    /// What a bundle holds; its bytes follow.
    Bundle {
        /// Images, and what refers to them.
        images: u64,
        /// Blobs, manifests not among them.
        blobs: u64,
        /// Length of the bundle.
        bytes: u64,
    },
    /// What became of one image of a bundle.
    Imported {
        /// What it is called here.
        image: String,
        /// Its manifest.
        digest: Digest,
        /// What its tag named before, where that was another manifest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaced: Option<Digest>,
        /// Why nothing of it was applied, where nothing was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// What an import came to.
    ImportEnded(ImportTally),
    /// The last event: the operation is over.
    End {
        /// Why it did not do all that it was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Reason>,
    },
}

/// Why an operation did not do all that it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "message", rename_all = "kebab-case")]
pub enum Reason {
    /// It was asked for something that cannot be meant, and did nothing.
    Usage(String),
    /// It failed, perhaps in part.
    Failed(String),
}

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
    /// Its repository.
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

/// A point in time, in messages as RFC 3339 with a resolution of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub SystemTime);

impl Time {
    /// `seconds` since the epoch; before it, the epoch.
    pub fn from_seconds(seconds: i64) -> Self {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Self(
            UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .unwrap_or(UNIX_EPOCH),
        )
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 there is no such text.
        let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        humantime::format_rfc3339_seconds(self.0.clamp(UNIX_EPOCH, last)).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_told() {
        assert_eq!(Time::from_seconds(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Time::from_seconds(-5), Time::from_seconds(0));
        let told = Time::from_seconds(i64::MAX).to_string();
        assert_eq!(told, "9999-12-31T23:59:59Z");
        let time = Time::from_seconds(1_700_000_000);
        let text = serde_json::to_string(&time).expect("JSON");
        assert_eq!(text, "\"2023-11-14T22:13:20Z\"");
        assert_eq!(serde_json::from_str::<Time>(&text).expect("a time"), time);
    }

    #[test]
    fn the_words_of_the_socket_do_not_change() {
        let json = |event: &Event| serde_json::to_string(event).expect("JSON");
        assert_eq!(json(&Event::End { error: None }), r#"{"event":"end"}"#);
        let error = Some(Reason::Usage("no".to_owned()));
        assert_eq!(
            json(&Event::End { error }),
            r#"{"event":"end","error":{"kind":"usage","message":"no"}}"#
        );
        let request = serde_json::to_string(&Request::Stats).expect("JSON");
        assert_eq!(request, r#"{"operation":"stats"}"#);
    }
}
