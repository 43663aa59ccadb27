//! One connection: HTTP/1.1 in, the service's answer with its faults out.
//!
//! Well-formed answers go out through hyper. Those that break HTTP on purpose (a reset, a cut, a
//! second answer) cannot: for them the connection is taken from hyper and written by hand.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

use super::content::BlobSource;
use super::fault::{CannedAnswer, Fault, Faults};
use super::journal::{End, Entry, Journal, Listener, Ticket};
use super::pace::{Bucket, Course, Flow};
use super::reply::Reply;

/// The most of a request body that is kept; a longer one gets 413.
const MAX_REQUEST_BODY_BYTES: usize = 1 << 30;

/// A request whose body, if any, has been read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
    /// `http` or `https`, as this connection is.
    pub(super) scheme: &'static str,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What answers on a listener.
pub(super) trait Service: Send + Sync + 'static {
    /// The repository and digest a request concerns, as far as the service can tell.
    fn subject(&self, path: &str) -> (Option<String>, Option<String>);
    /// The answer.
    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply>;
    /// The answer to a credential that is too old.
    fn expired(&self) -> Reply;
}

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) listener: Listener,
    pub(super) service: Arc<dyn Service>,
    pub(super) journal: Journal,
    pub(super) faults: Faults,
}

/// A socket, plain or under TLS.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    fn scheme(&self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Tls(_) => "https",
        }
    }

    /// Closes with RST.
    pub(super) fn reset(self) {
        let tcp = match &self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        // Where it fails the connection is gone already.
        let _ = SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
    }
}

type SimBody = UnsyncBoxBody<Bytes, Infallible>;

/// How an answer leaves the path that hyper knows.
#[derive(Clone, Debug)]
enum Ending {
    Reset,
    Close,
    CloseDelimited,
    Chunked,
    Extra(Bytes),
}

/// A connection that is to be written by hand from here on.
enum Takeover {
    /// Without an answer.
    Reset,
    /// These bytes and the end.
    Raw(Bytes, Ticket),
    /// This head and body, then the ending.
    Spoiled(Vec<u8>, Flow, Ending),
}

/// Serves until the peer or a fault ends the connection.
pub(super) async fn serve(door: Door, wire: Wire, connection: u64) {
    let scheme = wire.scheme();
    let (take, mut taken) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let door = door.clone();
        let take = take.clone();
        async move { exchange(&door, request, connection, scheme, take).await }
    });
    let mut hyper = http1::Builder::new()
        .timer(TokioTimer::new())
        .title_case_headers(true)
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(wire), service);
    tokio::select! {
        // A peer that leaves or speaks badly is no news: the journal holds what was asked.
        _ = &mut hyper => {}
        Some(takeover) = taken.recv() => {
            write_by_hand(hyper.into_parts().io.into_inner(), takeover).await;
        }
    }
}

