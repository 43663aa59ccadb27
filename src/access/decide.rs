//! The decision itself, and the only maker of a [`Right`].

use std::fmt;
use std::sync::Arc;

use crate::oci::RepositoryName;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Nobody in particular, from a network that may pull without credentials.
    Anonymous,
    /// A named user whose password was right.
    User(Arc<str>),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("@anonymous"),
            Self::User(name) => f.write_str(name),
        }
    }
}

/// What somebody wants to do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write blobs, manifests and tags.
    Push,
    /// Remove manifests and tags.
    Delete,
}

/// Proof that somebody may do something in a repository.
///
/// Only [`Access::decide`](super::Access::decide) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    who: Who,
    repository: RepositoryName,
    action: Action,
}

impl Right {
    /// Who was given it.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The repository it holds in, as the client wrote it.
    pub fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    /// What it allows.
    pub fn action(&self) -> Action {
        self.action
    }
}

/// Why a caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No credentials, or not good ones: 401 with the challenge.
    #[error("authentication is required")]
    Unauthenticated,
    /// Known, and without this right: 403.
    #[error("access is denied")]
    Forbidden,
    /// Contradictory credentials (more than one `Authorization`): 400.
    #[error("more than one Authorization header")]
    BadRequest,
    /// Too many passwords wait to be checked: 429 with `Retry-After`.
    #[error("too many logins are being checked")]
    Busy,
}

pub(super) fn decide(
    who: &Who,
    repository: &RepositoryName,
    action: Action,
) -> Result<Right, Denied> {
    match (action, who) {
        (Action::Pull, _) => Ok(Right {
            who: who.clone(),
            repository: repository.clone(),
            action,
        }),
        (Action::Push | Action::Delete, Who::Anonymous) => Err(Denied::Unauthenticated),
        (Action::Push | Action::Delete, Who::User(_)) => Err(Denied::Forbidden),
    }
}
