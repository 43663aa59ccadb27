//! What is answered, and the headers that every answer has.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::body::{Body, Said};
use super::completion::Completion;
use crate::fill::{How, Stale};
use crate::oci::header::{DOCKER_DISTRIBUTION_API_VERSION, X_CACHE, X_REQUEST_ID};
use crate::telemetry::{Outcome, StaleReason};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// `max-age=0` asks caches between us and a client to come back: rights are checked on every request.
const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("private, max-age=0");

/// distribution-spec, "Warning": the code that registry clients show to people.
const STALE: HeaderValue =
    HeaderValue::from_static("299 - \"served from cache: upstream cannot answer\"");
const STALE_FOR_NOW: HeaderValue =
    HeaderValue::from_static("299 - \"served from cache: upstream has not answered yet\"");
const STALE_OFFLINE: HeaderValue =
    HeaderValue::from_static("299 - \"served from cache: this proxy is kept offline\"");
const PINNED: HeaderValue =
    HeaderValue::from_static("299 - \"served from cache: pinned, and gone upstream\"");

/// The codes that caches know (RFC 7234, 5.5).
const RESPONSE_IS_STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");
const REVALIDATION_FAILED: HeaderValue = HeaderValue::from_static("111 - \"Revalidation Failed\"");
const DISCONNECTED: HeaderValue = HeaderValue::from_static("112 - \"Disconnected Operation\"");

const API_VERSION: HeaderValue = HeaderValue::from_static("registry/2.0");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// How many headers of its own an answer with content has: with room for them the list does not grow.
const USUAL_HEADERS: usize = 5;

/// How many headers an answer has with those that all have.
const ALL_HEADERS: usize = 12;
/// Most room for headers that an answer takes over from its request: hyper keeps it for as long as the connection.
const MOST_HEADERS: usize = 32;

/// An answer that is not a refusal.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// What it says beside what every answer does.
    headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) said: Said,
    /// The length that a GET would have, told on HEAD. Not told on 304, which has that of the content
    /// that the client keeps (RFC 9110, 8.6).
    pub(super) length: Option<u64>,
    pub(super) outcome: Outcome,
    /// It comes from an upstream that stands in for one that cannot answer.
    pub(super) is_of_another: bool,
}

impl Reply {
    pub(super) fn new(status: StatusCode, said: Said) -> Self {
        let length = (status != StatusCode::NOT_MODIFIED).then(|| said.len());
        Self {
            status,
            headers: Vec::with_capacity(USUAL_HEADERS),
            said,
            length,
            outcome: Outcome::None,
            is_of_another: false,
        }
    }

    /// With content of this type.
    pub(super) fn typed(status: StatusCode, media_type: HeaderValue, said: Said) -> Self {
        let mut reply = Self::new(status, said);
        reply.say(header::CONTENT_TYPE, media_type);
        reply
    }

    pub(super) fn json(text: impl Into<bytes::Bytes>) -> Self {
        Self::typed(StatusCode::OK, JSON, Said::text(text))
    }

    /// Says how its content was come by, and of what is told without upstream's word how long ago that was had and
    /// why it is not.
    pub(super) fn found(mut self, how: How) -> Self {
        self.outcome = how.outcome();
        self.is_of_another = how.is_of_another();
        if let Some(Stale { age, reason }) = how.staleness() {
            self.say(header::AGE, age.as_secs().into());
            let (shown, coded) = match reason {
                StaleReason::Slow => (STALE_FOR_NOW, RESPONSE_IS_STALE),
                StaleReason::Offline => (STALE_OFFLINE, DISCONNECTED),
                StaleReason::Pinned => (PINNED, RESPONSE_IS_STALE),
                _ => (STALE, REVALIDATION_FAILED),
            };
            self.say(header::WARNING, shown);
            self.say(header::WARNING, coded);
        }
        self
    }

    /// The same answer without its content, as HEAD has it.
    pub(super) fn without_content(mut self) -> Self {
        self.said = Said::nothing();
        self
    }

    /// Says one more thing in a header of its own.
    pub(super) fn say(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// The answer on the wire, whose end is `completion`'s. Its headers are put where those of the request were,
    /// in memory that is there, unless it is much.
    pub(super) fn finish(
        self,
        mut completion: Box<Completion>,
        mut headers: HeaderMap,
    ) -> Response<Body> {
        completion.status = self.status.as_u16();
        completion.outcome = self.outcome;
        completion.is_of_another = self.is_of_another;
        completion.length = self.said.len();
        match headers.capacity() {
            0..=MOST_HEADERS => headers.clear(),
            _ => headers = HeaderMap::with_capacity(ALL_HEADERS),
        }
        headers.insert(DOCKER_DISTRIBUTION_API_VERSION, API_VERSION);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        if self.outcome != Outcome::None {
            headers.insert(X_CACHE, x_cache(self.outcome, self.is_of_another));
            headers.insert(header::CACHE_CONTROL, CACHE_CONTROL);
        }
        if let Ok(id) = HeaderValue::from_str(&completion.id) {
            headers.insert(X_REQUEST_ID, id);
        }
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        // The length of a body that is there is written by whoever frames it.
        let told = self.length.filter(|_| self.said.len() == 0);
        if let Some(length) = told {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let mut response = Response::new(Body::new(self.said, completion));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

/// Where content comes from, and whether that is an upstream that stands in for another.
fn x_cache(outcome: Outcome, is_of_another: bool) -> HeaderValue {
    let plain = HeaderValue::from_static(outcome.as_str());
    match is_of_another {
        true => HeaderValue::from_str(&format!("{}; fallback", outcome.as_str())).unwrap_or(plain),
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::*;
    use crate::proxy::Peer;

    #[test]
    fn l13_room_for_many_headers_ends_with_their_request() {
        for (room, is_kept) in [(8, true), (MOST_HEADERS, false), (1000, false)] {
            let headers = HeaderMap::with_capacity(room);
            let had = headers.capacity();
            let peer = Peer::new((IpAddr::from(Ipv4Addr::LOCALHOST), 1).into());
            let completion = Completion::begin(Arc::default(), None, peer);
            let response = Reply::json("{}").finish(completion, headers);
            let has = response.headers().capacity();
            assert!(has <= MOST_HEADERS, "{room}: {has}");
            assert_eq!(has == had, is_kept, "{room}: {had}, {has}");
        }
    }
}
