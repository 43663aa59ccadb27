//! One question to the registry, asked until it is answered: credentials renewed, throttling waited
//! out, failures retried, all within bounds.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::Instant;

use crate::oci::RepositoryName;

use super::allowance::Allowance;
use super::client::{Answer, Outgoing};
use super::credentials::{MOST_LOGINS, Verdict, verdict};
use super::error::{Absent, RefusedRedirect, Unreachable, UpstreamError, Wrong};
use super::gate::backoff;
use super::metrics::Kind;
use super::portal::{is_page, stands_in};
use super::redirect;
use super::scope::Scope;
use super::sending::Carried;
use super::token::Token;
use super::told;
use super::{Shared, Upstream};

/// Attempts for one request, the first included.
const MAX_ATTEMPTS: u32 = 3;
/// Redirects in a row.
const MAX_HOPS: u32 = 3;
/// Times that a storage address is asked for anew.
const MAX_RENEWALS: u32 = 2;
/// Longest body of an error that is looked into.
pub(super) const MAX_ERROR_BODY: usize = 64 * 1024;

/// A question to the registry.
pub(super) struct Question<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) accept: Option<HeaderValue>,
    pub(super) range: Option<HeaderValue>,
    pub(super) carried: Carried,
    /// `Content-Type`.
    pub(super) content_type: Option<HeaderValue>,
    /// `Content-Range`.
    pub(super) content_range: Option<HeaderValue>,
    /// What the registry says to it is told in its own words, see [`UpstreamError::Told`].
    pub(super) is_push: bool,
    /// A connection that breaks may be all that the registry says where there is no such repository.
    /// Whoever asks looks into that, so it is neither asked again nor told to the breaker.
    pub(super) breaks_where_absent: bool,
    pub(super) scope: Scope<'a>,
}

impl<'a> Question<'a> {
    pub(super) fn get(kind: Kind, path: PathAndQuery, scope: Scope<'a>) -> Self {
        Self {
            kind,
            method: Method::GET,
            path,
            accept: None,
            range: None,
            carried: Carried::Nothing,
            content_type: None,
            content_range: None,
            is_push: false,
            breaks_where_absent: false,
            scope,
        }
    }
}

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
        tokio::select! {
            biased;
            answer = answer => answer,
            // Others found that nobody is there to wait for.
            error = self.shared.breaker.link_down() => Err(error),
        }
    }

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
            let pass = self.gate.pass(absorbed_by).await;
            let pass = pass.map_err(|retry_after| UpstreamError::Throttled { retry_after })?;
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
            let outgoing = self.outgoing(question, target.clone(), token.as_deref());
            let sending = self.client.send(&outgoing, connected_by);
            let answer = match self.breaker.watched(sending).await {
                Ok(answer) => answer,
                Err(error) => {
                    let is_broken = error == UpstreamError::Unreachable(Unreachable::Broken);
                    if is_broken && question.breaks_where_absent {
                        return Err(error);
                    }
                    self.breaker.failed(&error);
                    let again = matches!(error, UpstreamError::Unreachable(_))
                        && question.carried.may_be_repeated();
                    if !(again && self.may_retry(&mut attempt).await) {
                        return Err(error);
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
                continue;
            }
            pass.answered();
            if is_failure(status) {
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
            match verdict(status, &headers, &body, token.is_some()) {
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
        self.breaker.failed(&error);
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

    /// The address of a path of the registry's API.
    pub(super) fn at_home(&self, path: &PathAndQuery) -> Result<Uri, UpstreamError> {
        at(&self.base, path)
    }

    /// Waits and counts, if there may be one more attempt.
    async fn may_retry(&self, attempt: &mut u32) -> bool {
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

/// The address of a path below `base`.
///
/// # Errors
/// When they make no address together.
pub(super) fn at(base: &Uri, path: &PathAndQuery) -> Result<Uri, UpstreamError> {
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).map_err(|_| UpstreamError::Wrong(Wrong::Malformed))
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

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// True for statuses by which registries refuse credentials, among other things.
pub(super) fn concerns_credentials(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    )
}

pub(super) fn is_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// What an answer that is neither content nor an error of [`Upstream::ask`](super::Upstream) means, when `what` was asked.
pub(super) async fn unanswered(answer: Answer, what: Absent) -> UpstreamError {
    let status = answer.status();
    match status {
        StatusCode::NOT_FOUND => {
            let body = answer.read(MAX_ERROR_BODY).await.unwrap_or_default();
            match said(&body) {
                Some(said) if said.code == "NAME_UNKNOWN" => {
                    UpstreamError::Absent(Absent::Repository)
                }
                Some(_) | None => UpstreamError::Absent(what),
            }
        }
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            answer.discard().await;
            UpstreamError::Unsupported
        }
        _ => UpstreamError::Wrong(Wrong::Status(status.as_u16())),
    }
}

/// One error of a registry.
#[derive(Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

/// The first error of a JSON error body.
pub(super) fn said(body: &[u8]) -> Option<Said> {
    let Errors { errors } = serde_json::from_slice(body).ok()?;
    errors.into_iter().next()
}
