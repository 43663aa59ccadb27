//! What the API tells of repositories, and making new ones.

use std::error::Error as _;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_ecr::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_ecr::config::retry::RetryConfig;
use aws_sdk_ecr::config::{Config, ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ecr::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::create_repository::builders::CreateRepositoryFluentBuilder;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageScanningConfiguration, ImageTagMutability,
    ImageTagMutabilityExclusionFilter, ImageTagMutabilityExclusionFilterType, Tag,
};
use http::HeaderMap;
use tokio::time::Instant;

use super::{EcrApi, quietly};
use crate::oci::RepositoryName;
use crate::upstream::creation::{Created, Encryption, NotMade, Template};
use crate::upstream::error::{Absent, Deadline, Unreachable, UpstreamError};
use crate::upstream::gate::{Gate, Pass, backoff};
use crate::upstream::meter::Meter;
use crate::upstream::mutability::TagMutability;
use crate::upstream::told::{Told, redacted};

/// Attempts to make one repository, the first included and those that are throttled not.
const MAX_ATTEMPTS: u32 = 3;
/// When to ask again for what AWS throttles without saying for how long.
const THROTTLED_FOR: Duration = Duration::from_secs(2);

/// What all calls that make repositories have in common: AWS throttles the account and no repository, so what
/// one of them is told holds for all. One gate is for repositories and their policies, as whichever is made
/// wants its policy next.
pub(in crate::upstream) struct Making {
    gate: Gate,
    /// For how long throttling is waited out before a repository is not made.
    absorb_throttle: Duration,
    meter: Meter,
}

impl Making {
    pub(in crate::upstream) fn new(absorb_throttle: Duration, meter: Meter) -> Self {
        Self {
            gate: Gate::open(),
            absorb_throttle,
            meter,
        }
    }

    /// When what is begun now has waited for long enough.
    pub(in crate::upstream) fn absorbed_by(&self) -> Instant {
        Instant::now() + self.absorb_throttle
    }

    async fn pass(&self, deadline: Instant) -> Result<Pass<'_>, UpstreamError> {
        let pass = self.gate.pass(deadline).await;
        pass.map_err(|retry_after| UpstreamError::Throttled { retry_after })
    }

    /// Takes a failure for what it says of all calls: where AWS throttles, for how long nothing goes.
    fn heard<E>(
        &self,
        pass: Pass<'_>,
        error: &SdkError<E>,
        reason: &UpstreamError,
    ) -> Option<Duration> {
        match (error, reason) {
            (_, UpstreamError::Throttled { .. }) => {
                self.meter.throttled();
                // Its API does not say for how long.
                return Some(pass.throttled(&HeaderMap::new()));
            }
            (SdkError::ServiceError(_), _) => pass.answered(),
            _ => drop(pass),
        }
        None
    }
}

