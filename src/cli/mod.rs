//! The commands, one file each.
//!
//! A command is handed the environment and an output and returns its end; only `main` touches
//! the process. Exit codes: 0 fine, 1 it failed, 2 wrong usage or configuration.

mod ca;
mod cache;
mod certificate;
mod challenge_door;
mod check;
mod client_certificates;
mod client_config;
mod clients;
mod demo;
mod export;
mod hash_password;
mod health;
mod hello;
mod iam_policy;
mod import;
mod listening;
mod mechanisms;
mod owner;
mod puller;
mod running;
mod serve;
mod service;
mod settings;
mod signals;
mod site;
pub mod start;
mod tending;
mod users;
mod warm;

use std::fmt;
use std::io::{self, Write};

use clap::{Parser, Subcommand};

use crate::config::{Faults, Strings};
use crate::telemetry::chain;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ecr-proxy",
    version,
    about = "The caching front door for AWS ECR, under your own domain",
    arg_required_else_help = true,
    after_help = "Example, enough to run it:\n  ecr-proxy serve --upstream 000042290000.dkr.ecr.us-west-2.amazonaws.com \\\n    --domain registry.mydomain.com --anonymous-pull"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Serve(serve::Args),
    /// Show it: a simulated ECR, the proxy in front, two pulls
    Demo(demo::Args),
    /// Tell what works and what does not
    Check(check::Args),
    /// Fill the cache with images before anybody asks for them
    Warm(warm::Args),
    /// Look at and tend the cache, whether the proxy runs or not
    Cache(cache::Args),
    /// Write images from the cache to a bundle, to be carried where no wire goes
    Export(export::Args),
    /// Take a bundle into the cache
    Import(import::Args),
    /// Print the least AWS policy for this configuration
    IamPolicy(iam_policy::Args),
    /// Make a line for the user file
    HashPassword(hash_password::Args),
    /// Print ready-to-paste client set-up for this configuration
    ClientConfig(client_config::Args),
    /// The local CA
    Ca(ca::Args),
}

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong: exit code 2.
    Configuration(Faults),
    /// It was used wrongly, or a file that the configuration names holds what it should not: exit code 2.
    Usage(String),
    /// It failed: exit code 1.
    Failed(String),
    /// It failed, and has said so itself on its output, or nobody reads that any more: this exit code.
    Told(u8),
}

impl Failure {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) | Self::Usage(_) => 2,
            Self::Failed(_) => 1,
            Self::Told(code) => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(faults) => faults.fmt(f),
            Self::Usage(reason) | Self::Failed(reason) => f.write_str(reason),
            Self::Told(_) => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        Self::Configuration(faults)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Who reads the output has heard enough, and does not want to hear of that.
            io::ErrorKind::BrokenPipe => Self::Told(1),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Why it did not end well; [`Failure::exit_code`] says with which code the process should end.
pub fn run(
    cli: Cli,
    environment: &'static (dyn Strings + Sync),
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(args, environment, out),
        Command::Demo(args) => demo::run(args, out),
        Command::Cache(args) => cache::run(args, environment, out),
        Command::Export(args) => export::run(args, environment, out),
        Command::Import(args) => import::run(args, environment, out),
        Command::Check(args) => check::run(args, environment, out),
        Command::Warm(args) => warm::run(args, environment, out),
        Command::IamPolicy(args) => iam_policy::run(args, environment, out),
        Command::HashPassword(args) => hash_password::run(&args, out),
        Command::ClientConfig(args) => client_config::run(args, environment, out),
        Command::Ca(args) => ca::run(args, environment, out),
    }
}

/// The runtime of a command.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let mut commands: Vec<_> = command.get_subcommands().cloned().collect();
        while let Some(mut sub) = commands.pop() {
            if sub.get_name() == "help" {
                continue;
            }
            let help = sub.render_long_help().to_string();
            let examples = help.split_once("Example");
            let (_, examples) = examples.unwrap_or_else(|| panic!("{}", sub.get_name()));
            // A command that is broken by the terminal cannot be copied from it.
            for line in examples.lines() {
                assert!(line.len() <= 100, "{}: {line}", sub.get_name());
            }
            commands.extend(sub.get_subcommands().cloned());
        }
    }
}
