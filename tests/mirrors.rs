//! Real clients set up by what `client-config` prints, and nothing else, pull images by the names of the
//! registries that these are from: through the proxy, as those registries are nowhere.

mod support;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::image::{GREETING, REPOSITORY, TAG};
use support::real::{Dockerd, ctr, ctr_run, podman, podman_fails, start_containerd};
use support::users::user_line;
use support::{Pki, Scene};

/// No client could reach it by this name.
const REGISTRY: &str = "registry.upstream.test";

/// Before a docker-registry that is called `registry`, with a local CA.
async fn scene(registry: &str) -> Scene {
    Scene::docker_registry_with(|proxy| proxy.upstream_key("registry", registry).local_ca()).await
}

/// The same, where clients are known by a certificate and by nothing else; the client's is at hand.
async fn scene_of_certificates(registry: &str) -> Scene {
    let clients = Pki::new(["unused.test"]);
    let ca = clients.ca().to_str().expect("a UTF-8 path").to_owned();
    let scene = Scene::docker_registry_with(|proxy| {
        let proxy = proxy.upstream_key("registry", registry).local_ca();
        let proxy = proxy.set("tls.client_ca", ca);
        proxy.rule("users = ['node-7']\nactions = ['pull']")
    });
    let scene = scene.await;
    let node = clients.issue_client("node-7", &[]);
    let home = scene.sandbox.path("home");
    scene
        .sandbox
        .write(&home.join("client.cert"), &node.certificate);
    scene.sandbox.write(&home.join("client.key"), &node.key);
    scene
}

/// What is printed for the client.
fn printed(scene: &Scene, client: &str) -> String {
    let listen = format!("https://{}", scene.proxy.https());
    let words = ["client-config", client, "--listen", &listen];
    scene.proxy.run(words).fine().stdout
}

/// Runs it, as root of the sandbox.
fn run(scene: &Scene, script: &str) {
    let script = format!("set -eu\ncd ~\nsudo() {{ \"$@\"; }}\n{script}");
    scene.sandbox.must("sh", ["-c", &script]);
}

fn set_up(scene: &Scene, client: &str) {
    run(scene, &printed(scene, client));
}

