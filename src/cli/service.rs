//! The running proxy: every mechanism built from the configuration, bound, run and drained.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::certificate::Keeper;
use super::client_certificates::Handshakes;
use super::listening::without_ipv6;
use super::mechanisms::Mechanisms;
use super::running::{self, Load, Running};
use super::{Failure, chain, challenge_door, health, users};
use crate::access::{Access, AccessOptions, Login};
use crate::admin::{
    Admin, AdminSocket, Phase, RateLimit, Readiness, Status, Trouble, UpstreamState,
};
use crate::clock::Clock;
use crate::config::{Config, ListenAddress, Tls};
use crate::jobs::operations::{Answers, Operations, Time};
use crate::jobs::warm::{Schedule, WarmMetrics};
use crate::jobs::{self, PrefetchMetrics, Reload, ReloadMetrics, ScrubOptions};
use crate::proxy::{Body, Parts, Peer, Proxy, Pulled, Via};
use crate::server::{
    self, ConnectionInfo, Handler, Listener, Refusal, ServerMetrics, ServerOptions,
};
use crate::telemetry::{Metrics, Outcome, RequestMetrics};
use crate::tls::CertificateMetrics;
use crate::upstream::{Outage, Upstream, UpstreamOptions};

/// Everything that runs, bound to its sockets and not yet serving.
pub(super) struct Service {
    proxy: Proxy,
    mechanisms: Mechanisms,
    /// What the proxy tells of pulls; taken when it runs.
    prefetch: Option<(mpsc::Receiver<Pulled>, PrefetchMetrics)>,
    /// What is kept warm; taken when it runs.
    warm: Option<(watch::Receiver<Vec<Schedule>>, WarmMetrics)>,
    listeners: Vec<Listener>,
    bound: Vec<ListenAddress>,
    /// Where HTTP-01 is answered, if it is.
    challenges: Option<TcpListener>,
    admin: Option<TcpListener>,
    admin_socket: Option<AdminSocket>,
    cache_dir: PathBuf,
    pages: Admin,
    operations: Operations,
    readiness: Readiness,
    options: ServerOptions,
    metrics: ServerMetrics,
    keeper: Keeper,
    handshakes: Handshakes,
    reload: Reload,
}

