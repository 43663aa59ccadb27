//! Which repository of which upstream an image's name means: the same that a client's request would.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cache::{ParsePinError, Pin};
use crate::oci::{
    ImageName, ImagePattern, Led, Pattern, RepoKey, RepositoryName, Routes, Which, Written, host_of,
};

/// How names are routed. Clone is cheap.
#[derive(Clone, Debug)]
pub struct Names {
    routes: Arc<Routes>,
}

/// Why a name means no repository here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Elsewhere {
    /// It is that of an image elsewhere.
    #[error("{domain} is neither this proxy ({ours}) nor its upstream")]
    Domain {
        /// Where it is.
        domain: String,
        /// What we are called.
        ours: String,
    },
    /// It is asked of us, and no route is about it.
    #[error("no [[route]] leads from it to an upstream")]
    Unrouted,
    /// It is asked of us as an image of this registry.
    #[error("nothing leads from {0} to an upstream")]
    Namespace(String),
}

/// How an image is asked for, and where that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The name of ours; `None` for another, by which only a loopback listener is asked.
    pub domain: Option<&'a str>,
    /// The registry that it is named after, where it is not ours.
    pub ns: Option<&'a str>,
    /// Where that leads.
    pub led: Led,
}

/// Why images cannot be pinned by what they were called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPin {
    /// A repository as a whole.
    #[error("which of its images? {0}:TAG is one, {0}:* all that have a tag")]
    All(String),
    /// They are not ours to keep.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    /// Not a pin.
    #[error(transparent)]
    NotAPin(#[from] ParsePinError),
}

/// How an image is asked for: the domain of ours, and the registry that it is named after.
type Way<'a> = (Option<&'a str>, Option<&'a str>);

impl Names {
    /// By these routes.
    pub fn new(routes: Routes) -> Self {
        Self {
            routes: Arc::new(routes),
        }
    }

    /// The routes.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The names that clients use for the proxy, in lower case.
    pub fn domains(&self) -> &[String] {
        self.routes.domains()
    }

    /// The repository that `image` is in. Without a domain, or with one that means this machine, as a
    /// loopback listener answers to any, it is looked for under each of ours in turn.
    ///
    /// # Errors
    /// When its domain is somebody else's, or no route is about it.
    pub fn route(&self, image: &ImageName) -> Result<RepoKey, Elsewhere> {
        self.asked(image, None).map(|asked| asked.led.repo)
    }

