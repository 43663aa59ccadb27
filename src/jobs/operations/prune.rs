//! `prune`: gives up what was not used for long, what nothing needs, or what is beyond a size.

use std::time::{Duration, SystemTime};

use super::message::{Event, Pruned};
use super::remove::still_counted;
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::Prune;
use crate::clock::Clock;

/// What is to go: what all of these say that are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) older_than: Option<Duration>,
    pub(super) to_bytes: Option<u64>,
    pub(super) unreferenced: bool,
    pub(super) dry_run: bool,
}

pub(super) async fn run(
    parts: &Parts,
    wanted: Wanted,
    output: &Output,
) -> Result<(), OperationError> {
    if wanted.older_than.is_none() && wanted.to_bytes.is_none() && !wanted.unreferenced {
        let why = "say what is to go: what is older than some time, what nothing needs, or all beyond a size";
        return Err(OperationError::Usage(why.to_owned()));
    }
    let store = parts.store.clone();
    let work = output.blocking(move |output| {
        if !store.wait_ready(INDEX_WAIT) {
            return Err(still_counted());
        }
        let now = Clock::system().now();
        let prune = Prune {
            unreferenced: wanted.unreferenced,
            // What is older than time itself is nothing. Uses are known to the second that they fell in,
            // and one that is just so old is old enough.
            unused_since: wanted.older_than.map(|age| {
                let since = now.checked_sub(age);
                since.map_or(SystemTime::UNIX_EPOCH, |since| since + Duration::from_secs(1))
            }),
            down_to: wanted.to_bytes,
        };
        let pruned = store.prune(&prune, wanted.dry_run);
        let used_bytes = store.usage().total();
        output.tell_blocking(Event::Pruned(Pruned {
            manifests: pruned.manifests,
            blobs: pruned.blobs,
            bytes: pruned.bytes,
            used_bytes,
            dry_run: wanted.dry_run,
        }))?;
        match wanted.to_bytes {
            Some(bytes) if used_bytes > bytes && !wanted.dry_run => {
                Err(OperationError::Failed(format!(
                    "{used_bytes} bytes are still used: what is left is pinned, in use, records, or was not asked for"
                )))
            }
            _ => Ok(()),
        }
    });
    work.await
}
