//! What `check` can tell only by asking: token, upstream, IAM actions, the clock's error.

use std::time::Duration;

use super::Finding;
use crate::access::{Action, Rules};
use crate::cli::iam_policy::{
    CREATE_ACTIONS, DELETE_ACTION, DESCRIBE_ACTION, LIST_ACTION, PULL_ACTIONS, PUSH_ACTIONS, source,
};
use crate::config::{self, Auth};
use crate::oci::{Digest, Reference, RepositoryName};
use crate::telemetry::Heard;
use crate::upstream::{Ping, Skew, TokenError, Upstream, UpstreamError};

/// Beyond this AWS refuses signed requests.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

/// More than a round trip and the one-second grain of `Date`.
const NOTABLE_SKEW: Duration = Duration::from_secs(10);

/// A repository that hardly exists: IAM decides before ECR looks for it.
const NO_REPOSITORY: &str = "ecr-proxy-check/none";

/// Who is asked for, as far as the configuration says.
struct Identity<'a> {
    profile: Option<&'a str>,
    /// The ARN of the role that is assumed.
    role: Option<&'a str>,
}

impl Identity<'_> {
    fn of(auth: &Auth) -> Identity<'_> {
        match auth {
            Auth::Aws { profile, role } => Identity {
                profile: profile.as_deref(),
                role: role.as_ref().map(|role| &*role.arn),
            },
            Auth::Basic { .. } | Auth::Anonymous => Identity {
                profile: None,
                role: None,
            },
        }
    }

    /// Where its credentials are from, where they are good.
    fn found(&self) -> String {
        let source = source(self.profile);
        match (self.role, self.profile) {
            (Some(role), _) => format!("role {role}, assumed with what {source} has"),
            // A profile that has none is followed by what else there is.
            (None, Some(_)) => format!("found with {source}"),
            (None, None) => format!("found in {source}"),
        }
    }

    /// What to do where there are none that work.
    fn none(&self) -> String {
        let none = "none were found, or AWS does not know them: give the proxy an instance or pod role, \
                    AWS_… variables, or a profile";
        match self.role {
            None => none.to_owned(),
            Some(role) => format!(
                "{none}; and look whether it may assume the role {role}, by its own policy, which \
                 `ecr-proxy iam-policy` prints, and by the role's trust policy"
            ),
        }
    }

    /// The command that prints what it needs.
    fn policy(&self) -> String {
        match self.role {
            None => "ecr-proxy iam-policy".to_owned(),
            Some(role) => format!("ecr-proxy iam-policy --role {role}"),
        }
    }

    /// What to do where a right is missing.
    fn try_policy(&self) -> String {
        let whom = match self.role {
            None => "the proxy's identity",
            Some(_) => "that role",
        };
        format!("attach what `{}` prints to {whom}", self.policy())
    }
}

/// Everything about the upstream, in the order in which one thing needs another. What `rules` grant decides what
/// it has to allow.
pub(super) async fn upstream(
    upstream: &Upstream,
    configured: &config::Upstream,
    rules: &Rules,
    repository: Option<&RepositoryName>,
    heard: &Heard,
) -> Vec<Finding> {
    let quoting = |found: Vec<Finding>| {
        let said = heard.take();
        let each = found.into_iter();
        each.map(|finding| finding.quoting(&said))
            .collect::<Vec<_>>()
    };
    let aws = matches!(configured.auth, Auth::Aws { .. });
    let identity = Identity::of(&configured.auth);
    let mut findings = Vec::new();
    let mut logged_in = true;
    if aws {
        let (found, good) = token(upstream, &identity).await;
        findings.extend(quoting(found));
        logged_in = good;
    } else {
        let how = match &configured.auth {
            Auth::Basic { username, .. } => format!("user {username}"),
            Auth::Aws { .. } | Auth::Anonymous => "none, the registry is asked anonymously".into(),
        };
        findings.push(Finding::ok("credentials", how));
    }
    if !logged_in {
        let text = "not asked, for want of a token";
        findings.push(Finding::warn("upstream", text, ""));
        return findings;
    }
    let ping = upstream.ping().await;
    // ECR Public lets everybody pull.
    let is_private = upstream.registry().ecr().is_some();
    if aws && is_private && ping.is_ok() {
        findings.extend(quoting(actions(upstream, &identity, repository).await));
        findings.extend(untried(configured, &identity, rules));
    }
    findings.extend(quoting(vec![reachable(configured, &ping)]));
    if let Ok(Ping {
        clock: Some(skew), ..
    }) = ping
    {
        findings.push(clock(skew));
    }
    findings
}

