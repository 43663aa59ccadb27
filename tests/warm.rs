//! `warm` fills the cache with images and whatever refers to them, beside a running proxy and alone on a
//! stopped one, so that they are pulled with the link cut; and it says what it could not get.

mod support;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use ecr_proxy::simulator::{
    BlobSource, FULL_ACCESS_KEY, Fault, Gate, ImageSpec, Journal, Listener, Outage, Pattern,
    PushedImage, Simulator, Stored,
};
use support::blobs::{MIB, metric, simulator, until};
use support::image::{REPOSITORY, TAG};
use support::{Proxy, image, store, within};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const SBOM: &str = "application/spdx+json";

/// A proxy whose identity may list referrers, too.
fn before(simulator: &Simulator) -> Proxy {
    Proxy::builder()
        .simulator(simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "1s")
        .start()
}

fn stop(proxy: &mut Proxy) {
    proxy.terminate();
    assert!(proxy.wait().success());
}

/// Bytes that storage sent.
fn fetched(journal: &Journal) -> u64 {
    journal.body_bytes(|entry| entry.listener == Listener::Storage)
}

/// Fails unless this can be had without upstream, and is right.
async fn assert_pulls(proxy: &Proxy, kind: &str, stored: &Stored) {
    let path = format!("/v2/{REPOSITORY}/{kind}/{}", stored.digest);
    let answer = proxy.client().get(&path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert_eq!(answer.digest(), stored.digest);
}

async fn assert_pulls_image(proxy: &Proxy, image: &PushedImage) {
    assert_pulls(proxy, "manifests", &image.top).await;
    for manifest in &image.manifests {
        assert_pulls(proxy, "manifests", &manifest.manifest).await;
    }
    for blob in image.blobs() {
        assert_pulls(proxy, "blobs", &blob).await;
    }
}

/// Puts a manifest with one layer of `size` bytes, which refers to `subject` if there is one, under
/// `tag`; answers the manifest and the layer.
fn attach(
    simulator: &Simulator,
    tag: &str,
    subject: Option<&Stored>,
    size: u64,
) -> (Stored, Stored) {
    let layer = simulator.put_blob(REPOSITORY, BlobSource::generated(size, size));
    simulator.put_blob(REPOSITORY, "{}");
    let mut manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SBOM,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": store::digest(b"{}"),
            "size": 2,
        },
        "layers": [{ "mediaType": SBOM, "digest": layer, "size": size }],
    });
    if let Some(subject) = subject {
        manifest["subject"] = serde_json::json!({
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": subject.size,
        });
    }
    let text = manifest.to_string();
    let stored = |digest, size, media_type: &str| Stored {
        digest,
        size,
        media_type: media_type.to_owned(),
    };
    let length = text.len() as u64;
    let digest = simulator.put_manifest(REPOSITORY, tag, MANIFEST, text);
    (stored(digest, length, MANIFEST), stored(layer, size, SBOM))
}

