//! A CA and a server certificate made for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use time::OffsetDateTime;

/// A CA, and a certificate of it, as PEM files in a directory that goes with the value.
pub struct Pki {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of a [`Pki`].
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The chain in PEM form.
    pub certificate: String,
    /// Its key in PEM form.
    pub key: String,
    /// What a handshake shows.
    pub der: Vec<u8>,
}

impl Pki {
    /// A CA and a certificate for these names or addresses.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::make(names, None)
    }

    /// As [`Pki::new`], with a certificate that was valid from a year before `end` to it.
    pub fn ending<'a>(names: impl IntoIterator<Item = &'a str>, end: SystemTime) -> Self {
        Self::make(names, Some(end))
    }

    fn make<'a>(names: impl IntoIterator<Item = &'a str>, end: Option<SystemTime>) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name
            .push(DnType::CommonName, "ecr-proxy test CA");
        let ca_key = KeyPair::generate().expect("a key");
        let ca_certificate = ca.self_signed(&ca_key).expect("a CA certificate");
        let pki = Self {
            dir,
            issuer: Issuer::new(ca, ca_key),
        };
        let leaf = pki.issue(names, end);
        fs::write(pki.ca(), ca_certificate.pem()).expect("the directory is writable");
        fs::write(pki.certificate(), leaf.certificate).expect("the directory is writable");
        fs::write(pki.key(), leaf.key).expect("the directory is writable");
        pki
    }

    /// Another certificate with a key of its own, valid from a year before `end` to it where there is one.
    pub fn issue<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        end: Option<SystemTime>,
    ) -> Leaf {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut leaf = CertificateParams::new(names).expect("names for a certificate");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if let Some(end) = end {
            leaf.not_before = OffsetDateTime::from(end - Duration::from_secs(365 * 24 * 60 * 60));
            leaf.not_after = OffsetDateTime::from(end);
        }
        self.sign(&leaf)
    }

    /// A client's certificate with this common name and these alternative names, DNS or `scheme://…`.
    pub fn issue_client(&self, common_name: &str, alternatives: &[&str]) -> Leaf {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name
            .push(DnType::CommonName, common_name);
        let alternatives = alternatives.iter().map(|name| match name.contains("://") {
            true => SanType::URI((*name).try_into().expect("a URI")),
            false => SanType::DnsName((*name).try_into().expect("a DNS name")),
        });
        leaf.subject_alt_names = alternatives.collect();
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&leaf)
    }

    fn sign(&self, leaf: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let certificate = leaf.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }

    /// Where the files are, for more of them.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("tls.crt")
    }

    /// What a server needs to show the certificate.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(self.certificate()).expect("a PEM file");
        let chain = chain.map(|der| der.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_file(self.key()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has these versions")
            .with_no_client_auth();
        Arc::new(builder.with_single_cert(chain, key).expect("a pair"))
    }

    /// The server's key.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("tls.key")
    }
}

/// What a client needs to trust the CA of the PEM file `ca` and no other.
pub fn trusting(ca: &Path, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    trusting_by(ca, alpn, rustls::DEFAULT_VERSIONS)
}

/// The same, for a client that shows a certificate of its own.
pub fn trusting_as(ca: &Path, alpn: &[&[u8]], own: Option<&Leaf>) -> Arc<ClientConfig> {
    client_config(ca, alpn, rustls::DEFAULT_VERSIONS, own)
}

/// As [`trusting`], speaking these versions of TLS only.
pub fn trusting_by(
    ca: &Path,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    client_config(ca, alpn, versions, None)
}

fn client_config(
    ca: &Path,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
    own: Option<&Leaf>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("a PEM file") {
        roots
            .add(certificate.expect("a certificate"))
            .expect("a CA certificate");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider has these versions")
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from(own.der.clone())];
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}
