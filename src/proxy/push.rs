//! Pushes: uploads, manifests, and taking either away.
//!
//! Each step of an upload is one request of the client's and at most one of ours: the body goes through as
//! it comes, upstream's word decides the answer, and what upstream took is in the cache. What a client
//! reads of a session is ours alone: the id, the `Location`, how many bytes there are. ECR says 201 to a
//! PATCH and its `Range` sticks at the first chunk; neither is passed on.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use hyper::body::{Body as _, Incoming as HttpBody};
use tokio::task::JoinError;

use super::body::Said;
use super::error::Refusal;
use super::mount::Mount;
use super::pump::{Broken, Incoming};
use super::push_fault::PushFault;
use super::uploads::{Owner, Session, Taken, Uploads};
use super::{Parts, Reply, no_method};
use crate::access::{Right, Turns};
use crate::fill::Received;
use crate::oci::header::{
    DOCKER_CONTENT_DIGEST, DOCKER_UPLOAD_UUID, OCI_CHUNK_MIN_LENGTH, OCI_SUBJECT,
};
use crate::oci::{
    self, ByteRange, Digest, Manifest, Reference, RepoKey, RepositoryName, media_type,
    parse_upload_range,
};
use crate::upstream::{Begun, Upstream, UpstreamError, Wrong, upload_body};

/// Largest manifest, in bytes: what distribution-spec wants to be taken, and all that ECR takes.
pub(super) const LARGEST_MANIFEST: usize = 4 * 1024 * 1024;

/// How long a long one, and a change, waits for its turn.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer is waited for where upstream has stopped taking the body, or the other way round.
const LAST_WORD: Duration = Duration::from_secs(10);

/// A push that is permitted, and where it goes.
pub(super) struct Push<'a> {
    /// What upstream may be asked to mount, where the client wishes it.
    pub(super) mount: Option<Mount>,
    pub(super) parts: &'a Parts,
    pub(super) uploads: &'a Uploads,
    /// Turns at manifests that are held while they come.
    pub(super) long_manifests: &'a Turns,
    /// Turns at what goes on without its client.
    pub(super) changes: &'a Turns,
    pub(super) right: &'a Right,
    /// The client's.
    pub(super) address: IpAddr,
    /// Asked as whoever holds the right has it asked.
    pub(super) upstream: Upstream,
    pub(super) repo: &'a RepoKey,
    /// The repository as the client writes it, with containerd's `ns` where it came with one: what it is
    /// told to go on at has to lead here again.
    pub(super) repository: &'a RepositoryName,
    pub(super) ns: Option<&'a str>,
}

