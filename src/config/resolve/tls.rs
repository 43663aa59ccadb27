//! `[tls]`.

use super::Resolver;
use crate::config::{Server, Tls};

impl Resolver {
    pub(super) fn tls(&mut self, server: Option<&Server>) -> Option<Tls> {
        let cert = self.file("tls.cert");
        let key = self.file("tls.key");
        match (cert?, key?) {
            (Some(cert), Some(key)) => Some(Tls::Files { cert, key }),
            (Some(_), None) => {
                self.fault("tls.key", "is missing: tls.cert needs its private key");
                None
            }
            (None, Some(_)) => {
                self.fault(
                    "tls.cert",
                    "is missing: tls.key needs its certificate chain",
                );
                None
            }
            (None, None) => Some(if server?.listen.iter().any(|listen| listen.tls) {
                Tls::LocalCa
            } else {
                Tls::Off
            }),
        }
    }
}
