//! Counters of what goes to upstreams. `Default` counts for nobody.

use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::allowance::Allowance;

/// What a request to an upstream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    ManifestHead,
    Manifest,
    Blob,
    /// Whether a blob is there, or how large it is.
    BlobProbe,
    Tags,
    Catalog,
    Referrers,
    /// At a Bearer token service; AWS is asked by its own SDK.
    Token,
    Ping,
    /// Where the registry redirects to.
    Storage,
    /// The beginning, end and giving up of an upload.
    Upload,
    /// A part of an upload, or all of it.
    UploadBody,
    ManifestPut,
    /// Of a manifest or blob.
    Delete,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::ManifestHead => "manifest_head",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::BlobProbe => "blob_probe",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Ping => "ping",
            Self::Storage => "storage",
            Self::Upload => "upload",
            Self::UploadBody => "upload_body",
            Self::ManifestPut => "manifest_put",
            Self::Delete => "delete",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: String,
    kind: Kind,
    /// `2xx` and so on; `none` without an answer.
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BodyLabels {
    upstream: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    upstream: String,
    result: &'static str,
}

/// Counters of all upstreams, told apart by their name. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    requests: Family<RequestLabels, Counter>,
    body_bytes: Family<BodyLabels, Counter>,
    sent_bytes: Family<BodyLabels, Counter>,
    redirect_renewals: Family<UpstreamLabel, Counter>,
    token_refresh: Family<ResultLabels, Counter>,
    token_expiry: Family<UpstreamLabel, Gauge>,
    throttled: Family<UpstreamLabel, Counter>,
    paced: Family<UpstreamLabel, Counter>,
    retries: Family<UpstreamLabel, Counter>,
    truncated: Family<UpstreamLabel, Counter>,
    stalled: Family<UpstreamLabel, Counter>,
    breaker_open: Family<UpstreamLabel, Gauge>,
    breaker_openings: Family<UpstreamLabel, Counter>,
    turned_away: Family<UpstreamLabel, Counter>,
    probes: Family<ResultLabels, Counter>,
    descriptions: Family<ResultLabels, Counter>,
    ratelimit_limit: Family<UpstreamLabel, Gauge>,
    ratelimit_remaining: Family<UpstreamLabel, Gauge>,
    creations: Family<ResultLabels, Counter>,
    lifecycle_policies: Family<ResultLabels, Counter>,
    storage_away: Family<UpstreamLabel, Gauge>,
    held_back: Family<UpstreamLabel, Counter<f64, AtomicU64>>,
}

