//! `check --as USER IMAGE ACTION`: what somebody may do, and which rule says so.

use super::Finding;
use crate::access::{ANONYMOUS, Action, Deciding, RESERVED_NAME, Who};
use crate::cli::Failure;
use crate::cli::clients::quoted;
use crate::config::Config;
use crate::oci::{ImageName, RepoKey};

const SUBJECT: &str = "access";

/// The words behind `--as`.
pub(super) struct Question {
    user: String,
    image: ImageName,
    action: Action,
}

impl Question {
    /// # Errors
    /// Which word is not what it should be.
    pub(super) fn parse(words: &[String]) -> Result<Self, Failure> {
        let [user, image, action] = words else {
            let wanted = "--as wants USER IMAGE ACTION";
            return Err(Failure::Usage(wanted.to_owned()));
        };
        let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("--as: {error}"));
        Ok(Self {
            user: user.clone(),
            image: image.parse().map_err(|error| wrong(&error))?,
            action: action.parse().map_err(|error| wrong(&error))?,
        })
    }
}

/// One line for each place the client may be in that makes a difference. Rules are about names as clients write
/// them: with `ns`, as containerd does for images named after that registry.
///
/// # Errors
/// The image is not one that a client could ask this proxy for.
pub(super) fn explain(
    config: &Config,
    question: &Question,
    ns: Option<&str>,
) -> Result<Vec<Finding>, Failure> {
    let Question {
        user,
        image,
        action,
    } = question;
    let names = config.names();
    let asked = names.asked(image, ns);
    let asked = asked.map_err(|error| Failure::Usage(format!("--as: {image}: {error}")))?;
    let (domain, written, repo) = (asked.domain, &image.repository, &asked.led.repo);
    let access = &config.access;
    let is_anonymous = user == ANONYMOUS;
    let on_anonymous = access.rules.admit_anonymous(domain).is_some();
    let on = domain.map_or_else(String::new, |domain| format!(" on {domain}"));
    let named = asked
        .ns
        .map_or_else(String::new, |ns| format!(" with ns={ns}"));
    let mut findings = Vec::new();
    if on_anonymous && !is_anonymous {
        let text = format!("everybody is anonymous{on}: a login counts for nothing there");
        findings.push(Finding::warn(SUBJECT, text, ""));
    } else if user == RESERVED_NAME {
        return Ok(vec![of_tokens(config, repo)]);
    } else if !is_anonymous && !access.users.contains(user) && config.client_certificates.is_none()
    {
        let mend = format!(
            "`ecr-proxy hash-password {}` makes a line for the user file",
            quoted(user)
        );
        let text = format!("{user} is not in the user file, and is not let in");
        return Ok(vec![Finding::fail(SUBJECT, text, mend)]);
    }
    let who = match is_anonymous || on_anonymous {
        true => Who::Anonymous,
        false => Who::User(user.as_str().into()),
    };
    let rules = &access.rules;
    let deciding = rules.explain(&who, domain, &repo.upstream, written, *action);
    let does = format!("{action} {written}{on}{named}");
    let is_settled = deciding
        .last()
        .is_some_and(|last| last.rule.networks.is_empty());
    let is_alone = deciding.len() + usize::from(!is_settled) == 1;
    findings.extend(
        deciding
            .iter()
            .map(|deciding| one(&who, &does, *action, deciding)),
    );
    if !is_settled {
        let place = if is_alone { "" } else { "from elsewhere " };
        findings.push(Finding::fail(
            SUBJECT,
            format!("{place}{who} may not {does}: no rule is about it"),
            "write an [[access.rule]] for it: what none allows is refused",
        ));
    }
    Ok(findings)
}

/// What the bearer of an ECR token may do is known to ECR alone.
fn of_tokens(config: &Config, repo: &RepoKey) -> Finding {
    if !config.access.aws_tokens {
        let mend = "access.aws_tokens = true lets them log in";
        let text = format!("{RESERVED_NAME} is for ECR tokens, which are not taken");
        return Finding::fail(SUBJECT, text, mend);
    }
    let text = format!(
        "{RESERVED_NAME} may in {} what ECR says of the token: no [[access.rule]] is about it",
        repo.repository
    );
    Finding::ok(SUBJECT, text)
}

fn one(who: &Who, does: &str, action: Action, deciding: &Deciding<'_>) -> Finding {
    let rule = deciding.rule;
    let networks: Vec<String> = rule.networks.iter().map(ToString::to_string).collect();
    let place = match &networks[..] {
        [] => String::new(),
        networks => format!("from {} ", networks.join(", ")),
    };
    if deciding.allows {
        return Finding::ok(SUBJECT, format!("{place}{who} may {does}, by {rule}"));
    }
    Finding::fail(
        SUBJECT,
        format!("{place}{who} may not {does}, by {rule}"),
        format!("put \"{action}\" into its actions, or a rule that allows it before it"),
    )
}
