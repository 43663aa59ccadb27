//! The running proxy: every mechanism built from the configuration, bound, run and drained.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use http::{Request, Response};
use hyper::body::Incoming;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::certificate::{self, Keeper};
use super::{Failure, chain};
use crate::access::Access;
use crate::admin::{Admin, Degraded, Health, Phase, Readiness};
use crate::buffers::BufferPool;
use crate::cache::{CacheMetrics, Degradation, Store};
use crate::clock::Clock;
use crate::config::{Config, ListenAddress, Prefetch};
use crate::fill::{FillOptions, Fills};
use crate::jobs::{self, PrefetchMetrics};
use crate::proxy::{Body, Parts, Proxy, Pulled, Via};
use crate::server::{
    self, ConnectionInfo, Handler, Listener, Refusal, ServerMetrics, ServerOptions,
};
use crate::telemetry::{FillMetrics, Metrics, RequestMetrics};
use crate::tls::{self, Certificates};
use crate::upstream::{Upstream, UpstreamMetrics, UpstreamOptions};

/// Size of a read buffer, in bytes: with smaller ones the number of socket writes begins to cost, larger
/// ones pin more memory for each slow reader.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How many read buffers there are at most. With the coalescing buffers of the server they bound what
/// bodies in flight hold to some 32 MiB; beyond, readers make do with less.
const READ_BUFFERS: usize = 64;

/// Everything that runs, bound to its sockets and not yet serving.
pub(super) struct Service {
    proxy: Proxy,
    fills: Fills,
    store: Store,
    upstream: Upstream,
    /// What the proxy tells of pulls, where somebody listens.
    prefetch: Option<(mpsc::Receiver<Pulled>, PrefetchMetrics)>,
    listeners: Vec<Listener>,
    bound: Vec<ListenAddress>,
    admin: Option<(TcpListener, Admin)>,
    readiness: Readiness,
    options: ServerOptions,
    metrics: ServerMetrics,
    keeper: Keeper,
}

