//! Every parser that meets bytes of somebody else, as something that takes any bytes: for `fuzz/run`, and for
//! the replay of the corpora as an ordinary test.
//!
//! Each fails by a panic, and promises more than not to: what was read prints to the same again, stays within
//! its bounds, and does not lead out of its place. Entries of what a module keeps to itself lie beside it.

use std::path::Path;

use crate::access::Users;
use crate::config::{Config, Files, Flags, ProcessEnvironment, Sources};
use crate::oci::header::{Challenge, etag_list_matches, next_link};
use crate::oci::{
    ContentRange, Digest, ImageName, ImagePattern, Manifest, Pattern, Platform, RangeSet,
    Reference, Referrers, RepositoryName, Request, Tag, media_type,
};

pub use crate::access::fuzz_authorization as authorization;
pub use crate::cache::{fuzz_bundle as bundle, fuzz_records as records};
pub use crate::server::{fuzz_frames as frames, fuzz_head as head};
pub use crate::upstream::fuzz_token_reply as token_reply;

/// A name, and what it is called with.
pub type Target = (&'static str, fn(&[u8]));

/// All there are.
pub const TARGETS: &[Target] = &[
    ("authorization", authorization),
    ("bundle", bundle),
    ("challenge", challenge),
    ("configuration", configuration),
    ("digest", digest),
    ("frames", frames),
    ("head", head),
    ("htpasswd", htpasswd),
    ("image", image),
    ("link", link),
    ("manifest", manifest),
    ("name", name),
    ("range", range),
    ("records", records),
    ("reference", reference),
    ("request", request),
    ("token_reply", token_reply),
];

/// What is read from a text has to print to a text that is read as the same.
macro_rules! prints_to_the_same {
    ($text:expr, $what:ty) => {
        if let Ok(value) = $text.parse::<$what>() {
            let printed = value.to_string();
            let again: $what = printed.parse().expect("what was printed is read");
            assert_eq!(again.to_string(), printed);
            Some(value)
        } else {
            None
        }
    };
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// Names of repositories.
pub fn name(data: &[u8]) {
    if let Some(name) = prints_to_the_same!(text(data), RepositoryName) {
        let name = name.as_str();
        assert!(name.len() <= 255, "{name:?}");
        let mut parts = name.split('/');
        assert!(parts.all(|part| !part.is_empty() && !part.starts_with('.')));
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        assert!(name.chars().all(is_plain), "{name:?}");
    }
}

/// Tags and references.
pub fn reference(data: &[u8]) {
    prints_to_the_same!(text(data), Reference);
    if let Some(tag) = prints_to_the_same!(text(data), Tag) {
        assert!(!tag.as_str().is_empty() && tag.as_str().len() <= 128);
        assert!(!tag.as_str().contains(['/', ':', '@', '\0']));
    }
}

/// Digests.
pub fn digest(data: &[u8]) {
    if let Some(digest) = prints_to_the_same!(text(data), Digest) {
        assert_eq!(text(data), digest.to_string());
    }
}

/// Image names, patterns and platforms as people write them.
pub fn image(data: &[u8]) {
    prints_to_the_same!(text(data), ImageName);
    prints_to_the_same!(text(data), ImagePattern);
    prints_to_the_same!(text(data), Platform);
    if let Some((pattern, name)) = text(data).split_once('\n')
        && let Some(pattern) = prints_to_the_same!(pattern, Pattern)
    {
        pattern.matches(name);
    }
}

/// Targets of requests.
pub fn request(data: &[u8]) {
    let target = text(data);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if let Ok(request) = Request::parse(path, query) {
        let printed = request.to_string();
        let (path, query) = match printed.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*printed, None),
        };
        let again = Request::parse(path, query).expect("what was printed is read");
        assert_eq!(again, request);
    }
}

/// `Range` and `Content-Range`.
pub fn range(data: &[u8]) {
    let (size, header) = match data.split_first_chunk::<8>() {
        Some((size, header)) => (u64::from_le_bytes(*size), header),
        None => (1000, data),
    };
    if let Some(Ok(ranges)) = RangeSet::parse(text(header)).map(|set| set.resolve(size)) {
        for range in &ranges {
            assert!(range.len() > 0 && range.start + range.len() <= size);
        }
    }
    prints_to_the_same!(text(header), ContentRange);
}

/// `WWW-Authenticate` of an upstream.
pub fn challenge(data: &[u8]) {
    let challenges = Challenge::all(text(data));
    assert!(challenges.len() <= data.len());
    for challenge in challenges {
        if let Challenge::Bearer { realm, .. } = challenge {
            assert!(realm.len() <= data.len());
        }
    }
}

/// `Link` of an upstream, and the lists of entity tags of a client.
pub fn link(data: &[u8]) {
    if let Some(target) = next_link(text(data)) {
        assert!(text(data).contains(target));
    }
    etag_list_matches(text(data), "\"sha256:0\"");
}

/// Manifests, indexes and lists of referrers, by the types that clients and registries give them.
pub fn manifest(data: &[u8]) {
    for kind in [
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_LIST,
        "application/json",
    ] {
        if let Ok(manifest) = Manifest::parse(kind, data) {
            let named = manifest.blobs().chain(manifest.children()).count();
            assert!(named <= data.len());
        }
    }
    if let Ok(referrers) = Referrers::from_index(data) {
        let count = referrers.digests().count();
        let again = Referrers::from_index(referrers.to_index().as_bytes()).expect("our own");
        assert_eq!(again.digests().count(), count);
    }
}

/// The file of users.
pub fn htpasswd(data: &[u8]) {
    match Users::parse(text(data)) {
        Ok(users) => drop(format!("{users:?}")),
        Err(faults) => {
            for fault in faults.0 {
                assert!(fault.line >= 1 && fault.line <= text(data).lines().count());
                let line = text(data).lines().nth(fault.line - 1).unwrap_or_default();
                let (name, hash) = line.split_once(':').unwrap_or_default();
                // No word of ours is as long as a hash.
                let is_one = hash.len() >= 30 && !hash.contains(char::is_whitespace);
                let is_told = is_one && !name.contains(hash) && fault.reason.contains(hash);
                assert!(!is_told, "a hash is told");
            }
        }
    }
}

/// The configuration file.
pub fn configuration(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    std::fs::write(&file, data).expect("a file");
    let loaded = Config::load(Sources {
        file: Some(Path::new(&file)),
        environment: &ProcessEnvironment,
        flags: Flags::default(),
        files: Files::Ignored,
    });
    match loaded {
        Ok(config) => assert!(!config.effective().is_empty()),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    fn fuzz() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    #[test]
    fn p22_the_corpora_pass() {
        for (name, target) in TARGETS {
            let corpus = fuzz().join("corpus").join(name);
            let seeds = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut count = 0;
            for seed in seeds {
                let seed = seed.expect("a seed").path();
                let data = fs::read(&seed).expect("a seed");
                println!("{}", seed.display());
                target(&data);
                count += 1;
            }
            assert!(count >= 3, "{name}: {count} seeds");
        }
    }

    #[test]
    fn each_has_a_program() {
        let programs = fs::read_dir(fuzz().join("targets")).expect("programs");
        let programs: BTreeSet<_> = programs
            .map(|entry| entry.expect("a program").path())
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        let named: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(programs, named);
        let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("its manifest");
        for name in named {
            assert!(
                manifest.contains(&format!("\"targets/{name}.rs\"")),
                "{name}"
            );
        }
    }
}
