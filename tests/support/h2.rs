//! HTTP/2 by hand: frames as a test writes them, and what the proxy makes of them.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Client, DOMAIN, within};

/// Types of frames (RFC 9113, 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames. A SETTINGS or PING frame with the first one is an acknowledgement.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

/// `CANCEL` and `ENHANCE_YOUR_CALM` (RFC 9113, 7).
pub const CANCEL: [u8; 4] = [0, 0, 0, 8];
pub const CALM: u32 = 11;

/// What a client says first (RFC 9113, 3.4), before its SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame as it is sent.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A SETTINGS frame.
pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let bytes = settings.iter().flat_map(|(name, value)| {
        let name = name.to_be_bytes();
        name.into_iter().chain(value.to_be_bytes())
    });
    frame(SETTINGS, 0, 0, &bytes.collect::<Vec<u8>>())
}

/// A header field that no table holds (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name.as_bytes(), value] {
        // A number that is less than 127, or 127 and the rest (RFC 7541, 5.1).
        match u8::try_from(text.len()).expect("a short text") {
            length @ 0..127 => field.push(length),
            length @ 127.. => field.extend([127, length - 127]),
        }
        field.extend(text);
    }
    field
}

/// Header fields in this order.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let each = fields.iter();
    each.flat_map(|(name, value)| field(name, value.as_bytes()))
        .collect()
}

/// The fields of a request to [`DOMAIN`].
pub fn request(method: &str, path: &str) -> Vec<u8> {
    fields(&[
        (":method", method),
        (":scheme", "https"),
        (":authority", DOMAIN),
        (":path", path),
    ])
}

/// A request without a body, in one frame.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    let both = END_STREAM | END_HEADERS;
    frame(HEADERS, both, stream, &request("GET", path))
}

/// One frame that came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it answers a [`ping`].
    pub fn answers_ping(&self) -> bool {
        self.kind == PING && self.flags & ACK != 0 && self.payload == LAST
    }

    /// The status, where it begins an answer.
    pub fn status(&self) -> Option<u16> {
        (self.kind == HEADERS).then(|| status(&self.payload))
    }

    /// The four bytes of the payload from `at`.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.payload[at..at + 4].try_into();
        u32::from_be_bytes(bytes.expect("four bytes"))
    }
}

/// What a request, or a frame, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An answer with this status.
    Answered(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, which is not 0.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
    /// Nothing was wrong, said the answer to a PING that was sent after it.
    Taken,
}

impl Verdict {
    /// Whether it was refused on the level of HTTP/2.
    pub fn is_error(self) -> bool {
        matches!(self, Self::Reset(_) | Self::GoAway(_) | Self::Closed)
    }
}

/// A connection that speaks HTTP/2, of which the test writes every byte.
pub struct Raw {
    stream: TlsStream<TcpStream>,
}

impl Raw {
    /// Nothing was said yet.
    pub async fn silent(client: &Client) -> Self {
        Self {
            stream: client.h2_stream().await,
        }
    }

    /// Greets with these settings, and nothing more.
    pub async fn connect(client: &Client, with: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(client).await;
        // No table of header fields, so every answer spells its status out.
        let with = [&[(1, 0)], with].concat();
        let greeting = [PREFACE, &settings(&with)].concat();
        raw.send(greeting).await.expect("a greeting");
        raw
    }

    /// Sends these bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// The next frame; none once the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        within("a frame", next_frame(&mut self.stream)).await
    }

    /// What became of `stream`, or of the connection. The answer to a [`ping`] ends the wait, too.
    pub async fn verdict(&mut self, stream: u32) -> Verdict {
        loop {
            let Some(frame) = self.frame().await else {
                return Verdict::Closed;
            };
            match frame.kind {
                GOAWAY if frame.word(4) != 0 => return Verdict::GoAway(frame.word(4)),
                RST_STREAM if frame.stream == stream => return Verdict::Reset(frame.word(0)),
                HEADERS if frame.stream == stream => {
                    return Verdict::Answered(status(&frame.payload));
                }
                PING if frame.answers_ping() => return Verdict::Taken,
                _ => {}
            }
        }
    }

    /// The two halves, for who sends and reads at once.
    pub fn split(
        self,
    ) -> (
        tokio::io::ReadHalf<TlsStream<TcpStream>>,
        tokio::io::WriteHalf<TlsStream<TcpStream>>,
    ) {
        tokio::io::split(self.stream)
    }
}

/// What [`ping`] says.
const LAST: &[u8] = b"the last";

/// The question whose answer says that all before it was read.
pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, LAST)
}

/// The next frame of a stream; none once it has ended.
pub async fn next_frame(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}

/// The `:status` that a block of header fields begins with, which is where it has to be.
fn status(block: &[u8]) -> u16 {
    // Updates of the table's size come first (RFC 7541, 4.2).
    let begin = block.iter().position(|byte| byte & 0xe0 != 0x20);
    let block = &block[begin.expect("a field")..];
    // The static table holds some of them whole (RFC 7541, A), and the name of all.
    match block[0] {
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        0x08 | 0x18 | 0x48 => digits(&block[1..]),
        other => panic!("no status: {other:#x} of {block:x?}"),
    }
}

/// A string of three digits (RFC 7541, 5.2), in Huffman's code (B) or without it.
fn digits(string: &[u8]) -> u16 {
    let (is_coded, length) = (string[0] & 0x80 != 0, usize::from(string[0] & 0x7f));
    let string = &string[1..=length];
    if !is_coded {
        let text = std::str::from_utf8(string).expect("digits");
        return text.parse().expect("a status");
    }
    let mut bits = string
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = (0..5).fold(0, |code, _| code << 1 | bits.next().expect("a bit"));
        // 0 to 2 have five bits, 3 to 9 have six.
        let digit = match code {
            0..=2 => code,
            _ => {
                code = code << 1 | bits.next().expect("a bit");
                code - 0x19 + 3
            }
        };
        number = number * 10 + digit;
    }
    number
}
