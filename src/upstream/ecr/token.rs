//! Tokens, as GetAuthorizationToken issues them.

use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_ecr::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ecr::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::primitives::DateTime;
use aws_sdk_ecr::types::AuthorizationData;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use http::HeaderValue;

use super::{Aws, EcrApi, quietly};
use crate::telemetry::chain;
use crate::upstream::error::{OddToken, TokenError};
use crate::upstream::refresher::{IssuedToken, TokenSource};
use crate::upstream::registry::{EcrHost, Registry};

impl EcrApi {
    async fn fetch_token(self: &Arc<Self>) -> Result<IssuedToken, TokenError> {
        let date = ServerDate::default();
        let (api, seen) = (Arc::clone(self), date.clone());
        let call = async move {
            let client = api.client().await;
            let call = client.get_authorization_token().customize();
            call.interceptor(seen).send().await
        };
        let answer = self.aws.token(call).await?;
        let data = answer
            .authorization_data()
            .first()
            .ok_or(TokenError::Odd(OddToken::Missing))?;
        read(data, &self.host, date.or_now())
    }
}

impl Aws {
    /// What a call for a token is answered. A failure is logged, once until a call succeeds.
    pub(super) async fn token<T, E>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E>>> + Send + 'static,
    ) -> Result<T, TokenError>
    where
        T: Send + 'static,
        E: ProvideErrorMetadata + Send + 'static,
    {
        let answer = quietly(call).await.ok_or(TokenError::Failing)?;
        let answer = answer.map_err(|error| self.explain(&error))?;
        *self.last_told() = None;
        Ok(answer)
    }

    fn last_told(&self) -> MutexGuard<'_, Option<String>> {
        self.last_told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs what AWS said, which may name identities and so goes to our log only, and types it.
    fn explain<E: ProvideErrorMetadata>(&self, error: &SdkError<E>) -> TokenError {
        let reason = classify(error);
        let (code, said) = match error {
            SdkError::ServiceError(service) => (
                service.err().code().unwrap_or_default().to_owned(),
                service.err().message().unwrap_or_default().to_owned(),
            ),
            // Not its Debug form, nor a response that could not be read: that holds the raw answer.
            SdkError::DispatchFailure(failure) => (
                String::new(),
                failure
                    .as_connector_error()
                    .map(|error| without_output(chain(error)))
                    .unwrap_or_default(),
            ),
            _ => (String::new(), String::new()),
        };
        // The same failure again is news to nobody.
        let told = format!("{code} {said}");
        let mut last = self.last_told();
        if last.as_deref() != Some(&told) {
            tracing::warn!(
                upstream.name = %self.upstream,
                aws.code = code,
                aws.message = said,
                error = %reason,
                "GetAuthorizationToken failed",
            );
            *last = Some(told);
        }
        reason
    }
}

impl TokenSource for Arc<EcrApi> {
    fn fetch(&self) -> BoxFuture<'_, Result<IssuedToken, TokenError>> {
        Box::pin(self.fetch_token())
    }
}

fn read(
    data: &AuthorizationData,
    host: &EcrHost,
    answered: SystemTime,
) -> Result<IssuedToken, TokenError> {
    let odd = TokenError::Odd;
    let (token, life) = read_any(data.authorization_token(), data.expires_at(), answered)?;
    // The token is the Basic credential as it is: base64 of user and password.
    let decoded = BASE64_STANDARD
        .decode(token)
        .map_err(|_| odd(OddToken::Malformed))?;
    if !decoded.contains(&b':') {
        return Err(odd(OddToken::Malformed));
    }
    // Accounts may differ, a token reaches whatever its identity may; regions may not.
    let endpoint = data.proxy_endpoint().unwrap_or_default();
    let is_elsewhere = Registry::parse(endpoint.trim_start_matches("https://"))
        .ok()
        .and_then(|registry| registry.ecr().cloned())
        .is_some_and(|named| named.region != host.region);
    if is_elsewhere {
        return Err(odd(OddToken::OtherRegion));
    }
    let authorization =
        HeaderValue::from_str(&format!("Basic {token}")).map_err(|_| odd(OddToken::Malformed))?;
    Ok(IssuedToken {
        authorization,
        life,
    })
}

/// The token and how long it lives. `expiresAt` is compared with the date of the answer itself, so that a
/// wrong clock of ours neither kills a good token nor keeps a dead one.
pub(super) fn read_any<'a>(
    token: Option<&'a str>,
    expires: Option<&DateTime>,
    answered: SystemTime,
) -> Result<(&'a str, Duration), TokenError> {
    let odd = TokenError::Odd;
    let token = token
        .filter(|token| !token.is_empty())
        .ok_or(odd(OddToken::Missing))?;
    let life = expires
        .and_then(|at| SystemTime::try_from(*at).ok())
        .ok_or(odd(OddToken::Malformed))?
        .duration_since(answered)
        .map_err(|_| odd(OddToken::Expired))?;
    Ok((token, life))
}

