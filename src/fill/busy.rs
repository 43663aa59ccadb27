//! Whether what holds a fill back is ourselves.

use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// The share of its time from which a part of ours counts as the limit: at twice the speed it would need
/// more than all of it.
const MOST: f64 = 0.6;

/// What this process, and the way to the disk of one fill, had to do since it was last asked.
#[derive(Debug)]
pub(super) struct Busy {
    /// How many processors there are for us.
    processors: f64,
    looked: Instant,
    /// What all threads had used of them by then.
    used: Duration,
    /// How long lanes had waited for the disk and the hash by then.
    waited: Duration,
}

impl Busy {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            processors: available_parallelism().map_or(1, NonZero::get) as f64,
            looked: now,
            used: used(),
            waited: Duration::ZERO,
        }
    }

    /// Whether processors or the way to the disk were busy for most of the time since the last look.
    /// `waited` is how long one lane waited for the disk and the hash in all.
    pub(super) fn is_limit(&mut self, now: Instant, waited: Duration) -> bool {
        let used = used();
        let time = (now - self.looked).as_secs_f64();
        let processors = (used - self.used).as_secs_f64() / self.processors;
        let landing = (waited - self.waited).as_secs_f64();
        (self.looked, self.used, self.waited) = (now, used, waited);
        processors > time * MOST || landing > time * (1.0 - MOST)
    }
}

/// The processor time of all threads of this process.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
