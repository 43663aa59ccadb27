//! `export`: images as a bundle, whose bytes are what it gives.

use super::message::{Event, Export, Warm};
use super::{OperationError, Output, Parts, warm};
use crate::cache::bundle::{ExportError, ExportImage, ExportOptions, Plan};

pub(super) async fn run(
    parts: &Parts,
    request: Export,
    output: &Output,
) -> Result<(), OperationError> {
    if request.images.is_empty() {
        return Err(OperationError::Usage("no image is named".to_owned()));
    }
    let names = parts.names();
    let domain = names.domains().first();
    let images = request.images.iter().map(|name| {
        let repo = names.route(name);
        let repo = repo.map_err(|error| OperationError::Usage(format!("{name}: {error}")))?;
        let mut name = name.clone();
        // What others are to call it is the same whichever way it was asked for.
        let written = names.written(&repo);
        name.domain = written.domain.or_else(|| domain.cloned());
        name.repository = written.repository;
        Ok(ExportImage { repo, name })
    });
    let images = images.collect::<Result<Vec<_>, OperationError>>()?;
    let options = ExportOptions {
        platforms: request.platforms.clone(),
        referrers: request.referrers,
    };
    if !request.offline {
        let wanted = Warm {
            images: request.images,
            platforms: request.platforms,
            referrers: request.referrers,
        };
        match warm::run(parts, wanted, output).await {
            // What could not be fetched may be in the cache all the same; it was told why.
            Ok(()) | Err(OperationError::Failed(_)) => {}
            Err(error @ (OperationError::Usage(_) | OperationError::Gone(_))) => return Err(error),
        }
    }
    let store = parts.store.clone();
    let work = move |output: &Output| {
        let plan = Plan::make(&store, &images, &options)
            .map_err(|incomplete| OperationError::Failed(incomplete.to_string()))?;
        output.tell_blocking(Event::Bundle {
            images: plan.images() as u64,
            blobs: plan.blobs() as u64,
            bytes: plan.bytes(),
        })?;
        plan.write(&store, output.writer()).map_err(|error| {
            if matches!(error, ExportError::Write(_)) && output.is_gone() {
                return OperationError::Gone(super::Gone);
            }
            OperationError::failed(&error)
        })
    };
    output.blocking(work).await
}
