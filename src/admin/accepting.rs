//! Taking connections, a few at a time, for the pages and for the socket.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::access::PerClient;

/// From accept, or the answer before, to a complete request head.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after an accept error: running out of descriptors must not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something that connections come from.
pub(super) trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and where it is from. Safe to cancel: no connection is lost.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, IpAddr)>> + Send;
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, IpAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((stream, peer.ip()))
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, IpAddr)> {
        let (stream, _unnamed) = Self::accept(self).await?;
        Ok((stream, Ipv4Addr::LOCALHOST.into()))
    }
}

/// How many connections there may be, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Beyond so many a connection is closed at once.
    pub(super) connections: usize,
    /// The same for those from one address.
    pub(super) from_one: usize,
    /// A connection lives no longer.
    pub(super) life: Duration,
}

/// Has `answer` answer the requests of every connection until `shutdown` is done; then connections are
/// dropped, whatever they are doing.
///
/// # Cancel safety
/// Safe: dropping the future closes all connections.
pub(super) async fn serve<A, F, B>(
    listener: &A,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    A: Accept,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let places = PerClient::default();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take_of(bounds.connections, peer, bounds.from_one) else {
            continue;
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let _place = place;
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    }),
                );
            // However a connection ends, there is nobody to tell.
            let _ = tokio::time::timeout(bounds.life, serve).await;
        });
    }
}
