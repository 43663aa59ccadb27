//! Several registries behind one proxy, and real clients that ask for images as their Dockerfiles and
//! manifests always have: by Docker Hub's short names, by another registry's, by ECR's. The registries are
//! nowhere for them, and a second pull needs none of the registries.

mod support;

use std::path::Path;

use support::real::{Dockerd, ctr, start_containerd};
use support::registries::{HUB, OTHER, PASSWORD, Registries, TAG, USER};
use support::users::basic;
use support::{Client, DOMAIN};

/// What an operator types when `docker login` or `podman login` asks.
fn typed(command: &str, program: &str) -> String {
    format!(
        "{command}() {{ printf %s '{PASSWORD}' | {program} \"$@\" --username {USER} --password-stdin; }}"
    )
}

/// dockerd with Docker Hub's mirror and a login for the rest.
fn dockerd(registries: &Registries) -> Dockerd {
    registries.set_up("docker-mirror", "");
    // The builder in dockerd reads whom to trust when dockerd starts, and a login wants a dockerd.
    registries.set_up("docker", "docker() { :; }");
    let dockerd = Dockerd::start(&registries.sandbox);
    let docker = format!("command docker --host {}", dockerd.host());
    registries.set_up("docker", &typed("docker", &docker));
    dockerd
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_has_docker_hub_by_its_own_names_and_the_others_by_ours() {
    let mut registries = Registries::start().await;
    let dockerd = dockerd(&registries);
    let images = [
        (format!("busybox:{TAG}"), "busybox from Docker Hub"),
        (format!("team/app:{TAG}"), "from Docker Hub"),
        (
            format!("{}/team/app:{TAG}", registries.host(DOMAIN)),
            "from ECR",
        ),
        (
            format!("{}/other/team/app:{TAG}", registries.host(DOMAIN)),
            "from the other",
        ),
    ];
    for with_upstreams in [true, false] {
        for (image, says) in &images {
            let docker = |words: &[&str]| dockerd.docker(&registries.sandbox, words);
            docker(&["pull", image]);
            let said = docker(&["run", "--rm", "--network", "none", image]);
            assert_eq!(said, *says, "{image}");
            docker(&["rmi", image]);
        }
        if with_upstreams {
            registries.stop().await;
        }
    }
    registries.proxy.assert_blobs_are_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerfiles_stay_as_they_are_for_both_builders_of_docker() {
    let mut registries = Registries::start().await;
    let dockerd = dockerd(&registries);
    let folder = registries.sandbox.path("build");
    let ours = registries.host(DOMAIN);
    let dockerfile = format!(
        "FROM busybox:{TAG}\n\
         COPY --from=team/app:{TAG} /greeting /of-hub\n\
         COPY --from={ours}/team/app:{TAG} /greeting /of-ecr\n\
         COPY own /own\n\
         CMD [\"/bin/busybox\", \"cat\", \"/greeting\", \"/of-hub\", \"/of-ecr\", \"/own\"]\n"
    );
    registries
        .sandbox
        .write(&folder.join("Dockerfile"), dockerfile);
    registries.sandbox.write(&folder.join("own"), "own");
    let folder = folder.to_string_lossy();
    for with_upstreams in [true, false] {
        for build_kit in ["0", "1"] {
            let with = format!("DOCKER_BUILDKIT={build_kit}");
            let build = [
                &with,
                "docker",
                "--host",
                dockerd.host(),
                "build",
                "--no-cache",
                "--pull",
                "--tag",
                "built",
                &folder,
            ];
            registries.sandbox.must("env", build);
            let docker = |words: &[&str]| dockerd.docker(&registries.sandbox, words);
            let said = docker(&["run", "--rm", "--network", "none", "built"]);
            assert_eq!(said, "busybox from Docker Hubfrom Docker Hubfrom ECRown");
            docker(&["system", "prune", "--all", "--force"]);
        }
        if with_upstreams {
            registries.stop().await;
        }
    }
    registries.proxy.assert_blobs_are_sound();
}

/// Pulls by name with containerd, has what it holds say where it is from, and forgets it.
fn contained(registries: &Registries, folder: &str, image: &str) -> String {
    let sandbox = &registries.sandbox;
    ctr(sandbox, &["images", "pull", "--hosts-dir", folder, image]);
    let said = ctr(sandbox, &["run", "--rm", image, "it"]);
    ctr(sandbox, &["images", "rm", "--sync", image]);
    assert_eq!(ctr(sandbox, &["content", "ls", "--quiet"]), "");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_has_each_registry_by_its_own_names_with_a_login_in_its_file() {
    const FOLDER: &str = "/etc/containerd/certs.d";
    let mut registries = Registries::start().await;
    start_containerd(&registries.sandbox);
    // Debian has no nerdctl, and names of ours are not asked for here.
    registries.set_up("containerd", "nerdctl() { :; }");
    let images = [
        (
            format!("docker.io/library/busybox:{TAG}"),
            "busybox from Docker Hub",
        ),
        (format!("docker.io/team/app:{TAG}"), "from Docker Hub"),
        (format!("{OTHER}/team/app:{TAG}"), "from the other"),
        (format!("{}/team/app:{TAG}", registries.ecr()), "from ECR"),
    ];
    // Docker Hub is anybody's, at the name that is for anybody; the others are not.
    let socket = registries.sandbox.path("containerd.sock");
    let socket = socket.to_string_lossy();
    let pull = [
        "--address",
        &socket,
        "images",
        "pull",
        "--hosts-dir",
        FOLDER,
        &images[2].0,
    ];
    registries.sandbox.must_fail(OTHER, "ctr", pull);
    let uncomment = format!(
        "set -eu\ncd {FOLDER}\nfor f in {OTHER} {}; do\n\
         sed -i -e 's/# \\[host/[host/' -e 's/#   auth/  auth/' -e 's/BASE64_OF_NAME:PASSWORD/{}/' $f/hosts.toml\ndone\n",
        registries.ecr(),
        registries.basic()
    );
    registries.sandbox.must("sh", ["-c", &uncomment]);
    for with_upstreams in [true, false] {
        for (image, says) in &images {
            assert_eq!(contained(&registries, FOLDER, image), *says, "{image}");
        }
        if with_upstreams {
            registries.stop().await;
        }
    }
    registries.proxy.assert_blobs_are_sound();
}
