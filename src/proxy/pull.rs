//! Manifests and blobs, by GET and HEAD.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::body::Said;
use super::error::Refusal;
use super::{Asked, Pulled, Reply};
use crate::access::{Action, Right};
use crate::fill::{Content, Fills, Parts, Want};
use crate::oci::header::{DOCKER_CONTENT_DIGEST, Identity, etag, etag_list_matches};
use crate::oci::{ByteRange, ContentRange, Digest, RangeSet, Reference, RepoKey};
use crate::telemetry::Outcome;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A manifest by tag or digest.
pub(super) async fn manifest(
    fills: &Fills,
    right: &Right,
    repo: &RepoKey,
    reference: &Reference,
    asked: &Asked<'_>,
) -> Result<Reply, Refusal> {
    let found = match right.action() {
        Action::Push => fills.confirm_manifest(right, repo, reference).await?,
        Action::Pull | Action::Delete => fills.manifest(right, repo, reference).await?,
    };
    let manifest = found.what;
    asked.tell(|| Pulled::Manifest(repo.clone(), manifest.clone()));
    if !accepts(asked.headers, &manifest.media_type) {
        return Err(Refusal::NotAccepted(manifest.media_type.to_string()));
    }
    let mut reply = match unchanged(asked.headers, manifest.digest) {
        true => Reply::new(StatusCode::NOT_MODIFIED, Said::nothing()),
        false => Reply::new(StatusCode::OK, Said::text(manifest.bytes.clone())),
    };
    if let Some(media_type) = &manifest.content_type {
        reply.say(header::CONTENT_TYPE, media_type.clone());
    }
    identify(&mut reply, manifest.identity.clone());
    Ok(reply.found(found.how))
}

/// A blob, or ranges of it.
pub(super) async fn blob(
    fills: &Fills,
    right: &Right,
    repo: &RepoKey,
    digest: Digest,
    asked: &Asked<'_>,
) -> Result<Reply, Refusal> {
    let pass = match right.action() {
        Action::Push => fills.confirm(right, repo, digest).await?,
        Action::Pull | Action::Delete => fills.prove(right, repo, digest).await?,
    };
    let mut reply = if unchanged(asked.headers, digest) {
        let mut reply = Reply::new(StatusCode::NOT_MODIFIED, Said::nothing());
        // Nothing but the proof was needed; a 304 has the headers that a 200 would (RFC 9110, 15.4.5).
        reply.outcome = Outcome::Hit;
        reply
    } else if asked.is_head {
        let found = fills.size(&pass).await?;
        let mut reply = Reply::typed(StatusCode::OK, OCTETS, Said::nothing());
        reply.length = Some(found.what);
        reply.found(found.how)
    } else {
        let want = Want {
            ranges: wanted_ranges(asked.headers, digest),
            mapped: asked.is_plain,
            client: Some(asked.client),
        };
        let found = fills.open(&pass, &want).await?;
        if found.how.outcome() != Outcome::Bypass {
            asked.tell(|| Pulled::Blob(repo.clone(), digest));
        }
        reply_with(found.what, digest).found(found.how)
    };
    reply.say(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    identify(&mut reply, Identity::of(digest));
    Ok(reply)
}

fn reply_with(content: Content, digest: Digest) -> Reply {
    let Content { size, parts } = content;
    match parts {
        Parts::Whole(reader) => {
            let said = reader.map_or_else(Said::nothing, Said::read);
            Reply::typed(StatusCode::OK, OCTETS, said)
        }
        Parts::One(range, reader) => {
            let said = Said::read(reader);
            let mut reply = Reply::typed(StatusCode::PARTIAL_CONTENT, OCTETS, said);
            reply.say(header::CONTENT_RANGE, content_range(range, size));
            reply
        }
        Parts::Many(parts) => {
            // The digest of the blob cannot stand in its own content.
            let boundary = digest.hex();
            let mut said = Said::nothing();
            for (range, reader) in parts {
                let range = ContentRange {
                    range,
                    size: Some(size),
                };
                said.push_text(format!(
                    "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {range}\r\n\r\n"
                ));
                said.push_read(reader);
            }
            said.push_text(format!("\r\n--{boundary}--\r\n"));
            let media_type = format!("multipart/byteranges; boundary={boundary}");
            let media_type = HeaderValue::from_str(&media_type).unwrap_or(OCTETS);
            Reply::typed(StatusCode::PARTIAL_CONTENT, media_type, said)
        }
    }
}

fn content_range(range: ByteRange, size: u64) -> HeaderValue {
    let text = Bytes::from(
        ContentRange {
            range,
            size: Some(size),
        }
        .to_string(),
    );
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static("bytes */*"))
}

