//! Whatever a name server says, or does not say, of a registry's name: who asks for what is not here is told in
//! time, what is here is served, and an address that leads somewhere is found among those that do not. Where a
//! name of storage leads into a private network, nobody goes.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ecr_proxy::simulator::{Fault, ImageSpec, Listener, Pattern, Simulator};
use socket2::{Domain, Socket, Type};
use support::blobs::until;
use support::image::{REPOSITORY, TAG, push};
use support::names::{NameServer, Says};
use support::network::in_own_network;
use support::{Pki, Proxy, Stopwatch, within};
use tokio::net::TcpListener;

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

/// A listener at each of these addresses, to which nobody has come.
async fn listeners(addresses: &[&str]) -> Vec<(IpAddr, TcpListener)> {
    let mut listeners = Vec::new();
    for address in addresses {
        let address = address.parse().expect("an address");
        let listener = TcpListener::bind(SocketAddr::new(address, 443)).await;
        listeners.push((address, listener.expect("an address of this network")));
    }
    listeners
}

#[test]
fn s11_a_name_of_storage_that_leads_into_a_forbidden_network_is_not_dialled() {
    const PUBLIC: &str = "52.94.76.1";
    const FORBIDDEN: [&str; 8] = [
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "198.18.0.1",
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
        "2002:a00:1::1",
    ];
    let all: Vec<&str> = FORBIDDEN.into_iter().chain([PUBLIC]).collect();
    in_own_network(&all, async || {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        push(&simulator);
        let names = NameServer::start(Says::NoName);
        let proxy = Proxy::builder().simulator(&simulator).mount(&names.mount());
        let proxy = proxy.start();
        // One of those that ECR may name.
        let host = simulator.registry_host();
        let region = host.split('.').nth(3).expect("a region").to_owned();
        let storage = format!("prod-{region}-starport-layer-bucket.s3.{region}.amazonaws.com");
        let mut number = 0_u32;
        let mut ask = async |addresses: Vec<IpAddr>| {
            number += 1;
            let digest = simulator.put_blob(REPOSITORY, number.to_le_bytes().to_vec());
            let rule = simulator.faults();
            let rule = rule.on(Listener::Registry, "GET", Pattern::digest(&digest));
            let signed = format!("https://{storage}/x?X-Amz-Signature=canary-signature");
            rule.then(Fault::redirect(&signed));
            names.say(Says::To(addresses));
            let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
            proxy.client().get(&path).await
        };
        let traps = listeners(&FORBIDDEN).await;
        let public = listeners(&[PUBLIC]).await;
        for (address, _) in &traps {
            let asked = names.asked();
            let answer = ask(vec![*address]).await;
            assert_eq!(answer.status, 502, "{address}: {}", answer.text());
            assert!(names.asked() > asked, "{address}: nobody asked for it");
        }
        let is_told = |event: &support::Event| {
            let error = event.field("error").unwrap_or_default();
            error.contains("forbidden network")
        };
        proxy.log_until("why", is_told).await;
        // One that may be dialled is, from among all.
        let every = traps.iter().chain(&public).map(|(address, _)| *address);
        let (_, public) = &public[0];
        let dialled = async {
            drop(within("the public one is dialled", public.accept()).await);
        };
        let every = every.filter(IpAddr::is_ipv4).collect();
        let (answer, ()) = tokio::join!(ask(every), dialled);
        assert!((500..600).contains(&answer.status), "{}", answer.status);
        for (address, trap) in &traps {
            let came = tokio::time::timeout(Duration::ZERO, trap.accept()).await;
            assert!(came.is_err(), "somebody connected to {address}");
        }
        let canary = "canary-signature".to_owned();
        proxy.assert_no_secrets(&[canary]).await;
    });
}
