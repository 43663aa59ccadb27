//! Connections to registries and their storage: names, addresses, TCP and TLS.
//!
//! Invariant: an address is judged after its name was resolved and before it is dialled, and only the
//! operator's own endpoint is dialled wherever it leads. Knows nothing of HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::egress::{Egress, Way};
use super::error::{Deadline, Unreachable, UpstreamError, Wrong};
use super::origin::{Origin, Reach};
use super::redirect::HostPattern;

/// How long the next address of a name waits for the one before it (RFC 8305, section 5).
const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// For one lookup: less than there is for the whole way, so that it is known what took so long.
const LOOKUP_TIME: Duration = Duration::from_secs(3);
/// Lookups under way at once. Each holds a thread of the blocking pool for as long as the resolver
/// hangs, and that pool also serves the disk.
const MAX_LOOKUPS: usize = 8;

/// Dials for one upstream.
#[derive(Clone)]
pub(super) struct Dialer {
    inner: Arc<Inner>,
}

struct Inner {
    tls: TlsConnector,
    /// Where the registry itself is.
    home: Origin,
    home_tls_name: Option<ServerName<'static>>,
    /// The network that `home` was last found in.
    home_reach: Mutex<Reach>,
    /// Hosts that the operator lists, wherever they are.
    listed: Vec<HostPattern>,
    /// Not all is dialled by ourselves.
    egress: Option<Way>,
    timeout: Duration,
    lookups: Arc<Semaphore>,
}

/// What a [`Dialer`] needs to know.
pub(super) struct DialerOptions {
    pub(super) home: Origin,
    /// The name on the certificate of `home`, if another than its host.
    pub(super) home_tls_name: Option<ServerName<'static>>,
    pub(super) listed: Vec<HostPattern>,
    pub(super) extra_roots: Vec<CertificateDer<'static>>,
    /// The proxy on the way out.
    pub(super) egress: Option<Egress>,
    /// For name, connection and handshake together.
    pub(super) timeout: Duration,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the name does not resolve")]
    Dns,
    #[error("nothing accepts the connection")]
    Refused,
    #[error("the TLS handshake broke off")]
    Handshake,
    #[error("TLS is not trusted")]
    BadTls,
    #[error("the name leads into a forbidden network")]
    Forbidden,
    #[error("the egress proxy makes no connection")]
    Proxy,
    #[error("the egress proxy wants another login")]
    ProxyLogin,
    #[error("not in time")]
    TimedOut,
}

impl From<ConnectError> for UpstreamError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Dns => Self::Unreachable(Unreachable::Dns),
            ConnectError::Refused => Self::Unreachable(Unreachable::Connect),
            ConnectError::Handshake => Self::Unreachable(Unreachable::Handshake),
            ConnectError::BadTls => Self::Wrong(Wrong::BadTls),
            ConnectError::Forbidden => Self::Wrong(Wrong::ForbiddenAddress),
            ConnectError::Proxy => Self::Unreachable(Unreachable::Proxy),
            ConnectError::ProxyLogin => Self::Unreachable(Unreachable::ProxyLogin),
            ConnectError::TimedOut => Self::TooSlow(Deadline::Connect),
        }
    }
}

impl Dialer {
    /// # Errors
    /// When one of the extra roots is no certificate.
    pub(super) fn new(options: DialerOptions) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // A host's own store may hold certificates that rustls does not read; those are left out.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for root in options.extra_roots {
            roots.add(root)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            inner: Arc::new(Inner {
                tls: TlsConnector::from(Arc::new(config)),
                home_reach: Mutex::new(options.home.reach()),
                home: options.home,
                home_tls_name: options.home_tls_name,
                listed: options.listed,
                egress: options.egress.as_ref().map(Egress::way),
                timeout: options.timeout,
                lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            }),
        })
    }
}

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let origin = Origin::of(&uri).ok_or(ConnectError::Dns)?;
            tokio::time::timeout(inner.timeout, inner.connect(&uri, &origin))
                .await
                .unwrap_or(Err(ConnectError::TimedOut))
                .map(TokioIo::new)
        })
    }
}

