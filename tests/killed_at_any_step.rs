//! Killed at any step of what it writes, or with the power gone, the proxy finds a blob absent or complete,
//! and a record written or not.

mod support;

use std::process::Command;

use ecr_proxy::simulator::{
    Fault, Gate, ImageSpec, Listener, Outage, Pattern, PushedImage, Simulator,
};
use support::Proxy;
use support::blobs::{
    MIB, assert_whole, blob, blob_file, idle, metric, outcome, pull, simulator, until,
};
use support::disk::Injection;
use support::image::{REPOSITORY, pull_platform};

/// Ends the proxy in order, so that all it noted is on disk.
fn stop(proxy: &mut Proxy) {
    proxy.terminate();
    assert!(proxy.wait().success());
}

/// A blob whose folder is not there yet, so that its commit takes every step.
fn with_new_shard(simulator: &Simulator, proxy: &Proxy, len: u64) -> (String, String) {
    let mut blobs = (0..).map(|seed| blob(simulator, seed, len));
    let is_new = |(digest, _): &(String, String)| {
        let file = blob_file(proxy, digest);
        !file.parent().expect("its folder").exists()
    };
    blobs.find(is_new).expect("there are 256 folders")
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_kill_at_any_step_of_a_commit_leaves_the_blob_absent_or_complete() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    for step in [
        "fallocate:signal=KILL",
        "pwrite64:signal=KILL:when=1",
        "pwrite64:signal=KILL:when=3",
        "fsync:signal=KILL:when=1",
        "mkdirat:signal=KILL",
        "renameat:signal=KILL",
        "fsync:signal=KILL:when=2",
        "fsync:signal=KILL:when=3",
    ] {
        let wanted = with_new_shard(&simulator, &proxy, 3 * MIB);
        let injection = Injection::into(&proxy, [step]);
        let mut client = proxy.client().start("GET", &wanted.1, &[]).await;
        let _cut_or_whole = client.answer("GET").await;
        // The kill comes when the step does, which the answer does not wait for.
        proxy.wait();
        drop(injection);
        let digests = proxy.assert_blobs_are_sound();
        proxy.restart();
        let outcome = pull(&proxy, &wanted).await;
        let complete = digests.contains(&wanted.0);
        // What was absent may have been finished since by itself.
        assert!(outcome == "hit" || !complete, "{step}: {outcome}");
    }
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_c05_a_kill_while_the_index_or_a_record_is_written_costs_neither_blobs_nor_records() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let log = format!("repositories/prod/{REPOSITORY}/_log");
    let mut kept = vec![blob(&simulator, 0, 100_000)];
    pull(&proxy, &kept[0]).await;
    for (n, (file, step)) in [
        ("index.journal", "pwrite64:signal=KILL"),
        ("index.journal", "pwrite64:error=EIO"),
        (&log, "pwrite64:signal=KILL"),
        (&log, "fdatasync:signal=KILL"),
        (&log, "fdatasync:error=EIO"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = proxy.cache_dir().join(file);
        until("it was written once", async || file.exists()).await;
        let errors = metric(&proxy, "ecr_proxy_cache_write_errors_total", &[]).await;
        let injection = Injection::at(&file, &proxy, [step]);
        let wanted = blob(&simulator, 1 + n as u64, 100_000);
        // The write comes within a second, and the answer does not wait for it.
        let mut client = proxy.client().start("GET", &wanted.1, &[]).await;
        let _cut_or_whole = client.answer("GET").await;
        if step.contains("KILL") {
            proxy.wait();
        } else {
            until("the write failed", async || {
                metric(&proxy, "ecr_proxy_cache_write_errors_total", &[]).await > errors
            })
            .await;
            proxy.kill9();
        }
        drop(injection);
        simulator.outage(Outage::Refused).await;
        proxy.restart();
        for blob in &kept {
            assert_eq!(
                pull(&proxy, blob).await,
                "hit",
                "{step} at {}",
                file.display()
            );
        }
        simulator.outage(Outage::None).await;
        pull(&proxy, &wanted).await;
        kept.push(wanted);
        // On disk, and proven, before the next kill.
        stop(&mut proxy);
        proxy.restart();
    }
    assert_eq!(proxy.assert_blobs_are_sound().len(), kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_kill_in_the_middle_of_an_eviction_leaves_an_account_that_agrees_with_the_disk() {
    const LEN: u64 = 2 * MIB;
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder
        .set("cache.max_size", (4 * LEN + MIB) as i64)
        .start();
    for round in 0..3 {
        for seed in 0..4 {
            pull(&proxy, &blob(&simulator, 10 * round + seed, LEN)).await;
        }
        let injection = Injection::into(&proxy, ["unlinkat:signal=KILL"]);
        let last = blob(&simulator, 10 * round + 9, LEN);
        let mut client = proxy.client().start("GET", &last.1, &[]).await;
        let _cut = client.answer("GET").await;
        proxy.wait();
        drop(injection);
        let kept = proxy.assert_blobs_are_sound().len() as f64;
        proxy.restart();
        let counted = async || metric(&proxy, "ecr_proxy_cache_blobs", &[]).await;
        let bytes = async || metric(&proxy, "ecr_proxy_cache_bytes", &[r#"state="final""#]).await;
        until("the account agrees", async || {
            // What was broken off is fetched meanwhile.
            let whole = proxy.assert_blobs_are_sound().len() as f64;
            counted().await == whole && bytes().await == whole * LEN as f64
        })
        .await;
        assert!(kept >= 3.0, "{kept} blobs after the kill");
        pull(&proxy, &last).await;
        assert_eq!(pull(&proxy, &last).await, "hit");
    }
}

/// A file system whose journal is written only when something is synced. Nothing unsynced reaches the
/// image by itself, so a copy of the image is what a power cut leaves.
const LAZY: &str = "truncate -s 64M ../image; mkfs.ext4 -q -F ../image; \
    mount -o loop,commit=300 ../image .";

/// The power fails now: a proxy that finds what is left.
fn after_power_cut(proxy: &Proxy, simulator: &Simulator) -> Proxy {
    let script = format!(
        "cp --sparse=always {} ../image; mount -o loop ../image .",
        proxy.dir().join("image").display()
    );
    Proxy::builder().simulator(simulator).mount(&script).start()
}

/// Somebody else has the file system written.
fn sync(proxy: &Proxy) {
    let synced = Command::new("sync")
        .arg("-f")
        .arg(proxy.cache_dir())
        .status();
    assert!(synced.expect("start sync").success());
}

/// The power fails now: what holds of the proxy's store as it is found afterwards.
fn power_cut(proxy: &Proxy, simulator: &Simulator, wanted: &[&(String, String)]) -> Vec<bool> {
    let found = after_power_cut(proxy, simulator);
    let digests = found.assert_blobs_are_sound();
    let there = wanted.iter().map(|(digest, _)| digests.contains(digest));
    there.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_a_power_cut_leaves_what_was_kept_and_nothing_half_written() {
    let simulator = simulator().await;
    let proxy = Proxy::builder().simulator(&simulator).mount(LAZY).start();
    let [a, b, c] = &std::array::from_fn::<_, 3, _>(|n| blob(&simulator, n as u64, 3 * MIB));
    pull(&proxy, a).await;
    assert_eq!(power_cut(&proxy, &simulator, &[a]), [true]);

    // In the middle of a download.
    let gate = Gate::new();
    let faults = simulator.faults();
    let body = faults.on(Listener::Storage, "GET", Pattern::digest(&b.0));
    body.times(1).then(Fault::HoldAfter(2 * MIB, gate.clone()));
    let mut reader = proxy.client().start("GET", &b.1, &[]).await;
    reader.head().await.expect("a head");
    reader.read_exactly(MIB).await.expect("the first bytes");
    assert_eq!(power_cut(&proxy, &simulator, &[a, b]), [true, false]);
    gate.open();
    reader.read_exactly(2 * MIB).await.expect("the rest");
    idle(&proxy).await;
    assert_eq!(power_cut(&proxy, &simulator, &[a, b]), [true, true]);

    // Between the rename and the sync of the folder, with and without somebody else's sync.
    let injection = Injection::into(&proxy, ["fsync:delay_enter=60000000:when=3"]);
    let pulled = proxy.client().get(&c.1).await;
    assert_whole(&pulled, &c.0);
    until("it has its name", async || blob_file(&proxy, &c.0).exists()).await;
    power_cut(&proxy, &simulator, &[a, b, c]);
    sync(&proxy);
    assert_eq!(
        power_cut(&proxy, &simulator, &[a, b, c]),
        [true, true, true]
    );
    let active = metric(&proxy, "ecr_proxy_fills_active", &[]).await;
    assert!(active > 0.0, "no sync was slow");
    drop(injection);
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_records_and_unfinished_downloads_survive_a_power_cut_or_are_begun_anew() {
    let simulator = simulator().await;
    let proxy = Proxy::builder().simulator(&simulator).mount(LAZY).start();
    let [whole, half] = &std::array::from_fn::<_, 2, _>(|n| blob(&simulator, n as u64, 8 * MIB));
    pull(&proxy, whole).await;
    // A record is on disk a second later, with nobody's help.
    simulator.outage(Outage::Refused).await;
    until("the record survives", async || {
        let found = after_power_cut(&proxy, &simulator);
        let answer = found.client().get(&whole.1).await;
        answer.status == 200 && outcome(&answer) == Some("hit")
    })
    .await;
    simulator.outage(Outage::None).await;

    let gate = Gate::new();
    let faults = simulator.faults();
    let body = faults.on(Listener::Storage, "GET", Pattern::digest(&half.0));
    body.times(1).then(Fault::HoldAfter(6 * MIB, gate.clone()));
    let mut reader = proxy.client().start("GET", &half.1, &[]).await;
    reader.head().await.expect("a head");
    reader.read_exactly(5 * MIB).await.expect("the first bytes");
    for somebody_syncs in [false, true] {
        if somebody_syncs {
            sync(&proxy);
        }
        let fetched = storage_bytes(&simulator, half);
        let found = after_power_cut(&proxy, &simulator);
        assert_whole(&found.client().get(&half.1).await, &half.0);
        idle(&found).await;
        assert_eq!(pull(&found, half).await, "hit");
        found.assert_blobs_are_sound();
        let fetched = storage_bytes(&simulator, half) - fetched;
        if somebody_syncs {
            assert!(fetched <= 4 * MIB, "{fetched} bytes where 5 MiB were there");
        }
    }
    gate.open();
}

/// Whether an image is told of, and whether all of its blobs are served where it is.
async fn is_listed_and_whole(proxy: &Proxy, tag: &str, image: &PushedImage) -> (bool, bool) {
    let client = proxy.client();
    let tagged = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let is_listed = client.get(&tagged).await.status == 200;
    for blob in &image.manifests[0].layers {
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        if outcome(&client.get(&path).await) != Some("hit") {
            return (is_listed, false);
        }
    }
    (is_listed, true)
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_a_power_cut_between_an_eviction_and_its_records_leaves_no_image_listed_without_its_blobs()
 {
    const LEN: u64 = 8 * MIB;
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator).mount(LAZY);
    // Three are well below the share at which room is made ahead of need.
    let proxy = builder
        .set("cache.max_size", (3 * LEN + 4 * MIB) as i64)
        .start();
    let tags = ["first", "second", "third"];
    let images = tags.map(|tag| {
        let spec = ImageSpec::generated(u64::from(tag.as_bytes()[0]), [LEN]);
        simulator.push_image(REPOSITORY, tag, spec)
    });
    for (tag, image) in tags.iter().zip(&images) {
        pull_platform(&proxy, tag, &image.manifests[0]).await;
    }
    simulator.outage(Outage::Refused).await;
    until("the records are on disk", async || {
        let found = after_power_cut(&proxy, &simulator);
        for (tag, image) in tags.iter().zip(&images) {
            if is_listed_and_whole(&found, tag, image).await != (true, true) {
                return false;
            }
        }
        true
    })
    .await;
    simulator.outage(Outage::None).await;

    // What is recorded from now on is not written, and all that a download syncs is.
    let log = proxy
        .cache_dir()
        .join(format!("repositories/prod/{REPOSITORY}/_log"));
    let injection = Injection::at(&log, &proxy, ["pwrite64:delay_enter=60000000"]);
    pull(&proxy, &blob(&simulator, 9, LEN)).await;
    let found = {
        simulator.outage(Outage::Refused).await;
        after_power_cut(&proxy, &simulator)
    };
    drop(injection);
    let kept = found.assert_blobs_are_sound();
    let first = &images[0].manifests[0].layers[0].digest;
    assert!(!kept.contains(first), "it was not evicted durably");
    until("it is forgotten with its blobs", async || {
        is_listed_and_whole(&found, tags[0], &images[0]).await == (false, false)
    })
    .await;
    for (tag, image) in tags.iter().zip(&images).skip(1) {
        let state = is_listed_and_whole(&found, tag, image).await;
        assert_eq!(state, (true, true), "{tag}");
    }
}

/// What storage has sent of a blob.
fn storage_bytes(simulator: &Simulator, (digest, _): &(String, String)) -> u64 {
    simulator.journal().body_bytes(|entry| {
        entry.listener == Listener::Storage && entry.digest.as_ref() == Some(digest)
    })
}
