//! What is on disk outlives the process however it ends, is believed only as far as it was proven, and
//! is mended where it is damaged.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ecr_proxy::simulator::{Fault, Gate, ImageSpec, Listener, Outage, Pattern, Simulator};
use support::blobs::{
    MIB, assert_whole, blob, blob_file, idle, metric, outcome, pull, simulator, until,
};
use support::image::REPOSITORY;
use support::store::files_below;
use support::{Proxy, Stopwatch, program};

/// Ends the proxy in order, so that all it noted is on disk.
fn stop(proxy: &mut Proxy) {
    proxy.terminate();
    assert!(proxy.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_image_is_served_after_a_restart_with_the_upstream_gone() {
    let simulator = simulator().await;
    let image = simulator.push_image(REPOSITORY, "v1", ImageSpec::generated(1, [3 * MIB, 1000]));
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder.set("cache.tag_ttl", "0s").start();
    let manifests = [
        format!("/v2/{REPOSITORY}/manifests/v1"),
        format!(
            "/v2/{REPOSITORY}/manifests/{}",
            image.manifests[0].manifest.digest
        ),
    ];
    for target in &manifests {
        assert_eq!(proxy.client().get(target).await.status, 200);
    }
    let blobs: Vec<_> = image.blobs().into_iter().map(|blob| blob.digest).collect();
    let target = |digest: &str| format!("/v2/{REPOSITORY}/blobs/{digest}");
    for digest in &blobs {
        pull(&proxy, &(digest.clone(), target(digest))).await;
    }
    stop(&mut proxy);
    simulator.outage(Outage::Refused).await;
    proxy.restart();
    let tag = proxy.client().get(&manifests[0]).await;
    assert_whole(&tag, &image.top.digest);
    assert_eq!(outcome(&tag), Some("stale"));
    let by_digest = proxy.client().get(&manifests[1]).await;
    assert_whole(&by_digest, &image.manifests[0].manifest.digest);
    for digest in &blobs {
        let answer = proxy.client().get(&target(digest)).await;
        assert_whole(&answer, digest);
        assert_eq!(outcome(&answer), Some("hit"));
    }
    let quarantined = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
    assert_eq!(quarantined, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_use_survives_a_restart() {
    const LEN: u64 = 3 * MIB;
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder
        .set("cache.max_size", (4 * LEN - MIB) as i64)
        .start();
    let [a, b, c, d] = &std::array::from_fn::<_, 4, _>(|n| blob(&simulator, n as u64, LEN));
    for blob in [a, b, c] {
        assert_eq!(pull(&proxy, blob).await, "miss");
    }
    assert_eq!(pull(&proxy, a).await, "hit");
    stop(&mut proxy);
    proxy.restart();
    assert_eq!(pull(&proxy, d).await, "miss");
    let there = [a, b, c, d].map(|(digest, _)| blob_file(&proxy, digest).exists());
    assert_eq!(there, [true, false, true, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_a_kill_in_mid_fill_leaves_no_short_file_and_no_remains() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let wanted = blob(&simulator, 1, 8 * MIB);
    let gate = Gate::new();
    let faults = simulator.faults();
    let body = faults.on(Listener::Storage, "GET", Pattern::digest(&wanted.0));
    body.times(1).then(Fault::HoldAfter(4 * MIB, gate.clone()));
    let mut cut = proxy.client().start("GET", &wanted.1, &[]).await;
    let head = cut.head().await.expect("a head");
    cut.read_exactly(2 * MIB).await.expect("the first bytes");
    // The unfinished file, and the note beside it.
    assert_eq!(files_below(&proxy.cache_dir().join("fills")).len(), 2);
    proxy.kill9();
    let (_, clean_end) = cut.body("GET", &head).await;
    assert!(!clean_end);
    assert!(proxy.assert_blobs_are_sound().is_empty());
    gate.open();
    proxy.restart();
    until(
        "the download is finished and nothing of it left over",
        async || {
            let fills = proxy.cache_dir().join("fills");
            files_below(&fills).is_empty() && blob_file(&proxy, &wanted.0).exists()
        },
    )
    .await;
    idle(&proxy).await;
    assert_eq!(pull(&proxy, &wanted).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn d20_a_second_process_is_refused_and_a_killed_one_leaves_no_lock() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let second = Command::new(env!("CARGO_BIN_EXE_ecr-proxy"))
        .args(["serve", "--config"])
        .arg(proxy.dir().join("config.toml"))
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("start a second one");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another"), "{said}");
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
    proxy.kill9();
    proxy.restart();
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn d14_debris_of_earlier_runs_is_removed_and_what_is_not_ours_is_left() {
    const COUNT: usize = 100_000;
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let kept = blob(&simulator, 1, 100_000);
    pull(&proxy, &kept).await;
    stop(&mut proxy);
    let fills = proxy.cache_dir().join("fills");
    for n in 0..COUNT {
        let name = format!("{n:064x}.0123456789abcdef-{n}.part");
        fs::write(fills.join(name), "").expect("make debris");
    }
    let foreign = [
        fills.join("README"),
        proxy.cache_dir().join("blobs/sha256/lost+found"),
        proxy.cache_dir().join("notes.txt"),
    ];
    for file in &foreign {
        fs::write(file, "mine").expect("make a foreign file");
    }
    let began = Stopwatch::start();
    proxy.restart();
    let took = began.took();
    assert!(took < Duration::from_secs(2), "listening after {took:?}");
    assert_eq!(pull(&proxy, &kept).await, "hit");
    until("the debris is gone", async || {
        files_below(&fills) == [fills.join("README")]
    })
    .await;
    for file in &foreign {
        assert_eq!(fs::read_to_string(file).expect("still there"), "mine");
    }
    until("foreign files are counted", async || {
        metric(&proxy, "ecr_proxy_cache_foreign_files", &[]).await >= 1.0
    })
    .await;
}

/// One way in which a file goes bad.
type Damage = fn(&Path);

const OF_SIZE: [(&str, Damage); 5] = [
    ("truncated by one", |file| {
        let opened = fs::File::options().write(true).open(file).expect("open");
        let len = opened.metadata().expect("its length").len();
        opened.set_len(len - 1).expect("truncate");
    }),
    ("extended", |file| {
        let opened = fs::File::options().write(true).open(file).expect("open");
        let len = opened.metadata().expect("its length").len();
        opened.set_len(len + 1).expect("extend");
    }),
    ("emptied", |file| fs::write(file, "").expect("empty")),
    ("a folder in its place", |file| {
        fs::remove_file(file).expect("remove");
        fs::create_dir(file).expect("make a folder");
        fs::write(file.join("thing"), "x").expect("fill it");
    }),
    ("a FIFO in its place", |file| {
        fs::remove_file(file).expect("remove");
        let made = Command::new(program("mkfifo")).arg(file).status();
        assert!(made.expect("start mkfifo").success());
    }),
];

fn flip(file: &Path) {
    let opened = fs::File::options().read(true).write(true).open(file);
    let opened = opened.expect("open");
    let middle = opened.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, middle).expect("read");
    opened.write_all_at(&[byte[0] ^ 1], middle).expect("write");
}

/// What was damaged is right again and served from disk.
async fn assert_mended(proxy: &Proxy, wanted: &(String, String), what: &str) {
    idle(proxy).await;
    assert_eq!(pull(proxy, wanted).await, "hit", "{what}");
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_a_file_that_cannot_be_the_blob_is_a_miss_and_is_fetched_again() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    for running in [true, false] {
        for (n, (what, damage)) in OF_SIZE.into_iter().enumerate() {
            let wanted = blob(&simulator, 10 * u64::from(running) + n as u64, 300_000);
            pull(&proxy, &wanted).await;
            if !running {
                stop(&mut proxy);
            }
            damage(&blob_file(&proxy, &wanted.0));
            if !running {
                proxy.restart();
            }
            assert_eq!(pull(&proxy, &wanted).await, "miss", "{what}");
            assert_mended(&proxy, &wanted, what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_d10_a_link_in_a_blobs_place_is_not_followed_and_its_target_untouched() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let wanted = blob(&simulator, 1, 300_000);
    pull(&proxy, &wanted).await;
    stop(&mut proxy);
    let file = blob_file(&proxy, &wanted.0);
    let target = proxy.dir().join("target");
    // Even the right bytes are not taken from elsewhere.
    fs::rename(&file, &target).expect("move it away");
    symlink(&target, &file).expect("a link in its place");
    let before = fs::read(&target).expect("the target");
    proxy.restart();
    assert_eq!(pull(&proxy, &wanted).await, "miss");
    assert_mended(&proxy, &wanted, "a link").await;
    assert!(!file.is_symlink());
    assert_eq!(fs::read(&target).expect("the target"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_wrong_content_of_a_small_blob_is_fetched_again_and_the_client_unaware() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    for running in [true, false] {
        let wanted = blob(&simulator, u64::from(running), 60_000);
        pull(&proxy, &wanted).await;
        if !running {
            stop(&mut proxy);
        }
        flip(&blob_file(&proxy, &wanted.0));
        if !running {
            proxy.restart();
        }
        assert_eq!(pull(&proxy, &wanted).await, "miss");
        assert_mended(&proxy, &wanted, "a flipped byte").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_wrong_content_of_a_large_blob_never_ends_cleanly_and_the_next_pull_is_right() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    for running in [true, false] {
        let wanted = blob(&simulator, u64::from(running), 5 * MIB);
        pull(&proxy, &wanted).await;
        if !running {
            stop(&mut proxy);
        }
        flip(&blob_file(&proxy, &wanted.0));
        if !running {
            proxy.restart();
        }
        let before = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
        let broken = proxy.client().get(&wanted.1).await;
        assert_eq!(broken.status, 200);
        assert!(!broken.clean_end, "wrong bytes look whole");
        let after = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
        assert_eq!(after - before, 1.0);
        assert_eq!(pull(&proxy, &wanted).await, "miss");
        assert_mended(&proxy, &wanted, "a flipped byte").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_two_files_that_changed_places_are_both_noticed() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let [a, b] = &std::array::from_fn::<_, 2, _>(|n| blob(&simulator, n as u64, 60_000));
    pull(&proxy, a).await;
    pull(&proxy, b).await;
    stop(&mut proxy);
    let (one, other) = (blob_file(&proxy, &a.0), blob_file(&proxy, &b.0));
    let aside = proxy.dir().join("aside");
    fs::rename(&one, &aside).expect("move");
    fs::rename(&other, &one).expect("move");
    fs::rename(&aside, &other).expect("move");
    proxy.restart();
    for wanted in [a, b] {
        assert_eq!(pull(&proxy, wanted).await, "miss");
    }
    for wanted in [a, b] {
        assert_mended(&proxy, wanted, "changed places").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d09_a_range_of_a_damaged_blob_has_it_verified_and_the_next_pull_is_right() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let wanted = blob(&simulator, 1, 5 * MIB);
    pull(&proxy, &wanted).await;
    stop(&mut proxy);
    flip(&blob_file(&proxy, &wanted.0));
    proxy.restart();
    let range = [("range", "bytes=0-999")];
    let part = proxy.client().get_with(&wanted.1, &range).await;
    assert_eq!(part.status, 206);
    until("the whole is verified", async || {
        metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await == 1.0
    })
    .await;
    assert_eq!(pull(&proxy, &wanted).await, "miss");
    assert_mended(&proxy, &wanted, "a flipped byte").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c05_a_store_whose_index_is_missing_or_rubbish_serves_the_same() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let wanted = blob(&simulator, 1, 3 * MIB);
    pull(&proxy, &wanted).await;
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 3] = [
        ("missing", |file| {
            let _not_written_yet = fs::remove_file(file);
        }),
        ("empty", |file| fs::write(file, "").expect("write")),
        ("rubbish", |file| {
            fs::write(file, [0xff; 5000]).expect("write")
        }),
    ];
    for (what, harm) in harms {
        stop(&mut proxy);
        for name in ["index", "index.journal"] {
            harm(&proxy.cache_dir().join(name));
        }
        proxy.restart();
        let answer = proxy.client().get(&wanted.1).await;
        assert_whole(&answer, &wanted.0);
        assert_eq!(outcome(&answer), Some("hit"), "{what}");
        idle(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_a_digest_on_disk_is_served_after_a_restart_only_where_it_is_recorded() {
    let simulator: Simulator = simulator().await;
    simulator.create_repository("other/app");
    let mut proxy = Proxy::before(&simulator);
    let kept = blob(&simulator, 1, 100_000);
    pull(&proxy, &kept).await;
    stop(&mut proxy);
    proxy.restart();
    let elsewhere = format!("/v2/other/app/blobs/{}", kept.0);
    assert_eq!(proxy.client().get(&elsewhere).await.status, 404);
    simulator.outage(Outage::Refused).await;
    assert_eq!(pull(&proxy, &kept).await, "hit");
    let answer = proxy
        .client()
        .get(&format!("/v2/third/app/blobs/{}", kept.0))
        .await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}
