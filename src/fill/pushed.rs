//! What upstream took from a client is in the cache at once, for everybody who may pull.
//!
//! Called once upstream has said yes, and never before: nothing of a refused push is readable.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::{Fills, Received};
use crate::access::{Action, Right};
use crate::cache::{Candidate, Store};
use crate::oci::{Digest, Reference, RepoKey};
use crate::upstream::Upstream;

/// How long the answer to a push waits for the cache.
const KEEPING: Duration = Duration::from_secs(2);

fn keep(store: &Store, candidate: Candidate, digest: Digest) {
    if store.stored_len(&digest).is_some() {
        return;
    }
    match candidate.verify(digest) {
        Ok(verified) => {
            if let Err(error) = store.commit(verified) {
                tracing::warn!(oci.digest = %digest, %error, "what was pushed could not be kept");
            }
        }
        // Upstream says that it is what it is not.
        Err(mismatch) => tracing::warn!(oci.digest = %digest, %mismatch, "a push is not kept"),
    }
}

impl Fills {
    /// What a push is received into.
    pub fn receive(&self) -> Received {
        Received::new(self.shared.store.clone())
    }

    /// The upstream `by` took a blob into `repo`, of which `received` are the bytes.
    ///
    /// # Cancel safety
    /// What was not noted is asked for when it is needed.
    pub async fn blob_pushed(
        &self,
        right: &Right,
        by: &Upstream,
        repo: &RepoKey,
        digest: Digest,
        received: Received,
    ) {
        self.blob_mounted(right, by, repo, digest, Some(received.len()))
            .await;
        let store = self.shared.store.clone();
        let keeping = tokio::spawn(async move {
            if let Some(candidate) = received.kept().await {
                let kept = tokio::task::spawn_blocking(move || keep(&store, candidate, digest));
                let _ = kept.await;
            }
        });
        // A disk that is slow to sync is not waited for.
        let _ = timeout(KEEPING, keeping).await;
    }

    /// The upstream `by` has a blob in `repo` from now on, of `size` bytes where that is known.
    ///
    /// # Cancel safety
    /// As [`Fills::blob_pushed`].
    pub async fn blob_mounted(
        &self,
        right: &Right,
        by: &Upstream,
        repo: &RepoKey,
        digest: Digest,
        size: Option<u64>,
    ) {
        debug_assert_eq!(right.action(), Action::Push);
        let shared = &self.shared;
        shared.absent.forget(repo, digest);
        let now = shared.clock.now();
        let recorded = &shared.recorded;
        recorded.note_held(by, repo, digest, size, now).await;
    }

    /// The upstream `by` took a manifest into `repo`; a tag means it from now on.
    ///
    /// # Cancel safety
    /// As [`Fills::blob_pushed`].
    pub async fn manifest_pushed(
        &self,
        right: &Right,
        by: &Upstream,
        repo: &RepoKey,
        reference: &Reference,
        media_type: String,
        bytes: Bytes,
    ) {
        debug_assert_eq!(right.action(), Action::Push);
        let manifests = &self.shared.manifests;
        let pushed = manifests.pushed(by, repo, reference, media_type, bytes);
        pushed.await;
        self.shared.lists.changed(repo);
    }

    /// Upstream has taken a tag, or a manifest with its tags, away from `repo`.
    ///
    /// # Cancel safety
    /// As [`Fills::blob_pushed`].
    pub async fn manifest_deleted(&self, right: &Right, repo: &RepoKey, reference: &Reference) {
        debug_assert_eq!(right.action(), Action::Delete);
        self.shared.manifests.deleted(repo, reference).await;
        self.shared.lists.changed(repo);
    }

    /// Upstream has taken a blob away from `repo`.
    ///
    /// # Cancel safety
    /// As [`Fills::blob_pushed`].
    pub async fn blob_deleted(&self, right: &Right, repo: &RepoKey, digest: Digest) {
        debug_assert_eq!(right.action(), Action::Delete);
        let shared = &self.shared;
        shared.deleted.note(repo, digest, Instant::now());
        shared
            .probes
            .abandon_those(|(asked, blob)| asked == repo && *blob == digest);
        shared.recorded.forget_blob(repo, digest).await;
    }
}
