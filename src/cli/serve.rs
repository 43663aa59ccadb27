//! `serve`: runs the proxy.

use std::io::Write;
use std::path::Path;

use super::Failure;
use super::settings::Settings;
use crate::config::{Config, Files, Strings};
use crate::telemetry::{Log, LogFormat, Metrics};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --tls-cert it makes a local CA and prints how clients trust it.\n\nExample:\n  ecr-proxy serve --upstream 000042290000.dkr.ecr.us-west-2.amazonaws.com \\\n    --domain registry.mydomain.com --anonymous-pull"
)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Form of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let config = args.settings.load(environment, Files::Required)?;
    let metrics = Metrics::new();
    let dropped = metrics.log_dropped.clone();
    let _log = Log::start(args.log_format, config.log_filter.as_deref(), dropped)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    announce(&config);
    super::runtime()?.block_on(async { Err(Failure::Failed("not wired".to_owned())) })?;
    out.flush()?;
    Ok(())
}

/// Tells the log the effective values and what is odd about them.
fn announce(config: &Config) {
    let values: serde_json::Map<String, serde_json::Value> = config
        .effective()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let file = config.file.as_deref().map(Path::display);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config.file = file.map(tracing::field::display),
        config.values = %serde_json::Value::Object(values),
        "starting"
    );
    for warning in &config.warnings {
        tracing::warn!(config.warning = %warning, "configuration");
    }
}
