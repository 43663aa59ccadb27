//! Lists of what is in one repository: tags and referrers.

use std::sync::Arc;

use http::StatusCode;
use http::header::{self, HeaderValue};

use super::Reply;
use super::body::Said;
use super::error::Refusal;
use super::verdicts;
use crate::access::{Right, Turn};
use crate::fill::{FillError, Fills};
use crate::oci::header::OCI_FILTERS_APPLIED;
use crate::oci::{self, Digest, RepoKey, RepositoryName, media_type};

/// How the client asked for a repository: what pages are called to it.
pub(super) struct AsAsked<'a> {
    /// The name that it wrote.
    pub(super) repository: &'a RepositoryName,
    /// containerd's `ns`.
    pub(super) ns: Option<&'a str>,
    /// Its turn at lists.
    pub(super) turn: &'a Arc<Turn>,
}

/// Most names of a page, and as many as there are where none are asked for: what ECR gives at once at most.
const LONGEST_PAGE: usize = 1000;

/// How many names somebody wants at once.
pub(super) fn page_size(limit: Option<u32>) -> usize {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(LONGEST_PAGE).min(LONGEST_PAGE)
}

/// A page of tags as clients read it.
#[derive(serde::Serialize)]
struct TagList<'a> {
    name: &'a str,
    tags: &'a [String],
}

/// A page of a repository's tags (distribution-spec, end-8).
pub(super) async fn tags(
    fills: &Fills,
    right: &Right,
    repo: &RepoKey,
    asked: &AsAsked<'_>,
    limit: Option<u32>,
    last: Option<&str>,
) -> Result<Reply, Refusal> {
    let found = fills.tags(right, repo, last, page_size(limit), asked.turn);
    let found = found.await;
    let found = found.map_err(|error| match error {
        FillError::Upstream(error) => verdicts::told(right, error),
        error => error.into(),
    })?;
    let page = found.what;
    let list = TagList {
        name: asked.repository.as_str(),
        tags: &page.names,
    };
    // Text and lists of text are always JSON.
    let mut reply = Reply::json(serde_json::to_vec(&list).unwrap_or_default());
    // `n=0` gives an empty list and no link; that the repository is there was asked all the same.
    if page.more
        && let Some(last) = page.names.last()
    {
        let next = oci::Request::Tags {
            repository: asked.repository.clone(),
            limit,
            last: Some(last.clone()),
        };
        link(&mut reply, asked.ns, &next);
    }
    Ok(reply.found(found.how))
}

/// The manifests that refer to another (distribution-spec, end-12), all at once.
pub(super) async fn referrers(
    fills: &Fills,
    right: &Right,
    repo: &RepoKey,
    digest: Digest,
    artifact_type: Option<&str>,
) -> Result<Reply, Refusal> {
    let found = fills.referrers(right, repo, digest, artifact_type).await?;
    let index = HeaderValue::from_static(media_type::OCI_INDEX);
    let mut reply = Reply::typed(StatusCode::OK, index, Said::text(found.what.to_index()));
    if artifact_type.is_some() {
        let filter = HeaderValue::from_static("artifactType");
        reply.say(OCI_FILTERS_APPLIED, filter);
    }
    Ok(reply.found(found.how))
}

/// Names the next page, on our own host by naming none, and led the same way.
pub(super) fn link(reply: &mut Reply, ns: Option<&str>, next: &oci::Request) {
    let mut next = next.to_string();
    if let Some(ns) = ns {
        let mark = if next.contains('?') { '&' } else { '?' };
        let ns = url::form_urlencoded::byte_serialize(ns.as_bytes()).collect::<String>();
        next.push_str(&format!("{mark}ns={ns}"));
    }
    if let Ok(link) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")) {
        reply.say(header::LINK, link);
    }
}
