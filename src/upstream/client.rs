//! One request and its answer over HTTP/1.1, with deadlines.
//!
//! Invariants: requests are built here from typed values, never copied from anybody; an answer whose
//! framing could be read in two ways is refused and its connection not used again; every wait ends.
//! Knows nothing of tokens' making, redirects or retries.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tower_service::Service as _;

use super::connect::{ConnectError, Dialer, HasAnswered};
use super::error::{Deadline, Unreachable, UpstreamError, Wrong};
use super::meter::Meter;
use super::options::Limits;
use super::question::{Doubt, Kind};
use super::sending::{Carried, Sending};
use super::token::Token;

/// Bounds the head of an answer (a megabyte of headers is refused), and the largest single read of a
/// body; smaller reads make fills dearer.
const MAX_BUFFER: usize = 256 * 1024;
/// Shorter than the idle limits of load balancers (60 s), so that seldom a connection is reused at the
/// moment its other end closes it.
const POOL_IDLE: Duration = Duration::from_secs(50);
const MAX_IDLE_PER_HOST: usize = 32;
/// Stale connections in a row that a request gets over.
const MAX_STALE: u32 = 3;
/// A body too small to matter is read to its end, so that its connection can be used again.
const DISCARD_BYTES: usize = 64 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("ecr-proxy/", env!("CARGO_PKG_VERSION")));
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Sends requests for one upstream.
pub(super) struct Client {
    dialer: Dialer,
    /// With the connections that are open. Another takes its place when none of them can be trusted.
    http: ArcSwap<Http>,
    /// Connections that carry blobs, which may take hours, do not crowd out the others.
    bodies: Arc<Semaphore>,
    short: Arc<Semaphore>,
    /// Connecting that was tried for less says nothing of whom it was tried with: the time went before.
    fair_try: Duration,
    first_byte: Duration,
    progress: Duration,
    meter: Meter,
}

type Http = legacy::Client<Dialer, Sending>;

fn http(dialer: Dialer) -> Http {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
        .http1_max_buf_size(MAX_BUFFER)
        .build(dialer)
}

/// A request, all of it.
pub(super) struct Outgoing<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) target: Uri,
    /// `Host`, where it is not that of `target`.
    pub(super) host: Option<HeaderValue>,
    pub(super) accept: Option<HeaderValue>,
    /// `Range`.
    pub(super) range: Option<HeaderValue>,
    pub(super) carried: Carried,
    /// `Content-Type`.
    pub(super) content_type: Option<HeaderValue>,
    /// `Content-Range`.
    pub(super) content_range: Option<HeaderValue>,
    pub(super) token: Option<&'a Token>,
    /// Raised where it was sent and not answered.
    pub(super) doubt: Doubt,
}

impl<'a> Outgoing<'a> {
    pub(super) fn get(kind: Kind, target: Uri) -> Self {
        Self {
            kind,
            method: Method::GET,
            target,
            host: None,
            accept: None,
            range: None,
            carried: Carried::Nothing,
            content_type: None,
            content_range: None,
            token: None,
            doubt: Doubt::default(),
        }
    }
}

/// The head of an answer, and its body still to come. Dropping it unread closes its connection.
pub(super) struct Answer {
    response: Response<Incoming>,
    progress: Duration,
    bytes: Counter,
    connection: CaptureConnection,
    _slot: OwnedSemaphorePermit,
}

impl Client {
    pub(super) fn new(dialer: Dialer, limits: &Limits, meter: Meter) -> Self {
        Self {
            http: ArcSwap::from_pointee(http(dialer.clone())),
            dialer,
            bodies: Arc::new(Semaphore::new(limits.max_connections)),
            short: Arc::new(Semaphore::new(limits.max_connections)),
            fair_try: limits.connect / 2,
            first_byte: limits.first_byte,
            progress: limits.progress,
            meter,
        }
    }

    /// Sends a request and waits for the head of its answer: until `connected_by` for a connection,
    /// from then on for as long as a first byte may take.
    ///
    /// # Errors
    /// Without an answer, or with one that is malformed.
    ///
    /// # Cancel safety
    /// Leaving closes the connection, unless none was made yet.
    pub(super) async fn send(
        &self,
        outgoing: &Outgoing<'_>,
        connected_by: Instant,
    ) -> Result<Answer, UpstreamError> {
        let answer = self.exchange(outgoing, connected_by).await;
        let status = answer.as_ref().ok().map(Answer::status);
        self.meter.requested(outgoing.kind, status);
        answer
    }

    /// Forgets the connections that wait to be used again; those in use end with what uses them.
    pub(super) fn disconnect(&self) {
        self.http.store(Arc::new(http(self.dialer.clone())));
    }

    /// Sends a request by a connection made for it alone, and returns the head of its answer. The caller
    /// bounds it in time.
    ///
    /// # Errors
    /// Without an answer.
    ///
    /// # Cancel safety
    /// Leaving closes the connection.
    pub(super) async fn knock(&self, outgoing: &Outgoing<'_>) -> Result<Parts, UpstreamError> {
        let answer = self.exchange_alone(outgoing).await;
        self.meter
            .requested(outgoing.kind, answer.as_ref().ok().map(|head| head.status));
        answer
    }

