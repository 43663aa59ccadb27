//! The APIs of ECR, private and public: the one place that knows the AWS SDK.
//!
//! Invariants: what AWS says may name identities, so it goes to our log and nowhere else; an error has a
//! type of ours. A call is never longer than its deadline, and leaves no program behind.
//!
//! | file | is |
//! | --- | --- |
//! | `token`, `public` | tokens of private registries; of ECR Public |
//! | `repositories` | what it tells of repositories, and making new ones |

mod public;
mod repositories;
mod token;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_ecr::config::Region;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::egress::Egress;
use super::programs::contained;
use super::registry::EcrHost;
use super::secret::Secret;

pub(super) use public::PublicApi;
pub(super) use repositories::Making;

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

/// Asks the API of one private registry.
pub(super) struct EcrApi {
    host: EcrHost,
    aws: Aws,
}

/// Calls AWS for one upstream.
struct Aws {
    region: String,
    fips: bool,
    dual_stack: bool,
    options: AwsOptions,
    outside: Outside,
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
        outside: Outside,
        timeout: Duration,
    ) -> Self {
        let mut aws = Aws::new(upstream, &host.region, options, outside, timeout);
        aws.fips = host.fips;
        aws.dual_stack = host.dual_stack;
        Self { host, aws }
    }

    /// A client made for one call, see [`Aws::load`].
    async fn client(&self) -> aws_sdk_ecr::Client {
        let mut config = aws_sdk_ecr::config::Builder::from(&self.aws.load().await);
        if let Some(endpoint) = &self.aws.options.api_endpoint {
            config = config.endpoint_url(endpoint);
        }
        aws_sdk_ecr::Client::from_conf(config.build())
    }
}

impl Aws {
    fn new(
        upstream: Arc<str>,
        region: &str,
        options: AwsOptions,
        outside: Outside,
        timeout: Duration,
    ) -> Self {
        Self {
            region: region.to_owned(),
            fips: false,
            dual_stack: false,
            options,
            outside,
            timeout,
            upstream,
            last_told: Mutex::default(),
        }
    }

    /// What a client is made of for one call. Calls are few, and the SDK remembers profile files for as long as a
    /// client lives: made anew, swapped keys take effect by themselves. A role is then assumed with each call.
    async fn load(&self) -> SdkConfig {
        let has_own_endpoint =
            self.options.api_endpoint.is_some() || self.options.endpoint_in_environment;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .operation_attempt_timeout(self.timeout / 2)
            .operation_timeout(self.timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .timeout_config(timeouts);
        let client = self.outside.client(has_own_endpoint);
        if let Some(client) = &client {
            loader = loader.http_client(client.clone());
        }
        if !has_own_endpoint {
            // The SDK refuses these together with an endpoint of one's own.
            loader = loader.use_fips(self.fips).use_dual_stack(self.dual_stack);
        }
        if let Some(profile) = &self.options.profile {
            let mut provider = ProviderConfig::without_region()
                .with_region(Some(Region::new(self.region.clone())))
                .with_behavior_version(Some(BehaviorVersion::latest()))
                .with_use_fips((!has_own_endpoint).then_some(self.fips))
                .with_use_dual_stack((!has_own_endpoint).then_some(self.dual_stack));
            if let Some(client) = client {
                provider = provider.with_http_client(client);
            }
            loader = loader.profile_name(profile);
            loader = loader.credentials_provider(of_profile(profile, &provider).await);
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
        let Some(role) = &self.options.role else {
            return shared;
        };
        let mut assumed = AssumeRoleProvider::builder(&role.arn)
            .session_name(&role.session_name)
            .configure(&shared);
        if let Some(id) = &role.external_id {
            assumed = assumed.external_id(id);
        }
        let assumed = SharedCredentialsProvider::new(assumed.build().await);
        shared.into_builder().credentials_provider(assumed).build()
    }
}

/// The credentials of a profile, and only where it has none what else there is: by themselves keys in the
/// environment come before any profile, and would be those of all upstreams.
async fn of_profile(profile: &str, provider: &ProviderConfig) -> CredentialsProviderChain {
    let own = ProfileFileCredentialsProvider::builder()
        .configure(provider)
        .profile_name(profile)
        .build();
    let others = DefaultCredentialsChain::builder()
        .configure(provider.clone())
        .profile_name(profile);
    CredentialsProviderChain::first_try("Profile", own).or_else("Default", others.build().await)
}

/// Makes a call of the SDK's, which at its finest level logs whole answers, tokens among them, and so logs
/// nothing; `None` if it panicked.
///
/// # Cancel safety
/// As that of [`contained`].
async fn quietly<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> Option<T> {
    contained(call.with_subscriber(NoSubscriber::new())).await
}

/// What is between us and AWS.
pub(super) struct Outside {
    /// Further roots, PEM.
    roots: Vec<String>,
    egress: Option<Egress>,
}

impl Outside {
    pub(super) fn new(roots: &[CertificateDer<'static>], egress: Option<Egress>) -> Self {
        Self {
            roots: roots.iter().map(|root| pem(root)).collect(),
            egress,
        }
    }

    /// A client of other making than the SDK's own, where that would not do. The roots are trusted for an
    /// endpoint of the operator's only.
    fn client(&self, has_own_endpoint: bool) -> Option<aws_sdk_ecr::config::SharedHttpClient> {
        let roots = if has_own_endpoint {
            &self.roots[..]
        } else {
            &[]
        };
        if roots.is_empty() && self.egress.is_none() {
            return None;
        }
        let mut store = tls::TrustStore::default();
        for root in roots {
            store.add_pem_certificate(root.as_bytes());
        }
        let context = tls::TlsContext::builder().with_trust_store(store).build();
        let context = context.unwrap_or_default();
        let proxy = self.egress.as_ref().and_then(|egress| {
            let (address, except) = egress.for_others();
            // Only of HTTPS: what gives credentials on this host or beside it speaks plain HTTP.
            Some(ProxyConfig::https(address).ok()?.no_proxy(except))
        });
        let proxy = proxy.unwrap_or_else(ProxyConfig::disabled);
        let client = aws_smithy_http_client::Builder::new();
        let client = client.build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder().proxy_config(proxy.clone());
            if let Some(settings) = settings {
                connector = connector.connector_settings(settings.clone());
            }
            // Without it, connecting would have no deadline of its own.
            let sleep = components.and_then(|components| components.sleep_impl());
            if let Some(sleep) = sleep {
                connector = connector.sleep_impl(sleep);
            }
            let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
            let connector = connector.tls_provider(provider);
            connector.tls_context(context.clone()).build()
        });
        Some(client)
    }
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

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::config::interceptors::BeforeTransmitInterceptorContextRef;
    use aws_sdk_ecr::config::{ConfigBag, Intercept, RuntimeComponents};
    use aws_sdk_ecr::error::BoxError;

    use super::*;
    use crate::upstream::registry::Registry;

    /// Remembers which host a call would go to, and lets it go nowhere.
    #[derive(Clone, Debug, Default)]
    struct Host(Arc<Mutex<String>>);

    impl Intercept for Host {
        fn name(&self) -> &'static str {
            "Host"
        }

        fn read_before_transmit(
            &self,
            context: &BeforeTransmitInterceptorContextRef<'_>,
            _: &RuntimeComponents,
            _: &mut ConfigBag,
        ) -> Result<(), BoxError> {
            let uri: http::Uri = context.request().uri().parse()?;
            *self.0.lock().unwrap() = uri.host().unwrap_or_default().to_owned();
            Err("seen enough".into())
        }
    }

