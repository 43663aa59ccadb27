//! The certificates in use, looked after: renewed where that is ours to do, and told of where they end.

use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Failure, chain};
use crate::config::{Config, Tls};
use crate::jobs::{Reload, Reread};
use crate::tls::{Acme, CertificateMetrics, Certificates, LocalCa, OwnFiles, Standing, Trouble};

/// How often the dates are looked at. A leaf of the local CA is renewed a month ahead, but a clock that
/// is corrected after start may leave it expired all at once, and no client waits long for another.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What shows the certificates, and who renews them.
pub(super) struct Keeper {
    certificates: Certificates,
    source: Source,
    troubles: Troubles,
    metrics: CertificateMetrics,
    /// The names whose ends are shown.
    shown: Vec<String>,
    /// What was last said in the log of the worst of them.
    said: Option<Standing>,
}

/// Where certificates come from.
enum Source {
    /// No listener speaks TLS.
    None,
    /// The operator renews them.
    Own(Arc<OwnFiles>),
    /// We obtain them from a directory; taken when that runs.
    Acme(Option<Acme>),
    /// We issue them ourselves.
    LocalCa(LocalCa),
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
                (own.certificates().clone(), Source::Own(Arc::new(own)))
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
        let mut keeper = Self {
            certificates,
            source,
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
        &self.certificates
    }

    /// The local CA, if one is used.
    pub(super) fn local_ca(&self) -> Option<&LocalCa> {
        match &self.source {
            Source::LocalCa(ca) => Some(ca),
            Source::None | Source::Own(_) | Source::Acme(_) => None,
        }
    }

    /// What is wrong with them, at any time.
    pub(super) fn troubles(&self) -> Troubles {
        self.troubles.clone()
    }

    /// What obtains and renews them by ACME, to be run by whoever takes it.
    pub(super) fn take_acme(&mut self) -> Option<Acme> {
        match &mut self.source {
            Source::Acme(acme) => acme.take(),
            Source::None | Source::Own(_) | Source::LocalCa(_) => None,
        }
    }

    /// Has the operator's certificates read again when they are renewed.
    pub(super) fn reload_by(&self, reload: &mut Reload) {
        let Source::Own(own) = &self.source else {
            return;
        };
        let renew = {
            let own = Arc::clone(own);
            move || {
                let renewed = own.renew(SystemTime::now());
                renewed.map(Reread::from).map_err(|error| error.to_string())
            }
        };
        reload.add("certificates", own.paths(), renew);
    }

    /// Renews the local CA's certificate where it is due, for all handshakes to come, and tells how the
    /// certificates stand where that has changed.
    pub(super) fn look(&mut self) {
        let now = SystemTime::now();
        if let Source::LocalCa(ca) = &mut self.source {
            match ca.renew_if_due(now) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("the certificate was renewed");
                    self.certificates.replace(vec![ca.pair().clone()]);
                }
                Err(error) => tracing::error!(%error, "the certificate could not be renewed"),
            }
        }
        self.shown = self.metrics.show(&self.certificates, &self.shown);
        let standing = worst(&self.certificates, now).map(|(_, standing)| standing);
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
