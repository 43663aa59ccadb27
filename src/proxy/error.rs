//! The one translation of what went wrong into status, code and words (design 2.3).
//!
//! `Display` of the errors below is for operators and goes to the log; what a client reads is written
//! here and names no upstream, no account and no path.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::access::Denied;
use crate::fill::FillError;
use crate::oci::{ErrorCode, ParseReferenceError, ParseRequestError, ParseTagError};
use crate::upstream::{Absent, UpstreamError};

use super::push::{LARGEST_MANIFEST, range_of};
use super::push_fault::PushFault;

/// When a client may try again what fails only for the moment. Short: the failure is remembered no
/// longer than that by anything here.
const SOON: Duration = Duration::from_secs(2);

/// When a client may try again what an operator has to change first.
const LATER: Duration = Duration::from_secs(60);

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The head could be framed in two ways, or is too large.
    #[error("{1}")]
    Framing(StatusCode, String),
    /// No host, several, or one with user information.
    #[error("malformed or contradictory Host")]
    Host,
    /// A balancer tells whose request it is, and it cannot be understood.
    #[error("a malformed X-Forwarded-For of a trusted proxy")]
    Forwarded,
    /// There are as many requests as there may be, in all or of one client.
    #[error("too many requests at once")]
    TooMany,
    /// A host we do not answer to.
    #[error("a host we do not answer to")]
    Misdirected,
    /// Path or query is not of the API.
    #[error("{0}")]
    Request(#[from] ParseRequestError),
    /// A manifest is asked for by what no tag can be called.
    #[error("{0}")]
    NoTag(ParseTagError),
    /// A method that the registry API does not have there.
    #[error("the registry API has no such method here")]
    NoMethod {
        /// Those that it has.
        allowed: &'static str,
    },
    /// Who is asking may not.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// containerd's `ns` names a registry that is not ours to mirror.
    #[error("an ns that is not mirrored here")]
    ForeignNamespace,
    /// No route is about the name.
    #[error("a name that no route is about")]
    Unrouted,
    /// The manifest is of a type that the client's `Accept` does not name.
    #[error("the manifest is {0}, which Accept does not name")]
    NotAccepted(String),
    /// There is no content.
    #[error("{0}")]
    Content(#[from] FillError),
    /// A push that the proxy itself refuses.
    #[error("{0}")]
    Push(PushFault),
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        Self::Content(error.into())
    }
}

/// A refusal as it is sent.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// One of [`ErrorCode`], or of a registry's own making.
    pub(super) code: Cow<'static, str>,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    /// Whether it is about where the request went rather than what it wanted there.
    pub(super) fn is_of_target(&self) -> bool {
        matches!(
            self,
            Self::Misdirected
                | Self::Request(_)
                | Self::NoTag(_)
                | Self::ForeignNamespace
                | Self::Unrouted
        )
    }

    /// Status, code and words for the client.
    pub(super) fn answer(&self) -> Answer {
        let answer = |status, code: ErrorCode, message: &str| Answer {
            status,
            code: code.as_str().into(),
            message: message.to_owned(),
            retry_after: None,
        };
        match self {
            Self::Framing(status, reason) => answer(*status, ErrorCode::Unsupported, reason),
            Self::Host => answer(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unsupported,
                "the Host header is missing, repeated or malformed",
            ),
            Self::Forwarded => answer(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unsupported,
                "the X-Forwarded-For header of a trusted proxy is not a list of addresses",
            ),
            Self::TooMany => Answer {
                status: StatusCode::TOO_MANY_REQUESTS,
                code: ErrorCode::TooManyRequests.as_str().into(),
                message: "too many requests at once".to_owned(),
                retry_after: Some(SOON),
            },
            Self::Misdirected => answer(
                StatusCode::MISDIRECTED_REQUEST,
                ErrorCode::Denied,
                "this proxy does not answer to the name in the Host header",
            ),
            Self::Request(error) => {
                let (status, code) = of_request(error);
                answer(status, code, &error.to_string())
            }
            // The distribution-spec has no other answer for a manifest that is not there, and its conformance
            // tests ask for one in just this way.
            Self::NoTag(error) => answer(
                StatusCode::NOT_FOUND,
                ErrorCode::ManifestUnknown,
                &error.to_string(),
            ),
            Self::NoMethod { .. } => answer(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::Unsupported,
                "the registry API has no such method here",
            ),
            Self::Denied(denied) => of_denied(*denied),
            Self::ForeignNamespace => answer(
                StatusCode::NOT_FOUND,
                ErrorCode::NameUnknown,
                "the registry that ns names is not mirrored here",
            ),
            Self::Unrouted => answer(
                StatusCode::NOT_FOUND,
                ErrorCode::NameUnknown,
                "no registry behind this proxy is set up for this name",
            ),
            Self::NotAccepted(media_type) => answer(
                StatusCode::NOT_FOUND,
                ErrorCode::ManifestUnknown,
                &format!(
                    "the manifest is of type {media_type}, which the Accept header does not name"
                ),
            ),
            Self::Content(error) => of_content(error),
            Self::Push(fault) => of_push(fault),
        }
    }
}

