//! Names of repositories, tags and references (distribution-spec "Pulling manifests", "Definitions").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, ParseDigestError};

/// Many clients limit host and name together to this many bytes; ECR limits the name alone to 256.
const MAX_NAME_BYTES: usize = 255;
/// distribution-spec: a tag has at most 128 characters.
const MAX_TAG_BYTES: usize = 128;

/// The name of a repository within a registry, such as `team/app`.
///
/// Grammar of the distribution-spec:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`, at most 255 bytes.
/// A valid name is also a safe relative path: no component is empty or begins with a dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// Why a text is not the name of a repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a repository name is made of lower-case letters, digits and the separators . _ __ - between them, \
     in components divided by /, {MAX_NAME_BYTES} characters at most"
)]
pub struct ParseNameError;

impl RepositoryName {
    /// The name as clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= MAX_NAME_BYTES && is_name(text) {
            Ok(Self(text.into()))
        } else {
            Err(ParseNameError)
        }
    }
}

/// Whether a text is of the grammar of [`RepositoryName`], of any length.
fn is_name(text: &str) -> bool {
    /// What the bytes so far end with.
    enum Last {
        Slash,
        Word,
        Dot,
        Underscore,
        TwoUnderscores,
        Dashes,
    }
    let mut last = Last::Slash;
    for byte in text.bytes() {
        last = match (last, byte) {
            (_, b'a'..=b'z' | b'0'..=b'9') => Last::Word,
            (Last::Word, b'/') => Last::Slash,
            (Last::Word, b'.') => Last::Dot,
            (Last::Word, b'_') => Last::Underscore,
            (Last::Underscore, b'_') => Last::TwoUnderscores,
            (Last::Word | Last::Dashes, b'-') => Last::Dashes,
            _ => return false,
        };
    }
    matches!(last, Last::Word)
}

/// A tag: case is kept.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// Why a text is not a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tag begins with a letter, a digit or _ and goes on with those, . and -, {MAX_TAG_BYTES} characters at most"
)]
pub struct ParseTagError;

impl Tag {
    /// The tag as clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let mut bytes = text.bytes();
        let begins_well = bytes.next().is_some_and(is_word);
        let goes_on_well = bytes.all(|b| is_word(b) || matches!(b, b'.' | b'-'));
        if begins_well && goes_on_well && text.len() <= MAX_TAG_BYTES {
            Ok(Self(text.into()))
        } else {
            Err(ParseTagError)
        }
    }
}

/// What names a manifest within a repository: a tag or a digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// A name that may move.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// It holds a `:` and is no digest.
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    /// It holds no `:` and is no tag.
    #[error(transparent)]
    Tag(#[from] ParseTagError),
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<Tag> for Reference {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    /// A `:` decides: no tag holds one and every digest does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A repository of one upstream: what records, rights and fills are kept by. The name is the
/// upstream's own, after any rewriting.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoKey {
    /// The configured name of the upstream.
    pub upstream: Arc<str>,
    /// The repository's name there.
    pub repository: RepositoryName,
}

impl fmt::Display for RepoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)
    }
}

macro_rules! print_as_text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

macro_rules! debug_as_display {
    ($($name:ty),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

print_as_text!(RepositoryName, Tag);
debug_as_display!(Reference, RepoKey);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn p08_repository_name_grammar() {
        for good in [
            "a",
            "0",
            "app",
            "team/app",
            "a__b",
            "a--b",
            "a---b/c.d_e",
            "123/4",
            "app/blobs",
            "manifests",
            &"a".repeat(255),
        ] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "..",
            "a/../b",
            "a/.b",
            "_a",
            "a_",
            "a___b",
            "a..b",
            "a.-b",
            "a%2fb",
            "a\\b",
            "a b",
            "a\0",
            "a:b",
            "ü",
            &"a".repeat(256),
        ] {
            assert_eq!(bad.parse::<RepositoryName>(), Err(ParseNameError), "{bad}");
        }
    }

    #[test]
    fn tag_grammar() {
        for good in ["a", "_", "V1.0-rc_1", &"t".repeat(128)] {
            assert_eq!(good.parse::<Tag>().unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a+b", "a/b", "a b", "é", &"t".repeat(129)] {
            assert_eq!(bad.parse::<Tag>(), Err(ParseTagError), "{bad}");
        }
    }

    #[test]
    fn a_colon_makes_a_reference_a_digest() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert!(matches!(
            "sha256:short".parse::<Reference>(),
            Err(ParseReferenceError::Digest(_))
        ));
    }

    proptest! {
        #[test]
        fn names_of_the_grammar_are_accepted(
            name in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}(/[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}){0,3}"
        ) {
            prop_assert!(name.parse::<RepositoryName>().is_ok());
        }

        #[test]
        fn accepted_names_are_safe_paths_and_print_back(text in "[a-z0-9._/-]{0,20}|.*") {
            if let Ok(name) = text.parse::<RepositoryName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
            }
        }

        #[test]
        fn references_print_back(text in "[a-zA-Z0-9._:-]{0,20}|.*") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