/// Credentials and token; whether there is one.
async fn token(upstream: &Upstream, identity: &Identity<'_>) -> (Vec<Finding>, bool) {
    const CREDENTIALS: &str = "credentials";
    const TOKEN: &str = "token";
    let error = match upstream.check_token().await {
        Ok(status) => {
            let until = status.valid_until.map_or_else(
                || "obtained".to_owned(),
                |until| format!("valid until {}", humantime::format_rfc3339_seconds(until)),
            );
            let found = Finding::ok(CREDENTIALS, identity.found());
            return (vec![found, Finding::ok(TOKEN, until)], true);
        }
        Err(error) => error,
    };
    let text = error.to_string();
    let findings = match &error {
        UpstreamError::NoToken(TokenError::NoCredentials) => {
            vec![Finding::fail(CREDENTIALS, text, identity.none())]
        }
        UpstreamError::NoToken(TokenError::Denied) => vec![
            Finding::ok(CREDENTIALS, identity.found()),
            Finding::fail(TOKEN, text, ""),
            missing("ecr:GetAuthorizationToken", &identity.try_policy()),
        ],
        UpstreamError::NoToken(TokenError::Unreachable | TokenError::TooSlow) => {
            let mend = "let the proxy reach the AWS API of the registry's region, over port 443";
            vec![Finding::fail(TOKEN, text, mend)]
        }
        UpstreamError::NoToken(TokenError::Intercepted) => {
            let mend = "log in to the network that is in between, or let the proxy past it";
            vec![Finding::fail(TOKEN, text, mend)]
        }
        _ => vec![Finding::fail(TOKEN, text, "")],
    };
    (findings, false)
}

fn missing(action: &str, mend: &str) -> Finding {
    Finding::fail("IAM", format!("{action} is missing"), mend)
}

/// What is granted here, and cannot be tried without doing it.
fn untried(configured: &config::Upstream, identity: &Identity<'_>, rules: &Rules) -> Vec<Finding> {
    let policy = identity.policy();
    let all = [
        (
            rules.grant(&configured.name, Action::Push),
            &PUSH_ACTIONS[..],
            format!("write: `{policy} --push` prints a policy that grants them"),
        ),
        (
            rules.grant(&configured.name, Action::Delete),
            &[DELETE_ACTION],
            format!("delete: grant it beside what `{policy} --push` prints"),
        ),
        (
            configured.create.is_some(),
            &CREATE_ACTIONS,
            format!(
                "make a repository: `{policy} --push --create` prints a policy that grants them"
            ),
        ),
    ];
    let wanted = all.into_iter().filter(|(is_wanted, ..)| *is_wanted);
    let told = wanted.map(|(_, actions, would)| {
        let (actions, are) = match actions {
            [all @ .., last] if !all.is_empty() => {
                (format!("{} and {last}", all.join(", ")), "are")
            }
            one => (one.concat(), "is"),
        };
        Finding::ok(
            "IAM",
            format!("{actions} {are} not tried, which would {would}"),
        )
    });
    told.collect()
}

