//! containerd pulls and runs an image by the owner's own name, told by a `hosts.toml` whom to trust;
//! a second pull needs no upstream.

mod support;

use support::image::GREETING;
use support::{Sandbox, Scene};

/// A containerd of the sandbox's own; without the part that serves kubelets, which wants networks.
fn start_containerd(sandbox: &Sandbox) {
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    let config = format!(
        "version = 2\n\
         root = {:?}\n\
         state = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n\
         address = {:?}\n",
        path("containerd"),
        path("containerd-state"),
        path("containerd.sock")
    );
    let file = sandbox.path("containerd.toml");
    sandbox.write(&file, config);
    let file = file.to_string_lossy();
    sandbox.daemon(
        "containerd successfully booted",
        "containerd",
        ["--config", &file],
    );
}

fn ctr(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let socket = sandbox.path("containerd.sock");
    let own = ["--address", &socket.to_string_lossy()].map(str::to_owned);
    sandbox.must(
        "ctr",
        own.iter()
            .map(String::as_str)
            .chain(arguments.iter().copied()),
    )
}

/// Writes `hosts.toml` for the proxy and the CA beside it, as `client-config containerd` prints it.
fn trust(scene: &Scene) {
    let host = scene.host();
    let folder = scene.sandbox.path("hosts").join(&host);
    let ca = folder.join("ca.crt");
    scene.sandbox.trust(&scene.proxy.pki().ca(), &ca);
    let hosts = format!(
        "server = \"https://{host}\"\n\n\
         [host.\"https://{host}\"]\n\
         capabilities = [\"pull\", \"resolve\"]\n\
         ca = {:?}\n",
        ca.to_string_lossy()
    );
    scene.sandbox.write(&folder.join("hosts.toml"), hosts);
}

fn pull_and_run(scene: &Scene, container: &str) {
    let reference = scene.reference();
    let hosts = scene.sandbox.path("hosts");
    let hosts = hosts.to_string_lossy();
    let pull = [
        "images",
        "pull",
        "--all-platforms",
        "--hosts-dir",
        &hosts,
        &reference,
    ];
    ctr(&scene.sandbox, &pull);
    let content = ctr(&scene.sandbox, &["content", "ls", "--quiet"]);
    for blob in scene.image().blobs() {
        assert!(
            content.contains(&blob.digest),
            "{} is missing in {content}",
            blob.digest
        );
    }
    let ran = ctr(&scene.sandbox, &["run", "--rm", &reference, container]);
    assert_eq!(ran, GREETING);
}

async fn story(mut scene: Scene) {
    let reference = scene.reference();
    start_containerd(&scene.sandbox);
    let socket = scene.sandbox.path("containerd.sock");
    let pull = [
        "--address",
        &socket.to_string_lossy(),
        "images",
        "pull",
        &reference,
    ];
    scene.sandbox.must_fail("x509", "ctr", pull);

    trust(&scene);
    pull_and_run(&scene, "first");
    ctr(&scene.sandbox, &["images", "rm", "--sync", &reference]);
    assert_eq!(ctr(&scene.sandbox, &["content", "ls", "--quiet"]), "");
    scene.stop_upstream().await;
    pull_and_run(&scene, "second");
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_runs_an_image_from_ecr_and_again_with_ecr_gone() {
    story(Scene::simulator().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_runs_an_image_from_docker_registry_and_again_with_it_gone() {
    story(Scene::docker_registry().await).await;
}
