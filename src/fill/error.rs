//! Why there is no content to give.

use super::Asked;
use crate::telemetry::StaleReason;
use crate::upstream::{UpstreamError, Wrong};

/// Why a request for content ends without it. Shared by everybody who waited for the same fill, so
/// cheap to clone, and free of secrets as [`UpstreamError`] is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// The upstream gave no content, or broke off for good.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The bytes do not hash to the digest. Nothing of them is kept.
    #[error("the content has another digest than its name")]
    DigestMismatch,
    /// The blob has another size than the manifest that names it says.
    #[error("the blob has {declared} bytes where {expected} were announced")]
    SizeMismatch {
        /// What the manifest's descriptor says, or upstream said before, in bytes.
        expected: u64,
        /// What the upstream's answer declares, or the verified file has, in bytes.
        declared: u64,
    },
    /// The upstream declares no size, and no manifest tells it.
    #[error("the size of the blob is not known")]
    UnknownSize,
    /// The head of the upstream's answer did not come in time, or more fills wait than may run at once.
    #[error("the fill did not begin in time")]
    TooSlow,
    /// The file on disk could not be read to its end.
    #[error("the cached file could not be read")]
    Unreadable,
    /// Every reader left a fill that could not be kept, or the process is stopping.
    #[error("the fill was abandoned")]
    Abandoned,
    /// It was fetched and verified for the cache alone, which could not keep it.
    #[error("the cache could not keep it")]
    Unkept,
    /// The task that did the work is gone without a word.
    #[error("the fill ended unexpectedly")]
    Lost,
    /// Several ranges of a blob that is not whole on disk.
    #[error("several ranges at once are served from cached blobs only")]
    OneRangeAtATime,
    /// No range asked lies within the blob (416).
    #[error("no range asked lies within the {size} bytes of the blob")]
    Unsatisfiable {
        /// The size of the blob in bytes.
        size: u64,
    },
}

impl FillError {
    /// True where upstream has no part that goes on from what came before, and may have the whole: other
    /// content, no parts at all, or an answer that is none to such a question.
    pub(super) fn is_of_the_part(&self) -> bool {
        let Self::Upstream(error) = self else {
            return false;
        };
        matches!(
            error,
            UpstreamError::ContentChanged
                | UpstreamError::IgnoredRange
                | UpstreamError::Unsupported
                | UpstreamError::Wrong(Wrong::Malformed | Wrong::Encoded | Wrong::Status(_))
        )
    }

    /// True where upstream said that it does not hold it.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Upstream(UpstreamError::Absent(_)))
    }

    /// Why what is kept may be served instead of an answer; `None` where there was an answer.
    pub(super) fn stale_reason(&self) -> Option<StaleReason> {
        let Self::Upstream(error) = self else {
            return None;
        };
        let mut error = error;
        while let UpstreamError::Away(cause) = error {
            error = cause;
        }
        error.cannot_answer().then_some(match error {
            UpstreamError::Offline => StaleReason::Offline,
            UpstreamError::NoToken(_) | UpstreamError::BadCredentials => StaleReason::NoToken,
            UpstreamError::Throttled { .. } => StaleReason::Throttled,
            UpstreamError::Failing { .. } => StaleReason::Failing,
            _ => StaleReason::Unreachable,
        })
    }

    /// True for what is so because of the repository that was asked, and may be otherwise in another.
    pub(super) fn is_of_its_repository(&self) -> bool {
        matches!(
            self,
            Self::Upstream(UpstreamError::Absent(_) | UpstreamError::Refused)
                | Self::SizeMismatch { .. }
        )
    }

    /// True for what `asked` said or did not say, and says nothing of what `other` would.
    pub(super) fn is_of_another(&self, asked: &Asked, other: &Asked) -> bool {
        let is_of_its_upstream = matches!(
            self,
            Self::Upstream(_) | Self::DigestMismatch | Self::UnknownSize
        );
        let is_another = !asked.upstream.is(&other.upstream);
        let is_elsewhere = is_another || asked.repo != other.repo;
        (is_elsewhere && self.is_of_its_repository()) || (is_another && is_of_its_upstream)
    }
}
