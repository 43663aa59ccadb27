//! Where a registry may send us for a blob.
//!
//! Invariant: what passes here is an address on the list, over TLS (plain only within this host), and
//! is asked without credentials. Addresses of storage are secrets by themselves, so none is ever
//! printed: refusals name their reason only. Which network a name leads into is judged when it is
//! dialled.

use std::str::FromStr;

use http::{HeaderMap, Uri, header};

use super::error::RefusedRedirect;
use super::origin::{Origin, Reach};
use super::registry::{EcrHost, Registry, RegistryKind};

/// A host, or `*.` and the domain whose hosts it stands for; optionally with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    wildcard: bool,
    host: String,
    port: Option<u16>,
}

/// The text is not a host pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host, or \"*.\" and a domain, with an optional port")]
pub struct ParseHostPatternError;

impl FromStr for HostPattern {
    type Err = ParseHostPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (wildcard, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let authority: http::uri::Authority = rest.parse().map_err(|_| ParseHostPatternError)?;
        let origin = Origin::https(&authority).ok_or(ParseHostPatternError)?;
        // One label would stand for a whole top-level domain.
        if wildcard && !origin.host().contains('.') {
            return Err(ParseHostPatternError);
        }
        Ok(Self {
            wildcard,
            host: origin.host().to_owned(),
            port: authority.port_u16(),
        })
    }
}

impl HostPattern {
    fn exact(host: impl Into<String>) -> Self {
        Self {
            wildcard: false,
            host: host.into(),
            port: None,
        }
    }

    fn under(domain: &str) -> Self {
        Self {
            wildcard: true,
            host: domain.to_owned(),
            port: None,
        }
    }

    /// True if it stands for the server: at its port, or at the usual one where it names none.
    pub(super) fn covers(&self, origin: &Origin) -> bool {
        let port = match self.port {
            Some(port) => port == origin.port(),
            None => origin.has_default_port(),
        };
        port && self.matches(origin.host())
    }

    /// True if it stands for `host`, given in lower case.
    pub(super) fn matches(&self, host: &str) -> bool {
        if self.wildcard {
            host.strip_suffix(self.host.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty())
        } else {
            host == self.host
        }
    }
}

/// Judges redirects of one upstream.
#[derive(Clone, Debug)]
pub(super) struct RedirectPolicy {
    home: Origin,
    allowed: Vec<HostPattern>,
}

impl RedirectPolicy {
    /// `home` is where the registry itself is; `listed` what the operator adds.
    pub(super) fn new(registry: &Registry, home: Origin, listed: Vec<HostPattern>) -> Self {
        let mut allowed = match registry.kind() {
            RegistryKind::Ecr(ecr) => ecr_storage(ecr),
            // Blobs of ECR Public come from CloudFront, from distributions that may change.
            RegistryKind::EcrPublic => vec![HostPattern::under("cloudfront.net")],
            RegistryKind::DockerHub => vec![
                HostPattern::under("docker.com"),
                HostPattern::under("r2.cloudflarestorage.com"),
            ],
            RegistryKind::Other => Vec::new(),
        };
        allowed.extend(listed);
        Self { home, allowed }
    }

    /// The address that the answer to a request for `base` redirects to, if we may go there.
    pub(super) fn follow(&self, base: &Uri, headers: &HeaderMap) -> Result<Uri, RefusedRedirect> {
        let mut locations = headers.get_all(header::LOCATION).iter();
        let location = match (locations.next(), locations.next()) {
            (Some(location), None) => location.to_str().ok(),
            (None, _) | (Some(_), Some(_)) => None,
        }
        .ok_or(RefusedRedirect::NoLocation)?;
        let target = resolve(base, location).ok_or(RefusedRedirect::NoLocation)?;
        self.judge(&target)?;
        Ok(target)
    }

