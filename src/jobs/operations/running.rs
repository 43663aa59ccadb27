//! An operation under way: what goes in, what comes out, and that it ends.

use std::future::Future;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::message::{Event, Reason};
use super::names::Elsewhere;
use crate::telemetry::chain;

/// How many items wait for whoever reads them; a data item is up to [`DATA_BYTES`].
const WAITING: usize = 16;

/// Size of a data item, in bytes: larger ones bind memory, smaller ones cost wake-ups.
pub const DATA_BYTES: usize = 256 * 1024;

/// How long a reader may stand still before the operation is given up: long enough for somebody who
/// paused a pipe, short enough that a forgotten one does not hold an operation for ever.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What an operation gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Something to tell.
    Event(Event),
    /// The next bytes of what was asked for.
    Data(Bytes),
}

/// Why an operation ends before it is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// What was asked cannot be meant; nothing was done.
    #[error("{0}")]
    Usage(String),
    /// It failed, or part of it did.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads what it tells.
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl From<Elsewhere> for OperationError {
    fn from(error: Elsewhere) -> Self {
        Self::Usage(error.to_string())
    }
}

impl OperationError {
    /// Something failed, told with its causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(chain(error))
    }
}

/// Whoever asked has left, or has not read for a long time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whoever asked for it does not read any more")]
pub struct Gone;

/// Where an operation puts what it tells. Clones are the same output.
#[derive(Clone, Debug)]
pub struct Output {
    items: mpsc::Sender<Item>,
}

impl Output {
    /// Tells something, waiting for the reader if it lags.
    ///
    /// # Errors
    /// Nobody reads; the operation should end.
    pub async fn tell(&self, event: Event) -> Result<(), Gone> {
        self.send(Item::Event(event)).await
    }

    /// Like [`Self::tell`], from a thread that may wait.
    ///
    /// # Errors
    /// Nobody reads; the operation should end.
    ///
    /// # Panics
    /// On a thread that runs tasks; it is for [`Self::blocking`].
    pub fn tell_blocking(&self, event: Event) -> Result<(), Gone> {
        tokio::runtime::Handle::current().block_on(self.tell(event))
    }

    /// Gives the next bytes, [`DATA_BYTES`] at most.
    ///
    /// # Errors
    /// Nobody reads; the operation should end.
    pub async fn give(&self, data: Bytes) -> Result<(), Gone> {
        debug_assert!(data.len() <= DATA_BYTES);
        self.send(Item::Data(data)).await
    }

    /// Where a thread that may wait writes the bytes that it gives.
    pub fn writer(&self) -> impl io::Write + Send + use<> {
        io::BufWriter::with_capacity(DATA_BYTES, DataWriter(self.clone()))
    }

    /// Runs `work` on a thread that may wait for the disk.
    ///
    /// # Errors
    /// What `work` says; and that it panicked.
    ///
    /// # Cancel safety
    /// `work` goes on until it next tells something, which is then refused.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, OperationError> + Send + 'static,
    ) -> Result<T, OperationError> {
        let output = self.clone();
        match tokio::task::spawn_blocking(move || work(&output)).await {
            Ok(done) => done,
            Err(_) => Err(OperationError::Failed(PANICKED.to_owned())),
        }
    }

    /// True once nobody reads any more, for work that tells nothing for long.
    pub fn is_gone(&self) -> bool {
        self.items.is_closed()
    }

    async fn send(&self, item: Item) -> Result<(), Gone> {
        match self.items.send_timeout(item, PATIENCE).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Gone),
        }
    }
}

const PANICKED: &str = "the operation broke off; the log says why";

struct DataWriter(Output);

impl io::Write for DataWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(DATA_BYTES)];
        let give = self.0.give(Bytes::copy_from_slice(some));
        tokio::runtime::Handle::current()
            .block_on(give)
            .map_err(|gone| io::Error::new(io::ErrorKind::BrokenPipe, gone))?;
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that an operation takes in beside its request. Reading waits for them, so it is for threads
/// that may.
#[derive(Debug)]
pub struct Input {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    /// Reading ends with an error when nobody reads this any more.
    output: Option<Output>,
}

impl Input {
    /// No bytes.
    pub fn none() -> Self {
        Self::channel().1
    }

    /// An input and where its pieces are sent: it ends when the sender is dropped, and is broken by an
    /// error.
    pub fn channel() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, pieces) = mpsc::channel(WAITING);
        let input = Self {
            pieces,
            piece: Bytes::new(),
            output: None,
        };
        (sender, input)
    }

    /// All that `reader` gives, read on a thread of its own; the thread ends with the reader, or at its
    /// next piece once the input is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn from_reader(mut reader: impl io::Read + Send + 'static) -> io::Result<Self> {
        let (sender, input) = Self::channel();
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                loop {
                    let mut piece = vec![0; DATA_BYTES];
                    let read = reader.read(&mut piece).map(|count| {
                        piece.truncate(count);
                        Bytes::from(piece)
                    });
                    let is_last = read.as_ref().map_or(true, Bytes::is_empty);
                    let is_end = read.as_ref().is_ok_and(Bytes::is_empty);
                    if is_end || sender.blocking_send(read).is_err() || is_last {
                        return;
                    }
                }
            })?;
        Ok(input)
    }

    /// The same for an operation that tells `output`: reading it does not outlast whoever asked, even where
    /// the next bytes never come.
    pub(super) fn until_gone(mut self, output: &Output) -> Self {
        self.output = Some(output.clone());
        self
    }

    /// The next piece as it comes, or `None` at the end.
    ///
    /// # Cancel safety
    /// Safe: no piece is lost.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if !self.piece.is_empty() {
            return Some(Ok(std::mem::take(&mut self.piece)));
        }
        self.pieces.recv().await
    }

    /// Like [`Self::next`], to be polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.piece.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.piece))));
        }
        self.pieces.poll_recv(context)
    }
}

