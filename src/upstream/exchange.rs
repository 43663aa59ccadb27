//! One question to the registry, asked until it is answered: credentials renewed, throttling waited
//! out, failures retried, all within bounds.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};
use tokio::time::Instant;

use crate::oci::RepositoryName;

use super::allowance::Allowance;
use super::client::{Answer, Outgoing};
use super::credentials::{MOST_LOGINS, Verdict, verdict};
use super::error::{Unreachable, UpstreamError, Wrong};
use super::gate::{Pass, backoff};
use super::portal::stands_in;
use super::question::{Breaks, Kind, Question};
use super::registry::RegistryKind;
use super::said::{MAX_ERROR_BODY, concerns_credentials, is_failure, said};
use super::token::Token;
use super::told;
use super::{Shared, Upstream};

/// Attempts for one request, the first included.
const MAX_ATTEMPTS: u32 = 3;

impl Upstream {
    /// Asks the registry, as whoever this handle asks for.
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Answer, UpstreamError> {
        let repository = question.scope.repository();
        let repository = repository.map_or("", RepositoryName::as_str);
        if *self.shared.terms.load().offline.of_name(repository) {
            return Err(UpstreamError::Offline);
        }
        let answer = async {
            match &self.caller {
                None => self.shared.ask_patiently(question).await,
                Some(token) => self.shared.ask_once(question, token).await,
            }
        };
        if question.carried.is_stream() {
            // It ends by limits of its own, for as long as upstream takes it.
            return answer.await;
        }
        tokio::select! {
            biased;
            answer = answer => answer,
            // Others found that nobody is there to wait for.
            error = self.shared.breaker.link_down() => Err(error),
        }
    }
}

