//! Talking to a registry: logging in, asking, following redirects to storage, within deadlines.
//!
//! Invariants: a credential is sent to the origin it was obtained for and nowhere else; every wait ends;
//! what comes back is what was asked for, or an [`UpstreamError`] that names no secret. Nothing happens
//! on the network before something is asked.
//!
//! It knows nothing of clients, of the cache, or of who may read what.
//!
//! | file | is |
//! | --- | --- |
//! | `upstreams` | all of them, by name |
//! | `options` | one as it is configured |
//! | `registry`, `origin` | what a registry's name says; where a request goes |
//! | `connect`, `egress`, `client` | a connection, perhaps through a proxy; one request |
//! | `question`, `exchange`, `fetch`, `said` | a question; asked until it is answered; followed to where the content is; what the answer says |
//! | `behalf` | a question asked once, with the credential of whoever wants to know |
//! | `token`, `refresher` | a credential; the token engine, which keeps one that is good |
//! | `credentials`, `challenged` | what to send, and what to do when it is refused; where the registry asks first |
//! | `scope`, `realm` | what a token has to be good for; which token services speak for a registry |
//! | `ecr`, `bearer` | where tokens come from |
//! | `programs` | that no program run for credentials is left behind |
//! | `mutability`, `creation`, `unfinished` | which tags of a repository may move; repositories that appear when pushed to; those that are being made |
//! | `quota`, `gate`, `breaker` | keeping to what a registry takes; obeying one that throttles; not waiting for one that does not answer |
//! | `allowance` | how many pulls a registry still allows, as it tells |
//! | `redirect`, `storage` | where blobs may be, and whether that answers |
//! | `portal` | whether another answers in the registry's place |
//! | `bandwidth` | how fast blobs may come, and who gives way to whom |
//! | `manifest`, `blob`, `lists`, `check` | the questions |
//! | `body` | the bytes of a blob as they come |
//! | `metrics`, `meter` | what operators watch; counting for one upstream |
//! | `upload`, `sending`, `told` | pushing: what is asked, what it carries, and the registry's own words |

mod allowance;
mod bandwidth;
mod bearer;
mod behalf;
mod blob;
mod body;
mod breaker;
mod challenged;
mod check;
mod client;
mod connect;
mod creation;
mod credentials;
mod ecr;
mod egress;
mod error;
mod exchange;
mod fetch;
mod gate;
mod lists;
mod manifest;
mod meter;
mod metrics;
mod mutability;
mod options;
mod origin;
mod portal;
mod programs;
mod question;
mod quota;
mod realm;
mod redirect;
mod refresher;
mod registry;
mod said;
mod scope;
mod secret;
mod sending;
mod storage;
mod token;
mod told;
mod unfinished;
mod upload;
mod upstreams;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::response::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use rustls::pki_types::ServerName;

pub use allowance::Allowance;
pub use bandwidth::{Interest, Line, Rate};
#[cfg(any(test, fuzzing))]
pub use bearer::fuzz_token_reply;
pub use body::{BlobBody, Span, Validator};
pub use breaker::Outage;
pub use check::{Ping, Skew};
pub use creation::{Creation, Encryption, TagsMove, Template};
pub use ecr::{AwsOptions, Role, StaticKeys};
pub use egress::{Egress, ParseEgressError};
pub use error::{
    Absent, Deadline, OddToken, RefusedRealm, RefusedRedirect, TokenError, Unreachable,
    UpstreamError, Wrong,
};
pub use lists::{NamePage, ReferrersPage};
pub use manifest::{FetchedManifest, ManifestHead};
pub use metrics::UpstreamMetrics;
pub use mutability::TagMutability;
pub use options::{Auth, ExtraRoots, Limits, SetupError, UpstreamOptions, roots_from_pem};
pub use quota::{ParseQuotaError, Quota, QuotaAction, Quotas};
pub use redirect::{HostPattern, ParseHostPatternError};
pub use refresher::TokenStatus;
pub use registry::{EcrHost, ParseRegistryError, Registry, RegistryKind};
pub use secret::Secret;
pub use sending::Feed;
pub use told::Told;
pub use upload::{Begun, PutManifest, UploadBody, UploadPlace, upload_body};
pub use upstreams::{PreparedUpstreams, UpstreamSet, Upstreams};

