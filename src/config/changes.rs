//! What is written otherwise than before.

use std::collections::{BTreeMap, BTreeSet};

use super::keys;
use super::sources::{Settings, Tables};
use super::{Cache, Config, Server, Tls};
use crate::tls::AcmeOptions;

/// Every key that is set, wherever that may be, with its texts. Of a section that is there several times each
/// table counts by its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written(BTreeMap<&'static str, Vec<(usize, Vec<String>)>>);

impl Written {
    pub(super) fn of(settings: &Settings, tables: &Tables) -> Self {
        let mut written = Self::default();
        written.add(0, settings);
        for table in tables.values() {
            for (place, table) in table.iter().enumerate() {
                written.add(place, &table.settings);
            }
        }
        written
    }

    fn add(&mut self, place: usize, settings: &Settings) {
        for (key, setting) in settings {
            let values = setting.values.clone();
            self.0.entry(*key).or_default().push((place, values));
        }
    }

    /// The keys whose texts differ.
    fn differing(&self, other: &Self) -> BTreeSet<&'static str> {
        let keys = self.0.keys().chain(other.0.keys());
        keys.filter(|key| self.0.get(*key) != other.0.get(*key))
            .copied()
            .collect()
    }
}

/// The keys in which a configuration that was read again differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// From what is in use: they can be taken over while the proxy runs.
    pub now: Vec<&'static str>,
    /// From what the proxy was started with: they have to wait for the next start.
    pub at_start: Vec<&'static str>,
}

impl Config {
    /// The same with the listeners and directories that are in use: other ones wait, and so do certificates for
    /// listeners that speak TLS where those in use do not, or the other way round.
    #[must_use]
    pub fn with_fixed(self, in_use: &Self) -> Self {
        let server = &in_use.server;
        let tls = match self.tls {
            Tls::Acme {
                options,
                http_listen,
            } if in_use.speaks_tls() => Tls::Acme {
                options: Box::new(AcmeOptions {
                    state_dir: server.state_dir.clone(),
                    ..*options
                }),
                http_listen,
            },
            tls @ (Tls::Files(_) | Tls::LocalCa) if in_use.speaks_tls() => tls,
            Tls::Off | Tls::Files(_) | Tls::Acme { .. } | Tls::LocalCa => in_use.tls.clone(),
        };
        Self {
            tls,
            server: Server {
                listen: server.listen.clone(),
                state_dir: server.state_dir.clone(),
                admin: server.admin,
                admin_socket: server.admin_socket.clone(),
                ..self.server
            },
            cache: Cache {
                dir: in_use.cache.dir.clone(),
                ..self.cache
            },
            ..self
        }
    }

    /// What differs from the configuration in use, and from the one at start.
    pub fn changes(&self, in_use: &Self, at_start: &Self) -> Changes {
        let others_speak = self.speaks_tls() != at_start.speaks_tls();
        let is_fixed = |key: &&'static str| {
            let is_of_source = key.starts_with("tls.") && !key.starts_with("tls.client_");
            keys::is_fixed(key) || (others_speak && is_of_source)
        };
        let now = self.written.differing(&in_use.written);
        let waiting = self.written.differing(&at_start.written);
        Changes {
            now: now.into_iter().filter(|key| !is_fixed(key)).collect(),
            at_start: waiting.into_iter().filter(is_fixed).collect(),
        }
    }

    /// Whether certificates are of any use.
    fn speaks_tls(&self) -> bool {
        !matches!(self.tls, Tls::Off)
    }
}
