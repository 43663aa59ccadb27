//! How far the bytes of a blob have come, and how far a reader may go.

use super::error::FillError;

/// How much of the end of a blob is withheld until its digest agrees, in bytes (promise 4).
///
/// A client never takes a blob for whole without these. More would delay the end of a download by the
/// time it takes to hash more; less would not, and 64 KiB is below what any client acts on.
pub(super) const TAIL: u64 = 64 * 1024;

/// The state of one blob on its way to being believed. The task that fills or verifies it is the only
/// sender; readers watch.
#[derive(Clone, Debug)]
pub(super) struct Front {
    /// Every byte before this offset has arrived and can be read.
    pub(super) contiguous: u64,
    /// Every byte before this offset is in the file of a download that broke off, and is read again before
    /// it counts as arrived; 0 for one that began at its beginning.
    pub(super) present: u64,
    /// Where the blob stands.
    pub(super) phase: Phase,
    /// A reader has been given some of it: from here on it is this transfer or none.
    pub(super) taken: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Waiting for the upstream's head: the size is not known.
    Connecting,
    /// Bytes arrive; `len` is the size of the whole.
    Running { len: u64 },
    /// Length and digest agreed.
    Verified { len: u64 },
    /// Nobody may take what was read for whole.
    Failed(FillError),
}

impl Front {
    pub(super) fn connecting() -> Self {
        Self {
            contiguous: 0,
            present: 0,
            phase: Phase::Connecting,
            taken: false,
        }
    }

    /// The front of a whole file that is not yet believed.
    pub(super) fn unverified(len: u64) -> Self {
        Self {
            contiguous: len,
            present: len,
            phase: Phase::Running { len },
            taken: false,
        }
    }

    /// Whether it can be answered from: of a blob that is sent only when verified the verdict is waited for, so that
    /// what fails so far is still an answer of its own.
    pub(super) fn is_begun(&self) -> bool {
        match self.phase {
            Phase::Connecting | Phase::Failed(_) => false,
            Phase::Running { len } => len > TAIL,
            Phase::Verified { .. } => true,
        }
    }

    /// How far the bytes are that need not be waited for from upstream.
    pub(super) fn at_hand(&self) -> u64 {
        self.contiguous.max(self.present)
    }

    /// The size, once it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self.phase {
            Phase::Running { len } | Phase::Verified { len } => Some(len),
            Phase::Connecting | Phase::Failed(_) => None,
        }
    }

    /// How far a reader whose range ends at `end` may read now: the only place that says so.
    ///
    /// A range that stops short of the blob's end cannot be taken for the whole blob and is served as
    /// its bytes land; one that reaches the end waits for the verdict before its last [`TAIL`] bytes.
    pub(super) fn released(&self, end: u64) -> u64 {
        match self.phase {
            Phase::Connecting | Phase::Failed(_) => 0,
            Phase::Verified { len } => end.min(len),
            Phase::Running { len } if end < len => self.contiguous.min(end),
            Phase::Running { len } => self.contiguous.min(len.saturating_sub(TAIL)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_blob_no_larger_than_the_tail_is_released_only_when_verified() {
        let mut front = Front {
            contiguous: TAIL,
            phase: Phase::Running { len: TAIL },
            ..Front::connecting()
        };
        assert_eq!(front.released(TAIL), 0);
        assert_eq!(front.released(TAIL - 1), TAIL - 1);
        front.phase = Phase::Verified { len: TAIL };
        assert_eq!(front.released(TAIL), TAIL);
        front.phase = Phase::Failed(FillError::DigestMismatch);
        assert_eq!(front.released(TAIL), 0);
    }

    proptest! {
        #[test]
        fn the_last_bytes_wait_for_the_verdict(len in 1u64..1 << 40, arrived: u64) {
            let contiguous = arrived % (len + 1);
            let front = Front { contiguous, phase: Phase::Running { len }, ..Front::connecting() };
            prop_assert!(front.released(len) <= contiguous);
            prop_assert!(front.released(len) < len);
            prop_assert!(len - front.released(len) >= TAIL.min(len));
        }
    }
}