impl Shared {
    /// Asks as the proxy itself. The answer has any status but those of refused credentials, throttling
    /// and failure, which are errors; a redirect is an answer.
    async fn ask_patiently(&self, question: &Question<'_>) -> Result<Answer, UpstreamError> {
        let target = self.at_home(&question.path)?;
        let mut connected_by = Instant::now() + self.options.limits.connect;
        let absorbed_by = Instant::now() + self.options.limits.absorb_throttle;
        let mut attempt = 1;
        let mut renewed = None;
        let mut logins = 0;
        self.budget.earn();
        loop {
            self.breaker.admit()?;
            let at_gate = Instant::now();
            self.turn(question, absorbed_by).await?;
            let pass = self.pass(question, absorbed_by).await?;
            // Time spent waiting at the gate is not time spent connecting.
            connected_by += at_gate.elapsed();
            let token = match &renewed {
                Some(token) => Some(Arc::clone(token)),
                None => {
                    let once = question.carried.is_stream();
                    let current = self.credentials.current(question.scope, once, connected_by);
                    current
                        .await
                        .inspect_err(|error| self.without_token(error))?
                }
            };
            // As it is now, however long the answer takes.
            let sent = self.credentials.sent(token.as_ref(), question.scope);
            let outgoing = self.outgoing(question, target.clone(), token.as_deref());
            let answer = match self.sent(&outgoing, connected_by).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.heard_nothing(question, &error);
                    let is_broken = is_broken_off(&error);
                    if is_broken && question.breaks == Breaks::LookedInto {
                        return Err(error);
                    }
                    let again = matches!(error, UpstreamError::Unreachable(_))
                        && question.carried.may_be_repeated();
                    if !(again && self.may_retry(&mut attempt).await) {
                        return Err(error);
                    }
                    if is_broken {
                        // There was a connection, for however long.
                        connected_by = Instant::now() + self.options.limits.connect;
                    }
                    continue;
                }
            };
            let status = answer.status();
            let answer = self.of_the_registry(answer).await?;
            if !is_failure(status) {
                self.breaker.answered();
            }
            if status == StatusCode::TOO_MANY_REQUESTS {
                self.meter.throttled();
                let pause = pass.throttled(answer.headers());
                answer.discard().await;
                tracing::debug!(upstream.name = %self.meter.upstream(), pause_s = pause.as_secs(), "throttled");
                if !question.carried.may_be_repeated() {
                    return Err(UpstreamError::Throttled { retry_after: pause });
                }
                connected_by = Instant::now() + self.options.limits.connect;
                continue;
            }
            pass.answered();
            if is_failure(status) {
                question.doubt.raise();
                answer.discard().await;
                let error = UpstreamError::Failing {
                    status: status.as_u16(),
                };
                self.breaker.failed(&error);
                let again = question.carried.may_be_repeated();
                if !(again && self.may_retry(&mut attempt).await) {
                    return Err(error);
                }
                connected_by = Instant::now() + self.options.limits.connect;
                continue;
            }
            if !concerns_credentials(status) {
                return Ok(answer);
            }
            let headers = answer.headers().clone();
            // Without a readable body a 403 is a denial.
            let body = answer.read(MAX_ERROR_BODY).await.unwrap_or_default();
            let told = || told::told(status, &body, &self.names());
            match verdict(status, &headers, &body, sent) {
                // What a push is told in so many words is about the push.
                Some(Verdict::Renew) | None
                    if question.is_push
                        && status == StatusCode::BAD_REQUEST
                        && said(&body).is_some() =>
                {
                    return Err(UpstreamError::Told(told()));
                }
                Some(verdict @ (Verdict::Renew | Verdict::Insufficient))
                    if logins == 0
                        || (verdict == Verdict::Insufficient && logins < MOST_LOGINS) =>
                {
                    logins += 1;
                    connected_by = Instant::now() + self.options.limits.connect;
                    let instead = self.credentials.instead_of(
                        token.as_ref(),
                        &headers,
                        question.scope,
                        connected_by,
                    );
                    let instead = instead.await.map_err(|error| match error {
                        UpstreamError::Refused => self.refused(question, &body),
                        // There are no others, and nothing says that it is about these.
                        UpstreamError::BadCredentials if status == StatusCode::BAD_REQUEST => {
                            UpstreamError::Wrong(Wrong::Status(status.as_u16()))
                        }
                        error => error,
                    });
                    renewed = Some(instead.inspect_err(|error| self.without_token(error))?);
                    if !question.carried.may_be_repeated() {
                        // The next request has the new one.
                        return Err(UpstreamError::BadCredentials);
                    }
                }
                Some(Verdict::Final | Verdict::Insufficient) => {
                    return Err(self.refused(question, &body));
                }
                Some(Verdict::Renew) if status != StatusCode::BAD_REQUEST => {
                    return Err(UpstreamError::BadCredentials);
                }
                Some(Verdict::Renew) | None => {
                    return Err(UpstreamError::Wrong(Wrong::Status(status.as_u16())));
                }
            }
        }
    }

    /// Tells the breaker of a question that has no answer, as far as that says anything of the upstream.
    pub(super) fn heard_nothing(&self, question: &Question<'_>, error: &UpstreamError) {
        match question.breaks {
            Breaks::LookedInto if is_broken_off(error) => {}
            Breaks::MayBeAbsent if is_broken_off(error) => self.breaker.suspect(),
            Breaks::AreFailures | Breaks::MayBeAbsent | Breaks::LookedInto => {
                self.breaker.failed(error);
            }
        }
    }

    /// What a question needs to go, by `deadline` at the latest.
    pub(super) async fn pass(
        &self,
        question: &Question<'_>,
        deadline: Instant,
    ) -> Result<Pass<'_>, UpstreamError> {
        let pass = self.gate.pass(deadline).await;
        let pass = pass.map_err(|retry_after| UpstreamError::Throttled { retry_after })?;
        Ok(match question.carried.is_stream() {
            true => pass.for_long(),
            false => pass,
        })
    }

    /// The answer to what is sent; where it takes longer than usual, a probe tells whether in vain. Of what flows
    /// it comes when all of that has, and a probe beside it would find the line full.
    pub(super) async fn sent(
        &self,
        outgoing: &Outgoing<'_>,
        connected_by: Instant,
    ) -> Result<Answer, UpstreamError> {
        let sending = self.client.send(outgoing, connected_by);
        match outgoing.carried.is_stream() {
            true => sending.await,
            false => self.breaker.watched(sending).await,
        }
    }

    /// A question to the registry, with what shows who asks.
    pub(super) fn outgoing<'a>(
        &self,
        question: &Question<'_>,
        target: Uri,
        token: Option<&'a Token>,
    ) -> Outgoing<'a> {
        Outgoing {
            kind: question.kind,
            method: question.method.clone(),
            target,
            host: Some(self.host.clone()),
            accept: question.accept.clone(),
            range: question.range.clone(),
            carried: question.carried.clone(),
            content_type: question.content_type.clone(),
            content_range: question.content_range.clone(),
            token,
            doubt: question.doubt.clone(),
        }
    }

    /// An answer that the registry gave, and nobody in its place.
    ///
    /// # Errors
    /// [`Wrong::Intercepted`], which the breaker is told.
    pub(super) async fn of_the_registry(&self, answer: Answer) -> Result<Answer, UpstreamError> {
        if !stands_in(&self.options.registry, answer.status(), answer.headers()) {
            if let Some(allowance) = Allowance::read(answer.headers(), SystemTime::now()) {
                self.meter.allowed(&allowance);
                self.allowance.set(allowance);
            }
            return Ok(answer);
        }
        answer.discard().await;
        let error = UpstreamError::Wrong(Wrong::Intercepted);
        match self.options.registry.kind() {
            // It may be the registry's after all: some have pages where they do not offer something.
            RegistryKind::Other => self.breaker.suspect(),
            _ => self.breaker.failed(&error),
        }
        Err(error)
    }

    /// Waits until the registry's quota has room for a question, by `deadline` at the latest.
    ///
    /// # Errors
    /// [`UpstreamError::Throttled`] if it has none until then.
    pub(super) async fn turn(
        &self,
        question: &Question<'_>,
        deadline: Instant,
    ) -> Result<(), UpstreamError> {
        let turn = self.pace.turn(question.kind, &question.method, deadline);
        let turn = turn.await;
        if turn != Ok(false) {
            self.meter.paced();
        }
        turn.map(drop)
            .map_err(|retry_after| UpstreamError::Throttled { retry_after })
    }

    /// Where one token is for everything, nothing can be asked without it.
    fn without_token(&self, error: &UpstreamError) {
        if self.credentials.is_one_for_all() {
            self.breaker.failed(error);
        }
    }

    /// The address of a path of the registry's API.
    pub(super) fn at_home(&self, path: &PathAndQuery) -> Result<Uri, UpstreamError> {
        at(&self.base, path)
    }

    /// Waits and counts, if there may be one more attempt.
    pub(super) async fn may_retry(&self, attempt: &mut u32) -> bool {
        if *attempt >= MAX_ATTEMPTS || !self.budget.spend() {
            return false;
        }
        tokio::time::sleep(backoff(*attempt)).await;
        *attempt += 1;
        self.meter.retried();
        true
    }

    /// The hosts that stand for the registry, which nobody else is to read of.
    pub(super) fn names(&self) -> [&str; 2] {
        [
            self.options.registry.authority(),
            self.base.host().unwrap_or_default(),
        ]
    }

    /// Logs what the registry says about our identity; callers learn only that it refused.
    fn refused(&self, question: &Question<'_>, body: &Bytes) -> UpstreamError {
        // The answer to a HEAD tells nothing, and is not the last word. An upload that may not be given up
        // ends by itself.
        let is_giving_up = question.kind == Kind::Upload && question.method == Method::DELETE;
        if question.method == Method::HEAD || is_giving_up {
            return UpstreamError::Refused;
        }
        let said = said(body);
        tracing::warn!(
            upstream.name = %self.meter.upstream(),
            oci.repository = question.scope.repository().map(RepositoryName::as_str),
            upstream.said = said.as_ref().map_or("", |said| said.message.as_str()),
            "upstream refuses our own identity",
        );
        UpstreamError::Refused
    }
}

/// There was a connection, and no answer.
pub(super) fn is_broken_off(error: &UpstreamError) -> bool {
    *error == UpstreamError::Unreachable(Unreachable::Broken)
}

/// The address of a path below `base`.
///
/// # Errors
/// When they make no address together.
pub(super) fn at(base: &Uri, path: &PathAndQuery) -> Result<Uri, UpstreamError> {
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).map_err(|_| UpstreamError::Wrong(Wrong::Malformed))
}
