//! Whether the storage answers that the registry redirects to. It is not the registry's host, and may be
//! away where that one answers; nothing is held back for it, it is only told.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::breaker::{LIMIT, Outage, weight};
use super::error::UpstreamError;
use super::meter::Meter;

/// What is known of an upstream's storage.
pub(super) struct Storage {
    state: Mutex<State>,
    meter: Meter,
}

#[derive(Default)]
struct State {
    /// The weight of the failures since the last answer.
    failures: u32,
    outage: Option<Outage>,
}

impl Storage {
    pub(super) fn new(meter: Meter) -> Self {
        Self {
            state: Mutex::default(),
            meter,
        }
    }

    /// Since when it does not answer and why, as of the last that was asked of it.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.with(|state| state.outage.clone())
    }

    /// It answered, whatever the answer.
    pub(super) fn answered(&self) {
        let was_away = self.with(|state| {
            state.failures = 0;
            state.outage.take().is_some()
        });
        if was_away {
            self.meter.storage(false);
            tracing::info!(upstream.name = %self.meter.upstream(), "storage answers again");
        }
    }

    /// It did not answer. As with the registry, one unlucky question is not enough.
    pub(super) fn failed(&self, error: &UpstreamError) {
        let is_new = self.with(|state| {
            state.failures = state.failures.saturating_add(weight(error));
            if state.outage.is_some() || state.failures < LIMIT {
                return false;
            }
            state.outage = Some(Outage {
                since: SystemTime::now(),
                cause: error.clone(),
            });
            true
        });
        if is_new {
            self.meter.storage(true);
            tracing::warn!(upstream.name = %self.meter.upstream(), %error, "storage does not answer");
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
