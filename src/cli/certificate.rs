//! The certificates in use, looked after: renewed where that is ours to do, and told of where they end.

use std::mem::discriminant;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::{Failure, chain};
use crate::config::{Config, Tls};
use crate::jobs::{Reload, Reread};
use crate::tls::{
    Acme, CertificateMetrics, Certificates, LocalCa, OwnFiles, Pair, Proof, Standing,
};

/// How often the dates are looked at. A leaf of the local CA is renewed a month ahead, but a clock that
/// is corrected after start may leave it expired all at once, and no client waits long for another.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What shows the certificates, and who renews them.
pub(super) struct Keeper {
    origin: Origin,
    /// The names whose ends are shown.
    shown: Vec<String>,
    /// What was last said in the log of the worst of them.
    said: Option<Standing>,
    /// Which of our domains the log was last told to be without one.
    uncovered: Vec<String>,
    /// Why the log was last told that there is no new one, while that is so.
    unrenewed: Option<String>,
}

/// The certificates in use, and where they come from. Clones share both.
#[derive(Clone)]
pub(super) struct Origin {
    certificates: Certificates,
    source: Arc<Mutex<Source>>,
    /// What is to be obtained by ACME, for whoever runs it.
    plan: watch::Sender<Plan>,
    /// Whether HTTP-01 can be answered, which takes a listener and so a start.
    answers_http: bool,
    metrics: CertificateMetrics,
}

type Plan = Option<Arc<Acme>>;

/// Where certificates come from.
enum Source {
    /// No listener speaks TLS.
    None,
    /// The operator renews them.
    Own(OwnFiles),
    /// We obtain them from a directory.
    Acme(Arc<Acme>),
    /// We issue them ourselves.
    LocalCa(LocalCa),
}

/// Other certificates, ready to be used.
pub(super) struct Prepared {
    source: Source,
    /// `None` where those in use are to serve on until there are others.
    pairs: Option<Vec<Pair>>,
}

impl Origin {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another configuration wants instead; `None` if it wants what there is.
    ///
    /// # Errors
    /// All that is wrong with it. Where clients take the certificates in use, that is also one which they would
    /// refuse, as far as the clock tells.
    pub(super) fn prepare(
        &self,
        in_use: &Config,
        new: &Config,
    ) -> Result<Option<Prepared>, String> {
        if in_use.tls == new.tls && in_use.server.domains == new.server.domains {
            return Ok(None);
        }
        if let Tls::Acme { options, .. } = &new.tls
            && options.proof == Proof::Http
            && !self.answers_http
        {
            return Err(
                "tls.acme.challenge: http-01 wants a listener of its own, which only a start \
                        opens: restart the proxy for it"
                    .to_owned(),
            );
        }
        let prepared = self.build(new).map_err(|faults| faults.join("; "))?;
        Ok(Some(prepared))
    }

