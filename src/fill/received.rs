//! The bytes of a push on their way through: hashed as they pass.
//!
//! Hashing takes a thread's time, so it is done beside the stream, a batch at a time, and never more than
//! one batch behind.

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::error::FillError;
use crate::oci::{Digest, Hasher};

/// Bytes that are hashed in one go: enough that handing them to a thread does not count.
const BATCH: usize = 512 * 1024;

/// What came of a blob so far, in order.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes that came.
    len: u64,
    /// Of these, what is not yet being hashed.
    waiting: Vec<Bytes>,
    waiting_len: usize,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Resting(Hasher),
    Running(JoinHandle<Hasher>),
    /// Its thread ended without a word.
    Lost,
}

impl Default for Work {
    fn default() -> Self {
        Self::Resting(Hasher::new())
    }
}

impl Received {
    /// How many bytes came.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a length in bytes, not a collection"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Takes the next bytes. Waits while the batch before is still being hashed.
    ///
    /// # Errors
    /// [`FillError::Lost`] where there will be no digest.
    ///
    /// # Cancel safety
    /// Nothing is forgotten.
    pub async fn take(&mut self, piece: Bytes) -> Result<(), FillError> {
        self.len += piece.len() as u64;
        self.waiting_len += piece.len();
        self.waiting.push(piece);
        match self.waiting_len < BATCH {
            true => Ok(()),
            false => self.begin_batch().await,
        }
    }

    /// The digest of all that came; more may come.
    ///
    /// # Errors
    /// As [`Received::take`].
    ///
    /// # Cancel safety
    /// Nothing is forgotten.
    pub async fn digest(&mut self) -> Result<Digest, FillError> {
        if !self.waiting.is_empty() {
            self.begin_batch().await?;
        }
        Ok(self.rested().await?.clone().finish())
    }

    async fn begin_batch(&mut self) -> Result<(), FillError> {
        let mut hasher = std::mem::take(self.rested().await?);
        let batch = std::mem::take(&mut self.waiting);
        self.waiting_len = 0;
        self.work = Work::Running(tokio::task::spawn_blocking(move || {
            for piece in batch {
                hasher.update(&piece);
            }
            hasher
        }));
        Ok(())
    }

    async fn rested(&mut self) -> Result<&mut Hasher, FillError> {
        if let Work::Running(running) = &mut self.work {
            self.work = match running.await {
                Ok(hasher) => Work::Resting(hasher),
                Err(_) => Work::Lost,
            };
        }
        match &mut self.work {
            Work::Resting(hasher) => Ok(hasher),
            Work::Running(_) | Work::Lost => Err(FillError::Lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_digest_is_of_all_that_came_whenever_it_is_asked_for() {
        let mut received = Received::default();
        let mut all = Vec::new();
        assert_eq!(received.digest().await, Ok(Digest::of(b"")));
        for length in [1, BATCH - 1, 0, 3 * BATCH, 17] {
            let piece = vec![length as u8; length];
            all.extend_from_slice(&piece);
            received.take(piece.into()).await.unwrap();
            assert_eq!(received.len(), all.len() as u64);
            if length != BATCH - 1 {
                assert_eq!(received.digest().await, Ok(Digest::of(&all)));
            }
        }
    }
}
