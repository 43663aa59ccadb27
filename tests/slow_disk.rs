//! A disk, and a resolver, that hold up whoever waits for them hold up nobody else: hits from memory,
//! files that are not open yet, newcomers, signals and the health of the process.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use support::blobs::{MIB, assert_whole, blob, blob_file, metric, pull, simulator, until};
use support::clock::Clock;
use support::disk::Injection;
use support::large::{self, Small};
use support::names::{NameServer, Says};
use support::{Client, Proxy};

/// Requests that wait for the disk at the same time: more than there are threads for such calls.
const SLOW: usize = 600;

/// Those that wait for a name.
const NAMELESS: usize = 100;

/// How long a slow call takes: longer than the test, which ends it.
const CALL: Duration = Duration::from_secs(600);

/// Lookups under way that hold up a thread each; of all that may be.
const LOOKUPS: usize = 4;

fn proxy(names: &NameServer) -> (Proxy, Vec<Small>) {
    let builder = Proxy::builder()
        .upstream_key("registry", "registry.upstream.test")
        .upstream_key("endpoint", "https://registry.upstream.test")
        .upstream_key("auth", "anonymous")
        // The allocator gives memory back by a call that is made slow here, on whatever thread it is.
        .env("MALLOC_TRIM_THRESHOLD_", "1073741824");
    let mut proxy = builder.start();
    proxy.terminate();
    assert!(proxy.wait().success());
    let cache = proxy.cache_dir();
    fs::remove_dir_all(&cache).expect("its empty store");
    let blobs = large::make(&cache, 1000);
    proxy.mount(&names.mount());
    proxy.restart();
    (proxy, blobs)
}

/// Takes a file out of the page cache.
fn leave_memory(proxy: &Proxy, blob: &Small) {
    let file = File::open(blob_file(proxy, &blob.digest().to_string())).expect("it is there");
    file.sync_all().expect("sync");
    fadvise(&file, 0, None, Advice::DontNeed).expect("leave memory");
}

async fn get(client: &Client, blob: &Small) {
    let answer = client.get(&blob.path()).await;
    assert_eq!(answer.digest(), blob.digest().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d12_l08_hundreds_that_wait_for_the_disk_and_for_names_hold_up_nobody_else() {
    let silent = NameServer::start(Says::Silence);
    let (proxy, blobs) = proxy(&silent);
    let client = proxy.client();
    let (cold, warm) = blobs.split_at(SLOW);
    let (open, closed) = warm.split_at(100);
    for blob in open {
        get(&client, blob).await;
    }
    for blob in cold {
        leave_memory(&proxy, blob);
    }
    let calls =
        ["pread64", "madvise"].map(|call| format!("{call}:delay_enter={}", CALL.as_micros()));
    let injection = Injection::into(&proxy, calls.iter().map(String::as_str));
    let slow: Vec<_> = cold
        .iter()
        .map(|blob| {
            let (client, path) = (client.clone(), blob.path());
            tokio::spawn(async move { client.start("GET", &path, &[]).await.answer("GET").await })
        })
        .collect();
    let waiting = async |least: usize| {
        until("they wait", async || {
            metric(&proxy, "ecr_proxy_requests_active", &[]).await >= least as f64
        })
        .await;
    };
    // First those who wait for long: a name is given up after a few seconds.
    waiting(SLOW * 95 / 100).await;
    let nameless: Vec<_> = (0..NAMELESS)
        .map(|n| {
            let client = client.clone();
            let path = format!("/v2/team/unknown/manifests/v{n}");
            tokio::spawn(async move { client.start("GET", &path, &[]).await.answer("GET").await })
        })
        .collect();
    // A lookup asks for addresses of both kinds, and its thread waits for longer than who wants them.
    until("names are asked for", async || {
        silent.asked() >= 2 * LOOKUPS
    })
    .await;
    for (open, closed) in open.iter().zip(closed) {
        get(&client, open).await;
        get(&client, closed).await;
        let health = Client::operator(proxy.admin()).get("/healthz").await;
        assert_eq!(health.status, 200);
    }
    let left = slow.iter().filter(|task| !task.is_finished()).count();
    assert!(left >= SLOW * 9 / 10, "{left} still wait");
    for task in slow.into_iter().chain(nameless) {
        task.abort();
    }
    drop(injection);
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_who_waits_for_a_whole_blob_waits_for_no_file_that_a_part_was_asked_of() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let [part, whole] = [1, 2].map(|seed| blob(&simulator, seed, MIB));
    for blob in [&part, &whole] {
        pull(&proxy, blob).await;
        // As after a copy of the store: nothing tells that it was hashed.
        let mode = fs::Permissions::from_mode(0o640);
        fs::set_permissions(blob_file(&proxy, &blob.0), mode).expect("chmod");
    }
    proxy.restart();
    let slow = format!("pread64:delay_enter={}", CALL.as_micros());
    let injection = Injection::at(&blob_file(&proxy, &part.0), &proxy, [&*slow]);
    let client = proxy.client();
    let ranged = client.start("GET", &part.1, &[("range", "bytes=0-99")]);
    let mut ranged = ranged.await;
    assert_eq!(ranged.head().await.expect("a head").status, 206);
    let answer = client.get(&whole.1).await;
    assert_whole(&answer, &whole.0);
    assert_eq!(answer.header("x-cache"), Some("hit"));
    drop(injection);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d12_a_certificate_that_cannot_be_written_for_a_while_holds_up_nobody() {
    let simulator = simulator().await;
    let clock = Clock::right();
    let builder = Proxy::builder().simulator(&simulator).local_ca();
    let proxy = clock.govern(builder).start();
    let slow = format!("fsync:delay_enter={}", CALL.as_micros());
    let injection = Injection::into(&proxy, [slow.as_str()]);
    // A leaf is for a year.
    clock.ahead(Duration::from_secs(360 * 24 * 60 * 60));
    let is_being_written = || {
        let folder = fs::read_dir(proxy.state_dir().join("tls")).expect("a folder");
        let mut files = folder.map(|entry| entry.expect("an entry").path());
        files.any(|file| file.extension().is_some_and(|kind| kind == "tmp"))
    };
    until("a renewal waits for the disk", async || is_being_written()).await;
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
    proxy.terminate();
    let drains = |event: &support::Event| event.message() == "draining";
    proxy.log_until("the signal is heard", drains).await;
    assert!(is_being_written());
    drop(injection);
}
