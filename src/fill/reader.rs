//! One client's way through a blob.

use bytes::Bytes;
use tokio::sync::watch;

use super::error::FillError;
use super::flow::{Attendance, Place};
use super::front::{Front, Phase};
use super::room::Room;
use super::solo::Solo;
use super::waiting;
use crate::access::Turn;
use crate::buffers::BufferPool;
use crate::cache::{Blob, ContentFile, Damage, Mapping, Store};
use crate::oci::{ByteRange, Hasher};
use crate::upstream::{BlobBody, UpstreamError};

/// How much of a mapping is handed to the socket at once, in bytes: large enough that the number of
/// writes does not matter, small enough that a client's progress shows.
const MAPPED_PIECE: u64 = 1024 * 1024;

/// Yields the bytes of a range, as far as they are released, in order and each once.
pub struct Reader {
    at: u64,
    range: ByteRange,
    source: Source,
    buffers: BufferPool,
    ready: Option<Bytes>,
}

/// What [`Reader::step`] finds.
#[derive(Debug)]
pub enum Step {
    /// The next bytes, never empty.
    Data(Bytes),
    /// The range is complete.
    End,
    /// Nothing to hand out yet: await [`Reader::advance`], then step again.
    Wait,
    /// The range ends here, abnormally.
    Failed(FillError),
}

pub(super) enum Source {
    /// A believed file, read through pooled buffers.
    File { blob: Blob, store: Store },
    /// A believed file, mapped: for a socket that sends from it without our looking.
    Mapped {
        bytes: Bytes,
        mapping: Mapping,
        blob: Blob,
        store: Store,
    },
    /// A blob on its way.
    Flow(Following),
    /// The rest of a blob whose fill went on without this reader.
    Solo(Box<Solo>),
    /// An upstream range that is not kept, and the turn at it.
    Relay(Box<(BlobBody, Turn)>),
    /// Whatever it was, it failed.
    Failed(FillError),
}

/// A reader's side of a flow.
pub(super) struct Following {
    attendance: Attendance,
    front: watch::Receiver<Front>,
    /// The hash of every byte up to the reader's place, kept from where memory took over from the
    /// file: what a reader that goes on alone needs to check the whole.
    hash: Option<Hasher>,
    /// The transfer that is read will not be begun anew.
    claimed: bool,
}

impl Following {
    pub(super) fn new(attendance: Attendance) -> Self {
        let front = attendance.flow().subscribe();
        Self {
            attendance,
            front,
            hash: None,
            claimed: false,
        }
    }
}

impl Reader {
    pub(super) fn new(range: ByteRange, source: Source, buffers: BufferPool) -> Self {
        Self {
            at: range.start,
            range,
            source,
            buffers,
            ready: None,
        }
    }

    /// How many bytes the reader yields in all.
    pub fn len(&self) -> u64 {
        self.range.len()
    }

    /// Never true: a range holds at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The next bytes that can be had without waiting.
    pub fn step(&mut self) -> Step {
        if let Some(bytes) = self.ready.take() {
            return self.yielding(bytes);
        }
        if self.at >= self.range.end {
            return Step::End;
        }
        match &mut self.source {
            Source::File { blob, .. } => {
                match read_now(blob.content(), self.at, self.range.end, &self.buffers) {
                    Ok(Some(bytes)) => self.yielding(bytes),
                    Ok(None) => Step::Wait,
                    Err(error) => {
                        self.report_damage();
                        self.fail(error)
                    }
                }
            }
            Source::Mapped { bytes, blob, .. } => {
                let end = self.range.end.min(self.at + MAPPED_PIECE);
                match in_memory(blob.content(), self.at, end) {
                    Ok(true) => {
                        let piece = slice(bytes, self.at, end);
                        self.yielding(piece)
                    }
                    Ok(false) => Step::Wait,
                    Err(error) => {
                        self.report_damage();
                        self.fail(error)
                    }
                }
            }
            Source::Flow(following) => match following.step(self.at, self.range, &self.buffers) {
                Ok(Some(bytes)) => self.yielding(bytes),
                Ok(None) => Step::Wait,
                Err(error) => self.fail(error),
            },
            Source::Solo(_) | Source::Relay(_) => Step::Wait,
            Source::Failed(error) => Step::Failed(error.clone()),
        }
    }

