//! A writer under TLS that gathers records into large socket writes.
//!
//! The size of socket writes decides what a hit over TLS costs, and neither rustls (64 KiB) nor h2
//! (one 16 KiB frame, then a flush) makes large ones. So written bytes are parked in a buffer
//! borrowed from a capped pool, only while there are unsent bytes, and leave when it is full, when
//! less than [`SMALL`] is flushed, or when the task would otherwise sleep. A larger flush is put off to
//! the task's next turn, and by a read that finds nothing to the turn after that.
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

use super::progress::{Pulse, Unsent};
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
    deferred: Option<Deferred>,
}

/// A flush that was put off.
#[derive(Clone, Copy, Debug)]
struct Deferred {
    /// The turn of the connection's task in which a wake was last scheduled for it.
    in_turn: u32,
    /// It was put off a second time.
    twice: bool,
}

/// Unsent bytes: `buffer[start..end]`, never empty between calls.
#[derive(Debug)]
struct Parked {
    buffer: Buffer,
    start: usize,
    end: usize,
    _unsent: Unsent,
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
            deferred: None,
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
        self.deferred = None;
        Poll::Ready(Ok(()))
    }

    /// Whether the wake of a deferred flush is still to come.
    fn wake_is_scheduled(&self) -> bool {
        self.deferred
            .is_some_and(|deferred| deferred.in_turn == self.pulse.turn())
    }

    /// Puts a flush off to the next turn.
    fn defer(&mut self, twice: bool, cx: &Context<'_>) {
        let in_turn = self.pulse.turn();
        self.deferred = Some(Deferred { in_turn, twice });
        cx.waker().wake_by_ref();
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
            _unsent: self.pulse.hold_unsent(),
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
            // h2 reads before it writes, so that the bytes that fill the buffer may come behind this.
            if this.deferred.is_some_and(|deferred| !deferred.twice) {
                this.defer(true, cx);
                return outcome;
            }
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
            if parked.len() >= SMALL && this.deferred.is_none() {
                this.defer(false, cx);
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;

    /// A socket that takes as many bytes per write as it is told, 0 meaning that it is full.
    #[derive(Debug, Default)]
    struct Socket {
        takes: VecDeque<usize>,
        taken: Vec<u8>,
        writes: usize,
        /// A full socket promises a wake.
        promised: bool,
        is_shut: bool,
    }

    impl AsyncRead for Socket {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            match self.takes.pop_front() {
                Some(0) => {
                    self.promised = true;
                    Poll::Pending
                }
                limit => {
                    let taken = buf.len().min(limit.unwrap_or(usize::MAX));
                    self.taken.extend_from_slice(&buf[..taken]);
                    self.writes += 1;
                    Poll::Ready(Ok(taken))
                }
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.is_shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Scene {
        stream: Coalescing<Socket>,
        pulse: Arc<Pulse>,
        wakes: Arc<Wakes>,
    }

    impl Scene {
        fn new(pool: BufferPool, takes: impl IntoIterator<Item = usize>) -> Self {
            let pulse = Pulse::new(Instant::now());
            let socket = Socket {
                takes: takes.into_iter().collect(),
                ..Socket::default()
            };
            Self {
                stream: Coalescing::new(socket, pool, Arc::clone(&pulse)),
                pulse,
                wakes: Arc::default(),
            }
        }

        fn with<T>(
            &mut self,
            act: impl FnOnce(Pin<&mut Coalescing<Socket>>, &mut Context<'_>) -> T,
        ) -> T {
            let waker = Waker::from(Arc::clone(&self.wakes));
            act(Pin::new(&mut self.stream), &mut Context::from_waker(&waker))
        }

        fn write(&mut self, bytes: &[u8]) -> Poll<usize> {
            self.with(|stream, cx| stream.poll_write(cx, bytes))
                .map(|written| written.expect("the socket has no errors"))
        }

        fn flush(&mut self) -> bool {
            self.with(|stream, cx| stream.poll_flush(cx)).is_ready()
        }

        /// Reads, of which there is never anything.
        fn read(&mut self) {
            let mut buf = [0; 8];
            let outcome = self.with(|stream, cx| stream.poll_read(cx, &mut ReadBuf::new(&mut buf)));
            assert!(outcome.is_pending());
        }

        fn taken(&self) -> usize {
            self.stream.inner.taken.len()
        }

        fn is_parked(&self) -> bool {
            self.stream.parked.is_some()
        }

        fn woken(&self) -> usize {
            self.wakes.0.load(Ordering::Relaxed)
        }
    }

    fn pool() -> BufferPool {
        BufferPool::new(64 * 1024, 2)
    }

    #[test]
    fn a_small_flush_goes_out_at_once_and_the_buffer_goes_home() {
        let pool = pool();
        let mut scene = Scene::new(pool.clone(), []);
        assert_eq!(scene.write(b"hello"), Poll::Ready(5));
        assert_eq!((scene.taken(), pool.in_use()), (0, 1));
        assert!(scene.flush());
        assert_eq!((scene.taken(), pool.in_use(), scene.woken()), (5, 0, 0));
    }

    #[test]
    fn larger_flushes_of_one_turn_become_one_write_two_turns_later() {
        let mut scene = Scene::new(pool(), []);
        for _ in 0..3 {
            assert_eq!(scene.write(&[7; SMALL]), Poll::Ready(SMALL));
            assert!(scene.flush());
        }
        scene.read();
        assert_eq!((scene.taken(), scene.woken()), (0, 1), "one wake, no write");
        scene.pulse.begin_turn();
        scene.read();
        assert_eq!((scene.taken(), scene.woken()), (0, 2), "more may come");
        scene.pulse.begin_turn();
        scene.read();
        assert_eq!((scene.taken(), scene.stream.inner.writes), (3 * SMALL, 1));
        assert!(!scene.is_parked());
    }

    #[test]
    fn a_deferred_flush_is_kept_by_the_next_flush_too() {
        let mut scene = Scene::new(pool(), []);
        assert_eq!(scene.write(&[7; SMALL]), Poll::Ready(SMALL));
        assert!(scene.flush());
        scene.pulse.begin_turn();
        assert!(scene.flush());
        assert_eq!((scene.taken(), scene.is_parked()), (SMALL, false));
    }

    #[test]
    fn a_connection_with_parked_bytes_is_not_idle() {
        let mut scene = Scene::new(pool(), []);
        assert!(scene.pulse.idle_since().is_some());
        assert_eq!(scene.write(&[7; SMALL]), Poll::Ready(SMALL));
        assert!(scene.flush(), "put off");
        assert!(scene.pulse.idle_since().is_none());
        scene.pulse.begin_turn();
        assert!(scene.flush());
        assert!(scene.pulse.idle_since().is_some());
    }

    #[test]
    fn bytes_nobody_flushed_leave_before_the_task_sleeps() {
        let mut scene = Scene::new(pool(), []);
        assert_eq!(
            scene.write(b"a handshake that forgets to flush"),
            Poll::Ready(33)
        );
        scene.read();
        assert_eq!(scene.taken(), 33);
    }

    #[test]
    fn an_empty_pool_and_a_large_write_pass_through() {
        let pool = pool();
        let all = [pool.try_take(), pool.try_take()];
        let mut scene = Scene::new(pool.clone(), []);
        assert_eq!(scene.write(&[7; SMALL]), Poll::Ready(SMALL));
        assert_eq!(scene.taken(), SMALL);
        drop(all);
        assert_eq!(scene.write(&[7; 64 * 1024]), Poll::Ready(64 * 1024));
        assert_eq!((scene.taken(), pool.in_use()), (SMALL + 64 * 1024, 0));
    }

    #[test]
    fn a_full_buffer_and_a_full_socket_push_back() {
        let mut scene = Scene::new(pool(), [0]);
        assert_eq!(scene.write(&[7; 60 * 1024]), Poll::Ready(60 * 1024));
        assert_eq!(scene.write(&[7; 60 * 1024]), Poll::Ready(4 * 1024));
        assert_eq!(scene.write(&[7; 60 * 1024]), Poll::Pending);
        assert!(scene.stream.inner.promised);
        assert_eq!(scene.write(&[7; 1024]), Poll::Ready(1024));
        assert_eq!(scene.taken(), 64 * 1024);
    }

    #[test]
    fn shutdown_sends_what_is_parked_first() {
        let mut scene = Scene::new(pool(), [100, 0]);
        assert_eq!(scene.write(&[7; SMALL]), Poll::Ready(SMALL));
        assert!(scene.flush());
        assert!(
            scene
                .with(|stream, cx| stream.poll_shutdown(cx))
                .is_pending()
        );
        assert!(!scene.stream.inner.is_shut);
        assert!(scene.with(|stream, cx| stream.poll_shutdown(cx)).is_ready());
        assert_eq!((scene.taken(), scene.stream.inner.is_shut), (SMALL, true));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize),
        WriteVectored(usize, usize),
        Flush,
        Read,
        NextTurn,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..100_000_usize).prop_map(Step::Write),
            (0..20_000_usize, 0..20_000_usize).prop_map(|(a, b)| Step::WriteVectored(a, b)),
            Just(Step::Flush),
            Just(Step::Read),
            Just(Step::NextTurn),
        ]
    }

    /// A full socket now and then, single bytes, and anything up to more than a buffer.
    fn takes() -> impl Strategy<Value = Vec<usize>> {
        let take = prop_oneof![
            1 => Just(0_usize),
            1 => Just(1_usize),
            3 => 1..100_000_usize,
        ];
        prop::collection::vec(take, 0..60)
    }

    proptest! {
        #[test]
        fn the_bytes_that_leave_are_the_bytes_that_came_and_none_sleeps(
            steps in prop::collection::vec(step(), 0..60),
            takes in takes(),
            max_buffers in 0..2_usize,
        ) {
            let pool = BufferPool::new(64 * 1024, max_buffers);
            let mut scene = Scene::new(pool.clone(), takes);
            let mut sent: Vec<u8> = Vec::new();
            let mut counter = 0_u32;
            let mut bytes = |len: usize| -> Vec<u8> {
                (0..len).map(|_| { counter = counter.wrapping_mul(31).wrapping_add(7); (counter >> 8) as u8 }).collect()
            };
            for step in steps {
                match step {
                    Step::Write(len) => {
                        let data = bytes(len);
                        if let Poll::Ready(taken) = scene.write(&data) {
                            prop_assert!(taken > 0);
                            sent.extend_from_slice(&data[..taken]);
                        }
                    }
                    Step::WriteVectored(first, second) => {
                        let (first, second) = (bytes(first), bytes(second));
                        let slices = [IoSlice::new(&first), IoSlice::new(&second)];
                        let outcome = scene.with(|stream, cx| stream.poll_write_vectored(cx, &slices));
                        if let Poll::Ready(taken) = outcome {
                            let taken = taken.expect("the socket has no errors");
                            sent.extend([first, second].concat().into_iter().take(taken));
                        }
                    }
                    Step::Flush => { scene.flush(); }
                    Step::Read => scene.read(),
                    Step::NextTurn => {
                        // The end of a turn, as hyper ends it: flush, then read until it sleeps.
                        scene.stream.inner.promised = false;
                        let wakes = scene.woken();
                        scene.flush();
                        scene.read();
                        let will_wake = scene.woken() > wakes
                            || scene.stream.wake_is_scheduled()
                            || scene.stream.inner.promised;
                        prop_assert!(!scene.is_parked() || will_wake, "asleep with parked bytes");
                        scene.pulse.begin_turn();
                    }
                }
                prop_assert!(scene.is_parked() || pool.in_use() == 0, "a buffer held for nothing");
                prop_assert!(sent.starts_with(&scene.stream.inner.taken));
            }
            // With a willing socket two flushes, the second in a later turn, send all there is.
            scene.stream.inner.takes.clear();
            prop_assert!(scene.flush());
            scene.pulse.begin_turn();
            prop_assert!(scene.flush());
            prop_assert!(!scene.is_parked());
            prop_assert_eq!(&scene.stream.inner.taken, &sent);
        }
    }
}
