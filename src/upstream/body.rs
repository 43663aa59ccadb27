//! The bytes of a blob as they come.
//!
//! Invariant: a [`BlobBody`] yields bytes from exactly the offset asked, of exactly the content asked
//! to continue, and ends without an error only after as many as were declared. It does not hash: the
//! digest is the caller's to check.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::oci::ContentRange;

use super::bandwidth::{Interest, Line, Turns};
use super::client::{Answer, broken_body};
use super::error::{Deadline, UpstreamError, Wrong};
use super::meter::Meter;

/// What a body must bring within each span of [`Limits::progress`](super::Limits::progress): a few
/// bytes a second are a stall as well. Half a kilobyte a second over the default 30 s passes on any
/// line that is fit to pull images.
const MIN_PROGRESS: u64 = 16 * 1024;

/// Which bytes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub from: u64,
    /// Offset after the last byte; to the end of the blob without. Greater than `from`.
    pub to: Option<u64>,
}

impl Span {
    /// All of it.
    pub const WHOLE: Self = Self { from: 0, to: None };

    pub(super) fn header(self) -> Option<HeaderValue> {
        let text = match self {
            Self { from: 0, to: None } => return None,
            Self { from, to: None } => format!("bytes={from}-"),
            Self { from, to: Some(to) } => format!("bytes={from}-{}", to.saturating_sub(1)),
        };
        // Digits and a dash are always a header's value.
        HeaderValue::from_str(&text).ok()
    }
}

/// By what two parts are known to be of the same content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    etag: Option<String>,
    total: Option<u64>,
}

impl Validator {
    /// What was kept of an earlier [`BlobBody::validator`].
    pub fn new(etag: Option<String>, total: Option<u64>) -> Self {
        Self { etag, total }
    }

    /// The strong entity tag, with its quotes, where storage gave one.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The size of the whole blob in bytes, where it was told.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// True unless both know something and it differs.
    fn agrees_with(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        agree(&self.etag, &other.etag) && agree(&self.total, &other.total)
    }
}

/// The bytes of a blob on their way. Dropping it unfinished closes its connection.
pub struct BlobBody {
    body: Incoming,
    _slot: OwnedSemaphorePermit,
    /// Offset of the next byte to hand out.
    offset: u64,
    validator: Validator,
    /// Bytes that are still to be read; `None` where no length was declared.
    remaining: Option<u64>,
    /// What was read and waits for its turn.
    read: Bytes,
    turns: Turns,
    held_back: Duration,
    /// More may follow than is wanted, and is not read.
    cut: bool,
    pace: Pace,
    bytes: Counter,
    meter: Meter,
}

impl BlobBody {
    pub(super) fn new(
        answer: Answer,
        span: Span,
        same_as: Option<&Validator>,
        lines: &[Line],
        meter: Meter,
    ) -> Result<Self, UpstreamError> {
        let plan = Plan::of(
            answer.status(),
            answer.headers(),
            answer.is_identity(),
            answer.content_length(),
            span,
        )?;
        if same_as.is_some_and(|same_as| !same_as.agrees_with(&plan.validator)) {
            return Err(UpstreamError::ContentChanged);
        }
        let pace = Pace::new(answer.progress());
        let bytes = answer.counter().clone();
        let (body, slot) = answer.into_body();
        Ok(Self {
            body,
            _slot: slot,
            offset: span.from,
            validator: plan.validator,
            remaining: plan.length,
            read: Bytes::new(),
            turns: Turns::new(lines.to_vec(), Interest::default()),
            held_back: Duration::ZERO,
            cut: plan.cut,
            pace,
            bytes,
            meter,
        })
    }

    /// The same body, which gives way to others while nobody waits for it. Without this somebody always
    /// does.
    pub fn wanted_by(mut self, interest: Interest) -> Self {
        self.turns.set_interest(interest);
        self
    }

    /// How long limits of our own held it back since this was last asked.
    pub fn take_held_back(&mut self) -> Duration {
        std::mem::take(&mut self.held_back)
    }

    /// Offset in the blob of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The size of the whole blob in bytes, where it was told.
    pub fn total(&self) -> Option<u64> {
        self.validator.total
    }

    /// By what a later part can be known to be of the same content.
    pub fn validator(&self) -> &Validator {
        &self.validator
    }

