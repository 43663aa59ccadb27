//! Whether a certificate is within its dates.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::Pair;

/// Renewals are usually set to 30 days; less than half of that left means that they fail.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How a certificate stands to its dates. Clients refuse one that has ended or not begun; it is served
/// all the same, since they may know better than this host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Within its dates for a while to come.
    Good {
        /// Its end.
        until: SystemTime,
    },
    /// Its end is less than two weeks away.
    EndsSoon {
        /// Its end.
        until: SystemTime,
        /// What is left.
        left: Duration,
    },
    /// Its end has passed.
    Ended {
        /// Its end.
        at: SystemTime,
    },
    /// Its beginning is still to come: most likely the clock is wrong.
    NotYet {
        /// Its beginning.
        from: SystemTime,
    },
}

impl Standing {
    /// True where clients that agree with this host's clock refuse it.
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Ended { .. } | Self::NotYet { .. })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = humantime::format_rfc3339_seconds;
        match self {
            Self::Good { until } => write!(f, "valid until {}", date(*until)),
            Self::EndsSoon { until, left } => {
                let days = left.as_secs() / (24 * 60 * 60);
                write!(f, "ends in {days} days, {}", date(*until))
            }
            Self::Ended { at } => write!(f, "ended {}", date(*at)),
            Self::NotYet { from } => write!(f, "is valid only from {}", date(*from)),
        }
    }
}

impl Pair {
    /// How the certificate stands at `now`.
    pub fn standing(&self, now: SystemTime) -> Standing {
        let until = self.not_after();
        if now < self.not_before() {
            return Standing::NotYet {
                from: self.not_before(),
            };
        }
        match until.duration_since(now) {
            Err(_) => Standing::Ended { at: until },
            Ok(left) if left < ENDS_SOON => Standing::EndsSoon { until, left },
            Ok(_) => Standing::Good { until },
        }
    }
}