impl io::Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let piece = match &self.output {
                None => self.pieces.blocking_recv(),
                Some(output) => {
                    let (pieces, items) = (&mut self.pieces, &output.items);
                    tokio::runtime::Handle::current().block_on(async {
                        tokio::select! {
                            piece = pieces.recv() => piece,
                            () = items.closed() => Some(Err(io::Error::other(Gone))),
                        }
                    })
                }
            };
            match piece {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// An operation under way, for whoever asked for it. Dropping it ends the operation.
#[derive(Debug)]
pub struct Running {
    items: mpsc::Receiver<Item>,
    has_ended: bool,
    task: AbortHandle,
}

impl Running {
    /// Runs `work` in a task of its own and tells how it ended.
    pub fn spawn<F>(work: impl FnOnce(Output) -> F) -> Self
    where
        F: Future<Output = Result<(), OperationError>> + Send + 'static,
    {
        let (sender, items) = mpsc::channel(WAITING);
        let output = Output { items: sender };
        let work = work(output.clone());
        let task = tokio::spawn(async move {
            let error = match work.await {
                Ok(()) => None,
                Err(OperationError::Usage(reason)) => Some(Reason::Usage(reason)),
                Err(OperationError::Failed(reason)) => Some(Reason::Failed(reason)),
                Err(OperationError::Gone(Gone)) => return,
            };
            // Who has left does not want to know.
            let _ = output.tell(Event::End { error }).await;
        });
        Self {
            items,
            has_ended: false,
            task: task.abort_handle(),
        }
    }

    /// The next item; `None` after [`Event::End`].
    ///
    /// # Cancel safety
    /// Safe: no item is lost.
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Like [`Self::next`], to be polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.items.poll_recv(context)).unwrap_or_else(|| {
            let error = Some(Reason::Failed(PANICKED.to_owned()));
            Item::Event(Event::End { error })
        });
        self.has_ended = matches!(item, Item::Event(Event::End { .. }));
        Poll::Ready(Some(item))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    async fn all(mut running: Running) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some(item) = running.next().await {
            items.push(item);
        }
        items
    }

    fn end(error: Option<Reason>) -> Item {
        Item::Event(Event::End { error })
    }

    #[tokio::test]
    async fn an_operation_ends_once_however_it_ends() {
        let fine = Running::spawn(|_| async { Ok(()) });
        assert_eq!(all(fine).await, [end(None)]);
        let failed = Running::spawn(|_| async { Err(OperationError::Failed("no".into())) });
        assert_eq!(all(failed).await, [end(Some(Reason::Failed("no".into())))]);
        let panicked = Running::spawn(|output| async move {
            let done = output.blocking(|_| -> Result<(), _> { panic!("on purpose") });
            done.await
        });
        let told = all(panicked).await;
        assert_eq!(told, [end(Some(Reason::Failed(PANICKED.into())))]);
        let panicked = Running::spawn(|_| async { panic!("on purpose") });
        let told = all(panicked).await;
        assert_eq!(told, [end(Some(Reason::Failed(PANICKED.into())))]);
    }

    #[tokio::test]
    async fn an_operation_nobody_reads_is_told_so() {
        let (sender, gone) = tokio::sync::oneshot::channel();
        let mut running = Running::spawn(|output| async move {
            let work = output.blocking(move |output| {
                loop {
                    if let Err(gone) = output.tell_blocking(Event::End { error: None }) {
                        let _ = sender.send(output.is_gone());
                        return Err::<(), _>(gone.into());
                    }
                }
            });
            work.await
        });
        running.next().await.expect("an item");
        drop(running);
        assert_eq!(gone.await, Ok(true));
    }

    #[tokio::test]
    async fn what_goes_in_can_come_out_again() {
        let bytes: Vec<u8> = (0..DATA_BYTES as u32 * 3).map(|n| n as u8).collect();
        let mut input = Input::from_reader(io::Cursor::new(bytes.clone())).expect("a thread");
        let running = Running::spawn(|output| async move {
            let copy = output.blocking(move |output| {
                let mut read = Vec::new();
                input.read_to_end(&mut read).expect("the input");
                let mut writer = output.writer();
                writer.write_all(&read).expect("a reader");
                writer.flush().expect("a reader");
                Ok(())
            });
            copy.await
        });
        let mut items = all(running).await;
        assert_eq!(items.pop(), Some(end(None)));
        let mut given = Vec::new();
        for item in items {
            match item {
                Item::Data(data) => given.extend_from_slice(&data),
                Item::Event(event) => panic!("{event:?}"),
            }
        }
        assert!(given == bytes);
    }

    #[tokio::test]
    async fn a_broken_input_is_an_error_and_no_end() {
        let (sender, mut input) = Input::channel();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            input.read_to_string(&mut text)
        });
        let piece = Ok(Bytes::from_static(b"half"));
        sender.send(piece).await.expect("read");
        let broken = Err(io::ErrorKind::UnexpectedEof.into());
        sender.send(broken).await.expect("read");
        assert!(read.await.expect("no panic").is_err());
    }
}