    /// The next bytes; `None` at the end. Where no length was declared, the end may be a broken
    /// connection: only the digest tells.
    ///
    /// # Errors
    /// [`UpstreamError::Truncated`] if the body ends before its declared length,
    /// [`UpstreamError::TooMuch`] if it goes on after it, [`UpstreamError::TooSlow`] if nothing, or next
    /// to nothing, comes. Not to be called again after an error.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if self.read.is_empty() {
            match self.read_on().await? {
                Some(bytes) => self.read = bytes,
                None => return Ok(None),
            }
        }
        // In range: no more than was read, which is a usize.
        let length = self.turns.limit(self.read.len() as u64);
        // Time spent waiting here is our own, and no stall of the upstream.
        let waited = self.turns.take(length).await;
        self.meter.held_back(waited);
        self.held_back += waited;
        self.offset += length;
        self.bytes.inc_by(length);
        Ok(Some(self.read.split_to(length as usize)))
    }

    /// What the next read of the connection brings.
    async fn read_on(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            if self.cut && self.remaining == Some(0) {
                return Ok(None);
            }
            let waited_since = Instant::now();
            let frame = tokio::time::timeout(self.pace.patience(), self.body.frame()).await;
            let waited = waited_since.elapsed();
            let Ok(frame) = frame else {
                self.meter.stalled();
                return Err(UpstreamError::TooSlow(Deadline::Progress));
            };
            let mut data = match frame {
                None => {
                    return match self.remaining {
                        None | Some(0) => Ok(None),
                        Some(_) => Err(self.truncated()),
                    };
                }
                Some(Err(error)) => {
                    return Err(match broken_body(&error) {
                        UpstreamError::Truncated => self.truncated(),
                        other => other,
                    });
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => data,
                    // Trailers mean nothing here.
                    Ok(_) | Err(_) => continue,
                },
            };
            if let Some(remaining) = &mut self.remaining {
                if data.len() as u64 > *remaining {
                    if !self.cut {
                        return Err(UpstreamError::TooMuch);
                    }
                    // Fits, being less than the length of what is in memory.
                    data.truncate(usize::try_from(*remaining).unwrap_or(data.len()));
                }
                *remaining -= data.len() as u64;
            }
            self.pace.brought(data.len() as u64, waited);
            return Ok(Some(data));
        }
    }

    fn truncated(&self) -> UpstreamError {
        self.meter.truncated();
        UpstreamError::Truncated
    }
}

/// What the head of an answer promises for the part that was asked.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    validator: Validator,
    /// Bytes wanted from the body.
    length: Option<u64>,
    cut: bool,
}

impl Plan {
    fn of(
        status: StatusCode,
        headers: &HeaderMap,
        is_identity: bool,
        content_length: Option<u64>,
        span: Span,
    ) -> Result<Self, UpstreamError> {
        if !is_identity {
            return Err(UpstreamError::Wrong(Wrong::Encoded));
        }
        let malformed = UpstreamError::Wrong(Wrong::Malformed);
        let etag = strong_etag(headers);
        if status == StatusCode::OK {
            if span.from > 0 {
                return Err(UpstreamError::IgnoredRange);
            }
            let wanted = match (span.to, content_length) {
                (Some(to), Some(length)) => Some(to.min(length)),
                (Some(to), None) => Some(to),
                (None, length) => length,
            };
            return Ok(Self {
                validator: Validator {
                    etag,
                    total: content_length,
                },
                length: wanted,
                cut: span.to.is_some(),
            });
        }
        // RFC 9110 (15.3.7): a part that nobody asked for, or several at once, have no place here.
        let mut content_ranges = headers.get_all(header::CONTENT_RANGE).iter();
        let content_range = match (content_ranges.next(), content_ranges.next()) {
            (Some(range), None) if span.header().is_some() => range
                .to_str()
                .ok()
                .and_then(|range| range.parse::<ContentRange>().ok()),
            (Some(_), _) | (None, _) => None,
        };
        let Some(ContentRange { range, size }) = content_range else {
            return Err(malformed);
        };
        // The end asked for may lie behind the end of the blob, and nowhere else.
        let end = match (span.to, size) {
            (Some(to), Some(size)) => to.min(size),
            (Some(to), None) => to,
            (None, Some(size)) => size,
            (None, None) => return Err(malformed),
        };
        let is_as_asked = range.start == span.from && range.end == end;
        let has_its_length = content_length.is_none_or(|length| length == range.len());
        if !is_as_asked || !has_its_length {
            return Err(malformed);
        }
        Ok(Self {
            validator: Validator { etag, total: size },
            length: Some(range.len()),
            cut: false,
        })
    }
}

fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(header::ETAG)?.to_str().ok()?.trim();
    etag.starts_with('"').then(|| etag.to_owned())
}

/// Tells a slow body from a stalled one. Only time spent waiting counts, so a reader that pauses is no
/// fault of the upstream.
struct Pace {
    limit: Duration,
    waited: Duration,
    brought: u64,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            brought: 0,
        }
    }

    fn patience(&self) -> Duration {
        self.limit.saturating_sub(self.waited)
    }

    fn brought(&mut self, bytes: u64, waited: Duration) {
        self.waited += waited;
        self.brought += bytes;
        if self.brought >= MIN_PROGRESS {
            *self = Self::new(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        status: u16,
        headers: &[(&'static str, &str)],
        length: Option<u64>,
        span: Span,
    ) -> Result<Plan, UpstreamError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Plan::of(
            StatusCode::from_u16(status).unwrap(),
            &map,
            true,
            length,
            span,
        )
    }

    fn span(from: u64, to: Option<u64>) -> Span {
        Span { from, to }
    }

    #[test]
    fn u09_a_part_is_exactly_the_part_asked_for() {
        let malformed = Err(UpstreamError::Wrong(Wrong::Malformed));
        let part = |range: &str, span| plan(206, &[("content-range", range)], None, span);
        assert_eq!(
            part("bytes 10-99/100", span(10, None)).unwrap().length,
            Some(90)
        );
        assert_eq!(
            part("bytes 10-19/100", span(10, Some(20))).unwrap().length,
            Some(10)
        );
        assert_eq!(
            part("bytes 90-99/100", span(90, Some(200))).unwrap().length,
            Some(10)
        );
        for (range, span) in [
            ("bytes 11-99/100", span(10, None)),
            ("bytes 0-99/100", span(10, None)),
            ("bytes 10-98/100", span(10, None)),
            ("bytes 10-99/*", span(10, None)),
            ("bytes 10-29/100", span(10, Some(20))),
            ("bytes 10-14/100", span(10, Some(20))),
            ("bytes */100", span(10, None)),
            ("rubbish", span(10, None)),
            ("bytes 0-99/100", Span::WHOLE),
        ] {
            assert_eq!(part(range, span), malformed, "{range}");
        }
        assert_eq!(plan(206, &[], Some(90), span(10, None)), malformed);
        let twice = [
            ("content-range", "bytes 10-99/100"),
            ("content-range", "bytes 20-99/100"),
        ];
        assert_eq!(plan(206, &twice, None, span(10, None)), malformed);
        let wrong_length = plan(
            206,
            &[("content-range", "bytes 10-99/100")],
            Some(91),
            span(10, None),
        );
        assert_eq!(wrong_length, malformed);
        assert_eq!(
            plan(200, &[], Some(100), span(10, None)),
            Err(UpstreamError::IgnoredRange)
        );
    }

    #[test]
    fn a_whole_answer_serves_a_part_from_its_beginning() {
        let plan = plan(200, &[("etag", "\"a\"")], Some(100), span(0, Some(10))).unwrap();
        assert_eq!((plan.length, plan.cut), (Some(10), true));
        assert_eq!(
            plan.validator,
            Validator::new(Some("\"a\"".into()), Some(100))
        );
    }

    #[test]
    fn u09_validators_agree_where_both_know() {
        let known = Validator::new(Some("\"a\"".into()), Some(100));
        assert!(known.agrees_with(&Validator::default()));
        assert!(known.agrees_with(&known));
        assert!(!known.agrees_with(&Validator::new(Some("\"b\"".into()), Some(100))));
        assert!(!known.agrees_with(&Validator::new(None, Some(101))));
    }

    #[test]
    fn u07_a_trickle_is_a_stall() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(30 * second);
        for _ in 0..29 {
            pace.brought(1, second);
        }
        assert_eq!(pace.patience(), second);
        pace.brought(MIN_PROGRESS, second / 2);
        assert_eq!(pace.patience(), 30 * second);
    }
}
