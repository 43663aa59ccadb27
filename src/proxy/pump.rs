//! A client's body on its way upstream: read when upstream asks for it, hashed, and handed on.
//!
//! Nothing is buffered beyond the piece in hand and what is being hashed, so the slower of the two sides
//! sets the pace. Each has a deadline: a client has to send something worth it, upstream has to take it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use crate::fill::{FillError, Received};
use crate::oci::Digest;
use crate::upstream::{Feed, UpstreamError};

/// A client has to bring [`LEAST`] within each such span, and upstream has to take a piece within it.
const SPAN: Duration = Duration::from_secs(30);
/// Half a kilobyte a second: any line that is fit to push images brings more. In bytes.
const LEAST: u64 = 16 * 1024;
/// How long a document that is held as a whole may take in all: at its largest it asks for 35 KiB/s.
const DOCUMENT: Duration = Duration::from_secs(120);
/// How much of one is held before it takes a turn, in bytes. Few manifests are larger.
const SMALL: usize = 64 * 1024;

/// Why a body did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client left, or framed it badly.
    Client,
    /// The client is too slow.
    Slow,
    /// It is longer than it may be.
    TooLong,
    /// There are as many long ones as there may be.
    TooMany,
    /// What all came to is not what was promised.
    Digest {
        /// What it is.
        found: Digest,
    },
    /// Upstream does not take it; its answer tells why, if there is one.
    Upstream(UpstreamError),
    /// It could not be hashed.
    Lost(FillError),
}

/// A client's body, read against the clock.
pub(super) struct Incoming<B> {
    body: B,
    until: Instant,
    /// When it has to be whole, if ever.
    end: Option<Instant>,
    brought: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Incoming<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            body,
            until: Instant::now() + SPAN,
            end: None,
            brought: 0,
        }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            match timeout_at(self.until, self.body.frame()).await {
                Err(_elapsed) => return Err(Broken::Slow),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Broken::Client),
                // Trailers mean nothing here.
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.brought += data.len() as u64;
                        if self.brought >= LEAST {
                            self.begin_span();
                        }
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn begin_span(&mut self) {
        let until = Instant::now() + SPAN;
        self.until = self.end.map_or(until, |end| end.min(until));
        self.brought = 0;
    }

    /// All of a body of at most `limit` bytes. One of more than [`SMALL`] waits for `turn` before any more of it
    /// is held; it is given back to be kept for as long as the bytes are.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) async fn whole<T>(
        mut self,
        limit: usize,
        turn: impl Future<Output = Option<T>>,
    ) -> Result<(Bytes, Option<T>), Broken> {
        let declared = self.body.size_hint().lower();
        if declared > limit as u64 {
            return Err(Broken::TooLong);
        }
        let mut turn = pin!(turn);
        let mut had = None;
        self.end = Some(Instant::now() + DOCUMENT);
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > limit {
                return Err(Broken::TooLong);
            }
            if had.is_none() && whole.len() + piece.len() > SMALL {
                had = Some(turn.as_mut().await.ok_or(Broken::TooMany)?);
                // The wait was ours.
                self.end = Some(Instant::now() + DOCUMENT);
                self.begin_span();
            }
            whole.extend_from_slice(&piece);
        }
        Ok((whole.into(), had))
    }

    /// Hands all of it on to `feed`. Where it is the last part of what is to be `promised`, its end is held
    /// back until that is so: upstream is left without it otherwise.
    ///
    /// # Errors
    /// See [`Broken`]; the feed is left without its end then.
    pub(super) async fn pump(
        mut self,
        mut feed: Feed,
        received: &mut Received,
        promised: Option<Digest>,
    ) -> Result<(), Broken> {
        feed.wanted().await.map_err(Broken::Upstream)?;
        self.begin_span();
        let mut held: Option<Bytes> = None;
        while let Some(piece) = self.next().await? {
            let waited = Instant::now();
            received.take(piece.clone()).await.map_err(Broken::Lost)?;
            if let Some(before) = held.replace(piece) {
                let handed_on = feed.piece(before, SPAN).await;
                handed_on.map_err(Broken::Upstream)?;
            }
            // The client is not to blame for what others took.
            self.until += waited.elapsed();
        }
        if let Some(promised) = promised {
            let found = received.digest().await.map_err(Broken::Lost)?;
            if found != promised {
                return Err(Broken::Digest { found });
            }
        }
        if let Some(last) = held {
            feed.piece(last, SPAN).await.map_err(Broken::Upstream)?;
        }
        feed.end(SPAN).await.map_err(Broken::Upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    /// A body that brings `bytes` every `pause`, `times` times.
    fn dribble(
        bytes: usize,
        pause: Duration,
        times: u32,
    ) -> impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
        let pieces = stream::unfold(0, move |count| async move {
            tokio::time::sleep(pause).await;
            let piece = Frame::data(Bytes::from(vec![b'x'; bytes]));
            (count < times).then_some((Ok(piece), count + 1))
        });
        StreamBody::new(Box::pin(pieces))
    }

    /// A turn that nobody waits for.
    async fn at_once() -> Option<()> {
        Some(())
    }

    #[tokio::test(start_paused = true)]
    async fn l05_a_trickle_ends_and_a_slow_line_does_not() {
        let trickle = dribble(1, Duration::from_secs(10), 1000);
        let began = Instant::now();
        let broken = Incoming::new(trickle).whole(1 << 20, at_once()).await;
        assert_eq!(broken, Err(Broken::Slow));
        assert!(began.elapsed() <= 2 * SPAN);

        // A thousandth of a slow line, for hours.
        let line = dribble(1_000, Duration::from_secs(1), 4 * 60 * 60);
        let (mut line, mut brought) = (Incoming::new(line), 0);
        while let Some(piece) = line.next().await.expect("it comes on") {
            brought += piece.len();
        }
        assert_eq!(brought, 1_000 * 4 * 60 * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn l05_a_document_has_its_time() {
        for (bytes, pause, fits) in [(20_000, 1, true), (20_000, 5, false), (60_000, 100, false)] {
            let document = dribble(bytes, Duration::from_secs(pause), 100);
            let began = Instant::now();
            let whole = Incoming::new(document).whole(1 << 22, at_once()).await;
            assert_eq!(whole.is_ok(), fits, "{bytes} bytes each {pause} s");
            assert!(began.elapsed() <= DOCUMENT + SPAN);
        }
    }

    #[tokio::test]
    async fn l13_a_long_document_wants_a_turn_and_a_short_one_none() {
        for (length, has) in [(SMALL, false), (SMALL + 1, true)] {
            let document = dribble(length, Duration::ZERO, 1);
            let whole = Incoming::new(document).whole(1 << 20, at_once()).await;
            let (whole, turn) = whole.expect("it is short enough");
            assert_eq!((whole.len(), turn.is_some()), (length, has));
            let document = dribble(length, Duration::ZERO, 1);
            let none = async { None::<()> };
            let whole = Incoming::new(document).whole(1 << 20, none).await;
            assert_eq!(whole.err(), has.then_some(Broken::TooMany));
        }
    }

    #[tokio::test]
    async fn a_document_has_its_limit_to_the_byte() {
        for (length, fits) in [(999, true), (1000, true), (1001, false)] {
            let document = dribble(length, Duration::ZERO, 1);
            let whole = Incoming::new(document).whole(1000, at_once()).await;
            assert_eq!(whole.is_ok(), fits, "{length}");
        }
    }
}
