//! Whose the cache is, where a command works on it by itself.
//!
//! What a command makes in a cache has to be readable for the proxy that comes after it. The proxy runs as a user
//! of its own, and whoever tends it while it is stopped is often root.

use std::os::unix::fs::MetadataExt as _;
use std::{fs, io};

use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{capabilities, set_capabilities, set_thread_res_gid, set_thread_res_uid};

use super::Failure;
use crate::config::Config;

/// The user and group that a proxy has run as with this cache, as far as its files tell. On a volume of a group the
/// folder itself may be root's.
pub(super) fn owner(config: &Config) -> Option<(Uid, Gid)> {
    let (cache, state) = (&config.cache.dir, &config.server.state_dir);
    // Made by whoever ran first. Without it the folders tell, which root may have made for another.
    let mark = fs::metadata(cache.join("LOCK")).ok().or_else(|| {
        let mut folders = [cache, state]
            .into_iter()
            .filter_map(|folder| fs::metadata(folder).ok());
        folders.find(|folder| folder.uid() != 0)
    })?;
    (mark.uid() != 0).then(|| (Uid::from_raw(mark.uid()), Gid::from_raw(mark.gid())))
}

/// While it lives, what this thread makes belongs to the owner of the cache, and so does what is made by threads
/// that it starts meanwhile. All else that root may do they may do: files that only root can read are read. Programs
/// that they start begin with root's real ids and the owner's effective ones, as of a set-user-id program.
#[derive(Debug)]
pub(super) struct Acting {
    before: Option<(Uid, Gid)>,
}

impl Acting {
    /// Begins, where this is root and the cache is another's.
    ///
    /// # Errors
    /// The system does not let it.
    pub(super) fn for_owner(config: &Config) -> Result<Self, Failure> {
        let before = (geteuid(), getegid());
        let Some((user, group)) = owner(config).filter(|_| before.0.is_root()) else {
            return Ok(Self { before: None });
        };
        let acting = Self {
            before: Some(before),
        };
        let begun = || -> io::Result<()> {
            set_thread_res_gid(None, group, None)?;
            set_thread_res_uid(None, user, None)?;
            // They leave with the user.
            let mut sets = capabilities(None)?;
            sets.effective = sets.permitted;
            Ok(set_capabilities(None, sets)?)
        };
        match begun() {
            Ok(()) => Ok(acting),
            Err(error) => {
                let folder = config.cache.dir.display();
                let user = user.as_raw();
                Err(Failure::Usage(format!(
                    "{folder} belongs to the user {user}, who cannot be acted for ({error}): run this as that user"
                )))
            }
        }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some((user, group)) = self.before {
            // The saved ids are these, and who has been refused the others has them still.
            let _had = set_thread_res_uid(None, user, None);
            let _had = set_thread_res_gid(None, group, None);
        }
    }
}
