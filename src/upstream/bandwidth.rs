//! How fast blobs may come, and who gives way to whom.
//!
//! A [`Line`] is what several bodies share: all of one upstream, or all of the process. A body asks each
//! of its lines for its turn before it hands bytes on, and reads no more from its socket meanwhile, so
//! that TCP pushes back. Invariants: over any longer time no more passes than the limit; bodies that
//! somebody waits for take turns in the order they ask; those that nobody waits for get what these leave,
//! and never nothing. Knows nothing of what the bytes are.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How much unused time a limit makes up for: enough for coarse timers, too little to be felt by others
/// on the line.
const BURST: Duration = Duration::from_millis(100);

/// What one turn may carry: a twentieth of a second's worth, so that many bodies progress evenly, within
/// bounds. Less costs more in timers than it evens out; more lets a small blob through at a stroke.
const TURN_BYTES: (u64, u64) = (4 * 1024, 64 * 1024);

/// For how long after a body that somebody waits for has brought something the others hold back. Longer
/// than a healthy line pauses; a stalled one holds nobody back.
const YIELD: Duration = Duration::from_millis(500);

/// What bodies that hold back get together, as a part of the limit; without a limit, in bytes a second.
/// It keeps their connections alive and lets them end one day.
const FLOOR_SHARE: u64 = 16;
const FLOOR_RATE: u64 = 64 * 1024;

/// A limit in bytes a second.
pub type Rate = NonZeroU64;

/// Tells whether somebody waits for the bytes of a body. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Interest(Option<watch::Receiver<usize>>);

impl Interest {
    /// Somebody waits for as long as the count of those who do is not zero.
    pub fn counted(waiting: watch::Receiver<usize>) -> Self {
        Self(Some(waiting))
    }

    /// True if somebody waits, which without a count is always so.
    pub fn exists(&self) -> bool {
        self.0.as_ref().is_none_or(|waiting| *waiting.borrow() > 0)
    }

    /// Waits until somebody comes.
    async fn arises(&mut self) {
        let gone = match &mut self.0 {
            Some(waiting) => waiting.wait_for(|waiting| *waiting > 0).await.is_err(),
            None => false,
        };
        if gone {
            // Nobody counts any more, so nobody comes.
            self.0 = None;
            std::future::pending::<()>().await;
        }
    }
}

/// What bodies share. Clones are the same line.
#[derive(Clone, Debug)]
pub struct Line {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Without a limit nobody gives way on it.
    is_of_many: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Option<Rate>,
    /// When what was let through so far has passed, at the limit.
    free_at: Instant,
    /// When those who hold back may have a turn nevertheless.
    floor_at: Instant,
    /// Until when those who can wait hold back.
    busy_until: Instant,
}

/// What asking for a turn came to.
enum Turn {
    /// It is granted, from then on.
    At(Instant),
    /// Not yet: ask again then, or when somebody comes to wait for the body.
    AskAgain(Instant),
}

impl Line {
    /// The line of one upstream, with this limit or none.
    pub fn new(rate: Option<Rate>) -> Self {
        Self::of(rate, false)
    }

    /// A line that several upstreams share for the sake of its limit: without one nobody gives way on it to
    /// those of another upstream.
    pub fn shared(rate: Option<Rate>) -> Self {
        Self::of(rate, true)
    }

    fn of(rate: Option<Rate>, is_of_many: bool) -> Self {
        let now = Instant::now();
        let state = State {
            rate,
            free_at: now,
            floor_at: now,
            busy_until: now,
        };
        Self {
            shared: Arc::new(Shared {
                is_of_many,
                state: Mutex::new(state),
            }),
        }
    }

