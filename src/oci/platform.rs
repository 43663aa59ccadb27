//! What an image runs on (image-spec `image-index.md`, "platform").

use std::fmt;
use std::str::FromStr;

/// A platform: `os/architecture[/variant]`, such as `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// Operating system, as `GOOS`.
    pub os: String,
    /// CPU architecture, as `GOARCH`.
    pub architecture: String,
    /// Variant of the CPU, such as `v8`.
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a platform is written as os/architecture or os/architecture/variant, such as linux/amd64")]
pub struct ParsePlatformError;

impl Platform {
    /// What containers on this machine run on.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether this is what `wanted` asks for. One that is wanted without a variant is any of them, and
    /// the only variant of arm64 need not be written.
    pub fn is(&self, wanted: &Self) -> bool {
        let variant = |platform: &Self| match (&*platform.architecture, &platform.variant) {
            ("arm64", None) => Some("v8".to_owned()),
            (_, variant) => variant.clone(),
        };
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || variant(self) == variant(wanted))
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |part: &str| {
            let is_letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty() && part.bytes().all(is_letter)
        };
        let mut parts = text
            .split('/')
            .map(|part| Some(part).filter(|p| is_word(p)));
        let mut next = || parts.next().map(|part| part.ok_or(ParsePlatformError));
        let (os, architecture, variant) = (next(), next(), next().transpose()?);
        let (Some(os), Some(architecture), None) = (os, architecture, next()) else {
            return Err(ParsePlatformError);
        };
        Ok(Self {
            os: os?.to_owned(),
            architecture: architecture?.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn a_variant_that_is_not_named_is_any() {
        for (found, wanted, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/arm64", false),
            ("windows/amd64", "linux/amd64", false),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm", "linux/arm/v7", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
        ] {
            let is = platform(found).is(&platform(wanted));
            assert_eq!(is, expected, "{found} for {wanted}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/amd64/",
            "a b/c",
        ] {
            assert_eq!(text.parse::<Platform>(), Err(ParsePlatformError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn platforms_print_back(text in "[a-z0-9]{0,6}(/[a-z0-9]{0,6}){0,4}|.*") {
            if let Ok(platform) = text.parse::<Platform>() {
                prop_assert_eq!(platform.to_string(), text);
            }
        }
    }
}
