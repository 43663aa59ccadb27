//! Basic credentials (RFC 7617) as clients send them.
//!
//! Invariant: [`Credentials`] have a user and a password, both UTF-8, neither empty nor with a
//! control character (RFC 7617 section 2 forbids them; a NUL would end a bcrypt password early).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderValue;

/// Longest header value looked at. Names and passwords of people are far below, ECR's tokens of several
/// KiB are; what is above would be hashed on our time.
const MAX_VALUE_BYTES: usize = 16 * 1024;

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A user and a password nobody has checked yet.
pub(super) struct Credentials {
    pub(super) user: Arc<str>,
    pub(super) password: String,
}

/// The value is not a Basic `Authorization`. Says nothing of what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Credentials {
    pub(super) fn parse(value: &HeaderValue) -> Result<Self, Malformed> {
        let value = value.as_bytes();
        if value.len() > MAX_VALUE_BYTES {
            return Err(Malformed);
        }
        let (scheme, encoded) = value.split_at_checked(6).ok_or(Malformed)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return Err(Malformed);
        }
        let decoded = BASE64.decode(encoded.trim_ascii()).map_err(|_| Malformed)?;
        let decoded = String::from_utf8(decoded).map_err(|_| Malformed)?;
        let (user, password) = decoded.split_once(':').ok_or(Malformed)?;
        if user.is_empty() || password.is_empty() || decoded.chars().any(char::is_control) {
            return Err(Malformed);
        }
        Ok(Self {
            user: user.into(),
            password: password.to_owned(),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Any bytes as a value of `Authorization`.
#[cfg(any(test, fuzzing))]
pub fn fuzz_authorization(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    if let Ok(Credentials { user, password }) = Credentials::parse(&value) {
        assert!(!user.is_empty() && !user.contains(':') && !password.is_empty());
        let mut all = user.chars().chain(password.chars());
        assert!(!all.any(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<(String, String), Malformed> {
        let value = HeaderValue::from_str(value).expect("value");
        Credentials::parse(&value).map(|c| (c.user.to_string(), c.password))
    }

    #[test]
    fn the_password_begins_after_the_first_colon() {
        let value = format!("Basic {}", BASE64.encode("ci:a:b:"));
        assert_eq!(parse(&value), Ok(("ci".into(), "a:b:".into())));
    }

    #[test]
    fn scheme_ignores_case_and_padding_may_be_absent() {
        assert_eq!(parse("bAsIc YTpi"), Ok(("a".into(), "b".into())));
        assert_eq!(parse("Basic YTpiYg=="), Ok(("a".into(), "bb".into())));
        assert_eq!(parse("Basic YTpiYg"), Ok(("a".into(), "bb".into())));
    }

    #[test]
    fn a_password_does_not_print() {
        let value = HeaderValue::from_static("Basic YTpiYg==");
        let printed = format!("{:?}", Credentials::parse(&value).expect("credentials"));
        assert!(!printed.contains("bb"), "{printed}");
    }
}
