//! Debian's pebble: an ACME directory for tests, with a name server that answers 127.0.0.1 for any name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener as TokioListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use toml::{Table, Value as Toml};

use super::{Client, DOMAIN, Pki, program, within};

/// The kernel gives these to nobody that asks for any port, so what is free stays free until it is used.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A port of 127.0.0.1 that nobody uses.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests run as several processes.
    let start = u16::try_from(std::process::id() % 9973).expect("a small number");
    loop {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(7));
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}

/// A name of the directory's that nobody can look up.
pub const FAR: &str = "acme.upstream.test";

/// Where a directory will be, and what it will find.
pub struct Plan {
    /// The accounts that it knows, each with its key; any where there is none.
    pub known: Vec<(&'static str, &'static str)>,
    pki: Pki,
    directory: u16,
    management: u16,
    names: [u16; 2],
}

/// A running directory; killed when dropped.
pub struct Pebble {
    children: Vec<Child>,
}

impl Plan {
    /// A directory that does not run yet.
    pub fn new() -> Self {
        Self {
            known: Vec::new(),
            pki: Pki::new([DOMAIN, FAR, "127.0.0.1"]),
            directory: free_port(),
            management: free_port(),
            names: [free_port(), free_port()],
        }
    }

    /// Its URL.
    pub fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.directory)
    }

    /// Its URL by a name that resolves nowhere, [`FAR`].
    pub fn far_directory(&self) -> String {
        format!("https://{FAR}:{}/dir", self.directory)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.directory).into()
    }

    /// `[tls.acme]` for it.
    pub fn keys(&self, further: &[(&str, &str)]) -> Table {
        let (directory, ca) = (self.directory(), self.ca());
        let keys = [
            ("directory", directory.as_str()),
            ("email", "ops@mydomain.test"),
            ("ca", ca.to_str().expect("a UTF-8 path")),
        ];
        let keys = keys.iter().chain(further);
        keys.map(|(key, value)| ((*key).to_owned(), Toml::from(*value)))
            .collect()
    }

    /// The CA of its own certificate, which has nothing to do with what it issues.
    pub fn ca(&self) -> PathBuf {
        self.pki.ca()
    }

    /// Starts it and waits until it listens. It looks for proofs at these ports of 127.0.0.1, and what it
    /// issues is good for as long.
    pub fn start(&self, tls_port: u16, http_port: u16, validity: Duration) -> Pebble {
        let [names, manager] = self.names.map(|port| format!("127.0.0.1:{port}"));
        let mut server = Command::new(program("pebble-challtestsrv"));
        server.args(["-dns01", &names, "-management", &manager]);
        server.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        server.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.directory),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": self.pki.certificate(),
            "privateKey": self.pki.key(),
            "httpPort": http_port,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !self.known.is_empty(),
            "externalAccountMACKeys": self.known.iter().copied().collect::<BTreeMap<_, _>>(),
            "certificateValidityPeriod": validity.as_secs(),
        }});
        let file = self.pki.dir().join("pebble.json");
        fs::write(&file, config.to_string()).expect("the directory is writable");
        let mut directory = Command::new(program("pebble"));
        directory.arg("-config").arg(&file);
        directory.args(["-dnsserver", &names]);
        directory.env("PEBBLE_VA_NOSLEEP", "1");
        Pebble {
            children: vec![
                started(server, "Starting management server"),
                started(directory, "ACME directory available"),
            ],
        }
    }

    /// Instead of a directory, one that is asked and answers nothing.
    pub async fn hang(&self) -> TokioListener {
        let listener = TokioListener::bind((Ipv4Addr::LOCALHOST, self.directory)).await;
        listener.expect("a free port")
    }

    /// Instead of a directory, one that answers every request with `rateLimited` and this `Retry-After`; how
    /// often it was asked.
    pub async fn limit_rates(&self, retry_after: &str) -> Arc<AtomicUsize> {
        let listener = TokioListener::bind((Ipv4Addr::LOCALHOST, self.directory)).await;
        let listener = listener.expect("a free port");
        let acceptor = TlsAcceptor::from(self.pki.server_config());
        let body =
            r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders"}"#;
        let answer = format!(
            "HTTP/1.1 429 Too Many Requests\r\nretry-after: {retry_after}\r\n\
             content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                count.fetch_add(1, Ordering::SeqCst);
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok() {
                    let _gone = stream.write_all(answer.as_bytes()).await;
                    let _gone = stream.shutdown().await;
                }
            }
        });
        asked
    }

    /// The root of what it issues, as a file; another one each time it starts.
    pub async fn root(&self) -> PathBuf {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.management));
        // It listens a moment after the directory does.
        within("pebble's other listener", async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let answer = Client::tls(address, &self.pki.ca()).get("/roots/0").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let file = self.pki.dir().join("issued-by.pem");
        fs::write(&file, answer.body).expect("the directory is writable");
        file
    }
}

/// Starts a program and waits until it has said so.
fn started(mut command: Command, ready: &str) -> Child {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it was found");
    let mut said = BufReader::new(child.stdout.take().expect("asked for a pipe")).lines();
    let told = said
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains(ready));
    assert!(told, "{command:?} ended at start");
    std::thread::spawn(move || said.map_while(Result::ok).for_each(drop));
    child
}

impl Pebble {
    /// It answers nobody until it is let go on.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// It answers again, also what it was asked meanwhile.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        for child in &self.children {
            kill_process(Pid::from_child(child), signal).expect("it runs");
        }
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _already_ended = child.kill();
            let _already_waited = child.wait();
        }
    }
}