use crate::oci::RepositoryName;
use allowance::LastAllowance;
use breaker::{Breaker, Probe};
use challenged::{Challenged, Login};
use client::{Client, Outgoing};
use connect::{Dialer, DialerOptions};
use creation::Creator;
use credentials::Credentials;
use ecr::{EcrApi, Outside, PublicApi};
use gate::{Gate, RetryBudget};
use meter::Meter;
use options::Terms;
use origin::{Origin, Reach};
use question::Kind;
use quota::Pace;
use realm::Realms;
use redirect::RedirectPolicy;
use refresher::Refresher;
use storage::Storage;
use token::Token;

/// One registry. Clones are the same upstream.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
    /// Asked with instead of our own credentials.
    caller: Option<Arc<Token>>,
}

struct Shared {
    /// What it was built from; its [`Terms`] may be others by now.
    options: UpstreamOptions,
    terms: ArcSwap<Terms>,
    /// Scheme and authority of where the registry is reached.
    base: Uri,
    /// Where the registry is by its own name, and where it is reached.
    homes: [Origin; 2],
    /// The registry's own authority, whatever it is reached by.
    host: HeaderValue,
    client: Arc<Client>,
    credentials: Arc<Credentials>,
    /// What tells of repositories beside the registry.
    ecr: Option<Arc<EcrApi>>,
    /// What makes repositories that are pushed to.
    creator: Option<Arc<Creator>>,
    breaker: Breaker,
    storage: Storage,
    allowance: LastAllowance,
    redirects: RedirectPolicy,
    pace: Pace,
    gate: Gate,
    budget: RetryBudget,
    /// What every blob passes: its own line, and the one shared with other upstreams.
    lines: [Line; 2],
    meter: Meter,
}

impl Upstream {
    /// Sets an upstream up by itself, without touching the network.
    ///
    /// # Errors
    /// When the options contradict each other, or one is not what it should be.
    pub fn new(options: UpstreamOptions, metrics: &UpstreamMetrics) -> Result<Self, SetupError> {
        let upstream = Self::on_line(options, metrics, Line::shared(None))?;
        upstream.shared.meter.begin();
        Ok(upstream)
    }

