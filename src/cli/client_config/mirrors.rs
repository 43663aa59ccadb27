//! Which registries' images can be had through the proxy, and how a client has to ask for them.
//!
//! Whether a name leads to where it should is asked of the routes themselves, with a name that no
//! pattern of the operator's is likely to be about.

use std::str::FromStr as _;

use crate::access::{Action, Who};
use crate::cli::clients::{self, ClientHost};
use crate::config::{Config, Route};
use crate::oci::{Because, NameRoute, Namespace, RepositoryName, Routes};
use crate::upstream::Registry;

const DOCKER_HUB: &str = "docker.io";
/// Every registry that is not named by itself, as a route's `ns` has it.
const ANY: &str = "*";
/// Two components: with one, Docker Hub's `library/` comes before it.
const PROBE: &str = "ecr-proxy/any-name";
/// dockerd puts `library/` before it by itself.
const PROBE_OF_DOCKER: &str = "library/any-name";

/// A registry whose images can be had through the proxy by clients that tell which registry they are of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    /// As images are written with it, or `*`.
    pub(super) registry: String,
    /// Where to ask.
    pub(super) host: ClientHost,
    /// Its routes, where they are about some of its names alone; clients have the others from itself.
    pub(super) only: Vec<String>,
    /// Routes that are about a name whatever registry it is of, and lead elsewhere.
    pub(super) elsewhere: Vec<String>,
}

impl Mirror {
    pub(super) fn is_docker_hub(&self) -> bool {
        self.registry == DOCKER_HUB
    }

    /// Whether it is that of all registries that have none of their own.
    pub(super) fn is_of_any(&self) -> bool {
        self.registry == ANY
    }

    /// Where the registry itself is asked; `None` for any, of which each has its own.
    pub(super) fn server(&self) -> Option<String> {
        match self.registry.as_str() {
            ANY => None,
            DOCKER_HUB => Some("https://registry-1.docker.io".to_owned()),
            registry => Some(format!("https://{registry}")),
        }
    }
}

/// How docker.io is mirrored for dockerd, which tells of no registry and has no password for a mirror.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DockerMirror {
    /// By these hosts.
    Hosts(Vec<ClientHost>),
    /// This one would, but asks for a password, and takes no certificate instead.
    AsksForPassword(ClientHost),
    /// Nothing at the root of a domain leads there.
    None,
}

/// The proxy's names, and where what is asked of them leads.
pub(super) struct Mirrors<'a> {
    config: &'a Config,
    hosts: &'a [ClientHost],
    routes: Routes,
    leading: Vec<&'a Route>,
}

impl<'a> Mirrors<'a> {
    pub(super) fn new(config: &'a Config, hosts: &'a [ClientHost]) -> Self {
        Self {
            config,
            hosts,
            routes: config.names().routes().as_ref().clone(),
            leading: config.leading_routes().map(|(_, route)| route).collect(),
        }
    }

    /// Each registry whose images can be had by telling of it, at a host where anybody may pull anything if
    /// there is one; and last, where a route is for any, what stands for those that no key names.
    pub(super) fn by_registry(&self) -> Vec<Mirror> {
        let mut mirrors = Vec::new();
        for registry in self.registries() {
            let mut at: Vec<&ClientHost> = self.hosts.iter().collect();
            at.retain(|host| self.leads(self.domain(host), &registry));
            let leads_all = |host: &&ClientHost| self.leads_all(self.domain(host), &registry);
            if at.iter().any(leads_all) {
                at.retain(leads_all);
            }
            // Where only some of it is anybody's, nobody gets the rest.
            let is_open = |host: &&&ClientHost| self.is_open(host, &registry, PROBE);
            let asks = |host: &&&ClientHost| !clients::admits_anonymous(self.config, host);
            let host = at.iter().find(is_open).or_else(|| at.iter().find(asks));
            let Some(host) = host.or(at.first()) else {
                continue;
            };
            let (only, elsewhere) = self.exceptions(self.domain(host), &registry);
            mirrors.push(Mirror {
                host: (*host).clone(),
                registry,
                only,
                elsewhere,
            });
        }
        mirrors
    }

