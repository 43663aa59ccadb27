//! Header names and values of the distribution API that `http` does not define.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Digest;

/// The digest of the content in the answer.
pub const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `registry/2.0`; old clients look for it on `/v2/`.
pub const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
/// The id of an upload; some clients show it.
pub const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// The least bytes that a part of an upload has, the last part apart.
pub const OCI_CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// Tells a pushing client that the registry keeps referrers itself.
pub const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// Tells that a referrers answer is filtered.
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// How the cache answered: `hit`, `miss`, `joined`, `stale` or `bypass`.
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
/// The id that log, error message and answer share.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The headers that tell which content an answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `ETag` (RFC 9110, 8.8.3): the digest, quoted. It is a strong one.
    pub etag: HeaderValue,
    /// [`DOCKER_CONTENT_DIGEST`].
    pub digest: HeaderValue,
}

impl Identity {
    /// That of the content with this digest.
    pub fn of(digest: Digest) -> Self {
        let etag = Bytes::from(etag(digest));
        let bare = etag.slice(1..etag.len() - 1);
        // A digest is made of letters, digits and a colon.
        let value =
            |text| HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""));
        Self {
            etag: value(etag),
            digest: value(bare),
        }
    }
}

/// The entity tag of the content with this digest.
pub fn etag(digest: Digest) -> String {
    ["\"", &*digest.text(), "\""].concat()
}

/// How long `Retry-After` (RFC 9110, 10.2.3) asks for from `now` on; `None` without a usable one. Nothing says
/// that it is a sensible time.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// The target of the `rel="next"` link of a `Link` header (RFC 8288), as it stands between `<` and `>`.
pub fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        // Parameters reach to the next link-value; a comma inside a quoted parameter does not end them.
        let parameters = after
            .split_once('<')
            .map_or(after, |(parameters, _)| parameters);
        let is_next = parameters
            .trim_end()
            .trim_end_matches(',')
            .split(';')
            .filter_map(|parameter| parameter.trim().split_once('='))
            .any(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value
                        .trim()
                        .trim_matches('"')
                        .split_ascii_whitespace()
                        .any(|rel| rel.eq_ignore_ascii_case("next"))
            });
        if is_next {
            return Some(target);
        }
        rest = after;
    }
}

/// A challenge of a `WWW-Authenticate` header (RFC 9110, 11.6.1) of the two schemes that registries use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Send user and password.
    Basic,
    /// Fetch a token at `realm` for `service` and `scope`.
    Bearer {
        /// The address of the token service. Not to be trusted: the caller checks it.
        realm: String,
        /// The `service` parameter.
        service: Option<String>,
        /// The `scope` parameter.
        scope: Option<String>,
        /// The `error` parameter (RFC 6750, 3.1): what was wrong with the token that came, if one did.
        error: Option<String>,
    },
}

impl Challenge {
    /// Reads the challenges of a header, of which there may be several, with commas between them as between their
    /// parameters. Other schemes, and Bearer without a realm, are left out, and so is what cannot be read, to the
    /// end.
    pub fn all(header: &str) -> Vec<Self> {
        let mut all = Vec::new();
        let mut begun: Option<Begun<'_>> = None;
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
            let end = |c: char| matches!(c, ',' | '=' | '"') || c.is_ascii_whitespace();
            let (word, after) = rest.split_at(rest.find(end).unwrap_or(rest.len()));
            if word.is_empty() {
                break;
            }
            rest = after.trim_start();
            match (&mut begun, rest.strip_prefix('=')) {
                (Some(challenge), Some(value)) => {
                    let Some((value, after)) = parameter_value(value.trim_start()) else {
                        break;
                    };
                    challenge.parameter(word, value);
                    rest = after;
                }
                // What belongs to no name is a scheme.
                _ => all.extend(begun.replace(Begun::new(word)).and_then(Begun::end)),
            }
        }
        all.extend(begun.and_then(Begun::end));
        all
    }
}

/// A challenge whose parameters are being read.
struct Begun<'a> {
    scheme: &'a str,
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
    error: Option<String>,
}

impl<'a> Begun<'a> {
    fn new(scheme: &'a str) -> Self {
        Self {
            scheme,
            realm: None,
            service: None,
            scope: None,
            error: None,
        }
    }

