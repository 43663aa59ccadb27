//! `check`: tells in order what works, and how to mend what does not.

mod finding;
mod local;
mod remote;
mod right;
mod route;

pub(super) use finding::{Finding, Verdict};

use std::io::Write;

use right::Question;

use super::Failure;
use super::settings::Settings;
use crate::clock::Clock;
use crate::config::{Config, Files, Strings};
use crate::oci::{ImageName, RepositoryName};
use crate::telemetry::{Heard, Log, LogFormat, Metrics, StartLogError};
use crate::upstream::{Upstream, UpstreamMetrics};

#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("about").args(["as_user", "route"]),
    after_help = "Ends with 0 if nothing fails, 1 if something does, 2 if the configuration is wrong.\n\nExample:\n  ecr-proxy check --config /etc/ecr-proxy/config.toml\n  ecr-proxy check --as ci registry.mydomain.com/team/app:v1 push\n  ecr-proxy check --route library/alpine --ns docker.io"
)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Print a JSON array of findings
    #[arg(long)]
    json: bool,
    /// Try the IAM actions in this repository, where the policy names repositories
    #[arg(long, value_name = "NAME")]
    repository: Option<RepositoryName>,
    /// Explain instead whether USER (or @anonymous) may pull, push or delete IMAGE
    #[arg(long = "as", num_args = 3, value_names = ["USER", "IMAGE", "ACTION"])]
    as_user: Option<Vec<String>>,
    /// Explain instead where IMAGE leads, and by which [[route]]
    #[arg(long, value_name = "IMAGE")]
    route: Option<ImageName>,
    /// Ask for it as containerd does for images named after this registry
    #[arg(long, value_name = "HOST", requires = "about")]
    ns: Option<String>,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let question = args.as_user.as_deref().map(Question::parse).transpose()?;
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
    if let Some(image) = &args.route {
        report.add(route::explain(&config, image, args.ns.as_deref()))?;
        return report.conclude();
    }
    if let Some(question) = question {
        for finding in right::explain(&config, &question, args.ns.as_deref())? {
            report.add(finding)?;
        }
        return report.conclude();
    }
    report.add(local::configuration(&config))?;
    for finding in local::certificate(&config, &clock) {
        report.add(finding)?;
    }
    if let Some(finding) = local::client_ca(&config) {
        report.add(finding)?;
    }
    // Who asks for a log has it; else what AWS or the registry say in detail is part of the findings.
    let (_log, heard) = match config.log_filter.as_deref() {
        Some(filter) => {
            let log = Log::start(LogFormat::Text, Some(filter), Metrics::new().log_dropped);
            (Some(log.map_err(unusable)?), Heard::default())
        }
        None => (None, Heard::start().map_err(unusable)?),
    };
    for finding in remote(&config, args.repository.as_ref(), &heard)? {
        report.add(finding)?;
    }
    report.add(local::clock(&clock))?;
    for finding in local::disk(&config) {
        report.add(finding)?;
    }
    for finding in local::ports(&config) {
        report.add(finding)?;
    }
    report.conclude()
}

fn unusable(error: StartLogError) -> Failure {
    Failure::Usage(error.to_string())
}

/// What the upstream says, if it can be set up at all.
fn remote(
    config: &Config,
    repository: Option<&RepositoryName>,
    heard: &Heard,
) -> Result<Vec<Finding>, Failure> {
    let wrong = |error: &dyn std::error::Error| {
        vec![Finding::fail(
            "upstream",
            super::chain(error),
            "correct [[upstream]]",
        )]
    };
    let options = match config.upstream_options() {
        Ok(options) => options,
        Err(error) => return Ok(wrong(&error)),
    };
    let findings = super::runtime()?.block_on(async {
        let mut findings = Vec::new();
        for (options, configured) in options.into_iter().zip(&config.upstreams) {
            let found = match Upstream::new(options, &UpstreamMetrics::default()) {
                Ok(upstream) => {
                    let rules = &config.access.rules;
                    remote::upstream(&upstream, configured, rules, repository, heard).await
                }
                Err(error) => wrong(&error),
            };
            // Whose they are, where there are several.
            let is_alone = config.upstreams.len() == 1;
            findings.extend(found.into_iter().map(|finding| match is_alone {
                true => finding,
                false => finding.of(&configured.name),
            }));
        }
        findings
    });
    Ok(findings)
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

    /// Ends the output, and the command by what is in it.
    fn conclude(self) -> Result<(), Failure> {
        match self.end()? {
            true => Err(Failure::Told(1)),
            false => Ok(()),
        }
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