    #[tokio::test]
    async fn the_api_is_asked_at_the_host_that_goes_with_the_registry() {
        for (registry, expected) in [
            (
                "dkr.ecr.us-west-2.amazonaws.com",
                "api.ecr.us-west-2.amazonaws.com",
            ),
            ("dkr-ecr.eu-west-1.on.aws", "ecr.eu-west-1.api.aws"),
            (
                "dkr.ecr-fips.us-east-1.amazonaws.com",
                "api.ecr-fips.us-east-1.amazonaws.com",
            ),
            (
                "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "api.ecr-fips.us-gov-west-1.amazonaws.com",
            ),
            (
                "dkr-ecr-fips.us-east-1.on.aws",
                "ecr-fips.us-east-1.api.aws",
            ),
            (
                "dkr.ecr.cn-north-1.amazonaws.com.cn",
                "api.ecr.cn-north-1.amazonaws.com.cn",
            ),
            (
                "dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "ecr.cn-north-1.api.amazonwebservices.com.cn",
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "api.ecr.eusc-de-east-1.amazonaws.eu",
            ),
            (
                "dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "api.ecr.us-iso-east-1.c2s.ic.gov",
            ),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "api.ecr.us-isob-east-1.sc2s.sgov.gov",
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "api.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "api.ecr.us-isof-south-1.csp.hci.ic.gov",
            ),
        ] {
            let registry = Registry::parse(&format!("000042290000.{registry}")).unwrap();
            let options = AwsOptions {
                keys: Some(StaticKeys {
                    access_key_id: "AKIATEST".to_owned(),
                    secret_access_key: Secret::new("test"),
                }),
                ..AwsOptions::default()
            };
            let host = registry.ecr().unwrap().clone();
            let api = EcrApi::new(
                "test".into(),
                host,
                options,
                Outside::new(&[], None),
                Duration::from_secs(1),
            );
            let seen = Host::default();
            let call = api.client().await.get_authorization_token().customize();
            let answer = call.interceptor(seen.clone()).send().await;
            assert!(answer.is_err(), "nothing was sent");
            assert_eq!(*seen.0.lock().unwrap(), expected, "{registry}");
        }
    }
}
