//! `cache prune`: makes room.

use std::io::Write;
use std::time::Duration;

use indicatif::BinaryBytes;

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::{self, Strings};
use crate::jobs::operations::{Event, Pruned, Request};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With several of these, only what all of them say goes. What is pinned or being read stays.\n\nExample:\n  ecr-proxy cache prune --older-than 30d\n  ecr-proxy cache prune --to 50GiB --dry-run"
)]
#[group(id = "what", required = true, multiple = true, args = ["older_than", "to", "unreferenced"])]
pub(super) struct Args {
    /// Images that were not used for this long, such as 30d
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    older_than: Option<Duration>,
    /// What was not used for longest, until this much is left, such as 50GiB
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    to: Option<u64>,
    /// Blobs that no image in the cache needs
    #[arg(long)]
    unreferenced: bool,
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
    let request = Request::Prune {
        older_than_seconds: args.older_than.map(|age| age.as_secs()),
        to_bytes: args.to,
        unreferenced: args.unreferenced,
        dry_run: args.dry_run,
    };
    args.tending.run(environment, request, &mut Text, out)
}

struct Text;

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        if let Event::Pruned(pruned) = event {
            writeln!(out, "{}", line(&pruned))?;
        }
        Ok(())
    }
}

fn line(pruned: &Pruned) -> String {
    format!(
        "{}removed: {} blobs, {}; {} in use",
        if pruned.dry_run { "would be " } else { "" },
        pruned.blobs,
        BinaryBytes(pruned.bytes),
        BinaryBytes(pruned.used_bytes)
    )
}
