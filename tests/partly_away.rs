//! One part of upstream is out of reach, or another answers in its place, such as a network that wants a
//! login: that part is named, what is kept is served, and nothing but the registry's own word is taken
//! for what is there or not (O08; promise 6).

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ecr_proxy::simulator::{
    BlobSource, CannedAnswer, Fault, Listener, Outage, Pattern, PushedImage, Simulator,
};
use support::blobs::{metric, outcome, until};
use support::image::{REPOSITORY, TAG};
use support::names::{NameServer, Says};
use support::port::Port;
use support::{Answer, Client, Pki, Proxy, Stopwatch, image};
use tempfile::TempDir;

const REGISTRY: &str = "registry.upstream.test";
const STORAGE: &str = "storage.upstream.test";
const API: &str = "api.upstream.test";

/// An address at which no name server listens.
const NO_NAME_SERVER: &str = "127.53.53.54";

/// For what takes no time of its own, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(750);

/// Within which a client is told, with the same addition.
const TOLD: Duration = Duration::from_millis(5750);

/// How many questions find out, at most: more than failures in a row that are needed.
const ENOUGH: usize = 12;

/// Upstream under names of its own, and a proxy that has cached its image all but one layer.
struct Scene {
    simulator: Simulator,
    image: PushedImage,
    proxy: Proxy,
    hosts: PathBuf,
    _dir: TempDir,
}

