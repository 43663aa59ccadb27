//! Helm's own library, and with it the Go library of ORAS: charts are pushed, found by version, shown, pulled, needed
//! by other charts, and all of that but the push with the registry gone.

mod support;

use serde_json::{Value, json};
use support::Scene;
use support::pushed::{PASSWORD, into_docker_registry, into_ecr};
use support::python::{ask, ask_in_vain, trust_system_wide};

const SCRIPT: &str = "with_helm.py";
/// What it says when it is asked for a password and has none.
const NO_LOGIN: &str = "basic credential not found";

/// Somebody's machine.
struct Machine(Scene);

impl Machine {
    fn new(scene: Scene) -> Self {
        trust_system_wide(&scene);
        Self(scene)
    }

    fn helm(&self, words: &[&str]) -> Value {
        ask(&self.0.sandbox, SCRIPT, words)
    }

    fn in_vain(&self, why: &str, words: &[&str]) {
        ask_in_vain(&self.0.sandbox, why, SCRIPT, words);
    }

    fn path(&self, name: &str) -> String {
        self.0.sandbox.path(name).to_string_lossy().into_owned()
    }

    fn charts(&self) -> String {
        format!("oci://{}/charts", self.0.host())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let path = self.0.sandbox.path(name);
        std::fs::read(self.0.sandbox.outside(&path)).expect(name)
    }
}

async fn story(scene: Scene) {
    let mut machine = Machine::new(scene);
    let (host, charts) = (machine.0.host(), machine.charts());
    let app = format!("{charts}/app");
    for version in ["1.2.3+build", "1.3.0"] {
        machine.helm(&["package", "app", version, &machine.path("made")]);
    }
    let archive = |version: &str| machine.path(&format!("made/app-{version}.tgz"));
    machine.in_vain(NO_LOGIN, &["push", &archive("1.3.0"), &charts]);
    machine.in_vain("401", &["login", &host, "ci", "wrong"]);
    machine.helm(&["login", &host, "ci", PASSWORD]);
    for version in ["1.2.3+build", "1.3.0"] {
        machine.helm(&["push", &archive(version), &charts]);
    }
    // What is there already is not sent again, and is no fault.
    machine.helm(&["push", &archive("1.3.0"), &charts]);
    let all = json!(["1.3.0", "1.2.3+build"]);
    assert_eq!(machine.helm(&["tags", &app]), all);
    let resolved = machine.helm(&["resolve", &format!("{app}:1.3.0")]);
    // Another chart needs it, in a range of versions.
    let umbrella = ["package", "umbrella", "0.1.0", &machine.path("umbrella")];
    machine.helm(&[&umbrella[..], &["app", "~1.2", &charts]].concat());
    let needed = machine.read("umbrella/umbrella/charts/app-1.2.3+build.tgz");
    assert!(needed == machine.read("made/app-1.2.3+build.tgz"));

    machine.0.stop_upstream().await;
    assert_eq!(machine.helm(&["tags", &app]), all, "from the cache");
    let again = machine.helm(&["resolve", &format!("{app}:1.3.0")]);
    assert_eq!(again, resolved, "from the cache");
    let shown = machine.helm(&["show", &app]);
    assert!(shown.as_str().expect("text").contains("version: 1.3.0"));
    for version in ["1.2.3+build", "1.3.0"] {
        machine.helm(&["pull", &app, version, &machine.path("pulled")]);
        let name = format!("app-{version}.tgz");
        let pulled = machine.read(&format!("pulled/{name}"));
        assert!(pulled == machine.read(&format!("made/{name}")), "{name}");
    }
    machine.helm(&["logout", &host]);
    machine.in_vain(NO_LOGIN, &["pull", &app, "1.3.0", &machine.path("pulled")]);
    machine.0.proxy.assert_blobs_are_sound();
    if let Some(ecr) = machine.0.ecr() {
        machine.0.proxy.assert_no_secrets(&ecr.secrets()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_has_its_charts_in_ecr() {
    let scene = into_ecr().await;
    scene.ecr().expect("ECR").create_repository("charts/app");
    story(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_has_its_charts_in_docker_registry() {
    story(into_docker_registry().await).await;
}
