//! What to send as credentials, and what to do when it is refused: one rule for registries with a token
//! of their own making (ECR), one for those that answer with a challenge (Basic or Bearer).

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::challenged::{Challenged, is_insufficient, is_invalid};
use super::error::UpstreamError;
use super::refresher::{Refresher, TokenStatus};
use super::scope::Scope;
use super::token::Token;

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
    /// They are good, but were not made for this.
    Insufficient,
    /// They are good, the identity behind them may not do this.
    Final,
}

/// How often a request may be sent anew with other credentials: for a token at all or a younger one, and
/// then for one that is good for more, where the registry says that it takes more.
pub(super) const MOST_LOGINS: u32 = 2;

/// What a question had with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Nothing,
    /// Credentials that may have ended.
    Token,
    /// A Bearer token that cannot have: it was obtained just now, for this.
    YoungBearer,
}

/// Reads an answer with one of the statuses that concern credentials; `None` for others.
pub(super) fn verdict(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    sent: Sent,
) -> Option<Verdict> {
    let sent_any = sent != Sent::Nothing;
    match status {
        StatusCode::UNAUTHORIZED if sent_any && is_insufficient(headers) => {
            Some(Verdict::Insufficient)
        }
        // Token services such as Harbor's and Quay's grant nothing in a token that is good otherwise, and
        // their registries do not say what is wrong with it.
        StatusCode::UNAUTHORIZED if sent == Sent::YoungBearer && !is_invalid(headers) => {
            Some(Verdict::Final)
        }
        StatusCode::UNAUTHORIZED => Some(Verdict::Renew),
        StatusCode::FORBIDDEN if says_expired(body) => Some(Verdict::Renew),
        StatusCode::FORBIDDEN => Some(Verdict::Final),
        // ECR Public answers so to an expired token, without a challenge.
        StatusCode::BAD_REQUEST if sent_any => Some(Verdict::Renew),
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
    /// What to send first, with a body that can be sent `once` only or one that can be sent again.
    ///
    /// # Errors
    /// [`UpstreamError::NoToken`] if there is none by `deadline`; [`UpstreamError::Refused`] if we get none
    /// for this.
    pub(super) async fn current(
        &self,
        scope: Scope<'_>,
        once: bool,
        deadline: Instant,
    ) -> Result<Option<Arc<Token>>, UpstreamError> {
        match self {
            Self::Ecr(refresher) => {
                let token = refresher.token(deadline).await;
                token.map(Some).map_err(UpstreamError::NoToken)
            }
            Self::Challenged(challenged) => challenged.current(scope, once, deadline).await,
        }
    }

    /// What to send instead of `sent`, which was refused with `headers`. To be asked
    /// [`MOST_LOGINS`] times a request at most.
    ///
    /// # Errors
    /// [`UpstreamError::BadCredentials`] if there is nothing else to send, [`UpstreamError::Refused`] if
    /// what there is will never do for this, [`UpstreamError::NoToken`] if nothing is obtained by
    /// `deadline`, [`UpstreamError::Wrong`] for a challenge that leads elsewhere.
    pub(super) async fn instead_of(
        &self,
        sent: Option<&Arc<Token>>,
        headers: &HeaderMap,
        scope: Scope<'_>,
        deadline: Instant,
    ) -> Result<Arc<Token>, UpstreamError> {
        match self {
            Self::Ecr(refresher) => {
                let token = refresher.instead_of(sent, deadline).await;
                token.map_err(UpstreamError::NoToken)
            }
            Self::Challenged(challenged) => {
                challenged.instead_of(sent, headers, scope, deadline).await
            }
        }
    }

    /// What it is that was sent with a question about `scope`.
    pub(super) fn sent(&self, token: Option<&Arc<Token>>, scope: Scope<'_>) -> Sent {
        match (token, self) {
            (None, _) => Sent::Nothing,
            (Some(token), Self::Challenged(challenged)) if challenged.has_just(token, scope) => {
                Sent::YoungBearer
            }
            (Some(_), _) => Sent::Token,
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

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    #[test]
    fn u11_expiry_is_told_from_denial_by_its_text() {
        let none = HeaderMap::new();
        let verdict = |status, body: &[u8], sent| verdict(status, &none, body, sent);
        let forbidden = |body: &str| verdict(StatusCode::FORBIDDEN, body.as_bytes(), Sent::Token);
        let plain = "Your Authorization Token has expired. Please run 'aws ecr get-login'";
        assert_eq!(forbidden(plain), Some(Verdict::Renew));
        let json = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
        assert_eq!(forbidden(json), Some(Verdict::Renew));
        let denied = r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:iam::1:user/x is not authorized to perform: ecr:BatchGetImage"}]}"#;
        assert_eq!(forbidden(denied), Some(Verdict::Final));
        assert_eq!(forbidden(""), Some(Verdict::Final));
        assert_eq!(
            verdict(StatusCode::UNAUTHORIZED, b"", Sent::Token),
            Some(Verdict::Renew)
        );
        assert_eq!(
            verdict(StatusCode::BAD_REQUEST, b"", Sent::Token),
            Some(Verdict::Renew)
        );
        let sent_nothing = verdict(StatusCode::BAD_REQUEST, b"", Sent::Nothing);
        assert_eq!(sent_nothing, None);
        let absent = verdict(StatusCode::NOT_FOUND, plain.as_bytes(), Sent::Token);
        assert_eq!(absent, None);
    }

    #[test]
    fn a_token_that_does_for_less_is_told_from_one_that_expired() {
        let said = |error: &str, sent| {
            let mut headers = HeaderMap::new();
            let challenge = format!(r#"Bearer realm="https://a.example/token",error="{error}""#);
            headers.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            verdict(StatusCode::UNAUTHORIZED, &headers, b"", sent)
        };
        assert_eq!(
            said("insufficient_scope", Sent::Token),
            Some(Verdict::Insufficient)
        );
        assert_eq!(
            said("insufficient_scope", Sent::Nothing),
            Some(Verdict::Renew)
        );
        for sent in [Sent::Token, Sent::YoungBearer] {
            assert_eq!(said("invalid_token", sent), Some(Verdict::Renew));
        }
    }

    #[test]
    fn a_token_made_just_now_that_is_refused_without_a_word_does_not_do_for_this() {
        let said = |challenge: &str, sent| {
            let mut headers = HeaderMap::new();
            headers.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            verdict(StatusCode::UNAUTHORIZED, &headers, b"", sent)
        };
        for challenge in [
            r#"Basic realm="harbor""#,
            r#"Bearer realm="https://a.example/token",service="quay""#,
        ] {
            let young = said(challenge, Sent::YoungBearer);
            assert_eq!(young, Some(Verdict::Final), "{challenge}");
            let old = said(challenge, Sent::Token);
            assert_eq!(old, Some(Verdict::Renew), "{challenge}");
        }
    }
}
