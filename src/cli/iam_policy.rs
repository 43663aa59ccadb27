//! `iam-policy`: the least AWS policy for the configuration.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Failure;
use super::clients::quoted;
use super::settings::Settings;
use crate::config::{Auth, Config, Files, Strings, Upstream};
use crate::upstream::{EcrHost, RegistryKind};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ecr-proxy iam-policy --upstream 000042290000.dkr.ecr.us-west-2.amazonaws.com \\\n    --domain registry.mydomain.com > policy.json\n  aws iam put-role-policy --role-name ecr-proxy --policy-name pull \\\n    --policy-document file://policy.json\n\nWhere upstreams have a role_arn, this is what the proxy's own identity needs: its own upstreams, and\nleave to assume the roles. What a role needs is printed for each, to be attached in its account:\n  ecr-proxy iam-policy --config /etc/ecr-proxy/config.toml \\\n    --role arn:aws:iam::000042290001:role/puller > puller.json\n\nNot in it, as nothing needs it: with ecr:DescribeRepositories on the same resource the proxy learns\nwhich repositories have immutable tags, and asks for those once a day; /v2/_catalog lists all there\nare, not only those in the cache. With ecr:ListImages tags are listed. Prefixes of ECR's\npull-through cache take ecr:BatchImportUpstreamImage, and ecr:CreateRepository for what is not\nthere yet."
)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// What this role needs, which upstreams have as role_arn, instead of the proxy's own identity
    #[arg(long, value_name = "ARN")]
    role: Option<String>,
    /// Also what pushing takes. Deletes take ecr:BatchDeleteImage besides.
    #[arg(long)]
    push: bool,
    /// Also what making repositories takes that are pushed to (create_repositories). A key of KMS takes
    /// kms:CreateGrant and kms:DescribeKey on that key besides.
    #[arg(long)]
    create: bool,
}

/// What pulling a repository's images takes.
pub(super) const PULL_ACTIONS: [&str; 2] = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"];

/// What pushing takes besides.
pub(super) const PUSH_ACTIONS: [&str; 5] = [
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
];

/// What logging in to ECR Public takes; it lets everybody pull.
const PUBLIC_ACTIONS: [&str; 2] = [
    "ecr-public:GetAuthorizationToken",
    "sts:GetServiceBearerToken",
];

/// What making a repository takes, with all that its template may say.
pub(super) const CREATE_ACTIONS: [&str; 4] = [
    "ecr:CreateRepository",
    "ecr:GetLifecyclePolicy",
    "ecr:PutLifecyclePolicy",
    "ecr:TagResource",
];

/// What tells which repositories have immutable tags; nothing depends on it.
pub(super) const DESCRIBE_ACTION: &str = "ecr:DescribeRepositories";

/// What lists of tags take; nothing else depends on it.
pub(super) const LIST_ACTION: &str = "ecr:ListImages";

/// What deletes take.
pub(super) const DELETE_ACTION: &str = "ecr:BatchDeleteImage";

/// What taking on a role takes, beside the role's own trust.
const ASSUME_ACTION: &str = "sts:AssumeRole";

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let Args {
        settings,
        role,
        push,
        create,
    } = args;
    let file = settings.file().cloned();
    let config = settings.load(environment, Files::Ignored)?;
    let logins = logins(&config);
    let roles = distinct(logins.iter().filter_map(|login| login.role));
    let policy = match &role {
        Some(role) if roles.contains(&&**role) => {
            let its = logins.iter().filter(|login| login.role == Some(role));
            policy(its, &[], push, create)
        }
        Some(role) => {
            let there_are = match roles.is_empty() {
                true => "none is assumed by any".to_owned(),
                false => format!("there are {}", roles.join(", ")),
            };
            let text = format!("no upstream assumes the role {role}: {there_are}");
            return Err(Failure::Usage(text));
        }
        None => {
            let own = logins.iter().filter(|login| login.role.is_none());
            policy(own, &roles, push, create)
        }
    };
    let policy = policy.ok_or_else(|| {
        let registries = config.upstreams.iter();
        let registries: Vec<String> = registries.map(|it| it.registry.to_string()).collect();
        Failure::Failed(format!(
            "no AWS credentials are used for {}: no policy is needed",
            registries.join(", ")
        ))
    })?;
    writeln!(out, "{policy:#}")?;
    if role.is_none() {
        tell_of_others(&logins, &roles, &more(push, create, file.as_ref()));
    }
    Ok(())
}

