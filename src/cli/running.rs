//! The configuration of a proxy that runs, and how another one takes its place: all of it that can, at once,
//! or nothing.
//!
//! Whatever can fail is prepared first. What is taken over then is a few stores of a pointer, of which none
//! waits: a request sees one [`Policy`], and the upstreams of its policy for as long as it holds that.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use super::certificate::Origin;
use super::client_certificates::Handshakes;
use super::mechanisms::Mechanisms;
use super::{chain, users};
use crate::access::{Access, Verdicts};
use crate::config::{Config, Faults, Files, Prefetch};
use crate::jobs::warm::Schedule;
use crate::jobs::{Reload, Reread};
use crate::proxy::{AskedUpstream, Policy, Pulled};
use crate::server::Terms;
use crate::upstream::{UpstreamOptions, UpstreamSet, Upstreams};

/// Reads the configuration from where it was read at start.
pub(super) type Load = Box<dyn FnMut(Files) -> Result<Config, Faults> + Send>;

/// What of a running proxy goes by the configuration. Clones share it.
#[derive(Clone)]
pub(super) struct Running {
    /// What is in use. Where a key is read at start only, what it says now may not be.
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) terms: Arc<ArcSwap<Terms>>,
    pub(super) certificates: Origin,
    pub(super) handshakes: Handshakes,
    pub(super) mechanisms: Mechanisms,
    pub(super) schedules: watch::Sender<Vec<Schedule>>,
    pub(super) pulls: mpsc::Sender<Pulled>,
}

/// What requests are judged by, as the configuration says.
pub(super) fn policy(
    config: &Config,
    access: Access,
    upstreams: UpstreamSet,
    pulls: &mpsc::Sender<Pulled>,
) -> Policy {
    Policy {
        routes: Arc::clone(config.names().routes()),
        trusted_proxies: config.server.trusted_proxies.clone(),
        access,
        upstreams,
        pulls: match config.cache.prefetch {
            Prefetch::Off => None,
            Prefetch::Layers => Some(pulls.clone()),
        },
    }
}

/// Who is asked about ECR tokens, where the configuration takes them as logins.
pub(super) fn verdicts(config: &Config, upstreams: &Upstreams) -> Option<Arc<dyn Verdicts>> {
    let asked = || Arc::new(AskedUpstream::new(upstreams.clone())) as Arc<dyn Verdicts>;
    config.access.aws_tokens.then(asked)
}

impl Running {
    /// Has the configuration read again by `load` when the operator asks for it, and the files of
    /// `tls.client_ca` when they change.
    pub(super) fn reload_by(&self, load: Option<Load>, reload: &mut Reload) {
        let of = self.clone();
        let files = move || {
            let config = of.config.load();
            let clients = config.client_certificates.iter();
            clients.map(|clients| clients.ca.clone()).collect()
        };
        let this = self.clone();
        reload.watch("client_ca", files, move || {
            let prepared = this.handshakes.prepare(&this.config.load())?;
            let is_other = prepared.is_some();
            if let Some(prepared) = prepared {
                this.handshakes.take_over(prepared);
            }
            Ok(Reread::from(is_other))
        });
        let Some(mut load) = load else {
            return;
        };
        let this = self.clone();
        let at_start = self.config.load_full();
        reload.when_asked("configuration", move || {
            let mut load = |files| load(files).map_err(|faults| one_line(&faults));
            // Where it says what it said, what its files hold is the business of those who watch them.
            let new = load(Files::Ignored)?;
            let mut changes = new.changes(&this.config.load(), &at_start);
            if changes.now.is_empty() {
                // Nobody watches those of upstreams.
                let in_use = this.mechanisms.upstreams.options();
                let files = |new: &Config| -> Result<_, String> {
                    Ok(Config::upstream_files_changed(&in_use, &upstreams(new)?))
                };
                // Where some were not looked at yet, all are before it is said that they changed.
                if !files(&new)?.is_empty() {
                    changes.now = files(&load(Files::Required)?)?;
                }
            }
            let reread = match changes.now.is_empty() {
                true => Reread::Same,
                false => this.take_over(load(Files::Required)?, changes.now)?,
            };
            if !changes.at_start.is_empty() {
                tracing::warn!(
                    reload.waiting = changes.at_start.join(", "),
                    "these keys were changed as well, and are read at the next start"
                );
            }
            Ok(reread)
        });
    }

    fn take_over(&self, new: Config, mut changed: Vec<&'static str>) -> Result<Reread, String> {
        let in_use = self.config.load_full();
        let new = new.with_fixed(&in_use);
        let certificates = self.certificates.prepare(&in_use, &new)?;
        let handshakes = self.handshakes.prepare(&new)?;
        let Mechanisms {
            store,
            upstreams: connected,
            fills,
            setting,
            ..
        } = &self.mechanisms;
        let upstreams = connected.prepare(upstreams(&new)?);
        let upstreams = upstreams.map_err(|error| format!("upstream: {}", chain(&error)))?;
        let are_others = upstreams.are_others(&connected.all());
        let access = &self.policy.load().access;
        let users = users::read(&new, access)?;
        // What these files hold counts as their keys do.
        for (key, section, is_other) in [
            ("access.users", "access.users", users != *access.users()),
            ("tls.client_ca", "tls.client_", handshakes.is_some()),
        ] {
            let is_named = changed.iter().any(|named| named.starts_with(section));
            if is_other && !is_named {
                changed.push(key);
            }
        }
        let mut access = access.with(users, new.access_options().rules);
        if are_others || new.access.aws_tokens != in_use.access.aws_tokens {
            let asked = access.with_verdicts(verdicts(&new, connected));
            access = asked.map_err(|error| format!("access.aws_tokens: {error}"))?;
        }
        let policy = policy(&new, access, Arc::clone(upstreams.set()), &self.pulls);

        // What is pinned from now on is not evicted by limits that are smaller from now on.
        store.pins().set_configured(new.cache.pins.iter().cloned());
        store.set_limits(new.max_size(), new.min_free());
        // Before any request is led to them.
        connected.take_over(upstreams, new.cache.max_upstream_bandwidth);
        fills.set_options(new.fill_options());
        if are_others {
            fills.forget_answers();
        }
        self.policy.store(Arc::new(policy));
        setting.store(Arc::new(new.operations_setting()));
        if let Some(prepared) = certificates {
            self.certificates.take_over(prepared);
        }
        if let Some(prepared) = handshakes {
            self.handshakes.take_over(prepared);
        }
        self.terms.store(Arc::new(new.server_terms()));
        self.schedules.send_replace(new.schedules());
        tell(&new, &in_use);
        self.config.store(Arc::new(new));
        Ok(Reread::ChangedIn(changed.join(", ")))
    }
}

fn upstreams(config: &Config) -> Result<Vec<UpstreamOptions>, String> {
    config.upstream_options().map_err(|error| chain(&error))
}

/// What is odd about a configuration that was not about the one before.
fn tell(new: &Config, before: &Config) {
    for warning in new.warnings.iter().filter(|w| !before.warnings.contains(w)) {
        tracing::warn!(config.warning = %warning, "configuration");
    }
}

fn one_line(faults: &Faults) -> String {
    let each: Vec<String> = faults.iter().map(ToString::to_string).collect();
    each.join("; ")
}
