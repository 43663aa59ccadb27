//! Whether the upstream answers at all: after failures in a row every question is answered at once with
//! [`UpstreamError::Away`], until a probe of our own finds that it answers again.
//!
//! Invariants: only what keeps the upstream from answering opens it, never a no, nor an answer of failure
//! that one client could bring about; an answer closes it,
//! whoever got it; while it is open somebody looks, several times a second and on fresh connections, so
//! that it closes within a second of the link's return, however long the probes before it hang. Knows
//! nothing of HTTP or tokens: those are the [`Probe`]'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{Deadline, Unreachable, UpstreamError, Wrong};
use super::meter::Meter;

/// Failures in a row, without an answer between them, that open the breaker. More than the attempts of
/// one question, so that one unlucky one does not turn others away.
pub(super) const LIMIT: u32 = 5;
/// Between the beginnings of two probes, with jitter around it.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Within which a probe has its answer. On a line that is slower nothing else works either.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// Probes under way at once. One that went into a black hole must not keep the next from finding the way.
const MAX_PROBES: usize = 10;
/// Of a question that waits for longer, a probe tells whether there is anybody to wait for; together they
/// stay within the 5 s in which a client is told.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);
const SUSPECT_TIME: Duration = Duration::from_secs(4);
/// An upstream that is slow or fails, and was found alive, is not suspected again for so long.
const TRUST: Duration = Duration::from_secs(5);
/// Over which those who waited for the return set out, so that they do not arrive as one.
const RELEASE: Duration = Duration::from_millis(400);

/// Since when an upstream cannot answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it was noticed.
    pub since: SystemTime,
    /// The failure that told.
    pub cause: UpstreamError,
}

/// Finds out whether the upstream answers again.
pub(super) trait Probe: Send + Sync + 'static {
    /// Asks once, on a connection of its own. The caller bounds it in time.
    fn knock(&self) -> BoxFuture<'_, Result<(), UpstreamError>>;

    /// Returns when there is a token to ask with, and until then sees to it that one is obtained soon.
    fn equip(&self) -> BoxFuture<'_, ()>;

    /// Everything that was connected before is not to be trusted any more.
    fn disconnect(&self);
}

/// One upstream's breaker. What it runs in the background ends with it.
pub(super) struct Breaker {
    inner: Arc<Inner>,
    _in_use: watch::Sender<()>,
}

struct Inner {
    state: watch::Sender<State>,
    has_answered: AtomicBool,
    probe: Box<dyn Probe>,
    meter: Meter,
    /// Closed when nobody asks through it any more.
    in_use: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The weight of the failures since the last answer.
    failures: u32,
    /// How many answers of failure came since the last other one. They are counted apart: one client may bring them
    /// about, and then a single lost connection is not to open it.
    failing: u32,
    outage: Option<Outage>,
    /// A suspicion is being looked into.
    suspected: bool,
    /// An answer came since that began.
    cleared: bool,
    /// Nobody is suspected before.
    trusted_until: Option<Instant>,
}

impl State {
    /// True if this opened it.
    fn failed(&mut self, error: &UpstreamError, now: SystemTime) -> bool {
        self.failures = self.failures.saturating_add(weight(error));
        if self.outage.is_some() || self.failures < LIMIT {
            return false;
        }
        self.outage = Some(Outage {
            since: now,
            cause: error.clone(),
        });
        true
    }

    /// How long it was open, if this closed it.
    fn answered(&mut self) -> Option<Outage> {
        self.failures = 0;
        self.failing = 0;
        self.cleared = true;
        self.outage.take()
    }

    /// A probe found it answering. The first failure after that opens it again: what a probe asks is not
    /// what clients ask.
    fn found(&mut self) -> Option<Outage> {
        let outage = self.answered();
        self.failures = LIMIT - 1;
        outage
    }
}

