//! A writer under TLS that gathers records into large socket writes.
//!
//! The size of socket writes decides what a hit over TLS costs, and neither rustls (64 KiB) nor h2
//! (one 16 KiB frame, then a flush) makes large ones. So written bytes are parked in a buffer
//! borrowed from a capped pool, only while there are unsent bytes, and leave when it is full, when
//! less than [`SMALL`] is flushed, or when the task would otherwise sleep.
//!
//! Invariant: the bytes that leave are the bytes that came, in order; and whenever the task sleeps
//! with parked bytes, either a wake is scheduled or the socket has been asked and is full.
//! Knows nothing of TLS or HTTP. Its one assumption: after the wake that a deferred flush
//! schedules, the task flushes, reads or writes again (hyper's connections always do).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::progress::Pulse;
use crate::buffers::{Buffer, BufferPool};

/// A flush of less than this goes out at once: handshakes, heads and small answers want no delay,
/// and one full TLS record or h2 frame is where gathering begins to pay.
const SMALL: usize = 16 * 1024;

/// Gathers what is written to `S`; see the module's documentation.
#[derive(Debug)]
pub(super) struct Coalescing<S> {
    inner: S,
    pool: BufferPool,
    pulse: Arc<Pulse>,
    parked: Option<Parked>,
    /// The turn of the connection's task in which a flush was deferred and a wake scheduled.
    deferred_in: Option<u32>,
}

/// Unsent bytes: `buffer[start..end]`, never empty between calls.
#[derive(Debug)]
struct Parked {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Parked {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn room(&self) -> usize {
        self.buffer.as_ref().len() - self.end
    }

    /// Takes as much of `bufs` as there is room for.
    fn append(&mut self, bufs: &[IoSlice<'_>]) -> usize {
        let before = self.end;
        for buf in bufs {
            let taken = buf.len().min(self.room());
            self.buffer.as_mut()[self.end..self.end + taken].copy_from_slice(&buf[..taken]);
            self.end += taken;
            if taken < buf.len() {
                break;
            }
        }
        self.end - before
    }
}

impl<S: AsyncWrite + Unpin> Coalescing<S> {
    pub(super) fn new(inner: S, pool: BufferPool, pulse: Arc<Pulse>) -> Self {
        Self {
            inner,
            pool,
            pulse,
            parked: None,
            deferred_in: None,
        }
    }

    /// Sends everything parked; the buffer then returns to its pool.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(parked) = &mut self.parked {
            let unsent = &parked.buffer.as_ref()[parked.start..parked.end];
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            parked.start += sent;
            if parked.len() == 0 {
                self.parked = None;
            }
        }
        self.deferred_in = None;
        Poll::Ready(Ok(()))
    }

    /// Whether the wake of a deferred flush is still to come.
    fn wake_is_scheduled(&self) -> bool {
        self.deferred_in == Some(self.pulse.turn())
    }

    fn poll_write_bufs(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if self
            .parked
            .as_ref()
            .is_some_and(|parked| parked.room() == 0)
        {
            ready!(self.poll_drain(cx))?;
        }
        if let Some(parked) = &mut self.parked {
            return Poll::Ready(Ok(parked.append(bufs)));
        }
        // What fills a buffer by itself gains nothing from being copied into one.
        let buffer = (total < self.pool.buffer_bytes())
            .then(|| self.pool.try_take())
            .flatten();
        let Some(buffer) = buffer else {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        };
        let mut parked = Parked {
            buffer,
            start: 0,
            end: 0,
        };
        let taken = parked.append(bufs);
        self.parked = Some(parked);
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalescing<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_read(cx, buf);
        if outcome.is_pending() && this.parked.is_some() && !this.wake_is_scheduled() {
            // The peer may be waiting for the parked bytes before it says anything. A full socket
            // has registered the wake; an error is the reader's as well.
            if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Coalescing<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_bufs(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_bufs(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(parked) = &this.parked {
            if this.wake_is_scheduled() {
                return Poll::Ready(Ok(()));
            }
            if parked.len() >= SMALL && this.deferred_in.is_none() {
                this.deferred_in = Some(this.pulse.turn());
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}
