//! Lists that a registry makes: tags, repositories, and manifests that refer to another.
//!
//! How a registry pages is its own affair: what names the next page is opaque here, and given back as
//! it was.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::oci::header::next_link;
use crate::oci::media_type;
use crate::oci::{Digest, Referrers, RepositoryName};

use super::Upstream;
use super::client::{Answer, path_and_query};
use super::error::{Absent, UpstreamError, Wrong};
use super::question::{Kind, Question};
use super::registry::RegistryKind;
use super::said::unanswered;
use super::scope::Scope;

/// ECR refuses more at once.
const MAX_NAMES: u32 = 1000;
/// A thousand tags of the greatest length are a seventh of this.
const MAX_LIST: usize = 4 * 1024 * 1024;

/// One page of a repository's tags, or of a registry's repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// As the registry has them and in its order, which is not always that of the specification.
    pub names: Vec<String>,
    /// What to give as `page` for the next page.
    pub next: Option<String>,
}

/// One page of the manifests that refer to another.
#[derive(Debug)]
pub struct ReferrersPage {
    /// What the page names.
    pub list: Referrers,
    /// How long it was, in bytes.
    pub size: usize,
    /// What to give as `page` for the next page.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct Tags {
    /// `null` for an empty repository, in some registries.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Option<Vec<String>>,
}

impl Upstream {
    /// One page of tags: at most `n`, which is brought within what registries allow. `page` is what the page
    /// before named.
    ///
    /// # Errors
    /// [`UpstreamError::Unsupported`] where tags are not listed; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        n: Option<u32>,
        page: Option<&str>,
    ) -> Result<NamePage, UpstreamError> {
        let path = format!("/v2/{repository}/tags/list");
        let question = |path| Question::get(Kind::Tags, path, Scope::Pull(repository));
        let page = self.names(path, n, page, question).await?;
        page.read(|tags: Tags| tags.tags).await
    }

    /// One page of the registry's repositories, as [`Upstream::tags`] has tags.
    ///
    /// # Errors
    /// [`UpstreamError::Refused`], [`UpstreamError::Unsupported`] and [`UpstreamError::Absent`] where they
    /// are not listed, or not for us; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn catalog(
        &self,
        n: Option<u32>,
        page: Option<&str>,
    ) -> Result<NamePage, UpstreamError> {
        let path = "/v2/_catalog".to_owned();
        let question = |path| Question::get(Kind::Catalog, path, Scope::Catalog);
        match self.names(path, n, page, question).await {
            Ok(page) => page.read(|list: Repositories| list.repositories).await,
            // What anybody may pull from may want a login for this. ECR has one for everything.
            Err(UpstreamError::BadCredentials) if !self.takes_ecr_tokens() => {
                Err(UpstreamError::Refused)
            }
            Err(error) => Err(error),
        }
    }

    async fn names<'a>(
        &self,
        mut path: String,
        n: Option<u32>,
        page: Option<&str>,
        question: impl FnOnce(PathAndQuery) -> Question<'a>,
    ) -> Result<Listed, UpstreamError> {
        // A link may leave out how many were asked for, and has the last word where it does not.
        let says_how_many = |page: &str| page.split('&').any(|pair| pair.starts_with("n="));
        let n = n.filter(|_| !page.is_some_and(says_how_many));
        let n = n.map(|n| format!("n={}", n.clamp(1, MAX_NAMES)));
        let query: Vec<_> = page.into_iter().chain(n.as_deref()).collect();
        if !query.is_empty() {
            path.push_str(&format!("?{}", query.join("&")));
        }
        let answer = self.fetch(&question(path_and_query(path)?)).await?;
        if answer.status() != StatusCode::OK {
            return Err(unanswered(answer, Absent::Repository).await);
        }
        let next = next_page(answer.headers());
        Ok(Listed { answer, next })
    }

    /// One page of the manifests that refer to `digest`. `page` is what the page before named.
    ///
    /// # Errors
    /// [`UpstreamError::Absent`] and [`UpstreamError::Unsupported`] where the registry does not keep
    /// referrers; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        page: Option<&str>,
    ) -> Result<ReferrersPage, UpstreamError> {
        let query = page.map_or_else(String::new, |page| format!("?{page}"));
        let path = path_and_query(format!("/v2/{repository}/referrers/{digest}{query}"))?;
        let question = Question {
            accept: Some(HeaderValue::from_static(media_type::OCI_INDEX)),
            ..Question::get(Kind::Referrers, path, Scope::Pull(repository))
        };
        let answer = match self.fetch(&question).await {
            // So some registries say that they know of no referrers, and clients take it for that.
            Err(UpstreamError::Wrong(Wrong::Status(400))) => {
                return Err(UpstreamError::Unsupported);
            }
            answer => answer?,
        };
        if answer.status() == StatusCode::NOT_ACCEPTABLE {
            answer.discard().await;
            return Err(UpstreamError::Unsupported);
        }
        if answer.status() != StatusCode::OK {
            return Err(unanswered(answer, Absent::Manifest).await);
        }
        let next = next_page(answer.headers());
        let bytes = answer.read(MAX_LIST).await?;
        // Distribution-spec, "Listing Referrers": always an image index.
        let list = Referrers::from_index(&bytes);
        let list = list.map_err(|_| UpstreamError::Wrong(Wrong::Malformed))?;
        Ok(ReferrersPage {
            list,
            size: bytes.len(),
            next,
        })
    }

    /// True where an error of [`Upstream::referrers`] may be all that the registry has to say of having none: one of
    /// no known kind may have anything there, a page or a way to a login.
    pub fn may_keep_no_referrers(&self, error: &UpstreamError) -> bool {
        *self.registry().kind() == RegistryKind::Other
            && matches!(
                error,
                UpstreamError::Wrong(Wrong::Intercepted | Wrong::Redirect(_) | Wrong::Malformed)
            )
    }
}

/// A page of names whose body was not read yet.
struct Listed {
    answer: Answer,
    next: Option<String>,
}

impl Listed {
    async fn read<T: DeserializeOwned>(
        self,
        names: impl FnOnce(T) -> Option<Vec<String>>,
    ) -> Result<NamePage, UpstreamError> {
        let bytes = self.answer.read(MAX_LIST).await?;
        // ECR calls it text/plain: the type says nothing.
        let list =
            serde_json::from_slice(&bytes).map_err(|_| UpstreamError::Wrong(Wrong::Malformed))?;
        Ok(NamePage {
            names: names(list).unwrap_or_default(),
            next: self.next,
        })
    }
}

/// The query of the next page's address. Its host and path are not looked at: the next request is built
/// like this one.
fn next_page(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::LINK)
        .iter()
        .find_map(|link| next_link(link.to_str().ok()?))
        .and_then(|target| target.split_once('?'))
        .map(|(_, query)| query.split('#').next().unwrap_or(query).to_owned())
        .filter(|query| !query.is_empty())
}
