//! One blob from upstream, continued past whatever breaks it.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::FillError;
use super::origin::Origin;
use super::proof::KnownSize;
use crate::oci::Digest;
use crate::telemetry::{FillMetrics, ResumeResult};
use crate::upstream::{BlobBody, UpstreamError};

/// What counts as getting somewhere, in bytes: a link that dies after less than this each time would
/// otherwise be tried for ever at a dreadful rate.
const PROGRESS: u64 = 256 * 1024;

/// The pauses between fruitless continuations: the first is short because most breaks are of one
/// connection, the longest bounds both what an outage costs the upstream and how late its end is noticed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

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
            body: Some(self.open(at, end).await?),
            again: self.clone(),
            broken: None,
            beyond: Bytes::new(),
            at,
            end,
            asked: end,
            progress: (at, Instant::now()),
            fruitless: 0,
        })
    }

    /// The same, for a connection that could not be opened: tried again as one that broke is continued.
    pub(super) fn continuing(&self, at: u64, end: u64, broken: UpstreamError) -> Download {
        Download {
            body: None,
            again: self.clone(),
            broken: Some(broken),
            beyond: Bytes::new(),
            at,
            end,
            asked: end,
            progress: (at, Instant::now()),
            fruitless: 1,
        }
    }

    /// The same, held to the place that it comes from now.
    pub(super) fn alone(self) -> Self {
        Self {
            origin: self.origin.alone(),
            ..self
        }
    }

    /// Whether two parts of the content can be told to be of the same.
    pub(super) fn has_validator(&self) -> bool {
        let known = self.origin.validator.get();
        known.is_some_and(|known| known.etag().is_some())
    }

    async fn open(&self, at: u64, end: u64) -> Result<BlobBody, FillError> {
        let body = self.origin.open(self.digest, at, self.to(end)).await?;
        match self.is_of_this_size(&body) {
            true => Ok(body),
            false => Err(UpstreamError::ContentChanged.into()),
        }
    }

    /// Goes over to where else the blob is, after `error`, if there is such a place.
    async fn move_on(&mut self, error: &FillError, at: u64, end: u64) -> Option<BlobBody> {
        let moved = self
            .origin
            .open_elsewhere(error, self.digest, at, self.to(end));
        let (origin, body) = moved.await?;
        if !self.is_of_this_size(&body) {
            return None;
        }
        tracing::info!(oci.digest = %self.digest, upstream.name = %origin.upstream.name(), body.bytes = at, "going on with the transfer elsewhere");
        self.origin = origin;
        Some(body)
    }

    fn to(&self, end: u64) -> Option<u64> {
        (end < self.len).then_some(end)
    }

    fn is_of_this_size(&self, body: &BlobBody) -> bool {
        body.total().is_none_or(|total| total == self.len)
    }
}

