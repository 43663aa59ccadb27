//! The guard in front of h2: who keeps it busy with frames that ask for nothing is told to calm down.
//!
//! h2 ends a connection for heads without end, resets and small DATA frames. PING and SETTINGS, each of which it
//! answers, PRIORITY, WINDOW_UPDATE, resets of what has ended and frames that it does not know it takes without
//! number. So the guard follows the heads of the frames that come, and nothing else of them, and has a budget for those
//! that bring neither a request nor data. Beyond it h2 is shown [`IN_PLACE_OF_A_FLOOD`] and no later byte: only h2
//! knows where between its own frames a GOAWAY may stand, and which streams it names.
//!
//! Invariant: h2 reads what came, up to the end of a frame, and from a client within the budget all of it.
//! Knows frames (RFC 9113, 4.1), and nothing of streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How many bytes a client says first, before any frame (RFC 9113, 3.4).
const PREFACE_BYTES: u32 = 24;

/// How many bytes the head of a frame has.
const HEAD_BYTES: usize = 9;

/// Types of frames (RFC 9113, 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// The flag of a DATA frame that ends its stream.
const END_STREAM: u8 = 1;

/// How many frames that ask for nothing are in the budget at most, and to begin with. Clients greet with less than
/// ten, and those that measure or keep up their line ping once a round trip or a second.
const MOST: u32 = 1000;

/// How many come to be there again in a second.
const A_SECOND: u128 = 50;

/// What a reset costs, in frames. Beside the one that its request brought, so that a client may give up every other
/// request, and cannot give up all of them without end.
const A_RESET: u32 = 2;

/// For how many bytes that we send there is one frame more: a client that measures its line pings with what comes.
const SENT_FOR_A_FRAME: usize = 16 * 1024;

/// How many bytes of those that we send pay for a WINDOW_UPDATE. Clients send two, for the stream and the connection,
/// for each 4 KiB or more that they have read; this is far below. They may do so long after it was sent, so that
/// what is left over has no end.
const SENT_FOR_AN_UPDATE: u64 = 64;

/// What h2 reads in place of all that follows a flood: a head without end, to which it answers that the client should
/// calm down.
const IN_PLACE_OF_A_FLOOD: [u8; 64 * HEAD_BYTES] = {
    let mut frames = [0; 64 * HEAD_BYTES];
    let mut at = 0;
    while at < frames.len() {
        frames[at + 3] = if at == 0 { HEADERS } else { CONTINUATION };
        frames[at + 8] = 1;
        at += HEAD_BYTES;
    }
    frames
};

/// How long a client is listened to after the last frame, and for how many bytes. Closing with unread bytes makes the
/// kernel send a reset, which may take that frame away.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_BYTES: usize = 4 << 20;

/// What the head of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
}

/// Finds the heads of frames in bytes wherever these are cut.
#[derive(Debug)]
struct Follower {
    /// How many bytes are still to come before the next head.
    skip: u32,
    head: [u8; HEAD_BYTES],
    /// How much of the head is there.
    have: usize,
}

impl Follower {
    fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
        }
    }

    /// The next head that is whole. `bytes` are those behind it then, and none where there is none.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        if !self.pass(bytes) {
            return None;
        }
        let taken = bytes.len().min(HEAD_BYTES - self.have);
        let (new, behind) = bytes.split_at(taken);
        self.head[self.have..self.have + taken].copy_from_slice(new);
        self.have += taken;
        *bytes = behind;
        if self.have < HEAD_BYTES {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = length;
        Some(Head {
            length,
            kind,
            flags,
        })
    }

    /// Passes over what precedes the next head, and tells whether that is all.
    fn pass(&mut self, bytes: &mut &[u8]) -> bool {
        let passed = bytes.len().min(self.skip as usize);
        *bytes = &bytes[passed..];
        self.skip -= passed as u32;
        self.skip == 0
    }
}

