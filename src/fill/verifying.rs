//! A file on disk that is not yet believed: hashed again while it is served.

use std::sync::{Arc, PoisonError};

use super::Shared;
use super::error::FillError;
use super::flow::Flow;
use super::front::{Front, Phase, TAIL};
use super::waiting;
use crate::cache::{Blob, Damage};
use crate::oci::{Digest, Hasher};

/// How much is read and hashed at once, in bytes.
const PIECE: usize = 256 * 1024;

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
    let verifiers = Arc::clone(&verdict.shared.verifiers);
    // Somebody waits for a small one before the head of an answer, and it is hashed at once.
    let _turn = match blob.len() > TAIL {
        true => verifiers.acquire().await.ok(),
        false => None,
    };
    let store = verdict.shared.store.clone();
    let outcome = waiting::read(move || match hash(&blob) {
        Ok(actual) if actual == blob.digest() => {
            store.mark_verified(&blob);
            Ok(blob.len())
        }
        Ok(actual) => {
            store.quarantine(&blob, Damage::Digest(actual));
            Err(FillError::DigestMismatch)
        }
        Err(error) => {
            store.quarantine(&blob, Damage::Unreadable);
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

fn hash(blob: &Blob) -> Result<Digest, FillError> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < blob.len() {
        match blob.content().read_at(at, &mut piece) {
            Ok(0) | Err(_) => return Err(FillError::Unreadable),
            Ok(length) => {
                hasher.update(&piece[..length]);
                at += length as u64;
            }
        }
    }
    Ok(hasher.finish())
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
