//! What a registry says to a push, as clients may read it.
//!
//! Some clients act on the words (podman tries another manifest format after `Invalid JSON syntax`), so
//! they are kept; whatever names the registry, the account or the identity behind the proxy is not.

use std::borrow::Cow;

use http::StatusCode;

use super::said::said;

/// Longest message that is passed on, in characters: a list of missing layers fits.
const LONGEST: usize = 4096;
/// Digits of an AWS account id.
const ACCOUNT_DIGITS: usize = 12;
/// What stands for what was taken out.
const HIDDEN: &str = "…";

/// A refusal in the registry's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Of class 4xx.
    pub status: u16,
    /// Upper-case letters and underscores.
    pub code: Cow<'static, str>,
    /// Without hosts, ARNs and account ids.
    pub message: String,
    /// The code is the registry's own, and not what its status usually means.
    pub(super) is_own: bool,
}

impl Told {
    /// The code by which the registry itself says that something is not there.
    pub fn absent(&self) -> Option<&str> {
        (self.status == 404 && self.is_own).then_some(&*self.code)
    }
}

/// Reads the answer to a push. `names` are hosts, with or without a port, that clients do not get to know.
pub(super) fn told(status: StatusCode, body: &[u8], names: &[&str]) -> Told {
    let said = said(body);
    let own = said
        .as_ref()
        .map(|said| said.code.clone())
        .filter(|code| is_code(code));
    let is_own = own.is_some();
    let code = own.map_or_else(|| Cow::Borrowed(usual_code(status)), Cow::Owned);
    let message = said
        .map(|said| said.message)
        .filter(|message| !message.is_empty())
        .map_or_else(
            || format!("upstream refuses this with status {}", status.as_u16()),
            |message| redacted(&message, names),
        );
    Told {
        status: status.as_u16(),
        code,
        message,
        is_own,
    }
}

fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}

fn usual_code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "NAME_UNKNOWN",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::PAYLOAD_TOO_LARGE => "SIZE_INVALID",
        _ => "UNSUPPORTED",
    }
}

/// The message without what clients do not get to know. It is read word by word: what is between
/// spaces, quotes and brackets.
pub(super) fn redacted(message: &str, names: &[&str]) -> String {
    let mut out = String::with_capacity(message.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        match is_secret(word, names) {
            true => out.push_str(HIDDEN),
            false => out.push_str(word),
        }
        word.clear();
    };
    for character in message.chars().take(LONGEST) {
        let ends_word = character.is_whitespace()
            || matches!(
                character,
                '\'' | '"' | '`' | '<' | '>' | '(' | ')' | '[' | ']' | ',' | ';'
            );
        if ends_word {
            flush(&mut word, &mut out);
            out.push(character);
        } else if !character.is_control() {
            word.push(character);
        }
    }
    flush(&mut word, &mut out);
    out
}

fn is_secret(word: &str, names: &[&str]) -> bool {
    let lower = word.to_ascii_lowercase();
    let names_host = names
        .iter()
        .filter(|name| !name.is_empty())
        .any(|name| lower.contains(&name.to_ascii_lowercase()));
    names_host
        || lower.contains("arn:")
        || lower.contains("://")
        || lower.contains("amazonaws")
        || has_account(word)
}

/// Twelve digits with no letter or further digit beside them.
fn has_account(word: &str) -> bool {
    word.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|run| run.len() == ACCOUNT_DIGITS && run.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

    #[test]
    fn ecr_s_words_pass_without_what_they_give_away() {
        for (said, told) in [
            (
                "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.",
                "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.",
            ),
            (
                "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'",
                "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'",
            ),
            (
                "The repository with name 'app' does not exist in the registry with id '000042290000'",
                "The repository with name 'app' does not exist in the registry with id '…'",
            ),
            (
                "User: arn:aws:sts::000042290000:assumed-role/a/b is not authorized",
                "User: … is not authorized",
            ),
            (
                "see https://000042290000.dkr.ecr.us-west-2.amazonaws.com/v2/, or vpce.example:444.",
                "see …, or …",
            ),
            (
                "Layers with digests '[sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a]'",
                "Layers with digests '[sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a]'",
            ),
        ] {
            assert_eq!(redacted(said, &[HOST, "vpce.example"]), told);
        }
    }

    #[test]
    fn what_is_no_error_of_a_registry_gets_our_own_words() {
        let page = told(StatusCode::PAYLOAD_TOO_LARGE, b"<html>nginx", &[]);
        assert_eq!((page.status, &*page.code), (413, "SIZE_INVALID"));
        assert!(!page.message.contains("nginx"));
        let odd = br#"{"errors":[{"code":"no code\n","message":""}]}"#;
        let odd = told(StatusCode::BAD_REQUEST, odd, &[]);
        assert_eq!(&*odd.code, "UNSUPPORTED");
        assert!(odd.message.contains("400"));
    }

    proptest! {
        #[test]
        fn no_account_host_or_arn_passes(before in ".{0,20}", after in "[ '\"/:.,)-].{0,20}|") {
            for secret in ["000042290000", HOST, "arn:aws:iam::000042290000:role/x"] {
                let told = redacted(&format!("{before} {secret}{after}"), &[HOST]);
                prop_assert!(!told.contains(secret), "{}", told);
            }
        }
    }
}
