//! Client certificates: whose are taken, and which user each stands for.
//!
//! A client need not show one. One that no CA of ours signed, or that is outside its dates, fails the
//! handshake.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pair::{Facts, PemFault, TlsError, pem_fault, read};
use super::provider;

/// Which of a certificate's names is the user. Of several of a kind it is the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientUser {
    /// `cn`: the common name of the subject.
    #[default]
    CommonName,
    /// `san-dns`: the DNS name among the alternative names.
    SanDns,
    /// `san-uri`: the URI among the alternative names, such as a SPIFFE id.
    SanUri,
}

/// A text is none of the kinds of names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of \"cn\", \"san-dns\" and \"san-uri\"")]
pub struct ParseClientUserError(String);

impl FromStr for ClientUser {
    type Err = ParseClientUserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cn" => Ok(Self::CommonName),
            "san-dns" => Ok(Self::SanDns),
            "san-uri" => Ok(Self::SanUri),
            _ => Err(ParseClientUserError(text.to_owned())),
        }
    }
}

impl fmt::Display for ClientUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommonName => "cn",
            Self::SanDns => "san-dns",
            Self::SanUri => "san-uri",
        })
    }
}

impl ClientUser {
    /// The user that a certificate stands for and the end of its validity; no user if it has no such
    /// name. `None` if the certificate cannot be understood.
    pub fn of(self, certificate: &CertificateDer<'_>) -> Option<(Option<String>, SystemTime)> {
        let until = Facts::of(certificate)?.not_after;
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let alternatives = certificate.subject_alternative_name().ok()?;
        let mut alternatives = alternatives
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default()
            .iter();
        let user = match self {
            Self::CommonName => {
                let mut names = certificate.subject().iter_common_name();
                names.next().and_then(|name| name.as_str().ok())
            }
            Self::SanDns => alternatives.find_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            }),
            Self::SanUri => alternatives.find_map(|name| match name {
                GeneralName::URI(name) => Some(*name),
                _ => None,
            }),
        };
        Some((user.map(str::to_owned), until))
    }
}

/// Whose client certificates are taken. Equal to another that has the same CAs in the same order.
#[derive(Clone, Debug)]
pub struct ClientCa {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    cas: Vec<CertificateDer<'static>>,
}

impl PartialEq for ClientCa {
    fn eq(&self, other: &Self) -> bool {
        self.cas == other.cas
    }
}

impl Eq for ClientCa {}

impl ClientCa {
    /// Reads the CAs of a PEM file.
    ///
    /// # Errors
    /// It cannot be read, is broken, or holds no CA that can be used.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let pem = read(path)?;
        let mut roots = RootCertStore::empty();
        let mut cas = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| pem_fault(path, PemFault::Broken))?;
            let unusable = |_| TlsError::Certificate { path: path.into() };
            roots.add(certificate.clone()).map_err(unusable)?;
            cas.push(certificate);
        }
        if roots.is_empty() {
            return Err(pem_fault(path, PemFault::NoCertificate));
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
                .allow_unauthenticated()
                .build()
                .map_err(|_| TlsError::Certificate { path: path.into() })?;
        Ok(Self { verifier, cas })
    }

    /// Whether a handshake at that time would take what a client showed in an earlier one.
    pub fn would_take(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let (Some((own, others)), Ok(now)) = (chain.split_first(), now) else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(now);
        self.verifier.verify_client_cert(own, others, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(
        common_name: Option<&str>,
        alternatives: Vec<SanType>,
    ) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            parameters.distinguished_name.push(DnType::CommonName, name);
        }
        parameters.subject_alt_names = alternatives;
        let key = KeyPair::generate().expect("key");
        parameters.self_signed(&key).expect("certificate").into()
    }

    #[test]
    fn each_kind_of_name_is_looked_for_where_it_is() {
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
        let uri = |name: &str| SanType::URI(name.try_into().expect("a name"));
        let names = vec![
            uri("spiffe://td/node"),
            dns("node.example"),
            dns("other.example"),
        ];
        let full = certificate(Some("node 7"), names);
        let bare = certificate(None, Vec::new());
        for (kind, name) in [
            (ClientUser::CommonName, "node 7"),
            (ClientUser::SanDns, "node.example"),
            (ClientUser::SanUri, "spiffe://td/node"),
        ] {
            let (user, until) = kind.of(&full).expect("a certificate");
            assert_eq!(user.as_deref(), Some(name));
            assert!(until > SystemTime::now());
            assert_eq!(kind.of(&bare).expect("a certificate").0, None, "{kind}");
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(
            ClientUser::CommonName.of(&b"no certificate"[..].into()),
            None
        );
        assert!("CN".parse::<ClientUser>().is_err());
    }

    #[test]
    fn a_file_without_a_ca_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("clients.pem");
        let error = ClientCa::load(&path).expect_err("absent").to_string();
        assert!(error.contains("clients.pem"), "{error}");
        for text in [
            "",
            "not PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, text).expect("file");
            let error = ClientCa::load(&path).expect_err(text).to_string();
            assert!(error.contains("clients.pem"), "{error}");
        }
    }
}
