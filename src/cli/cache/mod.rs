//! `cache`: looks at the cache and tends it, whether the proxy runs or not.
//!
//! A command is a request, and how what is told is shown to a person. What it does is in
//! [`crate::jobs::operations`].

mod list;
mod stats;
mod verify;

use std::io::Write;

use super::Failure;
use super::settings::Settings;
use super::tending::{JsonLines, Render, tend};
use crate::config::Strings;
use crate::jobs::operations::{Input, Request};

const ABOUT_EXIT: &str = "Works beside a running proxy, through its admin socket, and alone on a stopped one.\n\
     Ends with 0 if all is well, 1 if it failed, 2 if it was used wrongly.";

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{ABOUT_EXIT}\n\nExample:\n  ecr-proxy cache stats"))]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The images in the cache, and how much of each is there
    List(list::Args),
    /// The cache in figures
    Stats(stats::Args),
    /// Hash everything again, and take the damaged away
    Verify(verify::Args),
}

/// What every one of these commands takes.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    settings: Settings,
    /// Print what is told as JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Asks for an operation and shows what is told.
    fn run(
        self,
        environment: &dyn Strings,
        request: Request,
        render: &mut dyn Render,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let render = if self.json { &mut JsonLines } else { render };
        tend(
            self.settings,
            environment,
            request,
            Input::none(),
            render,
            out,
        )
    }
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match args.command {
        Command::List(args) => list::run(args, environment, out),
        Command::Stats(args) => stats::run(args, environment, out),
        Command::Verify(args) => verify::run(args, environment, out),
    }
}
