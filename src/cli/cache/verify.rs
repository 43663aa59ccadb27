//! `cache verify`: hashes everything again.

use std::io::Write;

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::cli::Failure;
use crate::cli::tending::{Render, Tending};
use crate::config::Strings;
use crate::jobs::operations::{Event, Request, Verified};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is damaged is taken away and fetched again: at once, or as soon as the upstream answers a\nrunning proxy. Ends with 1 if there was damage.\n\nExample:\n  ecr-proxy cache verify"
)]
pub(super) struct Args {
    #[command(flatten)]
    tending: Tending,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let bar = ProgressBar::hidden();
    args.tending
        .run(environment, Request::Verify, &mut Text { bar }, out)
}

struct Text {
    /// Shown on a terminal alone.
    bar: ProgressBar,
}

impl Text {
    fn line(&self, out: &mut dyn Write, line: &str) -> Result<(), Failure> {
        Ok(self.bar.suspend(|| writeln!(out, "{line}"))?)
    }
}

impl Render for Text {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        match event {
            Event::Verifying { bytes, total_bytes } => {
                if self.bar.is_hidden() {
                    self.bar = bar(total_bytes);
                }
                self.bar.set_length(total_bytes.max(bytes));
                self.bar.set_position(bytes);
                Ok(())
            }
            Event::Damaged { digest, damage } => {
                self.line(out, &format!("DAMAGED {digest}: {damage}; taken away"))
            }
            Event::Healed { digest } => self.line(out, &format!("healed {digest}: fetched again")),
            Event::DamagedRecords {
                repository,
                stretches,
                ..
            } => self.line(
                out,
                &format!(
                    "DAMAGED records of {repository}: {stretches} stretches; the rest is kept"
                ),
            ),
            Event::Unreadable { path, reason } => {
                self.line(out, &format!("UNREADABLE {path}: {reason}"))
            }
            Event::Foreign { path } => {
                self.line(out, &format!("foreign {path}: not the cache's, left alone"))
            }
            Event::Verified(sum) => {
                self.bar.finish_and_clear();
                out.write_all(summary(&sum).as_bytes())?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style =
        "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

fn summary(sum: &Verified) -> String {
    let mut text = format!(
        "{} of {} blobs are sound, {} hashed; records of {} repositories read\n",
        HumanCount(sum.sound),
        HumanCount(sum.sound + sum.damaged),
        BinaryBytes(sum.bytes),
        HumanCount(sum.repositories)
    );
    if sum.damaged > 0 {
        text.push_str(&format!(
            "{} of {} damaged blobs are fetched again\n",
            HumanCount(sum.healed),
            HumanCount(sum.damaged),
        ));
    }
    text
}