/// How much a failure says about the upstream as a whole; 0 for what is the matter of one question.
pub(super) fn weight(error: &UpstreamError) -> u32 {
    match error {
        // There is one token for everything, and connecting was tried for seconds.
        UpstreamError::NoToken(_) | UpstreamError::TooSlow(Deadline::Connect) => LIMIT,
        UpstreamError::Unreachable(
            Unreachable::Dns
            | Unreachable::Connect
            | Unreachable::Handshake
            | Unreachable::Broken
            | Unreachable::Proxy
            | Unreachable::ProxyLogin,
        )
        | UpstreamError::Failing { .. }
        | UpstreamError::TooSlow(Deadline::FirstByte)
        // Somebody else answers in its place, such as a network that wants a login.
        | UpstreamError::Wrong(Wrong::BadTls | Wrong::Intercepted) => 1,
        // Our own slots, and bodies, which have deadlines of their own.
        UpstreamError::TooSlow(Deadline::Slot | Deadline::Progress)
        | UpstreamError::Truncated
        | UpstreamError::Throttled { .. }
        | UpstreamError::BadCredentials
        | UpstreamError::Absent(_)
        | UpstreamError::Refused
        | UpstreamError::Unsupported
        | UpstreamError::Wrong(_)
        | UpstreamError::TooMuch
        | UpstreamError::ContentChanged
        | UpstreamError::IgnoredRange
        | UpstreamError::Told(_)
        | UpstreamError::Offline
        | UpstreamError::Unconfigured
        | UpstreamError::Away(_) => 0,
    }
}

/// True where the link itself is down, as far as can be told: whoever still waits for an answer waits in
/// vain.
fn is_of_the_link(error: &UpstreamError) -> bool {
    matches!(
        error,
        UpstreamError::Unreachable(_) | UpstreamError::TooSlow(_)
    )
}

fn may_be_of_the_link(cause: &UpstreamError) -> bool {
    match cause {
        UpstreamError::NoToken(reason) => reason.is_of_the_link(),
        _ => true,
    }
}

impl Breaker {
    pub(super) fn closed(probe: impl Probe, meter: Meter) -> Self {
        let (sender, in_use) = watch::channel(());
        Self {
            inner: Arc::new(Inner {
                state: watch::Sender::default(),
                has_answered: AtomicBool::new(false),
                probe: Box::new(probe),
                meter,
                in_use,
            }),
            _in_use: sender,
        }
    }

    /// Whether a question may be asked.
    ///
    /// # Errors
    /// [`UpstreamError::Away`] while it is open.
    pub(super) fn admit(&self) -> Result<(), UpstreamError> {
        match &self.inner.state.borrow().outage {
            None => Ok(()),
            Some(outage) => {
                self.inner.meter.turned_away();
                Err(away(&outage.cause))
            }
        }
    }

    /// What is known of the outage, while there is one.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.inner.state.borrow().outage.clone()
    }

    /// True once the upstream has answered, for as long as it is not known to have stopped.
    pub(super) fn is_answering(&self) -> bool {
        self.inner.has_answered.load(Ordering::Relaxed) && self.outage().is_none()
    }

    /// The upstream answered a question, whatever the answer.
    pub(super) fn answered(&self) {
        if !self.inner.has_answered.load(Ordering::Relaxed) {
            self.inner.has_answered.store(true, Ordering::Relaxed);
        }
        // The usual case takes no lock for writing.
        let is_news = {
            let state = self.inner.state.borrow();
            state.failures > 0 || state.failing > 0 || (state.suspected && !state.cleared)
        };
        if is_news {
            self.inner.close(State::answered);
        }
    }

    /// A question failed. Whether that says anything about the upstream is decided here.
    pub(super) fn failed(&self, error: &UpstreamError) {
        if !matches!(error, UpstreamError::Failing { .. }) {
            if weight(error) > 0 {
                self.inner.fail(error);
            }
        } else if self.inner.fails_too_often() {
            // There was an answer, and it may be the matter of one repository, or of what one client sends. Whoever
            // can bring it about must not have all others turned away, so a probe tells.
            self.suspect();
        }
    }

    /// Waits for the answer to a question; where it takes longer than usual, a probe tells whether in vain.
    ///
    /// # Cancel safety
    /// As that of `answer`.
    pub(super) async fn watched<T>(&self, answer: impl Future<Output = T>) -> T {
        tokio::pin!(answer);
        let mut patience = SUSPECT_AFTER;
        loop {
            if let Ok(answer) = tokio::time::timeout(patience, &mut answer).await {
                return answer;
            }
            self.suspect();
            // One that was looked into, and others were answered, says nothing of what came after those.
            patience = SUSPECT_TIME;
        }
    }

    /// A probe tells whether the upstream is there, unless that is known or being found out.
    pub(super) fn suspect(&self) {
        let now = Instant::now();
        let mut is_new = false;
        self.inner.state.send_if_modified(|state| {
            let is_trusted = state.trusted_until.is_some_and(|until| now < until);
            is_new = !(is_trusted || state.suspected || state.outage.is_some());
            if is_new {
                (state.suspected, state.cleared) = (true, false);
            }
            false
        });
        if !is_new {
            return;
        }
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let verdict = inner.knock(SUSPECT_TIME).await;
            let mut is_guilty = false;
            inner.state.send_if_modified(|state| {
                state.suspected = false;
                state.trusted_until = verdict.is_ok().then(|| Instant::now() + TRUST);
                // Where others were answered meanwhile, there is somebody, whatever becomes of probes.
                is_guilty = verdict.is_err() && !state.cleared;
                match is_guilty {
                    true => state.failures = LIMIT,
                    false => state.failing = 0,
                }
                false
            });
            if let Err(error) = verdict
                && is_guilty
            {
                inner.fail(&error);
            }
        });
    }

    /// Returns once the link is found to be down while this waits.
    pub(super) async fn link_down(&self) -> UpstreamError {
        let mut state = self.inner.state.subscribe();
        let down = state.wait_for(|state| {
            let outage = state.outage.as_ref();
            outage.is_some_and(|outage| is_of_the_link(&outage.cause))
        });
        let told = down.await.ok().and_then(|state| {
            let outage = state.outage.as_ref();
            outage.map(|outage| away(&outage.cause))
        });
        match told {
            Some(error) => error,
            // The sender lives in `self`.
            None => std::future::pending().await,
        }
    }

    /// Returns at once while the upstream answers, and otherwise once it does again, a little later for
    /// each than for another; true if it was away.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub(super) async fn answers(&self) -> bool {
        let mut state = self.inner.state.subscribe();
        if state.borrow_and_update().outage.is_none() {
            return false;
        }
        let _ = state.wait_for(|state| state.outage.is_none()).await;
        tokio::time::sleep(RELEASE.mul_f64(fastrand::f64())).await;
        true
    }
}

