//! Programs that others wrote in Python, or that come by PyPI: they live in an environment of their own, which
//! `tests/run` makes of `tests/python/requirements.txt`, and the scripts beside that ask them for one thing at a
//! time.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Sandbox, Scene};

/// Where Debian keeps the certificates that everything on a machine trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The interpreter that finds the libraries.
pub fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python/bin/python");
    assert!(
        python.is_file(),
        "{} is not there; tests/run installs it",
        python.display()
    );
    python
}

/// A script of `tests/python`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/python")
        .join(name)
}

/// What runs a script with these words outside any sandbox, with nothing of the test's own environment.
pub fn command(name: &str, words: &[&str]) -> Command {
    let mut command = Command::new(python());
    command.arg("-B").arg(script(name)).args(words);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// Has the whole sandbox trust the CA of the proxy, as an operator's machines do.
pub fn trust_system_wide(scene: &Scene) {
    let ca = scene.proxy.pki().ca();
    scene.sandbox.trust(&ca, Path::new(SYSTEM_ROOTS));
}

fn words(name: &str, words: &[&str]) -> Vec<String> {
    let (python, script) = (python(), script(name));
    // Python's HTTP library brings roots of its own, and asks for Debian's by this.
    let first = [
        &*format!("REQUESTS_CA_BUNDLE={SYSTEM_ROOTS}"),
        &*python.to_string_lossy(),
        "-B",
        &*script.to_string_lossy(),
    ];
    let all = first.iter().chain(words);
    all.map(|word| (*word).to_owned()).collect()
}

/// Runs a script in the sandbox, which must end well; what it tells.
pub fn ask(sandbox: &Sandbox, name: &str, with: &[&str]) -> Value {
    let words = words(name, with);
    let said = sandbox.must("env", words.iter().map(String::as_str));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{name} says {said:?}: {error}"))
}

/// Runs a script in the sandbox, which must fail and say `why`.
pub fn ask_in_vain(sandbox: &Sandbox, why: &str, name: &str, with: &[&str]) {
    let words = words(name, with);
    sandbox.must_fail(why, "env", words.iter().map(String::as_str));
}
