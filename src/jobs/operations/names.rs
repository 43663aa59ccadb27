//! Which repository of which upstream an image's name means: the same that a client's request would.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cache::{ParsePinError, Pin};
use crate::oci::{ImageName, ImagePattern, RepoKey, Which};

/// How names are routed.
#[derive(Clone, Debug)]
pub struct Names {
    /// The names that clients use for the proxy, in lower case.
    pub domains: Vec<String>,
    /// The upstream's own host, without its port.
    pub registry: String,
    /// The configured name of the upstream.
    pub upstream: Arc<str>,
}

/// The name is that of an image elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{domain} is neither this proxy ({ours}) nor its upstream")]
pub struct Elsewhere {
    domain: String,
    ours: String,
}

/// The pin that keeps `images`, wherever they are: see [`Names::check`].
///
/// # Errors
/// It is not said which of a repository.
pub fn pin_of(images: &ImagePattern) -> Result<Pin, NoPin> {
    if images.which == Which::Any {
        return Err(NoPin::All(images.repository.to_string()));
    }
    let ours = ImagePattern {
        domain: None,
        ..images.clone()
    };
    Ok(ours.to_string().parse()?)
}

/// Why images cannot be pinned by what they were called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPin {
    /// A repository as a whole.
    #[error("which of its images? {0}:TAG is one, {0}:* all that have a tag")]
    All(String),
    /// Not a pin.
    #[error(transparent)]
    NotAPin(#[from] ParsePinError),
}

impl Names {
    /// The repository that `image` is in. Without a domain, or with one that means this machine, as a
    /// loopback listener answers to any, it is the upstream's.
    ///
    /// # Errors
    /// When its domain is somebody else's.
    pub fn route(&self, image: &ImageName) -> Result<RepoKey, Elsewhere> {
        self.check(image.domain.as_deref())?;
        Ok(RepoKey {
            upstream: Arc::clone(&self.upstream),
            repository: image.repository.clone(),
        })
    }

    /// Whether images of `domain` are ours.
    ///
    /// # Errors
    /// They are somebody else's.
    pub fn check(&self, domain: Option<&str>) -> Result<(), Elsewhere> {
        match domain {
            Some(domain) if !self.is_ours(domain) => Err(Elsewhere {
                domain: domain.to_owned(),
                ours: match &self.domains[..] {
                    [] => "localhost".to_owned(),
                    domains => domains.join(", "),
                },
            }),
            _ => Ok(()),
        }
    }

    fn is_ours(&self, domain: &str) -> bool {
        let is_loopback = || {
            domain == "localhost"
                || domain
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        };
        self.domains.iter().any(|ours| ours == domain)
            || domain.eq_ignore_ascii_case(&self.registry)
            || is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_where_a_client_would_get_and_no_other_domain_is_taken() {
        let names = Names {
            domains: vec!["registry.mydomain.com".to_owned()],
            registry: "000042290000.dkr.ecr.us-west-2.amazonaws.com".to_owned(),
            upstream: "prod".into(),
        };
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
}
