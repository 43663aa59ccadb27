//! From a parsed request to the handler, and the answer back, with the connection's pulse kept.
//!
//! Invariant: a refused request never reaches [`Handler::call`], and a request is in flight until
//! its answer's body is dropped.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::Service;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::head::Refusal;
use super::progress::{InFlight, Pulse, Unsent};
use super::{BoxError, Handler};

/// No frame is on offer.
const NOT_OFFERED: u64 = u64::MAX;

/// The most bytes that an h2 DATA frame gets of a body: with its header of 9 (RFC 9113, 4.1) the frame
/// fills one TLS record of 16 KiB. A frame of 16 KiB would spill its last nine bytes into a record of
/// their own, whose sealing costs as much as a few KiB.
const FRAME_BYTES: usize = 16 * 1024 - 9;

/// Calls the handler for each request of one connection.
pub(super) struct Requests<H> {
    handler: H,
    pulse: Arc<Pulse>,
    /// Where an h2 connection's executor finds the offer of the stream it is about to run.
    next_stream: Option<NextStream>,
}

impl<H: Handler> Requests<H> {
    pub(super) fn new(handler: H, pulse: Arc<Pulse>, next_stream: Option<NextStream>) -> Self {
        Self {
            handler,
            pulse,
            next_stream,
        }
    }
}

impl<H: Handler> Service<Request<Incoming>> for Requests<H> {
    type Response = Response<Answer<H::Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (number, in_flight) = self.pulse.begin_request();
        let refusal = self.pulse.refusal_of(number).or_else(|| {
            // The head guard has seen to HTTP/1; in h2 a body is what does not end with its head.
            let has_body = !request.body().is_end_stream();
            let takes_none = matches!(*request.method(), Method::GET | Method::HEAD);
            (has_body && takes_none).then_some(Refusal::UnexpectedBody)
        });
        let is_http1 = request.version() != Version::HTTP_2;
        let pulse = Arc::clone(&self.pulse);
        let offer = self.next_stream.as_ref().map(NextStream::announce);
        let handler = self.handler.clone();
        // Written where it stays: made elsewhere, its few KiB would be copied twice.
        let memory = Box::new_uninit();
        let answering = async move {
            let mut response = match refusal {
                Some(refusal) => handler.refuse(refusal),
                None => handler.call(request).await,
            };
            // Told only now: whoever answers may have waited for the body, or not.
            if is_http1 && pulse.is_last(number) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok(response.map(|body| Answer {
                body,
                rest: Bytes::new(),
                offer,
                pulse,
                _in_flight: in_flight,
            }))
        };
        let answering = Box::write(memory, answering);
        Box::into_pin(answering)
    }
}

pin_project! {
    /// The handler's body, and what ends with it.
    pub(super) struct Answer<B> {
        #[pin]
        body: B,
        // What of the body's last piece is still to be framed; in h2 only.
        rest: Bytes,
        offer: Option<Arc<Offer>>,
        pulse: Arc<Pulse>,
        _in_flight: InFlight,
    }
}

impl<B: Body<Data = Bytes, Error = BoxError>> Body for Answer<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let Some(offer) = this.offer else {
            return this.body.poll_frame(cx);
        };
        if this.rest.is_empty() {
            let frame = this.body.poll_frame(cx);
            offer.note(frame.is_ready());
            match frame {
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                    *this.rest = frame.into_data().unwrap_or_default();
                }
                other => return other,
            }
        } else {
            offer.note(true);
        }
        let framed = this.rest.len().min(FRAME_BYTES);
        let mut bytes = this.rest.split_to(framed);
        // The body is dropped when h2 has its last frame, which may wait there for the client's window; it is the
        // last one of its piece as well.
        if this.rest.is_empty() {
            bytes = Bytes::from_owner(Unwritten {
                bytes,
                _unsent: this.pulse.hold_unsent(),
            });
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        match self.body.size_hint().exact() {
            Some(exact) => SizeHint::with_exact(exact + rest),
            None => SizeHint::default(),
        }
    }
}

/// A frame that h2 has not written.
struct Unwritten {
    bytes: Bytes,
    _unsent: Unsent,
}

impl AsRef<[u8]> for Unwritten {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Since when one h2 stream has been offered a frame without asking for the next.
///
/// The window of an h2 stream is the client's to open, and a stream that is never taken keeps its
/// handler and buffers while the connection looks healthy.
#[derive(Debug)]
pub(super) struct Offer {
    epoch: Instant,
    since: AtomicU64,
}

impl Offer {
    fn note(&self, is_offered: bool) {
        let since = match is_offered {
            true => u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(NOT_OFFERED),
            false => NOT_OFFERED,
        };
        self.since.store(since, Ordering::Release);
    }

    /// When the frame on offer was offered.
    fn offered_at(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Acquire);
        (since != NOT_OFFERED).then(|| self.epoch + Duration::from_millis(since))
    }
}

/// The offer of the stream between hyper's call of the service and its spawning of the stream.
/// hyper does both in one step, so the slot never holds two.
#[derive(Clone, Debug, Default)]
pub(super) struct NextStream(Arc<Mutex<Option<Arc<Offer>>>>);

impl NextStream {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Offer>>> {
        // A slot of one pointer cannot be left half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) -> Arc<Offer> {
        let offer = Arc::new(Offer {
            epoch: Instant::now(),
            since: AtomicU64::new(NOT_OFFERED),
        });
        *self.slot() = Some(Arc::clone(&offer));
        offer
    }
}

/// Runs the streams of one h2 connection, each until its client stops taking it.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    pub(super) next: NextStream,
    pub(super) write_timeout: Duration,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let offer = self.next.slot().take();
        let write_timeout = self.write_timeout;
        // The stream ends with its connection, whose end resolves it; nobody else waits for it.
        tokio::spawn(async move {
            match offer {
                Some(offer) => {
                    UntilStuck {
                        stream,
                        check: tokio::time::sleep(write_timeout),
                        offer,
                        write_timeout,
                    }
                    .await;
                }
                None => stream.await,
            }
        });
    }
}

pin_project! {
    /// A stream that is dropped, which resets it, once a frame has been on offer for too long.
    struct UntilStuck<F> {
        #[pin]
        stream: F,
        #[pin]
        check: Sleep,
        offer: Arc<Offer>,
        write_timeout: Duration,
    }
}

impl<F: Future<Output = ()>> Future for UntilStuck<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while this.check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = this.offer.offered_at().unwrap_or(now) + *this.write_timeout;
            if due <= now {
                tracing::debug!("h2 stream reset: the client does not take it");
                return Poll::Ready(());
            }
            this.check.as_mut().reset(due);
        }
        Poll::Pending
    }
}
