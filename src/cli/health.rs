//! How the mechanisms are, in words for operators.

use std::time::SystemTime;

use super::certificate::Troubles;
use super::mechanisms::Mechanisms;
use crate::admin::{Degraded, Health, Readiness};
use crate::cache::Degradation;
use crate::jobs::Refused;
use crate::upstream::{Outage, Upstream, UpstreamError};

/// What is degraded, asked at each probe. Hits can be served whatever the upstream does, and the upstream
/// whatever the store does.
pub(super) fn readiness(
    mechanisms: Mechanisms,
    certificates: Troubles,
    refused: Refused,
) -> Readiness {
    Readiness::new(move || {
        let faults = mechanisms.store.health().degraded;
        // Whatever else is wrong with a store, what it has can be read.
        let gone = faults
            .iter()
            .find(|(what, _)| *what == Degradation::Missing);
        let unusable = gone.map(|(what, since)| format!("{what}, since {}", time(*since)));
        let mut degraded: Vec<Degraded> = faults
            .iter()
            .map(|(what, since)| Degraded {
                what: "store",
                why: format!("{what}, since {}", time(*since)),
            })
            .collect();
        degraded.extend(certificates.list().into_iter().map(|why| Degraded {
            what: "certificate",
            why,
        }));
        let refused = refused.list().into_iter();
        degraded.extend(refused.map(|(what, since, why)| Degraded {
            what,
            why: format!("what was in use stays since {}: {why}", time(since)),
        }));
        let upstreams = mechanisms.upstreams.all();
        for upstream in upstreams.iter() {
            degraded.extend(upstream_faults(upstream).map(|why| Degraded {
                what: "upstream",
                why: match &upstreams[..] {
                    [_] => why,
                    _ => format!("{}: {why}", upstream.name()),
                },
            }));
        }
        degraded.extend(mechanisms.fills.stale_tags().map(|stale| Degraded {
            what: "tags",
            why: format!(
                "{} answer{} as last confirmed since {}: {}",
                stale.answers,
                if stale.answers == 1 { "" } else { "s" },
                time(stale.since),
                stale.reason
            ),
        }));
        Health { unusable, degraded }
    })
}

/// What of the upstream does not work, each with since when.
fn upstream_faults(upstream: &Upstream) -> impl Iterator<Item = String> {
    let outage = upstream.outage();
    let without_token = outage
        .as_ref()
        .filter(|outage| matches!(outage.cause, UpstreamError::NoToken(_)));
    let token = upstream.token_status();
    let no_credentials = |since, reason: &dyn std::fmt::Display| {
        let since = time(since);
        format!("serving from cache: no credentials since {since}: {reason}")
    };
    let of_token = match (token.failing, token.valid_until, without_token) {
        (Some((since, reason)), None, _) => Some(no_credentials(since, &reason)),
        (Some((_, reason)), Some(until), _) => Some(format!(
            "the token cannot be renewed: {reason}; it is valid until {}",
            time(until)
        )),
        (None, _, Some(outage)) => Some(no_credentials(outage.since, &outage.cause)),
        (None, _, None) => None,
    };
    let of_registry = match without_token {
        Some(_) => None,
        None => outage.map(|Outage { since, cause }| {
            let since = time(since);
            format!("serving from cache: the registry does not answer since {since}: {cause}")
        }),
    };
    let of_storage = upstream.storage_outage().map(|Outage { since, cause }| {
        let since = time(since);
        format!("serving from cache: storage does not answer since {since}: {cause}")
    });
    of_token.into_iter().chain(of_registry).chain(of_storage)
}

fn time(at: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(at)
}
