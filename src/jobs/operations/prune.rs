//! `prune`: gives up what was not used for long, what nothing needs, or all beyond a size.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::list::last_use;
use super::message::{Event, Pruned};
use super::remove::still_counted;
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::{Earnest, GivenUp, Store};
use crate::clock::Clock;
use crate::oci::{Digest, RepoKey};

/// What is to go.
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
        let pruned = prune(&store, wanted, output)?;
        let used_bytes = store.usage().total();
        output.tell_blocking(Event::Pruned(Pruned {
            manifests: pruned.manifests,
            blobs: pruned.blobs,
            bytes: pruned.bytes,
            left: pruned.left,
            used_bytes,
            dry_run: wanted.dry_run,
        }))?;
        match wanted.to_bytes {
            Some(bytes) if used_bytes > bytes && !wanted.dry_run => Err(OperationError::Failed(
                format!("{used_bytes} bytes are still used: what is left is pinned or in use"),
            )),
            _ => Ok(()),
        }
    });
    work.await
}

fn prune(store: &Store, wanted: Wanted, output: &Output) -> Result<GivenUp, OperationError> {
    let earnest = if wanted.dry_run {
        Earnest::Rehearse
    } else {
        Earnest::Do
    };
    let mut pruned = GivenUp::default();
    if let Some(age) = wanted.older_than {
        let now = Clock::system().now();
        let before = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        for repo in store.records().repositories() {
            for digest in unused_since(store, &repo, before) {
                pruned = pruned.and(store.give_up(&repo, &digest, earnest));
                if output.is_gone() {
                    return Err(super::Gone.into());
                }
            }
        }
        pruned = pruned.and(store.give_up_unneeded(Some(before), earnest));
    }
    if wanted.unreferenced {
        pruned = pruned.and(store.give_up_unneeded(None, earnest));
    }
    if let Some(bytes) = wanted.to_bytes {
        pruned = pruned.and(store.shrink_to(bytes, earnest));
    }
    Ok(pruned)
}

/// The images of a repository that were neither used nor confirmed by the upstream since `before`. What is
/// part of another image goes when that does.
fn unused_since(store: &Store, repo: &RepoKey, before: SystemTime) -> Vec<Digest> {
    let manifests = store.records().manifests(repo);
    let mut parts = HashSet::new();
    let mut unused = Vec::new();
    for manifest in &manifests {
        let Some(image) = store.image(repo, &manifest.digest) else {
            continue;
        };
        parts.extend(image.manifests.iter().skip(1).map(|part| part.digest));
        let used = last_use(store, &image).unwrap_or(manifest.checked_at);
        if used < before && manifest.subject.is_none() {
            unused.push(manifest.digest);
        }
    }
    unused.retain(|digest| !parts.contains(digest));
    unused
}
