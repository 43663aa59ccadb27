//! From settings to a [`Config`]: defaults, parsing, and the rules that span several keys.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod access;

use super::faults::{Fault, Faults, Origin};
use super::sources::{self, Settings, Strings, Tables};
use super::values::{self, ListenAddress, Size};
use super::{
    AdminSocket, Auth, Cache, Config, DEFAULT_FILE, Files, Freshness, Prefetch, Route, Server,
    Sources, Tls, Upstream, Warm,
};
use crate::cache::Pin;
use crate::fill::TagPolicy;
use crate::oci::{ImageName, Platform};
use crate::upstream::{HostPattern, Registry, RegistryKind};

/// Of the file system, leaving room for what else lives there.
const DEFAULT_MAX_SIZE: Size = Size::Percent(70.0);
/// A file system that is nearly full becomes slow and fails others first.
const DEFAULT_MIN_FREE: Size = Size::Percent(5.0);
/// A person hardly notices so much, and most lines answer within.
const DEFAULT_TAG_WAIT: Duration = Duration::from_secs(2);
const DEFAULT_ABSENT_TTL: Duration = Duration::from_secs(5);
const DEFAULT_RECORD_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// What the distribution specification (1.1, "Pushing Manifests") says registries should take.
const DEFAULT_MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Manifests are buffered whole, several at once.
const MANIFEST_BYTES_LIMIT: u64 = 64 << 20;
/// Below the 30 s that orchestrators give a process between SIGTERM and SIGKILL.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
const DEFAULT_ADMIN_SOCKET: &str = "/run/ecr-proxy/admin.sock";
/// unix(7): 108 with the zero at the end; some are left for the name it has until it listens.
const MAX_SOCKET_PATH_BYTES: usize = 100;
/// Often enough for the images of a site, which are released by people.
const DEFAULT_EVERY: Duration = Duration::from_secs(60 * 60);
/// More often would be no schedule.
const LEAST_EVERY: Duration = Duration::from_secs(1);
/// Passwords are short; a file larger than this is not one.
const MAX_USER_FILE_BYTES: u64 = 8 << 20;

pub(super) fn load(sources: Sources<'_>) -> Result<Config, Faults> {
    let log_filter = sources.environment.get("RUST_LOG");
    let (mut resolver, file, warnings) = Resolver::new(sources);
    let config = resolver.config(file.clone(), warnings, log_filter);
    resolver.finish(file, config)
}

pub(super) fn state_dir(sources: Sources<'_>) -> Result<PathBuf, Faults> {
    let (mut resolver, file, _) = Resolver::new(sources);
    let state_dir = resolver.state_dir();
    resolver.finish(file, state_dir)
}

struct Resolver {
    settings: Settings,
    tables: Tables,
    faults: Vec<Fault>,
    /// The folder of the file, to which its relative paths are relative.
    base: PathBuf,
    files: Files,
    /// Whether the environment leads the AWS API elsewhere.
    aws_endpoint: bool,
}

impl Resolver {
    /// With every setting read, the file that was read, and warnings so far.
    fn new(sources: Sources<'_>) -> (Self, Option<PathBuf>, Vec<String>) {
        let default = Path::new(DEFAULT_FILE);
        let file = sources
            .file
            .or_else(|| default.exists().then_some(default))
            .map(Path::to_owned);
        let mut settings = Settings::new();
        let mut tables = Tables::new();
        let mut faults = Vec::new();
        let mut warnings = Vec::new();
        if let Some(file) = &file {
            match fs::read_to_string(file) {
                Ok(text) => sources::add_file(&text, &mut settings, &mut tables, &mut faults),
                Err(error) => faults.push(Fault {
                    origin: Origin::Default,
                    key: String::new(),
                    reason: format!("cannot read {}: {error}", file.display()),
                }),
            }
        }
        sources::add_environment(sources.environment, &mut settings, &mut warnings);
        sources::add_flags(sources.flags, &mut settings);
        let resolver = Self {
            settings,
            tables,
            faults,
            base: file
                .as_deref()
                .and_then(Path::parent)
                .map(Path::to_owned)
                .unwrap_or_default(),
            files: sources.files,
            aws_endpoint: aws_endpoint(sources.environment),
        };
        (resolver, file, warnings)
    }

