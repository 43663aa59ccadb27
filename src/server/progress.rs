//! What one connection is doing, as the few instants from which its deadlines follow.
//!
//! Invariant: at any moment at least one deadline applies or a request is in flight and the client
//! takes its bytes. Writers only store instants; the connection's own task compares them with the
//! limits. Knows nothing of HTTP.

use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, atomic::AtomicU32};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use socket2::{MsgHdr, SockRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::head::Refusal;

/// An instant that has not come.
const NEVER: u64 = u64::MAX;

/// The number of no request.
const NOBODY: u64 = u64::MAX;

/// How often a socket that takes nothing is asked before its client is given up. Streams of h2 have limits of their
/// own, by which some bytes have to have left.
const LOOKS: u32 = 4;

/// The deadlines of a connection; see [`super::ServerOptions`] for what each means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) first_request: Duration,
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
}

/// Which deadline ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// No complete request head since the connection was accepted.
    FirstRequest,
    /// A request head began and did not end.
    Header,
    /// Nothing asked since the last answer.
    Idle,
    /// The client does not take the bytes of an answer.
    Write,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstRequest => "no complete request since the connection was accepted",
            Self::Header => "a request head did not end",
            Self::Idle => "no further request",
            Self::Write => "the client does not take the answer",
        })
    }
}

/// In place of a number of bytes.
const UNLIMITED: u32 = u32::MAX;

/// The instants of one connection, in milliseconds since it was accepted.
#[derive(Debug)]
pub(super) struct Pulse {
    accepted: Instant,
    requests: AtomicU64,
    in_flight: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// When the socket was last asked whether it takes more; see [`Pulse::look_again`].
    looked: AtomicU64,
    /// The socket is to be asked with the next write, whatever it is known to be.
    must_look: AtomicBool,
    /// How many pieces of answers are on their way to the socket.
    unsent: AtomicUsize,
    /// Told when the connection is to make room for another.
    leave: Notify,
    /// How often the connection's task has been polled; see [`Pulse::turn`].
    turns: AtomicU32,
    /// How many bytes may still be read of a handshake, or [`UNLIMITED`].
    readable: AtomicU32,
    /// The request, by its number on the connection, that must not run, and why.
    refused: OnceLock<(u64, Refusal)>,
    /// The request after which nothing on this connection can be told apart any more.
    last: OnceLock<u64>,
    /// The request whose body is still coming.
    body_of: AtomicU64,
}