/// How many frames that ask for nothing may still come.
#[derive(Debug)]
struct Budget {
    frames: u32,
    filled: Instant,
    /// Of what was sent, that for which there is no frame yet.
    sent: usize,
    /// What is left of what was sent to pay for updates of windows.
    for_updates: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            frames: MOST,
            filled: now,
            sent: 0,
            for_updates: u64::from(MOST) * SENT_FOR_AN_UPDATE,
        }
    }

    /// So many bytes were sent.
    fn sent(&mut self, bytes: usize) {
        self.for_updates = self.for_updates.saturating_add(bytes as u64);
        self.sent += bytes;
        if self.sent >= SENT_FOR_A_FRAME {
            let more = self.sent / SENT_FOR_A_FRAME;
            self.sent %= SENT_FOR_A_FRAME;
            self.fill(more as u128);
        }
    }

    /// A frame came; whether it is within the budget.
    fn takes(&mut self, head: Head) -> bool {
        match head.kind {
            HEADERS => {
                self.fill(1);
                // Some clients open the window of each stream that they begin.
                self.for_updates = self.for_updates.saturating_add(2 * SENT_FOR_AN_UPDATE);
                true
            }
            // How many there are is h2's to judge.
            CONTINUATION => true,
            DATA if head.length > 0 || head.flags & END_STREAM != 0 => true,
            WINDOW_UPDATE => {
                let left = self.for_updates.checked_sub(SENT_FOR_AN_UPDATE);
                self.for_updates = left.unwrap_or(0);
                left.is_some()
            }
            RST_STREAM => self.spend(A_RESET),
            _ => self.spend(1),
        }
    }

    fn spend(&mut self, cost: u32) -> bool {
        // Only who has nothing left has us look at a clock.
        if self.frames < cost {
            let now = Instant::now();
            let more = (now - self.filled).as_millis() * A_SECOND / 1000;
            if more > 0 {
                self.filled = now;
                self.fill(more);
            }
        }
        let left = self.frames.checked_sub(cost);
        self.frames = left.unwrap_or(self.frames);
        left.is_some()
    }

    fn fill(&mut self, more: u128) {
        let more = u32::try_from(more).unwrap_or(MOST);
        self.frames = self.frames.saturating_add(more).min(MOST);
    }
}

#[derive(Debug)]
enum Reading {
    /// All is handed on.
    Following,
    /// The rest of the frame that was one too many is handed on.
    LastFrame,
    /// So much of [`IN_PLACE_OF_A_FLOOD`] was handed on.
    InPlace(usize),
}

/// Counts the frames that come; wraps an h2 connection below hyper.
pub(super) struct FrameGuard<S> {
    inner: S,
    follower: Follower,
    budget: Budget,
    reading: Reading,
    floods: Counter,
    last_words: Option<LastWords>,
}

/// How long, and how many bytes more, what the client still sends is read and forgotten.
struct LastWords {
    left: usize,
    alarm: Pin<Box<Sleep>>,
}

impl<S> FrameGuard<S> {
    /// Floods are counted by `floods`.
    pub(super) fn new(inner: S, floods: Counter) -> Self {
        Self {
            inner,
            follower: Follower::new(),
            budget: Budget::new(Instant::now()),
            reading: Reading::Following,
            floods,
            last_words: None,
        }
    }

