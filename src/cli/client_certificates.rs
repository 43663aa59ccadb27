//! Whose client certificates are taken, and whom they name, also when that changes while the proxy runs.
//!
//! A handshake goes by what is in use when its connection is accepted, and no session of an earlier way is
//! resumed. A connection that was made another way is judged anew at each of its requests, so that who is not
//! trusted any more is refused at the next one.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::chain;
use crate::access::Certified;
use crate::config::Config;
use crate::server::{Client, Handshake, NameClient};
use crate::tls::{self, Certificates, ClientCa, ClientUser};

/// How handshakes are made and clients named. Clones share it.
#[derive(Clone)]
pub(super) struct Handshakes {
    certificates: Certificates,
    /// Stored before `in_use`: a client that is named by an old rule is asked by the new one.
    rule: Arc<ArcSwap<Rule>>,
    in_use: Arc<ArcSwap<Handshake>>,
}

/// Whose certificates are taken, if any are.
struct Rule {
    clients: Option<(ClientCa, ClientUser)>,
    /// Another one for each.
    number: u64,
}

/// Another way, ready to be used.
pub(super) struct Prepared {
    rule: Rule,
    handshake: Handshake,
}

impl Handshakes {
    /// As the configuration says, showing `certificates`.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn open(config: &Config, certificates: &Certificates) -> Result<Self, String> {
        let Prepared { rule, handshake } = prepared(clients(config)?, certificates, 0)?;
        Ok(Self {
            certificates: certificates.clone(),
            rule: Arc::new(ArcSwap::from_pointee(rule)),
            in_use: Arc::new(ArcSwap::from_pointee(handshake)),
        })
    }

    /// For listeners that speak TLS.
    pub(super) fn in_use(&self) -> Arc<ArcSwap<Handshake>> {
        Arc::clone(&self.in_use)
    }

    /// What another configuration wants instead, its files read; `None` if it wants what there is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn prepare(&self, config: &Config) -> Result<Option<Prepared>, String> {
        let clients = clients(config)?;
        let rule = self.rule.load();
        if clients == rule.clients {
            return Ok(None);
        }
        prepared(clients, &self.certificates, rule.number + 1).map(Some)
    }

    /// Puts it in use, for handshakes and requests to come.
    pub(super) fn take_over(&self, prepared: Prepared) {
        self.rule.store(Arc::new(prepared.rule));
        self.in_use.store(Arc::new(prepared.handshake));
    }

    /// What the certificate that a client once showed says of who is asking, now; `None` if certificates are
    /// not looked at any more.
    pub(super) fn certified(&self, client: &Client) -> Option<Certified> {
        let rule = self.rule.load();
        let (ca, user) = rule.clients.as_ref()?;
        let now = SystemTime::now();
        if client.handshake == rule.number {
            return Some(certified(client.name.as_ref(), client.until, now));
        }
        let named = client.chain.first().and_then(|own| user.of(own));
        let trusted = named.filter(|_| ca.would_take(&client.chain, now));
        Some(match trusted {
            Some((name, until)) => certified(name.map(Arc::from).as_ref(), until, now),
            None => Certified::Nobody,
        })
    }
}

/// A connection may outlive the certificate that it began with.
fn certified(name: Option<&Arc<str>>, until: SystemTime, now: SystemTime) -> Certified {
    match name {
        Some(name) if now < until => Certified::User(Arc::clone(name)),
        _ => Certified::Nobody,
    }
}

fn clients(config: &Config) -> Result<Option<(ClientCa, ClientUser)>, String> {
    let Some(clients) = &config.client_certificates else {
        return Ok(None);
    };
    let ca = ClientCa::load(&clients.ca);
    let ca = ca.map_err(|error| format!("tls.client_ca: {}", chain(&error)))?;
    Ok(Some((ca, clients.user)))
}

fn prepared(
    clients: Option<(ClientCa, ClientUser)>,
    certificates: &Certificates,
    number: u64,
) -> Result<Prepared, String> {
    let ca = clients.as_ref().map(|(ca, _)| ca);
    let tls = tls::server_config(certificates, ca).map_err(|error| chain(&error))?;
    let handshake = Handshake {
        tls,
        name_client: clients.as_ref().map(|(_, user)| name_by(*user)),
        number,
    };
    Ok(Prepared {
        rule: Rule { clients, number },
        handshake,
    })
}

/// Names clients by this part of their certificates.
fn name_by(user: ClientUser) -> NameClient {
    Arc::new(move |certificate| match user.of(certificate) {
        Some((name, until)) => (name.map(Arc::from), until),
        None => (None, SystemTime::UNIX_EPOCH),
    })
}
