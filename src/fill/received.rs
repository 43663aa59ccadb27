//! The bytes of a push on their way through: hashed as they pass, and kept while the disk takes them.
//!
//! Both take a thread's time, so they are done beside the stream, a batch at a time, and never more than one
//! batch behind. What is kept is an extra: a disk that is full or fails ends that, and nothing else.

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::error::FillError;
use crate::cache::{BeginError, Candidate, Store};
use crate::oci::{Digest, Hasher};

/// Bytes that are hashed in one go: enough that handing them to a thread does not count.
const BATCH: usize = 512 * 1024;

/// What came of a blob so far, in order.
#[derive(Debug)]
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
    Resting(Kept),
    Running(JoinHandle<Kept>),
    /// Its thread ended without a word.
    Lost,
}

/// What is hashed, and where it is.
#[derive(Debug)]
enum Kept {
    /// Nothing came yet.
    Not(Store),
    OnDisk(Candidate),
    /// The disk takes no more.
    Nowhere(Hasher),
}

impl Kept {
    fn take(self, batch: Vec<Bytes>) -> Self {
        let mut kept = match self {
            Self::Not(store) => match store.begin_candidate() {
                Ok(candidate) => Self::OnDisk(candidate),
                Err(error) => Self::nowhere(Hasher::new(), &error),
            },
            kept => kept,
        };
        for piece in batch {
            kept = match kept {
                Self::OnDisk(mut candidate) => match candidate.append(&piece) {
                    Ok(()) => Self::OnDisk(candidate),
                    Err(error) => {
                        let mut hasher = candidate.abandon();
                        hasher.update(&piece);
                        Self::nowhere(hasher, &error)
                    }
                },
                Self::Nowhere(mut hasher) => {
                    hasher.update(&piece);
                    Self::Nowhere(hasher)
                }
                kept @ Self::Not(_) => kept,
            };
        }
        kept
    }

    fn nowhere(hasher: Hasher, error: &BeginError) -> Self {
        tracing::debug!(%error, "what is pushed is not kept");
        Self::Nowhere(hasher)
    }

    fn digest(&self) -> Digest {
        match self {
            Self::Not(_) => Hasher::new().finish(),
            Self::OnDisk(candidate) => candidate.digest(),
            Self::Nowhere(hasher) => hasher.clone().finish(),
        }
    }
}

impl Received {
    pub(super) fn new(store: Store) -> Self {
        Self {
            len: 0,
            waiting: Vec::new(),
            waiting_len: 0,
            work: Work::Resting(Kept::Not(store)),
        }
    }

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
        Ok(self.rested().await?.digest())
    }

    /// What is kept of it, where all of it is.
    pub(super) async fn kept(mut self) -> Option<Candidate> {
        self.digest().await.ok()?;
        match self.work {
            Work::Resting(Kept::OnDisk(candidate)) => Some(candidate),
            Work::Resting(_) | Work::Running(_) | Work::Lost => None,
        }
    }

    async fn begin_batch(&mut self) -> Result<(), FillError> {
        self.rested().await?;
        let Work::Resting(kept) = std::mem::replace(&mut self.work, Work::Lost) else {
            return Err(FillError::Lost);
        };
        let batch = std::mem::take(&mut self.waiting);
        self.waiting_len = 0;
        self.work = Work::Running(tokio::task::spawn_blocking(move || kept.take(batch)));
        Ok(())
    }

    async fn rested(&mut self) -> Result<&Kept, FillError> {
        if let Work::Running(running) = &mut self.work {
            self.work = match running.await {
                Ok(kept) => Work::Resting(kept),
                Err(_) => Work::Lost,
            };
        }
        match &self.work {
            Work::Resting(kept) => Ok(kept),
            Work::Running(_) | Work::Lost => Err(FillError::Lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::cache::{CacheMetrics, Limit, StoreOptions};

    fn store(dir: &std::path::Path, max_size: u64) -> Store {
        let options = StoreOptions {
            max_size: Limit::Bytes(max_size),
            min_free: Limit::Bytes(0),
            ..StoreOptions::new(dir)
        };
        let store = Store::open(options, CacheMetrics::default()).expect("a store");
        assert!(store.wait_ready(std::time::Duration::from_secs(30)));
        store
    }

    /// The sizes of the pieces that come.
    const PIECES: [usize; 5] = [1, BATCH - 1, 0, 3 * BATCH, 17];

    async fn receive(store: &Store) -> (Received, Vec<u8>) {
        let mut received = Received::new(store.clone());
        let mut all = Vec::new();
        assert_eq!(received.digest().await, Ok(Digest::of(b"")));
        for length in PIECES {
            let piece = vec![length as u8; length];
            all.extend_from_slice(&piece);
            received.take(piece.into()).await.unwrap();
            assert_eq!(received.len(), all.len() as u64);
            if length != BATCH - 1 {
                assert_eq!(received.digest().await, Ok(Digest::of(&all)));
            }
        }
        (received, all)
    }

    #[tokio::test]
    async fn the_digest_is_of_all_that_came_whenever_it_is_asked_for_and_all_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 30);
        let (received, all) = receive(&store).await;
        assert!(store.usage().temporary_bytes >= all.len() as u64);
        let candidate = received.kept().await.expect("kept");
        let digest = Digest::of(&all);
        let blob = store.commit(candidate.verify(digest).expect("right"));
        assert_eq!(blob.expect("committed").len(), all.len() as u64);
        let usage = store.usage();
        assert_eq!((usage.temporary_bytes, usage.unlinked_bytes), (0, 0));
        assert_eq!(usage.final_bytes, all.len() as u64);
    }

    #[tokio::test]
    async fn s08_what_is_something_else_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 30);
        let (received, _) = receive(&store).await;
        let candidate = received.kept().await.expect("kept");
        assert!(candidate.verify(Digest::of(b"else")).is_err());
        let usage = store.usage();
        assert_eq!(usage.total() - usage.record_bytes, 0, "{usage:?}");
    }

    #[tokio::test]
    async fn d04_a_store_without_room_costs_the_push_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for room in [1000, 1536 * 1024] {
            let store = store(dir.path(), room);
            let (received, _) = receive(&store).await;
            assert!(received.kept().await.is_none(), "in {room} bytes");
            let usage = store.usage();
            assert_eq!(usage.total() - usage.record_bytes, 0, "{usage:?}");
        }
    }

    #[tokio::test]
    async fn u26_what_is_broken_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1 << 30);
        let (mut received, _) = receive(&store).await;
        received.digest().await.unwrap();
        drop(received);
        let usage = store.usage();
        assert_eq!(usage.total() - usage.record_bytes, 0, "{usage:?}");
        let fills = std::fs::read_dir(dir.path().join("fills")).unwrap();
        assert_eq!(fills.count(), 0);
    }
}
