//! The task of a fill: one upstream body becomes a verified blob, while readers follow it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::download::{Again, Download};
use super::error::FillError;
use super::flow::Flow;
use super::front::{Phase, TAIL};
use super::interrupted;
use super::room::Room;
use super::{KnownSize, Origin, Shared};
use crate::buffers::BufferPool;
use crate::cache::{Partial, Store};
use crate::oci::{Digest, Hasher};
use crate::telemetry::{FillMetrics, FillResult, ResumeResult};

/// How long a piece waits to fill its buffer: small pieces make later reads of the file dearer. On a slow
/// line this is what a reader is behind the wire.
const LINGER: Duration = Duration::from_millis(5);

/// How much of a broken download is hashed between two steps that readers see, in bytes.
const REHASHED: usize = 1024 * 1024;

/// Everything a fill needs; it belongs to itself and to no request.
pub(super) struct Filling {
    pub(super) flow: Arc<Flow>,
    pub(super) origin: Origin,
    pub(super) size: KnownSize,
    pub(super) store: Store,
    pub(super) buffers: BufferPool,
    /// How long the transfer may go without getting anywhere.
    pub(super) patience: Duration,
    pub(super) metrics: FillMetrics,
}

/// Where the bytes go.
enum Sink {
    Disk(Partial),
    Memory { hash: Hasher, written: u64 },
}

impl Filling {
    /// Runs in a task of its own, in its turn, until the blob is kept or cannot be had. A fill that comes
    /// with a slot has had its turn.
    pub(super) fn launch(self, shared: Arc<Shared>, slot: Option<OwnedSemaphorePermit>) {
        shared.metrics.active.inc();
        let slots = Arc::clone(&shared.slots);
        let flow = Arc::clone(&self.flow);
        let outcome = Err(FillError::Lost);
        let mut landing = Landing {
            shared,
            flow,
            outcome,
        };
        tokio::spawn(async move {
            let _slot = match slot {
                Some(slot) => slot,
                None => match slots.acquire_owned().await {
                    Ok(slot) => slot,
                    Err(_) => return,
                },
            };
            landing.outcome = self.run().await;
            // Off the map, told to the readers, and only then out of the slot.
            drop(landing);
        });
    }

    /// Fetches, verifies, and keeps the blob. Readers are told of everything but the failure, which the
    /// caller announces.
    ///
    /// # Errors
    /// Why the blob is not whole. That it could not be kept on disk is not among the reasons.
    async fn run(&self) -> Result<FillResult, FillError> {
        let outcome = self.attempt(self.size).await;
        // A larger blob's size may have gone out in the head of an answer, and must stay what it was.
        let told = self.flow.len().filter(|len| *len > TAIL);
        match outcome {
            // Nobody has received a byte of it, so nothing would be spliced by trying once more.
            Err(FillError::DigestMismatch) if self.flow.retract() => {
                tracing::warn!(oci.digest = %self.flow.digest, "upstream sent other content than asked for, trying once more");
                let described = told.or(self.size.described);
                self.attempt(KnownSize {
                    described,
                    ..self.size
                })
                .await
            }
            outcome => outcome,
        }
    }

    async fn attempt(&self, size: KnownSize) -> Result<FillResult, FillError> {
        match self.go_on(size).await? {
            Some(result) => Ok(result),
            None => self.begin_anew(size).await,
        }
    }

    /// Goes on with a download that broke off, from its last byte; `None` where there is none, or
    /// upstream has other content now. Every byte that is there is hashed again on the way.
    async fn go_on(&self, size: KnownSize) -> Result<Option<FillResult>, FillError> {
        let (store, digest) = (self.store.clone(), self.flow.digest);
        let Some((partial, note)) = blocking(move || store.resume(&digest)).await? else {
            return Ok(None);
        };
        let len = partial.declared();
        let note = interrupted::read_note(&note);
        let Some((note, _)) = note.filter(|_| size.described.is_none_or(|size| size == len)) else {
            partial.discard();
            return Ok(None);
        };
        let origin = self.origin.held_to(&note, len);
        let again = Again::new(origin, digest, len, self.patience, self.metrics.clone());
        let present = partial.present();
        let download = match present < len {
            false => None,
            true => match again.download(present, len).await {
                Ok(download) => Some(download),
                // The link is gone again: the partial is kept as it goes.
                Err(FillError::Upstream(error)) if error.retryable() => return Err(error.into()),
                Err(error) => {
                    tracing::info!(oci.digest = %digest, %error, "a broken download cannot be gone on with");
                    partial.discard();
                    return Ok(None);
                }
            },
        };
        tracing::info!(oci.digest = %digest, body.bytes = present, "going on with a broken download");
        self.metrics.resumed(ResumeResult::Resumed);
        self.flow.restart(again, present);
        self.flow.land_in(partial.reader());
        let sink = Sink::Disk(self.rehash(partial).await?);
        let sink = match download {
            Some(download) => self.transfer(download, sink).await?,
            None => sink,
        };
        self.finish(sink, len).await.map(Some)
    }

