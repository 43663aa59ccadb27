//! The story of an edge site, with the real program and a real dockerd: an image is warmed up, the link is cut,
//! the power goes, and containers start all the same; what is pinned stays while the disk fills; a bundle carries
//! it to a site that never had a link.

mod support;

use std::path::Path;

use ecr_proxy::simulator::{BlobSource, ImageSpec, Layer, Outage, Simulator};
use support::blobs::until;
use support::image::{GREETING, REPOSITORY, TAG};
use support::real::Dockerd;
use support::{Client, DOMAIN, Proxy, Sandbox, image};

const MIB: u64 = 1 << 20;
const IMAGE: &str = "registry.mydomain.test/team/app:v1";

fn host(proxy: &Proxy) -> String {
    format!("{DOMAIN}:{}", proxy.https().port())
}

/// Pulls the image through `proxy` with dockerd, which has nothing of it, and runs it.
fn dockerd_runs_it(sandbox: &Sandbox, dockerd: &Dockerd, proxy: &Proxy) {
    let host = host(proxy);
    let certs = Path::new("/etc/docker/certs.d").join(&host);
    sandbox.trust(&proxy.pki().ca(), &certs.join("ca.crt"));
    let reference = format!("{host}/{REPOSITORY}:{TAG}");
    let said = dockerd.docker(sandbox, &["pull", &reference]);
    assert!(said.contains("Downloaded newer image"), "{said}");
    let run = ["run", "--rm", "--network", "none", &reference];
    assert_eq!(dockerd.docker(sandbox, &run), GREETING);
    dockerd.docker(sandbox, &["rmi", "--force", &reference]);
}

/// The command must end well; what it printed.
fn must(proxy: &Proxy, arguments: &[&str]) -> String {
    let ended = proxy.run(arguments.iter().copied());
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

async fn readiness(proxy: &Proxy) -> String {
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    ready.text()
}

fn edge_site(simulator: &Simulator) -> Proxy {
    Proxy::builder()
        .simulator(simulator)
        .listen(["https://[::1]:0", "http://127.0.0.1:0"])
        .set("cache.max_size", "24MiB")
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_site_starts_its_containers_whatever_happens_to_the_link() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    image::push(&simulator);
    let ballast = |seed| Layer::Blob(BlobSource::generated(seed, 6 * MIB));
    for (name, seed) in [("other/a", 1), ("other/b", 2), ("other/c", 3)] {
        simulator.create_repository(name);
        let layers = ImageSpec::layers([ballast(seed), ballast(seed + 10)]);
        simulator.push_image(name, TAG, layers);
    }
    let mut proxy = edge_site(&simulator);
    let sandbox = Sandbox::new();
    let dockerd = Dockerd::start(&sandbox);

    // Warmed up beside the running server, then the link is cut and the power goes.
    let platforms = ["warm", IMAGE, "--platform", "linux/amd64"];
    let said = must(&proxy, &platforms);
    assert!(said.contains(REPOSITORY), "{said}");
    simulator.outage(Outage::Refused).await;
    proxy.kill9();
    proxy.restart();
    dockerd_runs_it(&sandbox, &dockerd, &proxy);

    // The link is back, and more is asked for than the disk holds: what is pinned stays.
    simulator.outage(Outage::None).await;
    until("the return is noticed", async || {
        !readiness(&proxy).await.contains("serving from cache")
    })
    .await;
    must(&proxy, &["cache", "pin", IMAGE]);
    for name in ["other/a", "other/b", "other/c"] {
        let image = format!("{DOMAIN}/{name}:{TAG}");
        must(&proxy, &["warm", &image, "--all-platforms"]);
    }
    let evicted = proxy.metrics().await;
    assert!(evicted.sum("ecr_proxy_cache_evictions_total", &[]) > 0.0);
    simulator.outage(Outage::Refused).await;
    proxy.kill9();
    proxy.restart();
    dockerd_runs_it(&sandbox, &dockerd, &proxy);

    // A site that never had a link gets it by bundle.
    let bundle = proxy.dir().join("bundle.tar");
    let bundle = bundle.to_str().expect("UTF-8");
    let export = ["export", IMAGE, "--platform", "linux/amd64", "-o", bundle];
    must(&proxy, &export);
    let island = edge_site(&simulator);
    must(&island, &["import", bundle]);
    dockerd_runs_it(&sandbox, &dockerd, &island);
    until("the island tells that it has no link", async || {
        readiness(&island).await.contains("serving from cache")
    })
    .await;
    for proxy in [&proxy, &island] {
        proxy.assert_blobs_are_sound();
        proxy.assert_no_secrets(&simulator.secrets()).await;
    }
}
