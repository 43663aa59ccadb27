//! One connection from its first byte to its last: handshake, protocol, deadlines, drain.
//!
//! Invariant: a connection whose deadline has passed is closed, and one that is told to drain ends
//! after the requests that it has.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use rustls::{AlertDescription, HandshakeKind, InvalidMessage};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;

use super::coalesce::Coalescing;
use super::frames::FrameGuard;
use super::framing::HeadGuard;
use super::progress::{Limits, Overdue, Pulse, Watched};
use super::service::{NextStream, Requests, StreamExecutor};
use super::{Client, ConnectionInfo, Handler, Handshake, ServerMetrics, ServerOptions, TlsInfo};
use crate::access::Turns;
use crate::buffers::BufferPool;

/// How long an idle connection that was told to go away may take to do so. An h2 client answers a
/// ping and reads the last of what waits in h2's buffers; a silent one must not hold up a drain.
const GOODBYE: Duration = Duration::from_secs(5);

/// Longest TLS hello, in bytes, with what its records take: as long as one record may be (RFC 8446, 5.1). Usual ones
/// are below 3 KiB; those that are not whole yet are in memory, as many as there may be connections.
const MAX_HELLO: u32 = 16 * 1024;

/// Most bytes of what follows a hello up to the end of the handshake: another hello, where one is asked for, and what
/// was read with the last message of the first request, which may be a record and a part of the next.
const MAX_REPLY: u32 = 40 * 1024;

/// Most bytes of a client's chain of certificates, where one is asked for: the longest message that is read.
const MAX_CHAIN: u32 = 64 * 1024;

/// How long a client whose handshake failed is listened to, and for how many bytes. It may have begun to ask, and
/// would be told of a reset instead of the reason if nobody took that.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_BYTES: u64 = 64 * 1024;

/// What all connections share.
pub(super) struct Shared<R> {
    /// Makes the handler of a connection.
    pub(super) receive: R,
    pub(super) options: ServerOptions,
    pub(super) metrics: ServerMetrics,
    pub(super) write_buffers: BufferPool,
    pub(super) handshakes: Turns,
    /// For those who are asked for another hello (RFC 8446, 4.1.4).
    pub(super) retries: Turns,
    /// Becomes true once, when the server drains.
    pub(super) draining: watch::Receiver<bool>,
}

/// One accepted connection.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) tls: Option<Arc<Handshake>>,
}

/// Serves one connection to its end.
///
/// Cancel safety: dropping the future closes the connection at once.
pub(super) async fn serve<R, H>(accepted: Accepted, shared: Arc<Shared<R>>, pulse: Arc<Pulse>)
where
    R: Fn(ConnectionInfo) -> H,
    H: Handler,
{
    let peer = accepted.peer;
    if let Err(overdue) = serve_until_overdue(accepted, &shared, &pulse).await {
        shared.metrics.deadline_closed.inc();
        tracing::debug!(client.addr = %peer, reason = %overdue, "connection closed by a deadline");
    }
}

async fn serve_until_overdue<R, H>(
    accepted: Accepted,
    shared: &Shared<R>,
    pulse: &Arc<Pulse>,
) -> Result<(), Overdue>
where
    R: Fn(ConnectionInfo) -> H,
    H: Handler,
{
    let Accepted {
        stream,
        peer,
        local,
        tls,
    } = accepted;
    let socket = Watched::new(stream, Arc::clone(pulse));
    let Some(tls) = tls else {
        let info = ConnectionInfo {
            peer,
            local,
            tls: None,
        };
        return http1(socket, (shared.receive)(info), shared, pulse).await;
    };

    let coalescing = Coalescing::new(socket, shared.write_buffers.clone(), Arc::clone(pulse));
    let Some(stream) = handshake(coalescing, &tls, peer, shared, pulse).await? else {
        return Ok(());
    };
    let session = stream.get_ref().1;
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let chain = session.peer_certificates().unwrap_or_default();
    let client = tls.name_client.as_ref().zip(chain.first());
    let client = client.map(|(name, shown)| {
        let (name, until) = name(shown);
        Client {
            name,
            until,
            chain: chain.to_vec(),
            handshake: tls.number,
        }
    });
    let info = ConnectionInfo {
        peer,
        local,
        tls: Some(TlsInfo {
            server_name: session.server_name().map(str::to_owned),
            is_h2,
            client,
        }),
    };
    let handler = (shared.receive)(info);
    if is_h2 {
        http2(stream, handler, shared, pulse).await
    } else {
        http1(stream, handler, shared, pulse).await
    }
}

type Socket = Coalescing<Watched<TcpStream>>;
type TlsStream = tokio_rustls::server::TlsStream<Socket>;

