//! Which cache a command is meant for: one that finds a running proxy with another cache must not tend that.

use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

/// Where the command's configuration has it, as a path from the root.
const PATH: HeaderName = HeaderName::from_static("ecr-proxy-cache-dir");
/// Its device and inode, where the command can see it.
const IDENTITY: HeaderName = HeaderName::from_static("ecr-proxy-cache-identity");

/// A cache's directory, compared by path and by identity: two containers may have it at different paths, and
/// links lead to it.
#[derive(Clone, Debug)]
pub(super) struct CacheDir {
    path: PathBuf,
    identity: Option<String>,
}

impl CacheDir {
    /// The one at `path`, which need not be there.
    pub(super) fn at(path: &Path) -> Self {
        let metadata = fs::metadata(path).ok();
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            identity: metadata.map(|found| format!("{}:{}", found.dev(), found.ino())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says in a question that it is about this cache.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        // A path that no header can hold has a line break in it; without one, any cache is meant.
        if let Ok(path) = HeaderValue::from_bytes(self.path.as_os_str().as_bytes()) {
            headers.insert(PATH, path);
        }
        let identity = self.identity.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(identity)) = identity {
            headers.insert(IDENTITY, identity);
        }
    }

    /// The other cache that a question is about, if it is about another.
    pub(super) fn other(&self, headers: &HeaderMap) -> Option<PathBuf> {
        let path = headers.get(PATH)?.as_bytes().to_vec();
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        let identity = headers.get(IDENTITY).map(HeaderValue::as_bytes);
        let is_same = identity.is_some() && identity == self.identity.as_deref().map(str::as_bytes);
        (!is_same && path != self.path).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_known_by_its_path_or_by_what_is_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("cache")).expect("folder");
        fs::create_dir(path("other")).expect("folder");
        std::os::unix::fs::symlink(path("cache"), path("link")).expect("link");
        let ours = CacheDir::at(&path("cache"));
        let other = |name: &str| {
            let mut headers = HeaderMap::new();
            CacheDir::at(&path(name)).write(&mut headers);
            ours.other(&headers)
        };
        assert_eq!(other("cache"), None);
        assert_eq!(other("link"), None);
        assert_eq!(other("other"), Some(path("other")));
        assert_eq!(other("missing"), Some(path("missing")));
        assert_eq!(ours.other(&HeaderMap::new()), None, "any is meant");
    }
}
