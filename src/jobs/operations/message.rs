//! What is asked and what is told. These are the words of the admin socket and of `--json`: fields are
//! added, not renamed.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::oci::{Digest, ImageName, Platform};

/// An operation and what it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "operation",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Request {
    /// What is in the cache, in figures. Answered by one [`Event::Stats`].
    Stats,
    /// Images as a bundle. Answered by [`Event::Bundle`] and the bundle's bytes.
    Export {
        /// The images.
        images: Vec<ImageName>,
        /// Of an index only the manifests for these; all if empty.
        #[serde(default)]
        platforms: Vec<Platform>,
        /// What refers to the images, too.
        referrers: bool,
    },
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
    /// The figures are of all there is: false while the cache is still being counted after a start.
    pub is_counted: bool,
    /// Downloads that broke off and wait to be continued.
    pub interrupted_downloads: u64,
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
