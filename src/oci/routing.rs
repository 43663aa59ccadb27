//! Which repository of which upstream a client's name means.
//!
//! Pure. A name is looked at with the domain that it was asked under and containerd's `ns`, the registry
//! that the image was named after. `ns` is compared and never dialled: what no route is about, and no
//! upstream is named, leads nowhere.

use std::sync::Arc;

use super::{Pattern, RepoKey, RepositoryName};

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

    /// The registry that images of this host are of, whose port need not be told.
    pub fn registry(&self, host: &str) -> Option<&str> {
        let registries = || self.homes.iter().map(|home| home.registry.as_str());
        registries()
            .find(|registry| is_same_registry(registry, host))
            .or_else(|| registries().find(|it| is_same_registry(without_port(it), host)))
    }

    /// Where `repository` leads, asked under `domain` of ours, with this `ns`.
    pub fn find(
        &self,
        domain: Option<&str>,
        ns: Option<&str>,
        repository: &RepositoryName,
    ) -> Option<Led> {
        let ns = self.foreign(ns);
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
            self.find(domain, ns, name)
                .is_some_and(|led| led.repo == *repo)
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
        let registries = self.routes.iter().filter_map(|route| match &route.ns {
            Some(Namespace::Registry(registry)) => Some(registry.as_str()),
            Some(Namespace::Any) | None => None,
        });
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
        ns.filter(|ns| self.domain(without_port(ns)).is_none())
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

/// The host of `host:port`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().expect(text)
    }

    fn route(upstream: &str) -> NameRoute {
        NameRoute {
            domain: None,
            ns: None,
            repository: None,
            upstream: upstream.into(),
            strip_prefix: None,
            add_prefix: None,
        }
    }

    fn routes(routes: Vec<NameRoute>) -> Routes {
        let home = |upstream: &str, registry: &str| Home {
            upstream: upstream.into(),
            registry: registry.to_owned(),
        };
        let homes = vec![
            home("prod", "prod.example:5000"),
            home("hub", "docker.io"),
            home("dev", "dev.example"),
        ];
        let domains = vec!["a.test".to_owned(), "hub.test".to_owned()];
        Routes::new(domains, routes, homes)
    }

    fn found(routes: &Routes, domain: &str, ns: Option<&str>, repository: &str) -> String {
        let led = routes.find(Some(domain), ns, &name(repository));
        led.map_or("nowhere".to_owned(), |led| led.repo.to_string())
    }

    #[test]
    fn the_first_route_that_is_about_a_name_leads_it() {
        let routes = routes(vec![
            NameRoute {
                domain: Some("hub.test".to_owned()),
                ..route("hub")
            },
            NameRoute {
                repository: Some("team/**".parse().unwrap()),
                strip_prefix: Some(name("team")),
                add_prefix: Some(name("mirror/x")),
                ..route("dev")
            },
            NameRoute {
                ns: Some(Namespace::Registry("quay.io".to_owned())),
                add_prefix: Some(name("quay")),
                ..route("prod")
            },
            route("prod"),
        ]);
        for (domain, ns, repository, expected) in [
            ("hub.test", None, "alpine", "hub/library/alpine"),
            ("hub.test", None, "grafana/loki", "hub/grafana/loki"),
            (
                "hub.test",
                Some("docker.io"),
                "library/alpine",
                "hub/library/alpine",
            ),
            // A route that names neither repository nor ns is for its own registry only.
            ("hub.test", Some("quay.io"), "a", "prod/quay/a"),
            ("a.test", None, "team/app", "dev/mirror/x/app"),
            // One that names a repository is for any.
            ("a.test", Some("ghcr.io"), "team/app", "dev/mirror/x/app"),
            // Nothing is left of it, so the next decides.
            ("a.test", None, "team", "prod/team"),
            ("a.test", None, "teams/app", "prod/teams/app"),
            ("a.test", Some("QUAY.io"), "a/b", "prod/quay/a/b"),
            ("a.test", Some("quay.io:443"), "a/b", "prod/quay/a/b"),
            ("a.test", Some("A.test:8443"), "a/b", "prod/a/b"),
            ("a.test", Some("prod.example:5000"), "a/b", "prod/a/b"),
            ("a.test", Some("prod.example"), "a/b", "nowhere"),
            (
                "a.test",
                Some("registry-1.docker.io"),
                "alpine",
                "hub/library/alpine",
            ),
            ("a.test", Some("dev.example"), "a", "dev/a"),
            ("a.test", Some("169.254.169.254"), "a", "nowhere"),
        ] {
            assert_eq!(
                found(&routes, domain, ns, repository),
                expected,
                "{repository}"
            );
        }
    }

    #[test]
    fn without_a_route_one_upstream_gets_all_that_is_asked_of_us_and_several_get_what_is_theirs() {
        let home = Home {
            upstream: "prod".into(),
            registry: "prod.example".to_owned(),
        };
        let alone = Routes::new(vec!["a.test".to_owned()], Vec::new(), vec![home]);
        for (ns, expected) in [
            (None, "prod/x"),
            (Some("a.test"), "prod/x"),
            (Some("prod.example"), "prod/x"),
            (Some("docker.io"), "nowhere"),
        ] {
            assert_eq!(found(&alone, "a.test", ns, "x"), expected, "{ns:?}");
        }
        let several = routes(Vec::new());
        assert_eq!(found(&several, "a.test", None, "x"), "nowhere");
        assert_eq!(found(&several, "a.test", Some("dev.example"), "x"), "dev/x");
    }

    #[test]
    fn any_ns_is_any() {
        let routes = routes(vec![NameRoute {
            ns: Some(Namespace::Any),
            ..route("dev")
        }]);
        for ns in [None, Some("quay.io"), Some("docker.io")] {
            assert_eq!(found(&routes, "a.test", ns, "x"), "dev/x");
        }
    }

    #[test]
    fn a_name_that_would_be_too_long_is_not_made() {
        let routes = routes(vec![NameRoute {
            add_prefix: Some(name("p/".repeat(60).trim_end_matches('/'))),
            ..route("dev")
        }]);
        let long = "a/".repeat(90);
        let long = long.trim_end_matches('/');
        assert_eq!(found(&routes, "a.test", None, long), "nowhere");
    }

    #[test]
    fn what_clients_write_for_a_repository_leads_back_to_it() {
        let routes = routes(vec![
            NameRoute {
                domain: Some("hub.test".to_owned()),
                ..route("hub")
            },
            NameRoute {
                repository: Some("team/**".parse().unwrap()),
                strip_prefix: Some(name("team")),
                ..route("dev")
            },
        ]);
        let written = |upstream: &str, repository: &str| {
            let repo = RepoKey {
                upstream: upstream.into(),
                repository: name(repository),
            };
            let written = routes.written(&repo).expect("a name");
            let domain = written.domain.map(|domain| domain + "/");
            format!("{}{}", domain.unwrap_or_default(), written.repository)
        };
        assert_eq!(written("hub", "library/alpine"), "hub.test/library/alpine");
        assert_eq!(written("dev", "app"), "a.test/team/app");
        assert_eq!(written("prod", "app"), "prod.example:5000/app");
    }

    #[test]
    fn a_repository_is_called_by_every_name_that_leads_to_it_and_by_no_other() {
        let routes = routes(vec![
            NameRoute {
                repository: Some("team/**".parse().unwrap()),
                strip_prefix: Some(name("team")),
                ..route("dev")
            },
            NameRoute {
                domain: Some("hub.test".to_owned()),
                ..route("hub")
            },
            route("prod"),
        ]);
        let called = |domain: &str, ns: Option<&str>, upstream: &str, repository: &str| {
            let repo = RepoKey {
                upstream: upstream.into(),
                repository: name(repository),
            };
            let ways = routes.renamings(Some(domain), ns, upstream).into_iter();
            let leads_back = |name: &RepositoryName| {
                let led = routes.find(Some(domain), ns, name);
                led.is_some_and(|led| led.repo == repo)
            };
            let names = ways.filter_map(|way| way.of(&repo.repository));
            let names = names.filter(leads_back);
            names.map(|name| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(called("a.test", None, "dev", "app"), ["team/app"]);
        assert_eq!(called("a.test", None, "prod", "app"), ["app"]);
        assert_eq!(called("a.test", None, "prod", "team/app"), [""; 0]);
        assert_eq!(called("hub.test", None, "prod", "app"), [""; 0]);
        assert_eq!(
            called("hub.test", None, "hub", "library/app"),
            ["library/app"]
        );
        let both = called("a.test", Some("dev.example"), "dev", "app");
        assert_eq!(both, ["team/app", "app"]);
        let reached = |domain, ns| routes.reached(Some(domain), ns).join(" ");
        assert_eq!(reached("a.test", None), "dev prod");
        assert_eq!(reached("hub.test", None), "dev hub prod");
        assert_eq!(reached("a.test", Some("docker.io")), "dev hub");
    }

    prop_compose! {
        fn names()(text in "[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,4}") -> RepositoryName {
            text.parse().unwrap()
        }
    }

    prop_compose! {
        fn any_route()(
            domain in prop::option::of(prop::sample::select(vec!["a.test", "hub.test"])),
            ns in prop::option::of(prop::sample::select(vec!["*", "docker.io", "quay.io"])),
            repository in prop::option::of("(\\*{1,2}|[ab]{1,2}\\*?)(/(\\*{1,2}|[ab]{1,2})){0,2}"),
            upstream in prop::sample::select(vec!["prod", "hub", "dev"]),
            strip in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
            add in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
        ) -> NameRoute {
            NameRoute {
                domain: domain.map(str::to_owned),
                ns: ns.map(|ns| match ns {
                    "*" => Namespace::Any,
                    registry => Namespace::Registry(registry.to_owned()),
                }),
                repository: repository.map(|text| text.parse().unwrap()),
                upstream: upstream.into(),
                strip_prefix: strip.map(|text| text.parse().unwrap()),
                add_prefix: add.map(|text| text.parse().unwrap()),
            }
        }
    }

    proptest! {
        #[test]
        fn a_name_is_rewritten_by_whole_components_and_back(
            strip in prop::option::of(names()),
            add in prop::option::of(names()),
            rest in names(),
        ) {
            let route = NameRoute { strip_prefix: strip.clone(), add_prefix: add.clone(), ..route("dev") };
            let put = |prefix: &Option<RepositoryName>| match prefix {
                Some(prefix) => name(&format!("{prefix}/{rest}")),
                None => rest.clone(),
            };
            prop_assert_eq!(route.rewritten(&put(&strip)), Some(put(&add)));
            prop_assert_eq!(route.restoring().of(&put(&add)), Some(put(&strip)));
            if let Some(strip) = &strip {
                prop_assert_eq!(route.rewritten(strip), None);
                let longer = name(&format!("{strip}x/{rest}"));
                prop_assert_eq!(route.rewritten(&longer), None);
            }
        }

        #[test]
        fn nothing_leads_to_what_is_not_configured_and_what_is_written_leads_back(
            all in prop::collection::vec(any_route(), 0..4),
            ns in prop::option::of(prop::sample::select(vec!["docker.io", "quay.io", "x.example", ""])),
            asked in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        ) {
            let routes = routes(all.clone());
            let Some(led) = routes.find(Some("a.test"), ns, &name(&asked)) else { return Ok(()) };
            prop_assert!(routes.homes.iter().any(|home| home.upstream == led.repo.upstream));
            if ns == Some("x.example") {
                let Because::Route(number) = led.because else { panic!("no registry of ours") };
                prop_assert!(all[number].ns == Some(Namespace::Any) || all[number].repository.is_some());
            }
            if let Some(written) = routes.written(&led.repo) {
                let (domain, ns) = match written.domain.as_deref() {
                    Some("hub.test") => (Some("hub.test"), None),
                    other => (Some("a.test"), other),
                };
                let again = routes.find(domain, ns, &written.repository);
                prop_assert_eq!(again.map(|again| again.repo), Some(led.repo));
            }
        }

        #[test]
        fn any_text_of_a_name_and_an_ns_is_borne(ns in ".{0,20}", asked in "[a-z0-9/._-]{1,300}") {
            if let Ok(asked) = asked.parse() {
                let _ = routes(vec![route("prod")]).find(None, Some(&ns), &asked);
            }
        }

        #[test]
        fn a_renamed_pattern_describes_the_renamed_names(
            pattern in "([ab]{1,2}|\\*)(/([ab]{1,2}|\\*)){0,3}(/\\*\\*)?",
            strip in prop::option::of("[ab]{1,2}(/[ab]{1,2})?"),
            add in prop::option::of("[ab]{1,2}"),
            asked in "[ab]{1,2}(/[ab]{1,2}){0,4}",
        ) {
            let route = NameRoute {
                repository: Some(pattern.parse().unwrap()),
                strip_prefix: strip.map(|text| text.parse().unwrap()),
                add_prefix: add.map(|text| text.parse().unwrap()),
                ..route("dev")
            };
            let asked = name(&asked);
            if route.repository.as_ref().unwrap().matches(asked.as_str())
                && let Some(rewritten) = route.rewritten(&asked)
            {
                let renamed = route.upstream_pattern();
                prop_assert!(renamed.unwrap().matches(rewritten.as_str()));
            }
        }
    }
}
