//! What is asked of a registry to push: upload sessions, manifests, and taking either away.
//!
//! Where a session goes on is the registry's own affair: an [`UploadPlace`] is what it said last, on its
//! own host, and nobody outside this module reads it. Bodies of blobs are streamed and never sent twice.

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Uri};

use bytes::Bytes;

use crate::oci::header::{OCI_CHUNK_MIN_LENGTH, OCI_SUBJECT};
use crate::oci::{ByteRange, Digest, Manifest, Reference, RepositoryName};

use super::client::{Answer, path_and_query};
use super::creation::{is_told_absent, may_be_absent};
use super::error::{UpstreamError, Wrong};
use super::origin::Origin;
use super::question::{Breaks, Kind, Question};
use super::redirect;
use super::said::MAX_ERROR_BODY;
use super::scope::Scope;
use super::sending::{self, Carried, Feed, Stream};
use super::told::told;
use super::{Shared, Upstream};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Where an upload goes on, on the registry's own host. It may hold state that is the registry's secret,
/// so it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct UploadPlace(PathAndQuery);

impl std::fmt::Debug for UploadPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UploadPlace")
    }
}

/// What became of asking for an upload.
#[derive(Debug)]
pub enum Begun {
    /// A session.
    Session {
        /// Where it goes on.
        place: UploadPlace,
        /// The least bytes of a part, the last one apart, where the registry has such a limit.
        least_part: Option<u64>,
    },
    /// This blob was mounted from another repository; nothing is to be sent.
    Mounted(Digest),
}

/// What a part of an upload consists of; see [`upload_body`].
pub struct UploadBody {
    stream: Stream,
    /// Which bytes of the blob, where the client said so.
    range: Option<ByteRange>,
}

/// A body of `length` bytes, where that is known, and what feeds it.
pub fn upload_body(length: Option<u64>, range: Option<ByteRange>) -> (Feed, UploadBody) {
    let (feed, stream) = sending::stream(length);
    (feed, UploadBody { stream, range })
}

/// What a registry said to a manifest that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutManifest {
    /// The subject, where the registry keeps referrers itself and says so.
    pub subject: Option<Digest>,
}

impl Upstream {
    /// Begins an upload, or mounts a blob that another repository has. A repository that is missing is
    /// made, where that is configured.
    ///
    /// # Errors
    /// [`UpstreamError::Told`] where the registry refuses in its own words; otherwise as
    /// [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving may leave a session that nobody uses.
    pub async fn begin_upload(
        &self,
        repository: &RepositoryName,
        mount: Option<(&Digest, &RepositoryName)>,
    ) -> Result<Begun, UpstreamError> {
        let (query, scope) = match mount {
            None => (String::new(), Scope::Push(repository)),
            Some((digest, from)) => {
                let into = repository;
                let query = format!("?mount={digest}&from={from}");
                (query, Scope::Mount { into, from })
            }
        };
        let path = path_and_query(format!("/v2/{repository}/blobs/uploads/{query}"))?;
        let breaks = match self.creator(repository) {
            Some(_) => Breaks::LookedInto,
            None if self.registry().ecr().is_some() => Breaks::MayBeAbsent,
            None => Breaks::AreFailures,
        };
        let question = Question {
            breaks,
            ..push(Kind::Upload, Method::POST, path, scope)
        };
        let mount = mount.map(|(digest, _)| *digest);
        self.making_repository(repository, may_be_absent, || self.begin(&question, mount))
            .await
    }

    async fn begin(
        &self,
        question: &Question<'_>,
        mount: Option<Digest>,
    ) -> Result<Begun, UpstreamError> {
        let answer = self.ask(question).await?;
        match (answer.status(), mount) {
            (StatusCode::CREATED, Some(digest)) => {
                answer.discard().await;
                Ok(Begun::Mounted(digest))
            }
            (StatusCode::ACCEPTED, _) => {
                let place = self.shared.upload_place(&question.path, answer.headers());
                let least_part = answer.headers().get(OCI_CHUNK_MIN_LENGTH);
                let least_part = least_part.and_then(|least| least.to_str().ok()?.parse().ok());
                answer.discard().await;
                let place = place?.ok_or(UpstreamError::Wrong(Wrong::Malformed))?;
                Ok(Begun::Session { place, least_part })
            }
            _ => Err(self.shared.refusal(answer).await),
        }
    }

