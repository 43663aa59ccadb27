//! `remove`: gives images up, with what they alone need.

use super::message::{Event, Removed};
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::{Earnest, GivenUp, Store};
use crate::oci::{Digest, ImageName, Reference, RepoKey};

pub(super) async fn run(
    parts: &Parts,
    images: Vec<ImageName>,
    dry_run: bool,
    output: &Output,
) -> Result<(), OperationError> {
    let mut named = Vec::with_capacity(images.len());
    for image in images {
        named.push((parts.names.route(&image)?, image));
    }
    let store = parts.store.clone();
    let earnest = if dry_run {
        Earnest::Rehearse
    } else {
        Earnest::Do
    };
    let work = output.blocking(move |output| {
        if !store.wait_ready(INDEX_WAIT) {
            return Err(still_counted());
        }
        let count = named.len();
        let mut failed = Vec::new();
        for (repo, image) in named {
            match remove(&store, &repo, &image.reference, earnest) {
                Ok((digest, given_up)) => {
                    let removed = told(&image, digest, given_up, dry_run);
                    output.tell_blocking(Event::Removed(removed))?;
                }
                Err(why) => failed.push(format!("{image} {why}")),
            }
        }
        match failed.len() {
            0 => Ok(()),
            1 if count == 1 => Err(OperationError::Failed(failed.swap_remove(0))),
            _ => Err(OperationError::Failed(format!(
                "not all were removed: {}",
                failed.join("; ")
            ))),
        }
    });
    work.await
}

/// What to say while it is not known yet what is needed.
pub(super) fn still_counted() -> OperationError {
    OperationError::Failed(
        "the cache is still being counted after a start; try again soon".to_owned(),
    )
}

/// Removes a tag, or a manifest with its tags; tells the manifest. `Err` says why not.
fn remove(
    store: &Store,
    repo: &RepoKey,
    reference: &Reference,
    earnest: Earnest,
) -> Result<(Digest, GivenUp), &'static str> {
    const PINNED: &str =
        "is pinned: `ecr-proxy cache pin` lists the pins, `cache unpin` takes one away";
    let records = store.records();
    let digest = match reference {
        Reference::Digest(digest) => *digest,
        Reference::Tag(tag) => records.tag(repo, tag).ok_or("is not in the cache")?.digest,
    };
    if store.is_pinned(repo, reference) {
        return Err(PINNED);
    }
    if let Reference::Tag(tag) = reference {
        let tags = records.tags(repo);
        let is_shared = tags
            .iter()
            .any(|(other, record)| other != tag && record.digest == digest);
        let is_pinned = store.is_pinned(repo, &Reference::Digest(digest));
        if is_shared || is_pinned || is_part(store, repo, &digest) {
            // It is there by another name, too: only this one goes.
            if earnest == Earnest::Do {
                records.forget_tag(repo, tag);
            }
            return Ok((digest, GivenUp::default()));
        }
    }
    let is_stored = records.manifest(repo, &digest).is_some();
    let given_up = store.give_up(repo, &digest, earnest);
    if let (Reference::Tag(tag), Earnest::Do) = (reference, earnest) {
        // Also where its manifest was not there.
        records.forget_tag(repo, tag);
    } else if !is_stored {
        return Err("is not in the cache");
    } else if given_up.manifests == 0 {
        return Err(PINNED);
    }
    Ok((digest, given_up))
}

/// Whether a stored index leads to this manifest.
fn is_part(store: &Store, repo: &RepoKey, digest: &Digest) -> bool {
    let others = store.records().manifests(repo);
    others.iter().any(|other| {
        other.digest != *digest
            && other.is_index()
            && store
                .image(repo, &other.digest)
                .is_some_and(|image| image.manifest(digest).is_some())
    })
}

fn told(image: &ImageName, digest: Digest, given_up: GivenUp, dry_run: bool) -> Removed {
    Removed {
        image: image.to_string(),
        digest,
        manifests: given_up.manifests,
        blobs: given_up.blobs,
        bytes: given_up.bytes,
        left: given_up.left,
        dry_run,
    }
}
