//! The API of private ECR registries, for tokens and for what it tells of repositories: the one file that
//! knows the AWS SDK.

use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_ecr::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_ecr::config::{ConfigBag, Intercept, Region, RuntimeComponents};
use aws_sdk_ecr::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenError;
use aws_sdk_ecr::types::{AuthorizationData, ImageTagMutability};
use aws_smithy_http_client::tls;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::oci::RepositoryName;

use super::error::{Absent, OddToken, TokenError, Unreachable, UpstreamError};
use super::mutability::TagMutability;
use super::programs::contained;
use super::registry::{EcrHost, Registry};
use super::secret::Secret;
use super::token::{IssuedToken, TokenSource};
use crate::telemetry::chain;

/// The SDK bounds only connecting, by itself; an attempt that hangs must leave time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How to come by AWS credentials and where to use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsOptions {
    /// A profile of the shared configuration files, instead of the default one.
    pub profile: Option<String>,
    /// Keys to use instead of the default chain.
    pub keys: Option<StaticKeys>,
    /// A role to assume with what the above lead to.
    pub role: Option<Role>,
    /// The ECR API, if elsewhere than at AWS and not named by the SDK's own `AWS_ENDPOINT_URL_ECR`.
    pub api_endpoint: Option<String>,
    /// True where an `AWS_ENDPOINT_URL…` variable is set: the API then has an operator's certificate, and
    /// the upstream's extra roots are trusted for it. AWS itself is never trusted by them.
    pub endpoint_in_environment: bool,
}

/// A role to assume, perhaps of another account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// `arn:aws:iam::ACCOUNT:role/NAME`.
    pub arn: String,
    /// What the role's trust policy may ask for as `sts:ExternalId`.
    pub external_id: Option<String>,
    /// How the role's account sees who assumed it.
    pub session_name: String,
}

/// A fixed pair of AWS keys.
#[derive(Clone, PartialEq, Eq)]
pub struct StaticKeys {
    /// `AKIA…`.
    pub access_key_id: String,
    /// The secret to it.
    pub secret_access_key: Secret,
}

impl fmt::Debug for StaticKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticKeys(redacted)")
    }
}

/// Asks the API of one registry.
pub(super) struct EcrApi {
    host: EcrHost,
    options: AwsOptions,
    /// PEM.
    roots: Vec<String>,
    /// For all attempts of one call together.
    timeout: Duration,
    upstream: Arc<str>,
    /// The failure that was last logged.
    last_told: Mutex<Option<String>>,
}