    /// Sends the next bytes of an upload; returns where it goes on.
    ///
    /// # Errors
    /// As [`Upstream::begin_upload`]. Unless nothing was taken of the body, the session is not to be
    /// used again.
    ///
    /// # Cancel safety
    /// Leaving breaks the session off.
    pub async fn upload_part(
        &self,
        repository: &RepositoryName,
        place: &UploadPlace,
        body: UploadBody,
    ) -> Result<UploadPlace, UpstreamError> {
        let question = with_body(Method::PATCH, place.0.clone(), repository, Some(body));
        let answer = self.ask(&question).await?;
        match answer.status() {
            // ECR says 201, and others what they like.
            StatusCode::ACCEPTED
            | StatusCode::CREATED
            | StatusCode::OK
            | StatusCode::NO_CONTENT => {
                let next = self.shared.upload_place(&question.path, answer.headers());
                answer.discard().await;
                Ok(next?.unwrap_or_else(|| place.clone()))
            }
            _ => Err(self.shared.refusal(answer).await),
        }
    }

    /// Ends an upload, with its last bytes where there are any: from now on the repository holds `digest`.
    ///
    /// # Errors
    /// As [`Upstream::upload_part`].
    ///
    /// # Cancel safety
    /// Leaving breaks the session off, unless the registry has all of it.
    pub async fn end_upload(
        &self,
        repository: &RepositoryName,
        place: &UploadPlace,
        digest: &Digest,
        body: Option<UploadBody>,
    ) -> Result<(), UpstreamError> {
        let joined = if place.0.query().is_some() { '&' } else { '?' };
        // Not escaped: some registries read it as it stands, and a colon may (RFC 3986, 3.4).
        let path = path_and_query(format!("{}{joined}digest={digest}", place.0))?;
        let question = with_body(Method::PUT, path, repository, body);
        let good = [StatusCode::CREATED, StatusCode::NO_CONTENT];
        let ended = self.took(&question, &good).await;
        // Once it is ended there is no such upload any more.
        let is_in_doubt =
            question.doubt.is_raised() && matches!(ended, Err(UpstreamError::Told(_)));
        match is_in_doubt && self.has_blob(repository, digest).await.is_ok() {
            true => Ok(()),
            false => ended,
        }
    }

    /// Gives an upload up. ECR has no way to: there its sessions end by themselves.
    ///
    /// # Errors
    /// As [`Upstream::begin_upload`].
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn give_up_upload(
        &self,
        repository: &RepositoryName,
        place: &UploadPlace,
    ) -> Result<(), UpstreamError> {
        let question = push(
            Kind::Upload,
            Method::DELETE,
            place.0.clone(),
            Scope::Delete(repository),
        );
        self.took(&question, &[StatusCode::NO_CONTENT, StatusCode::ACCEPTED])
            .await
    }