    /// Has another limit from now on, or none. Turns that were granted stay as they are.
    pub fn set_rate(&self, rate: Option<Rate>) {
        let mut state = self.state();
        if state.rate != rate {
            state.rate = rate;
            state.free_at = Instant::now();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes may go in one turn.
    fn turn_bytes(&self, is_waited_for: bool) -> u64 {
        match self.state().rate {
            Some(rate) => (rate.get() / 20).clamp(TURN_BYTES.0, TURN_BYTES.1),
            None if is_waited_for || self.shared.is_of_many => u64::MAX,
            None => FLOOR_RATE / 4,
        }
    }

    fn ask(&self, bytes: u64, is_waited_for: bool) -> Turn {
        let mut state = self.state();
        let now = Instant::now();
        if state.rate.is_none() && self.shared.is_of_many {
            return Turn::At(now);
        }
        let holds_back = !is_waited_for && now < state.busy_until;
        if holds_back && now < state.floor_at {
            return Turn::AskAgain(state.floor_at.min(state.busy_until));
        }
        let turn = match state.rate {
            None => now,
            Some(rate) => {
                let oldest = now.checked_sub(BURST).unwrap_or(now);
                state.free_at = state.free_at.max(oldest) + time(bytes, rate.get());
                state.free_at
            }
        };
        if is_waited_for {
            state.busy_until = state.busy_until.max(turn.max(now) + YIELD);
        } else if holds_back {
            let floor = state
                .rate
                .map_or(FLOOR_RATE, |rate| (rate.get() / FLOOR_SHARE).max(1));
            state.floor_at = now + time(bytes, floor);
        }
        Turn::At(turn)
    }
}

fn time(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}

/// One body's turns on its lines.
#[derive(Debug)]
pub(super) struct Turns {
    lines: Vec<Line>,
    interest: Interest,
    /// How many of the lines have granted the turn that is being asked for.
    granted: usize,
    /// When the last of them begins.
    begins: Option<Instant>,
}

impl Turns {
    pub(super) fn new(lines: Vec<Line>, interest: Interest) -> Self {
        Self {
            lines,
            interest,
            granted: 0,
            begins: None,
        }
    }

    pub(super) fn set_interest(&mut self, interest: Interest) {
        self.interest = interest;
    }

    /// How many of `bytes` bytes the next turn may carry.
    pub(super) fn limit(&self, bytes: u64) -> u64 {
        let is_waited_for = self.interest.exists();
        let limits = self.lines.iter().map(|line| line.turn_bytes(is_waited_for));
        limits.fold(bytes, u64::min)
    }

    /// Waits for a turn of `bytes` bytes, on every line; returns how long that took.
    ///
    /// # Cancel safety
    /// Cancel safe: a turn that was granted waits to be taken.
    pub(super) async fn take(&mut self, bytes: u64) -> Duration {
        let since = Instant::now();
        while let Some(line) = self.lines.get(self.granted) {
            if let Some(begins) = self.begins {
                if begins > Instant::now() {
                    tokio::time::sleep_until(begins).await;
                }
                self.begins = None;
                self.granted += 1;
                continue;
            }
            match line.ask(bytes, self.interest.exists()) {
                Turn::At(begins) => self.begins = Some(begins),
                Turn::AskAgain(then) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(then) => {}
                        () = self.interest.arises() => {}
                    }
                }
            }
        }
        self.granted = 0;
        since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MIB: u64 = 1024 * 1024;

    fn rate(bytes: u64) -> Option<Rate> {
        Rate::new(bytes)
    }

    fn background() -> (watch::Sender<usize>, Interest) {
        let (waiting, receiver) = watch::channel(0);
        (waiting, Interest::counted(receiver))
    }

    /// Takes turns until `bytes` have passed; returns when.
    async fn pass(turns: &mut Turns, mut bytes: u64) -> Instant {
        while bytes > 0 {
            let turn = turns.limit(bytes);
            turns.take(turn).await;
            bytes -= turn;
        }
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_limit_holds_whoever_shares_it() {
        let (narrow, wide) = (Line::new(rate(MIB)), Line::new(rate(8 * MIB)));
        let began = Instant::now();
        let passing = (0..4).map(|_| {
            let mut turns = Turns::new(vec![narrow.clone(), wide.clone()], Interest::default());
            async move { pass(&mut turns, MIB).await }
        });
        let ends = futures_util::future::join_all(passing).await;
        let last = ends.into_iter().max().unwrap() - began;
        assert!(last >= 4 * SECOND - BURST, "{last:?}");
        assert!(last <= 4 * SECOND + BURST, "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn l17_bodies_on_a_thin_line_progress_evenly() {
        let line = Line::new(rate(MIB));
        let passing = (0..50).map(|_| {
            let mut turns = Turns::new(vec![line.clone()], Interest::default());
            async move {
                (
                    pass(&mut turns, MIB / 2).await,
                    pass(&mut turns, MIB / 2).await,
                )
            }
        });
        let ends = futures_util::future::join_all(passing).await;
        let last_half = ends.iter().map(|(half, _)| *half).max();
        let first_whole = ends.iter().map(|(_, whole)| *whole).min();
        assert!(last_half < first_whole);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_waited_for_goes_first_and_the_others_are_not_forgotten() {
        for limit in [None, rate(4 * MIB)] {
            let line = Line::new(limit);
            let (_nobody, interest) = background();
            let mut later = Turns::new(vec![line.clone()], interest);
            let mut first = Turns::new(vec![line.clone()], Interest::default());
            let background = tokio::spawn(async move { pass(&mut later, MIB).await });
            let began = Instant::now();
            for _ in 0..40 {
                let turn = first.limit(128 * 1024);
                first.take(turn).await;
                tokio::time::sleep(SECOND / 20).await;
            }
            let took = began.elapsed();
            assert!(took < 3 * SECOND, "{limit:?}: {took:?}");
            assert!(!background.is_finished(), "{limit:?}");
            let ended = background.await.unwrap() - began;
            assert!(ended < took + 2 * SECOND, "{limit:?}: {ended:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_somebody_comes_to_wait_for_holds_back_no_longer() {
        let line = Line::new(None);
        let (waiting, interest) = background();
        let mut body = Turns::new(vec![line.clone()], interest);
        let mut other = Turns::new(vec![line], Interest::default());
        other.take(1).await;
        body.take(FLOOR_RATE).await;
        let began = Instant::now();
        let turn = tokio::spawn(async move { body.take(MIB).await });
        tokio::task::yield_now().await;
        waiting.send_replace(1);
        turn.await.unwrap();
        assert!(began.elapsed() < SECOND / 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_took_is_not_asked_for_twice() {
        let line = Line::new(rate(MIB));
        let mut turns = Turns::new(vec![line.clone()], Interest::default());
        let began = Instant::now();
        for _ in 0..10 {
            let _ = tokio::time::timeout(SECOND / 100, turns.take(MIB / 2)).await;
        }
        turns.take(MIB / 2).await;
        assert!(began.elapsed() < SECOND);
    }
}