    /// Whether anybody may pull what `probe` stands for of the registry at `host`, at least from some networks.
    fn is_open(&self, host: &ClientHost, registry: &str, probe: &str) -> bool {
        let domain = self.domain(host);
        let led = name(probe).and_then(|name| {
            let led = self.routes.find(domain, Some(registry), &name)?;
            Some((led, name))
        });
        led.is_some_and(|(led, name)| {
            let rules = &self.config.access.rules;
            let upstream = &led.repo.upstream;
            let deciding = rules.explain(&Who::Anonymous, domain, upstream, &name, Action::Pull);
            deciding.iter().any(|deciding| deciding.allows)
        })
    }

    /// What stands for the registry of a mirror in the name of an image, for clients that tell of none:
    /// the mirror's host where all it is asked for is of that registry, else a host and a prefix.
    pub(super) fn by_name(&self, mirror: &Mirror) -> Option<String> {
        let domain = self.domain(&mirror.host);
        let probe = name(PROBE)?;
        let led = self.routes.find(domain, Some(&mirror.registry), &probe)?;
        let untold = self.routes.find(domain, None, &probe);
        if untold.is_some_and(|untold| untold.repo == led.repo) {
            return Some(mirror.host.to_string());
        }
        let written = self.routes.written(&led.repo)?;
        let host = match &written.domain {
            None => &mirror.host,
            Some(domain) => self.hosts.iter().find(|host| host.name == *domain)?,
        };
        let prefix = written.repository.as_str().strip_suffix(PROBE)?;
        Some(format!("{host}/{prefix}").trim_end_matches('/').to_owned())
    }

    /// See [`DockerMirror`].
    pub(super) fn of_docker(&self) -> DockerMirror {
        let mut all: Vec<&ClientHost> = self.hosts.iter().collect();
        all.retain(|host| self.is_docker_hub(self.domain(host)));
        let mut open = all.clone();
        open.retain(|host| self.is_open(host, DOCKER_HUB, PROBE_OF_DOCKER));
        let mut known = all.clone();
        let takes = self.config.client_certificates.is_some();
        known.retain(|host| takes && host.tls && !clients::admits_anonymous(self.config, host));
        let hosts = |of: &[&ClientHost]| {
            DockerMirror::Hosts(of.iter().map(|host| (*host).clone()).collect())
        };
        match (&open[..], &known[..], &all[..]) {
            ([], [], []) => DockerMirror::None,
            ([], [], [closed, ..]) => DockerMirror::AsksForPassword((*closed).clone()),
            ([], known, _) => hosts(known),
            (open, _, _) => hosts(open),
        }
    }

    /// Whether a name of docker.io leads to the same place whether the client tells of docker.io or not.
    fn is_docker_hub(&self, domain: Option<&str>) -> bool {
        let Some(probe) = name(PROBE_OF_DOCKER) else {
            return false;
        };
        let plain = self.routes.find(domain, None, &probe);
        let told = self.routes.find(domain, Some(DOCKER_HUB), &probe);
        let is_same = plain.zip(told).is_some_and(|(a, b)| a.repo == b.repo);
        is_same && self.leads_name(domain, DOCKER_HUB, &probe) == Some(true)
    }

    /// Every registry that the configuration names, once, and after them what stands for any other.
    fn registries(&self) -> Vec<String> {
        let homes = self.config.upstreams.iter();
        let homes = homes.map(|upstream| upstream.registry.name().to_owned());
        let routes = self.leading.iter();
        let named = routes.filter_map(|route| route.names.registry().map(canonical));
        let is_any = |route: &&&Route| route.names.ns == Some(Namespace::Any);
        let any = self.leading.iter().find(is_any).map(|_| ANY.to_owned());
        let mut registries = Vec::new();
        for registry in homes.chain(named).chain(any) {
            // What has a name of ours is asked for by that.
            let mut hosts = self.hosts.iter();
            let is_ours = self.routes.own_name(&registry).is_some()
                || hosts.any(|host| host.to_string() == registry);
            if !is_ours && !registries.contains(&registry) {
                registries.push(registry);
            }
        }
        registries
    }

