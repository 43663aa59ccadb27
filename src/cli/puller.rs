//! A pull as a client makes it: by name over TLS, each blob checked against its digest.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::oci::header::X_CACHE;
use crate::oci::{Digest, Hasher, Manifest, media_type};
use crate::tls;

/// Pulls images through a proxy.
pub(super) struct Puller {
    pub(super) address: SocketAddr,
    /// The name that the certificate must be valid for.
    pub(super) domain: String,
    /// The CA that is trusted, PEM.
    pub(super) ca_pem: String,
}

/// What a pull brought.
pub(super) struct Pulled {
    pub(super) bytes: u64,
    pub(super) took: Duration,
    /// What was fetched, its size in bytes and what `X-Cache` said of it.
    pub(super) parts: Vec<(&'static str, u64, String)>,
}

/// What went wrong, in words.
type Error = Box<dyn std::error::Error + Send + Sync>;

impl Puller {
    /// Pulls the image `repository:tag`: manifest, config and layers.
    pub(super) async fn pull(&self, repository: &str, tag: &str) -> Result<Pulled, Error> {
        let began = Instant::now();
        let mut client = self.connect().await?;
        let mut parts = Vec::new();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (kind, bytes, outcome) = self.manifest(&mut client, &path).await?;
        parts.push(("manifest", bytes.len() as u64, outcome));
        let manifest = Manifest::parse(&kind, &bytes)?;
        for (index, blob) in manifest.blobs().enumerate() {
            let path = format!("/v2/{repository}/blobs/{}", blob.digest);
            let (size, outcome) = self.blob(&mut client, &path, blob.digest).await?;
            parts.push((if index == 0 { "config" } else { "layer" }, size, outcome));
        }
        let bytes = parts.iter().map(|(_, size, _)| size).sum();
        Ok(Pulled {
            bytes,
            took: began.elapsed(),
            parts,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, Error> {
        let stream = TcpStream::connect(self.address).await?;
        let stream = tls::connect(stream, &self.ca_pem, &self.domain).await?;
        let (client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn ask(
        &self,
        client: &mut SendRequest<Empty<Bytes>>,
        path: &str,
    ) -> Result<(http::response::Parts, hyper::body::Incoming), Error> {
        let request = Request::get(path)
            .header(header::HOST, &self.domain)
            .header(header::ACCEPT, media_type::MANIFESTS.join(", "))
            .body(Empty::new())?;
        client.ready().await?;
        let (head, body) = client.send_request(request).await?.into_parts();
        if head.status.is_success() {
            return Ok((head, body));
        }
        let text = body.collect().await?.to_bytes();
        Err(format!(
            "{path}: {}: {}",
            head.status,
            String::from_utf8_lossy(&text)
        )
        .into())
    }

    async fn manifest(
        &self,
        client: &mut SendRequest<Empty<Bytes>>,
        path: &str,
    ) -> Result<(String, Bytes, String), Error> {
        let (head, body) = self.ask(client, path).await?;
        let bytes = body.collect().await?.to_bytes();
        Ok((
            text(&head, &header::CONTENT_TYPE),
            bytes,
            text(&head, &X_CACHE),
        ))
    }

    async fn blob(
        &self,
        client: &mut SendRequest<Empty<Bytes>>,
        path: &str,
        digest: Digest,
    ) -> Result<(u64, String), Error> {
        let (head, mut body) = self.ask(client, path).await?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                hasher.update(data);
                size += data.len() as u64;
            }
        }
        if hasher.finish() != digest {
            return Err(format!("{path}: the bytes do not hash to the digest").into());
        }
        Ok((size, text(&head, &X_CACHE)))
    }
}

fn text(head: &http::response::Parts, name: &header::HeaderName) -> String {
    let value = head.headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}
