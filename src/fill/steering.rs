//! How many connections one blob is worth. Pure.
//!
//! One connection is enough where the line is the limit; where each connection is limited by itself,
//! as object storage does it, several are faster. Which it is shows only by trying: twice as many, for
//! a moment, and back if the whole has not become clearly faster.

use std::time::Duration;

use tokio::time::Instant;

/// The most connections for one blob. What object storage gives one, times this, fills the lines that
/// caches stand on; more would only crowd out others.
pub(super) const MOST_LANES: usize = 8;

/// How long new connections are given to come up to speed, and how long a rate is then measured. Shorter
/// is misled by jitter; longer is a pity for each blob that several connections would help.
const SETTLE: Duration = Duration::from_millis(250);
const WINDOW: Duration = Duration::from_millis(250);

/// By how much the whole must be faster to be worth twice the connections: well above jitter, well below
/// the twice that a limit for each connection gives.
const WORTH: f64 = 1.3;

/// How long after a trial that did not help the next one comes, and how long at most: each later one
/// waits twice as long.
const REST: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(64));

/// What decides, from what has arrived, how many connections there should be.
#[derive(Debug)]
pub(super) struct Steering {
    width: usize,
    state: State,
    /// The number of connections before the trial under way, and their rate together, bytes a second.
    before: Option<(usize, f64)>,
    rest: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing is measured until then.
    Waiting(Instant),
    /// Since then, when so much had arrived.
    Measuring(Instant, u64),
}

impl Steering {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            width: 1,
            state: State::Waiting(now + SETTLE),
            before: None,
            rest: REST.0,
        }
    }

    /// How many there should be now.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Whether more than one connection are known to help.
    pub(super) fn is_sure(&self) -> bool {
        self.width > 1 && self.before.is_none_or(|(width, _)| width > 1)
    }

    /// `arrived` bytes have come in all. Returns the rate in bytes a second when more connections are
    /// about to be tried: it tells how large their parts should be.
    pub(super) fn tick(&mut self, now: Instant, arrived: u64) -> Option<f64> {
        match self.state {
            State::Waiting(until) if now < until => None,
            State::Waiting(_) => {
                self.state = State::Measuring(now, arrived);
                None
            }
            State::Measuring(since, _) if now < since + WINDOW => None,
            State::Measuring(since, had) => {
                let rate = (arrived - had) as f64 / (now - since).as_secs_f64();
                self.judge(now, rate)
            }
        }
    }

    fn judge(&mut self, now: Instant, rate: f64) -> Option<f64> {
        if let Some((width, before)) = self.before.take()
            && rate < before * WORTH
        {
            self.width = width;
            self.state = State::Waiting(now + self.rest);
            self.rest = (self.rest * 2).min(REST.1);
            return None;
        }
        if self.width >= MOST_LANES || rate <= 0.0 {
            self.state = State::Waiting(now + self.rest);
            return None;
        }
        self.before = Some((self.width, rate));
        self.width *= 2;
        self.state = State::Waiting(now + SETTLE);
        Some(rate)
    }

    /// Nothing can be told at present: the connections that were tried are not all there yet, or others are
    /// not worth a trial.
    pub(super) fn hold(&mut self, now: Instant) {
        self.state = State::Waiting(now + SETTLE);
    }

    /// The upstream refuses connections, or breaks them: half as many, for a long time.
    pub(super) fn refused(&mut self, now: Instant) {
        self.width = self
            .before
            .take()
            .map_or(self.width / 2, |(width, _)| width)
            .max(1);
        self.rest = REST.1;
        self.state = State::Waiting(now + self.rest);
    }

    /// More than one is not wanted at present.
    pub(super) fn one_is_enough(&mut self, now: Instant) {
        self.width = 1;
        self.before = None;
        self.state = State::Waiting(now + SETTLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(50);
    const MIB: f64 = 1024.0 * 1024.0;

    /// Runs for so long over an upstream that gives so much to so many connections; returns the largest
    /// number there was, and the last.
    fn run(steering: &mut Steering, time: Duration, rate: impl Fn(usize) -> f64) -> (usize, usize) {
        let mut now = Instant::now();
        let end = now + time;
        let (mut arrived, mut most) = (0.0, 0);
        while now < end {
            now += TICK;
            arrived += rate(steering.width()) * TICK.as_secs_f64();
            steering.tick(now, arrived as u64);
            most = most.max(steering.width());
        }
        (most, steering.width())
    }

    #[tokio::test]
    async fn a_limit_for_each_connection_is_met_with_more_of_them() {
        let mut steering = Steering::new(Instant::now());
        let soon = Duration::from_secs(3);
        let (_, width) = run(&mut steering, soon, |width| width as f64 * 10.0 * MIB);
        assert_eq!(width, MOST_LANES);
    }

    #[tokio::test]
    async fn where_the_line_is_the_limit_one_stays() {
        let mut steering = Steering::new(Instant::now());
        let tried = run(&mut steering, Duration::from_secs(3), |_| 10.0 * MIB);
        assert_eq!(tried, (2, 1));
    }

    #[tokio::test]
    async fn as_many_are_kept_as_help() {
        let mut steering = Steering::new(Instant::now());
        let rate = |width: usize| (width as f64 * 10.0 * MIB).min(25.0 * MIB);
        let (most, width) = run(&mut steering, Duration::from_secs(4), rate);
        assert_eq!(
            (most, width),
            (4, 2),
            "10 to 20 is worth it, 20 to 25 is not"
        );
    }

    #[tokio::test]
    async fn a_refusal_halves_them_for_long() {
        let mut steering = Steering::new(Instant::now());
        let rate = |width: usize| width as f64 * 10.0 * MIB;
        run(&mut steering, Duration::from_secs(3), rate);
        steering.refused(Instant::now());
        assert_eq!(steering.width(), MOST_LANES / 2);
        let (most, _) = run(&mut steering, Duration::from_secs(30), rate);
        assert_eq!(most, MOST_LANES / 2);
    }

    #[tokio::test]
    async fn a_stall_tries_nothing() {
        let mut steering = Steering::new(Instant::now());
        let tried = run(&mut steering, Duration::from_secs(3), |_| 0.0);
        assert_eq!(tried, (1, 1));
    }
}
