//! What is asked and what is told. These are the words of the admin socket and of `--json`: fields are
//! added, not renamed.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | requests and events |
//! | `told` | what events carry |
//! | `time` | points in time |

mod time;
mod told;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, ImageName, ImagePattern, Platform, RepositoryName};

pub use time::Time;
pub use told::{
    Answers, BytesByState, Fault, ImageState, ImportTally, ListedImage, ListedPlatform, Missing,
    PinnedBy, Pruned, Removed, Stats, Verified, WarmDone, WarmProgress, WarmSummary,
};

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
        /// An upstream that stands in for its own says so, and is what clients are told while its own cannot answer.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stand_in: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::warm::Reached;

    #[test]
    fn the_words_of_the_socket_do_not_change() {
        let json = |event: &Event| serde_json::to_string(event).expect("JSON");
        assert_eq!(json(&Event::End { error: None }), r#"{"event":"end"}"#);
        let error = Some(Reason::Usage("no".to_owned()));
        assert_eq!(
            json(&Event::End { error }),
            r#"{"event":"end","error":{"kind":"usage","message":"no"}}"#
        );
        let warm = Event::WarmProgress(WarmProgress {
            image: "team/app:v1".parse().expect("an image"),
            reached: Reached {
                blobs: 3,
                blobs_done: 2,
                bytes: 30,
                bytes_done: 20,
            },
        });
        let text = json(&warm);
        assert_eq!(
            text,
            r#"{"event":"warm-progress","image":"team/app:v1","blobs":3,"blobs_done":2,"bytes":30,"bytes_done":20}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).expect("it"), warm);
        let request = serde_json::to_string(&Request::Stats).expect("JSON");
        assert_eq!(request, r#"{"operation":"stats"}"#);
    }
}
