//! Where a blob comes from: hit, join, fill or bypass, as design 2.3 "Ranges" has it.

use std::net::IpAddr;

use tokio::time::{Instant, timeout_at};

use super::Fills;
use super::error::FillError;
use super::flow::Attendance;
use super::found::Found;
use super::proof::Pass;
use super::reader::{Following, Reader, Source};
use super::starting::Begun;
use crate::oci::{ByteRange, Digest, RangeSet};
use crate::telemetry::Outcome;
use crate::upstream::UpstreamError;

/// How far ahead of a fill's front a range may begin and still wait for it, in bytes; and the size from
/// which a single range from the start is taken for the wish to have it all (design, "Ranges").
const NEAR: u64 = 8 * 1024 * 1024;

/// Of a cold blob, what part of it must have been asked for by ranges before the whole is fetched.
const ASKED_ENOUGH: u64 = 4;

/// How often a blob is looked for that is always kept just after. More than once takes a file that is
/// there and cannot be served, which is nothing to go round in circles for.
pub(super) const LOOKS: u32 = 3;

/// What of a blob is wanted, and how.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// Only these ranges.
    pub ranges: Option<RangeSet>,
    /// The bytes go to a socket as they are, so they may come as a mapping of the file.
    pub mapped: bool,
    /// Where the client is, in whose turn a fill begins; `None` for nobody in particular.
    pub client: Option<IpAddr>,
}

/// A blob, or parts of it, ready to be sent.
pub struct Content {
    /// The size of the whole blob in bytes.
    pub size: u64,
    /// What was wanted of it.
    pub parts: Parts,
}

/// What was wanted of a blob.
pub enum Parts {
    /// All of it; nothing to read when it is empty.
    Whole(Option<Reader>),
    /// One range.
    One(ByteRange, Reader),
    /// Several ranges, in the order asked.
    Many(Vec<(ByteRange, Reader)>),
}

impl Fills {
    /// The size of a blob in bytes, and where it was learned, as a GET would tell it.
    ///
    /// # Errors
    /// The upstream's, where neither the store nor a record tells.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is kept of a question half asked.
    pub async fn size(&self, pass: &Pass) -> Result<Found<u64>, FillError> {
        let find = |pass: Pass| async move { self.find_size(&pass).await };
        self.by_pass(pass, find).await
    }

    async fn find_size(&self, pass: &Pass) -> Result<Found<u64>, FillError> {
        if let Some(blob) = self.shared.stored(pass).await? {
            return Ok(Found::by(Outcome::Hit, blob.len()));
        }
        let running = self
            .shared
            .running()
            .get(&pass.digest)
            .and_then(|fills| fills.iter().find_map(|fill| fill.flow.len()));
        if let Some(len) = running {
            return Ok(Found::by(Outcome::Joined, len));
        }
        let size = self.size_when_cold(pass).await?;
        Ok(Found::by(Outcome::Miss, size))
    }

    async fn size_when_cold(&self, pass: &Pass) -> Result<u64, FillError> {
        if let Some(size) = pass.size.described.or(pass.size.told) {
            return Ok(size);
        }
        let repository = &pass.repo.repository;
        let (asked, upstream) = (Instant::now(), self.shared.upstreams.of(&pass.repo)?);
        let size = upstream.blob_size(repository, &pass.digest).await?;
        self.shared
            .note_told(&upstream, &pass.repo, pass.digest, Some(size), asked)
            .await;
        Ok(size)
    }

    /// Opens a blob, or parts of it: from the store, from a running fill, from a fill begun now, or past
    /// the cache, as design 2.3 "Ranges" has it.
    ///
    /// # Errors
    /// When there is nothing to send: the upstream's error, an unsatisfiable range, or several ranges of
    /// a blob that is not whole on disk.
    ///
    /// # Cancel safety
    /// A fill that was begun goes on without the caller.
    pub async fn open(&self, pass: &Pass, want: &Want) -> Result<Found<Content>, FillError> {
        let open = |pass: Pass| async move {
            for _ in 0..LOOKS {
                if let Some(content) = self.try_open(&pass, want).await? {
                    return Ok(content);
                }
            }
            Err(FillError::Lost)
        };
        self.by_pass(pass, open).await
    }

