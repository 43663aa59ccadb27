//! Downloads that broke off, kept until somebody goes on with them.
//!
//! Beside the temporary file lies a note: what its owner needs to go on, in words of its own. The
//! invariant: a file kept here is counted like any download, and nothing in it is believed: who takes
//! it up hashes every byte again before it adds one. A file without a note that checks is debris.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::oci::Digest;

use super::content::ContentFile;
use super::frames::{Frames, Salt};
use super::janitor::names_in;
use super::layout::{self, FILLS, Layout};
use super::lock;
use super::partial::Partial;
use super::spans::Spans;
use super::store::{Shared, digest_of};

/// Below this, in bytes, going on saves less than the note costs.
const WORTH_A_NOTE: u64 = 1024 * 1024;

/// Longest note that is read back, in bytes.
const MAX_NOTE: u64 = 1024 * 1024;

/// How long a broken download waits for somebody to go on with it.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A download that broke off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// What the whole is to hash to.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// What its owner noted when it began.
    pub note: Bytes,
}

/// The downloads that broke off, by digest.
pub(super) type Interruptions = HashMap<Digest, Kept>;

#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    content: ContentFile,
    present: Spans,
    /// Whether marks tell what is present, rather than the length of the file.
    is_marked: bool,
    note: Bytes,
    since: SystemTime,
}

impl Shared {
    /// Lays a note beside the temporary file `name`; false if there is none, and the download will not
    /// outlive its task.
    pub(super) fn write_note(&self, name: &str, digest: Digest, len: u64, note: &[u8]) -> bool {
        if note.is_empty() || len < WORTH_A_NOTE {
            return false;
        }
        let salt = Salt::random();
        let mut bytes = salt.header().to_vec();
        let mut payload = digest.as_bytes().to_vec();
        payload.extend_from_slice(&len.to_le_bytes());
        payload.extend_from_slice(note);
        salt.append(&mut bytes, &payload);
        let written = self
            .layout
            .directory(&FILLS)
            .and_then(|fills| layout::create_file(&fills, &note_name(name)))
            .and_then(|mut file| file.write_all(&bytes));
        if let Err(error) = &written {
            self.write_failed(error);
        }
        written.is_ok()
    }

    /// Keeps the file of a download that broke off, with this in it.
    pub(super) fn suspend(
        &self,
        name: String,
        content: &ContentFile,
        present: Spans,
        is_marked: bool,
        note: Bytes,
    ) {
        // Trying in vain keeps it no longer.
        let written = content.content().file.metadata();
        let written = written.and_then(|metadata| metadata.modified());
        let kept = Kept {
            name,
            content: content.clone(),
            present,
            is_marked,
            note,
            since: written.unwrap_or_else(|_| SystemTime::now()),
        };
        self.keep(content.digest(), kept);
    }

    fn keep(&self, digest: Digest, kept: Kept) {
        let displaced = lock(&self.interrupted).insert(digest, kept);
        if let Some(kept) = displaced {
            self.discard(kept);
        }
    }

    /// Hands out a broken download to go on with.
    pub(super) fn take_interrupted(self: &Arc<Self>, digest: &Digest) -> Option<(Partial, Bytes)> {
        let kept = lock(&self.interrupted).remove(digest)?;
        let note = kept.note.clone();
        let partial = Partial::again(
            Arc::clone(self),
            kept.content,
            kept.name,
            kept.present,
            kept.is_marked,
            kept.note,
        );
        Some((partial, note))
    }

    pub(super) fn interrupted_at(&self, digest: &Digest) -> Option<u64> {
        let interrupted = lock(&self.interrupted);
        interrupted.get(digest).map(|kept| kept.present.end_from(0))
    }

    pub(super) fn list_interrupted(&self) -> Vec<Interrupted> {
        let interrupted = lock(&self.interrupted);
        let mut list: Vec<_> = interrupted
            .iter()
            .map(|(digest, kept)| Interrupted {
                digest: *digest,
                len: kept.content.len(),
                note: kept.note.clone(),
            })
            .collect();
        list.sort_unstable_by_key(|interrupted| interrupted.digest);
        list
    }

    /// Takes over what an earlier run left; reads the names under `fills/`, and one small file for
    /// each download that broke off. Whatever else is there now is no download of this run.
    pub(super) fn adopt_interrupted(&self) {
        let Ok(fills) = self.layout.directory(&FILLS) else {
            return;
        };
        let mut names = names_in(&fills).unwrap_or_default();
        let notes = names.iter().filter_map(|name| name.strip_suffix(NOTE));
        let adopted: Vec<_> = notes.filter_map(|name| self.adopt(&fills, name)).collect();
        let taken: HashSet<String> = adopted.iter().map(|(_, kept)| kept.name.clone()).collect();
        names.retain(|name| !taken.contains(noted(name)));
        *lock(&self.leftovers) = names;
        for (digest, kept) in adopted {
            self.keep(digest, kept);
        }
    }

