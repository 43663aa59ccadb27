//! What repositories hold, with proof: the table of loaded logs and the thread that writes them.
//!
//! The invariant: an answer comes from memory or from a log on disk, a change is in memory at once
//! and on disk within a second, and no caller waits for the writing. A record that cannot be written
//! stays in memory and is written when the disk works again.
//!
//! What is changed is queued before the repository is let go, so whatever waits to be written is in the
//! queue, and nothing that is in it is unloaded.
//!
//! Lock order: `writing`, then a repository, then the index or the queue; the table's and the queue's are
//! held for nothing else.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::SystemTime;

use bytes::Bytes;

use crate::oci::{Digest, RepoKey, Tag};

use super::layout::REPOSITORIES;
use super::lock;
use super::record::{Held, StoredManifest, TagRecord};
use super::repository_log::{self, RepositoryLog};
use super::store::Shared;

mod listing;
mod referrers;
mod writing;

pub use listing::ManifestRecord;

/// Most repositories kept loaded while nobody uses them. A loaded one costs about 100 bytes for each
/// of its records; the manifests' bytes are not among them.
const LOADED: usize = 512;

/// Bytes of manifests kept in memory: the images that are pulled all day.
const HOT_BYTES: u64 = 16 << 20;

/// What a manifest in memory takes beside its bytes, about.
const HOT_OVERHEAD: usize = 640;

/// The records of all repositories. Clones are handles of the same.
///
/// All methods may read the disk once for each repository, and to read a manifest that was not asked
/// for lately; none waits for a write.
#[derive(Clone, Debug)]
pub struct Records {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    table: Mutex<Table>,
    queue: Mutex<Queue>,
    queued: Condvar,
    /// One writer at a time.
    writing: Mutex<()>,
    /// Of all repositories together: what one of them has is in its log, and never told from here.
    hot: moka::sync::Cache<Digest, StoredManifest, foldhash::quality::RandomState>,
    /// Size of each log, by its path.
    sizes: Mutex<HashMap<String, u64>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Table {
    repositories: foldhash::HashMap<RepoKey, (Arc<Repository>, u64)>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Queue {
    dirty: Vec<Arc<Repository>>,
    stop: bool,
}

#[derive(Debug)]
struct Repository {
    key: RepoKey,
    /// From the store's root.
    components: Vec<String>,
    /// Loaded on first use.
    log: Mutex<Option<RepositoryLog>>,
}

impl Repository {
    fn new(key: &RepoKey) -> Self {
        let mut components = vec![REPOSITORIES.to_owned(), component(&key.upstream)];
        components.extend(key.repository.as_str().split('/').map(component));
        Self {
            key: key.clone(),
            components,
            log: Mutex::default(),
        }
    }

    fn borrowed(&self) -> Vec<&str> {
        self.components.iter().map(String::as_str).collect()
    }

    fn directory(&self, shared: &Shared) -> io::Result<OwnedFd> {
        shared.layout.directory(&self.borrowed())
    }

    fn path(&self) -> String {
        self.components[1..].join("/")
    }

    /// Whose directory `path` is, below `repositories/`.
    fn key_of(path: &str) -> Option<RepoKey> {
        let (upstream, name) = path.split_once('/')?;
        let key = RepoKey {
            upstream: named(upstream)?.into(),
            repository: name.parse().ok()?,
        };
        // One repository has one directory, and anything else there is none.
        (Self::new(&key).path() == path).then_some(key)
    }
}

/// A name as one component of a path. Repository names pass unchanged.
fn component(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_lowercase()
            || byte.is_ascii_digit()
            || (at > 0 && matches!(byte, b'.' | b'-' | b'_'));
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out
}

/// The name that [`component`] made this of.
fn named(component: &str) -> Option<String> {
    let mut parts = component.split('%');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        name.push(u8::from_str_radix(hex, 16).ok()?);
        name.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(name).ok()
}

impl Records {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            shared,
            table: Mutex::default(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            writing: Mutex::default(),
            hot: moka::sync::Cache::builder()
                .max_capacity(HOT_BYTES)
                .weigher(|_, manifest: &StoredManifest| {
                    u32::try_from(manifest.bytes.len() + HOT_OVERHEAD).unwrap_or(u32::MAX)
                })
                .build_with_hasher(foldhash::quality::RandomState::default()),
            sizes: Mutex::default(),
            thread: Mutex::default(),
        });
        let writer = inner.clone();
        let thread = std::thread::Builder::new()
            .name("cache-records".into())
            .spawn(move || {
                while !lock(&writer.queue).stop {
                    if catch_unwind(AssertUnwindSafe(|| writer.write_loop())).is_err() {
                        tracing::error!("the writer of records panicked and is started again");
                    }
                }
            })?;
        *lock(&inner.thread) = Some(thread);
        Ok(Self { inner })
    }