impl Refusal {
    /// What the answer has beside its words.
    pub(super) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let header = |name, value: &str| Some((name, HeaderValue::from_str(value).ok()?));
        let headers = match self {
            // RFC 9110, 14.4: the size there is.
            Self::Content(FillError::Unsatisfiable { size }) => [
                header(header::CONTENT_RANGE, &format!("bytes */{size}")),
                None,
            ],
            // distribution-spec, "Pushing a blob in chunks": where to go on.
            Self::Push(PushFault::OutOfOrder { held, location }) => [
                header(header::RANGE, &range_of(*held)),
                header(header::LOCATION, location),
            ],
            Self::NoMethod { allowed } => [header(header::ALLOW, allowed), None],
            // What a registry does not take is its own affair.
            Self::Content(FillError::Upstream(UpstreamError::Told(_))) => [None, None],
            refusal if refusal.answer().status == StatusCode::METHOD_NOT_ALLOWED => {
                [header(header::ALLOW, "GET, HEAD"), None]
            }
            _ => [None, None],
        };
        headers.into_iter().flatten().collect()
    }
}

fn of_request(error: &ParseRequestError) -> (StatusCode, ErrorCode) {
    match error {
        ParseRequestError::NotFound => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        ParseRequestError::Name(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
        ParseRequestError::Digest(_)
        | ParseRequestError::Reference(ParseReferenceError::Digest(_)) => {
            (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid)
        }
        ParseRequestError::Reference(ParseReferenceError::Tag(_)) => {
            (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid)
        }
        ParseRequestError::Query(_) => (StatusCode::BAD_REQUEST, ErrorCode::Unsupported),
    }
}

fn of_denied(denied: Denied) -> Answer {
    let (status, code, message, retry_after) = match denied {
        Denied::Unauthenticated => (
            StatusCode::UNAUTHORIZED,
            ErrorCode::Unauthorized,
            "authentication required",
            None,
        ),
        Denied::Forbidden => (
            StatusCode::FORBIDDEN,
            ErrorCode::Denied,
            "access denied",
            None,
        ),
        Denied::BadRequest => (
            StatusCode::BAD_REQUEST,
            ErrorCode::Unauthorized,
            "the Authorization header is repeated",
            None,
        ),
        Denied::Busy => (
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooManyRequests,
            "too many logins at once",
            Some(SOON),
        ),
        Denied::Undecided => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "upstream cannot be asked what your token allows",
            Some(SOON),
        ),
    };
    Answer {
        status,
        code: code.as_str().into(),
        message: message.to_owned(),
        retry_after,
    }
}

fn of_push(fault: &PushFault) -> Answer {
    let (status, code, message) = match fault {
        PushFault::Unknown => (
            StatusCode::NOT_FOUND,
            ErrorCode::BlobUploadUnknown,
            "no such upload: begin again".to_owned(),
        ),
        PushFault::Busy => (
            StatusCode::CONFLICT,
            ErrorCode::BlobUploadInvalid,
            "another request goes on with this upload".to_owned(),
        ),
        PushFault::Full => (
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooManyRequests,
            "too many uploads are under way".to_owned(),
        ),
        PushFault::OutOfOrder { held, .. } => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::BlobUploadInvalid,
            format!("the upload holds {held} bytes: go on there"),
        ),
        PushFault::ContentRange => (
            StatusCode::BAD_REQUEST,
            ErrorCode::BlobUploadInvalid,
            "the Content-Range header is not that of the body".to_owned(),
        ),
        PushFault::NoDigest => (
            StatusCode::BAD_REQUEST,
            ErrorCode::DigestInvalid,
            "the end of an upload needs digest=sha256:…".to_owned(),
        ),
        PushFault::Digest { found } => (
            StatusCode::BAD_REQUEST,
            ErrorCode::DigestInvalid,
            format!("the content is {found}"),
        ),
        PushFault::Broken => (
            StatusCode::BAD_REQUEST,
            ErrorCode::BlobUploadInvalid,
            "the body broke off".to_owned(),
        ),
        PushFault::Slow => (
            StatusCode::REQUEST_TIMEOUT,
            ErrorCode::BlobUploadInvalid,
            "the body did not come in time".to_owned(),
        ),
        PushFault::TooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::SizeInvalid,
            format!("a manifest of more than {LARGEST_MANIFEST} bytes is not taken"),
        ),
        PushFault::NoManifest(why) => (
            StatusCode::BAD_REQUEST,
            ErrorCode::ManifestInvalid,
            format!("this manifest is not taken: {why}"),
        ),
    };
    Answer {
        status,
        code: code.as_str().into(),
        message,
        retry_after: (*fault == PushFault::Full).then_some(SOON),
    }
}

