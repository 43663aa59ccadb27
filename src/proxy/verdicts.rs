//! Upstream asked as a caller: what the bearer of an ECR token may do, and what is asked with that token.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;

use super::error::Refusal;
use crate::access::{ClientToken, Denied, Question, Right, Verdict, Verdicts};
use crate::oci::RepoKey;
use crate::upstream::{Upstream, UpstreamError, Upstreams, Wrong};

/// The upstream as whoever holds `right` may ask it: with the right's own credential, where it has one.
pub(super) fn asked_with(upstream: &Upstream, right: &Right) -> Result<Upstream, Refusal> {
    match right.credential() {
        None => Ok(upstream.clone()),
        Some(token) => Ok(upstream.on_behalf_of(token.authorization())?),
    }
}

/// What its error means to whoever holds `right`: where it was asked with a credential of theirs, a refusal
/// is about them.
pub(super) fn told(right: &Right, error: UpstreamError) -> Refusal {
    match error {
        UpstreamError::Refused if right.credential().is_some() => Denied::Forbidden.into(),
        UpstreamError::BadCredentials if right.credential().is_some() => {
            Denied::Unauthenticated.into()
        }
        error => error.into(),
    }
}

/// Asks the upstream itself what a token allows: a manifest by HEAD, a blob by the GET that leads to it.
///
/// ECR looks at the rights before it looks for the content, so "absent" is said to those who may only.
pub struct AskedUpstream {
    upstreams: Upstreams,
}

impl AskedUpstream {
    /// Asks these, each by its name.
    pub fn new(upstreams: Upstreams) -> Self {
        Self { upstreams }
    }

    fn takers(&self) -> Vec<Upstream> {
        let all = self.upstreams.all();
        let takers = all.iter().filter(|upstream| upstream.takes_ecr_tokens());
        takers.cloned().collect()
    }

    /// The upstream of a repository, asked as the token's bearer; one that takes no tokens refuses it.
    fn as_bearer(&self, token: &ClientToken, repo: &RepoKey) -> Result<Upstream, UpstreamError> {
        let upstream = self.upstreams.of(repo)?;
        if !upstream.takes_ecr_tokens() {
            return Err(UpstreamError::Refused);
        }
        upstream.on_behalf_of(token.authorization())
    }

    /// What is said to a question; an error may be a verdict as well.
    async fn said(
        &self,
        token: &ClientToken,
        question: Question<'_>,
    ) -> Result<Verdict, UpstreamError> {
        match question {
            Question::Login => return Ok(self.login(token).await),
            Question::Manifest(repo, reference) => {
                let upstream = self.as_bearer(token, repo)?;
                upstream.head_manifest(&repo.repository, reference).await?;
            }
            Question::Blob(repo, digest) => {
                let upstream = self.as_bearer(token, repo)?;
                upstream.probe_blob(&repo.repository, &digest).await?;
            }
            Question::BlobHead(repo, digest) => {
                let upstream = self.as_bearer(token, repo)?;
                upstream.has_blob(&repo.repository, &digest).await?;
            }
        }
        Ok(Verdict::Allowed)
    }

    /// A token is good if any of the registries takes it. That none does is known when all said so.
    async fn login(&self, token: &ClientToken) -> Verdict {
        let mut verdict = Verdict::Invalid;
        for upstream in self.takers() {
            let answer = match upstream.on_behalf_of(token.authorization()) {
                Ok(upstream) => upstream.ping().await.map(|_| ()),
                Err(error) => Err(error),
            };
            match answer {
                Ok(()) => return Verdict::Allowed,
                // A question without an object can only be refused because of who asks.
                Err(
                    UpstreamError::BadCredentials
                    | UpstreamError::Refused
                    | UpstreamError::Wrong(Wrong::Status(BAD_REQUEST)),
                ) => {}
                Err(_) => verdict = Verdict::Unknown,
            }
        }
        verdict
    }
}

/// What ECR answers to what is no token at all.
const BAD_REQUEST: u16 = StatusCode::BAD_REQUEST.as_u16();

impl Verdicts for AskedUpstream {
    fn takes_tokens(&self, upstream: &str) -> bool {
        let upstream = self.upstreams.named(upstream);
        upstream.is_some_and(|upstream| upstream.takes_ecr_tokens())
    }

    fn ask<'a>(&'a self, token: &'a ClientToken, question: Question<'a>) -> BoxFuture<'a, Verdict> {
        async move {
            match self.said(token, question).await {
                Ok(verdict) => verdict,
                Err(UpstreamError::Absent(_)) => Verdict::Allowed,
                Err(UpstreamError::Refused) => Verdict::Forbidden,
                Err(UpstreamError::BadCredentials) => Verdict::Invalid,
                Err(_) => Verdict::Unknown,
            }
        }
        .boxed()
    }
}
