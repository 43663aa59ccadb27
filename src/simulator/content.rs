//! What a blob is made of: bytes in memory, or bytes computed from a seed and a length.
//!
//! A generated blob costs no memory, so bodies of many GiB can be served. The same seed and
//! length always give the same bytes, at any offset, in any order of asking.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// The most bytes handed out at once, and the unit in which generated content is computed.
pub(super) const PIECE_BYTES: u64 = 64 * 1024;

/// The bytes of one blob.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// Held in memory.
    Bytes(Bytes),
    /// Computed when asked for.
    Generated(Generated),
}

impl BlobSource {
    /// A blob of `len` bytes computed from `seed`.
    pub fn generated(seed: u64, len: u64) -> Self {
        Self::Generated(Generated::new(seed, len))
    }

    /// The number of bytes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty blob is an ordinary blob here; nobody asks"
    )]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated(generated) => generated.len,
        }
    }

    /// The first part of `range`: never empty unless the range is, at most 64 KiB.
    ///
    /// What lies beyond the end of the blob is left out.
    pub fn piece(&self, range: Range<u64>) -> Bytes {
        let end = range.end.min(self.len());
        if range.start >= end {
            return Bytes::new();
        }
        let end = end.min(range.start + PIECE_BYTES);
        match self {
            // Both ends are within `bytes`, whose length is a usize.
            Self::Bytes(bytes) => bytes.slice(range.start as usize..end as usize),
            Self::Generated(generated) => generated.piece(range.start, end),
        }
    }

    /// The whole of `range` in memory.
    pub fn read(&self, range: Range<u64>) -> Bytes {
        let mut out = Vec::new();
        let mut at = range.start;
        loop {
            let piece = self.piece(at..range.end);
            if piece.is_empty() {
                return out.into();
            }
            at += piece.len() as u64;
            out.extend_from_slice(&piece);
        }
    }

    /// `sha256:` and the hex hash of the content. Reads all of it on the calling thread.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < self.len() {
            let piece = self.piece(at..self.len());
            hash.update(&piece);
            at += piece.len() as u64;
        }
        format!("sha256:{}", hex(&hash.finalize()))
    }
}

impl From<Bytes> for BlobSource {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for BlobSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<&'static str> for BlobSource {
    fn from(text: &'static str) -> Self {
        Self::Bytes(Bytes::from_static(text.as_bytes()))
    }
}

/// Content computed from a seed and a length.
///
/// Each 64 KiB block is a stretch of one random table that begins at a place told by the block's
/// number, headed by that number: no two blocks of a blob are alike, and making one is a copy.
#[derive(Clone)]
pub struct Generated {
    seed: u64,
    len: u64,
    table: Arc<[u8]>,
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generated")
            .field("seed", &self.seed)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Generated {
    /// `len` bytes from `seed`.
    pub fn new(seed: u64, len: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut table = vec![0; 2 * PIECE_BYTES as usize];
        random.fill(&mut table);
        Self {
            seed,
            len,
            table: table.into(),
        }
    }

    /// `start..end` must lie within the blob; answers up to the next block's beginning.
    fn piece(&self, start: u64, end: u64) -> Bytes {
        let block = start / PIECE_BYTES;
        let block_start = block * PIECE_BYTES;
        let from = (start - block_start) as usize;
        let to = (end - block_start).min(PIECE_BYTES) as usize;
        let shift = (block.wrapping_mul(8191) % PIECE_BYTES) as usize;
        let mut out = self.table[shift + from..shift + to].to_vec();
        let stamp = (self.seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
        for (place, byte) in stamp.iter().enumerate() {
            if (from..to).contains(&place) {
                out[place - from] = *byte;
            }
        }
        out.into()
    }
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The hex SHA-256 of `parts`, one after another.
pub(super) fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_bytes_do_not_depend_on_where_reading_starts() {
        let blob = BlobSource::generated(7, 3 * PIECE_BYTES + 11);
        let whole = blob.read(0..blob.len());
        assert_eq!(whole.len() as u64, blob.len());
        for start in [0, 1, 7, 8, 9, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES] {
            let part = blob.read(start..blob.len());
            assert_eq!(part, whole.slice(start as usize..), "from {start}");
        }
    }

    #[test]
    fn blocks_of_a_generated_blob_differ() {
        let blob = BlobSource::generated(1, 2 * PIECE_BYTES);
        assert_ne!(
            blob.piece(0..PIECE_BYTES),
            blob.piece(PIECE_BYTES..u64::MAX)
        );
    }

    #[test]
    fn digest_is_that_of_the_bytes() {
        let abc = BlobSource::from("abc");
        assert_eq!(
            abc.digest(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let generated = BlobSource::generated(3, 100_000);
        let read = BlobSource::Bytes(generated.read(0..100_000));
        assert_eq!(generated.digest(), read.digest());
    }
}
