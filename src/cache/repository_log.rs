//! What one repository holds, in memory and as its log.
//!
//! The log is `repositories/<upstream>/<name>/_log`: repository names contain `/` and a component
//! may be called `log`, so a file of that name could stand where the repository `<name>/log` wants
//! its directory; no component begins with `_`.
//!
//! The memory holds what the log says, except the manifests' bytes: those stay in the log and are
//! checked against their digest when read. How it is read is in [`reading`], how it is written in [`writing`]. Knows nothing of
//! threads, tables or when to write.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::oci::{Digest, Manifest, Tag};

use super::frames::{Frames, Salt};
use super::record::{Record, StoredManifest};
use super::references::{Change, Links};

mod asking;
mod reading;
mod referrers;
#[cfg(test)]
mod tests;
mod writing;

pub(super) use reading::damaged;
pub(super) use writing::Batch;

pub(super) const LOG: &str = "_log";

/// A tag confirmed again is written at most this often: a tag that is asked for all day must not
/// keep the disk busy, and after a restart at worst one more HEAD is sent.
const TAG_INTERVAL: Duration = Duration::from_secs(60);

/// The same for manifests and blobs, whose records are believed for hours.
const HELD_INTERVAL: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct StoredAt {
    /// Which of all manifests it is, in the order they came.
    nth: u64,
    media_type: Arc<str>,
    checked: Checked,
    body: Body,
    links: Links,
}

impl StoredAt {
    fn len(&self) -> usize {
        match &self.body {
            Body::Memory(bytes) => bytes.len(),
            Body::Disk { len, .. } => *len,
        }
    }

    /// The blobs it names that upstream has not denied since it came.
    fn proves<'a>(&'a self, denied: &'a HashMap<Digest, u64>) -> impl Iterator<Item = &'a Digest> {
        let blobs = self.links.blobs.iter().map(|(blob, _)| blob);
        blobs.filter(|blob| denied.get(blob).is_none_or(|before| self.nth > *before))
    }
}

#[derive(Clone, Debug)]
enum Body {
    /// Not on disk yet.
    Memory(Bytes),
    Disk {
        offset: u64,
        len: usize,
    },
}

/// When something was confirmed, and which of those times the log knows.
#[derive(Clone, Copy, Debug)]
struct Checked {
    at: SystemTime,
    logged: SystemTime,
}

impl Checked {
    fn logged(at: SystemTime) -> Self {
        Self { at, logged: at }
    }

    /// Moves the time; true if the log has to know of it.
    fn renew(&mut self, at: SystemTime, interval: Duration) -> bool {
        self.at = at;
        // A clock that was set back must be logged, or it would stay unlogged for long.
        let recent = at
            .duration_since(self.logged)
            .is_ok_and(|since| since < interval);
        if !recent {
            self.logged = at;
        }
        !recent
    }
}

#[derive(Debug)]
struct ByUpstream {
    size: Option<u64>,
    checked: Checked,
}

#[derive(Debug)]
struct ByManifests {
    size: u64,
    /// How many stored manifests name it that came after upstream last denied it.
    manifests: u32,
    checked_at: SystemTime,
}

/// A repository's records.
#[derive(Debug)]
pub(super) struct RepositoryLog {
    name: String,
    manifests: foldhash::HashMap<Digest, StoredAt>,
    by_upstream: HashMap<Digest, ByUpstream>,
    by_manifests: HashMap<Digest, ByManifests>,
    /// How many manifests have come, those that are gone as well.
    came: u64,
    /// Blobs that upstream denied, with how many manifests had come by then: those prove nothing of it.
    denied: HashMap<Digest, u64>,
    tags: HashMap<Tag, (Digest, Checked)>,
    /// What upstream lists as referring to a manifest, which need not be stored.
    referrers: HashMap<Digest, (Bytes, Checked)>,

    salt: Salt,
    /// Bytes of the file that are good; what is behind them is cut before appending.
    len: u64,
    /// The file is to be written anew rather than appended to.
    rewrite: bool,
    pending: Vec<u8>,
    /// Manifests in `pending`, with their bodies' offset there and length.
    pending_manifests: Vec<(Digest, usize, usize)>,

