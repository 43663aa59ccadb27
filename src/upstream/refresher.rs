//! The token engine: one refresher for each thing that tokens are obtained for.
//!
//! Invariants: at most one refresh is under way, in a task of its own, however many wait for it and
//! whoever leaves; a valid token is kept until a better one is in hand; an expired one is never handed
//! out. Knows nothing of AWS or of HTTP challenges: those are [`TokenSource`]s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::error::{OddToken, TokenError};
use super::meter::TokenMeter;
use super::origin::Origin;
use super::token::Token;

/// Waits between failed refreshes double from the first to the second; with jitter the longest stays
/// under the 30 s within which a returned token service has to be noticed.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// A token refused upstream is replaced no more often than this, so that a registry that refuses every
/// token does not turn requests into token calls one to one.
const MIN_REPLACE_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts when the link has just returned, or may have.
const SOON: Duration = Duration::from_millis(500);
/// An attempt that takes longer was begun in an outage, if there was one.
const USUAL: Duration = Duration::from_secs(1);
/// Obtains tokens; the one thing about credentials that cannot run on loopback.
pub(super) trait TokenSource: Send + Sync + 'static {
    /// One attempt. The caller bounds it in time and repeats it.
    fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>>;
}

/// What a source obtained.
pub(super) struct IssuedToken {
    /// The value of `Authorization`.
    pub(super) authorization: HeaderValue,
    /// How long it lives from now on.
    pub(super) life: Duration,
}

/// What is known about an upstream's token, without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStatus {
    /// When the token in hand expires; `None` without one that upstream takes.
    pub valid_until: Option<SystemTime>,
    /// Since when refreshes fail, and why the last did.
    pub failing: Option<(SystemTime, TokenError)>,
}

/// Keeps one token.
#[derive(Clone)]
pub(super) struct Refresher {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn TokenSource>,
    origin: Origin,
    /// For one attempt.
    timeout: Duration,
    state: Mutex<State>,
    /// Ticks whenever a refresh ends.
    ended: watch::Sender<u64>,
    meter: TokenMeter,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    /// Upstream refused the token in hand.
    refused: bool,
    refreshing: Option<Attempt>,
    /// Attempts so far.
    attempts: u64,
    failures: u32,
    failing: Option<(SystemTime, TokenError)>,
    /// Not before this; set by failures.
    next_attempt: Option<Instant>,
    /// When the last attempt failed.
    failed: Option<Instant>,
}

impl State {
    fn has(&self, token: &Arc<Token>) -> bool {
        let mut current = self.token.iter();
        current.any(|current| Arc::ptr_eq(current, token))
    }

    /// There is a token that upstream takes, as far as is known.
    fn is_equipped(&self) -> bool {
        !self.refused && self.token.as_ref().is_some_and(|token| token.is_usable())
    }

    /// Whoever asks now is told why there is no token, and waits for none. A service that could not be reached
    /// a while ago may be back, and one that is not says so at once: that is worth another attempt.
    fn is_held_back(&self) -> bool {
        let is_early = self.next_attempt.is_some_and(|next| Instant::now() < next);
        let was_away = matches!(self.failing, Some((_, TokenError::Unreachable)));
        let is_long_ago = self.failed.is_some_and(|failed| failed.elapsed() >= SOON);
        is_early && !(was_away && is_long_ago)
    }
}

/// The refresh under way.
struct Attempt {
    number: u64,
    began: Instant,
    task: AbortHandle,
}

