//! What is counted of the registry API's requests.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Denial, Outcome, RequestKind};

/// Seconds; from a manifest in memory to a large layer on a poor line.
const DURATION_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 1800.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: RequestKind,
    outcome: Outcome,
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: RequestKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabel {
    cache: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Denial,
}

/// A request that has been answered, however it ended.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    /// What was asked for.
    pub kind: RequestKind,
    /// How the cache took part.
    pub outcome: Outcome,
    /// The status of the answer.
    pub status: u16,
    /// Bytes of its body that were sent.
    pub body_bytes: u64,
    /// From the request's head to the end of the answer.
    pub elapsed: Duration,
}

/// Counters of the registry API. Cloning is cheap; clones count together.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    body_bytes: Family<CacheLabel, Counter>,
    seconds: Family<KindLabel, Histogram, fn() -> Histogram>,
    hits: Counter,
    misses: Counter,
    joins: Counter,
    stale: Counter,
    bypasses: Counter,
    denied: Family<ReasonLabel, Counter>,
    /// Of answers with status 200, as nearly all have that come from the cache.
    usual: Arc<[[OnceLock<Handles>; Outcome::COUNT]; RequestKind::COUNT]>,
    /// Requests being answered.
    pub active: Gauge,
}

/// What answers of one kind, outcome and status are counted by. To find it by its labels costs more than to count.
#[derive(Debug)]
struct Handles {
    requests: Counter,
    body_bytes: Counter,
    seconds: Histogram,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            body_bytes: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            hits: Counter::default(),
            misses: Counter::default(),
            joins: Counter::default(),
            stale: Counter::default(),
            bypasses: Counter::default(),
            denied: Family::default(),
            usual: Arc::default(),
            active: Gauge::default(),
        }
    }
}

impl RequestMetrics {
    /// Counts an answered request.
    pub fn completed(&self, request: Completed) {
        let Completed {
            kind,
            outcome,
            status,
            ..
        } = request;
        let found;
        let handles = match status {
            200 => self.usual[kind as usize][outcome as usize]
                .get_or_init(|| self.handles(kind, outcome, status)),
            _ => {
                found = self.handles(kind, outcome, status);
                &found
            }
        };
        handles.requests.inc();
        handles.body_bytes.inc_by(request.body_bytes);
        handles.seconds.observe(request.elapsed.as_secs_f64());
        match outcome {
            Outcome::Hit => self.hits.inc(),
            Outcome::Miss => self.misses.inc(),
            Outcome::Joined => self.joins.inc(),
            Outcome::Stale => self.stale.inc(),
            Outcome::Bypass => self.bypasses.inc(),
            Outcome::None => return,
        };
    }

    fn handles(&self, kind: RequestKind, outcome: Outcome, status: u16) -> Handles {
        let labels = RequestLabels {
            kind,
            outcome,
            status: status.into(),
        };
        let cache = CacheLabel { cache: outcome };
        Handles {
            requests: self.requests.get_or_create_owned(&labels),
            body_bytes: self.body_bytes.get_or_create_owned(&cache),
            seconds: self.seconds.get_or_create_owned(&KindLabel { kind }),
        }
    }

    /// How requests were answered so far, by how the cache took part; those it took no part in are left
    /// out.
    pub fn answered(&self) -> [(Outcome, u64); 5] {
        [
            (Outcome::Hit, self.hits.get()),
            (Outcome::Miss, self.misses.get()),
            (Outcome::Joined, self.joins.get()),
            (Outcome::Stale, self.stale.get()),
            (Outcome::Bypass, self.bypasses.get()),
        ]
    }

    /// Counts a caller that was turned away.
    pub fn denied(&self, reason: Denial) {
        self.denied.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests answered, by what was asked, how the cache took part and the status",
            self.requests.clone(),
        );
        registry.register(
            "response_bytes",
            "Bytes of bodies that clients' connections took, by how the cache took part",
            self.body_bytes.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "From a request's head until its connection had taken the whole answer",
            self.seconds.clone(),
        );
        let totals = [
            ("hits", "Answers from the cache", &self.hits),
            (
                "misses",
                "Answers by a fill that the request began",
                &self.misses,
            ),
            ("joins", "Answers from a fill that was running", &self.joins),
            (
                "stale",
                "Answers from the cache that could not be revalidated",
                &self.stale,
            ),
            (
                "bypasses",
                "Answers from upstream past the cache",
                &self.bypasses,
            ),
        ];
        for (name, help, counter) in totals {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "denied",
            "Callers turned away, by reason",
            self.denied.clone(),
        );
        registry.register(
            "requests_active",
            "Requests being answered",
            self.active.clone(),
        );
    }
}
