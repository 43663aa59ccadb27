//! Certificates that we obtain and renew by ourselves, from any directory of RFC 8555.
//!
//! Account and certificate lie under `state_dir/acme/`, in a folder of their directory's own, so that
//! another directory begins anew. The certificate is one file with its key, replaced whole.
//!
//! | file | is |
//! | --- | --- |
//! | `account.rs` | our account at the directory, and what it was told of it |
//! | `order.rs` | one certificate: order, proofs |
//! | `binding.rs` | whose account it is, where the directory wants to know |
//! | `https.rs` | HTTPS to the directory |

mod account;
mod binding;
mod https;
mod order;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub use self::binding::ExternalBinding;
use self::https::Https;
use super::private_files::{self, PrivateFileError};
use super::{CertificateMetrics, Certificates, Pair, Standing, TlsError};
use crate::telemetry::chain;
use crate::upstream::Egress;

/// Between two looks at the dates; a clock that is corrected counts soon.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// For a whole order; the waits for the directory inside it are bounded as well.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The pause after a first failure, and the factor by which each further one is longer. Public directories
/// allow few failed orders an hour.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const PAUSE_FACTOR: u32 = 6;
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// What a directory's `Retry-After` is believed within. Its rate limits count by hours and days; a broken clock
/// should not silence us for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(24 * 60 * 60);

/// What to obtain, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeOptions {
    /// The URL of the directory.
    pub directory: String,
    /// Where the directory may write to its user.
    pub email: Option<String>,
    /// Whose account it is, where the directory makes none for strangers.
    pub binding: Option<ExternalBinding>,
    /// How names are proven to be ours.
    pub proof: Proof,
    /// The names of the certificate, at least one.
    pub domains: Vec<String>,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Further roots to trust for the directory's own certificate, PEM.
    pub ca: Option<PathBuf>,
    /// The proxy on the way out to the directory.
    pub egress: Option<Egress>,
}

/// How names are proven to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By a handshake on port 443 (RFC 8737).
    TlsAlpn,
    /// By an answer on port 80 (RFC 8555, 8.3).
    Http,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsAlpn => "tls-alpn-01",
            Self::Http => "http-01",
        })
    }
}