async fn exchange(
    door: &Door,
    request: Request<Incoming>,
    connection: u64,
    scheme: &'static str,
    take: mpsc::Sender<Takeover>,
) -> Result<Response<SimBody>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let (repository, digest) = door.service.subject(&path);
    let target = parts.headers.get("x-amz-target");
    let operation = target.and_then(|t| t.to_str().ok()?.rsplit('.').next());
    let mut headers = parts.headers.clone();
    if let (None, Some(authority)) = (headers.get(header::HOST), parts.uri.authority())
        && let Ok(host) = authority.as_str().parse()
    {
        headers.insert(header::HOST, host);
    }
    for (name, value) in &mut headers {
        // Not to be printed by a failing test.
        value.set_sensitive(name == header::AUTHORIZATION);
    }
    let entry = Entry {
        id: 0,
        listener: door.listener,
        connection,
        method: parts.method.to_string(),
        path: path.clone(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        operation: operation.unwrap_or_default().to_owned(),
        headers: headers.clone(),
        repository,
        digest,
        request_bytes: 0,
        status: None,
        body_bytes: 0,
        end: End::InFlight,
    };
    let faults = door.faults.take(&entry);
    let method = entry.method.clone();
    let query = entry.query.clone();
    let mut ticket = door.journal.begin(entry);

    for fault in &faults {
        match fault {
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            Fault::Hold(gate) => gate.pass().await,
            _ => {}
        }
    }
    let mut course = Course::default();
    course
        .rates
        .extend(door.faults.listener_rate(door.listener));
    let mut ending = None;
    let mut instead = None;
    for fault in &faults {
        match fault {
            Fault::Rate(rate) => course.rates.push(Bucket::new(*rate)),
            Fault::HoldAfter(at, gate) => course.holds.push((*at, gate.clone())),
            Fault::StallAfter(at) => course.stall_after = Some(*at),
            Fault::Corrupt(at) => course.corrupt.push(*at),
            Fault::ResetAfter(at) => {
                course.cut_after = Some(*at);
                ending = Some(Ending::Reset);
            }
            Fault::TruncateAfter(at) => {
                course.cut_after = Some(*at);
                ending = Some(Ending::Close);
            }
            Fault::CloseDelimited(at) => {
                course.cut_after = *at;
                ending = Some(Ending::CloseDelimited);
            }
            Fault::TruncateChunked(at) => {
                course.cut_after = Some(*at);
                ending = Some(Ending::Chunked);
            }
            Fault::Extra(bytes) => ending = Some(Ending::Extra(bytes.clone())),
            Fault::Reset => {
                return taken_over(&take, Takeover::Reset).await;
            }
            Fault::Raw(bytes) => {
                return taken_over(&take, Takeover::Raw(bytes.clone(), ticket)).await;
            }
            Fault::Answer(answer) => instead = Some(canned(answer)),
            Fault::Expired => instead = Some(door.service.expired()),
            _ => {}
        }
    }

    let reply = match instead {
        Some(reply) => {
            // Who answers early goes on reading, as balancers do: closing with unread bytes would reset the
            // connection, and the answer might be lost with it.
            tokio::spawn(async move {
                let mut body = body;
                while let Some(Ok(_)) = body.frame().await {}
            });
            reply
        }
        None => match collect(body, &ticket).await {
            Some(body) => {
                let mut asked = Asked {
                    method: method.clone(),
                    path,
                    query,
                    headers,
                    body,
                    scheme,
                };
                bend_range(&mut asked, &faults);
                door.service.answer(asked).await
            }
            None => Reply::empty(413),
        },
    };
    for fault in &faults {
        match fault {
            Fault::Late(gate) => gate.pass().await,
            Fault::Lost => return taken_over(&take, Takeover::Reset).await,
            _ => {}
        }
    }
    let mut reply = spoiled(reply, &faults);

    let bodiless = method == "HEAD" || matches!(reply.status.as_u16(), 204 | 304);
    let promised = if bodiless { 0 } else { reply.len };
    for fault in &faults {
        if let Fault::HoldBefore(left, gate) = fault {
            course
                .holds
                .push((promised.saturating_sub(*left), gate.clone()));
        }
    }
    ticket.head(reply.status.as_u16(), promised);
    if let Some(ending) = ending {
        let framing = match ending {
            Ending::CloseDelimited => "connection: close\r\n".to_owned(),
            Ending::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
            _ => format!("content-length: {}\r\n", reply.len),
        };
        let head = reply.head_bytes(&framing);
        let flow = Flow::new(reply.content, reply.first, promised, course, ticket);
        return taken_over(&take, Takeover::Spoiled(head, flow, ending)).await;
    }
    // A fault may lie about the length where no body follows; elsewhere hyper needs the truth.
    let lies = bodiless && reply.headers.contains_key(header::CONTENT_LENGTH);
    if reply.status.as_u16() != 204 && !lies {
        reply.set("content-length", &reply.len.to_string());
    }
    let flow = Flow::new(reply.content, reply.first, promised, course, ticket);
    let body = if promised == 0 {
        drop(flow);
        Empty::new().boxed_unsync()
    } else {
        let pieces = stream::unfold(flow, |mut flow| async {
            let piece = flow.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), flow))
        });
        StreamBody::new(pieces.boxed()).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = *reply.headers;
    Ok(response)
}

/// Hands the connection over and waits for ever: whoever took it drops this future.
async fn taken_over(
    take: &mpsc::Sender<Takeover>,
    takeover: Takeover,
) -> Result<Response<SimBody>, Infallible> {
    // The receiver lives as long as the connection, which holds this future.
    let _ = take.send(takeover).await;
    std::future::pending().await
}

