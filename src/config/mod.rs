//! What the operator wrote, checked once.
//!
//! File, environment and flags become one [`Config`] in a single pass that reports every fault
//! together with its key and place. Flags win over the environment, which wins over the file.
//! Nothing below this module sees a [`Config`]: each mechanism has its own options, filled from
//! it here. The environment is read through [`Strings`], so tests bring a map.
//!
//! A `Config` holds paths of secrets, never secrets; hashes of the user file do not print.

mod changes;
mod effective;
mod faults;
mod keys;
mod parts;
mod resolve;
mod sources;
mod values;

#[cfg(test)]
mod tests;

pub use changes::Changes;
pub use faults::{Fault, Faults, Origin};
pub use parts::FileError;
pub use sources::{Flags, ProcessEnvironment, Strings};
pub use values::{ListenAddress, Size, bytes as parse_bytes, duration as parse_duration};

use changes::Written;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;

use crate::access::{Network, Rules, Users};
use crate::cache::Pin;
use crate::fill::TagPolicy;
use crate::oci::{ImageName, NameRoute, Namespace, Pattern, Platform, RepositoryName};
use crate::tls::{AcmeOptions, ClientUser, PairFiles};
use crate::upstream::{Creation, Egress, HostPattern, Quotas, Rate, Registry, Role};

/// The file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/ecr-proxy/config.toml";

/// The whole configuration, every value checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from, if any.
    pub file: Option<PathBuf>,
    /// What is odd without being wrong; for the log at start.
    pub warnings: Vec<String>,
    /// What `RUST_LOG` says, unparsed.
    pub log_filter: Option<String>,
    /// `[server]`.
    pub server: Server,
    /// `[tls]`.
    pub tls: Tls,
    /// `[tls]`: client certificates that are taken, if any are.
    pub client_certificates: Option<ClientCertificates>,
    /// `[cache]`.
    pub cache: Cache,
    /// `[access]`.
    pub access: Access,
    /// Each `[[upstream]]`: at least one, and no two of one name.
    pub upstreams: Vec<Upstream>,
    /// `[[route]]`, in the order of the file.
    pub routes: Vec<Route>,
    /// Each `[[warm]]`.
    pub warm: Vec<Warm>,
    /// What all of this was read from, to tell later what has changed.
    written: Written,
}

/// `[[warm]]`: images that are fetched at the start and again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warm {
    /// The images; their domains are ours or the upstream's.
    pub images: Vec<ImageName>,
    /// Between two looks at them.
    pub every: Duration,
    /// Of an index only the manifests for these; all if empty.
    pub platforms: Vec<Platform>,
    /// Whatever refers to them as well: signatures, SBOMs.
    pub referrers: bool,
}

/// `[server]`: the registry's own door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where the registry API is served.
    pub listen: Vec<ListenAddress>,
    /// Names (or addresses) that clients use, lower case; empty only where every listener is on
    /// loopback, which answers any name.
    pub domains: Vec<String>,
    /// What must survive besides the cache: the local CA, the ACME account and certificate.
    pub state_dir: PathBuf,
    /// Metrics and health; `None` for off.
    pub admin: Option<SocketAddr>,
    /// Where the cache is tended while the proxy runs; `None` for off.
    pub admin_socket: Option<AdminSocket>,
    /// Balancers, whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// How long bodies in flight may take to finish after SIGTERM.
    pub drain_timeout: Duration,
}

impl Server {
    /// Whether any listener speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.listen.iter().any(|listen| listen.tls)
    }
}

/// The socket through which the cache is tended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSocket {
    /// Where it is.
    pub path: PathBuf,
    /// The operator named it: the proxy does not start without it.
    pub is_required: bool,
}

/// `[tls]`: where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// No listener speaks TLS.
    Off,
    /// The operator's pairs, at least one; the first is shown to clients that name no host.
    Files(Vec<PairFiles>),
    /// A certificate that we obtain from an ACME directory.
    Acme {
        /// What to obtain, and where.
        options: Box<AcmeOptions>,
        /// Where its proofs over HTTP are served; `None` where they are not over HTTP.
        http_listen: Option<SocketAddr>,
    },
    /// A CA of our own, kept under [`Server::state_dir`].
    LocalCa,
}

/// `[tls]`: whose client certificates are taken, and which user each stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The CAs that sign them, PEM.
    pub ca: PathBuf,
    /// The name that is the user.
    pub user: ClientUser,
}

/// `[cache]`: what is kept, and how long it is believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// The store.
    pub dir: PathBuf,
    /// The most it may occupy, temporary files counted.
    pub max_size: Size,
    /// What it leaves free on its file system.
    pub min_free: Size,
    /// How fresh what is kept has to be, unless the upstream or a route says otherwise.
    pub freshness: Freshness,
    /// How long a client waits for the check of a tag that it may have stale.
    pub tag_wait: Duration,
    /// How long an absence is believed.
    pub absent_ttl: Duration,
    /// After how long a repository's record of a digest is rechecked in the background.
    pub record_ttl: Duration,
    /// Largest manifest taken from the upstream, bytes.
    pub max_manifest_size: u64,
    /// How fast blobs may come from all upstreams together, bytes a second; `None` for unlimited.
    pub max_upstream_bandwidth: Option<Rate>,
    /// What is fetched ahead of being asked for.
    pub prefetch: Prefetch,
    /// What is never evicted, besides what the operator pins while it runs.
    pub pins: Vec<Pin>,
}

/// What is fetched ahead of being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing.
    Off,
    /// The other layers of a manifest, once a client asks for one.
    Layers,
}

impl Prefetch {
    /// As the file has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Layers => "layers",
        }
    }
}

