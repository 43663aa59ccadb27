//! `[tls]`.

use super::Resolver;
use crate::config::{Server, Tls};
use crate::tls::PairFiles;

impl Resolver {
    pub(super) fn tls(&mut self, server: Option<&Server>) -> Option<Tls> {
        let first = self.pair("tls.cert", "tls.key");
        let others = self.each("tls.pair", |this| {
            let pair = this.pair("tls.pair.cert", "tls.pair.key")?;
            if pair.is_none() {
                this.fault("tls.pair", "is empty: name its cert and key");
            }
            pair
        });
        let pairs: Vec<PairFiles> = first?.into_iter().chain(others?).collect();
        if !pairs.is_empty() {
            return Some(Tls::Files(pairs));
        }
        let wanted = server?.listen.iter().any(|listen| listen.tls);
        Some(if wanted { Tls::LocalCa } else { Tls::Off })
    }

    /// A certificate and its key: `None` if one is faulty (and noted), `Some(None)` if neither is set.
    fn pair(&mut self, cert: &'static str, key: &'static str) -> Option<Option<PairFiles>> {
        match (self.file(cert), self.file(key)) {
            (Some(Some(cert)), Some(Some(key))) => Some(Some(PairFiles { cert, key })),
            (Some(None), Some(None)) => Some(None),
            (Some(Some(_)), Some(None)) => {
                self.fault(key, &format!("is missing: {cert} needs its private key"));
                None
            }
            (Some(None), Some(Some(_))) => {
                self.fault(
                    cert,
                    &format!("is missing: {key} needs its certificate chain"),
                );
                None
            }
            _ => None,
        }
    }
}