/// The lines that are about `what` without the mark of a comment.
fn uncommented(script: &str, what: &str) -> String {
    let lines = script.lines().map(|line| match line.split_once("# ") {
        Some((before, line)) if line.contains(what) && before.trim().is_empty() => {
            format!("{before}{line}\n")
        }
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// containerd has no image of this registry before what is printed is run, and has it after.
async fn containerd_gets_images_of(registry: &str, scene: Scene) {
    start_containerd(&scene.sandbox);
    let image = format!("{registry}/{REPOSITORY}:{TAG}");
    let hosts = "/etc/containerd/certs.d";
    let pull = ["images", "pull", "--hosts-dir", hosts, &image];
    let socket = scene.sandbox.path("containerd.sock");
    let address = ["--address", &socket.to_string_lossy()].map(str::to_owned);
    let before = address.iter().map(String::as_str).chain(pull);
    scene.sandbox.must_fail(registry, "ctr", before);
    // What is for any registry is printed as comments.
    let script = printed(&scene, "containerd");
    let lines = script.split_once("take the marks from these lines");
    let lines = lines.map_or("", |(_, lines)| lines).lines().skip(1);
    let lines = lines.skip_while(|line| !line.starts_with("#   "));
    let unmarked = lines.map_while(|line| line.strip_prefix("#   "));
    let unmarked: Vec<&str> = unmarked.collect();
    run(&scene, &format!("{script}\n{}\n", unmarked.join("\n")));
    ctr(&scene.sandbox, &pull);
    let ran = ctr_run(&scene.sandbox, &image);
    assert_eq!(ran, GREETING);
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_gets_images_of_a_registry_by_its_name() {
    containerd_gets_images_of(REGISTRY, scene(REGISTRY).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_gets_images_of_any_registry_where_a_route_is_for_any() {
    let any = Scene::docker_registry_with(|proxy| {
        let proxy = proxy.route([("ns", "*"), ("upstream", "prod")]);
        proxy.local_ca()
    });
    containerd_gets_images_of("nobody-named.test", any.await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_gets_images_of_a_registry_by_its_name() {
    let scene = scene(REGISTRY).await;
    let image = format!("docker://{REGISTRY}/{REPOSITORY}:{TAG}");
    let pull = ["pull", &image];
    podman_fails(&scene.sandbox, REGISTRY, &pull);
    set_up(&scene, "podman");
    podman(&scene.sandbox, &pull);
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

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_is_known_to_a_mirror_by_its_certificate() {
    let scene = scene_of_certificates("docker.io").await;
    let script = printed(&scene, "docker-mirror");
    run(&scene, &script);
    let dockerd = Dockerd::start(&scene.sandbox);
    let image = format!("{REPOSITORY}:{TAG}");
    let pull = ["--host", dockerd.host(), "pull", &image];
    // It has nobody's, so it asks Docker Hub, which is nowhere.
    scene.sandbox.must_fail("", "docker", pull);
    let script = uncommented(&script, "client.cert");
    run(&scene, &format!("rm /etc/docker/daemon.json\n{script}"));
    dockerd.docker(&scene.sandbox, &["pull", &image]);
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_and_podman_are_known_to_a_mirror_by_their_certificates() {
    let scene = scene_of_certificates(REGISTRY).await;
    start_containerd(&scene.sandbox);
    let image = format!("{REGISTRY}/{REPOSITORY}:{TAG}");
    let docker = format!("docker://{image}");
    let skopeo = ["inspect", "--no-tags", &docker];
    let hosts = |folder: &'static str| ["images", "pull", "--hosts-dir", folder, &image];
    let socket = scene.sandbox.path("containerd.sock");
    let address = ["--address", &socket.to_string_lossy()].map(str::to_owned);
    for client in ["containerd", "docker", "podman"] {
        let script = printed(&scene, client);
        run(&scene, &script);
        let pull = match client {
            // What docker 28 reads is containerd's format, and of a folder of docker's.
            "docker" => hosts("/etc/docker/certs.d"),
            _ => hosts("/etc/containerd/certs.d"),
        };
        let before = address.iter().map(String::as_str).chain(pull);
        match client {
            "podman" => scene.sandbox.must_fail(REGISTRY, "skopeo", skopeo),
            _ => scene.sandbox.must_fail(REGISTRY, "ctr", before),
        }
        run(&scene, &uncommented(&script, "client.cert"));
        match client {
            "podman" => scene.sandbox.must("skopeo", skopeo),
            _ => ctr(&scene.sandbox, &pull),
        };
        let images = ctr(&scene.sandbox, &["images", "ls", "--quiet"]);
        for image in images.lines() {
            ctr(&scene.sandbox, &["images", "rm", "--sync", image]);
        }
    }
    scene.assert_promises().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_secret_as_kubectl_makes_it_opens_the_repository() {
    const PASSWORD: &str = "open-sesame";
    let scene =
        Scene::docker_registry_with(|proxy| proxy.local_ca().users(&user_line("ci", PASSWORD)));
    let scene = scene.await;
    set_up(&scene, "podman");
    // No cluster is asked: the objects are made of what was typed, and of an account as clusters have it.
    let account = scene.sandbox.path("account.yaml");
    scene.sandbox.write(
        &account,
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: default\n",
    );
    let kubectl = format!(
        "kubectl() {{ case $1 in\n\
         create) command kubectl \"$@\" --dry-run=client --output json > ~/secret.json;;\n\
         patch) shift 3; command kubectl patch --local --filename {} \"$@\" --output json > ~/account.json;;\n\
         esac; }}",
        account.display()
    );
    let script = printed(&scene, "kubernetes");
    let script = script
        .replace("=NAME", "=ci")
        .replace("=PASSWORD", &format!("={PASSWORD}"));
    let lines = [" kubectl ", " --docker-username", " --patch "];
    let script = lines
        .iter()
        .fold(script, |script, line| uncommented(&script, line));
    run(&scene, &format!("{kubectl}\n{script}"));
    let read = |name: &str| -> serde_json::Value {
        let file = scene
            .sandbox
            .outside(&scene.sandbox.path("home").join(name));
        let text = std::fs::read(file).expect("kubectl wrote it");
        serde_json::from_slice(&text).expect("JSON")
    };
    let (secret, account) = (read("secret.json"), read("account.json"));
    assert_eq!(secret["type"], "kubernetes.io/dockerconfigjson");
    assert_eq!(
        account["imagePullSecrets"][0]["name"],
        secret["metadata"]["name"]
    );
    let login = secret["data"][".dockerconfigjson"]
        .as_str()
        .expect("a login");
    let login = STANDARD.decode(login).expect("base64");
    let file = scene.sandbox.path("login.json");
    scene.sandbox.write(&file, login);
    let image = format!("docker://{}", scene.reference());
    scene
        .sandbox
        .must_fail("authentication required", "skopeo", ["inspect", &image]);
    let inspect = ["inspect", "--authfile", &file.to_string_lossy(), &image];
    scene.sandbox.must("skopeo", inspect);
}

#[tokio::test(flavor = "multi_thread")]
async fn k3s_is_told_in_yaml_with_and_without_its_certificate() {
    let scene = scene_of_certificates(REGISTRY).await;
    let script = printed(&scene, "k3s");
    let file = Path::new("/etc/rancher/k3s/registries.yaml");
    let host = scene.host();
    for (script, has_certificate) in [
        (script.clone(), false),
        (
            uncommented(&uncommented(&script, "client.cert"), "client.key"),
            true,
        ),
    ] {
        run(&scene, &format!("rm -f {}\n{script}", file.display()));
        let to_json =
            "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
        let words = ["-c", to_json, &file.to_string_lossy()];
        let json = scene.sandbox.must("python3", words);
        let told: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let endpoint = &told["mirrors"][REGISTRY]["endpoint"][0];
        assert_eq!(*endpoint, format!("https://{host}"), "{told}");
        let tls = &told["configs"][&host]["tls"];
        for (key, is_there) in [
            ("ca_file", true),
            ("cert_file", has_certificate),
            ("key_file", has_certificate),
        ] {
            let path = tls[key].as_str();
            assert_eq!(path.is_some(), is_there, "{key}: {told}");
            if let Some(path) = path {
                assert!(scene.sandbox.outside(path.as_ref()).exists(), "{path}");
            }
        }
        // Nobody has a password here.
        assert!(told["configs"][&host]["auth"].is_null(), "{told}");
    }
}
