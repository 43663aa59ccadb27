//! Who is asking, and what they may do.
//!
//! Invariant: a [`Right`] exists only where [`Access::decide`] made it, so code that wants one
//! cannot have skipped the decision. Closed by default: without a rule nobody may do anything.
//!
//! | File | For |
//! | --- | --- |
//! | `basic` | the user and password in an `Authorization` |
//! | `login` | what a connection remembers of a login, so that its next request costs none |
//! | `users`, `passwords` | the user file, and whether a password is the user's |
//! | `networks`, `per_client` | where a client is, and how much each has of something |
//! | `turns` | turns at something, of which no client has more than half |
//! | `rules` | what the operator allows |
//! | `tokens` | logins by ECR tokens, and ECR's word on what they may do |
//! | `decide` | the decision, the only maker of a right |
//!
//! This module knows nothing of requests, upstreams or the cache. Passwords never appear in a
//! `Debug`, a `Display` or an error made here.

mod basic;
mod decide;
mod login;
mod networks;
mod passwords;
mod per_client;
mod rules;
mod tokens;
mod turns;
mod users;

#[cfg(any(test, fuzzing))]
pub use basic::fuzz_authorization;
pub use decide::{Action, Content, Denied, ParseActionError, Right, Wanted, Who};
pub use login::Login;
pub use networks::{Network, ParseNetworkError};
pub use passwords::AccessMetrics;
pub use per_client::{Held, PerClient, one_client};
pub use rules::{ANONYMOUS, Deciding, ParseSubjectError, Rule, Rules, Subject};
pub use tokens::{ClientToken, Question, Verdict, Verdicts};
pub use turns::{Turn, Turns};
pub use users::{
    ParseUsersError, RESERVED_NAME, ReadUsersError, UserFault, Users, check_user_name,
};

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use http::header::GetAll;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::oci::RepositoryName;
use basic::Credentials;
use passwords::Passwords;
use rules::Place;
use tokens::{Questions, Tokens};

/// The one challenge ever sent: it names no host, no realm of an upstream, no user.
const CHALLENGE: &str = "Basic realm=\"ecr-proxy\"";

/// Whom [`Access`] lets in.
#[derive(Clone, Default)]
pub struct AccessOptions {
    /// Named users and their password hashes.
    pub users: Users,
    /// What they and the anonymous may do.
    ///
    /// On one domain not both should have rights: clients decide by the answer to `/v2/` whether to
    /// send credentials at all, so the configuration refuses that.
    pub rules: Rules,
    /// Who is asked about ECR tokens, where these are taken as logins.
    pub verdicts: Option<Arc<dyn Verdicts>>,
    /// What is counted.
    pub metrics: AccessMetrics,
}

/// The decisions about callers. Cloning is cheap.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    challenge: HeaderValue,
    rules: Rules,
    passwords: Passwords,
    tokens: Option<Arc<Tokens>>,
    asked: Questions,
}

/// What a request shows of who sent it.
#[derive(Debug)]
pub struct Shown<'a> {
    /// All its `Authorization` values.
    pub authorization: GetAll<'a, HeaderValue>,
    /// Whom the client's certificate names, where it showed a valid one.
    pub certificate: Option<&'a Certified>,
    /// Who logged in before on the connection that it came by.
    pub login: &'a Login,
    /// The client's address.
    pub address: IpAddr,
    /// Of our names the one it came to; `None` for another name on a loopback listener.
    pub domain: Option<&'a str>,
}

/// What a client certificate says of who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certified {
    /// A user of this name. Names that could be taken for something else are nobody's.
    User(Arc<str>),
    /// Nobody: it has no such name, or has ended since it was shown.
    Nobody,
}

impl Certified {
    fn who(&self) -> Option<Who> {
        match self {
            Self::User(name) => {
                let subject = name.parse::<Subject>().ok()?;
                subject
                    .name()
                    .is_some()
                    .then(|| Who::User(Arc::clone(name)))
            }
            Self::Nobody => None,
        }
    }
}

