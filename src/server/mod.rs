//! Sockets: accept, handshake, protocol, limits, drain.
//!
//! ALPN chooses hyper's HTTP/1.1 or h2 server, plain listeners speak HTTP/1.1 only, and one
//! deadline runs from accept to the first complete request head. Every connection is a task of its
//! own that [`run`] owns, under a cap on connections in all and from one address.
//!
//! Invariant: whatever a client does or leaves undone, its connection ends at a finite limit, and
//! what it sent reaches the handler only where every reader would frame it alike.
//! Knows sockets, networks and HTTP framing; nothing of registries, names or rights.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::pin;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use self::connection::{Accepted, Shared};
use self::limits::Places;
use self::progress::Pulse;
use crate::access::{Network, Turns};
use crate::buffers::BufferPool;

#[cfg(any(test, fuzzing))]
pub use self::frames::fuzz_frames;
pub use self::head::Refusal;
#[cfg(any(test, fuzzing))]
pub use self::head::fuzz_head;
pub use self::metrics::ServerMetrics;

mod coalesce;
mod connection;
mod frames;
mod framing;
mod head;
mod limits;
mod metrics;
mod progress;
mod service;

/// Size of a coalescing buffer: 512 KiB of body in TLS records, with the overhead of 32 records or
/// h2 frames, so that one round of writing does not leave a small remainder.
const WRITE_BUFFER_BYTES: usize = (512 + 8) * 1024;

/// How much the system may hold of what a client has not made room for, in bytes. By itself it takes some
/// MiB for each connection, and a few hundred that read nothing bring all of the machine's TCP memory under
/// pressure. It makes writes smaller, and so dearer, so the first few connections are spared.
const UNSENT_BYTES: u32 = 512 * 1024;

/// How many connections may fill what the system has for each: of 4 MiB, its usual limit, a quarter of a
/// GiB together.
const FREE_CONNECTIONS: i64 = 64;

/// First and longest pause after an accept that failed for want of descriptors or memory. Without
/// one the loop spins; a longer one delays recovery.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// An error that a handler's body ends with; the client sees an abnormal end.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Who is at the other end, as far as sockets know.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// Our address that it connected to.
    pub local: SocketAddr,
    /// What the handshake settled; `None` on a plain listener.
    pub tls: Option<TlsInfo>,
}

/// What a TLS handshake settled.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// The name the client asked for (SNI), in lower case.
    pub server_name: Option<String>,
    /// Whether ALPN chose h2.
    pub is_h2: bool,
    /// Whom the client's certificate names, where it showed one; it was verified.
    pub client: Option<Client>,
}

/// Whom a client's certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The name; `None` if the certificate has none of the kind that counts.
    pub name: Option<Arc<str>>,
    /// The end of the certificate's validity.
    pub until: SystemTime,
    /// What it showed, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The [`Handshake::number`] of the handshake.
    pub handshake: u64,
}

/// Tells whom a verified client certificate names, and the end of its validity; asked once a connection.
pub type NameClient =
    Arc<dyn Fn(&CertificateDer<'_>) -> (Option<Arc<str>>, SystemTime) + Send + Sync>;

/// How TLS is spoken with clients that connect from now on.
pub struct Handshake {
    /// Certificates are swapped inside, by its resolver.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who names clients by their certificates, where those are taken.
    pub name_client: Option<NameClient>,
    /// Another one for each way of verifying and naming clients.
    pub number: u64,
}

/// What answers the requests of one connection. A clone is made per request.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error = BoxError> + Send + 'static;

    /// Answers one request.
    ///
    /// Cancel safety: the future is dropped when the client goes away or the server stops.
    fn call(&self, request: Request<Incoming>)
    -> impl Future<Output = Response<Self::Body>> + Send;

    /// Words the answer to a request that was refused for its framing, so that its text and log
    /// entry are the handler's. On HTTP/1.1 the connection closes after it, and no byte that
    /// follows the refused head is interpreted.
    fn refuse(&self, refusal: Refusal) -> Response<Self::Body>;
}

/// A bound socket, and the TLS it speaks.
pub struct Listener {
    /// Where to accept.
    pub socket: TcpListener,
    /// `None` for plain HTTP/1.1.
    pub tls: Option<Arc<ArcSwap<Handshake>>>,
}

