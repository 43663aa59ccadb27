//! Registries that answer with a challenge, Basic or Bearer, and what is sent to those: nothing until they
//! ask, then what they ask for.
//!
//! Invariant: a Bearer token is kept for the [`Scope`] that it was obtained for, and used for nothing else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::oci::header::Challenge;

use super::bearer::BearerTokens;
use super::client::Client;
use super::error::{RefusedRealm, TokenError, UpstreamError, Wrong};
use super::gate::Gate;
use super::meter::Meter;
use super::origin::Origin;
use super::realm::{Realm, Realms};
use super::refresher::Refresher;
use super::scope::{Access, Scope};
use super::secret::Secret;
use super::token::Token;

/// Scopes whose way to log in is remembered; one more is one more 401.
const MAX_SCOPES: u64 = 4096;
/// A password does not expire; its wrapper has to name something.
const PASSWORD_LIFE: Duration = Duration::MAX;
/// A token that is as young as this grants what the next one would, too.
const YOUNG: Duration = Duration::from_secs(5);

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
    gate: Arc<Gate>,
    /// By what a scope is written as.
    ways: Cache<String, Way>,
    last: Mutex<Option<Asked>>,
    /// The last that was named and not asked.
    refused: Mutex<Option<Origin>>,
}

/// What a challenge asks for.
#[derive(Clone)]
enum Asked {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
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
    access: Access,
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
            gate: Arc::new(Gate::open()),
            ways: Cache::new(MAX_SCOPES),
            last: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    pub(super) async fn current(
        &self,
        scope: Scope<'_>,
        once: bool,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, UpstreamError> {
        let way = match self.ways.get(&scope.to_string()) {
            // Asking first costs a round trip, and here it would cost the body.
            None if once => self.usual_way(scope)?,
            known => known,
        };
        match way {
            None => Ok(None),
            Some(Way::Basic(token)) => Ok(Some(token)),
            Some(Way::Bearer(bearer)) => {
                let token = bearer.refresher.token(deadline).await;
                token.map(Some).map_err(without_token)
            }
        }
    }

    pub(super) async fn instead_of(
        &self,
        sent: Option<&Arc<Token>>,
        headers: &HeaderMap,
        scope: Scope<'_>,
        deadline: Instant,
    ) -> Result<Arc<Token>, UpstreamError> {
        let known = self.ways.get(&scope.to_string());
        let way = match challenge(headers) {
            Some(Challenge::Basic) => match known {
                // Others were challenged at once.
                Some(way @ Way::Basic(_)) => way,
                // So Harbor answers whatever came. Where the token service is none any more, or does not know us,
                // it is the registry that changed.
                Some(Way::Bearer(bearer)) if sent.is_some() => {
                    match bearer.refresher.instead_of(sent, deadline).await {
                        Ok(token) => return Ok(token),
                        Err(TokenError::Denied | TokenError::Odd(_)) => self.basic_way(scope)?,
                        Err(error) => return Err(without_token(error)),
                    }
                }
                // It changed how it is logged in to.
                Some(Way::Bearer(_)) | None => self.basic_way(scope)?,
            },
            Some(Challenge::Bearer {
                realm,
                service,
                scope: challenged,
                ..
            }) => {
                let mut access = Access::for_need(scope, challenged.as_deref());
                let is_insufficient = sent.is_some() && is_insufficient(headers);
                if let Some(Way::Bearer(known)) = &known
                    && is_insufficient
                {
                    access.join(&known.access);
                }
                let way = self.bearer_way(scope, &realm, service.as_deref(), access)?;
                if let (Way::Bearer(bearer), Some(sent)) = (&way, sent)
                    && is_insufficient
                    && bearer.refresher.has_just(sent, YOUNG)
                {
                    return Err(UpstreamError::Refused);
                }
                way
            }
            // An expired token that is answered without a challenge.
            None => known.ok_or(UpstreamError::BadCredentials)?,
        };
        match way {
            Way::Basic(token) => match sent {
                // What was sent is all there is, unless the registry has changed: the next question asks it.
                Some(sent) if Arc::ptr_eq(sent, &token) => {
                    self.ways.invalidate(&scope.to_string());
                    Err(UpstreamError::BadCredentials)
                }
                Some(_) | None => Ok(token),
            },
            Way::Bearer(bearer) => {
                let token = bearer.refresher.instead_of(sent, deadline).await;
                token.map_err(without_token)
            }
        }
    }

    /// Whether `token` is a Bearer token that was obtained just now, for this scope.
    pub(super) fn has_just(&self, token: &Arc<Token>, scope: Scope<'_>) -> bool {
        match self.ways.get(&scope.to_string()) {
            Some(Way::Bearer(bearer)) => bearer.refresher.has_just(token, YOUNG),
            Some(Way::Basic(_)) | None => false,
        }
    }

    /// How the last challenge, whatever it was about, says that this scope is logged in to.
    fn usual_way(&self, scope: Scope<'_>) -> Result<Option<Way>, UpstreamError> {
        let last = self.last().clone();
        match last {
            None => Ok(None),
            Some(Asked::Basic) => self.basic_way(scope).map(Some),
            Some(Asked::Bearer { realm, service }) => {
                let access = Access::for_need(scope, None);
                let way = self.bearer_way(scope, &realm, service.as_deref(), access);
                way.map(Some)
            }
        }
    }

    fn basic_way(&self, scope: Scope<'_>) -> Result<Way, UpstreamError> {
        let login = self.login.as_ref().ok_or(UpstreamError::BadCredentials)?;
        let home = self.realms.home.clone();
        let way = Way::Basic(Arc::new(Token::new(login.header()?, home, PASSWORD_LIFE)));
        self.ways.insert(scope.to_string(), way.clone());
        self.remember(Asked::Basic);
        Ok(way)
    }

    fn bearer_way(
        &self,
        scope: Scope<'_>,
        realm: &str,
        service: Option<&str>,
        access: Access,
    ) -> Result<Way, UpstreamError> {
        let judged = self.realms.judge(realm, service, &access);
        let judged = judged.map_err(|reason| self.refuse(realm, reason))?;
        let fresh = Way::Bearer(Arc::new(self.bearer(judged.clone(), access)?));
        self.remember(Asked::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        });
        // One for all who were challenged at once, so that they share its refresh.
        let entry = self.ways.entry(scope.to_string());
        let entry = entry.or_insert_with_if(|| fresh, |known| !known.asks(&judged));
        Ok(entry.into_value())
    }