impl Service {
    /// Builds every part and binds the sockets. `load` reads the configuration again, where there is more to
    /// it than `config`.
    ///
    /// # Errors
    /// What cannot be built, or bound, and why.
    pub(super) async fn bind(
        config: &Config,
        load: Option<Load>,
        upstreams: Vec<UpstreamOptions>,
        mut metrics: Metrics,
    ) -> Result<Self, Failure> {
        let request_metrics = Arc::new(RequestMetrics::default());
        let server_metrics = ServerMetrics::default();
        request_metrics.register(metrics.registry());
        server_metrics.register(metrics.registry());
        let (certificate_metrics, reload_metrics) =
            (CertificateMetrics::default(), ReloadMetrics::default());
        certificate_metrics.register(metrics.registry());
        reload_metrics.register(metrics.registry());
        let keeper = Keeper::open(config, certificate_metrics)?;
        let mut reload = Reload::new(reload_metrics);
        keeper.reload_by(&mut reload);
        let mechanisms = Mechanisms::build(config, upstreams, &mut metrics)?;
        let access_options = AccessOptions {
            verdicts: running::verdicts(config, &mechanisms.upstreams),
            ..config.access_options()
        };
        access_options.metrics.register(metrics.registry());
        let access = Access::new(access_options)?;
        let (pulls, told) = jobs::pulls();
        let prefetch_metrics = PrefetchMetrics::default();
        prefetch_metrics.register(metrics.registry());
        let warm_metrics = WarmMetrics::default();
        warm_metrics.register(metrics.registry());
        let (schedules, wanted) = watch::channel(config.schedules());
        let handshakes = Handshakes::open(config, keeper.certificates()).map_err(Failure::Usage)?;
        let options = config.server_options();
        let running = Running {
            config: Arc::new(ArcSwap::from_pointee(config.clone())),
            policy: Arc::new(ArcSwap::from_pointee(running::policy(
                config,
                access,
                mechanisms.upstreams.all(),
                &pulls,
            ))),
            terms: Arc::clone(&options.terms),
            certificates: keeper.origin().clone(),
            handshakes: handshakes.clone(),
            mechanisms: mechanisms.clone(),
            schedules,
            pulls,
        };
        let policy = Arc::clone(&running.policy);
        users::reload_by(
            Arc::clone(&policy),
            Arc::clone(&running.config),
            &mut reload,
        );
        running.reload_by(load, &mut reload);
        let proxy = Proxy::new(Parts {
            policy,
            upstreams: mechanisms.upstreams.clone(),
            fills: mechanisms.fills.clone(),
            metrics: Arc::clone(&request_metrics),
        });
        let readiness = health::readiness(mechanisms.clone(), keeper.troubles(), reload.refused());
        let (listeners, bound) = listeners(config, &handshakes).await?;
        let challenges = match &config.tls {
            Tls::Acme {
                http_listen: Some(address),
                ..
            } => Some(listen("tls.acme.http_listen", *address).await?),
            _ => None,
        };
        let operations = mechanisms.operations(Some(Box::new(move || answers(&request_metrics))));
        let upstreams = mechanisms.upstreams.clone();
        let states = move || {
            let all = upstreams.all();
            all.iter()
                .map(|upstream| state_of(upstream, &all))
                .collect()
        };
        let status = Status::new(operations.clone(), states);
        let pages = Admin::new(metrics.finish(), readiness.clone(), status);
        let admin = match config.server.admin {
            None => None,
            Some(address) => Some(listen("server.admin", address).await?),
        };
        let admin_socket = admin_socket(config)?;
        Ok(Self {
            proxy,
            mechanisms,
            prefetch: Some((told, prefetch_metrics)),
            warm: Some((wanted, warm_metrics)),
            listeners,
            bound,
            challenges,
            admin,
            admin_socket,
            cache_dir: config.cache.dir.clone(),
            pages,
            operations,
            readiness,
            options,
            metrics: server_metrics,
            keeper,
            handshakes,
            reload,
        })
    }

    /// Where the registry API is bound to.
    pub(super) fn bound(&self) -> &[ListenAddress] {
        &self.bound
    }

    /// Where metrics and health are bound to.
    pub(super) fn admin(&self) -> Option<SocketAddr> {
        self.admin
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// The certificate and fingerprint of the local CA, if one is used.
    pub(super) fn local_ca(&self) -> Option<(PathBuf, String)> {
        self.keeper.local_ca()
    }

    /// Serves until `shutdown` resolves, then lets what is in flight finish within the drain timeout. Each of
    /// `hangups` has the files read again that may change.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        hangups: mpsc::Receiver<()>,
    ) {
        let (stop, stopped) = watch::channel(false);
        let mut background = JoinSet::new();
        let Mechanisms {
            store,
            upstreams,
            fills,
            healer,
            ..
        } = self.mechanisms.clone();
        background.spawn(async move { upstreams.keep_tokens_fresh().await });
        background.spawn(self.reload.run(hangups));
        background.spawn(jobs::resume(fills.clone()));
        let options = ScrubOptions::default();
        background.spawn(jobs::scrub(healer, Clock::system(), options));
        if let Some((schedules, metrics)) = self.warm.take() {
            let warmer = self.mechanisms.warmer.clone();
            background.spawn(warmer.keep_warm(schedules, metrics));
        }
        if let Some((pulls, metrics)) = self.prefetch.take() {
            background.spawn(jobs::prefetch(fills.clone(), store.clone(), pulls, metrics));
        }
        let stopped = || {
            let mut stopped = stopped.clone();
            async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            }
        };
        if let Some(listener) = self.admin.take() {
            tracing::info!(listen.addr = %Address(&listener), "admin listening");
            background.spawn(self.pages.clone().run(listener, stopped()));
        }
        if let Some(socket) = self.admin_socket.take() {
            tracing::info!(listen.path = %socket.path().display(), "admin socket listening");
            let operations = self.operations.clone();
            let (pages, cache_dir) = (self.pages.clone(), self.cache_dir.clone());
            let stopped = stopped();
            background
                .spawn(async move { socket.run(pages, operations, &cache_dir, stopped).await });
        }
        if let Some(socket) = self.challenges.take() {
            tracing::info!(listen.addr = %Address(&socket), "listening for ACME challenges");
            let challenges = self.keeper.certificates().challenges().clone();
            background.spawn(challenge_door::run(socket, challenges, stopped()));
        }
        background.spawn(self.keeper.obtain());
        background.spawn(self.keeper.keep_looking());
        for address in &self.bound {
            tracing::info!(listen.addr = %address, "listening");
        }
        self.readiness.enter(Phase::Serving);
        tell_supervisor(NotifyState::Ready);

