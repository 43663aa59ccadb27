//! A client of raw sockets: it sends what it is told, and tells how an answer really ended.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Body;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::pki::Leaf;
use super::{DOMAIN, pki, store, within};

/// The head of an answer, its fields as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Name and value of each field, in order, repeated ones included.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The only value of `name`; fails if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.header_values(name);
        assert!(all.len() < 2, "{name} is there {} times", all.len());
        all.first().copied()
    }

    /// Every value of `name`.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let same = self
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// The declared length.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")
            .map(|value| value.parse().expect("a number in Content-Length"))
    }
}

/// A whole answer, or as much of it as came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The fields.
    pub head: Head,
    /// The bytes that came.
    pub body: Vec<u8>,
    /// Whether it ended as its framing declared: all of `Content-Length`, the last chunk, or an
    /// orderly close where neither was declared. Cut off and complete never look alike.
    pub clean_end: bool,
}

impl Answer {
    /// The only value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The code of the first OCI error of the body.
    pub fn error_code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// `sha256:…` of the body.
    pub fn digest(&self) -> String {
        store::digest(&self.body)
    }
}

/// What answers said: their heads, and bodies that are no blobs.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    /// Longest body that is kept, in bytes.
    const MAX_BODY: usize = 16 * 1024;

    fn add(&self, said: &[u8]) {
        let mut all = self.0.lock().expect("no panic");
        all.extend_from_slice(said);
        all.push(b'\n');
    }

    fn add_body(&self, body: &[u8]) {
        if body.len() <= Self::MAX_BODY {
            self.add(body);
        }
    }

    /// All of it.
    pub fn all(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").clone()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection, with or without TLS.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Read and not yet taken.
    buffered: BytesMut,
    heard: Heard,
}

/// How a body is framed.
enum Framing {
    Length(u64),
    Chunked,
    Close,
}

impl Connection {
    /// Without TLS.
    pub async fn plain(address: SocketAddr) -> Self {
        Self::over(
            within("connect", TcpStream::connect(address))
                .await
                .expect("a listener"),
        )
    }

    /// With TLS for `name`, trusting the CA of the PEM file, offering HTTP/1.1 only.
    pub async fn tls(address: SocketAddr, name: &str, ca: &Path) -> io::Result<Self> {
        let config = pki::trusting(ca, &[b"http/1.1"]);
        let stream = TcpStream::connect(address).await?;
        Ok(Self::over(handshake(stream, name, config).await?))
    }

    /// Over a stream that is open already.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffered: BytesMut::new(),
            heard: Heard::default(),
        }
    }

    /// Sends these bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("send", async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Says that nothing more comes, and goes on reading.
    pub async fn finish(&mut self) -> io::Result<()> {
        within("finish", self.stream.shutdown()).await
    }

    /// Sends a request without a body. `Host` is added where `headers` has none.
    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            text += &format!("Host: {DOMAIN}\r\n");
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        self.send(text + "\r\n").await
    }

    /// Reads the next head; an error if the peer ends before there is one.
    pub async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(at) = self
                .buffered
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
            {
                let text = self.buffered.split_to(at + 4);
                self.heard.add(&text);
                return parse_head(&text[..at]);
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads the body that `head` declares, for a request with `method`; `false` if it was cut.
    pub async fn body(&mut self, method: &str, head: &Head) -> (Vec<u8>, bool) {
        let framing = if method == "HEAD" || head.status == 204 || head.status == 304 {
            Framing::Length(0)
        } else if head
            .header("transfer-encoding")
            .is_some_and(|te| te.contains("chunked"))
        {
            Framing::Chunked
        } else {
            head.content_length()
                .map_or(Framing::Close, Framing::Length)
        };
        let mut body = Vec::new();
        let clean = match framing {
            Framing::Length(length) => self.take_into(&mut body, length).await.is_ok(),
            Framing::Chunked => self.chunks_into(&mut body).await.is_ok(),
            Framing::Close => loop {
                body.extend_from_slice(&self.buffered.split());
                match self.fill().await {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                }
            },
        };
        self.heard.add_body(&body);
        (body, clean)
    }

    /// Reads a head and its body.
    pub async fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let head = self.head().await?;
        let (body, clean_end) = self.body(method, &head).await;
        Ok(Answer {
            status: head.status,
            head,
            body,
            clean_end,
        })
    }

    /// Reads exactly `count` bytes of what comes next.
    pub async fn read_exactly(&mut self, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.take_into(&mut bytes, count).await?;
        Ok(bytes)
    }

    /// Waits until the peer ends the connection: the bytes it still sent, and whether it closed in
    /// order rather than by a reset.
    pub async fn until_closed(&mut self) -> (Vec<u8>, bool) {
        loop {
            match self.fill().await {
                Ok(0) => return (self.buffered.split().into(), true),
                Ok(_) => {}
                Err(_) => return (self.buffered.split().into(), false),
            }
        }
    }

    async fn take_into(&mut self, into: &mut Vec<u8>, count: u64) -> io::Result<()> {
        let mut left = count;
        loop {
            let now = self
                .buffered
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            into.extend_from_slice(&self.buffered.split_to(now));
            left -= now as u64;
            if left == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn chunks_into(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
            self.take_into(into, size).await?;
            if size == 0 {
                while !self.line().await?.is_empty() {} // trailers
                return Ok(());
            }
            if !self.line().await?.is_empty() {
                return Err(io::Error::other("a chunk is longer than it says"));
            }
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            self.take_into(&mut line, 1).await?;
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).map_err(io::Error::other)
    }

    /// Reads once; 0 means the peer closed in order.
    async fn fill(&mut self) -> io::Result<usize> {
        let mut piece = (&mut self.buffered).limit(64 * 1024);
        within("bytes of an answer", self.stream.read_buf(&mut piece)).await
    }
}

