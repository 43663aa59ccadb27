//! A watch that stands still while the machine is short of what it should give.

use std::fs;
use std::time::{Duration, Instant};

/// What Linux counts as time in which somebody had to wait, in microseconds since it started.
const PRESSURES: [&str; 3] = [
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
];

/// Tells how long something took of the program's own accord: moments in which anything on this machine waited
/// for a processor, for the disk or for memory do not count, nor those in which the host of a virtual machine
/// gave it no processor.
///
/// On a machine that does nothing else this is nearly all of the time, and there a bound holds the program to
/// its promise. On one that has more to do than it can, hardly any time passes here, and a bound says nothing.
/// Where the kernel does not tell, all time counts.
#[derive(Debug)]
pub struct Stopwatch {
    began: Instant,
    waited: Duration,
}

impl Stopwatch {
    /// From now on.
    pub fn start() -> Self {
        Self {
            waited: waited(),
            began: Instant::now(),
        }
    }

    /// What has passed.
    pub fn took(&self) -> Duration {
        let passed = self.began.elapsed();
        passed.saturating_sub(waited().saturating_sub(self.waited))
    }
}

/// How long somebody has waited since the machine started.
fn waited() -> Duration {
    let of = |file: &&str| -> Option<u64> {
        let text = fs::read_to_string(file).ok()?;
        let some = text.lines().find(|line| line.starts_with("some "))?;
        some.rsplit_once("total=")?.1.parse().ok()
    };
    Duration::from_micros(PRESSURES.iter().filter_map(of).sum()) + stolen()
}

/// How long a processor of this machine had something to do and was none, by `steal` of proc(5).
fn stolen() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let steal = all.and_then(|fields| fields.split_whitespace().nth(7));
    let ticks: u64 = steal.and_then(|ticks| ticks.parse().ok()).unwrap_or(0);
    // A hundred a second, whatever the kernel's own are.
    Duration::from_millis(10 * ticks)
}