async fn collect(mut body: Incoming, ticket: &Ticket) -> Option<Bytes> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            // The peer is gone or framed badly; hyper closes, nobody reads the answer.
            return std::future::pending().await;
        };
        if let Ok(data) = frame.into_data() {
            ticket.received(data.len() as u64);
            if whole.len() + data.len() > MAX_REQUEST_BODY_BYTES {
                return None;
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(whole.into())
}

fn canned(answer: &CannedAnswer) -> Reply {
    let mut reply = Reply::new(answer.status, answer.body.clone());
    for (name, value) in &answer.headers {
        reply.add(name, value);
    }
    reply
}

/// Changes what was asked before the service sees it.
fn bend_range(asked: &mut Asked, faults: &[Fault]) {
    for fault in faults {
        match fault {
            Fault::IgnoreRange => {
                asked.headers.remove(header::RANGE);
            }
            Fault::ShiftRange(by) => {
                let bent = asked.header("range").and_then(|range| {
                    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
                    let first = first.parse::<u64>().ok()?.saturating_add(*by);
                    format!("bytes={first}-{last}").parse().ok()
                });
                if let Some(range) = bent {
                    asked.headers.insert(header::RANGE, range);
                }
            }
            _ => {}
        }
    }
}

/// Applies the faults that concern headers and content as a whole.
fn spoiled(mut reply: Reply, faults: &[Fault]) -> Reply {
    for fault in faults {
        match fault {
            Fault::OtherContent(seed) => {
                reply.content = BlobSource::generated(*seed, reply.content.len());
            }
            Fault::Gzip => {
                let whole = reply.content.read(reply.first..reply.first + reply.len);
                reply.replace_body(super::image::gzip(&whole));
                reply.set("content-encoding", "gzip");
            }
            Fault::SetStatus(status) => {
                reply.status = StatusCode::from_u16(*status).unwrap_or(reply.status);
            }
            Fault::SetHeader(name, value) => reply.set(name, value),
            Fault::AddHeader(name, value) => reply.add(name, value),
            Fault::RemoveHeader(name) => {
                reply.headers.remove(*name);
            }
            _ => {}
        }
    }
    reply
}

async fn write_by_hand(mut wire: Wire, takeover: Takeover) {
    // A peer that leaves ends the writing; there is nobody to tell.
    match takeover {
        Takeover::Reset => wire.reset(),
        Takeover::Raw(bytes, ticket) => {
            if wire.write_all(&bytes).await.is_ok() {
                ticket.sent(bytes.len() as u64);
                let _ = wire.shutdown().await;
                linger(&mut wire).await;
            }
        }
        Takeover::Spoiled(head, mut flow, ending) => {
            if wire.write_all(&head).await.is_err() {
                return;
            }
            let chunked = matches!(ending, Ending::Chunked);
            // A stalled flow must still notice that the peer has gone.
            let (mut read, mut write) = tokio::io::split(wire);
            let gone = async {
                let mut scrap = [0; 1024];
                while matches!(read.read(&mut scrap).await, Ok(n) if n > 0) {}
            };
            let body = async {
                while let Some(piece) = flow.next().await {
                    let framed = if chunked {
                        let mut framed = format!("{:x}\r\n", piece.len()).into_bytes();
                        framed.extend_from_slice(&piece);
                        framed.extend_from_slice(b"\r\n");
                        framed.into()
                    } else {
                        piece
                    };
                    if write.write_all(&framed).await.is_err() || write.flush().await.is_err() {
                        return false;
                    }
                }
                true
            };
            let whole = tokio::select! {
                whole = body => whole,
                () = gone => false,
            };
            drop(flow);
            let mut wire = read.unsplit(write);
            match ending {
                Ending::Reset => wire.reset(),
                Ending::Extra(bytes) if whole => {
                    if wire.write_all(&bytes).await.is_ok() && wire.flush().await.is_ok() {
                        linger(&mut wire).await;
                    }
                }
                _ => {
                    let _ = wire.shutdown().await;
                    linger(&mut wire).await;
                }
            }
        }
    }
}

/// Reads until the peer closes, so that our own close is no reset.
async fn linger(wire: &mut Wire) {
    let mut scrap = [0; 1024];
    while matches!(wire.read(&mut scrap).await, Ok(n) if n > 0) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
