//! skopeo and podman pull an image by the owner's own name, over TLS, knowing nothing of AWS; a
//! second pull needs no upstream.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::Scene;
use support::image::GREETING;
use support::real::podman;

/// Where containers/image looks for the CA of a registry.
fn trusted_ca(scene: &Scene) -> PathBuf {
    Path::new("/etc/containers/certs.d")
        .join(scene.host())
        .join("ca.crt")
}

fn skopeo_copies_every_platform(scene: &Scene, folder: &str) {
    let from = format!("docker://{}", scene.reference());
    let to = scene.sandbox.path(folder);
    let layout = format!("oci:{}:v1", to.display());
    scene
        .sandbox
        .must("skopeo", ["copy", "--all", &from, &layout]);
    let mut expected = scene.image().blobs();
    expected.push(scene.image().top.clone());
    expected.extend(scene.image().manifests.iter().map(|m| m.manifest.clone()));
    for stored in expected {
        let hex = stored.digest.trim_start_matches("sha256:");
        let file = scene.sandbox.outside(&to.join("blobs/sha256").join(hex));
        let size = fs::metadata(&file).map(|file| file.len()).ok();
        assert_eq!(
            size,
            Some(stored.size),
            "{} in what skopeo copied",
            stored.digest
        );
    }
}

async fn skopeo_story(mut scene: Scene) {
    let from = format!("docker://{}", scene.reference());
    scene
        .sandbox
        .must_fail("x509", "skopeo", ["inspect", &from]);
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &trusted_ca(&scene));
    skopeo_copies_every_platform(&scene, "first");
    scene.stop_upstream().await;
    skopeo_copies_every_platform(&scene, "second");
    scene.assert_promises().await;
}

fn podman_pulls_and_runs(scene: &Scene) {
    let reference = scene.reference();
    podman(&scene.sandbox, &["pull", &reference]);
    let run = [
        "run",
        "--rm",
        "--pull",
        "never",
        "--network",
        "none",
        "--cgroups",
        "disabled",
    ];
    let run: Vec<&str> = run.into_iter().chain([reference.as_str()]).collect();
    assert_eq!(podman(&scene.sandbox, &run), GREETING);
}

async fn podman_story(mut scene: Scene) {
    let from = format!("docker://{}", scene.reference());
    scene.sandbox.must_fail("x509", "podman", ["pull", &from]);
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &trusted_ca(&scene));
    podman_pulls_and_runs(&scene);
    podman(&scene.sandbox, &["rmi", "--all", "--force"]);
    assert_eq!(podman(&scene.sandbox, &["images", "--quiet"]), "");
    scene.stop_upstream().await;
    podman_pulls_and_runs(&scene);
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_from_ecr_and_again_with_ecr_gone() {
    skopeo_story(Scene::simulator().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_from_docker_registry_and_again_with_it_gone() {
    skopeo_story(Scene::docker_registry().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_runs_an_image_from_ecr_and_again_with_ecr_gone() {
    podman_story(Scene::simulator().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_runs_an_image_from_docker_registry_and_again_with_it_gone() {
    podman_story(Scene::docker_registry().await).await;
}
