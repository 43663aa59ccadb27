//! The demo needs nothing but the program, shows a miss and a hit, and leaves a site of one's own to play with.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-proxy");

/// A demo that runs until it is dropped.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["demo", "--listen", "http://127.0.0.1:0"])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let stdout = BufReader::new(child.stdout.take().expect("asked for a pipe"));
        Self { child, stdout }
    }

    /// What it says up to the line that begins with `last`.
    fn said_until(&mut self, last: &str) -> String {
        let mut said = String::new();
        loop {
            let before = said.len();
            let read = self.stdout.read_line(&mut said).expect("text");
            assert!(read > 0, "the demo ended without {last:?}:\n{said}");
            if said[before..].trim_start().starts_with(last) {
                return said;
            }
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

fn environment(folder: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder.join("environment")).expect("the environment");
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn once_pulls_twice_and_ends() {
    let mut demo = Demo::start(&["--once"]);
    let said = demo.said_until("No client knew of AWS");
    let (first, second) = said.split_once("Second pull").expect("two pulls");
    assert!(first.contains("miss"), "{said}");
    assert!(second.contains("hit") && !second.contains("miss"), "{said}");
    assert!(second.contains("; 0 B came over the line"), "{said}");
    assert!(demo.child.wait().expect("a child").success());
}

#[test]
fn a_site_of_ones_own_reaches_the_simulated_ecr() {
    let folder = TempDir::new().expect("a folder");
    let site = folder.path().join("edge");
    let mut demo = Demo::start(&["--site", site.to_str().expect("UTF-8")]);
    let said = demo.said_until("cd ");
    assert!(said.contains("serve --config config.toml"), "{said}");
    let checked = Command::new(PROGRAM)
        .args(["check", "--config", "config.toml"])
        .args(["--listen", "http://127.0.0.1:0", "--admin", "off"])
        .current_dir(&site)
        .env_clear()
        .envs(environment(&site))
        .output()
        .expect("the program was built");
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
    assert!(
        text.lines()
            .any(|line| line.starts_with("ok") && line.contains("token")),
        "{text}"
    );
}
