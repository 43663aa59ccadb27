//! `cache refresh`: asks the upstream for tags now.

use std::io::Write;

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Request};
use crate::oci::ImageName;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Layers are fetched when somebody asks for them.\n\nExample:\n  ecr-proxy cache refresh team/app:latest"
)]
pub(super) struct Args {
    /// The image, by its tag
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<ImageName>,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::Refresh {
        images: args.images,
    };
    args.tending.run(environment, request, &mut Text, out)
}

struct Text;

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        let Event::Refreshed {
            image,
            before,
            now,
            stand_in,
        } = event
        else {
            return Ok(());
        };
        let said = match before {
            Some(before) if before == now => format!("unchanged, {now}"),
            Some(before) => format!("{before} -> {now}"),
            None => format!("new, {now}"),
        };
        let by = match stand_in {
            true => ", as the upstream that stands in has it",
            false => "",
        };
        writeln!(out, "{image}: {said}{by}")?;
        Ok(())
    }
}
