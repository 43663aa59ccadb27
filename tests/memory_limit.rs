//! A small machine: hundreds of slow clients fit into a little memory, and where there is less still the
//! end of the process costs nothing that was kept (C08, L13; promises 7 and 9).

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use ecr_proxy::simulator::{Fault, Listener};
use futures_util::future::join_all;
use support::Proxy;
use support::blobs::{MIB, assert_whole, blob, pull, simulator};
use support::image::REPOSITORY;

/// A group of processes that the kernel gives no more memory than this, page cache included.
struct MemoryGroup {
    folder: PathBuf,
}

impl MemoryGroup {
    fn new(bytes: u64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ecr-proxy-test-{}-{number}", std::process::id());
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        let (root, limit) = match first.is_dir() {
            true => (first, "memory.limit_in_bytes"),
            false => (PathBuf::from("/sys/fs/cgroup"), "memory.max"),
        };
        let folder = root.join(name);
        fs::create_dir(&folder).expect("a memory group can be made");
        let group = Self { folder };
        fs::write(group.folder.join(limit), bytes.to_string()).expect("it takes a limit");
        group
    }

    /// What `proxy` takes from now on counts.
    fn hold(&self, proxy: &Proxy) {
        let members = self.folder.join("cgroup.procs");
        fs::write(members, proxy.pid().to_string()).expect("a process can be moved");
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It can be removed only once its last process has been waited for.
        let _still_in_use = fs::remove_dir(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_five_hundred_slow_clients_fit_into_a_small_machine() {
    const CLIENTS: usize = 500;
    let group = MemoryGroup::new(256 * MIB);
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    group.hold(&proxy);
    let blobs: Vec<_> = (0..4).map(|n| blob(&simulator, n, 96 * MIB)).collect();
    let (plain, tls) = (proxy.client(), proxy.tls_client());
    let mut slow = Vec::new();
    for number in 0..CLIENTS {
        let client = if number % 5 == 0 { &tls } else { &plain };
        let mut connection = client.start("GET", &blobs[number % 4].1, &[]).await;
        let head = connection.head().await.expect("a head");
        assert_eq!(head.status, 200);
        connection.read_exactly(1000).await.expect("a beginning");
        slow.push(connection);
    }
    // Others are served as ever meanwhile.
    for blob in &blobs {
        pull(&proxy, blob).await;
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
    let more = slow
        .iter_mut()
        .map(|connection| connection.read_exactly(MIB));
    for bytes in join_all(more).await {
        assert_eq!(bytes.expect("the next bytes").len() as u64, MIB);
    }
    println!("{} MiB of it anonymous", proxy.memory() / MIB);
    assert!(proxy.memory() < 200 * MIB, "{} bytes", proxy.memory());
    drop(slow);
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_two_hundred_pulls_and_a_hundred_long_lists_fit_into_a_small_machine() {
    const PULLS: usize = 200;
    const LISTS: usize = 100;
    let group = MemoryGroup::new(256 * MIB);
    let simulator = simulator().await;
    let tags: Vec<String> = (0..100_000)
        .map(|number| format!("\"tag-{number}\""))
        .collect();
    let list = format!(
        "{{\"name\":\"{REPOSITORY}\",\"tags\":[{}]}}",
        tags.join(",")
    );
    let long = simulator
        .faults()
        .on(Listener::Registry, "GET", "/tags/list");
    long.then(Fault::status(200, &list));
    let mut proxy = Proxy::before(&simulator);
    group.hold(&proxy);
    let blobs: Vec<_> = (0..4).map(|n| blob(&simulator, n, 4 * MIB)).collect();
    let (plain, tls) = (proxy.client(), proxy.tls_client());
    let pulls = (0..PULLS).map(|number| {
        let client = if number % 5 == 0 { &tls } else { &plain };
        let (client, target) = (client.clone(), blobs[number % 4].1.clone());
        tokio::spawn(async move {
            let mut connection = client.start("GET", &target, &[]).await;
            assert_eq!(connection.head().await.expect("a head").status, 200);
            for _ in 0..4 {
                connection.read_exactly(MIB).await.expect("the next MiB");
            }
        })
    });
    let pulls: Vec<_> = pulls.collect();
    let lists = (0..LISTS).map(|_| {
        let client = plain.clone();
        tokio::spawn(async move {
            let path = format!("/v2/{REPOSITORY}/tags/list");
            client.get(&path).await.status
        })
    });
    let lists: Vec<_> = lists.collect();
    for pull in join_all(pulls).await {
        pull.expect("a pull");
    }
    let lists: Vec<u16> = join_all(lists)
        .await
        .into_iter()
        .map(|list| list.expect("a list"))
        .collect();
    // As many as are answered are answered whole, and the others are told.
    assert!(
        lists
            .iter()
            .all(|status| [200, 429, 502, 503].contains(status)),
        "{lists:?}"
    );
    println!("{} MiB of it anonymous", proxy.memory() / MIB);
    for blob in &blobs {
        assert_eq!(pull(&proxy, blob).await, "hit");
    }
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_a_process_that_is_killed_for_its_memory_starts_again_with_all_it_kept() {
    let group = MemoryGroup::new(MIB);
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let kept = blob(&simulator, 1, 8 * MIB);
    assert_eq!(pull(&proxy, &kept).await, "miss");
    group.hold(&proxy);
    let cold = blob(&simulator, 2, 64 * MIB);
    let mut clients = Vec::new();
    for _ in 0..64 {
        let client = proxy.tls_client();
        let target = cold.1.clone();
        clients.push(tokio::spawn(async move {
            let mut connection = client.start("GET", &target, &[]).await;
            connection
                .answer("GET")
                .await
                .map(|answer| answer.clean_end)
        }));
    }
    let status = proxy.wait();
    assert_eq!(status.signal(), Some(9), "{status}");
    for client in clients {
        // One that found nobody says so by a panic of its own.
        if let Ok(Ok(clean_end)) = client.await {
            assert!(!clean_end, "all of it, from a process with no memory");
        }
    }
    proxy.assert_blobs_are_sound();
    proxy.restart();
    assert_eq!(pull(&proxy, &kept).await, "hit");
    assert_whole(&proxy.client().get(&cold.1).await, &cold.0);
    proxy.assert_blobs_are_sound();
}
