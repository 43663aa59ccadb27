//! `cache`: looks at the cache and tends it, whether the proxy runs or not.
//!
//! A command is a request, and how what is told is shown to a person. What it does is in
//! [`crate::jobs::operations`].

mod list;
mod pin;
mod prune;
mod refresh;
mod remove;
mod stats;
mod verify;

use std::io::Write;

use super::Failure;
use crate::config::Strings;

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
    /// Make room: give up what was not used for long, what nothing needs, or what is beyond a size
    Prune(prune::Args),
    /// Keep images whatever happens, or list what is kept
    Pin(pin::PinArgs),
    /// Take pins away
    Unpin(pin::UnpinArgs),
    /// Give images up, with what they alone need
    Remove(remove::Args),
    /// Ask the upstream now what a tag means
    Refresh(refresh::Args),
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
        Command::Prune(args) => prune::run(args, environment, out),
        Command::Pin(args) => pin::pin(args, environment, out),
        Command::Unpin(args) => pin::unpin(args, environment, out),
        Command::Remove(args) => remove::run(args, environment, out),
        Command::Refresh(args) => refresh::run(args, environment, out),
    }
}