impl Inner {
    async fn connect(&self, uri: &Uri, origin: &Origin) -> Result<Stream, ConnectError> {
        let proxy = self.egress.as_ref();
        let proxy = proxy.and_then(|way| Some((way, way.to(uri)?)));
        let tcp = match proxy {
            Some((way, proxy)) => self.tunnel(way, &proxy, uri, origin).await?,
            None => self.dial(origin).await?,
        };
        // Small requests must not wait for more to send; a system that cannot turn it off still works.
        let _ = tcp.set_nodelay(true);
        if !origin.is_tls() {
            return Ok(Stream::Plain(tcp));
        }
        let name = match &self.home_tls_name {
            Some(name) if *origin == self.home => name.clone(),
            _ => {
                ServerName::try_from(origin.host().to_owned()).map_err(|_| ConnectError::BadTls)?
            }
        };
        let stream = self.tls.connect(name, tcp).await.map_err(|error| {
            let is_verdict = error
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>());
            if is_verdict {
                ConnectError::BadTls
            } else {
                ConnectError::Handshake
            }
        })?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// A way through the proxy, which looks names up by itself. It is the operator's, and dialled wherever
    /// it is.
    async fn tunnel(
        &self,
        way: &Way,
        proxy: &Origin,
        uri: &Uri,
        origin: &Origin,
    ) -> Result<TcpStream, ConnectError> {
        let literal = origin.host().parse();
        if literal.is_ok_and(|address| !self.permits(origin, address)) {
            return Err(ConnectError::Forbidden);
        }
        let found = tokio::time::timeout(LOOKUP_TIME, self.resolve(proxy));
        let found = found.await.unwrap_or(Err(ConnectError::Proxy));
        let found = found.map_err(|_| ConnectError::Proxy)?;
        let (tcp, _) = dial_first(&interleave(found))
            .await
            .map_err(|_| ConnectError::Proxy)?;
        way.tunnel(uri, tcp).await
    }

    async fn dial(&self, origin: &Origin) -> Result<TcpStream, ConnectError> {
        let found = tokio::time::timeout(LOOKUP_TIME, self.resolve(origin))
            .await
            .unwrap_or(Err(ConnectError::Dns))?;
        let permitted: Vec<_> = found
            .iter()
            .copied()
            .filter(|address| self.permits(origin, address.ip()))
            .collect();
        if permitted.is_empty() {
            return Err(if found.is_empty() {
                ConnectError::Dns
            } else {
                ConnectError::Forbidden
            });
        }
        let (tcp, address) = dial_first(&interleave(permitted)).await?;
        if *origin == self.home {
            *self
                .home_reach
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Reach::of(address.ip());
        }
        Ok(tcp)
    }

    async fn resolve(&self, origin: &Origin) -> Result<Vec<SocketAddr>, ConnectError> {
        if let Ok(address) = origin.host().parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, origin.port())]);
        }
        let permit = Arc::clone(&self.lookups)
            .acquire_owned()
            .await
            .map_err(|_| ConnectError::Dns)?;
        let target = (origin.host().to_owned(), origin.port());
        tokio::task::spawn_blocking(move || {
            // Held until the resolver returns, also when nobody waits for it any more.
            let _permit = permit;
            target.to_socket_addrs().map(Iterator::collect)
        })
        .await
        .map_err(|_| ConnectError::Dns)?
        .map_err(|_| ConnectError::Dns)
    }

    fn permits(&self, origin: &Origin, address: IpAddr) -> bool {
        let reach = Reach::of(address);
        if reach == Reach::Public || *origin == self.home {
            return true;
        }
        let is_listed = self
            .listed
            .iter()
            .any(|listed| listed.matches(origin.host()));
        let home_reach = *self
            .home_reach
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match reach {
            Reach::Public => true,
            Reach::Loopback | Reach::Private => is_listed || reach == home_reach,
            // Metadata services are never storage, whatever a name says.
            Reach::LinkLocal => false,
        }
    }
}

