//! The connections that one blob comes by: one as a rule, several where that is faster.
//!
//! Each lane fetches a stretch of the blob in a task of its own and passes on what arrives; all share the
//! one short queue to the disk, which bounds their memory. A lane that cannot go on leaves its stretch to
//! the others; only the one in front, which readers wait for, can fail the fill.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::busy::Busy;
use super::download::{Again, Download};
use super::error::FillError;
use super::pieces::Pieces;
use super::steering::{MOST_LANES, Steering};
use super::stretches::{Leaving, Stretches};
use super::writer::Arrival;
use crate::buffers::BufferPool;
use crate::upstream::Interest;

/// How many pieces may wait between the network and the disk. This bounds the memory of a fill whose disk
/// is slow, and is enough for the network to go on while a piece is written.
const PIECES_WAITING: usize = 4;

/// Below this, in bytes, a blob is there before more than one connection could help.
pub(super) const WORTH_SHARING: u64 = 32 * 1024 * 1024;

/// How much must be left to try more connections, in bytes.
const LEFT_TO_SHARE: u64 = 12 * 1024 * 1024;

/// A part is what a connection brings in about a second: then asking for it costs little, and readers are
/// not far behind. In bytes, at least and at most.
const PART: (u64, u64) = (4 * 1024 * 1024, 32 * 1024 * 1024);

/// Towards the end parts become smaller, down to this, so that all connections end together.
const SMALLEST_PART: u64 = 1024 * 1024;

/// Into how many parts what is left is divided at least.
const SHARES: u64 = 2 * MOST_LANES as u64;

/// As large a part as there is: for one lane alone, and for the second while nobody knows whether it helps.
const ALL: u64 = u64::MAX;

/// How often it is looked whether there should be more connections, or fewer.
const TICK: Duration = Duration::from_millis(50);

/// What a fill's lanes need.
pub(super) struct LaneOptions {
    pub(super) again: Again,
    pub(super) buffers: BufferPool,
    pub(super) interest: Interest,
    /// For lanes beside the first, of all fills together.
    pub(super) spare: Arc<Semaphore>,
    /// Whether there may ever be more than one.
    pub(super) may_share: bool,
}

/// The lanes of one fill. Dropping it ends them.
pub(super) struct Lanes {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    arrivals: mpsc::Sender<Arrival>,
    interest: Interest,
    spare: Arc<Semaphore>,
    may_share: bool,
    next_lane: u64,
    steering: Steering,
    /// What one connection brings in a second or so, in bytes.
    part: u64,
    /// When it was last looked, and how long all had been held back by then, in microseconds.
    looked: (Instant, u64),
    busy: Busy,
}

struct Shared {
    again: Again,
    buffers: BufferPool,
    stretches: Mutex<Stretches>,
    /// Told when somebody may read who could not.
    changed: watch::Sender<()>,
    /// Bytes, of all lanes.
    arrived: AtomicU64,
    /// How long limits of our own held lanes back, in microseconds.
    held_back: AtomicU64,
    /// How long lanes waited until what they brought was taken, in microseconds.
    waited: AtomicU64,
    /// How many lanes wait for the head of their answer.
    opening: AtomicUsize,
    /// Whether a lane beside the one in front could not go on.
    refused: AtomicBool,
    /// How large a part a lane takes at most, in bytes.
    most: AtomicU64,
}

/// What is left of a blob, for whoever decides that no second lane may come.
pub(super) struct Remainder(Arc<Shared>);

impl Remainder {
    /// Makes sure that there will be one lane only, if there is but one now and it fetches all that no lane
    /// has passed on; true if so. What others passed on may lie ahead of it, or come between its pieces.
    pub(super) fn stay_alone(&self) -> bool {
        self.0.stretches().stay_alone()
    }
}

