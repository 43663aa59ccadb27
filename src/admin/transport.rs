//! Operations over HTTP: the path they are asked for at, their items as a body, and the asking side.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::cache_dir::CacheDir;
use crate::jobs::operations::{
    self, Event, Input, Item, OperationError, Output, Reason, Running, wire,
};

/// Where operations are asked for.
pub(super) const OPERATIONS: &str = "/api/v1/operations";

/// The longest explanation of a refusal that is read, in bytes.
const MAX_REFUSAL: usize = 16 * 1024;

/// How long a running proxy may take until it begins to answer, which costs it nothing.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// An operation's items as the body of an answer.
pub(super) struct ItemBody {
    running: Running,
    /// The second half of an item.
    data: Option<Bytes>,
}

impl ItemBody {
    pub(super) fn new(running: Running) -> Self {
        Self {
            running,
            data: None,
        }
    }
}

impl http_body::Body for ItemBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.running.poll_next(context).map(|item| {
            let (line, data) = wire::encode(item?);
            self.data = data.filter(|data| !data.is_empty());
            Some(Ok(Frame::data(line)))
        })
    }
}

/// A request's line and its input as the body of a question.
struct AskingBody {
    line: Option<Bytes>,
    input: Input,
}

impl http_body::Body for AskingBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(line) = self.line.take() {
            return Poll::Ready(Some(Ok(Frame::data(line))));
        }
        let piece = self.input.poll_next(context);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A running proxy, reached through its admin socket.
#[derive(Debug)]
pub struct RemoteOperations {
    stream: UnixStream,
    cache_dir: CacheDir,
}

impl RemoteOperations {
    /// Connects to the socket at `path`; whoever listens there refuses to tend another cache than the one
    /// in `cache_dir`.
    ///
    /// # Errors
    /// Nobody listens there, or we may not use it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect(path: &Path, cache_dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let cache_dir = CacheDir::at(cache_dir);
        Ok(Self { stream, cache_dir })
    }

    /// Starts an operation there, as [`operations::Operations::start`] does here.
    pub fn start(self, request: operations::Request, input: Input) -> Running {
        Running::spawn(move |output| async move { relay(self, request, input, &output).await })
    }
}

/// Asks, and passes on what is told. That it is over is told by how this ends.
async fn relay(
    remote: RemoteOperations,
    request: operations::Request,
    input: Input,
    output: &Output,
) -> Result<(), OperationError> {
    let broken = |error: hyper::Error| {
        OperationError::Failed(format!(
            "the connection to the running proxy broke: {error}"
        ))
    };
    let (mut asking, connection) = http1::handshake(TokioIo::new(remote.stream))
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection);
    let _ended_with_us = AbortOnDrop(connection.abort_handle());
    let body = AskingBody {
        line: Some(wire::request_line(&request)),
        input,
    };
    let mut question = Request::new(body);
    *question.method_mut() = Method::POST;
    *question.uri_mut() = http::Uri::from_static(OPERATIONS);
    let headers = question.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    let lines = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, lines);
    remote.cache_dir.write(headers);
    let answer = timeout(ANSWER_DEADLINE, asking.send_request(question)).await;
    let answer = answer
        .map_err(|_| {
            let seconds = ANSWER_DEADLINE.as_secs();
            OperationError::Failed(format!(
                "the running proxy does not answer: nothing came within {seconds} s"
            ))
        })?
        .map_err(broken)?;
    let status = answer.status();
    let mut body = answer.into_body();
    if status == StatusCode::CONFLICT {
        return Err(OperationError::Usage(said(body).await));
    }
    if status != StatusCode::OK {
        return Err(OperationError::Failed(refused(status, body).await));
    }
    let mut decoder = wire::Decoder::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(broken)?;
        decoder.push(frame.data_ref().unwrap_or(&Bytes::new()));
        while let Some(item) = decoder.take().map_err(|error| {
            OperationError::Failed(format!("the running proxy's answer is {error}"))
        })? {
            match item {
                Item::Data(data) => output.give(data).await?,
                Item::Event(Event::End { error }) => {
                    return match error {
                        None => Ok(()),
                        Some(Reason::Usage(why)) => Err(OperationError::Usage(why)),
                        Some(Reason::Failed(why)) => Err(OperationError::Failed(why)),
                    };
                }
                Item::Event(event) => output.tell(event).await?,
            }
        }
    }
    Err(OperationError::Failed(
        "the running proxy ended before the operation did".to_owned(),
    ))
}

/// What to say about an answer that is no stream of items.
async fn refused(status: StatusCode, body: Incoming) -> String {
    let said = said(body).await;
    format!(
        "the running proxy refuses ({status}): {said}; is it of the same version as this command, {}?",
        env!("CARGO_PKG_VERSION")
    )
}

/// The text of a refusal.
async fn said(body: Incoming) -> String {
    let said = Limited::new(body, MAX_REFUSAL).collect().await;
    let said = said.map_or_else(|_| Bytes::new(), |said| said.to_bytes());
    let said = String::from_utf8_lossy(&said);
    said.trim().chars().filter(|c| !c.is_control()).collect()
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