    fn adopt(&self, fills: &OwnedFd, name: &str) -> Option<(Digest, Kept)> {
        let digest = digest_of(name)?;
        let Noted { len, note, marked } = read_note(fills, &note_name(name), digest).ok()??;
        let file = layout::open_for_append(fills, name).ok()?;
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        let is_marked = marked.is_some();
        let mut present = Spans::up_to(metadata.len());
        if let Some(marked) = marked {
            // After a power cut the marks may know of more than the disk does.
            present = present.both(&marked).both(&layout::data_in(&file));
        }
        if present.is_empty() || metadata.len() > len || metadata.nlink() != 1 {
            return None;
        }
        // It is there already, whatever the limits say now: making room is the janitor's.
        let space = self.ledger.reserve(len, u64::MAX, u64::MAX).ok()?;
        space.allocated(metadata.blocks().saturating_mul(512));
        let kept = Kept {
            name: name.to_owned(),
            content: ContentFile::new(file, digest, len, space),
            present,
            is_marked,
            note,
            since: metadata.modified().unwrap_or_else(|_| SystemTime::now()),
        };
        Some((digest, kept))
    }

    /// Gives up the download of a blob that is wanted no more.
    pub(super) fn discard_interrupted(&self, digest: &Digest) {
        let kept = lock(&self.interrupted).remove(digest);
        if let Some(kept) = kept {
            self.discard(kept);
        }
    }

    /// Gives up the download that has waited longest; returns the bytes it took.
    pub(super) fn discard_oldest(&self) -> u64 {
        let mut interrupted = lock(&self.interrupted);
        let oldest = interrupted
            .iter()
            .min_by_key(|(_, kept)| kept.since)
            .map(|(digest, _)| *digest);
        let Some(kept) = oldest.and_then(|digest| interrupted.remove(&digest)) else {
            return 0;
        };
        drop(interrupted);
        let freed = kept.content.len();
        self.discard(kept);
        freed
    }

    /// Gives up what nobody went on with in time. A clock that was set back keeps it longer.
    pub(super) fn discard_expired(&self) {
        let now = SystemTime::now();
        let is_expired = |kept: &Kept| {
            now.duration_since(kept.since)
                .is_ok_and(|waited| waited > KEPT_FOR)
        };
        let expired: Vec<Kept> = lock(&self.interrupted)
            .extract_if(|_, kept| is_expired(kept))
            .map(|(_, kept)| kept)
            .collect();
        for kept in expired {
            self.discard(kept);
        }
    }

    fn discard(&self, kept: Kept) {
        self.remove_temporary(kept.name, &kept.content);
    }
}

const NOTE: &str = ".note";

/// The name of the note beside the temporary file `name`.
pub(super) fn note_name(name: &str) -> String {
    format!("{name}{NOTE}")
}

/// The name of the temporary file that a name under `fills/` belongs to: its own, or its note's.
pub(super) fn noted(name: &str) -> &str {
    name.strip_suffix(NOTE).unwrap_or(name)
}

/// What a note says.
struct Noted {
    len: u64,
    /// The owner's words.
    note: Bytes,
    /// What is in the file, if its length does not tell.
    marked: Option<Spans>,
}

/// What a note says about `digest`; `None` if it does not check.
fn read_note(fills: &OwnedFd, name: &str, digest: Digest) -> io::Result<Option<Noted>> {
    let mut bytes = Vec::new();
    let file = layout::open_file(fills, name)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    file.take(MAX_NOTE).read_to_end(&mut bytes)?;
    let Some(mut frames) = Frames::read(&bytes) else {
        return Ok(None);
    };
    let first = frames.next().and_then(|(_, payload)| {
        let (named, rest) = payload.split_first_chunk::<32>()?;
        let (len, note) = rest.split_first_chunk::<8>()?;
        let is_about = Digest::from_sha256(*named) == digest;
        is_about.then(|| (u64::from_le_bytes(*len), Bytes::copy_from_slice(note)))
    });
    let marked = frames.filter_map(|(_, payload)| Spans::from_bytes(payload));
    Ok(first.map(|(len, note)| Noted {
        len,
        note,
        marked: marked.last(),
    }))
}

/// Appends to a note what is in the file beside it. The last mark counts.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The note, its salt, and where its last frame ends; found when first needed.
    note: Option<(File, Salt, u64)>,
}

impl Marks {
    /// Notes that this is in the file `name`.
    pub(super) fn add(&mut self, layout: &Layout, name: &str, present: &Spans) -> io::Result<()> {
        if self.note.is_none() {
            let fills = layout.directory(&FILLS)?;
            let file = layout::open_for_append(&fills, &note_name(name))?;
            let mut bytes = Vec::new();
            (&file).take(MAX_NOTE).read_to_end(&mut bytes)?;
            let Some(mut frames) = Frames::read(&bytes) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            // To the end of the good ones.
            let _ = frames.by_ref().count();
            let end = frames.end() as u64;
            self.note = Some((file, frames.salt(), end));
        }
        let Some((file, salt, end)) = &mut self.note else {
            return Ok(());
        };
        let mut frame = Vec::new();
        salt.append(&mut frame, &present.to_bytes());
        file.write_all_at(&frame, *end)?;
        *end += frame.len() as u64;
        Ok(())
    }
}