        let terms = Arc::clone(&self.options.terms);
        let listeners = std::mem::take(&mut self.listeners);
        let options = self.options.clone();
        let (proxy, handshakes) = (self.proxy.clone(), self.handshakes.clone());
        let receive = move |connection: ConnectionInfo| {
            Door(Arc::new(Visit {
                proxy: proxy.clone(),
                handshakes: handshakes.clone(),
                peer: Peer::new(connection.peer),
                connection,
                login: Login::default(),
            }))
        };
        let readiness = self.readiness.clone();
        let (draining, mut drain_began) = watch::channel(None);
        let shutdown = async move {
            shutdown.await;
            readiness.enter(Phase::Draining);
            tracing::info!("draining");
            tell_supervisor(NotifyState::Stopping);
            draining.send_replace(Some(Instant::now()));
        };
        let serving = server::run(listeners, receive, options, self.metrics.clone(), shutdown);
        let report = serving.await;
        let began = drain_began.borrow_and_update().unwrap_or_else(Instant::now);
        let deadline = began + terms.load().drain_timeout;
        tokio::join!(fills.drain(deadline), self.proxy.drain(deadline));
        stop.send_replace(true);
        background.shutdown().await;
        match tokio::task::spawn_blocking(move || store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last records could not be written"),
            Err(_) => tracing::warn!("the last records were not written"),
        }
        tracing::info!(
            connections.open = report.open,
            connections.cut = report.cut,
            elapsed_ms = u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
            "drained"
        );
    }
}

/// Tells systemd how far we are, where it listens (`Type=notify`).
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// The proxy as the handler of a connection: neither knows of the other.
#[derive(Clone)]
struct Door(Arc<Visit>);

/// A connection.
struct Visit {
    proxy: Proxy,
    handshakes: Handshakes,
    connection: ConnectionInfo,
    peer: Peer,
    login: Login,
}

impl Visit {
    fn via(&self) -> Via<'_> {
        let connection = &self.connection;
        let client = connection.tls.as_ref().and_then(|tls| tls.client.as_ref());
        Via {
            peer: &self.peer,
            is_loopback: connection.local.ip().to_canonical().is_loopback(),
            certificate: client.and_then(|client| self.handshakes.certified(client)),
            login: &self.login,
            is_plain: connection.tls.is_none(),
        }
    }
}

impl Handler for Door {
    type Body = Body;

    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send {
        let Self(visit) = self;
        visit.proxy.call(request, visit.via())
    }

    fn refuse(&self, refusal: Refusal) -> Response<Body> {
        let Self(visit) = self;
        visit
            .proxy
            .refuse(refusal.status(), refusal.to_string(), &visit.via())
    }
}

