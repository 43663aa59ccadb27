//! Fills each mechanism's own options from the configuration, so that none of them sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Auth, Config, Freshness, Route, Size, Upstream};
use crate::access::AccessOptions;
use crate::cache::{Limit, Pins, StoreOptions};
use crate::files;
use crate::fill::{FillOptions, TagPolicies};
use crate::jobs::operations::{self, Names};
use crate::jobs::warm::{Choice, Schedule, Target};
use crate::oci::{Home, ImageName, Routed, Routes};
use crate::server::{ServerOptions, Terms};
use crate::upstream::{self, AwsOptions, ExtraRoots, Limits, Secret, UpstreamOptions};

/// Passwords are short; what is larger is another file.
const MAX_PASSWORD_BYTES: usize = 4096;

/// Below the state directory: which repositories are being made, by upstream.
const CREATING: &str = "creating";

/// A file that the configuration names cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}: {reason}", path.display())]
pub struct FileError {
    key: &'static str,
    path: PathBuf,
    reason: String,
}

impl Config {
    /// For the store; reads the pins kept in the state directory.
    pub fn store_options(&self) -> StoreOptions {
        StoreOptions {
            max_size: self.max_size(),
            min_free: self.min_free(),
            pins: Pins::open(&self.server.state_dir, self.cache.pins.iter().cloned()),
            ..StoreOptions::new(&self.cache.dir)
        }
    }

    /// The most that the store may occupy.
    pub fn max_size(&self) -> Limit {
        limit(self.cache.max_size)
    }

    /// What the store leaves free on its file system.
    pub fn min_free(&self) -> Limit {
        limit(self.cache.min_free)
    }

    /// For the decisions about callers.
    pub fn access_options(&self) -> AccessOptions {
        AccessOptions {
            users: self.access.users.clone(),
            rules: self.access.rules.clone(),
            ..AccessOptions::default()
        }
    }

    /// For what tends the cache.
    pub fn operations_setting(&self) -> operations::Setting {
        operations::Setting {
            names: self.names(),
            max_manifest_bytes: self.cache.max_manifest_size,
        }
    }

    /// The routes that lead names, each with its number in the file, in the order that
    /// [`Because::Route`](crate::oci::Because) counts them in.
    pub fn leading_routes(&self) -> impl Iterator<Item = (usize, &Route)> {
        leading(&self.routes)
    }

    /// For the names of images on the command line.
    pub fn names(&self) -> Names {
        names(&self.server.domains, &self.routes, &self.upstreams)
    }

    /// For tags and manifests, blobs and their fills.
    pub fn fill_options(&self) -> FillOptions {
        FillOptions {
            tags: self.tag_policies(),
            tag_wait: self.cache.tag_wait,
            record_ttl: self.cache.record_ttl,
            absent_ttl: self.cache.absent_ttl,
            ..FillOptions::default()
        }
    }

    fn tag_policies(&self) -> TagPolicies {
        let each = self.upstreams.iter().map(|upstream| {
            let tags = self.routed(upstream, |freshness| freshness.tags.clone());
            (Arc::from(upstream.name.as_str()), tags)
        });
        each.collect()
    }

    /// A part of what the routes to an upstream say about freshness, by what it calls the repositories that
    /// they lead to; and what counts for others.
    fn routed<T>(&self, upstream: &Upstream, part: impl Fn(&Freshness) -> T) -> Routed<T> {
        let names = self.names();
        let routes = self.routes.iter();
        let routes = routes.filter(|route| *route.names.upstream == upstream.name);
        let routes = routes.filter_map(|route| {
            let pattern = names.routes().upstream_pattern(&route.names)?;
            Some((pattern, part(&route.freshness)))
        });
        Routed::new(routes.collect(), part(&upstream.freshness))
    }

    /// For what is kept warm.
    pub fn schedules(&self) -> Vec<Schedule> {
        let names = self.names();
        let target = |image: &ImageName| {
            Some(Target {
                name: image.to_string(),
                // Images of others were refused.
                repo: names.route(image).ok()?,
                reference: image.reference.clone(),
            })
        };
        let mut schedules = Vec::new();
        for warm in &self.warm {
            let mut by_upstream: BTreeMap<Arc<str>, Vec<Target>> = BTreeMap::new();
            for target in warm.images.iter().filter_map(target) {
                let upstream = Arc::clone(&target.repo.upstream);
                by_upstream.entry(upstream).or_default().push(target);
            }
            schedules.extend(by_upstream.into_values().map(|targets| Schedule {
                targets,
                choice: Choice {
                    platforms: warm.platforms.clone(),
                    referrers: warm.referrers,
                },
                every: warm.every,
            }));
        }
        schedules
    }

    /// For the listeners.
    pub fn server_options(&self) -> ServerOptions {
        ServerOptions {
            terms: Arc::new(ArcSwap::from_pointee(self.server_terms())),
            ..ServerOptions::default()
        }
    }

    /// What of it may be another while it runs.
    pub fn server_terms(&self) -> Terms {
        Terms {
            drain_timeout: self.server.drain_timeout,
            shared_addresses: self.server.trusted_proxies.clone(),
        }
    }

    /// For the upstreams; reads their passwords and their roots.
    ///
    /// # Errors
    /// One of those files cannot be used.
    pub fn upstream_options(&self) -> Result<Vec<UpstreamOptions>, FileError> {
        let each = self.upstreams.iter();
        each.map(|upstream| self.options_of(upstream)).collect()
    }

