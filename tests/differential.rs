//! No stream of bytes makes the upstream see a message that the client did not send (P23): random requests,
//! framed in every odd way, some with another request hidden in their bodies, go to the proxy and to
//! Debian's nginx, and what each lets through is compared.
//!
//! `ECR_PROXY_TEST_STREAMS=10000 tests/run --test differential` sends more than the usual few hundred.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecr_proxy::simulator::{Listener, Simulator};
use support::blobs::until;
use support::image::REPOSITORY;
use support::real::nginx;
use support::users::{basic, user_line};
use support::{DOMAIN, Proxy};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Chooses among what there is, the same with each run.
struct Dice(fastrand::Rng);

impl Dice {
    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.0.usize(..choices.len())]
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.0.u32(..many) == 0
    }
}

/// What a client sends on one connection.
struct Sent {
    bytes: Vec<u8>,
    /// How many messages it means by it.
    messages: usize,
}

/// Headers that decide nothing, and are to be read as nothing else.
const OTHERS: &[&str] = &[
    "Accept: */*",
    "X-Odd: \t value \t",
    "Expect: 100-continue",
    "Connection: keep-alive",
    "Connection: close, content-length",
    "Connection: upgrade",
    "Upgrade: h2c",
    "X-HTTP-Method-Override: DELETE",
    "X-Content-Length: 0",
    "TE: trailers, chunked",
    "Trailer: content-length",
    "Transfer-Encodin: chunked",
    "Content-Length-: 4",
    "Range: bytes=0-",
];

/// Ways to write a length of which some reader may take none, or another.
fn length(dice: &mut Dice, body: usize) -> String {
    let short = body / 2;
    if dice.one_in(2) {
        return format!("Content-Length: {body}");
    }
    let line = dice.of(&[
        "Content-Length: {}",
        "content-length:{}",
        "Content-Length:\t{}",
        "Content-Length: {} ",
        "Content-Length: +{}",
        "Content-Length: 0{}",
        "Content-Length: {}, {}",
        "Content-Length: {},",
        "Content-Length: 0x{}",
        "Content-Length: \"{}\"",
        "Content-Length : {}",
        " Content-Length: {}",
        "Content-Length:\u{b}{}",
        "X: y\rContent-Length: {}",
        "X: y\nContent-Length: {}",
        "Content_Length: {}\r\nContent-Length: {}",
        "Content-Length: {}\r\nContent-Length: {}",
        "Content-Length: 0\r\nContent-Length: {}",
        "Content-Length: {}\r\nContent-Length: 0",
        "Content-Length: SHORT",
        "Content-Length: 1\r\n {}",
        "Content-Length: 18446744073709551616",
        "Content-Length: -1",
    ]);
    let written = line.replace("{}", &body.to_string());
    written.replace("SHORT", &short.to_string())
}

/// Ways to write that a body comes in chunks, of which some reader may not know that they do.
fn encoding(dice: &mut Dice) -> String {
    if dice.one_in(2) {
        return "Transfer-Encoding: chunked".to_owned();
    }
    dice.of(&[
        "Transfer-Encoding: chunked",
        "transfer-encoding:chunked",
        "Transfer-Encoding: Chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:\u{b}chunked",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "X: y\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\0",
    ])
    .to_owned()
}

/// A request that would be noticed.
fn hidden(number: usize, login: &str) -> String {
    format!(
        "GET /v2/{REPOSITORY}/manifests/hidden-{number} HTTP/1.1\r\nHost: {DOMAIN}\r\n\
         Authorization: {login}\r\n\r\n"
    )
}

