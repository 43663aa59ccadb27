//! What arrives goes to disk: one thread for each fill, for as long as the fill lasts.
//!
//! Pieces come in any order and are written where they belong. What follows on what was hashed is hashed
//! from memory; what lies ahead is read back, from the page cache as a rule, when its turn comes.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::error::FillError;
use super::flow::Flow;
use crate::buffers::BufferPool;
use crate::cache::{AppendError, Partial};
use crate::oci::Hasher;

/// How much is read back between two looks for what has arrived, in bytes: no less than a piece, so that
/// the hash keeps up.
const BITE: usize = 512 * 1024;

/// A piece with its offset, or why there will be no more.
pub(super) type Arrival = Result<(u64, Bytes), FillError>;

/// How writing came to its end.
pub(super) enum Written {
    /// Every byte is there and hashed.
    Whole(Partial),
    /// The upstream's bytes broke off for good; those that came are kept.
    Broken(FillError),
    /// The disk takes no more, and what it took is given up.
    NoDisk {
        /// Over the first `written` bytes.
        hash: Hasher,
        written: u64,
        error: AppendError,
        /// What it did not take.
        piece: Option<(u64, Bytes)>,
        /// What is still to come.
        arrivals: mpsc::Receiver<Arrival>,
    },
}

/// Writes and hashes until all is there. Waits for the disk, and for what arrives.
pub(super) fn write(
    mut partial: Partial,
    mut arrivals: mpsc::Receiver<Arrival>,
    flow: &Flow,
    buffers: &BufferPool,
) -> Written {
    let mut room = Vec::new();
    loop {
        if partial.is_behind() {
            room.resize(BITE, 0);
            if let Err(error) = partial.catch_up(&mut room) {
                return give_up(partial, AppendError::Disk(error), None, arrivals);
            }
            flow.reach(partial.written());
        }
        if partial.written() == partial.declared() {
            return Written::Whole(partial);
        }
        let arrival = match arrivals.try_recv() {
            Err(_) if partial.is_behind() => continue,
            Err(TryRecvError::Empty) => arrivals.blocking_recv(),
            Err(TryRecvError::Disconnected) => None,
            Ok(arrival) => Some(arrival),
        };
        let (offset, piece) = match arrival {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Written::Broken(error),
            None => return Written::Broken(FillError::Lost),
        };
        // Readers that are behind need the buffers more.
        let keep = buffers.is_ample();
        match partial.write(offset, &piece) {
            Ok(hashed) if hashed.is_empty() => {}
            Ok(hashed) => {
                // In range: offsets within the piece.
                let (from, to) = (hashed.start - offset, hashed.end - offset);
                flow.landed_at(hashed.start, piece.slice(from as usize..to as usize), keep);
            }
            Err(error) => return give_up(partial, error, Some((offset, piece)), arrivals),
        }
    }
}

/// Here, because removing a large file takes its time as well.
fn give_up(
    partial: Partial,
    error: AppendError,
    piece: Option<(u64, Bytes)>,
    arrivals: mpsc::Receiver<Arrival>,
) -> Written {
    let (hash, written) = partial.abandon();
    Written::NoDisk {
        hash,
        written,
        error,
        piece,
        arrivals,
    }
}
