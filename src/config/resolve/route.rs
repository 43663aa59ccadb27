//! `[[route]]`.

use std::sync::Arc;

use super::{Resolver, is_ours, known_upstream, our_domain, written_pattern};
use crate::config::{Config, Route, Server, Upstream};
use crate::oci::{NameRoute, Namespace, RepositoryName, Taken};
use crate::upstream::Registry;

impl Resolver {
    pub(super) fn routes(
        &mut self,
        server: Option<&Server>,
        upstreams: Option<&[Upstream]>,
    ) -> Option<Vec<Route>> {
        self.each("route", |this| this.route(server, upstreams))
    }

    fn route(&mut self, server: Option<&Server>, upstreams: Option<&[Upstream]>) -> Option<Route> {
        let domain = self.one("route.domain", |text| our_domain(text, server));
        let ns = self.one("route.ns", |text| match text {
            "*" => Ok(Namespace::Any),
            _ if is_ours(text, server) => Err(format!(
                "{text:?} is a name of ours, and no other registry's: name it by route.domain"
            )),
            _ => Registry::parse(text)
                .map(|registry| Namespace::Registry(registry.name().to_owned()))
                .map_err(|error| format!("{text:?}: {error}")),
        });
        let repository = self.one("route.repository", |text| written_pattern(text, server));
        let named = self.one("route.upstream", |text| known_upstream(text, upstreams));
        let strip_prefix = self.one("route.strip_prefix", prefix);
        let add_prefix = self.one("route.add_prefix", prefix);
        let upstream = match (&named, upstreams) {
            (Some(Some(name)), Some(all)) => all.iter().find(|upstream| upstream.name == *name),
            (Some(None), Some([only])) => Some(only),
            (Some(None), Some([_, _, ..])) => {
                self.fault(
                    "route.upstream",
                    "is missing: there are several, so say where the route leads",
                );
                None
            }
            _ => None,
        };
        let freshness = self.freshness(
            [
                "route.tag_ttl",
                "route.stale_if_error",
                "route.immutable_tags",
                "route.offline",
            ],
            upstream.map_or_else(Default::default, |upstream| upstream.freshness.clone()),
        );
        let (domain, ns, repository) = (domain?, ns?, repository?);
        let (named, strip_prefix, add_prefix) = (named?, strip_prefix?, add_prefix?);
        let leads = named.is_some()
            || domain.is_some()
            || ns.is_some()
            || strip_prefix.is_some()
            || add_prefix.is_some();
        if !leads && repository.is_none() {
            self.fault(
                "route.repository",
                "is missing: say which names the route is for, such as \"team/**\", by repository, \
                 domain, ns or upstream",
            );
            return None;
        }
        let names = NameRoute {
            domain,
            ns,
            repository,
            upstream: Arc::from(upstream?.name.as_str()),
            strip_prefix,
            add_prefix,
        };
        if names.upstream_pattern().is_none() {
            self.fault(
                "route.strip_prefix",
                "is not what names of route.repository begin with, so the route is for none",
            );
        }
        Some(Route {
            names,
            leads,
            freshness: freshness?,
        })
    }
}

/// Notes what works and is probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let leading: Vec<(usize, &Route)> = config.leading_routes().collect();
    if config.upstreams.len() > 1 && leading.is_empty() {
        return vec![format!(
            "route: there are {} upstreams, and no [[route]] leads to one: all names are refused but those that \
             a mirror is asked for by the name of their registry (?ns=)",
            config.upstreams.len()
        )];
    }
    let names = config.names();
    let routes = names.routes();
    let domains = config.server.domains.iter().map(|name| Some(name.as_str()));
    let at_any = config.server.domains.is_empty().then_some(None);
    let unled = domains.chain(at_any).filter(|domain| {
        // Without a route all that is asked is the one upstream's.
        !leading.is_empty() && routes.reached(*domain, None).is_empty()
    });
    let unled = unled.map(|domain| {
        format!(
            "route: nothing can be had by its plain name{}: each [[route]] is for another domain or for the name of \
             a registry (?ns=); one with upstream alone leads all the rest",
            domain.map_or_else(String::new, |domain| format!(" at {domain}"))
        )
    });
    let later = leading.iter().enumerate();
    let hidden = later.filter_map(|(at, (number, route))| {
        let taken = |(number, first): &(usize, &Route)| {
            let taken = routes.taken(&first.names, &route.names)?;
            Some((taken, format!("[[route]] {number}: {first}")))
        };
        let taken = leading[..at].iter().filter_map(taken);
        let (taken, first) = taken.min_by_key(|(taken, _)| *taken != Taken::All)?;
        let leads = match taken {
            Taken::All => "nothing",
            Taken::Untold => "only what is asked for by the name of a registry (?ns=)",
        };
        Some(format!(
            "route: [[route]] {number}: {route} leads {leads}, for the same names are led by {first} before it: \
             put the narrower one first, give it an ns, or leave it out"
        ))
    });
    unled.chain(hidden).collect()
}

/// Whole components, with or without a slash at the end.
fn prefix(text: &str) -> Result<RepositoryName, String> {
    let name = text.strip_suffix('/').unwrap_or(text);
    let name = name.parse::<RepositoryName>();
    name.map_err(|error| format!("{text:?}: {error}; it is whole components, such as \"team/\""))
}
