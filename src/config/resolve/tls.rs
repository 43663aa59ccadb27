//! `[tls]`.

use std::net::IpAddr;

use super::Resolver;
use crate::config::{ClientCertificates, Config, Server, Tls, values};
use crate::tls::{AcmeOptions, ClientUser, ExternalBinding, PairFiles, Proof};

/// Notes what works and is probably not meant.
pub(super) fn warnings(config: &Config) -> Option<String> {
    let is_idle = matches!(config.tls, Tls::Files(_)) && !config.server.has_tls();
    is_idle.then(|| {
        "tls.cert: is of no use, for no listener speaks TLS: server.listen has http:// addresses alone".to_owned()
    })
}

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
        let acme = self.acme(server);
        let pairs: Vec<PairFiles> = first?.into_iter().chain(others?).collect();
        match (acme?, pairs.is_empty()) {
            (None, true) => {}
            (None, false) => return Some(Tls::Files(pairs)),
            (Some(acme), true) => return Some(acme),
            (Some(_), false) => {
                self.fault(
                    "tls.acme.directory",
                    "is set beside tls.cert: a certificate is either yours or obtained by ACME",
                );
                return None;
            }
        }
        let wanted = server?.has_tls();
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
        let is_spoken = server.is_none_or(Server::has_tls);
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

    /// `None` if it is faulty, `Some(None)` without it.
    fn acme(&mut self, server: Option<&Server>) -> Option<Option<Tls>> {
        const SECTION: &str = "tls.acme.";
        if !self.settings.keys().any(|key| key.starts_with(SECTION)) {
            return Some(None);
        }
        let directory = self.one("tls.acme.directory", |text| {
            match text.parse::<http::Uri>() {
                Ok(url) if url.scheme_str() == Some("https") && url.host().is_some() => {
                    Ok(text.to_owned())
                }
                _ => Err(format!("{text:?} is not an https:// URL")),
            }
        });
        let email = self.one("tls.acme.email", |text| {
            let is_address = text.split_once('@').is_some_and(|(user, host)| {
                !user.is_empty() && !host.is_empty() && !text.contains(char::is_whitespace)
            });
            let address = is_address.then(|| text.to_owned());
            address.ok_or_else(|| format!("{text:?} is not an address such as ops@mydomain.com"))
        });
        let proof = self.one("tls.acme.challenge", |text| {
            let known = [Proof::TlsAlpn, Proof::Http];
            let named = known.into_iter().find(|known| known.to_string() == text);
            named.ok_or_else(|| format!("{text:?} is neither \"tls-alpn-01\" nor \"http-01\""))
        });
        let http_listen = self.one("tls.acme.http_listen", |text| {
            let listen = values::listen(text)?;
            let plain = (!listen.tls).then_some(listen.address);
            plain.ok_or_else(|| format!("{text:?} is not http://"))
        });
        let binding = self.external_binding();
        let ca = self.file("tls.acme.ca");
        let egress = self.egress_of_environment("tls.acme.directory");
        if matches!(directory, Some(None)) {
            self.fault(
                "tls.acme.directory",
                "is missing: name one, such as \"https://acme-v02.api.letsencrypt.org/directory\"",
            );
        }
        let server = server?;
        if server.domains.is_empty() {
            self.fault(
                "server.domains",
                "is missing: tls.acme obtains a certificate for them",
            );
        }
        for domain in &server.domains {
            if domain.parse::<IpAddr>().is_ok() {
                let reason = format!("{domain} is an address: tls.acme is for names");
                self.fault("server.domains", &reason);
            }
        }
        if !server.has_tls() {
            self.fault("tls.acme.directory", "has no use: no listener speaks TLS");
        }
        let (proof, http_listen) = (proof?.unwrap_or(Proof::TlsAlpn), http_listen?);
        let http_listen = match proof {
            Proof::Http => Some(http_listen.unwrap_or((IpAddr::from([0_u16; 8]), 80).into())),
            Proof::TlsAlpn => {
                if http_listen.is_some() {
                    self.fault(
                        "tls.acme.http_listen",
                        "belongs to challenge = \"http-01\" only",
                    );
                }
                None
            }
        };
        Some(Some(Tls::Acme {
            options: Box::new(AcmeOptions {
                directory: directory??,
                email: email?,
                binding: binding?,
                proof,
                domains: server.domains.clone(),
                state_dir: server.state_dir.clone(),
                ca: ca?,
                egress: egress?,
            }),
            http_listen,
        }))
    }

    /// `None` if it is faulty, `Some(None)` without it.
    fn external_binding(&mut self) -> Option<Option<ExternalBinding>> {
        let (kid_key, file_key) = ("tls.acme.eab_kid", "tls.acme.eab_key_file");
        let kid = self.one(kid_key, |text| {
            let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            let kid = is_word.then(|| text.to_owned());
            kid.ok_or_else(|| format!("{text:?} is no identifier of an account"))
        });
        match (kid?, self.file(file_key)?) {
            (Some(kid), Some(key_file)) => Some(Some(ExternalBinding { kid, key_file })),
            (None, None) => Some(None),
            (Some(_), None) => {
                let reason = format!("is missing: {kid_key} needs its key");
                self.fault(file_key, &reason);
                None
            }
            (None, Some(_)) => {
                let reason = format!("is missing: {file_key} needs what the directory calls it");
                self.fault(kid_key, &reason);
                None
            }
        }
    }
}
