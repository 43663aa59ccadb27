//! One upstream as it is configured, and what of that may change while it is in use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{AwsOptions, Creation, Egress, HostPattern, Quotas, Rate, Registry, Secret};
use crate::oci::Routed;

/// One upstream, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamOptions {
    /// The operator's name for it, in logs and metrics.
    pub name: Arc<str>,
    /// The registry.
    pub registry: Registry,
    /// How to log in.
    pub auth: Auth,
    /// Where to connect instead of at the registry's own name: scheme, host and port. `http` for
    /// loopback only.
    pub endpoint: Option<Uri>,
    /// The name on the endpoint's certificate, if another than its host.
    pub endpoint_tls_name: Option<String>,
    /// Certificates to trust for the registry and its storage, beside the system's.
    pub extra_roots: ExtraRoots,
    /// The proxy on the way out, to the registry, its storage, its token services and the AWS API.
    pub egress: Option<Egress>,
    /// Further hosts that redirects may lead to, private ones too.
    pub redirect_hosts: Vec<HostPattern>,
    /// Further hosts that speak for the registry where it asks for tokens: they are sent the password.
    pub token_hosts: Vec<HostPattern>,
    /// Whether a manifest proves that the repository holds its blobs; told from the registry without.
    pub trust_manifests: Option<bool>,
    /// How fast its blobs may come, in bytes a second; without, as fast as they do.
    pub max_bandwidth: Option<Rate>,
    /// Repositories of which nothing is ever asked. Where that is all of them, nor is a token.
    pub offline: Routed<bool>,
    /// How many requests a second it takes.
    pub quotas: Quotas,
    /// Repositories that are made when they are pushed to, if any are. For private ECR registries that are
    /// logged in to by AWS.
    pub creation: Option<Creation>,
    /// A folder for notes of what is being made, so that one that was begun is ended after a restart.
    pub creation_notes: Option<PathBuf>,
    /// Upstreams that have the same repositories, asked in this order where this one cannot answer.
    pub fallback: Vec<Arc<str>>,
    /// Deadlines and sizes.
    pub limits: Limits,
}

impl UpstreamOptions {
    /// With nothing out of the ordinary.
    pub fn new(name: &str, registry: Registry, auth: Auth) -> Self {
        Self {
            name: name.into(),
            registry,
            auth,
            endpoint: None,
            endpoint_tls_name: None,
            extra_roots: Vec::new(),
            egress: None,
            redirect_hosts: Vec::new(),
            token_hosts: Vec::new(),
            trust_manifests: None,
            max_bandwidth: None,
            offline: false.into(),
            creation: None,
            creation_notes: None,
            fallback: Vec::new(),
            quotas: Quotas::unlimited(),
            limits: Limits::default(),
        }
    }
}

impl UpstreamOptions {
    /// What of it may be another while the upstream is in use.
    pub(super) fn terms(&self) -> Terms {
        let by_registry = || self.registry.refuses_incomplete_manifests();
        Terms {
            trusts_manifests: self.trust_manifests.unwrap_or_else(by_registry),
            offline: self.offline.clone(),
            fallback: self.fallback.clone(),
            manifest_max_bytes: self.limits.manifest_max_bytes,
            max_bandwidth: self.max_bandwidth,
        }
    }

    /// Whether the two differ at most in their [`Terms`].
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        let limits = Limits {
            manifest_max_bytes: other.limits.manifest_max_bytes,
            ..self.limits.clone()
        };
        let with_terms_of_other = Self {
            trust_manifests: other.trust_manifests,
            offline: other.offline.clone(),
            fallback: other.fallback.clone(),
            max_bandwidth: other.max_bandwidth,
            limits,
            ..self.clone()
        };
        with_terms_of_other == *other
    }
}

/// How an upstream is treated, which may change while it is in use.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) trusts_manifests: bool,
    pub(super) offline: Routed<bool>,
    pub(super) fallback: Vec<Arc<str>>,
    pub(super) manifest_max_bytes: usize,
    pub(super) max_bandwidth: Option<Rate>,
}

/// Certificates to trust beside the system's.
pub type ExtraRoots = Vec<CertificateDer<'static>>;

/// Every certificate of a PEM file; `None` if it holds none, or something else between them.
pub fn roots_from_pem(pem: &[u8]) -> Option<ExtraRoots> {
    let roots: Result<ExtraRoots, _> = CertificateDer::pem_slice_iter(pem).collect();
    roots.ok().filter(|roots| !roots.is_empty())
}

/// How an upstream is logged in to.
#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    /// By a token that AWS issues. For ECR registries, private and public.
    Aws(AwsOptions),
    /// By user name and password, as the registry's challenge asks: sent to it, or to its token service.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// Not, or by a token that anybody gets.
    Anonymous,
}

/// Deadlines and sizes of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For token and connection together.
    pub connect: Duration,
    /// From the request to the head of its answer.
    pub first_byte: Duration,
    /// Within which a body must bring something worth it, and for a small body the whole of it.
    pub progress: Duration,
    /// For one call for a token.
    pub token: Duration,
    /// For how long throttling is waited out before a request fails of it.
    pub absorb_throttle: Duration,
    /// Largest manifest, in bytes.
    pub manifest_max_bytes: usize,
    /// Blobs under way at once; as many other requests may be.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            // Storage that fetches from a colder tier answers late, but it answers.
            first_byte: Duration::from_secs(20),
            progress: Duration::from_secs(30),
            token: Duration::from_secs(10),
            absorb_throttle: Duration::from_secs(20),
            manifest_max_bytes: 4 * 1024 * 1024,
            max_connections: 256,
        }
    }
}

/// Why an upstream cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Neither the endpoint nor the registry's name makes an address.
    #[error("endpoint: expected https://host[:port] or, for loopback, http://host[:port]")]
    Endpoint,
    /// Plain HTTP would show the token to the network.
    #[error("endpoint: http:// is for loopback only")]
    PlainEndpoint,
    /// Not a host name or address.
    #[error("endpoint_tls_name: not a host name")]
    TlsName,
    /// AWS issues tokens for its own registries only.
    #[error(
        "auth: \"aws\" is for ECR registries, ACCOUNT.dkr.ecr.REGION.amazonaws.com and public.ecr.aws"
    )]
    AwsElsewhere,
    /// Only the API of private ECR makes repositories.
    #[error("create_repositories: is for private ECR registries with auth = \"aws\"")]
    CreationElsewhere,
    /// One of the extra roots is not a certificate.
    #[error("ca: not a usable certificate")]
    Roots(#[source] rustls::Error),
}