impl Refresher {
    /// A refresher without a token; nothing happens until one is asked for.
    pub(super) fn new(
        source: impl TokenSource,
        origin: Origin,
        timeout: Duration,
        meter: TokenMeter,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                source: Box::new(source),
                origin,
                timeout,
                state: Mutex::default(),
                ended: watch::Sender::new(0),
                meter,
            }),
        }
    }

    /// The token in hand, or the next one if it comes before `deadline`.
    ///
    /// # Errors
    /// When there is no valid token: with the reason of the last failure, at once while refreshes are
    /// held back after one. Where the service could not be reached, that is for half a second.
    ///
    /// # Cancel safety
    /// Leaving changes nothing; a refresh that was begun goes on.
    pub(super) async fn token(&self, deadline: Instant) -> Result<Arc<Token>, TokenError> {
        self.wait_for(deadline, |_| true).await
    }

    /// A token to send where upstream rejected `sent`, or that nothing was sent.
    ///
    /// # Errors
    /// As [`Refresher::token`].
    ///
    /// # Cancel safety
    /// As [`Refresher::token`].
    pub(super) async fn instead_of(
        &self,
        sent: Option<&Arc<Token>>,
        deadline: Instant,
    ) -> Result<Arc<Token>, TokenError> {
        match sent {
            Some(sent) => self.replace(sent, deadline).await,
            None => self.token(deadline).await,
        }
    }

    /// Another token than `refused`, which upstream rejected: the current one if it is newer, otherwise
    /// the next.
    ///
    /// # Errors
    /// As [`Refresher::token`].
    ///
    /// # Cancel safety
    /// As [`Refresher::token`].
    pub(super) async fn replace(
        &self,
        refused: &Arc<Token>,
        deadline: Instant,
    ) -> Result<Arc<Token>, TokenError> {
        let is_current = {
            let mut state = self.inner.lock();
            let is_current = state.has(refused);
            state.refused |= is_current;
            is_current
        };
        if is_current {
            tokio::time::sleep_until((refused.obtained() + MIN_REPLACE_INTERVAL).min(deadline))
                .await;
        }
        self.wait_for(deadline, |token| !Arc::ptr_eq(token, refused))
            .await
    }

    /// Whether `token` is the one in hand, and was obtained no longer ago than `lately`.
    pub(super) fn has_just(&self, token: &Arc<Token>, lately: Duration) -> bool {
        self.inner.lock().has(token) && token.obtained().elapsed() < lately
    }

    async fn wait_for(
        &self,
        deadline: Instant,
        is_wanted: impl Fn(&Arc<Token>) -> bool,
    ) -> Result<Arc<Token>, TokenError> {
        let mut ended = self.inner.ended.subscribe();
        let mut waited = false;
        loop {
            ended.mark_unchanged();
            {
                let mut state = self.inner.lock();
                if let Some(token) = &state.token
                    && token.is_usable()
                    && is_wanted(token)
                {
                    return Ok(Arc::clone(token));
                }
                if state.refreshing.is_none() && (waited || state.is_held_back()) {
                    let reason = state.failing.as_ref().map(|(_, reason)| *reason);
                    return Err(reason.unwrap_or(TokenError::Pending));
                }
                self.inner.begin(&mut state);
            }
            waited = true;
            match tokio::time::timeout_at(deadline, ended.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    let state = self.inner.lock();
                    let reason = state.failing.as_ref().map(|(_, reason)| *reason);
                    return Err(reason.unwrap_or(TokenError::Pending));
                }
            }
        }
    }

    /// Refreshes ahead of expiry, for ever: at half of the token's life as AWS's own tools do, with
    /// jitter so that a fleet does not ask at once, and after failures with growing waits.
    ///
    /// # Cancel safety
    /// Dropping it stops refreshing ahead; tokens are then obtained when asked for.
    pub(super) async fn keep_fresh(&self) {
        let mut ended = self.inner.ended.subscribe();
        loop {
            ended.mark_unchanged();
            let due = self.inner.due();
            tokio::select! {
                () = tokio::time::sleep_until(due) => {
                    self.inner.begin(&mut self.inner.lock());
                    // The sender lives in `inner`, so this ends with the refresh.
                    let _ = ended.changed().await;
                }
                _ = ended.changed() => {}
            }
        }
    }

    /// Returns when there is a token. Until then a service that could not be reached is asked again several
    /// times a second; one that answered is left its time. To be called when the link has returned: an
    /// attempt that has waited for longer than usual is taken for lost with the link.
    ///
    /// # Cancel safety
    /// Leaving changes nothing; a refresh that was begun goes on.
    pub(super) async fn obtain_soon(&self) {
        let mut ended = self.inner.ended.subscribe();
        self.inner.begin_slow_anew();
        loop {
            {
                let mut state = self.inner.lock();
                if state.is_equipped() {
                    return;
                }
                let is_held_back = state.next_attempt.is_some_and(|next| Instant::now() < next);
                let is_of_the_link = state
                    .failing
                    .is_some_and(|(_, reason)| reason.is_of_the_link());
                if is_of_the_link || !is_held_back {
                    self.inner.begin(&mut state);
                }
            }
            let tick = Instant::now() + SOON;
            while tokio::time::timeout_at(tick, ended.changed()).await.is_ok() {
                if self.inner.lock().is_equipped() {
                    return;
                }
            }
        }
    }

    pub(super) fn status(&self) -> TokenStatus {
        let state = self.inner.lock();
        let now = Instant::now();
        TokenStatus {
            valid_until: state
                .token
                .as_ref()
                .filter(|_| state.is_equipped())
                .map(|token| SystemTime::now() + token.expires().saturating_duration_since(now)),
            failing: state.failing,
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next refresh ahead of expiry is due.
    fn due(&self) -> Instant {
        let state = self.lock();
        let wanted = match &state.token {
            Some(token) if token.is_usable() => {
                token.obtained() + token.life().mul_f64(0.45 + 0.1 * fastrand::f64())
            }
            _ => Instant::now(),
        };
        state.next_attempt.map_or(wanted, |next| wanted.max(next))
    }

    /// Starts a refresh in its own task unless one runs.
    fn begin(self: &Arc<Self>, state: &mut State) {
        if state.refreshing.is_some() {
            return;
        }
        state.attempts += 1;
        let refresh = Refresh {
            inner: Arc::clone(self),
            number: state.attempts,
            outcome: None,
        };
        state.refreshing = Some(Attempt {
            number: state.attempts,
            began: Instant::now(),
            task: tokio::spawn(refresh.run()).abort_handle(),
        });
    }

    /// Ends an attempt that takes longer than usual, which has no outcome, and makes another in its place: a
    /// token in hand, with which nobody asks for the next, is renewed by it all the same.
    fn begin_slow_anew(self: &Arc<Self>) {
        let mut state = self.lock();
        let slow = state
            .refreshing
            .take_if(|attempt| attempt.began.elapsed() > USUAL);
        let Some(slow) = slow else {
            return;
        };
        self.begin(&mut state);
        drop(state);
        slow.task.abort();
    }

    /// The end of attempt `number`, unless it was given up.
    fn settle(&self, number: u64, outcome: Result<IssuedToken, TokenError>) {
        let outcome = outcome.and_then(|issued| {
            if issued.life.is_zero() {
                Err(TokenError::Odd(OddToken::Expired))
            } else {
                Ok(issued)
            }
        });
        let mut state = self.lock();
        if state.refreshing.as_ref().map(|attempt| attempt.number) != Some(number) {
            return;
        }
        state.refreshing = None;
        match outcome {
            Ok(issued) => {
                let token = Token::new(issued.authorization, self.origin.clone(), issued.life);
                self.meter.refreshed(SystemTime::now() + token.life());
                if let Some((_, reason)) = state.failing {
                    tracing::info!(upstream.name = %self.meter.upstream(), last = %reason, "tokens are obtained again");
                }
                *state = State {
                    token: Some(Arc::new(token)),
                    attempts: state.attempts,
                    ..State::default()
                };
            }
            Err(reason) => {
                self.meter.failed();
                // Told once for each reason: a host without credentials asks for as long as it takes.
                if state.failing.is_none_or(|(_, known)| known != reason) {
                    tracing::warn!(upstream.name = %self.meter.upstream(), error = %reason, "no new token");
                }
                let since = state
                    .failing
                    .map_or_else(SystemTime::now, |(since, _)| since);
                state.failing = Some((since, reason));
                let wait = FIRST_BACKOFF
                    .saturating_mul(1 << state.failures.min(10))
                    .min(MAX_BACKOFF);
                state.failures = state.failures.saturating_add(1);
                state.failed = Some(Instant::now());
                state.next_attempt =
                    Some(Instant::now() + wait.mul_f64(0.75 + 0.5 * fastrand::f64()));
            }
        }
        drop(state);
        self.ended
            .send_modify(|ended| *ended = ended.wrapping_add(1));
    }
}

/// A refresh under way; settles when it ends in whatever way, a panic of the source included.
struct Refresh {
    inner: Arc<Inner>,
    number: u64,
    outcome: Option<Result<IssuedToken, TokenError>>,
}

impl Refresh {
    async fn run(mut self) {
        let fetched = tokio::time::timeout(self.inner.timeout, self.inner.source.fetch()).await;
        self.outcome = Some(fetched.unwrap_or(Err(TokenError::TooSlow)));
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Err(TokenError::Failing));
        self.inner.settle(self.number, outcome);
    }
}

#[cfg(test)]
mod tests;
