//! Whatever a client does or leaves undone, its connection ends at a finite limit, others are
//! served meanwhile, and no request hides behind another.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ecr_proxy::server::{
    self, BoxError, ConnectionInfo, DrainReport, Handler, Handshake, Listener, Refusal,
    ServerMetrics, ServerOptions, Terms, TlsInfo,
};
use ecr_proxy::tls::{Certificates, LocalCa, server_config};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "registry.mydomain.test";

/// Long enough for anything that ought to happen on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

/// Deadlines of servers whose deadlines are under test.
const SHORT: Duration = Duration::from_secs(1);

// What the server under test answers with.

#[derive(Clone)]
struct Answers {
    seen: Arc<Mutex<Vec<String>>>,
    /// Held back answers wait for this to become true.
    release: watch::Receiver<bool>,
    /// Told when the body of `/endless` is dropped.
    dropped: mpsc::UnboundedSender<()>,
    /// What the handshake of the connection settled.
    tls: Option<TlsInfo>,
}

enum Answer {
    Full(Full<Bytes>),
    /// Half of it at once, half when released.
    Held(Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>),
    Endless {
        _told: Told,
    },
}

struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Held(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
            Self::Endless { .. } => {
                static CHUNK: [u8; 64 * 1024] = [7; 64 * 1024];
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Held(_) | Self::Endless { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Held(_) | Self::Endless { .. } => SizeHint::default(),
        }
    }
}

impl Handler for Answers {
    type Body = Answer;

    async fn call(&self, request: Request<Incoming>) -> Response<Answer> {
        let path = request.uri().path().to_owned();
        self.seen.lock().expect("no panics").push(path.clone());
        let mut response = Response::new(Answer::Full(match path.as_str() {
            "/large" => Full::new(large()),
            "/tls" => Full::new(Bytes::from(format!("{:?}", self.tls))),
            _ => Full::new(Bytes::from_static(b"ok")),
        }));
        match path.as_str() {
            "/endless" => {
                let _told = Told(self.dropped.clone());
                *response.body_mut() = Answer::Endless { _told };
            }
            "/held" => {
                let mut release = self.release.clone();
                let rest = async move {
                    let _ = release.wait_for(|is_released| *is_released).await;
                    Ok(Frame::data(Bytes::from_static(b" second")))
                };
                let first = async { Ok(Frame::data(Bytes::from_static(b"first"))) };
                let frames: Vec<Pin<Box<dyn Future<Output = Result<_, Infallible>> + Send>>> =
                    vec![Box::pin(first), Box::pin(rest)];
                let frames = futures_util::stream::iter(frames);
                let frames = futures_util::StreamExt::then(frames, |frame| frame);
                let body = http_body_util::StreamBody::new(frames);
                *response.body_mut() = Answer::Held(Box::pin(body));
            }
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            }
            _ => {}
        }
        response
    }

    fn refuse(&self, refusal: Refusal) -> Response<Answer> {
        let text = Bytes::from(format!("refused: {refusal}"));
        let mut response = Response::new(Answer::Full(Full::new(text)));
        *response.status_mut() = refusal.status();
        response
    }
}

