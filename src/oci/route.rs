//! The paths of the distribution API (distribution-spec "Endpoints"), parsed once and printed back.

use std::fmt;

use memchr::memrchr;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::digest::{Digest, ParseDigestError};
use super::reference::{ParseNameError, ParseReferenceError, Reference, RepositoryName};

/// What is escaped in a query value: everything but RFC 3986's unreserved characters.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a path and its query ask for, whatever the method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `/v2/`: does this host speak the API, and to me (end-1)?
    Ping,
    /// `/v2/<name>/manifests/<reference>` (end-3, end-7, end-9).
    Manifest {
        /// The repository.
        repository: RepositoryName,
        /// Tag or digest.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>` (end-2, end-10).
    Blob {
        /// The repository.
        repository: RepositoryName,
        /// The blob.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list` (end-8).
    Tags {
        /// The repository.
        repository: RepositoryName,
        /// `n`: how many names at most. Saturates at `u32::MAX`; the answerer clamps it.
        limit: Option<u32>,
        /// `last`: where the page before ended.
        last: Option<String>,
    },
    /// `/v2/<name>/referrers/<digest>` (end-12).
    Referrers {
        /// The repository.
        repository: RepositoryName,
        /// The subject.
        digest: Digest,
        /// `artifactType`: only referrers of this type.
        artifact_type: Option<String>,
    },
    /// `/v2/<name>/blobs/uploads/`: where uploads begin (end-4, end-11).
    Uploads {
        /// The repository.
        repository: RepositoryName,
        /// `digest`: the body is the whole blob.
        digest: Option<Digest>,
        /// `mount` and `from`: which blob of which other repository would spare the upload. Of a kind that
        /// nothing here is, it is no wish: an upload follows.
        mount: Option<(Digest, RepositoryName)>,
    },
    /// One upload (end-5, end-6, end-13, end-14).
    Upload {
        /// The repository.
        repository: RepositoryName,
        /// Which upload: at most 128 letters, digits, `-` and `_`.
        session: String,
        /// `digest`: what all of it is.
        digest: Option<Digest>,
    },
    /// `/v2/_catalog`, Docker's list of repositories.
    Catalog {
        /// `n`: how many names at most. Saturates at `u32::MAX`; the answerer clamps it.
        limit: Option<u32>,
        /// `last`: where the page before ended.
        last: Option<String>,
    },
}

/// Why a path is not one of the API's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRequestError {
    /// No path of the API.
    #[error("no such path in the distribution API")]
    NotFound,
    /// The repository name breaks the grammar.
    #[error("{0}")]
    Name(#[from] ParseNameError),
    /// The digest of a blob or subject breaks the grammar.
    #[error("{0}")]
    Digest(#[from] ParseDigestError),
    /// The reference of a manifest breaks the grammar.
    #[error("{0}")]
    Reference(#[from] ParseReferenceError),
    /// A query parameter that decides something is malformed or repeated.
    #[error("query parameter {0} is malformed or repeated")]
    Query(&'static str),
}

impl Request {
    /// Reads the path and query of a request target.
    ///
    /// A repository may be called `…/blobs` or `…/manifests`, so the path is read from its right end.
    /// Nothing in a valid path needs percent-encoding, so an encoded byte is a malformed name.
    ///
    /// # Errors
    /// Which part is malformed.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, ParseRequestError> {
        let rest = match path {
            "/v2" | "/v2/" => return Ok(Self::Ping),
            "/v2/_catalog" => {
                return Ok(Self::Catalog {
                    limit: limit(query)?,
                    last: single(query, "last")?,
                });
            }
            path => path
                .strip_prefix("/v2/")
                .ok_or(ParseRequestError::NotFound)?,
        };
        let (before, last) = last_of(rest).ok_or(ParseRequestError::NotFound)?;
        let (before, word) = last_of(before).unwrap_or(("", before));
        match word {
            "manifests" => Ok(Self::Manifest {
                repository: before.parse()?,
                reference: last.parse()?,
            }),
            "blobs" if last != "uploads" => Ok(Self::Blob {
                repository: before.parse()?,
                digest: last.parse()?,
            }),
            "blobs" => Self::uploads(before.parse()?, query),
            "uploads" => {
                let repository = before
                    .strip_suffix("/blobs")
                    .ok_or(ParseRequestError::NotFound)?;
                let repository = repository.parse()?;
                match last {
                    "" => Self::uploads(repository, query),
                    session if is_session(session) => Ok(Self::Upload {
                        repository,
                        session: session.to_owned(),
                        digest: digest(query)?,
                    }),
                    _ => Err(ParseRequestError::NotFound),
                }
            }
            "tags" if last == "list" => Self::tags(before.parse()?, query),
            "referrers" => Self::referrers(before.parse()?, last.parse()?, query),
            _ => Err(ParseRequestError::NotFound),
        }
    }

    fn uploads(repository: RepositoryName, query: Option<&str>) -> Result<Self, ParseRequestError> {
        let mount = single(query, "mount")?.and_then(|mount| mount.parse().ok());
        let from = single(query, "from")?.and_then(|from| from.parse().ok());
        Ok(Self::Uploads {
            repository,
            digest: digest(query)?,
            mount: mount.zip(from),
        })
    }

    fn tags(repository: RepositoryName, query: Option<&str>) -> Result<Self, ParseRequestError> {
        Ok(Self::Tags {
            repository,
            limit: limit(query)?,
            last: single(query, "last")?,
        })
    }

    fn referrers(
        repository: RepositoryName,
        digest: Digest,
        query: Option<&str>,
    ) -> Result<Self, ParseRequestError> {
        Ok(Self::Referrers {
            repository,
            digest,
            artifact_type: single(query, "artifactType")?,
        })
    }

    /// The methods that the API has for it, as `Allow` lists them (RFC 9110, 10.2.1).
    pub fn methods(&self) -> &'static str {
        match self {
            Self::Ping | Self::Catalog { .. } | Self::Tags { .. } | Self::Referrers { .. } => {
                "GET, HEAD"
            }
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }

    /// The repository it is about, if it is about one.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Ping | Self::Catalog { .. } => None,
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository, .. }
            | Self::Referrers { repository, .. }
            | Self::Uploads { repository, .. }
            | Self::Upload { repository, .. } => Some(repository),
        }
    }
}

