//! The binding of our account to one that the directory's owner knows (RFC 8555, 7.3.4).

use std::path::PathBuf;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use instant_acme::{ExternalAccountKey, Problem};

use super::AcmeError;
use crate::files;

/// As directories hand keys out; some with padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What RFC 8555, 6.7 says of an account that has to be bound, and of bindings that are none.
const WANTED: &str = "urn:ietf:params:acme:error:externalAccountRequired";
const REFUSED: [&str; 2] = [
    "urn:ietf:params:acme:error:unauthorized",
    "urn:ietf:params:acme:error:malformed",
];

/// An account that the directory's owner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalBinding {
    /// What the directory calls it.
    pub kid: String,
    /// The file of its key: base64url, on one line.
    pub key_file: PathBuf,
}

impl ExternalBinding {
    /// The key that the file holds now. Nothing of it is ever told.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub(super) fn key(&self) -> Result<ExternalAccountKey, AcmeError> {
        let unfit = |reason: String| AcmeError::BindingKey {
            file: self.key_file.clone(),
            reason,
        };
        let text = files::read_text(&self.key_file);
        let text = text.map_err(|error| unfit(format!("cannot be read: {error}")))?;
        let key = BASE64URL.decode(text.trim()).unwrap_or_default();
        match key.is_empty() {
            true => Err(unfit("holds no key in base64url".to_owned())),
            false => Ok(ExternalAccountKey::new(self.kid.clone(), &key)),
        }
    }
}

/// Why the directory makes no account for us, where that is about its binding.
pub(super) fn refusal(binding: Option<&ExternalBinding>, error: instant_acme::Error) -> AcmeError {
    let instant_acme::Error::Api(Problem {
        r#type: Some(kind),
        detail,
        ..
    }) = &error
    else {
        return error.into();
    };
    match binding {
        None if kind == WANTED => AcmeError::Unbound,
        Some(binding) if kind == WANTED || REFUSED.contains(&kind.as_str()) => AcmeError::Binding {
            kid: binding.kid.clone(),
            reason: detail.clone().unwrap_or_else(|| kind.clone()),
        },
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_is_base64url_with_padding_or_without_and_never_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let binding = ExternalBinding {
            kid: "kid-1".to_owned(),
            key_file: folder.path().join("eab.key"),
        };
        assert!(binding.key().is_err(), "no file");
        for (text, is_key) in [
            ("c2VjcmV0LWtleQ\n", true),
            ("c2VjcmV0LWtleQ==", true),
            ("_-8", true),
            ("/+8", false),
            ("", false),
            ("\n", false),
            ("secret key", false),
        ] {
            fs::write(&binding.key_file, text).expect("writable");
            match binding.key() {
                Ok(_) => assert!(is_key, "{text}"),
                Err(error) => {
                    assert!(!is_key, "{text}: {error}");
                    assert!(!error.to_string().contains("secret"), "{error}");
                }
            }
        }
    }
}
