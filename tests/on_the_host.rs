//! The files of `deploy/` do what they say: a service unit that systemd takes and that gives the
//! program little, readiness told to the service manager, an image that buildah builds and podman
//! runs.

mod support;

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use ecr_proxy::simulator::Simulator;
use rustix::process::Signal;
use support::{PATIENCE, Proxy, Sandbox, program};

/// The most that `systemd-analyze security` may find the service exposed, of 100.
const EXPOSURE: &str = "--threshold=20";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

#[test]
fn the_service_unit_is_sound_and_gives_the_program_little() {
    let folder = tempfile::tempdir().expect("folder");
    let unit = folder.path().join("ecr-proxy.service");
    let text = fs::read_to_string(deploy("ecr-proxy.service")).expect("the unit");
    // What keeps it from starting for a moment keeps it so for good otherwise.
    assert!(text.contains("\nStartLimitIntervalSec=0\n"), "{text}");
    // systemd looks whether the program is there; the one under test is.
    let text = text.replace("/usr/local/bin/ecr-proxy", env!("CARGO_BIN_EXE_ecr-proxy"));
    fs::write(&unit, text).expect("a copy of the unit");
    let analyze = |arguments: &[&str]| {
        let output = Command::new(program("systemd-analyze"))
            .args(arguments)
            .arg(&unit)
            .output()
            .expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    assert_eq!(analyze(&["verify"]), (true, String::new()));
    let (low, said) = analyze(&["security", "--offline=yes", EXPOSURE, "--no-pager"]);
    assert!(low, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("deadline");
    let told = || -> io::Result<String> {
        let mut message = [0; 256];
        let length = socket.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length])
            .trim_end()
            .to_owned())
    };
    let simulator = Simulator::builder().start().await.expect("simulator");
    let mut proxy = Proxy::builder()
        .simulator(&simulator)
        .env("NOTIFY_SOCKET", &path.to_string_lossy())
        .start();
    assert_eq!(told().expect("told"), "READY=1");
    assert_eq!(proxy.client().get("/v2/").await.status, 200);
    proxy.signal(Signal::TERM);
    assert_eq!(told().expect("told"), "STOPPING=1");
    assert!(proxy.wait().success());
}

#[test]
fn buildah_builds_the_image_and_podman_runs_it() {
    let sandbox = Sandbox::new();
    let (root, run) = (sandbox.path("images"), sandbox.path("images-run"));
    let stores = format!("--root {} --runroot {}", root.display(), run.display());
    let options = format!("BUILDAH_OPTIONS={stores} --storage-driver vfs");
    let image = deploy("image");
    let build = [
        options.as_str(),
        &image.to_string_lossy(),
        env!("CARGO_BIN_EXE_ecr-proxy"),
    ];
    sandbox.must("env", build);
    let (root, run) = (root.to_string_lossy(), run.to_string_lossy());
    let said = sandbox.must(
        "podman",
        [
            "--root",
            &root,
            "--runroot",
            &run,
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            "run",
            "--rm",
            "--network",
            "none",
            "--ulimit",
            "host",
            "--cgroups",
            "disabled",
            "localhost/ecr-proxy",
            "demo",
            "--once",
            "--listen",
            "http://127.0.0.1:0",
        ],
    );
    assert!(said.contains("The second pull saved 24.0 MiB"), "{said}");
}
