//! A real client that pulls one image after another while a region is lost and comes back: it is served
//! throughout, from the region that stands in as long as it takes.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use ecr_proxy::simulator::{Outage, Simulator};
use support::blobs::{metric, until};
use support::image::spec_saying;
use support::real::{podman, podman_greeting};
use support::two::Two;
use support::{DOMAIN, Sandbox};

const BREAKER_OPEN: &str = "ecr_proxy_upstream_breaker_open";

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_one_image_after_another_while_the_first_region_is_cut_and_comes_back() {
    const TAGS: usize = 12;
    let two = Two::start().await;
    for tag in 0..TAGS {
        for simulator in [&two.prod, &two.base] {
            let spec = spec_saying(&format!("image {tag}"));
            simulator.push_image("team/app", &format!("v{tag}"), spec);
        }
    }
    let proxy = two.builder().upstream_key("fallback", vec!["base"]);
    let proxy = proxy
        .listen(["https://[::1]:0", "http://127.0.0.1:0"])
        .route([("repository", "**"), ("upstream", "prod")])
        .start();
    let sandbox = Sandbox::new();
    let host = format!("{DOMAIN}:{}", proxy.https().port());
    let certs = Path::new("/etc/containers/certs.d").join(&host);
    sandbox.trust(&proxy.pki().ca(), &certs.join("ca.crt"));
    let done = AtomicUsize::new(0);
    let (noticed, is_noticed) = std::sync::mpsc::channel();
    let done = &done;
    let client = move || {
        for tag in 0..TAGS {
            if tag == TAGS - 1 {
                is_noticed.recv().expect("the return of the region");
            }
            let image = format!("{host}/team/app:v{tag}");
            podman(&sandbox, &["pull", "--quiet", &image]);
            let greeting = podman_greeting(&sandbox, &image);
            assert_eq!(greeting, format!("image {tag}"));
            done.fetch_add(1, Ordering::SeqCst);
        }
    };
    let pulled = async |count: usize| {
        until("podman pulls", async || {
            done.load(Ordering::SeqCst) >= count
        })
        .await;
    };
    let region = async {
        // Where this ends early, podman does not wait for ever.
        let noticed = noticed;
        pulled(TAGS / 3).await;
        two.prod.outage(Outage::Refused).await;
        pulled(2 * TAGS / 3).await;
        two.prod.outage(Outage::None).await;
        until("the return of the region is noticed", async || {
            metric(&proxy, BREAKER_OPEN, &[r#"upstream="prod""#]).await == 0.0
        })
        .await;
        noticed.send(()).expect("podman waits");
        pulled(TAGS).await;
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(client);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(region));
        client.join().expect("podman got what it asked for");
    });
    let asked_of = |simulator: &Simulator, tag: usize| {
        let path = format!("/v2/team/app/manifests/v{tag}");
        let journal = simulator.journal().snapshot();
        journal
            .iter()
            .any(|entry| entry.path == path && entry.status == Some(200))
    };
    assert!(asked_of(&two.prod, 0) && !asked_of(&two.base, 0));
    let mut tags = 0..TAGS;
    assert!(
        tags.any(|tag| asked_of(&two.base, tag)),
        "nothing was pulled from the second region"
    );
    assert!(
        asked_of(&two.prod, TAGS - 1),
        "the first region is not asked again"
    );
    proxy.assert_blobs_are_sound();
}
