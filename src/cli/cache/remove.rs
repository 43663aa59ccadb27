//! `cache remove`: gives images up.

use std::io::Write;

use indicatif::BinaryBytes;

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Removed, Request};
use crate::oci::ImageName;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Blobs that other images need stay. Whoever is pulling meanwhile is served to the end. The upstream\nis not touched: a client that asks again gets the image from there.\n\nExample:\n  ecr-proxy cache remove team/app:v1 --dry-run"
)]
pub(super) struct Args {
    /// The image; by digest it goes with all its tags
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<ImageName>,
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::Remove {
        images: args.images,
        dry_run: args.dry_run,
    };
    args.tending.run(environment, request, &mut Text, out)
}

struct Text;

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        if let Event::Removed(removed) = event {
            writeln!(out, "{}", line(&removed))?;
        }
        Ok(())
    }
}

fn line(removed: &Removed) -> String {
    let (would, image) = (
        if removed.dry_run { "would be " } else { "" },
        &removed.image,
    );
    if removed.manifests == 0 {
        return format!("{image}: {would}removed; the image stays by another name");
    }
    format!(
        "{image}: {would}removed, {} manifests and {} blobs, {}",
        removed.manifests,
        removed.blobs,
        BinaryBytes(removed.bytes)
    )
}
