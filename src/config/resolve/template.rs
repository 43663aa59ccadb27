//! `create_repositories` and `[upstream.template]`.

use serde_json::Value;

use super::Resolver;
use super::upstream::is_aws_text;
use crate::config::{Auth, Create, Files, values};
use crate::files;
use crate::oci::Pattern;
use crate::upstream::{Creation, Encryption, Registry, TagsMove, Template};

/// What belongs to the template.
const TEMPLATE: [&str; 7] = [
    "upstream.template.lifecycle_policy",
    "upstream.template.mutability",
    "upstream.template.mutability_except",
    "upstream.template.scan_on_push",
    "upstream.template.encryption",
    "upstream.template.kms_key",
    "upstream.template.tags",
];

/// Lengths of a lifecycle policy, in characters (ECR API, PutLifecyclePolicy).
const POLICY_LENGTH: std::ops::RangeInclusive<usize> = 100..=30_720;
/// Filters of one repository (ECR API, CreateRepository).
const MAX_FILTERS: usize = 5;
/// Tags of one resource (AWS General Reference, "Tagging your AWS resources").
const MAX_TAGS: usize = 50;

impl Resolver {
    /// `None` if it is faulty, `Some(None)` where nothing is created.
    pub(super) fn create(
        &mut self,
        registry: Option<&Registry>,
        auth: Option<&Auth>,
    ) -> Option<Option<Create>> {
        let wanted = self.many("upstream.create_repositories", |text| match text {
            "false" => Ok(None),
            "true" => values::repository_pattern("**").map(Some),
            pattern => values::repository_pattern(pattern).map(Some),
        });
        let wanted = wanted.map(|patterns| {
            let patterns = patterns.unwrap_or_default().into_iter();
            patterns.flatten().collect::<Vec<Pattern>>()
        });
        let lifecycle_policy = self.file("upstream.template.lifecycle_policy");
        let text = match &lifecycle_policy {
            Some(Some(path)) if self.files == Files::Required => {
                match files::read_text(path).map_err(|error| error.to_string()) {
                    Ok(text) => match is_policy(&text) {
                        Ok(()) => Some(Some(text)),
                        Err(reason) => {
                            let reason = format!("{}: {reason}", path.display());
                            self.fault("upstream.template.lifecycle_policy", &reason);
                            None
                        }
                    },
                    Err(reason) => {
                        let reason = format!("cannot read {}: {reason}", path.display());
                        self.fault("upstream.template.lifecycle_policy", &reason);
                        None
                    }
                }
            }
            Some(_) => Some(None),
            None => None,
        };
        let tags_move = self.tags_move();
        let scan_on_push = self.one("upstream.template.scan_on_push", values::boolean);
        let encryption = self.encryption();
        let tags = self.many("upstream.template.tags", tag);
        if let Some(Some(tags)) = &tags
            && tags.len() > MAX_TAGS
        {
            let reason = format!("holds more than the {MAX_TAGS} that AWS allows");
            self.fault("upstream.template.tags", &reason);
        }
        let wanted = wanted?;
        if wanted.is_empty() {
            for key in TEMPLATE {
                if self.settings.contains_key(key) {
                    self.fault(key, "has no meaning without upstream.create_repositories");
                }
            }
            return Some(None);
        }
        let is_private = registry.is_none_or(|it| it.ecr().is_some());
        if !is_private || auth.is_some_and(|auth| !matches!(auth, Auth::Aws { .. })) {
            self.fault(
                "upstream.create_repositories",
                "is for private ECR registries with auth = \"aws\": other registries make them by \
                 themselves, or not at all",
            );
        }
        Some(Some(Create {
            lifecycle_policy: lifecycle_policy?,
            creation: Creation {
                repositories: wanted,
                template: Template {
                    lifecycle_policy: text?,
                    tags_move: tags_move?,
                    scan_on_push: scan_on_push?,
                    encryption: encryption?,
                    tags: tags?.unwrap_or_default(),
                },
            },
        }))
    }

