//! Metric handles and log fields, passed in as values.
//!
//! Each mechanism has a struct of handles whose `Default` is silent: counting works and nobody
//! reads it. What is to be read is registered with [`Metrics`], once, at start. Structs of
//! other modules bring a `register(&self, &mut Registry)` of their own and are registered the
//! same way. Names begin with `ecr_proxy_`, end in their unit, and counters in `_total`.
//!
//! # Log fields
//! Messages are constant and values are fields. Nothing here ever holds a token, a password or
//! the query of a signed URL.
//!
//! | field | is |
//! | --- | --- |
//! | `request.id` | what the answer's `X-Request-Id` says |
//! | `client.addr` | the peer's address and port; the client's address where a trusted balancer tells it |
//! | `client.via` | the address and port of that balancer |
//! | `client.user` | who was let in; `@anonymous` for nobody in particular |
//! | `client.agent` | the client's `User-Agent` |
//! | `http.method`, `http.status` | of the request and its answer; no method where the head was not understood |
//! | `http.target` | host and path, where they are not of the API or not ours, or lead nowhere |
//! | `oci.repository`, `oci.reference` | what was asked for, as the client wrote it |
//! | `oci.ns` | the registry that a mirror was asked for it as (`?ns=`) |
//! | `cache.outcome` | `hit`, `miss`, `joined`, `stale` or `bypass`; `none` where the cache took no part |
//! | `body.bytes` | bytes of the answer's body that its connection took |
//! | `elapsed_ms` | from the request's head until its connection had taken the whole answer |
//! | `end` | `clean`, or `aborted` where its connection did not take it all; what that took last, a megabyte at most, may be lost with it |
//! | `error` | what went wrong, for operators |
//! | `upstream.name` | which upstream that leads to, by its configured name; in other events: which they are about |
//! | `upstream.is_fallback` | true where another upstream answered in its place |
//! | `upstream.said` | in other events: what it said when it refused |
//! | `oci.digest` | in other events: the content that they are about |
//!
//! One event per finished request is at `info` and is the audit of who pulled what. `warn` is
//! degraded service, `error` wants somebody to act.

mod heard;
mod json;
mod log;
mod requests;

pub use heard::Heard;
pub use log::{Log, LogFormat, StartLogError, chain};
pub use requests::{Completed, RequestMetrics};

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Defines an enum whose variants are words: of labels, headers and log fields alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// How many there are.
            pub const COUNT: usize = [$($word),+].len();

            /// The word for it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                self.as_str().encode(encoder)
            }
        }
    };
}

words! {
    /// What a request asked for.
    RequestKind {
        /// `/v2/`.
        Ping = "ping",
        /// A manifest.
        Manifest = "manifest",
        /// A blob.
        Blob = "blob",
        /// A list of tags.
        Tags = "tags",
        /// A list of repositories.
        Catalog = "catalog",
        /// A list of referrers.
        Referrers = "referrers",
        /// An upload, or a step of it.
        Upload = "upload",
        /// Anything else, malformed and refused requests among them.
        Other = "other",
    }
}

words! {
    /// How the cache took part in an answer.
    Outcome {
        /// From the cache.
        Hit = "hit",
        /// From upstream, by a fill that this request began.
        Miss = "miss",
        /// From a fill that was running.
        Joined = "joined",
        /// From the cache although it could not be revalidated.
        Stale = "stale",
        /// From upstream past the cache.
        Bypass = "bypass",
        /// Not at all; never said in `X-Cache`.
        None = "none",
    }
}

words! {
    /// Why a tag was answered as it last was.
    StaleReason {
        /// Upstream has not answered yet, and the client was not to wait for longer.
        Slow = "slow",
        /// The operator wants nothing asked.
        Offline = "offline",
        /// Nobody answers.
        Unreachable = "unreachable",
        /// There is no token to ask with.
        NoToken = "no_token",
        /// Upstream limits our rate.
        Throttled = "throttled",
        /// Upstream answers that it cannot.
        Failing = "failing",
        /// Upstream has it no more, and a pin keeps it.
        Pinned = "pinned",
    }
}

words! {
    /// Why a caller was turned away.
    Denial {
        /// No credentials, or not good ones.
        Unauthenticated = "unauthenticated",
        /// No right.
        Forbidden = "forbidden",
        /// Too many logins at once.
        Busy = "busy",
        /// Upstream does not tell what a caller's token allows.
        Undecided = "undecided",
        /// A name we do not answer to.
        Domain = "domain",
    }
}

words! {
    /// How a fill ended.
    FillResult {
        /// Verified and kept.
        Kept = "kept",
        /// Verified and served, though it could not be kept.
        Unkept = "unkept",
        /// The bytes were not what their digest says.
        Mismatch = "mismatch",
        /// Upstream could not give it.
        Failed = "failed",
    }
}

words! {
    /// What came of an image that is kept warm.
    WarmResult {
        /// All of it is in the cache, as upstream has it.
        Complete = "complete",
        /// Something of it is not.
        Failed = "failed",
    }
}

words! {
    /// What came of a layer that was looked at ahead of a client's request.
    PrefetchResult {
        /// It was fetched.
        Fetched = "fetched",
        /// It was there, or a client was fetching it.
        Present = "present",
        /// It could not be fetched.
        Failed = "failed",
        /// It was not tried: too much was waiting, or upstream could not answer.
        Dropped = "dropped",
    }
}