impl EcrApi {
    pub(super) fn new(
        upstream: Arc<str>,
        host: EcrHost,
        options: AwsOptions,
        roots: &[CertificateDer<'static>],
        timeout: Duration,
    ) -> Self {
        Self {
            host,
            options,
            roots: roots.iter().map(|root| pem(root)).collect(),
            timeout,
            upstream,
            last_told: Mutex::default(),
        }
    }

    /// A client made for one call. Calls are hours apart, and the SDK remembers profile files for as
    /// long as a client lives: made anew, swapped keys take effect by themselves.
    async fn client(&self) -> aws_sdk_ecr::Client {
        let has_own_endpoint =
            self.options.api_endpoint.is_some() || self.options.endpoint_in_environment;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .operation_attempt_timeout(self.timeout / 2)
            .operation_timeout(self.timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.host.region.clone()))
            .timeout_config(timeouts);
        if has_own_endpoint {
            if !self.roots.is_empty() {
                loader = loader.http_client(trusting_client(&self.roots));
            }
        } else {
            // The SDK refuses these together with an endpoint of one's own.
            loader = loader
                .use_fips(self.host.fips)
                .use_dual_stack(self.host.dual_stack);
        }
        if let Some(profile) = &self.options.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(keys) = &self.options.keys {
            let credentials = Credentials::new(
                &keys.access_key_id,
                keys.secret_access_key.reveal(),
                None,
                None,
                "configuration",
            );
            loader = loader.credentials_provider(SharedCredentialsProvider::new(credentials));
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_ecr::config::Builder::from(&shared);
        if let Some(role) = &self.options.role {
            let mut assumed = AssumeRoleProvider::builder(&role.arn)
                .session_name(&role.session_name)
                .configure(&shared);
            if let Some(id) = &role.external_id {
                assumed = assumed.external_id(id);
            }
            config = config.credentials_provider(assumed.build().await);
        }
        if let Some(endpoint) = &self.options.api_endpoint {
            config = config.endpoint_url(endpoint);
        }
        aws_sdk_ecr::Client::from_conf(config.build())
    }

    async fn fetch_token(self: &Arc<Self>) -> Result<IssuedToken, TokenError> {
        let date = ServerDate::default();
        let (api, seen) = (Arc::clone(self), date.clone());
        let call = async move {
            let client = api.client().await;
            let call = client.get_authorization_token().customize();
            call.interceptor(seen).send().await
        };
        // At its finest level the SDK logs whole answers, and this one is the token.
        let answer = contained(call.with_subscriber(NoSubscriber::new()))
            .await
            .ok_or(TokenError::Failing)?
            .map_err(|error| self.explain(&error))?;
        *self.last_told() = None;
        let data = answer
            .authorization_data()
            .first()
            .ok_or(TokenError::Odd(OddToken::Missing))?;
        read(data, &self.host, date.or_now())
    }

    /// Which tags of a repository may move.
    ///
    /// # Errors
    /// [`UpstreamError::Refused`] without the permission to ask, which is not needed for anything else;
    /// [`UpstreamError::Absent`] if there is no such repository; otherwise that nobody answered.
    pub(super) async fn tag_mutability(
        self: &Arc<Self>,
        repository: &RepositoryName,
    ) -> Result<TagMutability, UpstreamError> {
        let (api, name) = (Arc::clone(self), repository.as_str().to_owned());
        let call = async move {
            let client = api.client().await;
            let call = client.describe_repositories();
            call.registry_id(&*api.host.account)
                .repository_names(name)
                .send()
                .await
        };
        let answer = contained(call.with_subscriber(NoSubscriber::new())).await;
        let answer = answer.ok_or(UpstreamError::Failing { status: 500 })?;
        let answer = answer.map_err(|error| match &error {
            SdkError::ServiceError(service) => match service.err().code().unwrap_or_default() {
                "AccessDeniedException" => UpstreamError::Refused,
                "RepositoryNotFoundException" => UpstreamError::Absent(Absent::Repository),
                _ => UpstreamError::Failing { status: 500 },
            },
            _ => UpstreamError::Unreachable(Unreachable::Connect),
        })?;
        let described = answer.repositories().first();
        let described = described.ok_or(UpstreamError::Absent(Absent::Repository))?;
        let filters = described.image_tag_mutability_exclusion_filters();
        let filters = filters.iter().map(|filter| filter.filter());
        Ok(match described.image_tag_mutability() {
            Some(ImageTagMutability::Immutable) => TagMutability::immutable_except([]),
            Some(ImageTagMutability::ImmutableWithExclusion) => {
                TagMutability::immutable_except(filters)
            }
            Some(ImageTagMutability::MutableWithExclusion) => {
                TagMutability::mutable_except(filters)
            }
            // What is new is taken for what needs asking.
            Some(_) | None => TagMutability::mutable_except([]),
        })
    }

    fn last_told(&self) -> MutexGuard<'_, Option<String>> {
        self.last_told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs what AWS said, which may name identities and so goes to our log only, and types it.
    fn explain(&self, error: &SdkError<GetAuthorizationTokenError>) -> TokenError {
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

/// Reads the answer. `expiresAt` is compared with the date of the answer itself, so that a wrong clock
/// of ours neither kills a good token nor keeps a dead one.
fn read(
    data: &AuthorizationData,
    host: &EcrHost,
    answered: SystemTime,
) -> Result<IssuedToken, TokenError> {
    let odd = TokenError::Odd;
    let token = data
        .authorization_token()
        .filter(|token| !token.is_empty())
        .ok_or(odd(OddToken::Missing))?;
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
    let expires = data
        .expires_at()
        .and_then(|at| SystemTime::try_from(*at).ok())
        .ok_or(odd(OddToken::Malformed))?;
    let life = expires
        .duration_since(answered)
        .map_err(|_| odd(OddToken::Expired))?;
    let authorization =
        HeaderValue::from_str(&format!("Basic {token}")).map_err(|_| odd(OddToken::Malformed))?;
    Ok(IssuedToken {
        authorization,
        life,
    })
}

fn classify(error: &SdkError<GetAuthorizationTokenError>) -> TokenError {
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

fn trusting_client(roots: &[String]) -> aws_sdk_ecr::config::SharedHttpClient {
    let mut store = tls::TrustStore::default();
    for root in roots {
        store.add_pem_certificate(root.as_bytes());
    }
    let context = tls::TlsContext::builder()
        .with_trust_store(store)
        .build()
        .unwrap_or_default();
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .tls_context(context)
        .build_https()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let base64 = BASE64_STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Remembers the `Date` of an answer.
#[derive(Clone, Debug, Default)]
struct ServerDate(Arc<Mutex<Option<SystemTime>>>);

impl ServerDate {
    fn or_now(&self) -> SystemTime {
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
