//! The log on standard error.
//!
//! Invariant: writing an event never waits for whoever reads the log. Lines are gathered in memory, which
//! has a bound, for a thread of their own; what does not fit is dropped and counted. Whatever its fields hold, an
//! event is one line without control characters.

use std::borrow::Cow;
use std::io::{self, Write};
use std::mem;
use std::str::FromStr as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing::Dispatch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;

use super::json::JsonLines;

/// What may wait to be written, in bytes: some seconds of a busy proxy.
const MAX_WAITING: usize = 2 << 20;

/// How long lines gather before they are written. Waking a thread and writing for each line costs as
/// much as serving a manifest; nobody reads a log faster than this.
const GATHER: Duration = Duration::from_millis(10);

/// What is kept of the memory for lines when few come, in bytes.
const MIN_KEPT: usize = 16 * 1024;

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
    lines: Arc<Lines>,
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
        let filter = Targets::from_str(filter).map_err(|error| StartLogError::Filter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })?;
        let lines = Arc::new(Lines {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            dropped,
        });
        let written = Arc::clone(&lines);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || written.write_to(output))?;
        let events = tracing_subscriber::registry().with(filter);
        let written = Arc::clone(&lines);
        let dispatch = match format {
            LogFormat::Text => {
                let text = fmt::layer().with_ansi(false).with_writer(Sink(written));
                Dispatch::new(events.with(text))
            }
            LogFormat::Json => Dispatch::new(events.with(JsonLines(written))),
        };
        Ok((Self { lines }, dispatch))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let waiting = self.lines.waiting();
        let is_on_its_way = |waiting: &mut Waiting| waiting.lines > 0 || waiting.is_writing;
        let changed = &self.lines.changed;
        // A reader that has stopped gets no more, and there is nobody to tell.
        let _written = changed.wait_timeout_while(waiting, MAX_FLUSH, is_on_its_way);
    }
}

/// Lines between those who tell and the thread that writes.
#[derive(Debug)]
pub(super) struct Lines {
    waiting: Mutex<Waiting>,
    /// There is a first line, or what there was is written.
    changed: Condvar,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: u64,
    /// Lines that were taken are not written yet.
    is_writing: bool,
}

