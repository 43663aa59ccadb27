//! `cache stats`: the cache in figures.

use std::io::Write;

use indicatif::{BinaryBytes, HumanCount};

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Request, Stats};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ecr-proxy cache stats\n  ecr-proxy cache stats --json")]
pub(super) struct Args {
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::Stats;
    args.tending.run(environment, request, &mut Text, out)
}

struct Text;

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        if let Event::Stats(stats) = event {
            out.write_all(text(&stats).as_bytes())?;
        }
        Ok(())
    }
}

fn text(stats: &Stats) -> String {
    let bytes = &stats.bytes;
    let limit = match stats.limit_bytes {
        0 => String::new(),
        limit => {
            let share = bytes.total as f64 * 100.0 / limit as f64;
            format!(" of {}, {share:.1}%", BinaryBytes(limit))
        }
    };
    let mut lines = vec![
        ("in use", format!("{}{limit}", BinaryBytes(bytes.total))),
        (
            "blobs",
            format!("{}, {}", HumanCount(stats.blobs), BinaryBytes(bytes.blobs)),
        ),
        (
            "images",
            format!(
                "{} tags, {} manifests in {} repositories, {} of records",
                HumanCount(stats.tags),
                HumanCount(stats.manifests),
                HumanCount(stats.repositories),
                BinaryBytes(bytes.records)
            ),
        ),
        (
            "downloads",
            format!(
                "{}, {} waiting to be continued",
                BinaryBytes(bytes.downloads),
                stats.interrupted_downloads
            ),
        ),
    ];
    if bytes.removed > 0 {
        let removed = format!("{}, still being read", BinaryBytes(bytes.removed));
        lines.push(("removed", removed));
    }
    if !stats.is_counted {
        lines.push(("note", "the cache is still being counted".to_owned()));
    }
    for fault in &stats.degraded {
        lines.push(("fault", format!("{}, since {}", fault.what, fault.since)));
    }
    if stats.degraded.is_empty() {
        lines.push(("health", "ok".to_owned()));
    }
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<12}{value}\n"))
        .collect()
}
