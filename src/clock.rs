//! Wall time as a value.
//!
//! Invariant: whoever compares dates is given a [`Clock`]; nobody asks the system. Deadlines and
//! lifetimes are not its business: they use tokio's monotonic clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// 2025-01-01: before this program was made.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// The earliest time that can be now. A clock that shows less was never set; signed requests and
/// certificates fail with it.
pub fn earliest() -> SystemTime {
    SystemTime::UNIX_EPOCH + EARLIEST
}

/// The time of day. Cloning is cheap; clones of a [`Clock::settable`] one move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// `None` for the system's clock.
    set: Option<Arc<Mutex<SystemTime>>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `now` until it is moved, for tests.
    pub fn settable(now: SystemTime) -> Self {
        Self {
            set: Some(Arc::new(Mutex::new(now))),
        }
    }

    /// What time it is.
    pub fn now(&self) -> SystemTime {
        match &self.set {
            None => SystemTime::now(),
            Some(set) => *set.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// How long ago `then` was; zero for the future, as after a correction of the clock.
    pub fn since(&self, then: SystemTime) -> Duration {
        self.now().duration_since(then).unwrap_or_default()
    }

    /// Moves a settable clock to `now`. The system's clock stays as it is.
    pub fn set(&self, now: SystemTime) {
        if let Some(set) = &self.set {
            *set.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }

    /// Moves a settable clock forward. The system's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(set) = &self.set {
            *set.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_settable_clock_move_together() {
        let clock = Clock::settable(SystemTime::UNIX_EPOCH);
        let other = clock.clone();
        clock.advance(Duration::from_secs(5));
        assert_eq!(other.since(SystemTime::UNIX_EPOCH), Duration::from_secs(5));
        other.set(SystemTime::UNIX_EPOCH);
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn the_future_is_not_long_ago() {
        let clock = Clock::settable(SystemTime::UNIX_EPOCH);
        let future = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(clock.since(future), Duration::ZERO);
    }

    #[test]
    fn the_system_clock_cannot_be_moved() {
        let clock = Clock::system();
        clock.set(SystemTime::UNIX_EPOCH);
        clock.advance(Duration::from_secs(5));
        assert!(clock.since(SystemTime::UNIX_EPOCH) > Duration::from_secs(1_000_000_000));
    }
}
