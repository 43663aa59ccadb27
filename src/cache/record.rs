//! One record of a repository's log: its meaning and its bytes.
//!
//! Pure. A payload that does not parse is no record; there is no other outcome.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;

use crate::oci::Digest;
use crate::oci::header::Identity;

/// A manifest as upstream returned it. Clones are handles of the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest(Arc<Returned>);

/// What upstream returned, and what the headers of all answers with it say of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Returned {
    /// What `bytes` hash to.
    pub digest: Digest,
    /// The Content-Type it came with.
    pub media_type: Arc<str>,
    /// The body, unchanged.
    pub bytes: Bytes,
    /// `media_type` as a header says it; what was stored was one when it came.
    pub content_type: Option<HeaderValue>,
    /// Which manifest it is.
    pub identity: Identity,
}

impl StoredManifest {
    /// The bytes that `digest` is of, as they came.
    pub fn new(digest: Digest, media_type: Arc<str>, bytes: Bytes) -> Self {
        Self(Arc::new(Returned {
            digest,
            content_type: HeaderValue::from_str(&media_type).ok(),
            media_type,
            bytes,
            identity: Identity::of(digest),
        }))
    }
}

impl Deref for StoredManifest {
    type Target = Returned;

    fn deref(&self) -> &Returned {
        &self.0
    }
}

/// Proof that a repository holds a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Length in bytes, where known.
    pub size: Option<u64>,
    /// Whether a manifest states the size. Otherwise upstream told it, which may be mended.
    pub is_stated: bool,
    /// What the proof rests on. Upstream's word where there is both.
    pub by: HeldBy,
    /// Wall time at which upstream last confirmed it.
    pub checked_at: SystemTime,
}

/// What a proof of holding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A stored manifest of the same repository names it as config or layer. Counts only for
    /// registries that refuse manifests with missing blobs.
    Manifest,
    /// Upstream said so for this repository and this blob.
    Upstream,
}

/// What a tag pointed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Wall time at which upstream last said so.
    pub checked_at: SystemTime,
}

/// What upstream lists as referring to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrerList {
    /// Descriptors, as a JSON array.
    pub entries: Bytes,
    /// Wall time at which upstream last said so.
    pub checked_at: SystemTime,
}

