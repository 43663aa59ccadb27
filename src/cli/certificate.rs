//! The certificates in use, looked after: renewed where that is ours to do, and told of where they end.

use std::mem::discriminant;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Failure, chain};
use crate::config::{Config, Tls};
use crate::jobs::{Reload, Reread};
use crate::tls::{
    Acme, CertificateMetrics, Certificates, LocalCa, OwnFiles, Pair, Standing, Trouble,
};

/// How often the dates are looked at. A leaf of the local CA is renewed a month ahead, but a clock that
/// is corrected after start may leave it expired all at once, and no client waits long for another.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What shows the certificates, and who renews them.
pub(super) struct Keeper {
    origin: Origin,
    troubles: Troubles,
    metrics: CertificateMetrics,
    /// The names whose ends are shown.
    shown: Vec<String>,
    /// What was last said in the log of the worst of them.
    said: Option<Standing>,
}

/// The certificates in use, and where they come from. Clones share both.
#[derive(Clone)]
pub(super) struct Origin {
    certificates: Certificates,
    source: Arc<Mutex<Source>>,
}

/// Where certificates come from.
enum Source {
    /// No listener speaks TLS.
    None,
    /// The operator renews them.
    Own(OwnFiles),
    /// We obtain them from a directory; taken when that runs.
    Acme(Option<Acme>),
    /// We issue them ourselves.
    LocalCa(LocalCa),
}

/// Other certificates, ready to be used.
pub(super) struct Prepared {
    source: Source,
    pairs: Vec<Pair>,
}

impl Origin {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another configuration wants instead, where that is of the same kind; `None` if it wants what there
    /// is.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn prepare(
        &self,
        in_use: &Config,
        new: &Config,
    ) -> Result<Option<Prepared>, String> {
        let domains = &new.server.domains;
        let is_same = in_use.tls == new.tls && in_use.server.domains == *domains;
        match (&*self.source(), &new.tls) {
            (Source::Own(_), Tls::Files(files)) if !is_same => {
                let loaded = OwnFiles::load_for(&self.certificates, files, domains);
                let (own, pairs) = loaded.map_err(|errors| {
                    let told: Vec<String> = errors.iter().map(|error| chain(error)).collect();
                    told.join("; ")
                })?;
                let source = Source::Own(own);
                Ok(Some(Prepared { source, pairs }))
            }
            (Source::LocalCa(_), Tls::LocalCa) if !is_same => {
                // The state directory is read at start only.
                let ca = LocalCa::open(&in_use.server.state_dir, domains, SystemTime::now());
                let ca = ca.map_err(|error| chain(&error))?;
                let pairs = vec![ca.pair().clone()];
                let source = Source::LocalCa(ca);
                Ok(Some(Prepared { source, pairs }))
            }
            _ => Ok(None),
        }
    }

    /// Puts them in use, for all handshakes to come.
    pub(super) fn take_over(&self, prepared: Prepared) {
        let mut source = self.source();
        self.certificates.replace(prepared.pairs);
        *source = prepared.source;
    }
}

impl Keeper {
    /// Loads the configured certificates, or opens the local CA.
    ///
    /// # Errors
    /// Why there are none, all that is wrong with them together. One outside its dates is no error.
    pub(super) fn open(config: &Config, metrics: CertificateMetrics) -> Result<Self, Failure> {
        let (state_dir, domains) = (&config.server.state_dir, &config.server.domains);
        let mut troubles = Troubles::default();
        let (certificates, source) = match &config.tls {
            Tls::Off => (Certificates::new(Vec::new()), Source::None),
            Tls::Files(files) => {
                let own = OwnFiles::load(files, domains).map_err(|errors| {
                    let told: Vec<String> = errors.iter().map(|error| chain(error)).collect();
                    Failure::Failed(told.join("\n"))
                })?;
                (own.certificates().clone(), Source::Own(own))
            }
            Tls::Acme { options, .. } => {
                let acme = Acme::open(options.clone(), metrics.clone());
                let acme = acme.map_err(|error| Failure::Failed(chain(&error)))?;
                troubles.acme = Some(acme.trouble());
                (acme.certificates().clone(), Source::Acme(Some(acme)))
            }
            Tls::LocalCa => {
                let ca = LocalCa::open(state_dir, domains, SystemTime::now())
                    .map_err(|error| Failure::Failed(chain(&error)))?;
                let certificates = Certificates::new(vec![ca.pair().clone()]);
                (certificates, Source::LocalCa(ca))
            }
        };
        troubles.certificates = Some(certificates.clone());
        let source = Arc::new(Mutex::new(source));
        let mut keeper = Self {
            origin: Origin {
                certificates,
                source,
            },
            troubles,
            metrics,
            shown: Vec::new(),
            said: None,
        };
        keeper.look();
        Ok(keeper)
    }

