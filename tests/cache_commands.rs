//! `ecr-proxy cache …` looks at the cache and tends it, beside a running proxy and alone on a stopped one,
//! with the same outcome; a running proxy is never harmed by it.

mod support;

use ecr_proxy::simulator::{ImageSpec, Outage, PushedImage, Simulator};
use serde_json::Value;
use support::Ended;
use support::Proxy;
use support::blobs::{MIB, blob_file, metric, simulator, until};
use support::disk::rot;
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
async fn d19_verify_finds_damage_behind_an_intact_stamp_and_has_it_fetched_again() {
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
        rot(&file);
        let found = rig.proxy.run(["cache", "verify"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(found.stdout.contains(&layer.digest), "{found:?}");
        assert!(found.stdout.contains("2 of 3 blobs are sound"), "{found:?}");
        assert!(found.stderr.contains("1 damaged blobs"), "{found:?}");
        let healed = format!("healed {}", layer.digest);
        assert!(found.stdout.contains(&healed), "{found:?}");
        // Nobody asked for it.
        assert_eq!(rig.proxy.assert_blobs_are_sound().len(), 3);
        rig.proxy.run(["cache", "verify"]).fine();

        rot(&file);
        rig.simulator.outage(Outage::Refused).await;
        let found = rig.proxy.run(["cache", "verify", "--json"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        let verified = &events(&found, "verified")[0];
        assert_eq!(
            (&verified["damaged"], &verified["healed"]),
            (&1.into(), &0.into())
        );
        assert!(!file.exists(), "alone: {alone}");
        match alone {
            true => rig.proxy.restart(),
            false => {
                rig.proxy.kill9();
                rig.proxy.restart();
            }
        }
        let wanted = async || metric(&rig.proxy, "ecr_proxy_scrub_wanted", &[]).await;
        until("it is remembered", async || wanted().await == 1.0).await;
        rig.simulator.outage(Outage::None).await;
        until("it is healed", async || wanted().await == 0.0).await;
        assert_eq!(rig.proxy.assert_blobs_are_sound().len(), 3);
    }
}

/// The tags that are listed.
fn listed(proxy: &Proxy) -> Vec<String> {
    let images = proxy.run(["cache", "list", "--json"]).fine();
    let tags = events(&images, "image").into_iter();
    tags.map(|image| image["tag"].as_str().unwrap_or("-").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_takes_an_image_and_what_it_alone_needs() {
    for alone in [false, true] {
        let mut rig = Rig::new().await;
        // Of the same layers, so only config and manifest are its own.
        let twin = |tag: &str, platform: &str| rig.push(tag, 1, &[platform]);
        let (kept, gone) = (twin("kept", "linux/amd64"), twin("gone", "linux/arm64"));
        let other = rig.push("other", 2, &["linux/amd64", "linux/arm64"]);
        for (tag, image) in [("kept", &kept), ("gone", &gone), ("other", &other)] {
            pull_all(&rig.proxy, tag, image).await;
        }
        if alone {
            rig.proxy.terminate();
            assert!(rig.proxy.wait().success());
        }
        let name = |tag: &str| format!("{REPOSITORY}:{tag}");
        let before = rig.proxy.assert_blobs_are_sound();
        let rehearsed = rig
            .proxy
            .run(["cache", "remove", &name("other"), "--dry-run", "--json"]);
        let rehearsed = events(&rehearsed.fine(), "removed");
        assert_eq!(rig.proxy.assert_blobs_are_sound(), before);
        assert_eq!(listed(&rig.proxy), ["gone", "kept", "other"]);

        let removed = rig.proxy.run(["cache", "remove", &name("other"), "--json"]);
        let removed = events(&removed.fine(), "removed");
        for told in [&rehearsed[0], &removed[0]] {
            assert_eq!(told["digest"], other.top.digest);
            assert_eq!(told["manifests"], 3, "{told}");
            assert_eq!(told["blobs"], other.blobs().len(), "{told}");
            let size: u64 = other.blobs().iter().map(|blob| blob.size).sum();
            assert_eq!(told["bytes"], size);
        }
        rig.proxy.run(["cache", "remove", &name("gone")]).fine();
        assert_eq!(listed(&rig.proxy), ["kept"]);
        let mut left: Vec<_> = kept.blobs().into_iter().map(|blob| blob.digest).collect();
        left.sort();
        let mut found = rig.proxy.assert_blobs_are_sound();
        found.sort();
        assert_eq!(found, left, "alone: {alone}");

        let absent = rig.proxy.run(["cache", "remove", &name("gone")]);
        assert_eq!(absent.code, Some(1), "{absent:?}");
        assert!(absent.stderr.contains("not in the cache"), "{absent:?}");
        if alone {
            rig.proxy.restart();
        }
        pull_all(&rig.proxy, "other", &other).await;
        assert_eq!(listed(&rig.proxy), ["kept", "other"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_goes_alone_where_its_image_has_another() {
    let mut rig = Rig::new().await;
    let image = rig.push("v1", 1, &["linux/amd64"]);
    rig.push("latest", 1, &["linux/amd64"]);
    for tag in ["v1", "latest"] {
        pull_all(&rig.proxy, tag, &image).await;
    }
    let name = format!("{REPOSITORY}:latest");
    let removed = rig.proxy.run(["cache", "remove", &name]).fine();
    assert!(removed.stdout.contains("another name"), "{removed:?}");
    assert_eq!(listed(&rig.proxy), ["v1"]);
    assert_eq!(rig.proxy.assert_blobs_are_sound().len(), 3);
    let by_digest = format!("{REPOSITORY}@{}", image.top.digest);
    for ended in rig.both_ways(&["cache", "remove", &by_digest]) {
        // The second finds it gone.
        assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    }
    assert!(rig.proxy.assert_blobs_are_sound().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pulls_a_removed_image_gets_it_to_the_end() {
    let rig = Rig::new().await;
    let spec = ImageSpec::generated(5, [48 * MIB]);
    let image = rig.simulator.push_image(REPOSITORY, "big", spec);
    pull_all(&rig.proxy, "big", &image).await;
    let layer = &image.manifests[0].layers[0];
    let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let mut reading = rig.proxy.client().start("GET", &path, &[]).await;
    let head = reading.head().await.expect("a head");
    assert_eq!(head.header("x-cache"), Some("hit"));
    let name = format!("{REPOSITORY}:big");
    rig.proxy.run(["cache", "remove", &name]).fine();
    assert!(listed(&rig.proxy).is_empty());
    let (body, clean) = reading.body("GET", &head).await;
    assert!(clean);
    assert_eq!(support::store::digest(&body), layer.digest);
    // Once nobody reads it, it can go.
    until("the layer can go", async || {
        rig.proxy.run(["cache", "prune", "--unreferenced"]).fine();
        rig.proxy.assert_blobs_are_sound().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_keep_images_from_prune_and_remove() {
    for alone in [false, true] {
        let mut rig = Rig::new().await;
        for (seed, tag) in [(1, "v1"), (2, "v2")] {
            let image = rig.push(tag, seed, &["linux/amd64"]);
            pull_all(&rig.proxy, tag, &image).await;
        }
        if alone {
            rig.proxy.terminate();
            assert!(rig.proxy.wait().success());
        }
        let name = format!("{REPOSITORY}:v1");
        let pinned = rig.proxy.run(["cache", "pin", &name]).fine();
        assert!(pinned.stdout.contains("1 in the cache"), "{pinned:?}");
        let again = rig.proxy.run(["cache", "pin", &name, "--json"]).fine();
        assert_eq!(events(&again, "pinned")[0]["is_new"], false);
        let pins = rig.proxy.run(["cache", "pin"]).fine();
        assert_eq!(pins.stdout, format!("{name}\n"));
        let stats = rig.proxy.run(["cache", "stats", "--json"]).fine();
        assert_eq!(events(&stats, "stats")[0]["pins"], 1);
        let images = rig.proxy.run(["cache", "list", "--json"]).fine();
        let images = events(&images, "image");
        let is_pinned: Vec<_> = images.iter().map(|i| i["is_pinned"] == true).collect();
        assert_eq!(is_pinned, [true, false]);

        let refused = rig.proxy.run(["cache", "remove", &name]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("pinned"), "{refused:?}");
        let pruned = rig.proxy.run(["cache", "prune", "--to", "0"]);
        assert_eq!(pruned.code, Some(1), "{pruned:?}");
        assert!(
            pruned.stderr.contains("what is left is pinned"),
            "{pruned:?}"
        );
        assert_eq!(listed(&rig.proxy), ["v1"], "alone: {alone}");

        rig.proxy.run(["cache", "unpin", &name]).fine();
        let not_there = rig.proxy.run(["cache", "unpin", &name]);
        assert_eq!(not_there.code, Some(1), "{not_there:?}");
        rig.proxy.run(["cache", "remove", &name]).fine();
        assert!(rig.proxy.assert_blobs_are_sound().is_empty());
        // One that is not there does not keep the others.
        let (one, other) = (format!("{REPOSITORY}:x"), format!("{REPOSITORY}:y"));
        rig.proxy.run(["cache", "pin", &other]).fine();
        let unpinned = rig.proxy.run(["cache", "unpin", &one, &other]);
        assert_eq!(unpinned.code, Some(1), "{unpinned:?}");
        assert!(unpinned.stderr.contains(&one), "{unpinned:?}");
        let pins = rig.proxy.run(["cache", "pin"]).fine();
        assert_eq!(pins.stdout, "no pins\n");
        let vague = rig.proxy.run(["cache", "pin", REPOSITORY]);
        assert_eq!(vague.code, Some(2), "{vague:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_goes_by_age_by_size_and_by_need() {
    for alone in [false, true] {
        let mut rig = Rig::new().await;
        for (seed, tag) in [(1, "v1"), (2, "v2"), (3, "v3")] {
            let image = rig.push(tag, seed, &["linux/amd64"]);
            pull_all(&rig.proxy, tag, &image).await;
        }
        // A blob of no manifest.
        let lone = support::blobs::blob(&rig.simulator, 9, MIB);
        support::blobs::pull(&rig.proxy, &lone).await;
        if alone {
            rig.proxy.terminate();
            assert!(rig.proxy.wait().success());
        }
        let all = rig.proxy.assert_blobs_are_sound();
        for rehearsal in [
            &["cache", "prune", "--older-than", "0s", "--dry-run"][..],
            &["cache", "prune", "--to", "0", "--dry-run"],
            &["cache", "prune", "--unreferenced", "--dry-run"],
            &["cache", "prune", "--older-than", "1h"],
        ] {
            rig.proxy.run(rehearsal.iter().copied()).fine();
            assert_eq!(rig.proxy.assert_blobs_are_sound(), all, "{rehearsal:?}");
        }
        let by_need = rig
            .proxy
            .run(["cache", "prune", "--unreferenced", "--json"])
            .fine();
        let pruned = &events(&by_need, "pruned")[0];
        assert_eq!(
            (&pruned["blobs"], &pruned["bytes"]),
            (&1.into(), &MIB.into())
        );
        assert_eq!(listed(&rig.proxy), ["v1", "v2", "v3"]);
        // An image has 3 MiB: one has to go, the one that was not used for longest.
        let by_size = rig
            .proxy
            .run(["cache", "prune", "--to", "8MiB", "--json"])
            .fine();
        assert_eq!(events(&by_size, "pruned")[0]["manifests"], 1);
        assert_eq!(listed(&rig.proxy), ["v2", "v3"], "alone: {alone}");
        rig.proxy
            .run(["cache", "prune", "--older-than", "0s"])
            .fine();
        assert!(listed(&rig.proxy).is_empty());
        assert!(rig.proxy.assert_blobs_are_sound().is_empty());
        for wrong in [
            &["cache", "prune"][..],
            &["cache", "prune", "--to", "much"],
            &["cache", "prune", "--older-than", "3"],
        ] {
            assert_eq!(
                rig.proxy.run(wrong.iter().copied()).code,
                Some(2),
                "{wrong:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_tells_what_a_tag_means_now() {
    let simulator = simulator().await;
    let proxy = Proxy::builder()
        .simulator(&simulator)
        .set("cache.tag_ttl", "1h")
        .start();
    let mut rig = Rig { simulator, proxy };
    let name = format!("{REPOSITORY}:v1");
    let refresh = ["cache", "refresh", &*name, "--json"];
    let old = rig.push("v1", 1, &["linux/amd64"]);
    let new_one = rig.proxy.run(refresh).fine();
    let told = &events(&new_one, "refreshed")[0];
    assert_eq!(told["now"], old.top.digest);
    assert!(told.get("before").is_none(), "{told}");

    let new = rig.push("v1", 2, &["linux/amd64"]);
    let moved = rig.proxy.run(refresh).fine();
    let told = &events(&moved, "refreshed")[0];
    assert_eq!(told["before"], old.top.digest);
    assert_eq!(told["now"], new.top.digest);
    // The record is new, so clients get the new one though the tag was fresh.
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    assert_eq!(rig.proxy.client().get(&path).await.digest(), new.top.digest);

    let newer = rig.push("v1", 3, &["linux/amd64"]);
    rig.proxy.terminate();
    assert!(rig.proxy.wait().success());
    let alone = rig.proxy.run(refresh).fine();
    assert_eq!(events(&alone, "refreshed")[0]["now"], newer.top.digest);

    rig.simulator.outage(Outage::Refused).await;
    let cut_off = rig.proxy.run(refresh);
    assert_eq!(cut_off.code, Some(1), "{cut_off:?}");
    assert!(cut_off.stderr.contains(&name), "{cut_off:?}");
    let by_digest = format!("{REPOSITORY}@{}", newer.top.digest);
    assert_eq!(
        rig.proxy.run(["cache", "refresh", &by_digest]).code,
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_heard_enough_hears_nothing_more() {
    let mut rig = Rig::new().await;
    let closed = |proxy: &Proxy| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = proxy.command(["cache", "stats"]);
        command.stdout(writer).stderr(std::process::Stdio::piped());
        Ended::of(command.spawn().expect("the program was built"))
    };
    let beside = closed(&rig.proxy);
    rig.proxy.terminate();
    assert!(rig.proxy.wait().success());
    for ended in [beside, closed(&rig.proxy)] {
        assert_eq!((ended.code, &*ended.stderr), (Some(1), ""), "{ended:?}");
    }
}
