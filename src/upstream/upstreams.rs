//! The registries behind the proxy, by name.
//!
//! The set may be replaced while it is used. An upstream that is configured as before stays what it is, with
//! its token, its connections and what is known of it; another takes the place of one that is configured
//! otherwise. What goes on with an upstream that is replaced, or gone, goes on with it to its end.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use arc_swap::ArcSwap;
use futures_util::future::{pending, select_all};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::{Line, Rate, SetupError, Upstream, UpstreamError, UpstreamMetrics, UpstreamOptions};
use crate::oci::RepoKey;

/// Upstreams that are in use together, in the order of the configuration.
pub type UpstreamSet = Arc<Vec<Upstream>>;

/// The registries behind the proxy. Clones are handles of the same set.
#[derive(Clone, Debug)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: ArcSwap<Vec<Upstream>>,
    /// Sets that were in use before: whoever began with one and still holds it finds its upstreams.
    before: Mutex<Vec<Weak<Vec<Upstream>>>>,
    replaced: watch::Sender<()>,
    /// Held for writing while the set is replaced, and by who notes what one of the set said.
    turnover: RwLock<()>,
    /// What all their blobs share.
    line: Line,
    metrics: UpstreamMetrics,
}

/// Upstreams that are ready to be used.
#[derive(Debug)]
pub struct PreparedUpstreams {
    set: UpstreamSet,
    options: Vec<UpstreamOptions>,
}

impl Upstreams {
    /// These, each of a name of its own; `max_bandwidth` is that of the blobs of all of them together, in
    /// bytes a second.
    ///
    /// # Errors
    /// When one cannot be set up as configured.
    pub fn open(
        options: Vec<UpstreamOptions>,
        max_bandwidth: Option<Rate>,
        metrics: UpstreamMetrics,
    ) -> Result<Self, SetupError> {
        let this = Self::of_set(Vec::new(), Line::shared(max_bandwidth), metrics);
        let prepared = this.prepare(options)?;
        this.take_over(prepared, max_bandwidth);
        Ok(this)
    }

    fn of_set(set: Vec<Upstream>, line: Line, metrics: UpstreamMetrics) -> Self {
        Self {
            inner: Arc::new(Inner {
                set: ArcSwap::from_pointee(set),
                before: Mutex::default(),
                replaced: watch::Sender::default(),
                turnover: RwLock::default(),
                line,
                metrics,
            }),
        }
    }

    /// All of them, in the order of the configuration. As long as this is held, [`Self::of`] and
    /// [`Self::named`] find each of them, unless another of its name is in use.
    pub fn all(&self) -> UpstreamSet {
        self.inner.set.load_full()
    }

    /// The upstream of a repository.
    ///
    /// # Errors
    /// [`UpstreamError::Unconfigured`]: the cache outlives configurations.
    pub fn of(&self, repo: &RepoKey) -> Result<Upstream, UpstreamError> {
        self.named(&repo.upstream)
            .ok_or(UpstreamError::Unconfigured)
    }

    /// The upstreams of these repositories, as far as they are configured.
    pub fn of_all(&self, repos: &[RepoKey]) -> Vec<Upstream> {
        repos.iter().filter_map(|repo| self.of(repo).ok()).collect()
    }

    /// The upstream that the operator calls so.
    pub fn named(&self, name: &str) -> Option<Upstream> {
        find(&self.inner.set.load(), name).or_else(|| {
            let before = self.inner.before.lock();
            let before = before.unwrap_or_else(PoisonError::into_inner);
            let mut before = before.iter().rev().filter_map(Weak::upgrade);
            before.find_map(|set| find(&set, name))
        })
    }

    /// Runs `note`, which is to note down what `said` was heard to say, unless another has its name by now, and
    /// lets none take it meanwhile. `None` where it was not run: what is not noted is asked for again.
    pub fn note<T>(&self, said: &Upstream, note: impl FnOnce() -> T) -> Option<T> {
        // Whoever notes waits for nobody: a replacement may be waiting for a slow disk.
        let _stays = self.inner.turnover.try_read().ok()?;
        let now = self.named(said.name());
        now.is_some_and(|now| now.is(said)).then(note)
    }

    /// True once one of them has answered a question, for as long as none is known to have stopped.
    pub fn are_answering(&self) -> bool {
        let set = self.inner.set.load();
        let is_away = |upstream: &Upstream| upstream.outage().is_some();
        set.iter().any(Upstream::is_answering) && !set.iter().any(is_away)
    }

    /// Waits until one that does not answer now does again, or the set is replaced; for ever where there is
    /// none.
    ///
    /// # Cancel safety
    /// Leaving changes nothing.
    pub async fn one_returns(&self) {
        let replaced = self.replaced();
        let all = self.all();
        let away = all.iter().filter(|upstream| upstream.outage().is_some());
        let returning: Vec<_> = away.map(|upstream| Box::pin(upstream.answers())).collect();
        let returns = async {
            match returning.is_empty() {
                true => pending().await,
                false => drop(select_all(returning).await),
            }
        };
        tokio::select! {
            () = returns => {}
            () = replaced => {}
        }
    }

