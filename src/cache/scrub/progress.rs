//! How far the background scrub has come, for the next start of the process.

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::oci::Digest;

use crate::cache::frames::{Frames, Salt};
use crate::cache::layout;
use crate::cache::store::Store;

const NAME: &str = "scrub";

/// Longest file that is read back, in bytes.
const MAX: u64 = 1 << 20;

/// How far the background scrub has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct ScrubProgress {
    /// When the pass began that is under way; `None` between two passes. Seconds since 1970.
    pub begun: Option<u64>,
    /// The last digest of it that is done, in hexadecimal digits.
    after: Option<String>,
    /// When the last pass over everything ended, or the store was new. Seconds since 1970.
    pub finished: Option<u64>,
    /// Damaged blobs that were taken away and are still to be fetched again, in hexadecimal digits.
    wanted: Vec<String>,
}

impl ScrubProgress {
    /// The last digest of the pass that is done.
    pub fn after(&self) -> Option<Digest> {
        Digest::from_hex(self.after.as_deref()?).ok()
    }

    /// Sets [`Self::after`].
    pub fn set_after(&mut self, after: Option<Digest>) {
        self.after = after.map(|after| after.hex());
    }

    /// Damaged blobs that are still to be fetched again.
    pub fn wanted(&self) -> Vec<Digest> {
        let wanted = self.wanted.iter();
        wanted
            .filter_map(|hex| Digest::from_hex(hex).ok())
            .collect()
    }

    /// Sets [`Self::wanted`].
    pub fn set_wanted(&mut self, wanted: impl IntoIterator<Item = Digest>) {
        self.wanted = wanted.into_iter().map(|digest| digest.hex()).collect();
    }

    /// True if nothing was kept before.
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// How long ago the last pass over everything ended. A time to come says nothing: a clock that was
    /// wrong must not keep the next pass off for years.
    pub fn since_finished(&self, now: SystemTime) -> Duration {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let finished = Duration::from_secs(self.finished.unwrap_or(0));
        now.checked_sub(finished).unwrap_or(Duration::MAX)
    }
}

impl Store {
    /// What was kept by [`Self::keep_scrub_progress`]; the beginning where nothing was, or it cannot
    /// be read: then everything is hashed once more than it needs to be.
    pub fn scrub_progress(&self) -> ScrubProgress {
        let root = self.shared().layout.directory(&[]);
        let file = root.and_then(|root| layout::open_file(&root, NAME));
        file.and_then(read).ok().flatten().unwrap_or_default()
    }

    /// Keeps how far the background scrub has come; durably where anything is wanted. Else a power cut
    /// costs no more than hashing once more.
    ///
    /// # Errors
    /// The disk's. What was kept before is then still there.
    pub fn keep_scrub_progress(&self, progress: &ScrubProgress) -> io::Result<()> {
        let salt = Salt::random();
        let mut bytes = salt.header().to_vec();
        salt.append(&mut bytes, &serde_json::to_vec(progress)?);
        let layout = &self.shared().layout;
        if !layout.still_locked()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let root = layout.directory(&[])?;
        match progress.wanted.is_empty() {
            true => layout::replace_hint(&root, NAME, &bytes),
            false => layout::replace_file(&root, NAME, &bytes),
        }
    }
}

fn read(file: File) -> io::Result<Option<ScrubProgress>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX).read_to_end(&mut bytes)?;
    let payload = Frames::read(&bytes).and_then(|mut frames| frames.next());
    Ok(payload.and_then(|(_, payload)| serde_json::from_slice(payload).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c11_a_pass_that_ended_in_the_future_is_long_ago() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let progress = ScrubProgress {
            finished: Some(1000),
            ..ScrubProgress::default()
        };
        assert_eq!(progress.since_finished(at(1060)), Duration::from_secs(60));
        assert_eq!(progress.since_finished(at(999)), Duration::MAX);
    }
}
