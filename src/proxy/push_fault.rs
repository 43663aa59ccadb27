//! Why a push is refused by the proxy itself, whichever step of it finds that.

use super::error::Refusal;
use super::pump::Broken;
use super::push::LARGEST_MANIFEST;
use super::uploads::{Full, NoSession};
use crate::oci::Digest;

/// Why a push is refused by the proxy itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PushFault {
    /// No such upload, or not this caller's.
    #[error("no such upload")]
    Unknown,
    /// Another request goes on with it.
    #[error("two requests for one upload at once")]
    Busy,
    /// Too many uploads are under way.
    #[error("too many uploads")]
    Full,
    /// The next part does not begin where the last one ended.
    #[error("a part out of order, after {held} bytes")]
    OutOfOrder {
        /// Bytes there are.
        held: u64,
        /// Where to go on.
        location: String,
    },
    /// `Content-Range` is malformed, or not of the length that the body is declared to have.
    #[error("a Content-Range that is not of the body")]
    ContentRange,
    /// The end of an upload without a digest.
    #[error("no digest at the end of an upload")]
    NoDigest,
    /// The bytes are not what they were to be.
    #[error("the content is {found}")]
    Digest {
        /// What they are.
        found: Digest,
    },
    /// The body broke off, or was framed badly.
    #[error("the body broke off")]
    Broken,
    /// The body came too slowly.
    #[error("the body came too slowly")]
    Slow,
    /// A manifest that is too large.
    #[error("a manifest of more than {LARGEST_MANIFEST} bytes")]
    TooLarge,
    /// A manifest that is none.
    #[error("no manifest: {0}")]
    NoManifest(String),
}

impl From<PushFault> for Refusal {
    fn from(fault: PushFault) -> Self {
        Self::Push(fault)
    }
}

impl From<NoSession> for Refusal {
    fn from(fault: NoSession) -> Self {
        Self::Push(match fault {
            NoSession::Unknown => PushFault::Unknown,
            NoSession::Busy => PushFault::Busy,
        })
    }
}

impl From<Full> for Refusal {
    fn from(Full: Full) -> Self {
        Self::Push(PushFault::Full)
    }
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Self {
        Self::Push(match broken {
            Broken::Client => PushFault::Broken,
            Broken::Slow => PushFault::Slow,
            Broken::TooLong => PushFault::TooLarge,
            Broken::TooMany => return Self::TooMany,
            Broken::Digest { found } => PushFault::Digest { found },
            Broken::Upstream(error) => return error.into(),
            Broken::Lost(error) => return error.into(),
        })
    }
}
