//! Checksummed frames in an append-only file: the format of repository logs and of the index.
//!
//! ```text
//! file   = header header frame*        the header is there twice: one bad byte must not cost the file
//! header = "ecrplog1" salt:u64 crc32(magic salt):u32
//! frame  = "\xecFRM" len:u32 crc32(salt len payload):u32 payload
//! ```
//!
//! Integers are little-endian. The salt is random for each file, so that nobody can put bytes into a
//! manifest which a reader looking for the next good frame would take for one. A frame that does not
//! check is skipped; what follows the last good frame is a torn tail, to be cut before appending.
//!
//! Knows nothing of what a payload means.

/// Length of what a new file begins with.
pub(super) const HEADER_LEN: usize = 2 * ONE_HEADER;

/// Longest payload that is believed; far above any manifest, and small enough that a damaged
/// length cannot point a reader past everything.
const MAX_PAYLOAD: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"ecrplog1";
const ONE_HEADER: usize = 20;
const MARK: &[u8; 4] = b"\xecFRM";
const FRAME_HEAD: usize = 12;

/// The random number of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(u64);

impl Salt {
    pub(super) fn random() -> Self {
        Self(fastrand::u64(..))
    }

    /// The beginning of a new file.
    pub(super) fn header(self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        for one in header.chunks_exact_mut(ONE_HEADER) {
            one[..8].copy_from_slice(MAGIC);
            one[8..16].copy_from_slice(&self.0.to_le_bytes());
            let crc = crc32fast::hash(&one[..16]);
            one[16..].copy_from_slice(&crc.to_le_bytes());
        }
        header
    }

    fn read(file: &[u8]) -> Option<Self> {
        file.get(..HEADER_LEN)?
            .chunks_exact(ONE_HEADER)
            .find_map(|one| {
                let salt = u64::from_le_bytes(one[8..16].try_into().ok()?);
                let crc = u32::from_le_bytes(one[16..].try_into().ok()?);
                (&one[..8] == MAGIC && crc == crc32fast::hash(&one[..16])).then_some(Self(salt))
            })
    }

    fn checksum(self, payload: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.0.to_le_bytes());
        crc.update(&(payload.len() as u64).to_le_bytes());
        crc.update(payload);
        crc.finalize()
    }

    /// Appends a frame holding `payload` to `out`; returns the payload's offset within `out`.
    ///
    /// A payload longer than 64 MiB would not be read back, and is not written either: `None`.
    pub(super) fn append(self, out: &mut Vec<u8>, payload: &[u8]) -> Option<usize> {
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        out.extend_from_slice(MARK);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.checksum(payload).to_le_bytes());
        let offset = out.len();
        out.extend_from_slice(payload);
        Some(offset)
    }
}

/// Bytes that a frame adds to its payload.
pub(super) const fn framed(payload: usize) -> u64 {
    (payload + FRAME_HEAD) as u64
}

/// The good frames of a file, in order.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    file: &'a [u8],
    salt: Salt,
    next: usize,
    end: usize,
    skipped: usize,
}

impl<'a> Frames<'a> {
    /// `None` if neither header is whole: then nothing in the file can be believed.
    pub(super) fn read(file: &'a [u8]) -> Option<Self> {
        let salt = Salt::read(file)?;
        Some(Self {
            file,
            salt,
            next: HEADER_LEN,
            end: HEADER_LEN,
            skipped: 0,
        })
    }

    pub(super) fn salt(&self) -> Salt {
        self.salt
    }

    /// Where the last good frame ends: the length to cut the file to before appending.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Damaged stretches met on the way, a torn tail included.
    pub(super) fn skipped(&self) -> usize {
        self.skipped
    }

    fn frame_at(&self, at: usize) -> Option<(usize, &'a [u8])> {
        let head = self.file.get(at..at.checked_add(FRAME_HEAD)?)?;
        if &head[..4] != MARK {
            return None;
        }
        let len = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
        let crc = u32::from_le_bytes(head[8..].try_into().ok()?);
        if len > MAX_PAYLOAD {
            return None;
        }
        let start = at + FRAME_HEAD;
        let payload = self.file.get(start..start.checked_add(len)?)?;
        (self.salt.checksum(payload) == crc).then_some((start, payload))
    }
}

impl<'a> Iterator for Frames<'a> {
    /// Offset of the payload within the file, and the payload.
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = self.next;
        if at < self.file.len() && self.frame_at(at).is_none() {
            self.skipped += 1;
        }
        while at < self.file.len() {
            if let Some((start, payload)) = self.frame_at(at) {
                self.next = start + payload.len();
                self.end = self.next;
                return Some((start, payload));
            }
            // Only a place that looks like a frame is worth a checksum.
            at += 1;
            at = self.file[at..]
                .windows(MARK.len())
                .position(|window| window == MARK)
                .map_or(self.file.len(), |found| at + found);
        }
        self.next = at;
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(payloads: &[Vec<u8>]) -> Vec<u8> {
        let salt = Salt::random();
        let mut file = salt.header().to_vec();
        for payload in payloads {
            salt.append(&mut file, payload).unwrap();
        }
        file
    }

    fn read(file: &[u8]) -> Vec<Vec<u8>> {
        Frames::read(file)
            .map(|frames| frames.map(|(_, payload)| payload.to_vec()).collect())
            .unwrap_or_default()
    }

    #[test]
    fn zeros_after_a_power_cut_are_a_torn_tail() {
        let mut bytes = file(&[b"one".to_vec(), Vec::new()]);
        let whole = bytes.len();
        bytes.resize(whole + 5000, 0);
        let mut frames = Frames::read(&bytes).unwrap();
        assert_eq!(frames.by_ref().count(), 2);
        assert_eq!((frames.end(), frames.skipped()), (whole, 1));
    }

    #[test]
    fn a_frame_planted_in_a_payload_is_not_found_when_its_carrier_is_damaged() {
        let planted = file(&[b"evil".to_vec()])[HEADER_LEN..].to_vec();
        let mut bytes = file(&[planted, b"good".to_vec()]);
        bytes[HEADER_LEN] ^= 1;
        assert_eq!(read(&bytes), [b"good".to_vec()]);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(payloads: Vec<Vec<u8>>) {
            prop_assert_eq!(read(&file(&payloads)), payloads);
        }

        #[test]
        fn c05_a_file_cut_anywhere_yields_a_prefix(payloads: Vec<Vec<u8>>, at: prop::sample::Index) {
            let whole = file(&payloads);
            let cut = at.index(whole.len() + 1);
            let found = read(&whole[..cut]);
            prop_assert!(payloads.starts_with(&found));
        }

        #[test]
        fn c05_a_flipped_byte_costs_at_most_one_record(
            payloads: Vec<Vec<u8>>,
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let mut bytes = file(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let found = read(&bytes);
            prop_assert!(found.len() + 1 >= payloads.len());
            let mut left = payloads.iter();
            prop_assert!(found.iter().all(|f| left.any(|p| p == f)), "invented or reordered");
        }

        #[test]
        fn noise_is_no_record(noise: Vec<u8>) {
            let mut bytes = file(&[]);
            bytes.extend_from_slice(&noise);
            prop_assert!(read(&bytes).is_empty());
        }
    }
}
