//! `[[upstream]]`.

use std::ops::RangeInclusive;

use super::Resolver;
use crate::config::faults::Origin;
use crate::config::sources::{Settings, Table};
use crate::config::values;
use crate::config::{Auth, Config, Freshness, Upstream};
use crate::upstream::{Egress, Quota, Quotas, Registry, RegistryKind, Role};

/// Notes what works and is probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let server = &config.server;
    let ours = config.upstreams.iter().filter(|upstream| {
        let (host, port) = upstream.registry.host_and_port();
        let mut listen = server.listen.iter();
        // Where no port is said, something before us may listen on the usual one.
        let is_port = port.is_none_or(|port| listen.any(|listen| listen.address.port() == port));
        let is_name = server.domains.iter().any(|domain| domain == host);
        upstream.endpoint.is_none() && is_name && is_port
    });
    let warned = ours.map(|upstream| {
        format!(
            "upstream.registry: {} is a name of ours, too (server.domains): where it leads here again, the proxy \
             asks itself and nothing is had; upstream.endpoint says where the registry is",
            upstream.registry
        )
    });
    warned.collect()
}

impl Resolver {
    /// Flags set keys of the one upstream, in the file or not: of several it is not said which.
    pub(super) fn upstreams(&mut self, freshness: Freshness) -> Option<Vec<Upstream>> {
        let (flags, rest): (Settings, Settings) = std::mem::take(&mut self.settings)
            .into_iter()
            .partition(|(key, _)| key.starts_with("upstream."));
        self.settings = rest;
        let tables = self.tables.entry("upstream").or_default();
        match &mut tables[..] {
            [] => tables.push(Table {
                settings: flags,
                origin: Origin::Default,
            }),
            [only] => only.settings.extend(flags),
            [_, _, ..] => {
                for (key, setting) in flags {
                    self.note(
                        setting.origin,
                        key,
                        "there are several [[upstream]] in the file: say it there",
                    );
                }
            }
        }
        let known = self.upstream_names();
        let mut names = Vec::new();
        self.each("upstream", |this| {
            let upstream = this.upstream(freshness.clone())?;
            if names.contains(&upstream.name) {
                let reason = format!("{:?} is the name of another upstream", upstream.name);
                this.fault("upstream.name", &reason);
            }
            for other in &upstream.fallback {
                let reason = match *other == upstream.name {
                    true => format!("{other:?} is this upstream itself"),
                    false if known.contains(other) => continue,
                    false => format!("{other:?} is no upstream"),
                };
                this.fault("upstream.fallback", &reason);
            }
            names.push(upstream.name.clone());
            Some(upstream)
        })
    }

    /// What upstreams are called, by those that are not faulty.
    fn upstream_names(&self) -> Vec<String> {
        let tables = self.tables.get("upstream").into_iter().flatten();
        let text = |table: &Table, key: &str| table.settings.get(key)?.values.first().cloned();
        let names = tables.filter_map(|table| {
            text(table, "upstream.name").or_else(|| {
                let registry = Registry::parse(&text(table, "upstream.registry")?).ok()?;
                Some(default_name(&registry))
            })
        });
        names.collect()
    }

    fn upstream(&mut self, freshness: Freshness) -> Option<Upstream> {
        let name = self.one("upstream.name", values::upstream_name);
        let registry = self.one("upstream.registry", |text| {
            Registry::parse(text).map_err(|error| format!("{text:?}: {error}"))
        });
        let endpoint = self.one("upstream.endpoint", values::endpoint);
        let endpoint_tls_name = self.one("upstream.endpoint_tls_name", values::domain);
        let ca = self.file("upstream.ca");
        let egress = self.egress();
        let redirect_hosts = self.many("upstream.redirect_hosts", values::host_pattern);
        let token_hosts = self.many("upstream.token_hosts", values::host_pattern);
        let fallback = self.many("upstream.fallback", values::upstream_name);
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
        let quotas = self.quotas(registry.as_ref());
        let create = self.create(registry.as_ref(), auth.as_ref());
        if matches!(endpoint_tls_name, Some(Some(_))) && matches!(endpoint, Some(None)) {
            self.fault(
                "upstream.endpoint_tls_name",
                "has no meaning without upstream.endpoint",
            );
        }
        let lists_token_hosts = matches!(&token_hosts, Some(Some(hosts)) if !hosts.is_empty());
        if lists_token_hosts && matches!(auth, Some(Auth::Aws { .. })) {
            self.fault(
                "upstream.token_hosts",
                "has no meaning with auth = \"aws\": tokens come from AWS",
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
            egress: egress?,
            redirect_hosts: redirect_hosts?.unwrap_or_default(),
            token_hosts: token_hosts?.unwrap_or_default(),
            fallback: fallback?.unwrap_or_default(),
            freshness: freshness?,
            trust_manifests: trust_manifests?,
            max_upstream_bandwidth: max_upstream_bandwidth?.flatten(),
            quotas: quotas?,
            create: create?,
            aws_endpoint_in_environment: self.aws_endpoint,
        })
    }

