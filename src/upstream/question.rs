//! What is asked of a registry.

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

use super::metrics::Kind;
use super::scope::Scope;
use super::sending::Carried;

/// A question to the registry.
pub(super) struct Question<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) accept: Option<HeaderValue>,
    pub(super) range: Option<HeaderValue>,
    pub(super) carried: Carried,
    /// `Content-Type`.
    pub(super) content_type: Option<HeaderValue>,
    /// `Content-Range`.
    pub(super) content_range: Option<HeaderValue>,
    /// What the registry says to it is told in its own words, see [`Told`](super::UpstreamError::Told).
    pub(super) is_push: bool,
    /// A connection that breaks may be all that the registry says where there is no such repository.
    /// Whoever asks looks into that, so it is neither asked again nor told to the breaker.
    pub(super) breaks_where_absent: bool,
    pub(super) scope: Scope<'a>,
}

impl<'a> Question<'a> {
    pub(super) fn get(kind: Kind, path: PathAndQuery, scope: Scope<'a>) -> Self {
        Self {
            kind,
            method: Method::GET,
            path,
            accept: None,
            range: None,
            carried: Carried::Nothing,
            content_type: None,
            content_range: None,
            is_push: false,
            breaks_where_absent: false,
            scope,
        }
    }
}
