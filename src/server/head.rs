//! The grammar of HTTP/1.1 request heads, read strictly: RFC 9112 without its leniencies.
//!
//! Invariant: a head that passes [`HeadReader`] ends, and its body ends, at the same byte for every
//! reader. Pure: knows bytes, and nothing of sockets.

use std::fmt;

use http::{StatusCode, Uri};

/// Longest request target. The longest honest one, an upload session with its state, stays under
/// 2 KiB; an unbounded one fills logs.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// The first byte of a TLS record that is part of a handshake (RFC 8446, 5.1). No method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Most header lines of one head; hyper's own limit, told in our words.
const MAX_HEADER_LINES: usize = 100;

/// The longest body that may be declared, in bytes; hyper's own limit, told in our words.
const MAX_BODY_BYTES: u64 = u64::MAX - 2;

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

/// Reads a head wherever it is cut, and looks at each of its bytes once: a line is judged when it is whole.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// Bytes already looked at.
    seen: usize,
    /// Where the line that is being read began.
    line_start: usize,
    request_line: Option<RequestLine>,
    header_lines: usize,
    length: Option<u64>,
    is_chunked: bool,
}

/// What is kept of a request line.
#[derive(Clone, Copy, Debug)]
struct RequestLine {
    is_http_11: bool,
    /// Whether the method is one that only reads.
    takes_no_body: bool,
}

impl HeadReader {
    /// The length of the head at the start of `bytes`, and what follows it, if it is complete. `bytes` are
    /// those of the call before, and more.
    ///
    /// # Errors
    /// What is wrong with the first line that is, or with the head as a whole. Nothing is to be read then.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        max_bytes: usize,
    ) -> Result<Option<(usize, Follows)>, Refusal> {
        if self.seen == 0 && bytes.first() == Some(&TLS_HANDSHAKE) {
            return Err(Refusal::Tls);
        }
        loop {
            let Some(at) = first_control(&bytes[self.seen..]) else {
                self.seen = bytes.len();
                break;
            };
            self.seen += at;
            match bytes[self.seen..] {
                [b'\r', b'\n', ..] => {}
                // What follows it is still to come.
                [b'\r'] => break,
                [b'\r' | b'\n', ..] => return Err(Refusal::LineEnding),
                _ if self.request_line.is_none() => return Err(Refusal::RequestLine),
                _ => return Err(Refusal::HeaderLine),
            }
            let line = &bytes[self.line_start..self.seen];
            self.seen += 2;
            self.line_start = self.seen;
            if self.seen > max_bytes {
                return Err(Refusal::HeadTooLarge);
            }
            match self.request_line {
                // An empty line before a request is passed over (RFC 9112, 2.2).
                None if line.is_empty() => {}
                None => self.request_line = Some(RequestLine::read(line)?),
                Some(request) if line.is_empty() => {
                    let follows = self.follows(request)?;
                    return Ok(Some((self.seen, follows)));
                }
                Some(request) => self.header(line, request)?,
            }
        }
        if bytes.len() > max_bytes {
            return Err(match self.request_line {
                None => Refusal::TargetTooLong,
                Some(_) => Refusal::HeadTooLarge,
            });
        }
        Ok(None)
    }

    fn header(&mut self, line: &[u8], request: RequestLine) -> Result<(), Refusal> {
        self.header_lines += 1;
        if self.header_lines > MAX_HEADER_LINES {
            return Err(Refusal::HeadTooLarge);
        }
        let (name, value) = token(line, b':').ok_or(Refusal::HeaderLine)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Refusal::ContentLength);
            }
            let length = decimal(value.trim_ascii());
            self.length = Some(length.ok_or(Refusal::ContentLength)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if self.is_chunked || !request.is_http_11 || !is_chunked {
                return Err(Refusal::TransferEncoding);
            }
            self.is_chunked = true;
        }
        Ok(())
    }

    fn follows(&self, request: RequestLine) -> Result<Follows, Refusal> {
        let follows = match (self.length, self.is_chunked) {
            (Some(_), true) => return Err(Refusal::TwoFramings),
            (None, true) => Follows::Chunked,
            (None | Some(0), false) => Follows::Nothing,
            (Some(length), false) => Follows::Body(length),
        };
        if follows != Follows::Nothing && request.takes_no_body {
            return Err(Refusal::UnexpectedBody);
        }
        Ok(follows)
    }
}