    /// The proxy that is written, or that of the environment; `None` if it is faulty, `Some(None)` for none.
    /// What `NO_PROXY` says holds for either.
    fn egress(&mut self) -> Option<Option<Egress>> {
        // A text may hold a password, so none is repeated.
        let parse = |text: &str| text.parse::<Egress>().map_err(|error| error.to_string());
        let written = self.one("upstream.proxy", |text| match text {
            "none" => Ok(None),
            text => parse(text).map(Some),
        })?;
        match written {
            Some(written) => Some(written.map(|egress| egress.except(&self.outside.no_proxy))),
            None => self.egress_of_environment("upstream.proxy"),
        }
    }

    /// The proxy that the environment names for what leaves; `None` if it is faulty, which is told under `key`.
    pub(super) fn egress_of_environment(&mut self, key: &'static str) -> Option<Option<Egress>> {
        let Some((name, text)) = self.outside.proxy.clone() else {
            return Some(None);
        };
        match text.parse::<Egress>() {
            Ok(egress) => Some(Some(egress.except(&self.outside.no_proxy))),
            Err(error) => {
                self.note(Origin::Environment(name), key, &error.to_string());
                None
            }
        }
    }

    /// Those of AWS with what is written instead; other registries have none that are known.
    ///
    /// ECR Public has only what is written. It limits "image pulls" a second, 1 for those without an account and 10
    /// for those with one or on AWS, and does not say which requests are one: an image is a list, a manifest for
    /// each platform and its layers, and a guess would hold up every cold pull by seconds. So its 429 is obeyed, as
    /// any registry's.
    fn quotas(&mut self, registry: Option<&Registry>) -> Option<Quotas> {
        let written = self.many("upstream.requests_per_second", |text| {
            text.parse::<Quota>()
                .map_err(|error| format!("{text:?}: {error}"))
        })?;
        let known = match registry?.kind() {
            RegistryKind::Ecr(_) => Quotas::of_aws(),
            RegistryKind::EcrPublic => Quotas::unlimited(),
            RegistryKind::DockerHub | RegistryKind::Other => {
                if written.is_some() {
                    self.fault(
                        "upstream.requests_per_second",
                        "is about the quotas of ECR registries",
                    );
                }
                return Some(Quotas::unlimited());
            }
        };
        let written = written.unwrap_or_default().into_iter();
        Some(written.fold(known, Quotas::with))
    }

    /// `None` if it is faulty, `Some(None)` without one.
    fn role(&mut self) -> Option<Option<Role>> {
        let arn = self.one("upstream.role_arn", |text| {
            let is_arn = is_role_arn(text).then(|| text.to_owned());
            is_arn.ok_or_else(|| {
                format!("{text:?} is no role's ARN, such as arn:aws:iam::000042290000:role/puller")
            })
        });
        let external_id = self.one("upstream.external_id", |text| {
            let is_id = is_aws_text(text, "+=,.@:/-", 2..=1224).then(|| text.to_owned());
            is_id.ok_or_else(|| format!("{text:?} is no external id: letters, digits, _+=,.@:/-"))
        });
        let session_name = self.one("upstream.role_session_name", |text| {
            let is_name = is_aws_text(text, "+=,.@-", 2..=64).then(|| text.to_owned());
            is_name.ok_or_else(|| {
                format!("{text:?} is no session's name: 2 to 64 letters, digits, _+=,.@-")
            })
        });
        if matches!(arn, Some(None)) {
            for (key, value) in [
                ("upstream.external_id", &external_id),
                ("upstream.role_session_name", &session_name),
            ] {
                if matches!(value, Some(Some(_))) {
                    self.fault(key, "has no meaning without upstream.role_arn");
                }
            }
        }
        let (external_id, session_name) = (external_id?, session_name?);
        Some(arn?.map(|arn| Role {
            arn,
            external_id,
            session_name: session_name.unwrap_or_else(|| "ecr-proxy".to_owned()),
        }))
    }

