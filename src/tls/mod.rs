//! Certificates and the TLS we speak with them.
//!
//! Invariant: a [`Pair`] exists only where key and certificate belong together, so a handshake
//! never meets a pair that cannot work. A set of pairs is swapped whole: no handshake sees half of
//! an old and half of a new one. Knows nothing of sockets.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SupportedCipherSuite};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

mod client;
mod local_ca;
mod standing;

pub use self::client::connect;
pub use self::local_ca::{LocalCa, LocalCaError};
pub use self::standing::Standing;

/// Why a certificate cannot be used. Every variant names the file it is about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not PEM, or not of this kind.
    #[error("{}: {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: PemFault,
    },
    /// The certificate cannot be understood.
    #[error("{}: the certificate cannot be understood", path.display())]
    Certificate {
        /// The certificate file.
        path: PathBuf,
    },
    /// The key is of a kind that cannot sign handshakes.
    #[error("{}: the key cannot be used", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why; holds no key material.
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The TLS settings themselves are impossible.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
}

/// What is wrong with a PEM file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PemFault {
    /// It holds no certificate.
    NoCertificate,
    /// It holds no private key.
    NoKey,
    /// Its PEM is broken.
    Broken,
}

impl fmt::Display for PemFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "holds no certificate in PEM form",
            Self::NoKey => "holds no private key in PEM form",
            Self::Broken => "the PEM is broken",
        })
    }
}

/// A certificate chain with its key, known to belong together.
#[derive(Clone)]
pub struct Pair {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Pair {
    /// Reads a PEM chain, leaf first, and its key.
    ///
    /// # Errors
    /// Where a file is missing or broken, or the two do not belong together. A certificate outside
    /// its dates is no error: it is better than none, and [`Pair::not_after`] tells.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain_pem = read(cert)?;
        let key_pem = read(key)?;
        Self::from_pem(&chain_pem, cert, &key_pem, key)
    }

    /// As [`Pair::load`], from what has been read; the paths are for messages.
    fn from_pem(
        chain_pem: &[u8],
        cert: &Path,
        key_pem: &[u8],
        key: &Path,
    ) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<_, _>>()
            .map_err(|_| pem_fault(cert, PemFault::Broken))?;
        let leaf = chain
            .first()
            .ok_or_else(|| pem_fault(cert, PemFault::NoCertificate))?;
        let facts = Facts::of(leaf).ok_or_else(|| TlsError::Certificate { path: cert.into() })?;
        // The parser's own error may quote the file: only its kind is told.
        let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
            pem::Error::NoItemsFound => pem_fault(key, PemFault::NoKey),
            _ => pem_fault(key, PemFault::Broken),
        })?;
        let signing = provider()
            .key_provider
            .load_private_key(private)
            .map_err(|source| TlsError::Key {
                path: key.into(),
                source,
            })?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| TlsError::KeyMismatch {
            cert: cert.into(),
            key: key.into(),
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            names: facts.names,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }

    /// The DNS names the certificate is for, in lower case; the first label may be `*`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Start of the certificate's validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the certificate's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate is valid for `name`; a wildcard stands for exactly one label.
    pub fn covers(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.names
            .iter()
            .any(|pattern| match pattern.strip_prefix("*.") {
                Some(parent) => name
                    .split_once('.')
                    .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
                None => *pattern == name,
            })
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.into(),
        source,
    })
}

fn pem_fault(path: &Path, what: PemFault) -> TlsError {
    TlsError::Pem {
        path: path.into(),
        what,
    }
}

/// What we want to know of a certificate.
struct Facts {
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Facts {
    fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate
            .subject_alternative_name()
            .ok()?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default()
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                GeneralName::IPAddress(octets) => address_of(octets),
                _ => None,
            })
            .collect();
        let validity = certificate.validity();
        Some(Self {
            names,
            not_before: at(validity.not_before.timestamp()),
            not_after: at(validity.not_after.timestamp()),
        })
    }
}

