//! Which registry an upstream is, read from its host name.
//!
//! Pure. The form of the host decides how to log in, where to connect and where blobs may be
//! redirected to; nothing else in the crate looks into host names of registries.

use std::fmt;

/// A registry, told from its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    name: String,
    kind: RegistryKind,
}

/// The sorts of registry that are treated differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryKind {
    /// A private ECR registry.
    Ecr(EcrHost),
    /// `public.ecr.aws`, or its dual-stack name.
    EcrPublic,
    /// `docker.io`.
    DockerHub,
    /// Any other registry that speaks the OCI distribution API.
    Other,
}

/// What the host of a private ECR registry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcrHost {
    /// Twelve digits.
    pub account: String,
    /// Such as `us-west-2`.
    pub region: String,
    /// A FIPS 140 endpoint.
    pub fips: bool,
    /// An endpoint with IPv6.
    pub dual_stack: bool,
    /// The DNS suffix of the partition's IPv4-only services, such as `amazonaws.com.cn`. Storage hosts
    /// lie under it.
    pub dns_suffix: &'static str,
}

/// The text is not the name of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRegistryError {
    /// Not `host` or `host:port`: a scheme, a path, or characters that no host has.
    #[error("not a registry: expected host or host:port, without scheme or path")]
    NotAHost,
    /// ECR and Docker Hub are at port 443 only.
    #[error("this registry takes no port; use endpoint to connect elsewhere")]
    Port,
    /// The account of what is otherwise an ECR host.
    #[error(
        "no ECR host: an account has 12 digits, as in 000042290000.dkr.ecr.us-west-2.amazonaws.com"
    )]
    EcrAccount,
    /// The service or region of what is otherwise an ECR host.
    #[error(
        "no ECR host: expected ACCOUNT.dkr.ecr.REGION… or ACCOUNT.dkr-ecr.REGION…, with -fips after ecr \
         for FIPS endpoints"
    )]
    EcrRegion,
    /// Not under a domain that AWS keeps ECR under.
    #[error(
        "no ECR host: it ends in none of amazonaws.com, amazonaws.com.cn, amazonaws.eu, on.aws, \
         on.amazonwebservices.com.cn, sc2s.sgov.gov, c2s.ic.gov, cloud.adc-e.uk and csp.hci.ic.gov"
    )]
    EcrSuffix,
}

/// DNS suffixes that ECR registries live under, and the suffix of the same partition's IPv4 services.
/// A suffix of its own for IPv6 means dual-stack hosts.
const ECR_SUFFIXES: [(&str, bool, &str); 9] = [
    ("amazonaws.com", false, "amazonaws.com"),
    ("amazonaws.com.cn", false, "amazonaws.com.cn"),
    ("amazonaws.eu", false, "amazonaws.eu"),
    ("on.aws", true, "amazonaws.com"),
    ("on.amazonwebservices.com.cn", true, "amazonaws.com.cn"),
    ("sc2s.sgov.gov", false, "sc2s.sgov.gov"),
    ("c2s.ic.gov", false, "c2s.ic.gov"),
    ("cloud.adc-e.uk", false, "cloud.adc-e.uk"),
    ("csp.hci.ic.gov", false, "csp.hci.ic.gov"),
];

impl Registry {
    /// Reads `host` or `host:port`.
    ///
    /// # Errors
    /// When it is not a host, or a well-known registry with a port, or an ECR host with a slip in it.
    pub fn parse(text: &str) -> Result<Self, ParseRegistryError> {
        let name = text.to_ascii_lowercase();
        let (host, port) = split_port(&name).ok_or(ParseRegistryError::NotAHost)?;
        let kind = if let Some(ecr) = EcrHost::parse(host)? {
            RegistryKind::Ecr(ecr)
        } else {
            match host {
                "public.ecr.aws" | "ecr-public.aws.com" => RegistryKind::EcrPublic,
                "docker.io" | "index.docker.io" | "registry-1.docker.io" => RegistryKind::DockerHub,
                _ => RegistryKind::Other,
            }
        };
        let takes_port = matches!(kind, RegistryKind::Other);
        if port.is_some() && !takes_port {
            return Err(ParseRegistryError::Port);
        }
        Ok(Self { name, kind })
    }

