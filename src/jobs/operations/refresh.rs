//! `refresh`: asks the upstream now what tags mean, or one that stands in for it while it cannot answer.

use super::message::Event;
use super::{OperationError, Output, Parts};
use crate::fill::Found;
use crate::oci::{ImageName, Reference};

pub(super) async fn run(
    parts: &Parts,
    images: Vec<ImageName>,
    output: &Output,
) -> Result<(), OperationError> {
    let mut tags = Vec::with_capacity(images.len());
    for image in images {
        let repo = parts.names().route(&image)?;
        match &image.reference {
            Reference::Tag(tag) => tags.push((repo, tag.clone(), image)),
            Reference::Digest(_) => {
                let why = format!("{image}: a digest always means the same; name a tag");
                return Err(OperationError::Usage(why));
            }
        }
    }
    let mut failed = Vec::new();
    for (repo, tag, image) in tags {
        match parts.fills.refresh(&repo, &tag).await {
            Ok(Found { what, how }) if how.is_stale() => {
                let now = what.now;
                failed.push(format!(
                    "{image}: the upstream has it no more; a pin keeps {now}"
                ));
            }
            Ok(Found { what, how }) => {
                let event = Event::Refreshed {
                    image: image.to_string(),
                    before: what.before,
                    now: what.now,
                    stand_in: how.is_of_another(),
                };
                output.tell(event).await?;
            }
            Err(error) => match OperationError::failed(&error) {
                OperationError::Failed(why) => failed.push(format!("{image}: {why}")),
                other => return Err(other),
            },
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(OperationError::Failed(failed.join("; "))),
    }
}
