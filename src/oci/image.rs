//! An image as its client writes it: `[domain/]repository[:tag|@digest]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::digest::{Digest, ParseDigestError};
use super::pattern::{ParsePatternError, Pattern};
use super::reference::{ParseNameError, ParseTagError, Reference, RepositoryName, Tag};

/// What clients take where no tag is written.
const DEFAULT_TAG: &str = "latest";

/// The registry that clients mean by these, and whose one-word names are below `library/`.
const DOCKER_HUB: [&str; 2] = ["docker.io", "index.docker.io"];

/// `[domain/]repository[:tag|@digest]`, read as container tools read it: what stands before the first `/`
/// is a domain if it has a `.` or a `:` in it, or is `localhost`; without tag and digest it is `latest`;
/// with both, the digest counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// Where a client would go for it, in lower case and with its port where one was written; `None` if nothing
    /// was. Two registries may differ by their ports alone.
    pub domain: Option<String>,
    /// The repository, as the domain's clients write it.
    pub repository: RepositoryName,
    /// The tag or digest.
    pub reference: Reference,
}

/// Why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseImageError {
    /// The part before the first `/` is no domain.
    #[error("{0:?} is not a domain")]
    Domain(String),
    /// The repository breaks the grammar.
    #[error(transparent)]
    Repository(#[from] ParseNameError),
    /// The tag breaks the grammar.
    #[error(transparent)]
    Tag(#[from] ParseTagError),
    /// The digest breaks the grammar.
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    /// The pattern breaks the grammar.
    #[error(transparent)]
    Pattern(#[from] ParsePatternError),
}

/// Several images: `[domain/]repository[:tag|@digest]` with patterns for repository and tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImagePattern {
    /// Where a client would go for them, as in [`ImageName::domain`].
    pub domain: Option<String>,
    /// Their repositories.
    pub repository: Pattern,
    /// Which of each.
    pub which: Which,
}

/// Which images of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Which {
    /// All.
    Any,
    /// Those with such a tag.
    Tags(Pattern),
    /// That one.
    Digest(Digest),
}

impl ImageName {
    /// The host of its domain, if it has one.
    pub fn host(&self) -> Option<&str> {
        self.domain.as_deref().map(host_of)
    }
}

impl ImagePattern {
    /// Whether the pattern describes the manifest `digest` of `repository`, or, with a tag, that tag of it.
    pub fn matches(&self, repository: &RepositoryName, tag: Option<&Tag>, digest: &Digest) -> bool {
        self.which.matches(tag, digest) && self.repository.matches(repository.as_str())
    }
}

impl Which {
    /// Whether the manifest `digest` is one of them, or, with a tag, that tag.
    pub fn matches(&self, tag: Option<&Tag>, digest: &Digest) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tag.is_some_and(|tag| tags.matches(tag.as_str())),
            Self::Digest(wanted) => wanted == digest,
        }
    }
}

