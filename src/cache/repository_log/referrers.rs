//! What upstream lists as referring to a manifest.

use std::time::SystemTime;

use bytes::Bytes;

use super::{Checked, HELD_INTERVAL, RepositoryLog};
use crate::cache::record::{Record, ReferrerList};
use crate::oci::Digest;

/// Most lists that are kept for manifests which are not stored: whoever may pull may ask about any digest
/// there is, and upstream answers that nothing refers to it.
const MOST_UNSTORED: usize = 1024;

impl RepositoryLog {
    pub(in crate::cache) fn referrer_list(&self, subject: &Digest) -> Option<ReferrerList> {
        let (list, checked) = self.referrers.get(subject)?;
        Some(ReferrerList {
            entries: list.clone(),
            checked_at: checked.at,
        })
    }

    pub(in crate::cache) fn put_referrer_list(
        &mut self,
        subject: Digest,
        list: Bytes,
        at: SystemTime,
    ) {
        let renewed = match self.referrers.get_mut(&subject) {
            Some((known, checked)) if *known == list => checked.renew(at, HELD_INTERVAL),
            _ => {
                let checked = Checked::logged(at);
                self.referrers.insert(subject, (list.clone(), checked));
                if !self.manifests.contains_key(&subject) {
                    self.forget_surplus_lists();
                }
                true
            }
        };
        if renewed {
            let list = &list;
            self.log(&Record::Referrers { subject, at, list });
        }
    }

    /// Forgets lists for what is not stored, those that were confirmed longest ago, where they are too
    /// many; the log does when it is written anew.
    fn forget_surplus_lists(&mut self) {
        if self.referrers.len() <= MOST_UNSTORED {
            return;
        }
        let lists = self.referrers.iter();
        let unstored = lists.filter(|(subject, _)| !self.manifests.contains_key(subject));
        let mut unstored: Vec<_> = unstored
            .map(|(subject, (_, checked))| (checked.at, *subject))
            .collect();
        if unstored.len() <= MOST_UNSTORED {
            return;
        }
        unstored.sort_unstable();
        // A quarter at once, so that the search is not repeated for each.
        let surplus = unstored.len() - MOST_UNSTORED * 3 / 4;
        for (_, subject) in &unstored[..surplus] {
            self.referrers.remove(subject);
        }
    }
}
