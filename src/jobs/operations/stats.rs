//! `stats`: the cache in figures.

use std::time::Duration;

use super::message::{BytesByState, Event, Fault, Stats, Time};
use super::{OperationError, Output, Parts};
use crate::cache::Store;

/// How long the figures wait for the index: it loads in well under a second for a million blobs, and
/// where it has to be rebuilt the figures say that they are not all.
pub(super) const INDEX_WAIT: Duration = Duration::from_secs(5);

pub(super) async fn run(parts: &Parts, output: &Output) -> Result<(), OperationError> {
    let store = parts.store.clone();
    let stats = output.blocking(move |_| Ok(stats(&store))).await?;
    output.tell(Event::Stats(stats)).await?;
    Ok(())
}

/// The figures of now. Blocks on the disk for a moment.
fn stats(store: &Store) -> Stats {
    store.wait_ready(INDEX_WAIT);
    let usage = store.usage();
    let degraded = usage.health.degraded.iter().map(|(what, since)| Fault {
        what: what.to_string(),
        since: Time(*since),
    });
    let records = store.records();
    let repositories = records.repositories();
    let (tags, manifests) = repositories.iter().fold((0, 0), |(tags, manifests), repo| {
        (
            tags + records.tags(repo).len() as u64,
            manifests + records.manifests(repo).len() as u64,
        )
    });
    Stats {
        bytes: BytesByState {
            total: usage.total(),
            blobs: usage.final_bytes,
            downloads: usage.temporary_bytes,
            removed: usage.unlinked_bytes,
            records: usage.record_bytes,
        },
        limit_bytes: usage.limit,
        blobs: usage.blobs,
        repositories: repositories.len() as u64,
        tags,
        manifests,
        is_counted: usage.complete,
        interrupted_downloads: store.interrupted().len() as u64,
        degraded: degraded.collect(),
    }
}