/// The actions that a pull takes, each tried where it can do no harm.
async fn actions(
    upstream: &Upstream,
    identity: &Identity<'_>,
    repository: Option<&RepositoryName>,
) -> Vec<Finding> {
    const SUBJECT: &str = "IAM";
    let fallback = NO_REPOSITORY.parse();
    let (Some(name), Ok(latest)) = (
        repository.or(fallback.as_ref().ok()),
        "latest".parse::<Reference>(),
    ) else {
        return Vec::new();
    };
    let none = Digest::of(b"ecr-proxy check");
    let manifest = upstream.manifest(name, &latest).await.map(drop);
    let blob = upstream.probe_blob(name, &none).await.map(drop);
    let mend = match repository {
        Some(_) => identity.try_policy(),
        None => format!(
            "{}; if it names repositories, try --repository NAME of one",
            identity.try_policy()
        ),
    };
    let described = upstream.tag_mutability(name).await.map(drop);
    let listed = upstream.tags(name, Some(1), None).await.map(drop);
    let tried = |action: &str, answer, optional: &str, refused: Finding| match answer {
        Ok(()) | Err(UpstreamError::Absent(_)) => {
            Finding::ok(SUBJECT, format!("{action} in {name}{optional}"))
        }
        Err(UpstreamError::Refused) => refused,
        Err(error) => Finding::warn(SUBJECT, format!("{action} is not known: {error}"), ""),
    };
    let needed = |(action, answer)| tried(action, answer, "", missing(action, &mend));
    let optional = |(action, answer, without)| {
        let text = format!("{action} is not granted, and not needed: {without}");
        tried(action, answer, " (optional)", Finding::ok(SUBJECT, text))
    };
    let pull = PULL_ACTIONS.into_iter().zip([manifest, blob]).map(needed);
    let others = [
        (DESCRIBE_ACTION, described, "immutable tags are not learned"),
        (LIST_ACTION, listed, "lists of tags are refused"),
    ];
    pull.chain(others.map(optional)).collect()
}

fn reachable(configured: &config::Upstream, ping: &Result<Ping, UpstreamError>) -> Finding {
    const SUBJECT: &str = "upstream";
    let registry = &configured.registry;
    let error = match ping {
        Ok(ping) => {
            let took = ping.took.as_millis();
            return Finding::ok(SUBJECT, format!("{registry} answers in {took} ms"));
        }
        Err(error) => error,
    };
    let mend = match error {
        UpstreamError::Unreachable(_) | UpstreamError::TooSlow(_) | UpstreamError::Away(_) => {
            "look at name resolution, routes and firewalls between this host and the registry"
        }
        UpstreamError::BadCredentials | UpstreamError::Refused => {
            "look whether the credentials are current and meant for this registry"
        }
        UpstreamError::Wrong(_) => {
            "look whether it is a registry that answers there, and whether upstream.ca is its CA"
        }
        UpstreamError::Offline => {
            let text = format!("{registry} is not asked: offline by the configuration");
            return Finding::ok(SUBJECT, text);
        }
        UpstreamError::Unconfigured => "name it in an [[upstream]]",
        UpstreamError::NoToken(_) => "look at the registry's token service",
        UpstreamError::Absent(_)
        | UpstreamError::Unsupported
        | UpstreamError::Throttled { .. }
        | UpstreamError::Failing { .. }
        | UpstreamError::Truncated
        | UpstreamError::TooMuch
        | UpstreamError::ContentChanged
        | UpstreamError::IgnoredRange
        | UpstreamError::Told(_) => "try again later, or look whether it is a registry",
    };
    Finding::fail(SUBJECT, format!("{registry}: {error}"), mend)
}

/// Our clock against the registry's: ahead of it, or behind it.
fn clock(skew: Skew) -> Finding {
    const SUBJECT: &str = "clock against upstream";
    const MEND: &str = "set this host's clock, for example by an NTP client";
    let by = skew.size();
    let way = match skew {
        Skew::Ahead(_) => "ahead",
        Skew::Behind(_) => "behind",
    };
    let text = format!("{} s {way}", by.as_secs());
    if by > MAX_SKEW {
        Finding::fail(SUBJECT, text, MEND)
    } else if by > NOTABLE_SKEW {
        Finding::warn(SUBJECT, text, MEND)
    } else {
        Finding::ok(SUBJECT, "agrees")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Verdict;

    #[test]
    fn a_skew_fails_where_aws_refuses_signatures() {
        let seconds = Duration::from_secs;
        assert_eq!(clock(Skew::Ahead(seconds(2))).verdict(), Verdict::Ok);
        assert_eq!(clock(Skew::Behind(seconds(60))).verdict(), Verdict::Warn);
        assert_eq!(clock(Skew::Ahead(seconds(301))).verdict(), Verdict::Fail);
        assert_eq!(clock(Skew::Behind(seconds(301))).verdict(), Verdict::Fail);
    }
}
