//! The configuration in force, for the log.

use std::path::Path;
use std::time::Duration;

use super::{Anonymous, Auth, Config, Rate, Size, Tls, Upstream};
use crate::tls::PairFiles;

type Values = Vec<(String, String)>;

fn join<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or("unlimited".to_owned(), |rate| format!("{rate} bytes/s"))
}

impl Config {
    /// The effective values by key, for one event at start. Holds no secrets.
    pub fn effective(&self) -> Vec<(String, String)> {
        let (server, cache) = (&self.server, &self.cache);
        let access = &self.access;
        let admin = server.admin.map_or("off".to_owned(), |a| a.to_string());
        let socket = server.admin_socket.as_ref();
        let socket = socket.map_or("off".to_owned(), |socket| path(&socket.path));
        let mut values: Vec<(&'static str, String)> = vec![
            ("server.listen", join(&server.listen)),
            ("server.domains", join(&server.domains)),
            ("server.state_dir", path(&server.state_dir)),
            ("server.admin", admin),
            ("server.admin_socket", socket),
            ("server.trusted_proxies", join(&server.trusted_proxies)),
            ("server.drain_timeout", duration(server.drain_timeout)),
        ];
        match &self.tls {
            Tls::Off => values.push(("tls", "off".to_owned())),
            Tls::LocalCa => values.push(("tls", "local CA".to_owned())),
            Tls::Acme {
                options,
                http_listen,
            } => {
                values.extend([
                    ("tls.acme.directory", options.directory.clone()),
                    ("tls.acme.challenge", options.proof.to_string()),
                ]);
                let email = options.email.iter();
                values.extend(email.map(|email| ("tls.acme.email", email.clone())));
                let binding = options.binding.iter();
                values.extend(binding.map(|it| ("tls.acme.eab_kid", it.kid.clone())));
                let listen = http_listen.iter();
                values.extend(listen.map(|at| ("tls.acme.http_listen", format!("http://{at}"))));
                let ca = options.ca.iter();
                values.extend(ca.map(|ca| ("tls.acme.ca", path(ca))));
            }
            Tls::Files(pairs) => {
                for PairFiles { cert, key } in pairs {
                    values.extend([("tls.cert", path(cert)), ("tls.key", path(key))]);
                }
            }
        }
        let anonymous = match access.anonymous {
            Anonymous::None => "none",
            Anonymous::Pull => "pull",
        };
        if let Some(clients) = &self.client_certificates {
            values.push(("tls.client_ca", path(&clients.ca)));
            values.push(("tls.client_user", clients.user.to_string()));
        }
        values.extend([
            ("cache.dir", path(&cache.dir)),
            ("cache.max_size", cache.max_size.to_string()),
            ("cache.min_free", cache.min_free.to_string()),
            ("cache.tag_wait", duration(cache.tag_wait)),
            ("cache.absent_ttl", duration(cache.absent_ttl)),
            ("cache.record_ttl", duration(cache.record_ttl)),
            (
                "cache.max_manifest_size",
                Size::Bytes(cache.max_manifest_size).to_string(),
            ),
            (
                "cache.max_upstream_bandwidth",
                rate(cache.max_upstream_bandwidth),
            ),
            ("cache.prefetch", cache.prefetch.as_str().to_owned()),
            ("cache.pins", join(&cache.pins)),
            ("access.anonymous", anonymous.to_owned()),
            ("access.aws_tokens", access.aws_tokens.to_string()),
        ]);
        if access.anonymous == Anonymous::Pull {
            let networks = join(&access.anonymous_networks);
            values.push(("access.anonymous_networks", networks));
        }
        if let Some(file) = &access.users_file {
            values.push(("access.users", path(file)));
        }
        let rules: Vec<String> = access.rules.iter().map(ToString::to_string).collect();
        values.push(("access.rule", rules.join("; ")));
        values.push(("route", join(&self.routes)));
        for warm in &self.warm {
            let every = duration(warm.every);
            values.push(("warm", format!("{} every {every}", join(&warm.images))));
        }
        let own = |(key, value): (&str, String)| (key.to_owned(), value);
        let mut values: Values = values.into_iter().map(own).collect();
        for upstream in &self.upstreams {
            // Which one, where there are several.
            let section = match &self.upstreams[..] {
                [_] => "upstream".to_owned(),
                _ => format!("upstream.{}", upstream.name),
            };
            let of_it = upstream.effective().into_iter();
            values.extend(of_it.map(|(key, value)| (format!("{section}.{key}"), value)));
        }
        values
    }
}

impl Upstream {
    fn effective(&self) -> Vec<(&'static str, String)> {
        let (auth, login) = match &self.auth {
            Auth::Aws { profile, role } => {
                let profile = profile.clone().map(|name| ("profile", name));
                let role = role.as_ref();
                let role = role.map(|role| ("role_arn", role.arn.clone()));
                ("aws", profile.into_iter().chain(role).collect())
            }
            Auth::Basic { username, .. } => ("basic", vec![("username", username.clone())]),
            Auth::Anonymous => ("anonymous", Vec::new()),
        };
        let tags = &self.freshness.tags;
        let stale = tags.stale_if_error.map_or("forever".to_owned(), duration);
        let mut values = vec![
            ("name", self.name.clone()),
            ("registry", self.registry.to_string()),
            ("auth", auth.to_owned()),
            ("tag_ttl", duration(tags.tag_ttl)),
            ("stale_if_error", stale),
            ("immutable_tags", join(&tags.immutable_tags)),
            ("offline", self.freshness.offline.to_string()),
            ("fallback", join(&self.fallback)),
            ("max_upstream_bandwidth", rate(self.max_upstream_bandwidth)),
        ];
        values.extend(login);
        if let Some(endpoint) = &self.endpoint {
            values.push(("endpoint", endpoint.to_string()));
        }
        if let Some(name) = &self.endpoint_tls_name {
            values.push(("endpoint_tls_name", name.clone()));
        }
        if let Some(ca) = &self.ca {
            values.push(("ca", path(ca)));
        }
        if let Some(egress) = &self.egress {
            values.push(("proxy", egress.to_string()));
        }
        if !self.redirect_hosts.is_empty() {
            let count = self.redirect_hosts.len();
            values.push(("redirect_hosts", format!("{count} hosts")));
        }
        if !self.token_hosts.is_empty() {
            let count = self.token_hosts.len();
            values.push(("token_hosts", format!("{count} hosts")));
        }
        if let Some(create) = &self.create {
            let repositories = join(&create.creation.repositories);
            values.push(("create_repositories", repositories));
            let policy = create.lifecycle_policy.iter();
            values.extend(policy.map(|policy| ("template.lifecycle_policy", path(policy))));
        }
        if let Some(trust) = self.trust_manifests {
            values.push(("trust_manifests", trust.to_string()));
        }
        values
    }
}