fn address_of(octets: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(octets).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

fn at(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = match unix_seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(distance),
        ..0 => SystemTime::UNIX_EPOCH.checked_sub(distance),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The pairs in use. A clone shares them, so replacing them reaches every listener.
#[derive(Clone, Debug)]
pub struct Certificates {
    pairs: Arc<ArcSwap<Vec<Pair>>>,
}

impl Certificates {
    /// A set of pairs; the first is shown to clients that name no host, or one we do not know. With
    /// none at all every handshake fails.
    pub fn new(pairs: Vec<Pair>) -> Self {
        Self {
            pairs: Arc::new(ArcSwap::from_pointee(pairs)),
        }
    }

    /// Puts other pairs in their place for all handshakes to come.
    pub fn replace(&self, pairs: Vec<Pair>) {
        self.pairs.store(Arc::new(pairs));
    }

    /// The pairs in use.
    pub fn pairs(&self) -> Arc<Vec<Pair>> {
        self.pairs.load_full()
    }

    /// When the first of the certificates in use expires.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.pairs.load().iter().map(Pair::not_after).min()
    }

    fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let pairs = self.pairs.load();
        let named = server_name.and_then(|name| pairs.iter().find(|pair| pair.covers(name)));
        let pair = named.or_else(|| pairs.first())?;
        Some(Arc::clone(&pair.certified))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// How we speak TLS: 1.2 and 1.3, `http/1.1` before `h2`, sessions resumed by stateless tickets.
///
/// # Errors
/// Only where the cryptographic library refuses its own defaults or has no randomness.
pub fn server_config(certificates: &Certificates) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates.clone()));
    // HTTP/1.1 costs less per byte than h2, and Docker and containerd speak nothing else anyway.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
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
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pem_pair(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn load(cert: &str, key: &str) -> Result<Pair, TlsError> {
        let (cert_path, key_path) = (Path::new("tls.crt"), Path::new("tls.key"));
        Pair::from_pem(cert.as_bytes(), cert_path, key.as_bytes(), key_path)
    }

    fn pair(names: &[&str]) -> Pair {
        let (cert, key) = pem_pair(names);
        load(&cert, &key).expect("a pair")
    }

    #[test]
    fn a_pair_knows_its_names_and_dates() {
        let pair = pair(&["Registry.mydomain.test", "*.apps.test", "127.0.0.1", "::1"]);
        assert_eq!(
            pair.names(),
            ["registry.mydomain.test", "*.apps.test", "127.0.0.1", "::1"]
        );
        assert_eq!(pair.not_before(), at(1_577_836_800));
        assert_eq!(pair.not_after(), at(2_208_988_800));
        assert!(pair.covers("REGISTRY.mydomain.test"));
        assert!(pair.covers("a.apps.test"));
        assert!(!pair.covers("a.b.apps.test") && !pair.covers("apps.test"));
        assert!(!pair.covers(".apps.test"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_by_name() {
        let (cert, _) = pem_pair(&["a.test"]);
        let (_, key) = pem_pair(&["a.test"]);
        let error = load(&cert, &key).expect_err("keys differ");
        assert!(matches!(error, TlsError::KeyMismatch { .. }));
        assert_eq!(
            error.to_string(),
            "the key in tls.key does not belong to the certificate in tls.crt"
        );
    }

    #[test]
    fn broken_files_are_told_apart_and_named() {
        let (cert, key) = pem_pair(&["a.test"]);
        let message = |cert: &str, key: &str| load(cert, key).expect_err("broken").to_string();
        assert_eq!(
            message("", &key),
            "tls.crt: holds no certificate in PEM form"
        );
        assert_eq!(
            message(&cert, ""),
            "tls.key: holds no private key in PEM form"
        );
        assert_eq!(
            message(&cert[..cert.len() / 2], &key),
            "tls.crt: the PEM is broken"
        );
        assert_eq!(
            message(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &key
            ),
            "tls.crt: the certificate cannot be understood"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Pair::load(Path::new("/nonexistent/tls.crt"), Path::new("tls.key"))
            .expect_err("no such file");
        assert_eq!(error.to_string(), "cannot read /nonexistent/tls.crt");
    }

    #[test]
    fn nothing_of_the_key_is_printed() {
        let (cert, key) = pem_pair(&["a.test"]);
        let secret = key.lines().nth(1).expect("a line of the key");
        assert!(!format!("{:?}", load(&cert, &key)).contains(secret));
        assert!(!format!("{:?}", load("", &key)).contains(secret));
    }

    #[test]
    fn k03_the_name_chooses_the_pair_and_the_first_stands_in() {
        let (first, second) = (pair(&["a.test"]), pair(&["b.test"]));
        let certificates = Certificates::new(vec![first.clone(), second.clone()]);
        let chosen = |name| certificates.choose(name).expect("a certificate");
        assert!(Arc::ptr_eq(&chosen(Some("b.test")), &second.certified));
        assert!(Arc::ptr_eq(&chosen(Some("c.test")), &first.certified));
        assert!(Arc::ptr_eq(&chosen(None), &first.certified));
        assert!(Certificates::new(Vec::new()).choose(None).is_none());
    }

    #[test]
    fn replacing_reaches_every_clone() {
        let certificates = Certificates::new(vec![pair(&["a.test"])]);
        let clone = certificates.clone();
        let renewed = pair(&["a.test"]);
        certificates.replace(vec![renewed.clone()]);
        let chosen = clone.choose(Some("a.test")).expect("a certificate");
        assert!(Arc::ptr_eq(&chosen, &renewed.certified));
        assert_eq!(clone.not_after(), Some(renewed.not_after()));
    }

    #[test]
    fn the_cheapest_suite_comes_first_and_http_1_before_h2() {
        let config = server_config(&Certificates::new(vec![pair(&["a.test"])])).expect("a config");
        let first = config.crypto_provider().cipher_suites[0].suite();
        assert_eq!(first, CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(config.alpn_protocols[0], b"http/1.1");
        assert!(config.ticketer.enabled());
    }
}
