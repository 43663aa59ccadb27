//! A proxy that makes tunnels (CONNECT), to names that only it knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// See the module. It ends with the test's runtime.
pub struct ConnectProxy {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    hosts: BTreeMap<String, SocketAddr>,
    /// What `Proxy-Authorization` has to be.
    login: Option<String>,
    asked: Mutex<Vec<String>>,
}

impl ConnectProxy {
    /// Listens on loopback, knows these hosts, and wants this `Proxy-Authorization`.
    pub async fn start<'a>(
        hosts: impl IntoIterator<Item = (&'a str, SocketAddr)>,
        login: Option<&str>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let hosts = hosts.into_iter();
        let inner = Arc::new(Inner {
            hosts: hosts.map(|(name, at)| (name.to_owned(), at)).collect(),
            login: login.map(str::to_owned),
            asked: Mutex::default(),
        });
        let serving = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&serving);
                tokio::spawn(async move { inner.serve(stream).await });
            }
        });
        Self { address, inner }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The `host:port` of every CONNECT so far, in order.
    pub fn asked(&self) -> Vec<String> {
        self.inner.asked.lock().expect("no panic").clone()
    }

    /// How often it was asked for this host.
    pub fn asked_for(&self, host: &str) -> usize {
        let asked = self.asked();
        let named = asked.iter().filter_map(|target| target.rsplit_once(':'));
        named.filter(|(name, _)| *name == host).count()
    }
}

impl Inner {
    async fn serve(&self, mut client: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match client.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).expect("text");
        let mut words = head.split(' ');
        let (method, target) = (words.next(), words.next().unwrap_or_default().to_owned());
        let refuse = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        if method != Some("CONNECT") {
            let _ = client
                .write_all(refuse("405 Method Not Allowed").as_bytes())
                .await;
            return;
        }
        self.asked.lock().expect("no panic").push(target.clone());
        let login = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_login = name.eq_ignore_ascii_case("proxy-authorization");
            is_login.then(|| value.to_owned())
        });
        if self.login.is_some() && self.login != login {
            let refusal = refuse("407 Proxy Authentication Required");
            let _ = client.write_all(refusal.as_bytes()).await;
            return;
        }
        let host = target.rsplit_once(':').map_or("", |(host, _)| host);
        let Some(address) = self.hosts.get(host) else {
            let _ = client.write_all(refuse("502 Bad Gateway").as_bytes()).await;
            return;
        };
        let mut server = TcpStream::connect(address).await.expect("a listener");
        let made = b"HTTP/1.1 200 Connection established\r\n\r\n";
        client.write_all(made).await.expect("it listens");
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
