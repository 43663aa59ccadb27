//! A certificate authority of our own, for those who have no certificate yet.
//!
//! It lives under `state_dir/tls/` and survives restarts, so clients trust it once. Files:
//! `ca.pem`, `ca.key`, `server.pem`, `server.key`, readable by their owner only.
//!
//! Knows nothing of how clients come to trust it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use time::OffsetDateTime;

use super::pair::Facts;
use super::private_files::{self, PrivateFileError};
use super::{Pair, TlsError};
use crate::clock;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Long, because changing it means a visit to every client.
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Under the 398 days beyond which Apple's clients refuse a certificate.
const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A leaf with less than this left is renewed: a month of failed renewals goes unnoticed.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Start of validity before now, for clients whose clocks are behind ours.
const BACKDATED: Duration = DAY;

/// What a leaf is for besides the configured domains, so that the host itself can pull.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why the local CA cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocalCaError {
    /// A file or directory cannot be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// A domain cannot stand in a certificate.
    #[error("{domain:?} cannot stand in a certificate")]
    Domain {
        /// The domain.
        domain: String,
    },
    /// The stored CA cannot be used. It is not replaced, since clients trust it.
    #[error("{} is damaged; restore it, or remove {} to make a new CA that clients must be told of",
        path.display(), directory.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// The directory of the CA.
        directory: PathBuf,
    },
    /// The cryptographic library refused.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// What was made cannot be loaded.
    #[error(transparent)]
    Pair(#[from] TlsError),
}

/// A local certificate authority and the server certificate it issued.
#[derive(Debug)]
pub struct LocalCa {
    directory: PathBuf,
    domains: Vec<String>,
    ca_pem: String,
    fingerprint: String,
    not_after: SystemTime,
    pair: Pair,
}

impl LocalCa {
    /// Opens the CA under `state_dir/tls`, making it where there is none, and issues a server
    /// certificate for `domains` and the loopback names unless a good one is there.
    ///
    /// # Errors
    /// Where files cannot be read or written, a domain is impossible, or the stored CA is damaged.
    pub fn open(
        state_dir: &Path,
        domains: &[String],
        now: SystemTime,
    ) -> Result<Self, LocalCaError> {
        let directory = state_dir.join("tls");
        private_files::create_directory(&directory)?;
        let (ca_pem, ca_key) = match read_ca(&directory)? {
            Some(stored) => stored,
            None => make_ca(&directory, now)?,
        };
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|_| damaged(&directory, "ca.pem"))?;
        let not_after = Facts::of(&der)
            .ok_or_else(|| damaged(&directory, "ca.pem"))?
            .not_after;
        let pair = match stored_leaf(&directory, &der, domains, now) {
            Some(pair) => pair,
            None => issue(&directory, &ca_pem, &ca_key, domains, now)?,
        };
        Ok(Self {
            fingerprint: fingerprint_of(&der),
            not_after,
            directory,
            domains: domains.to_vec(),
            ca_pem,
            pair,
        })
    }

    /// Issues another server certificate if the present one expires within a month; tells whether
    /// it did, and [`LocalCa::pair`] is then the new one.
    ///
    /// # Errors
    /// As [`LocalCa::open`]; the present certificate then stays.
    pub fn renew_if_due(&mut self, now: SystemTime) -> Result<bool, LocalCaError> {
        if is_fresh(&self.pair, now) {
            return Ok(false);
        }
        let (ca_pem, ca_key) =
            read_ca(&self.directory)?.ok_or_else(|| damaged(&self.directory, "ca.pem"))?;
        self.pair = issue(&self.directory, &ca_pem, &ca_key, &self.domains, now)?;
        Ok(true)
    }

    /// The server certificate, to serve with.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// The CA's certificate in PEM form, for clients to trust. No secret.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// When the CA itself expires, and with it the trust that clients put in it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Where the CA's certificate is stored.
    pub fn ca_path(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// SHA-256 of the CA's certificate as `AB:CD:…`, the form in which other tools print it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn damaged(directory: &Path, file: &str) -> LocalCaError {
    LocalCaError::Damaged {
        path: directory.join(file),
        directory: directory.into(),
    }
}

