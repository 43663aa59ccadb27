//! Writing a repository's log: what is taken away to be written, and what is believed afterwards.
//!
//! A log is appended to, or written anew under another name and renamed. Both work on what was taken
//! from the repository, so nobody who asks it waits for the disk.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::oci::Digest;

use super::reading::{is_of_the_medium, read_body};
use super::{Body, LOG, RepositoryLog};
use crate::cache::frames::{HEADER_LEN, Salt, framed};
use crate::cache::layout;
use crate::cache::record::Record;

const NEW_LOG: &str = "_log.new";

/// A log shorter than this is not worth compacting.
const COMPACT_MIN: u64 = 64 << 10;

/// What the writer takes away to write without holding the repository.
#[derive(Debug)]
pub(in crate::cache) enum Batch {
    Append {
        at: u64,
        frames: Vec<u8>,
        manifests: Vec<(Digest, usize, usize)>,
    },
    Rewrite {
        salt: Salt,
        /// In the order they are to be written.
        entries: Vec<Entry>,
    },
}

/// What a rewrite writes.
#[derive(Debug)]
pub(in crate::cache) struct Entry(Content);

#[derive(Debug)]
enum Content {
    Manifest {
        digest: Digest,
        at: SystemTime,
        media_type: Arc<str>,
        body: Body,
    },
    /// The payload of anything else.
    Other(Vec<u8>),
}

impl Entry {
    fn of(record: &Record<'_>) -> Self {
        Self(Content::Other(record.encode()))
    }
}

/// A log file written anew, under its temporary name.
#[derive(Debug)]
pub(in crate::cache) struct Rewritten {
    len: u64,
    /// Where the manifests' bodies are now.
    offsets: Vec<(Digest, u64, usize)>,
    /// Manifests whose bytes could not be read from the old log.
    lost: Vec<Digest>,
}

impl RepositoryLog {
    /// Takes away what is to be written; `None` if there is nothing.
    pub(in crate::cache) fn take_batch(&mut self) -> Option<Batch> {
        if !self.is_dirty() {
            return None;
        }
        if self.rewrite || self.is_wasteful() {
            self.rewrite = true;
            self.pending.clear();
            self.pending_manifests.clear();
            self.drop_spent_denials();
            let batch = self.whole();
            // What comes from now on is appended to the new file.
            self.rewrite = false;
            return Some(batch);
        }
        Some(Batch::Append {
            at: self.len,
            frames: std::mem::take(&mut self.pending),
            manifests: std::mem::take(&mut self.pending_manifests),
        })
    }

    fn is_wasteful(&self) -> bool {
        self.len > COMPACT_MIN && self.len > 2 * self.live()
    }

    /// What the log would be long if it were written anew, nearly.
    fn live(&self) -> u64 {
        let manifests = self
            .manifests
            .values()
            .map(|manifest| framed(43 + manifest.media_type.len() + manifest.len()));
        let held = self.by_upstream.len() as u64 * framed(49);
        let denied = self.denied.len() as u64 * framed(33);
        let tags = self.tags.keys().map(|tag| framed(41 + tag.as_str().len()));
        let referrers = self.referrers.values();
        let referrers = referrers.map(|(list, _)| framed(41 + list.len()));
        let small = held + denied + tags.sum::<u64>() + referrers.sum::<u64>();
        HEADER_LEN as u64 + manifests.sum::<u64>() + small
    }

    /// Forgets the denials that concern no manifest that is left.
    fn drop_spent_denials(&mut self) {
        let concerned: HashSet<Digest> = self
            .manifests
            .values()
            .flat_map(|manifest| {
                let blobs = manifest.links.blobs.iter().map(|(blob, _)| *blob);
                blobs.filter(|blob| {
                    let before = self.denied.get(blob);
                    before.is_some_and(|before| manifest.nth <= *before)
                })
            })
            .collect();
        self.denied.retain(|blob, _| concerned.contains(blob));
    }

    fn whole(&self) -> Batch {
        let mut manifests: Vec<_> = self.manifests.iter().collect();
        manifests.sort_unstable_by_key(|(_, manifest)| manifest.nth);
        let mut denied: Vec<_> = self.denied.iter().collect();
        denied.sort_unstable_by_key(|(_, before)| **before);
        let mut denied = denied.into_iter().peekable();
        let denial = |(blob, _): (&Digest, &u64)| Entry::of(&Record::ForgetBlob(*blob));
        let mut entries = Vec::new();
        for (digest, manifest) in manifests {
            // A denial comes after what it denies, and before what proves the blob again.
            while let Some(before) = denied.next_if(|(_, before)| **before < manifest.nth) {
                entries.push(denial(before));
            }
            entries.push(Entry(Content::Manifest {
                digest: *digest,
                at: manifest.checked.at,
                media_type: manifest.media_type.clone(),
                body: manifest.body.clone(),
            }));
        }
        entries.extend(denied.map(denial));
        // Behind the denials, for what was heard since.
        entries.extend(self.by_upstream.iter().map(|(digest, held)| {
            Entry::of(&Record::Held {
                digest: *digest,
                at: held.checked.at,
                size: held.size,
            })
        }));
        entries.extend(self.tags.iter().map(|(tag, (digest, checked))| {
            Entry::of(&Record::Tag {
                digest: *digest,
                at: checked.at,
                tag: tag.as_str(),
            })
        }));
        entries.extend(self.referrers.iter().map(|(subject, (list, checked))| {
            Entry::of(&Record::Referrers {
                subject: *subject,
                at: checked.at,
                list,
            })
        }));
        Batch::Rewrite {
            salt: self.salt,
            entries,
        }
    }