impl EcrApi {
    /// Which tags of a repository may move.
    ///
    /// # Errors
    /// [`UpstreamError::Refused`] without the permission to ask, which is not needed for anything else;
    /// [`UpstreamError::Absent`] if there is no such repository; otherwise that nobody answered.
    pub(in crate::upstream) async fn tag_mutability(
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
        let answer = quietly(call).await;
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

    /// Makes a repository, which may be there by now. What AWS throttles is waited out with all others.
    ///
    /// # Errors
    /// [`UpstreamError::Refused`] without the permission, [`UpstreamError::Told`] where AWS refuses this
    /// one, [`UpstreamError::Throttled`] where it has no time for long; otherwise that nobody answered as it
    /// should. Each with whether it may have been made.
    pub(in crate::upstream) async fn create_repository(
        self: &Arc<Self>,
        repository: &RepositoryName,
        template: &Template,
        making: &Making,
    ) -> Result<Created, NotMade> {
        let mut began = Instant::now();
        let absorbed_by = making.absorbed_by();
        let mut is_unclear = false;
        let mut attempt = 1;
        loop {
            let at_gate = Instant::now();
            let pass = making.pass(absorbed_by).await;
            let pass = pass.map_err(|error| NotMade { error, is_unclear })?;
            began += at_gate.elapsed();
            let (api, name) = (Arc::clone(self), repository.as_str().to_owned());
            let template = template.clone();
            let sent = Sent::default();
            let seen = sent.clone();
            let call = async move {
                let call = api.client().await.create_repository();
                let call = call.registry_id(&*api.host.account).repository_name(name);
                let call = filled_in(call, &template).map_err(SdkError::construction_failure)?;
                // The SDK would not tell which attempt it was that found it there.
                let once = Config::builder().retry_config(RetryConfig::disabled());
                let call = call.customize().config_override(once);
                call.interceptor(seen).send().await
            };
            let Some(answer) = quietly(call).await else {
                return Err(NotMade {
                    error: UpstreamError::Failing { status: 500 },
                    is_unclear: is_unclear || sent.is_so(),
                });
            };
            let Err(error) = answer else {
                pass.answered();
                return Ok(Created::New);
            };
            if error.code() == Some("RepositoryAlreadyExistsException") {
                pass.answered();
                // It may be our own, of an attempt whose answer was lost.
                return Ok(match is_unclear {
                    true => Created::New,
                    false => Created::Existed,
                });
            }
            let reason = self.refusal(&error);
            is_unclear |= sent.is_so() && !is_certainly_undone(&error, &reason);
            let throttled = making.heard(pass, &error, &reason);
            if throttled.is_some_and(|pause| Instant::now() + pause <= absorbed_by) {
                continue;
            }
            let is_late = began.elapsed() >= self.aws.timeout;
            let is_last = attempt == MAX_ATTEMPTS || is_late || throttled.is_some();
            if is_last || !reason.retryable() {
                self.log_failure("CreateRepository", repository, &error, &reason);
                let error = throttled.map_or(reason, |retry_after| UpstreamError::Throttled {
                    retry_after,
                });
                return Err(NotMade { error, is_unclear });
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        }
    }

    /// Whether a repository has a lifecycle policy. Until `deadline` it waits for its turn while AWS throttles.
    ///
    /// # Errors
    /// As [`EcrApi::create_repository`].
    pub(in crate::upstream) async fn has_lifecycle_policy(
        self: &Arc<Self>,
        repository: &RepositoryName,
        making: &Making,
        deadline: Instant,
    ) -> Result<bool, UpstreamError> {
        let pass = making.pass(deadline).await?;
        let (api, name) = (Arc::clone(self), repository.as_str().to_owned());
        let call = async move {
            let call = api.client().await.get_lifecycle_policy();
            let call = call.registry_id(&*api.host.account).repository_name(name);
            call.send().await
        };
        let answer = quietly(call).await;
        let answer = answer.ok_or(UpstreamError::Failing { status: 500 })?;
        match answer {
            Ok(_) => {
                pass.answered();
                Ok(true)
            }
            Err(error) if error.code() == Some("LifecyclePolicyNotFoundException") => {
                pass.answered();
                Ok(false)
            }
            Err(error) => {
                let reason = self.refusal(&error);
                making.heard(pass, &error, &reason);
                self.log_failure("GetLifecyclePolicy", repository, &error, &reason);
                Err(reason)
            }
        }
    }

    /// Gives a repository its lifecycle policy. Until `deadline` it waits for its turn while AWS throttles.
    ///
    /// # Errors
    /// As [`EcrApi::create_repository`].
    pub(in crate::upstream) async fn put_lifecycle_policy(
        self: &Arc<Self>,
        repository: &RepositoryName,
        policy: &str,
        making: &Making,
        deadline: Instant,
    ) -> Result<(), UpstreamError> {
        let pass = making.pass(deadline).await?;
        let (api, name) = (Arc::clone(self), repository.as_str().to_owned());
        let policy = policy.to_owned();
        let call = async move {
            let call = api.client().await.put_lifecycle_policy();
            let call = call.registry_id(&*api.host.account).repository_name(name);
            call.lifecycle_policy_text(policy).send().await
        };
        let answer = quietly(call).await;
        let answer = answer.ok_or(UpstreamError::Failing { status: 500 })?;
        match answer {
            Ok(_) => {
                pass.answered();
                Ok(())
            }
            Err(error) => {
                let reason = self.refusal(&error);
                making.heard(pass, &error, &reason);
                self.log_failure("PutLifecyclePolicy", repository, &error, &reason);
                Err(reason)
            }
        }
    }

    /// What a failed call says, as far as clients may know.
    fn refusal<E: ProvideErrorMetadata>(&self, error: &SdkError<E>) -> UpstreamError {
        let service = match error {
            SdkError::ServiceError(service) => service.err(),
            SdkError::TimeoutError(_) => return UpstreamError::TooSlow(Deadline::FirstByte),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                return UpstreamError::TooSlow(Deadline::Connect);
            }
            _ => return UpstreamError::Unreachable(Unreachable::Connect),
        };
        match service.code().unwrap_or_default() {
            "AccessDeniedException" => UpstreamError::Refused,
            "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded" => {
                UpstreamError::Throttled {
                    retry_after: THROTTLED_FOR,
                }
            }
            "LimitExceededException"
            | "InvalidParameterException"
            | "InvalidTagParameterException"
            | "TooManyTagsException"
            | "ValidationException"
            | "KmsException" => {
                let said = redacted(service.message().unwrap_or_default(), &[]);
                UpstreamError::Told(Told {
                    status: 403,
                    code: "DENIED".into(),
                    message: format!(
                        "there is no such repository, and none can be created: {said}"
                    ),
                    is_own: true,
                })
            }
            _ => UpstreamError::Failing { status: 500 },
        }
    }

    /// What AWS said names identities, and so goes to our log only.
    fn log_failure<E: ProvideErrorMetadata>(
        &self,
        action: &str,
        repository: &RepositoryName,
        error: &SdkError<E>,
        reason: &UpstreamError,
    ) {
        tracing::warn!(
            upstream.name = %self.aws.upstream,
            oci.repository = %repository,
            aws.action = action,
            aws.code = error.code().unwrap_or_default(),
            aws.message = error.message().unwrap_or_default(),
            error = %reason,
            "a new repository is not as it should be",
        );
    }
}

/// Whether a call that failed has certainly changed nothing: it came to nobody, or AWS has refused it.
fn is_certainly_undone<E>(error: &SdkError<E>, reason: &UpstreamError) -> bool {
    match error {
        SdkError::ConstructionFailure(_) => true,
        SdkError::DispatchFailure(failure) => {
            let failure = failure.as_connector_error();
            let first = failure.and_then(|failure| failure.source());
            let mut causes = iter::successors(first, |cause| (*cause).source());
            causes.any(|cause| {
                let cause = cause.downcast_ref::<hyper_util::client::legacy::Error>();
                cause.is_some_and(hyper_util::client::legacy::Error::is_connect)
            })
        }
        SdkError::ServiceError(answer) => {
            answer.raw().status().is_client_error()
                || matches!(reason, UpstreamError::Throttled { .. })
        }
        // An answer that did not come, or that nobody can read.
        _ => false,
    }
}

/// Whether a call came as far as a connection: before that there are credentials to obtain.
#[derive(Clone, Debug, Default)]
struct Sent(Arc<AtomicBool>);

impl Sent {
    fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for Sent {
    fn name(&self) -> &'static str {
        "Sent"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The call with what the template says.
fn filled_in(
    call: CreateRepositoryFluentBuilder,
    template: &Template,
) -> Result<CreateRepositoryFluentBuilder, aws_sdk_ecr::error::BuildError> {
    let Template {
        lifecycle_policy: _,
        tags_move,
        scan_on_push,
        encryption,
        tags,
    } = template;
    let mut call = call;
    if let Some(tags_move) = tags_move {
        call = call.image_tag_mutability(match (tags_move.may, tags_move.except.is_empty()) {
            (true, true) => ImageTagMutability::Mutable,
            (true, false) => ImageTagMutability::MutableWithExclusion,
            (false, true) => ImageTagMutability::Immutable,
            (false, false) => ImageTagMutability::ImmutableWithExclusion,
        });
        for filter in &tags_move.except {
            let filter = ImageTagMutabilityExclusionFilter::builder()
                .filter_type(ImageTagMutabilityExclusionFilterType::Wildcard)
                .filter(filter);
            call = call.image_tag_mutability_exclusion_filters(filter.build()?);
        }
    }
    if let Some(scan) = scan_on_push {
        let scanning = ImageScanningConfiguration::builder().scan_on_push(*scan);
        call = call.image_scanning_configuration(scanning.build());
    }
    if let Some(encryption) = encryption {
        let (kind, key) = match encryption {
            Encryption::Aes256 => (EncryptionType::Aes256, None),
            Encryption::Kms {
                is_double: false,
                key,
            } => (EncryptionType::Kms, key.clone()),
            Encryption::Kms {
                is_double: true,
                key,
            } => (EncryptionType::KmsDsse, key.clone()),
        };
        let configuration = EncryptionConfiguration::builder()
            .encryption_type(kind)
            .set_kms_key(key);
        call = call.encryption_configuration(configuration.build()?);
    }
    for (key, value) in tags {
        call = call.tags(Tag::builder().key(key).value(value).build()?);
    }
    Ok(call)
}