    /// `None` if the blob was kept meanwhile.
    async fn try_open(
        &self,
        pass: &Pass,
        want: &Want,
    ) -> Result<Option<Found<Content>>, FillError> {
        if let Some(content) = self.open_stored(pass, want).await? {
            return Ok(Some(content));
        }
        // A part of what upstream only has as a whole comes from a fill.
        let mut has_parts = true;
        if let Some(ranges) = &want.ranges {
            if ranges.is_multiple() {
                return Err(FillError::OneRangeAtATime);
            }
            let is_running = self.shared.running().contains_key(&pass.digest);
            if !is_running {
                let size = self.size_when_cold(pass).await?;
                let range = only(ranges, size)?;
                if !self.goes_on(pass.digest, range)
                    && !self.wants_it_all(pass.digest, ranges, range, size)
                {
                    let part = self.bypass(pass, size, range, want.client).await?;
                    if part.is_some() {
                        return Ok(part);
                    }
                    has_parts = false;
                }
            }
        }
        let Some(Begun {
            outcome,
            size,
            attendance,
        }) = self.fill(pass, want.client).await?
        else {
            return Ok(None);
        };
        if !has_parts {
            attendance.flow().note_without_parts();
        }
        let parts = match &want.ranges {
            None => {
                let whole = (size > 0).then_some(ByteRange {
                    start: 0,
                    end: size,
                });
                Parts::Whole(whole.map(|range| self.follow(range, attendance)))
            }
            Some(ranges) => {
                let range = only(ranges, size)?;
                let flow = attendance.flow();
                if flow.may_have_parts() && range.start > flow.at_hand() + NEAR {
                    let part = self.bypass(pass, size, range, want.client).await?;
                    if part.is_some() {
                        return Ok(part);
                    }
                    flow.note_without_parts();
                }
                Parts::One(range, self.follow(range, attendance))
            }
        };
        Ok(Some(Found::by(outcome, Content { size, parts })))
    }

    /// One range of a blob that is not whole on disk, past the cache; `None` where upstream knows no ranges.
    async fn bypass(
        &self,
        pass: &Pass,
        size: u64,
        range: ByteRange,
        client: Option<IpAddr>,
    ) -> Result<Option<Found<Content>>, FillError> {
        let deadline = Instant::now() + self.shared.options.load().head_deadline;
        let turn = timeout_at(deadline, self.shared.bypasses.take(client));
        let turn = turn.await.map_err(|_elapsed| FillError::TooSlow)?;
        let asked = Instant::now();
        let origin = self.shared.origin(&self.shared.asked_by(pass)?);
        let body = origin.open(pass.digest, range.start, Some(range.end));
        let body = match body.await {
            Err(FillError::Upstream(UpstreamError::IgnoredRange)) => return Ok(None),
            body => body?,
        };
        if let Some(declared) = body.total().filter(|declared| *declared != size) {
            if pass.size.described.is_none() {
                // What upstream told before is not so; the next request begins with what it tells now.
                let upstream = &origin.upstream;
                self.shared
                    .note_told(upstream, &pass.repo, pass.digest, Some(declared), asked)
                    .await;
            }
            return Err(FillError::SizeMismatch {
                expected: size,
                declared,
            });
        }
        let reader = Reader::new(
            range,
            Source::Relay(Box::new((body, turn))),
            self.shared.buffers.clone(),
        );
        let parts = Parts::One(range, reader);
        Ok(Some(Found::by(Outcome::Bypass, Content { size, parts })))
    }

    /// Whether a range begins in what a broken download has of the blob, or just behind: whoever asks
    /// for it was cut off with that download, as by a restart of ours.
    fn goes_on(&self, digest: Digest, range: ByteRange) -> bool {
        let present = self.shared.store.interrupted_at(&digest);
        present.is_some_and(|present| range.start <= present + NEAR)
    }

    /// Whether a range of a cold blob is the beginning of having it all.
    fn wants_it_all(&self, digest: Digest, ranges: &RangeSet, range: ByteRange, size: u64) -> bool {
        if range.start == 0 && (ranges.is_open_ended() || range.len() > NEAR) {
            return true;
        }
        let asked = self
            .shared
            .asked
            .get(&digest)
            .unwrap_or(0)
            .saturating_add(range.len());
        self.shared.asked.insert(digest, asked);
        asked >= size / ASKED_ENOUGH
    }

    fn follow(&self, range: ByteRange, attendance: Attendance) -> Reader {
        let following = Following::new(attendance);
        Reader::new(range, Source::Flow(following), self.shared.buffers.clone())
    }
}

/// The one range of a blob that is not whole on disk.
fn only(ranges: &RangeSet, size: u64) -> Result<ByteRange, FillError> {
    let resolved = ranges
        .resolve(size)
        .map_err(|_| FillError::Unsatisfiable { size })?;
    resolved
        .first()
        .copied()
        .ok_or(FillError::Unsatisfiable { size })
}
