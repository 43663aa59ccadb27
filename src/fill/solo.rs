//! A reader that fell out of a fill's window and goes on by an upstream range of its own.

use bytes::Bytes;

use super::download::Download;
use super::error::FillError;
use super::front::TAIL;
use crate::oci::{Digest, Hasher};

/// The rest of a blob, from a transfer of the reader's own, continued past what breaks it.
///
/// The reader was promised the end only after the digest agreed, so its last bytes are withheld here as
/// well: until its own hash agrees. A reader that began in the middle has no hash of the whole; it is
/// held to the validator of the fill's own body, which is compared whenever a body of this transfer is opened.
pub(super) struct Solo {
    download: Download,
    digest: Digest,
    /// Offset of the next byte from upstream.
    at: u64,
    /// Size of the whole blob.
    len: u64,
    hash: Option<Hasher>,
    withheld: Vec<Bytes>,
    ended: bool,
}

impl Solo {
    pub(super) fn new(
        download: Download,
        digest: Digest,
        at: u64,
        len: u64,
        hash: Option<Hasher>,
    ) -> Self {
        Self {
            download,
            digest,
            at,
            len,
            hash,
            withheld: Vec::new(),
            ended: false,
        }
    }

    /// The next bytes to send; `None` at the end.
    ///
    /// # Errors
    /// When the upstream breaks off for good, or the whole does not hash to the digest.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        while !self.ended {
            let Some(mut piece) = self.download.next().await? else {
                self.ended = true;
                if self
                    .hash
                    .take()
                    .is_some_and(|hash| hash.finish() != self.digest)
                {
                    return Err(FillError::DigestMismatch);
                }
                break;
            };
            if let Some(hash) = &mut self.hash {
                hash.update(&piece);
            }
            let released = self.len.saturating_sub(TAIL).saturating_sub(self.at);
            self.at += piece.len() as u64;
            if released < piece.len() as u64 {
                // In range: less than the length of the piece.
                self.withheld.push(piece.split_off(released as usize));
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(if self.withheld.is_empty() {
            None
        } else {
            Some(self.withheld.remove(0))
        })
    }
}
