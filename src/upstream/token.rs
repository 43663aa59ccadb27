//! The token engine: one refresher for each thing that tokens are obtained for.
//!
//! Invariants: at most one refresh is under way, in a task of its own, however many wait for it and
//! whoever leaves; a valid token is kept until a better one is in hand; an expired one is never handed
//! out; a token can be attached only to requests for the origin it was obtained for. Life is counted on
//! the monotonic clock. Knows nothing of AWS or of HTTP challenges: those are [`TokenSource`]s.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Uri, header};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::error::{OddToken, TokenError};
use super::metrics::TokenMeter;
use super::origin::Origin;

/// Waits between failed refreshes double from the first to the second; with jitter the longest stays
/// under the 30 s within which a returned token service has to be noticed.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// A token refused upstream is replaced no more often than this, so that a registry that refuses every
/// token does not turn requests into token calls one to one.
const MIN_REPLACE_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts when the link has just returned.
const SOON: Duration = Duration::from_millis(500);
/// An attempt that takes longer was begun in an outage, if there was one.
const USUAL: Duration = Duration::from_secs(1);
/// Longest life that is believed; ECR's is 12 h.
const MAX_LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token is not handed out in the last part of its life, this at most, so that it does not expire on
/// its way.
const MAX_EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// The same, at least, of a token that lives for longer than twice this: services count in seconds.
const MIN_EXPIRY_MARGIN: Duration = Duration::from_secs(1);

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

/// A credential, bound to the origin it was obtained for.
pub(super) struct Token {
    authorization: HeaderValue,
    origin: Origin,
    obtained: Instant,
    expires: Instant,
}

/// The request goes elsewhere than the token may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongOrigin;

impl Token {
    /// A token for `origin` that lives for `life` from now on, at most 12 hours.
    pub(super) fn new(mut authorization: HeaderValue, origin: Origin, life: Duration) -> Self {
        authorization.set_sensitive(true);
        let obtained = Instant::now();
        Self {
            authorization,
            origin,
            obtained,
            expires: obtained + life.min(MAX_LIFE),
        }
    }

    /// Adds the credential to the headers of a request for `target`.
    ///
    /// # Errors
    /// When `target` is not at the token's origin; nothing is added.
    pub(super) fn attach(&self, target: &Uri, headers: &mut HeaderMap) -> Result<(), WrongOrigin> {
        if Origin::of(target).as_ref() != Some(&self.origin) {
            return Err(WrongOrigin);
        }
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        Ok(())
    }

    fn life(&self) -> Duration {
        self.expires - self.obtained
    }

    fn is_usable(&self) -> bool {
        let life = self.life();
        let margin = (life / 10)
            .max(MIN_EXPIRY_MARGIN.min(life / 2))
            .min(MAX_EXPIRY_MARGIN);
        Instant::now() + margin < self.expires
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("authorization", &"redacted")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
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
    /// held back after one.
    ///
    /// # Cancel safety
    /// Leaving changes nothing; a refresh that was begun goes on.
    pub(super) async fn token(&self, deadline: Instant) -> Result<Arc<Token>, TokenError> {
        self.wait_for(deadline, |_| true).await
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
            tokio::time::sleep_until((refused.obtained + MIN_REPLACE_INTERVAL).min(deadline)).await;
        }
        self.wait_for(deadline, |token| !Arc::ptr_eq(token, refused))
            .await
    }