    fn parameter(&mut self, name: &str, value: String) {
        let place = match name.to_ascii_lowercase().as_str() {
            "realm" => &mut self.realm,
            "service" => &mut self.service,
            "scope" => &mut self.scope,
            "error" => &mut self.error,
            _ => return,
        };
        *place = Some(value);
    }

    fn end(self) -> Option<Challenge> {
        match self.scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: self.realm?,
                service: self.service,
                scope: self.scope,
                error: self.error,
            }),
            _ => None,
        }
    }
}

/// A token or quoted-string (RFC 9110, 5.6.4) and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.trim_end().to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// True when an `If-None-Match` or `If-Match` list (RFC 9110, 13.1) names the entity tag `etag`, given
/// with its quotes, or is `*`. The comparison is weak, as `If-None-Match` asks.
pub fn etag_list_matches(header: &str, etag: &str) -> bool {
    header.split(',').map(str::trim).any(|candidate| {
        candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == etag
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_link_is_found_among_others() {
        let ecr = r#"<https://1.dkr.ecr.us-west-2.amazonaws.com/v2/app/tags/list?last=abc%3D>; rel="next""#;
        assert_eq!(
            next_link(ecr),
            Some("https://1.dkr.ecr.us-west-2.amazonaws.com/v2/app/tags/list?last=abc%3D")
        );
        assert_eq!(next_link("</a>; rel=prev, </b>; rel=next"), Some("/b"));
        assert_eq!(
            next_link(r#"</a>; title="x, y"; rel="last next""#),
            Some("/a")
        );
        assert_eq!(next_link("</a>; rel=prev"), None);
        assert_eq!(next_link("no link"), None);
    }

    #[test]
    fn challenges_of_the_known_registries() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#;
        assert_eq!(
            Challenge::all(hub),
            [Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/alpine:pull,push".into()),
                error: None,
            }]
        );
        let short = r#"Bearer realm="https://auth.docker.io/token",error="insufficient_scope""#;
        assert!(matches!(
            &*Challenge::all(short),
            [Challenge::Bearer { error: Some(error), .. }] if error == "insufficient_scope"
        ));
        let ecr = r#"Basic realm="https://1.dkr.ecr.us-west-2.amazonaws.com/",service="ecr.amazonaws.com""#;
        assert_eq!(Challenge::all(ecr), [Challenge::Basic]);
    }

    #[test]
    fn several_challenges_may_stand_in_one_line() {
        let bearer = |realm: &str| Challenge::Bearer {
            realm: realm.into(),
            service: None,
            scope: None,
            error: None,
        };
        for (header, challenges) in [
            (
                r#"Basic realm="a, b", Bearer realm="c""#,
                vec![Challenge::Basic, bearer("c")],
            ),
            (
                "bearer realm = a , , charset=x,BASIC",
                vec![bearer("a"), Challenge::Basic],
            ),
            ("Negotiate abc==, Bearer realm=a", vec![bearer("a")]),
            ("Negotiate, NTLM, Basic realm=a", vec![Challenge::Basic]),
            (
                r#"Basic, Bearer realm="unterminated"#,
                vec![Challenge::Basic],
            ),
            (r#"Bearer realm="a\"b\\""#, vec![bearer(r#"a"b\"#)]),
            (r#"Basic realm="unterminated"#, vec![Challenge::Basic]),
            ("Bearer service=x", vec![]),
            ("Bearer =x", vec![]),
            ("realm=x, Basic", vec![]),
            ("Negotiate abc", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(Challenge::all(header), challenges, "{header}");
        }
    }

    #[test]
    fn entity_tags_compare_weakly() {
        assert!(etag_list_matches(r#""a", W/"b""#, r#""b""#));
        assert!(etag_list_matches("*", r#""b""#));
        assert!(!etag_list_matches(r#""a""#, r#""b""#));
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parsers_panic(text in "(Bearer )?[a-z=\"\\\\,;<> ]{0,40}|.*") {
            let _ = next_link(&text);
            let _ = Challenge::all(&text);
            let _ = etag_list_matches(&text, "\"x\"");
        }
    }
}
