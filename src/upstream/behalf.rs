//! Asking with the credential of whoever wants to know, instead of our own.
//!
//! Invariants: such a credential goes to the registry's own origin and nowhere else, is never renewed or
//! replaced by ours, and what is answered to it says nothing about us: who brings a bad token, or one
//! that is throttled, holds up nobody else. That nobody answers at all concerns everybody, and is told to
//! the breaker.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::client::Answer;
use super::credentials::{Sent, Verdict, verdict};
use super::error::{UpstreamError, Wrong};
use super::origin::Origin;
use super::question::Question;
use super::said::{MAX_ERROR_BODY, concerns_credentials, is_failure, said};
use super::token::Token;
use super::told::told;
use super::{Shared, Upstream};

impl Upstream {
    /// The same upstream, asked with this value of `Authorization` instead of our own credentials.
    ///
    /// A question is asked once: [`UpstreamError::BadCredentials`] and [`UpstreamError::Refused`] are then
    /// about whose credential it is, [`UpstreamError::Wrong`] with status 400 may be, as that is how ECR
    /// answers what is no token at all.
    ///
    /// # Errors
    /// [`UpstreamError::Wrong`] if there is no origin to bind it to.
    pub fn on_behalf_of(&self, authorization: HeaderValue) -> Result<Self, UpstreamError> {
        let home = Origin::of(&self.shared.base).ok_or(UpstreamError::Wrong(Wrong::Malformed))?;
        // How long it lives is between its bearer and the registry.
        let token = Token::new(authorization, home, Duration::MAX);
        Ok(Self {
            shared: Arc::clone(&self.shared),
            caller: Some(Arc::new(token)),
        })
    }

    /// True if it takes the tokens that `aws ecr get-login-password` prints: we log in with one ourselves.
    pub fn takes_ecr_tokens(&self) -> bool {
        self.shared.ecr.is_some()
    }
}

impl Shared {
    /// Asks once, with the credential of a caller.
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub(super) async fn ask_once(
        &self,
        question: &Question<'_>,
        caller: &Token,
    ) -> Result<Answer, UpstreamError> {
        self.breaker.admit()?;
        let waited_by = Instant::now() + self.options.limits.connect;
        self.turn(question, waited_by).await?;
        let pass = self.pass(question, waited_by).await?;
        let connected_by = Instant::now() + self.options.limits.connect;
        let target = self.at_home(&question.path)?;
        let outgoing = self.outgoing(question, target, Some(caller));
        let answer = self.sent(&outgoing, connected_by).await;
        let answer = answer.inspect_err(|error| self.heard_nothing(question, error))?;
        let status = answer.status();
        let answer = self.of_the_registry(answer).await?;
        if status == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = pass.throttled_for_another(answer.headers());
            answer.discard().await;
            return Err(UpstreamError::Throttled { retry_after });
        }
        pass.answered();
        if is_failure(status) {
            // Not told to the breaker: nobody is to open it by sending what the registry stumbles over.
            answer.discard().await;
            let status = status.as_u16();
            return Err(UpstreamError::Failing { status });
        }
        self.breaker.answered();
        if !concerns_credentials(status) {
            return Ok(answer);
        }
        let headers = answer.headers().clone();
        // Without a readable body a 403 is a denial.
        let body = answer.read(MAX_ERROR_BODY).await.unwrap_or_default();
        if question.is_push && status == StatusCode::BAD_REQUEST && said(&body).is_some() {
            return Err(UpstreamError::Told(told(status, &body, &self.names())));
        }
        Err(match verdict(status, &headers, &body, Sent::Token) {
            Some(Verdict::Final | Verdict::Insufficient) => UpstreamError::Refused,
            Some(Verdict::Renew) if status != StatusCode::BAD_REQUEST => {
                UpstreamError::BadCredentials
            }
            Some(Verdict::Renew) | None => UpstreamError::Wrong(Wrong::Status(status.as_u16())),
        })
    }
}