/// The addresses with both families in turn, the first one's first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut preferred, mut other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .rev()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(preferred.len() + other.len());
    while !preferred.is_empty() || !other.is_empty() {
        ordered.extend(preferred.pop());
        ordered.extend(other.pop());
    }
    ordered
}

/// Connects to whichever address answers first, each starting a little after the one before.
async fn dial_first(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let mut waiting = addresses.iter();
    let mut dials = FuturesUnordered::new();
    loop {
        if let Some(address) = waiting.next() {
            dials.push(async move {
                TcpStream::connect(address)
                    .await
                    .map(|stream| (stream, *address))
            });
        } else if dials.is_empty() {
            return Err(ConnectError::Refused);
        }
        tokio::select! {
            outcome = dials.next() => {
                if let Some(Ok(connected)) = outcome {
                    return Ok(connected);
                }
            }
            () = tokio::time::sleep(ADDRESS_STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// A connection, with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whether a connection has brought an answer before: one that breaks then may have been closed at its
/// other end for idleness, just when it was used again.
#[derive(Clone, Default)]
pub(super) struct HasAnswered(Arc<AtomicBool>);

impl HasAnswered {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The mark of a connection that one of our [`Stream`]s is.
    pub(super) fn of(connected: &Connected) -> Self {
        let mut extensions = http::Extensions::new();
        connected.get_extras(&mut extensions);
        extensions.remove().unwrap_or_default()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(HasAnswered::default())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(home: &str, listed: &[&str]) -> Dialer {
        Dialer::new(DialerOptions {
            home: Origin::of(&home.parse().unwrap()).unwrap(),
            home_tls_name: None,
            listed: listed.iter().map(|p| p.parse().unwrap()).collect(),
            extra_roots: Vec::new(),
            egress: None,
            timeout: Duration::from_secs(1),
        })
        .unwrap()
    }

    #[test]
    fn s11_allowed_names_may_not_lead_into_private_networks() {
        let storage = Origin::of(&"https://storage.example/".parse().unwrap()).unwrap();
        let permits = |dialer: &Dialer, address: &str| {
            dialer.inner.permits(&storage, address.parse().unwrap())
        };
        let public = dialer("https://registry.example", &[]);
        assert!(permits(&public, "52.94.76.1"));
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "::1",
            "fd00:ec2::254",
        ] {
            assert!(!permits(&public, address), "{address}");
        }
        let listing = dialer("https://registry.example", &["storage.example"]);
        assert!(permits(&listing, "10.0.0.1"));
        assert!(!permits(&listing, "169.254.169.254"));
        let private = dialer("https://10.0.0.9", &[]);
        assert!(permits(&private, "10.0.0.1"));
        assert!(!permits(&private, "127.0.0.1"));
        assert!(!permits(&private, "169.254.169.254"));
    }

    #[test]
    fn families_take_turns() {
        let order: Vec<_> = ["1.1.1.1:1", "1.1.1.2:1", "[2::1]:1", "1.1.1.3:1"]
            .map(|a| a.parse().unwrap())
            .into();
        let texts: Vec<_> = interleave(order).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1.1.1.1:1", "[2::1]:1", "1.1.1.2:1", "1.1.1.3:1"]);
    }

    #[tokio::test]
    async fn u15_a_dead_address_does_not_hide_a_live_one() {
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = {
            let bound = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.local_addr().unwrap()
        };
        let (_, address) = dial_first(&[dead, live.local_addr().unwrap()])
            .await
            .unwrap();
        assert_eq!(address, live.local_addr().unwrap());
        assert_eq!(
            dial_first(&[dead]).await.unwrap_err(),
            ConnectError::Refused
        );
    }
}