    /// Stores a manifest under a tag or its digest. A repository that is missing is made, where that is
    /// configured.
    ///
    /// # Errors
    /// As [`Upstream::begin_upload`].
    ///
    /// # Cancel safety
    /// Leaving gives the question up; it may have been heard.
    pub async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        media_type: HeaderValue,
        bytes: Bytes,
    ) -> Result<PutManifest, UpstreamError> {
        let path = path_and_query(format!("/v2/{repository}/manifests/{reference}"))?;
        let question = Question {
            carried: Carried::Document(bytes.clone()),
            content_type: Some(media_type.clone()),
            ..push(
                Kind::ManifestPut,
                Method::PUT,
                path,
                Scope::Push(repository),
            )
        };
        let put = self.making_repository(repository, is_told_absent, || self.put(&question));
        let put = put.await;
        // A tag that may not move refuses the very manifest that it names.
        let is_in_doubt = question.doubt.is_raised() && matches!(put, Err(UpstreamError::Told(_)));
        if is_in_doubt
            && let Ok(head) = self.head_manifest(repository, reference).await
            && head.digest == Digest::of(&bytes)
        {
            let subject = self.shared.kept_subject(&media_type, &bytes);
            return Ok(PutManifest { subject });
        }
        put
    }

    async fn put(&self, question: &Question<'_>) -> Result<PutManifest, UpstreamError> {
        let answer = self.ask(question).await?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => {
                let subject = answer.headers().get(OCI_SUBJECT);
                let subject = subject.and_then(|subject| subject.to_str().ok()?.parse().ok());
                answer.discard().await;
                Ok(PutManifest { subject })
            }
            _ => Err(self.shared.refusal(answer).await),
        }
    }

    /// Takes a tag away, or a manifest with its tags.
    ///
    /// # Errors
    /// As [`Upstream::begin_upload`].
    ///
    /// # Cancel safety
    /// Leaving gives the question up; it may have been heard.
    pub async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<(), UpstreamError> {
        let path = path_and_query(format!("/v2/{repository}/manifests/{reference}"))?;
        self.delete(repository, path).await
    }

    /// Takes a blob away, where registries do that.
    ///
    /// # Errors
    /// As [`Upstream::begin_upload`].
    ///
    /// # Cancel safety
    /// Leaving gives the question up; it may have been heard.
    pub async fn delete_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), UpstreamError> {
        let path = path_and_query(format!("/v2/{repository}/blobs/{digest}"))?;
        self.delete(repository, path).await
    }

    async fn delete(
        &self,
        repository: &RepositoryName,
        path: PathAndQuery,
    ) -> Result<(), UpstreamError> {
        let question = push(
            Kind::Delete,
            Method::DELETE,
            path,
            Scope::Delete(repository),
        );
        let good = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        match self.took(&question, &good).await {
            // It went with the attempt whose answer was lost.
            Err(UpstreamError::Told(told)) if told.status == 404 && question.doubt.is_raised() => {
                Ok(())
            }
            deleted => deleted,
        }
    }

    async fn took(
        &self,
        question: &Question<'_>,
        good: &[StatusCode],
    ) -> Result<(), UpstreamError> {
        let answer = self.ask(question).await?;
        if good.contains(&answer.status()) {
            answer.discard().await;
            return Ok(());
        }
        Err(self.shared.refusal(answer).await)
    }
}

fn push<'a>(kind: Kind, method: Method, path: PathAndQuery, scope: Scope<'a>) -> Question<'a> {
    Question {
        method,
        is_push: true,
        ..Question::get(kind, path, scope)
    }
}

fn with_body<'a>(
    method: Method,
    path: PathAndQuery,
    repository: &'a RepositoryName,
    body: Option<UploadBody>,
) -> Question<'a> {
    let Some(UploadBody { stream, range }) = body else {
        return push(Kind::Upload, method, path, Scope::Push(repository));
    };
    let range = range.filter(|range| range.len() > 0).and_then(|range| {
        // distribution-spec, "Pushing a blob in chunks": both ends, and no unit.
        HeaderValue::from_str(&format!("{}-{}", range.start, range.end - 1)).ok()
    });
    Question {
        carried: Carried::Stream(stream),
        content_type: Some(OCTETS),
        content_range: range,
        ..push(Kind::UploadBody, method, path, Scope::Push(repository))
    }
}

impl Shared {
    /// The subject that the registry told with an answer that was lost: where none is told, clients take it
    /// that the registry keeps no referrers, and keep a list of their own in a tag (distribution-spec,
    /// "Pushing Manifests with Subject"). ECR keeps them; of others nobody knows.
    fn kept_subject(&self, media_type: &HeaderValue, bytes: &[u8]) -> Option<Digest> {
        self.options.registry.ecr()?;
        let manifest = Manifest::parse(media_type.to_str().ok()?, bytes).ok()?;
        manifest.subject.map(|subject| subject.digest)
    }

    /// What an answer that is no success says to a push.
    async fn refusal(&self, answer: Answer) -> UpstreamError {
        let status = answer.status();
        if !status.is_client_error() {
            answer.discard().await;
            return UpstreamError::Wrong(Wrong::Status(status.as_u16()));
        }
        let body = answer.read(MAX_ERROR_BODY).await.unwrap_or_default();
        UpstreamError::Told(told(status, &body, &self.names()))
    }

