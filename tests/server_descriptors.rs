//! A server without file descriptors neither stops nor spins, and recovers by itself.
//!
//! Alone in its process, whose descriptors it uses up.

use std::convert::Infallible;
use std::fs::File;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecr_proxy::server::{self, BoxError, Handler, Listener, Refusal, ServerMetrics, ServerOptions};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for anything that ought to happen on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct Nothing;

impl Nothing {
    fn answer() -> Response<UnsyncBoxBody<Bytes, BoxError>> {
        let never = |error: Infallible| match error {};
        Response::new(Empty::new().map_err(never).boxed_unsync())
    }
}

impl Handler for Nothing {
    type Body = UnsyncBoxBody<Bytes, BoxError>;

    async fn call(&self, _: Request<Incoming>) -> Response<Self::Body> {
        Self::answer()
    }

    fn refuse(&self, _: Refusal) -> Response<Self::Body> {
        Self::answer()
    }
}

#[tokio::test]
async fn l07_out_of_descriptors_the_server_waits_and_recovers() {
    let limit = Rlimit {
        current: Some(128),
        maximum: Some(128),
    };
    setrlimit(Resource::Nofile, limit).expect("a lower limit");
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let metrics = ServerMetrics::default();
    let listeners = vec![Listener { socket, tls: None }];
    let options = ServerOptions::default();
    let run = server::run(
        listeners,
        |_| Nothing,
        options,
        metrics.clone(),
        std::future::pending(),
    );
    tokio::spawn(run);

    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    files.pop();
    let mut client = TcpStream::connect(address)
        .await
        .expect("the last descriptor");
    let began = Instant::now();
    while metrics.accept_errors.get() < 4 {
        assert!(began.elapsed() < SOON, "accepts are tried again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Three pauses of 50, 100 and 200 ms lie between four attempts.
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "no busy loop"
    );

    drop(files);
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .expect("written");
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    tokio::time::timeout(SOON, read)
        .await
        .expect("served once there are descriptors")
        .expect("readable");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}