    /// Takes the first bytes ahead, so that a file that cannot be read is found before anything is said
    /// of it. For a reader that has not been stepped.
    ///
    /// # Errors
    /// Why there are none.
    ///
    /// # Cancel safety
    /// As [`Reader::advance`].
    pub(super) async fn prime(&mut self) -> Result<(), FillError> {
        let mut step = self.step();
        if matches!(step, Step::Wait) {
            self.advance().await;
            step = self.step();
        }
        match step {
            Step::Data(bytes) => {
                self.at -= bytes.len() as u64;
                self.ready = Some(bytes);
                Ok(())
            }
            Step::Failed(error) => Err(error),
            Step::End | Step::Wait => Ok(()),
        }
    }

    /// Waits until [`Reader::step`] has something new to say.
    ///
    /// # Cancel safety
    /// Not cancel safe: bytes taken from an upstream would be lost. A body that is dropped while it
    /// waits is dropped for good.
    pub async fn advance(&mut self) {
        let outcome = match &mut self.source {
            Source::File { blob, .. } => {
                let file = blob.content().clone();
                read_waiting(file, self.at, self.range.end, &self.buffers)
                    .await
                    .map(Next::Bytes)
            }
            Source::Flow(following) => following.advance(self.at, self.range, &self.buffers).await,
            Source::Solo(solo) => solo.next().await.and_then(Next::before_the_end),
            Source::Relay(relay) => match relay.0.next().await {
                Ok(bytes) => Next::before_the_end(bytes),
                Err(error) => Err(error.into()),
            },
            Source::Mapped { bytes, mapping, .. } => {
                let end = self.range.end.min(self.at + MAPPED_PIECE);
                populate(mapping.clone(), self.at, end)
                    .await
                    .map(|()| Next::Bytes(slice(bytes, self.at, end)))
            }
            Source::Failed(_) => Ok(Next::Again),
        };
        match outcome {
            Ok(Next::Bytes(bytes)) => self.ready = Some(bytes),
            Ok(Next::Again) => {}
            Ok(Next::Alone(solo)) => self.source = Source::Solo(solo),
            Err(error) => {
                self.report_damage();
                self.source = Source::Failed(error);
            }
        }
    }

    /// A believed file that cannot be read is no entry any more: the next pull fetches it anew.
    fn report_damage(&self) {
        if let Source::File { blob, store } | Source::Mapped { blob, store, .. } = &self.source {
            let (blob, store) = (blob.clone(), store.clone());
            tokio::task::spawn_blocking(move || store.quarantine(&blob, Damage::Unreadable));
        }
    }

    fn yielding(&mut self, bytes: Bytes) -> Step {
        self.at += bytes.len() as u64;
        if let Source::Flow(following) = &mut self.source {
            following.attendance.at(self.at);
        }
        Step::Data(bytes)
    }

    fn fail(&mut self, error: FillError) -> Step {
        self.source = Source::Failed(error.clone());
        Step::Failed(error)
    }
}

/// What waiting brought.
enum Next {
    /// Bytes to hand out.
    Bytes(Bytes),
    /// Something changed: look again.
    Again,
    /// The reader goes on by itself.
    Alone(Box<Solo>),
}

impl Next {
    /// An upstream body that ends before the range does has lost bytes somewhere.
    fn before_the_end(bytes: Option<Bytes>) -> Result<Self, FillError> {
        bytes
            .map(Self::Bytes)
            .ok_or(FillError::Upstream(UpstreamError::Truncated))
    }
}

impl Following {
    /// What can be read at `at` without waiting.
    fn step(
        &mut self,
        at: u64,
        range: ByteRange,
        buffers: &BufferPool,
    ) -> Result<Option<Bytes>, FillError> {
        let released = self.released(at, range.end)?;
        if at >= released {
            return Ok(None);
        }
        match self.attendance.flow().find(at) {
            Place::File(file, file_end) => read_now(&file, at, released.min(file_end), buffers),
            Place::Fresh(mut bytes) => {
                // In range: cut to the length of a piece, which is a usize.
                bytes.truncate((released - at).min(bytes.len() as u64) as usize);
                Ok(Some(bytes))
            }
            Place::Memory(bytes) => Ok(Some(self.take(at, range, released, bytes))),
            Place::Gone => Ok(None),
        }
    }