    /// Sets one up whose blobs pass `line` as well. It is not shown by its gauges until they begin.
    fn on_line(
        options: UpstreamOptions,
        metrics: &UpstreamMetrics,
        line: Line,
    ) -> Result<Self, SetupError> {
        let terms = options.terms();
        let UpstreamOptions {
            name,
            registry,
            auth,
            endpoint,
            endpoint_tls_name,
            extra_roots,
            egress,
            redirect_hosts,
            token_hosts,
            creation,
            creation_notes,
            quotas,
            limits,
            ..
        } = options.clone();
        let own_address: Uri = format!("https://{}/", registry.authority())
            .parse()
            .map_err(|_| SetupError::Endpoint)?;
        let own = Origin::of(&own_address).ok_or(SetupError::Endpoint)?;
        let base = endpoint.unwrap_or(own_address);
        let home = Origin::of(&base).ok_or(SetupError::Endpoint)?;
        if !matches!(
            base.path_and_query().map(PathAndQuery::as_str),
            None | Some("/")
        ) {
            return Err(SetupError::Endpoint);
        }
        if base.scheme() == Some(&Scheme::HTTP) && home.reach() != Reach::Loopback {
            return Err(SetupError::PlainEndpoint);
        }
        let home_tls_name = endpoint_tls_name
            .map(ServerName::try_from)
            .transpose()
            .map_err(|_| SetupError::TlsName)?;
        let meter = metrics.meter(Arc::clone(&name));
        let dialer = Dialer::new(DialerOptions {
            home: home.clone(),
            home_tls_name,
            listed: [&redirect_hosts[..], &token_hosts[..]].concat(),
            extra_roots: extra_roots.clone(),
            egress: egress.clone(),
            timeout: limits.connect,
        })
        .map_err(SetupError::Roots)?;
        let client = Arc::new(Client::new(dialer, &limits, meter.clone()));
        let challenged = |login| {
            Credentials::Challenged(Box::new(Challenged::new(
                login,
                Realms {
                    registry: own.clone(),
                    home: home.clone(),
                    known: match registry.kind() {
                        RegistryKind::DockerHub => &["auth.docker.io"],
                        RegistryKind::Ecr(_) | RegistryKind::EcrPublic | RegistryKind::Other => &[],
                    },
                    listed: token_hosts.clone(),
                },
                Arc::clone(&client),
                limits.token,
                meter.clone(),
            )))
        };
        let mut ecr = None;
        let credentials = match auth {
            Auth::Aws(aws) => {
                let (home, timeout, meter) = (home.clone(), limits.token, meter.tokens());
                let outside = Outside::new(&extra_roots, egress);
                Credentials::Ecr(match registry.kind() {
                    RegistryKind::Ecr(host) => {
                        let host = host.clone();
                        let api = EcrApi::new(name, host, aws, outside, timeout);
                        let source = Arc::clone(ecr.insert(Arc::new(api)));
                        Refresher::new(source, home, timeout, meter)
                    }
                    RegistryKind::EcrPublic => {
                        let source = Arc::new(PublicApi::new(name, aws, outside, timeout));
                        Refresher::new(source, home, timeout, meter)
                    }
                    RegistryKind::DockerHub | RegistryKind::Other => {
                        return Err(SetupError::AwsElsewhere);
                    }
                })
            }
            Auth::Basic { username, password } => challenged(Some(Login { username, password })),
            Auth::Anonymous => challenged(None),
        };
        let creator = match (creation, &ecr) {
            (None, _) => None,
            (Some(creation), Some(api)) => {
                let notes = creation_notes;
                Some(Creator::new(
                    Arc::clone(api),
                    creation,
                    notes,
                    limits.absorb_throttle,
                    meter.clone(),
                ))
            }
            (Some(_), None) => return Err(SetupError::CreationElsewhere),
        };
        let host = HeaderValue::from_str(registry.authority()).map_err(|_| SetupError::Endpoint)?;
        let credentials = Arc::new(credentials);
        let homes = [own, home.clone()];
        let redirects = RedirectPolicy::new(&registry, home, redirect_hosts);
        let prober = Prober {
            registry: registry.clone(),
            redirects: redirects.clone(),
            client: Arc::clone(&client),
            base: base.clone(),
            host: host.clone(),
            credentials: Arc::clone(&credentials),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                redirects,
                homes,
                base,
                host,
                client,
                credentials,
                creator,
                ecr,
                breaker: Breaker::closed(prober, meter.clone()),
                storage: Storage::new(meter.clone()),
                allowance: LastAllowance::default(),
                pace: Pace::new(&quotas),
                gate: Gate::open(),
                budget: RetryBudget::full(),
                lines: [Line::new(terms.max_bandwidth), line],
                terms: ArcSwap::from_pointee(terms),
                options,
                meter,
            }),
            caller: None,
        })
    }

    /// The operator's name for it.
    pub fn name(&self) -> &Arc<str> {
        self.shared.meter.upstream()
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.shared.options.registry
    }

    /// The names of upstreams that have the same repositories, to be asked in this order where this one
    /// cannot answer.
    pub fn fallback(&self) -> Vec<Arc<str>> {
        self.shared.terms.load().fallback.clone()
    }

    /// True if a manifest of a repository proves that the repository holds its blobs.
    pub fn trusts_manifests(&self) -> bool {
        self.shared.terms.load().trusts_manifests
    }

    /// What is known about the token.
    pub fn token_status(&self) -> TokenStatus {
        self.shared.credentials.status()
    }

    /// True if nothing is ever asked.
    pub fn is_offline(&self) -> bool {
        self.shared
            .terms
            .load()
            .offline
            .values()
            .all(|offline| *offline)
    }

    /// What is known of the outage, while the upstream does not answer.
    pub fn outage(&self) -> Option<Outage> {
        self.shared.breaker.outage()
    }

    /// What is known of an outage of the storage that the registry redirects to: it lasts until it was
    /// asked again and answered.
    pub fn storage_outage(&self) -> Option<Outage> {
        self.shared.storage.outage()
    }

    /// What the registry said last of the pulls that it still allows, where it says so.
    pub fn allowance(&self) -> Option<Allowance> {
        self.shared.allowance.get()
    }

    /// Returns once the registry throttles for longer than a question may wait that comes now and waits for
    /// `patience`, and why that has no answer then.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn throttles(&self, patience: Duration) -> UpstreamError {
        let retry_after = self.shared.gate.refuses(patience).await;
        UpstreamError::Throttled { retry_after }
    }

    /// True where nothing is known that keeps it, or its storage, from answering now a question about
    /// `repository`.
    pub fn is_ready(&self, repository: &RepositoryName) -> bool {
        let is_offline = *self
            .shared
            .terms
            .load()
            .offline
            .of_name(repository.as_str());
        let is_out = self.outage().or_else(|| self.storage_outage()).is_some();
        !(is_offline || is_out || self.shared.gate.is_closed())
    }

    /// True once the upstream has answered a question, for as long as it is not known to have stopped.
    pub fn is_answering(&self) -> bool {
        self.shared.breaker.is_answering()
    }

    /// Returns at once while the upstream answers, and otherwise soon after it does again, a little later
    /// for each than for another; true if it was away.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn answers(&self) -> bool {
        self.shared.breaker.answers().await
    }

    /// Obtains the token ahead of need and renews it ahead of expiry, for ever. Without it, tokens are
    /// obtained when first needed.
    ///
    /// # Cancel safety
    /// Dropping it stops only this.
    pub async fn keep_token_fresh(&self) {
        if self.is_offline() {
            return std::future::pending().await;
        }
        self.shared.credentials.keep_fresh().await;
    }
}