/// Runs a command to its end with `input` on its standard input.
fn run_with_input(mut command: Command, input: &str) -> std::process::Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut stdin = child.stdin.take().expect("asked for a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_warmed_beside_or_before_the_proxy_is_pulled_with_the_link_cut() {
    for is_running in [true, false] {
        let simulator = Simulator::builder().start().await.expect("a simulator");
        let image = image::push(&simulator);
        let mut proxy = before(&simulator);
        if !is_running {
            stop(&mut proxy);
        }
        let name = format!("{}/{REPOSITORY}:{TAG}", support::DOMAIN);
        let warmed = proxy.run(["warm", &name, "--all-platforms"]).fine();
        let size: u64 = image.blobs().iter().map(|blob| blob.size).sum();
        assert_eq!(fetched(simulator.journal()), size);
        assert!(warmed.stdout.contains(&name), "{warmed:?}");
        assert!(warmed.stdout.contains("1 of 1 images"), "{warmed:?}");

        // Once more costs no content.
        simulator.journal().clear();
        let again = proxy.run(["warm", &name, "--all-platforms"]).fine();
        assert!(again.stdout.contains("all there before"), "{again:?}");
        assert_eq!(fetched(simulator.journal()), 0);
        for entry in simulator.journal().snapshot() {
            let is_cheap = entry.method == "HEAD"
                || entry.listener != Listener::Registry
                || entry.status == Some(404)
                || entry.path.contains("/referrers/");
            assert!(is_cheap, "{entry:?}");
        }

        simulator.outage(Outage::Refused).await;
        if !is_running {
            proxy.restart();
        }
        let tagged = format!("/v2/{REPOSITORY}/manifests/{TAG}");
        assert_eq!(proxy.client().get(&tagged).await.status, 200);
        assert_pulls_image(&proxy, &image).await;
        proxy.assert_no_secrets(&simulator.secrets()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_an_image_is_warmed_with_it() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let sbom = attach(&simulator, "", Some(&image.top), 70_000);
    let of_the_sbom = attach(&simulator, "", Some(&sbom.0), 71_000);
    let platform = image
        .manifests
        .iter()
        .find(|m| m.platform == own_platform());
    let of_a_platform = attach(&simulator, "", platform.map(|m| &m.manifest), 72_000);
    let cosign = format!("{}.sig", image.top.digest.replace(':', "-"));
    let signature = attach(&simulator, &cosign, None, 73_000);
    let proxy = before(&simulator);
    let warmed = proxy.run(["warm", "team/app:v1"]).fine();
    assert!(warmed.stdout.contains("4 referrers"), "{warmed:?}");

    simulator.outage(Outage::Refused).await;
    let client = proxy.client();
    let list = format!("/v2/{REPOSITORY}/referrers/{}", image.top.digest);
    let list = client.get(&list).await;
    assert_eq!((list.status, list.header("x-cache")), (200, Some("stale")));
    assert_eq!(list.json()["manifests"][0]["digest"], sbom.0.digest);
    assert_eq!(list.json()["manifests"][0]["artifactType"], SBOM);
    let tag = format!("/v2/{REPOSITORY}/manifests/{cosign}");
    assert_eq!(client.get(&tag).await.digest(), signature.0.digest);
    for (manifest, layer) in [&sbom, &of_the_sbom, &of_a_platform, &signature] {
        assert_pulls(&proxy, "manifests", manifest).await;
        assert_pulls(&proxy, "blobs", layer).await;
    }
}

/// The platform that the sample image has and this machine is.
fn own_platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        _ => "linux/amd64",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platforms_that_are_wanted_are_fetched() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let proxy = before(&simulator);
    let of = |platform: &str| {
        let found = image.manifests.iter().find(|m| m.platform == platform);
        found.expect("it has that platform")
    };
    let foreign = match own_platform() {
        "linux/amd64" => "linux/arm64",
        _ => "linux/amd64",
    };
    let manifests = || {
        let entries = simulator.journal().snapshot();
        let asked = |digest: &str| entries.iter().any(|e| e.path.ends_with(digest));
        [own_platform(), foreign].map(|platform| asked(&of(platform).manifest.digest))
    };
    proxy.run(["warm", "team/app:v1"]).fine();
    assert_eq!(manifests(), [true, false]);

    let failed = proxy.run(["warm", "team/app:v1", "--platform", "linux/s390x"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("linux/s390x"), "{failed:?}");
    assert!(failed.stdout.contains("linux/arm64"), "{failed:?}");

    let list = format!("{},{foreign}", own_platform());
    proxy
        .run(["warm", "team/app:v1", "--platform", &list])
        .fine();
    assert_eq!(manifests(), [true, true]);

    let wrong = proxy.run(["warm", "team/app:v1", "--platform", "amd64"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_had_is_named_and_stops_nothing_else() {
    let simulator = simulator().await;
    let images = ["one", "two", "three"].map(|tag| {
        let seed = tag.len() as u64 + u64::from(tag.as_bytes()[1]);
        let spec = ImageSpec::generated(seed, [MIB, MIB + seed]);
        simulator.push_image(REPOSITORY, tag, spec)
    });
    let broken = &images[1].manifests[0].layers[0];
    let rule = simulator
        .faults()
        .on(Listener::Storage, "GET", Pattern::digest(&broken.digest));
    let rule = rule.then(Fault::Corrupt(7));
    let proxy = before(&simulator);
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("images.txt");
    fs::write(&list, "# all\nteam/app:two\nteam/app:nothing # never was\n").expect("written");
    let list = list.to_str().expect("UTF-8");
    let command = proxy.command(["warm", "team/app:one", "-", "--file", list]);
    let output = run_with_input(command, "team/app:three\n\n");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("2 of 4 images"), "{stdout}");
    assert!(stdout.contains(&broken.digest), "{stdout}");
    let last = stderr.lines().last().unwrap_or_default();
    for (tag, is_named) in [
        ("one", false),
        ("two", true),
        ("three", false),
        ("nothing", true),
    ] {
        assert_eq!(
            last.contains(&format!("team/app:{tag}")),
            is_named,
            "{last}"
        );
    }

    rule.remove();
    let told = proxy.run(["warm", "team/app:two", "--json"]).fine();
    let events = told.json_lines();
    let done = events.iter().find(|event| event["event"] == "warm-done");
    let done = done.expect("what became of it");
    assert_eq!(done["image"], "team/app:two");
    assert_eq!(done["digest"], images[1].top.digest);
    assert_eq!(done["fetched_bytes"], broken.size, "what was good was kept");
    assert_eq!(events[events.len() - 2]["complete"], 1);
    assert_eq!(events[events.len() - 1]["event"], "end");

    simulator.outage(Outage::Refused).await;
    for image in &images {
        assert_pulls_image(&proxy, image).await;
    }
    // What is here may be another by now.
    let cut = within("a tag that is not fresh", async {
        loop {
            tokio::task::yield_now().await;
            let cut = proxy.run(["warm", "team/app:one", "--no-referrers"]);
            if cut.code != Some(0) {
                break cut;
            }
        }
    })
    .await;
    assert!(cut.stdout.contains("upstream cannot answer"), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_tag_is_the_list_of_referrers_only_an_index_is_one_and_it_has_to_be_readable() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    let no_such_api = Fault::status(404, "404 page not found");
    let lists = simulator.faults();
    let lists = lists.on(Listener::Registry, "GET", "/referrers/");
    lists.then(no_such_api);
    let proxy = before(&simulator);
    let tag = image.top.digest.replace(':', "-");
    // Some call images by their own digests in this way.
    attach(&simulator, &tag, None, 1000);
    proxy.run(["warm", "team/app:v1"]).fine();
    let odd = r#"{"schemaVersion":2,"manifests":5}"#;
    simulator.put_manifest(REPOSITORY, &tag, INDEX, odd);
    let told = within("the tag is asked for again", async {
        loop {
            tokio::task::yield_now().await;
            let told = proxy.run(["warm", "team/app:v1"]);
            if told.code != Some(0) {
                break told;
            }
        }
    });
    let told = told.await;
    let word = format!("referrers of {}", image.top.digest);
    assert!(told.stdout.contains(&word), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrongly_asked_is_refused_before_anything_is_done() {
    let simulator = simulator().await;
    let proxy = before(&simulator);
    for (arguments, named) in [
        (&["warm"][..], "IMAGE"),
        (&["warm", "TEAM/app"], "TEAM/app"),
        (&["warm", "quay.io/team/app"], "quay.io"),
        (
            &["warm", "--file", "/nowhere/images.txt"],
            "/nowhere/images.txt",
        ),
        (
            &["warm", "a", "--platform", "linux/amd64", "--all-platforms"],
            "--all-platforms",
        ),
    ] {
        let refused = proxy.run(arguments.iter().copied());
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(named), "{refused:?}");
    }
    let registry = |entry: &ecr_proxy::simulator::Entry| entry.listener == Listener::Registry;
    assert_eq!(simulator.journal().count(registry), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_what_a_killed_warm_up_has_is_not_fetched_again() {
    const SIZE: u64 = 24 * MIB;
    let simulator = simulator().await;
    let image = simulator.push_image(REPOSITORY, TAG, ImageSpec::generated(1, [SIZE]));
    let mut proxy = before(&simulator);
    stop(&mut proxy);
    let gate = Gate::new();
    let layer = Pattern::digest(&image.manifests[0].layers[0].digest);
    let rule = simulator.faults().on(Listener::Storage, "GET", layer);
    rule.times(1).then(Fault::HoldAfter(SIZE / 2, gate.clone()));
    let mut command = proxy.command(["warm", "team/app:v1", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let stdout = child.stdout.take().expect("asked for a pipe");
    let half_way = tokio::task::spawn_blocking(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        lines.map_while(Result::ok).any(|line| {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            event["bytes_done"].as_u64() > Some(SIZE / 2 - MIB)
        })
    });
    assert!(within("half of it", half_way).await.expect("no panic"));
    child.kill().expect("a child may be killed");
    child.wait().expect("a killed child can be waited for");
    gate.open();
    proxy.run(["warm", "team/app:v1"]).fine();
    let sent = fetched(simulator.journal());
    assert!(sent <= SIZE + SIZE / 10, "{sent} of {SIZE} bytes");
    simulator.outage(Outage::Refused).await;
    proxy.restart();
    assert_pulls_image(&proxy, &image).await;
}

/// A proxy that keeps the sample image warm.
fn keeping(simulator: &Simulator) -> Proxy {
    let schedule = toml::toml! {
        images = ["team/app:v1"]
        every = "1s"
        platforms = ["all"]
    };
    Proxy::builder()
        .simulator(simulator)
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .set("cache.tag_ttl", "1s")
        .push("warm", schedule)
        .start()
}

async fn until_kept(proxy: &Proxy, image: &PushedImage) {
    until("the image is kept", async || {
        let kept = proxy.assert_blobs_are_sound();
        let mut blobs = image.blobs().into_iter();
        blobs.all(|blob| kept.contains(&blob.digest))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_keeps_images_warm_and_waits_for_the_link() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    let image = image::push(&simulator);
    simulator.outage(Outage::Refused).await;
    let proxy = keeping(&simulator);
    // Without an answer from upstream a round fails, and then nothing is tried.
    proxy
        .log_until("a failed round", |event| {
            event.message() == "an image could not be warmed"
        })
        .await;
    simulator.outage(Outage::None).await;
    until_kept(&proxy, &image).await;

    let spec = ImageSpec::generated(9, [MIB, MIB]).platforms(["linux/arm64", "linux/s390x"]);
    let newer = simulator.push_image(REPOSITORY, TAG, spec);
    until_kept(&proxy, &newer).await;
    until("a complete round", async || {
        let complete = ["result=\"complete\""];
        metric(&proxy, "ecr_proxy_warm_images_total", &complete).await >= 1.0
    })
    .await;
    simulator.outage(Outage::Refused).await;
    assert_pulls_image(&proxy, &newer).await;
}