/// 5 MiB in which no two windows are alike.
fn large() -> Bytes {
    let words = (0..5 * 128 * 1024_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

// A running server and its clients.

struct Scene {
    plain: SocketAddr,
    tls: SocketAddr,
    roots: Arc<rustls::RootCertStore>,
    metrics: ServerMetrics,
    seen: Arc<Mutex<Vec<String>>>,
    release: watch::Sender<bool>,
    dropped: mpsc::UnboundedReceiver<()>,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<DrainReport>,
    _state: tempfile::TempDir,
}

impl Scene {
    async fn start(options: ServerOptions) -> Self {
        let state = tempfile::tempdir().expect("a directory");
        let ca = LocalCa::open(state.path(), &[NAME.to_owned()], SystemTime::now()).expect("a CA");
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(ca.ca_pem().as_bytes()).expect("PEM");
        roots.add(root).expect("a root");
        let certificates = Certificates::new(vec![ca.pair().clone()]);
        let config = server_config(&certificates, None).expect("a configuration");

        let bind = || TcpListener::bind("127.0.0.1:0");
        let (plain, tls) = (bind().await.expect("a port"), bind().await.expect("a port"));
        let addresses = [&plain, &tls].map(|socket| socket.local_addr().expect("bound"));
        let listeners = vec![
            Listener {
                socket: plain,
                tls: None,
            },
            Listener {
                socket: tls,
                tls: Some(Arc::new(ArcSwap::from_pointee(Handshake {
                    tls: config,
                    name_client: None,
                    number: 0,
                }))),
            },
        ];
        let (stop, stopped) = oneshot::channel();
        let (release, released) = watch::channel(false);
        let (told, dropped) = mpsc::unbounded_channel();
        let metrics = ServerMetrics::default();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let answers = Answers {
            seen: Arc::clone(&seen),
            release: released,
            dropped: told,
            tls: None,
        };
        let receive = move |connection: ConnectionInfo| Answers {
            tls: connection.tls,
            ..answers.clone()
        };
        let run = server::run(listeners, receive, options, metrics.clone(), async {
            let _ = stopped.await;
        });
        Self {
            plain: addresses[0],
            tls: addresses[1],
            roots: Arc::new(roots),
            metrics,
            seen,
            release,
            dropped,
            stop: Some(stop),
            run: tokio::spawn(run),
            _state: state,
        }
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.plain).await.expect("a connection")
    }

    async fn tls(&self, alpn: &[&str]) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(NAME).expect("a name");
        let stream = TcpStream::connect(self.tls).await.expect("a connection");
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .expect("a handshake")
    }

    async fn h2(
        &self,
        stream_window: u32,
    ) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
        let stream = self.tls(&["h2"]).await;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(stream_window)
            .handshake(TokioIo::new(stream))
            .await
            .expect("an h2 handshake");
        tokio::spawn(connection);
        sender
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panics").clone()
    }

    /// Starts the drain, and waits until the listening sockets are closed.
    async fn stop(&mut self) {
        self.stop
            .take()
            .expect("stopped once")
            .send(())
            .expect("running");
        while TcpStream::connect(self.plain).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    async fn report(self) -> DrainReport {
        timeout(SOON, self.run)
            .await
            .expect("in time")
            .expect("no panic")
    }
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("https://{NAME}{path}");
    Request::get(uri).body(Empty::new()).expect("a request")
}

/// Sends raw bytes, and returns all that comes until the server closes, a reset being an end too.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.expect("written");
    until_closed(&mut stream).await
}

async fn until_closed<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut all = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("closed in time");
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits for what the server counts just after the client can see it.
async fn eventually(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, holds).await.expect("it comes true");
}

/// Reads one answer with the two-byte body `ok`.
async fn read_ok<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let read = timeout(SOON, stream.read_buf(&mut answer))
            .await
            .expect("in time");
        assert_ne!(read.expect("readable"), 0, "closed after {answer:?}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn short() -> ServerOptions {
    ServerOptions {
        first_request_timeout: SHORT,
        header_timeout: SHORT,
        idle_timeout: SHORT,
        write_timeout: SHORT,
        ..ServerOptions::default()
    }
}

// Protocols.