    /// The same, with how the image is asked for: as containerd does for images of the registry `ns`, where one
    /// is given.
    ///
    /// # Errors
    /// As [`Self::route`].
    pub fn asked<'a>(
        &'a self,
        image: &'a ImageName,
        ns: Option<&'a str>,
    ) -> Result<Asked<'a>, Elsewhere> {
        let domain = image.domain.as_deref();
        let ways = match ns {
            None => self.ways(domain),
            Some(_) => {
                let named = domain.and_then(|domain| self.routes.own_name(domain));
                let ours = self.ways(named).into_iter();
                ours.map(|(domain, _)| (domain, ns)).collect()
            }
        };
        let found = ways.into_iter().find_map(|(domain, ns)| {
            let led = self.routes.find(domain, ns, &image.repository)?;
            Some(Asked { domain, ns, led })
        });
        found.ok_or_else(|| match ns {
            None => self.elsewhere(domain),
            Some(ns) => Elsewhere::Namespace(ns.to_owned()),
        })
    }

    /// What `images` describes, as its upstreams call it.
    ///
    /// # Errors
    /// When its domain is somebody else's, or no route is about it.
    pub fn patterns(&self, images: &ImagePattern) -> Result<Vec<(Arc<str>, Pattern)>, Elsewhere> {
        let domain = images.domain.as_deref();
        let pattern = &images.repository;
        let ways = self.ways(domain);
        let find = |name: &RepositoryName| {
            let mut ways = ways.iter();
            ways.find_map(|(domain, ns)| self.routes.find(*domain, *ns, name))
        };
        let mut found: Vec<(Arc<str>, Pattern)> = Vec::new();
        match pattern.literal().map(str::parse) {
            // One name leads where a client's would.
            Some(Ok(name)) => found.extend(find(&name).and_then(|Led { repo, .. }| {
                let pattern = repo.repository.as_str().parse().ok()?;
                Some((repo.upstream, pattern))
            })),
            _ => {
                for (domain, ns) in &ways {
                    for one in self.routes.patterns(*domain, *ns, pattern) {
                        if !found.contains(&one) {
                            found.push(one);
                        }
                    }
                }
            }
        }
        match found.is_empty() {
            true => Err(self.elsewhere(domain)),
            false => Ok(found),
        }
    }

    /// The pins that keep `images`: more than one where several routes are about them.
    ///
    /// # Errors
    /// It is not said which of a repository, or no repository is meant.
    pub fn pins(&self, images: &ImagePattern) -> Result<Vec<Pin>, NoPin> {
        is_pinnable(images)?;
        let mut pins: Vec<Pin> = Vec::new();
        for (_, repository) in self.patterns(images)? {
            let theirs = ImagePattern {
                domain: None,
                repository,
                which: images.which.clone(),
            };
            let pin = theirs.to_string().parse()?;
            if !pins.contains(&pin) {
                pins.push(pin);
            }
        }
        Ok(pins)
    }

    /// What clients call the repository, with a domain or registry before it where it needs one; as its
    /// upstream calls it where no route leads to it.
    pub fn written(&self, repo: &RepoKey) -> Written {
        self.routes.written(repo).unwrap_or_else(|| Written {
            domain: None,
            repository: repo.repository.clone(),
        })
    }

    fn ways<'a>(&'a self, domain: Option<&'a str>) -> Vec<Way<'a>> {
        let ours = self.domains().iter().map(|domain| Some(domain.as_str()));
        let ours = ours.chain([None]);
        let Some(domain) = domain else {
            return ours.map(|ours| (ours, None)).collect();
        };
        if let Some(domain) = self.routes.own_name(domain) {
            return vec![(Some(domain), None)];
        }
        match (self.routes.registry(domain), is_loopback(domain)) {
            (None, true) => ours.map(|ours| (ours, None)).collect(),
            (registry, _) => {
                let ns = Some(registry.unwrap_or(domain));
                ours.map(|ours| (ours, ns)).collect()
            }
        }
    }

    fn elsewhere(&self, domain: Option<&str>) -> Elsewhere {
        let is_ours = |domain: &str| {
            self.routes.own_name(domain).is_some()
                || self.routes.registry(domain).is_some()
                || is_loopback(domain)
        };
        match domain {
            Some(domain) if !is_ours(domain) => Elsewhere::Domain {
                domain: domain.to_owned(),
                ours: match self.domains() {
                    [] => "localhost".to_owned(),
                    domains => domains.join(", "),
                },
            },
            _ => Elsewhere::Unrouted,
        }
    }
}

/// Whether it is said which images of a repository are meant.
///
/// # Errors
/// It is not.
pub fn is_pinnable(images: &ImagePattern) -> Result<(), NoPin> {
    match images.which {
        Which::Any => Err(NoPin::All(images.repository.to_string())),
        Which::Tags(_) | Which::Digest(_) => Ok(()),
    }
}

/// Whether one of the patterns describes the repository.
pub(super) fn is_about(patterns: &[(Arc<str>, Pattern)], repo: &RepoKey) -> bool {
    let name = repo.repository.as_str();
    let mut patterns = patterns.iter();
    patterns.any(|(upstream, pattern)| *upstream == repo.upstream && pattern.matches(name))
}

