//! What upstream lists as referring to a manifest.

use std::time::SystemTime;

use bytes::Bytes;

use super::Records;
use crate::cache::record::ReferrerList;
use crate::oci::{Digest, RepoKey};

impl Records {
    /// What upstream listed as referring to `subject` when it was last asked.
    pub fn referrer_list(&self, repo: &RepoKey, subject: &Digest) -> Option<ReferrerList> {
        self.inner.with(repo, |_, log| log.referrer_list(subject))?
    }

    /// Upstream listed at `at` all that refers to `subject`: descriptors, as a JSON array. It stays in
    /// memory while the repository is loaded.
    pub fn put_referrer_list(&self, repo: &RepoKey, subject: Digest, list: Bytes, at: SystemTime) {
        self.inner
            .change(repo, |log| log.put_referrer_list(subject, list, at));
    }
}
