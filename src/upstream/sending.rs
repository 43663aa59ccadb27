//! What a request carries: nothing, a document, or a stream that its owner feeds piece by piece.
//!
//! A stream is never sent twice: once a byte of it was taken, its request is not repeated. And it ends
//! only where its owner says so: one whose owner has gone breaks its connection, so that no registry
//! takes a part for the whole.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};

use super::error::{Deadline, UpstreamError};

/// What a request carries. Clones carry the same, a stream at most once.
#[derive(Clone)]
pub(super) enum Carried {
    Nothing,
    Document(Bytes),
    Stream(Stream),
}

impl Carried {
    /// True as long as the same request may be sent again.
    pub(super) fn may_be_repeated(&self) -> bool {
        match self {
            Self::Nothing | Self::Document(_) => true,
            Self::Stream(stream) => stream.shared.progress.borrow().taken == 0,
        }
    }

    /// True for what can be sent but once.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// True once all of it was taken; what is held whole always is.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Nothing | Self::Document(_) => true,
            Self::Stream(stream) => stream.shared.progress.borrow().is_whole,
        }
    }

    /// Returns when all of it was taken.
    pub(super) async fn is_taken(&self) {
        if let Self::Stream(stream) = self {
            let mut progress = stream.shared.progress.subscribe();
            // Its sender is in the stream itself.
            let _ = progress.wait_for(|progress| progress.is_whole).await;
        }
    }

    /// The body of one request; the bytes of a stream are counted.
    pub(super) fn body(&self, counter: impl FnOnce() -> Counter) -> Sending {
        match self {
            Self::Nothing => Sending::Whole(None),
            Self::Document(bytes) => Sending::Whole(Some(bytes.clone())),
            Self::Stream(stream) => Sending::Stream(stream.clone(), counter()),
        }
    }
}

/// Makes a stream of `length` bytes, where that is known, and what feeds it.
pub(super) fn stream(length: Option<u64>) -> (Feed, Stream) {
    let (pieces, waiting) = mpsc::channel(1);
    let progress = watch::Sender::new(Progress {
        is_wanted: false,
        taken: 0,
        is_whole: length == Some(0),
    });
    let shared = Arc::new(Shared {
        waiting: Mutex::new(waiting),
        length,
        progress,
    });
    let feed = Feed {
        pieces,
        progress: shared.progress.subscribe(),
    };
    (feed, Stream { shared })
}

/// A stream as a request has it.
#[derive(Clone)]
pub(super) struct Stream {
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Mutex<mpsc::Receiver<Piece>>,
    length: Option<u64>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    /// A connection has asked for the first piece.
    is_wanted: bool,
    taken: u64,
    is_whole: bool,
}

enum Piece {
    Data(Bytes),
    End,
}

/// Feeds the body of an upload. Dropping it before [`Feed::end`] breaks the upload off.
pub struct Feed {
    pieces: mpsc::Sender<Piece>,
    progress: watch::Receiver<Progress>,
}

impl Feed {
    /// Returns once there is a connection that asks for the first byte: until then nothing need be read
    /// from whoever has the bytes.
    ///
    /// # Errors
    /// When nobody will ask: the request has ended.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn wanted(&mut self) -> Result<(), UpstreamError> {
        let wanted = self.progress.wait_for(|progress| progress.is_wanted);
        wanted.await.map(|_| ()).map_err(|_| GONE)
    }

    /// Hands the next piece on, as soon as the one before was taken.
    ///
    /// # Errors
    /// [`UpstreamError::TooSlow`] if that is not within `patience`; another if the request has ended.
    ///
    /// # Cancel safety
    /// A piece that was not handed on is lost, and with it the upload.
    pub async fn piece(&mut self, piece: Bytes, patience: Duration) -> Result<(), UpstreamError> {
        self.hand_on(Piece::Data(piece), patience).await
    }

    /// Says that the body is whole.
    ///
    /// # Errors
    /// As [`Feed::piece`].
    pub async fn end(self, patience: Duration) -> Result<(), UpstreamError> {
        let handed_on = self.hand_on(Piece::End, patience).await;
        // A body of a known length is whole without its end, and may have been answered by now.
        match self.progress.borrow().is_whole {
            true => Ok(()),
            false => handed_on,
        }
    }

    async fn hand_on(&self, piece: Piece, patience: Duration) -> Result<(), UpstreamError> {
        match tokio::time::timeout(patience, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(GONE),
            Err(_elapsed) => Err(UpstreamError::TooSlow(Deadline::Progress)),
        }
    }
}