    /// Returns when the set is replaced after this was called.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn replaced(&self) -> impl Future<Output = ()> + use<> {
        let mut replaced = self.inner.replaced.subscribe();
        async move {
            // Where nobody is left to replace it, it stays as it is.
            if replaced.changed().await.is_err() {
                pending().await
            }
        }
    }

    /// Keeps the tokens of all of them fresh: see [`Upstream::keep_token_fresh`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn keep_tokens_fresh(&self) {
        let mut kept: Vec<(Upstream, bool, AbortHandle)> = Vec::new();
        // Ends all of them with this.
        let mut keeping = JoinSet::new();
        loop {
            let replaced = self.replaced();
            let all = self.all();
            kept.retain(|(kept, was_offline, task)| {
                let is_in_use = all.iter().any(|upstream| upstream.is(kept));
                let stays = is_in_use && kept.is_offline() == *was_offline;
                if !stays {
                    task.abort();
                }
                stays
            });
            for upstream in all.iter() {
                if !kept.iter().any(|(kept, ..)| kept.is(upstream)) {
                    let one = upstream.clone();
                    let is_offline = one.is_offline();
                    let task = keeping.spawn(async move { one.keep_token_fresh().await });
                    kept.push((upstream.clone(), is_offline, task));
                }
            }
            drop(all);
            replaced.await;
            while keeping.try_join_next().is_some() {}
        }
    }

    /// What they were set up by.
    pub fn options(&self) -> Vec<UpstreamOptions> {
        let all = self.all();
        let options = all.iter().map(|upstream| upstream.shared.options.clone());
        options.collect()
    }

    /// Sets up what these options say, beside what is in use; nothing is sent, and nothing changes.
    ///
    /// # Errors
    /// When one cannot be set up as configured.
    pub fn prepare(&self, options: Vec<UpstreamOptions>) -> Result<PreparedUpstreams, SetupError> {
        let in_use = self.all();
        let set = options.iter().map(|options| {
            let mut in_use = in_use.iter();
            let same = in_use.find(|upstream| upstream.shared.options.is_same_place(options));
            match same {
                Some(upstream) => Ok(upstream.clone()),
                None => {
                    let line = self.inner.line.clone();
                    Upstream::on_line(options.clone(), &self.inner.metrics, line)
                }
            }
        });
        let set = Arc::new(set.collect::<Result<_, _>>()?);
        Ok(PreparedUpstreams { set, options })
    }

    /// Puts them in use in the place of those that are; `max_bandwidth` is as in [`Self::open`]. Blocks while
    /// something is [noted](Self::note).
    pub fn take_over(&self, prepared: PreparedUpstreams, max_bandwidth: Option<Rate>) {
        let PreparedUpstreams { set, options } = prepared;
        let inner = &self.inner;
        let in_use = self.all();
        inner.line.set_rate(max_bandwidth);
        let is_in = |upstream: &Upstream, set: &[Upstream]| set.iter().any(|one| one.is(upstream));
        for upstream in in_use.iter().filter(|upstream| !is_in(upstream, &set)) {
            upstream.shared.meter.end();
        }
        for (upstream, options) in set.iter().zip(&options) {
            upstream.set_terms(options);
            if !is_in(upstream, &in_use) {
                upstream.shared.meter.begin();
            }
        }
        {
            let before = inner.before.lock();
            let mut before = before.unwrap_or_else(PoisonError::into_inner);
            before.retain(|set| set.strong_count() > 0);
            before.push(Arc::downgrade(&in_use));
        }
        {
            let turnover = inner.turnover.write();
            let _nobody_notes = turnover.unwrap_or_else(PoisonError::into_inner);
            inner.set.store(set);
        }
        inner.replaced.send_replace(());
    }
}

fn find(set: &[Upstream], name: &str) -> Option<Upstream> {
    let mut set = set.iter();
    set.find(|upstream| **upstream.name() == *name).cloned()
}

impl PreparedUpstreams {
    /// What will be in use.
    pub fn set(&self) -> &UpstreamSet {
        &self.set
    }

    /// Whether what `in_use` of these names was heard to say may count no more: one of them is to be another.
    pub fn are_others(&self, in_use: &UpstreamSet) -> bool {
        let stays = |upstream: &Upstream| self.set.iter().any(|one| one.is(upstream));
        !in_use.iter().all(stays)
    }
}

impl From<Upstream> for Upstreams {
    fn from(only: Upstream) -> Self {
        Self::of_set(vec![only], Line::shared(None), UpstreamMetrics::default())
    }
}
