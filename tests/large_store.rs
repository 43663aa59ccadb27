//! A store of many blobs is served from the moment the proxy listens, whatever is still being loaded.
//! What it costs is measured by `benches/run store`.

mod support;

use std::fs;

use support::blobs::metric;
use support::large::{self, LEN};
use support::{Proxy, program};

const COUNT: u64 = 20_000;

/// A proxy with a store that was filled while it did not run, and lost these files of it since. The next
/// `calls` that concern `held` of its store take long enough for everything else.
fn proxy(lost: &[&str], held: &str, calls: &str) -> (Proxy, Vec<large::Small>) {
    // Nobody is there: what is on disk and recorded is all there is.
    let mut proxy = Proxy::builder()
        .upstream_key("registry", "registry.upstream.test")
        .upstream_key("endpoint", "http://127.0.0.1:9")
        .upstream_key("auth", "anonymous")
        .start();
    proxy.terminate();
    assert!(proxy.wait().success());
    let cache = proxy.cache_dir();
    fs::remove_dir_all(&cache).expect("its empty store");
    let blobs = large::make(&cache, COUNT);
    for name in lost {
        fs::remove_file(cache.join(name)).expect("there was one");
    }
    let held = cache.canonicalize().expect("a folder").join(held);
    proxy.mount(&format!(
        "exec {} -D -qq -f -o /dev/null -P {} -e trace={calls} \
         -e inject={calls}:delay_enter=10000000 \"$@\"",
        program("strace").display(),
        held.display(),
    ));
    proxy.restart();
    (proxy, blobs)
}

/// Hits are served, and the index is not there yet.
async fn assert_hits_without_index(proxy: &Proxy, blobs: &[large::Small]) {
    for blob in blobs.iter().step_by(500) {
        let answer = proxy.client().get(&blob.path()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-cache"), Some("hit"));
        assert_eq!(answer.digest(), blob.digest().to_string());
        assert_eq!(answer.body.len() as u64, LEN);
    }
    let known = metric(proxy, "ecr_proxy_cache_blobs", &[]).await;
    assert!(known < COUNT as f64, "the index was there already");
}

#[tokio::test(flavor = "multi_thread")]
async fn d15_hits_are_served_while_the_index_is_read() {
    let (proxy, blobs) = proxy(&[], "index", "read");
    assert_hits_without_index(&proxy, &blobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d15_hits_are_served_while_a_lost_index_is_rebuilt() {
    let lost = ["index", "index.journal"];
    let (proxy, blobs) = proxy(&lost, "blobs/sha256/00", "getdents64");
    assert_hits_without_index(&proxy, &blobs).await;
}
