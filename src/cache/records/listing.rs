//! What there is altogether: repositories, their tags and their manifests.
//!
//! Repositories that are not loaded are found by their directories, and loaded when they are asked for.
//! For those who tend the cache; no answer to a client waits for a walk of directories.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType};

use crate::cache::janitor::names_in;
use crate::cache::layout::REPOSITORIES;
use crate::cache::lock;
use crate::cache::record::{StoredManifest, TagRecord};
use crate::cache::repository_log::{LOG, RepositoryLog};
use crate::oci::{Digest, RepoKey, Tag, media_type};

use super::{Inner, Records, Repository};

/// What the records say of one manifest, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRecord {
    /// Its digest.
    pub digest: Digest,
    /// The Content-Type it came with.
    pub media_type: Arc<str>,
    /// Its length in bytes.
    pub size: u64,
    /// The manifest that this one is about, for signatures, SBOMs and their like.
    pub subject: Option<Digest>,
    /// Wall time at which upstream last confirmed that the repository holds it.
    pub checked_at: SystemTime,
}

impl ManifestRecord {
    /// Whether it came as an index, which leads to other manifests.
    pub fn is_index(&self) -> bool {
        [media_type::OCI_INDEX, media_type::DOCKER_LIST].contains(&&*self.media_type)
    }
}

impl Records {
    /// Every repository that anything is recorded of, in order of name. Walks directories.
    pub fn repositories(&self) -> Vec<RepoKey> {
        let mut found = BTreeSet::new();
        self.inner.walk_logs(|path, _| {
            // A directory of another making has no name of ours.
            found.extend(Repository::key_of(path));
        });
        // What has not been written yet.
        let loaded: Vec<_> = {
            let table = lock(&self.inner.table);
            let entries = table.repositories.iter();
            entries
                .map(|(key, (repository, _))| (key.clone(), repository.clone()))
                .collect()
        };
        for (key, repository) in loaded {
            let log = lock(&repository.log);
            match log.as_ref().map(RepositoryLog::is_vacant) {
                Some(true) => found.remove(&key),
                Some(false) => found.insert(key),
                None => false,
            };
        }
        found.into_iter().collect()
    }

    /// The tags of a repository with what they pointed to when they were last checked, in order of name.
    pub fn tags(&self, repo: &RepoKey) -> Vec<(Tag, TagRecord)> {
        let mut tags = self
            .inner
            .with(repo, |_, log| log.tags())
            .unwrap_or_default();
        tags.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        tags
    }

    /// The stored manifests of a repository, in order of digest.
    pub fn manifests(&self, repo: &RepoKey) -> Vec<ManifestRecord> {
        let manifests = self.inner.with(repo, |_, log| log.manifests());
        let mut manifests = manifests.unwrap_or_default();
        manifests.sort_unstable_by_key(|manifest| manifest.digest);
        manifests
    }

    /// The stored manifests of a repository whose `subject` is `digest`, in order of digest.
    pub fn referrers(&self, repo: &RepoKey, digest: &Digest) -> Vec<StoredManifest> {
        let mut manifests = self.manifests(repo);
        manifests.retain(|manifest| manifest.subject == Some(*digest));
        let referrers = manifests.iter();
        referrers
            .filter_map(|manifest| self.manifest(repo, &manifest.digest))
            .collect()
    }
}

impl Inner {
    /// Calls `found` with the path of each log's directory below `repositories/`, and the log's length
    /// in bytes.
    pub(super) fn walk_logs(&self, mut found: impl FnMut(&str, u64)) {
        let mut directories = vec![String::new()];
        while let Some(path) = directories.pop() {
            let components: Vec<&str> = std::iter::once(REPOSITORIES)
                .chain(path.split('/').filter(|component| !component.is_empty()))
                .collect();
            let Ok(directory) = self.shared.layout.directory(&components) else {
                continue;
            };
            for name in names_in(&directory).unwrap_or_default() {
                let Ok(stat) = rustix::fs::statat(&directory, &*name, AtFlags::SYMLINK_NOFOLLOW)
                else {
                    continue;
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory if path.is_empty() => directories.push(name),
                    FileType::Directory => directories.push(format!("{path}/{name}")),
                    FileType::RegularFile if name == LOG => {
                        found(&path, u64::try_from(stat.st_size).unwrap_or(0));
                    }
                    _ => {}
                }
            }
        }
    }
}
