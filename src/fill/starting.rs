//! Beginning a fill, or joining the one that somebody began: one a digest, whoever asks; and another beside it
//! where it asks another upstream, which does not answer. At most one for each upstream, then.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::FillError;
use super::filling::{Filling, Slot};
use super::flow::{Attendance, Flow};
use super::front::{Front, Phase};
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
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) size: KnownSize,
    /// Whether those that ask another upstream, which does not answer, have been waited for. They go on for whoever
    /// waits for them.
    pub(super) has_waited: bool,
}

/// A fill that was begun or joined.
pub(super) struct Started {
    pub(super) outcome: Outcome,
    pub(super) attendance: Attendance,
    /// Whom it asks.
    pub(super) asked: Asked,
    /// Takes a turn for it from others than who began it, for as long as it waits for one.
    turns: mpsc::Sender<Turn>,
}

/// How willingly a fill is joined, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It can be answered from.
    Begun,
    /// It asks the upstream that would be asked anyway.
    AsksTheSame,
    AsksAnother,
}

impl Running {
    fn standing(&self, mine: &Asked) -> Standing {
        if self.flow.is_begun() {
            Standing::Begun
        } else if self.asked.upstream.is(&mine.upstream) {
            Standing::AsksTheSame
        } else {
            Standing::AsksAnother
        }
    }
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
        let mut has_waited = false;
        loop {
            let beside = self.shared.beside.subscribe();
            let mine = self.shared.asked_by(pass)?;
            let want = Wanted {
                digest: pass.digest,
                size: pass.size,
                has_waited,
            };
            let Some(started) = self.start(&mine, &want, Slot::Wanted(client)) else {
                return Ok(None);
            };
            let Started {
                outcome,
                attendance,
                asked,
                turns,
            } = started;
            let flow = Arc::clone(attendance.flow());
            let is_in_vain = async {
                self.until_in_turn(outcome, &turns, client).await;
                if asked.upstream.is(&mine.upstream) {
                    std::future::pending().await
                }
                sleep(ELSEWHERE).await;
            };
            let begun = tokio::select! {
                biased;
                begun = begun(attendance, deadline) => Some(begun),
                () = self.until_another_has_begun(&flow, beside) => None,
                () = is_in_vain => None,
            };
            let Some(begun) = begun else {
                has_waited = true;
                continue;
            };
            match begun {
                // A no to another repository is none to this one. That fill is off the map by now.
                Err(error) if error.is_of_another(&asked, &mine) => {}
                // It made way for what stands in, which here nothing does.
                Err(error) if mine.stays && !asked.stays && error.wants_another() => {}
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

    /// Returns once a fill of the same blob other than this one can be answered from. `beside` tells of those that
    /// begin.
    async fn until_another_has_begun(&self, one: &Arc<Flow>, mut beside: watch::Receiver<()>) {
        loop {
            let others: Vec<_> = {
                let running = self.shared.running();
                let fills = running.get(&one.digest).into_iter().flatten();
                let others = fills.map(|fill| &fill.flow);
                let others = others.filter(|flow| !Arc::ptr_eq(flow, one) && !flow.is_given_up());
                others.cloned().collect()
            };
            tokio::select! {
                () = any_begun(&others) => return,
                // The sender is `self`.
                _ = beside.changed() => {}
            }
        }
    }

    /// Begins a fill, or joins one that somebody began. `None` if
    /// the blob is on disk by now: a fill leaves the map after the blob was kept, so who looked into the
    /// store a moment too early does not fetch it once more.
    pub(super) fn start(&self, mine: &Asked, want: &Wanted, slot: Slot) -> Option<Started> {
        let Wanted {
            digest,
            size,
            has_waited,
        } = *want;
        let origin = self.shared.origin(mine);
        let mut running = self.shared.running();
        let fills = running.entry(digest).or_default();
        // Seen once: while it is looked at one may begin to be answered.
        let seen: Vec<_> = fills
            .iter()
            .map(|fill| (fill.standing(mine), fill))
            .collect();
        let join = |standing| join(&seen, standing);
        let joined = join(Standing::Begun);
        if joined.is_none() && self.shared.store.blob_now(&digest).is_some() {
            if fills.is_empty() {
                running.remove(&digest);
            }
            return None;
        }
        let joined = joined.or_else(|| join(Standing::AsksTheSame));
        let joined = joined.or_else(|| join(Standing::AsksAnother).filter(|_| !has_waited));
        if let Some((fill, attendance)) = joined {
            return Some(Started {
                outcome: Outcome::Joined,
                attendance,
                asked: fill.asked.clone(),
                turns: fill.turns.clone(),
            });
        }
        let flow = Flow::new(digest, Front::connecting(), None);
        let (turns, lent) = mpsc::channel(1);
        fills.push(Running {
            asked: mine.clone(),
            flow: Arc::clone(&flow),
            turns: turns.clone(),
        });
        let is_beside = fills.len() > 1;
        drop(running);
        if is_beside {
            self.shared.beside.send_replace(());
        }
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
        })
    }
}

/// Joins the fill of this standing that has come furthest, but none that has been given up.
fn join<'a>(
    fills: &[(Standing, &'a Running)],
    standing: Standing,
) -> Option<(&'a Running, Attendance)> {
    let fills = fills.iter().filter(|(of, _)| *of == standing);
    let mut fills: Vec<_> = fills.map(|(_, fill)| *fill).collect();
    fills.sort_by_key(|fill| Reverse(fill.flow.at_hand()));
    let mut fills = fills.into_iter();
    fills.find_map(|fill| Some((fill, fill.flow.join()?)))
}

/// Waits for the head of the upstream's answer, and for the verdict on a blob that is sent only when
/// verified, so that what fails so far is still an answer of its own.
async fn begun(attendance: Attendance, deadline: Instant) -> Result<(u64, Attendance), FillError> {
    let mut front = attendance.flow().subscribe();
    let ready = front.wait_for(|front| front.is_begun() || matches!(front.phase, Phase::Failed(_)));
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

/// Returns once one of these can be answered from.
async fn any_begun(flows: &[Arc<Flow>]) {
    let begun = flows.iter().map(|flow| flow.until_begun());
    if begun
        .collect::<FuturesUnordered<_>>()
        .next()
        .await
        .is_none()
    {
        std::future::pending().await
    }
}