/// What is before and behind the last slash.
fn last_of(path: &str) -> Option<(&str, &str)> {
    let slash = memrchr(b'/', path.as_bytes())?;
    Some((&path[..slash], &path[slash + 1..]))
}

fn is_session(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    text.len() <= 128 && text.bytes().all(is_plain)
}

fn limit(query: Option<&str>) -> Result<Option<u32>, ParseRequestError> {
    match single(query, "n")? {
        None => Ok(None),
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(n.parse().unwrap_or(u32::MAX)))
        }
        Some(_) => Err(ParseRequestError::Query("n")),
    }
}

fn digest(query: Option<&str>) -> Result<Option<Digest>, ParseRequestError> {
    Ok(single(query, "digest")?
        .map(|digest| digest.parse())
        .transpose()?)
}

/// The decoded value of a parameter that may stand once. Parameters that nobody asks for are dropped.
fn single(query: Option<&str>, name: &'static str) -> Result<Option<String>, ParseRequestError> {
    let Some(query) = query else {
        return Ok(None);
    };
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    });
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let decoded = percent_decode_str(value)
        .decode_utf8()
        .ok()
        .filter(|text| !text.chars().any(char::is_control));
    match (decoded, values.next()) {
        (Some(decoded), None) => Ok(Some(decoded.into_owned())),
        _ => Err(ParseRequestError::Query(name)),
    }
}

/// The decoded value of the query parameter `name` in a request target, if it is there: for parameters
/// that stand beside any request, such as containerd's `ns`.
///
/// # Errors
/// [`ParseRequestError::Query`] where it is repeated or malformed.
pub fn query_value(
    query: Option<&str>,
    name: &'static str,
) -> Result<Option<String>, ParseRequestError> {
    single(query, name)
}

