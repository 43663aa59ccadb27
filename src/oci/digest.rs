//! Content digests (image-spec `descriptor.md`, "Digests"): sha256 only, which is the one algorithm
//! that ECR, Docker and every client we serve use.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use sha2::Digest as _;

const ALGORITHM: &str = "sha256";

/// A sha256 content digest. Prints as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A [`Digest`] as it is written: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy)]
pub struct DigestText([u8; Self::LENGTH]);

impl DigestText {
    const LENGTH: usize = ALGORITHM.len() + 1 + 64;
}

impl Deref for DigestText {
    type Target = str;

    fn deref(&self) -> &str {
        // All of it is ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Why a text is no digest that we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// Not of the form `algorithm:encoded`.
    #[error("a digest has the form sha256:<64 lower-case hexadecimal digits>")]
    Malformed,
    /// Well formed, with an algorithm other than sha256.
    #[error("the digest algorithm is not supported: only sha256 is")]
    UnsupportedAlgorithm,
}

impl Digest {
    /// The digest whose bytes are already known, from a record of our own.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha256::digest(data).into())
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash as 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        self.text()[ALGORITHM.len() + 1..].to_owned()
    }

    /// The digest as it is written, without memory of its own: digests are written several times for each
    /// answer.
    pub fn text(&self) -> DigestText {
        let mut text = [b':'; DigestText::LENGTH];
        let (algorithm, encoded) = text.split_at_mut(ALGORITHM.len());
        algorithm.copy_from_slice(ALGORITHM.as_bytes());
        for (pair, byte) in encoded[1..].as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = HEX[usize::from(byte)];
        }
        DigestText(text)
    }

    /// Reads exactly 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`ParseDigestError::Malformed`] for any other length or character; upper case is refused
    /// because the specification registers lower case only.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        let pairs: &[[u8; 2]; 32] = pairs.try_into().map_err(|_| ParseDigestError::Malformed)?;
        if !rest.is_empty() {
            return Err(ParseDigestError::Malformed);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// Each byte as it is written.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = [[0; 2]; 256];
    let mut byte = 0;
    while byte < hex.len() {
        hex[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    hex
};

fn nibble(digit: u8) -> Result<u8, ParseDigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseDigestError::Malformed),
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, encoded) = text.split_once(':').ok_or(ParseDigestError::Malformed)?;
        if algorithm == ALGORITHM {
            return Self::from_hex(encoded);
        }
        // Grammar of image-spec: algorithm `[a-z0-9]+([+._-][a-z0-9]+)*`, encoded `[a-zA-Z0-9=_-]+`.
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let algorithm_is_valid = algorithm
            .split(['+', '.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(alphanumeric));
        let encoded_is_valid = !encoded.is_empty()
            && encoded
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'));
        if algorithm_is_valid && encoded_is_valid {
            Err(ParseDigestError::UnsupportedAlgorithm)
        } else {
            Err(ParseDigestError::Malformed)
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a [`Digest`] over pieces, in order.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Hasher::new().finish().to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>(), Ok(Digest::of(b"")));
    }

    #[test]
    fn leading_zeros_are_kept() {
        let text = format!("sha256:{}1", "0".repeat(63));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
    }

    #[test]
    fn p09_digest_grammar() {
        use ParseDigestError::{Malformed, UnsupportedAlgorithm};
        for (text, error) in [
            (format!("sha256:{}", "a".repeat(63)), Malformed),
            (format!("sha256:{}", "a".repeat(65)), Malformed),
            (format!("sha256:{}", "A".repeat(64)), Malformed),
            (format!("sha256:{}é", "a".repeat(62)), Malformed),
            (format!("sha256:../{}", "a".repeat(61)), Malformed),
            ("sha256".into(), Malformed),
            (":".into(), Malformed),
            ("sha256:".into(), Malformed),
            (format!("sha512:{}", "a".repeat(128)), UnsupportedAlgorithm),
            ("md5+b64u:abc=".into(), UnsupportedAlgorithm),
            ("md5++b:abc".into(), Malformed),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_digest_prints_and_parses_back(bytes: [u8; 32]) {
            let digest = Digest::from_sha256(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn pieces_hash_as_the_whole(data: Vec<u8>, at: prop::sample::Index) {
            let (head, tail) = data.split_at(at.index(data.len() + 1));
            let mut hasher = Hasher::new();
            hasher.update(head);
            hasher.update(tail);
            prop_assert_eq!(hasher.finish(), Digest::of(&data));
        }
    }
}
