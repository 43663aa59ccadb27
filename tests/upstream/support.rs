//! A simulated ECR and an upstream that talks to it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecr_proxy::oci::{Digest, RepositoryName};
use ecr_proxy::simulator::{BlobSource, FULL_ACCESS_KEY, Listener, Simulator};
use ecr_proxy::upstream::{
    Auth, AwsOptions, BlobBody, Limits, Registry, Secret, Span, StaticKeys, Upstream,
    UpstreamError, UpstreamMetrics, UpstreamOptions,
};

pub(crate) struct Rig {
    pub(crate) sim: Simulator,
    pub(crate) upstream: Upstream,
}

/// A simulator with the repository `app`, and an upstream with all rights and short deadlines.
pub(crate) async fn rig() -> Rig {
    rig_with(|_| {}).await
}

pub(crate) async fn rig_with(change: impl FnOnce(&mut UpstreamOptions)) -> Rig {
    let sim = Simulator::builder().start().await.unwrap();
    sim.create_repository("app");
    let mut options = options(&sim, FULL_ACCESS_KEY);
    change(&mut options);
    Rig {
        upstream: upstream(options),
        sim,
    }
}

pub(crate) fn upstream(options: UpstreamOptions) -> Upstream {
    Upstream::new(options, &UpstreamMetrics::default()).unwrap()
}

pub(crate) fn options(sim: &Simulator, access_key_id: &str) -> UpstreamOptions {
    UpstreamOptions {
        auth: Auth::Aws(AwsOptions {
            keys: Some(StaticKeys {
                access_key_id: access_key_id.to_owned(),
                secret_access_key: Secret::new("canary-secret-access-key"),
            }),
            api_endpoint: Some(sim.api_endpoint()),
            ..AwsOptions::default()
        }),
        ..plain(&sim.registry_host(), &sim.endpoint())
    }
}

/// An upstream without credentials.
pub(crate) fn plain(registry: &str, endpoint: &str) -> UpstreamOptions {
    let registry = Registry::parse(registry).unwrap();
    UpstreamOptions {
        endpoint: Some(endpoint.parse().unwrap()),
        limits: limits(),
        ..UpstreamOptions::new("test", registry, Auth::Anonymous)
    }
}

/// Deadlines that a test may wait for, and that a loaded machine keeps.
pub(crate) fn limits() -> Limits {
    Limits {
        first_byte: Duration::from_secs(3),
        progress: Duration::from_secs(3),
        ..Limits::default()
    }
}

pub(crate) fn app() -> RepositoryName {
    "app".parse().unwrap()
}

/// Bytes that compress badly and repeat nowhere.
pub(crate) fn content(len: u64) -> Bytes {
    BlobSource::generated(7, len).read(0..len)
}

impl Rig {
    /// Stores a blob in `app`.
    pub(crate) fn put(&self, bytes: &Bytes) -> Digest {
        let digest = self.sim.put_blob("app", BlobSource::Bytes(bytes.clone()));
        digest.parse().unwrap()
    }

    pub(crate) async fn whole(&self, digest: &Digest) -> Result<Bytes, UpstreamError> {
        let mut body = self
            .upstream
            .blob(&app(), digest, Span::WHOLE, None)
            .await?;
        read(&mut body).await
    }

    /// Requests that arrived at a listener.
    pub(crate) fn asked(&self, listener: Listener) -> usize {
        self.sim.journal().count(|entry| entry.listener == listener)
    }
}

/// The rest of a body.
pub(crate) async fn read(body: &mut BlobBody) -> Result<Bytes, UpstreamError> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// All that a body brought before it failed, and how it failed.
pub(crate) async fn read_until_error(body: &mut BlobBody) -> (Bytes, UpstreamError) {
    let mut bytes = BytesMut::new();
    loop {
        match body.next().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => panic!("the body ended without an error"),
            Err(error) => return (bytes.freeze(), error),
        }
    }
}
