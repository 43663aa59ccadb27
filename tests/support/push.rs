//! Pushes by raw requests: a simulated ECR, the proxy in front of it with users who may push, and the steps
//! that clients take.

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Listener, Simulator};

use super::proxy::Builder;
use super::store::digest;
use super::users::{login, user_line};
use super::{Answer, Client, Proxy};

/// Everybody's password.
pub const PASSWORD: &str = "open-sesame";
/// Where everybody may push to.
pub const APP: &str = "team/app";
/// Where `push` may do nothing.
pub const OTHER: &str = "team/other";

/// `ann` and `bob` may do everything below `team`, `push` may push to [`APP`] and no more.
pub fn users(proxy: Builder) -> Builder {
    let lines = ["ann", "bob", "push"].map(|name| user_line(name, PASSWORD));
    proxy
        .users(&lines.concat())
        .rule("users = ['ann', 'bob']\nrepositories = ['team/**']\nactions = ['pull', 'push', 'delete']")
        .rule("users = ['push']\nrepositories = ['team/app']\nactions = ['push']")
}

/// ECR, and the proxy in front of it for [`users`].
pub struct Rig {
    /// The upstream.
    pub ecr: Simulator,
    /// The proxy.
    pub proxy: Proxy,
}

impl Rig {
    /// Nothing is out of the ordinary.
    pub async fn start() -> Self {
        Self::with(|proxy| proxy).await
    }

    /// A proxy that is configured otherwise.
    pub async fn with(set: impl FnOnce(Builder) -> Builder) -> Self {
        let ecr = Simulator::builder().start().await.expect("a simulator");
        ecr.create_repository(APP);
        ecr.create_repository(OTHER);
        let proxy = Proxy::builder()
            .simulator(&ecr)
            .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY);
        let proxy = set(users(proxy)).start();
        Self { ecr, proxy }
    }

    /// A client of the user with this name.
    pub fn user(&self, name: &str) -> Client {
        login(self.proxy.client(), name, PASSWORD)
    }

    /// How often the registry was asked with this method and a path that contains this.
    pub fn asked(&self, method: &str, part: &str) -> usize {
        self.ecr.journal().count(|entry| {
            entry.listener == Listener::Registry
                && entry.method == method
                && entry.path.contains(part)
        })
    }
}

/// Sends a request with a body of a known length, or in chunks of at most 64 KiB.
pub async fn send(
    client: &Client,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    is_chunked: bool,
) -> Answer {
    let length = body.len().to_string();
    let framing = match is_chunked {
        true => ("transfer-encoding", "chunked"),
        false => ("content-length", length.as_str()),
    };
    let all: Vec<_> = headers.iter().copied().chain([framing]).collect();
    let mut connection = client.start(method, target, &all).await;
    if is_chunked {
        let mut text = Vec::new();
        for piece in body.chunks(64 * 1024) {
            text.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            text.extend_from_slice(piece);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        connection.send(text).await.expect("send");
    } else {
        connection.send(body).await.expect("send");
    }
    connection.answer(method).await.expect("an answer")
}

/// PUT of a body of a known length.
pub async fn put(client: &Client, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(client, "PUT", target, headers, body, false).await
}

/// Begins an upload and returns where it goes on.
pub async fn begin(client: &Client, repository: &str) -> String {
    let answer = client
        .ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[])
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    location(&answer)
}

/// Where an answer leads, which is a path of the proxy's own.
pub fn location(answer: &Answer) -> String {
    let location = answer.header("location").expect("a Location");
    assert!(location.starts_with("/v2/team/"), "{location}");
    location.to_owned()
}

/// Bytes that do not compress; the length tells which.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

/// The media type of [`manifest`].
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Pushes an empty config, a layer and their [`manifest`]; the answer to the last, and its digest.
pub async fn push_image(
    client: &Client,
    repository: &str,
    tag: &str,
    layer: &[u8],
) -> (Answer, String) {
    for blob in [b"{}".as_slice(), layer] {
        let place = begin(client, repository).await;
        let done = put(
            client,
            &format!("{place}?digest={}", digest(blob)),
            &[],
            blob,
        )
        .await;
        assert_eq!(done.status, 201, "{}", done.text());
    }
    let manifest = manifest(layer);
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = put(
        client,
        &path,
        &[("content-type", MANIFEST)],
        manifest.as_bytes(),
    )
    .await;
    (answer, digest(manifest.as_bytes()))
}

/// A manifest of an empty config and one layer.
pub fn manifest(layer: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        digest(b"{}"),
        digest(layer),
        layer.len()
    )
}