fn classify<E: ProvideErrorMetadata>(error: &SdkError<E>) -> TokenError {
    let is_intercepted = error.raw_response().is_some_and(|answer| {
        let media_type = answer.headers().get("content-type");
        is_of_a_portal(answer.status().as_u16(), media_type.unwrap_or_default())
    });
    if is_intercepted {
        return TokenError::Intercepted;
    }
    match error {
        SdkError::ServiceError(service) => match service.err().code().unwrap_or_default() {
            "AccessDeniedException" => TokenError::Denied,
            "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded" => {
                TokenError::Throttled
            }
            "ExpiredTokenException"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "MissingAuthenticationToken"
            | "NotAuthorized" => TokenError::NoCredentials,
            _ => TokenError::Failing,
        },
        SdkError::TimeoutError(_) => TokenError::TooSlow,
        SdkError::DispatchFailure(failure) => {
            let mut cause = failure
                .as_connector_error()
                .and_then(|error| error.source());
            while let Some(error) = cause {
                if error.is::<CredentialsError>() {
                    return TokenError::NoCredentials;
                }
                if is_tls_verdict(error) {
                    return TokenError::Intercepted;
                }
                cause = error.source();
            }
            if failure.is_timeout() {
                TokenError::TooSlow
            } else {
                TokenError::Unreachable
            }
        }
        SdkError::ResponseError(_) => TokenError::Odd(OddToken::Malformed),
        // Without credentials the request cannot be built.
        SdkError::ConstructionFailure(_) => TokenError::NoCredentials,
        _ => TokenError::Failing,
    }
}

/// AWS answers in JSON and sends nobody elsewhere; a failing load balancer of its may send a page.
fn is_of_a_portal(status: u16, media_type: &str) -> bool {
    let is_page = media_type.starts_with("text/html") && status < 500;
    (300..400).contains(&status) || is_page || status == 511
}

/// Whether this says that the other end is not trusted, rather than not there.
fn is_tls_verdict(error: &(dyn std::error::Error + 'static)) -> bool {
    // An `io::Error` does not name what it is made of as its source.
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_tls_verdict(inner))
}

/// What the SDK repeats of a credential program's own output may hold what is secret.
fn without_output(said: String) -> String {
    match said.split_once("Stderr:") {
        Some((before, _)) => before.trim_end().to_owned(),
        None => said,
    }
}

/// Remembers the `Date` of an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerDate(Arc<Mutex<Option<SystemTime>>>);

impl ServerDate {
    pub(super) fn or_now(&self) -> SystemTime {
        let date = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        date.unwrap_or_else(SystemTime::now)
    }
}

impl Intercept for ServerDate {
    fn name(&self) -> &'static str {
        "ServerDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> EcrHost {
        let registry = Registry::parse("000042290000.dkr.ecr.us-west-2.amazonaws.com").unwrap();
        registry.ecr().unwrap().clone()
    }

    fn answer(
        token: Option<&str>,
        expires_in: i64,
        endpoint: &str,
    ) -> Result<Duration, TokenError> {
        let answered = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let data = AuthorizationData::builder()
            .set_authorization_token(token.map(Into::into))
            .expires_at((1_000_000 + expires_in).into_date())
            .proxy_endpoint(endpoint)
            .build();
        read(&data, &host(), answered).map(|issued| issued.life)
    }

    trait IntoDate {
        fn into_date(self) -> aws_sdk_ecr::primitives::DateTime;
    }

    impl IntoDate for i64 {
        fn into_date(self) -> aws_sdk_ecr::primitives::DateTime {
            aws_sdk_ecr::primitives::DateTime::from_secs(self)
        }
    }

    #[test]
    fn u27_odd_token_replies_are_typed() {
        let good = BASE64_STANDARD.encode("AWS:secret");
        let own = "https://000042290000.dkr.ecr.us-west-2.amazonaws.com";
        let hours = Duration::from_secs(43_200);
        assert_eq!(answer(Some(&good), 43_200, own), Ok(hours));
        let other_account = "https://111122223333.dkr.ecr.us-west-2.amazonaws.com";
        assert_eq!(answer(Some(&good), 43_200, other_account), Ok(hours));
        let no_colon = BASE64_STANDARD.encode("AWS");
        for (token, expires_in, endpoint, odd) in [
            (None, 43_200, own, OddToken::Missing),
            (Some(""), 43_200, own, OddToken::Missing),
            (Some("not base64!"), 43_200, own, OddToken::Malformed),
            (Some(no_colon.as_str()), 43_200, own, OddToken::Malformed),
            (Some(good.as_str()), -1, own, OddToken::Expired),
            (
                Some(good.as_str()),
                43_200,
                "https://000042290000.dkr.ecr.eu-west-1.amazonaws.com",
                OddToken::OtherRegion,
            ),
        ] {
            assert_eq!(
                answer(token, expires_in, endpoint),
                Err(TokenError::Odd(odd))
            );
        }
    }

    #[test]
    fn a_long_token_is_a_token() {
        let long = BASE64_STANDARD.encode(format!("AWS:{}", "x".repeat(20_000)));
        assert!(answer(Some(&long), 600, "").is_ok());
    }
}
