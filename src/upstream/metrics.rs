//! What is told of upstreams: the names that operators watch. `Default` counts for nobody.
//!
//! Who counts holds the [`Meter`] of one upstream.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::meter::Meter;
use super::question::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) upstream: String,
    pub(super) kind: Kind,
    /// `2xx` and so on; `none` without an answer.
    pub(super) status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BodyLabels {
    pub(super) upstream: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamLabel {
    pub(super) upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabels {
    pub(super) upstream: String,
    pub(super) result: &'static str,
}

/// Counters of all upstreams, told apart by their name. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) body_bytes: Family<BodyLabels, Counter>,
    pub(super) sent_bytes: Family<BodyLabels, Counter>,
    pub(super) redirect_renewals: Family<UpstreamLabel, Counter>,
    pub(super) token_refresh: Family<ResultLabels, Counter>,
    pub(super) token_expiry: Family<UpstreamLabel, Gauge>,
    pub(super) throttled: Family<UpstreamLabel, Counter>,
    pub(super) paced: Family<UpstreamLabel, Counter>,
    pub(super) retries: Family<UpstreamLabel, Counter>,
    pub(super) truncated: Family<UpstreamLabel, Counter>,
    pub(super) stalled: Family<UpstreamLabel, Counter>,
    pub(super) breaker_open: Family<UpstreamLabel, Gauge>,
    pub(super) breaker_openings: Family<UpstreamLabel, Counter>,
    pub(super) turned_away: Family<UpstreamLabel, Counter>,
    pub(super) probes: Family<ResultLabels, Counter>,
    pub(super) descriptions: Family<ResultLabels, Counter>,
    pub(super) ratelimit_limit: Family<UpstreamLabel, Gauge>,
    pub(super) ratelimit_remaining: Family<UpstreamLabel, Gauge>,
    pub(super) creations: Family<ResultLabels, Counter>,
    pub(super) lifecycle_policies: Family<ResultLabels, Counter>,
    pub(super) storage_away: Family<UpstreamLabel, Gauge>,
    pub(super) held_back: Family<UpstreamLabel, Counter<f64, AtomicU64>>,
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
        Meter::new(self.clone(), upstream)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
