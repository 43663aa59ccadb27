//! The other layers of an image, once a client asks for one.
//!
//! Clients fetch a few layers at once and unpack them in between, so the line is idle for much of a
//! pull. Reading a manifest or a config begins nothing: inspectors read those and no layer.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cache::{Store, StoredManifest};
use crate::fill::{FillError, Fills, Found};
use crate::oci::{Digest, Manifest, RepoKey};
use crate::proxy::Pulled;
use crate::telemetry::{Outcome, PrefetchResult};

/// Layers fetched at once. Two keep a line busy while one of them begins; more would take it from
/// clients.
const AT_ONCE: usize = 2;

/// How much of what clients pull may wait to be looked at; beyond, a pull is simply not helped.
const PULLS_WAITING: usize = 256;

/// How many layers may wait for their turn. Images have tens of layers.
const LAYERS_WAITING: usize = 1024;

/// For each repository, how many of the manifests that clients read last are remembered, and for how many
/// repositories. A base layer is named by many; the one that was read last is the one being pulled.
const MANIFESTS: usize = 8;
const REPOSITORIES: u64 = 1024;

/// A manifest whose layers were seen to is left alone for this long: a client asks for its layers one by
/// one, and each would begin it all again.
const SEEN_TO: Duration = Duration::from_secs(30);

/// The way by which the proxy tells of pulls.
pub fn pulls() -> (mpsc::Sender<Pulled>, mpsc::Receiver<Pulled>) {
    mpsc::channel(PULLS_WAITING)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: PrefetchResult,
}

/// What came of layers that nobody had asked for yet. Cloning is cheap; clones count together.
#[derive(Clone, Debug, Default)]
pub struct PrefetchMetrics {
    layers: Family<ResultLabel, Counter>,
    bytes: Counter,
}

impl PrefetchMetrics {
    /// Makes the handles readable.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "prefetch_layers",
            "Layers looked at ahead of a client's request, by what came of it",
            self.layers.clone(),
        );
        registry.register(
            "prefetch_bytes",
            "Bytes of layers fetched ahead of a client's request",
            self.bytes.clone(),
        );
    }

    fn count(&self, result: PrefetchResult) {
        self.layers.get_or_create(&ResultLabel { result }).inc();
    }
}

type Layer = (RepoKey, Digest);

/// The layers of a manifest that was read.
#[derive(Clone)]
struct Read {
    manifest: Digest,
    layers: Arc<[Digest]>,
}

struct Prefetcher {
    metrics: PrefetchMetrics,
    /// Newest first.
    read: moka::sync::Cache<RepoKey, Vec<Read>>,
    seen_to: moka::sync::Cache<(RepoKey, Digest), ()>,
    waiting: VecDeque<Layer>,
    /// What is waiting or being fetched.
    known: HashSet<Layer>,
}

/// Fetches, for each layer that a client asks for, the others of its image, [`AT_ONCE`] at a time, for as
/// long as it is not dropped.
///
/// # Cancel safety
/// Safe: a fill that was begun is its own.
pub async fn prefetch(
    fills: Fills,
    store: Store,
    mut pulls: mpsc::Receiver<Pulled>,
    metrics: PrefetchMetrics,
) {
    let mut prefetcher = Prefetcher::new(metrics);
    let mut fetching = JoinSet::new();
    loop {
        while fetching.len() < AT_ONCE
            && let Some(layer) = prefetcher.waiting.pop_front()
        {
            fetching.spawn(fetch(fills.clone(), layer));
        }
        tokio::select! {
            pulled = pulls.recv() => match pulled {
                Some(Pulled::Manifest(repo, manifest)) => prefetcher.read(repo, &manifest),
                Some(Pulled::Blob(repo, digest)) => {
                    if !prefetcher.begin(&repo, digest)
                        && let Some(manifest) = stored(&store, &repo, digest).await
                    {
                        prefetcher.read(repo.clone(), &manifest);
                        prefetcher.begin(&repo, digest);
                    }
                }
                None => break,
            },
            Some(done) = fetching.join_next() => match done {
                Ok((layer, result)) => prefetcher.done(&layer, &result),
                Err(error) => tracing::warn!(%error, "a prefetch ended unexpectedly"),
            },
        }
    }
}

