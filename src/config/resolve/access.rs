//! `[access]`: who is let in, and the rules of what they may do.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use super::{Resolver, known_upstream, our_domain, written_pattern};
use crate::access::{Action, Network, ReadUsersError, Rule, Rules, Subject, Users, Who};
use crate::config::{
    Access, Anonymous, Auth, Config, Files, ListenAddress, Server, Upstream, values,
};
use crate::oci::{RepositoryName, Routes};

impl Resolver {
    pub(super) fn access(
        &mut self,
        server: Option<&Server>,
        upstreams: Option<&[Upstream]>,
    ) -> Option<Access> {
        let users_file = self.path("access.users");
        let anonymous = self.one("access.anonymous", |text| match text {
            "none" => Ok(Anonymous::None),
            "pull" => Ok(Anonymous::Pull),
            _ => Err(format!("{text:?} is neither \"none\" nor \"pull\"")),
        });
        let networks = self.many("access.anonymous_networks", |text| {
            text.parse::<Network>().map_err(|error| error.to_string())
        });
        let aws_tokens = self.one("access.aws_tokens", values::boolean);
        let users = match &users_file {
            Some(file) if self.files == Files::Required => self.users(file),
            _ => Some(Users::default()),
        };
        let anonymous = anonymous?.unwrap_or(Anonymous::None);
        let is_pointless = users_file.is_some() && anonymous == Anonymous::Pull;
        if is_pointless {
            self.fault(
                "access.anonymous",
                "cannot be \"pull\" beside access.users: clients decide by the answer to /v2/ \
                 whether to send credentials, so where the anonymous get 200 nobody logs in and \
                 the users would never be asked for their passwords; keep one of the two, or run \
                 a second proxy under a name of its own",
            );
        }
        let networks = networks?.unwrap_or_else(|| vec![Network::Loopback, Network::Private]);
        if networks.is_empty() && anonymous == Anonymous::Pull {
            self.fault(
                "access.anonymous_networks",
                "is empty: with anonymous = \"pull\" it says from where",
            );
        }
        let mut rules = self.each("access.rule", |this| this.rule(server, upstreams))?;
        let written_rules = rules.len();
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("[[access.rule]] {}", index + 1);
        }
        if anonymous == Anonymous::Pull {
            rules.push(Rule {
                networks: networks.clone(),
                ..Rule::everywhere(
                    "anonymous = \"pull\"",
                    vec![Subject::Anonymous],
                    vec![Action::Pull],
                )
            });
        }
        if rules.is_empty() {
            let name = "the default, as there is no [[access.rule]]";
            let (users, actions) = (vec![Subject::Anyone], vec![Action::Pull]);
            rules.push(Rule::everywhere(name, users, actions));
        }
        let rules = Rules::new(rules);
        if !is_pointless {
            self.anonymous_by_domain(&rules, server);
        }
        let aws_tokens = aws_tokens?.unwrap_or(false);
        if aws_tokens {
            self.aws_tokens(&rules, server, upstreams);
        }
        Some(Access {
            users_file,
            users: users?,
            anonymous,
            anonymous_networks: networks,
            aws_tokens,
            rules,
            written_rules,
        })
    }

    /// One `[[access.rule]]`, still without its name.
    fn rule(&mut self, server: Option<&Server>, upstreams: Option<&[Upstream]>) -> Option<Rule> {
        let users = self.many("access.rule.users", |text| {
            text.parse::<Subject>().map_err(|error| error.to_string())
        });
        let actions = self.many("access.rule.actions", |text| {
            text.parse::<Action>().map_err(|error| error.to_string())
        });
        let domains = self.many("access.rule.domains", |text| our_domain(text, server));
        let upstreams = self.many("access.rule.upstreams", |text| {
            known_upstream(text, upstreams)
        });
        let networks = self.many("access.rule.networks", |text| {
            text.parse::<Network>().map_err(|error| error.to_string())
        });
        let repositories = self.many("access.rule.repositories", |text| {
            written_pattern(text, server)
        });
        if matches!(&users, Some(users) if users.as_ref().is_none_or(Vec::is_empty)) {
            self.fault(
                "access.rule.users",
                "is missing or empty: say whom the rule is about, such as [\"ci\"], [\"*\"] for \
                 anybody logged in, or [\"@anonymous\"]",
            );
        }
        if matches!(actions, Some(None)) {
            self.fault(
                "access.rule.actions",
                "is missing: say what is allowed, such as [\"pull\"], or [] for nothing",
            );
        }
        // What an empty list would mean is not for us to guess.
        for (key, is_empty) in [
            (
                "access.rule.domains",
                matches!(&domains, Some(Some(d)) if d.is_empty()),
            ),
            (
                "access.rule.upstreams",
                matches!(&upstreams, Some(Some(u)) if u.is_empty()),
            ),
            (
                "access.rule.networks",
                matches!(&networks, Some(Some(n)) if n.is_empty()),
            ),
            (
                "access.rule.repositories",
                matches!(&repositories, Some(Some(r)) if r.is_empty()),
            ),
        ] {
            if is_empty {
                self.fault(key, "is empty: leave it out where the rule is for all");
            }
        }
        Some(Rule {
            domains: domains?.unwrap_or_default(),
            upstreams: upstreams?.unwrap_or_default(),
            networks: networks?.unwrap_or_default(),
            repositories: repositories?.unwrap_or_default(),
            ..Rule::everywhere("", users??, actions??)
        })
    }

    /// A domain is for the anonymous or for those who log in, as clients know only one way to ask.
    fn anonymous_by_domain(&mut self, rules: &Rules, server: Option<&Server>) {
        let named = server
            .map(|server| server.domains.as_slice())
            .unwrap_or_default();
        let mut told = BTreeMap::new();
        for domain in places(named) {
            let both = rules.admit_anonymous(domain).zip(rules.admit_users(domain));
            if let Some((anonymous, users)) = both {
                let pair = (anonymous.name.as_str(), users.name.as_str());
                let on: &mut Vec<&str> = told.entry(pair).or_default();
                on.push(domain.unwrap_or("any name"));
            }
        }
        for ((anonymous, users), on) in told {
            let reason = format!(
                "on {} both the anonymous ({anonymous}) and named users ({users}) have rights: \
                 clients decide by the answer to /v2/ whether to send credentials, so where the \
                 anonymous get 200 nobody ever logs in; give each a domain of its own and name it in \
                 the rules (domains = [...])",
                on.join(", ")
            );
            self.fault("access.rule", &reason);
        }
    }

    /// Tokens have to come from a registry that issues them, to a domain where clients log in.
    fn aws_tokens(
        &mut self,
        rules: &Rules,
        server: Option<&Server>,
        upstreams: Option<&[Upstream]>,
    ) {
        const KEY: &str = "access.aws_tokens";
        let is_aws = |upstream: &Upstream| matches!(upstream.auth, Auth::Aws { .. });
        if upstreams.is_some_and(|all| !all.iter().any(is_aws)) {
            self.fault(
                KEY,
                "cannot be true: no [[upstream]] is a private ECR registry with auth = \"aws\", and \
                 only these tell what such a token allows",
            );
        }
        let named = server.map(|server| server.domains.as_slice());
        let named = named.unwrap_or_default().iter();
        let mut domains = named.map(|name| Some(name.as_str())).chain([None]);
        if domains.all(|domain| rules.admit_anonymous(domain).is_some()) {
            self.fault(
                KEY,
                "cannot be true where everybody is anonymous: clients decide by the answer to /v2/ \
                 whether to send credentials, so nobody would ever log in; take anonymous = \"pull\" \
                 away, or give the anonymous a domain of their own by a rule with domains = [...]",
            );
        }
    }

    fn users(&mut self, file: &Path) -> Option<Users> {
        let shown = file.display();
        match Users::read(file) {
            Ok(users) => return Some(users),
            Err(ReadUsersError::Parse(error)) => {
                for fault in error.0 {
                    let reason = format!("{shown} line {}: {}", fault.line, fault.reason);
                    self.fault("access.users", &reason);
                }
            }
            Err(error @ ReadUsersError::Empty) => {
                self.fault("access.users", &format!("{shown} {error}"));
            }
            Err(ReadUsersError::Read(error)) => {
                self.fault("access.users", &format!("cannot read {shown}: {error}"));
            }
        }
        None
    }
}

