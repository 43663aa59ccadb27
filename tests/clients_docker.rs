//! dockerd pulls and runs an image by the owner's own name, with its certificate checked for real;
//! a second pull needs no upstream.

mod support;

use std::path::Path;

use support::Scene;
use support::image::GREETING;
use support::real::Dockerd;

fn pull_and_run(scene: &Scene, dockerd: &Dockerd) {
    let reference = scene.reference();
    let said = dockerd.docker(&scene.sandbox, &["pull", &reference]);
    assert!(
        said.contains(&format!("Digest: {}", scene.image().top.digest)),
        "{said}"
    );
    assert!(said.contains("Downloaded newer image"), "{said}");
    let ran = dockerd.docker(
        &scene.sandbox,
        &["run", "--rm", "--network", "none", &reference],
    );
    assert_eq!(ran, GREETING);
}

async fn story(mut scene: Scene) {
    let reference = scene.reference();
    let dockerd = Dockerd::start(&scene.sandbox);
    let pull = ["--host", dockerd.host(), "pull", &reference];
    scene.sandbox.must_fail("x509", "docker", pull);

    let certs = Path::new("/etc/docker/certs.d").join(scene.host());
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &certs.join("ca.crt"));
    pull_and_run(&scene, &dockerd);
    dockerd.docker(
        &scene.sandbox,
        &["pull", "--platform", "linux/arm64", &reference],
    );

    let images = dockerd.docker(&scene.sandbox, &["images", "--quiet", "--no-trunc"]);
    for image in images.lines() {
        dockerd.docker(&scene.sandbox, &["rmi", "--force", image]);
    }
    assert_eq!(
        dockerd.docker(&scene.sandbox, &["images", "--quiet", "--all"]),
        ""
    );
    scene.stop_upstream().await;
    pull_and_run(&scene, &dockerd);
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
