//! A strict reading of HTTP/1.1 request heads, in front of hyper's lenient one.
//!
//! hyper drops a Content-Length that stands beside a Transfer-Encoding, accepts `gzip, chunked`,
//! several Transfer-Encoding lines, equal Content-Lengths and bare LF, and tells its service
//! nothing of it. Where two readers of one connection can disagree about where a request ends, a
//! second request can hide, so such a head never reaches hyper: in its place the guard puts a
//! harmless one, notes why, and lets no later byte of the connection through.
//!
//! Invariant: hyper sees only complete heads that passed [`inspect`], the bodies that they declare,
//! and nothing after a refusal. Knows the grammar of RFC 9112 and nothing of registries.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::progress::Pulse;

/// Longest request target. The longest honest one, an upload session with its state, stays under
/// 2 KiB; an unbounded one fills logs.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Most header lines of one head; hyper's own limit, told in our words.
const MAX_HEADER_LINES: usize = 100;

/// What hyper reads where a request was refused. It is answered by the refusal, never run.
const IN_PLACE_OF_A_REFUSED_HEAD: &[u8] =
    b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// How long a connection that still sends is listened to after its last answer. Closing with
/// unread bytes makes the kernel send a reset, which can overtake the answer.
const LINGER: Duration = Duration::from_secs(2);

/// Why a request was refused before anything looked at what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request line is not `METHOD SP target SP HTTP/1.x`.
    RequestLine,
    /// A line ends in a bare LF, or a CR stands inside one (RFC 9112, 2.2).
    LineEnding,
    /// A header line has no valid name, is folded, or holds a control character (RFC 9112, 5).
    HeaderLine,
    /// Both Content-Length and Transfer-Encoding are present (RFC 9112, 6.1).
    TwoFramings,
    /// Transfer-Encoding is anything but one `chunked`, or the request is HTTP/1.0.
    TransferEncoding,
    /// Content-Length is repeated or not a plain decimal number.
    ContentLength,
    /// GET or HEAD with a body.
    UnexpectedBody,
    /// The request target is too long.
    TargetTooLong,
    /// The head is too large or has too many lines.
    HeadTooLarge,
}

impl Refusal {
    /// The status of the answer: 400, 414 or 431.
    pub fn status(self) -> StatusCode {
        match self {
            Self::RequestLine
            | Self::LineEnding
            | Self::HeaderLine
            | Self::TwoFramings
            | Self::TransferEncoding
            | Self::ContentLength
            | Self::UnexpectedBody => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestLine => "malformed request line",
            Self::LineEnding => "malformed line ending",
            Self::HeaderLine => "malformed header line",
            Self::TwoFramings => "both Content-Length and Transfer-Encoding",
            Self::TransferEncoding => "unsupported Transfer-Encoding",
            Self::ContentLength => "malformed or repeated Content-Length",
            Self::UnexpectedBody => "this method takes no body",
            Self::TargetTooLong => "request target too long",
            Self::HeadTooLarge => "request head too large",
        })
    }
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Nothing,
    Body(u64),
    /// A chunked body. Its end is hyper's to find, so its request is the connection's last.
    Chunked,
}

/// Judges a complete head, from its request line to the empty line.
fn inspect(head: &[u8]) -> Result<Follows, Refusal> {
    let mut lines = head.split(|byte| *byte == b'\n').map(without_cr);
    let request_line = lines
        .by_ref()
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let (method, is_http_11) = request_line_of(request_line)?;

    let mut length: Option<u64> = None;
    let mut chunked = false;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = header_of(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Refusal::ContentLength);
            }
            length = Some(decimal(value).ok_or(Refusal::ContentLength)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !is_http_11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::TransferEncoding);
            }
            chunked = true;
        }
    }
    let follows = match (length, chunked) {
        (Some(_), true) => return Err(Refusal::TwoFramings),
        (None, true) => Follows::Chunked,
        (None | Some(0), false) => Follows::Nothing,
        (Some(length), false) => Follows::Body(length),
    };
    if follows != Follows::Nothing && matches!(method, b"GET" | b"HEAD") {
        return Err(Refusal::UnexpectedBody);
    }
    Ok(follows)
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The method, and whether the version is 1.1 rather than 1.0.
fn request_line_of(line: &[u8]) -> Result<(&[u8], bool), Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    let is_http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Refusal::RequestLine),
    };
    let is_target = !target.is_empty() && target.iter().all(u8::is_ascii_graphic);
    if !is_token(method) || !is_target {
        return Err(Refusal::RequestLine);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    Ok((method, is_http_11))
}

