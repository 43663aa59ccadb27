//! What a disk tears or loses of files that nobody had synced costs what was in them and no more: nothing
//! wrong is served, nobody's rights grow, and nobody has to do anything (C04, C05).
//!
//! `ECR_PROXY_TEST_TEARS` sets the rounds, 6 where it is not set, and `ECR_PROXY_TEST_SEED` the first
//! round's seed; each round prints its own.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ecr_proxy::simulator::{Fault, Gate, ImageSpec, Listener, Outage, Pattern, Simulator};
use fastrand::Rng;
use support::blobs::{MIB, assert_whole, blob, idle, until};
use support::image::REPOSITORY;
use support::store::files_below;
use support::{Answer, Proxy};

const PAGE: u64 = 4096;

/// How large the download is that each round breaks off.
const UNFINISHED: u64 = 8 * MIB;

/// An image of the upstream's: its tag's target, what the tag names, and blobs with their targets.
struct Image {
    tag: String,
    digest: String,
    blobs: Vec<(String, String)>,
}

fn images(simulator: &Simulator) -> Vec<Image> {
    let image = |number: u64| {
        let tag = format!("v{number}");
        let spec = ImageSpec::generated(number, [MIB + number, 300_000]);
        let pushed = simulator.push_image(REPOSITORY, &tag, spec);
        let target = |digest: &str| format!("/v2/{REPOSITORY}/blobs/{digest}");
        let blobs = pushed.blobs().into_iter();
        Image {
            tag: format!("/v2/{REPOSITORY}/manifests/{tag}"),
            digest: pushed.top.digest,
            blobs: blobs
                .map(|blob| (blob.digest.clone(), target(&blob.digest)))
                .collect(),
        }
    };
    (0..4).map(image).collect()
}

/// Whatever the store has written without saying that it must be on disk: all but the blobs, which got
/// their names when they were, and the two files that mark the folder.
fn volatile(cache: &Path) -> Vec<PathBuf> {
    let mut files = files_below(cache);
    let marks = [cache.join("LOCK"), cache.join("VERSION")];
    files.retain(|file| {
        let is_empty = fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0);
        !is_empty && !file.starts_with(cache.join("blobs")) && !marks.contains(file)
    });
    files
}

/// Loses some of a file, as a disk does that was cut off between two writes; or nothing, where it may be
/// `spared`.
fn tear(file: &Path, spared: bool, random: &mut Rng) -> &'static str {
    let opened = File::options().write(true).open(file).expect("open");
    let len = opened.metadata().expect("its length").len();
    let pages = len.div_ceil(PAGE);
    let zero = |page: u64| {
        let at = page * PAGE;
        let lost = vec![0; (len - at).min(PAGE) as usize];
        opened.write_all_at(&lost, at).expect("write");
    };
    match random.u8(u8::from(!spared)..6) {
        0 => "left",
        1 => {
            fs::remove_file(file).expect("remove");
            "lost"
        }
        2 => {
            opened.set_len(random.u64(..len)).expect("cut");
            "cut"
        }
        3 => {
            // Its length was written, and its end was not.
            let kept = random.u64(..len);
            opened.set_len(kept).expect("cut");
            opened.set_len(len).expect("extend");
            "emptied at its end"
        }
        4 => {
            zero(random.u64(..pages));
            "without a page"
        }
        _ => {
            (0..pages).filter(|_| random.bool()).for_each(zero);
            "without half of its pages"
        }
    }
}

/// Right to the end, or no end.
fn assert_never_wrong(answer: &Answer, digest: &str) {
    if answer.status == 200 && answer.clean_end {
        assert_eq!(answer.digest(), digest, "wrong bytes ended cleanly");
    }
}

/// Starts a download of which the proxy has a part on disk when this returns.
async fn begin(proxy: &Proxy, simulator: &Simulator, wanted: &(String, String), part: u64) -> Gate {
    let gate = Gate::new();
    let of_it = Pattern::digest(&*wanted.0);
    let rule = simulator.faults().on(Listener::Storage, "GET", of_it);
    rule.times(1).then(Fault::HoldAfter(part, gate.clone()));
    let mut client = proxy.client().start("GET", &wanted.1, &[]).await;
    assert_eq!(client.head().await.expect("a head").status, 200);
    client.read_exactly(part).await.expect("a part");
    gate
}

