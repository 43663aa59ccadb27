//! From settings to a [`Config`]: defaults, parsing, and the rules that span several keys.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | the whole, and the rules that span several sections |
//! | `reading` | one setting as a value, or a fault with its place |
//! | `server`, `tls`, `cache`, `access`, `upstream`, `route`, `warm` | one section each |

mod access;
mod cache;
mod reading;
mod route;
mod server;
mod tls;
mod upstream;
mod warm;

use std::path::PathBuf;

use super::changes::Written;
use super::{Config, Faults, Freshness, Sources};
use reading::Resolver;

pub(super) fn load(sources: Sources<'_>) -> Result<Config, Faults> {
    let log_filter = sources.environment.get("RUST_LOG");
    let (mut resolver, file, warnings) = Resolver::new(sources);
    let config = resolver.config(file.clone(), warnings, log_filter);
    resolver.finish(file, config)
}

pub(super) fn state_dir(sources: Sources<'_>) -> Result<PathBuf, Faults> {
    let (mut resolver, file, _) = Resolver::new(sources);
    let state_dir = resolver.state_dir();
    resolver.finish(file, state_dir)
}

impl Resolver {
    /// `None` only if a fault was noted.
    fn config(
        &mut self,
        file: Option<PathBuf>,
        warnings: Vec<String>,
        log_filter: Option<String>,
    ) -> Option<Config> {
        let written = Written::of(&self.settings, &self.tables);
        let server = self.server();
        let tls = self.tls(server.as_ref());
        let client_certificates = self.client_certificates(server.as_ref());
        let freshness = self.freshness(cache::FRESHNESS, Freshness::default());
        let upstream = self.upstream(freshness.clone().unwrap_or_default());
        let names = match (&server, &upstream) {
            (Some(server), Some(upstream)) => Some(upstream.names(&server.domains)),
            _ => None,
        };
        let cache = self.cache(freshness, names.as_ref());
        let access = self.access(server.as_ref(), upstream.as_ref());
        let routes = self.routes(upstream.as_ref());
        let warm = self.warm(names.as_ref());
        let mut config = Config {
            file,
            warnings,
            log_filter,
            server: server?,
            tls: tls?,
            client_certificates: client_certificates?,
            cache: cache?,
            access: access?,
            upstream: upstream?,
            routes: routes?,
            warm: warm?,
            written,
        };
        config.warnings.extend(access::warnings(&config));
        Some(config)
    }
}