impl Upstream {
    /// From now on it is treated as `options` say, which are of the same place.
    fn set_terms(&self, options: &UpstreamOptions) {
        let terms = options.terms();
        let [own, _] = &self.shared.lines;
        own.set_rate(terms.max_bandwidth);
        self.shared.terms.store(Arc::new(terms));
    }

    /// Whether both are handles of the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

/// Knocks at the registry without credentials: any answer of its own tells that it is there.
struct Prober {
    registry: Registry,
    redirects: RedirectPolicy,
    client: Arc<Client>,
    base: Uri,
    host: HeaderValue,
    credentials: Arc<Credentials>,
}

impl Probe for Prober {
    fn knock(&self) -> BoxFuture<'_, Result<(), UpstreamError>> {
        Box::pin(async {
            let target = exchange::at(&self.base, &PathAndQuery::from_static("/v2/"))?;
            let outgoing = Outgoing {
                host: Some(self.host.clone()),
                ..Outgoing::get(Kind::Ping, target.clone())
            };
            let Parts {
                status, headers, ..
            } = self.client.knock(&outgoing).await?;
            if said::is_failure(status) {
                return Err(UpstreamError::Failing {
                    status: status.as_u16(),
                });
            }
            let is_sent_away =
                said::is_redirect(status) && self.redirects.follow(&target, &headers).is_err();
            match portal::stands_at_the_door(&self.registry, status, &headers, is_sent_away) {
                true => Err(UpstreamError::Wrong(Wrong::Intercepted)),
                false => Ok(()),
            }
        })
    }

    fn equip(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.credentials.obtain_soon())
    }

    fn disconnect(&self) {
        self.client.disconnect();
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", self.name())
            .field("registry", self.registry())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(registry: &str, auth: Auth) -> UpstreamOptions {
        UpstreamOptions::new("test", Registry::parse(registry).unwrap(), auth)
    }

    fn set_up(options: UpstreamOptions) -> Result<Upstream, SetupError> {
        Upstream::new(options, &UpstreamMetrics::default())
    }

    #[test]
    fn endpoints_are_plain_on_loopback_only() {
        for (endpoint, is_good) in [
            ("http://127.0.0.1:5000", true),
            ("http://localhost:5000/", true),
            ("http://[::1]:5000", true),
            ("https://vpce.example", true),
            ("http://registry.example", false),
            ("http://10.0.0.1:5000", false),
            ("https://registry.example/path", false),
            ("https://user@registry.example", false),
            ("/path", false),
        ] {
            let mut options = options("registry.example", Auth::Anonymous);
            options.endpoint = Some(endpoint.parse().unwrap());
            assert_eq!(set_up(options).is_ok(), is_good, "{endpoint}");
        }
    }

    #[test]
    fn aws_tokens_are_for_private_ecr() {
        let aws = || Auth::Aws(AwsOptions::default());
        let ecr = set_up(options(
            "000042290000.dkr.ecr.us-west-2.amazonaws.com",
            aws(),
        ))
        .unwrap();
        assert!(ecr.trusts_manifests());
        let elsewhere = set_up(options("registry.example", aws()));
        assert!(matches!(elsewhere, Err(SetupError::AwsElsewhere)));
    }

    #[test]
    fn s16_options_print_no_secrets() {
        let keys = StaticKeys {
            access_key_id: "canary".into(),
            secret_access_key: Secret::new("canary"),
        };
        let aws = AwsOptions {
            keys: Some(keys),
            ..AwsOptions::default()
        };
        let basic = Auth::Basic {
            username: "user".into(),
            password: Secret::new("canary"),
        };
        for auth in [Auth::Aws(aws), basic] {
            let options = options("000042290000.dkr.ecr.us-west-2.amazonaws.com", auth);
            assert!(!format!("{options:?}").contains("canary"));
            assert!(!format!("{:?}", set_up(options).unwrap()).contains("canary"));
        }
    }
}