/// What may be another while the server runs, and counts from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long requests may go on after shutdown.
    pub drain_timeout: Duration,
    /// Addresses that stand for many clients, for which the cap on those of one address does not count.
    pub shared_addresses: Vec<Network>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(25),
            shared_addresses: Vec::new(),
        }
    }
}

/// Limits and deadlines of [`run`].
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// From accept, through the handshake, to the first complete request head.
    pub first_request_timeout: Duration,
    /// From the first byte of a later head to its last.
    pub header_timeout: Duration,
    /// From the end of an answer to the next complete head.
    pub idle_timeout: Duration,
    /// How long a client may take nothing from its connection, or no frame of 16 KiB from an h2 stream, before
    /// that is closed. What it reads is seen in the steps in which its system makes room, of some 64 to 100 KiB:
    /// the default asks a connection whose buffers are full for 2 KiB/s, and an h2 stream for 273 B/s.
    pub write_timeout: Duration,
    /// Most connections at once; of more, those are accepted and closed for which no client with more has an idle
    /// one to close.
    pub max_connections: usize,
    /// Most connections at once from one IPv4 address or IPv6 /64.
    pub max_connections_per_address: usize,
    /// What may be another while it runs.
    pub terms: Arc<ArcSwap<Terms>>,
    /// Most TLS hellos that are being answered at once, of which one address has no more than half; others wait,
    /// under their own deadline. A client that says nothing, or nothing more, takes none; a quarter as many more are for
    /// those who are asked for another hello, until their handshake ends.
    pub max_handshakes: usize,
    /// Largest HTTP/1.1 request head, in bytes.
    pub max_header_bytes: usize,
    /// Most coalescing buffers (520 KiB each) lent to TLS connections at once; beyond it they write
    /// without gathering.
    pub max_write_buffers: usize,
    /// Limits of h2 connections.
    pub h2: Http2Options,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            first_request_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            max_connections: 4096,
            max_connections_per_address: 1024,
            terms: Arc::default(),
            max_handshakes: 256,
            max_header_bytes: 32 * 1024,
            max_write_buffers: 32,
            h2: Http2Options::default(),
        }
    }
}

impl ServerOptions {
    /// Whether this address stands for many clients.
    fn is_shared(&self, address: IpAddr) -> bool {
        let terms = self.terms.load();
        let mut shared = terms.shared_addresses.iter();
        shared.any(|network| network.contains(address))
    }
}

/// Limits of h2 connections. All are finite: h2's own defaults are not, or not everywhere.
#[derive(Clone, Debug)]
pub struct Http2Options {
    /// Most requests in flight on one connection. A client pulls a handful of layers at a time.
    pub max_concurrent_streams: u32,
    /// Largest decoded header list of a request, in bytes.
    pub max_header_list_bytes: u32,
    /// How much of a request body may be in flight per stream, in bytes.
    pub stream_window_bytes: u32,
    /// The same for the whole connection.
    pub connection_window_bytes: u32,
    /// How much of one answer may wait inside h2, in bytes.
    pub max_send_buffer_bytes: usize,
    /// Streams that the client may reset before they are accepted (rapid reset).
    pub max_pending_accept_reset_streams: usize,
    /// Streams that we may be made to reset.
    pub max_local_error_reset_streams: usize,
    /// Between two pings.
    pub keep_alive_interval: Duration,
    /// How long a ping may stay unanswered.
    pub keep_alive_timeout: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 128,
            max_header_list_bytes: 32 * 1024,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 2 * 1024 * 1024,
            max_send_buffer_bytes: 256 * 1024,
            max_pending_accept_reset_streams: 20,
            max_local_error_reset_streams: 64,
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(20),
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were open when it began.
    pub open: usize,
    /// Of these, those still busy at the end of the drain timeout, and cut.
    pub cut: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// Accepts and serves until `shutdown` resolves, then closes the listening sockets, lets requests
/// finish for up to the drain timeout, and reports. `receive` makes the handler of each connection.
///
/// Cancel safety: dropping the future closes the listening sockets and all connections at once.
pub async fn run<H: Handler>(
    listeners: Vec<Listener>,
    receive: impl Fn(ConnectionInfo) -> H + Send + Sync + 'static,
    options: ServerOptions,
    metrics: ServerMetrics,
    shutdown: impl Future<Output = ()>,
) -> DrainReport {
    let (drain, draining) = watch::channel(false);
    let places = Places::new(options.max_connections, options.max_connections_per_address);
    let terms = Arc::clone(&options.terms);
    let shared = Arc::new(Shared {
        receive,
        metrics: metrics.clone(),
        write_buffers: BufferPool::new(WRITE_BUFFER_BYTES, options.max_write_buffers),
        handshakes: Turns::new(options.max_handshakes),
        retries: Turns::new(options.max_handshakes / 4),
        draining,
        options,
    });

    let mut connections = JoinSet::new();
    let mut acceptor = Acceptor::new(listeners, metrics.clone());
    pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = acceptor.next() => accepted,
        };
        metrics.connections_accepted.inc();
        let (peer, pulse) = (accepted.peer, Pulse::new(Instant::now()));
        let is_shared = shared.options.is_shared(peer.ip());
        let place = match places.take(peer.ip(), is_shared, &pulse) {
            Ok((place, has_displaced)) => {
                metrics
                    .connections_displaced
                    .inc_by(u64::from(has_displaced));
                place
            }
            Err(full) => {
                metrics.connections_refused.inc();
                tracing::debug!(client.addr = %peer, reason = ?full, "connection refused: too many");
                continue;
            }
        };
        let open = Open::new(metrics.connections_open.clone());
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _counted = (place, open);
            connection::serve(accepted, shared, pulse).await;
        });
    }

    drop(acceptor);
    let began = Instant::now();
    let open = connections.len();
    // An error means that nobody listens, for there are no connections.
    let _ = drain.send(true);
    let finish = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    };
    let cut = match tokio::time::timeout(terms.load().drain_timeout, finish).await {
        Ok(()) => 0,
        Err(_) => {
            let cut = connections.len();
            connections.shutdown().await;
            cut
        }
    };
    DrainReport {
        open,
        cut,
        elapsed: began.elapsed(),
    }
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "connection task failed");
    }
}

