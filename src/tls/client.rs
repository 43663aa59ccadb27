//! The other side of a handshake: a client that trusts one CA and nothing else.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connects as a client would that was told to trust the CA `ca_pem`, and checks that the certificate
/// shown is valid for `name`.
///
/// # Errors
/// The PEM or the name is malformed, or the handshake failed: the certificate was not good among other
/// reasons.
///
/// # Cancel safety
/// Leaving closes the connection.
pub async fn connect(
    stream: TcpStream,
    ca_pem: &str,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let invalid = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
    };
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| invalid(&error))?;
    roots.add(ca).map_err(|error| invalid(&error))?;
    let config = ClientConfig::builder_with_provider(Arc::new(super::provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|error| invalid(&error))?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}