/// What a payload says. Times are wall times with a resolution of a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// Whose log this is: the first record.
    Repository(&'a str),
    Manifest {
        digest: Digest,
        at: SystemTime,
        media_type: &'a str,
        bytes: &'a [u8],
    },
    ManifestChecked {
        digest: Digest,
        at: SystemTime,
    },
    Held {
        digest: Digest,
        at: SystemTime,
        size: Option<u64>,
    },
    Tag {
        digest: Digest,
        at: SystemTime,
        tag: &'a str,
    },
    /// What upstream lists as referring to `subject`: descriptors, as a JSON array.
    Referrers {
        subject: Digest,
        at: SystemTime,
        list: &'a [u8],
    },
    ForgetBlob(Digest),
    ForgetManifest(Digest),
    ForgetTag(&'a str),
}

const REPOSITORY: u8 = 1;
const MANIFEST: u8 = 2;
const MANIFEST_CHECKED: u8 = 3;
const HELD: u8 = 4;
const HELD_SIZED: u8 = 5;
const TAG: u8 = 6;
const FORGET_BLOB: u8 = 7;
const FORGET_MANIFEST: u8 = 8;
const FORGET_TAG: u8 = 9;
const REFERRERS: u8 = 10;

impl<'a> Record<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Repository(name) => {
                out.push(REPOSITORY);
                out.extend_from_slice(name.as_bytes());
            }
            Self::Manifest {
                digest,
                at,
                media_type,
                bytes,
            } => {
                out.push(MANIFEST);
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&millis(*at).to_le_bytes());
                // A media type longer than a header may be is cut nowhere: it is refused earlier.
                let len = u16::try_from(media_type.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&media_type.as_bytes()[..usize::from(len)]);
                out.extend_from_slice(bytes);
            }
            Self::ManifestChecked { digest, at } => {
                out.push(MANIFEST_CHECKED);
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&millis(*at).to_le_bytes());
            }
            Self::Held { digest, at, size } => {
                out.push(if size.is_some() { HELD_SIZED } else { HELD });
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&millis(*at).to_le_bytes());
                if let Some(size) = size {
                    out.extend_from_slice(&size.to_le_bytes());
                }
            }
            Self::Tag { digest, at, tag } => {
                out.push(TAG);
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&millis(*at).to_le_bytes());
                out.extend_from_slice(tag.as_bytes());
            }
            Self::Referrers { subject, at, list } => {
                out.push(REFERRERS);
                out.extend_from_slice(subject.as_bytes());
                out.extend_from_slice(&millis(*at).to_le_bytes());
                out.extend_from_slice(list);
            }
            Self::ForgetBlob(digest) => {
                out.push(FORGET_BLOB);
                out.extend_from_slice(digest.as_bytes());
            }
            Self::ForgetManifest(digest) => {
                out.push(FORGET_MANIFEST);
                out.extend_from_slice(digest.as_bytes());
            }
            Self::ForgetTag(tag) => {
                out.push(FORGET_TAG);
                out.extend_from_slice(tag.as_bytes());
            }
        }
        out
    }

    pub(super) fn decode(payload: &'a [u8]) -> Option<Self> {
        let (kind, rest) = payload.split_first()?;
        let record = match *kind {
            REPOSITORY => Self::Repository(str::from_utf8(rest).ok()?),
            MANIFEST => {
                let (digest, at, rest) = digest_and_time(rest)?;
                let (len, rest) = rest.split_first_chunk::<2>()?;
                let (media_type, bytes) =
                    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
                Self::Manifest {
                    digest,
                    at,
                    media_type: str::from_utf8(media_type).ok()?,
                    bytes,
                }
            }
            MANIFEST_CHECKED => {
                let (digest, at, rest) = digest_and_time(rest)?;
                rest.is_empty()
                    .then_some(Self::ManifestChecked { digest, at })?
            }
            HELD => {
                let (digest, at, rest) = digest_and_time(rest)?;
                let size = None;
                rest.is_empty().then_some(Self::Held { digest, at, size })?
            }
            HELD_SIZED => {
                let (digest, at, rest) = digest_and_time(rest)?;
                let size = Some(u64::from_le_bytes(rest.try_into().ok()?));
                Self::Held { digest, at, size }
            }
            TAG => {
                let (digest, at, rest) = digest_and_time(rest)?;
                let tag = str::from_utf8(rest).ok()?;
                Self::Tag { digest, at, tag }
            }
            REFERRERS => {
                let (subject, at, list) = digest_and_time(rest)?;
                Self::Referrers { subject, at, list }
            }
            FORGET_BLOB => Self::ForgetBlob(Digest::from_sha256(rest.try_into().ok()?)),
            FORGET_MANIFEST => Self::ForgetManifest(Digest::from_sha256(rest.try_into().ok()?)),
            FORGET_TAG => Self::ForgetTag(str::from_utf8(rest).ok()?),
            _ => return None,
        };
        Some(record)
    }
}

fn digest_and_time(bytes: &[u8]) -> Option<(Digest, SystemTime, &[u8])> {
    let (digest, rest) = bytes.split_first_chunk::<32>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    // A time that does not exist on this platform is as good as never checked.
    let at = UNIX_EPOCH
        .checked_add(Duration::from_millis(u64::from_le_bytes(*at)))
        .unwrap_or(UNIX_EPOCH);
    Some((Digest::from_sha256(*digest), at, rest))
}

/// Milliseconds since the epoch; before it, 0.
fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            hash: [u8; 32],
            ms in 0u64..1 << 45,
            size: Option<u64>,
            text in "[a-z/.+]{0,200}",
            bytes: Vec<u8>,
        ) {
            let digest = Digest::from_sha256(hash);
            let at = at(ms);
            let (tag, media_type) = (&*text, &*text);
            for record in [
                Record::Repository(tag),
                Record::Manifest { digest, at, media_type, bytes: &bytes },
                Record::ManifestChecked { digest, at },
                Record::Held { digest, at, size },
                Record::Tag { digest, at, tag },
                Record::Referrers { subject: digest, at, list: &bytes },
                Record::ForgetBlob(digest),
                Record::ForgetManifest(digest),
                Record::ForgetTag(tag),
            ] {
                let encoded = record.encode();
                prop_assert_eq!(Record::decode(&encoded), Some(record));
            }
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            if let Some(record) = Record::decode(&noise) {
                let encoded = record.encode();
                prop_assert_eq!(Record::decode(&encoded), Some(record));
            }
        }
    }
}
