//! Several registries behind one proxy, and real clients that ask for images as their Dockerfiles and
//! manifests always have: by Docker Hub's short names, by another registry's, by ECR's. The registries are
//! nowhere for them, and a second pull needs none of the registries.

mod support;

use std::fs;
use std::path::Path;

use support::blobs::{assert_whole, idle, outcome};
use support::real::{
    Dockerd, ctr, ctr_run, podman, podman_fails, podman_greeting, start_containerd,
};
use support::registries::{HUB, OTHER, PASSWORD, Registries, TAG, USER};
use support::users::login;
use support::{Answer, Client, DOMAIN};

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
    let pull = |registries: &Registries| {
        for (image, says) in &images {
            let docker = |words: &[&str]| dockerd.docker(&registries.sandbox, words);
            docker(&["pull", image]);
            let said = docker(&["run", "--rm", "--network", "none", image]);
            assert_eq!(said, *says, "{image}");
            docker(&["rmi", image]);
        }
    };
    registries.with_and_without(pull).await;
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
    let pull = |registries: &Registries| {
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
    };
    registries.with_and_without(pull).await;
}

/// Pulls by name with containerd, has what it holds say where it is from, and forgets it.
fn contained(registries: &Registries, folder: &str, image: &str) -> String {
    let sandbox = &registries.sandbox;
    ctr(sandbox, &["images", "pull", "--hosts-dir", folder, image]);
    let said = ctr_run(sandbox, image);
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
    let pull = |registries: &Registries| {
        for (image, says) in &images {
            assert_eq!(contained(registries, FOLDER, image), *says, "{image}");
        }
    };
    registries.with_and_without(pull).await;
}