async fn round(seed: u64, proxy: &mut Proxy, simulator: &Simulator, images: &[Image]) {
    let mut random = Rng::with_seed(seed);
    let always = random.usize(..images.len());
    for (number, image) in images.iter().enumerate() {
        if number != always && random.u8(..4) == 0 {
            continue;
        }
        let tag = proxy.client().get(&image.tag).await;
        assert_whole(&tag, &image.digest);
        for (digest, target) in &image.blobs {
            assert_whole(&proxy.client().get(target).await, digest);
        }
    }
    idle(proxy).await;
    let unfinished = blob(simulator, seed, UNFINISHED);
    let part = random.u64(MIB..UNFINISHED - MIB);
    let gate = begin(proxy, simulator, &unfinished, part).await;
    let cache = proxy.cache_dir();
    // The index comes by its own clock, and is torn in the rounds that find it.
    until("all else is in its file", async || {
        let files = volatile(&cache);
        let endings = [".part", ".part.note", "_log"];
        endings.iter().all(|ending| {
            let mut names = files.iter().map(|file| file.to_string_lossy());
            names.any(|name| name.ends_with(ending))
        })
    })
    .await;
    proxy.kill9();
    gate.open();

    let files = volatile(&cache);
    let certain = random.usize(..files.len());
    let torn: Vec<String> = files
        .into_iter()
        .enumerate()
        .map(|(number, file)| {
            let how = tear(&file, number != certain, &mut random);
            let name = file.strip_prefix(&cache).unwrap_or(&file);
            format!("{} {how}", name.display())
        })
        .collect();
    println!("seed {seed}: {}", torn.join(", "));
    proxy.assert_blobs_are_sound();

    // Cut off, nothing is served but what is so.
    simulator.outage(Outage::Refused).await;
    proxy.restart();
    let client = proxy.client();
    for image in images {
        let tag = client.get(&image.tag).await;
        assert!([200, 503].contains(&tag.status), "{}", tag.text());
        assert_never_wrong(&tag, &image.digest);
        for (digest, target) in &image.blobs {
            let answer = client.get(target).await;
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
            assert_never_wrong(&answer, digest);
            let elsewhere = target.replace(REPOSITORY, "team/other");
            let answer = client.get(&elsewhere).await;
            assert_eq!(
                answer.status,
                503,
                "another repository's: {}",
                answer.text()
            );
        }
    }

    // With the line back everything is there again, and kept again.
    simulator.outage(Outage::None).await;
    until("the line is seen to be back", async || {
        client.get("/v2/team/app/manifests/v0").await.status == 200
            && client.get("/v2/team/app/manifests/none").await.status == 404
    })
    .await;
    for image in images {
        assert_whole(&client.get(&image.tag).await, &image.digest);
        for (digest, target) in &image.blobs {
            assert_whole(&client.get(target).await, digest);
        }
    }
    // Its beginning may have been what was torn: that shows at its end, and only once.
    assert_never_wrong(&client.get(&unfinished.1).await, &unfinished.0);
    idle(proxy).await;
    assert_whole(&client.get(&unfinished.1).await, &unfinished.0);
    idle(proxy).await;
    proxy.assert_blobs_are_sound();
    let all = images.iter().flat_map(|image| &image.blobs);
    for (digest, target) in all.chain([&unfinished]) {
        let answer = client.get(target).await;
        assert_whole(&answer, digest);
        assert_eq!(answer.header("x-cache"), Some("hit"), "{digest}");
    }
    let logs = proxy.logs();
    let panic = logs.iter().find(|event| event.line.contains("panicked"));
    assert!(panic.is_none(), "{panic:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c04_torn_and_lost_pages_of_what_was_not_synced_cost_no_more_than_they_held() {
    let number = |name: &str, default: u64| {
        let set = std::env::var(name).ok();
        set.map_or(default, |set| set.parse().expect("a number"))
    };
    let rounds = number("ECR_PROXY_TEST_TEARS", 6);
    let first = number("ECR_PROXY_TEST_SEED", 1);
    let simulator = Simulator::builder().start().await.expect("a simulator");
    simulator.create_repository("team/other");
    let images = images(&simulator);
    let mut proxy = Proxy::before(&simulator);
    for seed in first..first + rounds {
        round(seed, &mut proxy, &simulator, &images).await;
    }
}
