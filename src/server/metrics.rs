//! What the server counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the server counts. The silent form is [`ServerMetrics::default`], registered nowhere.
#[derive(Clone, Debug, Default)]
pub struct ServerMetrics {
    /// Connections taken from the listeners, refused ones included.
    pub connections_accepted: Counter,
    /// Connections that are open.
    pub connections_open: Gauge,
    /// Connections closed at once because a cap was reached.
    pub connections_refused: Counter,
    /// Idle connections closed because all places were taken and somebody else had fewer.
    pub connections_displaced: Counter,
    /// HTTP/2 connections closed because of too many frames that ask for nothing.
    pub connections_flooded: Counter,
    /// TLS handshakes that failed or were not finished in time.
    pub handshake_failures: Counter,
    /// Connections closed because the client sent or took nothing in time; idle ones apart.
    pub deadline_closed: Counter,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_errors: Counter,
}

impl ServerMetrics {
    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            (
                "connections",
                "Connections taken from the listeners",
                &self.connections_accepted,
            ),
            (
                "connections_refused",
                "Connections closed because a cap was reached",
                &self.connections_refused,
            ),
            (
                "connections_displaced",
                "Idle connections closed to make room for clients that had fewer",
                &self.connections_displaced,
            ),
            (
                "connections_flooded",
                "HTTP/2 connections closed because of too many frames that ask for nothing",
                &self.connections_flooded,
            ),
            (
                "handshake_failures",
                "TLS handshakes that failed or were not finished in time",
                &self.handshake_failures,
            ),
            (
                "connections_expired",
                "Connections closed because the client sent or took nothing in time",
                &self.deadline_closed,
            ),
            (
                "accept_errors",
                "Accepts that failed for want of descriptors or memory",
                &self.accept_errors,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "connections_open",
            "Connections that are open",
            self.connections_open.clone(),
        );
    }
}