    /// Loads the certificates that a configuration names, or opens what they come from. Those in use stay.
    fn build(&self, config: &Config) -> Result<Prepared, Vec<String>> {
        let (state_dir, domains) = (&config.server.state_dir, &config.server.domains);
        let now = SystemTime::now();
        let standing = worst(&self.certificates, now).map(|(_, standing)| standing);
        let is_served = standing.is_some_and(|standing| !standing.is_refused());
        let is_worse = |pair: &Pair| is_served && pair.standing(now).is_refused();
        let (source, pairs) = match &config.tls {
            Tls::Off => (Source::None, None),
            Tls::Files(files) => {
                let (own, pairs) =
                    OwnFiles::load(&self.certificates, files, domains).map_err(|errors| {
                        let told = errors.iter().map(|error| format!("tls: {}", chain(error)));
                        told.collect::<Vec<_>>()
                    })?;
                let worse = files.iter().zip(&pairs).filter(|(_, pair)| is_worse(pair));
                let worse: Vec<String> = worse
                    .map(|(files, pair)| {
                        let (file, standing) = (files.cert.display(), pair.standing(now));
                        format!("the certificate in {file} {standing}")
                    })
                    .collect();
                if !worse.is_empty() {
                    return Err(worse);
                }
                (Source::Own(own), Some(pairs))
            }
            Tls::Acme { options, .. } => {
                let metrics = self.metrics.clone();
                let acme = Acme::open(options.as_ref().clone(), &self.certificates, metrics);
                let acme = acme.map_err(|error| vec![format!("tls.acme: {}", chain(&error))])?;
                // One that has ended is renewed first, and one that is not for all names is better than none.
                let present = acme.present().filter(|pair| !is_worse(pair));
                let better_than_none = acme.stored().filter(|_| standing.is_none());
                let pairs = present.or(better_than_none).map(|pair| vec![pair.clone()]);
                (Source::Acme(Arc::new(acme)), pairs)
            }
            Tls::LocalCa => {
                let ca = LocalCa::open(state_dir, domains, now);
                let ca =
                    ca.map_err(|error| vec![format!("server.state_dir: {}", chain(&error))])?;
                let pairs = vec![ca.pair().clone()];
                (Source::LocalCa(ca), Some(pairs))
            }
        };
        Ok(Prepared { source, pairs })
    }

    /// Puts them in use, for all handshakes to come. What was being obtained before is dropped.
    pub(super) fn take_over(&self, prepared: Prepared) {
        let mut source = self.source();
        if let Source::Acme(before) = &*source {
            before.retire();
        }
        if let Some(pairs) = prepared.pairs {
            self.certificates.replace(pairs);
        }
        *source = prepared.source;
        self.plan.send_replace(match &*source {
            Source::Acme(acme) => Some(Arc::clone(acme)),
            Source::None | Source::Own(_) | Source::LocalCa(_) => None,
        });
    }
}

