//! The ORAS project's client for Python, as it is: what it pushes is listed, copied, found by what it refers to,
//! pulled with the registry gone, and deleted.

mod support;

use serde_json::{Value, json};
use support::Scene;
use support::pushed::{PASSWORD, SECOND, TARGET, into_docker_registry, into_ecr, target};
use support::python::{ask, ask_in_vain, trust_system_wide};

const SCRIPT: &str = "with_oras.py";
const CONFIG_TYPE: &str = "application/vnd.example.model.config+json";
const MODEL_TYPE: &str = "application/vnd.example.model";
const SIGNATURE_TYPE: &str = "application/vnd.example.signature+json";
/// Five chunks and a part of one.
const MODEL: usize = 5_300_000;
const CHUNK: &str = "1000000";

/// A user's own machine, with files to push.
struct Machine {
    scene: Scene,
    model: Vec<u8>,
}

impl Machine {
    fn new(scene: Scene) -> Self {
        trust_system_wide(&scene);
        let model = support::push::bytes(MODEL);
        let machine = Self { scene, model };
        let write = |name: &str, content: &[u8]| {
            let path = machine.scene.sandbox.path(&format!("home/{name}"));
            machine.scene.sandbox.write(&path, content);
        };
        write("config.json", br#"{"family":"small"}"#);
        write("readme.txt", b"read me");
        write("model.bin", &machine.model);
        write("notes/first.txt", b"one");
        write("notes/second.txt", b"two");
        write("signature.json", br#"{"by":"ann"}"#);
        machine
    }

    fn oras(&self, words: &[&str]) -> Value {
        ask(&self.scene.sandbox, SCRIPT, words)
    }

    fn in_vain(&self, why: &str, words: &[&str]) {
        ask_in_vain(&self.scene.sandbox, why, SCRIPT, words);
    }

    fn login(&self, password: &str) {
        let said = self.oras(&["login", &self.scene.host(), "ci", password]);
        assert_eq!(said["Status"], "Login Succeeded");
    }

    fn home(&self, name: &str) -> String {
        let path = self.scene.sandbox.path(&format!("home/{name}"));
        path.to_string_lossy().into_owned()
    }

    /// Pushes the model with what belongs to it, the files whole or in chunks; its descriptor.
    fn push(&self, reference: &str, more: &[&str]) -> Value {
        let files = [
            self.home("readme.txt") + ":text/plain",
            self.home("model.bin") + ":" + MODEL_TYPE,
            self.home("notes"),
        ];
        let config = self.home("config.json") + ":" + CONFIG_TYPE;
        let mut words = vec!["push", reference];
        words.extend(files.iter().map(String::as_str));
        // Another manifest for each tag: what is deleted is deleted with all its tags.
        let pushed_as = format!("pushed.as={reference}");
        words.extend(["--config", &config, "--annotation", &pushed_as]);
        words.extend(more);
        self.oras(&words)
    }

    /// Pulls into a new folder and compares every file.
    fn pulls(&self, reference: &str, folder: &str) {
        let files = self.oras(&["pull", reference, &self.home(folder)]);
        assert_eq!(files.as_array().expect("files").len(), 3, "{files}");
        let read = |name: &str| {
            let path = self.scene.sandbox.path(&format!("home/{folder}/{name}"));
            std::fs::read(self.scene.sandbox.outside(&path)).expect(name)
        };
        assert_eq!(read("readme.txt"), b"read me");
        assert!(read("model.bin") == self.model, "another model");
        assert_eq!(
            (read("notes/first.txt"), read("notes/second.txt")),
            (b"one".to_vec(), b"two".to_vec())
        );
    }
}

/// What every registry can do. Left behind: `v1` and `whole` in the target, `v1` in the second.
fn story(machine: &Machine) -> Value {
    let host = machine.scene.host();
    let (v1, whole) = (
        target(&machine.scene, "v1"),
        target(&machine.scene, "whole"),
    );
    machine.login("wrong");
    machine.in_vain("UNAUTHORIZED", &["push", &v1, &machine.home("readme.txt")]);
    machine.login(PASSWORD);
    let pushed = machine.push(&v1, &["--chunk", CHUNK]);
    let manifest = machine.oras(&["manifest", &v1]);
    assert_eq!(manifest["annotations"], json!({"pushed.as": v1}));
    assert_eq!(manifest["config"]["mediaType"], CONFIG_TYPE);
    assert_eq!(manifest["layers"][1]["mediaType"], MODEL_TYPE);
    assert_eq!(manifest["layers"][1]["size"], MODEL);
    machine.pulls(&v1, "first");
    machine.push(&whole, &[]);
    // Into another repository, whose blobs it does not know to be there.
    let second = format!("{host}/{SECOND}:v1");
    let copied = machine.oras(&["copy", &v1, &second, &machine.home("layout")]);
    assert_eq!(copied["digest"], pushed["digest"]);
    // All there is, a page at a time.
    let tags = machine.oras(&["tags", &v1]);
    assert_eq!(tags, json!([["v1"], ["whole"]]));
    let repositories = machine.oras(&["repositories", &v1]);
    let repositories = repositories.as_array().expect("pages");
    for name in [TARGET, SECOND] {
        assert!(repositories.contains(&json!([name])), "{repositories:?}");
    }
    // One is deleted, and is gone from the list as well.
    machine.push(&target(&machine.scene, "gone"), &[]);
    let gone = target(&machine.scene, "gone");
    assert_eq!(machine.oras(&["delete", &gone]), json!(["gone"]));
    machine.in_vain("Not Found", &["manifest", &gone]);
    assert_eq!(
        machine.oras(&["tags", &v1]),
        json!([["v1"], ["whole"]]),
        "after the deletion"
    );
    pushed
}

/// The registry is gone, and everything is there as before.
async fn ends_without_upstream(mut machine: Machine) {
    machine.scene.stop_upstream().await;
    let v1 = target(&machine.scene, "v1");
    machine.pulls(&v1, "offline");
    let second = format!("{}/{SECOND}:v1", machine.scene.host());
    machine.pulls(&second, "offline-second");
    assert_eq!(
        machine.oras(&["tags", &v1]),
        json!([["v1"], ["whole"]]),
        "from the cache"
    );
    machine.scene.proxy.assert_blobs_are_sound();
    if let Some(ecr) = machine.scene.ecr() {
        machine.scene.proxy.assert_no_secrets(&ecr.secrets()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_has_its_artifacts_in_ecr() {
    let scene = into_ecr().await;
    scene.ecr().expect("ECR").create_repository(SECOND);
    let machine = Machine::new(scene);
    let pushed = story(&machine);
    // A signature of it, under a tag of its own, is found by what it signs.
    let digest = pushed["digest"].as_str().expect("a digest");
    let subject = format!("{}/{TARGET}@{digest}", machine.scene.host());
    assert_eq!(
        machine.oras(&["referrers", &subject])["manifests"],
        json!([])
    );
    let signature = machine.oras(&[
        "push",
        &target(&machine.scene, "whole"),
        &(machine.home("signature.json") + ":application/json"),
        "--config",
        &(machine.home("config.json") + ":" + SIGNATURE_TYPE),
        "--subject",
        &pushed.to_string(),
    ]);
    let found = |when: &str| {
        let found = machine.oras(&["referrers", &subject]);
        let found = &found["manifests"];
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{when}: {found}");
        assert_eq!(found[0]["digest"], signature["digest"], "{when}");
        assert_eq!(found[0]["artifactType"], SIGNATURE_TYPE, "{when}");
    };
    found("with ECR");
    ends_without_upstream(machine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_has_its_artifacts_in_docker_registry() {
    let machine = Machine::new(into_docker_registry().await);
    story(&machine);
    ends_without_upstream(machine).await;
}
