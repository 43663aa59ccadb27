//! A blob on its way from an upstream or from an unverified file: what its task and its readers share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::download::Again;
use super::error::FillError;
use super::front::{Front, Phase};
use crate::cache::ContentFile;
use crate::oci::{Digest, Hasher};
use crate::upstream::Interest;

/// How much of a blob is kept in memory when the disk takes no more, in bytes. A reader slower than
/// this continues by its own upstream range.
pub(super) const WINDOW: u64 = 8 * 1024 * 1024;

/// How many of the pieces that were just written are also kept in memory: readers that keep up with the
/// fill share them instead of each reading the file again.
const FRESH: usize = 2;

/// How long a fill without a disk waits for its fastest reader before it lets the window slide.
const PATIENCE: Duration = Duration::from_secs(30);

/// In place of the number of readers: there will be none any more.
const ABANDONED: usize = usize::MAX;

/// What the task of a fill and its readers share.
pub(super) struct Flow {
    pub(super) digest: Digest,
    front: watch::Sender<Front>,
    bytes: Mutex<Landed>,
    /// How many read, or [`ABANDONED`].
    readers: watch::Sender<usize>,
    /// How many of those that came by [`Flow::attend_to`] wait for the verdict.
    awaiting: watch::Sender<usize>,
    /// How far the fastest reader has come; watched by a fill that goes on without a disk.
    furthest: AtomicU64,
    moved: Notify,
    /// Upstream was asked for a part and gave the whole.
    is_without_parts: AtomicBool,
    /// Set when the task of a fill is through: whether the blob is on disk now.
    ended: watch::Sender<Option<bool>>,
}

/// Where the bytes that arrived are.
#[derive(Default)]
struct Landed {
    file: Option<ContentFile>,
    /// How to get them once more; a file that is only being verified has no need to.
    again: Option<Again>,
    /// The last pieces of the file, with their offsets, [`FRESH`] of them at most.
    fresh: VecDeque<(u64, Bytes)>,
    /// Set once the disk took no more.
    memory: Option<Memory>,
}

/// The part of a blob that the disk did not take.
struct Memory {
    /// Where the file ends and memory begins.
    begin: u64,
    /// The hash of everything before `begin`, for readers that go on by themselves.
    hash: Hasher,
    /// Adjoining pieces, with their offsets, [`WINDOW`] bytes of them at most.
    pieces: VecDeque<(u64, Bytes)>,
}

/// Where a reader finds the bytes at an offset.
pub(super) enum Place {
    /// In the file, up to this offset.
    File(ContentFile, u64),
    /// In the file, and these of them in memory still.
    Fresh(Bytes),
    /// In memory alone: the bytes from the offset on.
    Memory(Bytes),
    /// Nowhere any more: the window slid past.
    Gone,
}

