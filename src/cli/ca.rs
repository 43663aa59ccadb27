//! `ca print`: the local CA's certificate.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Subcommand;

use super::Failure;
use super::clients::local_ca_path;
use crate::config::{Config, Files, Flags, Sources, Strings};

#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Example, to trust it on this host:\n  sudo mkdir -p /etc/docker/certs.d/registry.mydomain.com\n  ecr-proxy ca print | sudo tee /etc/docker/certs.d/registry.mydomain.com/ca.crt"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the CA's certificate (PEM)
    #[command(after_help = "Example:\n  ecr-proxy ca print > ca.crt")]
    Print {
        /// Configuration file [default: /etc/ecr-proxy/config.toml if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where the local CA is kept
        #[arg(long, value_name = "DIR")]
        state_dir: Option<String>,
    },
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let Command::Print { config, state_dir } = args.command;
    let mut flags = Flags::default();
    if let Some(state_dir) = state_dir {
        flags.set("server.state_dir", "--state-dir", [state_dir]);
    }
    let state_dir = Config::state_dir(Sources {
        file: config.as_deref(),
        environment,
        flags,
        files: Files::Ignored,
    })?;
    let path = local_ca_path(&state_dir);
    let pem = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Failed(format!(
            "there is no local CA at {}: `ecr-proxy serve` makes one at its first start without \
             tls.cert",
            path.display()
        )),
        _ => Failure::Failed(format!("cannot read {}: {error}", path.display())),
    })?;
    out.write_all(pem.as_bytes())?;
    Ok(())
}
