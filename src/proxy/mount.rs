//! Mounts: a blob that another repository has, taken over without its bytes.
//!
//! Invariant: upstream is asked to mount only what whoever asks may read where it is, and what is there: some
//! registries do not look. Everybody else gets an ordinary upload, and nobody is told by that whether the other
//! repository is there, or holds the blob.

use super::{Policy, route};
use crate::access::{Action, Caller, Content, Right, Wanted};
use crate::fill::Fills;
use crate::oci::{Digest, RepoKey, RepositoryName};

/// A blob that upstream may be asked to mount. Only [`Mount::permitted`] makes one.
#[derive(Debug)]
pub(super) struct Mount {
    digest: Digest,
    from: RepoKey,
    /// To read it there.
    right: Right,
}

impl Mount {
    /// The wish to have `digest` of `from` in `into`, if the caller may read it there and both are in one
    /// registry. `domain` and `ns` are those of the request.
    pub(super) async fn permitted(
        policy: &Policy,
        caller: &Caller<'_>,
        (domain, ns): (Option<&str>, Option<&str>),
        (digest, from): (Digest, &RepositoryName),
        into: &RepoKey,
    ) -> Option<Self> {
        let source = route(&policy.routes, domain, ns, from).ok()?;
        if source.upstream != into.upstream {
            return None;
        }
        let wanted = Wanted {
            repository: from,
            upstream: &source.upstream,
            repo: Some(&source),
            action: Action::Pull,
            content: Content::Blob(digest),
        };
        // Why not is not told.
        let right = policy.access.decide(caller, &wanted).await.ok()?;
        Some(Self {
            digest,
            from: source,
            right,
        })
    }

    /// What upstream is asked for, once it is proven to be there: which blob, and where by upstream's names.
    pub(super) async fn proven(&self, fills: &Fills) -> Option<(&Digest, &RepositoryName)> {
        let proof = fills.prove(&self.right, &self.from, self.digest).await;
        proof
            .is_ok()
            .then_some((&self.digest, &self.from.repository))
    }
}