/// One connection's worth of messages; what is hidden in a body names it by its tag.
fn stream(dice: &mut Dice, number: usize, login: &str) -> Sent {
    let mut bytes = Vec::new();
    let messages = dice.0.usize(1..4);
    for message in 0..messages {
        let method = dice.of(&[
            "GET", "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW",
        ]);
        let version = if dice.one_in(8) { "1.0" } else { "1.1" };
        let path = format!("/v2/{REPOSITORY}/manifests/visible-{number}-{message}");
        let hidden = hidden(number, login);
        let mut lines = vec![format!("{method} {path} HTTP/{version}")];
        lines.push(format!("Host: {DOMAIN}"));
        lines.push(format!("Authorization: {login}"));
        for _ in 0..dice.0.usize(..3) {
            lines.push(dice.of(OTHERS).to_owned());
        }
        let mut body = String::new();
        let odd = message > 0 || dice.one_in(2);
        match dice.0.u32(..4) {
            // An honest one, for the others to come behind.
            _ if !odd => {}
            // By length, and perhaps in chunks as well, which end before what is hidden.
            0 | 1 => {
                let both = dice.one_in(2);
                body = if both {
                    format!("0\r\n\r\n{hidden}")
                } else {
                    hidden
                };
                lines.push(length(dice, body.len()));
                if both {
                    let at = dice.0.usize(3..=lines.len());
                    lines.insert(at, encoding(dice));
                }
            }
            // In chunks, one of which is what is hidden.
            2.. => {
                let extension = dice.of(&["", "", ";x", ";x=\"\n\"", " "]);
                body = format!("{:x}{extension}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
                lines.push(encoding(dice));
            }
        }
        bytes.extend(lines.join("\r\n").into_bytes());
        bytes.extend(b"\r\n\r\n");
        bytes.extend(body.into_bytes());
    }
    Sent { bytes, messages }
}

/// Sends all of it and waits until the other side has closed, or says no more.
async fn send(mut connection: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    // Whoever refuses need not read all of it.
    let _closed = connection.write_all(bytes).await;
    let _closed = connection.flush().await;
    let mut answers = Vec::new();
    let all = connection.read_to_end(&mut answers);
    let _said = tokio::time::timeout(Duration::from_millis(300), all).await;
}

/// Sends it to the proxy, and then to nginx.
async fn send_both(proxy: &Proxy, nginx: &Nginx, bytes: &[u8]) {
    let ours = TcpStream::connect(proxy.http()).await.expect("a listener");
    send(ours, bytes).await;
    let theirs = UnixStream::connect(nginx.socket()).await.expect("nginx");
    send(theirs, bytes).await;
}

/// The number of the stream, and whether it was hidden, of each message with such a path.
fn told(path: &str, seen: &mut BTreeMap<usize, (usize, usize)>) {
    let Some((_, tag)) = path.rsplit_once('/') else {
        return;
    };
    let mut parts = tag.split('-');
    let kind = parts.next();
    let Some(number) = parts.next().and_then(|number| number.parse().ok()) else {
        return;
    };
    let (visible, hidden) = seen.entry(number).or_default();
    match kind {
        Some("visible") => *visible += 1,
        Some("hidden") => *hidden += 1,
        _ => {}
    }
}

/// nginx as a reverse proxy, and the upstream behind it that keeps the paths of what it is asked.
struct Nginx {
    dir: TempDir,
    child: Child,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Nginx {
    async fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let recorder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let upstream = recorder.local_addr().expect("a bound listener");
        let asked = Arc::default();
        tokio::spawn(record(recorder, Arc::clone(&asked)));
        let at = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\n\
             http {{\n  access_log off;\n  client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             \x20 fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             \x20 server {{ listen unix:{at}/socket; location / {{ proxy_pass http://{upstream}; }} }}\n}}\n"
        );
        let child = nginx(dir.path(), &config);
        let nginx = Self { dir, child, asked };
        let socket = nginx.socket();
        until("nginx listens", async || {
            UnixStream::connect(&socket).await.is_ok()
        })
        .await;
        nginx
    }

    fn socket(&self) -> PathBuf {
        Path::new(self.dir.path()).join("socket")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

/// Answers every message with nothing. nginx sends one a connection.
async fn record(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let asked = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            let mut piece = [0; 4096];
            while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => bytes.extend(&piece[..read]),
                }
            }
            let head = String::from_utf8_lossy(&bytes).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            asked.lock().expect("no panic").push(path);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _gone = stream.write_all(answer).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p23_the_upstream_never_sees_more_messages_than_the_client_sent() {
    let streams = std::env::var("ECR_PROXY_TEST_STREAMS").ok();
    let streams = streams.map_or(400, |count| count.parse().expect("a number"));
    let simulator = Simulator::builder().start().await.expect("a simulator");
    simulator.create_repository(REPOSITORY);
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .users(&user_line("client", "password"))
        .rule("users = [\"*\"]\nactions = [\"pull\", \"push\", \"delete\"]")
        .set("cache.absent_ttl", "0s")
        .start();
    let nginx = Nginx::start().await;
    let login = basic("client", "password");
    let mut dice = Dice(fastrand::Rng::with_seed(23));
    let all: Vec<Sent> = (0..streams)
        .map(|number| stream(&mut dice, number, &login))
        .collect();
    for several in all.chunks(16) {
        let each = several.iter().map(async |sent| {
            send_both(&proxy, &nginx, &sent.bytes).await;
        });
        futures_util::future::join_all(each).await;
    }
    let seen = || {
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        // What is asked for twice on the way was sent once.
        let entries = simulator.journal().snapshot();
        let registry = entries.iter().filter(|e| e.listener == Listener::Registry);
        let paths: BTreeSet<&str> = registry.map(|entry| &*entry.path).collect();
        for path in paths {
            told(path, &mut ours);
        }
        for path in nginx.asked.lock().expect("no panic").iter() {
            told(path, &mut theirs);
        }
        (ours, theirs)
    };
    // One that is not hidden at all shows that it would be noticed.
    until("what is not hidden is seen", async || {
        send_both(&proxy, &nginx, hidden(streams, &login).as_bytes()).await;
        let (ours, theirs) = seen();
        [ours, theirs]
            .iter()
            .all(|seen| seen.contains_key(&streams))
    })
    .await;
    let (mut ours, mut theirs) = seen();
    for seen in [&mut ours, &mut theirs] {
        seen.remove(&streams);
    }
    let sum = |seen: &BTreeMap<usize, (usize, usize)>| {
        let counts = seen.values();
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    println!(
        "of {streams} streams upstream saw, visible and hidden: {:?} by us, {:?} by nginx",
        sum(&ours),
        sum(&theirs)
    );
    // Enough of it is good enough to come through.
    assert!(sum(&ours).0 > streams / 10, "{:?}", sum(&ours));
    assert!(sum(&theirs).0 > streams / 10, "{:?}", sum(&theirs));
    for (number, (visible, hidden)) in &ours {
        let sent = &all[*number];
        let text = String::from_utf8_lossy(&sent.bytes);
        assert_eq!(
            *hidden, 0,
            "upstream saw what was hidden in a body:\n{text}"
        );
        assert!(
            *visible <= sent.messages,
            "upstream saw {visible} messages:\n{text}"
        );
    }
}