fn away(cause: &UpstreamError) -> UpstreamError {
    UpstreamError::Away(Box::new(cause.clone()))
}

impl Inner {
    /// Counts an answer of failure; true where a probe is to tell what it means.
    fn fails_too_often(&self) -> bool {
        let mut is_too_often = false;
        self.state.send_if_modified(|state| {
            state.failing = state.failing.saturating_add(1);
            is_too_often = state.failing.max(state.failures.saturating_add(1)) >= LIMIT;
            false
        });
        is_too_often
    }

    fn fail(self: &Arc<Self>, error: &UpstreamError) {
        let mut opened = false;
        self.state.send_if_modified(|state| {
            opened = state.failed(error, SystemTime::now());
            opened
        });
        if opened {
            tracing::warn!(upstream.name = %self.meter.upstream(), %error, "upstream does not answer");
            self.meter.breaker(true);
            self.probe.disconnect();
            tokio::spawn(Arc::clone(self).watch_for_return());
        }
    }

    fn close(&self, how: impl FnOnce(&mut State) -> Option<Outage>) {
        let mut ended = None;
        self.state.send_if_modified(|state| {
            ended = how(state);
            ended.is_some()
        });
        if let Some(outage) = ended {
            self.meter.breaker(false);
            let lasted = outage.since.elapsed().unwrap_or_default();
            tracing::info!(
                upstream.name = %self.meter.upstream(),
                last = %outage.cause,
                elapsed_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                "upstream answers again"
            );
        }
    }

    async fn knock(&self, time: Duration) -> Result<(), UpstreamError> {
        let verdict = tokio::time::timeout(time, self.probe.knock())
            .await
            .unwrap_or(Err(UpstreamError::TooSlow(Deadline::Connect)));
        self.meter.probed(verdict.is_ok());
        verdict
    }

    /// Returns once a probe came through.
    async fn find(&self) {
        let mut probes = FuturesUnordered::new();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                verdict = probes.next(), if !probes.is_empty() => {
                    if verdict == Some(Ok(())) {
                        return;
                    }
                }
                () = tokio::time::sleep_until(next), if probes.len() < MAX_PROBES => {
                    probes.push(self.knock(PROBE_TIME));
                    next = Instant::now() + PROBE_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64());
                }
            }
        }
    }

    /// Returns once the breaker is closed, by whomever.
    async fn closed(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.outage.is_none()).await;
    }

    /// Runs while it is open and in use.
    async fn watch_for_return(self: Arc<Self>) {
        let cause = self
            .state
            .borrow()
            .outage
            .clone()
            .map(|outage| outage.cause);
        let found = async {
            // Where AWS said why there is no token, the registry has nothing to add.
            if cause.is_none_or(|cause| may_be_of_the_link(&cause)) {
                self.find().await;
            }
            self.probe.equip().await;
        };
        let mut in_use = self.in_use.clone();
        tokio::select! {
            () = found => self.close(State::found),
            () = self.closed() => {}
            _ = in_use.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
