//! The decision itself, and the only maker of a [`Right`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Caller;
use super::rules::{ANONYMOUS, Rules};
use crate::oci::RepositoryName;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Nobody in particular, on a domain and from a network that want no credentials.
    Anonymous,
    /// A named user whose password was right.
    User(Arc<str>),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str(ANONYMOUS),
            Self::User(name) => f.write_str(name),
        }
    }
}

/// What somebody wants to do in a repository.
///
/// No action contains another: who may push may not pull by that alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write blobs, manifests and tags.
    Push,
    /// Remove manifests and tags.
    Delete,
}

/// A text names no action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of \"pull\", \"push\" and \"delete\"")]
pub struct ParseActionError(String);

impl FromStr for Action {
    type Err = ParseActionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "pull" => Ok(Self::Pull),
            "push" => Ok(Self::Push),
            "delete" => Ok(Self::Delete),
            _ => Err(ParseActionError(text.to_owned())),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        })
    }
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

/// Makes the right that the rules give, or says how its absence is told: to the anonymous so that a
/// client which has credentials sends them.
pub(super) fn decide(
    rules: &Rules,
    caller: &Caller<'_>,
    upstream: &str,
    repository: &RepositoryName,
    action: Action,
) -> Result<Right, Denied> {
    let who = caller.who();
    if rules.allow(who, caller.place(), upstream, repository, action) {
        return Ok(Right {
            who: who.clone(),
            repository: repository.clone(),
            action,
        });
    }
    Err(match who {
        Who::Anonymous => Denied::Unauthenticated,
        Who::User(_) => Denied::Forbidden,
    })
}
