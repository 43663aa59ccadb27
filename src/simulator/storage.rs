//! The S3 bucket behind blob redirects: signed URLs for GET and nothing else, strict as S3 is.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::connection::{Asked, Service};
use super::content::sha256_hex;
use super::reply::Reply;
use super::shelf::{Admission, Object, Shelf};

pub(super) struct Storage {
    pub(super) shelf: Arc<Shelf>,
}

impl Service for Storage {
    fn subject(&self, path: &str) -> (Option<String>, Option<String>) {
        match self.shelf.object(path) {
            Some(object) => (Some(object.repository), Some(object.digest)),
            None => (None, None),
        }
    }

    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply> {
        let reply = self.decide(&asked);
        let request_id = &sha256_hex(&[asked.path.as_bytes()])[..16].to_uppercase();
        let reply = reply
            .with("server", "AmazonS3")
            .with("x-amz-request-id", request_id)
            .with("x-amz-id-2", &request_id.repeat(4));
        Box::pin(std::future::ready(reply))
    }

    fn expired(&self) -> Reply {
        refusal(403, "AccessDenied", "Request has expired")
    }
}

impl Storage {
    fn decide(&self, asked: &Asked) -> Reply {
        for name in ["authorization", "proxy-authorization", "cookie"] {
            if asked.headers.contains_key(name) {
                return refusal(
                    400,
                    "InvalidArgument",
                    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, \
                     Signature query string parameter or the Authorization header should be \
                     specified",
                );
            }
        }
        let bad_signature = refusal(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. \
             Check your key and signing method.",
        );
        // The method is part of what was signed.
        if asked.method != "GET" {
            return bad_signature;
        }
        let signature = asked
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix("X-Amz-Signature="));
        let Some(signature) = signature else {
            return refusal(403, "AccessDenied", "Access Denied");
        };
        match self.shelf.admit(&asked.path, signature) {
            Admission::Granted(object) => deliver(&object, asked),
            Admission::Expired => self.expired(),
            Admission::BadSignature => bad_signature,
        }
    }
}

fn deliver(object: &Object, asked: &Asked) -> Reply {
    let len = object.source.len();
    let etag = format!("\"{}\"", &sha256_hex(&[object.digest.as_bytes()])[..32]);
    if asked
        .header("if-match")
        .is_some_and(|wanted| wanted != etag)
    {
        return refusal(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        );
    }
    let if_range_fails = asked
        .header("if-range")
        .is_some_and(|wanted| wanted != etag);
    let range = asked.header("range").filter(|_| !if_range_fails);
    let mut reply = Reply::new(200, object.source.clone());
    match range.map_or(Wanted::Whole, |range| wanted(range, len)) {
        Wanted::Whole => {}
        Wanted::Part { first, last } => {
            reply.status = http::StatusCode::PARTIAL_CONTENT;
            reply.first = first;
            reply.len = last - first + 1;
            reply.set("content-range", &format!("bytes {first}-{last}/{len}"));
        }
        Wanted::Nothing => {
            return refusal(
                416,
                "InvalidRange",
                "The requested range is not satisfiable",
            )
            .with("content-range", &format!("bytes */{len}"));
        }
    }
    reply
        .with("accept-ranges", "bytes")
        .with("etag", &etag)
        .with("content-type", "application/octet-stream")
        .with("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { first: u64, last: u64 },
    Nothing,
}

/// S3's reading of a `Range`: one range or the whole, and the whole for what it cannot read.
fn wanted(range: &str, len: u64) -> Wanted {
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .filter(|set| !set.contains(','))
        .and_then(|set| set.split_once('-'))
    else {
        return Wanted::Whole;
    };
    let part = |first: u64, last: u64| {
        if first < len {
            let last = last.min(len - 1);
            Wanted::Part { first, last }
        } else {
            Wanted::Nothing
        }
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => part(first, last),
        (Ok(first), Err(_)) if last.is_empty() => part(first, u64::MAX),
        (Err(_), Ok(0)) if first.is_empty() => Wanted::Nothing,
        (Err(_), Ok(suffix)) if first.is_empty() => part(len.saturating_sub(suffix), u64::MAX),
        _ => Wanted::Whole,
    }
}

/// An error as S3 writes it, in XML.
fn refusal(status: u16, code: &str, message: &str) -> Reply {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>{message}</Message></Error>"
    );
    Reply::new(status, xml.into_bytes()).with("content-type", "application/xml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_s3_does() {
        let part = |first, last| Wanted::Part { first, last };
        for (range, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=5-", part(5, 9)),
            ("bytes=5-99", part(5, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=3-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("bytes=x-1", Wanted::Whole),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
        assert_eq!(wanted("bytes=0-0", 0), Wanted::Nothing);
    }
}
