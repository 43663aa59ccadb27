//! Whether the storage answers that the registry redirects to. It is not the registry's host, and may be
//! away where that one answers. It is told, and what another upstream has comes from there meanwhile, so somebody looks
//! whether it answers again; nothing else is held back for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::breaker::{LIMIT, Outage, weight};
use super::error::UpstreamError;
use super::meter::Meter;

/// Within which a look at storage that does not answer has an answer: one that hangs must not keep the next from
/// finding the way. Longer than a connection takes at most.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(6);
/// Between the end of one look and the next.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What is known of an upstream's storage.
pub(super) struct Storage {
    state: Mutex<State>,
    /// Held while somebody looks whether it answers again.
    looking: Arc<Semaphore>,
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
            looking: Arc::new(Semaphore::new(1)),
            meter,
        }
    }

    /// Since when it does not answer and why, as of the last that was asked of it.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.with(|state| state.outage.clone())
    }

    /// The turn of who looks whether it answers again; `None` while another has it.
    pub(super) fn look(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.looking).try_acquire_owned().ok()
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
