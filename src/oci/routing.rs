//! Which repository of which upstream a client's name means.
//!
//! Pure. A name is looked at with the domain that it was asked under and containerd's `ns`, the registry
//! that the image was named after. `ns` is compared and never dialled: what no route is about, and no
//! upstream is named, leads nowhere.

use std::sync::Arc;

use super::{Pattern, RepoKey, RepositoryName, host_of};

/// Docker Hub has one name in images and others on the wire.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];
/// Where Docker Hub keeps the images that are called by one word.
const DOCKER_HUB_OFFICIAL: &str = "library";

/// Which `ns` a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Any, none included.
    Any,
    /// This registry.
    Registry(String),
}

/// A route as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRoute {
    /// Only names asked under this domain of ours.
    pub domain: Option<String>,
    /// Only names of this registry.
    pub ns: Option<Namespace>,
    /// Only these, as clients write them.
    pub repository: Option<Pattern>,
    /// Where they lead.
    pub upstream: Arc<str>,
    /// Whole components that the name begins with and loses; what does not begin with them, or has no
    /// more, is none of the route's.
    pub strip_prefix: Option<RepositoryName>,
    /// What is put before the name after that.
    pub add_prefix: Option<RepositoryName>,
}

/// An upstream, as far as names lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The operator's name for it.
    pub upstream: Arc<str>,
    /// The registry's own, which images are written with.
    pub registry: String,
}

/// Why a name leads where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The route of this number, counted from 0.
    Route(usize),
    /// `ns` is the upstream's registry.
    Registry,
    /// There is one upstream and no route.
    OnlyUpstream,
}

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Led {
    /// The repository.
    pub repo: RepoKey,
    /// Why that one.
    pub because: Because,
}

/// What an earlier route takes of what a later one is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All, so the later one leads nothing.
    All,
    /// All but what is asked for with another registry's `ns`.
    Untold,
}

/// What clients may write for a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The domain or registry that it has to be written with, where it has to.
    pub domain: Option<String>,
    /// The name.
    pub repository: RepositoryName,
}

/// A way in which the names of an upstream are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renaming {
    /// Whole components that they begin with and lose.
    pub loses: Option<RepositoryName>,
    /// What is put before the rest.
    pub gains: Option<RepositoryName>,
}

impl Renaming {
    /// How a name is written; `None` where it does not begin so, or has no more.
    pub fn of(&self, name: &RepositoryName) -> Option<RepositoryName> {
        moved(name, self.loses.as_ref(), self.gains.as_ref())
    }
}

/// All routes, in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    domains: Vec<String>,
    routes: Vec<NameRoute>,
    homes: Vec<Home>,
}

impl Routes {
    /// `domains` are the names that we answer to, in lower case.
    pub fn new(domains: Vec<String>, routes: Vec<NameRoute>, homes: Vec<Home>) -> Self {
        Self {
            domains,
            routes,
            homes,
        }
    }

    /// The names that we answer to.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// Which of our names a host is, without its port.
    pub fn domain(&self, host: &str) -> Option<&str> {
        let mut domains = self.domains.iter().map(String::as_str);
        domains.find(|domain| domain.eq_ignore_ascii_case(host))
    }

    /// Which of our names an image is named after, with whatever port, if `registry` is no other server on that host
    /// which an upstream or a route is about.
    pub fn own_name(&self, registry: &str) -> Option<&str> {
        let ours = self.domain(host_of(registry))?;
        let homes = self.homes.iter().map(|home| home.registry.as_str());
        let routes = self.routes.iter().filter_map(NameRoute::registry);
        let is_another = |known: &str| {
            let known = known.strip_suffix(":443").unwrap_or(known);
            known != without_port(known)
        };
        let mut others = homes.chain(routes).filter(|known| is_another(known));
        (!others.any(|known| is_same_registry(known, registry))).then_some(ours)
    }

    /// The registry that images of this domain are of, whose port need not be told. One that is told is its.
    pub fn registry(&self, domain: &str) -> Option<&str> {
        let registries = || self.homes.iter().map(|home| home.registry.as_str());
        registries()
            .find(|registry| is_same_registry(registry, domain))
            .or_else(|| registries().find(|it| is_same_registry(without_port(it), domain)))
    }