/// `[access]`: who is let in.
#[derive(Clone, Debug)]
pub struct Access {
    /// The user file.
    pub users_file: Option<PathBuf>,
    /// Its users; empty if it was not read (see [`Files`]).
    pub users: Users,
    /// Whether anybody may pull from [`Access::anonymous_networks`].
    pub anonymous: Anonymous,
    /// Where the anonymous may come from.
    pub anonymous_networks: Vec<Network>,
    /// Whether `AWS` with an ECR token is a login, which may do what ECR says of the token.
    pub aws_tokens: bool,
    /// Who may do what: each `[[access.rule]]`, then [`Access::anonymous`] as a rule; that all users may
    /// pull where there is neither.
    pub rules: Rules,
    /// How many of these were written as `[[access.rule]]`.
    pub written_rules: usize,
}

/// What those without credentials may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// Nothing.
    None,
    /// Pull.
    Pull,
}

/// `[[upstream]]`: a registry behind the proxy.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name: a folder of the store and a label of metrics.
    pub name: String,
    /// The registry.
    pub registry: Registry,
    /// How to log in.
    pub auth: Auth,
    /// Where to connect instead of the registry's own host.
    pub endpoint: Option<Uri>,
    /// The name that the endpoint's certificate must have, where it is not its host.
    pub endpoint_tls_name: Option<String>,
    /// Further roots to trust, PEM.
    pub ca: Option<PathBuf>,
    /// The proxy on the way out; `None` for none.
    pub egress: Option<Egress>,
    /// Further hosts that blob redirects may lead to.
    pub redirect_hosts: Vec<HostPattern>,
    /// Further hosts that may be asked for tokens.
    pub token_hosts: Vec<HostPattern>,
    /// Other upstreams with the same repositories, asked in this order where this one cannot answer.
    pub fallback: Vec<String>,
    /// How fresh what it holds has to be; already defaulted from [`Cache::freshness`].
    pub freshness: Freshness,
    /// Whether a manifest proves that the repository holds its blobs; `None` to tell by registry.
    pub trust_manifests: Option<bool>,
    /// How fast its blobs may come, bytes a second; `None` for unlimited.
    pub max_upstream_bandwidth: Option<Rate>,
    /// How many requests a second it takes.
    pub quotas: Quotas,
    /// Repositories that are made when they are pushed to; `None` for none.
    pub create: Option<Create>,
    /// Whether an `AWS_ENDPOINT_URL…` variable leads the AWS API elsewhere: [`Upstream::ca`] is
    /// then trusted for it, too.
    pub aws_endpoint_in_environment: bool,
}

/// `create_repositories` and `[upstream.template]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Which, and what like; without its lifecycle policy if that was not read (see [`Files`]).
    pub creation: Creation,
    /// The file of the lifecycle policy.
    pub lifecycle_policy: Option<PathBuf>,
}

/// How fresh what is kept has to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// How tags are believed.
    pub tags: TagPolicy,
    /// Nothing is ever asked.
    pub offline: bool,
}

/// `[[route]]`: where names lead, and how fresh what is there has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which names, and where.
    pub names: NameRoute,
    /// It says where names lead. One that says only how fresh things have to be leaves all names to the
    /// one upstream.
    pub leads: bool,
    /// How fresh what is there has to be; already defaulted from [`Upstream::freshness`].
    pub freshness: Freshness,
}

impl fmt::Display for Route {
    /// The keys that it has, as in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NameRoute {
            domain,
            ns,
            repository,
            upstream,
            strip_prefix,
            add_prefix,
        } = &self.names;
        let ns = ns.as_ref().map(|ns| match ns {
            Namespace::Any => "*",
            Namespace::Registry(registry) => registry,
        });
        for (key, value) in [
            ("domain", domain.as_deref()),
            ("ns", ns),
            ("repository", repository.as_ref().map(Pattern::as_str)),
            (
                "strip_prefix",
                strip_prefix.as_ref().map(RepositoryName::as_str),
            ),
            (
                "add_prefix",
                add_prefix.as_ref().map(RepositoryName::as_str),
            ),
        ] {
            if let Some(value) = value {
                write!(f, "{key} = {value:?}, ")?;
            }
        }
        write!(f, "upstream = {upstream:?}")
    }
}

/// How to log in to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// ECR tokens through the AWS default chain.
    Aws {
        /// The profile to use instead of the default one.
        profile: Option<String>,
        /// The role to assume with what that leads to.
        role: Option<Role>,
    },
    /// A user and a password.
    Basic {
        /// The user.
        username: String,
        /// The file that holds the password; a trailing newline is not part of it.
        password_file: PathBuf,
    },
    /// No credentials of our own.
    Anonymous,
}

/// Whether the files that the configuration names must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// They are read or at least opened: for commands that run the proxy or check it.
    Required,
    /// They are not looked at: for commands that only print, perhaps on another machine.
    Ignored,
}

/// Where a configuration comes from.
pub struct Sources<'a> {
    /// The file; `None` for [`DEFAULT_FILE`] if it exists.
    pub file: Option<&'a Path>,
    /// The environment.
    pub environment: &'a dyn Strings,
    /// The command line.
    pub flags: Flags,
    /// What to do with files named in it.
    pub files: Files,
}

impl Config {
    /// Reads and checks the whole configuration.
    ///
    /// # Errors
    /// Everything that is wrong, together.
    pub fn load(sources: Sources<'_>) -> Result<Self, Faults> {
        resolve::load(sources)
    }

    /// The state directory alone, for commands that need nothing else and should not insist on it.
    ///
    /// # Errors
    /// Everything that is wrong with the form of the file, and with this key.
    pub fn state_dir(sources: Sources<'_>) -> Result<PathBuf, Faults> {
        resolve::state_dir(sources)
    }
}
