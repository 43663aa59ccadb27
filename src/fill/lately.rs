//! What was noted lately about manifests, tags and blobs of repositories: absent, asked for, changed.
//!
//! Bounded in number and in time, and lost on restart. There are two types of it, where one for each kind of
//! name and note would be convenient: each takes as much code as a module of ours, and the program's code
//! counts in what it holds at rest.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::options::{FillOptions, For};
use crate::oci::{Reference, RepoKey};

/// How much is remembered of one kind.
const MOST: u64 = 10_000;

/// A note about each of some names. Clones share them.
#[derive(Clone)]
pub(super) struct Lately<V>(moka::sync::Cache<(RepoKey, Reference), V>);

/// When something was noted.
pub(super) type Noted = Lately<Instant>;

impl<V: Clone + Send + Sync + 'static> Lately<V> {
    /// Notes that are kept for `time`.
    pub(super) fn lasting(time: Duration) -> Self {
        let notes = moka::sync::Cache::builder().max_capacity(MOST);
        Self(notes.time_to_live(time).build())
    }

    /// Notes that are kept for as long as the options say when they are made.
    pub(super) fn optional(
        options: &Arc<ArcSwap<FillOptions>>,
        time: fn(&FillOptions) -> Duration,
    ) -> Self {
        let notes = moka::sync::Cache::builder().max_capacity(MOST);
        Self(notes.expire_after(For::new(options, time)).build())
    }

    pub(super) fn get(&self, repo: &RepoKey, name: impl Into<Reference>) -> Option<V> {
        self.0.get(&(repo.clone(), name.into()))
    }

    pub(super) fn note(&self, repo: &RepoKey, name: impl Into<Reference>, value: V) {
        self.0.insert((repo.clone(), name.into()), value);
    }

    pub(super) fn forget(&self, repo: &RepoKey, name: impl Into<Reference>) {
        self.0.invalidate(&(repo.clone(), name.into()));
    }

    pub(super) fn forget_all(&self) {
        self.0.invalidate_all();
    }
}

impl Noted {
    /// Notes it now, and says whether it was not noted yet.
    pub(super) fn is_first(&self, repo: &RepoKey, name: impl Into<Reference>) -> bool {
        let entry = self.0.entry((repo.clone(), name.into()));
        entry.or_insert_with(Instant::now).is_fresh()
    }
}