    /// Where `repository` leads, asked under `domain` of ours, with this `ns`.
    pub fn find(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        repository: &RepositoryName,
    ) -> Option<Led> {
        let led = self.find_at(domain, self.foreign(ns), repository)?;
        // Images of another name of ours, asked for at this one, are what they are there or nothing.
        let other = ns.and_then(|ns| self.own_name(ns));
        let other = other.filter(|other| Some(*other) != domain);
        let is_there = |other| {
            let there = self.find_at(Some(other), None, repository);
            there.is_some_and(|there| there.repo == led.repo)
        };
        other.is_none_or(is_there).then_some(led)
    }

    fn find_at(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        repository: &RepositoryName,
    ) -> Option<Led> {
        let routes = self.routes.iter().enumerate();
        let mut routed = routes.filter(|(_, route)| self.applies(route, domain, ns, repository));
        let led = routed.find_map(|(number, route)| {
            let name = route.rewritten(repository)?;
            Some(self.led(&route.upstream, name, Because::Route(number)))
        });
        led.flatten().or_else(|| match ns {
            Some(ns) => {
                let mut homes = self.homes.iter();
                let home = homes.find(|home| is_same_registry(&home.registry, ns))?;
                self.led(&home.upstream, repository.clone(), Because::Registry)
            }
            None => match (&self.homes[..], &self.routes[..]) {
                ([only], []) => self.led(&only.upstream, repository.clone(), Because::OnlyUpstream),
                _ => None,
            },
        })
    }

    /// What a client may write to be led to `repo`, if anything: without a domain wherever all of ours
    /// lead there.
    pub fn written(&self, repo: &RepoKey) -> Option<Written> {
        let names = self.candidates(repo);
        let leads = |domain: Option<&str>, ns: Option<&str>, name: &RepositoryName| {
            self.leads(domain, ns, name, repo)
        };
        let domains = || self.domains.iter().map(String::as_str);
        let anywhere = |name: &&RepositoryName| match domains().next() {
            None => leads(None, None, name),
            Some(_) => domains().all(|domain| leads(Some(domain), None, name)),
        };
        if let Some(name) = names.iter().find(anywhere) {
            return Some(Written {
                domain: None,
                repository: name.clone(),
            });
        }
        let homes = self
            .homes
            .iter()
            .filter(|home| home.upstream == repo.upstream);
        let registries = self.routes.iter().filter_map(NameRoute::registry);
        let registries = registries.chain(homes.map(|home| home.registry.as_str()));
        let by_domain = domains().map(|domain| (domain, Some(domain), None));
        let first = domains().next();
        let by_registry = registries.map(|registry| (registry, first, Some(registry)));
        let mut ways = by_domain.chain(by_registry);
        ways.find_map(|(written, domain, ns)| {
            let name = names.iter().find(|name| leads(domain, ns, name))?;
            Some(Written {
                domain: Some(written.to_owned()),
                repository: name.clone(),
            })
        })
    }

    /// The ways in which clients may write the repositories of an upstream when they ask under `domain` of ours
    /// with this `ns`, each once. Not every name that one makes leads back.
    pub fn renamings(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        upstream: &str,
    ) -> Vec<Renaming> {
        let ns = self.foreign(ns);
        let ours = self.routes.iter();
        let ours =
            ours.filter(|route| *route.upstream == *upstream && self.is_for(route, domain, ns));
        let mut renamings: Vec<Renaming> = Vec::new();
        for renaming in ours.map(NameRoute::restoring).chain([Renaming::default()]) {
            if !renamings.contains(&renaming) {
                renamings.push(renaming);
            }
        }
        renamings
    }

    /// The upstreams that names may lead to when they are asked for under `domain` with this `ns`, each once.
    pub fn reached(&self, domain: Option<&str>, ns: Option<&str>) -> Vec<Arc<str>> {
        let mut reached: Vec<Arc<str>> = Vec::new();
        for (upstream, _) in self.patterns(domain, ns, &Pattern::any()) {
            if !reached.contains(&upstream) {
                reached.push(upstream);
            }
        }
        reached
    }

    /// What a client may write to be led to `repo` when it asks under `domain` of ours with this `ns`.
    pub fn names_of(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        repo: &RepoKey,
    ) -> Vec<RepositoryName> {
        let mut names = self.candidates(repo);
        names.retain(|name| self.leads(domain, ns, name, repo));
        names
    }

    fn leads(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        name: &RepositoryName,
        repo: &RepoKey,
    ) -> bool {
        self.find(domain, ns, name)
            .is_some_and(|led| led.repo == *repo)
    }

