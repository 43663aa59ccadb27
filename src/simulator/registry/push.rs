//! Pushes: upload sessions and manifests, with the answers in which ECR departs from the
//! specification (PATCH says 201, its `Range` sticks, empty blobs are refused, and nothing is mounted unless
//! the account says so).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::super::connection::Asked;
use super::super::content::{BlobSource, sha256_hex};
use super::super::principal::Action;
use super::super::reply::Reply;
use super::super::shelf::{Manifest, blob_digests, uuid};
use super::list::parameter;
use super::pull::is_reference;
use super::{Caller, manifest_unknown};

/// What the types of OCI's manifests begin with.
const OCI: &str = "application/vnd.oci.image.";

/// Upload sessions by id.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    open: HashMap<String, Session>,
    started: u64,
}

#[derive(Debug)]
struct Session {
    repository: String,
    bytes: Vec<u8>,
    /// The last byte of the first chunk, at which `Range` sticks.
    first_chunk_end: Option<usize>,
}

impl Uploads {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A whole blob in the POST is taken for an ordinary session, as the specification allows and ECR does; so
/// is a mount, unless the account has them and an image of the other repository names the blob.
pub(super) fn start(caller: &Caller<'_>, name: &str, asked: &Asked) -> Result<Reply, Reply> {
    caller.enter(name, Action::InitiateLayerUpload)?;
    if let Some(digest) = mount(caller, name, asked) {
        let place = format!("/v2/{name}/blobs/{digest}");
        return Ok(Reply::empty(201)
            .with("location", &caller.registry.absolute(asked, &place))
            .with("docker-content-digest", &digest));
    }
    let id = {
        let mut sessions = caller.registry.uploads.sessions();
        sessions.started += 1;
        let number = sessions.started.to_le_bytes();
        let id = uuid(&sha256_hex(&[b"upload", name.as_bytes(), &number])[..32]);
        let session = Session {
            repository: name.into(),
            bytes: Vec::new(),
            first_chunk_end: None,
        };
        sessions.open.insert(id.clone(), session);
        id
    };
    Ok(progress(caller, asked, name, &id, 202, 0))
}

/// Mounts what the query asks for, if ECR would.
fn mount(caller: &Caller<'_>, name: &str, asked: &Asked) -> Option<String> {
    let digest = parameter(&asked.query, "mount")?;
    let from = parameter(&asked.query, "from")?;
    let may_read = caller
        .principal
        .may(Action::GetDownloadUrlForLayer, Some(&from));
    if !may_read || !caller.shelf().mounts_blobs() {
        return None;
    }
    let blob = caller
        .shelf()
        .read(&from, |repository| repository.blobs.get(&digest).cloned())??;
    let source = blob.referenced.then_some(blob.source)?;
    caller.shelf().put_blob(name, &digest, source, false);
    Some(digest)
}

pub(super) fn upload(
    caller: &Caller<'_>,
    name: &str,
    id: &str,
    asked: &Asked,
) -> Result<Reply, Reply> {
    let action = match &*asked.method {
        "PUT" => Action::CompleteLayerUpload,
        _ => Action::UploadLayerPart,
    };
    caller.enter(name, action)?;
    let account = caller.shelf().identity.account.clone();
    let mut sessions = caller.registry.uploads.sessions();
    let session = sessions
        .open
        .get_mut(id)
        .filter(|session| session.repository == name)
        .ok_or_else(|| {
            let message = format!(
                "The upload with id '{id}' in the repository with name '{name}' in registry with \
                 id '{account}' does not exist"
            );
            Reply::error(404, "BLOB_UPLOAD_UNKNOWN", message)
        })?;
    match &*asked.method {
        "GET" => {
            let last = session.first_chunk_end.unwrap_or(0);
            Ok(progress(caller, asked, name, id, 204, last))
        }
        "DELETE" => Err(Reply::error(
            405,
            "UNSUPPORTED",
            "The operation is unsupported.",
        )),
        "PATCH" => {
            session.append(asked)?;
            let last = session.first_chunk_end.unwrap_or(0);
            Ok(progress(caller, asked, name, id, 201, last))
        }
        _ => {
            session.append(asked)?;
            if session.bytes.is_empty() {
                return Err(invalid(&format!(
                    "The upload with id '{id}' in the repository with name '{name}' in registry \
                     with id '{account}' cannot be completed because it does not have any parts."
                )));
            }
            let bytes = Bytes::from(std::mem::take(&mut session.bytes));
            sessions.open.remove(id);
            drop(sessions);
            let promised = parameter(&asked.query, "digest").unwrap_or_default();
            let source = BlobSource::Bytes(bytes);
            let digest = source.digest();
            if digest != promised {
                return Err(Reply::error(
                    400,
                    "DIGEST_INVALID",
                    format!("Layer digest '{promised}' does not match '{digest}'"),
                ));
            }
            caller.shelf().put_blob(name, &digest, source, false);
            let place = format!("/v2/{name}/blobs/{digest}");
            Ok(Reply::empty(201)
                .with("location", &caller.registry.absolute(asked, &place))
                .with("docker-content-digest", &digest))
        }
    }
}

impl Session {
    fn append(&mut self, asked: &Asked) -> Result<(), Reply> {
        let held = self.bytes.len();
        if let Some(range) = asked.header("content-range") {
            let first = range
                .trim_start_matches("bytes ")
                .split('-')
                .next()
                .and_then(|first| first.trim().parse::<usize>().ok());
            match first {
                Some(first) if first == held => {}
                Some(first) => {
                    return Err(Reply::error(
                        416,
                        "BLOB_UPLOAD_INVALID",
                        format!("First byte of the layer part is {first} instead of {held}"),
                    ));
                }
                None => return Err(invalid("Content-Range cannot be read")),
            }
        }
        self.bytes.extend_from_slice(&asked.body);
        if self.first_chunk_end.is_none() && !self.bytes.is_empty() {
            self.first_chunk_end = Some(self.bytes.len() - 1);
        }
        Ok(())
    }
}

fn progress(
    caller: &Caller<'_>,
    asked: &Asked,
    name: &str,
    id: &str,
    status: u16,
    last: usize,
) -> Reply {
    let place = format!("/v2/{name}/blobs/uploads/{id}");
    Reply::empty(status)
        .with("location", &caller.registry.absolute(asked, &place))
        .with("docker-upload-uuid", id)
        .with("range", &format!("0-{last}"))
}

fn invalid(message: &str) -> Reply {
    Reply::error(400, "BLOB_UPLOAD_INVALID", message)
}

/// Stores a manifest whose blobs and children are all there.
pub(super) fn manifest(
    caller: &Caller<'_>,
    name: &str,
    reference: &str,
    asked: &Asked,
) -> Result<Reply, Reply> {
    caller.enter(name, Action::PutImage)?;
    let disliked = || {
        Reply::error(
            405,
            "UNSUPPORTED",
            "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON \
             syntax'",
        )
    };
    if asked.body.len() > 4 << 20 {
        return Err(Reply::empty(413));
    }
    let json: serde_json::Value = serde_json::from_slice(&asked.body).map_err(|_| disliked())?;
    // A manifest of OCI's may leave its type to the header, as Helm's do.
    let by_header = asked
        .header("content-type")
        .filter(|it| it.starts_with(OCI));
    let media_type = json["mediaType"].as_str().or(by_header);
    let media_type = media_type.ok_or_else(disliked)?.to_owned();
    let children = json["manifests"].as_array();
    let has_layers = json["layers"].as_array().is_some_and(|l| !l.is_empty());
    if !is_reference(reference) || (children.is_none() && !has_layers) {
        return Err(disliked());
    }
    let digest = BlobSource::Bytes(asked.body.clone()).digest();
    let tag = Some(reference).filter(|reference| !reference.contains(':'));
    if tag.is_none() && reference != digest {
        return Err(Reply::error(
            400,
            "DIGEST_INVALID",
            "The image digest does not match the manifest",
        ));
    }
    let account = &caller.shelf().identity.account;
    let lacking = |what: &str, digests: &[String]| {
        format!(
            "{what} with digests '[{}]' required for pushing image into repository with name \
             '{name}' in the registry with id '{account}' do not exist",
            digests.join(", ")
        )
    };
    let stored = caller.shelf().change(name, |repository| {
        let absent = |digests: Vec<String>, held: &dyn Fn(&str) -> bool| -> Vec<String> {
            digests.into_iter().filter(|digest| !held(digest)).collect()
        };
        let blobs = absent(blob_digests(&json), &|d| repository.blobs.contains_key(d));
        if !blobs.is_empty() {
            let message = lacking("Layers", &blobs);
            return Err(Reply::error(404, "BLOB_UPLOAD_UNKNOWN", message));
        }
        let named = children.into_iter().flatten();
        let named = named.filter_map(|child| child["digest"].as_str().map(str::to_owned));
        let images = absent(named.collect(), &|d| repository.manifests.contains_key(d));
        if !images.is_empty() {
            let message = lacking("Images", &images);
            return Err(Reply::error(404, "MANIFEST_UNKNOWN", message));
        }
        if let Some(tag) = tag
            && repository.is_immutable(tag)
            && repository.tags.contains_key(tag)
        {
            return Err(Reply::error(
                400,
                "TAG_INVALID",
                format!(
                    "The image tag '{tag}' already exists in the '{name}' repository and cannot \
                     be overwritten because the repository is immutable."
                ),
            ));
        }
        let manifest = Manifest {
            media_type,
            bytes: asked.body.clone(),
        };
        repository.store(&digest, manifest, tag);
        Ok(())
    });
    stored.ok_or_else(|| caller.name_unknown(name))??;
    let place = format!("/v2/{name}/manifests/{digest}");
    let mut reply = Reply::empty(201)
        .with("location", &caller.registry.absolute(asked, &place))
        .with("docker-content-digest", &digest);
    if let Some(subject) = json["subject"]["digest"].as_str() {
        reply.set("oci-subject", subject);
    }
    Ok(reply)
}

/// By tag only the tag goes, by digest the image with its tags.
pub(super) fn delete_manifest(
    caller: &Caller<'_>,
    name: &str,
    reference: &str,
) -> Result<Reply, Reply> {
    caller.enter(name, Action::BatchDeleteImage)?;
    let gone = caller.shelf().change(name, |repository| {
        if reference.contains(':') {
            repository.tags.retain(|_, digest| digest != reference);
            repository.manifests.remove(reference).is_some()
        } else {
            repository.tags.remove(reference).is_some()
        }
    });
    match gone {
        Some(true) => Ok(Reply::empty(202)),
        _ => Err(manifest_unknown()),
    }
}
