//! Real clients set up by what `client-config` prints, and nothing else, pull images by the names of the
//! registries that these are from: through the proxy, as those registries are nowhere.

mod support;

use support::Scene;
use support::image::{GREETING, REPOSITORY, TAG};
use support::real::{Dockerd, ctr, start_containerd};

/// No client could reach it by this name.
const REGISTRY: &str = "registry.upstream.test";

/// Before a docker-registry that is called `registry`, with a local CA.
async fn scene(registry: &str) -> Scene {
    Scene::docker_registry_with(|proxy| proxy.upstream_key("registry", registry).local_ca()).await
}

/// Runs what is printed for the client, as root of the sandbox.
fn set_up(scene: &Scene, client: &str) {
    let listen = format!("https://{}", scene.proxy.https());
    let printed = scene
        .proxy
        .run(["client-config", client, "--listen", &listen])
        .fine();
    let script = format!("set -eu\nsudo() {{ \"$@\"; }}\n{}", printed.stdout);
    scene.sandbox.must("sh", ["-c", &script]);
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_gets_images_of_a_registry_by_its_name() {
    let scene = scene(REGISTRY).await;
    start_containerd(&scene.sandbox);
    let image = format!("{REGISTRY}/{REPOSITORY}:{TAG}");
    let hosts = "/etc/containerd/certs.d";
    let pull = ["images", "pull", "--hosts-dir", hosts, &image];
    let socket = scene.sandbox.path("containerd.sock");
    let address = ["--address", &socket.to_string_lossy()].map(str::to_owned);
    let before = address.iter().map(String::as_str).chain(pull);
    scene.sandbox.must_fail(REGISTRY, "ctr", before);
    set_up(&scene, "containerd");
    ctr(&scene.sandbox, &pull);
    let ran = ctr(&scene.sandbox, &["run", "--rm", &image, "mirrored"]);
    assert_eq!(ran, GREETING);
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_gets_images_of_a_registry_by_its_name() {
    let scene = scene(REGISTRY).await;
    let (root, run) = (scene.sandbox.path("podman"), scene.sandbox.path("run"));
    let (root, run) = (root.to_string_lossy(), run.to_string_lossy());
    let image = format!("docker://{REGISTRY}/{REPOSITORY}:{TAG}");
    let own = ["--root", &root, "--runroot", &run];
    let pull = ["--storage-driver", "overlay", "pull", &image];
    let pull = || own.into_iter().chain(pull);
    scene.sandbox.must_fail(REGISTRY, "podman", pull());
    set_up(&scene, "podman");
    scene.sandbox.must("podman", pull());
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_gets_images_of_docker_hub_by_their_names() {
    let scene = scene("docker.io").await;
    set_up(&scene, "docker-mirror");
    let dockerd = Dockerd::start(&scene.sandbox);
    let image = format!("{REPOSITORY}:{TAG}");
    let said = dockerd.docker(&scene.sandbox, &["pull", &image]);
    let digest = &scene.image().top.digest;
    assert!(said.contains(&format!("Digest: {digest}")), "{said}");
    let ran = ["run", "--rm", "--network", "none", &image];
    assert_eq!(dockerd.docker(&scene.sandbox, &ran), GREETING);
    scene.assert_promises().await;
}
