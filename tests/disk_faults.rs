//! A disk that is full, failing, slow or read-only costs the cache and never the client: what it was
//! promised arrives whole and right, nothing half-written stays, and caching resumes by itself.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ecr_proxy::simulator::{Fault, Gate, Listener, Outage, Pattern, Simulator};
use rustix::fs::{Advice, fadvise};
use support::blobs::{
    MIB, assert_whole, blob, blob_file, idle, metric, outcome, pull, pull_together, simulator,
    until,
};
use support::disk::{Ballast, Injection, available, occupied};
use support::store::files_below;
use support::{Client, Connection, Proxy, program, within};

/// Nothing is left of a fill that was not kept.
fn assert_no_temporaries(proxy: &Proxy) {
    let left = files_below(&proxy.cache_dir().join("fills"));
    assert!(left.is_empty(), "{left:?}");
}

/// The next pull is kept, and the one after it comes from disk.
async fn assert_caching(proxy: &Proxy, simulator: &Simulator, seed: u64) {
    let (digest, target) = blob(simulator, seed, MIB);
    let first = proxy.client().get(&target).await;
    assert_whole(&first, &digest);
    idle(proxy).await;
    let again = proxy.client().get(&target).await;
    assert_whole(&again, &digest);
    assert_eq!(
        (outcome(&first), outcome(&again)),
        (Some("miss"), Some("hit"))
    );
    proxy.assert_blobs_are_sound();
    assert_no_temporaries(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn d01_a_full_disk_costs_no_client_a_byte_and_caching_resumes_with_the_room() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=24m")
        .start();
    let (digest, target) = blob(&simulator, 1, 12 * MIB);
    let ballast = Ballast::leaving(&proxy.cache_dir(), 5 * MIB);
    // What is not kept is fetched anew for who comes later, so nothing comes before all are there.
    let gate = Gate::new();
    let body = Pattern::digest(&digest);
    let rule = simulator.faults().on(Listener::Storage, "GET", body);
    rule.times(1).then(Fault::Hold(gate.clone()));
    let client = proxy.client();
    let all_are_there = async {
        until("all have asked", async || {
            metric(&proxy, "ecr_proxy_requests_active", &[]).await == 4.0
        })
        .await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(pull_together(&client, &target, 4), all_are_there);
    for answer in answers {
        assert_whole(&answer, &digest);
    }
    idle(&proxy).await;
    assert_no_temporaries(&proxy);
    assert!(proxy.assert_blobs_are_sound().is_empty());
    assert_eq!(
        metric(&proxy, "ecr_proxy_fills_total", &[r#"result="unkept""#]).await,
        1.0
    );
    drop(ballast);
    assert_caching(&proxy, &simulator, 2).await;
    assert_whole(&proxy.client().get(&target).await, &digest);
    idle(&proxy).await;
    assert_eq!(outcome(&proxy.client().get(&target).await), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn d01_d05_a_write_that_fails_at_any_piece_costs_no_client_a_byte() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for (round, (errno, when)) in [
        ("ENOSPC", "1"),
        ("ENOSPC", "4"),
        ("EIO", "1"),
        ("EIO", "2"),
        ("EIO", "3"),
        ("EIO", "5+"),
        ("EIO", "1+"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await;
        let failed = metric(&proxy, "ecr_proxy_cache_write_errors_total", &[]).await;
        let (digest, target) = blob(&simulator, 100 + round as u64, 12 * MIB);
        let injection = Injection::into(&proxy, [&*format!("pwrite64:error={errno}:when={when}")]);
        for answer in pull_together(&proxy.client(), &target, 3).await {
            assert_whole(&answer, &digest);
        }
        idle(&proxy).await;
        drop(injection);
        let commits = metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await;
        assert_eq!(commits, before, "{errno} at {when}");
        let now = metric(&proxy, "ecr_proxy_cache_write_errors_total", &[]).await;
        assert!(now > failed, "{errno} at {when} met no write");
        assert_no_temporaries(&proxy);
    }
    assert_caching(&proxy, &simulator, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d03_a_file_system_without_inodes_is_a_full_disk() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=64m,nr_inodes=200")
        .start();
    let folder = proxy.cache_dir().join("inodes");
    fs::create_dir(&folder).expect("an inode is left");
    let full = (0..).find(|n| fs::write(folder.join(n.to_string()), "").is_err());
    assert!(full.is_some_and(|n| n > 0));
    assert!(available(&folder) > 32 * MIB);
    let (digest, target) = blob(&simulator, 1, 3 * MIB);
    for answer in pull_together(&proxy.client(), &target, 3).await {
        assert_whole(&answer, &digest);
    }
    idle(&proxy).await;
    assert!(proxy.assert_blobs_are_sound().is_empty());
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("full"), "{}", ready.text());
    fs::remove_dir_all(&folder).expect("remove what took the inodes");
    assert_caching(&proxy, &simulator, 2).await;
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert!(!ready.text().contains("full"), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn d04_the_quota_holds_at_every_moment_with_temporary_and_nameless_files_counted() {
    const CAP: u64 = 20 * MIB;
    const SLACK: u64 = MIB;
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=256m")
        .set("cache.max_size", CAP as i64)
        .start();
    let folder = proxy.cache_dir();
    let blobs: Vec<_> = (0..10).map(|n| blob(&simulator, n, 12 * MIB)).collect();
    let client = proxy.client();
    let sample = async {
        let mut highest = 0;
        loop {
            highest = occupied(&folder).max(highest);
            assert!(highest <= CAP + SLACK, "{highest} bytes on disk");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let pulls = async {
        for wave in blobs.chunks(3) {
            let answers = wave.iter().map(|(_, target)| client.get(target));
            for (answer, (digest, _)) in futures_util::future::join_all(answers)
                .await
                .iter()
                .zip(wave)
            {
                assert_whole(answer, digest);
            }
            idle(&proxy).await;
        }
    };
    tokio::select! {
        never = sample => never,
        () = pulls => {}
    }
    let kept = proxy.assert_blobs_are_sound();
    assert_eq!(kept.len(), 1, "one of them fits");
    assert!(metric(&proxy, "ecr_proxy_cache_evictions_total", &[]).await >= 1.0);
    let counted = |state: &'static str| {
        let proxy = &proxy;
        async move { metric(proxy, "ecr_proxy_cache_bytes", &[state]).await }
    };
    assert_eq!(counted(r#"state="final""#).await, (12 * MIB) as f64);
    assert_eq!(counted(r#"state="temporary""#).await, 0.0);
    until("nobody holds a file without a name", async || {
        counted(r#"state="unlinked""#).await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d02_d06_a_file_whose_sync_fails_is_discarded_and_not_synced_again() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for (seed, errno) in [(1, "EIO"), (2, "ENOSPC")] {
        let (digest, target) = blob(&simulator, seed, 2 * MIB);
        let injection = Injection::into(&proxy, [&*format!("fsync:error={errno}:when=1")]);
        assert_whole(&proxy.client().get(&target).await, &digest);
        idle(&proxy).await;
        drop(injection);
        assert!(!proxy.assert_blobs_are_sound().contains(&digest));
        assert_no_temporaries(&proxy);
        let label = format!(r#"errno="{errno}""#);
        let errors = metric(&proxy, "ecr_proxy_cache_write_errors_total", &[]).await;
        let same = metric(&proxy, "ecr_proxy_cache_write_errors_total", &[&label]).await;
        assert!(same >= 1.0, "{errors} errors, none of them {label}");
        assert_eq!(outcome(&proxy.client().get(&target).await), Some("miss"));
        idle(&proxy).await;
        assert_eq!(outcome(&proxy.client().get(&target).await), Some("hit"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d07_a_failed_rename_or_directory_sync_means_not_cached_and_nothing_is_copied() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    // The second sync of a commit is the directory's that a shard is made in, or the shard's own.
    for (seed, expression) in [
        (1, "renameat:error=EIO"),
        (2, "renameat:error=EXDEV"),
        (3, "renameat:error=ENOENT"),
        (4, "fsync:error=EIO:when=2"),
        (5, "fsync:error=EIO:when=3"),
    ] {
        let (digest, target) = blob(&simulator, seed, 2 * MIB);
        let injection = Injection::into(&proxy, [expression, "renameat2:error=EIO"]);
        assert_whole(&proxy.client().get(&target).await, &digest);
        idle(&proxy).await;
        drop(injection);
        assert!(
            !proxy.assert_blobs_are_sound().contains(&digest),
            "{expression}"
        );
        assert_no_temporaries(&proxy);
        assert_eq!(outcome(&proxy.client().get(&target).await), Some("miss"));
        idle(&proxy).await;
        assert_eq!(outcome(&proxy.client().get(&target).await), Some("hit"));
    }
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_commits_total", &[]).await,
        5.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_a_file_that_cannot_be_read_ends_abnormally_and_is_fetched_again() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for (seed, when, client) in [
        (1, "4+", proxy.tls_client()),
        (2, "8+", proxy.tls_client()),
        (3, "6+", proxy.client()),
    ] {
        let (digest, target) = blob(&simulator, seed, 8 * MIB);
        assert_whole(&proxy.client().get(&target).await, &digest);
        idle(&proxy).await;
        let quarantined = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
        // TLS reads through buffers; both calls that read at an offset fail.
        let expressions =
            ["preadv2", "pread64"].map(|call| format!("{call}:error=EIO:when={when}"));
        let injection = Injection::into(&proxy, expressions.iter().map(String::as_str));
        let mut connection = client.start("GET", &target, &[]).await;
        // The head may still have been in a buffer.
        if let Ok(broken) = connection.answer("GET").await {
            assert!(!broken.clean_end, "no read failed");
        }
        drop(injection);
        until("the entry is taken away", async || {
            metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await > quarantined
        })
        .await;
        let again = client.get(&target).await;
        assert_whole(&again, &digest);
        assert_eq!(outcome(&again), Some("miss"));
        idle(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_a_file_that_cannot_be_read_at_all_is_fetched_again_and_the_client_unaware() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for (seed, client, range) in [
        (1, proxy.tls_client(), None),
        (2, proxy.client(), None),
        (3, proxy.client(), Some(("range", "bytes=1000-"))),
    ] {
        let wanted = blob(&simulator, seed, 8 * MIB);
        pull(&proxy, &wanted).await;
        let file = blob_file(&proxy, &wanted.0);
        let expressions = ["preadv2:error=EIO", "pread64:error=EIO"];
        let injection = Injection::at(&file, &proxy, expressions);
        // Until the new file gets the name that reads fail under.
        let gate = Gate::new();
        let faults = simulator.faults();
        let body = faults.on(Listener::Storage, "GET", Pattern::digest(&wanted.0));
        // A range needs the size first, which is asked for with one byte.
        let body = body.skip(u64::from(range.is_some()));
        body.times(1).then(Fault::HoldAfter(MIB, gate.clone()));
        let mut connection = client.start("GET", &wanted.1, range.as_slice()).await;
        within("a fetch", gate.arrived(1)).await;
        drop(injection);
        gate.open();
        let answer = connection.answer("GET").await.expect("an answer");
        assert!(answer.clean_end);
        if range.is_none() {
            assert_whole(&answer, &wanted.0);
            assert_eq!(outcome(&answer), Some("miss"));
        } else {
            assert_eq!(answer.body.len() as u64, 8 * MIB - 1000);
        }
        idle(&proxy).await;
        let quarantined = metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await;
        assert_eq!(quarantined, seed as f64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_a_file_that_is_not_read_for_want_of_memory_is_not_damaged() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let wanted = blob(&simulator, 1, 4 * MIB);
    pull(&proxy, &wanted).await;
    let file = fs::File::open(blob_file(&proxy, &wanted.0)).expect("the blob");
    fadvise(&file, 0, None, Advice::DontNeed).expect("leave memory");
    let injection = Injection::into(&proxy, ["madvise:error=ENOMEM"]);
    assert_eq!(pull(&proxy, &wanted).await, "hit");
    drop(injection);
    assert_eq!(pull(&proxy, &wanted).await, "hit");
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_quarantined_total", &[]).await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_a_file_that_shrinks_under_a_reader_ends_abnormally_and_harms_nobody_else() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    for (seed, client) in [(1, proxy.client()), (2, proxy.tls_client())] {
        let wanted = blob(&simulator, seed, 24 * MIB);
        pull(&proxy, &wanted).await;
        let mut reader = client.start("GET", &wanted.1, &[]).await;
        let head = reader.head().await.expect("a head");
        assert_eq!(head.header("x-cache"), Some("hit"));
        let file = fs::File::options()
            .write(true)
            .open(blob_file(&proxy, &wanted.0));
        file.expect("open").set_len(MIB).expect("truncate");
        let (_, clean_end) = reader.body("GET", &head).await;
        assert!(!clean_end);
        assert_eq!(pull(&proxy, &wanted).await, "miss");
        assert_eq!(pull(&proxy, &wanted).await, "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d11_a_disk_that_turns_read_only_serves_what_it_has_and_passes_the_rest_through() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=64m")
        .start();
    let (kept, kept_target) = blob(&simulator, 1, MIB);
    assert_whole(&proxy.client().get(&kept_target).await, &kept);
    idle(&proxy).await;
    proxy.remount_read_only();
    assert_read_only(&proxy, &simulator, &kept, &kept_target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d11_a_disk_that_is_read_only_at_start_serves_what_it_has_and_passes_the_rest_through() {
    let simulator = simulator().await;
    let mut proxy = Proxy::before(&simulator);
    let (kept, kept_target) = blob(&simulator, 1, MIB);
    assert_whole(&proxy.client().get(&kept_target).await, &kept);
    idle(&proxy).await;
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.make_cache_read_only();
    proxy.restart();
    assert_read_only(&proxy, &simulator, &kept, &kept_target).await;
}

async fn assert_read_only(proxy: &Proxy, simulator: &Simulator, kept: &str, kept_target: &str) {
    let (digest, target) = blob(simulator, 2, 3 * MIB);
    for answer in pull_together(&proxy.client(), &target, 3).await {
        assert_whole(&answer, &digest);
    }
    let hit = proxy.client().get(kept_target).await;
    assert_whole(&hit, kept);
    assert_eq!(outcome(&hit), Some("hit"));
    idle(proxy).await;
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("read-only"), "{}", ready.text());
    let strict = Client::operator(proxy.admin()).get("/readyz?strict").await;
    assert_eq!(strict.status, 503);
    assert_eq!(proxy.assert_blobs_are_sound(), [kept]);
}

/// The program may not do what only an administrator may: to it the modes of files are the law.
const OBEDIENT: &str =
    "exec setpriv --bounding-set=-dac_override,-dac_read_search,-linux_immutable \"$@\"";

#[tokio::test(flavor = "multi_thread")]
async fn d16_a_folder_that_may_not_be_read_costs_its_own_blobs_their_place_and_no_others() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let mut proxy = builder.mount(OBEDIENT).start();
    let [shut, open, late] = &std::array::from_fn::<_, 3, _>(|n| blob(&simulator, n as u64, MIB));
    for blob in [shut, open] {
        assert_eq!(pull(&proxy, blob).await, "miss");
    }
    let shard = |blob: &(String, String)| blob.0["sha256:".len()..][..2].to_owned();
    assert!(shard(shut) != shard(open) && shard(shut) != shard(late));
    let folder = proxy.dir().join("cache/blobs/sha256").join(shard(shut));
    let mode = |mode| {
        let mode = PermissionsExt::from_mode(mode);
        fs::set_permissions(&folder, mode).expect("chmod");
    };
    // What is open is not asked for by its name.
    proxy.restart();
    mode(0o000);
    // Nobody can tell what is in it: it is fetched, and passed through; and told, until the next write
    // elsewhere succeeds.
    let pull_shut = async || {
        assert_eq!(pull(&proxy, shut).await, "miss");
        assert_no_temporaries(&proxy);
    };
    pull_shut().await;
    until("the store is told", async || {
        pull_shut().await;
        let ready = Client::operator(proxy.admin()).get("/readyz").await;
        assert_eq!(ready.status, 200);
        ready.text().contains("store")
    })
    .await;
    assert_eq!(pull(&proxy, open).await, "hit");
    assert_eq!(pull(&proxy, late).await, "miss");
    assert_eq!(pull(&proxy, late).await, "hit");
    mode(0o700);
    assert_eq!(pull(&proxy, shut).await, "hit");
    until("all is well again", async || {
        let ready = Client::operator(proxy.admin()).get("/readyz?strict").await;
        ready.status == 200
    })
    .await;
}

/// A file system that knows the flag.
const EXT4: &str = "truncate -s 64M ../image; mkfs.ext4 -q -F ../image; mount -o loop ../image .";

fn chattr(change: &str, file: &Path) {
    let done = Command::new(program("chattr"))
        .arg(change)
        .arg(file)
        .status();
    assert!(done.expect("start chattr").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn d16_a_damaged_file_that_cannot_be_removed_is_never_served_again() {
    let simulator = simulator().await;
    let builder = Proxy::builder().simulator(&simulator);
    let proxy = builder.mount(EXT4).start();
    let bad = blob(&simulator, 1, 60_000);
    pull(&proxy, &bad).await;
    let file = blob_file(&proxy, &bad.0);
    fs::write(&file, vec![7; 60_000]).expect("damage it");
    chattr("+i", &file);
    for _ in 0..3 {
        assert_eq!(pull(&proxy, &bad).await, "miss");
    }
    let failures = metric(&proxy, "ecr_proxy_cache_unlink_failures_total", &[]).await;
    assert!(failures >= 1.0);
    let other = blob(&simulator, 2, 60_000);
    pull(&proxy, &other).await;
    assert_eq!(pull(&proxy, &other).await, "hit");
    chattr("-i", &file);
    assert_eq!(pull(&proxy, &bad).await, "miss");
    assert_eq!(pull(&proxy, &bad).await, "hit");
    proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn d08_a_log_worn_in_places_does_not_keep_what_comes_from_being_written() {
    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
    let simulator = simulator().await;
    let config = simulator.put_blob("team/app", "{}");
    let manifests: Vec<String> = (0..5)
        .map(|n| {
            let text = format!(
                r#"{{"schemaVersion":2,"mediaType":"{TYPE}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[],"annotations":{{"n":"{n}"}}}}"#
            );
            simulator.put_manifest("team/app", &format!("v{n}"), TYPE, text.into_bytes())
        })
        .map(|digest| format!("/v2/team/app/manifests/{digest}"))
        .collect();
    let mut proxy = Proxy::before(&simulator);
    for path in &manifests[..4] {
        assert_eq!(proxy.client().get(path).await.status, 200);
    }
    proxy.terminate();
    assert!(proxy.wait().success());
    proxy.restart();
    // Loads the records.
    assert_eq!(proxy.client().head(&manifests[0]).await.status, 200);
    let logs = files_below(&proxy.cache_dir().join("repositories"));
    let log = logs.first().expect("a log").clone();
    let before = fs::metadata(&log).expect("its length").len();
    // It cannot be appended to, and every other body cannot be read, to be written anew.
    let faults = ["fdatasync:error=EIO:when=1", "pread64:error=EIO:when=1+2"];
    let injection = Injection::at(&log, &proxy, faults);
    assert_eq!(proxy.client().get(&manifests[4]).await.status, 200);
    until("the log is written anew", async || {
        let text = fs::read(&log).expect("the log");
        text.windows(7).any(|part| part == br#""n":"4""#)
            && fs::metadata(&log).expect("its length").len() < before
    })
    .await;
    drop(injection);
    proxy.kill9();
    simulator.outage(Outage::Refused).await;
    proxy.restart();
    assert_eq!(proxy.client().get(&manifests[4]).await.status, 200);
    let mut kept = 0;
    for path in &manifests[..4] {
        kept += usize::from(proxy.client().get(path).await.status == 200);
    }
    assert_eq!(kept, 2, "what could be read");
}

#[tokio::test(flavor = "multi_thread")]
async fn d13_a_store_that_vanishes_leaves_no_ghosts_and_is_told() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let kept = blob(&simulator, 1, 2 * MIB);
    pull(&proxy, &kept).await;
    fs::remove_dir_all(proxy.cache_dir()).expect("remove the store");
    assert_eq!(pull(&proxy, &kept).await, "miss");
    let new = blob(&simulator, 2, 2 * MIB);
    for answer in pull_together(&proxy.client(), &new.1, 3).await {
        assert_whole(&answer, &new.0);
    }
    idle(&proxy).await;
    assert!(!proxy.cache_dir().exists(), "made again by itself");
    let ready = Client::operator(proxy.admin()).get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("gone"), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_no_byte_waits_for_a_slow_sync() {
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let (digest, target) = blob(&simulator, 1, 4 * MIB);
    // Until the injection ends.
    let injection = Injection::into(&proxy, ["fsync:delay_enter=600000000"]);
    assert_whole(&proxy.client().get(&target).await, &digest);
    assert!(
        metric(&proxy, "ecr_proxy_fills_active", &[]).await > 0.0,
        "no sync was slow"
    );
    drop(injection);
    idle(&proxy).await;
    assert_eq!(outcome(&proxy.client().get(&target).await), Some("hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_d17_a_blob_asked_for_while_its_folder_is_synced_is_a_hit_and_counted_once() {
    const LEN: u64 = 2 * MIB;
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let (digest, target) = blob(&simulator, 1, LEN);
    // Its file, the folder that its own is made in, and its own.
    let injection = Injection::into(&proxy, ["fsync:delay_enter=600000000:when=3"]);
    assert_whole(&proxy.client().get(&target).await, &digest);
    until("it has its name", async || {
        blob_file(&proxy, &digest).exists()
    })
    .await;
    let meanwhile = proxy.client().get(&target).await;
    assert_whole(&meanwhile, &digest);
    assert_eq!(outcome(&meanwhile), Some("hit"));
    let active = metric(&proxy, "ecr_proxy_fills_active", &[]).await;
    assert!(active > 0.0, "no sync was slow");
    drop(injection);
    idle(&proxy).await;
    let metrics = proxy.metrics().await;
    let counted = ["final", "temporary", "unlinked"]
        .map(|state| metrics.sum("ecr_proxy_cache_bytes", &[&format!(r#"state="{state}""#)]));
    assert_eq!(counted, [LEN as f64, 0.0, 0.0]);
    assert_eq!(pull(&proxy, &(digest, target)).await, "hit");
}

/// A client that reads nothing beyond the head until it is told to.
async fn slow_reader(proxy: &Proxy, target: &str) -> (Connection, support::client::Head) {
    let mut connection = proxy.client().start("GET", target, &[]).await;
    let head = connection.head().await.expect("a head");
    assert_eq!(head.status, 200);
    (connection, head)
}

/// Reads the rest at last.
async fn catch_up((mut connection, head): (Connection, support::client::Head), digest: &str) {
    let (body, clean_end) = connection.body("GET", &head).await;
    assert!(clean_end, "cut after {} bytes", body.len());
    assert_eq!(support::store::digest(&body), digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn d17_a_reader_keeps_its_file_and_its_bytes_stay_counted_until_it_has_closed_it() {
    const LEN: u64 = 24 * MIB;
    let simulator = simulator().await;
    let proxy = Proxy::before(&simulator);
    let (digest, target) = blob(&simulator, 1, LEN);
    assert_whole(&proxy.client().get(&target).await, &digest);
    idle(&proxy).await;
    let reader = slow_reader(&proxy, &target).await;
    fs::remove_file(blob_file(&proxy, &digest)).expect("the blob is there");
    let again = proxy.client().get(&target).await;
    assert_whole(&again, &digest);
    assert_eq!(outcome(&again), Some("miss"));
    let unlinked = [r#"state="unlinked""#];
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_bytes", &unlinked).await,
        LEN as f64
    );
    catch_up(reader, &digest).await;
    until("its bytes are given back", async || {
        metric(&proxy, "ecr_proxy_cache_bytes", &unlinked).await == 0.0
    })
    .await;
    assert_eq!(
        metric(&proxy, "ecr_proxy_cache_bytes", &[r#"state="final""#]).await,
        LEN as f64
    );
}

/// The ranges with which storage was asked for `digest`, the fill's own whole left out.
fn ranges_asked(simulator: &Simulator, digest: &str) -> Vec<String> {
    let journal = simulator.journal().snapshot();
    let of_blob = journal
        .iter()
        .filter(|e| e.listener == Listener::Storage && e.digest.as_deref() == Some(digest));
    of_blob
        .filter_map(|e| e.header("range").map(str::to_owned))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_too_slow_for_a_fill_without_a_disk_goes_on_by_a_range_of_its_own() {
    const LEN: u64 = 40 * MIB;
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=8m")
        .start();
    let (digest, target) = blob(&simulator, 1, LEN);
    let slow = slow_reader(&proxy, &target).await;
    assert_whole(&proxy.client().get(&target).await, &digest);
    idle(&proxy).await;
    assert!(ranges_asked(&simulator, &digest).is_empty());
    catch_up(slow, &digest).await;
    assert_eq!(ranges_asked(&simulator, &digest).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn u08_a_reader_that_goes_on_alone_is_continued_past_a_broken_transfer() {
    const LEN: u64 = 40 * MIB;
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=8m")
        .start();
    let (digest, target) = blob(&simulator, 1, LEN);
    let slow = slow_reader(&proxy, &target).await;
    assert_whole(&proxy.client().get(&target).await, &digest);
    idle(&proxy).await;
    let faults = simulator.faults();
    let ranged = faults.on(Listener::Storage, "GET", Pattern::digest(&digest));
    ranged.times(1).then(Fault::ResetAfter(4 * MIB));
    catch_up(slow, &digest).await;
    assert_eq!(ranges_asked(&simulator, &digest).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn u03_a_reader_that_goes_on_alone_never_ends_cleanly_with_wrong_bytes() {
    const LEN: u64 = 40 * MIB;
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .tmpfs("size=8m")
        .start();
    let (digest, target) = blob(&simulator, 1, LEN);
    let (mut slow, head) = slow_reader(&proxy, &target).await;
    assert_whole(&proxy.client().get(&target).await, &digest);
    idle(&proxy).await;
    let faults = simulator.faults();
    let ranged = faults.on(Listener::Storage, "GET", Pattern::digest(&digest));
    ranged.then(Fault::Corrupt(MIB));
    let (_, clean_end) = slow.body("GET", &head).await;
    assert!(!clean_end, "wrong bytes look whole");
}
