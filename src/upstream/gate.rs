//! Obeying a registry that throttles, and not flooding one that fails: a gate that all requests to one
//! upstream pass, and a budget for sending again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::oci;

/// What a `Retry-After` is believed within; beyond, a broken or hostile clock would silence us for days.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Lets requests through, or after throttling one probe at a time.
pub(super) struct Gate {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing passes before `until`, then one probe; `strikes` times in a row throttled.
    Closed {
        until: Instant,
        strikes: u32,
    },
    /// One probe is under way.
    Probing {
        strikes: u32,
    },
}

/// The right to send one request. Dropped without a verdict, a probe's pass lets the next probe go.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    is_probe: bool,
    /// How many times in a row throttling was told before it.
    strikes: u32,
}

impl Gate {
    pub(super) fn open() -> Self {
        Self {
            state: watch::Sender::new(State::Open),
        }
    }

    /// Waits until a request may go.
    ///
    /// # Errors
    /// How long the upstream asks to be left alone, if that is beyond `deadline`.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<Pass<'_>, Duration> {
        let mut changes = self.state.subscribe();
        loop {
            let now = Instant::now();
            let mut probe = None;
            self.state.send_if_modified(|state| match *state {
                State::Closed { until, strikes } if until <= now => {
                    probe = Some(strikes);
                    *state = State::Probing { strikes };
                    true
                }
                State::Open | State::Closed { .. } | State::Probing { .. } => false,
            });
            if let Some(strikes) = probe {
                return Ok(Pass {
                    gate: self,
                    is_probe: true,
                    strikes,
                });
            }
            let state = *changes.borrow_and_update();
            match state {
                State::Open => {
                    return Ok(Pass {
                        gate: self,
                        is_probe: false,
                        strikes: 0,
                    });
                }
                State::Closed { until, .. } if until > deadline => return Err(until - now),
                State::Closed { until, .. } => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        _ = changes.changed() => {}
                    }
                }
                State::Probing { .. } => {
                    // The sender is `self`, so only the deadline can end this without a change.
                    if tokio::time::timeout_at(deadline, changes.changed())
                        .await
                        .is_err()
                    {
                        return Err(MIN_PAUSE);
                    }
                }
            }
        }
    }

    /// Returns once what may wait for `patience` from now on would be refused, or after that time nothing passes:
    /// how long the upstream asks to be left alone.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub(super) async fn refuses(&self, patience: Duration) -> Duration {
        let mut changes = self.state.subscribe();
        let deadline = Instant::now() + patience;
        loop {
            let now = Instant::now();
            let state = *changes.borrow_and_update();
            match state {
                State::Closed { until, .. } if until > deadline.max(now) => return until - now,
                State::Probing { .. } if deadline <= now => return MIN_PAUSE,
                State::Probing { .. } => {
                    let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
                }
                // The sender is `self`, so this ends by a change alone.
                State::Open | State::Closed { .. } => {
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// True while nothing passes.
    pub(super) fn is_closed(&self) -> bool {
        match *self.state.borrow() {
            State::Open => false,
            State::Closed { until, .. } => until > Instant::now(),
            State::Probing { .. } => true,
        }
    }
}

impl Pass<'_> {
    /// The same for what takes as long as its sender: if it is a probe, the next one need not wait for its answer.
    pub(super) fn for_long(mut self) -> Self {
        if std::mem::take(&mut self.is_probe) {
            let strikes = self.strikes;
            let until = Instant::now() + pause_after(strikes);
            self.gate
                .state
                .send_replace(State::Closed { until, strikes });
        }
        self
    }

    /// The request was answered, whatever the answer, without throttling.
    pub(super) fn answered(mut self) {
        if std::mem::take(&mut self.is_probe) {
            self.gate.state.send_replace(State::Open);
        }
    }

    /// The request was throttled: nothing goes for as long as the upstream asks, or where it asks
    /// nothing for a time that doubles. Returns how long.
    pub(super) fn throttled(mut self, headers: &HeaderMap) -> Duration {
        let asked = retry_after(headers, SystemTime::now());
        self.is_probe = false;
        let strikes = self.strikes;
        let pause = asked.unwrap_or_else(|| pause_after(strikes));
        self.gate.state.send_modify(|state| {
            let until = Instant::now() + pause;
            // Answers to requests sent before the gate closed must not open it earlier.
            let (until, known) = match *state {
                State::Closed {
                    until: already,
                    strikes,
                } => (already.max(until), strikes),
                State::Probing { strikes } => (until, strikes),
                State::Open => (until, 0),
            };
            *state = State::Closed {
                until,
                strikes: strikes.saturating_add(1).max(known),
            };
        });
        pause
    }

    /// The request was throttled, and was not ours: whose it was is told how long to wait, and what we ask
    /// ourselves is not held back.
    pub(super) fn throttled_for_another(self, headers: &HeaderMap) -> Duration {
        retry_after(headers, SystemTime::now()).unwrap_or(MIN_PAUSE)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.gate.state.send_if_modified(|state| {
                // Others may have been told meanwhile to wait.
                let is_probing = matches!(state, State::Probing { .. });
                if is_probing {
                    *state = State::Closed {
                        until: Instant::now(),
                        strikes: self.strikes,
                    };
                }
                is_probing
            });
        }
    }
}

