//! `demo`: a simulated ECR, the proxy in front of it, and two pulls that show what the proxy is for.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::puller::Puller;
use super::service::Service;
use super::signals::Signals;
use super::{Failure, chain, hello, site};
use crate::config::{Config, Files, Flags, Sources, Strings};
use crate::simulator::{
    BlobSource, FULL_ACCESS_KEY, Fault, ImageSpec, Layer, LayerFile, Listener, Pattern, Simulator,
};
use crate::telemetry::{Log, LogFormat, Metrics};
use crate::upstream::{Auth, AwsOptions, Secret, StaticKeys};

const DOMAIN: &str = "registry.mydomain.test";
const REPOSITORY: &str = "demo/hello";
const TAG: &str = "v1";

/// The simulated line to AWS, in bytes per second: that of a good office.
const LINE_RATE: u64 = 12 * 1024 * 1024;
/// Its delay, for each request.
const LINE_DELAY: Duration = Duration::from_millis(60);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ecr-proxy demo            # pulls twice, then stays up for your own client\n  ecr-proxy demo --once     # ends after the pulls\n  ecr-proxy demo --site edge   # and leaves what a proxy of your own needs in edge/"
)]
pub(super) struct Args {
    /// End after the pulls
    #[arg(long)]
    once: bool,
    /// Where to serve plain HTTP for clients on this host; port 0 chooses a free one
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5080")]
    listen: String,
    /// Also make a folder for a site of your own: a configuration for `serve` in front of the same simulated
    /// ECR, and the environment with its keys
    #[arg(long, value_name = "FOLDER", conflicts_with = "once")]
    site: Option<PathBuf>,
}

pub(super) fn run(args: Args, out: &mut dyn Write) -> Result<(), Failure> {
    let folder = tempfile::Builder::new()
        .prefix("ecr-proxy-demo-")
        .tempdir()?;
    let metrics = Metrics::new();
    let dropped = metrics.log_dropped.clone();
    let _log = Log::start(LogFormat::Text, Some("warn"), dropped)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    super::runtime()?.block_on(async {
        let signals = Signals::watch()?;
        let simulator = simulated_ecr().await?;
        let config = configuration(folder.path(), args.listen, simulator.registry_host())?;
        let service = serve(&config, &simulator, metrics).await?;
        tell(out, &simulator, &service)?;
        let plain = service
            .bound()
            .iter()
            .find(|listen| !listen.tls)
            .map(|listen| listen.address);
        let puller = puller(&service)?;

        let (stop, mut stopped) = watch::channel(false);
        // Nothing of a demonstration is read again.
        let (_, hangups) = mpsc::channel(1);
        let shutdown = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let running = tokio::spawn(service.run(shutdown, hangups));
        let outcome = pull_twice(out, &simulator, &puller).await;
        if outcome.is_ok() && !args.once {
            if let Some(address) = plain {
                invite(out, &address.to_string())?;
            }
            if let Some(folder) = &args.site {
                site::make(folder, &simulator)?;
                tell_site(out, folder)?;
            }
            out.flush()?;
            signals.first().await;
        }
        stop.send_replace(true);
        let _ = running.await;
        simulator.shutdown().await;
        outcome
    })
}

fn configuration(folder: &Path, listen: String, registry: String) -> Result<Config, Failure> {
    let mut flags = Flags::default();
    let path = |name: &str| folder.join(name).display().to_string();
    for (key, flag, values) in [
        ("upstream.registry", "--upstream", vec![registry]),
        ("server.domains", "--domain", vec![DOMAIN.to_owned()]),
        (
            "server.listen",
            "--listen",
            vec!["https://127.0.0.1:0".to_owned(), listen],
        ),
        ("server.state_dir", "--state-dir", vec![path("state")]),
        ("server.admin", "--admin", vec!["off".to_owned()]),
        (
            "server.admin_socket",
            "--admin-socket",
            vec!["off".to_owned()],
        ),
        ("cache.dir", "--cache-dir", vec![path("cache")]),
        ("cache.max_size", "--max-size", vec!["1GiB".to_owned()]),
        // It keeps some MiB for a moment, and is to show a hit on a disk that is nearly full, too.
        ("cache.min_free", "--min-free", vec!["64MiB".to_owned()]),
        (
            "access.anonymous",
            "--anonymous-pull",
            vec!["pull".to_owned()],
        ),
    ] {
        flags.set(key, flag, values);
    }
    Ok(Config::load(Sources {
        // An empty one: the demo takes no configuration.
        file: Some(Path::new("/dev/null")),
        environment: &Nothing,
        flags,
        files: Files::Ignored,
    })?)
}

/// The demo needs no environment and takes none.
struct Nothing;

impl Strings for Nothing {
    fn get(&self, _: &str) -> Option<String> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An ECR with an image in it, at the far end of a line.
async fn simulated_ecr() -> Result<Simulator, Failure> {
    let simulator = Simulator::builder()
        .start()
        .await
        .map_err(|error| Failure::Failed(format!("the simulated ECR does not start: {error}")))?;
    let data = BlobSource::generated(7, 24 * 1024 * 1024).read(0..24 * 1024 * 1024);
    let mut layers = vec![Layer::Files(vec![LayerFile::plain(
        "data/weights.bin",
        data,
    )])];
    if let Some(program) = hello::program(std::env::consts::ARCH) {
        layers.push(Layer::Files(vec![LayerFile::executable("hello", program)]));
    }
    let platform = match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        _ => "linux/amd64",
    };
    let image = ImageSpec::layers(layers)
        .platforms([platform])
        .command(["/hello"]);
    simulator.push_image(REPOSITORY, TAG, image);
    for listener in [Listener::Registry, Listener::Storage] {
        let slow = [Fault::Delay(LINE_DELAY), Fault::Rate(LINE_RATE)];
        simulator
            .faults()
            .on(listener, "*", Pattern::any())
            .all(slow);
    }
    Ok(simulator)
}

