//! `/v2/_catalog`: the repositories that somebody may pull, as they would write them where they ask.
//!
//! The invariant: a name that the caller may not pull changes nothing in the answer, neither what is listed
//! nor where a page ends. So names are judged before they are counted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

mod merged;

use self::merged::Merged;
use super::error::Refusal;
use super::lists::{link, page_size};
use super::{Policy, Reply};
use crate::access::{Caller, Denied, Turn};
use crate::fill::{FillError, Fills, Found, How, Repositories};
use crate::oci::{self, RepoKey, RepositoryName};
use crate::telemetry::StaleReason;
use crate::upstream::{UpstreamError, Upstreams, Wrong};

/// After how many names others get their turn of the thread.
const AT_ONCE: usize = 512;

/// Who asks, and how.
pub(super) struct Asking<'a> {
    pub(super) policy: &'a Policy,
    pub(super) caller: &'a Caller<'a>,
    /// Of our names the one it came to.
    pub(super) domain: Option<&'a str>,
    /// containerd's `ns`.
    pub(super) ns: Option<&'a str>,
    /// Its turn at lists.
    pub(super) turn: &'a Arc<Turn>,
}

/// A page of repositories as clients read it.
#[derive(serde::Serialize)]
struct RepositoryList<'a> {
    repositories: Vec<&'a str>,
}

/// The repositories of one upstream.
struct Source {
    upstream: Arc<str>,
    found: Found<Repositories>,
}

/// A page of the repositories after `last`.
pub(super) async fn catalog(
    fills: &Fills,
    upstreams: &Upstreams,
    asking: &Asking<'_>,
    limit: Option<u32>,
    last: Option<&str>,
) -> Result<Reply, Refusal> {
    let (sources, is_whole) = sources(fills, upstreams, asking, last.is_some()).await?;
    let most = page_size(limit);
    let mut names = asking.names(&sources, most, last).await;
    let more = names.len() > most;
    if more {
        names.pop();
    }
    let list = RepositoryList {
        repositories: names.iter().map(RepositoryName::as_str).collect(),
    };
    // Lists of text are always JSON.
    let mut reply = Reply::json(serde_json::to_vec(&list).unwrap_or_default());
    if more && let Some(last) = names.last() {
        let last = Some(last.to_string());
        link(
            &mut reply,
            asking.ns,
            &oci::Request::Catalog { limit, last },
        );
    }
    let hows = sources.iter().map(|source| source.found.how);
    // Of what is not told nothing is known, nor for how long.
    let unknown = || How::stale(Duration::ZERO, StaleReason::Unreachable);
    let how = hows.chain((!is_whole).then(unknown)).reduce(How::and);
    Ok(match how {
        Some(how) => reply.found(how),
        None => reply,
    })
}

/// What the upstreams that names may lead to here have, and whether all of them tell.
async fn sources(
    fills: &Fills,
    upstreams: &Upstreams,
    asking: &Asking<'_>,
    goes_on: bool,
) -> Result<(Vec<Source>, bool), Refusal> {
    let bearer = asking.caller.token();
    let takes_them = |name: &Arc<str>| {
        let upstream = upstreams.named(name);
        upstream.is_some_and(|upstream| upstream.takes_ecr_tokens())
    };
    let reached = asking.policy.routes.reached(asking.domain, asking.ns);
    let reached = reached
        .into_iter()
        .filter(|name| bearer.is_none() || takes_them(name));
    let questions = reached.map(async |upstream| {
        let found = fills.repositories(&upstream, bearer, goes_on, asking.turn);
        let found = found.await;
        found.map(|found| Source { upstream, found })
    });
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for answer in join_all(questions).await {
        match answer {
            Ok(source) => sources.push(source),
            Err(error) => errors.push(error),
        }
    }
    // To a bearer those that do not tell them have nothing.
    let is_no = |error: &FillError| bearer.is_some() && refused(error) == Denied::Forbidden;
    let is_whole = errors.iter().all(is_no);
    match (errors.into_iter().next(), bearer) {
        (Some(error), None) if sources.is_empty() => Err(error.into()),
        (Some(error), Some(_)) if sources.is_empty() => Err(refused(&error).into()),
        (None, Some(_)) if sources.is_empty() => Err(Denied::Forbidden.into()),
        _ => Ok((sources, is_whole)),
    }
}

/// What a registry's answer to somebody's own token means to them. A token is of one account: that another
/// registry takes it for none says the same as a no.
fn refused(error: &FillError) -> Denied {
    match error {
        FillError::Upstream(
            UpstreamError::Refused
            | UpstreamError::BadCredentials
            | UpstreamError::Unsupported
            | UpstreamError::Absent(_)
            | UpstreamError::Wrong(Wrong::Status(_)),
        ) => Denied::Forbidden,
        _ => Denied::Undecided,
    }
}

impl Asking<'_> {
    /// The first names after `last` that may be told, one more than `most` of them at most.
    async fn names(
        &self,
        sources: &[Source],
        most: usize,
        last: Option<&str>,
    ) -> Vec<RepositoryName> {
        let routes = &self.policy.routes;
        let ways = |source: &Source| routes.renamings(self.domain, self.ns, &source.upstream);
        let merged = sources
            .iter()
            .map(|source| (&source.found.what, ways(source)));
        let mut names: Vec<RepositoryName> = Vec::new();
        for (number, name) in Merged::after(last, merged).enumerate() {
            if number % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let is_after = last.is_none_or(|last| *name.written > *last);
            let is_told = names
                .last()
                .is_some_and(|told| *told.as_str() == *name.written);
            if !is_after || is_told {
                continue;
            }
            let Ok(written) = name.written.parse() else {
                continue;
            };
            let led = routes.find(self.domain, self.ns, &written);
            let repo = led.map(|led| led.repo).filter(|repo| {
                repo.upstream == sources[name.source].upstream
                    && repo.repository.as_str() == name.own
            });
            if repo.is_some_and(|repo| self.may_be_told(&repo, &written)) {
                names.push(written);
                if names.len() > most {
                    break;
                }
            }
        }
        names
    }

    /// Whether the caller may pull it. What ECR tells a token its bearer may be told.
    fn may_be_told(&self, repo: &RepoKey, name: &RepositoryName) -> bool {
        let (caller, access) = (self.caller, &self.policy.access);
        caller.token().is_some() || access.may_pull(caller, &repo.upstream, name)
    }
}
