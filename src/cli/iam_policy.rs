//! `iam-policy`: the least AWS policy for the configuration.

use std::io::Write;

use serde_json::{Value, json};

use super::Failure;
use super::settings::Settings;
use crate::config::{Auth, Config, Files, Strings, Upstream};
use crate::upstream::{EcrHost, RegistryKind};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ecr-proxy iam-policy --upstream 000042290000.dkr.ecr.us-west-2.amazonaws.com \\\n    --domain registry.mydomain.com > policy.json\n  aws iam put-role-policy --role-name ecr-proxy --policy-name pull \\\n    --policy-document file://policy.json\n\nNot in it, as nothing needs it: with ecr:DescribeRepositories on the same resource the proxy learns\nwhich repositories have immutable tags, and asks for those once a day; /v2/_catalog lists all there\nare, not only those in the cache. With ecr:ListImages tags are listed. Prefixes of ECR's\npull-through cache take ecr:BatchImportUpstreamImage, and ecr:CreateRepository for what is not\nthere yet."
)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
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

pub(super) fn run(
    args: Args,
    environment: &dyn Strings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let config = args.settings.load(environment, Files::Ignored)?;
    let policy = policy(&config, args.push, args.create).ok_or_else(|| {
        let registries = config.upstreams.iter();
        let registries: Vec<String> = registries.map(|it| it.registry.to_string()).collect();
        Failure::Failed(format!(
            "no AWS credentials are used for {}: no policy is needed",
            registries.join(", ")
        ))
    })?;
    writeln!(out, "{policy:#}")?;
    Ok(())
}

/// The policy, if AWS credentials are used.
fn policy(config: &Config, push: bool, create: bool) -> Option<Value> {
    let upstreams = config.upstreams.iter();
    let with_aws = upstreams.filter(|upstream| matches!(upstream.auth, Auth::Aws { .. }));
    let is_public = |upstream: &&Upstream| *upstream.registry.kind() == RegistryKind::EcrPublic;
    let is_of_public = with_aws.clone().any(|upstream| is_public(&upstream));
    let mut arns: Vec<String> = with_aws
        .filter_map(|upstream| upstream.registry.ecr())
        .map(repositories)
        .collect();
    arns.dedup();
    let statement = |name: &str, actions: Value, resource: &Value| json!({"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resource});
    // IAM knows no narrower resource for any login.
    let everything = json!("*");
    let public = is_of_public.then(|| statement("LoginPublic", json!(PUBLIC_ACTIONS), &everything));
    let resource = match &mut arns[..] {
        [] => {
            return public.map(|public| json!({"Version": "2012-10-17", "Statement": [public]}));
        }
        [only] => Value::from(std::mem::take(only)),
        _ => Value::from(arns),
    };
    let mut statements = vec![
        statement("Login", json!("ecr:GetAuthorizationToken"), &everything),
        statement("Pull", json!(PULL_ACTIONS), &resource),
    ];
    if push {
        statements.push(statement("Push", json!(PUSH_ACTIONS), &resource));
    }
    if create {
        statements.push(statement("Create", json!(CREATE_ACTIONS), &resource));
    }
    statements.extend(public);
    Some(json!({"Version": "2012-10-17", "Statement": statements}))
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
    use super::*;
    use crate::upstream::Registry;

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