/// The proxy as `serve` runs it, logged in to the simulated account.
async fn serve(
    config: &Config,
    simulator: &Simulator,
    metrics: Metrics,
) -> Result<Service, Failure> {
    let mut upstreams = config
        .upstream_options()
        .map_err(|error| Failure::Failed(chain(&error)))?;
    for upstream in &mut upstreams {
        let endpoint = simulator.endpoint().parse();
        upstream.endpoint = Some(endpoint.map_err(|_| Failure::Failed("no endpoint".to_owned()))?);
        upstream.auth = Auth::Aws(AwsOptions {
            keys: Some(StaticKeys {
                access_key_id: FULL_ACCESS_KEY.to_owned(),
                secret_access_key: Secret::new("simulated"),
            }),
            api_endpoint: Some(simulator.api_endpoint()),
            ..AwsOptions::default()
        });
    }
    Service::bind(config, None, upstreams, metrics).await
}

fn puller(service: &Service) -> Result<Puller, Failure> {
    let tls = service
        .bound()
        .iter()
        .find(|listen| listen.tls)
        .map(|listen| listen.address);
    let ca = service
        .local_ca()
        .map(|(path, _)| std::fs::read_to_string(path))
        .transpose()?;
    match (tls, ca) {
        (Some(address), Some(ca_pem)) => Ok(Puller {
            address,
            domain: DOMAIN.to_owned(),
            ca_pem,
        }),
        _ => Err(Failure::Failed(
            "the demo's own listener is missing".to_owned(),
        )),
    }
}

fn tell(out: &mut dyn Write, simulator: &Simulator, service: &Service) -> std::io::Result<()> {
    let tls = service.bound().iter().find(|listen| listen.tls);
    writeln!(
        out,
        "A simulated ECR answers as {}",
        simulator.registry_host()
    )?;
    writeln!(
        out,
        "  behind a line of {} MiB/s with {} ms of delay; it holds {REPOSITORY}:{TAG}.",
        LINE_RATE / (1024 * 1024),
        LINE_DELAY.as_millis()
    )?;
    writeln!(out, "ecr-proxy stands in front of it as {DOMAIN}")?;
    if let Some(tls) = tls {
        writeln!(out, "  on {tls}, with a certificate of its own local CA.\n")?;
    }
    Ok(())
}

async fn pull_twice(
    out: &mut dyn Write,
    simulator: &Simulator,
    puller: &Puller,
) -> Result<(), Failure> {
    let mut pulls = Vec::new();
    for ordinal in ["First", "Second"] {
        simulator.journal().clear();
        let pulled = puller
            .pull(REPOSITORY, TAG)
            .await
            .map_err(|error| Failure::Failed(format!("the pull failed: {error}")))?;
        let crossed = simulator
            .journal()
            .body_bytes(|entry| entry.listener != Listener::Api);
        writeln!(out, "{ordinal} pull of {DOMAIN}/{REPOSITORY}:{TAG}")?;
        for (what, size, outcome) in &pulled.parts {
            writeln!(out, "  {what:<9}{:>12}   {outcome}", Size(*size))?;
        }
        writeln!(
            out,
            "  {} in {:.2} s; {} came over the line\n",
            Size(pulled.bytes),
            pulled.took.as_secs_f64(),
            Size(crossed)
        )?;
        pulls.push((pulled, crossed));
    }
    if let [(first, crossed), (second, again)] = &pulls[..] {
        writeln!(
            out,
            "The second pull saved {} on the line and {:.2} s, {:.0} times as fast.",
            Size(crossed.saturating_sub(*again)),
            first.took.saturating_sub(second.took).as_secs_f64(),
            first.took.as_secs_f64() / second.took.as_secs_f64()
        )?;
        writeln!(out, "No client knew of AWS: the proxy logged in by itself.")?;
    }
    Ok(())
}

fn invite(out: &mut dyn Write, address: &str) -> std::io::Result<()> {
    writeln!(
        out,
        "\nTry it with a client on this host (plain HTTP, which loopback allows):\n  \
         docker run --rm {address}/{REPOSITORY}:{TAG}\n  \
         podman run --rm --tls-verify=false {address}/{REPOSITORY}:{TAG}\n  \
         skopeo inspect --tls-verify=false docker://{address}/{REPOSITORY}:{TAG}\n\
         Ctrl-C ends the demo and removes what it kept."
    )
}

fn tell_site(out: &mut dyn Write, folder: &Path) -> std::io::Result<()> {
    writeln!(
        out,
        "\nA site of your own, for as long as the demo is up:\n  \
         cd {} && set -a && . ./environment && ecr-proxy serve --config config.toml",
        folder.display()
    )
}

/// Bytes, for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let bytes = self.0 as f64;
        let text = match self.0 {
            0..1024 => format!("{bytes} B"),
            1024..0x10_0000 => format!("{:.1} KiB", bytes / 1024.0),
            _ => format!("{:.1} MiB", bytes / f64::from(0x10_0000)),
        };
        f.pad(&text)
    }
}