impl Lanes {
    /// Begins with `first`, which fetches the first of `gaps`; without, there is nothing to fetch.
    pub(super) fn start(
        options: LaneOptions,
        first: Option<Download>,
        gaps: Vec<Range<u64>>,
    ) -> (Self, mpsc::Receiver<Arrival>, Remainder) {
        let LaneOptions {
            again,
            buffers,
            interest,
            spare,
            may_share,
        } = options;
        let (arrivals, receiver) = mpsc::channel(PIECES_WAITING);
        let now = Instant::now();
        let shared = Arc::new(Shared {
            again,
            buffers,
            stretches: Mutex::new(Stretches::new(0, gaps)),
            changed: watch::Sender::new(()),
            arrived: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            opening: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            most: AtomicU64::new(ALL),
        });
        let mut lanes = Self {
            tasks: JoinSet::new(),
            arrivals,
            interest,
            spare,
            may_share,
            next_lane: 1,
            steering: Steering::new(now),
            part: PART.1,
            looked: (now, 0),
            busy: Busy::new(now),
            shared: Arc::clone(&shared),
        };
        if let Some(download) = first {
            let arrivals = lanes.arrivals.clone();
            let shared = Arc::clone(&shared);
            lanes.tasks.spawn(async move {
                let next = shared.carry(0, download, &arrivals).await;
                shared.go_on(0, next, &arrivals).await;
            });
        }
        (lanes, receiver, Remainder(shared))
    }

    /// Sees to it that there are as many lanes as help, until all have ended.
    pub(super) async fn steer(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => {
                    // One that panicked leaves a hole that nobody fills.
                    if !matches!(ended, Some(Ok(()))) {
                        return;
                    }
                }
                _ = ticks.tick(), if self.may_share => self.look(Instant::now()),
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let (looked, had) = self.looked;
        let held_back = self.shared.held_back.load(Ordering::Relaxed);
        self.looked = (now, held_back);
        let is_held_back = Duration::from_micros(held_back - had) > (now - looked) / 10;
        let waited = Duration::from_micros(self.shared.waited.load(Ordering::Relaxed));
        let is_busy = self.busy.is_limit(now, waited);
        if self.shared.refused.swap(false, Ordering::AcqRel) {
            self.steering.refused(now);
        } else if is_held_back || !self.interest.exists() {
            // More connections would take what a limit of ours, or somebody else, lets through.
            self.steering.one_is_enough(now);
        } else if self.shared.opening.load(Ordering::Acquire) > 0
            || (is_busy && self.steering.width() == 1)
        {
            self.steering.hold(now);
        } else if self.is_worth_trying() {
            let width = self.steering.width();
            let arrived = self.shared.arrived.load(Ordering::Relaxed);
            if let Some(rate) = self.steering.tick(now, arrived) {
                let part = (rate / width as f64) as u64;
                self.part = part.clamp(PART.0, PART.1);
            }
        }
        let most = if self.steering.is_sure() {
            self.part
        } else {
            ALL
        };
        self.shared.most.store(most, Ordering::Relaxed);
        self.widen();
    }

    /// Whether there is enough left for more connections to make up for what they cost.
    fn is_worth_trying(&self) -> bool {
        self.steering.width() > 1 || self.shared.stretches().left() >= LEFT_TO_SHARE
    }

    /// Brings the lanes to the number there should be: those that are too many wait, those that are
    /// missing begin.
    fn widen(&mut self) {
        let width = self.steering.width();
        let missing = {
            let mut stretches = self.shared.stretches();
            stretches.set_width(width);
            let missing = width.saturating_sub(stretches.under_way());
            if missing > 0 && stretches.free_bytes() == 0 && stretches.left() >= LEFT_TO_SHARE {
                stretches.share(self.part);
            }
            missing
        };
        self.shared.changed.send_replace(());
        for _ in 0..missing {
            let Ok(permit) = Arc::clone(&self.spare).try_acquire_owned() else {
                break;
            };
            let lane = self.next_lane;
            let Some(part) = self.shared.take(lane) else {
                break;
            };
            self.next_lane += 1;
            self.begin(lane, part, permit);
        }
    }

    fn begin(&mut self, lane: u64, part: Range<u64>, permit: OwnedSemaphorePermit) {
        let shared = Arc::clone(&self.shared);
        let arrivals = self.arrivals.clone();
        let opening = Opening::of(&shared);
        self.tasks.spawn(async move {
            let _permit = permit;
            let next = shared.fetch(lane, part, Some(opening), &arrivals).await;
            shared.go_on(lane, next, &arrivals).await;
        });
    }
}

/// A lane that waits for the head of its answer.
struct Opening(Arc<Shared>);

