//! Tokens of a Bearer token service (distribution `docs/spec/auth/token.md`).
//!
//! Invariant: a realm is asked only if it speaks for the registry that named it. A challenge is text
//! from the network; without this rule it would choose where our password goes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::Instant;

use super::client::{Client, Outgoing};
use super::error::{OddToken, RefusedRealm, TokenError, UpstreamError, Wrong};
use super::exchange::is_redirect;
use super::metrics::Kind;
use super::origin::{Origin, Reach};
use super::portal::is_page;
use super::token::{IssuedToken, Token, TokenSource};

/// The specification's default.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens that name many rights grow to some tens of kilobytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a token service may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Judges realms for one registry.
#[derive(Clone, Debug)]
pub(super) struct Realms {
    /// The registry by its own name.
    pub(super) registry: Origin,
    /// Where it is reached; the same unless an endpoint is configured.
    pub(super) home: Origin,
    /// Other hosts known to speak for this registry.
    pub(super) known: &'static [&'static str],
}

/// Where to ask for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm {
    target: Uri,
    /// The registry's own name, when it is reached by another.
    host: Option<HeaderValue>,
}

impl Realms {
    /// The place to ask that `realm` of a challenge stands for.
    ///
    /// Allowed are the registry itself, a parent domain of at least two labels (`gitlab.com` for
    /// `registry.gitlab.com`), and hosts known to belong to it; over TLS, or plain from this host to
    /// itself. Siblings are not: on shared domains they are somebody else's.
    pub(super) fn judge(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<Realm, RefusedRealm> {
        let mut url = url::Url::parse(realm).map_err(|_| RefusedRealm::NotAnAddress)?;
        url.set_fragment(None);
        let parameters = [("service", service), ("scope", scope)];
        if parameters.iter().any(|(_, value)| value.is_some()) {
            let mut query = url.query_pairs_mut();
            for (name, value) in parameters {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
        }
        let target: Uri = url
            .as_str()
            .parse()
            .map_err(|_| RefusedRealm::NotAnAddress)?;
        let origin = Origin::of(&target).ok_or(RefusedRealm::NotAnAddress)?;
        if origin == self.home {
            return Ok(Realm { target, host: None });
        }
        if origin == self.registry {
            return self.through_home(&target);
        }
        let both_here = origin.reach() == Reach::Loopback && self.home.reach() == Reach::Loopback;
        if !origin.is_tls() && !both_here {
            return Err(RefusedRealm::NotHttps);
        }
        let is_own = [&self.registry, &self.home]
            .iter()
            .any(|own| own.host() == origin.host() && (both_here || origin.has_default_port()));
        let is_known = origin.has_default_port()
            && (self.known.contains(&origin.host())
                || is_parent(origin.host(), self.registry.host()));
        if is_own || is_known {
            Ok(Realm { target, host: None })
        } else {
            Err(RefusedRealm::Host)
        }
    }

    /// The same request, but connected to where the registry is reached.
    fn through_home(&self, target: &Uri) -> Result<Realm, RefusedRealm> {
        let path = target.path_and_query().map_or("/", |path| path.as_str());
        Ok(Realm {
            target: format!("{}{path}", self.home)
                .parse()
                .map_err(|_| RefusedRealm::NotAnAddress)?,
            host: target
                .authority()
                .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()),
        })
    }
}

/// True if `parent` has at least two labels and `host` lies under it.
fn is_parent(parent: &str, host: &str) -> bool {
    parent.contains('.')
        && parent.parse::<std::net::IpAddr>().is_err()
        && host
            .strip_suffix(parent)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// Asks one realm for tokens of one scope.
pub(super) struct BearerTokens {
    pub(super) client: Arc<Client>,
    pub(super) realm: Realm,
    /// The value of `Authorization` for the realm; anonymous without.
    pub(super) login: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
}

impl BearerTokens {
    async fn fetch_token(&self) -> Result<IssuedToken, TokenError> {
        let Realm { target, host } = &self.realm;
        let origin = Origin::of(target).ok_or(TokenError::Failing)?;
        let login = self
            .login
            .clone()
            .map(|login| Token::new(login, origin, Duration::MAX));
        let outgoing = Outgoing {
            host: host.clone(),
            token: login.as_ref(),
            ..Outgoing::get(Kind::Token, target.clone())
        };
        let answer = self
            .client
            .send(&outgoing, Instant::now() + CONNECT_TIMEOUT)
            .await
            .map_err(|error| explain(&error))?;
        match answer.status() {
            status if is_redirect(status) => return Err(TokenError::Intercepted),
            _ if is_page(answer.headers()) => return Err(TokenError::Intercepted),
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(TokenError::Denied),
            StatusCode::TOO_MANY_REQUESTS => return Err(TokenError::Throttled),
            status if status.is_server_error() => return Err(TokenError::Failing),
            _ => return Err(TokenError::Odd(OddToken::Missing)),
        }
        let bytes = answer
            .read(MAX_ANSWER)
            .await
            .map_err(|error| explain(&error))?;
        read(&bytes)
    }
}

impl TokenSource for BearerTokens {
    fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>> {
        Box::pin(self.fetch_token())
    }
}

fn read(bytes: &[u8]) -> Result<IssuedToken, TokenError> {
    let answer: TokenAnswer =
        serde_json::from_slice(bytes).map_err(|_| TokenError::Odd(OddToken::Malformed))?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or(TokenError::Odd(OddToken::Missing))?;
    let life = match answer.expires_in {
        None => DEFAULT_LIFE,
        Some(seconds) => u64::try_from(seconds)
            .map(Duration::from_secs)
            .map_err(|_| TokenError::Odd(OddToken::Expired))?,
    };
    let authorization = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| TokenError::Odd(OddToken::Malformed))?;
    Ok(IssuedToken {
        authorization,
        life,
    })
}

fn explain(error: &UpstreamError) -> TokenError {
    match error {
        UpstreamError::TooSlow(_) => TokenError::TooSlow,
        UpstreamError::Unreachable(_) | UpstreamError::Truncated => TokenError::Unreachable,
        UpstreamError::Wrong(Wrong::BadTls) => TokenError::Intercepted,
        UpstreamError::Wrong(_) => TokenError::Odd(OddToken::Malformed),
        UpstreamError::Absent(_)
        | UpstreamError::Refused
        | UpstreamError::Unsupported
        | UpstreamError::BadCredentials
        | UpstreamError::NoToken(_)
        | UpstreamError::Throttled { .. }
        | UpstreamError::Failing { .. }
        | UpstreamError::TooMuch
        | UpstreamError::ContentChanged
        | UpstreamError::IgnoredRange
        | UpstreamError::Told(_)
        | UpstreamError::Away(_)
        | UpstreamError::Offline
        | UpstreamError::Unconfigured => TokenError::Failing,
    }
}

/// Any bytes as the answer of a token service.
#[cfg(any(test, fuzzing))]
pub fn fuzz_token_reply(data: &[u8]) {
    if let Ok(token) = read(data) {
        let value = token.authorization.as_bytes();
        assert!(value.starts_with(b"Bearer ") && value.len() > "Bearer ".len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realms(registry: &str, home: &str) -> Realms {
        Realms {
            registry: Origin::of(&registry.parse().unwrap()).unwrap(),
            home: Origin::of(&home.parse().unwrap()).unwrap(),
            known: &["auth.docker.io"],
        }
    }

    #[test]
    fn s10_realms_speak_for_their_registry_only() {
        let own = "https://registry.example.org";
        let realms = realms(own, own);
        let judge = |realm: &str| realms.judge(realm, None, None).map(drop);
        for good in [
            "https://registry.example.org/token",
            "https://example.org/jwt/auth",
            "https://auth.docker.io/token",
        ] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            ("https://evil.example/token", RefusedRealm::Host),
            ("https://evil.example.org/token", RefusedRealm::Host),
            ("https://org/token", RefusedRealm::Host),
            ("https://xregistry.example.org/token", RefusedRealm::Host),
            ("https://sub.registry.example.org/token", RefusedRealm::Host),
            (
                "https://registry.example.org:8443/token",
                RefusedRealm::Host,
            ),
            ("http://registry.example.org/token", RefusedRealm::NotHttps),
            ("http://169.254.169.254/token", RefusedRealm::NotHttps),
            ("https://169.254.169.254/token", RefusedRealm::Host),
            ("http://127.0.0.1/token", RefusedRealm::NotHttps),
            ("https://127.0.0.1/token", RefusedRealm::Host),
            (
                "https://user:p@registry.example.org/token",
                RefusedRealm::NotAnAddress,
            ),
            ("/token", RefusedRealm::NotAnAddress),
            ("", RefusedRealm::NotAnAddress),
        ] {
            assert_eq!(judge(bad), Err(reason), "{bad}");
        }
    }

    #[test]
    fn a_realm_at_the_registry_is_reached_through_its_endpoint() {
        let realms = realms("https://registry.example.org", "https://vpce.example:8443");
        let realm = realms
            .judge(
                "https://registry.example.org/token?a=b",
                Some("s v"),
                Some("repository:x:pull"),
            )
            .unwrap();
        assert_eq!(
            realm.target.to_string(),
            "https://vpce.example:8443/token?a=b&service=s+v&scope=repository%3Ax%3Apull"
        );
        assert_eq!(realm.host.unwrap(), "registry.example.org");
    }

    #[test]
    fn plain_http_is_for_this_host_alone() {
        let realms = realms("https://registry.example.org", "http://127.0.0.1:5000");
        assert!(
            realms
                .judge("http://127.0.0.1:5001/auth", None, None)
                .is_ok()
        );
        let refused = realms.judge("http://127.0.0.2:5001/auth", None, None);
        assert_eq!(refused, Err(RefusedRealm::Host));
    }

    #[test]
    fn u27_odd_answers_of_a_token_service() {
        let life = |json: &str| read(json.as_bytes()).map(|issued| issued.life.as_secs());
        assert_eq!(life(r#"{"token":"a","expires_in":300}"#), Ok(300));
        assert_eq!(life(r#"{"access_token":"a"}"#), Ok(60));
        for (json, odd) in [
            ("{}", OddToken::Missing),
            (r#"{"token":""}"#, OddToken::Missing),
            ("<html>", OddToken::Malformed),
            (r#"{"token":"a\nb"}"#, OddToken::Malformed),
            (r#"{"token":"a","expires_in":-5}"#, OddToken::Expired),
        ] {
            assert_eq!(life(json), Err(TokenError::Odd(odd)), "{json}");
        }
    }
}