    fn auth(&mut self, registry: Option<&Registry>) -> Option<Auth> {
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Kind {
            Aws,
            Basic,
            Anonymous,
        }
        let private_ecr = registry.map(|r| matches!(r.kind(), RegistryKind::Ecr(_)));
        let is_public_ecr = registry.is_some_and(|r| *r.kind() == RegistryKind::EcrPublic);
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
        let role = self.role();
        let (username, password_file, profile) = (username?, password_file?, profile?);
        let role = role?;
        let kind = kind?.unwrap_or(match private_ecr {
            Some(true) => Kind::Aws,
            _ if username.is_some() || password_file.is_some() => Kind::Basic,
            _ => Kind::Anonymous,
        });
        if kind == Kind::Aws && private_ecr == Some(false) && !is_public_ecr {
            self.fault(
                "upstream.auth",
                "\"aws\" is for ECR registries, ACCOUNT.dkr.ecr.REGION.amazonaws.com and its kin, and \
                 public.ecr.aws; use \"basic\" or \"anonymous\" here",
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
            ("upstream.role_arn", role.is_some(), Kind::Aws),
        ] {
            if is_set && kind != belongs {
                let auth = if belongs == Kind::Aws { "aws" } else { "basic" };
                self.fault(key, &format!("belongs to auth = {auth:?} only"));
            }
        }
        match kind {
            Kind::Aws => Some(Auth::Aws { profile, role }),
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
}

/// Letters, digits, and what the IAM and STS APIs allow beside them in names and ids.
pub(super) fn is_aws_text(text: &str, beside: &str, length: RangeInclusive<usize>) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || beside.contains(c);
    length.contains(&text.len()) && text.chars().all(is_allowed)
}

/// `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
fn is_role_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let &[arn, partition, iam, "", account, name] = parts.as_slice() else {
        return false;
    };
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let name = name.strip_prefix("role/");
    arn == "arn"
        && iam == "iam"
        && is_account
        && (partition == "aws" || partition.starts_with("aws-"))
        && name.is_some_and(|name| is_aws_text(name, "+=,.@-/", 1..=576))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use crate::config::{Config, Faults, Files, Flags, Sources};

    /// The way out of an upstream with these keys, in this environment.
    fn egress(keys: &str, environment: &[(&str, &str)]) -> Result<Option<String>, Faults> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        let text = format!(
            "[server]\ndomains = ['a.test']\n[access]\nanonymous = 'pull'\n[[upstream]]\nregistry = \
             'r.test'\n{keys}\n"
        );
        fs::write(&file, text).expect("a file");
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: BTreeMap<String, String> = environment.iter().map(own).collect();
        let config = Config::load(Sources {
            file: Some(&file),
            environment: &environment,
            flags: Flags::default(),
            files: Files::Ignored,
        })?;
        let egress = config.upstreams[0].egress.as_ref();
        Ok(egress.map(ToString::to_string))
    }

    #[test]
    fn the_way_out_is_what_is_written_or_what_the_environment_says() {
        let by = [("HTTPS_PROXY", "http://u:canary@env.test:3128/")];
        let found =
            |keys: &str, environment: &[(&str, &str)]| egress(keys, environment).expect("no fault");
        assert_eq!(found("", &[]), None);
        assert_eq!(found("", &by).as_deref(), Some("http://env.test:3128"));
        assert_eq!(found("proxy = 'none'", &by), None);
        let key = "proxy = 'http://key.test:3128'";
        assert_eq!(found(key, &by).as_deref(), Some("http://key.test:3128"));
        let lower = [("https_proxy", "env.test:3128"), ("HTTPS_PROXY", "")];
        assert_eq!(found("", &lower).as_deref(), Some("http://env.test:3128"));
        // What is for plain HTTP is not for us.
        assert_eq!(found("", &[("HTTP_PROXY", "http://env.test:3128")]), None);
    }

    #[test]
    fn s16_a_fault_does_not_repeat_a_password() {
        let bad = "https://u:canary@proxy.test:3128";
        for (keys, environment) in [
            (format!("proxy = '{bad}'"), &[][..]),
            (String::new(), &[("HTTPS_PROXY", bad)][..]),
        ] {
            let told = egress(&keys, environment).expect_err("a fault").to_string();
            assert!(told.contains("upstream.proxy: not a proxy"), "{told}");
            assert!(!told.contains("canary"), "{told}");
        }
    }
}