impl Flow {
    pub(super) fn new(digest: Digest, front: Front, file: Option<ContentFile>) -> Arc<Self> {
        Arc::new(Self {
            digest,
            front: watch::Sender::new(front),
            bytes: Mutex::new(Landed {
                file,
                ..Landed::default()
            }),
            readers: watch::Sender::new(0),
            awaiting: watch::Sender::new(0),
            furthest: AtomicU64::new(0),
            moved: Notify::new(),
            is_without_parts: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Front> {
        self.front.subscribe()
    }

    /// For the task only: a new phase. What failed stays failed.
    pub(super) fn enter(&self, phase: Phase) {
        // Whoever still reads has fallen behind, and may take its time.
        self.landed().fresh.clear();
        self.front.send_if_modified(|front| {
            let may_change = !matches!(front.phase, Phase::Failed(_));
            if may_change {
                front.phase = phase;
            }
            may_change
        });
    }

    /// For the task only: it is through, and the blob is on disk or not.
    pub(super) fn end(&self, kept: bool) {
        self.ended.send_replace(Some(kept));
    }

    /// Whether nobody can join it any more.
    pub(super) fn is_given_up(&self) -> bool {
        *self.readers.borrow() == ABANDONED
    }

    /// Whether it can be answered from.
    pub(super) fn is_begun(&self) -> bool {
        self.front.borrow().is_begun()
    }

    /// Waits until it can be answered from, which may be never.
    pub(super) async fn until_begun(&self) {
        let mut front = self.front.subscribe();
        // The sender is `self`.
        let _ = front.wait_for(Front::is_begun).await;
    }

    /// Waits for the end of the fill's task, which comes after the verdict; true if the blob is on
    /// disk.
    pub(super) async fn until_ended(&self) -> bool {
        let mut ended = self.ended.subscribe();
        // The sender is `self`.
        let kept = ended.wait_for(Option::is_some).await;
        kept.is_ok_and(|kept| *kept == Some(true))
    }

    /// For the task only: `piece`, which begins at `offset`, is in the file. It is kept in memory for a
    /// moment where `keep` says so and anybody reads.
    pub(super) fn landed_at(&self, offset: u64, piece: Bytes, keep: bool) {
        let end = offset + piece.len() as u64;
        let is_read = *self.readers.borrow() > 0;
        {
            let fresh = &mut self.landed().fresh;
            let kept = if keep && is_read { FRESH } else { 0 };
            if kept > 0 {
                fresh.push_back((offset, piece));
            }
            while fresh.len() > kept {
                fresh.pop_front();
            }
        }
        self.reach(end);
    }

    /// For the task only: every byte before `contiguous` can be read.
    pub(super) fn reach(&self, contiguous: u64) {
        self.front
            .send_modify(|front| front.contiguous = contiguous);
    }

    /// For the task only: a transfer begins, from zero; `present` bytes of it are in the file already.
    pub(super) fn restart(&self, again: Again, present: u64) {
        let len = again.len();
        *self.landed() = Landed {
            again: Some(again),
            ..Landed::default()
        };
        self.front.send_replace(Front {
            present,
            phase: Phase::Running { len },
            ..Front::connecting()
        });
    }

    /// For a reader, before its first byte: whether what is released at `offset` of a range that ends at
    /// `end` is still to be had. From then on the transfer is not begun anew.
    pub(super) fn claim(&self, offset: u64, end: u64) -> bool {
        let mut may = false;
        self.front.send_if_modified(|front| {
            may = offset < front.released(end);
            front.taken |= may;
            false
        });
        may
    }

    /// For the task only: takes back everything that has arrived, unless a reader was given some of it.
    /// One step with [`Flow::claim`], so that no reader gets the beginning of one transfer and the end of
    /// another.
    pub(super) fn retract(&self) -> bool {
        self.front.send_if_modified(|front| {
            let may = !front.taken;
            if may {
                *front = Front::connecting();
            }
            may
        })
    }

    /// For the task only: the file that the bytes land in.
    pub(super) fn land_in(&self, file: ContentFile) {
        self.landed().file = Some(file);
    }

    /// For the task only: the disk takes no more; what comes after `begin` is kept in memory.
    pub(super) fn leave_disk(&self, begin: u64, hash: Hasher) {
        self.landed().memory = Some(Memory {
            begin,
            hash,
            pieces: VecDeque::new(),
        });
    }

    /// For the task only, after [`Flow::leave_disk`]: keeps `piece`, which begins at `offset`, and
    /// forgets the oldest beyond the window. Waits while the window would slide past the fastest reader.
    ///
    /// # Errors
    /// [`FillError::Abandoned`] when nobody reads: what nobody can keep is not worth fetching.
    pub(super) async fn remember(&self, offset: u64, piece: Bytes) -> Result<(), FillError> {
        let end = offset + piece.len() as u64;
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            let moved = self.moved.notified();
            if self.abandon() {
                return Err(FillError::Abandoned);
            }
            if end <= self.furthest.load(Ordering::Acquire) + WINDOW {
                break;
            }
            tokio::select! {
                () = moved => {}
                () = &mut patience => break,
            }
        }
        if let Some(memory) = &mut self.landed().memory {
            memory.pieces.push_back((offset, piece));
            while memory
                .pieces
                .front()
                .is_some_and(|(start, _)| *start + WINDOW < end)
            {
                memory.pieces.pop_front();
            }
        }
        Ok(())
    }

    /// Where the bytes from `offset` on are; the caller knows from the front that they have arrived.
    pub(super) fn find(&self, offset: u64) -> Place {
        let landed = self.landed();
        let file_end = landed
            .memory
            .as_ref()
            .map_or(u64::MAX, |memory| memory.begin);
        if offset < file_end {
            return match (from(&landed.fresh, offset), &landed.file) {
                (Some(bytes), _) => Place::Fresh(bytes),
                (None, Some(file)) => Place::File(file.clone(), file_end),
                (None, None) => Place::Gone,
            };
        }
        let memory = landed.memory.as_ref();
        match memory.and_then(|memory| from(&memory.pieces, offset)) {
            Some(bytes) => Place::Memory(bytes),
            None => Place::Gone,
        }
    }

    /// How a reader gets by itself what the window slid past.
    pub(super) fn again(&self) -> Option<Again> {
        self.landed().again.clone()
    }

    /// The hash of every byte before `offset`, if that is where memory takes over from the file: from
    /// there on a reader can hash what it passes on, and so check the whole by itself.
    pub(super) fn hash_at(&self, offset: u64) -> Option<Hasher> {
        let landed = self.landed();
        let memory = landed
            .memory
            .as_ref()
            .filter(|memory| memory.begin == offset)?;
        Some(memory.hash.clone())
    }

    /// Whether parts of it may be had from upstream, as far as is known.
    pub(super) fn may_have_parts(&self) -> bool {
        !self.is_without_parts.load(Ordering::Relaxed)
    }

    /// Upstream was asked for a part and gave the whole: nobody else has to ask.
    pub(super) fn note_without_parts(&self) {
        self.is_without_parts.store(true, Ordering::Relaxed);
    }

    /// How far the bytes are that need not be waited for from upstream.
    pub(super) fn at_hand(&self) -> u64 {
        self.front.borrow().at_hand()
    }

    /// The size of the whole, once it is known.
    pub(super) fn len(&self) -> Option<u64> {
        self.front.borrow().len()
    }

    /// For the task only: gives up if nobody reads, for good; true if so.
    fn abandon(&self) -> bool {
        self.readers.send_if_modified(|readers| {
            let is_alone = *readers == 0;
            if is_alone {
                *readers = ABANDONED;
            }
            is_alone
        })
    }

    /// Whether anybody waits for it.
    pub(super) fn is_attended(&self) -> bool {
        !matches!(*self.readers.borrow(), 0 | ABANDONED)
    }

    /// Counts a reader as [`Flow::attend`] does, unless the fill has been abandoned.
    pub(super) fn join(self: &Arc<Self>) -> Option<Attendance> {
        let joined = self.readers.send_if_modified(|readers| {
            let may = *readers != ABANDONED;
            if may {
                *readers += 1;
            }
            may
        });
        joined.then(|| Attendance::of(self, false))
    }

    /// Counts a reader for as long as the value lives. For a flow that cannot have been abandoned: it
    /// has not begun, or is of a file on disk.
    pub(super) fn attend(self: &Arc<Self>) -> Attendance {
        self.readers.send_modify(|readers| *readers += 1);
        Attendance::of(self, false)
    }

    /// The same, for a reader of a file on disk whose range ends at `end`: one that is to have the last bytes
    /// waits for the verdict.
    pub(super) fn attend_to(self: &Arc<Self>, end: u64) -> Attendance {
        let awaits = self.len() == Some(end);
        self.readers.send_modify(|readers| *readers += 1);
        if awaits {
            self.awaiting.send_modify(|awaiting| *awaiting += 1);
        }
        Attendance::of(self, awaits)
    }

    /// Whether anybody waits for the verdict on a file on disk.
    pub(super) fn is_awaited(&self) -> bool {
        *self.awaiting.borrow() > 0
    }

    /// Returns once somebody waits for the verdict on a file on disk.
    pub(super) async fn until_awaited(&self) {
        let mut awaiting = self.awaiting.subscribe();
        // The sender is `self`.
        let _ = awaiting.wait_for(|awaiting| *awaiting > 0).await;
    }

    /// Whether anybody reads; a body that nobody does gives way to others.
    pub(super) fn interest(&self) -> Interest {
        Interest::counted(self.readers.subscribe())
    }

    fn landed(&self) -> MutexGuard<'_, Landed> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes from `offset` on, of the one among adjoining pieces that holds it.
fn from(pieces: &VecDeque<(u64, Bytes)>, offset: u64) -> Option<Bytes> {
    let after = pieces.partition_point(|(start, _)| *start <= offset);
    let (start, bytes) = pieces.get(after.checked_sub(1)?)?;
    let skipped = offset - start;
    // In range: less than the length of a piece, which is a usize.
    (skipped < bytes.len() as u64).then(|| bytes.slice(skipped as usize..))
}

/// A reader's presence at a fill.
pub(super) struct Attendance {
    flow: Arc<Flow>,
    /// Whether it counts among those who wait for the verdict.
    awaits: bool,
}

impl Attendance {
    fn of(flow: &Arc<Flow>, awaits: bool) -> Self {
        let flow = Arc::clone(flow);
        Self { flow, awaits }
    }

    pub(super) fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Tells how far this reader has come.
    pub(super) fn at(&self, offset: u64) {
        self.flow.furthest.fetch_max(offset, Ordering::AcqRel);
        self.flow.moved.notify_waiters();
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if self.awaits {
            self.flow.awaiting.send_modify(|awaiting| *awaiting -= 1);
        }
        self.flow.readers.send_modify(|readers| *readers -= 1);
        self.flow.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fill_that_cannot_be_kept_is_given_up_with_its_last_reader_and_takes_no_new_one() {
        let flow = Flow::new(Digest::of(b"x"), Front::connecting(), None);
        flow.leave_disk(0, Hasher::new());
        let reader = flow.attend();
        flow.remember(0, Bytes::from_static(b"abc")).await.unwrap();
        let other = flow.join().unwrap();
        drop(reader);
        flow.remember(3, Bytes::from_static(b"def")).await.unwrap();
        drop(other);
        let given_up = flow.remember(6, Bytes::from_static(b"ghi")).await;
        assert_eq!(given_up, Err(FillError::Abandoned));
        assert!(flow.join().is_none());
    }

    const LEN: u64 = 1024 * 1024;

    fn arrived() -> Arc<Flow> {
        let flow = Flow::new(Digest::of(b""), Front::connecting(), None);
        flow.enter(Phase::Running { len: LEN });
        flow.reach(LEN);
        flow
    }

    #[test]
    fn u03_what_a_reader_was_given_is_never_taken_back() {
        let flow = arrived();
        assert!(flow.claim(0, LEN));
        assert!(!flow.retract());
        assert_eq!(flow.at_hand(), LEN);
    }

    #[test]
    fn u03_a_reader_that_comes_after_it_was_taken_back_gets_nothing_of_it() {
        let flow = arrived();
        assert!(!flow.claim(LEN, LEN), "nothing is left there to be given");
        assert!(flow.retract());
        assert!(!flow.claim(0, LEN));
        assert_eq!(flow.len(), None);
    }

    fn fresh(flow: &Flow, offset: u64) -> Option<Bytes> {
        match flow.find(offset) {
            Place::Fresh(bytes) => Some(bytes),
            Place::File(..) | Place::Memory(_) | Place::Gone => None,
        }
    }

    #[test]
    fn the_last_pieces_are_shared_until_the_verdict_and_kept_for_readers_only() {
        let flow = Flow::new(Digest::of(b""), Front::connecting(), None);
        flow.landed_at(0, Bytes::from_static(b"nobody"), true);
        assert_eq!(fresh(&flow, 0), None);

        let _reader = flow.attend();
        for (offset, piece) in [(6, "abc"), (9, "def"), (12, "ghi")] {
            flow.landed_at(offset, Bytes::from_static(piece.as_bytes()), true);
        }
        assert_eq!(fresh(&flow, 8), None, "slid out");
        assert_eq!(fresh(&flow, 10), Some(Bytes::from_static(b"ef")));
        assert_eq!(fresh(&flow, 14), Some(Bytes::from_static(b"i")));
        assert_eq!((fresh(&flow, 15), flow.at_hand()), (None, 15));

        flow.enter(Phase::Verified { len: 15 });
        assert_eq!(fresh(&flow, 14), None);
    }
}