/// Nobody reads the stream any more; why, the request itself tells.
const GONE: UpstreamError = UpstreamError::Truncated;

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, mpsc::Receiver<Piece>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one body type of our requests.
pub(super) enum Sending {
    Whole(Option<Bytes>),
    Stream(Stream, Counter),
}

/// Why a stream does not go on.
#[derive(Debug, thiserror::Error)]
#[error("the upload was broken off")]
pub(super) struct BrokenOff;

impl Body for Sending {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let (shared, sent) = match self.get_mut() {
            Self::Whole(bytes) => {
                let frame = bytes.take().filter(|bytes| !bytes.is_empty());
                return Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Stream(stream, sent) => (&stream.shared, sent),
        };
        if shared.progress.borrow().is_whole {
            return Poll::Ready(None);
        }
        shared.progress.send_if_modified(|progress| {
            let was_wanted = std::mem::replace(&mut progress.is_wanted, true);
            !was_wanted
        });
        let piece = ready!(shared.waiting().poll_recv(cx));
        Poll::Ready(match piece {
            None => Some(Err(BrokenOff)),
            Some(Piece::End) => {
                shared
                    .progress
                    .send_modify(|progress| progress.is_whole = true);
                None
            }
            Some(Piece::Data(bytes)) => {
                sent.inc_by(bytes.len() as u64);
                shared.progress.send_modify(|progress| {
                    progress.taken += bytes.len() as u64;
                    // A body of a known length is not asked for what comes after it.
                    progress.is_whole = shared.length.is_some_and(|all| progress.taken >= all);
                });
                Some(Ok(Frame::data(bytes)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(stream, _) => stream.shared.progress.borrow().is_whole,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(stream, _) => match stream.shared.length {
                Some(length) => {
                    let taken = stream.shared.progress.borrow().taken;
                    SizeHint::with_exact(length.saturating_sub(taken))
                }
                None => SizeHint::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn body(stream: &Stream) -> Sending {
        Carried::Stream(stream.clone()).body(Counter::default)
    }

    #[tokio::test]
    async fn a_stream_ends_only_where_its_owner_says_so() {
        for is_ended in [true, false] {
            let (mut feed, stream) = stream(None);
            let reading = tokio::spawn(body(&stream).collect());
            feed.wanted().await.unwrap();
            feed.piece(Bytes::from_static(b"half"), PATIENCE)
                .await
                .unwrap();
            match is_ended {
                true => feed.end(PATIENCE).await.unwrap(),
                false => drop(feed),
            }
            assert_eq!(reading.await.unwrap().is_ok(), is_ended);
        }
    }

    #[tokio::test]
    async fn o10_what_was_not_begun_may_be_sent_again_and_what_was_may_not() {
        let (feed, stream) = stream(Some(3));
        let carried = Carried::Stream(stream.clone());
        let first = body(&stream);
        drop(first);
        assert!(carried.may_be_repeated());
        let mut second = body(&stream);
        let feeding = tokio::spawn(async move {
            let mut feed = feed;
            feed.piece(Bytes::from_static(b"abc"), PATIENCE)
                .await
                .unwrap();
            feed
        });
        let frame = second.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "abc");
        assert!(!carried.may_be_repeated());
        assert!(second.is_end_stream(), "as long as it was to be");
        carried.is_taken().await;
        drop(feeding.await.unwrap());
        assert!(second.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_body_of_a_known_length_is_whole_without_its_end() {
        let (mut feed, stream) = stream(Some(3));
        let mut sending = body(&stream);
        let piece = Bytes::from_static(b"abc");
        let (fed, taken) = tokio::join!(feed.piece(piece, PATIENCE), sending.frame());
        assert!(fed.is_ok() && taken.is_some_and(|frame| frame.is_ok()));
        // It was answered, and nobody is there any more.
        drop((sending, stream));
        assert_eq!(feed.end(PATIENCE).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn l05_what_upstream_does_not_take_is_not_waited_for_for_ever() {
        let (mut feed, _stream) = stream(None);
        feed.piece(Bytes::from_static(b"a"), PATIENCE)
            .await
            .unwrap();
        let stuck = feed.piece(Bytes::from_static(b"b"), PATIENCE).await;
        assert_eq!(stuck, Err(UpstreamError::TooSlow(Deadline::Progress)));
    }
}