    fn leads(&self, domain: Option<&str>, registry: &str) -> bool {
        let Some(probe) = name(PROBE) else {
            return false;
        };
        let led = self.leads_name(domain, registry, &probe);
        led.unwrap_or_else(|| !self.exceptions(domain, registry).0.is_empty())
    }

    /// The same of names that no pattern is about.
    fn leads_all(&self, domain: Option<&str>, registry: &str) -> bool {
        name(PROBE).and_then(|probe| self.leads_name(domain, registry, &probe)) == Some(true)
    }

    /// Whether a name of the registry leads to what the operator means by it; `None` if nowhere.
    fn leads_name(
        &self,
        domain: Option<&str>,
        registry: &str,
        name: &RepositoryName,
    ) -> Option<bool> {
        let led = self.routes.find(domain, Some(registry), name)?;
        Some(match led.because {
            Because::Registry | Because::OnlyUpstream => true,
            Because::Route(number) => {
                let route = self.leading.get(number)?;
                route.names.ns.is_some() || self.is_of_its_own(route, registry)
            }
        })
    }

    /// The routes of some of the registry's names, where there is none of all; and those that take such
    /// names elsewhere, before the one of all.
    fn exceptions(&self, domain: Option<&str>, registry: &str) -> (Vec<String>, Vec<String>) {
        let (mut only, mut elsewhere) = (Vec::new(), Vec::new());
        let all = name(PROBE).and_then(|probe| self.routes.find(domain, Some(registry), &probe));
        for (number, route) in self.leading.iter().enumerate() {
            let names = &route.names;
            if all.as_ref().map(|led| led.because) == Some(Because::Route(number)) {
                break;
            }
            if names.domain.is_some() && names.domain.as_deref() != domain {
                continue;
            }
            match &names.ns {
                Some(Namespace::Registry(own)) if canonical(own) == registry && all.is_none() => {
                    only.push(route.to_string());
                }
                Some(Namespace::Any) if all.is_none() => only.push(route.to_string()),
                // That of the registry itself, where there is one.
                Some(Namespace::Registry(_)) => {}
                Some(Namespace::Any) | None if self.is_of_its_own(route, registry) => {}
                Some(Namespace::Any) => elsewhere.push(route.to_string()),
                None if names.repository.is_some() || self.is_home(route, registry) => {
                    elsewhere.push(route.to_string());
                }
                None => {}
            }
        }
        (only, elsewhere)
    }

    /// Whether a route leads the registry's names to the registry, as they are.
    fn is_of_its_own(&self, route: &Route, registry: &str) -> bool {
        let NameRoute {
            strip_prefix,
            add_prefix,
            ..
        } = &route.names;
        strip_prefix.is_none() && add_prefix.is_none() && self.is_home(route, registry)
    }

    /// Whether a route leads to the registry.
    fn is_home(&self, route: &Route, registry: &str) -> bool {
        let mut upstreams = self.config.upstreams.iter();
        upstreams.any(|it| {
            *it.name == *route.names.upstream && it.registry.name().eq_ignore_ascii_case(registry)
        })
    }

    fn domain(&self, host: &ClientHost) -> Option<&str> {
        self.routes.domain(&host.name)
    }
}

fn name(text: &str) -> Option<RepositoryName> {
    RepositoryName::from_str(text).ok()
}

fn canonical(registry: &str) -> String {
    Registry::parse(registry).map_or_else(
        |_| registry.to_owned(),
        |registry| registry.name().to_owned(),
    )
}
