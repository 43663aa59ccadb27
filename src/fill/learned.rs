//! What registries tell of their repositories, asked in the background where it is worth it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::{RepoKey, Tag};
use crate::upstream::{TagMutability, UpstreamError, Upstreams};

/// An operator who lifts the protection of a repository finds it noticed within a day; who grants the
/// permission to ask, within a quarter of one.
const GOOD_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const REFUSED_FOR: Duration = Duration::from_secs(6 * 60 * 60);
/// After an answer that tells nothing, and while one is on its way.
const PAUSE: Duration = Duration::from_secs(60);

/// Which tags are known not to move. Clones know the same. Lost on restart, and then asked for again.
#[derive(Clone)]
pub(super) struct Learned {
    upstreams: Upstreams,
    known: moka::sync::Cache<RepoKey, Known>,
    refusal_told: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Known {
    mutability: Option<TagMutability>,
    until: Instant,
}

impl Learned {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            known: moka::sync::Cache::new(10_000),
            refusal_told: Arc::default(),
        }
    }

    /// Whether the registry is known to keep `tag` from moving. Where that is not known it is asked in the
    /// background, for the next who wants to know.
    pub(super) fn is_immutable(&self, repo: &RepoKey, tag: &Tag) -> bool {
        let known = self.known.get(repo);
        let mutability = known.as_ref().and_then(|known| known.mutability.clone());
        let answer = mutability
            .as_ref()
            .is_some_and(|mutability| mutability.is_immutable(tag));
        if known.is_none_or(|known| known.until <= Instant::now()) {
            self.note(repo, mutability.clone(), PAUSE);
            tokio::spawn(self.clone().ask(repo.clone(), mutability));
        }
        answer
    }

    /// Whatever was learned is asked for again.
    pub(super) fn forget(&self) {
        self.known.invalidate_all();
    }

    fn note(&self, repo: &RepoKey, mutability: Option<TagMutability>, good_for: Duration) {
        let until = Instant::now() + good_for;
        self.known.insert(repo.clone(), Known { mutability, until });
    }

    async fn ask(self, repo: RepoKey, before: Option<TagMutability>) {
        let Ok(upstream) = self.upstreams.of(&repo) else {
            return;
        };
        let answer = upstream.tag_mutability(&repo.repository).await;
        let note = |mutability, good_for| {
            self.upstreams
                .note(&upstream, || self.note(&repo, mutability, good_for));
        };
        match answer {
            Ok(mutability) => note(Some(mutability), GOOD_FOR),
            Err(UpstreamError::Refused) => {
                if !self.refusal_told.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        upstream.name = %repo.upstream,
                        "ecr:DescribeRepositories is not granted: tags of immutable repositories are checked like others"
                    );
                }
                note(None, REFUSED_FOR);
            }
            Err(UpstreamError::Unsupported | UpstreamError::Absent(_)) => {
                note(None, REFUSED_FOR);
            }
            Err(_) => note(before, PAUSE),
        }
    }
}
