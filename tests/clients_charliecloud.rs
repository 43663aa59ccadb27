//! Charliecloud, whose client of registries shares nothing with the others, pulls by a password, and again with the
//! registry gone.

mod support;

use std::path::Path;

use support::image::{GREETING, REPOSITORY, TAG};
use support::pushed::{PASSWORD, into_docker_registry, into_ecr};
use support::python::trust_system_wide;
use support::{Scene, program};

/// Pulls the sample image into a store of its own, and compares what it unpacked.
fn pull(scene: &Scene, store: &str) {
    let (store, program) = (scene.sandbox.path(store), program("ch-image"));
    let login = ["USER=root", "CH_IMAGE_USERNAME=ci"];
    let password = format!("CH_IMAGE_PASSWORD={PASSWORD}");
    let (at, program) = (store.to_string_lossy(), program.to_string_lossy());
    let reference = scene.reference();
    let pull = ["--no-cache", "-s", &at, "pull", "--auth", &reference];
    let words = login.into_iter().chain([&*password, &program]).chain(pull);
    scene.sandbox.must("env", words);
    let folder = format!("{}/{REPOSITORY}:{TAG}", scene.host());
    // As it writes references.
    let folder = folder.replace('/', "%").replace(':', "+");
    let greeting = Path::new("img").join(folder).join("greeting");
    let greeting = std::fs::read_to_string(scene.sandbox.outside(&store.join(greeting)));
    assert_eq!(greeting.expect("a file"), GREETING);
}

async fn story(mut scene: Scene) {
    trust_system_wide(&scene);
    pull(&scene, "first");
    scene.stop_upstream().await;
    pull(&scene, "second");
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn charliecloud_pulls_from_ecr_and_again_with_ecr_gone() {
    story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn charliecloud_pulls_from_docker_registry_and_again_with_that_gone() {
    story(into_docker_registry().await).await;
}