    /// A stored manifest of this repository.
    pub fn manifest(&self, repo: &RepoKey, digest: &Digest) -> Option<StoredManifest> {
        let inner = &self.inner;
        inner.with(repo, |repository, log| {
            // The log decides whether it is held; the memory only spares reading it.
            if let Some(manifest) = inner.hot(digest, log.media_type_of(digest)?) {
                return Some(manifest);
            }
            let directory = || repository.directory(&inner.shared);
            let manifest = log.manifest(digest, directory).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read a stored manifest");
                None
            })?;
            inner.hot.insert(*digest, manifest.clone());
            Some(manifest)
        })?
    }

    /// Like [`Self::manifest`] without waiting for the disk; the outer `None` says only that
    /// [`Self::manifest`] has to be asked.
    pub fn manifest_now(&self, repo: &RepoKey, digest: &Digest) -> Option<Option<StoredManifest>> {
        let known = |log: &RepositoryLog| self.inner.stored_now(log, digest);
        self.inner.with_now(repo, known)?
    }

    /// When upstream last confirmed that this repository holds a stored manifest, without waiting for
    /// the disk; `None` if that is not known at once, or there is no such manifest.
    pub fn manifest_checked_now(&self, repo: &RepoKey, digest: &Digest) -> Option<SystemTime> {
        self.inner
            .with_now(repo, |log| log.manifest_checked_at(digest))?
    }

    /// Like [`Self::holds`] without waiting for the disk; the outer `None` says only that
    /// [`Self::holds`] has to be asked.
    pub fn holds_now(&self, repo: &RepoKey, digest: &Digest) -> Option<Option<Held>> {
        self.inner.with_now(repo, |log| log.holds(digest))
    }

    /// Like [`Self::tag`] without waiting for the disk; the outer `None` says only that
    /// [`Self::tag`] has to be asked.
    pub fn tag_now(&self, repo: &RepoKey, tag: &Tag) -> Option<Option<TagRecord>> {
        self.inner.with_now(repo, |log| log.tag(tag))
    }

    /// What a tag pointed to when it was last checked, and that manifest, if it is stored.
    pub fn tagged(&self, repo: &RepoKey, tag: &Tag) -> Option<(TagRecord, Option<StoredManifest>)> {
        let record = self.tag(repo, tag)?;
        Some((record, self.manifest(repo, &record.digest)))
    }

    /// Like [`Self::tagged`] without waiting for the disk; the outer `None` says only that
    /// [`Self::tagged`] has to be asked.
    pub fn tagged_now(
        &self,
        repo: &RepoKey,
        tag: &Tag,
    ) -> Option<Option<(TagRecord, Option<StoredManifest>)>> {
        let known = |log: &RepositoryLog| {
            let Some(record) = log.tag(tag) else {
                return Some(None);
            };
            let manifest = self.inner.stored_now(log, &record.digest)?;
            Some(Some((record, manifest)))
        };
        self.inner.with_now(repo, known)?
    }

    /// Stores a manifest that upstream returned for this repository at `at`, hashing it; the config
    /// and layers it names are held from now on. Returns its digest.
    pub fn put_manifest(
        &self,
        repo: &RepoKey,
        media_type: &str,
        bytes: Bytes,
        at: SystemTime,
    ) -> Digest {
        let manifest = StoredManifest::new(Digest::of(&bytes), media_type.into(), bytes);
        let digest = manifest.digest;
        self.inner
            .change(repo, |log| log.put_manifest(&manifest, at));
        self.inner.hot.insert(digest, manifest);
        digest
    }

    /// Proof that this repository holds a blob, if there is one.
    pub fn holds(&self, repo: &RepoKey, digest: &Digest) -> Option<Held> {
        self.inner.with(repo, |_, log| log.holds(digest))?
    }

    /// Upstream said at `at` that this repository holds a blob.
    pub fn put_held(&self, repo: &RepoKey, digest: Digest, size: Option<u64>, at: SystemTime) {
        self.inner
            .change(repo, |log| log.put_held(digest, size, at));
    }

    /// What a tag pointed to when it was last checked.
    pub fn tag(&self, repo: &RepoKey, tag: &Tag) -> Option<TagRecord> {
        self.inner.with(repo, |_, log| log.tag(tag))?
    }

    /// Upstream said at `at` what a tag points to. A tag found unchanged is written at most once a
    /// minute.
    pub fn put_tag(&self, repo: &RepoKey, tag: &Tag, digest: Digest, at: SystemTime) {
        self.inner.change(repo, |log| log.put_tag(tag, digest, at));
    }

    /// Upstream said that this repository does not hold a blob.
    pub fn forget_blob(&self, repo: &RepoKey, digest: &Digest) {
        self.inner.change(repo, |log| log.forget_blob(digest));
    }

    /// Upstream said that this repository does not hold a manifest. What rested on it goes too.
    pub fn forget_manifest(&self, repo: &RepoKey, digest: &Digest) {
        self.inner.change(repo, |log| log.forget_manifest(digest));
    }

    /// Upstream said that this repository has no such tag.
    pub fn forget_tag(&self, repo: &RepoKey, tag: &Tag) {
        self.inner.change(repo, |log| log.forget_tag(tag));
    }

    /// Forgets manifests of this repository and the tags that point to them, because content that they
    /// name is to go: upstream has to be asked again.
    pub(super) fn forget_image(&self, repo: &RepoKey, manifests: &[Digest], tags: &[Tag]) {
        self.inner
            .change(repo, |log| log.forget_image(manifests, tags));
    }

    /// Reads all records there are, so that the index knows what is needed; until `is_over`.
    pub(super) fn survey(&self, is_over: impl Fn() -> bool) {
        for repo in self.repositories() {
            if is_over() {
                return;
            }
            self.load(&repo);
        }
    }

    /// Reads a repository's records, if they are not in memory.
    pub(super) fn load(&self, repo: &RepoKey) {
        self.inner.with(repo, |_, _| ());
    }

    /// Writes all that is pending, durably.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.inner.write_out()
    }

    /// Ends the thread and writes what is pending, exact times included.
    pub(super) fn stop(&self) {
        lock(&self.inner.queue).stop = true;
        self.inner.queued.notify_all();
        if let Some(thread) = lock(&self.inner.thread).take() {
            // Its panics are caught and logged inside.
            let _ = thread.join();
        }
        let loaded: Vec<_> = {
            let table = lock(&self.inner.table);
            table
                .repositories
                .values()
                .map(|(r, _)| r.clone())
                .collect()
        };
        for repository in loaded {
            if let Some(log) = &mut *lock(&repository.log) {
                log.log_times();
            }
            lock(&self.inner.queue).dirty.push(repository);
        }
        if let Err(error) = self.inner.write_out() {
            tracing::warn!(%error, "the last records were not written");
        }
    }

    /// Checks the whole log of a repository: tells how many stretches of it are damaged, and has it
    /// written anew if there are any.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn check(&self, repo: &RepoKey) -> io::Result<usize> {
        let inner = &self.inner;
        let damaged = {
            // Nobody appends meanwhile.
            let _writing = lock(&inner.writing);
            let directory = inner.repository(repo).directory(&inner.shared)?;
            repository_log::damaged(&directory)?
        };
        if damaged > 0 {
            inner.change(repo, RepositoryLog::write_anew);
        }
        Ok(damaged)
    }

    /// Counts the logs on disk. A walk of directories, for the janitor.
    pub(super) fn measure(&self) {
        let inner = &self.inner;
        inner.walk_logs(|path, size| inner.measured(path.to_owned(), size));
    }
}