impl Scene {
    async fn new(name_server: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let pki = Pki::new([REGISTRY, STORAGE, API]);
        let read = |path: PathBuf| fs::read(path).expect("a PEM file");
        // Its port has to be known before anything says so.
        let held = Port::v4();
        let storage = held.address();
        let any = "127.0.0.1:0".parse().expect("an address");
        let simulator = Simulator::builder()
            .bind(any, storage, any)
            .tls(read(pki.certificate()), read(pki.key()))
            .tls_api()
            .storage_origin(&format!("https://{STORAGE}:{}", storage.port()))
            .start()
            .await
            .expect("a simulator");
        let image = image::push(&simulator);
        let hosts = dir.path().join("hosts");
        let resolver = dir.path().join("resolv.conf");
        fs::write(&resolver, format!("nameserver {name_server}\n")).expect("a writable folder");
        fs::write(&hosts, hosts_of(&[REGISTRY, STORAGE, API])).expect("a writable folder");
        let port = |listener| simulator.address(listener).port();
        let at = |name: &str, listener| format!("https://{name}:{}", port(listener));
        let proxy = Proxy::builder()
            .simulator(&simulator)
            .upstream_key("endpoint", at(REGISTRY, Listener::Registry))
            .upstream_key("ca", pki.ca().to_str().expect("a UTF-8 path"))
            .upstream_key(
                "redirect_hosts",
                vec![format!("{STORAGE}:{}", storage.port())],
            )
            .env("AWS_ENDPOINT_URL_ECR", &at(API, Listener::Api))
            .set("cache.tag_ttl", "0s")
            .mount(&format!(
                "mount --bind {} /etc/hosts; mount --bind {} /etc/resolv.conf",
                hosts.display(),
                resolver.display()
            ))
            .start();
        let scene = Self {
            simulator,
            image,
            proxy,
            hosts,
            _dir: dir,
        };
        for path in [scene.tag(), scene.manifest(), scene.kept()] {
            let answer = scene.client().get(&path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        scene
    }

    /// Only these names can be resolved from now on; connections made before are closed.
    async fn name(&self, names: &[&str]) {
        self.simulator.outage(Outage::Refused).await;
        fs::write(&self.hosts, hosts_of(names)).expect("a writable file");
        self.simulator.outage(Outage::None).await;
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    fn tag(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{TAG}")
    }

    /// A tag that there is none of, and that nobody asked for before: absence is remembered for a moment.
    fn unseen(&self) -> String {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        format!("/v2/{REPOSITORY}/manifests/unseen-{number}")
    }

    fn manifest(&self) -> String {
        let digest = &self.image.manifests[0].manifest.digest;
        format!("/v2/{REPOSITORY}/manifests/{digest}")
    }

    fn layer(&self, number: usize) -> String {
        let digest = &self.image.manifests[0].layers[number].digest;
        format!("/v2/{REPOSITORY}/blobs/{digest}")
    }

    fn kept(&self) -> String {
        self.layer(0)
    }

    /// What is kept, in a repository that does not hold it.
    fn foreign(&self) -> String {
        let digest = &self.image.manifests[0].layers[0].digest;
        format!("/v2/other/blobs/{digest}")
    }

    async fn readiness(&self) -> String {
        let ready = Client::operator(self.proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200, "hits can be served: {}", ready.text());
        ready.text()
    }

    async fn status(&self) -> String {
        let admin = Client::operator(self.proxy.admin());
        admin.get("/api/v1/status").await.text()
    }

    async fn gauge(&self, name: &str) -> f64 {
        metric(&self.proxy, name, &[]).await
    }

    /// Asks for what is not kept until `metric` tells; each who asks learns in time that it cannot be had.
    async fn find_out(&self, told: &str, path: &str, metric: &str) {
        for _ in 0..ENOUGH {
            if self.gauge(metric).await == 1.0 {
                return;
            }
            assert_unknown(told, &self.client(), path).await;
        }
        panic!("{told}: {metric} is not 1 after {ENOUGH} questions");
    }

    /// What is kept is served at once, what is not is told so, and nothing is taken for absent.
    async fn assert_serves_from_cache(&self, told: &str) {
        let client = self.client();
        let began = Stopwatch::start();
        for path in [self.manifest(), self.kept()] {
            let hit = client.get(&path).await;
            assert_eq!(outcome(&hit), Some("hit"), "{told}: {path}");
        }
        let stale = client.get(&self.tag()).await;
        assert_eq!(outcome(&stale), Some("stale"), "{told}: {}", stale.text());
        for path in [self.unseen(), self.layer(1), self.foreign()] {
            let miss = assert_unknown(told, &client, &path).await;
            assert_eq!(miss.status, 503, "{told}: {path}: {}", miss.text());
        }
        let took = began.took();
        assert!(took < AT_ONCE, "{told}: {took:?} for six answers");
    }

    /// All is as before, and what another said in upstream's place left no trace.
    async fn assert_recovers(&self, told: &str) {
        let client = self.client();
        until(&format!("{told}: the tag is asked for again"), async || {
            outcome(&client.get(&self.tag()).await) == Some("hit")
        })
        .await;
        until(&format!("{told}: the missing layer comes"), async || {
            client.get(&self.layer(1)).await.status == 200
        })
        .await;
        for path in [self.manifest(), self.kept()] {
            let hit = client.get(&path).await;
            assert_eq!(outcome(&hit), Some("hit"), "{told}: {path}");
        }
        assert_eq!(client.get(&self.unseen()).await.status, 404, "{told}");
        let foreign = client.get(&self.foreign()).await;
        assert_eq!(foreign.status, 404, "{told}: {}", foreign.text());
        let ready = self.readiness().await;
        assert!(!ready.contains("upstream"), "{told}: {ready}");
        self.proxy.assert_blobs_are_sound();
    }
}

/// The file of hosts that knows these names.
fn hosts_of(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("127.0.0.1 {name}\n"))
        .collect()
}

/// That it cannot be known is told in time, and is neither absence nor content.
async fn assert_unknown(told: &str, client: &Client, path: &str) -> Answer {
    let began = Stopwatch::start();
    let answer = client.get(path).await;
    let (took, status) = (began.took(), answer.status);
    assert!(took < TOLD, "{told}: {path}: {took:?}");
    assert!(
        matches!(status, 502..=504),
        "{told}: {path}: {status}: {}",
        answer.text()
    );
    if status != 502 {
        assert!(answer.header("retry-after").is_some(), "{told}: {path}");
    }
    assert!(!answer.error_code().is_empty(), "{told}: {path}");
    answer
}

/// Who answers in the place of another.
#[derive(Clone, Copy, Debug)]
enum Portal {
    /// With a certificate of its own.
    Certificate,
    /// With a page of this status.
    Page(u16),
    /// By sending everybody to its login.
    Login,
}

const PORTALS: [Portal; 6] = [
    Portal::Certificate,
    Portal::Page(200),
    Portal::Page(403),
    Portal::Page(404),
    Portal::Page(511),
    Portal::Login,
];

impl Portal {
    async fn enter(self, simulator: &Simulator, listener: Listener) {
        let canned = |status, headers: Vec<(&'static str, String)>| {
            let body = Bytes::from_static(b"<!doctype html><title>Sign in to the network</title>");
            let answer = CannedAnswer {
                status,
                headers,
                body,
            };
            let faults = simulator.faults();
            faults
                .on(listener, "*", Pattern::any())
                .then(Fault::Answer(answer));
        };
        let html = ("content-type", "text/html".to_owned());
        match self {
            Self::Certificate => simulator.outage_of(listener, Outage::Impostor).await,
            Self::Page(status) => canned(status, vec![html]),
            Self::Login => {
                let login = "https://login.portal.example/?next=registry";
                canned(302, vec![html, ("location", login.to_owned())]);
            }
        }
    }

    async fn leave(simulator: &Simulator, listener: Listener) {
        simulator.faults().clear();
        simulator.outage_of(listener, Outage::None).await;
    }

    fn words(self) -> &'static str {
        match self {
            Self::Certificate => "TLS is not trusted",
            Self::Page(_) | Self::Login => "a page answers in its place",
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_a_portal_in_the_place_of_the_registry_is_named_and_not_believed() {
    for portal in PORTALS {
        let told = format!("{portal:?}");
        let scene = Scene::new(NO_NAME_SERVER).await;
        portal.enter(&scene.simulator, Listener::Registry).await;
        // Its first answers already are not taken for the registry's, nor for a proof.
        for path in [scene.foreign(), scene.layer(1)] {
            assert_unknown(&told, &scene.client(), &path).await;
        }
        let stale = scene.client().get(&scene.tag()).await;
        assert_eq!(outcome(&stale), Some("stale"), "{told}: {}", stale.text());
        let open = "ecr_proxy_upstream_breaker_open";
        scene.find_out(&told, &scene.unseen(), open).await;
        let ready = scene.readiness().await;
        assert!(
            ready.contains("the registry does not answer since") && ready.contains(portal.words()),
            "{told}: {ready}"
        );
        assert!(scene.status().await.contains(portal.words()), "{told}");
        scene.assert_serves_from_cache(&told).await;
        Portal::leave(&scene.simulator, Listener::Registry).await;
        scene.assert_recovers(&told).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_a_portal_in_the_place_of_storage_is_named_and_its_pages_are_not_kept() {
    for portal in PORTALS {
        let told = format!("{portal:?}");
        let scene = Scene::new(NO_NAME_SERVER).await;
        portal.enter(&scene.simulator, Listener::Storage).await;
        let away = "ecr_proxy_upstream_storage_away";
        scene.find_out(&told, &scene.layer(1), away).await;
        let ready = scene.readiness().await;
        assert!(
            ready.contains("storage does not answer since") && ready.contains(portal.words()),
            "{told}: {ready}"
        );
        assert!(!ready.contains("the registry"), "{told}: {ready}");
        assert!(scene.status().await.contains(portal.words()), "{told}");
        // The registry is asked as ever.
        let fresh = scene.client().get(&scene.tag()).await;
        assert_eq!(outcome(&fresh), Some("hit"), "{told}");
        assert_eq!(scene.client().get(&scene.unseen()).await.status, 404);
        Portal::leave(&scene.simulator, Listener::Storage).await;
        scene.assert_recovers(&told).await;
        assert_eq!(scene.gauge(away).await, 0.0, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_a_portal_in_the_place_of_the_token_service_is_named() {
    for portal in PORTALS {
        let told = format!("{portal:?}");
        let scene = Scene::new(NO_NAME_SERVER).await;
        portal.enter(&scene.simulator, Listener::Api).await;
        // The token in hand is good.
        let fresh = scene.client().get(&scene.tag()).await;
        assert_eq!(outcome(&fresh), Some("hit"), "{told}");
        scene.simulator.expire_tokens();
        let open = "ecr_proxy_upstream_breaker_open";
        scene.find_out(&told, &scene.unseen(), open).await;
        let ready = scene.readiness().await;
        assert!(
            ready.contains("no credentials since")
                && ready.contains("something else answers in the token service's place"),
            "{told}: {ready}"
        );
        scene.assert_serves_from_cache(&told).await;
        Portal::leave(&scene.simulator, Listener::Api).await;
        let left = Stopwatch::start();
        scene.assert_recovers(&told).await;
        // Well before the longest wait between two tries.
        assert!(left.took() < TOLD, "{told}: {:?}", left.took());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_where_only_names_are_dead_each_that_is_needed_is_told_by_its_place() {
    let scene = Scene::new(NO_NAME_SERVER).await;
    let away = "ecr_proxy_upstream_storage_away";
    let open = "ecr_proxy_upstream_breaker_open";

    scene.name(&[REGISTRY, API]).await;
    scene.find_out("storage", &scene.layer(1), away).await;
    let ready = scene.readiness().await;
    assert!(
        ready.contains("storage does not answer since")
            && ready.contains("its name does not resolve"),
        "{ready}"
    );
    assert!(!ready.contains("the registry"), "{ready}");
    let fresh = scene.client().get(&scene.tag()).await;
    assert_eq!(outcome(&fresh), Some("hit"));
    scene.name(&[REGISTRY, STORAGE, API]).await;
    scene.assert_recovers("storage").await;

    let seed = BlobSource::generated(3, 1000);
    let cold = scene.simulator.put_blob(REPOSITORY, seed);
    let cold = format!("/v2/{REPOSITORY}/blobs/{cold}");
    scene.name(&[]).await;
    scene.find_out("all", &cold, open).await;
    let ready = scene.readiness().await;
    assert!(
        ready.contains("the registry does not answer since")
            && ready.contains("its name does not resolve"),
        "{ready}"
    );
    let began = Stopwatch::start();
    let stale = scene.client().get(&scene.tag()).await;
    assert_eq!(outcome(&stale), Some("stale"));
    assert_unknown("all", &scene.client(), &cold).await;
    assert!(began.took() < AT_ONCE, "{:?}", began.took());
    scene.name(&[REGISTRY, STORAGE, API]).await;
    scene.assert_recovers("all").await;
    assert_eq!(scene.client().get(&cold).await.status, 200);

    scene.name(&[REGISTRY, STORAGE]).await;
    scene.simulator.expire_tokens();
    scene.find_out("tokens", &scene.unseen(), open).await;
    let ready = scene.readiness().await;
    assert!(
        ready.contains("no credentials since")
            && ready.contains("the token service is unreachable"),
        "{ready}"
    );
    scene.name(&[REGISTRY, STORAGE, API]).await;
    scene.assert_recovers("tokens").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn o08_a_name_server_that_never_answers_is_told_in_time_and_by_its_name() {
    let silent = NameServer::start(Says::Silence);
    let scene = Scene::new(&silent.address().to_string()).await;
    scene.name(&[]).await;
    let open = "ecr_proxy_upstream_breaker_open";
    scene.find_out("silent", &scene.unseen(), open).await;
    let ready = scene.readiness().await;
    assert!(
        ready.contains("the registry does not answer since")
            && ready.contains("its name does not resolve"),
        "{ready}"
    );
    scene.assert_serves_from_cache("silent").await;
    scene.name(&[REGISTRY, STORAGE, API]).await;
    scene.assert_recovers("silent").await;
}
