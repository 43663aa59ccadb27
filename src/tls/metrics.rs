//! What operators can watch of certificates.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Certificates;

/// When the certificates in use end, and how obtaining them goes. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    expiry: Family<NameLabel, Gauge>,
    orders: Family<ResultLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

impl CertificateMetrics {
    /// Registers all handles under their names, without the program's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_expiry_seconds",
            "When the certificate in use ends, seconds since 1970, by the first of its names",
            self.expiry.clone(),
        );
        registry.register(
            "acme_orders",
            "Certificates that were asked for at the ACME directory, by result (ok, failed)",
            self.orders.clone(),
        );
    }

    /// An ACME order came to this: `ok` or `failed`.
    pub(super) fn ordered(&self, result: &'static str) {
        self.orders.get_or_create(&ResultLabel { result }).inc();
    }

    /// Shows these and no longer `shown`, what was shown before; answers what is shown now.
    pub fn show(&self, certificates: &Certificates, shown: &[String]) -> Vec<String> {
        // Two certificates may have a name in common: the one that ends first counts.
        let mut ends: BTreeMap<String, i64> = BTreeMap::new();
        for pair in certificates.pairs().iter() {
            let name = pair.names().first().cloned().unwrap_or_default();
            let since = pair.not_after().duration_since(SystemTime::UNIX_EPOCH);
            let end = since.map_or(0, |since| {
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            });
            let least = ends.entry(name).or_insert(end);
            *least = end.min(*least);
        }
        for name in shown.iter().filter(|name| !ends.contains_key(*name)) {
            self.expiry.remove(&NameLabel { name: name.clone() });
        }
        for (name, end) in &ends {
            let label = NameLabel { name: name.clone() };
            self.expiry.get_or_create(&label).set(*end);
        }
        ends.into_keys().collect()
    }
}