impl FromStr for ImagePattern {
    type Err = ParseImageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (domain, rest) = split_domain(text)?;
        let (repository, which) = match rest.split_once('@') {
            Some((repository, digest)) => (repository, Which::Digest(digest.parse()?)),
            None => match rest.split_once(':') {
                Some((repository, tags)) if tags.contains('/') => {
                    return Err(ParseImageError::Domain(repository.to_owned()));
                }
                Some((repository, tags)) => (repository, Which::Tags(tags.parse()?)),
                None => (rest, Which::Any),
            },
        };
        Ok(Self {
            domain,
            repository: Pattern::of_repositories(repository)?,
            which,
        })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_domain(f, self.domain.as_deref())?;
        write!(f, "{}", self.repository)?;
        match &self.which {
            Which::Any => Ok(()),
            Which::Tags(tags) => write!(f, ":{tags}"),
            Which::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

fn write_domain(f: &mut fmt::Formatter<'_>, domain: Option<&str>) -> fmt::Result {
    match domain {
        // Without a port, a name of one word would read as part of the repository.
        Some(domain) if domain != "localhost" && !domain.contains(['.', ':']) => {
            write!(f, "{domain}:443/")
        }
        Some(domain) => write!(f, "{domain}/"),
        None => Ok(()),
    }
}

/// The host of a domain as images have it: without port, and an IPv6 address without its brackets.
pub fn host_of(domain: &str) -> &str {
    let (host, end) = match domain.strip_prefix('[') {
        Some(rest) => (rest, ']'),
        None => (domain, ':'),
    };
    host.split_once(end).map_or(host, |(host, _)| host)
}

/// Parts a domain from what follows it: `[domain/]rest`.
fn split_domain(text: &str) -> Result<(Option<String>, &str), ParseImageError> {
    let Some((first, rest)) = text.split_once('/') else {
        return Ok((None, text));
    };
    if first != "localhost" && !first.contains(['.', ':']) {
        return Ok((None, text));
    }
    let host = host_of(first);
    let (is_host, port) = match first.strip_prefix('[') {
        Some(rest) => (
            host.parse::<Ipv6Addr>().is_ok(),
            rest[host.len()..].strip_prefix(']').unwrap_or("?"),
        ),
        None => {
            let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
            (
                !host.is_empty() && host.bytes().all(is_host),
                &first[host.len()..],
            )
        }
    };
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    if !is_host || !is_port {
        return Err(ParseImageError::Domain(first.to_owned()));
    }
    Ok((Some(first.to_ascii_lowercase()), rest))
}

impl FromStr for ImageName {
    type Err = ParseImageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (domain, rest) = split_domain(text)?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (rest, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        let tag: Tag = tag.unwrap_or(DEFAULT_TAG).parse()?;
        let is_hub = domain
            .as_deref()
            .is_some_and(|domain| DOCKER_HUB.contains(&host_of(domain)));
        let repository = if is_hub && !name.contains('/') {
            format!("library/{name}").parse()?
        } else {
            name.parse()?
        };
        Ok(Self {
            domain,
            repository,
            reference: digest.map_or(Reference::Tag(tag), Reference::Digest),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_domain(f, self.domain.as_deref())?;
        let mark = match &self.reference {
            Reference::Tag(_) => ':',
            Reference::Digest(_) => '@',
        };
        write!(f, "{}{mark}{}", self.repository, self.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(text: &str) -> ImageName {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_are_read_as_container_tools_read_them() {
        let digest = Digest::of(b"");
        for (text, meaning) in [
            ("app", "app:latest".to_owned()),
            ("team/app:v1", "team/app:v1".to_owned()),
            (
                "registry.mydomain.com/app",
                "registry.mydomain.com/app:latest".to_owned(),
            ),
            (
                "Registry.MyDomain.com:5000/app:v1",
                "registry.mydomain.com:5000/app:v1".to_owned(),
            ),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            ("registry:5000/app", "registry:5000/app:latest".to_owned()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
            ("[::1]/app", "[::1]/app:latest".to_owned()),
            (
                "docker.io/debian",
                "docker.io/library/debian:latest".to_owned(),
            ),
            (
                "docker.io/bitnami/redis",
                "docker.io/bitnami/redis:latest".to_owned(),
            ),
            ("quay.io/debian", "quay.io/debian:latest".to_owned()),
            (&format!("app@{digest}"), format!("app@{digest}")),
            (&format!("app:v1@{digest}"), format!("app@{digest}")),
        ] {
            assert_eq!(image(text).to_string(), meaning, "{text}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for text in [
            "",
            "/",
            "App",
            "app:",
            "app:v 1",
            "app@sha256:12",
            "app@",
            "a b/app",
            "registry.mydomain.com/",
            "registry.mydomain.com:x/app",
            "registry:/app",
            "[::1/app",
            "[::1]x/app",
            "[registry.test]/app",
            ":5000/app",
            "https://registry.mydomain.com/app",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_describes_images_by_repository_tag_and_digest() {
        let (app, tag): (RepositoryName, Tag) = (
            "team/app".parse().expect("a name"),
            "v1.2".parse().expect("a tag"),
        );
        let digest = Digest::of(b"");
        let by_digest = format!("team/app@{digest}");
        for (text, tagged, untagged) in [
            ("**", true, true),
            ("team/app", true, true),
            ("registry.mydomain.com/team/*", true, true),
            ("team/app:v1*", true, false),
            ("team/app:*", true, false),
            ("team/app:v2*", false, false),
            (&*by_digest, true, true),
            ("other/**", false, false),
        ] {
            let pattern: ImagePattern = text.parse().expect(text);
            assert_eq!(pattern.to_string(), text);
            assert_eq!(pattern.matches(&app, Some(&tag), &digest), tagged, "{text}");
            assert_eq!(pattern.matches(&app, None, &digest), untagged, "{text}");
        }
        for text in ["", ":v1", "team/app:", "team/app@x", "team:/app"] {
            assert!(text.parse::<ImagePattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(text in "([a-z.:\\[\\]0-9]{0,9}/)?[a-z/]{1,9}[:@a-z0-9]{0,9}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(image(&name.to_string()), name);
            }
        }
    }
}