/// The stored CA, or `None` where there is none. An expired one is used all the same: the clock may
/// be what is wrong, and clients trust this CA and no other.
fn read_ca(directory: &Path) -> Result<Option<(String, KeyPair)>, LocalCaError> {
    let Some(ca_pem) = private_files::read_if_any(&directory.join("ca.pem"))? else {
        return Ok(None);
    };
    let key = private_files::read_if_any(&directory.join("ca.key"))?
        .and_then(|pem| KeyPair::from_pem(&pem).ok())
        .ok_or_else(|| damaged(directory, "ca.key"))?;
    Ok(Some((ca_pem, key)))
}

fn make_ca(directory: &Path, now: SystemTime) -> Result<(String, KeyPair), LocalCaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(LocalCaError::Make)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "ecr-proxy local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Clients are told to trust it once: a clock that is corrected later, to either side, must not leave
    // it outside its dates.
    let earliest = clock::earliest();
    params.not_before = OffsetDateTime::from(now.min(earliest) - BACKDATED);
    params.not_after = OffsetDateTime::from(now.max(earliest) + CA_VALIDITY);
    let ca_pem = params.self_signed(&key).map_err(LocalCaError::Make)?.pem();
    // The key first: a CA certificate on disk is the mark that there is a CA.
    private_files::write(&directory.join("ca.key"), &key.serialize_pem())?;
    private_files::write(&directory.join("ca.pem"), &ca_pem)?;
    Ok((ca_pem, key))
}

/// The stored server certificate, if it is of this CA, for these domains and not about to expire.
fn stored_leaf(
    directory: &Path,
    ca: &CertificateDer<'_>,
    domains: &[String],
    now: SystemTime,
) -> Option<Pair> {
    let pair = Pair::load(&directory.join("server.pem"), &directory.join("server.key")).ok()?;
    let wanted = names_for(domains);
    let is_of_this_ca = pair.certified.cert.get(1) == Some(ca);
    (is_of_this_ca && pair.names() == wanted && is_fresh(&pair, now)).then_some(pair)
}

fn is_fresh(pair: &Pair, now: SystemTime) -> bool {
    pair.not_before() <= now && pair.not_after() > now + RENEW_BEFORE
}

