//! What an answer says: by its status, and by the error in its body.

use http::StatusCode;
use serde::Deserialize;

use super::client::Answer;
use super::error::{Absent, UpstreamError, Wrong};

/// Longest body of an error that is looked into.
pub(super) const MAX_ERROR_BODY: usize = 64 * 1024;

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// True for statuses by which registries refuse credentials, among other things.
pub(super) fn concerns_credentials(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    )
}

/// True for statuses that say that whoever answers fails, those of balancers too, which have their own
/// (520 to 530). What is not offered is no failure, and 511 is a network's.
pub(super) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error()
        && !matches!(
            status,
            StatusCode::NOT_IMPLEMENTED
                | StatusCode::HTTP_VERSION_NOT_SUPPORTED
                | StatusCode::NETWORK_AUTHENTICATION_REQUIRED
        )
}

/// What an answer that is neither content nor an error of [`Upstream::ask`](super::Upstream) means, when `what` was asked.
pub(super) async fn unanswered(answer: Answer, what: Absent) -> UpstreamError {
    let status = answer.status();
    match status {
        StatusCode::NOT_FOUND => {
            let body = answer.read(MAX_ERROR_BODY).await.unwrap_or_default();
            match said(&body) {
                Some(said) if said.code == "NAME_UNKNOWN" => {
                    UpstreamError::Absent(Absent::Repository)
                }
                Some(_) | None => UpstreamError::Absent(what),
            }
        }
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            answer.discard().await;
            UpstreamError::Unsupported
        }
        _ => UpstreamError::Wrong(Wrong::Status(status.as_u16())),
    }
}

/// One error of a registry.
#[derive(Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

/// The first error of a JSON error body.
pub(super) fn said(body: &[u8]) -> Option<Said> {
    let Errors { errors } = serde_json::from_slice(body).ok()?;
    errors.into_iter().next()
}
