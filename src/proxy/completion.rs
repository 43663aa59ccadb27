//! The one event that tells of a finished request: the audit of who pulled what.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::access::{Held, Turn, Who};
use crate::oci::{Reference, RepositoryName};
use crate::telemetry::{Completed, Outcome, RequestKind, RequestMetrics};

/// Longest text of a client's that is logged, in characters. More is cut: a log line is no place for
/// what a stranger would like to store.
const LONGEST_TEXT: usize = 256;

/// Longest reason of a failure that is logged, in characters: ours are shorter, but some repeat what is wrong with a
/// manifest in the words of whoever wrote it.
const LONGEST_REASON: usize = 1024;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(super) address: SocketAddr,
    /// The address as it is logged, with each request.
    text: Arc<str>,
}

impl Peer {
    /// The client, or balancer, at `address`.
    pub fn new(address: SocketAddr) -> Self {
        // As rules have it: a listener of both families is told IPv4 addresses as mapped into IPv6.
        let shown = match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        };
        Self {
            address,
            text: shown.to_string().into(),
        }
    }
}

/// Where a request came from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Who is at the other end of the connection.
    pub(super) peer: Peer,
    /// Whom they speak for, if they are a balancer.
    pub(super) client: Option<IpAddr>,
}

impl Source {
    /// The client's address.
    pub(super) fn address(&self) -> IpAddr {
        self.client.unwrap_or(self.peer.address.ip())
    }
}

/// What a request is called in the log, in errors and in its answer: 16 hexadecimal digits.
#[derive(Clone, Copy)]
pub(super) struct RequestId([u8; 16]);

impl RequestId {
    fn draw() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut drawn = fastrand::u64(..);
        let mut digits = [0; 16];
        for digit in &mut digits {
            *digit = DIGITS[(drawn & 15) as usize];
            drawn >>= 4;
        }
        Self(digits)
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        // All of it is ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What is told of a request when it ends, collected on the way.
pub(super) struct Completion {
    metrics: Arc<RequestMetrics>,
    began: Instant,
    pub(super) id: RequestId,
    pub(super) from: Source,
    /// The place of the request among those at once; none if it was refused one.
    pub(super) place: Option<Held>,
    /// Its turn at lists, if it wants one. Questions to upstream share it.
    pub(super) list: Option<Arc<Turn>>,
    pub(super) who: Option<Who>,
    pub(super) agent: Option<String>,
    /// None where the head was not understood.
    pub(super) method: Option<http::Method>,
    /// Host and path of what could not be understood, or came to the wrong place.
    pub(super) target: Option<String>,
    pub(super) kind: RequestKind,
    pub(super) repository: Option<RepositoryName>,
    pub(super) reference: Option<Reference>,
    /// containerd's `ns`, as it was given.
    pub(super) ns: Option<String>,
    /// The upstream that the name leads to.
    pub(super) upstream: Option<Arc<str>>,
    /// Another one answered in its place.
    pub(super) is_of_another: bool,
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    /// How many bytes the body is to have.
    pub(super) length: u64,
    sent: u64,
    error: Option<String>,
}

impl Completion {
    /// Begins to count a request. It goes through many hands, and is not to be copied into each.
    pub(super) fn begin(
        metrics: Arc<RequestMetrics>,
        method: Option<http::Method>,
        peer: Peer,
    ) -> Box<Self> {
        metrics.active.inc();
        Box::new(Self {
            metrics,
            began: Instant::now(),
            id: RequestId::draw(),
            from: Source { peer, client: None },
            place: None,
            list: None,
            who: None,
            agent: None,
            method,
            target: None,
            kind: RequestKind::Other,
            repository: None,
            reference: None,
            ns: None,
            upstream: None,
            is_of_another: false,
            outcome: Outcome::None,
            status: 0,
            length: 0,
            sent: 0,
            error: None,
        })
    }

    /// How many bytes of the body were handed out so far.
    pub(super) fn sent(&mut self, sent: u64) {
        self.sent = sent;
    }

    /// Why the request was refused, or its body broke off.
    pub(super) fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.error = Some(cut_to(LONGEST_REASON, &error.to_string()));
    }
}

/// A client's text, as far as it is logged. Control characters are spelled out: JSON has no need to
/// escape those above U+007F, and a terminal that shows the log takes U+009B for an escape sequence.
pub(super) fn cut(text: &str) -> String {
    cut_to(LONGEST_TEXT, text)
}

fn cut_to(longest: usize, text: &str) -> String {
    let are_plain = |all, byte: u8| all & (b' '..0x7f).contains(&byte);
    if text.len() <= longest && text.bytes().fold(true, are_plain) {
        return text.to_owned();
    }
    let mut cut = String::new();
    for character in text.chars().take(longest) {
        if character.is_control() {
            cut.extend(character.escape_unicode());
        } else {
            cut.push(character);
        }
    }
    cut
}

/// A method, as far as it is logged. Any token may be one, and tokens are ASCII without control characters.
fn method(method: &http::Method) -> &str {
    let name = method.as_str();
    name.get(..LONGEST_TEXT).unwrap_or(name)
}

impl Drop for Completion {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        self.metrics.active.dec();
        self.metrics.completed(Completed {
            kind: self.kind,
            outcome: self.outcome,
            status: self.status,
            body_bytes: self.sent,
            elapsed,
        });
        // Without a status the client left before it was answered.
        let is_whole = self.status != 0
            && (self.sent >= self.length || self.method == Some(http::Method::HEAD));
        let Source { peer, client } = &self.from;
        let client = client.map(|client| client.to_string());
        let digest = match &self.reference {
            Some(Reference::Digest(digest)) => Some(digest.text()),
            Some(Reference::Tag(_)) | None => None,
        };
        let reference = match &self.reference {
            Some(Reference::Tag(tag)) => Some(tag.as_str()),
            Some(Reference::Digest(_)) | None => digest.as_deref(),
        };
        // As a value: words of a format are written by its machinery.
        tracing::info!(
            message = "request",
            request.id = &*self.id,
            client.addr = client.as_deref().unwrap_or(&peer.text),
            client.via = client.as_ref().map(|_| &*peer.text),
            client.user = self.who.as_ref().map(Who::as_str),
            client.agent = self.agent,
            http.method = self.method.as_ref().map(method),
            http.status = self.status,
            http.target = self.target,
            oci.repository = self.repository.as_ref().map(RepositoryName::as_str),
            oci.reference = reference,
            oci.ns = self.ns,
            upstream.name = self.upstream.as_deref(),
            upstream.is_fallback = self.is_of_another.then_some(true),
            cache.outcome = self.outcome.as_str(),
            body.bytes = self.sent,
            elapsed_ms = milliseconds(elapsed),
            end = if is_whole { "clean" } else { "aborted" },
            error = self.error,
        );
    }
}

/// With three decimals: a hit takes a fraction of a millisecond.
fn milliseconds(elapsed: Duration) -> f64 {
    elapsed.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s17_a_clients_text_is_short_and_has_no_control_characters() {
        assert_eq!(cut("docker/27 \u{e9}"), "docker/27 \u{e9}");
        assert_eq!(cut("a\u{9b}31m\tb"), "a\\u{9b}31m\\u{9}b");
        assert_eq!(cut(&"long".repeat(1000)).len(), LONGEST_TEXT);
        let long = "BREW".repeat(1000).parse().expect("a method");
        assert_eq!(method(&long).len(), LONGEST_TEXT);
        assert_eq!(method(&http::Method::PATCH), "PATCH");
    }
}
