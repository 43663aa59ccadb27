//! The search for secrets in what a proxy says and writes: as they are, in base64 and percent-encoded.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem::Finder;
use percent_encoding::percent_decode;

use super::store::files_below;

/// Files up to this size, in bytes, are searched as text is. Larger ones are blobs, in which a secret would stand
/// as it is.
const MAX_TEXT: usize = 1 << 20;

/// Secrets to look for.
pub struct Search {
    forms: Vec<Form>,
}

/// One way in which a secret is written.
struct Form {
    /// How the secret begins.
    secret: String,
    name: &'static str,
    finder: Finder<'static>,
}

impl Search {
    /// A search for these, each of which is long enough to be told from chance.
    pub fn new(secrets: &[String]) -> Self {
        assert!(!secrets.is_empty(), "no secret to look for");
        let mut forms = Vec::new();
        for secret in secrets {
            assert!(secret.len() >= 8, "too short to be told from chance");
            let mut add = |name, text: &str| {
                forms.push(Form {
                    secret: secret[..8].to_owned(),
                    name,
                    finder: Finder::new(text).into_owned(),
                });
            };
            add("as it is", secret);
            if secret.contains(' ') {
                add("as of a form", &secret.replace(' ', "+"));
            }
            for before in 0..3 {
                let bytes = [&[0; 2][..before], secret.as_bytes()].concat();
                // Whatever stands before and behind it, these characters are of its bits alone.
                let (from, to) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
                let standard = STANDARD_NO_PAD.encode(&bytes);
                let url_safe = URL_SAFE_NO_PAD.encode(&bytes);
                add("in base64", &standard[from..to]);
                if url_safe != standard {
                    add("in base64 of addresses", &url_safe[from..to]);
                }
            }
        }
        Self { forms }
    }

    /// How a secret stands in `text`, percent-encoded or not.
    pub fn in_text(&self, text: &[u8]) -> Option<String> {
        let stands_in = |text: &[u8]| {
            let mut all = self.forms.iter();
            all.find(|form| form.finder.find(text).is_some())
        };
        let found = stands_in(text).or_else(|| match Cow::from(percent_decode(text)) {
            // The same once more.
            Cow::Borrowed(_) => None,
            Cow::Owned(decoded) => stands_in(&decoded),
        });
        found.map(Form::told)
    }

    /// The same for content, in which nothing is encoded.
    fn in_content(&self, content: &[u8]) -> Option<String> {
        let plain = self.forms.iter().filter(|form| form.name == "as it is");
        let mut found = plain.filter(|form| form.finder.find(content).is_some());
        found.next().map(Form::told)
    }

    /// Fails if a secret stands in `text`.
    pub fn assert_absent(&self, place: &str, text: &[u8]) {
        if let Some(found) = self.in_text(text) {
            panic!("{found} stands in {place}");
        }
    }

    /// Fails if a secret stands in the name or content of a file below `folder`.
    pub fn assert_absent_below(&self, folder: &Path) {
        for file in files_below(folder) {
            let place = file.display().to_string();
            self.assert_absent(&place, place.as_bytes());
            // Files come and go while the proxy runs.
            let Ok(bytes) = fs::read(&file) else { continue };
            let found = match bytes.len() {
                ..=MAX_TEXT => self.in_text(&bytes),
                _ => self.in_content(&bytes),
            };
            if let Some(found) = found {
                panic!("{found} stands in {place}");
            }
        }
    }
}

impl Form {
    fn told(&self) -> String {
        format!(
            "a secret that begins with {:?}, {},",
            self.secret, self.name
        )
    }
}

/// Fails if one of `secrets` stands in `text`, in whatever form.
pub fn assert_absent(place: &str, text: &[u8], secrets: &[String]) {
    Search::new(secrets).assert_absent(place, text);
}