impl Inner {
    fn repository(&self, key: &RepoKey) -> Arc<Repository> {
        let mut table = lock(&self.table);
        table.clock += 1;
        let now = table.clock;
        if let Some((repository, used)) = table.repositories.get_mut(key) {
            *used = now;
            return repository.clone();
        }
        let repository = Arc::new(Repository::new(key));
        table
            .repositories
            .insert(key.clone(), (repository.clone(), now));
        if table.repositories.len() > LOADED {
            unload(&mut table);
        }
        repository
    }

    /// A manifest in memory, as a repository has it that calls it by this media type.
    fn hot(&self, digest: &Digest, media_type: &str) -> Option<StoredManifest> {
        let manifest = self.hot.get(digest)?;
        (*manifest.media_type == *media_type).then_some(manifest)
    }

    /// What the log's repository has under a digest; the outer `None` says that the disk has to be asked.
    fn stored_now(&self, log: &RepositoryLog, digest: &Digest) -> Option<Option<StoredManifest>> {
        match log.media_type_of(digest) {
            None => Some(None),
            Some(media_type) => self.hot(digest, media_type).map(Some),
        }
    }

    /// Runs `f` on a repository's records; `None` if they cannot be read at the moment, and then
    /// nothing is known and nothing kept.
    fn with<T>(
        &self,
        key: &RepoKey,
        f: impl FnOnce(&Repository, &mut RepositoryLog) -> T,
    ) -> Option<T> {
        self.with_log(&self.repository(key), f)
    }