/// Somebody who was let in, and where.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    who: Who,
    /// What shows it, where that is an ECR token.
    token: Option<ClientToken>,
    address: IpAddr,
    domain: Option<&'a str>,
}

impl Caller<'_> {
    /// Who it is.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// What shows who it is, where that is an ECR token.
    pub fn token(&self) -> Option<&ClientToken> {
        self.token.as_ref()
    }

    fn place(&self) -> Place<'_> {
        Place {
            domain: self.domain,
            address: Some(self.address),
        }
    }
}

impl Access {
    /// Builds the decisions from what the operator allowed.
    ///
    /// # Errors
    /// The operating system's random source failed; without it the memory of verdicts would be
    /// guessable.
    pub fn new(options: AccessOptions) -> std::io::Result<Self> {
        let AccessOptions {
            users,
            rules,
            verdicts,
            metrics,
        } = options;
        let asked = metrics.token_questions.clone();
        let tokens = tokens(verdicts, &asked)?;
        Ok(Self {
            inner: Arc::new(Inner {
                challenge: HeaderValue::from_static(CHALLENGE),
                rules,
                passwords: Passwords::new(users, unguessable()?, metrics),
                tokens,
                asked,
            }),
        })
    }

    /// The same decisions about other users and by other rules. What is remembered of passwords stays, and
    /// so do the bounds of checking them, which are those of all together.
    #[must_use]
    pub fn with(&self, users: Users, rules: Rules) -> Self {
        Self {
            inner: Arc::new(Inner {
                challenge: self.inner.challenge.clone(),
                rules,
                passwords: self.inner.passwords.with_users(users),
                tokens: self.inner.tokens.clone(),
                asked: self.inner.asked.clone(),
            }),
        }
    }

