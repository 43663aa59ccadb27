//! Pushes by real clients: who they are, where they push to, and that what they pushed is there.

use std::path::Path;

use ecr_proxy::simulator::FULL_ACCESS_KEY;

use super::proxy::Builder;
use super::users::{login, user_line};
use super::{Scene, TokenService};

/// The user's password.
pub const PASSWORD: &str = "open-sesame";
/// As tools take it.
pub const LOGIN: &str = "ci:open-sesame";
/// Where they push to.
pub const TARGET: &str = "pushed/app";
/// And from there.
pub const SECOND: &str = "pushed/second";

/// One user may do everything everywhere.
pub fn one_user(proxy: Builder) -> Builder {
    proxy
        .env("AWS_ACCESS_KEY_ID", FULL_ACCESS_KEY)
        .users(&user_line("ci", PASSWORD))
        .rule("users = ['ci']\nactions = ['pull', 'push', 'delete']")
}

/// The proxy in front of a simulated ECR that has [`TARGET`] and the sample image.
pub async fn into_ecr() -> Scene {
    let scene = Scene::simulator_with(one_user).await;
    let ecr = scene.ecr().expect("a simulator");
    ecr.create_repository(TARGET);
    scene
}

/// The proxy in front of docker-registry with the sample image.
pub async fn into_docker_registry() -> Scene {
    Scene::docker_registry_with(one_user).await
}

/// The same, where the registry logs in by tokens of this service.
pub async fn into_docker_registry_behind(tokens: &TokenService) -> Scene {
    Scene::docker_registry_behind(tokens, one_user).await
}

/// What is pushed under this tag.
pub fn target(scene: &Scene, tag: &str) -> String {
    format!("{}/{TARGET}:{tag}", scene.host())
}

/// Has tools trust the proxy that look into `folder`.
pub fn trust(scene: &Scene, folder: &str) {
    let certs = Path::new(folder).join(scene.host());
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &certs.join("ca.crt"));
}

/// The digest that a tag of the target names, as the proxy says.
pub async fn digest_of(scene: &Scene, tag: &str) -> String {
    let client = login(scene.proxy.tls_client(), "ci", PASSWORD);
    let answer = client.head(&format!("/v2/{TARGET}/manifests/{tag}")).await;
    assert_eq!(answer.status, 200, "{tag}");
    let digest = answer.header("docker-content-digest");
    digest.expect("a digest").to_owned()
}

/// What was pushed is upstream, and is pulled with upstream gone.
pub async fn pulls_without_upstream(mut scene: Scene, tag: &str) {
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
