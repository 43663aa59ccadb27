//! TLS to the upstream is checked, and there is no way around it.

use ecr_proxy::simulator::{FULL_ACCESS_KEY, Fault, ImageSpec, Listener, Outage, Simulator};
use ecr_proxy::upstream::{Deadline, UpstreamError, UpstreamOptions, Wrong};
use rcgen::{CertificateParams, KeyPair};
use std::time::Duration;

use super::support::{app, options, upstream};

struct Certificate {
    der: rustls::pki_types::CertificateDer<'static>,
    chain: String,
    key: String,
}

fn certificate(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    Certificate {
        der: certificate.der().clone(),
        chain: certificate.pem(),
        key: key.serialize_pem(),
    }
}

async fn showing(certificate: &Certificate) -> Simulator {
    let simulator = Simulator::builder().tls(certificate.chain.as_str(), certificate.key.as_str());
    simulator.start().await.unwrap()
}

async fn ping(
    certificate: &Certificate,
    change: impl FnOnce(&mut UpstreamOptions),
) -> Result<(), UpstreamError> {
    let sim = showing(certificate).await;
    let mut options = options(&sim, FULL_ACCESS_KEY);
    change(&mut options);
    let pinged = upstream(options).ping().await.map(drop);
    if pinged.is_err() {
        let told = sim
            .journal()
            .count(|entry| entry.listener == Listener::Registry);
        assert_eq!(told, 0, "nothing is sent to whom we do not trust");
    }
    pinged
}

#[tokio::test]
async fn a_certificate_of_an_extra_root_is_trusted_by_its_own_name() {
    let good = certificate(&["127.0.0.1"], |_| {});
    let trust = |options: &mut UpstreamOptions| options.extra_roots = vec![good.der.clone()];
    assert_eq!(ping(&good, trust).await, Ok(()));

    let named = certificate(&["vpce.example"], |_| {});
    let trust = |options: &mut UpstreamOptions| {
        options.extra_roots = vec![named.der.clone()];
        options.endpoint_tls_name = Some("vpce.example".into());
    };
    assert_eq!(ping(&named, trust).await, Ok(()));
}

#[tokio::test]
async fn u16_unknown_expired_and_misnamed_certificates_are_refused() {
    let bad = Err(UpstreamError::Wrong(Wrong::BadTls));
    let unknown = certificate(&["127.0.0.1"], |_| {});
    assert_eq!(ping(&unknown, |_| {}).await, bad);

    let misnamed = certificate(&["other.example"], |_| {});
    let trust = |options: &mut UpstreamOptions| options.extra_roots = vec![misnamed.der.clone()];
    assert_eq!(ping(&misnamed, trust).await, bad);

    let expired = certificate(&["127.0.0.1"], |params| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let trust = |options: &mut UpstreamOptions| options.extra_roots = vec![expired.der.clone()];
    assert_eq!(ping(&expired, trust).await, bad);
}

#[tokio::test]
async fn u16_a_handshake_that_hangs_ends_by_its_deadline() {
    let good = certificate(&["127.0.0.1"], |_| {});
    let sim = showing(&good).await;
    sim.outage_of(Listener::Registry, Outage::Silent).await;
    let mut options = options(&sim, FULL_ACCESS_KEY);
    options.extra_roots = vec![good.der.clone()];
    options.limits.connect = Duration::from_secs(1);
    let error = upstream(options).ping().await.unwrap_err();
    assert_eq!(error, UpstreamError::TooSlow(Deadline::Connect));
}

#[tokio::test]
async fn u16_an_answer_cut_off_without_an_end_is_not_taken_for_whole() {
    let good = certificate(&["127.0.0.1"], |_| {});
    let sim = showing(&good).await;
    sim.push_image("app", "v1", ImageSpec::generated(1, [10]));
    let mut options = options(&sim, FULL_ACCESS_KEY);
    options.extra_roots = vec![good.der.clone()];
    let upstream = upstream(options);
    let v1 = "v1".parse().unwrap();
    for fault in [
        Fault::CloseDelimited(Some(50)),
        Fault::TruncateAfter(50),
        Fault::TruncateChunked(50),
        Fault::ResetAfter(50),
    ] {
        let rule = sim
            .faults()
            .on(Listener::Registry, "GET", "/manifests/")
            .then(fault.clone());
        let manifest = upstream.manifest(&app(), &v1).await;
        assert!(manifest.is_err(), "{fault:?}: {manifest:?}");
        rule.remove();
    }
    upstream.manifest(&app(), &v1).await.unwrap();
}