    /// Hashes what is in the file, letting readers follow.
    async fn rehash(&self, mut partial: Partial) -> Result<Partial, FillError> {
        let flow = Arc::clone(&self.flow);
        blocking(move || {
            loop {
                match partial.rehash(REHASHED) {
                    Ok(more) => {
                        flow.reach(partial.written());
                        if !more {
                            return Ok(partial);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(oci.digest = %flow.digest, %error, "a broken download cannot be read back");
                        partial.discard();
                        return Err(FillError::Unreadable);
                    }
                }
            }
        })
        .await?
    }

    async fn begin_anew(&self, size: KnownSize) -> Result<FillResult, FillError> {
        let (origin, metrics) = (self.origin.afresh(), self.metrics.clone());
        let download =
            Download::open(origin, self.flow.digest, size, self.patience, metrics).await?;
        let len = download.len();
        self.flow.restart(download.again(), 0);
        let sink = self.begin(len, download.again().note()).await?;
        let sink = self.transfer(download, sink).await?;
        self.finish(sink, len).await
    }

    async fn finish(&self, sink: Sink, len: u64) -> Result<FillResult, FillError> {
        match sink {
            Sink::Disk(partial) => self.keep(partial, len).await,
            Sink::Memory { hash, .. } => self.judge(hash.finish(), len),
        }
    }

    /// The verdict on a blob that is not on disk.
    fn judge(&self, actual: Digest, len: u64) -> Result<FillResult, FillError> {
        if actual != self.flow.digest {
            self.metrics.digest_mismatches.inc();
            return Err(FillError::DigestMismatch);
        }
        self.flow.enter(Phase::Verified { len });
        Ok(FillResult::Unkept)
    }

    async fn begin(&self, len: u64, note: Vec<u8>) -> Result<Sink, FillError> {
        let (store, digest) = (self.store.clone(), self.flow.digest);
        match blocking(move || store.begin(digest, len, &note)).await? {
            Ok(partial) => {
                self.flow.land_in(partial.reader());
                Ok(Sink::Disk(partial))
            }
            Err(error) => {
                tracing::warn!(oci.digest = %self.flow.digest, %error, "filling without the disk");
                Ok(self.leave_disk(Hasher::new(), 0))
            }
        }
    }

    /// Gathers the next piece while the one before is hashed and written.
    async fn transfer(&self, download: Download, sink: Sink) -> Result<Sink, FillError> {
        let mut writing = Writing::Idle(sink);
        let mut pieces = Gather {
            chunks: download.run_ahead(),
            left: Bytes::new(),
            buffers: self.buffers.clone(),
        };
        while let Some(piece) = pieces.next().await? {
            let sink = self.settled(writing).await?;
            writing = self.write(sink, piece).await?;
        }
        self.settled(writing).await
    }

    async fn write(&self, sink: Sink, piece: Bytes) -> Result<Writing, FillError> {
        match sink {
            Sink::Disk(mut partial) => {
                let flow = Arc::clone(&self.flow);
                // Readers that are behind need the buffers more.
                let keep = self.buffers.is_ample();
                Ok(Writing::Busy(tokio::task::spawn_blocking(move || {
                    let offset = partial.written();
                    match partial.append(&piece) {
                        Ok(()) => {
                            flow.landed_at(offset, piece, keep);
                            (partial, None)
                        }
                        Err(error) => (partial, Some((error.to_string(), piece))),
                    }
                })))
            }
            memory @ Sink::Memory { .. } => self.remember(memory, piece).await.map(Writing::Idle),
        }
    }

    async fn settled(&self, writing: Writing) -> Result<Sink, FillError> {
        let (partial, failure) = match writing {
            Writing::Idle(sink) => return Ok(sink),
            Writing::Busy(task) => task.await.map_err(|_| FillError::Lost)?,
        };
        let Some((error, piece)) = failure else {
            return Ok(Sink::Disk(partial));
        };
        tracing::warn!(oci.digest = %self.flow.digest, error, "going on without the disk");
        let (hash, written) = partial.abandon();
        let memory = self.leave_disk(hash, written);
        self.remember(memory, piece).await
    }

    fn leave_disk(&self, hash: Hasher, written: u64) -> Sink {
        self.flow.leave_disk(written, hash.clone());
        Sink::Memory { hash, written }
    }

    async fn remember(&self, sink: Sink, piece: Bytes) -> Result<Sink, FillError> {
        let Sink::Memory { mut hash, written } = sink else {
            return Ok(sink);
        };
        let end = written + piece.len() as u64;
        let (flow, hashed) = (Arc::clone(&self.flow), piece.clone());
        let hash = blocking(move || {
            hash.update(&hashed);
            hash
        })
        .await?;
        flow.remember(written, piece).await?;
        flow.reach(end);
        Ok(Sink::Memory { hash, written: end })
    }

    /// The verdict first, which readers wait for; then sync and rename, which they do not.
    async fn keep(&self, partial: Partial, len: u64) -> Result<FillResult, FillError> {
        let verified = match partial.verify() {
            Ok(verified) => verified,
            Err((partial, mismatch)) => {
                drop(partial);
                self.metrics.digest_mismatches.inc();
                tracing::warn!(oci.digest = %self.flow.digest, error = %mismatch, "upstream sent wrong bytes");
                return Err(FillError::DigestMismatch);
            }
        };
        self.flow.enter(Phase::Verified { len });
        let store = self.store.clone();
        match blocking(move || store.commit(verified)).await? {
            Ok(_) => Ok(FillResult::Kept),
            Err(error) => {
                tracing::warn!(oci.digest = %self.flow.digest, %error, "the blob could not be kept");
                Ok(FillResult::Unkept)
            }
        }
    }
}

enum Writing {
    Idle(Sink),
    Busy(JoinHandle<(Partial, Option<(String, Bytes)>)>),
}

/// Puts the chunks of a network together to the pieces of a disk.
struct Gather {
    chunks: mpsc::Receiver<Result<Bytes, FillError>>,
    /// What of a chunk did not fit into the piece before.
    left: Bytes,
    buffers: BufferPool,
}

impl Gather {
    /// The next piece: a buffer full, or less when the line is slow or the blob ends; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        if self.left.is_empty() {
            match self.chunks.recv().await {
                Some(chunk) => self.left = chunk?,
                None => return Ok(None),
            }
        }
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
            match tokio::time::timeout_at(deadline, self.chunks.recv()).await {
                Ok(Some(chunk)) => self.left = chunk?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(Some(room.freeze(length)))
    }
}

/// Runs what may wait for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FillError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| FillError::Lost)
}

/// Takes a fill off the map however its task ends, by panic as well, and then tells its readers why, so
/// that whoever asks again begins anew.
pub(super) struct Landing {
    pub(super) shared: Arc<Shared>,
    pub(super) flow: Arc<Flow>,
    pub(super) outcome: Result<FillResult, FillError>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        {
            let mut running = self.shared.running();
            // One that was abandoned may have a successor there already.
            let still = running.get(&self.flow.digest);
            if still.is_some_and(|running| Arc::ptr_eq(&running.flow, &self.flow)) {
                running.remove(&self.flow.digest);
            }
        }
        self.shared.metrics.active.dec();
        self.shared.metrics.ended(match &self.outcome {
            Ok(result) => *result,
            Err(FillError::DigestMismatch) => FillResult::Mismatch,
            Err(_) => FillResult::Failed,
        });
        if let Err(error) = &self.outcome {
            tracing::warn!(oci.digest = %self.flow.digest, %error, "fill failed");
            self.flow.enter(Phase::Failed(error.clone()));
        }
        self.flow.end(matches!(self.outcome, Ok(FillResult::Kept)));
    }
}