/// Makes the handshake.
async fn handshake(
    stream: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a host name");
    let connector = TlsConnector::from(config);
    within("TLS handshake", connector.connect(name, stream)).await
}

fn parse_head(bytes: &[u8]) -> io::Result<Head> {
    let bad = |what: &str| io::Error::other(format!("{what}: {}", String::from_utf8_lossy(bytes)));
    let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| bad("no colon"))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<io::Result<_>>()?;
    Ok(Head {
        status: status.ok_or_else(|| bad("no status line"))?,
        headers,
    })
}

/// Asks one thing a connection, over HTTP/1.1 or h2. Cheap to clone, for many at once.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    ca: Option<PathBuf>,
    own: Option<Arc<Leaf>>,
    from: Option<IpAddr>,
    headers: Vec<(String, String)>,
    heard: Heard,
}

impl Client {
    /// Without TLS.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            ca: None,
            own: None,
            from: None,
            headers: Vec::new(),
            heard: Heard::default(),
        }
    }

    /// Without TLS, for the admin listener, which answers this host's own names only.
    pub fn operator(address: SocketAddr) -> Self {
        Self::plain(address).with("Host", "localhost")
    }

    /// With TLS for [`DOMAIN`], trusting the CA of the PEM file.
    pub fn tls(address: SocketAddr, ca: &Path) -> Self {
        Self {
            ca: Some(ca.to_owned()),
            ..Self::plain(address)
        }
    }

    /// The same client, whose answers are kept there.
    #[must_use]
    pub fn heard_by(mut self, heard: &Heard) -> Self {
        self.heard = heard.clone();
        self
    }

    /// The same client, which shows a certificate of its own in handshakes.
    #[must_use]
    pub fn showing(mut self, own: &Leaf) -> Self {
        self.own = Some(Arc::new(own.clone()));
        self
    }

    /// The same client at another address of this machine's, such as 127.0.0.2.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        self.from = Some(address.parse().expect("an address"));
        self
    }

    /// The same client with one more field in every request.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Connection {
        let stream = self.dial().await;
        let connection = match &self.ca {
            None => Connection::over(stream),
            Some(ca) => {
                let config = pki::trusting_as(ca, &[b"http/1.1"], self.own.as_deref());
                let stream = handshake(stream, DOMAIN, config).await;
                Connection::over(stream.expect("a trusted server"))
            }
        };
        Connection {
            heard: self.heard.clone(),
            ..connection
        }
    }

    /// A socket on which nothing was said yet, not even a handshake.
    pub async fn dial(&self) -> TcpStream {
        let dialled = async {
            let Some(from) = self.from else {
                return TcpStream::connect(self.address).await;
            };
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(from, 0))?;
            socket.connect(self.address).await
        };
        within("connect", dialled).await.expect("a listener")
    }

    /// GET.
    pub async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[]).await
    }

    /// GET with fields.
    pub async fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", target, headers).await
    }

    /// HEAD.
    pub async fn head(&self, target: &str) -> Answer {
        self.ask("HEAD", target, &[]).await
    }

    /// Any method without a body.
    pub async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut connection = self.start(method, target, headers).await;
        connection.answer(method).await.expect("an answer")
    }

    /// Sends a request and leaves reading the answer to the caller.
    pub async fn start(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Connection {
        let own = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let all: Vec<_> = own.chain(headers.iter().copied()).collect();
        let mut connection = self.connect().await;
        connection
            .request(method, target, &all)
            .await
            .expect("send a request");
        connection
    }

    /// A connection that is to speak HTTP/2, on which nothing was said yet.
    pub async fn h2_stream(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let ca = self.ca.as_ref().expect("h2 is spoken over TLS");
        let config = pki::trusting_as(ca, &[b"h2"], self.own.as_deref());
        let stream = handshake(self.dial().await, DOMAIN, config).await;
        stream.expect("a trusted server")
    }

    /// GET over HTTP/2.
    pub async fn get_h2(&self, target: &str) -> Answer {
        let answer = self.ask_h2("GET", target, &[], Empty::new()).await;
        answer.expect("an answer")
    }

    /// Over HTTP/2, which needs TLS, on a connection of its own; an answer that ends by RST_STREAM has no clean
    /// end. The body is sent for as long as somebody takes it; one that fails resets its stream.
    pub async fn ask_h2<B>(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: B,
    ) -> hyper::Result<Answer>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let io = TokioIo::new(self.h2_stream().await);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("h2");
        let driver = tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://{DOMAIN}{target}"));
        let own = self.headers.iter();
        let own = own.map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.chain(headers.iter().copied()) {
            request = request.header(name, value);
        }
        let request = request.body(body).expect("a valid request");
        let answer = within("an h2 answer", sender.send_request(request)).await?;
        let headers = answer.headers().iter().map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        });
        let head = Head {
            status: answer.status().as_u16(),
            headers: headers.collect(),
        };
        let mut incoming = answer.into_body();
        let mut body = Vec::new();
        let clean_end = loop {
            match within("an h2 frame", incoming.frame()).await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        };
        driver.abort();
        self.heard.add(format!("{:?}", head.headers).as_bytes());
        self.heard.add_body(&body);
        Ok(Answer {
            status: head.status,
            head,
            body,
            clean_end,
        })
    }
}