/// The TLS stream, or `None` where the handshake failed, the server drains or another needs the room.
async fn handshake<R>(
    stream: Socket,
    tls: &Handshake,
    peer: SocketAddr,
    shared: &Shared<R>,
    pulse: &Pulse,
) -> Result<Option<TlsStream>, Overdue> {
    let deadline = pulse.accepted() + shared.options.first_request_timeout;
    let mut draining = shared.draining.clone();
    let mut work = pin!(accept(stream, tls, peer, shared, pulse));
    // Every step is a turn of the task, which gathers what it writes within one.
    let work = std::future::poll_fn(|cx| {
        pulse.begin_turn();
        work.as_mut().poll(cx)
    });
    let outcome = tokio::select! {
        outcome = tokio::time::timeout_at(deadline, work) => outcome,
        _ = draining.wait_for(|is_draining| *is_draining) => return Ok(None),
        () = pulse.told_to_leave() => return Ok(None),
    };
    pulse.bound_reading(None);
    match outcome {
        Ok(Ok(stream)) => Ok(Some(stream)),
        Ok(Err((error, stream))) => {
            shared.metrics.handshake_failures.inc();
            match told(&error) {
                Some(why) => {
                    tracing::info!(client.addr = %peer, %error, why, "TLS handshake failed");
                }
                None => tracing::debug!(client.addr = %peer, %error, "TLS handshake failed"),
            }
            let last_words = async {
                let Some(mut stream) = stream else {
                    return;
                };
                // The alert that tells the client why is still parked. It may be gone already.
                let _ = stream.shutdown().await;
                let mut said = stream.take(LAST_WORDS_BYTES);
                let _ = tokio::io::copy(&mut said, &mut tokio::io::sink()).await;
            };
            tokio::select! {
                _ = tokio::time::timeout(LAST_WORDS, last_words) => {}
                _ = draining.wait_for(|is_draining| *is_draining) => {}
                () = pulse.told_to_leave() => {}
            }
            Ok(None)
        }
        Err(_) => {
            shared.metrics.handshake_failures.inc();
            Err(Overdue::FirstRequest)
        }
    }
}

/// The TLS stream, or why there is none and where that can still be told.
///
/// A turn is for what we do, the signature above all, and not for what the client leaves undone: it is taken when
/// the hello is whole, and over when that is answered. Whoever is silent before or after keeps nobody waiting, but
/// those who, like it, are asked for another hello.
async fn accept<R>(
    stream: Socket,
    tls: &Handshake,
    peer: SocketAddr,
    shared: &Shared<R>,
    pulse: &Pulse,
) -> Result<TlsStream, (io::Error, Option<Socket>)> {
    let mut hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    pulse.bound_reading(Some(MAX_HELLO));
    let came = (&mut hello).await;
    pulse.bound_reading(Some(match tls.name_client {
        Some(_) => MAX_REPLY + MAX_CHAIN,
        None => MAX_REPLY,
    }));
    let hello = match came {
        Ok(hello) => hello,
        Err(error) => return Err((error, hello.take_io())),
    };
    let client = (!shared.options.is_shared(peer.ip())).then(|| peer.ip());
    let turn = shared.handshakes.take(client).await;
    // A signature is made without a pause, so without this one nobody would ever find the turns taken, and a
    // thousand hellos of one client would all be answered before the next of anybody else.
    tokio::task::yield_now().await;
    let mut is_retry = false;
    let answered = hello.into_stream_with(Arc::clone(&tls.tls), |session| {
        is_retry = session.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
    });
    let answered = answered.into_fallible();
    drop(turn);
    // Who is asked for another hello, as few are, is signed for when that comes: they have turns of their own, from
    // before it is read until all is done.
    let _turn = match is_retry {
        true => Some(shared.retries.take(client).await),
        false => None,
    };
    answered
        .await
        .map_err(|(error, stream)| (error, Some(stream)))
}

/// What an operator can do about a handshake that failed, where there is something: who does not trust whom, or
/// who speaks no TLS. Connections that merely end, as those of a balancer that looks after us, are no news.
fn told(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            // The signature is not of the CA that it trusts by that name.
            | AlertDescription::DecryptError,
        ) => Some("the client does not trust our certificate"),
        rustls::Error::InvalidCertificate(_) => Some("the client's certificate is refused"),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("the client speaks no TLS, or plain HTTP")
        }
        _ => None,
    }
}

async fn http1<S, H, R>(
    stream: S,
    handler: H,
    shared: &Shared<R>,
    pulse: &Arc<Pulse>,
) -> Result<(), Overdue>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler,
{
    let guard = HeadGuard::new(stream, Arc::clone(pulse), shared.options.max_header_bytes);
    let service = Requests::new(handler, Arc::clone(pulse), None);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Heads have their deadlines in `drive`, which needs no timer per request.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(guard), service);
    drive(connection, shared, pulse).await
}