    /// How many of the bytes that came are h2's to read.
    fn judge(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while matches!(self.reading, Reading::Following) {
            let Some(head) = self.follower.next(&mut rest) else {
                return bytes.len();
            };
            if !self.budget.takes(head) {
                self.reading = Reading::LastFrame;
            }
        }
        if self.follower.pass(&mut rest) {
            self.reading = Reading::InPlace(0);
            self.floods.inc();
            tracing::debug!("h2 connection closed: too many frames that ask for nothing");
        }
        bytes.len() - rest.len()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Reading::InPlace(given) = &mut this.reading {
            let left = &IN_PLACE_OF_A_FLOOD[*given..];
            if left.is_empty() {
                // h2 ought to have had enough.
                let why = "too many frames that ask for nothing";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            let taken = left.len().min(buf.remaining());
            buf.put_slice(&left[..taken]);
            *given += taken;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let passed = this.judge(&buf.filled()[before..]);
        buf.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameGuard<S> {
    /// Reads and forgets until the client closes, has sent [`LAST_WORDS_BYTES`], or [`LAST_WORDS`] has passed.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let last = self.last_words.get_or_insert_with(|| LastWords {
            left: LAST_WORDS_BYTES,
            alarm: Box::pin(tokio::time::sleep(LAST_WORDS)),
        });
        let mut scratch = [0; 16 * 1024];
        while last.left > 0 && last.alarm.as_mut().poll(cx).is_pending() {
            let mut forgotten = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut forgotten)) {
                Ok(()) if !forgotten.filled().is_empty() => {
                    last.left = last.left.saturating_sub(forgotten.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.budget.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        this.budget.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.last_words.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        ready!(this.poll_last_words(cx));
        Poll::Ready(Ok(()))
    }
}

/// Any bytes as what an h2 client says: the same heads are found wherever it is cut, and they are those that
/// whoever has all of it at once would find.
#[cfg(any(test, fuzzing))]
pub fn fuzz_frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let mut all = Vec::new();
    let mut rest = bytes.get(PREFACE_BYTES as usize..).unwrap_or_default();
    while let Some((&[a, b, c, kind, flags, ..], behind)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let length = u32::from_be_bytes([0, a, b, c]);
        all.push(Head {
            length,
            kind,
            flags,
        });
        rest = behind.get(length as usize..).unwrap_or_default();
    }
    assert_eq!(followed([bytes]), all);
    assert_eq!(followed([first, second]), all);
    assert_eq!(followed(bytes.chunks(1)), all);
}

/// The heads in pieces of what came.
#[cfg(any(test, fuzzing))]
fn followed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Head> {
    let mut follower = Follower::new();
    let mut heads = Vec::new();
    for mut piece in pieces {
        while let Some(head) = follower.next(&mut piece) {
            heads.push(head);
        }
        assert!(piece.is_empty());
    }
    heads
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PRIORITY: u8 = 2;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short frame");
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn head(kind: u8, length: u32) -> Head {
        Head {
            length,
            kind,
            flags: 0,
        }
    }

    /// How many frames of one kind are taken at once, of 10^5.
    fn taken(budget: &mut Budget, head: Head) -> u32 {
        let mut all = 0..100_000;
        all.find(|_| !budget.takes(head)).unwrap_or(100_000)
    }

    #[tokio::test(start_paused = true)]
    async fn l11_what_asks_for_nothing_has_an_end_and_time_brings_more() {
        let update = head(WINDOW_UPDATE, 4);
        for (head, most) in [
            (head(PING, 8), MOST),
            (head(SETTINGS, 0), MOST),
            (head(PRIORITY, 5), MOST),
            (head(DATA, 0), MOST),
            (head(0xfa, 100), MOST),
            (head(RST_STREAM, 4), MOST / A_RESET),
            (update, MOST),
        ] {
            let mut budget = Budget::new(Instant::now());
            assert_eq!(taken(&mut budget, head), most, "{head:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
            let again = taken(&mut budget, head);
            match head.kind {
                WINDOW_UPDATE => assert_eq!(again, 0),
                RST_STREAM => assert_eq!(again, 25),
                _ => assert_eq!(again, 50, "{head:?}"),
            }
        }
        let mut budget = Budget::new(Instant::now());
        for useful in [head(HEADERS, 10), head(CONTINUATION, 0), head(DATA, 1)] {
            assert_eq!(taken(&mut budget, useful), 100_000, "{useful:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn l11_no_honest_client_comes_to_the_end() {
        let ping = head(PING, 8);
        let update = head(WINDOW_UPDATE, 4);
        let mut budget = Budget::new(Instant::now());
        // Who waits, and sees whether we are there.
        for _ in 0..100_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(budget.takes(ping));
        }
        // Who reads much in no time, measures its line with each frame, and makes room twice for each 4 KiB.
        for _ in 0..100_000 {
            budget.sent(16 * 1024);
            assert!(budget.takes(ping));
            assert!((0..8).all(|_| budget.takes(update)));
        }
        // Who makes room only when it has come to read what was sent.
        budget.sent(64 << 20);
        assert!((0..32 * 1024).all(|_| budget.takes(update)));
        // Who wants every other answer, and opens a window for each.
        for _ in 0..100_000 {
            assert!(budget.takes(head(HEADERS, 50)) && budget.takes(update));
            assert!(budget.takes(head(HEADERS, 50)) && budget.takes(update));
            assert!(budget.takes(head(RST_STREAM, 4)));
        }
        // And it is no more than this.
        let mut reset = || budget.takes(head(HEADERS, 50)) && budget.takes(head(RST_STREAM, 4));
        assert!((0..2 * MOST).any(|_| !reset()));
    }

    #[tokio::test(start_paused = true)]
    async fn l11_h2_reads_another_flood_once_there_is_one_and_nothing_behind_it() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let floods = Counter::default();
        let mut guard = FrameGuard::new(server, floods.clone());
        let ping = frame(PING, 0, b"flooding");
        let mut sent = [0; PREFACE_BYTES as usize].to_vec();
        sent.extend(ping.repeat(2 * MOST as usize));
        client.write_all(&sent).await.expect("room");

        let mut read = Vec::new();
        let mut piece = [0; 1000];
        let error = loop {
            match guard.read(&mut piece).await {
                Ok(count) => read.extend_from_slice(&piece[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        // The one that was too many is whole.
        let end = PREFACE_BYTES as usize + ping.len() * (MOST as usize + 1);
        assert_eq!(read[..end], sent[..end]);
        assert_eq!(read[end..], IN_PLACE_OF_A_FLOOD);
        assert_eq!(floods.get(), 1);
    }

    proptest! {
        #[test]
        fn frames_are_found_wherever_what_came_is_cut(
            frames in vec((any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..40)), 0..20),
            cuts in vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut bytes = [0; PREFACE_BYTES as usize].to_vec();
            for (kind, flags, payload) in &frames {
                bytes.extend(frame(*kind, *flags, payload));
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let heads = followed(cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]));
            let expected: Vec<_> = frames
                .iter()
                .map(|(kind, flags, payload)| Head {
                    length: payload.len() as u32,
                    kind: *kind,
                    flags: *flags,
                })
                .collect();
            prop_assert_eq!(heads, expected);
        }

        #[test]
        fn any_bytes_are_followed(data in vec(any::<u8>(), 0..2000)) {
            fuzz_frames(&data);
        }
    }
}
