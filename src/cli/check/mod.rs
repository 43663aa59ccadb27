//! `check`: tells in order what works, and how to mend what does not.

mod finding;
mod local;

pub(super) use finding::{Finding, Verdict};

use std::io::Write;

use super::Failure;
use super::settings::Settings;
use crate::clock::Clock;
use crate::config::{Files, Strings};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 if nothing fails, 1 if something does, 2 if the configuration is wrong.\n\nExample:\n  ecr-proxy check --config /etc/ecr-proxy/config.toml"
)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON array of findings
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let clock = Clock::system();
    let mut report = Report::new(args.json, out);
    let config = match args.settings.load(environment, Files::Required) {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults.iter() {
                report.add(Finding::fail("configuration", fault.to_string(), ""))?;
            }
            report.end()?;
            return Err(Failure::Told(2));
        }
    };
    report.add(local::configuration(&config))?;
    for finding in local::certificate(&config, &clock) {
        report.add(finding)?;
    }
    report.add(local::clock(&clock))?;
    for finding in local::disk(&config) {
        report.add(finding)?;
    }
    for finding in local::ports(&config) {
        report.add(finding)?;
    }
    if report.end()? {
        Err(Failure::Told(1))
    } else {
        Ok(())
    }
}

/// Findings on their way out: lines as they come, or one JSON array at the end.
struct Report<'a> {
    json: bool,
    out: &'a mut dyn Write,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    fn new(json: bool, out: &'a mut dyn Write) -> Self {
        Self {
            json,
            out,
            findings: Vec::new(),
        }
    }

    fn add(&mut self, finding: Finding) -> std::io::Result<()> {
        if !self.json {
            writeln!(self.out, "{finding}")?;
            self.out.flush()?;
        }
        self.findings.push(finding);
        Ok(())
    }

    /// Ends the output; tells whether anything failed.
    fn end(self) -> std::io::Result<bool> {
        if self.json {
            let findings: Vec<_> = self.findings.iter().map(Finding::to_json).collect();
            writeln!(self.out, "{:#}", serde_json::Value::Array(findings))?;
        }
        let fails = |finding: &Finding| finding.verdict() == Verdict::Fail;
        Ok(self.findings.iter().any(fails))
    }
}