    /// The keys whose files hold something else than what `in_use` was set up by, where that is what these
    /// options differ in.
    pub fn upstream_files_changed(
        in_use: &[UpstreamOptions],
        new: &[UpstreamOptions],
    ) -> Vec<&'static str> {
        let mut keys = Vec::new();
        for (before, now) in in_use.iter().zip(new) {
            let password = (before.auth != now.auth).then_some("upstream.password_file");
            let roots = (before.extra_roots != now.extra_roots).then_some("upstream.ca");
            let policy = |options: &UpstreamOptions| {
                let creation = options.creation.as_ref();
                creation.and_then(|it| it.template.lifecycle_policy.clone())
            };
            let policy =
                (policy(before) != policy(now)).then_some("upstream.template.lifecycle_policy");
            keys.extend(password.into_iter().chain(roots).chain(policy));
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn options_of(&self, upstream: &Upstream) -> Result<UpstreamOptions, FileError> {
        let auth = match &upstream.auth {
            Auth::Aws { profile, role } => upstream::Auth::Aws(AwsOptions {
                profile: profile.clone(),
                role: role.clone(),
                endpoint_in_environment: upstream.aws_endpoint_in_environment,
                ..AwsOptions::default()
            }),
            Auth::Basic {
                username,
                password_file,
            } => upstream::Auth::Basic {
                username: username.clone(),
                password: password(password_file)?,
            },
            Auth::Anonymous => upstream::Auth::Anonymous,
        };
        let extra_roots = match &upstream.ca {
            Some(path) => roots(path)?,
            None => Vec::new(),
        };
        let manifest_max_bytes = usize::try_from(self.cache.max_manifest_size);
        let limits = Limits::default();
        Ok(UpstreamOptions {
            endpoint: upstream.endpoint.clone(),
            endpoint_tls_name: upstream.endpoint_tls_name.clone(),
            extra_roots,
            egress: upstream.egress.clone(),
            redirect_hosts: upstream.redirect_hosts.clone(),
            token_hosts: upstream.token_hosts.clone(),
            trust_manifests: upstream.trust_manifests,
            max_bandwidth: upstream.max_upstream_bandwidth,
            quotas: upstream.quotas.clone(),
            fallback: upstream
                .fallback
                .iter()
                .map(|name| Arc::from(name.as_str()))
                .collect(),
            creation: upstream.create.as_ref().map(|it| it.creation.clone()),
            // Of this registry: the name may be given to another one, whose repositories are none of ours.
            creation_notes: Some(self.server.state_dir.join(CREATING).join(format!(
                "{}@{}",
                upstream.name,
                upstream.registry.authority()
            ))),
            offline: self.routed(upstream, |freshness| freshness.offline),
            limits: Limits {
                manifest_max_bytes: manifest_max_bytes.unwrap_or(limits.manifest_max_bytes),
                ..limits
            },
            ..UpstreamOptions::new(&upstream.name, upstream.registry.clone(), auth)
        })
    }
}

fn leading(routes: &[Route]) -> impl Iterator<Item = (usize, &Route)> {
    (1..).zip(routes).filter(|(_, route)| route.leads)
}

/// What images are called by clients who know the proxy by these domains.
pub(super) fn names(domains: &[String], routes: &[Route], upstreams: &[Upstream]) -> Names {
    let leading = leading(routes).map(|(_, route)| route);
    let homes = upstreams.iter().map(|upstream| Home {
        upstream: Arc::from(upstream.name.as_str()),
        registry: upstream.registry.name().to_owned(),
    });
    Names::new(Routes::new(
        domains.to_vec(),
        leading.map(|route| route.names.clone()).collect(),
        homes.collect(),
    ))
}

fn limit(size: Size) -> Limit {
    match size {
        Size::Bytes(bytes) => Limit::Bytes(bytes),
        Size::Percent(percent) => Limit::Percent(percent),
    }
}

/// The file's first line; nothing of it is ever repeated.
fn password(path: &Path) -> Result<Secret, FileError> {
    let wrong = |reason: String| FileError {
        key: "upstream.password_file",
        path: path.to_owned(),
        reason,
    };
    let text = files::read(path).map_err(|error| wrong(error.to_string()))?;
    if text.len() > MAX_PASSWORD_BYTES {
        return Err(wrong("too large for a password".to_owned()));
    }
    let text = String::from_utf8(text).map_err(|_| wrong("not UTF-8".to_owned()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(wrong("is empty".to_owned())),
        line if line.contains(char::is_control) => Err(wrong(
            "has several lines, or a control character".to_owned(),
        )),
        line => Ok(Secret::new(line)),
    }
}

fn roots(path: &Path) -> Result<ExtraRoots, FileError> {
    let wrong = |reason: String| FileError {
        key: "upstream.ca",
        path: path.to_owned(),
        reason,
    };
    let pem = files::read(path).map_err(|error| wrong(error.to_string()))?;
    upstream::roots_from_pem(&pem).ok_or_else(|| wrong("holds no PEM certificate".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_password_is_one_line_and_never_repeated() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("password");
        fs::write(&path, "hunter2\n").expect("file");
        assert_eq!(password(&path).expect("password"), Secret::new("hunter2"));
        let long = "hunter2".repeat(1000);
        for text in ["", "\n", "hunter2\nmore\n", "hunter2\0", &long] {
            fs::write(&path, text).expect("file");
            let error = password(&path).expect_err("refused").to_string();
            assert!(error.starts_with("upstream.password_file: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn roots_are_certificates() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("ca.pem");
        let key = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("certificate");
        fs::write(&path, key.cert.pem()).expect("file");
        assert_eq!(roots(&path).expect("roots").len(), 1);
        fs::write(&path, "not PEM").expect("file");
        assert!(roots(&path).is_err());
    }
}