    fn judge(&self, target: &Uri) -> Result<(), RefusedRedirect> {
        let has_user = target.authority().is_some_and(|a| a.as_str().contains('@'));
        if has_user {
            return Err(RefusedRedirect::UserInfo);
        }
        let target = Origin::of(target).ok_or(RefusedRedirect::NoLocation)?;
        let home_is_here = self.home.reach() == Reach::Loopback;
        let stays_here = home_is_here && target.reach() == Reach::Loopback;
        if !target.is_tls() && !stays_here {
            return Err(RefusedRedirect::NotHttps);
        }
        if target == self.home {
            return Ok(());
        }
        // Several servers of one test or development host differ in their ports only.
        let any_port = home_is_here;
        let mut host_is_allowed = false;
        if target.host() == self.home.host() {
            host_is_allowed = true;
            if any_port || target.has_default_port() {
                return Ok(());
            }
        }
        for pattern in self.allowed.iter().filter(|p| p.matches(target.host())) {
            host_is_allowed = true;
            let port_is_allowed = match pattern.port {
                Some(port) => port == target.port(),
                None => any_port || target.has_default_port(),
            };
            if port_is_allowed {
                return Ok(());
            }
        }
        Err(if host_is_allowed {
            RefusedRedirect::Port
        } else {
            RefusedRedirect::Host
        })
    }
}

/// True if the address carries its own permission, which may have expired.
pub(super) fn is_signed(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| {
        query.split('&').any(|pair| {
            let name = pair.split('=').next().unwrap_or(pair);
            ["x-amz-signature", "signature", "x-goog-signature", "sig"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
        })
    })
}

/// Where private ECR keeps layers: one bucket a region, reached by each of S3's host forms.
fn ecr_storage(ecr: &EcrHost) -> Vec<HostPattern> {
    let EcrHost {
        region, dns_suffix, ..
    } = ecr;
    let bucket = format!("prod-{region}-starport-layer-bucket");
    let mut hosts: Vec<_> = ["s3", "s3-fips", "s3.dualstack", "s3-fips.dualstack"]
        .iter()
        .map(|service| HostPattern::exact(format!("{bucket}.{service}.{region}.{dns_suffix}")))
        .collect();
    hosts.push(HostPattern::exact(format!("{bucket}.s3.{dns_suffix}")));
    hosts
}