/// Notes what works and is probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let Config { access, server, .. } = config;
    let public = |l: &&ListenAddress| !l.tls && !l.address.ip().is_loopback();
    let has_logins = access.users_file.is_some() || access.aws_tokens;
    if let (true, Some(plain)) = (has_logins, server.listen.iter().find(public)) {
        warnings.push(format!(
            "server.listen: passwords and tokens cross {plain} unencrypted unless something before \
             it speaks TLS"
        ));
    }
    if let Some(admin) = server.admin.filter(|admin| !admin.ip().is_loopback()) {
        warnings.push(format!(
            "server.admin: whoever reaches http://{admin} sees status and metrics, images' names among \
             them, without a password"
        ));
    }
    let domains = server.domains.iter().map(|name| Some(name.as_str()));
    let mut domains = domains.chain([None]);
    if !has_logins
        && config.client_certificates.is_none()
        && domains.all(|domain| access.rules.admit_anonymous(domain).is_none())
    {
        warnings.push(
            "nobody is let in: every request is answered 401; name a user file (--users FILE, \
             `ecr-proxy hash-password NAME` makes its lines) or let anybody pull \
             (--anonymous-pull)"
                .to_owned(),
        );
    }
    warnings.extend(open_by_ns(config));
    warnings.extend(open_by_other_names(config));
    if access.aws_tokens {
        let denials =
            |rule: &&Rule| rule.actions.is_empty() && rule.users.contains(&Subject::Anyone);
        for rule in access.rules.iter().filter(denials) {
            warnings.push(format!(
                "{}: does not hold for those who log in with an ECR token (access.aws_tokens): what \
                 they may do is said in AWS alone",
                rule.name
            ));
        }
    }
    // Those who show a certificate are in no file.
    if config.client_certificates.is_none() && !access.users.is_empty() {
        for rule in access.rules.iter() {
            for name in rule.users.iter().filter_map(Subject::name) {
                if !access.users.contains(name) {
                    let rule = &rule.name;
                    warnings.push(format!("{rule}: {name:?} is not in the user file"));
                }
            }
        }
    }
    warnings
}