    async fn exchange_alone(&self, outgoing: &Outgoing<'_>) -> Result<Parts, UpstreamError> {
        const BROKEN: UpstreamError = UpstreamError::Unreachable(Unreachable::Broken);
        let mut request = self.build(outgoing)?;
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        let stream = self.dialer.clone().call(outgoing.target.clone()).await?;
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|_| BROKEN)?;
        tokio::select! {
            biased;
            answer = sender.send_request(request) => match answer {
                Ok(answer) => Ok(answer.into_parts().0),
                Err(error) if error.is_parse() => Err(UpstreamError::Wrong(Wrong::Malformed)),
                Err(_) => Err(BROKEN),
            },
            // It only moves the bytes, and ends when there are none to move.
            _ = connection => Err(BROKEN),
        }
    }

    async fn exchange(
        &self,
        outgoing: &Outgoing<'_>,
        connected_by: Instant,
    ) -> Result<Answer, UpstreamError> {
        let lane = match outgoing.kind {
            Kind::Blob | Kind::Storage | Kind::UploadBody => &self.bodies,
            Kind::ManifestHead
            | Kind::Manifest
            | Kind::BlobProbe
            | Kind::Tags
            | Kind::Referrers
            | Kind::Token
            | Kind::Upload
            | Kind::ManifestPut
            | Kind::Delete
            | Kind::Catalog
            | Kind::Ping => &self.short,
        };
        let slot = tokio::time::timeout_at(connected_by, Arc::clone(lane).acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(UpstreamError::TooSlow(Deadline::Slot))?;
        let (response, connection) = self.respond(outgoing, connected_by).await?;
        let answer = Answer {
            response,
            progress: self.progress,
            bytes: self.meter.body_bytes(outgoing.kind),
            connection,
            _slot: slot,
        };
        // Who says yes before all was said cannot mean all of it.
        let is_early = answer.response.status().is_success() && !outgoing.carried.is_whole();
        if is_early || !is_well_framed(&answer.response) {
            answer.poison();
            return Err(UpstreamError::Wrong(Wrong::Malformed));
        }
        Ok(answer)
    }

    /// Sends until there is a response, or an error that is not a stale connection's.
    async fn respond(
        &self,
        outgoing: &Outgoing<'_>,
        connected_by: Instant,
    ) -> Result<(Response<Incoming>, CaptureConnection), UpstreamError> {
        let began = Instant::now();
        let mut stale = 0;
        loop {
            let mut request = self.build(outgoing)?;
            let mut connection = capture_connection(&mut request);
            let response = self.http.load().request(request);
            tokio::pin!(response);
            let response = tokio::select! {
                biased;
                response = &mut response => response,
                // The guard it returns must not be held while waiting on.
                () = async { drop(connection.wait_for_connection_metadata().await) } => {
                    tokio::select! {
                        biased;
                        response = response => response,
                        () = self.answer_is_overdue(outgoing) => {
                            return Err(UpstreamError::TooSlow(Deadline::FirstByte));
                        }
                    }
                }
                () = tokio::time::sleep_until(connected_by) => {
                    return Err(UpstreamError::TooSlow(match began.elapsed() < self.fair_try {
                        true => Deadline::Slot,
                        false => Deadline::Connect,
                    }));
                }
            };
            let has_answered = connection
                .connection_metadata()
                .as_ref()
                .map(HasAnswered::of)
                .unwrap_or_default();
            match response {
                Ok(response) => {
                    has_answered.set();
                    return Ok((response, connection));
                }
                Err(error) => {
                    let error = explain(&error);
                    let broke = error == UpstreamError::Unreachable(Unreachable::Broken);
                    if broke {
                        outgoing.doubt.raise();
                    }
                    let may_repeat = outgoing.carried.may_be_repeated();
                    if !(broke && has_answered.get() && stale < MAX_STALE && may_repeat) {
                        return Err(error);
                    }
                    stale += 1;
                    self.meter.retried();
                }
            }
        }
    }
}

impl Client {
    /// Returns when an answer should have begun. Whoever feeds a stream sees to it that it goes on.
    async fn answer_is_overdue(&self, outgoing: &Outgoing<'_>) {
        outgoing.carried.is_taken().await;
        let patience = match outgoing.kind {
            // Registries put the parts of a large blob together before they answer.
            Kind::Upload | Kind::UploadBody => self.first_byte * 3,
            _ => self.first_byte,
        };
        tokio::time::sleep(patience).await;
    }

