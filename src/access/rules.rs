//! Who may do what where: the operator's rules.
//!
//! Invariant: the first rule that is about a request decides it, whatever later ones say; a request
//! that no rule is about is refused. Names of users, domains and upstreams are compared whole,
//! repositories component by component; all keep their case.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::decide::{Action, Who};
use super::networks::Network;
use super::users::name_fault;
use crate::oci::{Pattern, RepositoryName};

/// How nobody in particular is written, in rules and in the log.
pub const ANONYMOUS: &str = "@anonymous";

/// How anybody who is logged in is written in a rule.
const ANYONE: &str = "*";

/// Somebody whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `*`: anybody who is logged in.
    Anyone,
    /// `@anonymous`: nobody in particular.
    Anonymous,
    /// One user, by name.
    User(Arc<str>),
}

/// Why a text is not a [`Subject`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no user: {reason}")]
pub struct ParseSubjectError {
    text: String,
    reason: &'static str,
}

impl Subject {
    /// The user's name, if it is one user.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::User(name) => Some(name),
            Self::Anyone | Self::Anonymous => None,
        }
    }

    fn is(&self, who: &Who) -> bool {
        match (self, who) {
            (Self::Anyone, Who::User(_)) | (Self::Anonymous, Who::Anonymous) => true,
            (Self::User(name), Who::User(user)) => name == user,
            _ => false,
        }
    }
}

impl FromStr for Subject {
    type Err = ParseSubjectError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            ANYONE => Ok(Self::Anyone),
            ANONYMOUS => Ok(Self::Anonymous),
            _ => match name_fault(text) {
                None => Ok(Self::User(text.into())),
                Some(reason) => {
                    let text = text.to_owned();
                    Err(ParseSubjectError { text, reason })
                }
            },
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anyone => ANYONE,
            Self::Anonymous => ANONYMOUS,
            Self::User(name) => name,
        })
    }
}

/// One `[[access.rule]]`. Of the lists that say where it holds an empty one says everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What the operator knows it by, such as `[[access.rule]] 2`.
    pub name: String,
    /// Whom it is about.
    pub users: Vec<Subject>,
    /// Of our own names, those that the request came to; lower case.
    pub domains: Vec<String>,
    /// The upstreams that the repository is routed to, by name.
    pub upstreams: Vec<String>,
    /// Where the client is.
    pub networks: Vec<Network>,
    /// The repositories, as the client writes them.
    pub repositories: Vec<Pattern>,
    /// What is allowed; nothing where it is empty.
    pub actions: Vec<Action>,
}

/// Where a request came from and to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Of our names the one it came to; `None` for another name on a loopback listener.
    pub(super) domain: Option<&'a str>,
    /// The client's address; `None` where it is not known, and any network may be meant.
    pub(super) address: Option<IpAddr>,
}

impl Rule {
    /// A rule that holds everywhere.
    pub fn everywhere(name: impl Into<String>, users: Vec<Subject>, actions: Vec<Action>) -> Self {
        Self {
            name: name.into(),
            users,
            domains: Vec::new(),
            upstreams: Vec::new(),
            networks: Vec::new(),
            repositories: Vec::new(),
            actions,
        }
    }

    fn is_for_domain(&self, domain: Option<&str>) -> bool {
        self.domains.is_empty() || self.domains.iter().any(|d| Some(d.as_str()) == domain)
    }

    fn is_for_upstream(&self, upstream: &str) -> bool {
        self.upstreams.is_empty() || self.upstreams.iter().any(|name| name == upstream)
    }

    fn is_for_address(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address.filter(|_| !self.networks.is_empty()) else {
            return true;
        };
        self.networks.iter().any(|n| n.contains(address))
    }

    /// Whether the rule is about this request. What costs least is looked at first.
    fn is_about(
        &self,
        who: &Who,
        place: Place<'_>,
        upstream: &str,
        repository: &RepositoryName,
    ) -> bool {
        let (name, patterns) = (repository.as_str(), &self.repositories);
        self.users.iter().any(|subject| subject.is(who))
            && self.is_for_domain(place.domain)
            && self.is_for_upstream(upstream)
            && self.is_for_address(place.address)
            && (patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name)))
    }

    /// Whether it lets such a subject do anything at all on the domain.
    fn lets_in(&self, domain: Option<&str>, is_one: impl Fn(&Subject) -> bool) -> bool {
        !self.actions.is_empty() && self.is_for_domain(domain) && self.users.iter().any(is_one)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn texts<T: ToString>(items: &[T]) -> Vec<String> {
            items.iter().map(ToString::to_string).collect()
        }
        let narrowing = [
            ("domains", texts(&self.domains)),
            ("upstreams", texts(&self.upstreams)),
            ("networks", texts(&self.networks)),
            ("repositories", texts(&self.repositories)),
        ];
        write!(f, "{}: users = {:?}", self.name, texts(&self.users))?;
        for (key, values) in narrowing {
            if !values.is_empty() {
                write!(f, ", {key} = {values:?}")?;
            }
        }
        write!(f, ", actions = {:?}", texts(&self.actions))
    }
}

