//! Which token services speak for a registry, and how one is addressed.
//!
//! Invariant: a realm is asked only if it speaks for the registry that named it. A challenge is text
//! from the network; without this rule it would choose where our password goes.

use http::{HeaderValue, Uri};

use super::error::RefusedRealm;
use super::origin::{Origin, Reach};
use super::redirect::HostPattern;
use super::scope::Access;

/// Judges realms for one registry.
#[derive(Clone, Debug)]
pub(super) struct Realms {
    /// The registry by its own name.
    pub(super) registry: Origin,
    /// Where it is reached; the same unless an endpoint is configured.
    pub(super) home: Origin,
    /// Other hosts known to speak for this registry.
    pub(super) known: &'static [&'static str],
    /// And those that the operator lists.
    pub(super) listed: Vec<HostPattern>,
}

/// Where to ask for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm {
    pub(super) target: Uri,
    /// The registry's own name, when it is reached by another.
    pub(super) host: Option<HeaderValue>,
}

impl Realms {
    /// The place to ask for `access` that `realm` of a challenge stands for.
    ///
    /// Allowed are the registry itself, a parent domain of at least two labels (`gitlab.com` for
    /// `registry.gitlab.com`), hosts known to belong to it, and what the operator lists; over TLS, or plain
    /// from this host to itself. Siblings are not by themselves: on shared domains they are somebody else's.
    pub(super) fn judge(
        &self,
        realm: &str,
        service: Option<&str>,
        access: &Access,
    ) -> Result<Realm, RefusedRealm> {
        let mut url = url::Url::parse(realm).map_err(|_| RefusedRealm::NotAnAddress)?;
        url.set_fragment(None);
        let service = service.map(|service| ("service", service.to_owned()));
        let scopes = access.entries().map(|entry| ("scope", entry));
        let parameters: Vec<_> = service.into_iter().chain(scopes).collect();
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        let target: Uri = url
            .as_str()
            .parse()
            .map_err(|_| RefusedRealm::NotAnAddress)?;
        let origin = Origin::of(&target).ok_or(RefusedRealm::NotAnAddress)?;
        if origin == self.home {
            return Ok(Realm { target, host: None });
        }
        if origin == self.registry {
            return self.through_home(&target);
        }
        let both_here = origin.reach() == Reach::Loopback && self.home.reach() == Reach::Loopback;
        if !origin.is_tls() && !both_here {
            return Err(RefusedRealm::NotHttps);
        }
        let is_own = [&self.registry, &self.home]
            .iter()
            .any(|own| own.host() == origin.host() && (both_here || origin.has_default_port()));
        let is_known = origin.has_default_port()
            && (self.known.contains(&origin.host())
                || is_parent(origin.host(), self.registry.host()));
        let mut listed = self.listed.iter();
        let is_listed = listed.any(|pattern| pattern.covers(&origin));
        if is_own || is_known || is_listed {
            Ok(Realm { target, host: None })
        } else {
            Err(RefusedRealm::Host)
        }
    }

    /// The same request, but connected to where the registry is reached.
    fn through_home(&self, target: &Uri) -> Result<Realm, RefusedRealm> {
        let path = target.path_and_query().map_or("/", |path| path.as_str());
        Ok(Realm {
            target: format!("{}{path}", self.home)
                .parse()
                .map_err(|_| RefusedRealm::NotAnAddress)?,
            host: target
                .authority()
                .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()),
        })
    }
}

/// True if `parent` has at least two labels and `host` lies under it.
fn is_parent(parent: &str, host: &str) -> bool {
    parent.contains('.')
        && parent.parse::<std::net::IpAddr>().is_err()
        && host
            .strip_suffix(parent)
            .is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::super::scope::Scope;
    use super::*;

    fn realms(registry: &str, home: &str) -> Realms {
        Realms {
            registry: Origin::of(&registry.parse().unwrap()).unwrap(),
            home: Origin::of(&home.parse().unwrap()).unwrap(),
            known: &["auth.docker.io"],
            listed: vec!["auth.corp.example:8443".parse().unwrap()],
        }
    }

    #[test]
    fn s10_realms_speak_for_their_registry_only() {
        let own = "https://registry.example.org";
        let realms = realms(own, own);
        let judge = |realm: &str| realms.judge(realm, None, &Access::default()).map(drop);
        for good in [
            "https://registry.example.org/token",
            "https://example.org/jwt/auth",
            "https://auth.docker.io/token",
            "https://auth.corp.example:8443/token",
        ] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            ("https://evil.example/token", RefusedRealm::Host),
            ("https://evil.example.org/token", RefusedRealm::Host),
            ("https://org/token", RefusedRealm::Host),
            ("https://xregistry.example.org/token", RefusedRealm::Host),
            ("https://sub.registry.example.org/token", RefusedRealm::Host),
            (
                "https://registry.example.org:8443/token",
                RefusedRealm::Host,
            ),
            ("https://auth.corp.example/token", RefusedRealm::Host),
            (
                "http://auth.corp.example:8443/token",
                RefusedRealm::NotHttps,
            ),
            ("http://registry.example.org/token", RefusedRealm::NotHttps),
            ("http://169.254.169.254/token", RefusedRealm::NotHttps),
            ("https://169.254.169.254/token", RefusedRealm::Host),
            ("http://127.0.0.1/token", RefusedRealm::NotHttps),
            ("https://127.0.0.1/token", RefusedRealm::Host),
            (
                "https://user:p@registry.example.org/token",
                RefusedRealm::NotAnAddress,
            ),
            ("/token", RefusedRealm::NotAnAddress),
            ("", RefusedRealm::NotAnAddress),
        ] {
            assert_eq!(judge(bad), Err(reason), "{bad}");
        }
    }

    #[test]
    fn a_realm_at_the_registry_is_reached_through_its_endpoint() {
        let realms = realms("https://registry.example.org", "https://vpce.example:8443");
        let realm = realms
            .judge(
                "https://registry.example.org/token?a=b",
                Some("s v"),
                &Access::for_need(Scope::Pull(&"x".parse().unwrap()), None),
            )
            .unwrap();
        assert_eq!(
            realm.target.to_string(),
            "https://vpce.example:8443/token?a=b&service=s+v&scope=repository%3Ax%3Apull"
        );
        assert_eq!(realm.host.unwrap(), "registry.example.org");
    }

    #[test]
    fn plain_http_is_for_this_host_alone() {
        let realms = realms("https://registry.example.org", "http://127.0.0.1:5000");
        assert!(
            realms
                .judge("http://127.0.0.1:5001/auth", None, &Access::default())
                .is_ok()
        );
        let refused = realms.judge("http://127.0.0.2:5001/auth", None, &Access::default());
        assert_eq!(refused, Err(RefusedRealm::Host));
    }
}