    /// The name that images are written with, such as `docker.io`; with its port where it has one.
    pub fn name(&self) -> &str {
        match self.kind {
            RegistryKind::DockerHub => "docker.io",
            RegistryKind::Ecr(_) | RegistryKind::EcrPublic | RegistryKind::Other => &self.name,
        }
    }

    /// The host of [`Self::name`], an IPv6 address without its brackets, and its port where it has one.
    pub fn host_and_port(&self) -> (&str, Option<u16>) {
        let (host, port) = split_port(self.name()).unwrap_or((self.name(), None));
        (host.trim_matches(['[', ']']), port)
    }

    /// The authority of the registry's API: where to connect, and the `Host` of requests.
    pub fn authority(&self) -> &str {
        match self.kind {
            RegistryKind::DockerHub => "registry-1.docker.io",
            RegistryKind::Ecr(_) | RegistryKind::EcrPublic | RegistryKind::Other => &self.name,
        }
    }

    /// What sort of registry it is.
    pub fn kind(&self) -> &RegistryKind {
        &self.kind
    }

    /// The private ECR registry that it is, if it is one.
    pub fn ecr(&self) -> Option<&EcrHost> {
        match &self.kind {
            RegistryKind::Ecr(ecr) => Some(ecr),
            RegistryKind::EcrPublic | RegistryKind::DockerHub | RegistryKind::Other => None,
        }
    }

