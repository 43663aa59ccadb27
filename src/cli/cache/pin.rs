//! `cache pin` and `cache unpin`: what is kept whatever happens.

use std::io::Write;

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, PinnedBy, Request};
use crate::oci::ImagePattern;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A pin counts for what is fetched later, too. What is pinned is never evicted, and is served even if\nthe upstream has deleted it. Without IMAGE, lists the pins.\n\nExample:\n  ecr-proxy cache pin team/app:v1 'base/**:release-*'\n  ecr-proxy cache pin"
)]
pub(super) struct PinArgs {
    /// What to keep: repository:tag or repository@digest, in which * stands for part of a name and **
    /// for whole components
    #[arg(value_name = "IMAGE")]
    images: Vec<ImagePattern>,
    #[command(flatten)]
    tending: Tending,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Pins of the configuration (cache.pins) are taken away there.\n\nExample:\n  ecr-proxy cache unpin team/app:v1"
)]
pub(super) struct UnpinArgs {
    /// The pin, as it was made
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<ImagePattern>,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn pin(
    args: PinArgs,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let images = args.images;
    let request = match images.is_empty() {
        true => Request::Pins,
        false => Request::Pin { images },
    };
    args.tending
        .run(environment, request, &mut Text::default(), out)
}

pub(super) fn unpin(
    args: UnpinArgs,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::Unpin {
        images: args.images,
    };
    args.tending
        .run(environment, request, &mut Text::default(), out)
}

#[derive(Default)]
struct Text {
    has_told: bool,
}

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        self.has_told |= !matches!(event, Event::End { .. });
        match event {
            Event::Pin { pin, by } => {
                let by = match by {
                    PinnedBy::Configuration => "  (configuration)",
                    PinnedBy::Operator => "",
                };
                writeln!(out, "{pin}{by}")?;
            }
            Event::Pinned {
                pin,
                is_new,
                images,
            } => {
                let was = if is_new {
                    "pinned"
                } else {
                    "was pinned already"
                };
                let here = match images {
                    0 => "; nothing of it is in the cache yet".to_owned(),
                    count => format!("; {count} in the cache"),
                };
                writeln!(out, "{pin} {was}{here}")?;
            }
            Event::Unpinned { pin } => writeln!(out, "{pin} is no longer pinned")?,
            // Changing pins tells of each, or why not.
            Event::End { error: None } if !self.has_told => writeln!(out, "no pins")?,
            _ => {}
        }
        Ok(())
    }
}