/// A `hosts.toml` by hand for images of `registry`: the proxy at `url`, and nobody if not the proxy.
fn host(registries: &Registries, folder: &Path, registry: &str, url: &str, more: &str) {
    let ours = registries.host(DOMAIN);
    let ca = format!("/etc/containerd/certs.d/{ours}/ca.crt");
    let text = format!(
        "server = \"{url}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = {ca:?}\n{more}"
    );
    let file = folder.join(registry).join("hosts.toml");
    registries.sandbox.write(&file, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_known_by_certificate_or_header_at_a_mirror_with_or_without_a_path() {
    let mut registries = Registries::start().await;
    let sandbox = &registries.sandbox;
    start_containerd(sandbox);
    registries.set_up("containerd", "nerdctl() { :; }");
    let folder = sandbox.path("hosts");
    let ours = format!("https://{}", registries.host(DOMAIN));
    let header = |url: &str| {
        let basic = registries.basic();
        format!("[host.\"{url}\".header]\nauthorization = [\"Basic {basic}\"]\n")
    };
    let node = registries.node();
    let (cert, key) = (folder.join("node.cert"), folder.join("node.key"));
    sandbox.write(&cert, &node.certificate);
    sandbox.write(&key, &node.key);
    let client = format!("client = [[{cert:?}, {key:?}]]\n");
    let below = format!("{ours}/v2/hub");
    let path = format!("override_path = true\n{}", header(&below));
    host(&registries, &folder, "docker.io", &below, &path);
    host(&registries, &folder, OTHER, &ours, &client);
    let ecr = registries.ecr();
    host(&registries, &folder, &ecr, &ours, &header(&ours));
    // Registries that no [[upstream]] is, and one whose name is on the proxy's own network.
    let strangers = ["quay.upstream.test", "localhost:5000"];
    for stranger in strangers {
        host(&registries, &folder, stranger, &ours, &client);
    }
    let folder = folder.to_string_lossy().into_owned();
    let images = [
        (
            format!("docker.io/library/busybox:{TAG}"),
            "busybox from Docker Hub",
        ),
        (format!("docker.io/team/app:{TAG}"), "from Docker Hub"),
        (format!("{OTHER}/team/app:{TAG}"), "from the other"),
        (format!("{ecr}/team/app:{TAG}"), "from ECR"),
    ];
    let socket = sandbox.path("containerd.sock");
    let socket = socket.to_string_lossy().into_owned();
    let pull = |registries: &Registries| {
        for (image, says) in &images {
            assert_eq!(contained(registries, &folder, image), *says, "{image}");
        }
        for stranger in strangers {
            let image = format!("{stranger}/team/app:{TAG}");
            let pull = [
                "--address",
                &socket,
                "images",
                "pull",
                "--hosts-dir",
                &folder,
                &image,
            ];
            registries.sandbox.must_fail("StatusNotFound", "ctr", pull);
        }
    };
    registries.with_and_without(pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pushes_by_the_name_of_the_registry_that_it_is_for() {
    let mut registries = Registries::start().await;
    let sandbox = &registries.sandbox;
    start_containerd(sandbox);
    registries.set_up("containerd", "nerdctl() { :; }");
    let folder = sandbox.path("hosts");
    // Of this age it tells the registry in pulls alone, so a path does.
    let ours = format!("https://{}/v2/other", registries.host(DOMAIN));
    let basic = registries.basic();
    let text = format!(
        "[host.\"{ours}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\noverride_path = true\n\
         ca = \"/etc/containerd/certs.d/{}/ca.crt\"\n\
         [host.\"{ours}\".header]\nauthorization = [\"Basic {basic}\"]\n",
        registries.host(DOMAIN)
    );
    sandbox.write(&folder.join(OTHER).join("hosts.toml"), text);
    let folder = folder.to_string_lossy().into_owned();
    let (from, to) = (
        format!("{OTHER}/team/app:{TAG}"),
        format!("{OTHER}/team/pushed:{TAG}"),
    );
    let platforms = "--all-platforms";
    let pull = ["images", "pull", "--hosts-dir", &folder, platforms, &from];
    ctr(sandbox, &pull);
    ctr(sandbox, &["images", "tag", &from, &to]);
    ctr(sandbox, &["images", "push", "--hosts-dir", &folder, &to]);
    for image in [&from, &to] {
        ctr(sandbox, &["images", "rm", "--sync", image]);
    }
    assert_eq!(contained(&registries, &folder, &to), "from the other");
    registries.stop().await;
    assert_eq!(contained(&registries, &folder, &to), "from the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_skopeo_have_each_registry_by_its_own_names_under_prefixes_of_ours() {
    let mut registries = Registries::start().await;
    registries.set_up("podman", &typed("podman", "command podman"));
    let images = [
        (
            format!("docker.io/library/busybox:{TAG}"),
            "busybox from Docker Hub",
        ),
        (format!("docker.io/team/app:{TAG}"), "from Docker Hub"),
        (format!("{OTHER}/team/app:{TAG}"), "from the other"),
        (format!("{}/team/app:{TAG}", registries.ecr()), "from ECR"),
        (
            format!("{}/hub/team/app:{TAG}", registries.host(DOMAIN)),
            "from Docker Hub",
        ),
    ];
    let pull = |registries: &Registries| {
        let run = |words: &[&str]| podman(&registries.sandbox, words);
        for (image, says) in &images {
            run(&["pull", "--quiet", image]);
            let greeting = podman_greeting(&registries.sandbox, image);
            assert_eq!(greeting, *says, "{image}");
            run(&["image", "rm", "--force", image]);
            let (from, to) = (
                format!("docker://{image}"),
                registries.sandbox.path("copied"),
            );
            let to = format!("dir:{}", to.display());
            registries
                .sandbox
                .must("skopeo", ["copy", "--all", &from, &to]);
        }
    };
    registries.with_and_without(pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_builds_dockerfiles_as_they_are() {
    let mut registries = Registries::start().await;
    registries.set_up("podman", &typed("podman", "command podman"));
    let file = "/etc/containers/registries.conf.d/ecr-proxy.conf";
    let uncomment = ["-i", "s/^# unqualified/unqualified/", file];
    let folder = registries.sandbox.path("build");
    let dockerfile = format!(
        "FROM {OTHER}/team/app:{TAG} AS other\n\
         FROM busybox:{TAG}\n\
         COPY --from=other /greeting /of-the-other\n\
         COPY own /own\n"
    );
    let write = |name: &str, text: &str| registries.sandbox.write(&folder.join(name), text);
    write("Dockerfile", &dockerfile);
    write("own", "own");
    let folder = folder.to_string_lossy().into_owned();
    let build = [
        "build",
        "--pull",
        "--no-cache",
        "--isolation",
        "chroot",
        "--tag",
        "built",
        &folder,
    ];
    let told = "short-name \"busybox:v1\" did not resolve";
    podman_fails(&registries.sandbox, told, &build);
    registries.sandbox.must("sed", uncomment);
    let pull = |registries: &Registries| {
        let run = |words: &[&str]| podman(&registries.sandbox, words);
        run(&build);
        let mounted = run(&["image", "mount", "built"]);
        let files =
            ["greeting", "of-the-other", "own"].map(|name| format!("{}/{name}", mounted.trim()));
        let said = registries
            .sandbox
            .must("cat", files.iter().map(String::as_str));
        assert_eq!(said, "busybox from Docker Hubfrom the otherown");
        run(&["image", "rm", "--all", "--force"]);
    };
    registries.with_and_without(pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_of_podman_may_be_for_digests_or_for_tags_alone() {
    let registries = Registries::start().await;
    registries.set_up("podman", &typed("podman", "command podman"));
    let image = format!("docker://{OTHER}/team/app");
    let tag = format!("{image}:{TAG}");
    let inspect = |image: &str| {
        let words = ["inspect", "--no-tags", "--format", "{{.Digest}}", image];
        registries.sandbox.run("skopeo", words)
    };
    let digest = inspect(&tag);
    assert!(digest.success, "{}", digest.said);
    let digest = format!("{image}@{}", digest.stdout.trim());
    let file = "/etc/containers/registries.conf.d/ecr-proxy.conf";
    let before = fs::read_to_string(registries.sandbox.outside(file.as_ref())).expect("printed");
    for (at, key, by_tag, by_digest) in [
        ("[[registry]]", "mirror-by-digest-only = true", false, true),
        (
            "[[registry.mirror]]",
            "pull-from-mirror = \"digest-only\"",
            false,
            true,
        ),
        (
            "[[registry.mirror]]",
            "pull-from-mirror = \"tag-only\"",
            true,
            false,
        ),
        (
            "[[registry.mirror]]",
            "pull-from-mirror = \"all\"",
            true,
            true,
        ),
    ] {
        let conf = before.replace(at, &format!("{at}\n{key}"));
        registries.sandbox.write(file.as_ref(), conf);
        for (image, expected) in [(&tag, by_tag), (&digest, by_digest)] {
            let ran = inspect(image);
            assert_eq!(ran.success, expected, "{key} {image}: {}", ran.said);
            // Not by the mirror is by the registry, which is nowhere.
            assert!(
                expected || ran.said.contains(&format!("https://{OTHER}/v2/")),
                "{}",
                ran.said
            );
        }
    }
}

/// As BuildKit asks, whose mirrors have their path after `/v2`.
async fn built_with(client: &Client, path: &str, ns: &str) -> Vec<Answer> {
    const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
    let of = |kind: &str, what: &str| format!("/v2/{path}/{kind}/{what}?ns={ns}");
    let client = client.clone().with("accept", ACCEPT);
    let tag = client.head(&of("manifests", TAG)).await;
    let Some(digest) = tag.header("docker-content-digest").map(str::to_owned) else {
        return vec![tag];
    };
    let index = client.get(&of("manifests", &digest)).await;
    let manifest = index.json()["manifests"][0]["digest"]
        .as_str()
        .expect("a digest")
        .to_owned();
    let manifest = client.get(&of("manifests", &manifest)).await;
    let json = manifest.json();
    let mut answers = vec![tag, index, manifest];
    let layers = json["layers"].as_array().expect("layers");
    for blob in layers.iter().chain([&json["config"]]) {
        let digest = blob["digest"].as_str().expect("a digest");
        let answer = client.get(&of("blobs", digest)).await;
        assert_whole(&answer, digest);
        answers.push(answer);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn build_kit_has_each_registry_at_a_host_or_below_a_path_of_it() {
    let mut registries = Registries::start().await;
    let ca = registries.proxy.state_dir().join("tls/ca.pem");
    let client = Client::tls(registries.proxy.https(), &ca);
    let known = login(client.clone(), USER, PASSWORD);
    let ecr = registries.ecr();
    let hub = client.clone().with("Host", HUB);
    for is_second in [false, true] {
        for (client, path, ns) in [
            (&hub, "library/busybox", "docker.io"),
            (&known, "hub/library/busybox", "docker.io"),
            (&known, "hub/team/app", "docker.io"),
            (&known, "team/app", OTHER),
            (&known, "other/team/app", OTHER),
            (&known, "team/app", &ecr),
        ] {
            let answers = built_with(client, path, ns).await;
            assert!(answers.len() > 4, "{path}: {}", answers[0].status);
            // A tag may be older by now than one is taken for fresh.
            let is_kept = |answer| matches!(outcome(answer), Some("hit" | "stale"));
            assert!(!is_second || answers.iter().all(is_kept), "{path}?ns={ns}");
        }
        // A mirror that does not have it lets the client ask elsewhere.
        for (path, ns) in [("team/app", "quay.upstream.test"), ("nothing/there", OTHER)] {
            let refused = built_with(&known, path, ns).await;
            assert_eq!(refused[0].status, 404, "{path}?ns={ns}");
        }
        // What is anybody's at its own name is nobody's at this one.
        let stranger = built_with(&client, "team/app", "docker.io").await;
        assert_eq!(stranger[0].status, 401);
        // And what is Docker Hub's alone is nothing else's, whatever is asked for.
        for ns in [OTHER, &ecr] {
            let refused = built_with(&hub, "team/app", ns).await;
            assert_eq!(refused[0].status, 401, "{ns}");
        }
        idle(&registries.proxy).await;
        if !is_second {
            registries.stop().await;
        }
    }
}
