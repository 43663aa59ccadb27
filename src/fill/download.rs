//! One blob from upstream, continued past whatever breaks it.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::error::FillError;
use super::{KnownSize, Origin};
use crate::oci::Digest;
use crate::telemetry::{FillMetrics, ResumeResult};
use crate::upstream::{BlobBody, UpstreamError};

/// What counts as getting somewhere, in bytes: a link that dies after less than this each time would
/// otherwise be tried for ever at a dreadful rate.
const PROGRESS: u64 = 256 * 1024;

/// The pauses between fruitless continuations: the first is short because most breaks are of one
/// connection, the longest bounds both what an outage costs the upstream and how late its end is noticed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// How many chunks may wait between the network and the disk. A chunk is at most what one read of the
/// socket gives (some 400 KiB), so this bounds the memory of a fill whose disk is slow, and is enough
/// for the network to go on while a piece is written.
const CHUNKS_WAITING: usize = 4;

/// How to ask once more for the content that a transfer began with.
#[derive(Clone)]
pub(super) struct Again {
    origin: Origin,
    digest: Digest,
    /// Size of the whole blob.
    len: u64,
    /// How long a transfer may go without getting anywhere.
    patience: Duration,
    metrics: FillMetrics,
}

impl Again {
    /// For a blob of `len` bytes whose beginning is there already.
    pub(super) fn new(
        origin: Origin,
        digest: Digest,
        len: u64,
        patience: Duration,
        metrics: FillMetrics,
    ) -> Self {
        Self {
            origin,
            digest,
            len,
            patience,
            metrics,
        }
    }

    /// What is to be noted beside the unfinished file.
    pub(super) fn note(&self) -> Vec<u8> {
        self.origin.note()
    }

    /// Size of the whole blob in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes from `at` to `end`, of the same content or not at all.
    ///
    /// # Errors
    /// The upstream's.
    pub(super) async fn download(&self, at: u64, end: u64) -> Result<Download, FillError> {
        Ok(Download {
            body: self.open(at, end).await?,
            again: self.clone(),
            at,
            end,
            progress: (at, Instant::now()),
            fruitless: 0,
        })
    }

    async fn open(&self, at: u64, end: u64) -> Result<BlobBody, FillError> {
        let to = (end < self.len).then_some(end);
        let body = self.origin.open(self.digest, at, to).await?;
        match body.total() {
            Some(total) if total != self.len => Err(UpstreamError::ContentChanged.into()),
            _ => Ok(body),
        }
    }
}

/// The bytes of a blob in order, each once, whatever happens to the connections they come by.
pub(super) struct Download {
    again: Again,
    body: BlobBody,
    /// Offset of the next byte.
    at: u64,
    /// Offset of the first byte that is not wanted.
    end: u64,
    /// Offset and time at which the transfer was last known to get somewhere.
    progress: (u64, Instant),
    /// Continuations since then.
    fruitless: u32,
}

impl Download {
    /// Asks the upstream for the blob; `size` is what is known before.
    ///
    /// # Errors
    /// The upstream's, or a size that is unknown or not the expected one.
    pub(super) async fn open(
        origin: Origin,
        digest: Digest,
        size: KnownSize,
        patience: Duration,
        metrics: FillMetrics,
    ) -> Result<Self, FillError> {
        let body = origin.open(digest, 0, None).await?;
        let len = match (body.total(), size.described) {
            (Some(declared), Some(expected)) if declared != expected => {
                return Err(FillError::SizeMismatch { expected, declared });
            }
            (declared, described) => declared
                .or(described)
                .or(size.told)
                .ok_or(FillError::UnknownSize)?,
        };
        Ok(Self {
            again: Again::new(origin, digest, len, patience, metrics),
            body,
            at: 0,
            end: len,
            progress: (0, Instant::now()),
            fruitless: 0,
        })
    }

    /// The size of the blob in bytes.
    pub(super) fn len(&self) -> u64 {
        self.again.len()
    }

    /// How others may ask for the same content.
    pub(super) fn again(&self) -> Again {
        self.again.clone()
    }

    /// Fetches in a task of its own, a few chunks ahead of whoever takes them; it ends when they do.
    pub(super) fn run_ahead(mut self) -> mpsc::Receiver<Result<Bytes, FillError>> {
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        tokio::spawn(async move {
            while let Some(chunk) = self.next().await.transpose() {
                let is_last = chunk.is_err();
                if sender.send(chunk).await.is_err() || is_last {
                    break;
                }
            }
        });
        receiver
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// What could not be continued past.
    ///
    /// # Cancel safety
    /// Not cancel safe: what arrived would be lost.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        while self.at < self.end {
            let broken = match self.body.next().await {
                Ok(Some(chunk)) => {
                    self.at += chunk.len() as u64;
                    if self.at - self.progress.0 >= PROGRESS {
                        self.progress = (self.at, Instant::now());
                        self.fruitless = 0;
                    }
                    if self.at > self.end {
                        return Err(UpstreamError::TooMuch.into());
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) => UpstreamError::Truncated,
                Err(error) if error.retryable() => error,
                Err(error) => return Err(error.into()),
            };
            self.resume(broken).await?;
        }
        // A body without a declared length may go on; one that breaks here has nothing left to lose.
        match self.body.next().await {
            Ok(Some(_)) => Err(UpstreamError::TooMuch.into()),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// Continues at the first byte that is missing, from the same content or not at all.
    async fn resume(&mut self, broken: UpstreamError) -> Result<(), FillError> {
        let mut last = broken;
        // The first continuation is always tried: time may have passed because nobody took the bytes.
        while self.fruitless == 0 || self.progress.1.elapsed() < self.again.patience {
            if self.fruitless > 0 {
                let pause = PAUSES.0 * 2u32.pow((self.fruitless - 1).min(8));
                let jitter = 0.75 + fastrand::f64() / 2.0;
                tokio::time::sleep(pause.min(PAUSES.1).mul_f64(jitter)).await;
            }
            // Where nobody answers, their return is waited for, and noticed at once.
            let left = self
                .again
                .patience
                .saturating_sub(self.progress.1.elapsed());
            let _ = timeout(left, self.again.origin.upstream.answers()).await;
            self.fruitless += 1;
            tracing::info!(oci.digest = %self.again.digest, body.bytes = self.at, error = %last, "continuing a broken transfer");
            match self.again.open(self.at, self.end).await {
                Ok(body) => {
                    self.body = body;
                    self.again.metrics.resumed(ResumeResult::Resumed);
                    return Ok(());
                }
                Err(FillError::Upstream(error)) if error.retryable() => last = error,
                Err(FillError::Upstream(error)) => return Err(self.gave_up(error)),
                Err(error) => return Err(error),
            }
        }
        Err(self.gave_up(last))
    }

    fn gave_up(&self, error: UpstreamError) -> FillError {
        self.again.metrics.resumed(match error {
            UpstreamError::ContentChanged => ResumeResult::Changed,
            _ => ResumeResult::Failed,
        });
        error.into()
    }
}