fn is_loopback(domain: &str) -> bool {
    let host = host_of(domain);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::oci::{Home, NameRoute};

    /// Of a proxy before one registry.
    pub(in crate::jobs::operations) fn one_upstream() -> Names {
        let home = Home {
            upstream: "prod".into(),
            registry: "000042290000.dkr.ecr.us-west-2.amazonaws.com".to_owned(),
        };
        let domains = vec!["registry.mydomain.com".to_owned()];
        Names::new(Routes::new(domains, Vec::new(), vec![home]))
    }

    #[test]
    fn a_name_leads_where_a_client_would_get_and_no_other_domain_is_taken() {
        let names = one_upstream();
        for text in [
            "team/app",
            "registry.mydomain.com/team/app:v1",
            "REGISTRY.mydomain.com:443/team/app",
            "000042290000.dkr.ecr.us-west-2.amazonaws.com/team/app",
            "localhost:5000/team/app",
            "127.0.0.1:5000/team/app",
            "[::1]:5000/team/app",
        ] {
            let repo = names.route(&text.parse().expect("an image")).expect("ours");
            assert_eq!(repo.to_string(), "prod/team/app", "{text}");
        }
        for text in ["quay.io/team/app", "mydomain.com/app", "10.0.0.1/app"] {
            let error = names.route(&text.parse().expect("an image"));
            let error = error.expect_err("elsewhere").to_string();
            assert!(error.contains("registry.mydomain.com"), "{error}");
            assert!(!error.contains("amazonaws"), "{error}");
        }
    }

    #[test]
    fn registries_of_one_host_are_told_apart_by_their_ports() {
        let home = |upstream: &str, registry: &str| Home {
            upstream: upstream.into(),
            registry: registry.to_owned(),
        };
        let homes = vec![
            home("one", "localhost:5001"),
            home("two", "localhost:5002"),
            home("three", "quay.example"),
        ];
        let names = Names::new(Routes::new(vec!["a.test".to_owned()], Vec::new(), homes));
        for (text, expected) in [
            ("localhost:5001/app", Some("one/app")),
            ("localhost:5002/app", Some("two/app")),
            ("quay.example:443/app", Some("three/app")),
            ("quay.example:5000/app", None),
            ("a.test:5000/app", None),
        ] {
            let repo = names.route(&text.parse().expect("an image"));
            let repo = repo.ok().map(|repo| repo.to_string());
            assert_eq!(repo.as_deref(), expected, "{text}");
        }
        // What it is called leads back, also where it was written down and read again.
        for upstream in ["one", "two", "three"] {
            let repo = RepoKey {
                upstream: upstream.into(),
                repository: "app".parse().expect("a name"),
            };
            let written = names.written(&repo);
            let name = ImageName {
                domain: written.domain,
                repository: written.repository,
                reference: "v1".parse().expect("a tag"),
            };
            let again: ImageName = name.to_string().parse().expect("an image");
            assert_eq!(names.route(&again), Ok(repo), "{name}");
        }
    }

    #[test]
    fn what_a_pattern_describes_is_what_routes_make_of_it() {
        let home = |upstream: &str, registry: &str| Home {
            upstream: upstream.into(),
            registry: registry.to_owned(),
        };
        let route = |repository: &str, upstream: &str, strip: Option<&str>| NameRoute {
            domain: None,
            ns: None,
            repository: Some(repository.parse().expect("a pattern")),
            upstream: upstream.into(),
            strip_prefix: strip.map(|strip| strip.parse().expect("a name")),
            add_prefix: None,
        };
        let names = Names::new(Routes::new(
            vec!["a.test".to_owned()],
            vec![
                route("dev/**", "dev", Some("dev")),
                route("**", "prod", None),
            ],
            vec![
                home("prod", "prod.example"),
                home("dev", "dev.example:5000"),
            ],
        ));
        let pins = |text: &str| {
            let pins = names.pins(&text.parse().expect("a pattern"));
            let pins = pins.map(|pins| pins.iter().map(ToString::to_string).collect::<Vec<_>>());
            pins.map_err(|error| error.to_string())
        };
        assert_eq!(pins("dev/app:v1"), Ok(vec!["app:v1".to_owned()]));
        assert_eq!(pins("app:v1"), Ok(vec!["app:v1".to_owned()]));
        let both = Ok(vec!["*:v*".to_owned(), "dev/*:v*".to_owned()]);
        assert_eq!(pins("dev/*:v*"), both);
        assert_eq!(pins("a.test/dev/x:v1"), Ok(vec!["x:v1".to_owned()]));
        assert!(pins("app").is_err());
    }
}