/// Tells beside the policy whose else there are: on standard error, as what is printed is one document.
fn tell_of_others(logins: &[Login<'_>], roles: &[&str], more: &str) {
    let profiles = distinct(logins.iter().map(|login| login.profile));
    if profiles.len() > 1 {
        let identities = profiles.into_iter().map(|profile| {
            let its = logins.iter().filter(|login| login.profile == profile);
            let its: Vec<&str> = its.map(|login| &*login.upstream.name).collect();
            format!("{} ({})", source(profile), its.join(", "))
        });
        let identities: Vec<String> = identities.collect();
        eprintln!(
            "This is for several identities together, of which each needs only what is about its upstreams: {}",
            identities.join(", ")
        );
    }
    if !roles.is_empty() {
        eprintln!("Each role that is assumed needs a policy of its own, which these print:");
    }
    for role in roles {
        eprintln!("  ecr-proxy iam-policy --role {}{more}", quoted(role));
    }
}

/// The flags that ask for the same of another identity.
fn more(push: bool, create: bool, file: Option<&PathBuf>) -> String {
    let flags = [(push, " --push"), (create, " --create")];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
    let mut more: String = flags.map(|(_, flag)| flag).collect();
    if let Some(file) = file {
        more += &format!(" --config {}", quoted(&file.display().to_string()));
    }
    more
}

/// An upstream that is asked with AWS credentials, and whose they are.
struct Login<'a> {
    upstream: &'a Upstream,
    profile: Option<&'a str>,
    /// The role that these assume.
    role: Option<&'a str>,
}

fn logins(config: &Config) -> Vec<Login<'_>> {
    let each = config.upstreams.iter().filter_map(|upstream| {
        let Auth::Aws { profile, role } = &upstream.auth else {
            return None;
        };
        Some(Login {
            upstream,
            profile: profile.as_deref(),
            role: role.as_ref().map(|role| &*role.arn),
        })
    });
    each.collect()
}

/// Where credentials come from, before any role.
pub(super) fn source(profile: Option<&str>) -> String {
    match profile {
        None => "the AWS default chain".to_owned(),
        Some(profile) => format!("profile {profile:?}"),
    }
}

