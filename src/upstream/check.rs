//! Whether an upstream can be used, step by step, for an operator who asks.

use std::time::{Duration, SystemTime};

use http::{StatusCode, header};
use tokio::time::Instant;

use super::Upstream;
use super::client::path_and_query;
use super::error::{Absent, UpstreamError};
use super::question::{Kind, Question};
use super::refresher::TokenStatus;
use super::said::unanswered;
use super::scope::Scope;

/// A registry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// From the question to the answer's head.
    pub took: Duration,
    /// How our clock stands to the registry's, where it told its time; good to a second.
    pub clock: Option<Skew>,
}

/// How our clock stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// Ours shows a later time.
    Ahead(Duration),
    /// Ours shows an earlier time.
    Behind(Duration),
}

impl Skew {
    /// How far they are apart.
    pub fn size(self) -> Duration {
        match self {
            Self::Ahead(by) | Self::Behind(by) => by,
        }
    }
}

impl Upstream {
    /// Obtains a token if there is none.
    ///
    /// # Errors
    /// [`UpstreamError::NoToken`] if none comes within the deadline of one call for a token.
    ///
    /// # Cancel safety
    /// Leaving changes nothing; a call for a token that was begun goes on.
    pub async fn check_token(&self) -> Result<TokenStatus, UpstreamError> {
        let deadline = Instant::now() + self.shared.options.limits.token;
        self.shared
            .credentials
            .current(Scope::Registry, false, deadline)
            .await?;
        Ok(self.token_status())
    }

    /// Asks the registry whether it is there and takes our credentials (distribution-spec, end-1).
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn ping(&self) -> Result<Ping, UpstreamError> {
        let began = Instant::now();
        let question = Question::get(
            Kind::Ping,
            path_and_query("/v2/".to_owned())?,
            Scope::Registry,
        );
        let answer = self.ask(&question).await?;
        let took = began.elapsed();
        if answer.status() != StatusCode::OK {
            return Err(unanswered(answer, Absent::Repository).await);
        }
        let theirs = answer
            .headers()
            .get(header::DATE)
            .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let clock = theirs.map(|theirs| {
            SystemTime::now()
                .duration_since(theirs)
                .map_or_else(|behind| Skew::Behind(behind.duration()), Skew::Ahead)
        });
        answer.discard().await;
        Ok(Ping { took, clock })
    }
}