    /// The same decisions, where `verdicts` are asked about ECR tokens from now on, or none are taken without.
    /// What others said is forgotten.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_verdicts(&self, verdicts: Option<Arc<dyn Verdicts>>) -> std::io::Result<Self> {
        let inner = &self.inner;
        Ok(Self {
            inner: Arc::new(Inner {
                challenge: inner.challenge.clone(),
                rules: inner.rules.clone(),
                passwords: inner.passwords.with_users(self.users().clone()),
                tokens: tokens(verdicts, &inner.asked)?,
                asked: inner.asked.clone(),
            }),
        })
    }

    /// The same decisions about other users; `None` if they are the same.
    pub fn with_users(&self, users: Users) -> Option<Self> {
        let is_same = users == *self.users();
        (!is_same).then(|| self.with(users, self.inner.rules.clone()))
    }

    /// The named users.
    pub fn users(&self) -> &Users {
        self.inner.passwords.users()
    }

    /// The `WWW-Authenticate` value of every 401.
    pub fn challenge(&self) -> &HeaderValue {
        &self.inner.challenge
    }

    /// Tells who is asking.
    ///
    /// On a domain that admits the anonymous well-formed credentials are ignored: docker goes on
    /// sending a login that it once stored for this name, and refusing it would lock out exactly the
    /// clients that need none. Malformed ones are refused in either case. Elsewhere a client certificate
    /// decides, whatever credentials are beside it.
    ///
    /// # Errors
    /// [`Denied::BadRequest`] for more than one `Authorization`, [`Denied::Unauthenticated`] for
    /// absent, malformed or wrong credentials or an address outside the anonymous networks,
    /// [`Denied::Busy`] when too many passwords wait to be checked or the client brought too many bad
    /// tokens, [`Denied::Undecided`] when ECR cannot be asked about a token.
    ///
    /// # Cancel safety
    /// Safe: a check already running on the blocking pool ends there.
    pub async fn identify<'a>(&self, shown: Shown<'a>) -> Result<Caller<'a>, Denied> {
        let mut values = shown.authorization.iter();
        let value = values.next();
        if values.next().is_some() {
            return Err(Denied::BadRequest);
        }
        // What was let in before is well-formed.
        let known = value.and_then(|value| shown.login.of(value, &self.inner));
        let credentials = value
            .filter(|_| known.is_none())
            .map(Credentials::parse)
            .transpose()
            .map_err(|_| Denied::Unauthenticated)?;
        let caller = |who| Caller {
            who,
            token: None,
            address: shown.address,
            domain: shown.domain,
        };
        let anonymous = caller(Who::Anonymous);
        if self.inner.rules.admit_anonymous(shown.domain).is_some() {
            let is_near = self.inner.rules.admit_anonymous_from(anonymous.place());
            return is_near.then_some(anonymous).ok_or(Denied::Unauthenticated);
        }
        if let Some(certified) = shown.certificate {
            return certified.who().map(caller).ok_or(Denied::Unauthenticated);
        }
        if let Some(user) = known {
            return Ok(caller(Who::User(user)));
        }
        let credentials = credentials.ok_or(Denied::Unauthenticated)?;
        let user = credentials.user.clone();
        if let Some(tokens) = self
            .inner
            .tokens
            .as_ref()
            .filter(|_| *user == *RESERVED_NAME)
        {
            let token = Box::pin(tokens.identify(credentials.password, shown.address)).await?;
            return Ok(Caller {
                token: Some(token),
                ..caller(Who::TokenBearer)
            });
        }
        // In memory of its own, which a login that is known needs none of.
        if Box::pin(self.inner.passwords.check(credentials, shown.address)).await? {
            if let Some(value) = value {
                shown.login.note(value, &self.inner, &user);
            }
            Ok(caller(Who::User(user)))
        } else {
            Err(Denied::Unauthenticated)
        }
    }

    /// Decides whether somebody may do what is wanted: by the rules, or by what ECR says of the token that
    /// shows who it is.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] to the anonymous, so that a client which has credentials
    /// sends them; [`Denied::Forbidden`] to everybody else. For the bearer of a token also
    /// [`Denied::Unauthenticated`] if it is not good any more, [`Denied::Undecided`] and [`Denied::Busy`].
    ///
    /// # Cancel safety
    /// Safe: whoever else waits for the same answer of ECR has it asked on.
    pub async fn decide(&self, caller: &Caller<'_>, wanted: &Wanted<'_>) -> Result<Right, Denied> {
        let Inner { rules, tokens, .. } = &*self.inner;
        decide::decide(rules, tokens.as_deref(), caller, wanted).await
    }

    /// Whether the rules let somebody pull a repository of this name, and so know that it is there. About
    /// the bearer of a token they say nothing, and this is false.
    pub fn may_pull(
        &self,
        caller: &Caller<'_>,
        upstream: &str,
        repository: &RepositoryName,
    ) -> bool {
        let (who, place) = (caller.who(), caller.place());
        let rules = &self.inner.rules;
        rules.allow(who, place, upstream, repository, Action::Pull)
    }
}

fn tokens(
    verdicts: Option<Arc<dyn Verdicts>>,
    asked: &Questions,
) -> std::io::Result<Option<Arc<Tokens>>> {
    let new = |verdicts| {
        Ok(Arc::new(Tokens::new(
            verdicts,
            unguessable()?,
            asked.clone(),
        )))
    };
    verdicts.map(new).transpose()
}

/// Bytes that nobody can guess: `N` of them, at most 256.
///
/// # Errors
/// The operating system's random source failed.
pub fn unguessable<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // A request of at most 256 bytes is never cut short once the pool is initialised.
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if filled != N {
        return Err(std::io::Error::other("the random source gave too little"));
    }
    Ok(bytes)
}