    fn build(&self, outgoing: &Outgoing<'_>) -> Result<Request<Sending>, UpstreamError> {
        let body = outgoing
            .carried
            .body(|| self.meter.sent_bytes(outgoing.kind));
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = outgoing.target.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, USER_AGENT);
        // Some registries compress when not told otherwise, which breaks lengths and digests.
        headers.insert(header::ACCEPT_ENCODING, IDENTITY);
        let optional = [
            (header::HOST, &outgoing.host),
            (header::ACCEPT, &outgoing.accept),
            (header::RANGE, &outgoing.range),
            (header::CONTENT_TYPE, &outgoing.content_type),
            (header::CONTENT_RANGE, &outgoing.content_range),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        let is_write = matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH);
        if is_write && matches!(outgoing.carried, Carried::Nothing) {
            // Balancers want to be told (RFC 9110, 8.6).
            headers.insert(header::CONTENT_LENGTH, 0.into());
        }
        if let Some(token) = outgoing.token {
            token
                .attach(&outgoing.target, headers)
                .map_err(|_| UpstreamError::BadCredentials)?;
        }
        Ok(request)
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The length of the content that the head declares, of a `HEAD` too.
    pub(super) fn content_length(&self) -> Option<u64> {
        let value = self.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?;
        value.trim().parse().ok()
    }

    /// True if the content comes as it is.
    pub(super) fn is_identity(&self) -> bool {
        self.headers()
            .get_all(header::CONTENT_ENCODING)
            .iter()
            .all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    }

    /// The whole body, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// When it is longer, encoded, breaks off or stalls.
    pub(super) async fn read(self, limit: usize) -> Result<Bytes, UpstreamError> {
        if !self.is_identity() {
            return Err(UpstreamError::Wrong(Wrong::Encoded));
        }
        let too_large = UpstreamError::Wrong(Wrong::TooLarge);
        if self
            .content_length()
            .is_some_and(|length| length > limit as u64)
        {
            return Err(too_large);
        }
        // One deadline for the whole: what is buffered is small, and a trickle must not hold it open.
        let deadline = Instant::now() + self.progress;
        let mut body = self.response.into_body();
        let mut bytes = BytesMut::new();
        loop {
            let frame = tokio::time::timeout_at(deadline, body.frame())
                .await
                .map_err(|_| UpstreamError::TooSlow(Deadline::Progress))?;
            match frame {
                None => return Ok(bytes.freeze()),
                Some(frame) => {
                    let frame = frame.map_err(|error| broken_body(&error))?;
                    if let Some(data) = frame.data_ref() {
                        if bytes.len() + data.len() > limit {
                            return Err(too_large);
                        }
                        self.bytes.inc_by(data.len() as u64);
                        bytes.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// Reads a small body to its end and forgets it, so that the connection can be used again; a large
    /// or slow one closes its connection.
    pub(super) async fn discard(self) {
        let is_small = self
            .content_length()
            .is_none_or(|length| length <= DISCARD_BYTES as u64);
        if is_small {
            let _ = tokio::time::timeout(DISCARD_TIME, self.read(DISCARD_BYTES)).await;
        }
    }

    /// Sees to it that the connection is not used again.
    pub(super) fn poison(&self) {
        self.came_by().poison();
    }

    /// Where it came from, for who finds out only when it is read.
    pub(super) fn came_by(&self) -> CameBy {
        CameBy(self.connection.clone())
    }

    /// Counts the bytes of bodies of this kind.
    pub(super) fn counter(&self) -> &Counter {
        &self.bytes
    }

    pub(super) fn progress(&self) -> Duration {
        self.progress
    }

    /// The body, with what must live as long.
    pub(super) fn into_body(self) -> (Incoming, OwnedSemaphorePermit) {
        (self.response.into_body(), self._slot)
    }
}

/// The connection that an answer came by.
pub(super) struct CameBy(CaptureConnection);

impl CameBy {
    /// Sees to it that it is not used again.
    pub(super) fn poison(&self) {
        if let Some(connected) = &*self.0.connection_metadata() {
            connected.poison();
        }
    }
}

/// What a broken body says: a short one, or one that is not HTTP.
pub(super) fn broken_body(error: &hyper::Error) -> UpstreamError {
    if error.is_parse() {
        UpstreamError::Wrong(Wrong::Malformed)
    } else {
        UpstreamError::Truncated
    }
}

/// A path and query that is made of checked parts.
///
/// # Errors
/// When it cannot stand in a request; what came from an upstream, such as a page's name, may be so.
pub(super) fn path_and_query(text: String) -> Result<PathAndQuery, UpstreamError> {
    PathAndQuery::try_from(text).map_err(|_| UpstreamError::Wrong(Wrong::Malformed))
}

/// False for heads that another reader may frame otherwise than we do (RFC 9112, 6.3).
fn is_well_framed(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let encoding_is_plain = match (encodings.next(), encodings.next()) {
        (None, _) => true,
        (Some(encoding), None) => {
            encoding.as_bytes().eq_ignore_ascii_case(b"chunked")
                && !headers.contains_key(header::CONTENT_LENGTH)
        }
        (Some(_), Some(_)) => false,
    };
    let has_one_length = headers.get_all(header::CONTENT_LENGTH).iter().count() <= 1;
    encoding_is_plain && has_one_length && !response.status().is_informational()
}

/// Why there was no answer.
fn explain(error: &legacy::Error) -> UpstreamError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            return (*connect).into();
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            return UpstreamError::Wrong(Wrong::Malformed);
        }
        source = cause.source();
    }
    UpstreamError::Unreachable(if error.is_connect() {
        Unreachable::Connect
    } else {
        Unreachable::Broken
    })
}
