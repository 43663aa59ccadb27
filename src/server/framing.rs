//! The guard in front of hyper: only request heads that [`HeadReader`] approves of pass.
//!
//! hyper drops a Content-Length that stands beside a Transfer-Encoding, accepts `gzip, chunked`,
//! several Transfer-Encoding lines, equal Content-Lengths and bare LF, and tells its service
//! nothing of it. Where two readers of one connection can disagree about where a request ends, a
//! second request can hide, so such a head never reaches hyper: in its place the guard puts a
//! harmless one, notes why, and lets no later byte of the connection through.
//!
//! Invariant: hyper sees only complete heads that passed [`HeadReader`], the bodies that they declare,
//! and nothing after a refusal. Knows where messages begin and end, and nothing of registries.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::head::{Follows, HeadReader};
use super::progress::{Pulse, Unsent};

/// What hyper reads where a request was refused. It is answered by the refusal, never run.
const IN_PLACE_OF_A_REFUSED_HEAD: &[u8] =
    b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// How long a connection that still sends is listened to after its last answer, in all and without a byte, and
/// for how many bytes: what comes faster than any line is no upload that a client waits with its reading for.
/// Closing with unread bytes makes the kernel send a reset, which takes the answer away from a client that
/// writes its whole body before it reads.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_WITHOUT_A_BYTE: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 256 << 20;

#[derive(Debug)]
enum Reading {
    Head(HeadReader),
    /// So many bytes of a body are still to come.
    Body(u64),
    /// A chunked body: everything to the end of the connection is hyper's.
    Rest,
    /// A head was refused; nothing is read any more.
    Refused,
}

/// Lets through what [`HeadReader`] approves of; wraps an HTTP/1.1 connection below hyper.
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
    linger: Option<Linger>,
}

/// How long what the client still sends is read and forgotten.
#[derive(Debug)]
struct Linger {
    until: Instant,
    /// How many bytes are left to be forgotten.
    left: usize,
    /// The end, or that of the wait for the next byte, whichever is earlier.
    alarm: Pin<Box<Sleep>>,
    /// A close would take the last answer away.
    _unsent: Unsent,
}

impl Linger {
    fn begin(pulse: &Arc<Pulse>) -> Self {
        let until = Instant::now() + LINGER;
        let alarm = tokio::time::sleep(LINGER_WITHOUT_A_BYTE);
        Self {
            until,
            left: LINGER_BYTES,
            alarm: Box::pin(alarm),
            _unsent: pulse.hold_unsent(),
        }
    }

    /// So many bytes have come.
    fn go_on(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        let next = Instant::now() + LINGER_WITHOUT_A_BYTE;
        self.alarm.as_mut().reset(next.min(self.until));
    }
}

impl<S> HeadGuard<S> {
    pub(super) fn new(inner: S, pulse: Arc<Pulse>, max_head_bytes: usize) -> Self {
        Self {
            inner,
            pulse,
            max_head_bytes,
            reading: Reading::Head(HeadReader::default()),
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
                Reading::Head(reader) => {
                    let Some(outcome) = reader.read(rest, self.max_head_bytes).transpose() else {
                        self.pulse.head_began();
                        return approved;
                    };
                    self.pulse.head_ended();
                    match outcome {
                        Ok((end, follows)) => {
                            approved += end;
                            self.reading = match follows {
                                Follows::Nothing => Reading::Head(HeadReader::default()),
                                Follows::Body(length) => {
                                    self.pulse.body_began(self.head);
                                    Reading::Body(length)
                                }
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
                        self.pulse.body_ended();
                        self.reading = Reading::Head(HeadReader::default());
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
    /// Reads and forgets until the client closes, sends nothing for [`LINGER_WITHOUT_A_BYTE`], has sent
    /// [`LINGER_BYTES`], or [`LINGER`] has passed.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = &mut self.linger;
        let linger = linger.get_or_insert_with(|| Linger::begin(&self.pulse));
        let mut scratch = [0; 16 * 1024];
        while linger.left > 0 && linger.alarm.as_mut().poll(cx).is_pending() {
            let mut forgotten = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut forgotten)) {
                Ok(()) if !forgotten.filled().is_empty() => {
                    linger.go_on(forgotten.filled().len());
                }
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

    use super::super::head::Refusal;
    use super::*;

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

    /// How long a client that sends a byte each `pause` after its answer is listened to, and what it was
    /// answered.
    async fn lingered(pause: Duration) -> (Duration, Vec<u8>) {
        let pulse = Pulse::new(Instant::now());
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let mut guard = HeadGuard::new(server, pulse, 1024);
        client
            .write_all(b"PUT /a HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n")
            .await
            .expect("room");
        let _ = guard.read(&mut [0; 1024]).await.expect("a head");
        guard.write_all(b"413").await.expect("room");
        let began = Instant::now();
        let closing = async {
            guard.shutdown().await.expect("no errors");
            drop(guard);
            began.elapsed()
        };
        let sending = async {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(pause).await;
            }
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("the answer");
            answer
        };
        tokio::join!(closing, sending)
    }

    #[tokio::test(start_paused = true)]
    async fn who_still_sends_is_listened_to_for_as_long_as_bytes_come_and_no_longer_than_a_limit() {
        for (pause, heard) in [
            (Duration::from_secs(1), LINGER),
            (Duration::from_secs(3), LINGER),
            (Duration::from_secs(7), LINGER_WITHOUT_A_BYTE),
        ] {
            let (elapsed, answer) = lingered(pause).await;
            assert_eq!(elapsed.as_secs(), heard.as_secs(), "a byte each {pause:?}");
            assert_eq!(answer, b"413");
        }
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