    /// What changed since the last [`RepositoryLog::take_changes`].
    changes: Vec<Change>,
}

impl RepositoryLog {
    fn empty(name: String) -> Self {
        Self {
            name,
            manifests: foldhash::HashMap::default(),
            by_upstream: HashMap::new(),
            by_manifests: HashMap::new(),
            came: 0,
            denied: HashMap::new(),
            tags: HashMap::new(),
            referrers: HashMap::new(),
            salt: Salt::random(),
            len: 0,
            rewrite: true,
            pending: Vec::new(),
            pending_manifests: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Reads the log in `directory`, `None` if there is no such directory.
    ///
    /// # Errors
    /// The disk's; what is merely damaged is skipped.
    pub(super) fn load(name: String, directory: Option<&OwnedFd>) -> io::Result<Self> {
        let mut this = Self::empty(name);
        let Some(bytes) = directory.map(reading::read).transpose()?.flatten() else {
            return Ok(this);
        };
        this.take_in(&bytes);
        // Nobody was told of anything yet: see `everything`.
        this.changes = Vec::new();
        Ok(this)
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let Some(mut frames) = Frames::read(bytes) else {
            return;
        };
        let mut named = false;
        for (offset, payload) in frames.by_ref() {
            match Record::decode(payload) {
                Some(Record::Repository(name)) if name == self.name => named = true,
                // Somebody moved a log here that belongs to another repository: it proves nothing.
                Some(Record::Repository(_)) => {
                    *self = Self::empty(std::mem::take(&mut self.name));
                    return;
                }
                Some(record) => self.apply(&record, offset + payload.len()),
                None => {}
            }
        }
        self.salt = frames.salt();
        self.len = frames.end() as u64;
        // The name was damaged: the records are whole and the salt ties them to this file, but the
        // next reader should find the name again.
        self.rewrite = !named;
        if frames.skipped() > 0 {
            tracing::warn!(
                oci.repository = %self.name,
                skipped = frames.skipped(),
                "a repository's log was damaged; what was readable is kept"
            );
        }
    }

    /// `end` is where the payload ends in the file.
    fn apply(&mut self, record: &Record<'_>, end: usize) {
        match *record {
            Record::Repository(_) => {}
            Record::Manifest {
                digest,
                at,
                media_type,
                bytes,
            } => {
                let body = Body::Disk {
                    offset: (end - bytes.len()) as u64,
                    len: bytes.len(),
                };
                self.insert_manifest(digest, at, media_type, bytes, body);
            }
            Record::ManifestChecked { digest, at } => {
                self.manifest_checked(&digest, at);
                if let Some(manifest) = self.manifests.get_mut(&digest) {
                    manifest.checked = Checked::logged(at);
                }
            }
            Record::Held { digest, at, size } => {
                let checked = Checked::logged(at);
                self.by_upstream
                    .insert(digest, ByUpstream { size, checked });
            }
            Record::Tag { digest, at, tag } => {
                if let Ok(tag) = tag.parse() {
                    self.insert_tag(tag, digest, at);
                }
            }
            Record::Referrers { subject, at, list } => {
                let list = Bytes::copy_from_slice(list);
                self.referrers.insert(subject, (list, Checked::logged(at)));
            }
            Record::ForgetBlob(digest) => {
                self.deny(&digest);
            }
            Record::ForgetManifest(digest) => {
                self.remove_manifest(&digest);
                self.referrers.remove(&digest);
            }
            Record::ForgetTag(tag) => {
                if let Ok(tag) = tag.parse() {
                    self.remove_tag(&tag);
                }
            }
        }
    }

    fn insert_manifest(
        &mut self,
        digest: Digest,
        at: SystemTime,
        media_type: &str,
        bytes: &[u8],
        body: Body,
    ) {
        self.remove_manifest(&digest);
        // One that cannot be understood is stored like any other, and proves nothing.
        let parsed = Manifest::parse(media_type, bytes).ok();
        let links = parsed.as_ref().map(Links::of).unwrap_or_default();
        for (blob, size) in links.blobs.iter() {
            let held = self.by_manifests.entry(*blob).or_insert(ByManifests {
                size: *size,
                manifests: 0,
                checked_at: at,
            });
            held.manifests += 1;
            held.checked_at = held.checked_at.max(at);
        }
        self.changes.push(Change::Manifest(digest, links.clone()));
        self.came += 1;
        let stored = StoredAt {
            nth: self.came,
            media_type: media_type.into(),
            checked: Checked::logged(at),
            body,
            links,
        };
        self.manifests.insert(digest, stored);
    }

    fn remove_manifest(&mut self, digest: &Digest) {
        let Some(manifest) = self.manifests.remove(digest) else {
            return;
        };
        for blob in manifest.proves(&self.denied) {
            if let Some(held) = self.by_manifests.get_mut(blob) {
                held.manifests -= 1;
                if held.manifests == 0 {
                    self.by_manifests.remove(blob);
                }
            }
        }
        self.changes.push(Change::ManifestGone(*digest));
    }

    /// Upstream says that it does not hold a blob; false if nothing said that it does.
    fn deny(&mut self, digest: &Digest) -> bool {
        let was_heard = self.by_upstream.remove(digest).is_some();
        let was_proven = self.by_manifests.remove(digest).is_some();
        if was_proven {
            self.denied.insert(*digest, self.came);
        }
        was_heard || was_proven
    }

    fn insert_tag(&mut self, tag: Tag, digest: Digest, at: SystemTime) {
        self.changes.push(Change::Tag(tag.clone(), digest));
        self.tags.insert(tag, (digest, Checked::logged(at)));
    }

    fn remove_tag(&mut self, tag: &Tag) -> bool {
        let was_there = self.tags.remove(tag).is_some();
        if was_there {
            self.changes.push(Change::TagGone(tag.clone()));
        }
        was_there
    }

    fn manifest_checked(&mut self, digest: &Digest, at: SystemTime) -> bool {
        let Some(manifest) = self.manifests.get_mut(digest) else {
            return false;
        };
        for blob in manifest.proves(&self.denied) {
            if let Some(held) = self.by_manifests.get_mut(blob) {
                held.checked_at = held.checked_at.max(at);
            }
        }
        manifest.checked.renew(at, HELD_INTERVAL)
    }

    fn log(&mut self, record: &Record<'_>) {
        // A rewrite takes everything from memory.
        if !self.rewrite {
            self.salt.append(&mut self.pending, &record.encode());
        }
    }

    /// True if there is something to write.
    pub(super) fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || (self.rewrite && !self.is_empty())
    }

    fn is_empty(&self) -> bool {
        // Once there is a log, its last record may be removed as well.
        self.is_vacant() && self.len == 0
    }

    /// True if nothing is recorded.
    pub(super) fn is_vacant(&self) -> bool {
        self.manifests.is_empty()
            && self.by_upstream.is_empty()
            && self.tags.is_empty()
            && self.referrers.is_empty()
    }

    pub(super) fn put_manifest(&mut self, manifest: &StoredManifest, at: SystemTime) {
        let digest = manifest.digest;
        let same = self
            .manifests
            .get(&digest)
            .is_some_and(|known| known.media_type == manifest.media_type);
        if same {
            if self.manifest_checked(&digest, at) {
                self.log(&Record::ManifestChecked { digest, at });
            }
            return;
        }
        let record = Record::Manifest {
            digest,
            at,
            media_type: &manifest.media_type,
            bytes: &manifest.bytes,
        };
        if !self.rewrite {
            let payload = record.encode();
            if let Some(offset) = self.salt.append(&mut self.pending, &payload) {
                let len = manifest.bytes.len();
                let body = offset + payload.len() - len;
                self.pending_manifests.push((digest, body, len));
            }
        }
        let body = Body::Memory(manifest.bytes.clone());
        self.insert_manifest(digest, at, &manifest.media_type, &manifest.bytes, body);
    }

    pub(super) fn put_held(&mut self, digest: Digest, size: Option<u64>, at: SystemTime) {
        match self.by_upstream.get_mut(&digest) {
            Some(held) if size.is_none() || held.size == size => {
                if held.checked.renew(at, HELD_INTERVAL) {
                    let size = held.size;
                    self.log(&Record::Held { digest, at, size });
                }
            }
            _ => {
                let checked = Checked::logged(at);
                self.by_upstream
                    .insert(digest, ByUpstream { size, checked });
                self.log(&Record::Held { digest, at, size });
            }
        }
    }

    pub(super) fn put_tag(&mut self, tag: &Tag, digest: Digest, at: SystemTime) {
        let renewed = match self.tags.get_mut(tag) {
            Some((known, checked)) if *known == digest => checked.renew(at, TAG_INTERVAL),
            _ => {
                self.insert_tag(tag.clone(), digest, at);
                true
            }
        };
        if renewed {
            let tag = tag.as_str();
            self.log(&Record::Tag { digest, at, tag });
        }
    }

    pub(super) fn forget_blob(&mut self, digest: &Digest) {
        if self.deny(digest) {
            self.log(&Record::ForgetBlob(*digest));
        }
    }

    pub(super) fn forget_manifest(&mut self, digest: &Digest) {
        if self.manifests.contains_key(digest) {
            self.remove_manifest(digest);
            self.referrers.remove(digest);
            self.log(&Record::ForgetManifest(*digest));
        }
    }

    pub(super) fn forget_tag(&mut self, tag: &Tag) {
        if self.remove_tag(tag) {
            self.log(&Record::ForgetTag(tag.as_str()));
        }
    }

    /// Forgets manifests, and those of `tags` that still point to one of them.
    pub(super) fn forget_image(&mut self, manifests: &[Digest], tags: &[Tag]) {
        let gone: HashSet<&Digest> = manifests.iter().collect();
        for tag in tags {
            let points_to = self.tags.get(tag).map(|(digest, _)| *digest);
            if points_to.is_some_and(|digest| gone.contains(&digest)) {
                self.forget_tag(tag);
            }
        }
        for digest in manifests {
            self.forget_manifest(digest);
        }
    }

    /// What changed since the last time.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Everything there is, as changes from nothing.
    pub(super) fn everything(&self) -> Vec<Change> {
        let manifests = self.manifests.iter();
        let manifests = manifests.map(|(digest, m)| Change::Manifest(*digest, m.links.clone()));
        let tags = self.tags.iter();
        manifests
            .chain(tags.map(|(tag, (digest, _))| Change::Tag(tag.clone(), *digest)))
            .collect()
    }

    /// Logs the times that were kept in memory only; for an orderly end.
    pub(super) fn log_times(&mut self) {
        let mut late: Vec<(Tag, Digest, SystemTime)> = Vec::new();
        for (tag, (digest, checked)) in &mut self.tags {
            if checked.at != checked.logged {
                checked.logged = checked.at;
                late.push((tag.clone(), *digest, checked.at));
            }
        }
        for (tag, digest, at) in late {
            let tag = tag.as_str();
            self.log(&Record::Tag { digest, at, tag });
        }
    }
}

/// Any bytes as a repository's log, and as records in one that is whole.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_log(data: &[u8]) {
    let read = |file: &[u8]| {
        let mut log = RepositoryLog::empty("team/app".to_owned());
        log.take_in(file);
        assert!(log.len <= file.len() as u64);
        log
    };
    read(data);
    let salt = Salt::random();
    let mut file = salt.header().to_vec();
    for payload in data.split(|byte| *byte == 0xff) {
        let Some(record) = Record::decode(payload) else {
            continue;
        };
        let encoded = record.encode();
        let again = Record::decode(&encoded).expect("our own");
        assert_eq!(again.encode(), encoded);
        salt.append(&mut file, payload);
    }
    read(&file);
}