fn header_of(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or(Refusal::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if value.contains(&b'\r') {
        return Err(Refusal::LineEnding);
    }
    let is_clean = value
        .iter()
        .all(|byte| !byte.is_ascii_control() || *byte == b'\t');
    if !is_token(name) || !is_clean {
        return Err(Refusal::HeaderLine);
    }
    Ok((name, value.trim_ascii()))
}

/// `token` of RFC 9110, 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Looks for the end of a head, remembering how far it has looked.
#[derive(Debug, Default)]
struct HeadScan {
    /// Bytes of the head already looked at.
    seen: usize,
    /// Where the line that is being read began.
    line_start: usize,
    lines: usize,
}

impl HeadScan {
    /// The length of the head at the start of `bytes`, if it is complete.
    fn end_of(&mut self, bytes: &[u8], max_bytes: usize) -> Result<Option<usize>, Refusal> {
        while let Some(at) = bytes[self.seen..].iter().position(|byte| *byte == b'\n') {
            let newline = self.seen + at;
            let line = bytes[self.line_start..newline]
                .strip_suffix(b"\r")
                .ok_or(Refusal::LineEnding)?;
            self.seen = newline + 1;
            self.line_start = self.seen;
            if self.seen > max_bytes {
                return Err(Refusal::HeadTooLarge);
            }
            if !line.is_empty() {
                self.lines += 1;
                if self.lines > 1 + MAX_HEADER_LINES {
                    return Err(Refusal::HeadTooLarge);
                }
            } else if self.lines > 0 {
                return Ok(Some(self.seen));
            }
        }
        self.seen = bytes.len();
        if self.seen > max_bytes {
            return Err(match self.lines {
                0 => Refusal::TargetTooLong,
                _ => Refusal::HeadTooLarge,
            });
        }
        Ok(None)
    }
}

#[derive(Debug)]
enum Reading {
    Head(HeadScan),
    /// So many bytes of a body are still to come.
    Body(u64),
    /// A chunked body: everything to the end of the connection is hyper's.
    Rest,
    /// A head was refused; nothing is read any more.
    Refused,
}

/// Lets through what [`inspect`] approves of; wraps an HTTP/1.1 connection below hyper.
pub(super) struct HeadGuard<S> {
    inner: S,
    pulse: Arc<Pulse>,
    max_head_bytes: usize,
    reading: Reading,
    /// Number of the head that is being read, from 0.
    head: u64,
    /// Bytes read and not yet handed on; allocated only for heads that arrive in pieces.
    held: BytesMut,
    /// How many of `held` may be handed on.
    approved: usize,
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadGuard<S> {
    pub(super) fn new(inner: S, pulse: Arc<Pulse>, max_head_bytes: usize) -> Self {
        Self {
            inner,
            pulse,
            max_head_bytes,
            reading: Reading::Head(HeadScan::default()),
            head: 0,
            held: BytesMut::new(),
            approved: 0,
            linger: None,
        }
    }

    /// How many bytes at the start of `bytes`, all of them new or held, may be handed on; the rest
    /// is an unfinished head, or refused.
    fn approve(&mut self, bytes: &[u8]) -> usize {
        let mut approved = 0;
        while approved < bytes.len() {
            let rest = &bytes[approved..];
            match &mut self.reading {
                Reading::Head(scan) => {
                    let outcome = match scan.end_of(rest, self.max_head_bytes) {
                        Ok(None) => {
                            self.pulse.head_began();
                            return approved;
                        }
                        Ok(Some(end)) => inspect(&rest[..end]).map(|follows| (end, follows)),
                        Err(refusal) => Err(refusal),
                    };
                    self.pulse.head_ended();
                    match outcome {
                        Ok((end, follows)) => {
                            approved += end;
                            self.reading = match follows {
                                Follows::Nothing => Reading::Head(HeadScan::default()),
                                Follows::Body(length) => Reading::Body(length),
                                Follows::Chunked => {
                                    self.pulse.end_after(self.head);
                                    Reading::Rest
                                }
                            };
                            self.head += 1;
                        }
                        Err(refusal) => {
                            self.pulse.refuse(self.head, refusal);
                            self.reading = Reading::Refused;
                            return approved;
                        }
                    }
                }
                Reading::Body(left) => {
                    let taken = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    approved += taken;
                    *left -= taken as u64;
                    if *left == 0 {
                        self.reading = Reading::Head(HeadScan::default());
                    }
                }
                Reading::Rest => return bytes.len(),
                Reading::Refused => return approved,
            }
        }
        approved
    }

    /// Replaces what follows the approved bytes by the head that stands for a refused one.
    fn hold_stand_in(&mut self) {
        self.held.truncate(self.approved);
        self.held.extend_from_slice(IN_PLACE_OF_A_REFUSED_HEAD);
        self.approved = self.held.len();
    }

    /// Whether the client may still be sending what nobody will read.
    fn leaves_bytes_unread(&self) -> bool {
        match self.reading {
            Reading::Head(_) => false,
            Reading::Body(_) | Reading::Rest | Reading::Refused => true,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.approved > 0 {
                let taken = this.approved.min(buf.remaining());
                buf.put_slice(&this.held[..taken]);
                this.held.advance(taken);
                this.approved -= taken;
                if this.held.is_empty() {
                    this.held = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if matches!(this.reading, Reading::Refused) {
                // hyper has the stand-in and will close; it waits for nothing more.
                return Poll::Pending;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            let new = &buf.filled()[before..];
            if new.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                let approved = this.approve(new);
                this.held.extend_from_slice(&new[approved..]);
                buf.set_filled(before + approved);
                if matches!(this.reading, Reading::Refused) {
                    this.hold_stand_in();
                }
                if approved > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut held = std::mem::take(&mut this.held);
                held.extend_from_slice(new);
                buf.set_filled(before);
                this.approved = this.approve(&held);
                this.held = held;
                if matches!(this.reading, Reading::Refused) {
                    this.hold_stand_in();
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HeadGuard<S> {
    /// Reads and forgets until the client closes or [`LINGER`] has passed.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self
            .linger
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + LINGER)));
        let mut scratch = [0; 4096];
        while until.as_mut().poll(cx).is_pending() {
            let mut forgotten = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut forgotten)) {
                Ok(()) if !forgotten.filled().is_empty() => {}
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeadGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        if this.leaves_bytes_unread() {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::unconstrained;

    use super::*;

    fn judged(head: &str) -> Result<Follows, Refusal> {
        let mut scan = HeadScan::default();
        let end = scan.end_of(head.as_bytes(), 32 * 1024)?;
        assert_eq!(end, Some(head.len()), "one whole head");
        inspect(head.as_bytes())
    }

    fn with_lines(method: &str, lines: &str) -> Result<Follows, Refusal> {
        judged(&format!("{method} /v2/ HTTP/1.1\r\nhost: a\r\n{lines}\r\n"))
    }

    #[test]
    fn honest_heads_pass() {
        assert_eq!(with_lines("GET", ""), Ok(Follows::Nothing));
        assert_eq!(
            with_lines("GET", "content-length: 0\r\n"),
            Ok(Follows::Nothing)
        );
        assert_eq!(
            with_lines("PUT", "Content-Length:12\r\n"),
            Ok(Follows::Body(12))
        );
        assert_eq!(
            with_lines("PATCH", "Transfer-Encoding: Chunked \r\n"),
            Ok(Follows::Chunked)
        );
        assert_eq!(
            with_lines("GET", "x-empty:\r\nx-text: caf\u{e9}\t!\r\n"),
            Ok(Follows::Nothing)
        );
        assert_eq!(judged("GET / HTTP/1.0\r\n\r\n"), Ok(Follows::Nothing));
        assert_eq!(judged("\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Follows::Nothing));
        assert_eq!(
            judged("CONNECT a:443 HTTP/1.1\r\n\r\n"),
            Ok(Follows::Nothing)
        );
    }

    #[test]
    fn p01_two_framings_and_bodies_of_reading_methods_are_refused() {
        let both = "content-length: 4\r\ntransfer-encoding: chunked\r\n";
        for method in ["GET", "PATCH", "PUT"] {
            assert_eq!(with_lines(method, both), Err(Refusal::TwoFramings));
        }
        for lines in ["content-length: 4\r\n", "transfer-encoding: chunked\r\n"] {
            assert_eq!(with_lines("GET", lines), Err(Refusal::UnexpectedBody));
            assert_eq!(with_lines("HEAD", lines), Err(Refusal::UnexpectedBody));
        }
    }

    #[test]
    fn p02_odd_framings_are_refused() {
        for value in [
            "xchunked",
            "chunked, identity",
            "gzip, chunked",
            "chunked, chunked",
            "",
        ] {
            let line = format!("transfer-encoding: {value}\r\n");
            assert_eq!(
                with_lines("PUT", &line),
                Err(Refusal::TransferEncoding),
                "{value}"
            );
        }
        let twice = "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n";
        assert_eq!(with_lines("PUT", twice), Err(Refusal::TransferEncoding));
        assert_eq!(
            judged("PUT / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"),
            Err(Refusal::TransferEncoding)
        );
        for value in ["4, 4", "+4", "-4", "0x4", "", "4 4", "18446744073709551616"] {
            let line = format!("content-length: {value}\r\n");
            assert_eq!(
                with_lines("PUT", &line),
                Err(Refusal::ContentLength),
                "{value}"
            );
        }
        let twice = "content-length: 4\r\ncontent-length: 4\r\n";
        assert_eq!(with_lines("PUT", twice), Err(Refusal::ContentLength));
    }

    #[test]
    fn p03_line_grammar_is_strict() {
        for (head, refusal) in [
            ("GET / HTTP/1.1\nhost: a\n\n", Refusal::LineEnding),
            ("GET / HTTP/1.1\r\nhost: a\n\r\n", Refusal::LineEnding),
            (
                "GET / HTTP/1.1\r\nhost: a\rb: c\r\n\r\n",
                Refusal::LineEnding,
            ),
            ("GET / HTTP/1.1\r\nhost: a\0\r\n\r\n", Refusal::HeaderLine),
            (
                "GET / HTTP/1.1\r\nhost: a\r\n b: c\r\n\r\n",
                Refusal::HeaderLine,
            ),
            ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", Refusal::HeaderLine),
            ("GET / HTTP/1.1\r\nhost\r\n\r\n", Refusal::HeaderLine),
            ("GET  / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET /\r\n\r\n", Refusal::RequestLine),
            ("GET /a b HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            ("GET / HTTP/1.2\r\n\r\n", Refusal::RequestLine),
            ("PRI * HTTP/2.0\r\n\r\n", Refusal::RequestLine),
            ("G@T / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        ] {
            assert_eq!(judged(head), Err(refusal), "{head:?}");
        }
    }

    #[test]
    fn heads_have_limits() {
        let judged_to = |head: &str| HeadScan::default().end_of(head.as_bytes(), 1024);
        let long = "a".repeat(1100);
        assert_eq!(
            judged_to(&format!("GET /{long}")),
            Err(Refusal::TargetTooLong)
        );
        assert_eq!(
            judged_to(&format!("GET / HTTP/1.1\r\nx: {long}")),
            Err(Refusal::HeadTooLarge)
        );
        let target = "a".repeat(MAX_TARGET_BYTES);
        assert_eq!(
            judged(&format!("GET /{target} HTTP/1.1\r\n\r\n")),
            Err(Refusal::TargetTooLong)
        );
        let lines = "x: y\r\n".repeat(MAX_HEADER_LINES);
        assert_eq!(with_lines("GET", &lines), Err(Refusal::HeadTooLarge));
    }

    /// What hyper would read of `pieces`, each of them one read of the socket.
    async fn read_through(pieces: &[&[u8]]) -> (Vec<u8>, Arc<Pulse>) {
        let pulse = Pulse::new(Instant::now());
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let mut guard = HeadGuard::new(server, Arc::clone(&pulse), 1024);
        let mut seen = Vec::new();
        for piece in pieces {
            client.write_all(piece).await.expect("room");
            let mut buf = [0; 48];
            // Whatever is not ready now needs another piece; tokio's budget would end it earlier.
            while let Some(read) = unconstrained(guard.read(&mut buf)).now_or_never() {
                let read = read.expect("no errors");
                seen.extend_from_slice(&buf[..read]);
            }
        }
        (seen, pulse)
    }

    const FIRST: &[u8] = b"PUT /a HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello";
    const SECOND: &[u8] = b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n";
    const HIDING: &[u8] =
        b"PUT /c HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";

    #[tokio::test]
    async fn what_is_approved_arrives_unchanged_however_it_is_cut() {
        let stream = [FIRST, SECOND, FIRST, SECOND].concat();
        for cut in 1..stream.len() {
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            let (seen, pulse) = read_through(&pieces).await;
            assert_eq!(seen, stream, "in pieces of {cut}");
            assert_eq!(pulse.refusal_of(4), None);
        }
    }

    #[tokio::test]
    async fn p01_nothing_behind_a_refused_head_is_seen_however_it_is_cut() {
        let stream = [FIRST, SECOND, HIDING, SECOND].concat();
        let expected = [FIRST, SECOND, IN_PLACE_OF_A_REFUSED_HEAD].concat();
        for cut in 1..stream.len() {
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            let (seen, pulse) = read_through(&pieces).await;
            assert_eq!(seen, expected, "in pieces of {cut}");
            assert_eq!(pulse.refusal_of(2), Some(Refusal::TwoFramings));
        }
    }

    #[tokio::test]
    async fn a_chunked_body_passes_and_its_request_is_the_last() {
        let stream: &[u8] =
            b"PATCH /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        let (seen, pulse) = read_through(&[SECOND, stream]).await;
        assert_eq!(seen, [SECOND, stream].concat());
        assert!(pulse.is_last(1) && !pulse.is_last(0));
    }
}
