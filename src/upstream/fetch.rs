//! A question whose answer is content: asked, and followed to wherever the registry keeps it.

use http::{HeaderMap, StatusCode, Uri};
use tokio::time::Instant;

use super::client::{Answer, Outgoing};
use super::error::{RefusedRedirect, UpstreamError, Wrong};
use super::portal::is_page;
use super::question::{Kind, Question};
use super::redirect;
use super::said::{is_failure, is_redirect};
use super::{Shared, Upstream};

/// Redirects in a row.
const MAX_HOPS: u32 = 3;
/// Times that a storage address is asked for anew.
const MAX_RENEWALS: u32 = 2;

impl Upstream {
    /// Asks the registry and follows where it sends us, without credentials: to content, wherever it is.
    /// A storage address that has expired is asked for anew.
    ///
    /// # Errors
    /// As [`UpstreamError`] says; [`UpstreamError::Wrong`] for a redirect that is not followed.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub(super) async fn fetch(&self, question: &Question<'_>) -> Result<Answer, UpstreamError> {
        let mut renewals = 0;
        let mut attempt = 1;
        loop {
            let answer = self.ask(question).await?;
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            let home = self.shared.at_home(&question.path)?;
            match self.shared.follow(question, home, answer).await? {
                Followed::Content(answer) => return Ok(answer),
                Followed::Expired if renewals < MAX_RENEWALS => {
                    renewals += 1;
                    self.shared.meter.redirect_renewed();
                }
                Followed::Expired => return Err(refuse(RefusedRedirect::Expired)),
                Followed::Failed(error) => {
                    if !self.shared.may_retry(&mut attempt).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Asks once where the registry sends us, so that it is known whether storage answers. A registry that has the
    /// content itself needs none.
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    pub(super) async fn reach_storage(&self, question: &Question<'_>) -> Result<(), UpstreamError> {
        let answer = self.ask(question).await?;
        if is_redirect(answer.status()) {
            let home = self.shared.at_home(&question.path)?;
            self.shared.follow(question, home, answer).await?;
        } else if answer.status().is_success() {
            self.shared.storage.answered();
        }
        Ok(())
    }
}

impl Shared {
    async fn follow(
        &self,
        question: &Question<'_>,
        home: Uri,
        mut answer: Answer,
    ) -> Result<Followed, UpstreamError> {
        let mut target = self.sent_on(&home, answer.headers())?;
        for _ in 0..MAX_HOPS {
            answer.discard().await;
            let outgoing = Outgoing {
                accept: question.accept.clone(),
                range: question.range.clone(),
                ..Outgoing::get(Kind::Storage, target.clone())
            };
            let connected_by = Instant::now() + self.options.limits.connect;
            answer = match self.client.send(&outgoing, connected_by).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.storage.failed(&error);
                    return match error {
                        UpstreamError::Unreachable(_) => Ok(Followed::Failed(error)),
                        _ => Err(error),
                    };
                }
            };
            let status = answer.status();
            if is_page(answer.headers()) && !is_failure(status) && !is_redirect(status) {
                answer.discard().await;
                let error = UpstreamError::Wrong(Wrong::Intercepted);
                self.storage.failed(&error);
                return Ok(Followed::Failed(error));
            }
            if is_redirect(status) {
                let next = self.redirects.follow(&target, answer.headers());
                target = next.map_err(|reason| {
                    self.storage
                        .failed(&UpstreamError::Wrong(Wrong::Intercepted));
                    refuse(reason)
                })?;
                continue;
            }
            if !is_failure(status) {
                self.storage.answered();
            }
            match status {
                StatusCode::FORBIDDEN if redirect::is_signed(&target) => {
                    answer.discard().await;
                    return Ok(Followed::Expired);
                }
                status if is_failure(status) || status == StatusCode::TOO_MANY_REQUESTS => {
                    answer.discard().await;
                    let error = UpstreamError::Failing {
                        status: status.as_u16(),
                    };
                    if is_failure(status) {
                        self.storage.failed(&error);
                    }
                    return Ok(Followed::Failed(error));
                }
                StatusCode::OK
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(Followed::Content(answer));
                }
                // Registries that are spread over several hosts send on to whichever speaks the API for them.
                StatusCode::NOT_FOUND
                    if question.kind != Kind::Blob && target.path().starts_with("/v2/") =>
                {
                    return Ok(Followed::Content(answer));
                }
                // That storage does not have what the registry says it has is no word of the registry.
                status => return Err(UpstreamError::Wrong(Wrong::Status(status.as_u16()))),
            }
        }
        Err(refuse(RefusedRedirect::TooMany))
    }

    /// Where the registry sends us from `home`. One that sends us where we do not go may not be the registry;
    /// a probe tells.
    ///
    /// # Errors
    /// [`UpstreamError::Wrong`] for a redirect that is not followed.
    pub(super) fn sent_on(&self, home: &Uri, headers: &HeaderMap) -> Result<Uri, UpstreamError> {
        self.redirects.follow(home, headers).map_err(|reason| {
            self.breaker.suspect();
            refuse(reason)
        })
    }
}

enum Followed {
    Content(Answer),
    /// Storage refuses an address that was good once.
    Expired,
    /// Worth another attempt from the start.
    Failed(UpstreamError),
}

fn refuse(reason: RefusedRedirect) -> UpstreamError {
    UpstreamError::Wrong(Wrong::Redirect(reason))
}
