//! A place that a blob comes from.

use std::future::pending;
use std::sync::{Arc, OnceLock};

use super::elsewhere::Elsewhere;
use super::error::FillError;
use super::failover::PATIENCE;
use crate::oci::{Digest, RepositoryName};
use crate::upstream::{BlobBody, Interest, Span, Upstream, UpstreamError, Validator};

/// Where a fill's bytes come from, and how to tell that they still do.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) upstream: Upstream,
    pub(super) repository: RepositoryName,
    pub(super) validator: Arc<OnceLock<Validator>>,
    /// Whether anybody waits for what comes from here.
    interest: Interest,
    /// Where else to look while the upstream cannot answer, if anywhere.
    pub(super) elsewhere: Option<Elsewhere>,
}

impl Origin {
    pub(super) fn new(upstream: Upstream, repository: RepositoryName) -> Self {
        Self {
            upstream,
            repository,
            validator: Arc::default(),
            interest: Interest::default(),
            elsewhere: None,
        }
    }

    /// The same place, or another where this one cannot answer.
    pub(super) fn or(self, elsewhere: Elsewhere) -> Self {
        Self {
            elsewhere: Some(elsewhere),
            ..self
        }
    }

    /// This place and no other.
    pub(super) fn alone(self) -> Self {
        Self {
            elsewhere: None,
            ..self
        }
    }

    /// Another place, for the same bytes and whoever waits for them.
    pub(super) fn moved_to(&self, upstream: Upstream, repository: RepositoryName) -> Self {
        Self {
            upstream,
            repository,
            validator: Arc::default(),
            interest: self.interest.clone(),
            elsewhere: self.elsewhere.clone(),
        }
    }

    /// The same place, for bytes that are waited for as long as there is this interest.
    pub(super) fn wanted_by(self, interest: Interest) -> Self {
        Self { interest, ..self }
    }

    /// The same place, with no memory of what was there.
    pub(super) fn afresh(&self) -> Self {
        self.moved_to(self.upstream.clone(), self.repository.clone())
    }

    /// A body from `from` to `to` (or the end), of the content that was opened first.
    ///
    /// # Errors
    /// The upstream's, and where another has the blob: that its storage does not answer, if that is known, and that
    /// it throttles, as soon as it does for longer than is waited for then.
    pub(super) async fn open(
        &self,
        digest: Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<BlobBody, FillError> {
        if let Some(outage) = self.upstream.storage_outage()
            && self.is_elsewhere(digest).await
        {
            self.upstream.look_for_storage(&self.repository, &digest);
            return Err(UpstreamError::Away(Box::new(outage.cause)).into());
        }
        let (span, same_as) = (Span { from, to }, self.validator.get());
        let opening = self.upstream.blob(&self.repository, &digest, span, same_as);
        let body = tokio::select! {
            biased;
            body = opening => body?,
            error = self.throttles_alone(digest) => return Err(error.into()),
        };
        let _ = self.validator.set(body.validator().clone());
        Ok(body.wanted_by(self.interest.clone()))
    }

    /// Returns once the upstream throttles where another has the blob and can be asked for it; why this one cannot.
    async fn throttles_alone(&self, digest: Digest) -> UpstreamError {
        let error = self.upstream.throttles(PATIENCE).await;
        match self.is_elsewhere(digest).await {
            true => error,
            false => pending().await,
        }
    }

    /// Whether another has the blob, and can be asked for it as far as is known.
    async fn is_elsewhere(&self, digest: Digest) -> bool {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.has(self, digest).await,
            None => false,
        }
    }
}