/// The bytes of a blob in order, each once, whatever happens to the connections they come by.
pub(super) struct Download {
    again: Again,
    body: Option<BlobBody>,
    /// Why nothing more is to be had from that body.
    broken: Option<UpstreamError>,
    /// What the body has brought from `end` on: it will not bring it again, and the end may move.
    beyond: Bytes,
    /// Offset of the next byte.
    at: u64,
    /// Offset of the first byte that is not wanted.
    end: u64,
    /// Where the body ends, as it was asked for.
    asked: u64,
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
            body: Some(body),
            broken: None,
            beyond: Bytes::new(),
            at: 0,
            end: len,
            asked: len,
            progress: (0, Instant::now()),
            fruitless: 0,
        })
    }

    /// How others may ask for the same content.
    pub(super) fn again(&self) -> Again {
        self.again.clone()
    }

    /// Offset of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Nothing is wanted from `end` on, wherever it was before; not before where the download is.
    pub(super) fn set_end(&mut self, end: u64) {
        self.end = end.max(self.at);
    }

    /// How long limits of our own held it back since this was last asked.
    pub(super) fn take_held_back(&mut self) -> Duration {
        let body = self.body.as_mut();
        body.map_or(Duration::ZERO, BlobBody::take_held_back)
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// What could not be continued past.
    ///
    /// # Cancel safety
    /// Not cancel safe while it continues what broke; no byte is lost otherwise.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        while self.at < self.end {
            let read = if let Some(beyond) = self.take_beyond() {
                Ok(Some(beyond))
            } else {
                if let Some(broken) = self.broken.take() {
                    self.resume(broken).await?;
                }
                match &mut self.body {
                    Some(body) => body.next().await,
                    None => Err(UpstreamError::Truncated),
                }
            };
            if let Some(chunk) = self.accept(read)? {
                return Ok(Some(chunk));
            }
        }
        self.check_end().await?;
        Ok(None)
    }

    /// The next bytes, if they come by the connection at hand, before `deadline` and before the end.
    ///
    /// # Errors
    /// What cannot be continued past.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte is lost.
    pub(super) async fn soon(&mut self, deadline: Instant) -> Result<Option<Bytes>, FillError> {
        if self.at >= self.end {
            return Ok(None);
        }
        if let Some(beyond) = self.take_beyond() {
            return self.accept(Ok(Some(beyond)));
        }
        let Some(body) = self.body.as_mut().filter(|_| self.broken.is_none()) else {
            return Ok(None);
        };
        match timeout_at(deadline, body.next()).await {
            Ok(read) => self.accept(read),
            Err(_elapsed) => Ok(None),
        }
    }

    fn take_beyond(&mut self) -> Option<Bytes> {
        Some(std::mem::take(&mut self.beyond)).filter(|beyond| !beyond.is_empty())
    }

    /// Takes what a body brought; `None` if it brings no more and has to be continued.
    fn accept(
        &mut self,
        read: Result<Option<Bytes>, UpstreamError>,
    ) -> Result<Option<Bytes>, FillError> {
        match read {
            Ok(Some(mut chunk)) => {
                let left = self.end - self.at;
                if chunk.len() as u64 > left {
                    if self.end >= self.asked {
                        return Err(UpstreamError::TooMuch.into());
                    }
                    // In range: less than the length of the chunk.
                    self.beyond = chunk.split_off(left as usize);
                }
                self.at += chunk.len() as u64;
                if self.at - self.progress.0 >= PROGRESS {
                    self.progress = (self.at, Instant::now());
                    self.fruitless = 0;
                }
                return Ok(Some(chunk));
            }
            Ok(None) => self.broken = Some(UpstreamError::Truncated),
            Err(error) if error.retryable() => self.broken = Some(error),
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    /// At the end of what was asked for, makes sure that upstream has no more to say.
    ///
    /// # Errors
    /// [`UpstreamError::TooMuch`] if it has.
    pub(super) async fn check_end(&mut self) -> Result<(), FillError> {
        let is_at_end = self.at >= self.asked && self.broken.is_none();
        let Some(body) = self.body.as_mut().filter(|_| is_at_end) else {
            return Ok(());
        };
        // A body without a declared length may go on; one that breaks here has nothing left to lose.
        match body.next().await {
            Ok(Some(_)) => Err(UpstreamError::TooMuch.into()),
            Ok(None) | Err(_) => {
                self.broken = Some(UpstreamError::Truncated);
                Ok(())
            }
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
            let _ = timeout(left, self.again.origin.answers()).await;
            self.fruitless += 1;
            tracing::info!(oci.digest = %self.again.digest, body.bytes = self.at, error = %last, "continuing a broken transfer");
            let opened = match self.again.open(self.at, self.end).await {
                Ok(body) => Ok(body),
                Err(error) => {
                    let moved = self.again.move_on(&error, self.at, self.end).await;
                    moved.ok_or(error)
                }
            };
            match opened {
                Ok(body) => {
                    self.body = Some(body);
                    self.asked = self.end;
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