/// A manifest that names a blob and was read long ago: before the start, perhaps.
async fn stored(store: &Store, repo: &RepoKey, blob: Digest) -> Option<StoredManifest> {
    let (store, repo) = (store.clone(), repo.clone());
    let read = tokio::task::spawn_blocking(move || store.manifest_naming(&repo, &blob));
    read.await.ok().flatten()
}

/// What came of one layer; `None` if a client is fetching it already.
type Fetched = Option<Result<Found<u64>, FillError>>;

async fn fetch(fills: Fills, (repo, digest): Layer) -> (Layer, Fetched) {
    let result = match fills.is_filling(&digest) {
        true => None,
        false => Some(fills.fetch(&repo, digest, &|_, _| ()).await),
    };
    ((repo, digest), result)
}

impl Prefetcher {
    fn new(metrics: PrefetchMetrics) -> Self {
        Self {
            metrics,
            read: moka::sync::Cache::new(REPOSITORIES),
            seen_to: moka::sync::Cache::builder()
                .max_capacity(REPOSITORIES * MANIFESTS as u64)
                .time_to_live(SEEN_TO)
                .build(),
            waiting: VecDeque::new(),
            known: HashSet::new(),
        }
    }

    /// A client read a manifest.
    fn read(&mut self, repo: RepoKey, manifest: &StoredManifest) {
        let mut read = self.read.get(&repo).unwrap_or_default();
        let same = read
            .iter()
            .position(|read| read.manifest == manifest.digest);
        let newest = match same {
            Some(0) => return,
            Some(at) => read.remove(at),
            None => {
                let Ok(parsed) = Manifest::parse(&manifest.media_type, &manifest.bytes) else {
                    return;
                };
                let layers: Arc<[Digest]> = parsed.layers().map(|layer| layer.digest).collect();
                if layers.is_empty() {
                    return;
                }
                let manifest = manifest.digest;
                Read { manifest, layers }
            }
        };
        read.insert(0, newest);
        read.truncate(MANIFESTS);
        self.read.insert(repo, read);
    }

    /// A client asked for a blob: if it is a layer of an image that was read, the others get in line. False
    /// if it is of none.
    fn begin(&mut self, repo: &RepoKey, digest: Digest) -> bool {
        let read = self.read.get(repo).unwrap_or_default();
        let Some(image) = read.iter().find(|read| read.layers.contains(&digest)) else {
            return false;
        };
        let key = (repo.clone(), image.manifest);
        if self.seen_to.contains_key(&key) {
            return true;
        }
        self.seen_to.insert(key, ());
        for layer in image.layers.iter().filter(|layer| **layer != digest) {
            let layer = (repo.clone(), *layer);
            if self.waiting.len() == LAYERS_WAITING {
                self.metrics.count(PrefetchResult::Dropped);
            } else if self.known.insert(layer.clone()) {
                self.waiting.push_back(layer);
            }
        }
        true
    }

    fn done(&mut self, layer: &Layer, result: &Fetched) {
        self.known.remove(layer);
        let result = match result {
            None => PrefetchResult::Present,
            Some(Ok(fetched)) if fetched.how.outcome() == Outcome::Miss => {
                self.metrics.bytes.inc_by(fetched.what);
                PrefetchResult::Fetched
            }
            Some(Ok(_)) => PrefetchResult::Present,
            Some(Err(error)) => {
                tracing::debug!(oci.repository = %layer.0, oci.digest = %layer.1, %error, "a layer was not prefetched");
                if matches!(error, FillError::Upstream(error) if error.cannot_answer()) {
                    self.give_up();
                }
                PrefetchResult::Failed
            }
        };
        self.metrics.count(result);
    }

    /// An upstream that cannot answer is left alone: it is for clients to ask again.
    fn give_up(&mut self) {
        for layer in self.waiting.drain(..) {
            self.known.remove(&layer);
            self.metrics.count(PrefetchResult::Dropped);
        }
        self.seen_to.invalidate_all();
    }
}
