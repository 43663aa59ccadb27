//! `pins`, `pin`, `unpin`: what is kept whatever happens.

use super::message::{Event, PinnedBy};
use super::names::pin_of;
use super::{OperationError, Output, Parts};
use crate::cache::{PinSource, Store};
use crate::oci::{ImagePattern, Which};

/// What is to become of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Pin,
    Unpin,
}

pub(super) async fn list(parts: &Parts, output: &Output) -> Result<(), OperationError> {
    for (pin, source) in parts.store.pins().list() {
        let by = match source {
            PinSource::Configuration => PinnedBy::Configuration,
            PinSource::Operator => PinnedBy::Operator,
        };
        let pin = pin.to_string();
        output.tell(Event::Pin { pin, by }).await?;
    }
    Ok(())
}

/// All of them are understood before the first is changed.
pub(super) async fn change(
    parts: &Parts,
    images: Vec<ImagePattern>,
    change: Change,
    output: &Output,
) -> Result<(), OperationError> {
    let mut pins = Vec::with_capacity(images.len());
    for image in &images {
        parts.names.check(image.domain.as_deref())?;
        let pin = pin_of(image);
        pins.push(pin.map_err(|error| OperationError::Usage(format!("{image}: {error}")))?);
    }
    let store = parts.store.clone();
    let work = output.blocking(move |output| {
        let mut unknown = Vec::new();
        for (pin, image) in pins.into_iter().zip(images) {
            let is_changed = match change {
                Change::Pin => store.pins().pin(pin.clone()),
                Change::Unpin => store.pins().unpin(&pin),
            };
            let is_changed = is_changed.map_err(|error| OperationError::failed(&error))?;
            let event = match change {
                Change::Pin => Event::Pinned {
                    pin: pin.to_string(),
                    is_new: is_changed,
                    images: count(&store, &image),
                },
                Change::Unpin if is_changed => Event::Unpinned {
                    pin: pin.to_string(),
                },
                Change::Unpin => {
                    unknown.push(format!("{pin} is not pinned"));
                    continue;
                }
            };
            output.tell_blocking(event)?;
        }
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(OperationError::Failed(unknown.join("; "))),
        }
    });
    work.await
}

/// How many tags or manifests in the cache the pattern describes.
fn count(store: &Store, image: &ImagePattern) -> u64 {
    let records = store.records();
    let repositories = records.repositories();
    let named = repositories
        .iter()
        .filter(|repo| image.repository.matches(repo.repository.as_str()));
    let counts = named.map(|repo| match &image.which {
        Which::Digest(digest) => {
            let manifests = records.manifests(repo);
            manifests.iter().filter(|m| m.digest == *digest).count()
        }
        Which::Any | Which::Tags(_) => {
            let tags = records.tags(repo);
            tags.iter()
                .filter(|(tag, record)| image.matches(&repo.repository, Some(tag), &record.digest))
                .count()
        }
    });
    counts.sum::<usize>() as u64
}