    fn tags_move(&mut self) -> Option<Option<TagsMove>> {
        let may = self.one("upstream.template.mutability", |text| match text {
            "mutable" => Ok(true),
            "immutable" => Ok(false),
            _ => Err(format!("{text:?} is neither \"mutable\" nor \"immutable\"")),
        });
        let key = "upstream.template.mutability_except";
        let except = self.many(key, |text| {
            let is_filter = is_aws_text(text, ".-*", 1..=128) && text.matches('*').count() <= 2;
            let filter = is_filter.then(|| text.to_owned());
            filter.ok_or_else(|| {
                format!("{text:?} is no filter over tags: letters, digits, ._- and at most two *")
            })
        });
        if let Some(Some(filters)) = &except {
            if filters.len() > MAX_FILTERS {
                let reason = format!("holds more than the {MAX_FILTERS} that ECR allows");
                self.fault(key, &reason);
            }
            if matches!(may, Some(None)) {
                self.fault(key, "has no meaning without upstream.template.mutability");
            }
        }
        let except = except?.unwrap_or_default();
        Some(may?.map(|may| TagsMove { may, except }))
    }

    fn encryption(&mut self) -> Option<Option<Encryption>> {
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Kind {
            Aes256,
            Kms { is_double: bool },
        }
        let kind = self.one("upstream.template.encryption", |text| match text {
            "aes256" => Ok(Kind::Aes256),
            "kms" => Ok(Kind::Kms { is_double: false }),
            "kms-dsse" => Ok(Kind::Kms { is_double: true }),
            _ => Err(format!(
                "{text:?} is none of \"aes256\", \"kms\" and \"kms-dsse\""
            )),
        });
        let key = self.one("upstream.template.kms_key", |text| {
            let is_key = is_aws_text(text, ":/-", 1..=2048).then(|| text.to_owned());
            is_key.ok_or_else(|| format!("{text:?} is no key's id, alias or ARN"))
        });
        if matches!(key, Some(Some(_))) && matches!(kind, Some(None | Some(Kind::Aes256))) {
            let reason = "belongs to upstream.template.encryption = \"kms\" or \"kms-dsse\" only";
            self.fault("upstream.template.kms_key", reason);
        }
        let key = key?;
        Some(kind?.map(|kind| match kind {
            Kind::Aes256 => Encryption::Aes256,
            Kind::Kms { is_double } => Encryption::Kms { is_double, key },
        }))
    }
}

/// `name=value`, within what AWS takes.
fn tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let is_reserved = name.to_ascii_lowercase().starts_with("aws:");
    let is_fit = (1..=128).contains(&name.chars().count()) && value.chars().count() <= 256;
    match is_fit && !is_reserved && !text.contains(char::is_control) {
        true => Ok((name.to_owned(), value.to_owned())),
        false => Err(format!(
            "{name:?} is no tag: a name of 1 to 128 characters that does not begin with aws:, a value \
             of at most 256"
        )),
    }
}

