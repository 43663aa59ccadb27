//! Blobs: whether a repository holds one, how large it is, and its bytes from any offset.

use http::{Method, StatusCode};

use crate::oci::{Digest, RepositoryName};

use super::Upstream;
use super::body::{BlobBody, Span, Validator};
use super::client::path_and_query;
use super::error::{Absent, UpstreamError, Wrong};
use super::question::{Kind, Question};
use super::registry::RegistryKind;
use super::said::{is_redirect, unanswered};
use super::scope::Scope;
use super::storage::{LOOK_AFTER, LOOK_TIME};

impl Upstream {
    /// Makes sure that the registry says that the repository holds the blob, and returns the size if
    /// that came with it.
    ///
    /// ECR is asked by a GET whose redirect is not followed, for which the right to pull suffices;
    /// others by HEAD, and by that GET where HEAD is refused.
    ///
    /// # Errors
    /// [`UpstreamError::Absent`] if it does not; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn probe_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let by_head = match self.is_ecr() {
            true => None,
            false => self.head_blob(repository, digest).await?,
        };
        if by_head.is_some() {
            return Ok(by_head);
        }
        let question = blob_question(Kind::BlobProbe, repository, digest)?;
        let answer = self.ask(&question).await?;
        match answer.status() {
            // ECR sends every blob from storage: this is somebody else's, such as the page of a network that wants
            // a login, and must prove nothing.
            StatusCode::OK if self.is_ecr() => Err(UpstreamError::Wrong(Wrong::Malformed)),
            StatusCode::OK => Ok(answer.content_length()),
            status if is_redirect(status) => {
                // One that leads elsewhere is no word of the registry that it holds it.
                let home = self.shared.at_home(&question.path)?;
                self.shared.sent_on(&home, answer.headers())?;
                answer.discard().await;
                Ok(None)
            }
            _ => Err(unanswered(answer, Absent::Blob).await),
        }
    }

    /// True for ECR, private or public, which hands out a blob once an image names it, and from storage.
    pub fn is_ecr(&self) -> bool {
        match self.shared.options.registry.kind() {
            RegistryKind::Ecr(_) | RegistryKind::EcrPublic => true,
            RegistryKind::DockerHub | RegistryKind::Other => false,
        }
    }

    /// Makes sure that the registry says by HEAD that the repository holds the blob. For ECR that takes a
    /// right of its own, which who pushes has and who pulls need not.
    ///
    /// # Errors
    /// [`UpstreamError::Absent`] if it does not; otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn has_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), UpstreamError> {
        let question = Question {
            method: Method::HEAD,
            ..blob_question(Kind::BlobProbe, repository, digest)?
        };
        let answer = self.ask(&question).await?;
        match answer.status() {
            StatusCode::OK => Ok(()),
            _ => Err(unanswered(answer, Absent::Blob).await),
        }
    }

    /// The size of the blob in bytes: from a HEAD where that is permitted, else from the head of a
    /// one-byte part of the content.
    ///
    /// # Errors
    /// As [`Upstream::probe_blob`]; [`UpstreamError::Wrong`] if the registry does not tell.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, UpstreamError> {
        if let Some(size) = self.head_blob(repository, digest).await? {
            return Ok(size);
        }
        let first = Span {
            from: 0,
            to: Some(1),
        };
        match self.blob(repository, digest, first, None).await {
            // An empty blob has no first byte.
            Err(UpstreamError::ContentChanged) => Ok(0),
            Err(error) => Err(error),
            Ok(body) => body.total().ok_or(UpstreamError::Wrong(Wrong::Malformed)),
        }
    }

    /// `None` where HEAD tells nothing: only what GET says is a no.
    async fn head_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let question = Question {
            method: Method::HEAD,
            ..blob_question(Kind::BlobProbe, repository, digest)?
        };
        match self.ask(&question).await {
            Ok(answer) if answer.status() == StatusCode::OK && answer.is_identity() => {
                Ok(answer.content_length())
            }
            Ok(_) => Ok(None),
            Err(
                UpstreamError::Refused
                | UpstreamError::BadCredentials
                | UpstreamError::Wrong(Wrong::Status(_)),
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that somebody looks in the background whether storage answers again, by the first byte of a blob
    /// that is wanted; one at a time.
    pub fn look_for_storage(&self, repository: &RepositoryName, digest: &Digest) {
        let Some(turn) = self.shared.storage.look() else {
            return;
        };
        let (upstream, repository, digest) = (self.clone(), repository.clone(), *digest);
        tokio::spawn(async move {
            let first = Span {
                from: 0,
                to: Some(1),
            };
            let looking = async {
                let question = blob_question(Kind::Blob, &repository, &digest)?;
                let range = first.header();
                let question = Question { range, ..question };
                upstream.reach_storage(&question).await
            };
            // What came of it is told where it was heard.
            let _ = tokio::time::timeout(LOOK_TIME, looking).await;
            if upstream.storage_outage().is_some() {
                tokio::time::sleep(LOOK_AFTER).await;
            }
            drop(turn);
        });
    }

    /// Begins to read a blob. `same_as` is the validator of an earlier part that this one continues.
    ///
    /// # Errors
    /// [`UpstreamError::ContentChanged`] if this is not the content of `same_as`, or has no byte at
    /// `span.from`; [`UpstreamError::IgnoredRange`] for the whole instead of a part that begins later;
    /// otherwise as [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving closes the connection.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        span: Span,
        same_as: Option<&Validator>,
    ) -> Result<BlobBody, UpstreamError> {
        let question = Question {
            range: span.header(),
            ..blob_question(Kind::Blob, repository, digest)?
        };
        let answer = self.fetch(&question).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => BlobBody::new(
                answer,
                span,
                same_as,
                &self.shared.lines,
                self.shared.meter.clone(),
            ),
            StatusCode::RANGE_NOT_SATISFIABLE if span.header().is_some() => {
                Err(UpstreamError::ContentChanged)
            }
            _ => Err(unanswered(answer, Absent::Blob).await),
        }
    }
}

fn blob_question<'a>(
    kind: Kind,
    repository: &'a RepositoryName,
    digest: &Digest,
) -> Result<Question<'a>, UpstreamError> {
    let path = path_and_query(format!("/v2/{repository}/blobs/{digest}"))?;
    Ok(Question::get(kind, path, Scope::Pull(repository)))
}
