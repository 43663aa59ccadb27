//! The one body type of our answers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::completion::Completion;
use crate::fill::{FillError, Reader, Step};

/// Ends a body abnormally.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an answer says, in order. Its length is known from the start: a fault shows as an abnormal end.
#[derive(Default)]
pub(super) struct Said {
    /// What is said next; most answers say nothing else.
    next: Option<Segment>,
    then: VecDeque<Segment>,
    length: u64,
}

enum Segment {
    Text(Bytes),
    Read(Box<Reader>),
}

impl Said {
    /// Nothing.
    pub(super) fn nothing() -> Self {
        Self::default()
    }

    /// One text.
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        let mut said = Self::default();
        said.push_text(text);
        said
    }

    /// What a reader yields.
    pub(super) fn read(reader: Reader) -> Self {
        let mut said = Self::default();
        said.push_read(reader);
        said
    }

    pub(super) fn push_text(&mut self, text: impl Into<Bytes>) {
        let text = text.into();
        self.length += text.len() as u64;
        if !text.is_empty() {
            self.push(Segment::Text(text));
        }
    }

    pub(super) fn push_read(&mut self, reader: Reader) {
        self.length += reader.len();
        self.push(Segment::Read(Box::new(reader)));
    }

    fn push(&mut self, segment: Segment) {
        match &mut self.next {
            None => self.next = Some(segment),
            Some(_) => self.then.push_back(segment),
        }
    }

    fn take_next(&mut self) -> Option<Segment> {
        self.next.take().or_else(|| self.then.pop_front())
    }

    /// How many bytes it is in all.
    pub(super) fn len(&self) -> u64 {
        self.length
    }
}

/// An answer's body on its way to the client; tells how it ended when it is dropped.
pub struct Body {
    said: Said,
    sent: u64,
    /// A reader that waits for more, taken out of its segment for as long.
    waiting: Option<Pin<Box<dyn Future<Output = Box<Reader>> + Send>>>,
    completion: Box<Completion>,
}

impl Body {
    pub(super) fn new(said: Said, completion: Box<Completion>) -> Self {
        Self {
            said,
            sent: 0,
            waiting: None,
            completion,
        }
    }

    /// The next bytes, ready or not.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FillError>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let reader = ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
                self.said.next = Some(Segment::Read(reader));
            }
            match self.said.take_next() {
                None => return Poll::Ready(None),
                Some(Segment::Text(text)) => return Poll::Ready(Some(Ok(text))),
                Some(Segment::Read(mut reader)) => match reader.step() {
                    Step::Data(bytes) => {
                        self.said.next = Some(Segment::Read(reader));
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    Step::End => {}
                    Step::Wait => {
                        self.waiting = Some(Box::pin(async move {
                            reader.advance().await;
                            reader
                        }));
                    }
                    Step::Failed(error) => {
                        self.said.then.clear();
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.poll_bytes(cx)) {
            None => None,
            Some(Ok(bytes)) => {
                this.sent += bytes.len() as u64;
                this.completion.sent(this.sent);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => {
                this.completion.failed(&error);
                Some(Err(error.into()))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.sent >= self.said.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.said.len().saturating_sub(self.sent))
    }
}
