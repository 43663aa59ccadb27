//! Real clients push through the proxy, into ECR and into docker-registry, by the owner's own name and a
//! password of his; what they pushed is pulled from the cache with the upstream gone.

mod support;

use std::path::Path;

use ecr_proxy::simulator::FULL_ACCESS_KEY;
use support::proxy::Builder;
use support::real::Dockerd;
use support::users::user_line;
use support::{Sandbox, Scene};

const PASSWORD: &str = "open-sesame";
const LOGIN: &str = "ci:open-sesame";
/// Where they push to.
const TARGET: &str = "pushed/app";

/// One user may pull and push everywhere.
fn one_user(proxy: Builder) -> Builder {
    proxy
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .users(&user_line("ci", PASSWORD))
        .rule("users = ['ci']\nactions = ['pull', 'push']")
}

async fn into_ecr() -> Scene {
    let scene = Scene::simulator_with(one_user).await;
    let ecr = scene.ecr().expect("a simulator");
    ecr.create_repository(TARGET);
    scene
}

async fn into_docker_registry() -> Scene {
    Scene::docker_registry_with(one_user).await
}

fn target(scene: &Scene, tag: &str) -> String {
    format!("{}/{TARGET}:{tag}", scene.host())
}

fn trust(scene: &Scene, folder: &str) {
    let certs = Path::new(folder).join(scene.host());
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &certs.join("ca.crt"));
}

/// The digest that a tag of the target names, as the proxy says.
async fn digest_of(scene: &Scene, tag: &str) -> String {
    let client = support::users::login(scene.proxy.tls_client(), "ci", PASSWORD);
    let answer = client.head(&format!("/v2/{TARGET}/manifests/{tag}")).await;
    assert_eq!(answer.status, 200, "{tag}");
    let digest = answer.header("docker-content-digest");
    digest.expect("a digest").to_owned()
}

/// What was pushed is upstream, and is pulled with upstream gone.
async fn pulls_without_upstream(mut scene: Scene, tag: &str) {
    let digest = digest_of(&scene, tag).await;
    if let Some(ecr) = scene.ecr() {
        assert!(ecr.manifest(TARGET, tag).is_some(), "ECR has no {tag}");
        assert!(ecr.manifest(TARGET, &digest).is_some());
    }
    scene.stop_upstream().await;
    let from = format!("docker://{}", target(&scene, tag));
    let to = format!("oci:{}:v1", scene.sandbox.path("pulled").display());
    let copy = ["copy", "--all", "--src-creds", LOGIN, &from, &to];
    scene.sandbox.must("skopeo", copy);
    scene.proxy.assert_blobs_are_sound();
    if let Some(ecr) = scene.ecr() {
        let secrets: Vec<String> = ecr.secrets();
        scene.proxy.assert_no_secrets(&secrets).await;
    }
}

/// An image layout of the sample image, from the registry that has it.
fn layout(scene: &Scene) -> String {
    let layout = format!("oci:{}:v1", scene.sandbox.path("layout").display());
    let from = format!("docker://{}", scene.reference());
    let copy = ["copy", "--all", "--src-creds", LOGIN, &from, &layout];
    scene.sandbox.must("skopeo", copy);
    layout
}

async fn skopeo_story(scene: Scene) {
    trust(&scene, "/etc/containers/certs.d");
    let layout = layout(&scene);
    let to = format!("docker://{}", target(&scene, "v1"));
    let denied = ["copy", "--dest-creds", "ci:wrong", &layout, &to];
    scene
        .sandbox
        .must_fail("authentication required", "skopeo", denied);
    let copy = ["copy", "--all", "--dest-creds", LOGIN, &layout, &to];
    scene.sandbox.must("skopeo", copy);
    assert_eq!(digest_of(&scene, "v1").await, scene.image().top.digest);
    pulls_without_upstream(scene, "v1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_into_ecr() {
    skopeo_story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_into_docker_registry() {
    skopeo_story(into_docker_registry().await).await;
}

/// From one repository to another: skopeo would rather have it mounted.
async fn skopeo_between_story(scene: Scene) {
    trust(&scene, "/etc/containers/certs.d");
    let from = format!("docker://{}", scene.reference());
    let to = format!("docker://{}", target(&scene, "copied"));
    let logins = ["--src-creds", LOGIN, "--dest-creds", LOGIN];
    for _ in 0..2 {
        let copy = ["copy", "--all"].into_iter().chain(logins);
        let copy = copy.chain([from.as_str(), to.as_str()]);
        scene.sandbox.must("skopeo", copy);
    }
    pulls_without_upstream(scene, "copied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_between_repositories_of_ecr() {
    skopeo_between_story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_between_repositories_of_docker_registry() {
    skopeo_between_story(into_docker_registry().await).await;
}

/// podman or buildah with stores of its own in the sandbox.
fn run(sandbox: &Sandbox, program: &str, arguments: &[&str]) -> String {
    let (root, state) = (sandbox.path("store"), sandbox.path("store-run"));
    let (root, state) = (root.to_string_lossy(), state.to_string_lossy());
    let own = [
        "--root",
        &root,
        "--runroot",
        &state,
        "--storage-driver",
        "overlay",
    ];
    sandbox.must(program, own.into_iter().chain(arguments.iter().copied()))
}

async fn podman_story(scene: Scene, program: &str) {
    trust(&scene, "/etc/containers/certs.d");
    let (sandbox, reference, to) = (&scene.sandbox, scene.reference(), target(&scene, program));
    run(sandbox, program, &["pull", "--creds", LOGIN, &reference]);
    run(sandbox, program, &["tag", &reference, &to]);
    run(sandbox, program, &["push", "--creds", LOGIN, &to]);
    // What is there already is not sent again, and is no fault.
    run(sandbox, program, &["push", "--creds", LOGIN, &to]);
    pulls_without_upstream(scene, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_into_ecr() {
    podman_story(into_ecr().await, "podman").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_into_docker_registry() {
    podman_story(into_docker_registry().await, "podman").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_into_ecr() {
    podman_story(into_ecr().await, "buildah").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_into_docker_registry() {
    podman_story(into_docker_registry().await, "buildah").await;
}

async fn docker_story(scene: Scene) {
    let dockerd = Dockerd::start(&scene.sandbox);
    trust(&scene, "/etc/docker/certs.d");
    trust(&scene, "/etc/containers/certs.d");
    let (sandbox, reference, to) = (&scene.sandbox, scene.reference(), target(&scene, "docker"));
    let docker = |words: &[&str]| dockerd.docker(sandbox, words);
    docker(&["login", "-u", "ci", "-p", PASSWORD, &scene.host()]);
    docker(&["pull", &reference]);
    docker(&["tag", &reference, &to]);
    let said = docker(&["push", &to]);
    assert!(said.contains("docker: digest: sha256:"), "{said}");
    docker(&["push", &to]);
    pulls_without_upstream(scene, "docker").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_into_ecr() {
    docker_story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_into_docker_registry() {
    docker_story(into_docker_registry().await).await;
}
