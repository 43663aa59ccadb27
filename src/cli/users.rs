//! The user file, read again while the proxy runs.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::chain;
use crate::access::{Access, Users};
use crate::jobs::{Reload, Reread};

/// How long a file that lost users is given to be written to its end: who rewrites it in place empties
/// it first, and nobody is to be locked out by that.
const SETTLING: Duration = Duration::from_millis(250);

/// Has `access` take over what the user file holds when it changes. What cannot be used changes nothing.
pub(super) fn reload_by(access: Access, file: PathBuf, reload: &mut Reload) {
    let mut count = 0;
    let path = file.clone();
    let reread = move || {
        let mut users = read(&path)?;
        if users.len() < count {
            thread::sleep(SETTLING);
            users = read(&path)?;
        }
        count = users.len();
        Ok(match access.replace_users(users) {
            true => Reread::Changed,
            false => Reread::Same,
        })
    };
    reload.add("users", vec![file], reread);
}

fn read(path: &Path) -> Result<Users, String> {
    Users::read(path)
        .map_err(|error| format!("access.users: {}: {}", path.display(), chain(&error)))
}
