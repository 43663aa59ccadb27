//! `ecr-proxy cache …` looks at the cache and tends it, beside a running proxy and alone on a stopped one,
//! with the same outcome; a running proxy is never harmed by it.

mod support;

use std::fs;

use ecr_proxy::simulator::{ImageSpec, PushedImage, Simulator};
use serde_json::Value;
use support::Ended;
use support::Proxy;
use support::blobs::{MIB, blob_file, simulator};
use support::image::{REPOSITORY, pull_all, pull_platform};

/// A registry with images in it, and the proxy in front of it.
struct Rig {
    simulator: Simulator,
    proxy: Proxy,
}

impl Rig {
    async fn new() -> Self {
        let simulator = simulator().await;
        let proxy = Proxy::before(&simulator);
        Self { simulator, proxy }
    }

    fn push(&self, tag: &str, seed: u64, platforms: &[&str]) -> PushedImage {
        let spec = ImageSpec::generated(seed, [MIB, 2 * MIB]).platforms(platforms.iter().copied());
        self.simulator.push_image(REPOSITORY, tag, spec)
    }

    /// Runs a command beside the running proxy, then alone on the stopped one.
    fn both_ways(&mut self, arguments: &[&str]) -> [Ended; 2] {
        let beside = self.proxy.run(arguments.iter().copied());
        self.proxy.terminate();
        assert!(self.proxy.wait().success());
        let alone = self.proxy.run(arguments.iter().copied());
        [beside, alone]
    }
}

/// The events of this kind, without the times that differ from one moment to the next.
fn events(ended: &Ended, kind: &str) -> Vec<Value> {
    let mut lines = ended.json_lines();
    assert_eq!(lines.last().expect("an end")["event"], "end", "{ended:?}");
    lines.retain(|line| line["event"] == kind);
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn list_tells_what_of_each_image_is_there() {
    let mut rig = Rig::new().await;
    let whole = rig.push("whole", 1, &["linux/amd64"]);
    let half = rig.push("half", 2, &["linux/amd64", "linux/arm64"]);
    let looked_at = rig.push("looked-at", 3, &["linux/amd64"]);
    pull_all(&rig.proxy, "whole", &whole).await;
    pull_platform(&rig.proxy, "half", &half.manifests[1]).await;
    let path = format!("/v2/{REPOSITORY}/manifests/looked-at");
    assert_eq!(rig.proxy.client().get(&path).await.status, 200);

    for ended in rig.both_ways(&["cache", "list", "--json"]) {
        let images = events(&ended.fine(), "image");
        let told: Vec<_> = images.iter().map(|i| (&i["tag"], &i["state"])).collect();
        let tags = ["half", "looked-at", "whole"].map(Value::from);
        let states = ["some-platforms", "partial", "complete"].map(Value::from);
        assert_eq!(told, tags.iter().zip(&states).collect::<Vec<_>>());
        let [half_told, looked_told, whole_told] = &images[..] else {
            panic!("{images:?}")
        };
        assert_eq!(whole_told["repository"], REPOSITORY);
        assert_eq!(whole_told["upstream"], "prod");
        assert_eq!(whole_told["digest"], whole.top.digest);
        let size = whole.top.size + whole.blobs().iter().map(|blob| blob.size).sum::<u64>();
        assert_eq!(whole_told["bytes"], size);
        assert_eq!(whole_told["missing"]["blobs"], 0);
        assert!(whole_told["last_use"].is_string(), "{whole_told}");
        let platforms = half_told["platforms"].as_array().expect("platforms");
        let here: Vec<_> = platforms.iter().map(|p| p["is_complete"] == true).collect();
        assert_eq!(here, [false, true], "{half_told}");
        assert_eq!(platforms[1]["platform"], "linux/arm64");
        assert_eq!(half_told["missing"]["manifests"], 1);
        assert_eq!(looked_told["missing"]["blobs"], 3);
        assert_eq!(looked_told["digest"], looked_at.top.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_is_narrowed_by_a_pattern_and_reads_like_a_table() {
    let mut rig = Rig::new().await;
    for (seed, tag) in [(1, "v1.0"), (2, "v1.1"), (3, "v2.0")] {
        let image = rig.push(tag, seed, &["linux/amd64"]);
        pull_all(&rig.proxy, tag, &image).await;
    }
    for ended in rig.both_ways(&["cache", "list", "team/*:v1.*"]) {
        let table = ended.fine().stdout;
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[0].starts_with("IMAGE "), "{table}");
        for (line, tag) in lines[1..].iter().zip(["v1.0", "v1.1"]) {
            assert!(line.starts_with(&format!("{REPOSITORY}:{tag} ")), "{table}");
            assert!(line.contains("complete"), "{table}");
        }
    }
    let other = rig.proxy.run(["cache", "list", "other/**"]).fine();
    assert_eq!(other.stdout, "no images\n");
    let wrong = rig.proxy.run(["cache", "list", "quay.io/team/app"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    let wrong = rig.proxy.run(["cache", "list", "team//app"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_agree_with_the_disk() {
    let mut rig = Rig::new().await;
    let image = rig.push("v1", 1, &["linux/amd64", "linux/arm64"]);
    pull_all(&rig.proxy, "v1", &image).await;
    let blobs = image.blobs();
    for ended in rig.both_ways(&["cache", "stats", "--json"]) {
        let stats = &events(&ended.fine(), "stats")[0];
        assert_eq!(stats["blobs"], blobs.len());
        let size: u64 = blobs.iter().map(|blob| blob.size).sum();
        assert_eq!(stats["bytes"]["blobs"], size);
        assert_eq!(stats["limit_bytes"], 10_u64 << 30);
        assert_eq!(stats["repositories"], 1);
        assert_eq!(stats["tags"], 1);
        assert_eq!(stats["manifests"], 3);
        assert_eq!(stats["is_counted"], true);
        assert!(stats["degraded"].as_array().expect("a list").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_damage_behind_an_intact_stamp_and_takes_it_away() {
    for alone in [false, true] {
        let mut rig = Rig::new().await;
        let image = rig.push("v1", 1, &["linux/amd64"]);
        pull_all(&rig.proxy, "v1", &image).await;
        if alone {
            rig.proxy.terminate();
            assert!(rig.proxy.wait().success());
        }
        let fine = rig.proxy.run(["cache", "verify", "--json"]).fine();
        let verified = &events(&fine, "verified")[0];
        assert_eq!(verified["sound"], 3);
        assert_eq!(verified["damaged"], 0);

        let layer = &image.manifests[0].layers[1];
        let file = blob_file(&rig.proxy, &layer.digest);
        let times = fs::metadata(&file).expect("a blob");
        let mut bytes = fs::read(&file).expect("a blob");
        bytes[MIB as usize] ^= 1;
        let open = fs::File::options().write(true).open(&file).expect("a blob");
        std::os::unix::fs::FileExt::write_all_at(&open, &bytes, 0).expect("written");
        let times = fs::FileTimes::new().set_modified(times.modified().expect("a time"));
        open.set_times(times).expect("set");

        let found = rig.proxy.run(["cache", "verify"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(found.stdout.contains(&layer.digest), "{found:?}");
        assert!(found.stdout.contains("2 of 3 blobs are sound"), "{found:?}");
        assert!(found.stderr.contains("1 damaged blobs"), "{found:?}");
        assert!(!file.exists(), "alone: {alone}");
        rig.proxy.run(["cache", "verify"]).fine();
        if alone {
            rig.proxy.restart();
        }
        pull_all(&rig.proxy, "v1", &image).await;
        assert_eq!(rig.proxy.assert_blobs_are_sound().len(), 3);
    }
}
