//! The least that answering over TLS costs with what the proxy is built of: hyper and rustls, one answer of
//! fixed bytes, and nothing that looks at the request, decides, counts or logs.

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Set in the environment of the process that is this server: where it listens.
const LISTEN: &str = "FIGURES_FLOOR";
/// Its certificate, its key, and what it answers.
const FILES: [&str; 3] = ["FIGURES_CERT", "FIGURES_KEY", "FIGURES_ANSWER"];

/// Has `command`, which starts this program, be the server at `listen`.
pub fn configure(command: &mut Command, listen: SocketAddr, files: [PathBuf; 3]) {
    command.env(LISTEN, listen.to_string());
    for (name, file) in FILES.iter().zip(files) {
        command.env(name, file);
    }
}

/// Where this process is to be the server.
pub fn listen() -> Option<SocketAddr> {
    let listen = std::env::var(LISTEN).ok()?;
    Some(listen.parse().expect("an address"))
}

/// Answers until it is killed.
pub fn serve(listen: SocketAddr) {
    let [cert, key, answer] =
        FILES.map(|name| PathBuf::from(std::env::var_os(name).unwrap_or_else(OsString::new)));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert)
        .expect("a certificate")
        .collect();
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider's versions")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let answer = Bytes::from(std::fs::read(answer).expect("an answer"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.expect("a free port");
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            socket.set_nodelay(true).expect("a TCP socket");
            tokio::spawn(connection(socket, acceptor.clone(), answer.clone()));
        }
    });
}

async fn connection(socket: tokio::net::TcpStream, acceptor: TlsAcceptor, answer: Bytes) {
    // Who only looks whether somebody listens sends nothing.
    let Ok(stream) = acceptor.accept(socket).await else {
        return;
    };
    let service = service_fn(async |_| {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let response = Response::builder().header(header::CONTENT_TYPE, media_type);
        let response = response.body(Full::new(answer.clone()));
        Ok::<_, Infallible>(response.expect("an answer"))
    });
    // It ends when the client leaves.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
