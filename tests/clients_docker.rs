//! dockerd pulls and runs an image by the owner's own name, with its certificate checked for real;
//! a second pull needs no upstream.

mod support;

use std::path::Path;

use support::image::GREETING;
use support::{Sandbox, Scene};

/// A dockerd of the sandbox's own: its data, its socket, its containerd, no network of its making.
fn start_dockerd(sandbox: &Sandbox) {
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    sandbox.daemon(
        "API listen on",
        "dockerd",
        [
            "--data-root",
            &path("docker"),
            "--exec-root",
            &path("docker-exec"),
            "--pidfile",
            &path("docker.pid"),
            "--host",
            &socket(sandbox),
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
        ],
    );
}

fn socket(sandbox: &Sandbox) -> String {
    format!("unix://{}", sandbox.path("docker.sock").display())
}

fn docker(sandbox: &Sandbox, arguments: &[&str]) -> String {
    sandbox.must(
        "docker",
        ["--host", &socket(sandbox)]
            .into_iter()
            .chain(arguments.iter().copied()),
    )
}

fn pull_and_run(scene: &Scene) {
    let reference = scene.reference();
    let said = docker(&scene.sandbox, &["pull", &reference]);
    assert!(
        said.contains(&format!("Digest: {}", scene.image().top.digest)),
        "{said}"
    );
    assert!(said.contains("Downloaded newer image"), "{said}");
    let ran = docker(
        &scene.sandbox,
        &["run", "--rm", "--network", "none", &reference],
    );
    assert_eq!(ran, GREETING);
}

async fn story(mut scene: Scene) {
    let reference = scene.reference();
    start_dockerd(&scene.sandbox);
    let pull = ["--host", &socket(&scene.sandbox), "pull", &reference];
    scene.sandbox.must_fail("x509", "docker", pull);

    let certs = Path::new("/etc/docker/certs.d").join(scene.host());
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &certs.join("ca.crt"));
    pull_and_run(&scene);
    docker(
        &scene.sandbox,
        &["pull", "--platform", "linux/arm64", &reference],
    );

    let images = docker(&scene.sandbox, &["images", "--quiet", "--no-trunc"]);
    for image in images.lines() {
        docker(&scene.sandbox, &["rmi", "--force", image]);
    }
    assert_eq!(docker(&scene.sandbox, &["images", "--quiet", "--all"]), "");
    scene.stop_upstream().await;
    pull_and_run(&scene);
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_runs_an_image_from_ecr_and_again_with_ecr_gone() {
    story(Scene::simulator().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_runs_an_image_from_docker_registry_and_again_with_it_gone() {
    story(Scene::docker_registry().await).await;
}
