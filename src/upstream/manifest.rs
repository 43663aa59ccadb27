//! Manifests: what a reference names now, and the manifest itself, verified before anybody sees it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::oci::header::DOCKER_CONTENT_DIGEST;
use crate::oci::media_type;
use crate::oci::{Digest, Manifest, Reference, RepositoryName};

use super::Upstream;
use super::client::path_and_query;
use super::error::{Absent, UpstreamError, Wrong};
use super::question::{Kind, Question};
use super::said::unanswered;
use super::scope::Scope;

/// Some registries convert, or deny having, manifests of types that `Accept` does not name, so all are
/// named always. Whether a client can take what there is, is decided elsewhere.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5";

/// What a reference names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// The manifest's digest.
    pub digest: Digest,
    /// The type it came with.
    pub media_type: String,
    /// Its size in bytes, where it was told.
    pub size: Option<u64>,
    /// The manifest itself, where nothing less would tell its digest.
    pub fetched: Option<FetchedManifest>,
}

/// A manifest, as its registry returned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The type it came with.
    pub media_type: String,
    /// Its bytes, unchanged.
    pub bytes: Bytes,
    /// Of these bytes, computed here.
    pub digest: Digest,
}

impl Upstream {
    /// What a reference names now, as cheaply as the registry tells: by one HEAD, or by the manifest
    /// itself where a HEAD is refused, tells no digest, or denies what a GET may have.
    ///
    /// # Errors
    /// [`UpstreamError::Absent`] and [`UpstreamError::Refused`] are what a GET said; otherwise as
    /// [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let question = Question {
            method: Method::HEAD,
            ..question(Kind::ManifestHead, repository, reference)?
        };
        let told = match self.ask(&question).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                told(answer.headers(), answer.content_length(), reference)
            }
            Ok(_) => None,
            Err(
                UpstreamError::Refused
                | UpstreamError::BadCredentials
                | UpstreamError::Wrong(Wrong::Status(_)),
            ) => None,
            Err(error) => return Err(error),
        };
        if let Some(head) = told {
            return Ok(head);
        }
        let fetched = self.manifest(repository, reference).await?;
        Ok(ManifestHead {
            digest: fetched.digest,
            media_type: fetched.media_type.clone(),
            size: Some(fetched.bytes.len() as u64),
            fetched: Some(fetched),
        })
    }

    /// Fetches a manifest and verifies it: its digest against the one asked for and the one declared,
    /// its type against what it says of itself.
    ///
    /// # Errors
    /// [`UpstreamError::Wrong`] if it does not verify or is no manifest; otherwise as
    /// [`UpstreamError`] says.
    ///
    /// # Cancel safety
    /// Leaving gives the question up.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, UpstreamError> {
        let question = question(Kind::Manifest, repository, reference)?;
        let answer = self.fetch(&question).await?;
        if answer.status() != StatusCode::OK {
            return Err(unanswered(answer, Absent::Manifest).await);
        }
        let (headers, came_by) = (answer.headers().clone(), answer.came_by());
        let max_bytes = self.shared.terms.load().manifest_max_bytes;
        let bytes = answer.read(max_bytes).await?;
        let verified = verify(&headers, bytes, reference);
        if verified.is_err() {
            // It may be the answer to another question, and the next one that to this.
            came_by.poison();
        }
        verified
    }
}

fn question<'a>(
    kind: Kind,
    repository: &'a RepositoryName,
    reference: &Reference,
) -> Result<Question<'a>, UpstreamError> {
    let path = path_and_query(format!("/v2/{repository}/manifests/{reference}"))?;
    Ok(Question {
        accept: Some(HeaderValue::from_static(ACCEPT)),
        ..Question::get(kind, path, Scope::Pull(repository))
    })
}

/// What the head of an answer tells, if it tells a digest and a type that can be true.
fn told(headers: &HeaderMap, size: Option<u64>, reference: &Reference) -> Option<ManifestHead> {
    let mut declared = headers.get_all(DOCKER_CONTENT_DIGEST).iter();
    let digest: Digest = match (declared.next(), declared.next()) {
        (Some(digest), None) => digest.to_str().ok()?.parse().ok()?,
        (None, _) | (Some(_), Some(_)) => return None,
    };
    let is_asked = match reference {
        Reference::Digest(asked) => *asked == digest,
        Reference::Tag(_) => true,
    };
    let media_type = content_type(headers).filter(|media_type| !is_generic(media_type))?;
    is_asked.then_some(ManifestHead {
        digest,
        media_type,
        size,
        fetched: None,
    })
}

