//! The certificates in use, looked after: renewed where they are our own, and told of where they end.

use std::mem::discriminant;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::gauge::Gauge;

use super::{Failure, chain};
use crate::config::{Config, Tls};
use crate::tls::{Certificates, LocalCa, Pair, Standing};

/// How often the dates are looked at. A leaf of the local CA is renewed a month ahead, but a clock that
/// is corrected after start may leave it expired all at once, and no client waits long for another.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What shows the certificates, and who renews them.
pub(super) struct Keeper {
    certificates: Certificates,
    local_ca: Option<LocalCa>,
    expiry: Gauge,
    /// What was last said in the log of the worst of them.
    said: Option<Standing>,
}

impl Keeper {
    /// Loads the configured certificate, or opens the local CA. `expiry` is set to the earliest end, in
    /// seconds of Unix time.
    ///
    /// # Errors
    /// Why there is none. One outside its dates is no error.
    pub(super) fn open(config: &Config, expiry: Gauge) -> Result<Self, Failure> {
        let failed = |error: &dyn std::error::Error| Failure::Failed(chain(error));
        let (pairs, local_ca) = match &config.tls {
            Tls::Off => (Vec::new(), None),
            Tls::Files { cert, key } => {
                let pair = Pair::load(cert, key).map_err(|error| failed(&error))?;
                (vec![pair], None)
            }
            Tls::LocalCa => {
                let (state_dir, domains) = (&config.server.state_dir, &config.server.domains);
                let ca = LocalCa::open(state_dir, domains, SystemTime::now())
                    .map_err(|error| failed(&error))?;
                (vec![ca.pair().clone()], Some(ca))
            }
        };
        let mut keeper = Self {
            certificates: Certificates::new(pairs),
            local_ca,
            expiry,
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
        self.local_ca.as_ref()
    }

    /// Renews the local CA's certificate where it is due, for all handshakes to come, and says how the
    /// certificates stand where that has changed.
    pub(super) fn look(&mut self) {
        let now = SystemTime::now();
        if let Some(ca) = &mut self.local_ca {
            match ca.renew_if_due(now) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("the certificate was renewed");
                    self.certificates.replace(vec![ca.pair().clone()]);
                }
                Err(error) => tracing::error!(%error, "the certificate could not be renewed"),
            }
        }
        let seconds = self
            .certificates
            .not_after()
            .and_then(|end| end.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |end| i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
        self.expiry.set(seconds);
        let standing = worst(&self.certificates, now);
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

/// Why clients refuse one of the certificates, as far as this host's clock tells.
pub(super) fn refused(certificates: &Certificates) -> Option<String> {
    let standing = worst(certificates, SystemTime::now())?;
    standing.is_refused().then(|| {
        let hint = match standing {
            Standing::NotYet { .. } => "; look at this host's clock",
            _ => "",
        };
        format!("{standing}{hint}")
    })
}

/// The standing of the certificate that most wants to be looked at.
fn worst(certificates: &Certificates, now: SystemTime) -> Option<Standing> {
    let pairs = certificates.pairs();
    let standings = pairs.iter().map(|pair| pair.standing(now));
    standings.max_by_key(|standing| match standing {
        Standing::Good { .. } => 0,
        Standing::EndsSoon { .. } => 1,
        Standing::NotYet { .. } => 2,
        Standing::Ended { .. } => 3,
    })
}
