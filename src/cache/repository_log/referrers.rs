//! What upstream lists as referring to a manifest.

use std::time::SystemTime;

use bytes::Bytes;

use super::{Checked, HELD_INTERVAL, RepositoryLog};
use crate::cache::record::{Record, ReferrerList};
use crate::oci::Digest;

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
                true
            }
        };
        if renewed {
            let list = &list;
            self.log(&Record::Referrers { subject, at, list });
        }
    }
}