impl Pulse {
    pub(super) fn new(accepted: Instant) -> Arc<Self> {
        Arc::new(Self {
            accepted,
            requests: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NEVER),
            blocked_since: AtomicU64::new(NEVER),
            looked: AtomicU64::new(NEVER),
            must_look: AtomicBool::new(false),
            unsent: AtomicUsize::new(0),
            leave: Notify::new(),
            turns: AtomicU32::new(0),
            readable: AtomicU32::new(UNLIMITED),
            refused: OnceLock::new(),
            last: OnceLock::new(),
            body_of: AtomicU64::new(NOBODY),
        })
    }

    pub(super) fn accepted(&self) -> Instant {
        self.accepted
    }

    /// From now on at most so many bytes are read, until it is called again: reading more fails.
    pub(super) fn bound_reading(&self, at_most: Option<u32>) {
        let readable = at_most.unwrap_or(UNLIMITED);
        self.readable.store(readable, Ordering::Relaxed);
    }

    fn note_read(&self, bytes: usize) -> io::Result<()> {
        let left = self.readable.load(Ordering::Relaxed);
        if left == UNLIMITED {
            return Ok(());
        }
        let bytes = u32::try_from(bytes).unwrap_or(UNLIMITED);
        let left = left.checked_sub(bytes);
        let left = left.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a message beyond measure")
        })?;
        self.readable.store(left, Ordering::Relaxed);
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(NEVER)
    }

    /// Number of the current poll of the connection's task. What happens within one number happens
    /// before the task sleeps.
    pub(super) fn turn(&self) -> u32 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn begin_turn(&self) {
        // Nobody else counts them.
        self.turns
            .store(self.turn().wrapping_add(1), Ordering::Relaxed);
    }

    /// A complete request head has been handed to its handler; returns its number from 0.
    pub(super) fn begin_request(self: &Arc<Self>) -> (u64, InFlight) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let number = self.requests.fetch_add(1, Ordering::AcqRel);
        (number, InFlight(Arc::clone(self)))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Since when nothing is asked on it, which may be since it was accepted; `None` while something is, or the
    /// client has not been sent all of what it was answered.
    ///
    /// Only the connection's own task, between two polls, can be sure of it: elsewhere it may be out of date.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = self.idle_since.load(Ordering::Acquire);
        let is_idle = self.in_flight() == 0
            && self.unsent.load(Ordering::Acquire) == 0
            && self.blocked_since.load(Ordering::Acquire) == NEVER;
        is_idle.then(|| self.accepted + Duration::from_millis(since))
    }

    /// Something of an answer has yet to reach the socket, for as long as the guard is held.
    pub(super) fn hold_unsent(self: &Arc<Self>) -> Unsent {
        self.unsent.fetch_add(1, Ordering::AcqRel);
        Unsent(Arc::clone(self))
    }

    /// Asks the connection to make room for another.
    pub(super) fn leave(&self) {
        self.leave.notify_one();
    }

    /// Resolves once when the connection is asked to make room, also where that was before.
    ///
    /// Cancel safety: what was not waited for to its end resolves the next time.
    pub(super) fn told_to_leave(&self) -> Notified<'_> {
        self.leave.notified()
    }

    pub(super) fn head_began(&self) {
        let _ = self.head_since.compare_exchange(
            NEVER,
            self.now(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    pub(super) fn head_ended(&self) {
        if self.head_since.load(Ordering::Relaxed) != NEVER {
            self.head_since.store(NEVER, Ordering::Release);
        }
    }

    pub(super) fn refuse(&self, number: u64, refusal: Refusal) {
        let _ = self.refused.set((number, refusal));
    }

    pub(super) fn refusal_of(&self, number: u64) -> Option<Refusal> {
        let (refused, why) = self.refused.get()?;
        (*refused == number).then_some(*why)
    }

    pub(super) fn end_after(&self, number: u64) {
        let _ = self.last.set(number);
    }

    /// The body of this request begins, and has not all come.
    pub(super) fn body_began(&self, number: u64) {
        self.body_of.store(number, Ordering::Release);
    }

    pub(super) fn body_ended(&self) {
        self.body_of.store(NOBODY, Ordering::Release);
    }

    /// Whether an answer now is the last on the connection: where the next request begins is not known, or
    /// only once more has come of a body that nobody waits for.
    pub(super) fn is_last(&self, number: u64) -> bool {
        self.last.get() == Some(&number) || self.body_of.load(Ordering::Acquire) == number
    }

    /// Has the socket asked by the next write, at a [`Pulse::deadline`] for a client that takes nothing; false once
    /// that was done at the end of the limit as well.
    ///
    /// The system tells of room only when a third of what it holds has gone, which is more than a MiB: until then a
    /// client that reads slowly, and all the time, would pass for one that reads nothing. Asked, it takes more as soon
    /// as there is any room.
    pub(super) fn look_again(&self, limits: &Limits) -> bool {
        let limit = u64::try_from(limits.write.as_millis()).unwrap_or(NEVER);
        let blocked = self.blocked_since.load(Ordering::Acquire);
        if self.looked.load(Ordering::Acquire) >= blocked.saturating_add(limit) {
            return false;
        }
        self.looked.store(self.now(), Ordering::Release);
        self.must_look.store(true, Ordering::Release);
        true
    }

    /// The earliest deadline that applies now, if any. That for a client that takes nothing is the end of its limit,
    /// or earlier the time to [look again](Self::look_again).
    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Instant, Overdue)> {
        let at = |millis: u64, limit: Duration| {
            (millis != NEVER).then(|| self.accepted + Duration::from_millis(millis) + limit)
        };
        if self.requests.load(Ordering::Acquire) == 0 {
            return Some((self.accepted + limits.first_request, Overdue::FirstRequest));
        }
        let blocked = self.blocked_since.load(Ordering::Acquire);
        if let Some(end) = at(blocked, limits.write) {
            let look = at(self.looked.load(Ordering::Acquire), limits.write / LOOKS);
            let due = look.map_or(end, |look| look.min(end));
            return Some((due, Overdue::Write));
        }
        if self.in_flight() > 0 {
            return None;
        }
        let idle =
            at(self.idle_since.load(Ordering::Acquire), limits.idle).map(|at| (at, Overdue::Idle));
        let head = at(self.head_since.load(Ordering::Acquire), limits.header)
            .map(|at| (at, Overdue::Header));
        idle.into_iter().chain(head).min_by_key(|(at, _)| *at)
    }
}

/// One request between its head and the end of its answer.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Pulse>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Release);
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A piece of an answer between its making and the socket, or whatever else its client has yet to read it past.
#[derive(Debug)]
pub(super) struct Unsent(Arc<Pulse>);

impl Drop for Unsent {
    fn drop(&mut self) {
        self.0.unsent.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What may take bytes although nobody was told of room.
pub(super) trait Ask {
    /// Writes what it takes at once, which is [`io::ErrorKind::WouldBlock`] where that is nothing.
    fn ask(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize>;
}

impl Ask for TcpStream {
    fn ask(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(self).sendmsg(&MsgHdr::new().with_buffers(bufs), 0)
    }
}

/// A socket that notes since when it has been refusing bytes.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    pulse: Arc<Pulse>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, pulse: Arc<Pulse>) -> Self {
        Self { inner, pulse }
    }
}

impl<S: Ask> Watched<S> {
    /// What came of writing `bufs`, which is not the last word where the socket is to be asked.
    fn note(
        &self,
        mut outcome: Poll<io::Result<usize>>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let pulse = &self.pulse;
        let must_look = pulse.must_look.load(Ordering::Relaxed);
        if must_look {
            pulse.must_look.store(false, Ordering::Relaxed);
        }
        // Whoever was promised a wake has it still.
        if must_look && outcome.is_pending() {
            outcome = match self.inner.ask(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                asked => Poll::Ready(asked),
            };
        }
        let blocked = &pulse.blocked_since;
        let is_blocked = blocked.load(Ordering::Relaxed) != NEVER;
        match outcome {
            Poll::Pending if !is_blocked => {
                let now = pulse.now();
                pulse.looked.store(now, Ordering::Release);
                blocked.store(now, Ordering::Release);
            }
            Poll::Ready(_) if is_blocked => blocked.store(NEVER, Ordering::Release),
            Poll::Pending | Poll::Ready(_) => {}
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = Pin::new(&mut this.inner).poll_read(cx, buf);
        this.pulse.note_read(buf.filled().len() - before)?;
        outcome
    }
}

impl<S: AsyncWrite + Ask + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.note(outcome, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.note(outcome, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        first_request: Duration::from_secs(10),
        header: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        write: Duration::from_secs(30),
    };

    #[test]
    fn each_state_has_its_deadline_and_a_served_request_has_none() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        let seconds = |n| start + Duration::from_secs(n);
        let due = || pulse.deadline(&LIMITS);
        assert_eq!(due(), Some((seconds(10), Overdue::FirstRequest)));

        let (number, in_flight) = pulse.begin_request();
        assert_eq!(number, 0);
        assert_eq!(due(), None);
        pulse.blocked_since.store(3000, Ordering::Release);
        assert_eq!(due(), Some((seconds(33), Overdue::Write)));
        pulse.looked.store(18_000, Ordering::Release);
        let look = seconds(18) + LIMITS.write / LOOKS;
        assert_eq!(due(), Some((look, Overdue::Write)));
        assert!(pulse.look_again(&LIMITS));
        // At the end it was asked once more, and that is the end.
        pulse.looked.store(33_000, Ordering::Release);
        assert_eq!(due(), Some((seconds(33), Overdue::Write)));
        assert!(!pulse.look_again(&LIMITS));
        pulse.blocked_since.store(NEVER, Ordering::Release);

        drop(in_flight);
        pulse.idle_since.store(4000, Ordering::Release);
        assert_eq!(due(), Some((seconds(64), Overdue::Idle)));
        pulse.head_since.store(5000, Ordering::Release);
        assert_eq!(due(), Some((seconds(10), Overdue::Header)));
        pulse.head_ended();
        assert_eq!(due(), Some((seconds(64), Overdue::Idle)));
    }

    #[test]
    fn a_head_began_when_its_first_byte_came() {
        let pulse = Pulse::new(Instant::now());
        pulse.head_since.store(5, Ordering::Release);
        pulse.head_began();
        assert_eq!(pulse.head_since.load(Ordering::Acquire), 5);
    }
}
