//! A file on disk that is not yet believed: hashed again while it is served.

use std::sync::{Arc, PoisonError};

use tokio::sync::Semaphore;

use super::Shared;
use super::error::FillError;
use super::flow::Flow;
use super::front::{Front, Phase, TAIL};
use super::waiting;
use crate::cache::{Blob, Damage};
use crate::oci::{Digest, Hasher};

/// How much is read at once, in bytes.
const PIECE: usize = 256 * 1024;

/// How much is hashed between two looks at who waits, in bytes: some milliseconds' work.
const PART: u64 = 4 * 1024 * 1024;

/// Whether a stored file may be taken for what its name says.
pub(super) enum Belief {
    /// It was hashed since it was last changed.
    Believed,
    /// It is being hashed: readers follow the verdict.
    Verifying(Arc<Flow>),
    /// It is not what its name says, and is gone.
    Damaged,
}

impl Shared {
    /// Believes a file whose stamp is good; has any other hashed, once for everybody who asks. A small
    /// one is waited for, so that a damaged one is fetched again instead of failing its reader.
    pub(super) async fn believe(self: &Arc<Self>, blob: &Blob) -> Result<Belief, FillError> {
        if blob.stamped() {
            return Ok(Belief::Believed);
        }
        let flow = self.verify(blob);
        if blob.len() > TAIL {
            return Ok(Belief::Verifying(flow));
        }
        let mut front = flow.subscribe();
        let verdict = front
            .wait_for(|front| matches!(front.phase, Phase::Verified { .. } | Phase::Failed(_)))
            .await
            .map_err(|_| FillError::Lost)?;
        match &verdict.phase {
            Phase::Verified { .. } => Ok(Belief::Believed),
            Phase::Connecting | Phase::Running { .. } | Phase::Failed(_) => Ok(Belief::Damaged),
        }
    }

    fn verify(self: &Arc<Self>, blob: &Blob) -> Arc<Flow> {
        let digest = blob.digest();
        let mut verifying = self
            .verifying
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = verifying.get(&digest) {
            return Arc::clone(flow);
        }
        let flow = Flow::new(
            digest,
            Front::unverified(blob.len()),
            Some(blob.content().clone()),
        );
        verifying.insert(digest, Arc::clone(&flow));
        let verdict = Verdict {
            shared: Arc::clone(self),
            flow: Arc::clone(&flow),
            phase: None,
        };
        tokio::spawn(run(verdict, blob.clone()));
        flow
    }
}

async fn run(mut verdict: Verdict, blob: Blob) {
    let shared = Arc::clone(&verdict.shared);
    let hashed = shared.verifiers.hash(&blob, &verdict.flow).await;
    let store = shared.store.clone();
    let outcome = waiting::read(move || match hashed {
        Ok(actual) if actual == blob.digest() => {
            store.mark_verified(&blob);
            Ok(blob.len())
        }
        Ok(actual) => {
            store.quarantine(&blob, Damage::Digest(actual));
            Err(FillError::DigestMismatch)
        }
        Err(error) => {
            if error == FillError::Unreadable {
                store.quarantine(&blob, Damage::Unreadable);
            }
            Err(error)
        }
    })
    .await;
    verdict.phase = match outcome {
        Ok(Ok(len)) => Some(Phase::Verified { len }),
        Ok(Err(error)) => Some(Phase::Failed(error)),
        Err(_) => None,
    };
}

/// Turns at hashing files: hashing them again must not take the processor from those who are served.
///
/// A file whose verdict a reader waits for goes before all that nobody waits for, even if it had no reader who
/// does when it came. Of either kind one is hashed at a time, and the others rest while one is that is waited for.
pub(super) struct Verifiers {
    awaited: Semaphore,
    others: Semaphore,
}

impl Default for Verifiers {
    fn default() -> Self {
        Self {
            awaited: Semaphore::new(1),
            others: Semaphore::new(1),
        }
    }
}

impl Verifiers {
    /// Hashes a file in its turn, which depends on whether anybody waits on `flow`.
    ///
    /// # Errors
    /// [`FillError::Unreadable`] if the file ends early or the disk does not give it.
    async fn hash(&self, blob: &Blob, flow: &Flow) -> Result<Digest, FillError> {
        let mut hashing = Hashing::new(blob.clone());
        if blob.len() <= TAIL {
            // Somebody waits for it before the head of an answer.
            hashing = hashing.go_on().await?;
        }
        while !hashing.is_through() {
            if flow.is_awaited() {
                let _turn = self.awaited.acquire().await;
                while flow.is_awaited() && !hashing.is_through() {
                    hashing = hashing.go_on().await?;
                }
            } else {
                let _turn = tokio::select! {
                    turn = self.others.acquire() => turn,
                    () = flow.until_awaited() => continue,
                };
                while !flow.is_awaited() && !hashing.is_through() {
                    drop(self.awaited.acquire().await);
                    hashing = hashing.go_on().await?;
                }
            }
        }
        Ok(hashing.hasher.finish())
    }
}