impl Push<'_> {
    /// The story of a push.
    pub(super) async fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
        wanted: &oci::Request,
        body: HttpBody,
    ) -> Result<Reply, Refusal> {
        match (method, wanted) {
            (&Method::POST, oci::Request::Uploads { digest, .. }) => {
                self.begin(headers, *digest, body).await
            }
            (
                method,
                oci::Request::Upload {
                    session, digest, ..
                },
            ) => match *method {
                Method::PATCH => self.part(headers, session, body).await,
                Method::PUT => self.end(headers, session, *digest, body).await,
                Method::DELETE => self.give_up(session).await,
                Method::GET | Method::HEAD => self.how_far(session),
                _ => Err(no_method(wanted)),
            },
            (&Method::PUT, oci::Request::Manifest { reference, .. }) => {
                self.manifest(headers, reference, body).await
            }
            (&Method::DELETE, oci::Request::Manifest { reference, .. }) => {
                self.delete_manifest(reference).await
            }
            (&Method::DELETE, oci::Request::Blob { digest, .. }) => self.delete_blob(*digest).await,
            _ => Err(no_method(wanted)),
        }
    }

    /// POST: mounts a blob, or begins an upload. A body is the whole blob, if `digest` says so.
    async fn begin(
        &self,
        headers: &HeaderMap,
        digest: Option<Digest>,
        body: HttpBody,
    ) -> Result<Reply, Refusal> {
        // Without room upstream is not asked.
        let mut taken = self.uploads.begin(self.owner(), self.address)?;
        let (place, least) = match self.begun(&body).await? {
            Begun::Session { place, least_part } => (place, least_part),
            Begun::Mounted(digest) => {
                return self.created_blob(&self.upstream, digest, None).await;
            }
        };
        let (upstream, repo) = (self.upstream.clone(), self.repo.clone());
        let received = self.parts.fills.receive();
        taken.hold(Session::new(upstream, repo, place, received));
        let id = taken.id().to_owned();
        taken.give_back();
        match digest.filter(|_| !body.is_end_stream()) {
            Some(digest) => self.end(headers, &id, Some(digest), body).await,
            None => {
                let mut reply = self.progress(StatusCode::ACCEPTED, &id, 0);
                if let Some(least) = least {
                    set(&mut reply, OCI_CHUNK_MIN_LENGTH, &least.to_string());
                }
                Ok(reply)
            }
        }
    }

    /// What upstream makes of the wish to mount or to upload.
    async fn begun(&self, body: &HttpBody) -> Result<Begun, UpstreamError> {
        let repository = &self.repo.repository;
        // With a body the upload is there already.
        if let Some(mount) = self.mount.as_ref().filter(|_| body.is_end_stream())
            && let Some(asked) = mount.proven(&self.parts.fills).await
        {
            match self.upstream.begin_upload(repository, Some(asked)).await {
                // It may be about the other repository, of which nothing is told.
                Err(UpstreamError::Told(_) | UpstreamError::Refused | UpstreamError::Wrong(_)) => {}
                begun => return begun,
            }
        }
        self.upstream.begin_upload(repository, None).await
    }

    /// GET: how much there is of it.
    fn how_far(&self, id: &str) -> Result<Reply, Refusal> {
        let mut taken = self.uploads.take(id, &self.owner())?;
        let held = taken.session().map_or(0, |session| session.received.len());
        taken.give_back();
        Ok(self.progress(StatusCode::NO_CONTENT, id, held))
    }

    /// PATCH: the next bytes.
    async fn part(&self, headers: &HeaderMap, id: &str, body: HttpBody) -> Result<Reply, Refusal> {
        let mut taken = self.uploads.take(id, &self.owner())?;
        let range = match self.range(headers, id, &mut taken, &body) {
            Ok(range) => range,
            Err(refusal) => {
                // Nothing was done to it.
                taken.give_back();
                return Err(refusal);
            }
        };
        let session = taken.session().ok_or(PushFault::Unknown)?;
        if !body.is_end_stream() {
            let (feed, part) = upload_body(body.size_hint().exact(), range);
            let repository = &self.repo.repository;
            let asking = session
                .at
                .upstream
                .upload_part(repository, &session.at.place, part);
            let pumping = Incoming::new(body).pump(feed, &mut session.received, None);
            session.at.place = both(asking, pumping).await?;
        }
        let held = session.received.len();
        taken.give_back();
        Ok(self.progress(StatusCode::ACCEPTED, id, held))
    }

    /// PUT: the last bytes, if any are left, and what all of it is to be.
    async fn end(
        &self,
        headers: &HeaderMap,
        id: &str,
        digest: Option<Digest>,
        body: HttpBody,
    ) -> Result<Reply, Refusal> {
        let mut taken = self.uploads.take(id, &self.owner())?;
        let range = self.range(headers, id, &mut taken, &body);
        let (range, digest) = match (range, digest) {
            (Ok(range), Some(digest)) => (range, digest),
            (range, _) => {
                // Nothing was done to it.
                taken.give_back();
                return Err(range.err().unwrap_or(PushFault::NoDigest.into()));
            }
        };
        let repository = &self.repo.repository;
        let session = taken.session().ok_or(PushFault::Unknown)?;
        if body.is_end_stream() {
            let found = session.received.digest().await?;
            if found != digest {
                return Err(PushFault::Digest { found }.into());
            }
            let (upstream, place) = (&session.at.upstream, &session.at.place);
            if let Err(error) = upstream.end_upload(repository, place, &digest, None).await {
                if error.retryable() {
                    // Upstream holds it as it was, and the client is told to come again.
                    taken.give_back();
                }
                return Err(error.into());
            }
        } else {
            let (feed, part) = upload_body(body.size_hint().exact(), range);
            let (upstream, place) = (&session.at.upstream, &session.at.place);
            let asking = upstream.end_upload(repository, place, &digest, Some(part));
            let pumping = Incoming::new(body).pump(feed, &mut session.received, Some(digest));
            both(asking, pumping).await?;
        }
        let session = taken.end().ok_or(PushFault::Unknown)?;
        let upstream = session.at.upstream.clone();
        let received = session.ended();
        self.created_blob(&upstream, digest, Some(received)).await
    }

    /// DELETE: the upload is given up.
    async fn give_up(&self, id: &str) -> Result<Reply, Refusal> {
        let taken = self.uploads.take(id, &self.owner())?;
        drop(taken.end());
        Ok(Reply::new(StatusCode::NO_CONTENT, Said::nothing()))
    }

    async fn created_blob(
        &self,
        by: &Upstream,
        digest: Digest,
        received: Option<Received>,
    ) -> Result<Reply, Refusal> {
        let (fills, right, repo) = (&self.parts.fills, self.right, self.repo);
        match received {
            Some(received) => fills.blob_pushed(right, by, repo, digest, received).await,
            None => fills.blob_mounted(right, by, repo, digest, None).await,
        }
        Ok(self.created(&format!("blobs/{digest}"), digest))
    }

    /// PUT of a manifest.
    async fn manifest(
        &self,
        headers: &HeaderMap,
        reference: &Reference,
        body: HttpBody,
    ) -> Result<Reply, Refusal> {
        let turn = self.long_manifests.take(Some(self.address));
        let turn = async { tokio::time::timeout(MANIFEST_PATIENCE, turn).await.ok() };
        let (bytes, turn) = Incoming::new(body).whole(LARGEST_MANIFEST, turn).await?;
        let digest = Digest::of(&bytes);
        if let Reference::Digest(promised) = reference
            && *promised != digest
        {
            return Err(PushFault::Digest { found: digest }.into());
        }
        let declared = headers.get(header::CONTENT_TYPE);
        let declared = declared.and_then(|declared| declared.to_str().ok());
        // It is told to whoever pulls it, and not all of them read parameters.
        let media_type = match declared
            .map(media_type::essence)
            .filter(|declared| !declared.is_empty())
        {
            Some(declared) => declared.to_owned(),
            None => own_type(&bytes)
                .ok_or_else(|| PushFault::NoManifest("it tells no media type".to_owned()))?,
        };
        Manifest::parse(&media_type, &bytes)
            .map_err(|error| PushFault::NoManifest(error.to_string()))?;
        let content_type = HeaderValue::from_str(&media_type)
            .map_err(|_| PushFault::NoManifest("an odd media type".to_owned()))?;
        let (by, repo) = (self.upstream.clone(), self.repo.clone());
        let (right, reference) = (self.right.clone(), reference.clone());
        let fills = self.parts.fills.clone();
        let put = async move {
            // For as long as the bytes are held.
            let _turn = turn;
            let put = by.put_manifest(&repo.repository, &reference, content_type, bytes.clone());
            let put = put.await?;
            fills
                .manifest_pushed(&right, &by, &repo, &reference, media_type, bytes)
                .await;
            Ok(put)
        };
        let put = self.to_its_end(put).await?;
        let mut reply = self.created(&format!("manifests/{digest}"), digest);
        if let Some(subject) = put.subject {
            set(&mut reply, OCI_SUBJECT, &subject.to_string());
        }
        Ok(reply)
    }

    /// DELETE of a tag or manifest.
    async fn delete_manifest(&self, reference: &Reference) -> Result<Reply, Refusal> {
        let (by, repo) = (self.upstream.clone(), self.repo.clone());
        let (right, reference) = (self.right.clone(), reference.clone());
        let fills = self.parts.fills.clone();
        let delete = async move {
            let deleted = by.delete_manifest(&repo.repository, &reference).await;
            if is_gone(&deleted) {
                fills.manifest_deleted(&right, &repo, &reference).await;
            }
            deleted
        };
        self.to_its_end(delete).await?;
        Ok(Reply::new(StatusCode::ACCEPTED, Said::nothing()))
    }

    /// DELETE of a blob.
    async fn delete_blob(&self, digest: Digest) -> Result<Reply, Refusal> {
        let (by, repo) = (self.upstream.clone(), self.repo.clone());
        let (right, fills) = (self.right.clone(), self.parts.fills.clone());
        let delete = async move {
            let deleted = by.delete_blob(&repo.repository, &digest).await;
            if is_gone(&deleted) {
                fills.blob_deleted(&right, &repo, digest).await;
            }
            deleted
        };
        self.to_its_end(delete).await?;
        Ok(Reply::new(StatusCode::ACCEPTED, Said::nothing()))
    }

    /// Does what changes a repository, and notes it, to its end also where the client leaves: upstream may
    /// have heard of it, and what the cache tells is to be true.
    async fn to_its_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, UpstreamError>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.changes.take(Some(self.address));
        let turn = tokio::time::timeout(MANIFEST_PATIENCE, turn).await;
        let turn = turn.map_err(|_elapsed| Refusal::TooMany)?;
        let change = tokio::spawn(async move {
            let _turn = turn;
            change.await
        });
        match change.await.map_err(JoinError::try_into_panic) {
            Ok(changed) => Ok(changed?),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The program ends.
            Err(Err(_)) => Err(UpstreamError::Failing { status: 500 }.into()),
        }
    }

    /// Where the client says that its part belongs, which has to be where the last one ended.
    fn range(
        &self,
        headers: &HeaderMap,
        id: &str,
        taken: &mut Taken,
        body: &HttpBody,
    ) -> Result<Option<ByteRange>, Refusal> {
        let Some(range) = headers.get(header::CONTENT_RANGE) else {
            return Ok(None);
        };
        let range = range.to_str().ok();
        let range = range.and_then(|range| parse_upload_range(range).ok());
        let range = range.ok_or(PushFault::ContentRange)?;
        let held = taken.session().map_or(0, |session| session.received.len());
        if range.start != held {
            let location = self.location(id);
            return Err(PushFault::OutOfOrder { held, location }.into());
        }
        match body.size_hint().exact() {
            Some(length) if length == range.len() => Ok(Some(range)),
            Some(_) => Err(PushFault::ContentRange.into()),
            // In chunks, its length is known at its end, and told by the answer's `Range`. Upstream is
            // promised nothing.
            None => Ok(None),
        }
    }

    fn owner(&self) -> Owner {
        Owner {
            who: self.right.who().clone(),
            credential: self.right.credential().cloned(),
            repo: self.repo.clone(),
        }
    }

    fn location(&self, id: &str) -> String {
        let repository = self.repository;
        match self.ns {
            Some(ns) => {
                let ns = oci::escaped(ns);
                format!("/v2/{repository}/blobs/uploads/{id}?ns={ns}")
            }
            None => format!("/v2/{repository}/blobs/uploads/{id}"),
        }
    }

    /// How far an upload is.
    fn progress(&self, status: StatusCode, id: &str, held: u64) -> Reply {
        let mut reply = Reply::new(status, Said::nothing());
        set(&mut reply, header::LOCATION, &self.location(id));
        set(&mut reply, header::RANGE, &range_of(held));
        set(&mut reply, DOCKER_UPLOAD_UUID, id);
        reply
    }

    fn created(&self, what: &str, digest: Digest) -> Reply {
        let mut reply = Reply::new(StatusCode::CREATED, Said::nothing());
        let location = format!("/v2/{}/{what}", self.repository);
        set(&mut reply, header::LOCATION, &location);
        set(&mut reply, DOCKER_CONTENT_DIGEST, &digest.to_string());
        reply
    }
}