impl Opening {
    fn of(shared: &Arc<Shared>) -> Self {
        shared.opening.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How a stretch ended, where nothing went wrong.
enum Carried {
    /// All of it was passed on, or is another's now.
    Whole,
    /// Nobody takes any more.
    Unwanted,
}

impl Shared {
    /// Opens a connection for a lane's stretch, and passes on what it brings.
    async fn fetch(
        &self,
        lane: u64,
        part: Range<u64>,
        opening: Option<Opening>,
        arrivals: &mpsc::Sender<Arrival>,
    ) -> Result<Carried, FillError> {
        let opened = self.again.download(part.start, part.end).await;
        drop(opening);
        let download = match opened {
            Ok(download) => download,
            // Nobody else will fetch what comes next.
            Err(FillError::Upstream(error)) if error.retryable() && self.is_in_front(lane) => {
                self.again.continuing(part.start, part.end, error)
            }
            Err(error) => return Err(error),
        };
        self.carry(lane, download, arrivals).await
    }

    /// Passes on what a connection brings of a lane's stretch.
    async fn carry(
        &self,
        lane: u64,
        download: Download,
        arrivals: &mpsc::Sender<Arrival>,
    ) -> Result<Carried, FillError> {
        let mut pieces = Pieces::new(download, self.buffers.clone());
        loop {
            self.turn(lane).await;
            let end = self.stretches().end(lane);
            let Some((offset, piece)) = pieces.next(end).await? else {
                return Ok(Carried::Whole);
            };
            // Where the lane before went on into this stretch it brings this, too.
            if !self.stretches().claim(lane) {
                return Ok(Carried::Whole);
            }
            let bytes = piece.len() as u64;
            self.arrived.fetch_add(bytes, Ordering::Relaxed);
            let held_back = pieces.take_held_back().as_micros() as u64;
            self.held_back.fetch_add(held_back, Ordering::Relaxed);
            let sending = Instant::now();
            if arrivals.send(Ok((offset, piece))).await.is_err() {
                return Ok(Carried::Unwanted);
            }
            let waited = sending.elapsed().as_micros() as u64;
            self.waited.fetch_add(waited, Ordering::Relaxed);
            if self.stretches().advance(lane, bytes) {
                self.changed.send_replace(());
                return Ok(Carried::Whole);
            }
        }
    }

    /// After a first stretch has come to its end, takes others as long as there are any.
    async fn go_on(
        &self,
        lane: u64,
        mut last: Result<Carried, FillError>,
        arrivals: &mpsc::Sender<Arrival>,
    ) {
        loop {
            match last {
                Ok(Carried::Whole) => {}
                Ok(Carried::Unwanted) => return,
                Err(error) => {
                    let leaving = self.stretches().leave(lane);
                    self.changed.send_replace(());
                    match leaving {
                        Leaving::Behind => {
                            tracing::info!(error = %error, "one connection of several ended early");
                            self.refused.store(true, Ordering::Release);
                        }
                        // Nobody waits for it where nobody takes it.
                        Leaving::Front => drop(arrivals.send(Err(error)).await),
                    }
                    return;
                }
            }
            let Some(part) = self.take(lane) else {
                return;
            };
            last = self.fetch(lane, part, None, arrivals).await;
        }
    }

    /// Waits until a lane may read.
    async fn turn(&self, lane: u64) {
        if self.stretches().may_read(lane) {
            return;
        }
        let mut changed = self.changed.subscribe();
        // The sender is `self`.
        while !self.stretches().may_read(lane) && changed.changed().await.is_ok() {}
    }

    fn is_in_front(&self, lane: u64) -> bool {
        self.stretches().is_in_front(lane)
    }

    fn take(&self, lane: u64) -> Option<Range<u64>> {
        let mut stretches = self.stretches();
        let most = match self.most.load(Ordering::Relaxed) {
            ALL => ALL,
            part => part.min((stretches.free_bytes() / SHARES).max(SMALLEST_PART)),
        };
        stretches.take(lane, most)
    }

    fn stretches(&self) -> MutexGuard<'_, Stretches> {
        self.stretches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many lanes beside the first all fills of the process may have.
pub(super) const SPARE_LANES: usize = 2 * MOST_LANES;
