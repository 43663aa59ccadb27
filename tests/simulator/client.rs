//! A client made of raw sockets, which sees what a polite one would hide.

use std::io;
use std::net::SocketAddr;

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Simulator};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) end: io::Result<()>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().into()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["errors"][0]["message"].as_str().unwrap().into()
    }
}

pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all).await.map(drop);
    let split = all.windows(4).position(|w| w == b"\r\n\r\n");
    let (head, body) = match split {
        Some(at) => (&all[..at], all[at + 4..].to_vec()),
        None => (&all[..], Vec::new()),
    };
    let head = String::from_utf8(head.to_vec()).unwrap();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Answer {
        status: status.unwrap_or(0),
        head,
        body,
        end,
    }
}

/// A client of one simulator that speaks as `access_key`.
pub(crate) struct Client {
    pub(crate) simulator: Simulator,
    pub(crate) credential: String,
}

impl Client {
    pub(crate) fn new(simulator: &Simulator, access_key: &str) -> Self {
        let token = simulator.token(access_key).unwrap();
        Self {
            simulator: simulator.clone(),
            credential: token.authorization_token,
        }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let host = self.simulator.registry_host();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Authorization: Basic {}\r\nContent-Length: {}\r\n{headers}\r\n",
            self.credential,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(self.simulator.address(Listener::Registry), &request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"").await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, "", b"").await
    }

    /// The path and query on storage of a blob.
    pub(crate) async fn signed(&self, repository: &str, digest: &str) -> String {
        let answer = self.get(&format!("/v2/{repository}/blobs/{digest}")).await;
        assert_eq!(answer.status, 307, "{answer:?}");
        let location = answer.header("location").unwrap();
        let origin = self.simulator.storage_endpoint();
        location.strip_prefix(&origin).unwrap().to_owned()
    }
}

pub(crate) async fn storage(
    simulator: &Simulator,
    method: &str,
    path: &str,
    headers: &str,
) -> Answer {
    let address = simulator.address(Listener::Storage);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: s3\r\nConnection: close\r\n{headers}\r\n");
    exchange(address, request.as_bytes()).await
}

pub(crate) async fn api(
    simulator: &Simulator,
    key: &str,
    operation: &str,
    input: &Value,
) -> Answer {
    let body = input.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: api.ecr\r\nConnection: close\r\n\
         Content-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.{operation}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/us-west-2/ecr/aws4_request, \
         SignedHeaders=host, Signature=00\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(simulator.address(Listener::Api), request.as_bytes()).await
}

pub(crate) async fn start() -> Simulator {
    Simulator::builder().start().await.unwrap()
}

pub(crate) async fn start_with_blob(content: &'static str) -> (Simulator, Client, String) {
    let simulator = start().await;
    let digest = simulator.put_blob("app", content);
    let client = Client::new(&simulator, FULL_ACCESS_KEY);
    (simulator, client, digest)
}