    /// The value, if nothing was wrong.
    fn finish<T>(self, file: Option<PathBuf>, value: Option<T>) -> Result<T, Faults> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => {
                let file = file.map(|file| file.display().to_string());
                Err(Faults::new(file, self.faults))
            }
        }
    }

    fn state_dir(&mut self) -> Option<PathBuf> {
        self.directory("server.state_dir", "/var/lib/ecr-proxy")
    }

    /// `None` only if a fault was noted.
    fn config(
        &mut self,
        file: Option<PathBuf>,
        warnings: Vec<String>,
        log_filter: Option<String>,
    ) -> Option<Config> {
        let server = self.server();
        let tls = self.tls(server.as_ref());
        let cache = self.cache();
        let freshness = cache.as_ref().map(|cache| cache.freshness.clone());
        let upstream = self.upstream(freshness.unwrap_or_default());
        let access = self.access(server.as_ref(), upstream.as_ref());
        let routes = self.routes(upstream.as_ref());
        let warm = self.warm();
        let mut config = Config {
            file,
            warnings,
            log_filter,
            server: server?,
            tls: tls?,
            cache: cache?,
            access: access?,
            upstream: upstream?,
            routes: routes?,
            warm: warm?,
        };
        self.only_our_images(&config);
        config.warnings.extend(access::warnings(&config));
        Some(config)
    }

    fn warm(&mut self) -> Option<Vec<Warm>> {
        self.each("warm", Self::one_warm)
    }

    fn one_warm(&mut self) -> Option<Warm> {
        let images = self.many("warm.images", |text| {
            let image = text.parse::<ImageName>();
            image.map_err(|error| format!("{text:?}: {error}"))
        });
        let every = self.one("warm.every", values::duration);
        let platforms = self.many("warm.platforms", |text| match text {
            "all" => Ok(None),
            _ => match text.parse::<Platform>() {
                Ok(platform) => Ok(Some(platform)),
                Err(error) => Err(format!("{text:?} is not \"all\": {error}")),
            },
        });
        let referrers = self.one("warm.referrers", |text| {
            text.parse::<bool>()
                .map_err(|_| format!("{text:?} is neither true nor false"))
        });
        if images
            .as_ref()
            .is_some_and(|images| images.as_ref().is_none_or(Vec::is_empty))
        {
            self.fault(
                "warm.images",
                "is missing or empty: name what is to be fetched",
            );
        }
        if matches!(every, Some(Some(every)) if every < LEAST_EVERY) {
            self.fault("warm.every", "is less than 1s");
        }
        let platforms = match platforms? {
            None => vec![Platform::of_this_machine()],
            Some(platforms) if platforms.contains(&None) => Vec::new(),
            Some(platforms) => platforms.into_iter().flatten().collect(),
        };
        Some(Warm {
            images: images??,
            every: every?.unwrap_or(DEFAULT_EVERY),
            platforms,
            referrers: referrers?.unwrap_or(true),
        })
    }

    /// Only what is behind this proxy can be fetched through it.
    fn only_our_images(&mut self, config: &Config) {
        let names = config.names();
        for image in config.warm.iter().flat_map(|warm| &warm.images) {
            if let Err(error) = names.route(image) {
                self.fault("warm.images", &format!("{image}: {error}"));
            }
        }
    }

    fn server(&mut self) -> Option<Server> {
        let listen = self.many("server.listen", values::listen);
        let domains = self.many("server.domains", values::domain);
        let state_dir = self.state_dir();
        let admin = self.one("server.admin", values::admin);
        let admin_socket = self.admin_socket();
        let drain_timeout = self.one("server.drain_timeout", values::duration);
        let listen = listen?.unwrap_or_else(|| {
            vec![ListenAddress {
                tls: true,
                address: (IpAddr::from([0_u16; 8]), 443).into(),
            }]
        });
        if listen.is_empty() {
            self.fault("server.listen", "is empty: nothing would be served");
        }
        for (index, address) in listen.iter().enumerate() {
            let port = address.address.port();
            let taken = |other: &&ListenAddress| other.address == address.address;
            if port != 0 && listen.iter().take(index).any(|other| taken(&other)) {
                self.fault("server.listen", &format!("{address} is there twice"));
            }
        }
        let mut domains = domains?.unwrap_or_default();
        domains.dedup();
        if domains.is_empty() && !listen.iter().all(|l| l.address.ip().is_loopback()) {
            self.fault(
                "server.domains",
                "is missing: name what clients call this proxy, such as --domain \
                 registry.mydomain.com (only loopback listeners do without)",
            );
        }
        let default_admin = (IpAddr::from([127, 0, 0, 1]), 9090).into();
        Some(Server {
            listen,
            domains,
            state_dir: state_dir?,
            admin: admin?.unwrap_or(Some(default_admin)),
            admin_socket: admin_socket?,
            drain_timeout: drain_timeout?.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
        })
    }

    /// `None` if it is faulty, `Some(None)` for off.
    fn admin_socket(&mut self) -> Option<Option<AdminSocket>> {
        const KEY: &str = "server.admin_socket";
        let Some(path) = self.path(KEY) else {
            return Some(Some(AdminSocket {
                path: DEFAULT_ADMIN_SOCKET.into(),
                is_required: false,
            }));
        };
        let is_off = self
            .settings
            .get(KEY)
            .is_some_and(|setting| setting.values == ["off"]);
        if is_off {
            return Some(None);
        }
        if path.as_os_str().is_empty() || path.file_name().is_none() {
            self.fault(KEY, "is not the path of a socket; \"off\" to do without");
            return None;
        }
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            let reason = format!(
                "{} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that the path of a socket may have",
                path.display()
            );
            self.fault(KEY, &reason);
            return None;
        }
        Some(Some(AdminSocket {
            path,
            is_required: true,
        }))
    }

    fn tls(&mut self, server: Option<&Server>) -> Option<Tls> {
        let cert = self.file("tls.cert");
        let key = self.file("tls.key");
        match (cert?, key?) {
            (Some(cert), Some(key)) => Some(Tls::Files { cert, key }),
            (Some(_), None) => {
                self.fault("tls.key", "is missing: tls.cert needs its private key");
                None
            }
            (None, Some(_)) => {
                self.fault(
                    "tls.cert",
                    "is missing: tls.key needs its certificate chain",
                );
                None
            }
            (None, None) => Some(if server?.listen.iter().any(|listen| listen.tls) {
                Tls::LocalCa
            } else {
                Tls::Off
            }),
        }
    }

    fn cache(&mut self) -> Option<Cache> {
        let dir = self.directory("cache.dir", "/var/cache/ecr-proxy");
        let max_size = self.one("cache.max_size", values::size);
        let min_free = self.one("cache.min_free", values::size);
        let freshness = self.freshness(
            [
                "cache.tag_ttl",
                "cache.stale_if_error",
                "cache.immutable_tags",
                "cache.offline",
            ],
            Freshness::default(),
        );
        let tag_wait = self.one("cache.tag_wait", values::duration);
        let absent_ttl = self.one("cache.absent_ttl", values::duration);
        let record_ttl = self.one("cache.record_ttl", values::duration);
        let max_manifest_size = self.one("cache.max_manifest_size", |text| {
            let bytes = values::bytes(text)?;
            if (1024..=MANIFEST_BYTES_LIMIT).contains(&bytes) {
                Ok(bytes)
            } else {
                Err(format!("{text:?} is not between 1KiB and 64MiB"))
            }
        });
        let max_upstream_bandwidth = self.one("cache.max_upstream_bandwidth", values::bandwidth);
        let pins = self.many("cache.pins", |text| {
            text.parse::<Pin>()
                .map_err(|error| format!("{text:?}: {error}"))
        });
        let prefetch = self.one("cache.prefetch", |text| {
            let known = [Prefetch::Off, Prefetch::Layers];
            let named = known.into_iter().find(|known| known.as_str() == text);
            named.ok_or_else(|| format!("{text:?} is neither \"off\" nor \"layers\""))
        });
        if let Some(Some(Size::Bytes(0) | Size::Percent(0.0))) = max_size {
            self.fault("cache.max_size", "is 0: nothing could be kept");
        }
        Some(Cache {
            dir: dir?,
            max_size: max_size?.unwrap_or(DEFAULT_MAX_SIZE),
            min_free: min_free?.unwrap_or(DEFAULT_MIN_FREE),
            freshness: freshness?,
            tag_wait: tag_wait?.unwrap_or(DEFAULT_TAG_WAIT),
            absent_ttl: absent_ttl?.unwrap_or(DEFAULT_ABSENT_TTL),
            record_ttl: record_ttl?.unwrap_or(DEFAULT_RECORD_TTL),
            max_manifest_size: max_manifest_size?.unwrap_or(DEFAULT_MAX_MANIFEST_BYTES),
            max_upstream_bandwidth: max_upstream_bandwidth?.flatten(),
            prefetch: prefetch?.unwrap_or(Prefetch::Off),
            pins: pins?.unwrap_or_default(),
        })
    }

    fn upstream(&mut self, freshness: Freshness) -> Option<Upstream> {
        let name = self.one("upstream.name", values::upstream_name);
        let registry = self.one("upstream.registry", |text| {
            Registry::parse(text).map_err(|error| format!("{text:?}: {error}"))
        });
        let endpoint = self.one("upstream.endpoint", values::endpoint);
        let endpoint_tls_name = self.one("upstream.endpoint_tls_name", values::domain);
        let ca = self.file("upstream.ca");
        let redirect_hosts = self.many("upstream.redirect_hosts", |text| {
            text.parse::<HostPattern>()
                .map_err(|error| format!("{text:?}: {error}"))
        });
        let freshness = self.freshness(
            [
                "upstream.tag_ttl",
                "upstream.stale_if_error",
                "upstream.immutable_tags",
                "upstream.offline",
            ],
            freshness,
        );
        let trust_manifests = self.one("upstream.trust_manifests", values::boolean);
        let max_upstream_bandwidth = self.one("upstream.max_upstream_bandwidth", values::bandwidth);
        if matches!(registry, Some(None)) {
            self.fault(
                "upstream.registry",
                "is missing: name the registry behind this proxy, such as --upstream \
                 000042290000.dkr.ecr.us-west-2.amazonaws.com",
            );
        }
        let registry = registry.flatten();
        let auth = self.auth(registry.as_ref());
        if matches!(endpoint_tls_name, Some(Some(_))) && matches!(endpoint, Some(None)) {
            self.fault(
                "upstream.endpoint_tls_name",
                "has no meaning without upstream.endpoint",
            );
        }
        let registry = registry?;
        Some(Upstream {
            name: name?.unwrap_or_else(|| default_name(&registry)),
            auth: auth?,
            registry,
            endpoint: endpoint?,
            endpoint_tls_name: endpoint_tls_name?,
            ca: ca?,
            redirect_hosts: redirect_hosts?.unwrap_or_default(),
            freshness: freshness?,
            trust_manifests: trust_manifests?,
            max_upstream_bandwidth: max_upstream_bandwidth?.flatten(),
            aws_endpoint_in_environment: self.aws_endpoint,
        })
    }

    /// The keys for tag_ttl, stale_if_error, immutable_tags and offline, over what counts without them.
    fn freshness(
        &mut self,
        [tag_ttl, stale_if_error, immutable_tags, offline]: [&'static str; 4],
        default: Freshness,
    ) -> Option<Freshness> {
        let tag_ttl = self.one(tag_ttl, values::duration);
        let stale_if_error = self.one(stale_if_error, values::stale_if_error);
        let immutable_tags = self.many(immutable_tags, values::tag_pattern);
        let offline = self.one(offline, values::boolean);
        Some(Freshness {
            tags: TagPolicy {
                tag_ttl: tag_ttl?.unwrap_or(default.tags.tag_ttl),
                stale_if_error: stale_if_error?.unwrap_or(default.tags.stale_if_error),
                immutable_tags: immutable_tags?.map_or(default.tags.immutable_tags, |patterns| {
                    patterns.into_iter().flatten().collect()
                }),
            },
            offline: offline?.unwrap_or(default.offline),
        })
    }

    fn routes(&mut self, upstream: Option<&Upstream>) -> Option<Vec<Route>> {
        self.each("route", |this| this.route(upstream))
    }

    /// Each table of a section that is there several times, whose settings are the only ones for the
    /// moment.
    fn each<T>(
        &mut self,
        section: &str,
        resolve: impl Fn(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let tables = self.tables.remove(section).unwrap_or_default();
        let resolved = tables.into_iter().map(|table| {
            let others = std::mem::replace(&mut self.settings, table);
            let one = resolve(self);
            self.settings = others;
            one
        });
        // Each is looked at, so that all faults are told.
        let resolved: Vec<Option<T>> = resolved.collect();
        resolved.into_iter().collect()
    }

    fn route(&mut self, upstream: Option<&Upstream>) -> Option<Route> {
        let repository = self.one("route.repository", values::repository_pattern);
        let named = self.one("route.upstream", values::upstream_name);
        let freshness = upstream.map(|upstream| upstream.freshness.clone());
        let freshness = self.freshness(
            [
                "route.tag_ttl",
                "route.stale_if_error",
                "route.immutable_tags",
                "route.offline",
            ],
            freshness.unwrap_or_default(),
        );
        if matches!(repository, Some(None)) {
            self.fault(
                "route.repository",
                "is missing: say which repositories the route is for, such as \"team/**\"",
            );
        }
        if let (Some(Some(named)), Some(upstream)) = (&named, upstream)
            && *named != upstream.name
        {
            let reason = format!("{named:?} is no upstream; there is {:?}", upstream.name);
            self.fault("route.upstream", &reason);
        }
        named?;
        Some(Route {
            repository: repository??,
            freshness: freshness?,
        })
    }

    fn auth(&mut self, registry: Option<&Registry>) -> Option<Auth> {
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Kind {
            Aws,
            Basic,
            Anonymous,
        }
        let private_ecr = registry.map(|r| matches!(r.kind(), RegistryKind::Ecr(_)));
        let kind = self.one("upstream.auth", |text| match text {
            "aws" => Ok(Kind::Aws),
            "basic" => Ok(Kind::Basic),
            "anonymous" => Ok(Kind::Anonymous),
            _ => Err(format!(
                "{text:?} is none of \"aws\", \"basic\" and \"anonymous\""
            )),
        });
        let username = self.one("upstream.username", |text| match text {
            "" => Err("is empty".to_owned()),
            _ if text.contains(':') => Err(format!("{text:?} has a colon")),
            _ => Ok(text.to_owned()),
        });
        let password_file = self.file("upstream.password_file");
        let profile = self.one("upstream.profile", |text| Ok::<_, String>(text.to_owned()));
        let (username, password_file, profile) = (username?, password_file?, profile?);
        let kind = kind?.unwrap_or(match private_ecr {
            Some(true) => Kind::Aws,
            _ if username.is_some() || password_file.is_some() => Kind::Basic,
            _ => Kind::Anonymous,
        });
        if kind == Kind::Aws && private_ecr == Some(false) {
            self.fault(
                "upstream.auth",
                "\"aws\" is for private ECR registries, ACCOUNT.dkr.ecr.REGION.amazonaws.com and \
                 its kin; use \"basic\" or \"anonymous\" here",
            );
        }
        for (key, is_set, belongs) in [
            ("upstream.username", username.is_some(), Kind::Basic),
            (
                "upstream.password_file",
                password_file.is_some(),
                Kind::Basic,
            ),
            ("upstream.profile", profile.is_some(), Kind::Aws),
        ] {
            if is_set && kind != belongs {
                let auth = if belongs == Kind::Aws { "aws" } else { "basic" };
                self.fault(key, &format!("belongs to auth = {auth:?} only"));
            }
        }
        match kind {
            Kind::Aws => Some(Auth::Aws { profile }),
            Kind::Anonymous => Some(Auth::Anonymous),
            Kind::Basic => {
                if username.is_none() {
                    self.fault("upstream.username", "is missing: auth = \"basic\" needs it");
                }
                if password_file.is_none() {
                    self.fault(
                        "upstream.password_file",
                        "is missing: auth = \"basic\" needs it",
                    );
                }
                Some(Auth::Basic {
                    username: username?,
                    password_file: password_file?,
                })
            }
        }
    }

    /// A scalar: `None` if it is faulty (and noted), `Some(None)` if it is not set.
    fn one<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let mut values = self.many(key, parse)?.unwrap_or_default();
        Some(values.pop())
    }

    /// A list: `None` if any item is faulty (all are noted), `Some(None)` if it is not set.
    fn many<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<Vec<T>>> {
        let Some(setting) = self.settings.get(key) else {
            return Some(None);
        };
        let mut items = Vec::with_capacity(setting.values.len());
        for value in &setting.values {
            match parse(value) {
                Ok(item) => items.push(item),
                Err(reason) => self.faults.push(Fault {
                    origin: setting.origin.clone(),
                    key: key.to_owned(),
                    reason,
                }),
            }
        }
        (items.len() == setting.values.len()).then_some(Some(items))
    }

    /// A path: relative to the file that it was written in, else to the working directory.
    fn path(&self, key: &'static str) -> Option<PathBuf> {
        let setting = self.settings.get(key)?;
        let path = Path::new(setting.values.first()?);
        Some(match setting.origin {
            Origin::File { .. } => self.base.join(path),
            Origin::Environment(_) | Origin::Flag(_) | Origin::Default => path.to_owned(),
        })
    }

    /// A directory that the proxy makes if it is absent.
    fn directory(&mut self, key: &'static str, default: &str) -> Option<PathBuf> {
        let path = self.path(key).unwrap_or_else(|| default.into());
        if path.as_os_str().is_empty() {
            self.fault(key, "is empty");
            return None;
        }
        Some(path)
    }

    /// A file that has to be there: `None` if it cannot be opened, `Some(None)` if it is not set.
    fn file(&mut self, key: &'static str) -> Option<Option<PathBuf>> {
        let Some(path) = self.path(key) else {
            return Some(None);
        };
        if self.files == Files::Required {
            let opened = fs::File::open(&path).and_then(|file| file.metadata());
            let reason = match opened {
                Ok(data) if data.is_dir() => Some("it is a directory".to_owned()),
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = reason {
                self.fault(key, &format!("cannot read {}: {reason}", path.display()));
                return None;
            }
        }
        Some(Some(path))
    }

    fn fault(&mut self, key: &'static str, reason: &str) {
        let origin = self
            .settings
            .get(key)
            .map_or(Origin::Default, |setting| setting.origin.clone());
        self.faults.push(Fault {
            origin,
            key: key.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

/// Whether the AWS SDK will find an endpoint for the ECR API in the environment.
fn aws_endpoint(environment: &dyn Strings) -> bool {
    let ignored = environment
        .get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let set = |name| environment.get(name).is_some_and(|value| !value.is_empty());
    !ignored && (set("AWS_ENDPOINT_URL_ECR") || set("AWS_ENDPOINT_URL"))
}

/// The registry's host, made fit for a folder.
fn default_name(registry: &Registry) -> String {
    registry
        .name()
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '-' | '.' | '_' => c,
            _ => '_',
        })
        .collect::<String>()
        .trim_start_matches(['_', '-', '.'])
        .to_owned()
}