/// How long nothing goes after so many times in a row, where the upstream does not say.
fn pause_after(strikes: u32) -> Duration {
    MIN_PAUSE.saturating_mul(1 << strikes.min(6)).min(MAX_PAUSE)
}

/// How long `Retry-After` asks for, within our bounds; `None` without a usable one.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = oci::header::retry_after(headers, now)?;
    Some(asked.clamp(MIN_PAUSE, MAX_PAUSE))
}

/// How many requests may be sent again: a share of those sent, so that a failing upstream sees little
/// more than a healthy one.
pub(super) struct RetryBudget {
    /// Tenths of a retry.
    tenths: Mutex<u32>,
}

impl RetryBudget {
    /// Retries that may be made at once after a quiet time.
    const RESERVE: u32 = 20;

    pub(super) fn full() -> Self {
        Self {
            tenths: Mutex::new(Self::RESERVE * 10),
        }
    }

    /// A first attempt is made; each earns a fifth of a retry.
    pub(super) fn earn(&self) {
        let mut tenths = self.tenths.lock().unwrap_or_else(PoisonError::into_inner);
        *tenths = (*tenths + 2).min(Self::RESERVE * 10);
    }

    /// True if a retry may be made; it is then spent.
    pub(super) fn spend(&self) -> bool {
        let mut tenths = self.tenths.lock().unwrap_or_else(PoisonError::into_inner);
        match tenths.checked_sub(10) {
            Some(rest) => {
                *tenths = rest;
                true
            }
            None => false,
        }
    }
}

