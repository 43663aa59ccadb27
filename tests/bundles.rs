//! Images are carried as a bundle to where no wire goes, whole and verified, and other tools read and
//! write the same bundles.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use ecr_proxy::simulator::{Flavour, ImageSpec, Listener, Outage, PushedImage, Simulator};
use serde_json::json;
use support::blobs::{blob_file, simulator};
use support::bundle::{
    blob_path, cut_off, export, file, filled, import, pull_all, pull_all_of, read, write,
};
use support::image::{REPOSITORY, TAG, credentials, push};
use support::store::{digest, files_below};
use support::{Client, Proxy, Sandbox};

/// A small image of one platform and two layers.
fn small(seed: u64) -> ImageSpec {
    ImageSpec::generated(seed, [300_000, 70_000])
}

async fn two_images() -> (Simulator, Proxy) {
    let simulator = simulator().await;
    simulator.push_image(REPOSITORY, "v1", small(1));
    simulator.push_image(REPOSITORY, "v2", small(2));
    let proxy = filled(&simulator, &["v1", "v2"]).await;
    (simulator, proxy)
}

/// The proxy answers 404 or 503 and serves none of what `reference` leads to.
async fn assert_unknown(client: &Client, reference: &str) {
    let target = format!("/v2/{REPOSITORY}/manifests/{reference}");
    let answer = client.get(&target).await;
    assert!(
        matches!(answer.status, 404 | 502 | 503),
        "{reference}: {}",
        answer.status
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_pulled_from_a_proxy_that_never_had_a_link() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    push(&simulator);
    let home = filled(&simulator, &[TAG]).await;
    let pulled = pull_all(&home.client(), TAG).await;
    let bundle = export(&home, "site.tar", &[&format!("{REPOSITORY}:{TAG}")]);
    simulator.shutdown().await;

    let mut site = cut_off().start();
    assert_unknown(&site.client(), TAG).await;
    let told = import(&site, &bundle, &[]).fine().json_lines();
    assert_eq!(told[0]["image"], format!("{REPOSITORY}:{TAG}"));
    assert_eq!(told[1]["failed_images"], 0, "{told:?}");
    // Absence is remembered for a moment, which a restart forgets.
    for _ in 0..2 {
        site.restart();
        assert_eq!(pull_all(&site.client(), TAG).await, pulled);
    }
    site.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_goes_to_and_from_a_stopped_proxy_as_well() {
    let simulator = simulator().await;
    simulator.push_image(REPOSITORY, "v1", small(1));
    let mut home = filled(&simulator, &["v1"]).await;
    let pulled = pull_all(&home.client(), "v1").await;
    home.terminate();
    assert!(home.wait().success());
    let bundle = export(&home, "site.tar", &["team/app:v1"]);
    let mut site = cut_off().start();
    site.kill9();
    import(&site, &bundle, &[]).fine();
    site.restart();
    assert_eq!(pull_all(&site.client(), "v1").await, pulled);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_is_the_same_bytes() {
    let (simulator, mut home) = two_images().await;
    let images = ["team/app:v1", "team/app:v2"];
    let first = fs::read(export(&home, "1.tar", &images)).expect("a bundle");
    let turned = [
        "registry.mydomain.test/team/app:v2",
        "team/app:v1",
        "team/app:v1",
    ];
    let second = fs::read(export(&home, "2.tar", &turned)).expect("a bundle");
    assert_eq!(first, second);
    home.terminate();
    assert!(home.wait().success());
    let third = fs::read(export(&home, "3.tar", &images)).expect("a bundle");
    assert_eq!(first, third);
    let other = filled(&simulator, &["v2", "v1"]).await;
    let fourth = fs::read(export(&other, "4.tar", &images)).expect("a bundle");
    assert_eq!(first, fourth);
    let mut command = other.command(["export", "-o", "-", "team/app:v1", "team/app:v2"]);
    assert_eq!(command.output().expect("it runs").stdout, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn importing_again_writes_nothing_new() {
    let (_simulator, home) = two_images().await;
    let bundle = export(&home, "site.tar", &["team/app:v1", "team/app:v2"]);
    let site = cut_off().start();
    let first = import(&site, &bundle, &[]).fine().json_lines();
    assert_eq!(
        (&first[2]["new_blobs"], &first[2]["known_blobs"]),
        (&json!(6), &json!(0))
    );
    let inode = |path: &std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::metadata(path).expect("a file");
        (metadata.ino(), metadata.mtime_nsec(), metadata.ctime_nsec())
    };
    let files = || {
        let files = files_below(&site.cache_dir().join("blobs"));
        files
            .iter()
            .map(|path| (path.clone(), inode(path)))
            .collect::<Vec<_>>()
    };
    let before = files();
    let second = import(&site, &bundle, &[]).fine().json_lines();
    assert_eq!(
        (&second[2]["new_blobs"], &second[2]["known_blobs"]),
        (&json!(0), &json!(6))
    );
    assert_eq!(files(), before);
    assert_eq!(second[0].get("replaced"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_images_one_damaged_the_other_is_applied() {
    let (simulator, home) = two_images().await;
    let good = pull_all(&home.client(), "v2").await;
    let bundle = export(&home, "site.tar", &["team/app:v1", "team/app:v2"]);
    let mut files = read(&fs::read(&bundle).expect("a bundle"));
    let (_, manifest) = simulator.manifest(REPOSITORY, "v1").expect("pushed");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let damaged = manifest["layers"][0]["digest"].as_str().expect("a digest");
    file(&mut files, &blob_path(damaged))[1000] ^= 1;
    fs::write(&bundle, write(&files)).expect("written");

    let site = cut_off().start();
    let ended = import(&site, &bundle, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = ended.json_lines();
    let why = told[0]["error"].as_str().expect("it failed");
    assert!(
        told[0]["image"] == "team/app:v1" && why.contains(damaged),
        "{told:?}"
    );
    assert_eq!(told[1].get("error"), None, "{told:?}");
    assert_eq!(pull_all(&site.client(), "v2").await, good);
    assert_unknown(&site.client(), "v1").await;
    let top = told[0]["digest"].as_str().expect("a digest");
    assert_unknown(&site.client(), top).await;
    assert!(!blob_file(&site, damaged).exists());

    let again = import(&site, &export(&home, "whole.tar", &["team/app:v1"]), &[]);
    let told = again.fine().json_lines();
    assert_eq!(
        (&told[1]["new_blobs"], &told[1]["known_blobs"]),
        (&json!(1), &json!(2))
    );
}
/// skopeo in a sandbox of its own, with a bundle in it.
fn sandboxed(bundle: &Path) -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let inside = sandbox.path("bundle.tar");
    sandbox.write(&inside, fs::read(bundle).expect("a bundle"));
    let inside = inside.to_str().expect("UTF-8").to_owned();
    (sandbox, inside)
}

/// Two images, one of two platforms, pulled.
async fn of_platforms(flavour: Flavour) -> (PushedImage, Proxy) {
    let simulator = simulator().await;
    let platforms = ["linux/amd64", "linux/arm64"];
    let multi = small(1).platforms(platforms).flavour(flavour);
    let pushed = simulator.push_image(REPOSITORY, "multi", multi);
    simulator.push_image(REPOSITORY, "single", small(2).flavour(flavour));
    (pushed, filled(&simulator, &["multi", "single"]).await)
}

/// skopeo finds all of an image.
fn skopeo_reads(sandbox: &Sandbox, image: &str, pushed: &PushedImage) {
    let raw = sandbox.must("skopeo", ["inspect", "--raw", image]);
    assert_eq!(digest(raw.as_bytes()), pushed.top.digest);
    let to = format!("dir:{}", sandbox.path("copied").display());
    sandbox.must("skopeo", ["copy", "--all", image, &to]);
    let copied = sandbox.outside(&sandbox.path("copied"));
    for blob in pushed.blobs() {
        let hex = blob.digest.trim_start_matches("sha256:");
        let content = fs::read(copied.join(hex)).expect("a blob that skopeo copied");
        assert_eq!(digest(&content), blob.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_every_image_of_a_bundle() {
    let (pushed, home) = of_platforms(Flavour::Oci).await;
    let both = ["team/app:multi", "team/app:single"];
    let (sandbox, bundle) = sandboxed(&export(&home, "site.tar", &both));
    let image =
        |tag: &str| format!("oci-archive:{bundle}:registry.mydomain.test/{REPOSITORY}:{tag}");
    skopeo_reads(&sandbox, &image("multi"), &pushed);
    sandbox.must("skopeo", ["inspect", "--raw", &image("single")]);
}

/// Of several it finds, by name, only those with OCI's own types; of one it needs no name.
#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_an_image_of_dockers_types() {
    let (pushed, home) = of_platforms(Flavour::Docker).await;
    let (sandbox, bundle) = sandboxed(&export(&home, "site.tar", &["team/app:multi"]));
    skopeo_reads(&sandbox, &format!("oci-archive:{bundle}"), &pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_writes_is_imported() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    push(&simulator);
    let home = filled(&simulator, &[TAG]).await;
    let pulled = pull_all(&home.client(), TAG).await;
    let sandbox = Sandbox::new();
    let from = simulator.address(Listener::Registry);
    let from = format!("docker://{from}/{REPOSITORY}:{TAG}");
    let credentials = credentials(&simulator);
    let (archive, folder) = (sandbox.path("a.tar"), sandbox.path("layout"));
    for to in [
        format!("oci-archive:{}:{TAG}", archive.display()),
        format!("oci:{}:{TAG}", folder.display()),
    ] {
        let quiet = [
            "copy",
            "--all",
            "--src-tls-verify=false",
            "--src-creds",
            &credentials,
        ];
        sandbox.must(
            "skopeo",
            quiet.into_iter().chain([from.as_str(), to.as_str()]),
        );
    }
    let (archive, folder) = (sandbox.outside(&archive), sandbox.outside(&folder));
    let compressed = home.dir().join("a.tar.gz");
    let gzip = std::process::Command::new(support::program("gzip"))
        .arg("-c")
        .arg(&archive)
        .output();
    fs::write(&compressed, gzip.expect("gzip").stdout).expect("written");
    for bundle in [archive, folder, compressed] {
        let site = cut_off().start();
        let refused = import(&site, &bundle, &[]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stdout.contains("--as"), "{refused:?}");
        let told = import(&site, &bundle, &["--as", "team/app"])
            .fine()
            .json_lines();
        assert_eq!(told[0]["image"], format!("{REPOSITORY}:{TAG}"));
        assert_eq!(pull_all(&site.client(), TAG).await, pulled);
        import(&site, &bundle, &["--as", "other/name:x"]).fine();
        assert_eq!(pull_all_of(&site.client(), "other/name", "x").await, pulled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_from_a_site_that_knows_its_images_by_a_bundle_alone() {
    let simulator = Simulator::builder().start().await.expect("a simulator");
    push(&simulator);
    let home = filled(&simulator, &[TAG]).await;
    let bundle = export(&home, "site.tar", &["team/app:v1"]);
    let site = cut_off().start();
    import(&site, &bundle, &[]).fine();
    let sandbox = Sandbox::new();
    let from = format!("docker://{}/{REPOSITORY}:{TAG}", site.http());
    let to = format!("dir:{}", sandbox.path("copied").display());
    let copy = ["copy", "--all", "--src-tls-verify=false", &from, &to];
    sandbox.must("skopeo", copy);
}

#[tokio::test(flavor = "multi_thread")]
async fn some_platforms_are_exported_and_what_is_missing_is_named() {
    let (pushed, home) = of_platforms(Flavour::Oci).await;
    let all = export(&home, "all.tar", &["team/app:multi"]);
    let arm = export(
        &home,
        "arm.tar",
        &["team/app:multi", "--platform", "linux/arm64"],
    );
    assert!(fs::metadata(&arm).unwrap().len() < fs::metadata(&all).unwrap().len());
    let ended = home.run([
        "export",
        "team/app:multi",
        "-o",
        "/x",
        "--platform",
        "linux/s390x",
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let has = "none of the platforms asked for; it has linux/amd64, linux/arm64";
    assert!(ended.stderr.contains(has), "{ended:?}");

    // A site that has one platform says so, serves it, and exports it; not the other.
    let site = cut_off().start();
    import(&site, &arm, &[]).fine();
    let [amd, arm64] = &pushed.manifests[..] else {
        panic!("{pushed:?}")
    };
    assert_eq!(amd.platform, "linux/amd64");
    pull_all(&site.client(), &arm64.manifest.digest).await;
    assert_unknown(&site.client(), &amd.manifest.digest).await;
    let ended = site.run(["export", "team/app:multi", "-o", "/x"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in [
        &amd.manifest.digest,
        "--platform",
        "complete for linux/arm64",
    ] {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
    let again = export(
        &site,
        "again.tar",
        &["team/app:multi", "--platform", "linux/arm64"],
    );
    assert_eq!(fs::read(again).unwrap(), fs::read(&arm).unwrap());

    // Of a whole bundle, one platform is taken in where that is asked for.
    let other = cut_off().start();
    import(&other, &all, &["--platform", "linux/amd64"]).fine();
    pull_all(&other.client(), &amd.manifest.digest).await;
    assert_unknown(&other.client(), &arm64.manifest.digest).await;
    let ended = import(&other, &arm, &["--platform", "linux/amd64"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_cache_is_named_and_no_bundle_is_left() {
    let (simulator, home) = two_images().await;
    let pushed = simulator.push_image(REPOSITORY, "inspected", small(3));
    let layer = &pushed.manifests[0].layers[1].digest;
    let target = format!("/v2/{REPOSITORY}/manifests/inspected");
    assert_eq!(home.client().get(&target).await.status, 200);
    simulator.outage(Outage::Refused).await;
    let path = home.dir().join("out.tar");
    let output = path.to_str().expect("UTF-8");
    let images = [
        "team/app:inspected",
        "team/app:v2",
        "team/app:v3",
        "no/such:v1",
    ];
    let ended = home.run(
        ["export", "--offline", "-o", output]
            .into_iter()
            .chain(images),
    );
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in [layer, "team/app:v3", "no/such:v1"] {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
    assert!(!ended.stderr.contains("team/app:v2"), "{ended:?}");
    assert!(!path.exists());
    let ended = home.run(["export", "-o", output, "elsewhere.example/team/app:v1"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_cache_is_fetched_first_where_it_can_be() {
    let simulator = simulator().await;
    let platforms = ["linux/amd64", "linux/arm64"];
    let pushed = simulator.push_image(REPOSITORY, "v1", small(1).platforms(platforms));
    let sbom = attach(&simulator, &pushed.top.digest, "", b"an SBOM");
    let home = Proxy::before(&simulator);
    let ended = home.run(["export", "team/app:v1", "-o", "/x", "--offline"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("not in the cache"), "{ended:?}");
    let fetched = fs::read(export(&home, "1.tar", &["team/app:v1"])).expect("a bundle");
    assert!(
        read(&fetched)
            .iter()
            .any(|(path, _)| *path == blob_path(&sbom))
    );

    // Asked again it crosses no link; cut off, it is as it was.
    simulator.journal().clear();
    let again = fs::read(export(&home, "2.tar", &["team/app:v1"])).expect("a bundle");
    assert_eq!(again, fetched);
    let storage = Listener::Storage;
    assert_eq!(
        simulator.journal().count(|entry| entry.listener == storage),
        0
    );
    simulator.outage(Outage::Refused).await;
    let cut_off = fs::read(export(&home, "3.tar", &["team/app:v1"])).expect("a bundle");
    assert_eq!(cut_off, fetched);
    let offline = export(&home, "4.tar", &["team/app:v1", "--offline"]);
    assert_eq!(fs::read(offline).expect("a bundle"), fetched);
}

/// Attaches something to a manifest, by `subject` and under a tag if there is one; answers its digest.
fn attach(simulator: &Simulator, subject: &str, tag: &str, content: &[u8]) -> String {
    let layer = simulator.put_blob(REPOSITORY, content.to_vec());
    let config = simulator.put_blob(REPOSITORY, b"{}".to_vec());
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.example.signature", "digest": config, "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": layer, "size": content.len()}],
    });
    if tag.is_empty() {
        let (media_type, bytes) = simulator.manifest(REPOSITORY, subject).expect("pushed");
        manifest["subject"] =
            json!({"mediaType": media_type, "digest": subject, "size": bytes.len()});
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    simulator.put_manifest(REPOSITORY, tag, media_type, manifest.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_an_image_goes_with_it() {
    let simulator = simulator().await;
    let pushed = simulator.push_image(REPOSITORY, "v1", small(1));
    simulator.push_image(REPOSITORY, "v2", small(2));
    let top = &pushed.top.digest;
    let sbom = attach(&simulator, top, "", b"an SBOM");
    let signed = attach(&simulator, &sbom, "", b"a signature of the SBOM");
    let cosign = format!("{}.sig", top.replace(':', "-"));
    attach(&simulator, top, &cosign, b"a signature");
    let home = filled(&simulator, &["v1", "v2", &sbom, &signed, &cosign]).await;
    let bundle = export(&home, "site.tar", &["team/app:v1"]);
    let bare = export(&home, "bare.tar", &["team/app:v1", "--no-referrers"]);
    let other = export(&home, "other.tar", &["team/app:v2"]);

    let site = cut_off().start();
    let told = import(&site, &bundle, &[]).fine().json_lines();
    assert_eq!(
        told.len(),
        6,
        "four manifests, their sum, the end: {told:?}"
    );
    for reference in [top.as_str(), &sbom, &signed, &cosign, "v1"] {
        pull_all(&site.client(), reference).await;
    }
    let target = format!("/v2/{REPOSITORY}/referrers/{top}");
    let listed = site.client().get(&target).await;
    assert_eq!(listed.status, 200, "{}", listed.text());
    assert_eq!(listed.json()["manifests"][0]["digest"], sbom);
    let raw = read(&fs::read(&bundle).unwrap());
    assert!(raw.iter().any(|(path, _)| *path == blob_path(&sbom)));
    for (bundle, count) in [(&bare, 1), (&other, 1)] {
        let site = cut_off().start();
        let told = import(&site, bundle, &[]).fine().json_lines();
        assert_eq!(told.len(), count + 2, "{told:?}");
        assert_unknown(&site.client(), &sbom).await;
    }
    // By its name, an image is found among what refers to it.
    let (sandbox, inside) = sandboxed(&bundle);
    let image = format!("oci-archive:{inside}:registry.mydomain.test/{REPOSITORY}:v1");
    sandbox.must("skopeo", ["inspect", "--raw", &image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_moved_by_an_import_says_so_and_follows_the_upstream_again() {
    let simulator = simulator().await;
    let old = simulator.push_image(REPOSITORY, "v1", small(1)).top.digest;
    let home = filled(&simulator, &["v1"]).await;
    let bundle = export(&home, "old.tar", &["team/app:v1"]);
    let new = simulator.push_image(REPOSITORY, "v1", small(2)).top.digest;
    let builder = Proxy::builder().simulator(&simulator);
    let site = builder.set("cache.tag_ttl", "0s").start();
    let target = format!("/v2/{REPOSITORY}/manifests/v1");
    assert_eq!(site.client().get(&target).await.digest(), new);
    let told = import(&site, &bundle, &[]).fine().json_lines();
    assert_eq!(
        (&told[0]["digest"], &told[0]["replaced"]),
        (&json!(old), &json!(new))
    );
    assert_eq!(site.client().get(&target).await.digest(), new);
    simulator.outage(Outage::Refused).await;
    assert_eq!(site.client().get(&target).await.digest(), new);
    import(&site, &bundle, &[]).fine();
    assert_eq!(site.client().get(&target).await.digest(), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_while_a_bundle_is_taken_in() {
    let (_simulator, home) = two_images().await;
    let site = cut_off().start();
    let first = export(&home, "1.tar", &["team/app:v1"]);
    let second = export(&home, "2.tar", &["team/app:v2"]);
    import(&site, &first, &[]).fine();
    let expected = pull_all(&home.client(), "v1").await;
    let mut command = site.command(["import", second.to_str().expect("UTF-8")]);
    let mut importing = command
        .stdout(Stdio::null())
        .spawn()
        .expect("the program was built");
    loop {
        assert_eq!(pull_all(&site.client(), "v1").await, expected);
        if let Some(status) = importing.try_wait().expect("a child") {
            assert!(status.success());
            break;
        }
    }
    pull_all(&site.client(), "v2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_puts_into_a_stopped_cache_of_another_user_is_that_users() {
    const USER: &str = "12345";
    let (_simulator, home) = two_images().await;
    let image = format!("{REPOSITORY}:v1");
    let bundle = export(&home, "site.tar", &[&image]);
    let mut site = cut_off().start();
    site.terminate();
    assert!(site.wait().success());
    // Below a folder that only root may enter, as systemd has it.
    let folders = [site.cache_dir(), site.state_dir()];
    fs::create_dir_all(site.state_dir()).expect("ours");
    let chown = Command::new("chown")
        .args(["-R", &format!("{USER}:{USER}")])
        .args(&folders)
        .status();
    assert!(chown.expect("chown runs").success(), "it takes root");
    fs::set_permissions(&bundle, Permissions::from_mode(0o600)).expect("ours");

    import(&site, &bundle, &[]).fine();
    site.run(["cache", "pin", &image]).fine();
    let carried_on = export(&site, "on.tar", &[&image]);
    for of in ["-uid", "-gid"] {
        let find = Command::new("find")
            .args(&folders)
            .args(["!", of, USER])
            .output();
        let of_others = find.expect("find runs").stdout;
        assert_eq!(String::from_utf8_lossy(&of_others), "", "{of}");
    }
    let written = fs::metadata(&carried_on).expect("a bundle");
    assert_eq!(written.uid(), 0, "what is root's is root's");
    // Whoever runs the proxy has made its lock: folders alone say little.
    std::os::unix::fs::chown(site.cache_dir().join("LOCK"), Some(0), Some(0)).expect("ours");
    site.run(["cache", "unpin", &image]).fine();
    site.run(["cache", "pin", &image]).fine();
    let pins = fs::metadata(site.state_dir().join("pins")).expect("pins");
    assert_eq!(pins.uid(), 0, "a proxy that runs as root");
}