    /// Where the registry says that an upload goes on, if it says so to a request for `asked`. It may name itself,
    /// or where it is reached, or no host; the next request goes where this one went.
    ///
    /// # Errors
    /// [`UpstreamError::Wrong`] for another host, and for what is no address.
    fn upload_place(
        &self,
        asked: &PathAndQuery,
        headers: &HeaderMap,
    ) -> Result<Option<UploadPlace>, UpstreamError> {
        let mut places = headers.get_all(header::LOCATION).iter();
        let place = match (places.next(), places.next()) {
            (None, _) => return Ok(None),
            (Some(place), None) => place,
            (Some(_), Some(_)) => return Err(UpstreamError::Wrong(Wrong::Malformed)),
        };
        let asked = self.at_home(asked)?;
        let uri = place.to_str().ok().and_then(|place| meant(&asked, place));
        let uri = uri.ok_or(UpstreamError::Wrong(Wrong::Malformed))?;
        if uri.authority().is_some() && !self.is_own(&uri) {
            return Err(UpstreamError::Wrong(Wrong::UploadElsewhere));
        }
        // Two slashes begin the name of a host (RFC 3986, 4.2).
        let is_path =
            |path: &&PathAndQuery| path.path().starts_with('/') && !path.path().starts_with("//");
        let path = uri.path_and_query().filter(is_path);
        let path = path.ok_or(UpstreamError::Wrong(Wrong::Malformed))?;
        Ok(Some(UploadPlace(path.clone())))
    }

    /// True for the registry's own name and for where it is reached, whichever scheme goes with it: a
    /// registry behind a balancer that ends TLS often names `http`.
    fn is_own(&self, uri: &Uri) -> bool {
        let Some(named) = Origin::of(uri) else {
            return false;
        };
        self.homes.iter().any(|home| {
            let is_usual = named.has_default_port() && home.has_default_port();
            named.host() == home.host() && (named.port() == home.port() || is_usual)
        })
    }
}

/// A `Location` as it was given, letter by letter, unless it is relative to the path that was asked.
fn meant(asked: &Uri, location: &str) -> Option<Uri> {
    let is_whole = location.starts_with('/') || url::Url::parse(location).is_ok();
    match is_whole || location.is_empty() {
        true => location.parse().ok(),
        false => redirect::resolve(asked, location),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Auth, Registry, UpstreamMetrics, UpstreamOptions};
    use super::*;

    fn place(location: &str) -> Result<String, UpstreamError> {
        let registry = Registry::parse("registry.upstream.test").unwrap();
        let mut options = UpstreamOptions::new("test", registry, Auth::Anonymous);
        options.endpoint = Some("http://127.0.0.1:5000".parse().unwrap());
        let upstream = Upstream::new(options, &UpstreamMetrics::default()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, location.parse().unwrap());
        let asked = PathAndQuery::from_static("/v2/a/blobs/uploads/?mount=x");
        let place = upstream.shared.upload_place(&asked, &headers)?;
        Ok(place.unwrap().0.to_string())
    }

    #[test]
    fn u25_a_session_goes_on_at_the_registry_and_nowhere_else() {
        for (location, path) in [
            (
                "/v2/a/blobs/uploads/1?_state=x%3D",
                "/v2/a/blobs/uploads/1?_state=x%3D",
            ),
            ("https://registry.upstream.test/v2/a/b?x=y", "/v2/a/b?x=y"),
            ("https://Registry.Upstream.Test:443/v2/a", "/v2/a"),
            ("http://registry.upstream.test/v2/a", "/v2/a"),
            ("http://127.0.0.1:5000/v2/a", "/v2/a"),
            ("1?_state=x%3D", "/v2/a/blobs/uploads/1?_state=x%3D"),
            ("uploads/1", "/v2/a/blobs/uploads/uploads/1"),
            ("../../b/1", "/v2/a/b/1"),
            ("?again", "/v2/a/blobs/uploads/?again"),
        ] {
            assert_eq!(place(location).as_deref(), Ok(path), "{location}");
        }
        for location in [
            "https://evil.test/v2/a",
            "//evil.test/v2/a",
            "https://registry.upstream.test.evil.test/v2/a",
            "https://registry.upstream.test:8443/v2/a",
            "http://127.0.0.1:5001/v2/a",
            "https://user@registry.upstream.test/v2/a",
            "ftp://registry.upstream.test/v2/a",
            "http:/v2/a",
            "javascript:alert(1)",
            "\\\\evil.test/v2/a",
            "",
        ] {
            assert!(
                matches!(place(location), Err(UpstreamError::Wrong(_))),
                "{location}"
            );
        }
    }
}
