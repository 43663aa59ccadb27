//! A client for stampedes: it takes an answer over TLS and deciphers no more of it than the head.
//!
//! Thirty-two clients that decipher would keep the load's core busier than any server its own, and
//! the time of the last one would be theirs. The length of the body is counted from the records'
//! headers; what it says is checked where the same blob is taken warm.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::load::{Protocol, Target, authorization};

const READ_BYTES: usize = 256 * 1024;
/// RFC 8446, 5.2: type, version and length; and behind the content its type and the tag.
const RECORD_HEADER: usize = 5;
const RECORD_TRAILER: usize = 1 + 16;

/// A connection that is used for one answer: afterwards its ends no longer agree on the count of
/// records.
pub struct Skimmer {
    socket: TcpStream,
    session: ClientConnection,
    host: String,
    buffer: Vec<u8>,
}

/// An answer that was taken to its end.
pub struct Skimmed {
    pub bytes: u64,
    pub first_byte: Instant,
    pub end: Instant,
}

/// The head of an answer, and what came of the body with it.
struct Head {
    length: u64,
    body: u64,
}

impl Skimmer {
    pub async fn connect(target: &Target) -> Self {
        let Protocol::Tls(config) = &target.protocol else {
            panic!("only HTTP/1.1 over TLS is skimmed");
        };
        let socket = TcpStream::connect(target.address).await.expect("connect");
        socket.set_nodelay(true).expect("a TCP socket");
        let name = ServerName::try_from(target.host.clone()).expect("a host name");
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, socket).await.expect("a handshake");
        let (socket, session) = stream.into_inner();
        Self {
            socket,
            session,
            host: target.host.clone(),
            buffer: vec![0; READ_BYTES],
        }
    }

    pub async fn get(mut self, path: &str) -> Skimmed {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n\r\n",
            self.host,
            authorization()
        );
        let mut sealed = Vec::new();
        let writer = &mut self.session.writer();
        writer.write_all(request.as_bytes()).expect("a small write");
        while self.session.wants_write() {
            self.session.write_tls(&mut sealed).expect("into memory");
        }
        self.socket.write_all(&sealed).await.expect("a request");

        // What was read and not yet looked at.
        let mut unread = Vec::new();
        let mut plain = Vec::new();
        let head = loop {
            while let Some(record) = record_length(&unread).filter(|len| *len <= unread.len()) {
                self.open(&unread[..record], &mut plain);
                unread.drain(..record);
                if parsed(&plain).is_some() {
                    break;
                }
            }
            if let Some(head) = parsed(&plain) {
                break head;
            }
            let read = self.fill().await;
            unread.extend_from_slice(&self.buffer[..read]);
        };

        let mut bytes = head.body;
        let mut first_byte = (bytes > 0).then(Instant::now);
        // How much of the current record is still to come.
        let mut left = 0;
        loop {
            let mut rest = unread.as_slice();
            while bytes < head.length || left > 0 {
                if left == 0 {
                    let Some(record) = record_length(rest) else {
                        break;
                    };
                    bytes += (record - RECORD_HEADER - RECORD_TRAILER) as u64;
                    left = record;
                }
                let skipped = left.min(rest.len());
                rest = &rest[skipped..];
                left -= skipped;
                if rest.is_empty() {
                    break;
                }
            }
            if bytes > 0 {
                first_byte.get_or_insert_with(Instant::now);
            }
            if bytes >= head.length && left == 0 {
                break;
            }
            unread = rest.to_vec();
            let read = self.fill().await;
            unread.extend_from_slice(&self.buffer[..read]);
        }
        let end = Instant::now();
        Skimmed {
            bytes,
            first_byte: first_byte.unwrap_or(end),
            end,
        }
    }

    async fn fill(&mut self) -> usize {
        let read = self.socket.read(&mut self.buffer).await.expect("bytes");
        assert!(read > 0, "the connection was closed early");
        read
    }

    fn open(&mut self, mut record: &[u8], plain: &mut Vec<u8>) {
        // It takes a few KiB at a time.
        while !record.is_empty() {
            self.session.read_tls(&mut record).expect("from memory");
            let state = self.session.process_new_packets().expect("a good record");
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            let mut reader = self.session.reader();
            reader.read_exact(&mut plain[start..]).expect("in memory");
        }
    }
}

/// The length of the record that begins here, its header included; `None` if that is not yet whole.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..RECORD_HEADER)?;
    Some(RECORD_HEADER + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

fn parsed(plain: &[u8]) -> Option<Head> {
    let end = plain.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&plain[..end]).expect("a head in ASCII");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    Some(Head {
        length: length.expect("a length"),
        body: (plain.len() - end) as u64,
    })
}
