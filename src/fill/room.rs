//! Memory for one piece of a blob, pooled while there is some.

use bytes::Bytes;

use crate::buffers::{Buffer, BufferPool};

/// How much is held at once when no pooled buffer is free, in bytes. With many slow readers the pool is
/// empty, and each of them then pins no more than this.
const SMALL_PIECE: usize = 16 * 1024;

/// Memory that a piece is read into.
pub(super) enum Room {
    Pooled(Buffer),
    Small(Vec<u8>),
}

impl Room {
    pub(super) fn take(buffers: &BufferPool) -> Self {
        buffers
            .try_take()
            .map_or_else(|| Self::Small(vec![0; SMALL_PIECE]), Self::Pooled)
    }

    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Pooled(buffer) => buffer.as_mut(),
            Self::Small(bytes) => bytes.as_mut_slice(),
        }
    }

    /// The part of it that holds what lies between `at` and `end`.
    pub(super) fn between(&mut self, at: u64, end: u64) -> &mut [u8] {
        let room = self.as_mut();
        // In range: no more than the length of the room.
        let length = (end - at).min(room.len() as u64) as usize;
        &mut room[..length]
    }

    pub(super) fn freeze(self, length: usize) -> Bytes {
        match self {
            Self::Pooled(buffer) => buffer.freeze(length),
            Self::Small(mut bytes) => {
                bytes.truncate(length);
                bytes.into()
            }
        }
    }
}