    /// Whether `token` is the one in hand, and was obtained no longer ago than `lately`.
    pub(super) fn has_just(&self, token: &Arc<Token>, lately: Duration) -> bool {
        self.inner.lock().has(token) && token.obtained.elapsed() < lately
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
                let held_back = state.next_attempt.is_some_and(|next| Instant::now() < next);
                if state.refreshing.is_none() && (waited || held_back) {
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
        self.inner.give_up_slow();
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
                .map(|token| SystemTime::now() + token.expires.saturating_duration_since(now)),
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
                token.obtained + token.life().mul_f64(0.45 + 0.1 * fastrand::f64())
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

    /// Ends an attempt that takes longer than usual. It has no outcome.
    fn give_up_slow(&self) {
        let slow = self
            .lock()
            .refreshing
            .take_if(|attempt| attempt.began.elapsed() > USUAL);
        if let Some(attempt) = slow {
            attempt.task.abort();
        }
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
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Answers from a script, the last line for ever; each answer waits for a permit.
    #[derive(Clone)]
    struct Scripted {
        lives: Arc<Mutex<Vec<Result<Duration, TokenError>>>>,
        calls: Arc<AtomicU32>,
        gate: Arc<Semaphore>,
        /// Attempts begun now never end.
        hole: Arc<AtomicBool>,
    }

    impl Scripted {
        fn new(lives: &[Result<u64, TokenError>]) -> Self {
            let lives = lives.iter().map(|life| life.map(Duration::from_secs));
            Self {
                lives: Arc::new(Mutex::new(lives.rev().collect())),
                calls: Arc::default(),
                gate: Arc::new(Semaphore::new(1_000)),
                hole: Arc::default(),
            }
        }

        fn calls(&self) -> u32 {
            self.calls.load(Ordering::SeqCst)
        }
    }

    impl TokenSource for Scripted {
        fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>> {
            Box::pin(async move {
                let call = self.calls.fetch_add(1, Ordering::SeqCst);
                if self.hole.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                self.gate.acquire().await.unwrap().forget();
                let life = {
                    let mut lives = self.lives.lock().unwrap();
                    if lives.len() > 1 {
                        lives.pop().unwrap()
                    } else {
                        lives[0]
                    }
                }?;
                Ok(IssuedToken {
                    authorization: HeaderValue::from_str(&format!("Basic canary{call}")).unwrap(),
                    life,
                })
            })
        }
    }

    fn home() -> Origin {
        Origin::of(&Uri::from_static("https://a.example")).unwrap()
    }

    fn refresher(source: &Scripted) -> Refresher {
        Refresher::new(
            source.clone(),
            home(),
            Duration::from_secs(10),
            TokenMeter::default(),
        )
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn k04_many_waiters_share_one_call_and_leaving_changes_nothing() {
        let source = Scripted::new(&[Ok(3600)]);
        source.gate.forget_permits(1_000);
        let refresher = refresher(&source);
        let leaver = tokio::spawn({
            let refresher = refresher.clone();
            async move { refresher.token(soon()).await }
        });
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let refresher = refresher.clone();
                tokio::spawn(async move { refresher.token(soon()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        leaver.abort();
        source.gate.add_permits(1);
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
        assert_eq!(source.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn k05_old_token_serves_while_valid_and_never_after() {
        let source = Scripted::new(&[Ok(3600), Err(TokenError::Unreachable)]);
        let refresher = refresher(&source);
        let first = refresher.token(soon()).await.unwrap();
        let keeper = tokio::spawn({
            let refresher = refresher.clone();
            async move { refresher.keep_fresh().await }
        });
        tokio::time::sleep(Duration::from_secs(3000)).await;
        assert!(
            source.calls() > 10,
            "refreshes are tried from half of the life on"
        );
        assert!(Arc::ptr_eq(&first, &refresher.token(soon()).await.unwrap()));
        assert!(refresher.status().failing.is_some());
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(
            refresher.token(soon()).await.unwrap_err(),
            TokenError::Unreachable
        );
        assert_eq!(refresher.status().valid_until, None);
        // Recovery comes within 30 s by itself.
        source.lives.lock().unwrap()[0] = Ok(Duration::from_secs(3600));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(refresher.status().valid_until.is_some());
        keeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn o07_an_attempt_that_an_outage_swallowed_does_not_delay_the_next() {
        let source = Scripted::new(&[Ok(3600)]);
        let refresher = refresher(&source);
        source.hole.store(true, Ordering::SeqCst);
        let waiting = refresher.token(Instant::now() + Duration::from_secs(3));
        assert_eq!(waiting.await.unwrap_err(), TokenError::Pending);
        source.hole.store(false, Ordering::SeqCst);
        let returned = Instant::now();
        refresher.obtain_soon().await;
        assert!(returned.elapsed() <= SOON, "{:?}", returned.elapsed());
        assert!(refresher.status().valid_until.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn o07_a_service_out_of_reach_is_asked_often_once_the_link_is_back() {
        let source = Scripted::new(&[Err(TokenError::Unreachable)]);
        let refresher = refresher(&source);
        // Long enough for the longest wait between attempts.
        let keeper = tokio::spawn({
            let refresher = refresher.clone();
            async move { refresher.keep_fresh().await }
        });
        tokio::time::sleep(Duration::from_secs(600)).await;
        keeper.abort();
        let obtaining = refresher.obtain_soon();
        tokio::pin!(obtaining);
        let waited = tokio::time::timeout(Duration::from_secs(10), &mut obtaining).await;
        assert!(waited.is_err());
        source.lives.lock().unwrap()[0] = Ok(Duration::from_secs(3600));
        let back = Instant::now();
        obtaining.await;
        assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn u11_a_token_that_was_refused_is_none_to_go_on_with() {
        let source = Scripted::new(&[Ok(3600), Err(TokenError::Unreachable)]);
        let refresher = refresher(&source);
        let first = refresher.token(soon()).await.unwrap();
        refresher.obtain_soon().await;
        let refused = refresher.replace(&first, soon()).await;
        assert_eq!(refused.unwrap_err(), TokenError::Unreachable);
        let obtaining = tokio::time::timeout(Duration::from_secs(60), refresher.obtain_soon());
        assert!(obtaining.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn k07_a_short_life_is_obeyed() {
        let source = Scripted::new(&[Ok(600)]);
        let refresher = refresher(&source);
        let first = refresher.token(soon()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(530)).await;
        assert!(Arc::ptr_eq(&first, &refresher.token(soon()).await.unwrap()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!Arc::ptr_eq(
            &first,
            &refresher.token(soon()).await.unwrap()
        ));
        assert_eq!(source.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn k07_a_life_of_seconds_is_one() {
        for life in 1..=3 {
            let source = Scripted::new(&[Ok(life)]);
            let refresher = refresher(&source);
            for call in 1..=3 {
                refresher.token(soon()).await.unwrap();
                refresher.token(soon()).await.unwrap();
                assert_eq!(source.calls(), call);
                tokio::time::sleep(Duration::from_secs(life)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn u11_a_refused_token_is_replaced_once_for_all() {
        let source = Scripted::new(&[Ok(3600)]);
        let refresher = refresher(&source);
        let refused = refresher.token(soon()).await.unwrap();
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let (refresher, refused) = (refresher.clone(), Arc::clone(&refused));
                tokio::spawn(async move { refresher.replace(&refused, soon()).await })
            })
            .collect();
        for waiter in waiters {
            assert!(!Arc::ptr_eq(&refused, &waiter.await.unwrap().unwrap()));
        }
        assert_eq!(source.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn u27_a_hanging_source_and_an_expired_token_are_typed_errors() {
        let hanging = Scripted::new(&[Ok(3600)]);
        hanging.gate.forget_permits(1_000);
        let waiting = refresher(&hanging);
        let began = Instant::now();
        assert_eq!(
            waiting.token(soon()).await.unwrap_err(),
            TokenError::Pending
        );
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(
            waiting.token(soon()).await.unwrap_err(),
            TokenError::TooSlow
        );

        let expired = refresher(&Scripted::new(&[Ok(0)]));
        let odd = TokenError::Odd(OddToken::Expired);
        assert_eq!(expired.token(soon()).await.unwrap_err(), odd);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_source_is_not_asked_by_every_request() {
        let source = Scripted::new(&[Err(TokenError::Denied)]);
        let refresher = refresher(&source);
        for _ in 0..100 {
            assert_eq!(
                refresher.token(soon()).await.unwrap_err(),
                TokenError::Denied
            );
        }
        assert_eq!(source.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn k08_s12_a_token_goes_to_its_origin_only_and_is_never_printed() {
        let token = refresher(&Scripted::new(&[Ok(3600)]))
            .token(soon())
            .await
            .unwrap();
        let mut headers = HeaderMap::new();
        for elsewhere in [
            "https://b.example/v2/",
            "http://a.example/v2/",
            "https://a.example:8443/v2/",
            "https://a.example.evil.example/",
        ] {
            let elsewhere = Uri::from_static(elsewhere);
            assert_eq!(token.attach(&elsewhere, &mut headers), Err(WrongOrigin));
            assert!(headers.is_empty());
        }
        token
            .attach(&Uri::from_static("https://a.example/v2/"), &mut headers)
            .unwrap();
        assert!(headers.contains_key(header::AUTHORIZATION));
        assert!(!format!("{headers:?} {token:?}").contains("canary"));
    }
}
