//! The log on standard error.
//!
//! Invariant: writing an event never waits for whoever reads the log. Lines go through a bounded
//! queue to a thread of their own; what does not fit is dropped and counted.

use std::io::{self, Write};
use std::iter;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::json::JsonLines;

/// Lines that may wait: some seconds of a busy proxy, a few MiB at most.
const MAX_WAITING: usize = 4096;

/// How long lines gather before they are written. Waking a thread and writing for each line costs as
/// much as serving a manifest; nobody reads a log faster than this.
const GATHER: Duration = Duration::from_millis(10);

/// Most lines have less, so that they are formatted without growing. In bytes.
const USUAL_LINE: usize = 640;

/// What a batch keeps of its memory for the next one, in bytes.
const MAX_KEPT: usize = 64 * 1024;

/// How long the end of the process waits for the last lines.
const MAX_FLUSH: Duration = Duration::from_secs(1);

/// The SDK tells at `warn` of each place where credentials are not; the reason that counts is told
/// by us.
const DEFAULT_FILTER: &str = "info,aws_config=error";

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// The log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartLogError {
    /// The filter (`RUST_LOG`) is not one.
    #[error("the log filter {filter:?} is wrong: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The writing thread could not be started.
    #[error("the log's thread could not be started")]
    Thread(#[from] io::Error),
    /// This process has a log already.
    #[error("the log was started before")]
    Twice,
}

/// Keeps the log running; dropping it waits up to a second for lines on their way.
#[derive(Debug)]
pub struct Log {
    queue: SyncSender<Message>,
}

impl Log {
    /// Starts the log of this process on standard error. `filter` is what `RUST_LOG` says, by
    /// default `info` (the AWS SDK: `error`); `dropped` counts lines that were not written.
    ///
    /// # Errors
    /// A wrong filter, no thread, or a log started before.
    pub fn start(
        format: LogFormat,
        filter: Option<&str>,
        dropped: Counter,
    ) -> Result<Self, StartLogError> {
        let (log, dispatch) = Self::build(format, filter, dropped, io::stderr())?;
        tracing::dispatcher::set_global_default(dispatch).map_err(|_| StartLogError::Twice)?;
        Ok(log)
    }

    fn build(
        format: LogFormat,
        filter: Option<&str>,
        dropped: Counter,
        output: impl Write + Send + 'static,
    ) -> Result<(Self, Dispatch), StartLogError> {
        let filter = filter
            .filter(|filter| !filter.is_empty())
            .unwrap_or(DEFAULT_FILTER);
        let filter = EnvFilter::try_new(filter).map_err(|error| StartLogError::Filter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })?;
        let (queue, waiting) = sync_channel(MAX_WAITING);
        let lost = dropped.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&waiting, output, &lost))?;
        let sink = Sink {
            queue: queue.clone(),
            dropped,
        };
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(sink);
        let dispatch = match format {
            LogFormat::Text => Dispatch::new(builder.finish()),
            LogFormat::Json => Dispatch::new(builder.event_format(JsonLines).finish()),
        };
        Ok((Self { queue }, dispatch))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        // A full queue means a reader that has stopped: waiting would not help.
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            // A timeout and a thread that is gone end alike: there is nothing left to do.
            let _ = wait.recv_timeout(MAX_FLUSH);
        }
    }
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

fn write_lines(waiting: &Receiver<Message>, output: impl Write, dropped: &Counter) {
    let mut batch = Batch {
        output,
        dropped,
        bytes: Vec::new(),
        lines: 0,
    };
    while let Ok(first) = waiting.recv() {
        if matches!(first, Message::Line(_)) {
            thread::sleep(GATHER);
        }
        for message in iter::once(first).chain(waiting.try_iter().take(MAX_WAITING)) {
            match message {
                Message::Line(line) => {
                    batch.bytes.extend_from_slice(&line);
                    batch.lines += 1;
                }
                Message::Flush(done) => {
                    batch.write();
                    // The one who asked may have stopped waiting.
                    let _ = done.try_send(());
                }
            }
        }
        batch.write();
    }
}

/// Lines on their way to the output.
struct Batch<'a, W> {
    output: W,
    dropped: &'a Counter,
    bytes: Vec<u8>,
    lines: u64,
}

impl<W: Write> Batch<'_, W> {
    fn write(&mut self) {
        let written = self.output.write_all(&self.bytes);
        if written.and_then(|()| self.output.flush()).is_err() {
            self.dropped.inc_by(self.lines);
        }
        self.bytes.clear();
        self.bytes.shrink_to(MAX_KEPT);
        self.lines = 0;
    }
}

struct Sink {
    queue: SyncSender<Message>,
    dropped: Counter,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            sink: self,
            bytes: Vec::with_capacity(USUAL_LINE),
        }
    }
}

/// One event being formatted; queued as a whole when it is dropped.
struct Line<'a> {
    sink: &'a Sink,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        match self.sink.queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.sink.dropped.inc();
            }
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, PoisonError};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn text(&self) -> String {
            let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes a line only once the other end of the channel speaks or goes.
    struct Stopped(Receiver<()>);

    impl Write for Stopped {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_events_have_their_fields_at_the_top() {
        let output = Shared::default();
        let (log, dispatch) =
            Log::build(LogFormat::Json, None, Counter::default(), output.clone()).expect("log");
        tracing::dispatcher::with_default(&dispatch, || {
            let error = Some("a \"quoted\"\nname");
            tracing::info!(
                http.status = 200,
                elapsed_ms = 0.125,
                whole = true,
                client.addr = %"127.0.0.1:80",
                error,
                "request completed"
            );
            tracing::debug!("not at this level");
        });
        drop(log);
        let text = output.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let event: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(event["message"], "request completed");
        assert_eq!(event["http.status"], 200);
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["target"], module_path!());
        assert_eq!(event["elapsed_ms"], 0.125);
        assert_eq!(event["whole"], true);
        assert_eq!(event["client.addr"], "127.0.0.1:80");
        assert_eq!(event["error"], "a \"quoted\"\nname");
        let timestamp = event["timestamp"].as_str().expect("text");
        assert!(humantime::parse_rfc3339(timestamp).is_ok(), "{timestamp}");
    }

    #[test]
    fn the_filter_is_obeyed_and_a_wrong_one_refused() {
        let output = Shared::default();
        let filter = Some("error,ecr_proxy=debug");
        let (log, dispatch) =
            Log::build(LogFormat::Text, filter, Counter::default(), output.clone()).expect("log");
        tracing::dispatcher::with_default(&dispatch, || tracing::debug!("seen"));
        drop(log);
        assert!(output.text().contains("seen"));
        let wrong = Log::build(
            LogFormat::Text,
            Some("a=b=c"),
            Counter::default(),
            Shared::default(),
        );
        assert!(matches!(wrong, Err(StartLogError::Filter { .. })));
    }

    #[test]
    fn l18_a_reader_that_stops_costs_lines_and_not_time() {
        let (resume, stopped) = sync_channel(0);
        let dropped = Counter::default();
        let (log, dispatch) =
            Log::build(LogFormat::Text, None, dropped.clone(), Stopped(stopped)).expect("log");
        tracing::dispatcher::with_default(&dispatch, || {
            for _ in 0..2 * MAX_WAITING + 11 {
                tracing::info!("line");
            }
        });
        // The queue holds as many as may wait, and the thread no more than that and one.
        let lost = dropped.get();
        assert!(lost >= 10, "{lost}");
        drop(resume);
        drop(log);
    }
}
