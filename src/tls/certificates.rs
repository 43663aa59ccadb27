//! The certificates in use, and which of them a client is shown.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Pair;
use super::challenges::{ACME_TLS, Challenges};

/// The pairs in use. A clone shares them, so replacing them reaches every listener.
#[derive(Clone, Debug)]
pub struct Certificates {
    pairs: Arc<ArcSwap<Vec<Pair>>>,
    challenges: Challenges,
}

impl Certificates {
    /// A set of pairs; the first is shown to clients that name no host, or one we do not know. With
    /// none at all every handshake fails.
    pub fn new(pairs: Vec<Pair>) -> Self {
        Self {
            pairs: Arc::new(ArcSwap::from_pointee(pairs)),
            challenges: Challenges::default(),
        }
    }

    /// Puts other pairs in their place for all handshakes to come.
    pub fn replace(&self, pairs: Vec<Pair>) {
        self.pairs.store(Arc::new(pairs));
    }

    /// The pairs in use.
    pub fn pairs(&self) -> Arc<Vec<Pair>> {
        self.pairs.load_full()
    }

    /// What ACME directories are shown instead, while they look.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// The pair that fits the name best; without one that fits, the first. Of pairs that fit alike, such as
    /// an RSA and an ECDSA certificate for one name, the first whose signatures the client takes.
    fn choose(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let pairs = self.pairs.load();
        let fit = |pair: &Pair| {
            let named = server_name.and_then(|name| pair.match_of(name));
            (named, pair.certified.key.choose_scheme(schemes).is_some())
        };
        let mut best = pairs.first()?;
        for pair in pairs.iter() {
            if fit(pair) > fit(best) {
                best = pair;
            }
        }
        Some(Arc::clone(&best.certified))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut protocols = hello.alpn().into_iter().flatten();
        if protocols.any(|protocol| protocol == ACME_TLS) {
            return self.challenges.certificate(hello.server_name()?);
        }
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pair::tests::{pair, rsa_pair};
    use super::*;

    const SCHEMES: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];

    #[test]
    fn k03_an_exact_name_goes_before_a_wildcard() {
        let (wildcard, exact) = (pair(&["*.a.test"]), pair(&["b.a.test"]));
        for pairs in [
            vec![wildcard.clone(), exact.clone()],
            vec![exact.clone(), wildcard.clone()],
        ] {
            let certificates = Certificates::new(pairs);
            let chosen = |name| certificates.choose(Some(name), SCHEMES).expect("a pair");
            assert!(Arc::ptr_eq(&chosen("B.a.test"), &exact.certified));
            assert!(Arc::ptr_eq(&chosen("c.a.test"), &wildcard.certified));
        }
    }

    #[test]
    fn of_two_keys_for_a_name_the_client_gets_one_it_takes() {
        let (ecdsa, rsa) = (pair(&["a.test"]), rsa_pair(&["a.test"]));
        let certificates = Certificates::new(vec![ecdsa.clone(), rsa.clone()]);
        let chosen = |schemes| {
            certificates
                .choose(Some("a.test"), schemes)
                .expect("a pair")
        };
        let of_rsa = [SignatureScheme::RSA_PSS_SHA256];
        assert!(Arc::ptr_eq(&chosen(&of_rsa), &rsa.certified));
        assert!(Arc::ptr_eq(&chosen(SCHEMES), &ecdsa.certified));
        assert!(Arc::ptr_eq(&chosen(&[]), &ecdsa.certified));
    }

    #[test]
    fn k03_the_name_chooses_the_pair_and_the_first_stands_in() {
        let (first, second) = (pair(&["a.test"]), pair(&["b.test"]));
        let certificates = Certificates::new(vec![first.clone(), second.clone()]);
        let chosen = |name| certificates.choose(name, SCHEMES).expect("a certificate");
        assert!(Arc::ptr_eq(&chosen(Some("b.test")), &second.certified));
        assert!(Arc::ptr_eq(&chosen(Some("c.test")), &first.certified));
        assert!(Arc::ptr_eq(&chosen(None), &first.certified));
        assert!(
            Certificates::new(Vec::new())
                .choose(None, SCHEMES)
                .is_none()
        );
    }

    #[test]
    fn replacing_reaches_every_clone() {
        let certificates = Certificates::new(vec![pair(&["a.test"])]);
        let clone = certificates.clone();
        let renewed = pair(&["a.test"]);
        certificates.replace(vec![renewed.clone()]);
        let chosen = clone
            .choose(Some("a.test"), SCHEMES)
            .expect("a certificate");
        assert!(Arc::ptr_eq(&chosen, &renewed.certified));
    }
}