fn verify(
    headers: &HeaderMap,
    bytes: Bytes,
    reference: &Reference,
) -> Result<FetchedManifest, UpstreamError> {
    let digest = Digest::of(&bytes);
    let mismatch = Err(UpstreamError::Wrong(Wrong::DigestMismatch));
    if let Reference::Digest(asked) = reference
        && *asked != digest
    {
        return mismatch;
    }
    // A digest of another algorithm, or no digest, says nothing that could be compared.
    let is_contradicted = headers
        .get_all(DOCKER_CONTENT_DIGEST)
        .iter()
        .filter_map(|declared| declared.to_str().ok()?.trim().parse::<Digest>().ok())
        .any(|declared| declared != digest);
    if is_contradicted {
        return mismatch;
    }
    let no_manifest = UpstreamError::Wrong(Wrong::NotAManifest);
    let shape: Shape = serde_json::from_slice(&bytes).map_err(|_| no_manifest.clone())?;
    let declared = content_type(headers).filter(|media_type| !is_generic(media_type));
    let media_type = declared.or(shape.media_type).ok_or(no_manifest.clone())?;
    // A document without a version is an error or a page's data, whatever type it came with; and no
    // manifest's type is that of a page.
    let is_manifest =
        shape.schema_version.is_some() || media_type::MANIFESTS.contains(&&*media_type);
    if !is_manifest || shape.errors.is_some() || media_type == "text/html" {
        return Err(no_manifest);
    }
    Manifest::parse(&media_type, &bytes).map_err(|_| no_manifest)?;
    Ok(FetchedManifest {
        media_type,
        bytes,
        digest,
    })
}

/// Enough of a document to tell a manifest from other JSON.
#[derive(serde::Deserialize)]
struct Shape {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    errors: Option<serde::de::IgnoredAny>,
}

/// Its parameters are left out: clients compare the whole of it with what they know.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (Some(one), None) => {
            let essence = media_type::essence(one.to_str().ok()?);
            Some(essence.to_owned()).filter(|essence| !essence.is_empty())
        }
        (None, _) | (Some(_), Some(_)) => None,
    }
}

/// Types that say nothing about a manifest; what it says of itself counts then.
fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/json" | "application/octet-stream" | "text/plain" | "binary/octet-stream"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCI: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"x","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

    fn check(
        headers: &[(&'static str, &str)],
        body: &str,
        reference: &str,
    ) -> Result<String, Wrong> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        match verify(&map, bytes, &reference.parse().unwrap()) {
            Ok(manifest) => Ok(manifest.media_type),
            Err(UpstreamError::Wrong(wrong)) => Err(wrong),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn u19_headers_that_lie_are_found_out() {
        let own = media_type::OCI_MANIFEST;
        let digest = Digest::of(OCI.as_bytes()).to_string();
        let other = Digest::of(b"other").to_string();
        let typed = ("content-type", own);
        assert_eq!(check(&[typed], OCI, "v1").unwrap(), own);
        assert_eq!(check(&[typed], OCI, &digest).unwrap(), own);
        assert_eq!(
            check(&[typed, ("docker-content-digest", &digest)], OCI, "v1").unwrap(),
            own
        );
        for (headers, reference, wrong) in [
            (vec![typed], other.as_str(), Wrong::DigestMismatch),
            (
                vec![typed, ("docker-content-digest", &other)],
                "v1",
                Wrong::DigestMismatch,
            ),
            (
                vec![
                    typed,
                    ("docker-content-digest", &digest),
                    ("docker-content-digest", &other),
                ],
                "v1",
                Wrong::DigestMismatch,
            ),
            (
                vec![("content-type", media_type::OCI_INDEX)],
                "v1",
                Wrong::NotAManifest,
            ),
            (
                vec![("content-type", "text/html")],
                "v1",
                Wrong::NotAManifest,
            ),
        ] {
            assert_eq!(check(&headers, OCI, reference), Err(wrong), "{headers:?}");
        }
        for missing in [vec![], vec![("content-type", "application/json")]] {
            assert_eq!(check(&missing, OCI, "v1").unwrap(), own);
        }
    }

    #[test]
    fn u20_rubbish_is_no_manifest() {
        let typed = [("content-type", media_type::OCI_MANIFEST)];
        for body in [
            "",
            "<html>Please log in</html>",
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            r#""text""#,
            "[]",
            "null",
            &OCI[..OCI.len() - 1],
        ] {
            assert_eq!(
                check(&typed, body, "v1"),
                Err(Wrong::NotAManifest),
                "{body}"
            );
        }
        assert_eq!(check(&[], "{}", "v1"), Err(Wrong::NotAManifest));
    }

    #[test]
    fn u21_a_head_that_does_not_tell_is_not_believed() {
        let digest = Digest::of(OCI.as_bytes()).to_string();
        let tell = |headers: &[(&'static str, &str)], reference: &str| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            told(&map, Some(1), &reference.parse().unwrap()).is_some()
        };
        let typed = ("content-type", media_type::OCI_MANIFEST);
        assert!(tell(&[typed, ("docker-content-digest", &digest)], "v1"));
        assert!(!tell(&[typed], "v1"));
        assert!(!tell(&[typed, ("docker-content-digest", "sha256:0")], "v1"));
        assert!(!tell(&[("docker-content-digest", &digest)], "v1"));
        let other = Digest::of(b"other").to_string();
        assert!(!tell(&[typed, ("docker-content-digest", &digest)], &other));
    }
}
