//! The decision itself, and the only maker of a [`Right`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Caller;
use super::rules::{ANONYMOUS, Rules};
use super::tokens::{ClientToken, Tokens};
use super::users::RESERVED_NAME;
use crate::oci::{Digest, Reference, RepoKey, RepositoryName};

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Nobody in particular, on a domain and from a network that want no credentials.
    Anonymous,
    /// A named user whose password was right.
    User(Arc<str>),
    /// Whoever has an ECR token that is good; it does not tell us whose it is.
    TokenBearer,
}

impl Who {
    /// How it is written in rules and in the log.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Anonymous => ANONYMOUS,
            Self::User(name) => name,
            Self::TokenBearer => RESERVED_NAME,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The repository, as the client wrote it: what rules are about.
    pub repository: &'a RepositoryName,
    /// The upstream that it is routed to, or would be.
    pub upstream: &'a str,
    /// What the repository is upstream; `None` where its name leads nowhere.
    pub repo: Option<&'a RepoKey>,
    /// What is to be done there.
    pub action: Action,
    /// What a pull reads.
    pub content: Content<'a>,
}

/// What a pull reads. The bearer of a token needs ECR's word for what may come from the cache.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A manifest.
    Manifest(&'a Reference),
    /// The manifests that refer to another.
    Referrers(Digest),
    /// A blob.
    Blob(Digest),
    /// That a blob is there, and its size.
    BlobHead(Digest),
    /// What never comes from the cache. For the bearer of a token it has to be asked upstream with the
    /// credential of the right, and with no other.
    Uncached,
}

/// Proof that somebody may do something in a repository.
///
/// Only [`Access::decide`](super::Access::decide) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    who: Who,
    repository: RepositoryName,
    action: Action,
    credential: Option<ClientToken>,
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

    /// With what the upstream has to be asked to do it, where that is not our own credential: what changes
    /// something there, and what is read past the cache. A fill of the cache is asked for with ours.
    pub fn credential(&self) -> Option<&ClientToken> {
        self.credential.as_ref()
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
    /// Too many passwords wait to be checked, or too many tokens of this client were bad: 429 with
    /// `Retry-After`.
    #[error("too many logins are being checked")]
    Busy,
    /// ECR has to tell what the caller may do, and does not answer: 503 with `Retry-After`.
    #[error("upstream does not tell what the caller's token allows")]
    Undecided,
}

/// Makes the right that the rules give, or, for the bearer of a token, what ECR says of it; or says how its
/// absence is told: to the anonymous so that a client which has credentials sends them.
///
/// Rules do not speak of bearers of tokens: what these may do is said in one place, and that is AWS.
pub(super) async fn decide(
    rules: &Rules,
    tokens: Option<&Tokens>,
    caller: &Caller<'_>,
    wanted: &Wanted<'_>,
) -> Result<Right, Denied> {
    let who = caller.who();
    let Wanted {
        repository,
        upstream,
        action,
        ..
    } = *wanted;
    match &caller.token {
        Some(token) => {
            let tokens = tokens.ok_or(Denied::Forbidden)?;
            // In memory of its own, which others need none of.
            Box::pin(tokens.decide(token, wanted, caller.address)).await?;
        }
        None if rules.allow(who, caller.place(), upstream, repository, action) => {}
        None => {
            return Err(match who {
                Who::Anonymous => Denied::Unauthenticated,
                Who::User(_) | Who::TokenBearer => Denied::Forbidden,
            });
        }
    }
    Ok(Right {
        who: who.clone(),
        repository: repository.clone(),
        action,
        credential: caller.token.clone(),
    })
}