async fn listeners(
    config: &Config,
    handshakes: &Handshakes,
) -> Result<(Vec<Listener>, Vec<ListenAddress>), Failure> {
    let mut listeners = Vec::new();
    let mut bound = Vec::new();
    for ListenAddress { tls, address } in &config.server.listen {
        let socket = listen("server.listen", *address).await?;
        bound.push(ListenAddress {
            tls: *tls,
            address: socket.local_addr()?,
        });
        listeners.push(Listener {
            socket,
            tls: tls.then(|| handshakes.in_use()),
        });
    }
    Ok((listeners, bound))
}

/// `key` is the one that has the address.
async fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let named =
        |error: io::Error| Failure::Failed(format!("cannot listen on {address} ({key}): {error}"));
    let bound = TcpListener::bind(address).await;
    let failed = bound.as_ref().err();
    match failed.and_then(|error| without_ipv6(address, error)) {
        Some(instead) => TcpListener::bind(instead).await.map_err(named),
        None => bound.map_err(named),
    }
}

/// The admin socket, if there is to be one. That of the default path is done without where it cannot be
/// made: who starts the proxy for themselves may not have that folder.
fn admin_socket(config: &Config) -> Result<Option<AdminSocket>, Failure> {
    let Some(socket) = &config.server.admin_socket else {
        return Ok(None);
    };
    match AdminSocket::bind(&socket.path) {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if socket.is_required => Err(Failure::Failed(format!(
            "server.admin_socket: {}",
            chain(&error)
        ))),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(
                error,
                "there is no admin socket: the cache cannot be tended while the proxy runs; name \
                 another path in server.admin_socket, or \"off\""
            );
            Ok(None)
        }
    }
}

/// How clients were answered up to now.
fn answers(metrics: &RequestMetrics) -> Answers {
    let mut answers = Answers::default();
    for (outcome, count) in metrics.answered() {
        match outcome {
            Outcome::Hit => answers.hits = count,
            Outcome::Miss => answers.misses = count,
            Outcome::Joined => answers.joins = count,
            Outcome::Stale => answers.stale = count,
            Outcome::Bypass => answers.bypasses = count,
            Outcome::None => {}
        }
    }
    answers
}

/// How an upstream is, for the status page.
fn state_of(upstream: &Upstream, all: &[Upstream]) -> UpstreamState {
    let outage = upstream.outage();
    let token = upstream.token_status();
    let trouble = |outage: Outage| Trouble {
        since: Time(outage.since),
        reason: outage.cause.to_string(),
    };
    let storage_outage = upstream.storage_outage();
    let stand_in = || {
        let answers = |name: &&Arc<str>| {
            let mut all = all.iter();
            let other = all.find(|other| other.name() == *name);
            // Where storage alone is away, another's registry is not enough.
            other.is_some_and(|other| {
                let has_storage = outage.is_some() || other.storage_outage().is_none();
                other.outage().is_none() && has_storage
            })
        };
        let fallback = upstream.fallback();
        fallback.iter().find(answers).map(ToString::to_string)
    };
    UpstreamState {
        name: upstream.name().to_string(),
        is_answering: outage.is_none(),
        stand_in: outage
            .as_ref()
            .or(storage_outage.as_ref())
            .and_then(|_| stand_in()),
        outage: outage.map(trouble),
        storage_outage: storage_outage.map(trouble),
        token_valid_until: token.valid_until.map(Time),
        token_failing: token.failing.map(|(since, reason)| Trouble {
            since: Time(since),
            reason: reason.to_string(),
        }),
        rate_limit: upstream.allowance().map(|allowance| RateLimit {
            remaining: allowance.remaining,
            limit: allowance.limit,
            window_seconds: allowance.window.map(|window| window.as_secs()),
            source: allowance.source,
            told: Time(allowance.told),
        }),
    }
}

/// A listener's address, for the log.
struct Address<'a>(&'a TcpListener);

impl std::fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.local_addr() {
            Ok(address) => write!(f, "http://{address}"),
            Err(error) => write!(f, "{error}"),
        }
    }
}
