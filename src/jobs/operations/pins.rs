//! `pins`, `pin`, `unpin`: what is kept whatever happens.

use std::sync::Arc;

use super::message::{Event, PinnedBy};
use super::names::{NoPin, is_about};
use super::{OperationError, Output, Parts};
use crate::cache::{PinSource, Store};
use crate::oci::{ImagePattern, Pattern, Which};

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
    let names = parts.names();
    let mut pins = Vec::with_capacity(images.len());
    for image in &images {
        let wrong = |error: NoPin| OperationError::Usage(format!("{image}: {error}"));
        let found = names.pins(image).map_err(wrong)?;
        let about = names.patterns(image)?;
        let which = &image.which;
        pins.extend(
            found
                .into_iter()
                .map(|pin| (pin, about.clone(), which.clone())),
        );
    }
    let store = parts.store.clone();
    let work = output.blocking(move |output| {
        let mut unknown = Vec::new();
        for (pin, about, which) in pins {
            let is_changed = match change {
                Change::Pin => store.pins().pin(pin.clone()),
                Change::Unpin => store.pins().unpin(&pin),
            };
            let is_changed = is_changed.map_err(|error| OperationError::failed(&error))?;
            let event = match change {
                Change::Pin => Event::Pinned {
                    pin: pin.to_string(),
                    is_new: is_changed,
                    images: count(&store, &about, &which),
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

/// How many tags or manifests in the cache are described.
fn count(store: &Store, about: &[(Arc<str>, Pattern)], which: &Which) -> u64 {
    let records = store.records();
    let repositories = records.repositories();
    let named = repositories.iter().filter(|repo| is_about(about, repo));
    let counts = named.map(|repo| match which {
        Which::Digest(digest) => {
            let manifests = records.manifests(repo);
            manifests.iter().filter(|m| m.digest == *digest).count()
        }
        Which::Any | Which::Tags(_) => {
            let tags = records.tags(repo);
            tags.iter()
                .filter(|(tag, record)| which.matches(Some(tag), &record.digest))
                .count()
        }
    });
    counts.sum::<usize>() as u64
}