    fn bearer(&self, realm: Realm, access: Access) -> Result<Bearer, UpstreamError> {
        let source = BearerTokens {
            client: Arc::clone(&self.client),
            realm: realm.clone(),
            login: self.login.as_ref().map(Login::header).transpose()?,
            gate: Arc::clone(&self.gate),
            patience: self.token_timeout / 2,
        };
        let refresher = Refresher::new(
            source,
            self.realms.home.clone(),
            self.token_timeout,
            self.meter.tokens(),
        );
        Ok(Bearer {
            realm,
            access,
            refresher,
        })
    }

    /// Tells the operator which host it is that does not speak for the registry, as far as is known: once for
    /// each in a row.
    fn refuse(&self, realm: &str, reason: RefusedRealm) -> UpstreamError {
        let host = realm.parse().ok().and_then(|realm| Origin::of(&realm));
        if let Some(host) = host.filter(|_| reason == RefusedRealm::Host) {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.as_ref() != Some(&host) {
                tracing::warn!(
                    upstream.name = %self.meter.upstream(),
                    realm.host = %host,
                    "the registry names a token service on another host, which is not asked; if it is the \
                     registry's, list it in upstream.token_hosts"
                );
                *refused = Some(host);
            }
        }
        UpstreamError::Wrong(Wrong::Realm(reason))
    }

    fn remember(&self, asked: Asked) {
        *self.last() = Some(asked);
    }

    fn last(&self) -> MutexGuard<'_, Option<Asked>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn without_token(error: TokenError) -> UpstreamError {
    match error {
        TokenError::NotGranted => UpstreamError::Refused,
        error => UpstreamError::NoToken(error),
    }
}

/// True if the token that came is good, and grants too little (RFC 6750, 3.1).
pub(super) fn is_insufficient(headers: &HeaderMap) -> bool {
    says(headers, "insufficient_scope")
}

/// True if what came is said to be no good token at all (RFC 6750, 3.1).
pub(super) fn is_invalid(headers: &HeaderMap) -> bool {
    says(headers, "invalid_token") || says(headers, "invalid_request")
}

fn says(headers: &HeaderMap, wanted: &str) -> bool {
    matches!(
        challenge(headers),
        Some(Challenge::Bearer { error: Some(error), .. }) if error == wanted
    )
}

/// The challenge to answer: Bearer where there are several.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let lines = headers.get_all(header::WWW_AUTHENTICATE).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines
        .flat_map(Challenge::all)
        .min_by_key(|challenge| !matches!(challenge, Challenge::Bearer { .. }))
}