impl fmt::Display for Request {
    /// The path and query, as a client would write them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.write_str("/v2/"),
            Self::Catalog { limit, last } => {
                f.write_str("/v2/_catalog")?;
                write_page(f, *limit, last.as_deref())
            }
            Self::Manifest {
                repository,
                reference,
            } => {
                write!(f, "/v2/{repository}/manifests/{reference}")
            }
            Self::Blob { repository, digest } => write!(f, "/v2/{repository}/blobs/{digest}"),
            Self::Uploads {
                repository,
                digest,
                mount,
            } => {
                write!(f, "/v2/{repository}/blobs/uploads/")?;
                let (mount, from) = mount.as_ref().map_or((None, None), |(digest, from)| {
                    (
                        Some(format!("mount={digest}")),
                        Some(format!("from={}", escaped(from.as_str()))),
                    )
                });
                write_query(
                    f,
                    [digest.map(|digest| format!("digest={digest}")), mount, from],
                )
            }
            Self::Upload {
                repository,
                session,
                digest,
            } => {
                write!(f, "/v2/{repository}/blobs/uploads/{session}")?;
                write_query(f, [digest.map(|digest| format!("digest={digest}"))])
            }
            Self::Tags {
                repository,
                limit,
                last,
            } => {
                write!(f, "/v2/{repository}/tags/list")?;
                write_page(f, *limit, last.as_deref())
            }
            Self::Referrers {
                repository,
                digest,
                artifact_type,
            } => {
                write!(f, "/v2/{repository}/referrers/{digest}")?;
                let artifact_type = artifact_type
                    .as_deref()
                    .map(|artifact_type| format!("artifactType={}", escaped(artifact_type)));
                write_query(f, [artifact_type])
            }
        }
    }
}

/// A value as it stands in a query.
pub fn escaped(value: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(value, QUERY_VALUE)
}

fn write_page(f: &mut fmt::Formatter<'_>, limit: Option<u32>, last: Option<&str>) -> fmt::Result {
    let limit = limit.map(|limit| format!("n={limit}"));
    let last = last.map(|last| format!("last={}", escaped(last)));
    write_query(f, [limit, last])
}

