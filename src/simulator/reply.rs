//! An answer before it is on the wire: status, headers, and which bytes of which content.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::content::BlobSource;

/// An answer of one of the three services.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// Boxed because replies travel as errors too.
    pub(super) headers: Box<HeaderMap>,
    pub(super) content: BlobSource,
    /// The part of `content` that is the body.
    pub(super) first: u64,
    pub(super) len: u64,
}

impl Reply {
    pub(super) fn new(status: u16, content: impl Into<BlobSource>) -> Self {
        let content = content.into();
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: Box::default(),
            first: 0,
            len: content.len(),
            content,
        }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self::new(status, Bytes::new())
    }

    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, body.to_string().into_bytes())
            .with("content-type", "application/json; charset=utf-8")
    }

    /// The error form of the registry API, with no `detail`, as ECR writes it.
    pub(super) fn error(status: u16, code: &str, message: impl AsRef<str>) -> Self {
        Self::json(
            status,
            &json!({"errors": [{"code": code, "message": message.as_ref()}]}),
        )
    }

    pub(super) fn text(status: u16, body: &'static str) -> Self {
        Self::new(status, body).with("content-type", "text/plain; charset=utf-8")
    }

    /// Replaces the header `name`; a value that no header can hold is left out.
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        if let Some((name, value)) = field(name, value) {
            self.headers.insert(name, value);
        }
    }

    pub(super) fn add(&mut self, name: &'static str, value: &str) {
        if let Some((name, value)) = field(name, value) {
            self.headers.append(name, value);
        }
    }

    pub(super) fn replace_body(&mut self, content: impl Into<BlobSource>) {
        self.content = content.into();
        self.first = 0;
        self.len = self.content.len();
    }

    /// The head as HTTP/1.1 writes it, framing headers being the caller's.
    pub(super) fn head_bytes(&self, framing: &str) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\n",
            self.status.as_u16(),
            self.status.canonical_reason().unwrap_or("Unknown")
        )
        .into_bytes();
        for (name, value) in self.headers.iter() {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(framing.as_bytes());
        head.extend_from_slice(b"\r\n");
        head
    }
}

fn field(name: &'static str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
}
