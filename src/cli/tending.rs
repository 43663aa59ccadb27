//! How a command reaches the operations: through the admin socket while the proxy runs, else within this
//! process, which then has the store to itself and leaves nothing in it that the proxy cannot read.

use std::io::{self, Write};

use bytes::Bytes;

use super::mechanisms::{BuildError, Mechanisms};
use super::owner::Acting;
use super::settings::Settings;
use super::signals::Signals;
use super::{Failure, chain};
use crate::admin::RemoteOperations;
use crate::cache::OpenError;
use crate::config::{Config, Files, Strings};
use crate::jobs::operations::{Event, Input, Item, Operations, Reason, Request, Running};
use crate::telemetry::{Log, LogFormat, Metrics};

/// What a command makes of what an operation tells.
pub(super) trait Render {
    /// Something is told.
    ///
    /// # Errors
    /// The output cannot be written.
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure>;

    /// All was told; nothing was, if the operation failed before.
    ///
    /// # Errors
    /// The output cannot be written.
    fn end(&mut self, _out: &mut dyn Write) -> Result<(), Failure> {
        Ok(())
    }

    /// The next bytes of what was asked for.
    ///
    /// # Errors
    /// They cannot be written.
    fn data(&mut self, _data: Bytes, _out: &mut dyn Write) -> Result<(), Failure> {
        Ok(())
    }
}

/// Events as they are, one line each: `--json`.
pub(super) struct JsonLines;

impl Render for JsonLines {
    fn event(&mut self, event: Event, out: &mut dyn Write) -> Result<(), Failure> {
        let line = serde_json::to_string(&event).map_err(io::Error::from)?;
        writeln!(out, "{line}")?;
        Ok(())
    }
}

/// What every command takes that looks at the cache or tends it.
#[derive(Debug, clap::Args)]
pub(super) struct Tending {
    #[command(flatten)]
    settings: Settings,
    /// Print what is told as JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
}

impl Tending {
    /// Runs an operation on the cache of this configuration to its end, and has `render` show what it tells,
    /// unless it is to be JSON.
    ///
    /// # Errors
    /// The cache cannot be reached, or the operation did not do all that it was asked for.
    pub(super) fn run(
        self,
        environment: &dyn Strings,
        request: Request,
        render: &mut dyn Render,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let render = if self.json { &mut JsonLines } else { render };
        self.run_as_it_is(environment, request, render, out)
    }

    /// The same for an operation that takes something in, whose name is told with what went wrong.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn run_with(
        self,
        environment: &dyn Strings,
        request: Request,
        input: Input,
        name: &str,
        render: &mut dyn Render,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let render = if self.json { &mut JsonLines } else { render };
        let outcome = tend(self.settings, environment, request, input, render, out);
        outcome.map_err(|failure| match failure {
            Failure::Failed(why) => Failure::Failed(format!("{name}: {why}")),
            failure => failure,
        })
    }

    /// The same for a `render` that knows JSON by itself.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn run_as_it_is(
        self,
        environment: &dyn Strings,
        request: Request,
        render: &mut dyn Render,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let input = Input::none();
        tend(self.settings, environment, request, input, render, out)
    }
}

fn tend(
    settings: Settings,
    environment: &dyn Strings,
    request: Request,
    input: Input,
    render: &mut dyn Render,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let config = settings.load(environment, Files::Required)?;
    // Before a thread is started that makes anything.
    let _acting = Acting::for_owner(&config)?;
    let filter = config.log_filter.as_deref().unwrap_or("warn");
    let _log = Log::start(LogFormat::Text, Some(filter), Metrics::new().log_dropped)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    super::runtime()?.block_on(async {
        let signals = Signals::watch()?;
        let work = async {
            let reached = reach(&config).await?;
            // Kept until the end: the store closes with it, in good order.
            let _operations = match &reached {
                Reached::Here(operations) => Some(operations.clone()),
                Reached::There(_) => None,
            };
            follow(reached.start(request, input), render, out).await
        };
        tokio::select! {
            outcome = work => outcome,
            () = signals.first() => Err(Failure::Failed("interrupted".to_owned())),
        }
    })
}

/// Passes what an operation tells to `render`, until its end.
async fn follow(
    mut running: Running,
    render: &mut dyn Render,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    while let Some(item) = running.next().await {
        match item {
            Item::Data(data) => render.data(data, out)?,
            Item::Event(event) => {
                let error = match &event {
                    Event::End { error } => error.clone(),
                    _ => None,
                };
                let is_end = matches!(event, Event::End { .. });
                render.event(event, out)?;
                // What cannot be meant was not done, so there is nothing to sum up.
                if is_end && !matches!(error, Some(Reason::Usage(_))) {
                    render.end(out)?;
                }
                match error {
                    None => {}
                    Some(Reason::Usage(why)) => return Err(Failure::Usage(why)),
                    Some(Reason::Failed(why)) => return Err(Failure::Failed(why)),
                }
            }
        }
    }
    Ok(())
}

/// Where the operations are.
enum Reached {
    There(RemoteOperations),
    Here(Operations),
}

impl Reached {
    fn start(self, request: Request, input: Input) -> Running {
        match self {
            Self::There(remote) => remote.start(request, input),
            Self::Here(operations) => operations.start(request, input),
        }
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The running proxy if its socket answers, else the store itself.
async fn reach(config: &Config) -> Result<Reached, Failure> {
    let socket = config.server.admin_socket.as_ref();
    let refused = match socket {
        None => None,
        Some(socket) => match RemoteOperations::connect(&socket.path, &config.cache.dir).await {
            Ok(remote) => return Ok(Reached::There(remote)),
            Err(error) => Some(error),
        },
    };
    let upstreams = config
        .upstream_options()
        .map_err(|error| Failure::Failed(chain(&error)))?;
    match Mechanisms::build(config, upstreams, &mut Metrics::new()) {
        Ok(mechanisms) => Ok(Reached::Here(mechanisms.operations(None))),
        Err(BuildError::Store(error @ OpenError::InUse { .. })) => {
            let why = match (socket, refused) {
                (Some(socket), Some(refused)) => format!(
                    "its admin socket {} cannot be reached: {refused}",
                    socket.path.display()
                ),
                _ => "server.admin_socket is off".to_owned(),
            };
            Err(Failure::Failed(format!("{error}, and {why}")))
        }
        // The mend may be to run as the user that the proxy runs as.
        Err(BuildError::Store(error)) if refused.as_ref().is_some_and(is_forbidden) => {
            let path = socket.map(|socket| socket.path.display().to_string());
            Err(Failure::Failed(format!(
                "{}, and the admin socket {} may not be used by this user",
                chain(&error),
                path.unwrap_or_default()
            )))
        }
        Err(error) => Err(error.into()),
    }
}