fn of_content(error: &FillError) -> Answer {
    let later = |status, message: &str, retry_after| Answer {
        status,
        code: ErrorCode::Unavailable.as_str().into(),
        message: message.to_owned(),
        retry_after,
    };
    let wrong = |message: &str| later(StatusCode::BAD_GATEWAY, message, None);
    match error {
        FillError::Upstream(error) => of_upstream(error),
        FillError::DigestMismatch | FillError::SizeMismatch { .. } => {
            wrong("upstream sent content that is not what was asked for")
        }
        FillError::UnknownSize => wrong("upstream does not tell the size of the blob"),
        FillError::TooSlow => later(
            StatusCode::GATEWAY_TIMEOUT,
            "the content did not come in time",
            Some(SOON),
        ),
        FillError::Unreadable | FillError::Lost | FillError::Abandoned | FillError::Unkept => {
            later(
                StatusCode::SERVICE_UNAVAILABLE,
                "the content could not be read, please try again",
                Some(SOON),
            )
        }
        FillError::OneRangeAtATime => Answer {
            status: StatusCode::BAD_REQUEST,
            code: ErrorCode::Unsupported.as_str().into(),
            message: "this blob is not cached yet: ask for one range at a time".to_owned(),
            retry_after: None,
        },
        FillError::Unsatisfiable { size } => Answer {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            code: ErrorCode::SizeInvalid.as_str().into(),
            message: format!("the Range header names no byte of the {size} there are"),
            retry_after: None,
        },
    }
}

fn of_upstream(error: &UpstreamError) -> Answer {
    let (status, code, message, retry_after) = match error {
        UpstreamError::Absent(Absent::Manifest) => (
            StatusCode::NOT_FOUND,
            ErrorCode::ManifestUnknown,
            "no such manifest or tag",
            None,
        ),
        UpstreamError::Absent(Absent::Blob) => (
            StatusCode::NOT_FOUND,
            ErrorCode::BlobUnknown,
            "no such blob in this repository",
            None,
        ),
        UpstreamError::Absent(Absent::Repository) => (
            StatusCode::NOT_FOUND,
            ErrorCode::NameUnknown,
            "no such repository",
            None,
        ),
        UpstreamError::Refused => (
            StatusCode::FORBIDDEN,
            ErrorCode::Denied,
            "the proxy's own identity may not do this",
            None,
        ),
        UpstreamError::Unsupported => (
            StatusCode::NOT_FOUND,
            ErrorCode::Unsupported,
            "upstream does not offer this",
            None,
        ),
        UpstreamError::Told(told) => {
            return Answer {
                status: StatusCode::from_u16(told.status).unwrap_or(StatusCode::BAD_REQUEST),
                code: told.code.clone(),
                message: told.message.clone(),
                retry_after: None,
            };
        }
        UpstreamError::Away(cause) => {
            return Answer {
                status: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: Some(SOON),
                ..of_upstream(cause)
            };
        }
        UpstreamError::Offline | UpstreamError::Unconfigured => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "this is not in the cache, and the proxy is set to stay offline",
            Some(LATER),
        ),
        UpstreamError::NoToken(reason) if reason.is_of_the_link() => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "upstream cannot be reached to log in",
            Some(SOON),
        ),
        UpstreamError::BadCredentials | UpstreamError::NoToken(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "the proxy has no valid credentials for upstream",
            Some(SOON),
        ),
        UpstreamError::Throttled { retry_after } => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "upstream limits the rate of requests",
            Some(*retry_after),
        ),
        UpstreamError::Failing { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "upstream fails",
            Some(SOON),
        ),
        UpstreamError::Unreachable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "upstream cannot be reached",
            Some(SOON),
        ),
        UpstreamError::TooSlow(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            "upstream did not answer in time",
            Some(SOON),
        ),
        UpstreamError::Wrong(_)
        | UpstreamError::Truncated
        | UpstreamError::TooMuch
        | UpstreamError::ContentChanged
        | UpstreamError::IgnoredRange => {
            let message = format!("upstream's answer cannot be used: {error}");
            return Answer {
                status: StatusCode::BAD_GATEWAY,
                code: ErrorCode::Unavailable.as_str().into(),
                message,
                retry_after: None,
            };
        }
    };
    Answer {
        status,
        code: code.as_str().into(),
        message: message.to_owned(),
        retry_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Deadline, Unreachable, Wrong};

    #[test]
    fn what_cannot_be_known_is_never_absent() {
        for error in [
            UpstreamError::Unreachable(Unreachable::Dns),
            UpstreamError::TooSlow(Deadline::FirstByte),
            UpstreamError::Failing { status: 500 },
            UpstreamError::Throttled { retry_after: SOON },
            UpstreamError::BadCredentials,
            UpstreamError::Offline,
            UpstreamError::Away(Box::new(UpstreamError::Wrong(Wrong::BadTls))),
        ] {
            let answer = Refusal::from(error.clone()).answer();
            assert!(answer.status.is_server_error(), "{error}");
            assert!(answer.retry_after.is_some(), "{error}: waiting helps");
        }
    }
}
