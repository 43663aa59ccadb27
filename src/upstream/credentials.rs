//! What to send as credentials, and what to do when it is refused: one rule for registries with a token
//! of their own making (ECR), one for those that answer with a challenge (Basic or Bearer).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::oci::header::Challenge;

use super::bearer::{BearerTokens, Realm, Realms};
use super::client::Client;
use super::error::{TokenError, UpstreamError, Wrong};
use super::metrics::Meter;
use super::secret::Secret;
use super::token::{Refresher, Token, TokenStatus};

/// Scopes whose way to log in is remembered; one more is one more 401.
const MAX_SCOPES: u64 = 4096;
/// A password does not expire; its wrapper has to name something.
const PASSWORD_LIFE: Duration = Duration::MAX;

/// What a token has to be good for: a repository's name, or nothing in particular.
pub(super) type Scope = str;

/// How an upstream is logged in to.
pub(super) enum Credentials {
    /// One token for everything, sent unasked.
    Ecr(Refresher),
    /// Nothing until the registry asks, then what it asks for.
    Challenged(Box<Challenged>),
}

/// What an upstream's answer says about the credentials sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They expired, were revoked, or are missing.
    Renew,
    /// They are good, the identity behind them may not do this.
    Final,
}

/// Reads an answer with one of the statuses that concern credentials; `None` for others.
pub(super) fn verdict(status: StatusCode, body: &[u8], sent: bool) -> Option<Verdict> {
    match status {
        StatusCode::UNAUTHORIZED => Some(Verdict::Renew),
        StatusCode::FORBIDDEN if says_expired(body) => Some(Verdict::Renew),
        StatusCode::FORBIDDEN => Some(Verdict::Final),
        // ECR Public answers so to an expired token, without a challenge.
        StatusCode::BAD_REQUEST if sent => Some(Verdict::Renew),
        _ => None,
    }
}

/// ECR tells an expired token from a denial only by this text, as JSON or plain, in varying case.
fn says_expired(body: &[u8]) -> bool {
    const TEXT: &[u8] = b"authorization token has expired";
    body.windows(TEXT.len())
        .any(|window| window.eq_ignore_ascii_case(TEXT))
}

