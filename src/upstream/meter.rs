//! Counting what goes to one upstream.
//!
//! Invariant: the gauges of a name are those of the upstream that has it now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::allowance::Allowance;
use super::metrics::{BodyLabels, RequestLabels, ResultLabels, UpstreamLabel, UpstreamMetrics};
use super::question::Kind;

/// The handles of one upstream. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    metrics: UpstreamMetrics,
    upstream: Arc<str>,
    /// Its gauges are those of this upstream: another of its name may have been before, or be by now.
    is_shown: Arc<Mutex<bool>>,
}

impl Meter {
    pub(super) fn new(metrics: UpstreamMetrics, upstream: Arc<str>) -> Self {
        Self {
            metrics,
            upstream,
            is_shown: Arc::default(),
        }
    }

    pub(super) fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// The gauges are this upstream's from now on.
    pub(super) fn begin(&self) {
        let mut is_shown = self.is_shown();
        *is_shown = true;
        let gauges = [&self.metrics.breaker_open, &self.metrics.storage_away];
        for gauge in gauges {
            gauge.get_or_create(&self.label()).set(0);
        }
    }

    /// The gauges are not this upstream's any more: what it still does is only counted.
    pub(super) fn end(&self) {
        let mut is_shown = self.is_shown();
        *is_shown = false;
        for gauge in [
            &self.metrics.breaker_open,
            &self.metrics.storage_away,
            &self.metrics.token_expiry,
            &self.metrics.ratelimit_limit,
            &self.metrics.ratelimit_remaining,
        ] {
            gauge.remove(&self.label());
        }
    }

    fn is_shown(&self) -> MutexGuard<'_, bool> {
        self.is_shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, gauge: &Family<UpstreamLabel, Gauge>, value: i64) {
        let is_shown = self.is_shown();
        if *is_shown {
            gauge.get_or_create(&self.label()).set(value);
        }
    }

    pub(super) fn requested(&self, kind: Kind, status: Option<http::StatusCode>) {
        let status = match status.map(|status| status.as_u16() / 100) {
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(5) => "5xx",
            Some(_) => "other",
            None => "none",
        };
        let labels = RequestLabels {
            upstream: self.upstream.to_string(),
            kind,
            status,
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    /// The counter of body bytes for `kind`, for use at every piece of a body.
    pub(super) fn body_bytes(&self, kind: Kind) -> Counter {
        let labels = BodyLabels {
            upstream: self.upstream.to_string(),
            kind,
        };
        self.metrics.body_bytes.get_or_create_owned(&labels)
    }

    /// The counter of bytes sent for `kind`, for use at every piece of a body.
    pub(super) fn sent_bytes(&self, kind: Kind) -> Counter {
        let labels = BodyLabels {
            upstream: self.upstream.to_string(),
            kind,
        };
        self.metrics.sent_bytes.get_or_create_owned(&labels)
    }

    pub(super) fn redirect_renewed(&self) {
        self.metrics
            .redirect_renewals
            .get_or_create(&self.label())
            .inc();
    }

    pub(super) fn throttled(&self) {
        self.metrics.throttled.get_or_create(&self.label()).inc();
    }

    pub(super) fn paced(&self) {
        self.metrics.paced.get_or_create(&self.label()).inc();
    }

    pub(super) fn retried(&self) {
        self.metrics.retries.get_or_create(&self.label()).inc();
    }

    pub(super) fn truncated(&self) {
        self.metrics.truncated.get_or_create(&self.label()).inc();
    }

    pub(super) fn held_back(&self, time: Duration) {
        // Nothing is the rule, and this is asked at every piece of a body.
        if time >= Duration::from_millis(1) {
            let held_back = self.metrics.held_back.get_or_create(&self.label());
            held_back.inc_by(time.as_secs_f64());
        }
    }

    pub(super) fn stalled(&self) {
        self.metrics.stalled.get_or_create(&self.label()).inc();
    }

    /// Notes whether the breaker is open, and counts that it opened.
    pub(super) fn breaker(&self, open: bool) {
        self.show(&self.metrics.breaker_open, open.into());
        if open {
            let openings = &self.metrics.breaker_openings;
            openings.get_or_create(&self.label()).inc();
        }
    }

    /// Notes whether storage is known not to answer.
    pub(super) fn storage(&self, away: bool) {
        self.show(&self.metrics.storage_away, away.into());
    }

    /// A question was not asked, as the breaker is open.
    pub(super) fn turned_away(&self) {
        self.metrics.turned_away.get_or_create(&self.label()).inc();
    }

    /// A repository's description was asked for.
    pub(super) fn described(&self, result: &'static str) {
        self.metrics
            .descriptions
            .get_or_create(&self.result(result))
            .inc();
    }

    /// A registry told how many pulls it still allows.
    pub(super) fn allowed(&self, allowance: &Allowance) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let remaining = number(allowance.remaining);
        self.show(&self.metrics.ratelimit_remaining, remaining);
        if let Some(limit) = allowance.limit {
            self.show(&self.metrics.ratelimit_limit, number(limit));
        }
    }

    /// A repository was asked for.
    pub(super) fn created(&self, result: &'static str) {
        self.metrics
            .creations
            .get_or_create(&self.result(result))
            .inc();
    }

    /// A repository that was created was to get its lifecycle policy.
    pub(super) fn lifecycle_policy(&self, result: &'static str) {
        self.metrics
            .lifecycle_policies
            .get_or_create(&self.result(result))
            .inc();
    }

    pub(super) fn probed(&self, good: bool) {
        let result = if good { "ok" } else { "failed" };
        self.metrics
            .probes
            .get_or_create(&self.result(result))
            .inc();
    }

    /// Counts refreshes of this upstream's tokens.
    pub(super) fn tokens(&self) -> TokenMeter {
        TokenMeter(self.clone())
    }

    fn label(&self) -> UpstreamLabel {
        UpstreamLabel {
            upstream: self.upstream.to_string(),
        }
    }

    fn result(&self, result: &'static str) -> ResultLabels {
        ResultLabels {
            upstream: self.upstream.to_string(),
            result,
        }
    }
}

/// Counts refreshes of tokens.
#[derive(Clone, Debug)]
pub(super) struct TokenMeter(Meter);

#[cfg(test)]
impl Default for TokenMeter {
    fn default() -> Self {
        UpstreamMetrics::default().meter("test".into()).tokens()
    }
}

impl TokenMeter {
    pub(super) fn upstream(&self) -> &str {
        &self.0.upstream
    }

    pub(super) fn refreshed(&self, expires: SystemTime) {
        let Self(meter) = self;
        meter
            .metrics
            .token_refresh
            .get_or_create(&meter.result("ok"))
            .inc();
        let since_epoch = expires.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let until = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
        meter.show(&meter.metrics.token_expiry, until);
    }

    pub(super) fn failed(&self) {
        let Self(meter) = self;
        meter
            .metrics
            .token_refresh
            .get_or_create(&meter.result("failed"))
            .inc();
    }
}