impl fmt::Debug for AccessOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessOptions")
            .field("users", &self.users)
            .field("rules", &self.rules)
            .field("takes_tokens", &self.verdicts.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("rules", &self.inner.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderMap;
    use http::header::AUTHORIZATION;

    const NEAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

    fn may_pull(subject: Subject, networks: &[Network]) -> Rules {
        Rules::new(vec![Rule {
            networks: networks.to_vec(),
            ..Rule::everywhere("a rule", vec![subject], vec![Action::Pull])
        }])
    }

    fn with_users() -> Access {
        let line = format!("ci:{}\n", bcrypt::hash("secret", 4).expect("hash"));
        Access::new(AccessOptions {
            users: Users::parse(&line).expect("users"),
            rules: may_pull(Subject::Anyone, &[]),
            ..AccessOptions::default()
        })
        .expect("access")
    }

    fn with_anonymous() -> Access {
        Access::new(AccessOptions {
            users: Users::default(),
            rules: may_pull(Subject::Anonymous, &[Network::Loopback]),
            ..AccessOptions::default()
        })
        .expect("access")
    }

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(
                AUTHORIZATION,
                HeaderValue::from_bytes(value).expect("value"),
            );
        }
        map
    }

    fn basic(pair: &[u8]) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(pair)).into_bytes()
    }

    async fn ask(access: &Access, values: &[&[u8]], peer: IpAddr) -> Result<Who, Denied> {
        let map = headers(values);
        let shown = Shown {
            authorization: map.get_all(AUTHORIZATION),
            certificate: None,
            login: &Login::default(),
            address: peer,
            domain: None,
        };
        access.identify(shown).await.map(|caller| caller.who)
    }

    #[tokio::test]
    async fn s04_a_connection_forgets_a_login_with_the_users_that_it_was_checked_by() {
        let login = Login::default();
        let ask = async |access: &Access, value: &[u8]| {
            let map = headers(&[value]);
            let shown = Shown {
                authorization: map.get_all(AUTHORIZATION),
                certificate: None,
                login: &login,
                address: FAR,
                domain: None,
            };
            access.identify(shown).await.map(|caller| caller.who)
        };
        let ci = Ok(Who::User("ci".into()));
        let access = with_users();
        let (right, wrong) = (basic(b"ci:secret"), basic(b"ci:secreT"));
        for _ in 0..2 {
            assert_eq!(ask(&access, &right).await, ci);
            assert_eq!(ask(&access, &wrong).await, Err(Denied::Unauthenticated));
        }
        let line = format!("ci:{}\n", bcrypt::hash("changed", 4).expect("hash"));
        let users = Users::parse(&line).expect("users");
        let changed = access.with_users(users).expect("others");
        assert_eq!(ask(&changed, &right).await, Err(Denied::Unauthenticated));
        assert_eq!(ask(&changed, &basic(b"ci:changed")).await, ci);
        // Who still asks the others is told what they know.
        assert_eq!(ask(&access, &right).await, ci);
        let printed = format!("{login:?}");
        let encoded = String::from_utf8_lossy(&right[6..]).into_owned();
        assert!(!printed.contains(&encoded), "{printed}");
    }

    #[tokio::test]
    async fn nobody_is_let_in_by_default() {
        let access = Access::new(AccessOptions::default()).expect("access");
        assert_eq!(ask(&access, &[], NEAR).await, Err(Denied::Unauthenticated));
        let login = basic(b"ci:secret");
        assert_eq!(
            ask(&access, &[&login], NEAR).await,
            Err(Denied::Unauthenticated)
        );
    }

    #[tokio::test]
    async fn a_user_is_known_by_the_right_password_only() {
        let access = with_users();
        let right = basic(b"ci:secret");
        assert_eq!(
            ask(&access, &[&right], FAR).await,
            Ok(Who::User("ci".into()))
        );
        for wrong in [&b"ci:Secret"[..], b"ci:secret ", b"CI:secret", b"ic:secret"] {
            let wrong = basic(wrong);
            assert_eq!(
                ask(&access, &[&wrong], FAR).await,
                Err(Denied::Unauthenticated)
            );
        }
        assert_eq!(ask(&access, &[], FAR).await, Err(Denied::Unauthenticated));
    }

    #[tokio::test]
    async fn anonymous_callers_are_let_in_from_their_networks_only() {
        let access = with_anonymous();
        assert_eq!(ask(&access, &[], NEAR).await, Ok(Who::Anonymous));
        assert_eq!(ask(&access, &[], FAR).await, Err(Denied::Unauthenticated));
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("address");
        assert_eq!(ask(&access, &[], mapped).await, Ok(Who::Anonymous));
        let stale = basic(b"someone:stale");
        assert_eq!(ask(&access, &[&stale], NEAR).await, Ok(Who::Anonymous));
    }

    #[tokio::test]
    async fn s21_bad_authorization_is_never_let_in_and_two_are_a_bad_request() {
        let long = vec![b'A'; 64 * 1024];
        let bad: Vec<Vec<u8>> = vec![
            b"Basic".to_vec(),
            b"Basic ".to_vec(),
            b"Basic !!!".to_vec(),
            b"Bearer abc".to_vec(),
            b"Basic\xff".to_vec(),
            basic(b"no-colon"),
            basic(b":"),
            basic(b"ci:"),
            basic(b":secret"),
            basic(b"ci:\0secret"),
            basic(b"ci\0:secret"),
            basic(b"\xff\xfe:secret"),
            [b"Basic ".to_vec(), long].concat(),
        ];
        let right = basic(b"ci:secret");
        for access in [with_users(), with_anonymous()] {
            for value in &bad {
                assert_eq!(
                    ask(&access, &[value], NEAR).await,
                    Err(Denied::Unauthenticated)
                );
            }
            assert_eq!(
                ask(&access, &[&right, &right], NEAR).await,
                Err(Denied::BadRequest)
            );
        }
    }

    #[tokio::test]
    async fn a_client_certificate_decides_who_is_asking() {
        let login = headers(&[&basic(b"ci:secret")]);
        let (users, anonymous) = (with_users(), with_anonymous());
        let ask = async |access: &Access, certified: &Certified| {
            let shown = Shown {
                authorization: login.get_all(AUTHORIZATION),
                certificate: Some(certified),
                login: &Login::default(),
                address: NEAR,
                domain: None,
            };
            access.identify(shown).await.map(|caller| caller.who)
        };
        let named = |name: &str| Certified::User(name.into());
        assert_eq!(
            ask(&users, &named("node")).await,
            Ok(Who::User("node".into()))
        );
        for name in ["", "*", "@anonymous", "AWS", "a\nb"] {
            let answer = ask(&users, &named(name)).await;
            assert_eq!(answer, Err(Denied::Unauthenticated), "{name:?}");
        }
        let nobody = ask(&users, &Certified::Nobody).await;
        assert_eq!(nobody, Err(Denied::Unauthenticated));
        assert_eq!(ask(&anonymous, &named("node")).await, Ok(Who::Anonymous));
    }

    #[tokio::test]
    async fn a_right_to_pull_is_given_and_no_other() {
        let repository: RepositoryName = "team/app".parse().expect("name");
        let login = headers(&[&basic(b"ci:secret")]);
        for (access, refusal) in [
            (with_users(), Denied::Forbidden),
            (with_anonymous(), Denied::Unauthenticated),
        ] {
            let shown = Shown {
                authorization: login.get_all(AUTHORIZATION),
                certificate: None,
                login: &Login::default(),
                address: NEAR,
                domain: Some("d.test"),
            };
            let caller = access.identify(shown).await.expect("somebody");
            let wanted = |action| Wanted {
                repository: &repository,
                upstream: "prod",
                repo: None,
                action,
                content: Content::Uncached,
            };
            let right = access.decide(&caller, &wanted(Action::Pull)).await;
            let right = right.expect("pull");
            assert_eq!(right.repository(), &repository);
            assert_eq!(right.who(), caller.who());
            assert_eq!(right.action(), Action::Pull);
            for action in [Action::Push, Action::Delete] {
                let refused = access.decide(&caller, &wanted(action)).await;
                assert_eq!(refused, Err(refusal));
            }
        }
    }
}