/// Obtains and renews certificates by the plan in force, for as long as this is not dropped. Another plan takes its
/// place at once, and the order of the one before is dropped with its proofs.
async fn obtain(mut plan: watch::Receiver<Plan>) {
    loop {
        let acme = plan.borrow_and_update().clone();
        let keep = async {
            match &acme {
                Some(acme) => acme.keep().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = plan.changed() => if changed.is_err() { return },
            () = keep => {}
        }
    }
}

impl Keeper {
    /// Loads the configured certificates, or opens the local CA.
    ///
    /// # Errors
    /// Why there are none, all that is wrong with them together. One outside its dates is no error.
    pub(super) fn open(config: &Config, metrics: CertificateMetrics) -> Result<Self, Failure> {
        let (plan, _) = watch::channel(None);
        let http_listen = match &config.tls {
            Tls::Acme { http_listen, .. } => *http_listen,
            Tls::Off | Tls::Files(_) | Tls::LocalCa => None,
        };
        let origin = Origin {
            certificates: Certificates::new(Vec::new()),
            source: Arc::new(Mutex::new(Source::None)),
            plan,
            answers_http: http_listen.is_some(),
            metrics,
        };
        let prepared = origin.build(config).map_err(|faults| {
            let told = faults.join("\n");
            match &config.tls {
                Tls::Files(_) => Failure::Usage(told),
                Tls::Off | Tls::Acme { .. } | Tls::LocalCa => Failure::Failed(told),
            }
        })?;
        origin.take_over(prepared);
        let mut keeper = Self {
            origin,
            shown: Vec::new(),
            said: None,
            uncovered: Vec::new(),
            unrenewed: None,
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
        Troubles {
            certificates: self.origin.certificates.clone(),
            plan: self.origin.plan.subscribe(),
        }
    }

    /// Obtains and renews them wherever that is by ACME, for as long as it is not dropped.
    pub(super) fn obtain(&self) -> impl Future<Output = ()> + Send + use<> {
        obtain(self.origin.plan.subscribe())
    }

    /// Has the operator's certificates read again when they are renewed.
    pub(super) fn reload_by(&self, reload: &mut Reload) {
        // Whether there are any may change, but not whether TLS is spoken.
        if matches!(&*self.origin.source(), Source::None) {
            return;
        }
        let origin = self.origin.clone();
        let files = move || match &*origin.source() {
            Source::Own(own) => own.paths(),
            Source::None | Source::Acme(_) | Source::LocalCa(_) => Vec::new(),
        };
        let origin = self.origin.clone();
        let renew = move || {
            // Another source takes the place of this one only between two calls; a file that cannot be read for a
            // while keeps nobody else from it.
            let own = match &*origin.source() {
                Source::Own(own) => own.clone(),
                Source::None | Source::Acme(_) | Source::LocalCa(_) => return Ok(Reread::Same),
            };
            let renewed = own.renew(SystemTime::now());
            renewed.map(Reread::from).map_err(|error| error.to_string())
        };
        reload.watch("certificates", files, renew);
    }

    /// Looks now and then for as long as it is not dropped, where it may wait for the disk.
    ///
    /// # Cancel safety
    /// A look that has begun comes to its end.
    pub(super) async fn keep_looking(self) {
        let keeper = Arc::new(Mutex::new(self));
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let keeper = Arc::clone(&keeper);
            let looked = tokio::task::spawn_blocking(move || {
                let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
                keeper.look();
            });
            // A panic was told when it happened, and the next look may do without.
            let _told = looked.await;
        }
    }

    /// Renews the local CA's certificate where it is due, for all handshakes to come, and tells how the
    /// certificates stand where that has changed. Blocks on the disk.
    fn look(&mut self) {
        let now = SystemTime::now();
        let certificates = &self.origin.certificates;
        if let Source::LocalCa(ca) = &mut *self.origin.source() {
            let renewed = ca.renew_if_due(now);
            if let Ok(true) = renewed {
                tracing::info!("the certificate was renewed");
                certificates.replace(vec![ca.pair().clone()]);
            }
            // It is tried again at every look, and fails alike.
            let failure = renewed.err().map(|error| chain(&error));
            if failure != self.unrenewed {
                if let Some(error) = &failure {
                    tracing::error!(error, "the certificate could not be renewed");
                }
                self.unrenewed = failure;
            }
        }
        self.shown = self.origin.metrics.show(certificates, &self.shown);
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
        let uncovered: Vec<String> = match &*self.origin.source() {
            Source::Own(own) => own.uncovered().into_iter().map(str::to_owned).collect(),
            Source::None | Source::Acme(_) | Source::LocalCa(_) => Vec::new(),
        };
        if uncovered != self.uncovered {
            if !uncovered.is_empty() {
                let names = uncovered.join(", ");
                tracing::warn!(
                    certificate.missing = names,
                    "no certificate is for some of server.domains"
                );
            }
            self.uncovered = uncovered;
        }
    }
}

/// What operators should know of the certificates. Clones share it.
#[derive(Clone)]
pub(super) struct Troubles {
    certificates: Certificates,
    plan: watch::Receiver<Plan>,
}

impl Troubles {
    /// That the one which most wants to be looked at ends soon, or that clients refuse it as far as this host's
    /// clock tells; and why there is no new one.
    pub(super) fn list(&self) -> Vec<String> {
        let worst = worst(&self.certificates, SystemTime::now());
        let of_dates = worst.and_then(|(name, standing)| {
            let hint = match standing {
                Standing::Good { .. } => return None,
                Standing::NotYet { .. } => "; look at this host's clock",
                Standing::EndsSoon { .. } | Standing::Ended { .. } => "; renew it",
            };
            Some(format!("{name}: {standing}{hint}"))
        });
        let plan = self.plan.borrow().clone();
        let of_acme = plan.and_then(|acme| acme.trouble());
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
