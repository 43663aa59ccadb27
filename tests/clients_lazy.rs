//! podman fetches of a layer only the files that it does not have yet (`zstd:chunked`), by several ranges at once where
//! the proxy has the blob, and all of it where it has not.

mod support;

use std::path::{Path, PathBuf};

use ecr_proxy::simulator::{ImageSpec, Layer, LayerFile};
use serde_json::Value;
use support::push::bytes;
use support::pushed::{LOGIN, TARGET, into_ecr, one_user, trust};
use support::{DOMAIN, Proxy, Scene};

const FILES: usize = 9;
/// How long the first of them is; each is of another length, and so of other bytes.
const LENGTH: usize = 60_000;

/// Every third file of the second image is another than in the first.
fn length(tag: &str, file: usize) -> usize {
    match tag == "two" && file % 3 == 1 {
        true => LENGTH + 1000 + file,
        false => LENGTH + file,
    }
}

const STORAGE: &str = r#"
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/run/store"
[storage.options]
pull_options = {enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}
"#;

/// podman with a store of its own.
fn podman(scene: &Scene, store: &str, words: &[&str]) -> String {
    let path = |name: String| scene.sandbox.path(&name).to_string_lossy().into_owned();
    let (root, run) = (path(store.to_owned()), path(format!("{store}-run")));
    let own = ["--root", &root, "--runroot", &run];
    let quiet = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"];
    let words = own.iter().chain(&quiet).chain(words).copied();
    scene.sandbox.must("podman", words)
}

/// Pulls an image of the target and compares its files.
fn pull(scene: &Scene, store: &str, host: &str, tag: &str) {
    let image = format!("{host}/{TARGET}:{tag}");
    podman(scene, store, &["pull", "--creds", LOGIN, &image]);
    let mounted = podman(scene, store, &["image", "mount", &image]);
    let mounted = PathBuf::from(mounted.trim());
    for file in 0..FILES {
        let path = mounted.join(format!("data/{file}"));
        let read = std::fs::read(scene.sandbox.outside(&path)).expect("a file");
        assert!(read == bytes(length(tag, file)), "{tag}: {file}");
    }
    podman(scene, store, &["image", "unmount", &image]);
}

/// What clients got of the blob from this proxy, by status and bytes.
fn answers(proxy: &Proxy, digest: &str) -> Vec<(String, u64)> {
    let logged = proxy.logs().into_iter();
    let about = logged.filter(|event| event.field("oci.reference").as_deref() == Some(digest));
    let gets = about.filter(|event| event.field("http.method").as_deref() == Some("GET"));
    let told = gets.map(|event| {
        let bytes = event.field("body.bytes").expect("a number");
        let status = event.field("http.status").expect("a number");
        (status, bytes.parse().expect("a number"))
    });
    told.collect()
}

/// The only layer of an image of the target, and its size.
fn layer(scene: &Scene, tag: &str) -> (String, u64) {
    let ecr = scene.ecr().expect("a simulator");
    let (_, manifest) = ecr.manifest(TARGET, tag).expect("it was pushed");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let layer = &manifest["layers"][0];
    let digest = layer["digest"].as_str().expect("a digest").to_owned();
    (digest, layer["size"].as_u64().expect("a size"))
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_fetches_the_files_of_a_layer_that_it_lacks() {
    let mut scene = into_ecr().await;
    trust(&scene, "/etc/containers/certs.d");
    let storage = Path::new("/etc/containers/storage.conf");
    scene.sandbox.write(storage, STORAGE);
    let host = scene.host();
    let ecr = scene.ecr().expect("a simulator");
    ecr.create_repository("plain/app");
    for tag in ["one", "two"] {
        let file = |file| LayerFile::plain(&format!("data/{file}"), bytes(length(tag, file)));
        let layer = Layer::Files((0..FILES).map(file).collect());
        ecr.push_image("plain/app", tag, ImageSpec::layers([layer]));
        // Somebody pushes it in the form that can be had in parts.
        let from = format!("{host}/plain/app:{tag}");
        let to = format!("{host}/{TARGET}:{tag}");
        podman(&scene, "maker", &["pull", "--creds", LOGIN, &from]);
        podman(&scene, "maker", &["tag", &from, &to]);
        let compressed = ["--compression-format", "zstd:chunked"];
        let push = [&["push", "--creds", LOGIN][..], &compressed, &[&to]].concat();
        podman(&scene, "maker", &push);
    }
    let (two, size) = layer(&scene, "two");
    // Another proxy has none of it, and so takes no several ranges at once.
    let cold = one_user(Proxy::builder().simulator(ecr));
    let cold = cold.listen(["https://[::1]:0"]).start();
    let cold_host = format!("{DOMAIN}:{}", cold.https().port());
    let ca = Path::new("/etc/containers/certs.d").join(&cold_host);
    scene.sandbox.trust(&cold.pki().ca(), &ca.join("ca.crt"));
    for tag in ["one", "two"] {
        pull(&scene, "first", &cold_host, tag);
    }
    let answered = answers(&cold, &two);
    let statuses: Vec<&str> = answered.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, ["206", "400", "200"], "{answered:?}");
    // The first has it, and goes on when ECR is gone.
    scene.stop_upstream().await;
    for tag in ["one", "two"] {
        pull(&scene, "second", &host, tag);
    }
    let answered = answers(&scene.proxy, &two);
    let are_parts = answered.iter().all(|(status, _)| status == "206");
    let sent: u64 = answered.iter().map(|(_, bytes)| bytes).sum();
    assert!(are_parts && sent < size / 2, "{answered:?} of {size} bytes");
    let ecr = scene.ecr().expect("a simulator");
    for proxy in [&scene.proxy, &cold] {
        proxy.assert_blobs_are_sound();
        proxy.assert_no_secrets(&ecr.secrets()).await;
    }
}