/// A `Location` against the address that was asked (RFC 9110, 10.2.2).
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let base = url::Url::parse(&base.to_string()).ok()?;
    let target = base.join(location).ok()?;
    target.as_str().split('#').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

    #[test]
    fn every_partition_keeps_layers_under_its_own_domain() {
        for (host, region, domain) in [
            (
                "dkr.ecr.us-west-2.amazonaws.com",
                "us-west-2",
                "amazonaws.com",
            ),
            ("dkr-ecr.us-west-2.on.aws", "us-west-2", "amazonaws.com"),
            (
                "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                "amazonaws.com",
            ),
            (
                "dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "amazonaws.com.cn",
            ),
            (
                "dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "cn-north-1",
                "amazonaws.com.cn",
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                "amazonaws.eu",
            ),
            (
                "dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                "c2s.ic.gov",
            ),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                "sc2s.sgov.gov",
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                "cloud.adc-e.uk",
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                "csp.hci.ic.gov",
            ),
        ] {
            let registry = format!("000042290000.{host}");
            let bucket = format!("prod-{region}-starport-layer-bucket");
            for service in ["s3", "s3-fips", "s3.dualstack", "s3-fips.dualstack"] {
                let own =
                    format!("https://{bucket}.{service}.{region}.{domain}/layer?X-Amz-Signature=1");
                assert_eq!(
                    judge(&registry, &format!("https://{registry}"), &[], &own),
                    Ok(()),
                    "{own}"
                );
            }
            let other = format!("https://{bucket}.s3.{region}.{domain}.example/layer");
            assert!(
                judge(&registry, &format!("https://{registry}"), &[], &other).is_err(),
                "{other}"
            );
        }
    }

    fn judge(
        registry: &str,
        endpoint: &str,
        listed: &[&str],
        location: &str,
    ) -> Result<(), RefusedRedirect> {
        let base: Uri = endpoint.parse().unwrap();
        let policy = RedirectPolicy::new(
            &Registry::parse(registry).unwrap(),
            Origin::of(&base).unwrap(),
            listed.iter().map(|p| p.parse().unwrap()).collect(),
        );
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, location.parse().unwrap());
        policy.follow(&base, &headers).map(drop)
    }

    #[test]
    fn s11_only_listed_hosts_over_tls() {
        let ecr = |location: &str| judge(ECR, &format!("https://{ECR}/v2/"), &[], location);
        for good in [
            "https://prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com/a?X-Amz-Signature=1",
            "https://prod-us-west-2-starport-layer-bucket.s3.amazonaws.com/a",
            "https://prod-us-west-2-starport-layer-bucket.s3.dualstack.us-west-2.amazonaws.com/a",
            "/v2/elsewhere",
        ] {
            assert_eq!(ecr(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            (
                "http://prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com/",
                RefusedRedirect::NotHttps,
            ),
            (
                "https://prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com:8443/",
                RefusedRedirect::Port,
            ),
            (
                "https://u:p@prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com/",
                RefusedRedirect::UserInfo,
            ),
            (
                "https://prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com/",
                RefusedRedirect::Host,
            ),
            (
                "https://evil-bucket.s3.us-west-2.amazonaws.com/",
                RefusedRedirect::Host,
            ),
            (
                "https://prod-us-west-2-starport-layer-bucket.s3.us-west-2.amazonaws.com.evil.example/",
                RefusedRedirect::Host,
            ),
            (
                "https://169.254.169.254/latest/meta-data/",
                RefusedRedirect::Host,
            ),
            (
                "http://169.254.169.254/latest/meta-data/",
                RefusedRedirect::NotHttps,
            ),
            ("https://127.0.0.1/", RefusedRedirect::Host),
            ("//evil.example/x", RefusedRedirect::Host),
            ("https://", RefusedRedirect::NoLocation),
            ("ftp://evil.example/", RefusedRedirect::NoLocation),
            ("javascript:alert(1)", RefusedRedirect::NoLocation),
        ] {
            assert_eq!(ecr(bad), Err(reason), "{bad}");
        }
    }

    #[test]
    fn s11_locations_must_be_there_once() {
        let base: Uri = "https://registry.example/".parse().unwrap();
        let policy = RedirectPolicy::new(
            &Registry::parse("registry.example").unwrap(),
            Origin::of(&base).unwrap(),
            Vec::new(),
        );
        let mut headers = HeaderMap::new();
        assert_eq!(
            policy.follow(&base, &headers),
            Err(RefusedRedirect::NoLocation)
        );
        headers.append(header::LOCATION, "/a".parse().unwrap());
        assert!(policy.follow(&base, &headers).is_ok());
        headers.append(header::LOCATION, "/b".parse().unwrap());
        assert_eq!(
            policy.follow(&base, &headers),
            Err(RefusedRedirect::NoLocation)
        );
    }

    #[test]
    fn plain_http_stays_within_this_host() {
        let here = |location: &str| judge(ECR, "http://127.0.0.1:5000/", &[], location);
        assert_eq!(here("http://127.0.0.1:6000/x"), Ok(()));
        assert_eq!(here("http://127.0.0.2:6000/x"), Err(RefusedRedirect::Host));
        assert_eq!(here("http://10.0.0.1/x"), Err(RefusedRedirect::NotHttps));
        assert_eq!(
            judge(
                "r.example",
                "https://r.example/",
                &["127.0.0.1"],
                "http://127.0.0.1/x"
            ),
            Err(RefusedRedirect::NotHttps)
        );
    }

    #[test]
    fn the_operator_may_list_more() {
        let listed = ["cdn.example:8443", "*.blobs.example"];
        let go = |location: &str| judge("r.example", "https://r.example/", &listed, location);
        assert_eq!(go("https://cdn.example:8443/x"), Ok(()));
        assert_eq!(go("https://cdn.example/x"), Err(RefusedRedirect::Port));
        assert_eq!(go("https://a.blobs.example/x"), Ok(()));
        assert_eq!(go("https://blobs.example/x"), Err(RefusedRedirect::Host));
        assert_eq!(
            go("https://evilblobs.example/x"),
            Err(RefusedRedirect::Host)
        );
        for bad in ["", "*.com", "https://x", "a/b", "u@h"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn signed_addresses_are_known_by_their_signature() {
        assert!(is_signed(
            &"https://s/x?a=1&X-Amz-Signature=f".parse().unwrap()
        ));
        assert!(!is_signed(&"https://s/x?a=1".parse().unwrap()));
    }
}