async fn http2<H: Handler, R>(
    stream: TlsStream,
    handler: H,
    shared: &Shared<R>,
    pulse: &Arc<Pulse>,
) -> Result<(), Overdue> {
    let options = &shared.options;
    let guard = FrameGuard::new(stream, shared.metrics.connections_flooded.clone());
    let next = NextStream::default();
    let executor = StreamExecutor {
        next: next.clone(),
        write_timeout: options.write_timeout,
    };
    let service = Requests::new(handler, Arc::clone(pulse), Some(next));
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.h2.max_concurrent_streams)
        .max_header_list_size(options.h2.max_header_list_bytes)
        .initial_stream_window_size(options.h2.stream_window_bytes)
        .initial_connection_window_size(options.h2.connection_window_bytes)
        .max_send_buf_size(options.h2.max_send_buffer_bytes)
        .max_pending_accept_reset_streams(options.h2.max_pending_accept_reset_streams)
        .max_local_error_reset_streams(options.h2.max_local_error_reset_streams)
        .keep_alive_interval(options.h2.keep_alive_interval)
        .keep_alive_timeout(options.h2.keep_alive_timeout)
        .serve_connection(TokioIo::new(guard), service);
    drive(connection, shared, pulse).await
}

/// A connection that can be told to end after what it is doing.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn end_gracefully(self: Pin<&mut Self>);
}

impl<S, H> Graceful for http1::Connection<TokioIo<S>, Requests<H>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    fn end_gracefully(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, H> Graceful for http2::Connection<TokioIo<S>, Requests<H>, StreamExecutor>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    fn end_gracefully(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Polls a connection until it ends by itself or a deadline of its pulse passes.
async fn drive<C: Graceful, R>(
    connection: C,
    shared: &Shared<R>,
    pulse: &Pulse,
) -> Result<(), Overdue> {
    let limits = Limits {
        first_request: shared.options.first_request_timeout,
        header: shared.options.header_timeout,
        idle: shared.options.idle_timeout,
        write: shared.options.write_timeout,
    };
    // Where no deadline applies one may come to apply without this task being woken, for h2 streams
    // end in tasks of their own.
    let look_again = limits.idle.min(limits.write);

    let mut connection = pin!(connection);
    let mut alarm = pin!(tokio::time::sleep(limits.first_request.min(look_again)));
    let mut draining = shared.draining.clone();
    let mut drain = pin!(draining.wait_for(|is_draining| *is_draining));
    let mut leave = pin!(pulse.told_to_leave());
    let mut was_told = false;
    // Once the connection has been told to end: when an idle one is dropped all the same.
    let mut ending: Option<Option<Instant>> = None;

    std::future::poll_fn(|cx| {
        loop {
            pulse.begin_turn();
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                }
                return Poll::Ready(Ok(()));
            }
            if !was_told && leave.as_mut().poll(cx).is_ready() {
                was_told = true;
                // Another has its place already.
                if pulse.idle_since().is_some() {
                    return Poll::Ready(Ok(()));
                }
                if ending.is_none() {
                    ending = Some(None);
                    connection.as_mut().end_gracefully();
                    continue;
                }
            }
            if ending.is_none() && drain.as_mut().poll(cx).is_ready() {
                ending = Some(None);
                connection.as_mut().end_gracefully();
                continue;
            }

            let mut due = pulse.deadline(&limits);
            let is_before_alarm = due.is_some_and(|(at, _)| at < alarm.deadline());
            // Nearly always there is nothing to be done before the alarm, and no need to look at a clock.
            if ending.is_none() && !is_before_alarm && alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }

            let now = Instant::now();
            if let Some(goodbye) = &mut ending {
                // The end waits for requests and for a slow client's last bytes, which have a
                // deadline of their own, and for nothing else.
                if pulse.in_flight() > 0 || due.is_some_and(|(_, why)| why == Overdue::Write) {
                    *goodbye = None;
                } else {
                    due = Some((*goodbye.get_or_insert(now + GOODBYE), Overdue::Idle));
                }
            }
            match due {
                Some((at, Overdue::Idle)) if at <= now => {
                    if ending.is_some() {
                        return Poll::Ready(Ok(()));
                    }
                    ending = Some(Some(now + GOODBYE));
                    connection.as_mut().end_gracefully();
                    continue;
                }
                Some((at, Overdue::Write)) if at <= now && pulse.look_again(&limits) => continue,
                Some((at, why)) if at <= now => return Poll::Ready(Err(why)),
                Some((at, _)) if at < alarm.deadline() || alarm.is_elapsed() => {
                    alarm.as_mut().reset(at);
                }
                None if alarm.is_elapsed() => alarm.as_mut().reset(now + look_again),
                Some(_) | None => {}
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}
