//! What a real client meets: a registry that holds the sample image, the proxy in front of it under
//! [`DOMAIN`] with a certificate of a CA that nobody trusts yet, and a sandbox to pull from.

use ecr_proxy::simulator::{Listener, Outage, PushedImage, Simulator};

use super::image::{REPOSITORY, TAG, push};
use super::proxy::Builder;
use super::real::DockerRegistry;
use super::registries::{copy, copy_as};
use super::sandbox::Sandbox;
use super::token_service::{ACCOUNT, SECRET};
use super::{Client, DOMAIN, Proxy, TokenService};

/// What stands behind the proxy.
enum Upstream {
    Simulator(Simulator),
    Registry(DockerRegistry),
}

/// See the module.
pub struct Scene {
    upstream: Upstream,
    image: PushedImage,
    /// The proxy.
    pub proxy: Proxy,
    /// Where the client lives.
    pub sandbox: Sandbox,
}

impl Scene {
    /// The image comes from the simulated ECR.
    pub async fn simulator() -> Self {
        Self::simulator_with(|proxy| proxy).await
    }

    /// The same, with what else is set for the proxy.
    pub async fn simulator_with(set: impl FnOnce(Builder) -> Builder) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = push(&simulator);
        let proxy = set(Proxy::builder().simulator(&simulator));
        let proxy = proxy.listen(["https://[::1]:0"]).start();
        let sandbox = Sandbox::new();
        Self {
            upstream: Upstream::Simulator(simulator),
            image,
            proxy,
            sandbox,
        }
    }

    /// The image comes from Debian's docker-registry, where skopeo has put it.
    pub async fn docker_registry() -> Self {
        Self::docker_registry_with(|proxy| proxy).await
    }

    /// The same, with what else is set for the proxy.
    pub async fn docker_registry_with(set: impl FnOnce(Builder) -> Builder) -> Self {
        Self::before_registry(DockerRegistry::start(), copy, set).await
    }

    /// The same, where the registry lets in only who has a token of this service, as the proxy gets for its
    /// account.
    pub async fn docker_registry_behind(
        tokens: &TokenService,
        set: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let login = format!("{ACCOUNT}:{SECRET}");
        Self::before_registry(
            DockerRegistry::start_behind(tokens),
            |sandbox, from, to, repository| {
                copy_as(sandbox, from, to, repository, &["--dest-creds", &login]);
            },
            |proxy| set(proxy.account(tokens)),
        )
        .await
    }

    async fn before_registry(
        registry: DockerRegistry,
        copy: impl FnOnce(&Sandbox, &Simulator, &DockerRegistry, &str),
        set: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = push(&simulator);
        let sandbox = Sandbox::new();
        copy(&sandbox, &simulator, &registry, REPOSITORY);
        simulator.shutdown().await;
        let proxy = Proxy::builder().registry("registry.upstream.test", &registry.endpoint());
        let proxy = set(proxy);
        let proxy = proxy.listen(["https://[::1]:0"]).start();
        Self {
            upstream: Upstream::Registry(registry),
            image,
            proxy,
            sandbox,
        }
    }

    /// The simulated ECR, where the image comes from one.
    pub fn ecr(&self) -> Option<&Simulator> {
        match &self.upstream {
            Upstream::Simulator(simulator) => Some(simulator),
            Upstream::Registry(_) => None,
        }
    }

    /// The password with which the principal of this access key id logs in to ECR.
    pub fn token(&self, access_key_id: &str) -> String {
        match &self.upstream {
            Upstream::Simulator(simulator) => {
                let token = simulator.token(access_key_id);
                token.expect("a predefined principal").password
            }
            Upstream::Registry(_) => panic!("docker-registry has no tokens"),
        }
    }

    /// The host that clients pull from, with its port.
    pub fn host(&self) -> String {
        format!("{DOMAIN}:{}", self.proxy.https().port())
    }

    /// What clients pull.
    pub fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:{TAG}", self.host())
    }

    /// What the simulator made of the sample image.
    pub fn image(&self) -> &PushedImage {
        &self.image
    }

    /// A client of the upstream itself, which asks for no credentials if it is docker-registry.
    pub fn direct(&self) -> Client {
        Client::plain(match &self.upstream {
            Upstream::Simulator(simulator) => simulator.address(Listener::Registry),
            Upstream::Registry(registry) => registry.address(),
        })
    }

    /// From now on no connection to the upstream succeeds.
    pub async fn stop_upstream(&mut self) {
        match &mut self.upstream {
            Upstream::Simulator(simulator) => simulator.outage(Outage::Refused).await,
            Upstream::Registry(registry) => registry.stop(),
        }
    }

    /// What has to hold after any pulls: every blob that was asked for crossed the link once, what
    /// is on disk is what it says it is, and no secret of the upstream's got out.
    pub async fn assert_promises(&self) {
        let digests = self.proxy.assert_blobs_are_sound();
        assert!(!digests.is_empty(), "nothing was cached");
        let Upstream::Simulator(simulator) = &self.upstream else {
            return;
        };
        for blob in self.image.blobs() {
            let sent = simulator.journal().body_bytes(|entry| {
                entry.listener == Listener::Storage && entry.digest.as_ref() == Some(&blob.digest)
            });
            assert!(
                sent <= blob.size,
                "{}: {sent} bytes of {}",
                blob.digest,
                blob.size
            );
            assert_eq!(sent > 0, digests.contains(&blob.digest), "{}", blob.digest);
        }
        self.proxy.assert_no_secrets(&simulator.secrets()).await;
    }
}
