//! Manifests and blobs, read.

use super::super::connection::Asked;
use super::super::principal::Action;
use super::super::reply::Reply;
use super::{Caller, manifest_unknown};

/// Sent with every blob by HEAD, whatever the blob is.
const BLOB_HEAD_TYPE: &str = "application/vnd.docker.container.image.v1+json";

/// By HEAD with `Docker-Content-Digest`, by GET without it.
pub(super) fn manifest(
    caller: &Caller<'_>,
    name: &str,
    reference: &str,
    asked: &Asked,
) -> Result<Reply, Reply> {
    caller.enter(name, Action::BatchGetImage)?;
    if !is_reference(reference) {
        return Err(Reply::error(
            400,
            "UNSUPPORTED",
            "Invalid parameter at 'imageTag' failed to satisfy constraint: 'must satisfy regular \
             expression '[a-zA-Z0-9-_.]+''",
        ));
    }
    let found = caller.shelf().read(name, |repository| {
        let (digest, manifest) = repository.manifest(reference)?;
        Some((digest.clone(), manifest.clone()))
    });
    let (digest, manifest) = found.flatten().ok_or_else(manifest_unknown)?;
    let reply = Reply::new(200, manifest.bytes).with("content-type", &manifest.media_type);
    Ok(if asked.method == "HEAD" {
        reply
            .with("docker-content-digest", &digest)
            .with("sizes", "")
    } else {
        reply
    })
}

/// By HEAD from the registry itself; by GET a redirect to storage.
pub(super) fn blob(
    caller: &Caller<'_>,
    name: &str,
    digest: &str,
    asked: &Asked,
) -> Result<Reply, Reply> {
    let head = asked.method == "HEAD";
    let action = if head {
        Action::BatchCheckLayerAvailability
    } else {
        Action::GetDownloadUrlForLayer
    };
    caller.enter(name, action)?;
    let found = caller
        .shelf()
        .read(name, |repository| repository.blobs.get(digest).cloned());
    let unknown = || Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
    let blob = found.flatten().ok_or_else(unknown)?;
    if head {
        return Ok(Reply::new(200, blob.source)
            .with("content-type", BLOB_HEAD_TYPE)
            .with("docker-content-digest", digest));
    }
    if !blob.referenced {
        return Err(Reply::error(
            404,
            "BLOB_UNKNOWN",
            format!(
                "The layer with digest '{digest}' in the repository with name '{name}' is not \
                 accessible"
            ),
        ));
    }
    let url = caller.shelf().sign(name, digest);
    let location = format!("{}{url}", caller.registry.storage_origin);
    Ok(Reply::empty(307).with("location", &location))
}

/// A digest, or a tag of the grammar, which `+` is not in.
pub(super) fn is_reference(reference: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match reference.split_once(':') {
        Some((algorithm, encoded)) => algorithm.chars().all(word) && encoded.chars().all(word),
        None => !reference.is_empty() && reference.len() <= 128 && reference.chars().all(word),
    }
}
