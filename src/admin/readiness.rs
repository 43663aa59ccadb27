//! Whether hits can be served, and what is degraded.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not listening yet.
    Starting,
    /// Listening.
    Serving,
    /// Asked to end; connections in flight may finish.
    Draining,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// Something that does not work while hits are served all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Which part, such as `upstream` or `store`.
    pub what: &'static str,
    /// Since when and why, for operators; holds no secrets.
    pub why: String,
}

/// How the mechanisms are, asked for at each probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing can be served at all.
    pub unusable: Option<String>,
    /// What does not work while hits are served.
    pub degraded: Vec<Degraded>,
}

/// The phase of the process and a way to ask for its health. Clones share both.
#[derive(Clone)]
pub struct Readiness {
    phase: Arc<AtomicU8>,
    health: Arc<dyn Fn() -> Health + Send + Sync>,
}

impl Readiness {
    /// In [`Phase::Starting`]; `health` is called at each probe and must not block.
    pub fn new(health: impl Fn() -> Health + Send + Sync + 'static) -> Self {
        Self {
            phase: Arc::new(AtomicU8::new(0)),
            health: Arc::new(health),
        }
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Starting => 0,
            Phase::Serving => 1,
            Phase::Draining => 2,
        };
        self.phase.store(number, Ordering::Release);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    pub(super) fn state(&self) -> State {
        State {
            phase: self.phase(),
            health: (self.health)(),
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

/// What one probe saw.
pub(super) struct State {
    phase: Phase,
    health: Health,
}

impl State {
    pub(super) fn ready(&self, strict: bool) -> bool {
        self.phase == Phase::Serving
            && self.health.unusable.is_none()
            && (!strict || self.health.degraded.is_empty())
    }

    /// What is wrong, part by part.
    pub(super) fn troubles(&self) -> Vec<(&'static str, &str)> {
        let unusable = self.health.unusable.iter();
        let unusable = unusable.map(|why| ("unusable", why.as_str()));
        let degraded = self.health.degraded.iter();
        unusable
            .chain(degraded.map(|part| (part.what, part.why.as_str())))
            .collect()
    }

    pub(super) fn to_json(&self) -> String {
        format!("{}\n", self.document())
    }

    pub(super) fn document(&self) -> serde_json::Value {
        let degraded: Vec<serde_json::Value> = self
            .health
            .degraded
            .iter()
            .map(|part| serde_json::json!({ "what": part.what, "why": part.why }))
            .collect();
        let mut page = serde_json::json!({
            "ready": self.ready(false),
            "phase": self.phase.as_str(),
            "degraded": degraded,
        });
        if let Some(reason) = &self.health.unusable {
            page["unusable"] = reason.as_str().into();
        }
        page
    }
}
