//! Whatever a name server says, or does not say, of a registry's name: who asks for what is not here is told in
//! time, what is here is served, and an address that leads somewhere is found among those that do not.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ecr_proxy::simulator::{ImageSpec, Listener, Simulator};
use socket2::{Domain, Socket, Type};
use support::blobs::until;
use support::image::{REPOSITORY, TAG, push};
use support::names::{NameServer, Says};
use support::{Pki, Proxy, Stopwatch};

const REGISTRY: &str = "registry.upstream.test";

/// A lookup of the system's own takes ten seconds to be given up.
const IN_TIME: Duration = Duration::from_secs(9);

struct Scene {
    simulator: Simulator,
    names: NameServer,
    proxy: Proxy,
    digest: String,
    pki: Pki,
}

impl Scene {
    async fn new(says: Says) -> Self {
        let pki = Pki::new([REGISTRY, "127.0.0.1"]);
        let read = |path| std::fs::read(path).expect("a PEM file");
        let simulator = Simulator::builder().tls(read(pki.certificate()), read(pki.key()));
        let simulator = simulator.start().await.expect("a simulator");
        let image = push(&simulator);
        let names = NameServer::start(says);
        let port = simulator.address(Listener::Registry).port();
        let proxy = Proxy::builder()
            .simulator(&simulator)
            .upstream_key("endpoint", format!("https://{REGISTRY}:{port}"))
            .upstream_key("ca", pki.ca().to_str().expect("a UTF-8 path"))
            .mount(&names.mount())
            .start();
        Self {
            simulator,
            names,
            proxy,
            digest: image.top.digest,
            pki,
        }
    }

    async fn manifest(&self, tag: &str) -> u16 {
        let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
        self.proxy.client().get(&path).await.status
    }
}

fn here() -> Says {
    Says::To(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
}

async fn is_told_and_recovers(says: Says) {
    let scene = Scene::new(here()).await;
    assert_eq!(scene.manifest(TAG).await, 200, "{says:?}");
    let kept = format!("/v2/{REPOSITORY}/manifests/{}", scene.digest);
    // Another start, so that no connection is left which needs no name.
    let Scene {
        simulator,
        names,
        mut proxy,
        digest,
        pki: _pki,
    } = scene;
    simulator.push_image(REPOSITORY, "new", ImageSpec::generated(4, [1000]));
    proxy.terminate();
    assert!(proxy.wait().success());
    names.say(says.clone());
    proxy.restart();
    let before = names.asked();
    let new = format!("/v2/{REPOSITORY}/manifests/new");
    let client = proxy.client();
    let began = Stopwatch::start();
    let waiting = tokio::spawn({
        let (client, new) = (client.clone(), new.clone());
        async move { client.get(&new).await }
    });
    // What is here needs no name.
    let hit = client.get(&kept).await;
    assert_eq!((hit.status, hit.digest()), (200, digest), "{says:?}");
    let told = waiting.await.expect("no panic");
    assert_eq!(told.status, 503, "{says:?}: {}", told.text());
    assert_eq!(told.error_code(), "UNAVAILABLE");
    assert!(told.header("retry-after").is_some());
    assert!(began.took() < IN_TIME, "{says:?}: {:?}", began.took());
    assert!(names.asked() > before, "{says:?}: nobody was asked");
    let is_told = |event: &support::Event| {
        let error = event.field("error").unwrap_or_default();
        error.contains("its name does not resolve")
    };
    proxy.log_until("why", is_told).await;

    names.say(here());
    until("it recovers", async || client.get(&new).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u15_a_name_that_leads_nowhere_is_told_in_time_and_is_asked_for_again() {
    for says in [Says::NoName, Says::NoAddress, Says::Failure, Says::Silence] {
        is_told_and_recovers(says).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u15_an_address_that_answers_is_found_among_those_that_do_not() {
    let scene = Scene::new(Says::NoName).await;
    let port = scene.simulator.address(Listener::Registry).port();
    // Nobody accepts there, and the queue of those who wait is full: what else comes is dropped.
    let deaf = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    let _full = deaf.map(|address| {
        let address = SocketAddr::from((address, port));
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&address.into()).expect("a free port");
        listener.listen(0).expect("a listener");
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_nonblocking(true).expect("a socket");
                let _under_way = socket.connect(&address.into());
                socket
            })
            .collect();
        (listener, waiting)
    });
    let deaf = deaf.map(IpAddr::V4);
    let nobody = [
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4)),
    ];
    let live = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let all = [&nobody[..], &deaf, &live].concat();
    scene.names.say(Says::To(all));
    let began = Stopwatch::start();
    assert_eq!(scene.manifest(TAG).await, 200);
    assert!(began.took() < IN_TIME, "{:?}", began.took());
    assert!(scene.names.asked() > 0);
}