/// How long to wait before attempt `attempt` (the second is 1): doubling, with full jitter above a floor.
pub(super) fn backoff(attempt: u32) -> Duration {
    let ceiling = Duration::from_millis(200).saturating_mul(1 << attempt.min(4));
    Duration::from_millis(50) + ceiling.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;

    fn headers(retry_after: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, retry_after.parse().unwrap());
        headers
    }

    #[test]
    fn u12_retry_after_is_obeyed_within_reason() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (value, seconds) in [
            ("5", Some(5)),
            ("0", Some(1)),
            ("1000000000", Some(60)),
            ("99999999999999999999999", Some(60)),
            ("Sun, 09 Sep 2001 01:47:00 GMT", Some(20)),
            ("Sun, 09 Sep 2001 01:00:00 GMT", Some(1)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(60)),
            ("-5", None),
            ("soon", None),
            ("", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(&headers(value), now), expected, "{value}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn u12_a_closed_gate_lets_one_probe_through_at_a_time() {
        let gate = Gate::open();
        let began = Instant::now();
        let deadline = began + Duration::from_secs(20);
        gate.pass(deadline)
            .await
            .ok()
            .unwrap()
            .throttled(&headers("5"));
        let probe = gate.pass(deadline).await.ok().unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let second = gate.pass(began + Duration::from_secs(6));
        assert_eq!(second.await.err(), Some(MIN_PAUSE), "a probe is under way");
        probe.throttled(&HeaderMap::new());
        let probe = gate.pass(deadline).await.ok().unwrap();
        assert_eq!(
            began.elapsed(),
            Duration::from_secs(8),
            "waits double without a wish"
        );
        drop(probe);
        gate.pass(deadline).await.ok().unwrap().answered();
        assert!(!gate.pass(deadline).await.ok().unwrap().is_probe);
    }

    #[tokio::test(start_paused = true)]
    async fn u12_a_probe_that_takes_long_keeps_back_no_other_and_counts_all_the_same() {
        let gate = Gate::open();
        let began = Instant::now();
        let deadline = began + Duration::from_secs(60);
        let pass = async || gate.pass(deadline).await.ok().unwrap();
        let nothing = HeaderMap::new();
        pass().await.throttled(&nothing);
        let upload = pass().await.for_long();
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        let probe = pass().await;
        assert!(probe.is_probe);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        probe.answered();
        // Its answer closes the gate for as long as if it had been waited for.
        assert_eq!(upload.throttled(&nothing), Duration::from_secs(2));
        assert_eq!(pass().await.strikes, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn u12_what_was_sent_before_says_no_less_than_a_probe() {
        let gate = Gate::open();
        let began = Instant::now();
        let deadline = began + Duration::from_secs(60);
        let pass = async || gate.pass(deadline).await.ok().unwrap();
        let nothing = HeaderMap::new();
        let [first, second, third] = [pass().await, pass().await, pass().await];
        first.throttled(&nothing);
        let probe = pass().await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        // One that was sent while the gate was open is answered only now, and the probe is given up.
        second.throttled(&headers("10"));
        drop(probe);
        let probe = pass().await;
        assert_eq!(began.elapsed(), Duration::from_secs(11));
        assert_eq!(probe.throttled(&nothing), Duration::from_secs(2));
        third.throttled(&nothing);
        assert_eq!(pass().await.strikes, 2, "it was told twice in a row");
    }

    #[tokio::test(start_paused = true)]
    async fn u12_nobody_waits_for_longer_than_their_deadline() {
        let gate = Gate::open();
        let deadline = Instant::now() + Duration::from_secs(20);
        gate.pass(deadline)
            .await
            .ok()
            .unwrap()
            .throttled(&headers("60"));
        let refused = gate.pass(deadline).await.err();
        assert_eq!(refused, Some(Duration::from_secs(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn u12_who_waits_for_less_is_told_as_soon_as_that_is_certain() {
        let gate = Gate::open();
        let began = Instant::now();
        let pass = async || {
            let pass = gate.pass(began + Duration::from_secs(20)).await;
            pass.ok().unwrap()
        };
        let refuses = |seconds| gate.refuses(Duration::from_secs(seconds));
        let told = async |seconds| {
            let soon = tokio::time::timeout(Duration::from_secs(9), refuses(seconds));
            soon.await.ok()
        };
        assert_eq!(told(1).await, None, "it is open");
        assert!(!gate.is_closed());
        pass().await.throttled(&headers("3"));
        assert!(gate.is_closed());
        assert_eq!(told(2).await, Some(Duration::from_secs(3)));
        // One that is let through in time, and is not answered.
        let began = Instant::now();
        let (told, probe) = tokio::join!(refuses(5), pass());
        assert_eq!(told, MIN_PAUSE);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert!(gate.is_closed());
        // It closes for longer than whoever asked before may wait.
        let (told, ()) = tokio::join!(refuses(1), async {
            tokio::task::yield_now().await;
            probe.throttled(&headers("2"));
        });
        assert_eq!(told, Duration::from_secs(2));
    }

    #[test]
    fn u13_retries_are_a_share_of_requests() {
        let budget = RetryBudget::full();
        let mut retries = 0;
        for _ in 0..100 {
            budget.earn();
            retries += u32::from(budget.spend());
        }
        assert!((20..=45).contains(&retries), "{retries}");
    }
}
