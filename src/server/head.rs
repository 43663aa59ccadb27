//! The grammar of HTTP/1.1 request heads, read strictly: RFC 9112 without its leniencies.
//!
//! Invariant: a head that passes [`inspect`] ends, and its body ends, at the same byte for every
//! reader. Pure: knows bytes, and nothing of sockets.

use std::fmt;

use http::{StatusCode, Uri};
use memchr::{memchr, memchr_iter};

/// Longest request target. The longest honest one, an upload session with its state, stays under
/// 2 KiB; an unbounded one fills logs.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// The first byte of a TLS record that is part of a handshake (RFC 8446, 5.1). No method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Most header lines of one head; hyper's own limit, told in our words.
const MAX_HEADER_LINES: usize = 100;

/// Why a request was refused before anything looked at what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It begins as a TLS handshake does. docker and podman try TLS first at a registry that they take plain
    /// HTTP from, and go on by this answer.
    Tls,
    /// The request line is not `METHOD SP target SP HTTP/1.x`, or its target is no URI.
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
            Self::Tls
            | Self::RequestLine
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
            Self::Tls => "TLS, where plain HTTP is spoken",
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
pub(super) enum Follows {
    Nothing,
    Body(u64),
    /// A chunked body. Its end is hyper's to find, so its request is the connection's last.
    Chunked,
}

/// Judges a complete head, from its request line to the empty line.
pub(super) fn inspect(head: &[u8]) -> Result<Follows, Refusal> {
    let mut lines = lines_of(head).map(without_cr);
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

/// What is before, between and behind the line feeds.
fn lines_of(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = memchr_iter(b'\n', head).chain(std::iter::once(head.len()));
    ends.scan(0, |from, end| {
        let line = &head[*from..end];
        *from = end + 1;
        Some(line)
    })
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
    let is_target = !target.is_empty() && are_all(target, |byte| byte.is_ascii_graphic());
    if !is_token(method) || !is_target {
        return Err(Refusal::RequestLine);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    // What hyper could not read it would refuse by itself, without a word or a line in the log.
    let is_plain = target.starts_with(b"/") && are_all(target, |byte| !b"<>`".contains(&byte));
    if !is_plain && Uri::try_from(target).is_err() {
        return Err(Refusal::RequestLine);
    }
    Ok((method, is_http_11))
}

fn header_of(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr(b':', line).ok_or(Refusal::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_clean = are_all(value, |byte| !byte.is_ascii_control() || byte == b'\t');
    if !is_clean && value.contains(&b'\r') {
        return Err(Refusal::LineEnding);
    }
    if !is_token(name) || !is_clean {
        return Err(Refusal::HeaderLine);
    }
    Ok((name, value.trim_ascii()))
}

/// Which bytes a `token` of RFC 9110, 5.6.2, is made of.
const TOKEN: [bool; 256] = {
    let marks = b"!#$%&'*+-.^_`|~";
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        token[marks[at] as usize] = true;
        at += 1;
    }
    token
};

/// Whether all bytes are of this kind. All are looked at, so that it can be several in one step.
fn are_all(bytes: &[u8], is_one: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & is_one(*byte))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| TOKEN[usize::from(*byte)])
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Looks for the end of a head, remembering how far it has looked.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes of the head already looked at.
    seen: usize,
    /// Where the line that is being read began.
    line_start: usize,
    lines: usize,
}

impl HeadScan {
    /// The length of the head at the start of `bytes`, if it is complete.
    pub(super) fn end_of(
        &mut self,
        bytes: &[u8],
        max_bytes: usize,
    ) -> Result<Option<usize>, Refusal> {
        if self.seen == 0 && bytes.first() == Some(&TLS_HANDSHAKE) {
            return Err(Refusal::Tls);
        }
        while let Some(at) = memchr(b'\n', &bytes[self.seen..]) {
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

/// Any bytes as the head of a request: its end is found wherever it is cut, and hyper's own parser finds no
/// other end and no other framing in what is approved.
#[cfg(any(test, fuzzing))]
pub fn fuzz_head(data: &[u8]) {
    const MOST: usize = 16 * 1024;
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let end = HeadScan::default().end_of(bytes, MOST);
    let mut scan = HeadScan::default();
    let cut = usize::from(*cut).min(bytes.len());
    let in_two = match scan.end_of(&bytes[..cut], MOST) {
        Ok(None) => scan.end_of(bytes, MOST),
        early => early,
    };
    assert_eq!(end.is_ok(), in_two.is_ok());
    let Ok(Some(end)) = end else {
        return;
    };
    assert_eq!(in_two, Ok(Some(end)));
    let Ok(follows) = inspect(&bytes[..end]) else {
        return;
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(read) = request.parse(bytes) else {
        return;
    };
    assert_eq!(read, httparse::Status::Complete(end));
    let named = |name: &str| {
        let mut all = request.headers.iter();
        all.find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| {
                String::from_utf8_lossy(header.value)
                    .trim()
                    .to_ascii_lowercase()
            })
    };
    let length = named("content-length");
    let is_chunked = named("transfer-encoding").is_some();
    match follows {
        Follows::Nothing => assert!(!is_chunked && length.is_none_or(|n| n.parse() == Ok(0u64))),
        Follows::Body(length_read) => {
            assert!(!is_chunked && length.is_some_and(|n| n.parse() == Ok(length_read)));
        }
        Follows::Chunked => assert!(is_chunked && length.is_none()),
    }
}

#[cfg(test)]
mod tests {
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
    fn p08_a_target_that_hyper_cannot_read_is_refused_here() {
        let odd = [
            "v2/",
            "\\v2\\",
            "*",
            "*x",
            "a:443",
            "http://a/v2/",
            "http:",
            ":",
            "?",
            "#",
        ];
        let each = (b'!'..=b'~').map(|byte| format!("/v2/{}/tags/list", char::from(byte)));
        for target in odd.map(str::to_owned).into_iter().chain(each) {
            let head = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
            let is_read = Uri::try_from(target.as_str()).is_ok();
            let judgment = if is_read {
                Ok(Follows::Nothing)
            } else {
                Err(Refusal::RequestLine)
            };
            assert_eq!(judged(&head), judgment, "{target}");
        }
        assert!(Uri::try_from("/v2/<").is_err() && Uri::try_from("v2/").is_err());
    }

    #[test]
    fn a_tls_handshake_is_told_apart_by_its_first_byte() {
        for bytes in [&b"\x16"[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\r\n\r\n"] {
            let judged = HeadScan::default().end_of(bytes, 1024);
            assert_eq!(judged, Err(Refusal::Tls), "{bytes:?}");
        }
        let late = HeadScan::default().end_of(b"\r\n\x16\r\n\r\n", 1024);
        assert_eq!(late, Ok(Some(7)));
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
}
