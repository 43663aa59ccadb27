//! Images are carried as a bundle to where no wire goes, whole and verified, and other tools read and
//! write the same bundles.

mod support;

use std::fs;
use std::path::Path;

use ecr_proxy::simulator::{Flavour, ImageSpec, PushedImage, Simulator};
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
    let from = simulator.address(ecr_proxy::simulator::Listener::Registry);
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