/// All rules, in their order.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

/// A rule that decides a question, if the client is where the rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deciding<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Whether it allows what is asked.
    pub allows: bool,
}

impl Rules {
    /// The rules in the order in which they are tried.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// The rules in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// Whether `who` may do `action` there.
    pub(super) fn allow(
        &self,
        who: &Who,
        place: Place<'_>,
        upstream: &str,
        repository: &RepositoryName,
        action: Action,
    ) -> bool {
        let mut rules = self.0.iter();
        rules
            .find(|rule| rule.is_about(who, place, upstream, repository))
            .is_some_and(|rule| rule.actions.contains(&action))
    }

    /// The rules that decide for clients wherever they are: those limited to networks before the first
    /// that is not, then that one. With none left for some network the answer there is no.
    pub fn explain(
        &self,
        who: &Who,
        domain: Option<&str>,
        upstream: &str,
        repository: &RepositoryName,
        action: Action,
    ) -> Vec<Deciding<'_>> {
        let address = None;
        let place = Place { domain, address };
        let mut deciding = Vec::new();
        for rule in &self.0 {
            if rule.is_about(who, place, upstream, repository) {
                let allows = rule.actions.contains(&action);
                deciding.push(Deciding { rule, allows });
                if rule.networks.is_empty() {
                    break;
                }
            }
        }
        deciding
    }

    /// Whether any rule allows this to anybody in an upstream.
    pub fn grant(&self, upstream: &str, action: Action) -> bool {
        let mut rules = self.0.iter();
        rules.any(|rule| rule.is_for_upstream(upstream) && rule.actions.contains(&action))
    }

    /// The first rule that gives the anonymous rights on a domain, if one does. They belong to it, since
    /// clients decide by the answer to `/v2/` whether to send credentials at all.
    pub fn admit_anonymous(&self, domain: Option<&str>) -> Option<&Rule> {
        self.admitting_anonymous(domain).next()
    }

    /// All rules that give the anonymous rights on a domain, from whichever networks.
    pub fn admitting_anonymous(&self, domain: Option<&str>) -> impl Iterator<Item = &Rule> {
        let rules = self.0.iter();
        rules.filter(move |rule| rule.lets_in(domain, |subject| *subject == Subject::Anonymous))
    }

    /// The first rule that gives those who are logged in rights on a domain, if one does.
    pub fn admit_users(&self, domain: Option<&str>) -> Option<&Rule> {
        let mut rules = self.0.iter();
        rules.find(|rule| rule.lets_in(domain, |subject| *subject != Subject::Anonymous))
    }

    /// Whether the anonymous from this address have rights on the domain.
    pub(super) fn admit_anonymous_from(&self, place: Place<'_>) -> bool {
        let mut rules = self.admitting_anonymous(place.domain);
        rules.any(|rule| rule.is_for_address(place.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list<T: FromStr>(texts: &[&str]) -> Vec<T>
    where
        T::Err: fmt::Debug,
    {
        texts.iter().map(|t| t.parse().expect("valid")).collect()
    }

    fn rule(users: &[&str], repositories: &[&str], actions: &[&str]) -> Rule {
        Rule {
            repositories: list(repositories),
            ..Rule::everywhere("a rule", list(users), list(actions))
        }
    }

    fn user(name: &str) -> Who {
        Who::User(name.into())
    }

    fn place(domain: &'static str, address: &str) -> Place<'static> {
        Place {
            domain: Some(domain),
            address: Some(address.parse().expect("an address")),
        }
    }

    fn allows(rules: &Rules, who: &Who, repository: &str, action: Action) -> bool {
        let repository = repository.parse().expect("a name");
        rules.allow(
            who,
            place("d.test", "192.0.2.1"),
            "prod",
            &repository,
            action,
        )
    }

    #[test]
    fn the_first_rule_that_is_about_a_request_decides_it() {
        let rules = Rules::new(vec![
            rule(&["*"], &["team/secret"], &[]),
            rule(&["ci"], &["team/**"], &["pull", "push"]),
            rule(&["*"], &["team/**"], &["pull"]),
            rule(&["ci"], &["team/**"], &["delete"]),
        ]);
        let (ci, eve) = (user("ci"), user("eve"));
        assert!(allows(&rules, &ci, "team/app", Action::Push));
        assert!(allows(&rules, &eve, "team/app", Action::Pull));
        assert!(!allows(&rules, &eve, "team/app", Action::Push));
        assert!(!allows(&rules, &ci, "team/app", Action::Delete), "too late");
        assert!(!allows(&rules, &ci, "team/secret", Action::Pull));
        assert!(!allows(&rules, &ci, "other", Action::Pull), "no match");
        assert!(!allows(&rules, &Who::Anonymous, "team/app", Action::Pull));
    }

    #[test]
    fn s06_one_action_is_no_other() {
        for given in ["pull", "push", "delete"] {
            let rules = Rules::new(vec![rule(&["ci"], &[], &[given])]);
            for action in [Action::Pull, Action::Push, Action::Delete] {
                let is_given = action.to_string() == given;
                assert_eq!(allows(&rules, &user("ci"), "a", action), is_given);
            }
        }
    }

    #[test]
    fn s07_names_are_whole_and_keep_their_case() {
        let rules = Rules::new(vec![rule(&["team"], &["team", "group/*"], &["pull"])]);
        let may = |who: &str, name: &str| allows(&rules, &user(who), name, Action::Pull);
        assert!(may("team", "team") && may("team", "group/a"));
        for name in [
            "team-evil",
            "team/x",
            "teams",
            "group",
            "group/a/b",
            "x/team",
        ] {
            assert!(!may("team", name), "{name}");
        }
        for who in ["Team", "team-evil", "tea", "team ", "@anonymous", "*"] {
            assert!(!may(who, "team"), "{who}");
        }
    }

    #[test]
    fn a_rule_holds_only_where_it_says() {
        let mut narrow = rule(&["*"], &[], &["pull"]);
        narrow.domains = vec!["d.test".to_owned()];
        narrow.upstreams = vec!["prod".to_owned()];
        narrow.networks = list(&["192.0.2.0/24"]);
        let rules = Rules::new(vec![narrow]);
        let name = "a".parse().expect("a name");
        for (domain, address, upstream, is_allowed) in [
            ("d.test", "192.0.2.9", "prod", true),
            ("d.test", "::ffff:192.0.2.9", "prod", true),
            ("e.test", "192.0.2.9", "prod", false),
            ("d.test", "192.0.3.9", "prod", false),
            ("d.test", "192.0.2.9", "other", false),
        ] {
            let place = place(domain, address);
            let may = rules.allow(&user("u"), place, upstream, &name, Action::Pull);
            assert_eq!(may, is_allowed, "{domain} {address} {upstream}");
        }
        let elsewhere = Place {
            domain: None,
            ..place("", "192.0.2.9")
        };
        assert!(!rules.allow(&user("u"), elsewhere, "prod", &name, Action::Pull));
    }

    #[test]
    fn the_anonymous_belong_to_a_domain() {
        let mut open = rule(&["@anonymous"], &[], &["pull"]);
        open.domains = vec!["open.test".to_owned()];
        open.networks = list(&["loopback"]);
        let mut nothing = rule(&["@anonymous"], &[], &[]);
        nothing.domains = vec!["closed.test".to_owned()];
        let mut closed = rule(&["*"], &[], &["pull"]);
        closed.domains = vec!["closed.test".to_owned()];
        let rules = Rules::new(vec![nothing, open, closed]);
        for (domain, anonymous, users) in [
            (Some("open.test"), true, false),
            (Some("closed.test"), false, true),
            (None, false, false),
        ] {
            assert_eq!(
                rules.admit_anonymous(domain).is_some(),
                anonymous,
                "{domain:?}"
            );
            assert_eq!(rules.admit_users(domain).is_some(), users, "{domain:?}");
        }
        assert!(rules.admit_anonymous_from(place("open.test", "127.0.0.1")));
        assert!(!rules.admit_anonymous_from(place("open.test", "192.0.2.1")));
    }

    #[test]
    fn an_explanation_names_what_depends_on_the_network() {
        let mut near = rule(&["ci"], &[], &["pull", "push"]);
        near.networks = list(&["private"]);
        let rules = Rules::new(vec![
            rule(&["eve"], &[], &["pull"]),
            near,
            rule(&["ci"], &["a"], &["pull"]),
            rule(&["*"], &[], &["push"]),
        ]);
        let name = "a".parse().expect("a name");
        let deciding = rules.explain(&user("ci"), None, "prod", &name, Action::Push);
        let allows: Vec<bool> = deciding.iter().map(|d| d.allows).collect();
        assert_eq!(allows, [true, false]);
        assert_eq!(
            deciding[0].rule.to_string(),
            r#"a rule: users = ["ci"], networks = ["private"], actions = ["pull", "push"]"#
        );
        let nobody = rules.explain(&Who::Anonymous, None, "prod", &name, Action::Pull);
        assert!(nobody.is_empty());
    }

    #[test]
    fn a_subject_is_a_star_the_anonymous_or_a_whole_name() {
        for text in [
            "*",
            "@anonymous",
            "ci",
            "node.example",
            "CN with spaces",
            "spiffe://td/node",
        ] {
            let subject: Subject = text.parse().expect("a subject");
            assert_eq!(subject.to_string(), text);
        }
        for text in ["", "AWS", "@all", "ci*", "a\0"] {
            assert!(text.parse::<Subject>().is_err(), "{text:?}");
        }
    }
}
