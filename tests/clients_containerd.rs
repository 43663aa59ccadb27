//! containerd pulls and runs an image by the owner's own name, told by a `hosts.toml` whom to trust;
//! a second pull needs no upstream. Where the proxy knows it by a certificate, `hosts.toml` has that, too.

mod support;

use support::image::{GREETING, REPOSITORY, TAG};
use support::pki::Leaf;
use support::real::{containerd_hosts, ctr, ctr_run, start_containerd};
use support::{Pki, Scene};

/// Has containerd trust the proxy, and show it a certificate, if it has one.
fn trust(scene: &Scene, own: Option<&Leaf>) {
    let Some(leaf) = own else {
        containerd_hosts(scene, &["pull", "resolve"], "");
        return;
    };
    let folder = scene.sandbox.path("hosts").join(scene.host());
    let (certificate, key) = (folder.join("client.cert"), folder.join("client.key"));
    scene.sandbox.write(&certificate, &leaf.certificate);
    scene.sandbox.write(&key, &leaf.key);
    let more = format!("client = [[{certificate:?}, {key:?}]]\n");
    containerd_hosts(scene, &["pull", "resolve"], &more);
}

fn pull_and_run(scene: &Scene) {
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
    let ran = ctr_run(&scene.sandbox, &reference);
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

    trust(&scene, None);
    pull_and_run(&scene);
    ctr(&scene.sandbox, &["images", "rm", "--sync", &reference]);
    assert_eq!(ctr(&scene.sandbox, &["content", "ls", "--quiet"]), "");
    scene.stop_upstream().await;
    pull_and_run(&scene);
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

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_known_by_its_certificate_and_pulls_what_that_user_may() {
    let clients = Pki::new(["unused.test"]);
    let scene = Scene::simulator_with(|proxy| {
        proxy
            .client_ca(&clients.ca())
            .rule("users = ['node-7']\nrepositories = ['team/**']\nactions = ['pull']")
    });
    let scene = scene.await;
    start_containerd(&scene.sandbox);
    let socket = scene.sandbox.path("containerd.sock");
    let socket = socket.to_string_lossy();
    let hosts = scene.sandbox.path("hosts");
    let hosts = hosts.to_string_lossy();
    let refused = |told: &str, reference: &str| {
        let own = [
            "--address",
            &socket,
            "images",
            "pull",
            "--hosts-dir",
            &hosts,
        ];
        let words = own.into_iter().chain([reference]);
        scene.sandbox.must_fail(told, "ctr", words);
    };
    trust(&scene, None);
    refused("401 Unauthorized", &scene.reference());
    trust(&scene, Some(&clients.issue_client("node-8", &[])));
    refused("403 Forbidden", &scene.reference());
    trust(
        &scene,
        Some(&Pki::new(["unused.test"]).issue_client("node-7", &[])),
    );
    refused("tls", &scene.reference());

    trust(&scene, Some(&clients.issue_client("node-7", &[])));
    pull_and_run(&scene);
    refused(
        "403 Forbidden",
        &format!("{}/other/app:{TAG}", scene.host()),
    );
    let told = scene.proxy.log_until("who pulled", |event| {
        event.line.contains("\"client.user\":\"node-7\"") && event.line.contains(REPOSITORY)
    });
    told.await;
    scene.assert_promises().await;
}
