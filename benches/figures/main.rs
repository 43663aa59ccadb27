//! Does the proxy cost what the design says, beside nginx and docker-registry on the same machine?
//!
//! One process is the load, the simulated ECR and the judge, pinned to one core; the servers run on
//! another. Rounds are interleaved, so that what drifts drifts for all; medians are compared. See
//! `benches/README.md` for how to run it and what it printed.

#![deny(unsafe_code)]

mod floor;
mod load;
#[path = "../../tests/support/pki.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod pki;
mod process;
mod ranges;
mod skim;
mod stage;
mod table;
mod work;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use stage::Stage;
use work::Figures;

/// Set in the environment once the process runs on its core.
const PINNED: &str = "FIGURES_PINNED";

fn main() {
    if let Some(listen) = floor::listen() {
        floor::serve(listen);
        return;
    }
    let mut rounds = 5;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                rounds = number.expect("--rounds N");
            }
            figure => wanted.push(figure.to_owned()),
        }
    }
    if std::env::var_os(PINNED).is_none() {
        let this = std::env::current_exe().expect("a program has a path");
        let mut command = Command::new("taskset");
        command.args(["-c", process::LOAD_CORE]).arg(this);
        let error = command
            .args(std::env::args_os().skip(1))
            .env(PINNED, "1")
            .env(process::MALLOC, process::KEEP_MEMORY)
            .exec();
        panic!("taskset does not start: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let figures = Figures {
            stage: Stage::set().await,
            rounds,
        };
        let rows = figures.measure(&wanted).await;
        table::print(&rows);
    });
}
