//! Nothing that opens a door is ever written down: not in a log at any level, not in an error.

use std::io;
use std::sync::{Arc, Mutex};

use ecr_proxy::oci::Reference;
use ecr_proxy::simulator::{Fault, ImageSpec, Listener, Outage, Pattern, TokenReply};
use ecr_proxy::upstream::Span;
use tracing_subscriber::fmt::MakeWriter;

use super::support::{Rig, app, content, read, rig};

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Pulls, whatever comes of it, and tells how it failed.
async fn pull(rig: &Rig, digest: &ecr_proxy::oci::Digest) -> String {
    let v1: Reference = "v1".parse().unwrap();
    let manifest = rig.upstream.manifest(&app(), &v1).await.map(drop);
    let blob = match rig.upstream.blob(&app(), digest, Span::WHOLE, None).await {
        Ok(mut body) => read(&mut body).await.map(drop),
        Err(error) => Err(error),
    };
    let told = |error| format!("{error} {error:?}");
    format!(
        "{:?} {:?} {:?}",
        manifest.map_err(told),
        blob.map_err(told),
        rig.upstream
    )
}

#[tokio::test]
async fn s14_s16_no_secret_is_logged_or_told_on_any_path() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let rig = rig().await;
    rig.sim
        .push_image("app", "v1", ImageSpec::generated(1, [10]));
    let digest = rig.put(&content(100_000));
    let mut told = pull(&rig, &digest).await;
    for fault in [
        Fault::Reset,
        Fault::status(403, "no"),
        Fault::status(500, "no"),
        Fault::TruncateAfter(10),
        Fault::Raw("rubbish\r\n\r\n".into()),
        Fault::Expired,
        Fault::redirect("https://evil.example/?X-Amz-Signature=canary-signature"),
    ] {
        for listener in [Listener::Registry, Listener::Storage] {
            rig.sim
                .faults()
                .on(listener, "GET", Pattern::any())
                .then(fault.clone());
            told += &pull(&rig, &digest).await;
            rig.sim.faults().clear();
            rig.upstream.answers().await;
        }
    }
    for outage in [Outage::Refused, Outage::Reset] {
        rig.sim.outage_of(Listener::Storage, outage).await;
        told += &pull(&rig, &digest).await;
        rig.sim.outage_of(Listener::Storage, Outage::None).await;
    }
    for reply in [
        TokenReply::PastExpiry,
        TokenReply::NoColon,
        TokenReply::NotBase64,
    ] {
        rig.sim.set_token_reply(reply);
        rig.sim.expire_tokens();
        told += &pull(&rig, &digest).await;
        rig.sim.set_token_reply(TokenReply::Normal);
        rig.upstream.answers().await;
    }
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("no new token"), "the log is captured");
    let mut secrets = rig.sim.secrets();
    secrets.push("canary".into());
    for secret in secrets {
        for line in log.lines().chain(told.lines()) {
            let at = line
                .find(&secret)
                .map(|at| &line[at.saturating_sub(300)..at]);
            assert_eq!(at, None, "a secret is told");
        }
    }
}
