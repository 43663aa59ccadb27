//! The task of a fill: one upstream body becomes a verified blob, while readers follow it.

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::Shared;
use super::download::{Again, Download};
use super::error::FillError;
use super::flow::Flow;
use super::front::{Phase, TAIL};
use super::interrupted;
use super::lanes::{LaneOptions, Lanes, Remainder, WORTH_SHARING};
use super::origin::Origin;
use super::proof::KnownSize;
use super::writer::{self, Arrival, Written};
use crate::access::Turn;
use crate::buffers::BufferPool;
use crate::cache::{Partial, Spans, Store};
use crate::oci::{Digest, Hasher};
use crate::telemetry::{FillMetrics, FillResult, ResumeResult};

/// Everything a fill needs; it belongs to itself and to no request.
pub(super) struct Filling {
    pub(super) flow: Arc<Flow>,
    pub(super) origin: Origin,
    pub(super) size: KnownSize,
    pub(super) store: Store,
    pub(super) buffers: BufferPool,
    /// How long the transfer may go without getting anywhere.
    pub(super) patience: Duration,
    /// For connections beside the first, of all fills together.
    pub(super) spare: Arc<Semaphore>,
    pub(super) metrics: FillMetrics,
}

/// Where the bytes go.
pub(super) enum Sink {
    Disk(Partial),
    Memory { hash: Hasher, written: u64 },
}

impl Sink {
    /// Bytes that went there, in order.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Disk(partial) => partial.written(),
            Self::Memory { written, .. } => *written,
        }
    }
}

/// What a fill runs in.
pub(super) enum Slot {
    /// One of those for what no client asked for.
    Had(Turn),
    /// It waits for a turn of this client's.
    Wanted(Option<IpAddr>),
}

/// What is to be fetched, and how.
struct Way {
    again: Again,
    /// Of the first of the gaps.
    download: Option<Download>,
    gaps: Vec<Range<u64>>,
    /// Whether several connections may be used.
    may_share: bool,
}

