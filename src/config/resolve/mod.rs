//! From settings to a [`Config`]: defaults, parsing, and the rules that span several keys.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | the whole, and the rules that span several sections |
//! | `reading` | one setting as a value, or a fault with its place |
//! | `server`, `tls`, `cache`, `access`, `upstream`, `route`, `warm` | one section each |
//! | `template` | what is made when it is pushed to |

mod access;
mod cache;
mod reading;
mod route;
mod server;
mod template;
mod tls;
mod upstream;
mod warm;

use std::path::PathBuf;

use super::changes::Written;
use super::{Config, Faults, Freshness, Server, Sources, Upstream, parts, values};
use crate::oci::Pattern;
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
        let upstreams = self.upstreams(freshness.clone().unwrap_or_default());
        let routes = self.routes(server.as_ref(), upstreams.as_deref());
        let names = match (&server, &upstreams, &routes) {
            (Some(server), Some(upstreams), Some(routes)) => {
                Some(parts::names(&server.domains, routes, upstreams))
            }
            _ => None,
        };
        let cache = self.cache(freshness, names.as_ref());
        let access = self.access(server.as_ref(), upstreams.as_deref());
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
            upstreams: upstreams?,
            routes: routes?,
            warm: warm?,
            written,
        };
        config.warnings.extend(upstream::warnings(&config));
        config.warnings.extend(route::warnings(&config));
        config.warnings.extend(tls::warnings(&config));
        config.warnings.extend(access::warnings(&config));
        Some(config)
    }
}

/// A domain that is one of ours, as far as these are known.
fn our_domain(text: &str, server: Option<&Server>) -> Result<String, String> {
    let domain = values::domain(text)?;
    match server {
        Some(server) if !server.domains.contains(&domain) => {
            Err(format!("{text:?} is not among server.domains"))
        }
        _ => Ok(domain),
    }
}

/// Whether a text is a name of ours, as far as these are known.
fn is_ours(text: &str, server: Option<&Server>) -> bool {
    server.is_some() && our_domain(text, server).is_ok()
}

/// A pattern of repositories as clients write them, behind the domain: one that begins with a name of ours would be
/// about nothing.
fn written_pattern(text: &str, server: Option<&Server>) -> Result<Pattern, String> {
    let pattern = values::repository_pattern(text)?;
    match pattern.as_str().split_once('/') {
        Some((first, rest)) if is_ours(first, server) => Err(format!(
            "{text:?} begins with {first}, and names are matched without it: write {rest:?}, and name the \
             domain by its own key"
        )),
        _ => Ok(pattern),
    }
}

/// The name of an upstream that there is, as far as these are known.
fn known_upstream(text: &str, upstreams: Option<&[Upstream]>) -> Result<String, String> {
    let name = values::upstream_name(text)?;
    let names = upstreams.map(|all| all.iter().map(|upstream| upstream.name.as_str()));
    match names {
        Some(mut names) if !names.clone().any(|known| known == name) => {
            let first = names
                .next()
                .map_or(String::new(), |first| format!("{first:?}"));
            let known = names.fold(first, |list, name| format!("{list}, {name:?}"));
            Err(format!("{text:?} is no upstream; there is {known}"))
        }
        _ => Ok(name),
    }
}
