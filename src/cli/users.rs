//! The user file, read again while the proxy runs.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::chain;
use crate::access::{Access, Users};
use crate::config::Config;
use crate::jobs::{Reload, Reread};
use crate::proxy::Policy;

/// How long a file that lost users is given to be written to its end: who rewrites it in place empties
/// it first, and nobody is to be locked out by that.
const SETTLING: Duration = Duration::from_millis(250);

/// Has `policy` take over what the user file of `config` holds when it changes. What cannot be used changes
/// nothing.
pub(super) fn reload_by(
    policy: Arc<ArcSwap<Policy>>,
    config: Arc<ArcSwap<Config>>,
    reload: &mut Reload,
) {
    let of = Arc::clone(&config);
    let files = move || of.load().access.users_file.iter().cloned().collect();
    let reread = move || {
        let in_use = policy.load();
        let users = read(&config.load(), &in_use.access)?;
        let access = in_use.access.with_users(users);
        Ok(Reread::from(access.is_some_and(|access| {
            policy.store(Arc::new(in_use.with_access(access)));
            true
        })))
    };
    reload.watch("users", files, reread);
}

/// The users of a configuration that takes the place of what is `in_use`.
///
/// # Errors
/// The user file cannot be used, or has become empty: that is a file which could not be written, on a full
/// disk above all. A comment in it says that nobody is meant.
pub(super) fn read(config: &Config, in_use: &Access) -> Result<Users, String> {
    let Some(file) = &config.access.users_file else {
        return Ok(Users::default());
    };
    let read = || {
        let named = |error| format!("access.users: {}: {}", file.display(), chain(&error));
        Users::read(file).map_err(named)
    };
    let users = read()?;
    if users.len() >= in_use.users().len() {
        return Ok(users);
    }
    thread::sleep(SETTLING);
    let users = read()?;
    let is_empty = || fs::metadata(file).is_ok_and(|data| data.len() == 0);
    if users.is_empty() && is_empty() {
        return Err(format!(
            "access.users: {}: is empty; if nobody is to be let in, leave a line in it that begins with #",
            file.display()
        ));
    }
    Ok(users)
}
