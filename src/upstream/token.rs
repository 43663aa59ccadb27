//! A credential as requests carry it.
//!
//! Invariants: it can be attached only to requests for the origin it was obtained for, and is never printed.
//! Life is counted on the monotonic clock.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri, header};
use tokio::time::Instant;

use super::origin::Origin;

/// Longest life that is believed; ECR's is 12 h.
const MAX_LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token is not handed out in the last part of its life, this at most, so that it does not expire on
/// its way.
const MAX_EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// The same, at least, of a token that lives for longer than twice this: services count in seconds.
const MIN_EXPIRY_MARGIN: Duration = Duration::from_secs(1);

/// A credential, bound to the origin it was obtained for.
pub(super) struct Token {
    authorization: HeaderValue,
    origin: Origin,
    obtained: Instant,
    expires: Instant,
}

/// The request goes elsewhere than the token may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongOrigin;

impl Token {
    /// A token for `origin` that lives for `life` from now on, at most 12 hours.
    pub(super) fn new(mut authorization: HeaderValue, origin: Origin, life: Duration) -> Self {
        authorization.set_sensitive(true);
        let obtained = Instant::now();
        Self {
            authorization,
            origin,
            obtained,
            expires: obtained + life.min(MAX_LIFE),
        }
    }

    /// Adds the credential to the headers of a request for `target`.
    ///
    /// # Errors
    /// When `target` is not at the token's origin; nothing is added.
    pub(super) fn attach(&self, target: &Uri, headers: &mut HeaderMap) -> Result<(), WrongOrigin> {
        if Origin::of(target).as_ref() != Some(&self.origin) {
            return Err(WrongOrigin);
        }
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        Ok(())
    }

    pub(super) fn obtained(&self) -> Instant {
        self.obtained
    }

    pub(super) fn expires(&self) -> Instant {
        self.expires
    }

    pub(super) fn life(&self) -> Duration {
        self.expires - self.obtained
    }

    /// True unless it ended, or is about to.
    pub(super) fn is_usable(&self) -> bool {
        let life = self.life();
        let margin = (life / 10)
            .max(MIN_EXPIRY_MARGIN.min(life / 2))
            .min(MAX_EXPIRY_MARGIN);
        Instant::now() + margin < self.expires
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("authorization", &"redacted")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k08_s12_a_token_goes_to_its_origin_only_and_is_never_printed() {
        let home = Origin::of(&Uri::from_static("https://a.example")).unwrap();
        let value = HeaderValue::from_static("Basic canary");
        let token = Token::new(value, home, Duration::from_secs(3600));
        let mut headers = HeaderMap::new();
        for elsewhere in [
            "https://b.example/v2/",
            "http://a.example/v2/",
            "https://a.example:8443/v2/",
            "https://a.example.evil.example/",
        ] {
            let elsewhere = Uri::from_static(elsewhere);
            assert_eq!(token.attach(&elsewhere, &mut headers), Err(WrongOrigin));
            assert!(headers.is_empty());
        }
        token
            .attach(&Uri::from_static("https://a.example/v2/"), &mut headers)
            .unwrap();
        assert!(headers.contains_key(header::AUTHORIZATION));
        assert!(!format!("{headers:?} {token:?}").contains("canary"));
    }
}
