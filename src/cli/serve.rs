//! `serve`: runs the proxy.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rustix::process::{Resource, Uid, geteuid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::owner::owner;
use super::service::Service;
use super::settings::Settings;
use super::signals::{Signals, hangups};
use super::start::{Bound, start_text};
use super::{Failure, chain};
use crate::config::{Config, Files, Strings};
use crate::telemetry::{Log, LogFormat, Metrics};

/// How long calls of the system that are still going on after the drain keep the process. A disk that does not
/// answer keeps them for ever.
const LAST_CALLS: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a certificate of yours (--tls-cert, or [tls]) or one by ACME ([tls.acme]) it makes a local CA and prints how clients trust it. Certificates are watched: a renewal is in use within seconds, or at once on SIGHUP. SIGHUP also has the configuration read again; what is wrong with it is told, and changes nothing.\n\nExample:\n  ecr-proxy serve --upstream 000042290000.dkr.ecr.us-west-2.amazonaws.com \\\n    --domain registry.mydomain.com --anonymous-pull"
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
    environment: &'static (dyn Strings + Sync),
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let settings = args.settings;
    let load = move |files| settings.clone().load(environment, files);
    let config = load(Files::Required)?;
    let metrics = Metrics::new();
    let dropped = metrics.log_dropped.clone();
    let _log = Log::start(args.log_format, config.log_filter.as_deref(), dropped)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    count_panics(metrics.panics.clone());
    raise_descriptor_limit(config.server_options().max_connections);
    announce(&config);
    warn_of_another_owner(&config);
    let runtime = super::runtime()?;
    let ended = runtime.block_on(async {
        let signals = Signals::watch()?;
        let hangups = hangups()?;
        let upstreams = config.upstream_options().map_err(|error| Failure::Failed(chain(&error)))?;
        let service = Service::bind(&config, Some(Box::new(load)), upstreams, metrics).await?;
        let local_ca = service.local_ca();
        let text = start_text(
            &config,
            &Bound {
                listen: service.bound(),
                admin: service.admin(),
                local_ca: local_ca.as_ref().map(|(path, print)| (path.as_path(), print.as_str())),
            },
        );
        // Whoever started it may not be listening; clients are.
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            tracing::warn!(%error, "cannot say on standard output what is served");
        }
        tokio::select! {
            () = service.run(signals.first(), hangups) => Ok(()),
            // The second signal means at once.
            () = signals.second() => Err(Failure::Failed("stopped before the drain ended".to_owned())),
        }
    });
    match ended {
        Ok(()) => runtime.shutdown_timeout(LAST_CALLS),
        Err(_) => runtime.shutdown_background(),
    }
    ended
}

/// A task that panics ends alone; that it did is logged and counted.
fn count_panics(panics: Counter) {
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic.location().map(tracing::field::display);
        tracing::error!(
            panic.place = place,
            panic.message = panic.payload_as_str(),
            "panic"
        );
    }));
}

/// Takes every file descriptor the system grants: a connection holds one, and so does each open blob and
/// each connection upstream.
fn raise_descriptor_limit(max_connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    let granted = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < granted) {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    let wanted = 2 * max_connections as u64;
    if granted < wanted {
        tracing::warn!(
            limit = granted,
            wanted,
            "the limit of open files is low for the connections allowed"
        );
    }
}

/// What another user has made is not ours to read, and some of it is only noticed when it is asked for.
fn warn_of_another_owner(config: &Config) {
    let own = geteuid();
    let reads_all = capabilities(None)
        .is_ok_and(|sets| own.is_root() && sets.effective.contains(CapabilitySet::DAC_OVERRIDE));
    let is_another = |owner: Uid| owner != own && !reads_all;
    if let Some((owner, _)) = owner(config).filter(|(owner, _)| is_another(*owner)) {
        tracing::warn!(
            cache.owner = owner.as_raw(),
            user = own.as_raw(),
            "the cache belongs to another user: run as that one, or give cache.dir and server.state_dir with \
             all in them to this one"
        );
    }
}

/// Tells the log the effective values and what is odd about them.
fn announce(config: &Config) {
    let values: serde_json::Map<String, serde_json::Value> = config
        .effective()
        .into_iter()
        .map(|(key, value)| (key, value.into()))
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
