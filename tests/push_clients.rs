//! Real clients push through the proxy, into ECR and into docker-registry, by the owner's own name and a
//! password of his; what they pushed is pulled from the cache with the upstream gone.

mod support;

use support::blobs::metric;
use support::image::REPOSITORY;
use support::pushed::{
    LOGIN, PASSWORD, SECOND, TARGET, digest_of, into_docker_registry, into_docker_registry_behind,
    into_ecr, pulls_without_upstream, target, trust,
};
use support::real::{Dockerd, ctr, start_containerd};
use support::users::login;
use support::{Sandbox, Scene, TokenService};

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

/// From one repository to others: what skopeo knows to be in one it has mounted in the next.
async fn skopeo_between_story(scene: Scene) {
    trust(&scene, "/etc/containers/certs.d");
    let copy = |from: &str, to: &str| {
        let (from, to) = (format!("docker://{from}"), format!("docker://{to}"));
        let words = [
            "copy",
            "--all",
            "--src-creds",
            LOGIN,
            "--dest-creds",
            LOGIN,
            &from,
            &to,
        ];
        scene.sandbox.must("skopeo", words);
    };
    let (first, second) = (
        target(&scene, "copied"),
        format!("{}/{SECOND}:copied", scene.host()),
    );
    copy(&scene.reference(), &first);
    // What is there already is not sent again, and is no fault.
    copy(&scene.reference(), &first);
    let sent = sent(&scene).await;
    copy(&first, &second);
    let more = self::sent(&scene).await - sent;
    assert!(
        more < 10_000.0,
        "{more} bytes: more than the configurations"
    );
    pulls_without_upstream(scene, "copied").await;
}

/// How many bytes of blobs the proxy has sent upstream.
async fn sent(scene: &Scene) -> f64 {
    metric(&scene.proxy, "ecr_proxy_upstream_sent_bytes_total", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_between_repositories_of_ecr() {
    let scene = into_ecr().await;
    let ecr = scene.ecr().expect("a simulator");
    ecr.create_repository(SECOND);
    ecr.set_blob_mounting(true);
    skopeo_between_story(scene).await;
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

/// A list of images that the client puts together itself.
async fn list_story(scene: Scene, program: &str) {
    trust(&scene, "/etc/containers/certs.d");
    let (sandbox, to) = (
        &scene.sandbox,
        format!("docker://{}", target(&scene, "list")),
    );
    run(sandbox, program, &["manifest", "create", "list"]);
    for image in &scene.image().manifests {
        let host = scene.host();
        let one = format!("docker://{host}/{REPOSITORY}@{}", image.manifest.digest);
        run(
            sandbox,
            program,
            &["manifest", "add", "--creds", LOGIN, "list", &one],
        );
    }
    let push = ["manifest", "push", "--all", "--creds", LOGIN, "list", &to];
    run(sandbox, program, &push);
    let client = login(scene.proxy.tls_client(), "ci", PASSWORD);
    let list = client
        .get(&format!("/v2/{TARGET}/manifests/list"))
        .await
        .json();
    let named = list["manifests"].as_array().expect("a list").len();
    assert_eq!(named, scene.image().manifests.len());
    pulls_without_upstream(scene, "list").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_a_list_of_images_into_ecr() {
    list_story(into_ecr().await, "podman").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_a_list_of_images_into_docker_registry() {
    list_story(into_docker_registry().await, "buildah").await;
}

async fn containerd_story(scene: Scene) {
    trust(&scene, "/etc/containers/certs.d");
    start_containerd(&scene.sandbox);
    let hosts = "/etc/containerd/certs.d";
    let listen = format!("https://{}", scene.proxy.https());
    let printed = scene
        .proxy
        .run(["client-config", "containerd", "--listen", &listen]);
    let printed = printed.fine().stdout.replace("  # ca = ", "  ca = ");
    let script = format!("set -eu\nsudo() {{ \"$@\"; }}\n{printed}");
    scene.sandbox.must("sh", ["-c", &script]);
    trust(&scene, hosts);
    let (reference, to) = (scene.reference(), target(&scene, "containerd"));
    let known = ["--hosts-dir", hosts, "--user", LOGIN];
    let images = |words: &[&str], names: &[&str]| {
        let words = ["images"].iter().chain(words).chain(names);
        ctr(&scene.sandbox, &words.copied().collect::<Vec<_>>())
    };
    let with = |word: &'static str| [&[word], &known[..]].concat();
    images(
        &[with("pull"), vec!["--all-platforms"]].concat(),
        &[&reference],
    );
    images(&["tag"], &[&reference, &to]);
    images(&with("push"), &[&to]);
    images(&with("push"), &[&to]);
    assert_eq!(
        digest_of(&scene, "containerd").await,
        scene.image().top.digest
    );
    pulls_without_upstream(scene, "containerd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pushes_into_ecr() {
    containerd_story(into_ecr().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pushes_into_docker_registry() {
    containerd_story(into_docker_registry().await).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_into_docker_registry_behind_a_token_service() {
    let tokens = TokenService::start().await;
    skopeo_story(into_docker_registry_behind(&tokens).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_between_repositories_behind_a_token_service() {
    let tokens = TokenService::start().await;
    skopeo_between_story(into_docker_registry_behind(&tokens).await).await;
    let (into, from) = (
        format!("repository:{SECOND}:pull,push"),
        format!("repository:{TARGET}:pull"),
    );
    assert!(
        tokens.asked_for(&[&from, &into]) > 0,
        "{:?}",
        tokens.asked()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_into_docker_registry_behind_a_token_service() {
    let tokens = TokenService::start().await;
    docker_story(into_docker_registry_behind(&tokens).await).await;
}