    /// Like [`Self::with`] if it can be had without waiting.
    fn with_now<T>(&self, key: &RepoKey, f: impl FnOnce(&RepositoryLog) -> T) -> Option<T> {
        let repository = self.repository(key);
        let guard = repository.log.try_lock().ok()?;
        guard.as_ref().map(f)
    }

    fn with_log<T>(
        &self,
        repository: &Arc<Repository>,
        f: impl FnOnce(&Repository, &mut RepositoryLog) -> T,
    ) -> Option<T> {
        let mut guard = lock(&repository.log);
        // One that was found damaged has to be written anew whether or not anybody changes it.
        let mut is_queued = false;
        let log = match &mut *guard {
            Some(log) => {
                is_queued = log.is_dirty();
                log
            }
            empty => {
                let directory = match repository.directory(&self.shared) {
                    Ok(directory) => Ok(Some(directory)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                };
                let loaded = directory.and_then(|directory| {
                    RepositoryLog::load(repository.key.to_string(), directory.as_ref())
                });
                match loaded {
                    Ok(log) => {
                        lock(&self.shared.index).records_read(&repository.key, log.everything());
                        empty.insert(log)
                    }
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            oci.repository = %repository.key,
                            "cannot read a repository's records"
                        );
                        return None;
                    }
                }
            }
        };
        let result = f(repository, log);
        self.tell(repository, log);
        // Whoever only asks may find damage, which is a change.
        if log.is_dirty() && !is_queued {
            self.enqueue(Arc::clone(repository));
        }
        Some(result)
    }

    /// Tells the index what changed. The caller holds the repository, so that it hears of changes in
    /// their order.
    fn tell(&self, repository: &Repository, log: &mut RepositoryLog) {
        let changes = log.take_changes();
        if !changes.is_empty() {
            lock(&self.shared.index).records_changed(&repository.key, changes);
        }
    }

    fn change(&self, key: &RepoKey, f: impl FnOnce(&mut RepositoryLog)) {
        self.with(key, |_, log| f(log));
    }
}

/// Forgets a quarter of the loaded repositories, the least recently used that nobody is using and
/// that have nothing to write.
fn unload(table: &mut Table) {
    let mut idle: Vec<(u64, RepoKey)> = table
        .repositories
        .iter()
        .filter(|(_, (repository, _))| Arc::strong_count(repository) == 1)
        .map(|(key, (_, used))| (*used, key.clone()))
        .collect();
    idle.sort_unstable_by_key(|(used, _)| *used);
    for (_, key) in idle.into_iter().take(LOADED / 4) {
        table.repositories.remove(&key);
    }
}