    /// What may be written for a repository somewhere: as each route to its upstream has it, and its own name.
    fn candidates(&self, repo: &RepoKey) -> Vec<RepositoryName> {
        let mut names: Vec<RepositoryName> = Vec::new();
        let ours = self.routes.iter();
        let ours = ours.filter(|route| route.upstream == repo.upstream);
        let restored = ours.filter_map(|route| route.restoring().of(&repo.repository));
        for name in restored.chain([repo.repository.clone()]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The patterns, with their upstreams, of what `pattern` describes when clients write it: each once.
    pub fn patterns(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        pattern: &Pattern,
    ) -> Vec<(Arc<str>, Pattern)> {
        let ns = self.foreign(ns);
        let mut found: Vec<(Arc<str>, Pattern)> = Vec::new();
        let mut add = |upstream: &Arc<str>, pattern: Pattern| {
            let one = (Arc::clone(upstream), self.pattern_at(upstream, pattern));
            if !found.contains(&one) {
                found.push(one);
            }
        };
        for route in &self.routes {
            if self.is_for(route, domain, ns)
                && let Some(renamed) = route.renamed(pattern)
            {
                add(&route.upstream, renamed);
            }
        }
        for home in &self.homes {
            let is_named = ns.is_some_and(|ns| is_same_registry(&home.registry, ns));
            let is_only = ns.is_none() && self.routes.is_empty() && self.homes.len() == 1;
            if is_named || is_only {
                add(&home.upstream, pattern.clone());
            }
        }
        found
    }

    /// What its upstream calls the repositories that a route is about, if any can be.
    pub fn upstream_pattern(&self, route: &NameRoute) -> Option<Pattern> {
        let pattern = route.upstream_pattern()?;
        Some(self.pattern_at(&route.upstream, pattern))
    }

    fn pattern_at(&self, upstream: &str, pattern: Pattern) -> Pattern {
        let is_word = pattern.as_str() != "**" && !pattern.as_str().contains('/');
        let official = format!("{DOCKER_HUB_OFFICIAL}/{pattern}");
        match is_word && self.is_docker_hub(upstream) {
            true => official.parse().unwrap_or(pattern),
            false => pattern,
        }
    }

    /// An `ns` that names another: clients of ours that name us as the registry name no other.
    fn foreign<'a>(&self, ns: Option<&'a str>) -> Option<&'a str> {
        ns.filter(|ns| self.own_name(ns).is_none())
    }

    /// What a route takes of what another is about that is tried after it; `None` if something is left that
    /// clients ask for without `ns`, or if the other is for what is asked for with one. Names that are too long
    /// with what the first puts before them do not count.
    pub fn taken(&self, first: &NameRoute, later: &NameRoute) -> Option<Taken> {
        let is_of_domain = first.domain.is_none() || first.domain == later.domain;
        let names = later.conditions();
        let is_of_names = |own: &Pattern| names.iter().any(|names| own.covers(names));
        if !is_of_domain || !first.conditions().iter().all(is_of_names) {
            return None;
        }
        match (&first.ns, &later.ns) {
            (Some(Namespace::Any), _) => Some(Taken::All),
            (Some(Namespace::Registry(own)), Some(Namespace::Registry(other))) => {
                is_same_registry(own, other).then_some(Taken::All)
            }
            (Some(Namespace::Registry(_)), Some(Namespace::Any) | None) => None,
            // It is for its names whatever `ns` is.
            (None, _) if first.repository.is_some() => Some(Taken::All),
            (None, None) if later.repository.is_none() && first.upstream == later.upstream => {
                Some(Taken::All)
            }
            (None, None) => Some(Taken::Untold),
            (None, Some(Namespace::Registry(other))) => {
                self.is_of(&first.upstream, other).then_some(Taken::All)
            }
            (None, Some(Namespace::Any)) => None,
        }
    }

    /// Whether the registry of an upstream is the one of this name.
    fn is_of(&self, upstream: &str, registry: &str) -> bool {
        let mut homes = self.homes.iter();
        let home = homes.find(|home| *home.upstream == *upstream);
        home.is_some_and(|home| is_same_registry(&home.registry, registry))
    }

    fn is_docker_hub(&self, upstream: &str) -> bool {
        self.is_of(upstream, DOCKER_HUB)
    }

    fn applies(
        &self,
        route: &NameRoute,
        domain: Option<&str>,
        ns: Option<&str>,
        repository: &RepositoryName,
    ) -> bool {
        let pattern = route.repository.as_ref();
        pattern.is_none_or(|pattern| pattern.matches(repository.as_str()))
            && self.is_for(route, domain, ns)
    }