    /// The certificates in use; they stay the same set when they are renewed.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.origin.certificates
    }

    /// Where they come from.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The certificate and fingerprint of the local CA, if one is used.
    pub(super) fn local_ca(&self) -> Option<(PathBuf, String)> {
        match &*self.origin.source() {
            Source::LocalCa(ca) => Some((ca.ca_path(), ca.fingerprint().to_owned())),
            Source::None | Source::Own(_) | Source::Acme(_) => None,
        }
    }

    /// What is wrong with them, at any time.
    pub(super) fn troubles(&self) -> Troubles {
        self.troubles.clone()
    }

    /// What obtains and renews them by ACME, to be run by whoever takes it.
    pub(super) fn take_acme(&mut self) -> Option<Acme> {
        match &mut *self.origin.source() {
            Source::Acme(acme) => acme.take(),
            Source::None | Source::Own(_) | Source::LocalCa(_) => None,
        }
    }

    /// Has the operator's certificates read again when they are renewed.
    pub(super) fn reload_by(&self, reload: &mut Reload) {
        if !matches!(&*self.origin.source(), Source::Own(_)) {
            return;
        }
        let origin = self.origin.clone();
        let files = move || match &*origin.source() {
            Source::Own(own) => own.paths(),
            Source::None | Source::Acme(_) | Source::LocalCa(_) => Vec::new(),
        };
        let origin = self.origin.clone();
        let renew = move || match &*origin.source() {
            Source::Own(own) => {
                let renewed = own.renew(SystemTime::now());
                renewed.map(Reread::from).map_err(|error| error.to_string())
            }
            Source::None | Source::Acme(_) | Source::LocalCa(_) => Ok(Reread::Same),
        };
        reload.watch("certificates", files, renew);
    }

    /// Renews the local CA's certificate where it is due, for all handshakes to come, and tells how the
    /// certificates stand where that has changed.
    pub(super) fn look(&mut self) {
        let now = SystemTime::now();
        let certificates = &self.origin.certificates;
        if let Source::LocalCa(ca) = &mut *self.origin.source() {
            match ca.renew_if_due(now) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("the certificate was renewed");
                    certificates.replace(vec![ca.pair().clone()]);
                }
                Err(error) => tracing::error!(%error, "the certificate could not be renewed"),
            }
        }
        self.shown = self.metrics.show(certificates, &self.shown);
        let standing = worst(certificates, now).map(|(_, standing)| standing);
        if standing.as_ref().map(discriminant) != self.said.as_ref().map(discriminant) {
            match standing {
                Some(standing) if standing.is_refused() => {
                    tracing::error!(certificate = %standing, "clients will refuse the certificate");
                }
                Some(standing @ Standing::EndsSoon { .. }) => {
                    tracing::warn!(certificate = %standing, "the certificate wants to be renewed");
                }
                Some(Standing::Good { .. }) | None | Some(_) => {}
            }
            self.said = standing;
        }
    }
}

/// What operators should know of the certificates. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Troubles {
    certificates: Option<Certificates>,
    acme: Option<Trouble>,
}

impl Troubles {
    /// That the one which most wants to be looked at ends soon, or that clients refuse it as far as this host's
    /// clock tells; and why there is no new one.
    pub(super) fn list(&self) -> Vec<String> {
        let certificates = self.certificates.as_ref();
        let worst = certificates.and_then(|all| worst(all, SystemTime::now()));
        let of_dates = worst.and_then(|(name, standing)| {
            let hint = match standing {
                Standing::Good { .. } => return None,
                Standing::NotYet { .. } => "; look at this host's clock",
                Standing::EndsSoon { .. } | Standing::Ended { .. } => "; renew it",
            };
            Some(format!("{name}: {standing}{hint}"))
        });
        let of_acme = self.acme.as_ref().and_then(Trouble::now);
        let of_acme = of_acme.map(|(since, why)| {
            let since = humantime::format_rfc3339_seconds(since);
            format!("no new certificate since {since}: {why}")
        });
        of_dates.into_iter().chain(of_acme).collect()
    }
}

/// The certificate that most wants to be looked at, by the first of its names.
fn worst(certificates: &Certificates, now: SystemTime) -> Option<(String, Standing)> {
    let pairs = certificates.pairs();
    let worst = pairs.iter().max_by_key(|pair| match pair.standing(now) {
        Standing::Good { .. } => 0,
        Standing::EndsSoon { .. } => 1,
        Standing::NotYet { .. } => 2,
        Standing::Ended { .. } => 3,
    })?;
    let name = worst.names().first().cloned().unwrap_or_default();
    Some((name, worst.standing(now)))
}
