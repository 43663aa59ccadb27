//! A certificate with its key, read from PEM files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;
use crate::files;

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
    pub(super) certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    has_issuer: bool,
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
    pub(super) fn from_pem(
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
        let has_issuer = chain
            .get(1)
            .and_then(|next| Facts::of(next))
            .is_some_and(|next| next.subject == facts.issuer);
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
            has_issuer,
        })
    }

    /// Whether the certificate of its issuer follows in the chain.
    pub(super) fn has_issuer(&self) -> bool {
        self.has_issuer
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
        self.match_of(name).is_some()
    }

    /// How well the certificate fits `name`, if it does.
    pub(super) fn match_of(&self, name: &str) -> Option<Match> {
        let name = name.to_ascii_lowercase();
        let matches = self.names.iter().filter_map(|pattern| {
            let Some(parent) = pattern.strip_prefix("*.") else {
                return (*pattern == name).then_some(Match::Exact);
            };
            let (label, rest) = name.split_once('.')?;
            (!label.is_empty() && rest == parent).then_some(Match::Wildcard)
        });
        matches.max()
    }
}

/// How a certificate fits a name, the better one greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    /// By a `*`.
    Wildcard,
    /// By the name itself.
    Exact,
}

/// By the chains: a certificate belongs to one key only.
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

impl Eq for Pair {}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read(path).map_err(|source| TlsError::Read {
        path: path.into(),
        source,
    })
}

pub(super) fn pem_fault(path: &Path, what: PemFault) -> TlsError {
    TlsError::Pem {
        path: path.into(),
        what,
    }
}

/// What we want to know of a certificate.
pub(super) struct Facts {
    names: Vec<String>,
    /// Who it is about and who issued it, as distinguished names in DER.
    subject: Vec<u8>,
    issuer: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Facts {
    pub(super) fn of(der: &[u8]) -> Option<Self> {
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
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
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

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    pub(in crate::tls) fn at_day(days: i64) -> SystemTime {
        at(days * 24 * 60 * 60)
    }

    pub(in crate::tls) fn pem_pair_between(
        names: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        pem_pair_of(&key, names, not_before, not_after)
    }

    fn pem_pair_of(
        key: &KeyPair,
        names: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let certificate = params.self_signed(key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn pem_pair(names: &[&str]) -> (String, String) {
        pem_pair_between(names, at(1_577_836_800), at(2_208_988_800))
    }

    fn load(cert: &str, key: &str) -> Result<Pair, TlsError> {
        let (cert_path, key_path) = (Path::new("tls.crt"), Path::new("tls.key"));
        Pair::from_pem(cert.as_bytes(), cert_path, key.as_bytes(), key_path)
    }

    pub(in crate::tls) fn pair(names: &[&str]) -> Pair {
        let (cert, key) = pem_pair(names);
        load(&cert, &key).expect("a pair")
    }

    pub(in crate::tls) fn rsa_pair(names: &[&str]) -> Pair {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
        let (from, until) = (at_day(10_000), at_day(30_000));
        let (cert, key) = pem_pair_of(&key.expect("a key"), names, from, until);
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
}
