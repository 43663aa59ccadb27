//! Which operation a method and path mean. Read from the right, as a repository may be called
//! `…/blobs`; written for the simulator alone, so that it shares no mistake with the proxy.

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Ping,
    Catalog,
    Tags(&'a str),
    Referrers(&'a str, &'a str),
    /// GET or HEAD.
    Manifest(&'a str, &'a str),
    /// GET or HEAD.
    Blob(&'a str, &'a str),
    PutManifest(&'a str, &'a str),
    DeleteManifest(&'a str, &'a str),
    StartUpload(&'a str),
    /// GET, PATCH, PUT or DELETE of a session.
    Upload(&'a str, &'a str),
    /// A place of the API with a method that ECR does not serve there.
    Unsupported,
}

impl<'a> Route<'a> {
    pub(super) fn parse(method: &str, path: &'a str) -> Option<Self> {
        let reading = matches!(method, "GET" | "HEAD");
        let rest = path
            .strip_prefix("/v2/")
            .or((path == "/v2").then_some(""))?;
        let fixed = match rest {
            "" => Some(Self::Ping),
            "_catalog" => Some(Self::Catalog),
            _ => None,
        };
        if let Some(route) = fixed {
            return Some(if reading { route } else { Self::Unsupported });
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(if reading {
                Self::Tags(name)
            } else {
                Self::Unsupported
            });
        }
        if let Some(name) = rest
            .strip_suffix("/blobs/uploads/")
            .or(rest.strip_suffix("/blobs/uploads"))
        {
            return Some(match method {
                "POST" => Self::StartUpload(name),
                _ => Self::Unsupported,
            });
        }
        let (parent, last) = rest.rsplit_once('/')?;
        if let Some(name) = parent.strip_suffix("/blobs/uploads") {
            return Some(match method {
                "GET" | "PATCH" | "PUT" | "DELETE" => Self::Upload(name, last),
                _ => Self::Unsupported,
            });
        }
        let (name, kind) = parent.rsplit_once('/')?;
        Some(match (kind, method) {
            ("manifests", "GET" | "HEAD") => Self::Manifest(name, last),
            ("manifests", "PUT") => Self::PutManifest(name, last),
            ("manifests", "DELETE") => Self::DeleteManifest(name, last),
            ("blobs", "GET" | "HEAD") => Self::Blob(name, last),
            ("referrers", "GET") => Self::Referrers(name, last),
            ("manifests" | "blobs" | "referrers", _) => Self::Unsupported,
            _ => return None,
        })
    }
}

/// The repository and digest of a path, for the journal.
pub(super) fn subject(path: &str) -> (Option<String>, Option<String>) {
    let digest = |reference: &str| reference.contains(':').then(|| reference.to_owned());
    match Route::parse("GET", path) {
        Some(Route::Manifest(name, reference) | Route::Blob(name, reference)) => {
            (Some(name.into()), digest(reference))
        }
        Some(Route::Referrers(name, reference)) => (Some(name.into()), digest(reference)),
        Some(Route::Tags(name) | Route::Upload(name, _)) => (Some(name.into()), None),
        _ => match Route::parse("POST", path) {
            Some(Route::StartUpload(name)) => (Some(name.into()), None),
            _ => (None, None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_the_right() {
        let cases = [
            ("GET", "/v2/", Some(Route::Ping)),
            ("GET", "/v2/_catalog", Some(Route::Catalog)),
            ("GET", "/v2/a/b/tags/list", Some(Route::Tags("a/b"))),
            (
                "HEAD",
                "/v2/a/blobs/manifests/x",
                Some(Route::Manifest("a/blobs", "x")),
            ),
            (
                "GET",
                "/v2/a/blobs/sha256:0",
                Some(Route::Blob("a", "sha256:0")),
            ),
            (
                "POST",
                "/v2/a/blobs/uploads/",
                Some(Route::StartUpload("a")),
            ),
            (
                "PATCH",
                "/v2/a/blobs/uploads/id",
                Some(Route::Upload("a", "id")),
            ),
            ("DELETE", "/v2/a/blobs/sha256:0", Some(Route::Unsupported)),
            ("GET", "/v2/a", None),
            ("GET", "/v1/", None),
        ];
        for (method, path, expected) in cases {
            assert_eq!(Route::parse(method, path), expected, "{method} {path}");
        }
    }
}