/// Rules by which anybody has at a domain, by naming a registry, what only users have elsewhere: more than the
/// domain's own routes lead to.
fn open_by_ns(config: &Config) -> Vec<String> {
    let rules = &config.access.rules;
    let domains = || config.server.domains.iter().map(String::as_str);
    let names = config.names();
    // No pattern of the operator's is likely to be about it.
    let Ok(probe) = RepositoryName::from_str("ecr-proxy/any-name") else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    for upstream in config
        .upstreams
        .iter()
        .filter(|it| it.auth != Auth::Anonymous)
    {
        let (name, registry) = (upstream.name.as_str(), upstream.registry.name());
        let leads = |domain: &str, ns: Option<&str>| {
            let led = names.routes().find(Some(domain), ns, &probe);
            led.is_some_and(|led| *led.repo.upstream == *name)
        };
        if !domains().any(|domain| rules.admit_users(Some(domain)).is_some()) {
            continue;
        }
        for domain in domains() {
            if leads(domain, None) || !leads(domain, Some(registry)) {
                continue;
            }
            let who = Who::Anonymous;
            let deciding = rules.explain(&who, Some(domain), name, &probe, Action::Pull);
            if let Some(open) = deciding.iter().find(|deciding| deciding.allows) {
                warnings.push(format!(
                    "{}: lets anybody pull from {name:?} at {domain}, too, by ?ns={registry}; name the \
                     upstreams that it is meant for (upstreams = [...])",
                    open.rule.name
                ));
            }
        }
    }
    warnings
}

/// Rules that keep somebody from a repository by the name that a route's prefix makes, where another rule lets them
/// have it by the name that it has at its registry.
fn open_by_other_names(config: &Config) -> Vec<String> {
    let names = config.names();
    let domains = places(&config.server.domains);
    let mut warnings = Vec::new();
    for rule in config.access.rules.iter() {
        let mut patterns = rule.repositories.iter();
        warnings.extend(patterns.find_map(|pattern| {
            // A name that the pattern is about.
            let name = pattern.as_str().replace("**", "any").replace('*', "any");
            let name = RepositoryName::from_str(&name).ok()?;
            let mut domains = domains.iter();
            domains.find_map(|domain| {
                open_by_another_name(config, names.routes(), rule, *domain, &name)
            })
        }));
    }
    warnings
}

/// The same of one rule and one name.
fn open_by_another_name(
    config: &Config,
    routes: &Routes,
    rule: &Rule,
    domain: Option<&str>,
    name: &RepositoryName,
) -> Option<String> {
    let repo = routes.find(domain, None, name)?.repo;
    let mut upstreams = config.upstreams.iter();
    let Upstream {
        name: upstream,
        registry,
        ..
    } = upstreams.find(|upstream| *upstream.name == *repo.upstream)?;
    let registry = registry.name();
    let others = routes.names_of(domain, Some(registry), &repo);
    let mut others = others.iter().filter(|other| *other != name);
    others.find_map(|other| {
        let differs = kept_by_one_name(config, rule, domain, upstream, (name, other))?;
        Some(format!(
            "{differs} by ?ns={registry}: add that name to its repositories, and upstreams = [{upstream:?}]"
        ))
    })
}

/// Where rules may differ: on each of our names. Without any they hold on every name, also on one that only
/// loopback clients use.
fn places(domains: &[String]) -> Vec<Option<&str>> {
    match domains {
        [] => vec![None],
        _ => domains.iter().map(|name| Some(name.as_str())).collect(),
    }
}

/// Whom `rule` keeps from a repository by the first of its names and not by the other, and who lets them.
fn kept_by_one_name(
    config: &Config,
    rule: &Rule,
    domain: Option<&str>,
    upstream: &str,
    (name, other): (&RepositoryName, &RepositoryName),
) -> Option<String> {
    let rules = &config.access.rules;
    for subject in &rule.users {
        let who = match subject {
            Subject::Anyone => Who::User("any user".into()),
            Subject::Anonymous => Who::Anonymous,
            Subject::User(name) => Who::User(Arc::clone(name)),
        };
        for action in [Action::Pull, Action::Push, Action::Delete] {
            let decided = |name| rules.explain(&who, domain, upstream, name, action);
            let is_kept = decided(name)
                .iter()
                .any(|deciding| deciding.rule == rule && !deciding.allows);
            let open = decided(other);
            if let (true, Some(open)) = (is_kept, open.iter().find(|deciding| deciding.allows)) {
                let (rule, by) = (&rule.name, &open.rule.name);
                return Some(format!(
                    "{rule}: {who} may not {action} {name}, and may ({by}) as {other}, its name at its \
                     registry,"
                ));
            }
        }
    }
    None
}
