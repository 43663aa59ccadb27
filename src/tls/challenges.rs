//! What an ACME directory is shown as proof that a name is ours, while it looks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::sign::CertifiedKey;

/// The protocol of TLS-ALPN-01 (RFC 8737, 6.2).
pub(super) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The path of HTTP-01 up to the token (RFC 8555, 8.3).
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// The proofs of an order in progress. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Challenges(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    /// By domain, for TLS-ALPN-01.
    certificates: BTreeMap<String, Arc<CertifiedKey>>,
    /// By token, for HTTP-01.
    answers: BTreeMap<String, String>,
}

impl Challenges {
    /// The answer to HTTP-01, if that is what the path asks for and an order waits for it.
    pub fn answer(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.pending().answers.get(token).cloned()
    }

    pub(super) fn certificate(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        let domain = domain.to_ascii_lowercase();
        self.pending().certificates.get(&domain).cloned()
    }

    /// Room for the proofs of one order, which go with it.
    pub(super) fn begin(&self) -> Proofs {
        Proofs(self.clone())
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proofs of one order; dropped, nothing is proven any more.
pub(super) struct Proofs(Challenges);

impl Proofs {
    pub(super) fn by_certificate(&self, domain: &str, certificate: CertifiedKey) {
        let domain = domain.to_ascii_lowercase();
        let mut pending = self.0.pending();
        pending.certificates.insert(domain, Arc::new(certificate));
    }

    pub(super) fn by_answer(&self, token: &str, answer: &str) {
        let mut pending = self.0.pending();
        pending.answers.insert(token.to_owned(), answer.to_owned());
    }
}

impl Drop for Proofs {
    fn drop(&mut self) {
        *self.0.pending() = Pending::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_there_for_its_token_and_as_long_as_its_order() {
        let challenges = Challenges::default();
        let proofs = challenges.begin();
        proofs.by_answer("abc", "abc.print");
        let answer = |path: &str| challenges.answer(path);
        assert_eq!(
            answer("/.well-known/acme-challenge/abc").as_deref(),
            Some("abc.print")
        );
        for other in [
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/abcd",
            "/abc",
            "/v2/",
        ] {
            assert_eq!(answer(other), None, "{other}");
        }
        drop(proofs);
        assert_eq!(answer("/.well-known/acme-challenge/abc"), None);
    }
}