impl RequestLine {
    fn read(line: &[u8]) -> Result<Self, Refusal> {
        let (is_http_11, asked) = match line.strip_suffix(b" HTTP/1.1") {
            Some(asked) => (true, Some(asked)),
            None => (false, line.strip_suffix(b" HTTP/1.0")),
        };
        let parts = asked.and_then(|asked| token(asked, b' '));
        let (method, target) = parts.ok_or(Refusal::RequestLine)?;
        // All bytes are looked at, so that it can be several in one step.
        let are_plain = |all, byte: &u8| {
            let byte = *byte;
            all & (byte > b' ')
                & (byte < 0x7f)
                & (byte != b'<')
                & (byte != b'>')
                & (byte != b'`')
                & (byte != b'"')
        };
        let is_path = target.starts_with(b"/") && target.iter().fold(true, are_plain);
        if !is_path && !target.iter().all(u8::is_ascii_graphic) {
            return Err(Refusal::RequestLine);
        }
        if target.len() > MAX_TARGET_BYTES {
            return Err(Refusal::TargetTooLong);
        }
        // What hyper could not read it would refuse by itself, without a word or a line in the log.
        if !is_path && Uri::try_from(target).is_err() {
            return Err(Refusal::RequestLine);
        }
        Ok(Self {
            is_http_11,
            takes_no_body: matches!(method, b"GET" | b"HEAD"),
        })
    }
}

/// Where the first control character is, but for tabs, which may stand in a value (RFC 9110, 5.5).
fn first_control(bytes: &[u8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const TOP: u64 = 0x80 * EACH;
    let mut from = 0;
    loop {
        let (eights, rest) = bytes[from..].as_chunks::<8>();
        // The top bit of each byte that is below a space or 0x7f; or of one above such a byte.
        let marked = |eight: &[u8; 8]| {
            let eight = u64::from_le_bytes(*eight);
            let is_low = eight.wrapping_sub(EACH * u64::from(b' '));
            let is_delete = (eight & !TOP) + EACH;
            (is_low | is_delete) & !eight & TOP
        };
        let found = eights
            .iter()
            .map(marked)
            .enumerate()
            .find(|(_, marks)| *marks != 0);
        let at = match found {
            Some((eight, marks)) => 8 * eight + marks.trailing_zeros() as usize / 8,
            None => 8 * eights.len() + rest.iter().position(u8::is_ascii_control)?,
        };
        from += at + 1;
        if bytes[from - 1] != b'\t' {
            return Some(from - 1);
        }
    }
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

/// The token at the start of a line, and what is behind the byte that ends it.
fn token(line: &[u8], end: u8) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| !TOKEN[usize::from(*byte)])?;
    let is_token = at > 0 && line[at] == end;
    is_token.then(|| (&line[..at], &line[at + 1..]))
}

/// The length of a body (RFC 9110, 8.6).
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number <= MAX_BODY_BYTES).then_some(number)
}

/// Any bytes as the head of a request: its end is found wherever it is cut, and hyper's own parser finds no
/// other end and no other framing in what is approved.
#[cfg(any(test, fuzzing))]
pub fn fuzz_head(data: &[u8]) {
    const MOST: usize = 16 * 1024;
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let at_once = HeadReader::default().read(bytes, MOST);
    let mut reader = HeadReader::default();
    let cut = usize::from(*cut).min(bytes.len());
    let in_two = match reader.read(&bytes[..cut], MOST) {
        Ok(None) => reader.read(bytes, MOST),
        early => early,
    };
    assert_eq!(in_two, at_once);
    let Ok(Some((end, follows))) = at_once else {
        return;
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
    let mut request = httparse::Request::new(&mut headers);
    let read = request.parse(bytes);
    assert_eq!(read, Ok(httparse::Status::Complete(end)));
    let target = request.path.unwrap_or_default();
    assert!(Uri::try_from(target).is_ok(), "{target:?}");
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
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn judged(head: &str) -> Result<Follows, Refusal> {
        let read = HeadReader::default().read(head.as_bytes(), 32 * 1024)?;
        let (end, follows) = read.expect("a whole head");
        assert_eq!(end, head.len(), "one head");
        Ok(follows)
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
        for value in [
            "4, 4",
            "+4",
            "-4",
            "0x4",
            "",
            "4 4",
            "18446744073709551614",
            "18446744073709551616",
        ] {
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
        let in_each = |part: &str| {
            let each = (b'!'..=b'~').map(char::from);
            each.map(|byte| part.replace('_', &byte.to_string()))
                .collect::<Vec<_>>()
        };
        let each = [in_each("/v2/_/tags/list"), in_each("/v2/?n=_")].concat();
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

    proptest! {
        #[test]
        fn the_first_control_character_is_found(
            bytes in vec(select(b"aaaaaaa\t\r\n\0\x1f ~\x7f\x80\xa0\xff".to_vec()), 0..40),
        ) {
            let is_one = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
            prop_assert_eq!(first_control(&bytes), bytes.iter().position(is_one));
        }
    }

    #[test]
    fn a_tls_handshake_is_told_apart_by_its_first_byte() {
        for bytes in [&b"\x16"[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\r\n\r\n"] {
            let judged = HeadReader::default().read(bytes, 1024);
            assert_eq!(judged, Err(Refusal::Tls), "{bytes:?}");
        }
        let late = HeadReader::default().read(b"\r\n\x16\r\n\r\n", 1024);
        assert_eq!(late, Err(Refusal::RequestLine));
    }

    #[test]
    fn heads_have_limits() {
        let judged_to = |head: &str| HeadReader::default().read(head.as_bytes(), 1024);
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
