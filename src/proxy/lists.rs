//! Lists that upstream keeps: tags and referrers.

use http::header::{self, HeaderValue};

use super::Reply;
use super::error::Refusal;
use super::verdicts;
use crate::access::Right;
use crate::fill::Fills;
use crate::oci::header::OCI_FILTERS_APPLIED;
use crate::oci::{self, Digest, RepoKey, RepositoryName, media_type};
use crate::telemetry::Outcome;
use crate::upstream::Upstream;

/// How the client asked for a repository: what pages are called to it.
pub(super) struct AsAsked<'a> {
    /// The name that it wrote.
    pub(super) repository: &'a RepositoryName,
    /// containerd's `ns`.
    pub(super) ns: Option<&'a str>,
}

/// Most names of a page. ECR refuses more, and nobody needs them at once.
const LONGEST_PAGE: u32 = 1000;

/// A page of tags as clients read it.
#[derive(serde::Serialize)]
struct TagList<'a> {
    name: &'a str,
    tags: &'a [String],
}

/// A page of a repository's tags (distribution-spec, end-8).
pub(super) async fn tags(
    upstream: &Upstream,
    right: &Right,
    repo: &RepoKey,
    asked: &AsAsked<'_>,
    limit: Option<u32>,
    last: Option<&str>,
) -> Result<Reply, Refusal> {
    let limit = limit.map(|limit| limit.min(LONGEST_PAGE));
    let page = verdicts::asked_with(upstream, right)?
        .tags(&repo.repository, limit.map(|limit| limit.max(1)), last)
        .await
        .map_err(|error| verdicts::told(right, error))?;
    // `n=0` gives an empty list and no link; that the repository is there was asked all the same.
    let (names, next) = if limit == Some(0) {
        (Vec::new(), None)
    } else {
        (page.names, page.next)
    };
    let list = TagList {
        name: asked.repository.as_str(),
        tags: &names,
    };
    // Text and lists of text are always JSON.
    let mut reply = Reply::json(serde_json::to_vec(&list).unwrap_or_default());
    if let Some(last) = next {
        let repository = asked.repository.clone();
        link(
            &mut reply,
            asked,
            &oci::Request::Tags {
                repository,
                limit,
                last: Some(last),
            },
        );
    }
    reply.outcome = Outcome::Bypass;
    Ok(reply)
}

/// A page of the manifests that refer to another (distribution-spec, end-12).
pub(super) async fn referrers(
    fills: &Fills,
    right: &Right,
    repo: &RepoKey,
    asked: &AsAsked<'_>,
    digest: Digest,
    artifact_type: Option<&str>,
    page: Option<&str>,
) -> Result<Reply, Refusal> {
    let answer = fills
        .referrers(right, repo, digest, artifact_type, page)
        .await?;
    let mut reply = Reply::json(answer.bytes);
    let index = HeaderValue::from_static(media_type::OCI_INDEX);
    reply.headers.insert(header::CONTENT_TYPE, index);
    if answer.filters_applied {
        let filter = HeaderValue::from_static("artifactType");
        reply.headers.insert(OCI_FILTERS_APPLIED, filter);
    }
    if let Some(page) = answer.next {
        link(
            &mut reply,
            asked,
            &oci::Request::Referrers {
                repository: asked.repository.clone(),
                digest,
                artifact_type: None,
                page: Some(page),
            },
        );
    }
    reply.outcome = answer.outcome;
    reply.age(answer.age, None);
    Ok(reply)
}

/// Names the next page, on our own host by naming none, and led the same way.
fn link(reply: &mut Reply, asked: &AsAsked<'_>, next: &oci::Request) {
    let mut next = next.to_string();
    if let Some(ns) = asked.ns {
        let mark = if next.contains('?') { '&' } else { '?' };
        let ns = url::form_urlencoded::byte_serialize(ns.as_bytes()).collect::<String>();
        next.push_str(&format!("{mark}ns={ns}"));
    }
    if let Ok(link) = HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")) {
        reply.headers.insert(header::LINK, link);
    }
}
