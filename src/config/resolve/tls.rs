//! `[tls]`.

use super::Resolver;
use crate::config::{ClientCertificates, Server, Tls};
use crate::tls::{ClientUser, PairFiles};

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

    pub(super) fn client_certificates(
        &mut self,
        server: Option<&Server>,
    ) -> Option<Option<ClientCertificates>> {
        let ca = self.file("tls.client_ca");
        let user = self.one("tls.client_user", |text| {
            text.parse::<ClientUser>()
                .map_err(|error| error.to_string())
        });
        if matches!((&ca, &user), (Some(None), Some(Some(_)))) {
            self.fault("tls.client_user", "has no meaning without tls.client_ca");
        }
        let is_spoken = server.is_none_or(|server| server.listen.iter().any(|listen| listen.tls));
        if matches!(ca, Some(Some(_))) && !is_spoken {
            self.fault(
                "tls.client_ca",
                "has no meaning where no listener speaks TLS",
            );
        }
        let user = user?.unwrap_or_default();
        Some(ca?.map(|ca| ClientCertificates { ca, user }))
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
