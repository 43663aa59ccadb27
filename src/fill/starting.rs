//! Beginning a fill, or joining the one that somebody began: one a digest, whoever asks; and a second where the
//! first asks another upstream, which does not answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::FillError;
use super::filling::{Filling, Slot};
use super::flow::{Attendance, Flow};
use super::front::{Front, Phase, TAIL};
use super::proof::{KnownSize, Pass};
use super::{Asked, Fills, Running};
use crate::access::Turn;
use crate::oci::Digest;
use crate::telemetry::Outcome;

/// For how long a fill that asks another upstream is waited for, once it asks, before one's own is asked as well: of
/// one that does not answer nobody knows for how long. Where it does in the end, the blob comes twice.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// A fill that can be answered from.
pub(super) struct Begun {
    pub(super) outcome: Outcome,
    pub(super) size: u64,
    pub(super) attendance: Attendance,
}

/// What is to be filled.
pub(super) struct Wanted<'a> {
    pub(super) digest: Digest,
    pub(super) size: KnownSize,
    /// Not by this one, which goes on for whoever waits for it.
    pub(super) not: Option<&'a Arc<Flow>>,
}

/// A fill that was begun or joined.
pub(super) struct Started {
    pub(super) outcome: Outcome,
    pub(super) attendance: Attendance,
    /// Whom it asks.
    pub(super) asked: Asked,
    /// Takes a turn for it from others than who began it, for as long as it waits for one.
    turns: mpsc::Sender<Turn>,
    /// See [`Running`].
    passed: Option<Arc<Flow>>,
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
        let mut given_up = None;
        loop {
            let mine = self.shared.asked(&pass.repo)?;
            let want = Wanted {
                digest: pass.digest,
                size: pass.size,
                not: given_up.as_ref(),
            };
            let Some(started) = self.start(&mine, &want, Slot::Wanted(client)) else {
                return Ok(None);
            };
            let Started {
                outcome,
                attendance,
                asked,
                turns,
                passed,
            } = started;
            let flow = Arc::clone(attendance.flow());
            let is_in_vain = async {
                self.until_in_turn(outcome, &turns, client).await;
                if asked.upstream.is(&mine.upstream) {
                    std::future::pending().await
                }
                if let Some(passed) = passed {
                    passed.until_ended().await;
                }
                sleep(ELSEWHERE).await;
            };
            let begun = tokio::select! {
                biased;
                begun = begun(attendance, deadline) => begun,
                () = is_in_vain => {
                    given_up = Some(flow);
                    continue;
                }
            };
            match begun {
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

    /// Returns once a fill has its turn: that of whoever began it, or of a client that joined, whichever comes first.
    async fn until_in_turn(
        &self,
        outcome: Outcome,
        turns: &mpsc::Sender<Turn>,
        client: Option<IpAddr>,
    ) {
        tokio::select! {
            () = turns.closed() => return,
            turn = self.shared.slots.take(client), if outcome == Outcome::Joined => {
                // Where another was first, this one goes back.
                let _ = turns.try_send(turn);
            }
        }
        turns.closed().await;
    }

    /// Begins a fill, or joins the one that somebody began. `None` if
    /// the blob is on disk by now: a fill leaves the map after the blob was kept, so who looked into the
    /// store a moment too early does not fetch it once more.
    pub(super) fn start(&self, mine: &Asked, want: &Wanted<'_>, slot: Slot) -> Option<Started> {
        let Wanted { digest, size, not } = *want;
        let origin = self.shared.origin(mine);
        let mut running = self.shared.running();
        if let Some(fill) = running.get(&digest)
            && not.is_none_or(|flow| !Arc::ptr_eq(flow, &fill.flow))
            && let Some(attendance) = fill.flow.join()
        {
            return Some(Started {
                outcome: Outcome::Joined,
                attendance,
                asked: fill.asked.clone(),
                turns: fill.turns.clone(),
                passed: fill.passed.clone(),
            });
        }
        if self.shared.store.blob_now(&digest).is_some() {
            return None;
        }
        let passed = running.remove(&digest).map(|running| running.flow);
        let passed = passed.filter(|flow| flow.is_under_way());
        let flow = Flow::new(digest, Front::connecting(), None);
        let (turns, lent) = mpsc::channel(1);
        running.insert(
            digest,
            Running {
                asked: mine.clone(),
                flow: Arc::clone(&flow),
                turns: turns.clone(),
                passed: passed.clone(),
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
        filling.launch(Arc::clone(&self.shared), slot, lent);
        Some(Started {
            outcome: Outcome::Miss,
            attendance,
            asked: mine.clone(),
            turns,
            passed,
        })
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
