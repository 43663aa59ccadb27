//! Beginning a fill, or joining the one that somebody began: one a digest, whoever asks.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::error::FillError;
use super::filling::{Filling, Slot};
use super::flow::{Attendance, Flow};
use super::front::{Front, Phase, TAIL};
use super::proof::{KnownSize, Pass};
use super::{Asked, Fills, Running};
use crate::oci::Digest;
use crate::telemetry::Outcome;

/// A fill that can be answered from.
pub(super) struct Begun {
    pub(super) outcome: Outcome,
    pub(super) size: u64,
    pub(super) attendance: Attendance,
}

impl Fills {
    /// Begins a fill or joins one, and waits until it can be answered from. `None` if the blob was kept
    /// meanwhile.
    pub(super) async fn fill(
        &self,
        pass: &Pass,
        client: Option<IpAddr>,
    ) -> Result<Option<Begun>, FillError> {
        let deadline = Instant::now() + self.shared.options.load().head_deadline;
        loop {
            let mine = self.shared.asked(&pass.repo)?;
            let slot = Slot::Wanted(client);
            let Some((outcome, attendance, asked)) =
                self.start(&mine, pass.digest, pass.size, slot)
            else {
                return Ok(None);
            };
            match begun(attendance, deadline).await {
                // A no to another repository is none to this one. That fill is off the map by now.
                Err(error) if error.is_of_another(&asked, &mine) => {}
                Err(error) => return Err(error),
                Ok((size, attendance)) => {
                    return Ok(Some(Begun {
                        outcome,
                        size,
                        attendance,
                    }));
                }
            }
        }
    }

    /// Begins a fill, or joins the one that somebody began, and tells whom it asks. `None` if
    /// the blob is on disk by now: a fill leaves the map after the blob was kept, so who looked into the
    /// store a moment too early does not fetch it once more.
    pub(super) fn start(
        &self,
        mine: &Asked,
        digest: Digest,
        size: KnownSize,
        slot: Slot,
    ) -> Option<(Outcome, Attendance, Asked)> {
        let origin = self.shared.origin(mine);
        let mut running = self.shared.running();
        if let Some(fill) = running.get(&digest)
            && let Some(attendance) = fill.flow.join()
        {
            return Some((Outcome::Joined, attendance, fill.asked.clone()));
        }
        if self.shared.store.blob_now(&digest).is_some() {
            return None;
        }
        let flow = Flow::new(digest, Front::connecting(), None);
        running.insert(
            digest,
            Running {
                asked: mine.clone(),
                flow: Arc::clone(&flow),
            },
        );
        drop(running);
        let attendance = flow.attend();
        let filling = Filling {
            origin: origin.wanted_by(flow.interest()),
            flow,
            size,
            store: self.shared.store.clone(),
            buffers: self.shared.buffers.clone(),
            patience: self.shared.options.load().patience,
            spare: Arc::clone(&self.shared.spare_lanes),
            metrics: self.shared.metrics.clone(),
        };
        filling.launch(Arc::clone(&self.shared), slot);
        Some((Outcome::Miss, attendance, mine.clone()))
    }
}

/// Waits for the head of the upstream's answer, and for the verdict on a blob that is sent only when
/// verified, so that what fails so far is still an answer of its own.
async fn begun(attendance: Attendance, deadline: Instant) -> Result<(u64, Attendance), FillError> {
    let mut front = attendance.flow().subscribe();
    let ready = front.wait_for(|front| match front.phase {
        Phase::Connecting => false,
        Phase::Running { len } => len > TAIL,
        Phase::Verified { .. } | Phase::Failed(_) => true,
    });
    let phase = match timeout_at(deadline, ready).await {
        Ok(Ok(front)) => front.phase.clone(),
        Ok(Err(_)) => return Err(FillError::Lost),
        Err(_elapsed) => return Err(FillError::TooSlow),
    };
    match phase {
        Phase::Running { len } | Phase::Verified { len } => Ok((len, attendance)),
        Phase::Failed(error) => Err(error),
        Phase::Connecting => Err(FillError::TooSlow),
    }
}