/// The `Range` of an upload that holds so many bytes. Of none there is no such form, and clients want one:
/// registries say `0-0`.
pub(super) fn range_of(held: u64) -> String {
    format!("0-{}", held.saturating_sub(1))
}

fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    // Names, digests and numbers are always a header's value.
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.say(name, value);
    }
}

/// Whether something is not there any more after a wish to delete it: also where it was not there, as when
/// the answer to the first wish was lost and this is the second.
fn is_gone(deleted: &Result<(), UpstreamError>) -> bool {
    match deleted {
        Ok(()) => true,
        Err(UpstreamError::Told(told)) => {
            let absent = ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN"];
            told.absent().is_some_and(|code| absent.contains(&code))
        }
        Err(_) => false,
    }
}

/// The type that a manifest says that it has.
fn own_type(manifest: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    let typed: Typed = serde_json::from_slice(manifest).ok()?;
    Some(typed.media_type)
}

/// Asks while the body is pumped. An answer before its end decides as well: nothing more is sent then.
async fn both<T>(
    asking: impl Future<Output = Result<T, UpstreamError>>,
    pumping: impl Future<Output = Result<(), Broken>>,
) -> Result<T, Refusal> {
    tokio::pin!(asking, pumping);
    tokio::select! {
        biased;
        answer = &mut asking => {
            let answer = answer?;
            // It has all of it, so there is but the end to be noticed.
            match tokio::time::timeout(LAST_WORD, pumping).await {
                Ok(Ok(())) => Ok(answer),
                Ok(Err(Broken::Digest { found })) => Err(Broken::Digest { found }.into()),
                Ok(Err(_)) | Err(_) => Err(UpstreamError::Wrong(Wrong::Malformed).into()),
            }
        }
        pumped = &mut pumping => match pumped {
            Ok(()) => Ok(asking.await?),
            Err(Broken::Upstream(error)) => {
                match tokio::time::timeout(LAST_WORD, asking).await {
                    Ok(Err(said)) => Err(said.into()),
                    Ok(Ok(_)) => Err(UpstreamError::Wrong(Wrong::Malformed).into()),
                    Err(_elapsed) => Err(error.into()),
                }
            }
            Err(broken) => Err(broken.into()),
        },
    }
}