impl Filling {
    /// Runs in a task of its own, in its turn or one that is `lent`, until the blob is kept or cannot be had.
    pub(super) fn launch(self, shared: Arc<Shared>, slot: Slot, mut lent: mpsc::Receiver<Turn>) {
        shared.metrics.active.inc();
        let slots = shared.slots.clone();
        let flow = Arc::clone(&self.flow);
        let outcome = Err(FillError::Lost);
        let mut landing = Landing {
            shared,
            flow,
            outcome,
        };
        tokio::spawn(async move {
            let _turn = match slot {
                Slot::Had(turn) => turn,
                Slot::Wanted(client) => tokio::select! {
                    turn = slots.take(client) => turn,
                    Some(turn) = lent.recv() => turn,
                },
            };
            // No other is wanted.
            drop(lent);
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
        let outcome = self.attempt(self.size, true).await;
        // A larger blob's size may have gone out in the head of an answer, and must stay what it was.
        let told = self.flow.len().filter(|len| *len > TAIL);
        match outcome {
            // Nobody has received a byte of it, so nothing would be spliced by trying once more; by one
            // connection, in case the upstream is at odds with itself.
            Err(FillError::DigestMismatch) if self.flow.retract() => {
                tracing::warn!(oci.digest = %self.flow.digest, "upstream sent other content than asked for, trying once more");
                let described = told.or(self.size.described);
                let size = KnownSize {
                    described,
                    ..self.size
                };
                self.attempt(size, false).await
            }
            outcome => outcome,
        }
    }

    async fn attempt(&self, size: KnownSize, may_share: bool) -> Result<FillResult, FillError> {
        match self.go_on(size, may_share).await? {
            Some(result) => Ok(result),
            None => self.begin_anew(size, may_share).await,
        }
    }

    /// Goes on with a download that broke off, with what it lacks; `None` where there is none, or none that can
    /// be gone on with: what came of it stays until another takes its place. Every byte that is there is hashed
    /// again on the way.
    ///
    /// # Errors
    /// Why there is no more of it for now; it is kept as it goes, unless its own repository says that it has
    /// no such blob.
    async fn go_on(
        &self,
        size: KnownSize,
        may_share: bool,
    ) -> Result<Option<FillResult>, FillError> {
        let (store, digest) = (self.store.clone(), self.flow.digest);
        let Some((partial, note)) = blocking(move || store.resume(&digest)).await? else {
            return Ok(None);
        };
        let len = partial.declared();
        let note = interrupted::read_note(&note);
        // Of two sizes upstream tells the right one.
        let Some((note, _)) = note.filter(|_| size.described.is_none_or(|size| size == len)) else {
            return Ok(None);
        };
        let origin = self.origin.held_to(&note, len);
        let again = Again::new(origin, digest, len, self.patience, self.metrics.clone());
        let present = partial.present().end_from(0);
        let gaps = partial.present().gaps(0..len);
        let download = match gaps.first() {
            None => None,
            Some(gap) => match again.download(gap.start, gap.end).await {
                Ok(download) => Some(download),
                Err(error) if error.is_of_the_part() => {
                    tracing::info!(oci.digest = %digest, %error, "a broken download cannot be gone on with");
                    return Ok(None);
                }
                Err(error) => {
                    if error.is_absence() && self.origin.is_of(&note) {
                        blocking(move || partial.discard()).await?;
                    }
                    return Err(error);
                }
            },
        };
        tracing::info!(oci.digest = %digest, body.bytes = present, "going on with a broken download");
        self.metrics.resumed(ResumeResult::Resumed);
        self.flow.restart(again.clone(), present);
        self.flow.land_in(partial.reader());
        let way = Way {
            again,
            download,
            gaps,
            may_share,
        };
        let sink = self.transfer(way, Sink::Disk(partial)).await?;
        self.finish(sink, len).await.map(Some)
    }

    async fn begin_anew(&self, size: KnownSize, may_share: bool) -> Result<FillResult, FillError> {
        let (origin, metrics) = (self.origin.afresh(), self.metrics.clone());
        let download =
            Download::open(origin, self.flow.digest, size, self.patience, metrics).await?;
        let again = download.again();
        let len = again.len();
        self.flow.restart(again.clone(), 0);
        let sink = self.begin(len, again.note()).await?;
        let way = Way {
            again,
            download: Some(download),
            gaps: Spans::default().gaps(0..len),
            may_share,
        };
        let sink = self.transfer(way, sink).await?;
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
        let begin = move || {
            if let Some((broken, _)) = store.resume(&digest) {
                broken.discard();
            }
            store.begin(digest, len, &note)
        };
        match blocking(begin).await? {
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

    /// Fetches what is missing and lands it.
    async fn transfer(&self, way: Way, sink: Sink) -> Result<Sink, FillError> {
        let Way {
            again,
            download,
            gaps,
            may_share,
        } = way;
        let options = LaneOptions {
            buffers: self.buffers.clone(),
            interest: self.flow.interest(),
            spare: Arc::clone(&self.spare),
            // What the disk does not take has to come in order.
            may_share: may_share
                && matches!(sink, Sink::Disk(_))
                && again.len() >= WORTH_SHARING
                && again.has_validator(),
            again: again.clone(),
        };
        let (lanes, arrivals, remainder) = Lanes::start(options, download, gaps);
        let landing = self.land(sink, arrivals, remainder, again);
        tokio::pin!(landing);
        // Dropped with the lanes as soon as everything has landed, or nothing more can.
        tokio::select! {
            landed = &mut landing => landed,
            () = lanes.steer() => landing.await,
        }
    }

    /// Lands what arrives until all is there: on disk, or in memory once the disk takes no more.
    async fn land(
        &self,
        sink: Sink,
        mut arrivals: mpsc::Receiver<Arrival>,
        remainder: Remainder,
        again: Again,
    ) -> Result<Sink, FillError> {
        let partial = match sink {
            Sink::Disk(partial) => partial,
            memory @ Sink::Memory { .. } => {
                let memory = self.remember_arrivals(memory, arrivals, &again).await?;
                return self.remember_rest(memory, &again).await;
            }
        };
        let (flow, buffers) = (Arc::clone(&self.flow), self.buffers.clone());
        let writing = move || writer::write(partial, arrivals, &flow, &buffers);
        let (mut memory, written, piece) = match blocking(writing).await? {
            Written::Whole(partial) => return Ok(Sink::Disk(partial)),
            Written::Broken(error) => return Err(error),
            Written::NoDisk {
                hash,
                written,
                error,
                piece,
                arrivals: rest,
            } => {
                arrivals = rest;
                tracing::warn!(oci.digest = %self.flow.digest, %error, "going on without the disk");
                (self.leave_disk(hash, written), written, piece)
            }
        };
        match piece {
            Some((offset, piece)) if offset == written && remainder.stay_alone() => {
                memory = self.remember(memory, piece).await?;
                memory = self.remember_arrivals(memory, arrivals, &again).await?;
            }
            // What comes is not what is wanted next.
            _ => drop(arrivals),
        }
        self.remember_rest(memory, &again).await
    }

    /// Remembers what arrives as long as it is what is wanted next: what is behind that may have lain on the
    /// disk alone, and nobody brings it.
    pub(super) async fn remember_arrivals(
        &self,
        mut memory: Sink,
        mut arrivals: mpsc::Receiver<Arrival>,
        again: &Again,
    ) -> Result<Sink, FillError> {
        while memory.written() < again.len() {
            match arrivals.recv().await.transpose()? {
                Some((offset, piece)) if offset == memory.written() => {
                    memory = self.remember(memory, piece).await?;
                }
                Some(_) | None => break,
            }
        }
        Ok(memory)
    }

    /// Asks for what is still missing, by one connection, and remembers it.
    async fn remember_rest(&self, mut memory: Sink, again: &Again) -> Result<Sink, FillError> {
        if memory.written() < again.len() {
            let mut download = again.download(memory.written(), again.len()).await?;
            while let Some(piece) = download.next().await? {
                memory = self.remember(memory, piece).await?;
            }
        }
        Ok(memory)
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
                blocking(move || drop(partial)).await?;
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
            if let Entry::Occupied(mut fills) = running.entry(self.flow.digest) {
                fills
                    .get_mut()
                    .retain(|fill| !Arc::ptr_eq(&fill.flow, &self.flow));
                if fills.get().is_empty() {
                    fills.remove();
                }
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
