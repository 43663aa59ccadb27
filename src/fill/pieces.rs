//! Puts the chunks of a network together to the pieces of a disk.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::download::Download;
use super::error::FillError;
use super::room::Room;
use crate::buffers::BufferPool;

/// How long a piece waits to fill its buffer: small pieces make later reads of the file dearer. On a slow
/// line this is what a reader is behind the wire.
const LINGER: Duration = Duration::from_millis(5);

/// The pieces of one transfer, in order.
pub(super) struct Pieces {
    download: Download,
    /// What of a chunk did not fit into the piece before.
    left: Bytes,
    buffers: BufferPool,
}

impl Pieces {
    pub(super) fn new(download: Download, buffers: BufferPool) -> Self {
        Self {
            download,
            left: Bytes::new(),
            buffers,
        }
    }

    /// The next piece of what comes before `end`, with its offset: a buffer full, or less when the line is
    /// slow or the end is reached; `None` there. The last one comes when upstream has no more to say.
    ///
    /// # Errors
    /// What could not be continued past.
    ///
    /// # Cancel safety
    /// Not cancel safe: what arrived would be lost.
    pub(super) async fn next(&mut self, end: u64) -> Result<Option<(u64, Bytes)>, FillError> {
        self.download.set_end(end);
        if self.left.is_empty() {
            match self.download.next().await? {
                Some(chunk) => self.left = chunk,
                None => return Ok(None),
            }
        }
        let offset = self.download.at() - self.left.len() as u64;
        let deadline = Instant::now() + LINGER;
        let mut room = Room::take(&self.buffers);
        let mut length = 0;
        loop {
            let free = &mut room.as_mut()[length..];
            let fits = self.left.split_to(self.left.len().min(free.len()));
            free[..fits.len()].copy_from_slice(&fits);
            length += fits.len();
            if !self.left.is_empty() || length == room.as_mut().len() {
                break;
            }
            match self.download.soon(deadline).await? {
                Some(chunk) => self.left = chunk,
                None => break,
            }
        }
        if self.left.is_empty() {
            self.download.check_end().await?;
        }
        Ok(Some((offset, room.freeze(length))))
    }

    /// How long the transfer was held back since this was last asked.
    pub(super) fn take_held_back(&mut self) -> Duration {
        self.download.take_held_back()
    }
}