/// The ranges asked for, unless `If-Range` says that they are meant for other content.
fn wanted_ranges(headers: &HeaderMap, digest: Digest) -> Option<RangeSet> {
    let ranges = RangeSet::parse(headers.get(header::RANGE)?.to_str().ok()?)?;
    match headers.get(header::IF_RANGE) {
        // RFC 9110, 13.1.5: a strong comparison, and a date never matches what has no date.
        Some(validator) if *validator != Identity::of(digest).etag => None,
        _ => Some(ranges),
    }
}

/// Whether `If-None-Match` says that the client has this very content.
fn unchanged(headers: &HeaderMap, digest: Digest) -> bool {
    let mut lists = headers.get_all(header::IF_NONE_MATCH).iter();
    lists.any(|list| {
        list.to_str()
            .is_ok_and(|list| etag_list_matches(list, &etag(digest)))
    })
}

fn identify(reply: &mut Reply, Identity { etag, digest }: Identity) {
    reply.say(header::ETAG, etag);
    reply.say(DOCKER_CONTENT_DIGEST, digest);
}

/// Whether a client takes a media type. docker sends one `Accept` line a type, others one list; a client
/// that sends none takes anything. Weights are not looked at: there is one variant.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let mut lines = headers.get_all(header::ACCEPT).iter().peekable();
    if lines.peek().is_none() {
        return true;
    }
    // Parameters do not make another type: some registries add a charset.
    let media_type = media_type.split(';').next().unwrap_or(media_type).trim();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|element| element.split(';').next())
        .map(str::trim)
        .any(|accepted| match accepted.strip_suffix("/*") {
            Some("*") => true,
            Some(family) => media_type.split('/').next() == Some(family),
            None => accepted.eq_ignore_ascii_case(media_type),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn p15_accept_in_one_line_or_several() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        for (lines, accepted) in [
            (&[][..], true),
            (&["*/*"][..], true),
            (
                &["text/html", "application/vnd.oci.image.manifest.v1+json"][..],
                true,
            ),
            (
                &["text/html, application/vnd.oci.image.manifest.v1+json;q=0.5"][..],
                true,
            ),
            (&["application/*"][..], true),
            (
                &["application/vnd.docker.distribution.manifest.v2+json"][..],
                false,
            ),
            (&["text/*"][..], false),
        ] {
            assert_eq!(
                accepts(&headers(header::ACCEPT, lines), oci),
                accepted,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn p15_parameters_do_not_make_another_type() {
        let plain = "application/vnd.oci.image.manifest.v1+json";
        let with_charset = format!("{plain}; charset=utf-8");
        assert!(accepts(&headers(header::ACCEPT, &[plain]), &with_charset));
    }

    #[test]
    fn p14_conditions_name_the_digest() {
        let digest = Digest::of(b"");
        let quoted = "\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"";
        assert!(unchanged(
            &headers(header::IF_NONE_MATCH, &["\"x\"", quoted]),
            digest
        ));
        assert!(unchanged(&headers(header::IF_NONE_MATCH, &["*"]), digest));
        assert!(!unchanged(
            &headers(header::IF_NONE_MATCH, &["\"x\""]),
            digest
        ));

        let mut ranged = headers(header::RANGE, &["bytes=1-"]);
        assert!(wanted_ranges(&ranged, digest).is_some());
        ranged.insert(header::IF_RANGE, HeaderValue::from_static(quoted));
        assert!(wanted_ranges(&ranged, digest).is_some());
        ranged.insert(header::IF_RANGE, HeaderValue::from_static("\"other\""));
        assert!(wanted_ranges(&ranged, digest).is_none());
    }
}
