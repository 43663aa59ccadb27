//! Certificates and the TLS we speak with them.
//!
//! Invariant: a [`Pair`] exists only where key and certificate belong together, so a handshake
//! never meets a pair that cannot work. A set of pairs is swapped whole: no handshake sees half of
//! an old and half of a new one. Knows nothing of sockets.
//!
//! | file | is |
//! | --- | --- |
//! | `pair.rs` | a certificate with its key, read from PEM |
//! | `certificates.rs` | the pairs in use, and which of them a client is shown |
//! | `files.rs` | the operator's pairs, and which of their renewals are taken over |
//! | `acme/` | certificates from a directory of RFC 8555 |
//! | `challenges.rs` | what such a directory is shown as proof that a name is ours |
//! | `local_ca.rs` | a certificate authority of our own |
//! | `private_files.rs` | files that only their owner may read |
//! | `standing.rs` | whether a certificate is within its dates |
//! | `metrics.rs` | when the certificates in use end |
//! | `clients.rs` | client certificates: whose are taken, and which user each stands for |
//! | `client.rs` | the other side of a handshake |

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{CipherSuite, ServerConfig, SupportedCipherSuite};

mod acme;
mod certificates;
mod challenges;
mod client;
mod clients;
mod files;
mod local_ca;
mod metrics;
mod pair;
mod private_files;
mod standing;

use self::challenges::ACME_TLS;

pub use self::acme::{Acme, AcmeError, AcmeOptions, ExternalBinding, Proof};
pub use self::certificates::Certificates;
pub use self::challenges::Challenges;
pub use self::client::connect;
pub use self::clients::{ClientCa, ClientUser, ParseClientUserError};
pub use self::files::{OwnFiles, PairFiles, RenewalError};
pub use self::local_ca::{LocalCa, LocalCaError};
pub use self::metrics::CertificateMetrics;
pub use self::pair::{Pair, PemFault, TlsError};
pub use self::private_files::PrivateFileError;
pub use self::standing::Standing;

/// How we speak TLS: 1.2 and 1.3, `http/1.1` before `h2`, sessions resumed by stateless tickets. Clients
/// that have a certificate of `client_ca` may show it.
///
/// # Errors
/// Only where the cryptographic library refuses its own defaults or has no randomness.
pub fn server_config(
    certificates: &Certificates,
    client_ca: Option<&ClientCa>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(Arc::clone(&ca.verifier)),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates.clone()));
    // HTTP/1.1 costs less per byte than h2, and Docker and containerd speak nothing else anyway.
    // The last one gets a handshake only where an ACME directory has one coming.
    config.alpn_protocols = [&b"http/1.1"[..], b"h2", ACME_TLS]
        .map(<[u8]>::to_vec)
        .to_vec();
    // Sealing is the larger part of a hit, and AES-128-GCM is the cheapest seal with hardware AES.
    config.ignore_client_order = has_hardware_aes();
    // Tickets keep no state per client, which a session cache does.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Config)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The cryptographic library, its suites sorted by what they cost where AES is in hardware.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(rank);
    provider
}

fn rank(suite: &SupportedCipherSuite) -> u8 {
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 3,
        _ => 4,
    }
}

#[cfg(target_arch = "x86_64")]
fn has_hardware_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_hardware_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_hardware_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::pair::tests::pair;
    use super::*;

    #[test]
    fn the_cheapest_suite_comes_first_and_http_1_before_h2() {
        let config = server_config(&Certificates::new(vec![pair(&["a.test"])]), None);
        let config = config.expect("a config");
        let first = config.crypto_provider().cipher_suites[0].suite();
        assert_eq!(first, CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(config.alpn_protocols[0], b"http/1.1");
        assert!(config.ticketer.enabled());
    }
}