/// Whether ECR can be asked to take this for a lifecycle policy.
fn is_policy(text: &str) -> Result<(), String> {
    let policy: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let rules = policy.get("rules").and_then(Value::as_array);
    if rules.is_none_or(Vec::is_empty) {
        return Err("no lifecycle policy: it has no \"rules\"".to_owned());
    }
    let length = text.chars().count();
    match POLICY_LENGTH.contains(&length) {
        true => Ok(()),
        false => Err(format!(
            "of {length} characters; ECR takes {} to {}",
            POLICY_LENGTH.start(),
            POLICY_LENGTH.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Config, Faults, Flags, Sources};

    /// What one upstream leads to that has these keys and this template, beside a file `policy.json`.
    fn load(keys: &str, template: &str) -> Result<Option<Create>, Faults> {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, policy) = (
            folder.path().join("config.toml"),
            folder.path().join("policy.json"),
        );
        fs::write(policy, r#"{"rules": "none"}"#).expect("a file");
        let text = format!(
            "[server]\ndomains = ['a.test']\n[access]\nanonymous = 'pull'\n[[upstream]]\nregistry = \
             '000042290000.dkr.ecr.us-west-2.amazonaws.com'\n{keys}\n[upstream.template]\n{template}\n"
        );
        fs::write(&file, text).expect("a file");
        let config = Config::load(Sources {
            file: Some(&file),
            environment: &BTreeMap::new(),
            flags: Flags::default(),
            files: Files::Required,
        })?;
        let mut upstreams = config.upstreams.into_iter();
        Ok(upstreams.next().expect("an upstream").create)
    }

    #[test]
    fn a_template_is_of_its_upstream() {
        assert_eq!(load("", "").expect("no fault"), None);
        let template = "mutability = 'mutable'\nencryption = 'kms-dsse'\ntags = { a = 'b' }";
        let create = load("create_repositories = true", template).expect("no fault");
        let creation = create.expect("it is wanted").creation;
        assert!(creation.repositories[0].matches("any/thing"));
        let expected = Template {
            tags_move: Some(TagsMove {
                may: true,
                except: Vec::new(),
            }),
            encryption: Some(Encryption::Kms {
                is_double: true,
                key: None,
            }),
            tags: vec![("a".to_owned(), "b".to_owned())],
            ..Template::default()
        };
        assert_eq!(creation.template, expected);
    }

    #[test]
    fn faults_name_their_keys() {
        let wanted = "create_repositories = ['team/**']";
        for (keys, template, told) in [
            (
                "",
                "scan_on_push = true",
                "scan_on_push: has no meaning without",
            ),
            (
                "create_repositories = ['Team/**']",
                "",
                "no pattern over repositories",
            ),
            (
                "auth = 'anonymous'\ncreate_repositories = true",
                "",
                "create_repositories: is for private ECR",
            ),
            (wanted, "mutability = 'never'", "neither \"mutable\" nor"),
            (
                wanted,
                "mutability_except = ['a']",
                "without upstream.template.mutability",
            ),
            (
                wanted,
                "mutability = 'immutable'\nmutability_except = ['a/b']",
                "no filter",
            ),
            (wanted, "encryption = 'rot13'", "none of \"aes256\""),
            (
                wanted,
                "encryption = 'aes256'\nkms_key = 'k'",
                "template.kms_key: belongs to",
            ),
            (wanted, "tags = { 'aws:a' = 'b' }", "is no tag"),
            (
                wanted,
                "tags = { a = 1 }",
                "expected a table of strings, found integer in it",
            ),
            (wanted, "tags = { 'a=b' = 'c' }", "has an equals sign"),
            (wanted, "tags = ['a']", "expected a table of strings"),
            (wanted, "lifecycle_policy = 'none.json'", "cannot read"),
            (
                wanted,
                "lifecycle_policy = 'policy.json'",
                "it has no \"rules\"",
            ),
            (
                wanted,
                "lifecycle = 'x'",
                "nearest known one is upstream.template.lifecycle_policy",
            ),
        ] {
            let faults = load(keys, template).expect_err(told).to_string();
            assert!(faults.contains(told), "{told}: {faults}");
        }
    }

    #[test]
    fn a_policy_is_json_with_rules_of_a_length_that_ecr_takes() {
        let rule = r#"{"rulePriority":1,"selection":{"tagStatus":"any","countType":"imageCountMoreThan","countNumber":5},"action":{"type":"expire"}}"#;
        let policy = |rules: &str| format!(r#"{{"rules":[{rules}]}}"#);
        assert_eq!(is_policy(&policy(rule)), Ok(()));
        for (text, reason) in [
            ("{", "not JSON"),
            ("[]", "no \"rules\""),
            (&policy(""), "no \"rules\""),
            (&policy("{}"), "of 14 characters"),
            (&policy(&[rule; 300].join(",")), "of 38111 characters"),
        ] {
            let told = is_policy(text).expect_err("refused");
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn tags_are_split_at_the_first_sign() {
        let own = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(tag("team=a=b"), own("team", "a=b"));
        assert_eq!(tag("team="), own("team", ""));
        for text in ["=a", "aws:x=y", "AWS:x=y", "a\n=b", &"x".repeat(129)] {
            assert!(tag(text).is_err(), "{text}");
        }
    }
}