/// Counts an open connection until dropped, also by a panic.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Accepts from several listeners in turn.
struct Acceptor {
    listeners: Vec<Listener>,
    /// Which listener is asked first, so that a busy one does not starve the others.
    first: usize,
    /// While accepts fail: the length of the pause, and when it ends.
    pause: Option<(Duration, Instant)>,
    metrics: ServerMetrics,
}

impl Acceptor {
    fn new(listeners: Vec<Listener>, metrics: ServerMetrics) -> Self {
        Self {
            listeners,
            first: 0,
            pause: None,
            metrics,
        }
    }

    /// The next connection.
    ///
    /// Cancel safety: no accepted connection is lost, and a pause goes on where it was.
    async fn next(&mut self) -> Accepted {
        loop {
            if let Some((_, until)) = self.pause {
                tokio::time::sleep_until(until).await;
            }
            match self.accept_any().await {
                Ok(accepted) => {
                    self.pause = None;
                    return accepted;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let (first, longest) = ACCEPT_PAUSE;
                    let pause = self
                        .pause
                        .map_or(first, |(pause, _)| (pause * 2).min(longest));
                    self.metrics.accept_errors.inc();
                    if self.pause.is_none() {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    self.pause = Some((pause, Instant::now() + pause));
                }
            }
        }
    }

    async fn accept_any(&mut self) -> io::Result<Accepted> {
        let count = self.listeners.len();
        let (index, accepted) = std::future::poll_fn(|cx| {
            for turn in 0..count {
                let index = (self.first + turn) % count;
                if let Poll::Ready(accepted) = self.listeners[index].socket.poll_accept(cx) {
                    return Poll::Ready((index, accepted));
                }
            }
            Poll::Pending
        })
        .await;
        self.first = index + 1;
        let (stream, peer) = accepted?;
        prepare(
            &stream,
            self.metrics.connections_open.get() >= FREE_CONNECTIONS,
        );
        Ok(Accepted {
            local: stream.local_addr()?,
            tls: self.listeners[index]
                .tls
                .as_ref()
                .map(|tls| tls.load_full()),
            stream,
            peer,
        })
    }
}

/// Answers leave when they are flushed, and where there are many connections no more of them waits in the
/// system for a client that does not take it than [`UNSENT_BYTES`]; a socket that cannot be told so works all
/// the same.
fn prepare(stream: &TcpStream, is_one_of_many: bool) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    if is_one_of_many && let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
    {
        tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
    }
}

/// Whether an accept failed because of the connection rather than of us.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotConnected
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
    )
}