/// A file of which so much is hashed.
struct Hashing {
    blob: Blob,
    hasher: Hasher,
    at: u64,
    room: Vec<u8>,
}

impl Hashing {
    fn new(blob: Blob) -> Self {
        Self {
            blob,
            hasher: Hasher::new(),
            at: 0,
            room: Vec::new(),
        }
    }

    fn is_through(&self) -> bool {
        self.at >= self.blob.len()
    }

    /// Hashes the next [`PART`].
    async fn go_on(mut self) -> Result<Self, FillError> {
        let hash = move || {
            self.room.resize(PIECE, 0);
            let end = self.blob.len().min(self.at + PART);
            while self.at < end {
                match self.blob.content().read_at(self.at, &mut self.room) {
                    Ok(0) | Err(_) => return Err(FillError::Unreadable),
                    Ok(length) => {
                        self.hasher.update(&self.room[..length]);
                        self.at += length as u64;
                    }
                }
            }
            Ok(self)
        };
        waiting::read(hash).await?
    }
}

/// Tells the verdict however the task ends, and lets the next reader find the file as it is then.
pub(super) struct Verdict {
    pub(super) shared: Arc<Shared>,
    pub(super) flow: Arc<Flow>,
    pub(super) phase: Option<Phase>,
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let verifying = &self.shared.verifying;
        verifying
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.flow.digest);
        let phase = self.phase.take().unwrap_or(Phase::Failed(FillError::Lost));
        if let Phase::Failed(error) = &phase {
            if *error == FillError::DigestMismatch {
                self.shared.metrics.digest_mismatches.inc();
            }
            // Whoever ends before it knows has removed nothing.
            if *error != FillError::Lost {
                tracing::warn!(oci.digest = %self.flow.digest, %error, "a cached file is damaged and was removed");
            }
        }
        self.flow.enter(phase);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::fill::tests::{SOON, fills, store};

    const LEN: usize = 2 * TAIL as usize;

    /// Puts a blob that nothing tells was hashed; its digest.
    fn put(dir: &TempDir, seed: u8) -> Digest {
        let content = [seed; LEN];
        let digest = Digest::of(&content);
        let store = store(dir);
        let mut partial = store.begin(digest, LEN as u64, b"").unwrap();
        partial.append(&content).unwrap();
        store.commit(partial.verify().unwrap()).unwrap();
        let hex = digest.hex();
        let file = dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
        let mode = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(file, mode).unwrap();
        digest
    }

    async fn believed(shared: &Arc<Shared>, digest: &Digest) -> Arc<Flow> {
        let blob = shared.store.blob(digest).unwrap().unwrap();
        match shared.believe(&blob).await.unwrap() {
            Belief::Verifying(flow) => flow,
            Belief::Believed | Belief::Damaged => panic!("it was hashed"),
        }
    }

    async fn until_verified(flow: &Flow) {
        let mut front = flow.subscribe();
        let verified = front.wait_for(|front| matches!(front.phase, Phase::Verified { .. }));
        tokio::time::timeout(SOON, verified).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn d12_a_file_that_somebody_waits_for_is_hashed_before_those_that_nobody_does() {
        let dir = TempDir::new().unwrap();
        let digests = [1, 2].map(|seed| put(&dir, seed));
        let shared = fills(&dir).shared;
        // A file is being hashed that is large, or slow.
        let turn = shared.verifiers.others.acquire().await.unwrap();
        let part = believed(&shared, &digests[0]).await;
        let whole = believed(&shared, &digests[1]).await;
        let _parts = part.attend_to(LEN as u64 - 1);
        let reader = whole.attend_to(LEN as u64);
        until_verified(&whole).await;
        drop(reader);
        assert!(!whole.is_awaited() && !part.is_awaited());
        assert!(matches!(
            part.subscribe().borrow().phase,
            Phase::Running { .. }
        ));
        // Who comes later for all of it does not wait where those before it did.
        let _whole = part.attend_to(LEN as u64);
        until_verified(&part).await;
        drop(turn);
    }

    #[tokio::test]
    async fn d12_what_nobody_waits_for_rests_while_somebody_waits_and_is_hashed_after_that() {
        let dir = TempDir::new().unwrap();
        let digest = put(&dir, 1);
        let shared = fills(&dir).shared;
        let turn = shared.verifiers.awaited.acquire().await.unwrap();
        let flow = believed(&shared, &digest).await;
        while shared.verifiers.others.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(
            flow.subscribe().borrow().phase,
            Phase::Running { .. }
        ));
        drop(turn);
        until_verified(&flow).await;
    }
}
