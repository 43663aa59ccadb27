//! A download that goes on from the same repository elsewhere, once its own upstream cannot answer.
//!
//! What is the same is the digest: another repository's record or registry proves that it holds it, a size
//! that differs is refused, and nothing but the hash of the whole decides whether the bytes belong together.

use std::sync::Weak;

use futures_util::future::{pending, select_all};

use super::error::FillError;
use super::failover::Place as _;
use super::origin::Origin;
use super::{Fills, Shared};
use crate::oci::{Digest, RepoKey};
use crate::upstream::{BlobBody, Upstream};

/// The repository that a blob was asked of, and where else it may be.
#[derive(Clone)]
pub(super) struct Elsewhere {
    /// A fill keeps nothing alive that its owner has let go.
    shared: Weak<Shared>,
    repo: RepoKey,
    /// Whether its own upstream is waited for until bytes came from there.
    stays: bool,
}

impl Elsewhere {
    pub(super) fn new(shared: Weak<Shared>, repo: RepoKey, stays: bool) -> Self {
        Self {
            shared,
            repo,
            stays,
        }
    }

    /// The same bytes of another repository than that of `origin`, and where they come from now; `None`
    /// where there are none to be had at once.
    async fn open(
        &self,
        origin: &Origin,
        digest: Digest,
        from: u64,
        to: Option<u64>,
    ) -> Option<(Origin, BlobBody)> {
        let fills = Fills {
            shared: self.shared.upgrade()?,
        };
        for repo in self.others(&fills.shared, origin) {
            let Ok(upstream) = fills.shared.upstreams.of(&repo) else {
                continue;
            };
            if upstream.outage().is_some() {
                continue;
            }
            if fills.establish(&repo, digest).await.is_err() {
                continue;
            }
            let other = origin.moved_to(upstream, repo.repository);
            if let Ok(body) = other.open(digest, from, to).await {
                fills.shared.metrics.stood_in();
                return Some((other, body));
            }
        }
        None
    }

    /// Whether another repository than that of `origin` holds the blob, whose upstream can be asked for it as far
    /// as is known, and may be.
    pub(super) async fn has(&self, origin: &Origin, digest: Digest) -> bool {
        if self.stays {
            return false;
        }
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        let fills = Fills { shared };
        for repo in self.others(&fills.shared, origin) {
            let upstream = fills.shared.upstreams.of(&repo);
            let is_ready = upstream.is_ok_and(|it| it.is_ready(&repo.repository));
            if is_ready && fills.establish(&repo, digest).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Returns once one of the others answers, at once if one does; never where there is none.
    async fn answers(&self, origin: &Origin) {
        let others = self.shared.upgrade().map_or_else(Vec::new, |shared| {
            let repos = self.others(&shared, origin);
            shared.upstreams.of_all(&repos)
        });
        any_answers(&others).await;
    }

    /// The repository itself and its stand-ins, but for the one that bytes come from now.
    fn others(&self, shared: &Shared, origin: &Origin) -> Vec<RepoKey> {
        let mut all = self.repo.stand_ins(shared);
        all.insert(0, self.repo.clone());
        all.retain(|repo| repo.upstream != *origin.upstream.name());
        all
    }
}

/// Returns once one of these answers, at once if one does; never where there is none.
pub(super) async fn any_answers(upstreams: &[Upstream]) {
    let answers: Vec<_> = upstreams.iter().map(|it| Box::pin(it.answers())).collect();
    match answers.is_empty() {
        true => pending().await,
        false => drop(select_all(answers).await),
    }
}

impl Origin {
    /// What to go on with after `error`: the bytes from `from` to `to` of the same blob elsewhere, if the
    /// upstream could not answer and another does.
    pub(super) async fn open_elsewhere(
        &self,
        error: &FillError,
        digest: Digest,
        from: u64,
        to: Option<u64>,
    ) -> Option<(Self, BlobBody)> {
        let elsewhere = self.elsewhere.as_ref()?;
        match error.wants_another() {
            true => elsewhere.open(self, digest, from, to).await,
            false => None,
        }
    }

    /// Returns at once while its upstream or one that may stand in for it answers, and otherwise soon after
    /// one does again.
    pub(super) async fn answers(&self) {
        let elsewhere = async {
            match &self.elsewhere {
                Some(elsewhere) => elsewhere.answers(self).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.upstream.answers() => {}
            () = elsewhere => {}
        }
    }
}