/// The names of a leaf, as a certificate spells them, each once.
fn names_for(domains: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in domains.iter().map(String::as_str).chain(LOOPBACK_NAMES) {
        let name = match name.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => name.to_ascii_lowercase(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn issue(
    directory: &Path,
    ca_pem: &str,
    ca_key: &KeyPair,
    domains: &[String],
    now: SystemTime,
) -> Result<Pair, LocalCaError> {
    let names = names_for(domains);
    for domain in &names {
        // A name that only the library's catch-all could refuse later is refused by name here.
        if CertificateParams::new([domain.clone()]).is_err() {
            return Err(LocalCaError::Domain {
                domain: domain.clone(),
            });
        }
    }
    let common_name = names.first().cloned().unwrap_or_default();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(LocalCaError::Make)?;
    let mut params = CertificateParams::new(names).map_err(LocalCaError::Make)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(now - BACKDATED);
    params.not_after = OffsetDateTime::from(now + LEAF_VALIDITY);
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key).map_err(LocalCaError::Make)?;
    let leaf = params
        .signed_by(&key, &issuer)
        .map_err(LocalCaError::Make)?;

    let chain = format!("{}{ca_pem}", leaf.pem());
    let (cert_path, key_path) = (directory.join("server.pem"), directory.join("server.key"));
    // A crash between the two leaves a pair that does not match, which is issued again at start.
    private_files::write(&key_path, &key.serialize_pem())?;
    private_files::write(&cert_path, &chain)?;
    Ok(Pair::load(&cert_path, &key_path)?)
}

fn fingerprint_of(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    let octets: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    octets.join(":")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn domains(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn leaf_of(ca: &LocalCa) -> &CertificateDer<'static> {
        &ca.pair.certified.cert[0]
    }

    #[test]
    fn a_restart_keeps_ca_and_certificate() {
        let state = tempfile::tempdir().expect("a directory");
        let names = domains(&["registry.mydomain.test"]);
        let first = LocalCa::open(state.path(), &names, now()).expect("a new CA");
        let second = LocalCa::open(state.path(), &names, now() + DAY).expect("the same CA");
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(leaf_of(&first), leaf_of(&second));
        assert_eq!(
            first.pair().names(),
            ["registry.mydomain.test", "localhost", "127.0.0.1", "::1"]
        );
        assert_eq!(
            fs::read_to_string(first.ca_path()).expect("ca.pem"),
            first.ca_pem()
        );
    }

    #[test]
    fn other_domains_get_another_certificate_of_the_same_ca() {
        let state = tempfile::tempdir().expect("a directory");
        let first = LocalCa::open(state.path(), &domains(&["a.test"]), now()).expect("a CA");
        let second = LocalCa::open(state.path(), &domains(&["b.test"]), now()).expect("a CA");
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert!(second.pair().covers("b.test") && !second.pair().covers("a.test"));
    }

    #[test]
    fn a_certificate_about_to_expire_is_renewed_and_lasts_less_than_398_days() {
        let state = tempfile::tempdir().expect("a directory");
        let mut ca = LocalCa::open(state.path(), &domains(&["a.test"]), now()).expect("a CA");
        let leaf = leaf_of(&ca).clone();
        let lasts = ca.pair().not_after().duration_since(ca.pair().not_before());
        assert!(lasts.expect("ordered dates") <= 398 * DAY);
        assert!(!ca.renew_if_due(now() + 300 * DAY).expect("not due"));
        assert!(ca.renew_if_due(now() + 340 * DAY).expect("due"));
        assert_ne!(leaf_of(&ca), &leaf);
        let reopened = LocalCa::open(state.path(), &domains(&["a.test"]), now() + 341 * DAY);
        assert_eq!(leaf_of(&reopened.expect("a CA")), leaf_of(&ca));
    }

    #[test]
    fn c11_a_ca_made_by_a_wrong_clock_holds_when_the_clock_is_right() {
        let right = clock::earliest() + 600 * DAY;
        for wrong in [SystemTime::UNIX_EPOCH, right + 3650 * DAY] {
            let state = tempfile::tempdir().expect("a directory");
            let names = domains(&["a.test"]);
            let mut ca = LocalCa::open(state.path(), &names, wrong).expect("a CA");
            assert!(ca.renew_if_due(right).expect("renewed"));
            assert!(is_fresh(ca.pair(), right));
            let facts = Facts::of(&ca.pair.certified.cert[1]).expect("a certificate");
            assert!(facts.not_before < right && facts.not_after > right + 300 * DAY);
            assert!(
                facts.not_before < wrong,
                "the host itself trusts it meanwhile"
            );
        }
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let state = tempfile::tempdir().expect("a directory");
        let directory = state.path().join("tls");
        fs::create_dir(&directory).expect("a directory");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("rights");
        LocalCa::open(state.path(), &domains(&["a.test"]), now()).expect("a CA");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        for file in ["ca.key", "ca.pem", "server.key", "server.pem"] {
            assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
        }
        assert_eq!(fs::read_dir(&directory).expect("listable").count(), 4);
    }

    #[test]
    fn a_damaged_ca_is_told_and_never_replaced() {
        let state = tempfile::tempdir().expect("a directory");
        let names = domains(&["a.test"]);
        LocalCa::open(state.path(), &names, now()).expect("a CA");
        let key = state.path().join("tls/ca.key");
        fs::write(&key, "").expect("writable");
        let error = LocalCa::open(state.path(), &names, now()).expect_err("damaged");
        assert!(matches!(error, LocalCaError::Damaged { path, .. } if path == key));
    }

    #[test]
    fn a_damaged_server_certificate_is_issued_again() {
        let state = tempfile::tempdir().expect("a directory");
        let names = domains(&["a.test"]);
        let first = LocalCa::open(state.path(), &names, now()).expect("a CA");
        fs::write(state.path().join("tls/server.pem"), "torn").expect("writable");
        let second = LocalCa::open(state.path(), &names, now()).expect("a CA");
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_ne!(leaf_of(&first), leaf_of(&second));
    }

    #[test]
    fn a_domain_no_certificate_can_hold_is_named() {
        let state = tempfile::tempdir().expect("a directory");
        let error =
            LocalCa::open(state.path(), &domains(&["münchen.test"]), now()).expect_err("not ASCII");
        assert!(matches!(error, LocalCaError::Domain { domain } if domain == "münchen.test"));
    }

    #[test]
    fn the_fingerprint_is_in_the_form_of_other_tools() {
        assert!(fingerprint_of(b"").starts_with("E3:B0:C4:42:98:FC:1C:14"));
    }
}