    fn is_for(&self, route: &NameRoute, domain: Option<&str>, ns: Option<&str>) -> bool {
        let is_of_domain = route
            .domain
            .as_deref()
            .is_none_or(|own| domain == Some(own));
        let is_of_ns = match (&route.ns, ns) {
            (Some(Namespace::Any), _) | (None, None) => true,
            (Some(Namespace::Registry(own)), Some(ns)) => is_same_registry(own, ns),
            (Some(Namespace::Registry(_)), None) => false,
            (None, Some(ns)) => route.repository.is_some() || self.is_of(&route.upstream, ns),
        };
        is_of_domain && is_of_ns
    }

    fn led(&self, upstream: &Arc<str>, name: RepositoryName, because: Because) -> Option<Led> {
        let is_word = !name.as_str().contains('/');
        let repository = match is_word && self.is_docker_hub(upstream) {
            true => format!("{DOCKER_HUB_OFFICIAL}/{name}").parse().ok()?,
            false => name,
        };
        Some(Led {
            repo: RepoKey {
                upstream: Arc::clone(upstream),
                repository,
            },
            because,
        })
    }
}

impl NameRoute {
    /// The registry that it is for alone, if it is.
    pub fn registry(&self) -> Option<&str> {
        match &self.ns {
            Some(Namespace::Registry(registry)) => Some(registry),
            Some(Namespace::Any) | None => None,
        }
    }

    /// What each name has to be that it is about: of its pattern, and below what is stripped.
    fn conditions(&self) -> [Pattern; 2] {
        let below = |prefix: &RepositoryName| format!("{prefix}/*/**").parse().ok();
        let stripped = self.strip_prefix.as_ref().and_then(below);
        [&self.repository, &stripped].map(|it| it.clone().unwrap_or_else(Pattern::any))
    }

    /// What the upstream calls a repository that the route is about; `None` if it is about none such.
    fn rewritten(&self, name: &RepositoryName) -> Option<RepositoryName> {
        moved(name, self.strip_prefix.as_ref(), self.add_prefix.as_ref())
    }

    /// How clients write the repositories of the upstream that this route leads to.
    fn restoring(&self) -> Renaming {
        Renaming {
            loses: self.add_prefix.clone(),
            gains: self.strip_prefix.clone(),
        }
    }

    /// What the upstream calls the repositories of a pattern that are the route's.
    fn renamed(&self, pattern: &Pattern) -> Option<Pattern> {
        pattern.renamed(self.strip_prefix.as_ref(), self.add_prefix.as_ref())
    }

    /// What the upstream calls the repositories that the route is about; `None` if no name can both be
    /// of its pattern and begin with what it strips.
    pub fn upstream_pattern(&self) -> Option<Pattern> {
        match &self.repository {
            Some(pattern) => self.renamed(pattern),
            None => self.renamed(&Pattern::any()),
        }
    }
}

/// `name` without the components of one prefix and with those of the other, where it begins with the one and
/// has more, and the whole is a name.
fn moved(
    name: &RepositoryName,
    from: Option<&RepositoryName>,
    to: Option<&RepositoryName>,
) -> Option<RepositoryName> {
    let rest = match from {
        None => name.as_str(),
        Some(prefix) => below(prefix, name)?,
    };
    match to {
        None => rest.parse().ok(),
        Some(prefix) => format!("{prefix}/{rest}").parse().ok(),
    }
}

/// What of `name` comes after the components of `prefix`, where anything does.
fn below<'a>(prefix: &RepositoryName, name: &'a RepositoryName) -> Option<&'a str> {
    name.as_str()
        .strip_prefix(prefix.as_str())?
        .strip_prefix('/')
}

/// Whether two names are of one registry, written as in images or as on the wire.
fn is_same_registry(one: &str, other: &str) -> bool {
    fn plain(name: &str) -> &str {
        let name = name.strip_suffix(":443").unwrap_or(name);
        let mut aliases = DOCKER_HUB_ALIASES.iter();
        match aliases.any(|alias| name.eq_ignore_ascii_case(alias)) {
            true => DOCKER_HUB,
            false => name,
        }
    }
    plain(one).eq_ignore_ascii_case(plain(other))
}

/// A registry's name without its port.
fn without_port(registry: &str) -> &str {
    let is_host = |name: &str| !name.contains(':') || name.ends_with(']');
    match registry.rsplit_once(':') {
        Some((name, port)) if is_host(name) && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => registry,
    }
}

#[cfg(test)]
mod tests;