impl Service {
    /// Builds every part and binds the sockets.
    ///
    /// # Errors
    /// What cannot be built, or bound, and why.
    pub(super) async fn bind(
        config: &Config,
        upstream: UpstreamOptions,
        mut metrics: Metrics,
    ) -> Result<Self, Failure> {
        let cache_metrics = CacheMetrics::default();
        let upstream_metrics = UpstreamMetrics::default();
        let fill_metrics = FillMetrics::default();
        let request_metrics = RequestMetrics::default();
        let server_metrics = ServerMetrics::default();
        cache_metrics.register(metrics.registry());
        upstream_metrics.register(metrics.registry());
        fill_metrics.register(metrics.registry());
        request_metrics.register(metrics.registry());
        server_metrics.register(metrics.registry());
        let keeper = Keeper::open(config, metrics.certificate_expiry.clone())?;
        let access = Access::new(config.access_options())?;
        let store = Store::open(config.store_options(), cache_metrics)
            .map_err(|error| Failure::Failed(chain(&error)))?;
        let upstream = Upstream::new(upstream, &upstream_metrics)
            .map_err(|error| Failure::Failed(chain(&error)))?;
        let fills = Fills::new(
            store.clone(),
            upstream.clone(),
            BufferPool::new(READ_BUFFER_BYTES, READ_BUFFERS),
            Clock::system(),
            FillOptions {
                record_ttl: config.cache.record_ttl,
                tag_ttl: config.upstream.tag_ttl,
                absent_ttl: config.cache.absent_ttl,
                ..FillOptions::default()
            },
            fill_metrics,
        );
        let (pulls, prefetch) = match config.cache.prefetch {
            Prefetch::Off => (None, None),
            Prefetch::Layers => {
                let prefetch_metrics = PrefetchMetrics::default();
                prefetch_metrics.register(metrics.registry());
                let (pulls, told) = jobs::pulls();
                (Some(pulls), Some((told, prefetch_metrics)))
            }
        };
        let proxy = Proxy::new(Parts {
            domains: config.server.domains.clone(),
            access,
            upstream: upstream.clone(),
            fills: fills.clone(),
            metrics: Arc::new(request_metrics),
            pulls,
        });
        let readiness = readiness(
            store.clone(),
            upstream.clone(),
            keeper.certificates().clone(),
        );
        let (listeners, bound) = listeners(config, keeper.certificates()).await?;
        let admin = match config.server.admin {
            None => None,
            Some(address) => {
                let listener = listen(address).await?;
                Some((listener, Admin::new(metrics.finish(), readiness.clone())))
            }
        };
        Ok(Self {
            proxy,
            fills,
            store,
            upstream,
            prefetch,
            listeners,
            bound,
            admin,
            readiness,
            options: config.server_options(),
            metrics: server_metrics,
            keeper,
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
            .and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// The certificate and fingerprint of the local CA, if one is used.
    pub(super) fn local_ca(&self) -> Option<(PathBuf, String)> {
        self.keeper
            .local_ca()
            .map(|ca| (ca.ca_path(), ca.fingerprint().to_owned()))
    }

    /// Serves until `shutdown` resolves, then lets what is in flight finish within the drain timeout.
    pub(super) async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let mut background = JoinSet::new();
        let upstream = self.upstream.clone();
        background.spawn(async move { upstream.keep_token_fresh().await });
        background.spawn(jobs::resume(self.fills.clone()));
        if let Some((pulls, metrics)) = self.prefetch.take() {
            background.spawn(jobs::prefetch(self.fills.clone(), pulls, metrics));
        }
        if let Some((listener, admin)) = self.admin.take() {
            tracing::info!(listen.addr = %Address(&listener), "admin listening");
            let mut stopped = stopped.clone();
            background.spawn(async move {
                let stopped = async move {
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                };
                admin.run(listener, stopped).await;
            });
        }
        for address in &self.bound {
            tracing::info!(listen.addr = %address, "listening");
        }
        self.readiness.enter(Phase::Serving);
        tell_supervisor(NotifyState::Ready);

        let drain_timeout = self.options.drain_timeout;
        let listeners = std::mem::take(&mut self.listeners);
        let (door, options) = (Door(self.proxy.clone()), self.options.clone());
        let readiness = self.readiness.clone();
        let (draining, mut drain_began) = watch::channel(None);
        let shutdown = async move {
            shutdown.await;
            readiness.enter(Phase::Draining);
            tracing::info!("draining");
            tell_supervisor(NotifyState::Stopping);
            draining.send_replace(Some(Instant::now()));
        };
        let serving = server::run(listeners, door, options, self.metrics.clone(), shutdown);
        tokio::pin!(serving);
        let mut look = tokio::time::interval(certificate::LOOK_EVERY);
        let report = loop {
            tokio::select! {
                report = &mut serving => break report,
                _ = look.tick() => self.keeper.look(),
            }
        };
        let began = drain_began.borrow_and_update().unwrap_or_else(Instant::now);
        self.fills.drain(began + drain_timeout).await;
        stop.send_replace(true);
        background.shutdown().await;
        let store = self.store.clone();
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

/// The proxy as the handler of a server: neither knows of the other.
#[derive(Clone)]
struct Door(Proxy);

fn via(connection: &ConnectionInfo) -> Via {
    Via {
        peer: connection.peer,
        is_loopback: connection.local.ip().to_canonical().is_loopback(),
        is_plain: connection.tls.is_none(),
    }
}

impl Handler for Door {
    type Body = Body;

    async fn call(
        &self,
        request: Request<Incoming>,
        connection: Arc<ConnectionInfo>,
    ) -> Response<Body> {
        self.0.call(request, via(&connection)).await
    }

    fn refuse(&self, refusal: Refusal, connection: Arc<ConnectionInfo>) -> Response<Body> {
        self.0
            .refuse(refusal.status(), refusal.to_string(), via(&connection))
    }
}

async fn listeners(
    config: &Config,
    certificates: &Certificates,
) -> Result<(Vec<Listener>, Vec<ListenAddress>), Failure> {
    let mut listeners = Vec::new();
    let mut bound = Vec::new();
    for ListenAddress { tls, address } in &config.server.listen {
        let socket = listen(*address).await?;
        bound.push(ListenAddress {
            tls: *tls,
            address: socket.local_addr()?,
        });
        let tls = match tls {
            false => None,
            true => {
                let config = tls::server_config(certificates);
                Some(config.map_err(|error| Failure::Failed(chain(&error)))?)
            }
        };
        listeners.push(Listener { socket, tls });
    }
    Ok((listeners, bound))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let named = |error: io::Error| Failure::Failed(format!("cannot listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(named)
}

/// What is degraded, asked at each probe. Hits can be served whatever the upstream does, and the upstream
/// whatever the store does.
fn readiness(store: Store, upstream: Upstream, certificates: Certificates) -> Readiness {
    Readiness::new(move || {
        let faults = store.health().degraded;
        // Whatever else is wrong with a store, what it has can be read.
        let gone = faults
            .iter()
            .find(|(what, _)| *what == Degradation::Missing);
        let unusable = gone.map(|(what, since)| format!("{what}, since {}", time(*since)));
        let mut degraded: Vec<Degraded> = faults
            .iter()
            .map(|(what, since)| Degraded {
                what: "store",
                why: format!("{what}, since {}", time(*since)),
            })
            .collect();
        let token = upstream.token_status();
        if let Some((since, reason)) = token.failing {
            let why = match token.valid_until {
                Some(until) => {
                    format!(
                        "the token cannot be renewed: {reason}; it is valid until {}",
                        time(until)
                    )
                }
                None => {
                    format!(
                        "serving from cache: no credentials since {}: {reason}",
                        time(since)
                    )
                }
            };
            degraded.push(Degraded {
                what: "upstream",
                why,
            });
        }
        degraded.extend(certificate::refused(&certificates).map(|why| Degraded {
            what: "certificate",
            why,
        }));
        Health { unusable, degraded }
    })
}

fn time(at: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(at)
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
