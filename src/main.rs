//! Steps only: parse, run, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use ecr_proxy::cli::{self, Cli};
use ecr_proxy::config::ProcessEnvironment;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::stdout();
    let Err(failure) = cli::run(cli, &ProcessEnvironment, &mut out) else {
        return ExitCode::SUCCESS;
    };
    let text = failure.to_string();
    if !text.is_empty() {
        // With standard error closed the exit code still tells.
        let _ = writeln!(io::stderr(), "ecr-proxy: {text}");
    }
    ExitCode::from(failure.exit_code())
}
