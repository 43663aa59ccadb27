//! The user file, read again while the proxy runs.

use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;

use super::chain;
use crate::access::{Access, Users};
use crate::config::Config;
use crate::jobs::{Reload, Reread};
use crate::proxy::Policy;

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
/// The user file cannot be used.
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
    thread::sleep(Users::SETTLING);
    read()
}