fn write_query<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    pairs: [Option<String>; N],
) -> fmt::Result {
    for (at, pair) in pairs.into_iter().flatten().enumerate() {
        write!(f, "{}{pair}", if at == 0 { '?' } else { '&' })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(target: &str) -> Result<Request, ParseRequestError> {
        match target.split_once('?') {
            Some((path, query)) => Request::parse(path, Some(query)),
            None => Request::parse(target, None),
        }
    }

    #[test]
    fn every_endpoint_parses_and_prints_back() {
        let digest = Digest::of(b"x");
        for target in [
            "/v2/".to_owned(),
            "/v2/_catalog".to_owned(),
            "/v2/_catalog?n=5&last=team%2Fapp".to_owned(),
            "/v2/app/manifests/latest".to_owned(),
            format!("/v2/team/app/manifests/{digest}"),
            format!("/v2/team/app/blobs/{digest}"),
            "/v2/app/blobs/uploads/".to_owned(),
            format!("/v2/app/blobs/uploads/?digest={digest}"),
            format!("/v2/app/blobs/uploads/?mount={digest}&from=team%2Fbase"),
            "/v2/app/blobs/uploads/4f-_A".to_owned(),
            format!("/v2/app/blobs/uploads/4f?digest={digest}"),
            "/v2/app/tags/list".to_owned(),
            "/v2/app/tags/list?n=5&last=a%3Db%2B".to_owned(),
            format!("/v2/app/referrers/{digest}"),
            format!("/v2/app/referrers/{digest}?artifactType=a%2Fb"),
        ] {
            let request = parse(&target).unwrap_or_else(|error| panic!("{target}: {error}"));
            assert_eq!(request.to_string(), target);
        }
        assert_eq!(parse("/v2"), Ok(Request::Ping));
    }

    #[test]
    fn repositories_may_be_called_like_endpoints() {
        for (target, name) in [
            ("/v2/a/blobs/manifests/latest", "a/blobs"),
            ("/v2/manifests/manifests/latest", "manifests"),
            ("/v2/tags/list/tags/list", "tags/list"),
            ("/v2/a/blobs/uploads/some-session", "a"),
            ("/v2/a/blobs/uploads", "a"),
        ] {
            let request = parse(target).unwrap();
            assert_eq!(request.repository().unwrap().as_str(), name, "{target}");
        }
    }

    #[test]
    fn p08_escapes_from_the_name_are_refused() {
        for target in [
            "/v2/../manifests/latest",
            "/v2/a/../b/manifests/latest",
            "/v2//a/manifests/latest",
            "/v2/a%2fb/manifests/latest",
            "/v2/%2e%2e/manifests/latest",
            r"/v2/a\b/manifests/latest",
            "/v2/A/manifests/latest",
            "/v2/a;b/manifests/latest",
            "/v2/manifests/latest",
        ] {
            assert!(
                matches!(parse(target), Err(ParseRequestError::Name(_))),
                "{target}"
            );
        }
        for target in [
            "/",
            "/v1/",
            "/V2/",
            "/v2/a",
            "/v2/a/tags/other",
            "/v2/a/b/c",
            "//v2/",
            "/v2/a/tags/list/",
        ] {
            assert_eq!(parse(target), Err(ParseRequestError::NotFound), "{target}");
        }
    }

    #[test]
    fn p09_a_digest_must_be_one() {
        for target in [
            "/v2/a/blobs/latest",
            "/v2/a/blobs/sha256:ab",
            "/v2/a/referrers/latest",
        ] {
            assert!(
                matches!(parse(target), Err(ParseRequestError::Digest(_))),
                "{target}"
            );
        }
        assert!(matches!(
            parse("/v2/a/manifests/sha256:zz"),
            Err(ParseRequestError::Reference(ParseReferenceError::Digest(_)))
        ));
    }

    #[test]
    fn p10_queries() {
        let limit = |target: &str| match parse(target) {
            Ok(Request::Tags { limit, .. }) => Ok(limit),
            Ok(other) => panic!("{other}"),
            Err(error) => Err(error),
        };
        assert_eq!(limit("/v2/a/tags/list?n=1000000000000"), Ok(Some(u32::MAX)));
        assert_eq!(limit("/v2/a/tags/list?n=0&ns=evil-host&x=y"), Ok(Some(0)));
        assert_eq!(
            limit("/v2/a/tags/list?n=-1"),
            Err(ParseRequestError::Query("n"))
        );
        assert_eq!(
            limit("/v2/a/tags/list?n=1&n=2"),
            Err(ParseRequestError::Query("n"))
        );
        assert_eq!(
            limit("/v2/a/tags/list?last=%0d%0a"),
            Err(ParseRequestError::Query("last"))
        );
        assert_eq!(
            limit("/v2/a/tags/list?last=%ff"),
            Err(ParseRequestError::Query("last"))
        );
    }

    #[test]
    fn p10_what_an_upload_asks_for_is_read_once_or_not_at_all() {
        let digest = Digest::of(b"x");
        let uploads = |query: &str| parse(&format!("/v2/a/blobs/uploads/?{query}"));
        let other = Digest::of(b"y");
        for query in [
            format!("digest={digest}&digest={other}"),
            format!("mount={digest}&mount={other}&from=b"),
            format!("mount={digest}&from=b&from=c"),
        ] {
            assert!(
                matches!(uploads(&query), Err(ParseRequestError::Query(_))),
                "{query}"
            );
        }
        assert!(matches!(
            uploads("digest=sha256:short"),
            Err(ParseRequestError::Digest(_))
        ));
        let none = Ok(Request::Uploads {
            repository: "a".parse().unwrap(),
            digest: None,
            mount: None,
        });
        for query in [
            format!("mount={digest}"),
            format!("mount={digest}&from=../b"),
            "mount=sha512:00&from=b".to_owned(),
            "from=b&ns=evil-host&state=x".to_owned(),
        ] {
            assert_eq!(uploads(&query), none, "{query}");
        }
        for session in ["a.b", "a%2fb", &"a".repeat(129)] {
            let target = format!("/v2/a/blobs/uploads/{session}");
            assert_eq!(parse(&target), Err(ParseRequestError::NotFound), "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_to_the_same_request(target in r"/v2/[a-z/.%-]{0,12}/(manifests|blobs|tags|referrers|uploads)/[a-z:0-9]{0,8}(\?[a-z=&%0-9]{0,12})?|.*") {
            if let Ok(request) = parse(&target) {
                prop_assert_eq!(parse(&request.to_string()), Ok(request));
            }
        }
    }
}
