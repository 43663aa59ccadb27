//! Fetching for nobody in particular: what jobs ask for, behind what clients do.
//!
//! The invariant: a client never waits for it. Fills that are begun here have slots of their own, and
//! they are begun only once they have one, so that a client who asks for a blob that waits for its turn
//! begins it at once. No content comes out of here, so no right is needed; that the repository holds the
//! digest is proven as it is for clients, who will be served on the strength of it.

use std::sync::Arc;

use super::Fills;
use super::error::FillError;
use super::filling::Slot;
use super::flow::Flow;
use super::found::Found;
use super::front::Phase;
use super::manifests::Refreshed;
use super::opening::LOOKS;
use super::proof::{KnownSize, Pass};
use super::starting::{Started, Wanted};
use super::verifying::Belief;
use crate::cache::{Blob, StoredManifest};
use crate::oci::{Digest, Reference, RepoKey, Tag};
use crate::telemetry::Outcome;

/// What became of a fill that nobody waits for the bytes of.
pub(super) enum Carried {
    /// It is on disk, of this size in bytes.
    Kept(Found<u64>),
    /// It was on disk before the fill could begin.
    Present,
    /// It was fetched, and the disk would not take it.
    Unkept,
}

impl Fills {
    /// The manifest that `reference` names in `repo`, as [`Fills::manifest`] finds it, and the repository that
    /// it is of: the same one elsewhere, where its own upstream cannot answer.
    ///
    /// # Errors
    /// The upstream's, where nothing kept may be taken instead.
    ///
    /// # Cancel safety
    /// Questions to the upstream run in tasks of their own and are shared; a caller may leave.
    pub async fn fetch_manifest(
        &self,
        repo: &RepoKey,
        reference: &Reference,
    ) -> Result<(RepoKey, Found<StoredManifest>), FillError> {
        let ask = |repo: RepoKey| async move {
            let found = self.shared.manifests.find(&repo, reference).await?;
            Ok(found.map(|manifest| (repo, manifest)))
        };
        let Found { what, how } = self.shared.anywhere(repo, ask).await?;
        let (repo, what) = what;
        Ok((repo, Found { what, how }))
    }

    /// Asks upstream what a tag means now, however fresh its record is, and the same repository elsewhere where it
    /// cannot answer. It is stale where upstream has it no more and a pin keeps it.
    ///
    /// # Errors
    /// The upstream's; what is kept stays as it was.
    ///
    /// # Cancel safety
    /// The question is asked in a task of its own and shared; a caller may leave.
    pub async fn refresh(&self, repo: &RepoKey, tag: &Tag) -> Result<Found<Refreshed>, FillError> {
        let ask = |repo: RepoKey| async move { self.shared.manifests.refresh(&repo, tag).await };
        self.shared.anywhere(repo, ask).await
    }

    /// True while a blob is being fetched for whoever asked for it.
    pub fn is_filling(&self, digest: &Digest) -> bool {
        self.shared.running().contains_key(digest)
    }

    /// True while any client waits for the upstream's bytes.
    pub fn are_attended(&self) -> bool {
        let running = self.shared.running();
        running
            .values()
            .flatten()
            .any(|fill| fill.flow.is_attended())
    }

    /// Sees to it that a blob is whole on disk, behind what clients ask for, and from elsewhere where the
    /// repository's own upstream cannot answer. `progress` is told how many bytes of how many there are, whenever
    /// there are more.
    ///
    /// The size of the blob in bytes: `Hit` if it was there, `Joined` if somebody was fetching it, else `Miss`.
    ///
    /// # Errors
    /// Why it is not: the upstream's error, or [`FillError::Unkept`] and [`FillError::Abandoned`] where
    /// the disk does not take it.
    ///
    /// # Cancel safety
    /// A fill that was begun goes on without the caller.
    pub async fn fetch(
        &self,
        repo: &RepoKey,
        digest: Digest,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Found<u64>, FillError> {
        let pass = self.establish_anywhere(repo, digest).await?;
        let fetch = |pass: Pass| async move { self.make_whole(&pass, progress).await };
        self.by_pass(&pass, fetch).await
    }

    async fn make_whole(
        &self,
        pass: &Pass,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Found<u64>, FillError> {
        for _ in 0..LOOKS {
            if let Some(size) = self.verified_on_disk(pass).await? {
                progress(size, size);
                return Ok(Found::by(Outcome::Hit, size));
            }
            match self
                .carry(&pass.repo, pass.digest, pass.size, progress)
                .await?
            {
                Carried::Kept(found) => return Ok(found),
                Carried::Present => {}
                Carried::Unkept => return Err(FillError::Unkept),
            }
        }
        Err(FillError::Lost)
    }

    /// The size of a blob whose file is what its name says, hashed anew where that is in doubt.
    async fn verified_on_disk(&self, pass: &Pass) -> Result<Option<u64>, FillError> {
        let Some(blob) = self.shared.stored(pass).await? else {
            return Ok(None);
        };
        Ok(self.is_verified(&blob).await?.then_some(blob.len()))
    }

    /// Whether a file is what its name says, hashed anew where that is in doubt.
    pub(super) async fn is_verified(&self, blob: &Blob) -> Result<bool, FillError> {
        Ok(match self.shared.believe(blob).await? {
            Belief::Believed => true,
            Belief::Verifying(flow) => until_verdict(&flow, &|_, _| ()).await.is_ok(),
            Belief::Damaged => false,
        })
    }

    /// Fetches a blob in a background slot, or waits for whoever does.
    pub(super) async fn carry(
        &self,
        repo: &RepoKey,
        digest: Digest,
        size: KnownSize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Carried, FillError> {
        loop {
            let slot = self.shared.background_slots.take(None).await;
            let mine = self.shared.asked(repo)?;
            let want = Wanted {
                digest,
                size,
                has_waited: false,
            };
            let Some(started) = self.start(&mine, &want, Slot::Had(slot)) else {
                return Ok(Carried::Present);
            };
            let Started {
                outcome,
                attendance,
                asked,
                ..
            } = started;
            let flow = Arc::clone(attendance.flow());
            // Nobody reads: without a disk there is nothing to go on for.
            drop(attendance);
            match until_verdict(&flow, progress).await {
                // A no to another repository is none to this one. That fill is off the map by now.
                Err(error) if error.is_of_another(&asked, &mine) => {}
                Err(error) => return Err(error),
                Ok(size) => {
                    return Ok(match flow.until_ended().await {
                        true => Carried::Kept(Found::by(outcome, size)),
                        false => Carried::Unkept,
                    });
                }
            }
        }
    }
}

/// Waits until a blob is verified, and answers its size.
async fn until_verdict(
    flow: &Flow,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<u64, FillError> {
    let mut fronts = flow.subscribe();
    loop {
        let front = fronts.borrow_and_update().clone();
        match front.phase {
            Phase::Connecting => {}
            Phase::Running { len } => progress(front.contiguous, len),
            Phase::Verified { len } => {
                progress(len, len);
                return Ok(len);
            }
            Phase::Failed(error) => return Err(error),
        }
        fronts.changed().await.map_err(|_| FillError::Lost)?;
    }
}
