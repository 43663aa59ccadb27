//! Tokens of a Bearer token service (distribution `docs/spec/auth/token.md`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::client::{Client, Outgoing};
use super::error::{OddToken, TokenError, UpstreamError, Wrong};
use super::gate::Gate;
use super::origin::Origin;
use super::portal::is_page;
use super::question::Kind;
use super::realm::Realm;
use super::refresher::{IssuedToken, TokenSource};
use super::said::{is_redirect, said};
use super::token::Token;

/// The specification's default.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens that name many rights grow to some tens of kilobytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a token service may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks one realm for tokens of one scope.
pub(super) struct BearerTokens {
    pub(super) client: Arc<Client>,
    pub(super) realm: Realm,
    /// The value of `Authorization` for the realm; anonymous without.
    pub(super) login: Option<HeaderValue>,
    /// One for all that is asked for: a service that throttles does so whatever the scope.
    pub(super) gate: Arc<Gate>,
    /// For how long throttling is waited out before an attempt fails of it.
    pub(super) patience: Duration,
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
        let patient_until = Instant::now() + self.patience;
        let answer = loop {
            let pass = self.gate.pass(patient_until).await;
            let pass = pass.map_err(|_retry_after| TokenError::Throttled)?;
            let answer = self
                .client
                .send(&outgoing, Instant::now() + CONNECT_TIMEOUT)
                .await
                .map_err(|error| explain(&error))?;
            if answer.status() != StatusCode::TOO_MANY_REQUESTS {
                pass.answered();
                break answer;
            }
            pass.throttled(answer.headers());
            answer.discard().await;
        };
        match answer.status() {
            status if is_redirect(status) => return Err(TokenError::Intercepted),
            _ if is_page(answer.headers()) => return Err(TokenError::Intercepted),
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(TokenError::Denied),
            StatusCode::FORBIDDEN => {
                let body = answer.read(MAX_ANSWER).await.unwrap_or_default();
                // GHCR says so where others grant nothing; what stands before a service is not so exact.
                return Err(
                    match said(&body).is_some_and(|said| said.code == "DENIED") {
                        true => TokenError::NotGranted,
                        false => TokenError::Denied,
                    },
                );
            }
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
        // Zero is what some programs write for a number that they do not know.
        None | Some(0) => DEFAULT_LIFE,
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

    #[test]
    fn u27_odd_answers_of_a_token_service() {
        let life = |json: &str| read(json.as_bytes()).map(|issued| issued.life.as_secs());
        assert_eq!(life(r#"{"token":"a","expires_in":300}"#), Ok(300));
        assert_eq!(life(r#"{"access_token":"a"}"#), Ok(60));
        assert_eq!(
            life(r#"{"token":"","access_token":"a","expires_in":0}"#),
            Ok(60)
        );
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
