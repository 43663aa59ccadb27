//! The way out through a proxy of the operator's: everything that leaves goes through it, by names that it
//! alone can look up, and nothing else does.

mod support;

use std::path::PathBuf;

use ecr_proxy::simulator::{Listener, Simulator};
use support::Proxy;
use support::connect_proxy::ConnectProxy;
use support::image::{REPOSITORY, TAG, push};
use support::pki::Pki;
use support::proxy::Builder;

const REGISTRY: &str = "registry.upstream.test";
const STORAGE: &str = "storage.upstream.test";
const API: &str = "api.upstream.test";
/// What `operator:p@ss word` comes to.
const LOGIN: &str = "Basic b3BlcmF0b3I6cEBzcyB3b3Jk";
const WRITTEN_LOGIN: &str = "operator:p%40ss%20word";

/// An ECR whose registry, storage and API have names that resolve nowhere.
struct Scene {
    simulator: Simulator,
    egress: ConnectProxy,
    pki: Pki,
    layer: String,
}

impl Scene {
    async fn new(login: Option<&str>, storage: &str) -> Self {
        let pki = Pki::new([REGISTRY, STORAGE, API]);
        let read = |path: PathBuf| std::fs::read(path).expect("a PEM file");
        let simulator = Simulator::builder()
            .tls(read(pki.certificate()), read(pki.key()))
            .tls_api()
            .storage_origin(&format!("https://{storage}"))
            .start()
            .await
            .expect("a simulator");
        let image = push(&simulator);
        let hosts = [
            (REGISTRY, simulator.address(Listener::Registry)),
            (STORAGE, simulator.address(Listener::Storage)),
            (API, simulator.address(Listener::Api)),
        ];
        Self {
            egress: ConnectProxy::start(hosts, login).await,
            layer: image.manifests[0].layers[0].digest.clone(),
            simulator,
            pki,
        }
    }

    fn proxy(&self, set: impl FnOnce(Builder) -> Builder) -> Proxy {
        let proxy = Proxy::builder()
            .simulator(&self.simulator)
            .upstream_key("endpoint", format!("https://{REGISTRY}"))
            .upstream_key("ca", self.pki.ca().to_str().expect("a UTF-8 path"))
            .upstream_key("redirect_hosts", vec![STORAGE, "169.254.169.254"])
            .env("AWS_ENDPOINT_URL_ECR", &format!("https://{API}"))
            .env("RUST_LOG", "trace");
        set(proxy).start()
    }

    fn url(&self, login: &str) -> String {
        format!("http://{login}{}", self.egress.address())
    }

    /// The statuses of a manifest and of one of its layers.
    async fn pull(&self, proxy: &Proxy) -> (u16, u16) {
        let client = proxy.client();
        let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
        let blob = format!("/v2/{REPOSITORY}/blobs/{}", self.layer);
        (
            client.get(&manifest).await.status,
            client.get(&blob).await.status,
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_storage_and_the_api_of_aws_are_reached_through_it() {
    let scene = Scene::new(Some(LOGIN), STORAGE).await;
    let url = scene.url(&format!("{WRITTEN_LOGIN}@"));
    for (name, value) in [("HTTPS_PROXY", &*url), ("https_proxy", &*url)] {
        let proxy = scene.proxy(|proxy| proxy.env(name, value));
        assert_eq!(scene.pull(&proxy).await, (200, 200));
        proxy
            .assert_no_secrets(&[WRITTEN_LOGIN.to_owned(), LOGIN.to_owned()])
            .await;
    }
    let by_key = scene.proxy(|proxy| {
        let proxy = proxy.env("HTTPS_PROXY", "http://127.0.0.1:9");
        proxy.upstream_key("proxy", url.as_str())
    });
    assert_eq!(scene.pull(&by_key).await, (200, 200));
    by_key
        .assert_no_secrets(&[WRITTEN_LOGIN.to_owned(), LOGIN.to_owned()])
        .await;
    for host in [REGISTRY, STORAGE, API] {
        assert!(
            scene.egress.asked_for(host) >= 3,
            "{host}: {:?}",
            scene.egress.asked()
        );
    }
    let is_known = |target: &String| target.ends_with(".upstream.test:443");
    assert!(scene.egress.asked().iter().all(is_known));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_it_refuses_is_told_as_that() {
    let scene = Scene::new(Some(LOGIN), STORAGE).await;
    let url = scene.url("operator:wrong-password@");
    let proxy = scene.proxy(|proxy| proxy.upstream_key("proxy", url.as_str()));
    assert_eq!(scene.pull(&proxy).await.0, 503);
    // The same of a registry that nobody logs in to.
    let anonymous = scene.proxy(|proxy| {
        let proxy = proxy.upstream_key("registry", "registry.example");
        let proxy = proxy.upstream_key("auth", "anonymous");
        proxy.upstream_key("proxy", url.as_str())
    });
    // Each is asked three times, and five failures in a row are an outage.
    assert_eq!(scene.pull(&anonymous).await, (503, 503));
    let told = |event: &support::Event| {
        let error = event.field("error").unwrap_or_default();
        error.contains("the egress proxy wants another login")
    };
    anonymous.log_until("the cause", told).await;
    for proxy in [proxy, anonymous] {
        proxy
            .assert_no_secrets(&["wrong-password".to_owned()])
            .await;
    }
    assert!(scene.simulator.journal().snapshot().is_empty());
    assert!(!scene.egress.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excepted_is_not_asked_of_it() {
    let scene = Scene::new(None, STORAGE).await;
    let excepted = scene.proxy(|proxy| {
        let proxy = proxy.env("HTTPS_PROXY", &scene.url(""));
        proxy.env("NO_PROXY", &format!("other.example, {REGISTRY}"))
    });
    // The API is reached; the registry's name resolves nowhere.
    assert_eq!(scene.pull(&excepted).await.0, 503);
    assert_eq!(scene.egress.asked_for(REGISTRY), 0);
    assert!(scene.egress.asked_for(API) > 0);
    let before = scene.egress.asked().len();
    let without = scene.proxy(|proxy| {
        let proxy = proxy.env("HTTPS_PROXY", &scene.url(""));
        proxy.upstream_key("proxy", "none")
    });
    assert_eq!(scene.pull(&without).await.0, 503);
    assert_eq!(scene.egress.asked().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn this_host_is_never_asked_of_it() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    push(&simulator);
    let egress = ConnectProxy::start([], None).await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .env("HTTPS_PROXY", &format!("http://{}", egress.address()))
        .start();
    let manifest = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    assert_eq!(proxy.client().get(&manifest).await.status, 200);
    assert!(egress.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_no_redirect_leads_through_it_to_where_none_may_lead() {
    let scene = Scene::new(None, "169.254.169.254").await;
    let proxy = scene.proxy(|proxy| proxy.env("HTTPS_PROXY", &scene.url("")));
    let (manifest, blob) = scene.pull(&proxy).await;
    assert_eq!((manifest, blob), (200, 502));
    assert_eq!(scene.egress.asked_for("169.254.169.254"), 0);
}
