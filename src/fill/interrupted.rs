//! What is noted beside an unfinished download, and going on with one that nobody asks for.

use std::sync::Arc;

use super::Fills;
use super::error::FillError;
use super::fetch::Carried;
use super::found::Found;
use super::origin::Origin;
use super::proof::KnownSize;
use crate::cache::Interrupted;
use crate::oci::{Digest, RepoKey, RepositoryName};
use crate::telemetry::Outcome;
use crate::upstream::{UpstreamError, Validator};

/// Where a download comes from, and how to tell that the content is still the same.
#[derive(serde::Deserialize, serde::Serialize)]
pub(super) struct Note {
    upstream: String,
    repository: String,
    etag: Option<String>,
}

pub(super) fn read_note(note: &[u8]) -> Option<(Note, RepositoryName)> {
    let note: Note = serde_json::from_slice(note).ok()?;
    let repository = note.repository.parse().ok()?;
    Some((note, repository))
}

impl Origin {
    /// What is noted of it beside an unfinished download.
    pub(super) fn note(&self) -> Vec<u8> {
        let note = Note {
            upstream: self.upstream.name().to_string(),
            repository: self.repository.to_string(),
            etag: self
                .validator
                .get()
                .and_then(|known| known.etag().map(str::to_owned)),
        };
        serde_json::to_vec(&note).unwrap_or_default()
    }

    /// The same place, held to the content that `note` was made of. What one repository's storage
    /// calls a blob says nothing of another's.
    pub(super) fn held_to(&self, note: &Note, len: u64) -> Self {
        let origin = self.afresh();
        let etag = note.etag.clone().filter(|_| self.is_of(note));
        let _ = origin.validator.set(Validator::new(etag, Some(len)));
        origin
    }

    /// Whether that is the place which `note` was made of.
    pub(super) fn is_of(&self, note: &Note) -> bool {
        *note.upstream == **self.upstream.name() && note.repository == self.repository.as_str()
    }
}

impl Fills {
    /// The downloads that broke off and that nobody goes on with at the moment.
    pub fn interrupted(&self) -> Vec<Interrupted> {
        self.shared.store.interrupted()
    }

    /// Goes on with a download that broke off, for nobody in particular, to its end; from the same repository
    /// elsewhere where its own upstream cannot answer. Where another has brought the blob meanwhile, it is given up.
    ///
    /// # Errors
    /// Why the blob is still not whole; what was fetched is kept for the next attempt, unless upstream says
    /// that the blob is gone, or has sent other bytes than its digest says.
    ///
    /// # Cancel safety
    /// The fill goes on without the caller.
    pub async fn go_on(&self, interrupted: &Interrupted) -> Result<(), FillError> {
        if self.is_wanted_no_more(interrupted.digest).await? {
            return Ok(());
        }
        let Some((note, repository)) = read_note(&interrupted.note) else {
            return Ok(());
        };
        let Some(upstream) = self.shared.upstreams.named(&note.upstream) else {
            return Ok(());
        };
        // For as long as the operator wants it so, which is no failure each time.
        if upstream.is_offline() {
            return Err(UpstreamError::Offline.into());
        }
        let begun = RepoKey {
            upstream: Arc::clone(upstream.name()),
            repository,
        };
        let (begun, digest, len) = (&begun, interrupted.digest, interrupted.len);
        let carry = |repo: RepoKey| async move {
            // Where it was begun that was proven then.
            if repo != *begun {
                self.establish(&repo, digest).await?;
            }
            let size = KnownSize {
                described: None,
                told: Some(len),
            };
            match self.carry(&repo, digest, size, &|_, _| ()).await? {
                Carried::Kept(found) => Ok(found),
                Carried::Present => Ok(Found::by(Outcome::Hit, len)),
                // Nobody reads: without a disk there was nothing to go on for.
                Carried::Unkept => Err(FillError::Unkept),
            }
        };
        self.shared.anywhere(begun, carry).await?;
        Ok(())
    }

    /// Gives up a download that broke off where another has brought the blob meanwhile; true if so.
    async fn is_wanted_no_more(&self, digest: Digest) -> Result<bool, FillError> {
        let is_there = match self.shared.named(digest).await? {
            Some(blob) => self.is_verified(&blob).await?,
            None => false,
        };
        if is_there {
            let store = self.shared.store.clone();
            let give_up = move || {
                if let Some((broken, _)) = store.resume(&digest) {
                    broken.discard();
                }
            };
            tokio::task::spawn_blocking(give_up)
                .await
                .map_err(|_| FillError::Lost)?;
        }
        Ok(is_there)
    }
}
