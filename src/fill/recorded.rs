//! What records say, without making the runtime wait for a disk.
//!
//! The invariant: what is recorded of a repository was said by the registry that has its upstream's name, and not by
//! one that another took the place of while it was asked.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::error::FillError;
use crate::cache::{Held, Records, ReferrerList, Store, StoredManifest, TagRecord};
use crate::oci::{Digest, Reference, RepoKey, Tag};
use crate::upstream::{Upstream, Upstreams};

/// The store's records, asked at once where the repository's are in memory, else on a thread that may
/// wait for the disk. Clone is cheap.
#[derive(Clone)]
pub(super) struct Recorded {
    store: Store,
    upstreams: Upstreams,
}

impl Recorded {
    pub(super) fn new(store: Store, upstreams: Upstreams) -> Self {
        Self { store, upstreams }
    }

    pub(super) async fn held(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Option<Held>, FillError> {
        match self.store.records().holds_now(repo, &digest) {
            Some(known) => Ok(known),
            None => {
                self.ask(repo, move |records, repo| records.holds(repo, &digest))
                    .await
            }
        }
    }

    pub(super) async fn manifest(
        &self,
        repo: &RepoKey,
        digest: Digest,
    ) -> Result<Option<StoredManifest>, FillError> {
        match self.store.records().manifest_now(repo, &digest) {
            Some(known) => Ok(known),
            None => {
                self.ask(repo, move |records, repo| records.manifest(repo, &digest))
                    .await
            }
        }
    }

    /// When upstream last confirmed a manifest, where that is known at once.
    pub(super) fn manifest_checked(&self, repo: &RepoKey, digest: Digest) -> Option<SystemTime> {
        self.store.records().manifest_checked_now(repo, &digest)
    }

    pub(super) async fn forget_manifest(&self, repo: &RepoKey, digest: Digest) {
        self.forget(repo, move |records, repo| {
            records.forget_manifest(repo, &digest)
        })
        .await;
    }

    pub(super) async fn tag(
        &self,
        repo: &RepoKey,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, FillError> {
        if let Some(known) = self.store.records().tag_now(repo, tag) {
            return Ok(known);
        }
        let tag = tag.clone();
        self.ask(repo, move |records, repo| records.tag(repo, &tag))
            .await
    }

    /// What a tag pointed to, and that manifest, if it is stored.
    pub(super) async fn tagged(
        &self,
        repo: &RepoKey,
        tag: &Tag,
    ) -> Result<Option<(TagRecord, Option<StoredManifest>)>, FillError> {
        if let Some(known) = self.store.records().tagged_now(repo, tag) {
            return Ok(known);
        }
        let tag = tag.clone();
        self.ask(repo, move |records, repo| records.tagged(repo, &tag))
            .await
    }

    /// The tags of a repository whose manifests are stored.
    pub(super) async fn pullable_tags(
        &self,
        repo: &RepoKey,
    ) -> Result<Vec<(Tag, TagRecord)>, FillError> {
        self.ask(repo, |records, repo| {
            let stored = records.manifests(repo).into_iter();
            let stored: HashSet<Digest> = stored.map(|manifest| manifest.digest).collect();
            let mut tags = records.tags(repo);
            tags.retain(|(_, record)| stored.contains(&record.digest));
            tags
        })
        .await
    }

    /// The names of all repositories of an upstream that anything is recorded of.
    pub(super) async fn repositories(&self, upstream: &Arc<str>) -> Result<Vec<String>, FillError> {
        let (store, upstream) = (self.store.clone(), Arc::clone(upstream));
        let walk = tokio::task::spawn_blocking(move || {
            let mut all = store.records().repositories();
            all.retain(|repo| repo.upstream == upstream);
            all.iter().map(|repo| repo.repository.to_string()).collect()
        });
        walk.await.map_err(|_| FillError::Lost)
    }

    pub(super) async fn referrer_list(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Option<ReferrerList>, FillError> {
        self.ask(repo, move |records, repo| {
            records.referrer_list(repo, &subject)
        })
        .await
    }

    /// The stored manifests that refer to `subject`, and when upstream last confirmed each.
    pub(super) async fn referring(
        &self,
        repo: &RepoKey,
        subject: Digest,
    ) -> Result<Vec<(StoredManifest, SystemTime)>, FillError> {
        self.ask(repo, move |records, repo| {
            let referring = records.referrers(repo, &subject).into_iter();
            let checked = |manifest: &StoredManifest| {
                let at = records.manifest_checked_now(repo, &manifest.digest);
                at.unwrap_or(SystemTime::UNIX_EPOCH)
            };
            referring
                .map(|manifest| {
                    let at = checked(&manifest);
                    (manifest, at)
                })
                .collect()
        })
        .await
    }

    pub(super) async fn note_referrers(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        subject: Digest,
        entries: Bytes,
        at: SystemTime,
    ) {
        self.tell(by, repo, move |records, repo| {
            records.put_referrer_list(repo, subject, entries, at);
        })
        .await;
    }

    pub(super) async fn note_manifest(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        media_type: String,
        bytes: Bytes,
        at: SystemTime,
    ) {
        self.tell(by, repo, move |records, repo| {
            records.put_manifest(repo, &media_type, bytes, at);
        })
        .await;
    }

    /// Whether it is recorded.
    pub(super) async fn note_tag(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        tag: &Tag,
        digest: Digest,
        at: SystemTime,
    ) -> bool {
        let tag = tag.clone();
        self.tell(by, repo, move |records, repo| {
            records.put_tag(repo, &tag, digest, at)
        })
        .await
    }

    pub(super) async fn note_held(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        digest: Digest,
        size: Option<u64>,
        at: SystemTime,
    ) {
        self.tell(by, repo, move |records, repo| {
            records.put_held(repo, digest, size, at)
        })
        .await;
    }

    /// Whether a pin leads there, so that upstream's no removes nothing.
    pub(super) async fn is_pinned(&self, repo: &RepoKey, reference: &Reference) -> bool {
        let (store, repo, reference) = (self.store.clone(), repo.clone(), reference.clone());
        let asked = tokio::task::spawn_blocking(move || store.is_pinned(&repo, &reference));
        // What was removed does not come back.
        asked.await.unwrap_or(true)
    }

    pub(super) async fn forget_tag(&self, repo: &RepoKey, tag: &Tag) {
        let tag = tag.clone();
        self.forget(repo, move |records, repo| records.forget_tag(repo, &tag))
            .await;
    }

    pub(super) async fn forget_blob(&self, repo: &RepoKey, digest: Digest) {
        self.forget(repo, move |records, repo| {
            records.forget_blob(repo, &digest)
        })
        .await;
    }

    async fn ask<T: Send + 'static>(
        &self,
        repo: &RepoKey,
        question: impl FnOnce(&Records, &RepoKey) -> T + Send + 'static,
    ) -> Result<T, FillError> {
        let (store, repo) = (self.store.clone(), repo.clone());
        let answer = tokio::task::spawn_blocking(move || question(store.records(), &repo)).await;
        answer.map_err(|_| FillError::Lost)
    }

    /// Records what `by` said, unless another has its name by now. A record that is not written costs a question to
    /// the upstream later, and never an answer.
    async fn tell(
        &self,
        by: &Upstream,
        repo: &RepoKey,
        fact: impl FnOnce(&Records, &RepoKey) + Send + 'static,
    ) -> bool {
        let (upstreams, by) = (self.upstreams.clone(), by.clone());
        let noted = self
            .ask(repo, move |records, repo| {
                upstreams.note(&by, || fact(records, repo)).is_some()
            })
            .await;
        noted.unwrap_or_else(|_| {
            tracing::warn!(oci.repository = %repo, "a record could not be written");
            false
        })
    }

    /// Forgets something, whoever said that it is not so: that costs no more than a question.
    async fn forget(&self, repo: &RepoKey, fact: impl FnOnce(&Records, &RepoKey) + Send + 'static) {
        if self.ask(repo, fact).await.is_err() {
            tracing::warn!(oci.repository = %repo, "a record could not be taken back");
        }
    }
}