/// Each once, in the order in which they are first.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// What an identity needs that is who logs in to these upstreams, and assumes these roles; `None` if that is
/// nothing.
fn policy<'a>(
    logins: impl Iterator<Item = &'a Login<'a>>,
    roles: &[&str],
    push: bool,
    create: bool,
) -> Option<Value> {
    let registries: Vec<_> = logins.map(|login| &login.upstream.registry).collect();
    let arns = distinct(
        registries
            .iter()
            .filter_map(|it| it.ecr())
            .map(repositories),
    );
    let mut statements = Vec::new();
    let mut allow = |name: &str, actions: Value, resource: &Value| {
        let statement =
            json!({"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resource});
        statements.push(statement);
    };
    // IAM knows no narrower resource for any login.
    let everything = json!("*");
    if !arns.is_empty() {
        let resource = one_or_all(&arns);
        allow("Login", json!("ecr:GetAuthorizationToken"), &everything);
        allow("Pull", json!(PULL_ACTIONS), &resource);
        if push {
            allow("Push", json!(PUSH_ACTIONS), &resource);
        }
        if create {
            allow("Create", json!(CREATE_ACTIONS), &resource);
        }
    }
    let mut kinds = registries.iter().map(|registry| registry.kind());
    if kinds.any(|kind| *kind == RegistryKind::EcrPublic) {
        allow("LoginPublic", json!(PUBLIC_ACTIONS), &everything);
    }
    if !roles.is_empty() {
        allow("AssumeRole", json!(ASSUME_ACTION), &one_or_all(roles));
    }
    let is_needed = !statements.is_empty();
    is_needed.then(|| json!({"Version": "2012-10-17", "Statement": statements}))
}

/// As policies have one resource, or several.
fn one_or_all<T: serde::Serialize>(resources: &[T]) -> Value {
    match resources {
        [only] => json!(only),
        all => json!(all),
    }
}

/// All repositories of a registry, as an ARN.
fn repositories(ecr: &EcrHost) -> String {
    let EcrHost {
        region, account, ..
    } = ecr;
    let partition = partition(ecr);
    format!("arn:{partition}:ecr:{region}:{account}:repository/*")
}

/// The partition in ARNs: told from the DNS suffix, and within `amazonaws.com` from the region.
fn partition(ecr: &EcrHost) -> &'static str {
    match ecr.dns_suffix {
        "amazonaws.com.cn" => "aws-cn",
        "amazonaws.eu" => "aws-eusc",
        "c2s.ic.gov" => "aws-iso",
        "sc2s.sgov.gov" => "aws-iso-b",
        "cloud.adc-e.uk" => "aws-iso-e",
        "csp.hci.ic.gov" => "aws-iso-f",
        _ if ecr.region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Flags, Sources};
    use crate::upstream::Registry;

    /// The policies of a proxy with these `[[upstream]]`: its own, and that of each role.
    fn policies(upstreams: &str) -> (Option<Value>, Vec<Option<Value>>) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        let text = format!("[server]\ndomains = ['a.test']\n{upstreams}");
        std::fs::write(&file, text).expect("a file");
        let config = Config::load(Sources {
            file: Some(&file),
            environment: &BTreeMap::new(),
            flags: Flags::default(),
            files: Files::Ignored,
        });
        let config = config.expect("a configuration");
        let logins = logins(&config);
        let of = |role| logins.iter().filter(move |login| login.role == role);
        let roles = distinct(logins.iter().filter_map(|login| login.role));
        let own = policy(of(None), &roles, false, false);
        let each = roles
            .iter()
            .map(|role| policy(of(Some(*role)), &[], false, false));
        (own, each.collect())
    }

    fn upstream(name: &str, registry: &str, role: &str) -> String {
        let role = match role {
            "" => String::new(),
            role => format!("role_arn = 'arn:aws:iam::000042290000:role/{role}'\n"),
        };
        format!("[[upstream]]\nname = '{name}'\nregistry = '{registry}'\nauth = 'aws'\n{role}")
    }

    const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

    fn sids(policy: Option<&Value>) -> Vec<&str> {
        let statements = policy.and_then(|policy| policy["Statement"].as_array());
        let each = statements.into_iter().flatten();
        each.filter_map(|it| it["Sid"].as_str()).collect()
    }

    #[test]
    fn who_only_assumes_a_role_needs_no_other_right_and_the_role_has_them() {
        let (own, roles) = policies(&upstream("one", ECR, "puller"));
        let own = own.expect("a policy");
        let statements = own["Statement"].as_array().expect("statements");
        let expected = json!({
            "Sid": "AssumeRole",
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Resource": "arn:aws:iam::000042290000:role/puller",
        });
        assert_eq!(statements[..], [expected]);
        assert_eq!(roles.len(), 1);
        assert_eq!(sids(roles[0].as_ref()), ["Login", "Pull"]);
    }

    #[test]
    fn a_role_of_several_upstreams_needs_what_all_of_them_take_and_no_resource_is_told_twice() {
        let fips = "000042290000.dkr.ecr-fips.us-west-2.amazonaws.com";
        let other = "000042290001.dkr.ecr.eu-west-1.amazonaws.com";
        let (own, roles) = policies(
            &[
                upstream("one", ECR, "puller"),
                upstream("two", other, "puller"),
                upstream("three", fips, "puller"),
                upstream("public", "public.ecr.aws", "reader"),
                upstream("four", ECR, ""),
                "[[route]]\nrepository = 'a/**'\nupstream = 'one'\n".to_owned(),
            ]
            .concat(),
        );
        let own = own.expect("a policy");
        assert_eq!(sids(Some(&own)), ["Login", "Pull", "AssumeRole"]);
        let puller = roles[0].as_ref().expect("a policy");
        assert_eq!(
            puller["Statement"][1]["Resource"],
            json!([
                "arn:aws:ecr:us-west-2:000042290000:repository/*",
                "arn:aws:ecr:eu-west-1:000042290001:repository/*",
            ])
        );
        assert_eq!(sids(roles[1].as_ref()), ["LoginPublic"]);
    }

    #[test]
    fn where_no_aws_credentials_are_used_no_policy_is_needed() {
        let docker_hub = "[[upstream]]\nregistry = 'docker.io'\n";
        assert_eq!(policies(docker_hub), (None, Vec::new()));
    }

    #[test]
    fn every_partition_has_its_arn() {
        for (host, expected) in [
            ("dkr.ecr.us-west-2.amazonaws.com", "aws"),
            ("dkr-ecr.us-west-2.on.aws", "aws"),
            ("dkr.ecr-fips.us-gov-west-1.amazonaws.com", "aws-us-gov"),
            ("dkr.ecr.cn-north-1.amazonaws.com.cn", "aws-cn"),
            ("dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "aws-cn"),
            ("dkr.ecr.eusc-de-east-1.amazonaws.eu", "aws-eusc"),
            ("dkr.ecr.us-iso-east-1.c2s.ic.gov", "aws-iso"),
            ("dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "aws-iso-b"),
            ("dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "aws-iso-e"),
            ("dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "aws-iso-f"),
        ] {
            let registry = Registry::parse(&format!("000042290000.{host}")).expect("registry");
            assert_eq!(registry.ecr().map(partition), Some(expected), "{host}");
        }
    }
}
