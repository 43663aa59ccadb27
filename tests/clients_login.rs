//! docker, podman and skopeo log in by a short password, pull what its user may, and log out; a pull
//! secret of Kubernetes is made once and goes on working. Where ECR's tokens are taken, they log in with
//! what `aws ecr get-login-password` prints.

mod support;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_proxy::simulator::{DENIED_ACCESS_KEY, ImageSpec, Listener, PULL_ONLY_ACCESS_KEY};
use support::image::{REPOSITORY, TAG};
use support::port::Port;
use support::real::{Dockerd, podman, podman_fails};
use support::users::user_line;
use support::{DOMAIN, Sandbox, Scene};

const PASSWORD: &str = "open-sesame";

/// A proxy that knows two users, of whom one may pull the image.
async fn scene() -> Scene {
    Scene::simulator_with(|proxy| {
        proxy
            .users(&(user_line("ci", PASSWORD) + &user_line("eve", PASSWORD)))
            .rule("users = ['ci']\nrepositories = ['team/**']\nactions = ['pull']")
            .rule("users = ['eve']\nrepositories = ['eve/**']\nactions = ['pull']")
    })
    .await
}

fn trust(scene: &Scene, folder: &str) {
    let certs = Path::new(folder).join(scene.host());
    scene
        .sandbox
        .trust(&scene.proxy.pki().ca(), &certs.join("ca.crt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_pulls_and_logs_out() {
    let scene = scene().await;
    let (sandbox, reference, host) = (&scene.sandbox, scene.reference(), scene.host());
    let dockerd = Dockerd::start(sandbox);
    trust(&scene, "/etc/docker/certs.d");
    let docker = ["--host", dockerd.host()];
    let run = |words: &[&str]| dockerd.docker(sandbox, words);
    let refused = |told: &str, words: &[&str]| {
        let words = docker.iter().chain(words).copied();
        sandbox.must_fail(told, "docker", words);
    };
    refused("no basic auth credentials", &["pull", &reference]);
    refused(
        "401 Unauthorized",
        &["login", "-u", "ci", "-p", "wrong", &host],
    );

    let said = run(&["login", "-u", "ci", "-p", PASSWORD, &host]);
    assert!(said.contains("Login Succeeded"), "{said}");
    run(&["pull", &reference]);
    // Who may pull may not push.
    refused("denied", &["push", &reference]);
    run(&["rmi", &reference]);
    run(&["logout", &host]);
    refused("no basic auth credentials", &["pull", &reference]);

    // Another user is let in, and learns nothing of what he may not have.
    run(&["login", "-u", "eve", "-p", PASSWORD, &host]);
    refused("denied", &["pull", &reference]);
    refused("denied", &["pull", &format!("{host}/{REPOSITORY}:absent")]);
    refused("denied", &["pull", &format!("{host}/no/such:{TAG}")]);
    scene.proxy.assert_no_secrets(&[PASSWORD.to_owned()]).await;
}

/// What `kubectl create secret docker-registry` keeps: a config.json with the login in it.
fn pull_secret(sandbox: &Sandbox, host: &str, user: &str) -> PathBuf {
    let file = sandbox.path(&format!("{user}-config.json"));
    let auth = STANDARD.encode(format!("{user}:{PASSWORD}"));
    let secret = serde_json::json!({
        "auths": { host: { "username": user, "password": PASSWORD, "auth": auth } }
    });
    sandbox.write(&file, secret.to_string());
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_secret_made_once_goes_on_working_past_tokens_and_restarts() {
    let mut scene = scene().await;
    // A secret is of a host with its port.
    let port = Port::v6();
    let listen = format!("https://{}", port.address());
    scene.proxy.set("server.listen", vec![listen]);
    scene.proxy.restart();
    trust(&scene, "/etc/containers/certs.d");
    let mine = pull_secret(&scene.sandbox, &scene.host(), "ci");
    let other = pull_secret(&scene.sandbox, &scene.host(), "eve");
    let (mine, other) = (mine.to_string_lossy(), other.to_string_lossy());
    let pulls = |scene: &Scene, tag: &str, folder: &str| {
        let from = format!("docker://{}/{REPOSITORY}:{tag}", scene.host());
        let to = format!("oci:{}:v1", scene.sandbox.path(folder).display());
        let copy = ["copy", "--all", "--authfile", &mine, &from, &to];
        scene.sandbox.must("skopeo", copy);
    };
    let tokens = |scene: &Scene| {
        let asked = scene.ecr().expect("a simulator").journal();
        asked.count(|entry| entry.listener == Listener::Api)
    };
    pulls(&scene, TAG, "image");
    let from = format!("docker://{}", scene.reference());
    let inspect = ["inspect", "--authfile", &other, &from];
    scene.sandbox.must_fail("denied", "skopeo", inspect);
    let inspect = ["inspect", &from];
    scene
        .sandbox
        .must_fail("authentication required", "skopeo", inspect);

    // What the proxy shows to ECR ends, and what its client shows does not.
    let before = tokens(&scene);
    let ecr = scene.ecr().expect("a simulator");
    ecr.expire_tokens();
    ecr.push_image(REPOSITORY, "later", ImageSpec::generated(5, [1000]));
    pulls(&scene, "later", "later");
    let renewed = tokens(&scene);
    assert!(renewed > before, "no other token was asked for");

    // Nor does it with the process.
    scene.proxy.terminate();
    assert!(scene.proxy.wait().success());
    scene.proxy.restart();
    let ecr = scene.ecr().expect("a simulator");
    ecr.push_image(REPOSITORY, "last", ImageSpec::generated(6, [1000]));
    pulls(&scene, "last", "last");
    assert!(tokens(&scene) > renewed, "the token was on disk");
    scene.proxy.kill9();
    scene.stop_upstream().await;
    scene.proxy.restart();
    pulls(&scene, TAG, "again");
    scene.proxy.assert_no_secrets(&[PASSWORD.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_and_out() {
    let scene = scene().await;
    trust(&scene, "/etc/containers/certs.d");
    let sandbox = &scene.sandbox;
    let host = scene.host();
    assert!(host.starts_with(DOMAIN));
    let file = sandbox.path("auth.json");
    let auth = file.to_string_lossy();
    let from = format!("docker://{}", scene.reference());
    let login = ["login", "--authfile", &auth, "-u", "ci", "-p"];
    let wrong = login.into_iter().chain(["wrong", host.as_str()]);
    sandbox.must_fail("invalid username/password", "podman", wrong);
    let right = login.into_iter().chain([PASSWORD, host.as_str()]);
    assert!(sandbox.must("podman", right).contains("Login Succeeded"));
    sandbox.must("skopeo", ["inspect", "--authfile", &auth, &from]);
    let reference = scene.reference();
    let pull = ["pull", "--authfile", &auth, &reference];
    podman(sandbox, &pull);
    podman(sandbox, &["rmi", "--all", "--force"]);
    sandbox.must("podman", ["logout", "--authfile", &auth, &host]);
    let inspect = ["inspect", "--authfile", &auth, &from];
    sandbox.must_fail("authentication required", "skopeo", inspect);
    podman_fails(sandbox, "authentication required", &pull);
    scene.proxy.assert_no_secrets(&[PASSWORD.to_owned()]).await;
}

/// A proxy that takes ECR's tokens, and passwords of tokens that may pull and may not.
async fn scene_with_tokens() -> (Scene, String, String) {
    let scene = Scene::simulator_with(|proxy| {
        proxy
            .unset("access.anonymous")
            .set("access.aws_tokens", true)
    });
    let scene = scene.await;
    let (may, may_not) = (
        scene.token(PULL_ONLY_ACCESS_KEY),
        scene.token(DENIED_ACCESS_KEY),
    );
    (scene, may, may_not)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_with_an_ecr_token_and_pulls_what_ecr_lets_it() {
    let (scene, may, may_not) = scene_with_tokens().await;
    let (sandbox, reference, host) = (&scene.sandbox, scene.reference(), scene.host());
    let dockerd = Dockerd::start(sandbox);
    trust(&scene, "/etc/docker/certs.d");
    let run = |words: &[&str]| dockerd.docker(sandbox, words);
    let refused = |told: &str, words: &[&str]| {
        let host = ["--host", dockerd.host()];
        sandbox.must_fail(told, "docker", host.iter().chain(words).copied());
    };
    let login = |password: &str| {
        // As `aws ecr get-login-password | docker login -u AWS --password-stdin` writes it.
        let printed = sandbox.path("printed");
        sandbox.write(&printed, format!("{password}\n"));
        let words = [
            "-c",
            r#"cat "$0" | docker --host "$1" login -u AWS --password-stdin "$2""#,
            &printed.to_string_lossy(),
            dockerd.host(),
            &host,
        ];
        sandbox.run("bash", words)
    };
    let wrong = login("not-a-token");
    assert!(
        !wrong.success && wrong.said.contains("401 Unauthorized"),
        "{wrong:?}"
    );
    for turn in ["cold", "cached"] {
        let ran = login(&may);
        assert!(
            ran.success && ran.said.contains("Login Succeeded"),
            "{turn}: {ran:?}"
        );
        run(&["pull", &reference]);
        run(&["rmi", &reference]);
        let ran = login(&may_not);
        assert!(
            ran.success && ran.said.contains("Login Succeeded"),
            "{turn}: {ran:?}"
        );
        refused("denied", &["pull", &reference]);
    }
    scene.proxy.assert_no_secrets(&[may, may_not]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_and_podman_log_in_with_an_ecr_token() {
    let (scene, may, may_not) = scene_with_tokens().await;
    trust(&scene, "/etc/containers/certs.d");
    let (sandbox, host) = (&scene.sandbox, scene.host());
    let from = format!("docker://{}", scene.reference());
    let file = sandbox.path("auth.json");
    let auth = file.to_string_lossy();
    let login = ["login", "--authfile", &auth, "-u", "AWS", "-p"];
    let wrong = login.into_iter().chain(["wrong", host.as_str()]);
    sandbox.must_fail("invalid username/password", "podman", wrong);
    let right = login.into_iter().chain([may.as_str(), host.as_str()]);
    assert!(sandbox.must("podman", right).contains("Login Succeeded"));
    let to = format!("oci:{}:v1", sandbox.path("image").display());
    let copy = ["copy", "--all", "--authfile", &auth, &from, &to];
    sandbox.must("skopeo", copy);
    podman(sandbox, &["pull", "--authfile", &auth, &scene.reference()]);
    let creds = format!("AWS:{may_not}");
    sandbox.must_fail("denied", "skopeo", ["inspect", "--creds", &creds, &from]);
    scene.proxy.assert_no_secrets(&[may, may_not]).await;
}