    /// Writes a batch's new file under its temporary name and syncs it. The old log is only read.
    pub(in crate::cache) fn write_new(
        name: &str,
        directory: &OwnedFd,
        salt: Salt,
        entries: Vec<Entry>,
    ) -> io::Result<Rewritten> {
        layout::remove_name(directory, NEW_LOG)?;
        let mut new = layout::create_file(directory, NEW_LOG)?;
        let old = layout::open_file(directory, LOG).ok();
        let mut out = salt.header().to_vec();
        salt.append(&mut out, &Record::Repository(name).encode());
        let mut rewritten = Rewritten {
            len: 0,
            offsets: Vec::new(),
            lost: Vec::new(),
        };
        for Entry(content) in entries {
            let (digest, at, media_type, body) = match content {
                Content::Manifest {
                    digest,
                    at,
                    media_type,
                    body,
                } => (digest, at, media_type, body),
                Content::Other(payload) => {
                    salt.append(&mut out, &payload);
                    continue;
                }
            };
            let bytes = match (body, &old) {
                (Body::Memory(bytes), _) => Some(bytes),
                (Body::Disk { offset, len }, Some(old)) => {
                    match read_body(old, offset, len, &digest) {
                        // A worn place: what is in it must not keep the rest from being written. A disk
                        // that fails altogether does not take the new file, and nothing is lost by it.
                        Err(error) if is_of_the_medium(&error) => None,
                        read => read?,
                    }
                }
                (Body::Disk { .. }, None) => None,
            };
            let Some(bytes) = bytes else {
                rewritten.lost.push(digest);
                continue;
            };
            let payload = Record::Manifest {
                digest,
                at,
                media_type: &media_type,
                bytes: &bytes,
            }
            .encode();
            match salt.append(&mut out, &payload) {
                Some(offset) => {
                    let offset = (offset + payload.len() - bytes.len()) as u64;
                    let offset = rewritten.len + offset;
                    rewritten.offsets.push((digest, offset, bytes.len()));
                }
                None => rewritten.lost.push(digest),
            }
            if out.len() > 1 << 20 {
                new.write_all(&out)?;
                rewritten.len += out.len() as u64;
                out.clear();
            }
        }
        new.write_all(&out)?;
        rewritten.len += out.len() as u64;
        new.sync_all()?;
        Ok(rewritten)
    }

    /// Puts the new file in place. Whoever reads a manifest holds the repository, as the caller does
    /// here, so that offsets and file change together. The directory is still to be synced.
    pub(in crate::cache) fn adopt(
        &mut self,
        directory: &OwnedFd,
        rewritten: Rewritten,
    ) -> io::Result<()> {
        rustix::fs::renameat(directory, NEW_LOG, directory, LOG)?;
        self.len = rewritten.len;
        for (digest, offset, len) in rewritten.offsets {
            self.now_on_disk(&digest, offset, len);
        }
        for digest in rewritten.lost {
            let stored = self.manifests.get(&digest);
            if stored.is_some_and(|stored| matches!(stored.body, Body::Disk { .. })) {
                self.remove_manifest(&digest);
            }
        }
        Ok(())
    }

    /// Appends frames to the log in `directory` at `at`, cutting a torn tail, and syncs them.
    pub(in crate::cache) fn append_to(
        directory: &OwnedFd,
        at: u64,
        frames: &[u8],
    ) -> io::Result<()> {
        let file = layout::open_for_append(directory, LOG)?;
        if file.metadata()?.len() != at {
            file.set_len(at)?;
        }
        file.write_all_at(frames, at)?;
        file.sync_data()
    }

    pub(in crate::cache) fn appended(
        &mut self,
        at: u64,
        len: usize,
        manifests: &[(Digest, usize, usize)],
    ) {
        self.len = at + len as u64;
        for (digest, offset, len) in manifests {
            self.now_on_disk(digest, at + *offset as u64, *len);
        }
    }

    fn now_on_disk(&mut self, digest: &Digest, offset: u64, len: usize) {
        if let Some(manifest) = self.manifests.get_mut(digest) {
            manifest.body = Body::Disk { offset, len };
        }
    }

    /// A batch could not be written: what it held is still in memory, and the whole is written anew
    /// when the disk works again. Nothing of the failed file is synced a second time.
    pub(in crate::cache) fn write_failed(&mut self) {
        self.write_anew();
    }

    /// The file is damaged: the next thing to be written is all that is known.
    pub(in crate::cache) fn write_anew(&mut self) {
        self.rewrite = true;
        self.pending.clear();
        self.pending_manifests.clear();
    }

    /// Bytes on disk.
    pub(in crate::cache) fn len(&self) -> u64 {
        self.len
    }
}
