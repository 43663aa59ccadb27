//! `[[upstream]]`.

use super::Resolver;
use crate::config::faults::Origin;
use crate::config::sources::{Settings, Table};
use crate::config::values;
use crate::config::{Auth, Freshness, Upstream};
use crate::upstream::{HostPattern, Registry, RegistryKind};

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
        let mut names = Vec::new();
        self.each("upstream", |this| {
            let upstream = this.upstream(freshness.clone())?;
            if names.contains(&upstream.name) {
                let reason = format!("{:?} is the name of another upstream", upstream.name);
                this.fault("upstream.name", &reason);
            }
            names.push(upstream.name.clone());
            Some(upstream)
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