/// Why there is no new certificate.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcmeError {
    /// The directory, or the way to it, fails.
    #[error("the ACME directory")]
    Directory(#[from] instant_acme::Error),
    /// The directory does not offer the configured challenge.
    #[error("the ACME directory does not offer {proof} for {domain}")]
    NotOffered {
        /// The challenge.
        proof: Proof,
        /// The name that it is not offered for.
        domain: String,
    },
    /// The directory looked and was not convinced.
    #[error("the ACME directory did not find the names to be ours: {0}")]
    Refused(String),
    /// The order took too long.
    #[error("the ACME order took longer than 10m")]
    Slow,
    /// The stored account cannot be read.
    #[error("{} is damaged; remove it to make a new account", file.display())]
    Account {
        /// The file.
        file: PathBuf,
    },
    /// The directory makes no accounts for strangers.
    #[error(
        "the ACME directory wants an account that it knows: name that one by eab_kid and eab_key_file"
    )]
    Unbound,
    /// The directory does not believe whose account it is.
    #[error(
        "the ACME directory does not take eab_kid {kid:?} with the key of eab_key_file: {reason}"
    )]
    Binding {
        /// The account that was named.
        kid: String,
        /// What the directory says.
        reason: String,
    },
    /// There is no key to show whose account it is.
    #[error("eab_key_file: {} {reason}", file.display())]
    BindingKey {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What came is not a certificate for our names, or has ended.
    #[error("the ACME directory issued a certificate that {0}")]
    Unfit(String),
    /// The roots cannot be read.
    #[error("ca: {} holds no usable PEM certificate", file.display())]
    Roots {
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// What came cannot be loaded.
    #[error(transparent)]
    Pair(#[from] TlsError),
    /// The cryptographic library refused to make a certificate.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// The cryptographic library refused its own settings, or a key it made.
    #[error("TLS cannot be configured")]
    Tls(#[source] rustls::Error),
}

impl AcmeOptions {
    /// Where the directory's account and certificate lie.
    fn folder(&self) -> PathBuf {
        let digest = Sha256::digest(self.directory.as_bytes());
        let hex: String = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.state_dir.join("acme").join(hex)
    }

    /// The roots that are trusted besides the system's, as their file has them now.
    fn roots(&self) -> Result<Vec<CertificateDer<'static>>, AcmeError> {
        let Some(file) = &self.ca else {
            return Ok(Vec::new());
        };
        let unusable = || AcmeError::Roots { file: file.clone() };
        let read = CertificateDer::pem_file_iter(file).map_err(|_| unusable())?;
        let roots: Vec<_> = read.collect::<Result<_, _>>().map_err(|_| unusable())?;
        match roots.is_empty() {
            true => Err(unusable()),
            false => Ok(roots),
        }
    }

    /// Where the certificate and its key lie, once there is one.
    pub fn certificate(&self) -> PathBuf {
        self.folder().join("certificate.pem")
    }
}

/// The certificate of an ACME directory, and what it takes to renew it.
pub struct Acme {
    options: AcmeOptions,
    client: Https,
    /// That which was stored, if it is for some of the names at least.
    stored: Option<Pair>,
    certificates: Certificates,
    /// Whether something else has taken its place, held while the certificates are replaced.
    is_retired: Mutex<bool>,
    trouble: Trouble,
    metrics: CertificateMetrics,
}

impl Acme {
    /// With the certificate that was stored, if there is one for any of these names. Those in use remain as they
    /// are until there is a new one.
    ///
    /// # Errors
    /// The folder cannot be made, or the roots or the account's key cannot be read.
    pub fn open(
        options: AcmeOptions,
        certificates: &Certificates,
        metrics: CertificateMetrics,
    ) -> Result<Self, AcmeError> {
        private_files::create_directory(&options.state_dir.join("acme"))?;
        private_files::create_directory(&options.folder())?;
        let roots = options.roots()?;
        if let Some(binding) = &options.binding {
            binding.key()?;
        }
        let file = options.certificate();
        let stored = Pair::load(&file, &file).ok();
        let stored = stored.filter(|pair| options.domains.iter().any(|name| pair.covers(name)));
        let acme = Self {
            client: Https::new(&roots, options.egress.clone()).map_err(AcmeError::Tls)?,
            stored,
            certificates: certificates.clone(),
            is_retired: Mutex::default(),
            options,
            trouble: Trouble::default(),
            metrics,
        };
        if acme.present().is_none() {
            let text = "the ACME directory has issued none for these names yet";
            acme.trouble.set(text.to_owned());
        }
        Ok(acme)
    }

    /// The certificate that was stored, if there was one at first for any of the names.
    pub fn stored(&self) -> Option<&Pair> {
        self.stored.as_ref()
    }

    /// The same, if it is for all of them: no other has to be ordered before it is due.
    pub fn present(&self) -> Option<&Pair> {
        let names = &self.options.domains;
        let is_for_all = |pair: &&Pair| names.iter().all(|name| pair.covers(name));
        self.stored().filter(is_for_all)
    }

    /// Since when and why there is no new certificate, while there should be one.
    pub fn trouble(&self) -> Option<(SystemTime, String)> {
        self.trouble.now()
    }

    /// From now on the certificates in use are left alone: something else has taken the place of this.
    pub fn retire(&self) {
        *self.retired() = true;
    }

    fn retired(&self) -> MutexGuard<'_, bool> {
        self.is_retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts it in use.
    fn put(&self, pair: Pair) {
        let is_retired = self.retired();
        if !*is_retired {
            self.certificates.replace(vec![pair]);
        }
    }

    /// Obtains a certificate where there is none, and renews it when two thirds of its life are over, for as
    /// long as this is not dropped.
    ///
    /// # Cancel safety
    /// An order that is cut off is begun anew the next time.
    pub async fn keep(&self) {
        self.tell_account().await;
        let mut present = self.present().cloned();
        let mut failures = 0;
        // What could not be written down, and when the next order may be made at the earliest.
        let mut unkept: Option<String> = None;
        let mut not_before = Instant::now();
        loop {
            if let Some(text) = &unkept
                && private_files::write(&self.options.certificate(), text).is_ok()
            {
                unkept = None;
                self.trouble.clear();
            }
            let due = |pair| until_due(pair, SystemTime::now());
            let left = present.as_ref().and_then(due).unwrap_or_default();
            let left = left.max(not_before.saturating_duration_since(Instant::now()));
            if !left.is_zero() {
                tokio::time::sleep(left.min(LOOK_EVERY)).await;
                continue;
            }
            let obtained = tokio::time::timeout(ORDER_TIMEOUT, self.obtain()).await;
            let pause = match obtained.unwrap_or(Err(AcmeError::Slow)) {
                Ok(Obtained { pair, text }) => {
                    failures = 0;
                    self.trouble.clear();
                    self.metrics.ordered("ok");
                    let until = humantime::format_rfc3339_seconds(pair.not_after());
                    tracing::info!(certificate.until = %until, "the ACME directory issued a certificate");
                    unkept = self.keep_on_disk(text);
                    // Not at once again, whatever the clock says of it.
                    let pause = (lifetime(&pair) / 3).min(LONGEST_PAUSE);
                    self.put(pair.clone());
                    present = Some(pair);
                    pause
                }
                Err(error) => {
                    let pause = pause_after(failures, self.client.asked_pause());
                    failures += 1;
                    self.metrics.ordered("failed");
                    let error = chain(&error);
                    let next = humantime::format_duration(pause);
                    tracing::error!(error, retry.after = %next, "no new certificate");
                    self.trouble.set(error);
                    pause
                }
            };
            not_before = Instant::now() + pause;
        }
    }

    /// Has the directory know of our account what the configuration says by now, ahead of the next order.
    async fn tell_account(&self) {
        let (options, folder) = (&self.options, self.options.folder());
        if !account::has_news(options, &folder) {
            return;
        }
        let tell = async { account::open(options, &folder, &self.client()?).await };
        let told = tokio::time::timeout(ORDER_TIMEOUT, tell).await;
        if let Err(error) = told.unwrap_or(Err(AcmeError::Slow)) {
            tracing::warn!(error = chain(&error), "the ACME account is as it was");
        }
    }

    /// Writes down a certificate with its key; gives it back where that fails. An order that was paid for with
    /// the directory's patience is used all the same.
    fn keep_on_disk(&self, text: String) -> Option<String> {
        let error = private_files::write(&self.options.certificate(), &text).err()?;
        let error = chain(&error);
        tracing::error!(
            error,
            "the certificate is in use and lost at the next start"
        );
        self.trouble.set(error);
        Some(text)
    }

    /// The way to the directory, by the roots that are trusted now.
    fn client(&self) -> Result<Https, AcmeError> {
        let roots = self.options.roots()?;
        self.client.trusting(&roots).map_err(AcmeError::Tls)
    }

    async fn obtain(&self) -> Result<Obtained, AcmeError> {
        let (options, folder) = (&self.options, self.options.folder());
        let client = self.client()?;
        let account = account::open(options, &folder, &client).await?;
        let challenges = self.certificates.challenges();
        let (chain, key) = match order::certificate(options, &account, challenges).await {
            Err(error) if account::is_unknown(&error) => {
                tracing::warn!("the ACME directory does not know our account: making a new one");
                let account = account::create(options, &folder, &client).await?;
                order::certificate(options, &account, challenges).await?
            }
            ordered => ordered?,
        };
        let file = options.certificate();
        let both = format!("{key}{chain}");
        let pair = Pair::from_pem(both.as_bytes(), &file, both.as_bytes(), &file)?;
        if let Some(domain) = options.domains.iter().find(|name| !pair.covers(name)) {
            return Err(AcmeError::Unfit(format!("is not for {domain}")));
        }
        let standing = pair.standing(SystemTime::now());
        if matches!(standing, Standing::Ended { .. }) {
            return Err(AcmeError::Unfit(standing.to_string()));
        }
        Ok(Obtained { pair, text: both })
    }
}

/// A new certificate.
struct Obtained {
    pair: Pair,
    /// Its chain and key in PEM form.
    text: String,
}

fn lifetime(pair: &Pair) -> Duration {
    let lifetime = pair.not_after().duration_since(pair.not_before());
    lifetime.unwrap_or_default()
}

/// How long until it is to be renewed, which is when a third of its life is left: a month for one of three
/// months. `None` if that is now.
fn until_due(pair: &Pair, now: SystemTime) -> Option<Duration> {
    let due = pair.not_after() - lifetime(pair) / 3;
    let left = due.duration_since(now).ok()?;
    (!left.is_zero()).then_some(left)
}

/// The pause after one more than `failures`, at least as long as the directory `asked` for.
fn pause_after(failures: u32, asked: Option<Duration>) -> Duration {
    let factor = PAUSE_FACTOR.saturating_pow(failures);
    let own = FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE);
    own.max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

/// Why there is no new certificate, and since when.
#[derive(Debug, Default)]
struct Trouble(Mutex<Option<(SystemTime, String)>>);

impl Trouble {
    /// Since when and why, if anything is wrong.
    fn now(&self) -> Option<(SystemTime, String)> {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    fn set(&self, why: String) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = trouble
            .as_ref()
            .map_or_else(SystemTime::now, |(since, _)| *since);
        *trouble = Some((since, why));
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::pair::tests::{at_day, pair};
    use super::*;

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_life_is_left() {
        let pair = pair(&["a.test"]);
        let third = lifetime(&pair) / 3;
        let due = pair.not_after() - third;
        let second = Duration::from_secs(1);
        assert_eq!(until_due(&pair, due - second), Some(second));
        assert_eq!(until_due(&pair, due), None);
        assert_eq!(until_due(&pair, pair.not_after()), None);
        let early = until_due(&pair, at_day(0));
        assert!(early.is_some(), "the clock is wrong, not the certificate");
    }

    #[test]
    fn failures_are_few_an_hour() {
        let pauses: Vec<u64> = (0..6)
            .map(|failures| pause_after(failures, None).as_secs())
            .collect();
        assert_eq!(pauses, [5, 30, 180, 1080, 3600, 3600]);
        assert_eq!(pause_after(u32::MAX, None), LONGEST_PAUSE);
    }

    #[test]
    fn a_directory_that_asks_for_more_patience_is_given_it_within_reason() {
        for (failures, asked, seconds) in [
            (0, 0, 5),
            (0, 3, 5),
            (0, 7200, 7200),
            (4, 7200, 7200),
            (4, 60, 3600),
            (0, u64::MAX, 24 * 3600),
        ] {
            let pause = pause_after(failures, Some(Duration::from_secs(asked)));
            assert_eq!(pause.as_secs(), seconds, "{failures} {asked}");
        }
    }

    fn options(directory: &str, state_dir: &Path) -> AcmeOptions {
        AcmeOptions {
            directory: directory.to_owned(),
            email: None,
            binding: None,
            proof: Proof::TlsAlpn,
            domains: vec!["a.test".to_owned()],
            state_dir: state_dir.to_owned(),
            ca: None,
            egress: None,
        }
    }

    #[test]
    fn each_directory_has_a_folder_of_its_own() {
        let options = |directory| options(directory, Path::new("state"));
        let one = options("https://one.test/dir").certificate();
        assert_ne!(one, options("https://two.test/dir").certificate());
        assert!(one.starts_with("state/acme"));
    }

    #[test]
    fn what_is_retired_leaves_the_certificates_in_use_alone() {
        let state = tempfile::tempdir().expect("folder");
        let options = options("https://one.test/dir", state.path());
        let certificates = Certificates::new(vec![pair(&["before.test"])]);
        let metrics = CertificateMetrics::default();
        let acme = Acme::open(options, &certificates, metrics).expect("a plan");
        let names = || certificates.pairs()[0].names().to_vec();
        assert_eq!(names(), ["before.test"]);
        acme.put(pair(&["a.test"]));
        assert_eq!(names(), ["a.test"]);
        acme.retire();
        acme.put(pair(&["late.test"]));
        assert_eq!(names(), ["a.test"]);
    }
}
