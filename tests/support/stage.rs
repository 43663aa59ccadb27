//! A simulated ECR, the proxy in front of it, and blobs of known content: what the tests of fills
//! and of upstream faults begin with.

use bytes::Bytes;
use ecr_proxy::simulator::{BlobSource, Entry, Fault, Listener, Pattern, RuleHandle, Simulator};

use super::proxy::Builder;
use super::{Answer, Connection, Proxy, blobs};

pub use super::image::REPOSITORY;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// See the module.
pub struct Stage {
    /// The upstream.
    pub simulator: Simulator,
    /// The proxy, which anybody may pull from.
    pub proxy: Proxy,
}

/// A blob that the upstream holds.
#[derive(Clone, Debug)]
pub struct TestBlob {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where a client asks for it.
    pub path: String,
    source: BlobSource,
}

impl TestBlob {
    /// What a client has to receive for these offsets.
    pub fn part(&self, from: u64, to: u64) -> Bytes {
        self.source.read(from..to)
    }
}

impl Stage {
    /// Nothing is out of the ordinary.
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    /// A proxy that is configured otherwise.
    pub async fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let proxy = configure(Proxy::builder().simulator(&simulator)).start();
        Self { simulator, proxy }
    }

    /// Puts a blob of `size` bytes into [`REPOSITORY`]; the size tells the content.
    pub fn blob(&self, size: u64) -> TestBlob {
        let source = BlobSource::generated(size, size);
        let digest = self.simulator.put_blob(REPOSITORY, source.clone());
        TestBlob {
            path: format!("/v2/{REPOSITORY}/blobs/{digest}"),
            digest,
            size,
            source,
        }
    }

    /// Pulls a manifest that names `blob`, so that the proxy knows its size before it asks for it.
    pub async fn introduce(&self, blob: &TestBlob) {
        let manifest = self.manifest_of("introduced", blob);
        let path = format!("/v2/{REPOSITORY}/manifests/{manifest}");
        assert_eq!(self.proxy.client().get(&path).await.status, 200);
    }

    /// Puts a manifest whose only layer is `blob` under `tag`; answers its digest.
    pub fn manifest_of(&self, tag: &str, blob: &TestBlob) -> String {
        let config = self.simulator.put_blob(REPOSITORY, "{}");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
            blob.digest, blob.size
        );
        self.simulator
            .put_manifest(REPOSITORY, tag, MANIFEST, text.into_bytes())
    }

    /// From now on, what storage answers about `blob` goes wrong in this way.
    pub fn spoil(&self, blob: &TestBlob, faults: impl IntoIterator<Item = Fault>) -> RuleHandle {
        self.rule(blob, None, faults)
    }

    /// The next `times` answers of storage about `blob` go wrong in this way.
    pub fn spoil_times(&self, blob: &TestBlob, times: u64, fault: Fault) -> RuleHandle {
        self.rule(blob, Some(times), [fault])
    }

    fn rule(
        &self,
        blob: &TestBlob,
        times: Option<u64>,
        faults: impl IntoIterator<Item = Fault>,
    ) -> RuleHandle {
        let pattern = Pattern::digest(&blob.digest);
        let rule = self
            .simulator
            .faults()
            .on(Listener::Storage, "GET", pattern);
        match times {
            Some(times) => rule.times(times).all(faults),
            None => rule.all(faults),
        }
    }

    /// What storage was asked for the content of `blob`, in order.
    pub fn bodies(&self, blob: &TestBlob) -> Vec<Entry> {
        let mut entries = self.simulator.journal().snapshot();
        entries.retain(|entry| is_body(entry, blob));
        entries
    }

    /// How many bytes of `blob` storage has sent.
    pub fn bytes_sent(&self, blob: &TestBlob) -> u64 {
        self.simulator
            .journal()
            .body_bytes(|entry| is_body(entry, blob))
    }

    /// Asks for `blob` and reads the head of the answer.
    pub async fn begin(&self, blob: &TestBlob) -> (Connection, super::client::Head) {
        let mut connection = self.proxy.client().start("GET", &blob.path, &[]).await;
        let head = connection.head().await.expect("a head");
        (connection, head)
    }

    /// Waits until the proxy has no fill under way.
    pub async fn until_idle(&self) {
        blobs::idle(&self.proxy).await;
    }

    /// Whether the proxy has kept `blob`. Checks invariant I2 on the way: what lies in the cache is
    /// what its name says.
    pub async fn keeps(&self, blob: &TestBlob) -> bool {
        self.until_idle().await;
        self.proxy.assert_blobs_are_sound().contains(&blob.digest)
    }

    /// Gets `blob` and fails unless every byte is right.
    pub async fn assert_pulls(&self, blob: &TestBlob) -> Answer {
        let answer = self.proxy.client().get(&blob.path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_whole(&answer, blob);
        answer
    }
}

fn is_body(entry: &Entry, blob: &TestBlob) -> bool {
    entry.listener == Listener::Storage && entry.digest.as_ref() == Some(&blob.digest)
}

/// Fails unless `answer` ended cleanly with the content of `blob`.
pub fn assert_whole(answer: &Answer, blob: &TestBlob) {
    blobs::assert_content(answer, &blob.digest);
}

/// Fails if `answer` looks like the whole of `blob` and is not (invariant I1), or if more of it
/// was sent than may be before the verdict.
pub fn assert_never_wrong(answer: &Answer, blob: &TestBlob) {
    if answer.status == 200 && answer.clean_end {
        assert_eq!(answer.digest(), blob.digest, "wrong bytes ended cleanly");
    }
    if answer.status == 200 && !answer.clean_end {
        let most = blob.size.saturating_sub(64 * 1024);
        assert!(
            answer.body.len() as u64 <= most,
            "{} of {} bytes were sent before the verdict",
            answer.body.len(),
            blob.size
        );
    }
}