impl UpstreamMetrics {
    /// Makes the counters visible in `registry`, which gives them their prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_requests",
            "Requests sent upstream, by purpose and class of status",
            self.requests.clone(),
        );
        registry.register(
            "upstream_body_bytes",
            "Bytes of bodies received from upstream, by purpose",
            self.body_bytes.clone(),
        );
        registry.register(
            "upstream_sent_bytes",
            "Bytes of bodies streamed to upstream, by purpose",
            self.sent_bytes.clone(),
        );
        registry.register(
            "redirect_renewals",
            "Storage addresses asked for anew because storage refused the first",
            self.redirect_renewals.clone(),
        );
        registry.register(
            "token_refresh",
            "Attempts to obtain a token, by result",
            self.token_refresh.clone(),
        );
        registry.register(
            "token_expiry_seconds",
            "When the last token obtained expires, in seconds since 1970",
            self.token_expiry.clone(),
        );
        registry.register(
            "upstream_throttled",
            "Answers of upstreams that throttle us",
            self.throttled.clone(),
        );
        registry.register(
            "upstream_paced",
            "Requests that waited so that an upstream's quota is kept, or were given up for it",
            self.paced.clone(),
        );
        registry.register(
            "upstream_retries",
            "Requests sent again after a failure",
            self.retries.clone(),
        );
        registry.register(
            "upstream_truncated",
            "Bodies that ended before their declared length",
            self.truncated.clone(),
        );
        registry.register(
            "upstream_stalled",
            "Bodies given up because nothing, or too little, came",
            self.stalled.clone(),
        );
        registry.register(
            "upstream_breaker_open",
            "1 while an upstream is known not to answer and is only probed",
            self.breaker_open.clone(),
        );
        registry.register(
            "upstream_breaker_openings",
            "Times that an upstream was found not to answer",
            self.breaker_openings.clone(),
        );
        registry.register(
            "upstream_breaker_refusals",
            "Questions not asked because the upstream was known not to answer",
            self.turned_away.clone(),
        );
        registry.register(
            "upstream_descriptions",
            "Questions which tags of a repository may move, by result; refused without ecr:DescribeRepositories",
            self.descriptions.clone(),
        );
        registry.register(
            "upstream_ratelimit_limit",
            "Pulls that a registry such as Docker Hub allows in its window of time, as it told last",
            self.ratelimit_limit.clone(),
        );
        registry.register(
            "upstream_ratelimit_remaining",
            "Pulls that a registry such as Docker Hub still allows, as it told last",
            self.ratelimit_remaining.clone(),
        );
        registry.register(
            "upstream_repository_creations",
            "Repositories asked for because a push found none, by result",
            self.creations.clone(),
        );
        registry.register(
            "upstream_lifecycle_policies",
            "Lifecycle policies for repositories that were created, by result; without one it has none",
            self.lifecycle_policies.clone(),
        );
        registry.register(
            "upstream_probes",
            "Probes whether an upstream answers, by result",
            self.probes.clone(),
        );
        registry.register(
            "upstream_storage_away",
            "1 while the storage that an upstream redirects to did not answer when it was last asked",
            self.storage_away.clone(),
        );
        registry.register(
            "upstream_held_back_seconds",
            "Time that bodies waited for the bandwidth limit, or gave way to others",
            self.held_back.clone(),
        );
    }

    pub(super) fn meter(&self, upstream: Arc<str>) -> Meter {
        Meter {
            metrics: self.clone(),
            upstream,
            is_shown: Arc::default(),
        }
    }
}

/// The counters of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    metrics: UpstreamMetrics,
    upstream: Arc<str>,
    /// Its gauges are those of this upstream: another of its name may have been before, or be by now.
    is_shown: Arc<Mutex<bool>>,
}

impl Meter {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_operators_watch() {
        let metrics = UpstreamMetrics::default();
        let meter = metrics.meter("prod".into());
        meter.begin();
        meter.requested(Kind::ManifestHead, Some(http::StatusCode::OK));
        meter.requested(Kind::Storage, None);
        meter.body_bytes(Kind::Blob).inc_by(5);
        meter.sent_bytes(Kind::UploadBody).inc_by(6);
        meter.redirect_renewed();
        meter.throttled();
        meter.retried();
        meter.truncated();
        meter.stalled();
        meter.breaker(true);
        meter.storage(true);
        meter.turned_away();
        meter.probed(true);
        meter.described("refused");
        meter
            .tokens()
            .refreshed(UNIX_EPOCH + Duration::from_secs(7));
        meter.tokens().failed();
        let mut registry = Registry::with_prefix("ecr_proxy");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"ecr_proxy_upstream_requests_total{upstream="prod",kind="manifest_head",status="2xx"} 1"#,
            r#"ecr_proxy_upstream_requests_total{upstream="prod",kind="storage",status="none"} 1"#,
            r#"ecr_proxy_upstream_body_bytes_total{upstream="prod",kind="blob"} 5"#,
            r#"ecr_proxy_upstream_sent_bytes_total{upstream="prod",kind="upload_body"} 6"#,
            r#"ecr_proxy_redirect_renewals_total{upstream="prod"} 1"#,
            r#"ecr_proxy_token_refresh_total{upstream="prod",result="ok"} 1"#,
            r#"ecr_proxy_token_refresh_total{upstream="prod",result="failed"} 1"#,
            r#"ecr_proxy_token_expiry_seconds{upstream="prod"} 7"#,
            r#"ecr_proxy_upstream_throttled_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_retries_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_truncated_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_stalled_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_breaker_open{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_breaker_openings_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_breaker_refusals_total{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_descriptions_total{upstream="prod",result="refused"} 1"#,
            r#"ecr_proxy_upstream_storage_away{upstream="prod"} 1"#,
            r#"ecr_proxy_upstream_probes_total{upstream="prod",result="ok"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