#[tokio::test]
async fn alpn_chooses_the_protocol_and_http_1_is_preferred() {
    let scene = Scene::start(ServerOptions::default()).await;
    for offered in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
        let mut stream = scene.tls(offered).await;
        let expected = (!offered.is_empty()).then_some(&b"http/1.1"[..]);
        assert_eq!(stream.get_ref().1.alpn_protocol(), expected);
        stream.write_all(GET).await.expect("written");
        read_ok(&mut stream).await;
    }
    let answer = scene
        .h2(65_535)
        .await
        .send_request(request("/tls"))
        .await
        .expect("an answer");
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let text = String::from_utf8_lossy(&body);
    assert!(
        text.contains(NAME) && text.contains("is_h2: true"),
        "{text}"
    );
    assert_eq!(scene.metrics.connections_accepted.get(), 4);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another_and_pipelined_ones() {
    let scene = Scene::start(ServerOptions::default()).await;
    let mut stream = scene.plain().await;
    for _ in 0..3 {
        stream.write_all(GET).await.expect("written");
        read_ok(&mut stream).await;
    }
    let last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let all = exchange(stream, &[GET, GET, last].concat()).await;
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(scene.seen().len(), 6);
}

#[tokio::test]
async fn large_answers_arrive_whole_with_and_without_write_buffers() {
    for max_write_buffers in [32, 0] {
        let scene = Scene::start(ServerOptions {
            max_write_buffers,
            ..ServerOptions::default()
        })
        .await;
        let expected = large();
        let get = b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let mut plain = scene.plain().await;
        let mut tls = scene.tls(&["http/1.1"]).await;
        for stream in [&mut plain as &mut (dyn Stream + Unpin), &mut tls] {
            stream.write_all(get).await.expect("written");
            let mut all = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut all))
                .await
                .expect("in time");
            assert!(
                all.ends_with(&expected),
                "max_write_buffers = {max_write_buffers}"
            );
        }
        for window in [16 * 1024, 4 * 1024 * 1024] {
            let answer = scene.h2(window).await.send_request(request("/large")).await;
            let body = answer.expect("an answer").into_body().collect();
            let body = timeout(SOON, body).await.expect("in time").expect("a body");
            assert!(body.to_bytes() == expected, "h2, window {window}");
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

// Framing.

#[tokio::test]
async fn p01_p02_p03_odd_framing_is_refused_and_nothing_behind_it_runs() {
    let scene = Scene::start(ServerOptions::default()).await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    for head in [
        "GET /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "PUT /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "PUT /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        "PUT /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
        "PUT /x HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/1.1\nhost: a\n\n",
        "GET /x HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\nspace : b\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\nnul: \0\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\nbare: a\rb\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let bytes = format!("{head}{hidden}");
        for answer in [
            exchange(scene.plain().await, bytes.as_bytes()).await,
            exchange(scene.tls(&["http/1.1"]).await, bytes.as_bytes()).await,
        ] {
            assert!(
                answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
                "{head:?}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head:?}: {answer}");
            assert!(
                answer.contains("connection: close\r\n"),
                "{head:?}: {answer}"
            );
            assert!(answer.contains("refused: "), "{head:?}: {answer}");
        }
    }
    assert_eq!(scene.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn an_answer_that_does_not_wait_for_the_body_says_that_the_connection_ends() {
    let scene = Scene::start(ServerOptions::default()).await;
    let put = b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n";
    // No client may ask again on a connection that is about to close: it could not tell a lost answer from a
    // request that never ran.
    let mut stream = scene.plain().await;
    stream.write_all(put).await.expect("written");
    stream.write_all(&[7; 40_000]).await.expect("written");
    let mut answer = vec![0; 17];
    stream.read_exact(&mut answer).await.expect("an answer");
    // What is still sent is read and forgotten, so that no reset overtakes the answer.
    stream.write_all(&[7; 60_000]).await.expect("written");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("a clean end");
    assert_eq!(answer, b"HTTP/1.1 405 Meth");
    assert!(rest.contains("connection: close\r\n"), "{rest}");
    // A body that has all come ends nothing.
    let last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let small = b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
    let empty = b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let pipelined = [&small[..], empty, GET, small, last].concat();
    let all = exchange(scene.plain().await, &pipelined).await;
    assert_eq!(all.matches("HTTP/1.1 405").count(), 3, "{all}");
    assert_eq!(all.matches("HTTP/1.1 200").count(), 2, "{all}");
    assert_eq!(all.matches("connection: close").count(), 1, "{all}");
}

#[tokio::test]
async fn a_refusal_comes_after_the_answers_to_the_requests_before_it() {
    let scene = Scene::start(ServerOptions::default()).await;
    let all = exchange(
        scene.plain().await,
        &[GET, GET, b"GET / HTTP/1.1\r\nbad header: x\r\n\r\n", GET].concat(),
    )
    .await;
    let statuses: Vec<&str> = all.matches("HTTP/1.1 200 OK").collect();
    assert_eq!(statuses.len(), 2);
    assert!(all.ends_with("refused: malformed header line"), "{all}");
    assert_eq!(scene.seen().len(), 2);
}

#[tokio::test]
async fn oversized_heads_get_414_and_431() {
    let scene = Scene::start(ServerOptions::default()).await;
    let long = "a".repeat(40 * 1024);
    let many = "x: y\r\n".repeat(101);
    for (head, status) in [
        (format!("GET /{long}"), "414 URI Too Long"),
        (
            format!("GET / HTTP/1.1\r\nx: {long}"),
            "431 Request Header Fields Too Large",
        ),
        (
            format!("GET / HTTP/1.1\r\n{many}\r\n"),
            "431 Request Header Fields Too Large",
        ),
    ] {
        let answer = exchange(scene.plain().await, head.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn p01_over_h2_a_get_with_a_body_is_refused() {
    let scene = Scene::start(ServerOptions::default()).await;
    let stream = scene.tls(&["h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("an h2 handshake");
    tokio::spawn(connection);
    let get = Request::get(format!("https://{NAME}/"))
        .body(Full::new(Bytes::from_static(b"body")))
        .expect("a request");
    let answer = sender.send_request(get).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(scene.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn u24_an_upload_refused_early_still_gets_its_answer() {
    let scene = Scene::start(ServerOptions::default()).await;
    for framing in ["content-length: 1073741824", "transfer-encoding: chunked"] {
        let head = format!("PUT /x HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
        let (mut reading, mut writing) = scene.plain().await.into_split();
        // What the client sends on is its affair: here for as long as somebody takes it.
        let sending = tokio::spawn(async move {
            writing.write_all(head.as_bytes()).await?;
            loop {
                writing.write_all(b"8000\r\n").await?;
                writing.write_all(&[7; 0x8000]).await?;
                writing.write_all(b"\r\n").await?;
            }
            #[expect(unreachable_code, reason = "names the type of the error")]
            Ok::<(), std::io::Error>(())
        });
        let mut answer = vec![0; 30];
        timeout(SOON, reading.read_exact(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 405 "), "{framing}");
        sending.abort();
    }
}

#[tokio::test]
async fn p06_nothing_is_a_tunnel() {
    let scene = Scene::start(ServerOptions::default()).await;
    for head in [
        "CONNECT evil.test:443 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "TRACE / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ] {
        let answer = exchange(scene.plain().await, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{head:?}: {answer}");
    }
    let upgrade =
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n";
    let answer = exchange(scene.plain().await, format!("{upgrade}raw").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

// Deadlines.

#[tokio::test]
async fn l04_whoever_opens_and_does_not_ask_is_closed() {
    let scene = Scene::start(short()).await;
    let hello_begins: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // The preface and an empty SETTINGS frame.
    let opening = [preface, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();

    let began = Instant::now();
    let tcp = |address| async move { TcpStream::connect(address).await.expect("a connection") };
    let (all, _) = tokio::join!(
        async {
            tokio::join!(
                exchange(tcp(scene.plain).await, b""),
                exchange(tcp(scene.plain).await, b"GET / HTTP/1.1\r\nhost:"),
                exchange(tcp(scene.tls).await, b""),
                exchange(tcp(scene.tls).await, hello_begins),
                exchange(scene.tls(&["http/1.1"]).await, b"GET"),
                exchange(scene.tls(&["h2"]).await, &preface[..10]),
                exchange(scene.tls(&["h2"]).await, &opening),
            )
        },
        // One that drips is not served longer than one that is silent.
        async {
            let mut stream = scene.plain().await;
            let mut buf = [0; 64];
            for byte in b"GET / HTTP/1.1\r\nx: "
                .iter()
                .chain(std::iter::repeat(&b'y'))
            {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                match timeout(Duration::from_millis(20), stream.read(&mut buf)).await {
                    Err(_) => {}
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(_)) => panic!("an answer to an unfinished request"),
                }
            }
        }
    );
    assert!(began.elapsed() >= SHORT && began.elapsed() < SOON);
    assert_eq!((all.0, all.1), (String::new(), String::new()));
    eventually(|| scene.metrics.deadline_closed.get() == 8).await;
    assert_eq!(scene.seen(), Vec::<String>::new());

    let mut stream = scene.plain().await;
    stream.write_all(GET).await.expect("written");
    read_ok(&mut stream).await;
}

#[tokio::test]
async fn l04_a_later_head_has_a_deadline_and_idle_connections_are_closed() {
    let scene = Scene::start(ServerOptions {
        first_request_timeout: SOON,
        ..short()
    })
    .await;
    let mut half = scene.plain().await;
    let mut idle = scene.plain().await;
    for stream in [&mut half, &mut idle] {
        stream.write_all(GET).await.expect("written");
        read_ok(stream).await;
    }
    half.write_all(b"GET / HT").await.expect("written");
    let mut h2 = scene.h2(65_535).await;
    let answer = h2.send_request(request("/")).await.expect("an answer");
    answer.into_body().collect().await.expect("a body");

    assert_eq!(until_closed(&mut half).await, "");
    assert_eq!(until_closed(&mut idle).await, "");
    let gone = async {
        while h2.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone)
        .await
        .expect("the idle h2 connection is closed");
    assert!(
        scene.metrics.deadline_closed.get() <= 1,
        "idle ones are not counted"
    );
}

#[tokio::test]
async fn l03_a_client_that_takes_no_bytes_is_closed() {
    let mut scene = Scene::start(short()).await;
    let get = b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut plain = scene.plain().await;
    plain.write_all(get).await.expect("written");
    let mut tls = scene.tls(&["http/1.1"]).await;
    tls.write_all(get).await.expect("written");
    for _ in 0..2 {
        timeout(SOON, scene.dropped.recv())
            .await
            .expect("in time")
            .expect("told");
    }
    eventually(|| scene.metrics.deadline_closed.get() == 2).await;
}

/// The system tells of room when more than a MiB has gone: longer than any of these deadlines, at this pace.
#[tokio::test]
async fn l03_a_client_that_reads_slowly_and_all_the_time_is_not_closed() {
    const PIECE: usize = 64 * 1024;
    const PAUSE: Duration = Duration::from_millis(400);
    let write_timeout = Duration::from_secs(4);
    let scene = Scene::start(ServerOptions {
        write_timeout,
        idle_timeout: SOON,
        ..ServerOptions::default()
    })
    .await;
    let get = b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut plain = scene.plain().await;
    plain.write_all(get).await.expect("written");
    let mut tls = scene.tls(&["http/1.1"]).await;
    tls.write_all(get).await.expect("written");
    // As much as fits into the windows of the stream and the connection.
    let mut greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    greeting.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    greeting.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\0\0\0");
    let mut fields = b"\x82\x87\x04\x08/endless\x01".to_vec();
    fields.push(NAME.len() as u8);
    fields.extend(NAME.as_bytes());
    greeting.extend([0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1]);
    greeting.extend(fields);
    let mut h2 = scene.tls(&["h2"]).await;
    h2.write_all(&greeting).await.expect("written");

    let mut piece = vec![0; PIECE];
    let began = Instant::now();
    while began.elapsed() < 3 * write_timeout {
        for stream in [&mut plain as &mut (dyn Stream + Unpin), &mut tls, &mut h2] {
            let read = timeout(SOON, stream.read_exact(&mut piece)).await;
            read.expect("in time").expect("more comes");
        }
        assert_eq!(scene.metrics.deadline_closed.get(), 0);
        // The pace is what is tested.
        tokio::time::sleep(PAUSE).await;
    }
    // From now on they take nothing.
    eventually(|| scene.metrics.deadline_closed.get() == 3).await;
}

#[tokio::test]
async fn l03_an_h2_stream_that_is_not_taken_is_reset_and_the_others_go_on() {
    let mut scene = Scene::start(ServerOptions {
        idle_timeout: SOON,
        ..short()
    })
    .await;
    for window in [1, 65_535] {
        let mut h2 = scene.h2(window).await;
        let stuck = h2
            .send_request(request("/endless"))
            .await
            .expect("an answer");
        timeout(SOON, scene.dropped.recv())
            .await
            .expect("in time")
            .expect("told");
        let outcome = timeout(SOON, stuck.into_body().collect())
            .await
            .expect("in time");
        assert!(outcome.is_err(), "a reset is no clean end");

        let answer = h2
            .send_request(request("/"))
            .await
            .expect("the connection lives");
        let body = timeout(SOON, answer.into_body().collect())
            .await
            .expect("in time");
        assert_eq!(body.expect("a body").to_bytes(), "ok");
    }
    assert_eq!(scene.metrics.deadline_closed.get(), 0);
}

#[tokio::test]
async fn a_slow_answer_is_not_a_slow_client() {
    let scene = Scene::start(short()).await;
    let mut h2 = scene.h2(65_535).await;
    let held = h2.send_request(request("/held")).await.expect("an answer");
    let mut plain = scene.plain().await;
    let get = b"GET /held HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    plain.write_all(get).await.expect("written");
    // Longer than every deadline of this server: the time itself is what is tested.
    tokio::time::sleep(3 * SHORT).await;
    scene.release.send(true).expect("somebody waits");
    let body = timeout(SOON, held.into_body().collect())
        .await
        .expect("in time");
    assert_eq!(body.expect("a whole body").to_bytes(), "first second");
    let answer = until_closed(&mut plain).await;
    assert!(
        answer.contains("first") && answer.contains(" second") && answer.ends_with("0\r\n\r\n")
    );
    assert_eq!(scene.metrics.deadline_closed.get(), 0);
}

// Caps.

#[tokio::test]
async fn l06_half_handshakes_delay_nobody_and_end_at_their_deadline() {
    let scene = Scene::start(ServerOptions {
        max_handshakes: 2,
        first_request_timeout: Duration::from_secs(2),
        ..ServerOptions::default()
    })
    .await;
    let mut halves = Vec::new();
    for _ in 0..2 {
        let mut half = TcpStream::connect(scene.tls).await.expect("a connection");
        half.write_all(b"\x16\x03\x01\x02\x00")
            .await
            .expect("written");
        halves.push(half);
    }
    let mut plain = scene.plain().await;
    plain.write_all(GET).await.expect("written");
    read_ok(&mut plain).await;
    let mut stream = scene.tls(&["http/1.1"]).await;
    stream.write_all(GET).await.expect("written");
    read_ok(&mut stream).await;
    for half in &mut halves {
        until_closed(half).await;
    }
    eventually(|| scene.metrics.handshake_failures.get() == 2).await;
}

#[tokio::test]
async fn k03_a_failed_handshake_is_counted_and_harms_nobody() {
    let scene = Scene::start(ServerOptions::default()).await;
    let stream = TcpStream::connect(scene.tls).await.expect("a connection");
    exchange(stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| scene.metrics.handshake_failures.get() == 1).await;
    let mut stream = scene.tls(&["http/1.1"]).await;
    stream.write_all(GET).await.expect("written");
    read_ok(&mut stream).await;
}

#[tokio::test]
async fn l12_beyond_a_cap_connections_are_refused_at_once_and_others_go_on() {
    let total = ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    };
    let per_address = ServerOptions {
        max_connections_per_address: 2,
        ..ServerOptions::default()
    };
    for options in [total, per_address] {
        let scene = Scene::start(options).await;
        let mut first = scene.plain().await;
        let mut second = scene.plain().await;
        for stream in [&mut first, &mut second] {
            stream.write_all(GET).await.expect("written");
            read_ok(stream).await;
        }
        assert_eq!(until_closed(&mut scene.plain().await).await, "");
        assert_eq!(scene.metrics.connections_refused.get(), 1);
        assert_eq!(scene.metrics.connections_open.get(), 2);
        first.write_all(GET).await.expect("written");
        read_ok(&mut first).await;

        exchange(
            second,
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        )
        .await;
        // The place is free once the server has seen the end; refused attempts tell nothing else.
        let served = async {
            loop {
                let mut third = scene.plain().await;
                let mut byte = [0];
                if third.write_all(GET).await.is_ok()
                    && matches!(third.read(&mut byte).await, Ok(1))
                {
                    break;
                }
            }
        };
        timeout(SOON, served).await.expect("a free place");
    }
}

#[tokio::test]
async fn l12_a_newcomer_finds_room_where_others_hold_all_of_it_idle() {
    let scene = Scene::start(ServerOptions {
        max_connections: 6,
        max_connections_per_address: 3,
        ..ServerOptions::default()
    })
    .await;
    let from = async |host: u8| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let source = ([127, 0, 0, host], 0).into();
        socket.bind(source).expect("an address of this host");
        let mut stream = socket.connect(scene.plain).await.expect("a connection");
        stream.write_all(GET).await.expect("written");
        read_ok(&mut stream).await;
        stream
    };
    let mut held = Vec::new();
    for host in [2, 2, 2, 3, 3, 3] {
        held.push(from(host).await);
    }
    let mut newcomer = from(4).await;
    eventually(|| scene.metrics.connections_displaced.get() == 1).await;
    eventually(|| scene.metrics.connections_open.get() == 6).await;
    newcomer.write_all(GET).await.expect("written");
    read_ok(&mut newcomer).await;
    let mut closed = 0;
    for stream in &mut held {
        let mut byte = [0];
        // A reset, or the end.
        let is_open = stream.write_all(GET).await.is_ok()
            && matches!(timeout(SOON, stream.read(&mut byte)).await, Ok(Ok(1)));
        closed += usize::from(!is_open);
    }
    assert_eq!(closed, 1, "one made room");
    assert_eq!(scene.metrics.connections_refused.get(), 0);
}

#[tokio::test]
async fn l12_who_has_not_been_sent_all_of_an_answer_makes_no_room() {
    let options = ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    };
    let scene = Scene::start(options).await;
    let newcomer = async || {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let source = ([127, 0, 0, 2], 0).into();
        socket.bind(source).expect("an address of this host");
        let mut stream = socket.connect(scene.plain).await.expect("a connection");
        // It is closed, which may come as a reset.
        let _ = stream.write_all(GET).await;
        assert_eq!(until_closed(&mut stream).await, "");
    };
    // Its body is all handed over, and far from all of it fits into the system.
    let mut plain = Vec::new();
    for _ in 0..2 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 * 1024).expect("set");
        let mut stream = socket.connect(scene.plain).await.expect("a connection");
        let get = b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(get).await.expect("written");
        let mut first = vec![0];
        stream.read_exact(&mut first).await.expect("it has begun");
        plain.push((stream, first));
    }
    newcomer().await;
    let expected = large();
    for (mut stream, mut all) in plain {
        let read = stream.read_to_end(&mut all);
        timeout(SOON, read).await.expect("in time").expect("whole");
        assert!(all.ends_with(&expected), "{} bytes came", all.len());
    }
    eventually(|| scene.metrics.connections_open.get() == 0).await;

    // The window is smaller than the body, which h2 has all of.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut h2 = scene.h2(1).await;
        let answer = h2.send_request(request("/")).await;
        held.push((h2, answer.expect("an answer").into_body()));
    }
    newcomer().await;
    for (_open, body) in held {
        let whole = timeout(SOON, body.collect()).await.expect("in time");
        assert_eq!(whole.expect("whole").to_bytes(), "ok");
    }
    assert_eq!(scene.metrics.connections_displaced.get(), 0);
}

#[tokio::test]
async fn u24_who_is_still_heard_out_after_a_refusal_makes_no_room() {
    let options = ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    };
    let scene = Scene::start(options).await;
    let mut heard = Vec::new();
    for _ in 0..2 {
        let mut stream = scene.plain().await;
        let put = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
        stream.write_all(put).await.expect("written");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("it has begun");
        assert_eq!(&first, b"HTTP/1.1 405");
        heard.push(stream);
    }
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    let source = ([127, 0, 0, 2], 0).into();
    socket.bind(source).expect("an address of this host");
    let mut newcomer = socket.connect(scene.plain).await.expect("a connection");
    assert_eq!(until_closed(&mut newcomer).await, "");
    for mut stream in heard {
        stream.write_all(&[0; 100_000]).await.expect("taken");
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        timeout(SOON, read)
            .await
            .expect("in time")
            .expect("no reset");
        assert!(rest.ends_with(b"ok"), "{}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(scene.metrics.connections_displaced.get(), 0);
}

// Drain.

#[tokio::test]
async fn c09_a_drain_lets_requests_finish_and_closes_everything_else() {
    let mut scene = Scene::start(ServerOptions::default()).await;
    let mut idle = scene.plain().await;
    idle.write_all(GET).await.expect("written");
    read_ok(&mut idle).await;
    let mut silent = scene.plain().await;
    let mut half_handshake = TcpStream::connect(scene.tls).await.expect("a connection");

    let mut plain = scene.plain().await;
    plain
        .write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    let mut head = [0; 12];
    plain
        .read_exact(&mut head)
        .await
        .expect("the answer has begun");
    let mut h2 = scene.h2(65_535).await;
    let held = h2.send_request(request("/held")).await.expect("an answer");

    scene.stop().await;
    for stream in [&mut idle, &mut silent, &mut half_handshake] {
        assert_eq!(until_closed(stream).await, "");
    }
    scene.release.send(true).expect("somebody waits");
    let body = timeout(SOON, held.into_body().collect())
        .await
        .expect("in time");
    assert_eq!(body.expect("a whole body").to_bytes(), "first second");
    assert!(
        until_closed(&mut plain).await.ends_with("0\r\n\r\n"),
        "a clean end, then closed"
    );

    let metrics = scene.metrics.clone();
    let report = scene.report().await;
    assert_eq!(report.cut, 0);
    assert!(report.open >= 2, "{report:?}");
    assert_eq!(metrics.connections_open.get(), 0);
}

#[tokio::test]
async fn c09_what_does_not_finish_in_time_is_cut_and_counted() {
    let mut scene = Scene::start(ServerOptions {
        terms: Arc::new(ArcSwap::from_pointee(Terms {
            drain_timeout: SHORT,
            ..Terms::default()
        })),
        ..ServerOptions::default()
    })
    .await;
    let mut plain = scene.plain().await;
    plain
        .write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    let mut head = [0; 12];
    plain
        .read_exact(&mut head)
        .await
        .expect("the answer has begun");
    scene.stop().await;
    let rest = until_closed(&mut plain).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "no clean end: {rest:?}");
    let report = scene.report().await;
    assert_eq!(report.cut, 1);
    assert!(report.elapsed >= SHORT);
}
