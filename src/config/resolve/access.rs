//! `[access]`.

use std::fs;
use std::path::Path;

use super::Resolver;
use crate::access::{Network, Users};
use crate::config::{Access, Anonymous, Files};

/// Passwords are short; a file larger than this is not one.
const MAX_USER_FILE_BYTES: u64 = 8 << 20;

impl Resolver {
    pub(super) fn access(&mut self) -> Option<Access> {
        let users_file = self.path("access.users");
        let anonymous = self.one("access.anonymous", |text| match text {
            "none" => Ok(Anonymous::None),
            "pull" => Ok(Anonymous::Pull),
            _ => Err(format!("{text:?} is neither \"none\" nor \"pull\"")),
        });
        let networks = self.many("access.anonymous_networks", |text| {
            text.parse::<Network>().map_err(|error| error.to_string())
        });
        let users = match &users_file {
            Some(file) if self.files == Files::Required => self.users(file),
            _ => Some(Users::default()),
        };
        let anonymous = anonymous?.unwrap_or(Anonymous::None);
        if users_file.is_some() && anonymous == Anonymous::Pull {
            self.fault(
                "access.anonymous",
                "cannot be \"pull\" beside access.users: clients decide by the answer to /v2/ \
                 whether to send credentials, so where the anonymous get 200 nobody logs in and \
                 the users would never be asked for their passwords; keep one of the two, or run \
                 a second proxy under a name of its own",
            );
        }
        let networks = networks?.unwrap_or_else(|| vec![Network::Loopback, Network::Private]);
        if networks.is_empty() && anonymous == Anonymous::Pull {
            self.fault(
                "access.anonymous_networks",
                "is empty: with anonymous = \"pull\" it says from where",
            );
        }
        Some(Access {
            users_file,
            users: users?,
            anonymous,
            anonymous_networks: networks,
        })
    }

    fn users(&mut self, file: &Path) -> Option<Users> {
        let too_large = |length: u64| {
            let shown = file.display();
            format!("{shown} has {length} bytes, which is no user file")
        };
        let text = fs::metadata(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))
            .and_then(|data| match data.len() {
                length if length > MAX_USER_FILE_BYTES => Err(too_large(length)),
                _ => fs::read_to_string(file)
                    .map_err(|error| format!("cannot read {}: {error}", file.display())),
            });
        match text.map(|text| Users::parse(&text)) {
            Ok(Ok(users)) => Some(users),
            Ok(Err(error)) => {
                for fault in error.0 {
                    let shown = file.display();
                    let reason = format!("{shown} line {}: {}", fault.line, fault.reason);
                    self.fault("access.users", &reason);
                }
                None
            }
            Err(reason) => {
                self.fault("access.users", &reason);
                None
            }
        }
    }
}
