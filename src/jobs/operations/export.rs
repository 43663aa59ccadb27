//! `export`: images as a bundle, whose bytes are what it gives.

use super::message::Event;
use super::{OperationError, Output, Parts};
use crate::cache::bundle::{ExportError, ExportImage, ExportOptions, Plan};
use crate::oci::ImageName;

pub(super) async fn run(
    parts: &Parts,
    images: Vec<ImageName>,
    options: ExportOptions,
    output: &Output,
) -> Result<(), OperationError> {
    if images.is_empty() {
        return Err(OperationError::Usage("no image is named".to_owned()));
    }
    let domain = parts.names.domains.first();
    let images = images.into_iter().map(|mut name| {
        let repo = parts.names.route(&name);
        let repo = repo.map_err(|error| OperationError::Usage(format!("{name}: {error}")))?;
        // What others are to call it is the same whichever way it was asked for.
        name.domain = domain.cloned();
        Ok(ExportImage { repo, name })
    });
    let images = images.collect::<Result<Vec<_>, OperationError>>()?;
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
