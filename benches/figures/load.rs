//! A client that costs little: what it takes it counts and throws away.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One read of the socket, in bytes: what makes the client cheap.
const READ_BYTES: usize = 256 * 1024;
/// The windows that Go's client opens, in bytes. Its frames stay at 16 KiB, the protocol's default.
const H2_STREAM_WINDOW: u32 = 4 << 20;
const H2_CONNECTION_WINDOW: u32 = 1 << 30;

/// Whom the load logs in as. Servers that know no users do not look at it.
pub const USER: &str = "bench";
pub const PASSWORD: &str = "a password of usual length";

/// What shows that.
pub fn authorization() -> &'static str {
    static BASIC: LazyLock<String> =
        LazyLock::new(|| format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}"))));
    &BASIC
}

/// Where to connect, and how.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub protocol: Protocol,
}

#[derive(Clone)]
pub enum Protocol {
    Plain,
    Tls(Arc<ClientConfig>),
    H2(Arc<ClientConfig>),
}

/// One open connection.
pub enum Connection {
    H1(http1::SendRequest<Empty<Bytes>>, String),
    H2(http2::SendRequest<Empty<Bytes>>, String),
}

/// An answer that was taken to its end.
pub struct Taken {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub bytes: u64,
    /// When the first byte of the body was there.
    pub first_byte: Instant,
    pub end: Instant,
}

impl Target {
    pub async fn connect(&self) -> Connection {
        let socket = TcpStream::connect(self.address).await.expect("connect");
        socket.set_nodelay(true).expect("a TCP socket");
        let socket = BufReader::with_capacity(READ_BYTES, socket);
        let host = self.host.clone();
        match &self.protocol {
            Protocol::Plain => h1(socket, host).await,
            Protocol::Tls(config) => h1(tls(config, socket, &self.host).await, host).await,
            Protocol::H2(config) => {
                let stream = tls(config, socket, &self.host).await;
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(H2_STREAM_WINDOW)
                    .initial_connection_window_size(H2_CONNECTION_WINDOW)
                    .handshake(TokioIo::new(stream))
                    .await
                    .expect("an h2 connection");
                tokio::spawn(connection);
                Connection::H2(sender, host)
            }
        }
    }
}

async fn tls<S: AsyncRead + AsyncWrite + Unpin>(
    config: &Arc<ClientConfig>,
    socket: S,
    host: &str,
) -> tokio_rustls::client::TlsStream<S> {
    let name = ServerName::try_from(host.to_owned()).expect("a host name");
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name, socket).await.expect("a handshake")
}

async fn h1<S>(stream: S, host: String) -> Connection
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BYTES * 2)
        .handshake(TokioIo::new(stream))
        .await
        .expect("an HTTP/1 connection");
    tokio::spawn(connection);
    Connection::H1(sender, host)
}

impl Connection {
    /// Asks and waits for the head of the answer.
    pub async fn head(
        &mut self,
        path: &str,
        authorization: Option<&str>,
    ) -> http::Response<Incoming> {
        let mut request = Request::get(path);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let empty = Empty::new();
        match self {
            Self::H1(sender, host) => {
                let request = request.header(header::HOST, host.as_str());
                let request = request.body(empty).expect("a request");
                sender.ready().await.expect("an open connection");
                sender.send_request(request).await.expect("an answer")
            }
            Self::H2(sender, host) => {
                let request = request.uri(format!("https://{host}{path}"));
                let request = request.body(empty).expect("a request");
                sender.ready().await.expect("an open connection");
                sender.send_request(request).await.expect("an answer")
            }
        }
    }

    /// Takes one answer to its end; anything but a whole 200 is the end of the measurement.
    pub async fn get(&mut self, path: &str) -> Taken {
        let taken = self.try_get(path, Some(authorization())).await;
        assert_eq!(taken.status, StatusCode::OK, "{path}");
        taken
    }

    pub async fn try_get(&mut self, path: &str, authorization: Option<&str>) -> Taken {
        let mut response = self.head(path, authorization).await;
        let (mut bytes, mut first_byte) = (0, None);
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.expect("a whole body");
            first_byte.get_or_insert_with(Instant::now);
            bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        let end = Instant::now();
        Taken {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            bytes,
            first_byte: first_byte.unwrap_or(end),
            end,
        }
    }
}
