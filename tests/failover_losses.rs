//! However a region is lost, whole or in part, what it had is pulled from the next one: the first few find out, the
//! others do not wait, and its return is noticed by itself.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ecr_proxy::simulator::{BlobSource, Fault, Listener, Outage, Pattern, Simulator};
use futures_util::future::join_all;
use support::blobs::until;
use support::two::{Two, pull, put};
use support::{Client, Proxy, Stopwatch};

const SIZE: u64 = 1 << 18;

/// Pulls that find out at once: more than failures in a row that are needed.
const FIRST: usize = 6;

/// Pulls after those, one after the other.
const LATER: usize = 5;

/// What they all take, on a busy machine: less than one that waits for the region.
const AT_ONCE: Duration = Duration::from_secs(4);

/// What of a region is away.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Registry,
    Storage,
}

struct Scene {
    two: Two,
    proxy: Proxy,
    next: AtomicU64,
}

impl Scene {
    fn new(two: Two) -> Self {
        Self {
            proxy: two.with_fallback().start(),
            next: AtomicU64::new(1),
            two,
        }
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    /// Pulls an image that both regions have and nobody has asked for: what `X-Cache` said of manifest and layer.
    async fn pull_cold(&self) -> (String, String) {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        let tag = format!("v{seed}");
        for simulator in [&self.two.prod, &self.two.base] {
            put(
                simulator,
                "team/app",
                &tag,
                BlobSource::generated(seed, SIZE),
            );
        }
        let pulled = pull(&self.client(), &tag).await;
        pulled.unwrap_or_else(|| panic!("{tag} failed"))
    }

    /// What operators are told of the first region.
    async fn told(&self) -> serde_json::Value {
        let operator = Client::operator(self.proxy.admin());
        let status = operator.get("/api/v1/status").await;
        status.json()["upstreams"][0].clone()
    }

    /// The part is away: what it had comes from the next region, and soon at once.
    async fn assert_lost(&self, part: Part) {
        let assert_by_the_next = |(manifest, layer): &(String, String)| {
            let is_of_another = |said: &str| said.ends_with("; fallback");
            assert_eq!(
                is_of_another(manifest),
                part == Part::Registry,
                "{manifest}"
            );
            assert!(is_of_another(layer), "{layer}");
        };
        let first = join_all((0..FIRST).map(|_| self.pull_cold())).await;
        first.iter().for_each(assert_by_the_next);
        let watch = Stopwatch::start();
        for _ in 0..LATER {
            assert_by_the_next(&self.pull_cold().await);
        }
        let took = watch.took();
        assert!(took < AT_ONCE, "{took:?}");
        let told = self.told().await;
        assert_eq!(told["stand_in"], "base", "{told}");
        let outage = match part {
            Part::Registry => "outage",
            Part::Storage => "storage_outage",
        };
        assert!(told[outage]["reason"].is_string(), "{told}");
    }

    /// The region is there again.
    async fn assert_back(&self) {
        until("the first region is back", async || {
            let (manifest, layer) = self.pull_cold().await;
            (&*manifest, &*layer) == ("miss", "miss")
        })
        .await;
        let told = self.told().await;
        assert!(told["stand_in"].is_null(), "{told}");
    }
}

/// Everything that this listener there is asked is answered with failure.
fn fail(simulator: &Simulator, listener: Listener) {
    let faults = simulator.faults();
    faults
        .on(listener, "*", Pattern::any())
        .then(Fault::status(503, "out of order"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_silent_or_resets_connections() {
    for outage in [Outage::Silent, Outage::Reset] {
        let scene = Scene::new(Two::start().await);
        let (manifest, layer) = scene.pull_cold().await;
        assert_eq!((&*manifest, &*layer), ("miss", "miss"));
        scene.two.prod.outage(outage).await;
        scene.assert_lost(Part::Registry).await;
        scene.two.prod.outage(Outage::None).await;
        scene.assert_back().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_fails_at_everything() {
    let scene = Scene::new(Two::start().await);
    let (manifest, layer) = scene.pull_cold().await;
    assert_eq!((&*manifest, &*layer), ("miss", "miss"));
    for listener in Listener::ALL {
        fail(&scene.two.prod, listener);
    }
    scene.assert_lost(Part::Registry).await;
    scene.two.prod.faults().clear();
    scene.assert_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_without_tokens_whose_registry_is_there() {
    for is_silent in [false, true] {
        let two = Two::start().await;
        match is_silent {
            true => two.prod.outage_of(Listener::Api, Outage::Silent).await,
            false => fail(&two.prod, Listener::Api),
        }
        let scene = Scene::new(two);
        scene.assert_lost(Part::Registry).await;
        scene.two.prod.faults().clear();
        let api = scene.two.prod.outage_of(Listener::Api, Outage::None);
        api.await;
        scene.assert_back().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_whose_storage_alone_is_away() {
    let losses = [Some(Outage::Refused), Some(Outage::Silent), None];
    join_all(losses.map(|loss| async move {
        let scene = Scene::new(Two::start().await);
        let (_, layer) = scene.pull_cold().await;
        assert_eq!(layer, "miss");
        let prod = &scene.two.prod;
        match loss {
            Some(outage) => prod.outage_of(Listener::Storage, outage).await,
            None => fail(prod, Listener::Storage),
        }
        scene.assert_lost(Part::Storage).await;
        prod.faults().clear();
        prod.outage_of(Listener::Storage, Outage::None).await;
        scene.assert_back().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_does_not_answer_is_asked_all_the_same_for_what_no_other_region_has() {
    let scene = Scene::new(Two::start().await);
    let prod = &scene.two.prod;
    fail(prod, Listener::Storage);
    scene.assert_lost(Part::Storage).await;
    put(
        prod,
        "team/app",
        "only-here",
        BlobSource::generated(0, SIZE),
    );
    let client = scene.client();
    assert_eq!(pull(&client, "only-here").await, None);
    prod.faults().clear();
    let pulled = pull(&client, "only-here").await.expect("it is there");
    assert_eq!(pulled.1, "miss");
    scene.assert_back().await;
}