words! {
    /// How an attempt to go on with a broken body ended.
    ResumeResult {
        /// It went on from the last good byte.
        Resumed = "resumed",
        /// Upstream's content had changed: never spliced.
        Changed = "changed",
        /// It could not be resumed.
        Failed = "failed",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StaleLabel {
    reason: StaleReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FillLabel {
    result: FillResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResumeLabel {
    result: ResumeResult,
}

/// Counters of fills. Cloning is cheap; clones count together.
#[derive(Clone, Debug, Default)]
pub struct FillMetrics {
    results: Family<FillLabel, Counter>,
    resumes: Family<ResumeLabel, Counter>,
    stale: Family<StaleLabel, Counter>,
    stood_in: Counter,
    /// Fills that are running.
    pub active: Gauge,
    /// Bodies whose bytes were not what their digest says.
    pub digest_mismatches: Counter,
}

impl FillMetrics {
    /// Counts a fill that ended.
    pub fn ended(&self, result: FillResult) {
        self.results.get_or_create(&FillLabel { result }).inc();
    }

    /// Counts an attempt to go on with a broken body.
    pub fn resumed(&self, result: ResumeResult) {
        self.resumes.get_or_create(&ResumeLabel { result }).inc();
    }

    /// Counts an answer of an upstream that stood in for another.
    pub fn stood_in(&self) {
        self.stood_in.inc();
    }

    /// Counts a tag that was answered as it last was.
    pub fn stale(&self, reason: StaleReason) {
        self.stale.get_or_create(&StaleLabel { reason }).inc();
    }

    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "stale_answers",
            "Tags answered as they last were, by why upstream was not asked or did not answer",
            self.stale.clone(),
        );
        registry.register(
            "fallback_answers",
            "Answers of an upstream that stood in for one that could not answer",
            self.stood_in.clone(),
        );
        registry.register("fills", "Fills that ended, by result", self.results.clone());
        registry.register(
            "fills_active",
            "Fills that are running",
            self.active.clone(),
        );
        registry.register(
            "upstream_resumes",
            "Attempts to go on with a broken body, by result",
            self.resumes.clone(),
        );
        registry.register(
            "digest_mismatch",
            "Bodies whose bytes were not what their digest says",
            self.digest_mismatches.clone(),
        );
    }
}

/// Everything that can be read at `/metrics`, under the prefix `ecr_proxy`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Log lines that were not written.
    pub log_dropped: Counter,
    /// Tasks that panicked.
    pub panics: Counter,
}

impl Metrics {
    /// A registry that holds what belongs to the process as a whole.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("ecr_proxy");
        let log_dropped = Counter::default();
        let panics = Counter::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version that is running", Info::new(version));
        registry.register(
            "log_dropped",
            "Log lines that were not written",
            log_dropped.clone(),
        );
        registry.register("panics", "Tasks that panicked", panics.clone());
        Self {
            registry,
            log_dropped,
            panics,
        }
    }

    /// Where handles are registered.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Ends registration.
    pub fn finish(self) -> MetricsPage {
        MetricsPage {
            registry: Arc::new(self.registry),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The metrics as they are read. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct MetricsPage {
    registry: Arc<Registry>,
}

impl MetricsPage {
    /// The media type of [`MetricsPage::render`].
    pub const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All values now, as OpenMetrics text.
    ///
    /// # Errors
    /// A metric cannot be written as text.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_have_prefix_unit_and_total() {
        let mut metrics = Metrics::new();
        let requests = RequestMetrics::default();
        let fills = FillMetrics::default();
        requests.register(metrics.registry());
        fills.register(metrics.registry());
        requests.completed(Completed {
            kind: RequestKind::Blob,
            outcome: Outcome::Hit,
            status: 206,
            body_bytes: 7,
            elapsed: Duration::from_millis(3),
        });
        requests.denied(Denial::Unauthenticated);
        fills.ended(FillResult::Kept);
        fills.resumed(ResumeResult::Resumed);
        fills.stale(StaleReason::NoToken);
        let page = metrics.finish().render().expect("page");
        for line in [
            "ecr_proxy_requests_total{kind=\"blob\",outcome=\"hit\",status=\"206\"} 1",
            "ecr_proxy_response_bytes_total{cache=\"hit\"} 7",
            "ecr_proxy_request_duration_seconds_count{kind=\"blob\"} 1",
            "ecr_proxy_hits_total 1",
            "ecr_proxy_misses_total 0",
            "ecr_proxy_denied_total{reason=\"unauthenticated\"} 1",
            "ecr_proxy_fills_total{result=\"kept\"} 1",
            "ecr_proxy_stale_answers_total{reason=\"no_token\"} 1",
            "ecr_proxy_upstream_resumes_total{result=\"resumed\"} 1",
            "ecr_proxy_log_dropped_total 0",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        assert!(page.contains("ecr_proxy_build_info{version="), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn silent_handles_count_without_a_registry() {
        let requests = RequestMetrics::default();
        let clone = requests.clone();
        clone.active.inc();
        assert_eq!(requests.active.get(), 1);
    }
}
