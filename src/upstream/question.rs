//! What is asked of a registry.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use super::scope::Scope;
use super::sending::Carried;

/// What a request to an upstream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    ManifestHead,
    Manifest,
    Blob,
    /// Whether a blob is there, or how large it is.
    BlobProbe,
    Tags,
    Catalog,
    Referrers,
    /// At a Bearer token service; AWS is asked by its own SDK.
    Token,
    Ping,
    /// Where the registry redirects to.
    Storage,
    /// The beginning, end and giving up of an upload.
    Upload,
    /// A part of an upload, or all of it.
    UploadBody,
    ManifestPut,
    /// Of a manifest or blob.
    Delete,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::ManifestHead => "manifest_head",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::BlobProbe => "blob_probe",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Ping => "ping",
            Self::Storage => "storage",
            Self::Upload => "upload",
            Self::UploadBody => "upload_body",
            Self::ManifestPut => "manifest_put",
            Self::Delete => "delete",
        })
    }
}

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
    pub(super) breaks: Breaks,
    pub(super) scope: Scope<'a>,
    pub(super) doubt: Doubt,
}

/// What a connection that breaks before the answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaks {
    /// That the registry does not answer.
    AreFailures,
    /// Perhaps no more than that there is no such repository: anybody can bring that about, so a probe tells.
    MayBeAbsent,
    /// The same, and whoever asks looks into it: it is neither asked again nor told to the breaker.
    LookedInto,
}

/// Whether what was asked may have been done although nobody said so: it was sent, and its answer was lost.
/// Asked again, a registry may say that it cannot be done any more. Clones are about the same question.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
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
            breaks: Breaks::AreFailures,
            scope,
            doubt: Doubt::default(),
        }
    }
}