impl Lines {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing under the lock can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, unless too much waits.
    pub(super) fn add(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes.len() + line.len() > MAX_WAITING {
            self.dropped.inc();
            return;
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        let is_first = waiting.lines == 1;
        drop(waiting);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Writes what comes, for as long as the process lives.
    fn write_to(&self, output: impl Write) {
        let mut output = Output {
            inner: output,
            ends_within_a_line: false,
        };
        let mut batch = Vec::new();
        loop {
            let is_idle = |waiting: &mut Waiting| waiting.lines == 0;
            drop(self.changed.wait_while(self.waiting(), is_idle));
            // A plain sleep: a wait until a moment has no end where that is of another clock than the
            // kernel's, as libfaketime makes it.
            thread::sleep(GATHER);
            let mut waiting = self.waiting();
            mem::swap(&mut batch, &mut waiting.bytes);
            waiting.lines = 0;
            waiting.is_writing = true;
            drop(waiting);

            let lost = output.write(&batch);
            let lost = lost.iter().filter(|byte| **byte == b'\n').count();
            self.dropped.inc_by(u64::try_from(lost).unwrap_or(u64::MAX));
            // As much is kept as was needed lately.
            batch.shrink_to((2 * batch.len()).max(MIN_KEPT));
            batch.clear();
            self.waiting().is_writing = false;
            self.changed.notify_all();
        }
    }
}

/// Where lines go: what it takes on begins on a line of its own, also after it had room for part of a
/// line only.
struct Output<W> {
    inner: W,
    ends_within_a_line: bool,
}

impl<W: Write> Output<W> {
    /// Writes whole lines and answers what of them could not be written, which begins within a line or before
    /// one.
    fn write<'a>(&mut self, lines: &'a [u8]) -> &'a [u8] {
        if self.ends_within_a_line && self.inner.write_all(b"\n").is_err() {
            return lines;
        }
        self.ends_within_a_line = false;
        let mut rest = lines;
        while !rest.is_empty() {
            match self.inner.write(rest) {
                Ok(0) => break,
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let (written, rest) = lines.split_at(lines.len() - rest.len());
        self.ends_within_a_line = written.last().is_some_and(|last| *last != b'\n');
        rest
    }
}

struct Sink(Arc<Lines>);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// Takes an event, which the subscriber writes as a whole.
struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.add(&on_one_line(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as it is shown, with its control characters spelled out. The subscriber does that with text in quotes,
/// and not with what displays itself.
fn on_one_line(event: &[u8]) -> Cow<'_, [u8]> {
    let text = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
    if !text.contains(char::is_control) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(2 * text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    Cow::Owned(line.into_bytes())
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
    use std::sync::mpsc::{Receiver, sync_channel};

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

    /// Has room for so many bytes for now.
    struct Disk {
        held: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.held.extend(bytes.iter().take(taken));
            self.room -= taken;
            Ok(taken)
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
    fn s17_an_event_is_one_line_of_text_whatever_it_holds() {
        let output = Shared::default();
        let (log, dispatch) =
            Log::build(LogFormat::Text, None, Counter::default(), output.clone()).expect("log");
        tracing::dispatcher::with_default(&dispatch, || {
            let told = "a\nb\r\u{1b}[31m\u{9b}31m\u{e9}";
            tracing::info!(shown = %told, quoted = told, debugged = ?told, "{told}");
            tracing::info!("second");
        });
        drop(log);
        let text = output.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with('\n'));
        assert!(
            !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
        assert!(text.contains("shown=a\\nb\\r"), "{text}");
        assert!(text.contains('\u{e9}'), "{text}");
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
    fn l18_what_follows_a_line_cut_by_a_full_disk_is_on_a_line_of_its_own() {
        let written_with_room = |room| {
            let mut output = Output {
                inner: Disk {
                    held: Vec::new(),
                    room,
                },
                ends_within_a_line: false,
            };
            let lost = output.write(b"first\nsecond\n");
            let still_lost = output.write(b"third\n");
            output.inner.room = 100;
            assert_eq!(output.write(b"fourth\n"), b"");
            let held = String::from_utf8(output.inner.held).expect("text");
            (
                String::from_utf8_lossy(lost).into_owned(),
                still_lost.len(),
                held,
            )
        };
        let (lost, still_lost, held) = written_with_room(8);
        assert_eq!(
            (lost.as_str(), still_lost, held.as_str()),
            ("cond\n", 6, "first\nse\nfourth\n")
        );
        // Where the disk is full at the end of a line there is nothing to end.
        let (lost, _, held) = written_with_room(6);
        assert_eq!(
            (lost.as_str(), held.as_str()),
            ("second\n", "first\nfourth\n")
        );
        // Only the line end had no room.
        let (lost, _, held) = written_with_room(12);
        assert_eq!(
            (lost.as_str(), held.as_str()),
            ("\n", "first\nsecond\nfourth\n")
        );
    }

    #[test]
    fn l18_a_reader_that_stops_costs_lines_and_not_time() {
        let (resume, stopped) = sync_channel(0);
        let dropped = Counter::default();
        let (log, dispatch) =
            Log::build(LogFormat::Text, None, dropped.clone(), Stopped(stopped)).expect("log");
        tracing::dispatcher::with_default(&dispatch, || {
            let line = "x".repeat(1 << 10);
            for _ in 0..3 * MAX_WAITING / line.len() {
                tracing::info!("{line}");
            }
        });
        // As much waits as may, and the thread has no more than that in hand.
        let lost = dropped.get();
        assert!(lost >= MAX_WAITING as u64 >> 10, "{lost}");
        drop(resume);
        drop(log);
    }
}
