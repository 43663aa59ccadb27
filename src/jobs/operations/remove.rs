//! `remove`: gives images up, with what they alone need.

use super::message::{Event, Removed};
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::RemoveError;
use crate::oci::{ImageName, Reference};

pub(super) async fn run(
    parts: &Parts,
    images: Vec<ImageName>,
    dry_run: bool,
    output: &Output,
) -> Result<(), OperationError> {
    let names = parts.names();
    let mut named = Vec::with_capacity(images.len());
    for image in images {
        named.push((names.route(&image)?, image));
    }
    let store = parts.store.clone();
    let work = output.blocking(move |output| {
        if !store.wait_ready(INDEX_WAIT) {
            return Err(still_counted());
        }
        let count = named.len();
        let mut failed = Vec::new();
        for (repo, image) in named {
            let tag = match &image.reference {
                Reference::Tag(tag) => store.records().tag(&repo, tag).map(|record| record.digest),
                Reference::Digest(digest) => Some(*digest),
            };
            match (tag, store.remove(&repo, &image.reference, dry_run)) {
                (Some(digest), Ok(removed)) => output.tell_blocking(Event::Removed(Removed {
                    image: image.to_string(),
                    digest,
                    manifests: removed.manifests,
                    blobs: removed.blobs,
                    bytes: removed.bytes,
                    dry_run,
                }))?,
                (_, Err(error)) => failed.push(format!("{image}: {error}")),
                (None, Ok(_)) => failed.push(format!("{image}: {}", RemoveError::NotFound)),
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