impl Credentials {
    /// What to send first.
    ///
    /// # Errors
    /// [`UpstreamError::NoToken`] if there is none by `deadline`.
    pub(super) async fn current(
        &self,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, UpstreamError> {
        match self {
            Self::Ecr(refresher) => refresher.token(deadline).await.map(Some),
            Self::Challenged(challenged) => challenged.current(scope, deadline).await,
        }
        .map_err(UpstreamError::NoToken)
    }

    /// What to send instead of `sent`, which was refused with `headers`. To be asked once a request.
    ///
    /// # Errors
    /// [`UpstreamError::BadCredentials`] if there is nothing else to send,
    /// [`UpstreamError::NoToken`] if nothing is obtained by `deadline`, [`UpstreamError::Wrong`] for a
    /// challenge that leads elsewhere.
    pub(super) async fn instead_of(
        &self,
        sent: Option<&Arc<Token>>,
        headers: &HeaderMap,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Arc<Token>, UpstreamError> {
        match self {
            Self::Ecr(refresher) => match sent {
                Some(sent) => refresher.replace(sent, deadline).await,
                None => refresher.token(deadline).await,
            }
            .map_err(UpstreamError::NoToken),
            Self::Challenged(challenged) => {
                challenged.instead_of(sent, headers, scope, deadline).await
            }
        }
    }

    /// What is known about the token; for challenged registries, where tokens are many and short, only
    /// that nothing is wrong.
    pub(super) fn status(&self) -> TokenStatus {
        match self {
            Self::Ecr(refresher) => refresher.status(),
            Self::Challenged(_) => TokenStatus {
                valid_until: None,
                failing: None,
            },
        }
    }

    /// True if one token is needed for every question.
    pub(super) fn is_one_for_all(&self) -> bool {
        matches!(self, Self::Ecr(_))
    }

    /// Returns when there is a token, where there is one for everything, and until then asks for it more
    /// often than usual.
    pub(super) async fn obtain_soon(&self) {
        match self {
            Self::Ecr(refresher) => refresher.obtain_soon().await,
            Self::Challenged(_) => {}
        }
    }

    /// Renews ahead of expiry, for ever, what is worth it.
    pub(super) async fn keep_fresh(&self) {
        match self {
            Self::Ecr(refresher) => refresher.keep_fresh().await,
            Self::Challenged(_) => std::future::pending().await,
        }
    }
}

/// A user name and its password.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}

impl Login {
    fn header(&self) -> Result<HeaderValue, UpstreamError> {
        let pair = format!("{}:{}", self.username, self.password.reveal());
        let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
            .map_err(|_| UpstreamError::BadCredentials)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Answers challenges, and remembers how each scope is logged in to.
pub(super) struct Challenged {
    login: Option<Login>,
    realms: Realms,
    client: Arc<Client>,
    token_timeout: Duration,
    meter: Meter,
    ways: Cache<String, Way>,
}

#[derive(Clone)]
enum Way {
    Basic(Arc<Token>),
    Bearer(Arc<Bearer>),
}

impl Way {
    fn asks(&self, realm: &Realm) -> bool {
        matches!(self, Self::Bearer(bearer) if bearer.realm == *realm)
    }
}

struct Bearer {
    realm: Realm,
    refresher: Refresher,
}

impl Challenged {
    pub(super) fn new(
        login: Option<Login>,
        realms: Realms,
        client: Arc<Client>,
        token_timeout: Duration,
        meter: Meter,
    ) -> Self {
        Self {
            login,
            realms,
            client,
            token_timeout,
            meter,
            ways: Cache::new(MAX_SCOPES),
        }
    }

    async fn current(
        &self,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, TokenError> {
        match self.ways.get(scope) {
            None => Ok(None),
            Some(Way::Basic(token)) => Ok(Some(token)),
            Some(Way::Bearer(bearer)) => bearer.refresher.token(deadline).await.map(Some),
        }
    }

    async fn instead_of(
        &self,
        sent: Option<&Arc<Token>>,
        headers: &HeaderMap,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Arc<Token>, UpstreamError> {
        let known = self.ways.get(scope);
        let way = match challenge(headers) {
            Some(Challenge::Basic) => match (&known, &self.login) {
                // What was sent is all there is.
                (Some(Way::Basic(_)), _) | (_, None) => return Err(UpstreamError::BadCredentials),
                (_, Some(login)) => {
                    let home = self.realms.home.clone();
                    let way =
                        Way::Basic(Arc::new(Token::new(login.header()?, home, PASSWORD_LIFE)));
                    self.ways.insert(scope.to_owned(), way.clone());
                    way
                }
            },
            Some(Challenge::Bearer {
                realm,
                service,
                scope: asked,
            }) => {
                let own_scope = || format!("repository:{scope}:pull");
                let asked = asked.or_else(|| (!scope.is_empty()).then(own_scope));
                let realm = self
                    .realms
                    .judge(&realm, service.as_deref(), asked.as_deref())
                    .map_err(|reason| UpstreamError::Wrong(Wrong::Realm(reason)))?;
                let fresh = Way::Bearer(Arc::new(self.bearer(realm.clone())?));
                // One for all who were challenged at once, so that they share its refresh.
                self.ways
                    .entry_by_ref(scope)
                    .or_insert_with_if(|| fresh, |known| !known.asks(&realm))
                    .into_value()
            }
            // An expired token that is answered without a challenge.
            None => known.ok_or(UpstreamError::BadCredentials)?,
        };
        match way {
            Way::Basic(token) => match sent {
                Some(sent) if Arc::ptr_eq(sent, &token) => Err(UpstreamError::BadCredentials),
                Some(_) | None => Ok(token),
            },
            Way::Bearer(bearer) => match sent {
                Some(sent) => bearer.refresher.replace(sent, deadline).await,
                None => bearer.refresher.token(deadline).await,
            }
            .map_err(UpstreamError::NoToken),
        }
    }

    fn bearer(&self, realm: Realm) -> Result<Bearer, UpstreamError> {
        let source = BearerTokens {
            client: Arc::clone(&self.client),
            realm: realm.clone(),
            login: self.login.as_ref().map(Login::header).transpose()?,
        };
        let refresher = Refresher::new(
            source,
            self.realms.home.clone(),
            self.token_timeout,
            self.meter.tokens(),
        );
        Ok(Bearer { realm, refresher })
    }
}

/// The challenge to answer: Bearer where there are several.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let challenges: Vec<_> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| Challenge::parse(value.to_str().ok()?))
        .collect();
    challenges
        .iter()
        .find(|challenge| matches!(challenge, Challenge::Bearer { .. }))
        .or_else(|| challenges.first())
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u11_expiry_is_told_from_denial_by_its_text() {
        let forbidden = |body: &str| verdict(StatusCode::FORBIDDEN, body.as_bytes(), true);
        let plain = "Your Authorization Token has expired. Please run 'aws ecr get-login'";
        assert_eq!(forbidden(plain), Some(Verdict::Renew));
        let json = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
        assert_eq!(forbidden(json), Some(Verdict::Renew));
        let denied = r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage"}]}"#;
        assert_eq!(forbidden(denied), Some(Verdict::Final));
        assert_eq!(forbidden(""), Some(Verdict::Final));
        assert_eq!(
            verdict(StatusCode::UNAUTHORIZED, b"", true),
            Some(Verdict::Renew)
        );
        assert_eq!(
            verdict(StatusCode::BAD_REQUEST, b"", true),
            Some(Verdict::Renew)
        );
        assert_eq!(verdict(StatusCode::BAD_REQUEST, b"", false), None);
        assert_eq!(verdict(StatusCode::NOT_FOUND, plain.as_bytes(), true), None);
    }
}