    /// True for registries known to refuse a manifest whose blobs they do not hold, so that a manifest
    /// proves that the repository holds its blobs.
    pub fn refuses_incomplete_manifests(&self) -> bool {
        match self.kind {
            RegistryKind::Ecr(_) | RegistryKind::EcrPublic | RegistryKind::DockerHub => true,
            RegistryKind::Other => false,
        }
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl EcrHost {
    /// Reads `ACCOUNT.dkr.ecr[-fips].REGION.SUFFIX` and its dual-stack form `ACCOUNT.dkr-ecr…`, the
    /// same hosts that the AWS credential helpers know; `None` for what is no such thing at all.
    fn parse(host: &str) -> Result<Option<Self>, ParseRegistryError> {
        let Some((account, rest)) = host.split_once('.') else {
            return Ok(None);
        };
        let Some(rest) = rest
            .strip_prefix("dkr.ecr")
            .or_else(|| rest.strip_prefix("dkr-ecr"))
        else {
            return Ok(None);
        };
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseRegistryError::EcrAccount);
        }
        let (fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let place = rest.strip_prefix('.').and_then(|rest| rest.split_once('.'));
        let (region, suffix) = place.ok_or(ParseRegistryError::EcrRegion)?;
        // Regions have a number at their end; without one, a part of the name is missing.
        let is_region = region.starts_with(|c: char| c.is_ascii_alphanumeric())
            && region.ends_with(|c: char| c.is_ascii_digit())
            && region
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !is_region {
            return Err(ParseRegistryError::EcrRegion);
        }
        let known = ECR_SUFFIXES.iter().find(|(known, ..)| *known == suffix);
        let (_, dual_stack, dns_suffix) = known.ok_or(ParseRegistryError::EcrSuffix)?;
        Ok(Some(Self {
            account: account.to_owned(),
            region: region.to_owned(),
            fips,
            dual_stack: *dual_stack,
            dns_suffix,
        }))
    }
}

/// Splits `host[:port]`, where the host is a DNS name, an IPv4 address or an IPv6 address in brackets.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(parse_port(port)?)),
        _ => (text, None),
    };
    let is_ipv6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    (is_ipv6 || is_name).then_some((host, port))
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|port| is_number && *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_an_ecr_host() {
        for (host, region, fips, dual_stack, dns_suffix) in [
            (
                "000042290000.dkr.ecr.us-west-2.amazonaws.com",
                "us-west-2",
                false,
                false,
                "amazonaws.com",
            ),
            (
                "000042290000.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                true,
                false,
                "amazonaws.com",
            ),
            (
                "000042290000.dkr-ecr.eu-west-1.on.aws",
                "eu-west-1",
                false,
                true,
                "amazonaws.com",
            ),
            (
                "000042290000.dkr-ecr-fips.us-east-1.on.aws",
                "us-east-1",
                true,
                true,
                "amazonaws.com",
            ),
            (
                "000042290000.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                false,
                false,
                "amazonaws.com.cn",
            ),
            (
                "000042290000.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "cn-north-1",
                false,
                true,
                "amazonaws.com.cn",
            ),
            (
                "000042290000.dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                false,
                false,
                "amazonaws.eu",
            ),
            (
                "000042290000.dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                false,
                false,
                "c2s.ic.gov",
            ),
            (
                "000042290000.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                false,
                false,
                "sc2s.sgov.gov",
            ),
            (
                "000042290000.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                false,
                false,
                "cloud.adc-e.uk",
            ),
            (
                "000042290000.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                false,
                false,
                "csp.hci.ic.gov",
            ),
        ] {
            let registry = Registry::parse(host).unwrap();
            let expected = EcrHost {
                account: "000042290000".into(),
                region: region.into(),
                fips,
                dual_stack,
                dns_suffix,
            };
            assert_eq!(registry.ecr(), Some(&expected), "{host}");
            assert_eq!(registry.authority(), host);
            assert!(registry.refuses_incomplete_manifests());
        }
    }

    #[test]
    fn near_misses_are_told() {
        use ParseRegistryError::{EcrAccount, EcrRegion, EcrSuffix};
        for (host, told) in [
            ("00004229000.dkr.ecr.us-west-2.amazonaws.com", EcrAccount),
            ("0000422900000.dkr.ecr.us-west-2.amazonaws.com", EcrAccount),
            ("0000-4229-000.dkr.ecr.us-west-2.amazonaws.com", EcrAccount),
            ("none.dkr.ecr.us-west-2.amazonaws.com", EcrAccount),
            ("000042290000.dkr.ecr.amazonaws.com", EcrRegion),
            ("000042290000.dkr.ecr", EcrRegion),
            ("000042290000.dkr.ecrx.us-west-2.amazonaws.com", EcrRegion),
            (
                "000042290000.dkr.ecr-fip.us-west-2.amazonaws.com",
                EcrRegion,
            ),
            (
                "000042290000.dkr.ecr.us-west-2.amazonaws.com.evil.example",
                EcrSuffix,
            ),
            ("000042290000.dkr.ecr.us-west-2.amazon.com", EcrSuffix),
            ("000042290000.dkr.ecr.us-west-2.api.aws", EcrSuffix),
        ] {
            assert_eq!(Registry::parse(host), Err(told), "{host}");
        }
        // A registry of somebody's, which only has such a name in its own.
        let host = "x.000042290000.dkr.ecr.us-west-2.amazonaws.com";
        let registry = Registry::parse(host).unwrap();
        assert_eq!(registry.kind(), &RegistryKind::Other);
    }

    #[test]
    fn other_registries() {
        let hub = Registry::parse("docker.io").unwrap();
        assert_eq!(
            (hub.name(), hub.authority()),
            ("docker.io", "registry-1.docker.io")
        );
        assert_eq!(
            Registry::parse("PUBLIC.ecr.aws").unwrap().kind(),
            &RegistryKind::EcrPublic
        );
        for host in [
            "localhost:5000",
            "[::1]:5000",
            "127.0.0.1",
            "registry.example.org",
        ] {
            let registry = Registry::parse(host).unwrap();
            assert_eq!(registry.authority(), host);
            assert!(!registry.refuses_incomplete_manifests());
        }
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        for text in [
            "",
            "https://registry.example.org",
            "a/b",
            "a b",
            "host:",
            "host:0",
            "host:99999",
            "host:+1",
            "[::1",
            "user@host",
            "a..b",
            "host:1:2",
        ] {
            assert_eq!(
                Registry::parse(text),
                Err(ParseRegistryError::NotAHost),
                "{text}"
            );
        }
        assert_eq!(
            Registry::parse("000042290000.dkr.ecr.us-west-2.amazonaws.com:443"),
            Err(ParseRegistryError::Port)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = Registry::parse(&text);
        }
    }
}