    async fn advance(
        &mut self,
        at: u64,
        range: ByteRange,
        buffers: &BufferPool,
    ) -> Result<Next, FillError> {
        let released = self.released(at, range.end)?;
        if at >= released {
            // The sender lives as long as the flow, which this reader holds.
            self.front.changed().await.map_err(|_| FillError::Lost)?;
            return Ok(Next::Again);
        }
        match self.attendance.flow().find(at) {
            Place::File(file, file_end) => read_waiting(file, at, released.min(file_end), buffers)
                .await
                .map(Next::Bytes),
            Place::Fresh(_) | Place::Memory(_) => Ok(Next::Again),
            Place::Gone => self.alone(at, range).await.map(Next::Alone),
        }
    }

    /// How far the reader may go; it asks for its first byte by claiming it.
    fn released(&mut self, at: u64, end: u64) -> Result<u64, FillError> {
        let released = {
            let front = self.front.borrow_and_update();
            match &front.phase {
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Connecting | Phase::Running { .. } | Phase::Verified { .. } => {
                    front.released(end)
                }
            }
        };
        if at < released && !self.claimed {
            self.claimed = self.attendance.flow().claim(at, end);
            if !self.claimed {
                // The front went back a moment ago, which is news to wait for.
                return Ok(at);
            }
        }
        Ok(released)
    }

    /// Takes what is released of a piece in memory, and hashes it where the hash of the whole so far
    /// is known.
    fn take(&mut self, at: u64, range: ByteRange, released: u64, mut bytes: Bytes) -> Bytes {
        // In range: cut to the length of a piece, which is a usize.
        bytes.truncate((released - at).min(bytes.len() as u64) as usize);
        if self.hash.is_none() && range.start <= at {
            self.hash = self.attendance.flow().hash_at(at);
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes);
        }
        bytes
    }

    async fn alone(&mut self, at: u64, range: ByteRange) -> Result<Box<Solo>, FillError> {
        let flow = self.attendance.flow();
        let hash = self.hash.take().or_else(|| flow.hash_at(at));
        let again = flow.again().ok_or(FillError::Unreadable)?;
        let len = again.len();
        let hash = hash.filter(|_| range.end == len);
        // Without a hash of the whole only its validator tells that the content is still the same.
        let again = match hash {
            Some(_) => again,
            None => again.alone(),
        };
        let download = again.download(at, range.end).await?;
        Ok(Box::new(Solo::new(download, flow.digest, at, len, hash)))
    }
}

/// Whether the bytes from `at` to `end` seem to be in the page cache: the first and the last are, and
/// the kernel reads ahead in large pieces. A socket sends from them without waiting for the disk.
fn in_memory(file: &ContentFile, at: u64, end: u64) -> Result<bool, FillError> {
    let mut byte = [0];
    for offset in [at, end - 1] {
        match file.read_now(offset, &mut byte) {
            Ok(Some(1)) => {}
            Ok(Some(_)) | Err(_) => return Err(FillError::Unreadable),
            Ok(None) => return Ok(false),
        }
    }
    Ok(true)
}

/// Has the bytes from `at` to `end` read into the page cache, on a thread that may wait for the disk.
async fn populate(mapping: Mapping, at: u64, end: u64) -> Result<(), FillError> {
    let populated = waiting::read(move || mapping.populate(at..end)).await?;
    populated.map_err(|_| FillError::Unreadable)
}

/// A part of a mapping; one is addressable, so its offsets fit a usize.
fn slice(bytes: &Bytes, at: u64, end: u64) -> Bytes {
    bytes.slice(at as usize..end as usize)
}

/// Reads what is in the page cache; `None` if the disk would have to be waited for.
fn read_now(
    file: &ContentFile,
    at: u64,
    end: u64,
    buffers: &BufferPool,
) -> Result<Option<Bytes>, FillError> {
    let mut room = Room::take(buffers);
    match file.read_now(at, room.between(at, end)) {
        Ok(Some(0)) | Err(_) => Err(FillError::Unreadable),
        Ok(Some(length)) => Ok(Some(room.freeze(length))),
        Ok(None) => Ok(None),
    }
}

/// Reads on a thread that may wait for the disk.
async fn read_waiting(
    file: ContentFile,
    at: u64,
    end: u64,
    buffers: &BufferPool,
) -> Result<Bytes, FillError> {
    let mut room = Room::take(buffers);
    let read = move || {
        file.read_at(at, room.between(at, end))
            .map(|length| (room, length))
    };
    match waiting::read(read).await? {
        Ok((room, length)) if length > 0 => Ok(room.freeze(length)),
        Ok(_) | Err(_) => Err(FillError::Unreadable),
    }
}
