//! Real parts: Debian's docker-registry, an upstream that shares no line of code with us, dockerd
//! and containerd.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::port::Port;
use super::users::user_line;
use super::{Pki, Sandbox, Scene, TokenService, program};

/// A running docker-registry; killed when dropped.
pub struct DockerRegistry {
    dir: TempDir,
    child: Child,
    port: Port,
}

impl DockerRegistry {
    /// One on 127.0.0.1 without TLS that anybody may read and write.
    pub fn start() -> Self {
        Self::start_on(Port::v4(), |_| String::new())
    }

    /// One on 127.0.0.1 without TLS that one user may read and write, by HTTP's Basic.
    pub fn start_for(user: &str, password: &str) -> Self {
        // Our own command makes no line for the name that ECR's tokens have.
        let line = user_line("x", password).replacen("x:", &format!("{user}:"), 1);
        Self::start_on(Port::v4(), |dir| {
            let file = dir.join("htpasswd");
            fs::write(&file, &line).expect("the directory is writable");
            let file = file.display();
            format!("auth: {{htpasswd: {{realm: registry, path: {file}}}}}\n")
        })
    }

    /// One on `::1` with the certificate of `pki`.
    pub fn start_tls(pki: &Pki) -> Self {
        let (certificate, key) = (pki.certificate(), pki.key());
        let tls = format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            certificate.display(),
            key.display()
        );
        Self::start_on(Port::v6(), |_| tls.clone())
    }

    /// One on 127.0.0.1 that lets in who has a token of this service.
    pub fn start_behind(tokens: &TokenService) -> Self {
        Self::start_on(Port::v4(), |_| tokens.registry_lines())
    }

    /// `more` goes on with the `http` section of its configuration, and is told its directory.
    fn start_on(port: Port, more: impl Fn(&Path) -> String) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{delete: {{enabled: true}}, filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: \"{}\"\n{}",
            dir.path().join("data").display(),
            port.address(),
            more(dir.path())
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).expect("the directory is writable");
        let mut child = Command::new(program("docker-registry"))
            .arg("serve")
            .arg(file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts");
        let stderr = child.stderr.take().expect("asked for a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut said = String::new();
        loop {
            let line = lines.next();
            let line = line.unwrap_or_else(|| panic!("docker-registry ended at start:\n{said}"));
            if line.contains("listening on") {
                break;
            }
            said += &format!("  {line}\n");
        }
        std::thread::spawn(move || lines.for_each(drop));
        Self { dir, child, port }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it keeps what it has.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("data/docker/registry/v2")
    }

    /// Ends it; connections to it are refused from now on.
    pub fn stop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A dockerd of a sandbox's own: its data, its socket, its containerd, no network of its making. It ends with
/// the sandbox.
pub struct Dockerd {
    host: String,
}

impl Dockerd {
    /// Starts it and waits until it listens.
    pub fn start(sandbox: &Sandbox) -> Self {
        let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
        let host = format!("unix://{}", path("docker.sock"));
        sandbox.daemon(
            "API listen on",
            "dockerd",
            [
                "--data-root",
                &path("docker"),
                "--exec-root",
                &path("docker-exec"),
                "--pidfile",
                &path("docker.pid"),
                "--host",
                &host,
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
            ],
        );
        Self { host }
    }

    /// Where docker's own command finds it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Runs docker's command, which must end well; returns its standard output.
    pub fn docker(&self, sandbox: &Sandbox, arguments: &[&str]) -> String {
        let arguments = arguments.iter().copied();
        sandbox.must(
            "docker",
            ["--host", &self.host].into_iter().chain(arguments),
        )
    }
}

/// Starts nginx by this configuration, which is put into `dir` with its first errors. Whoever starts it stops it.
pub fn nginx(dir: &Path, config: &str) -> Child {
    let file = dir.join("nginx.conf");
    fs::write(&file, config).expect("the directory is writable");
    Command::new(program("nginx"))
        .arg("-e")
        .arg(dir.join("error.log"))
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx starts")
}

/// A containerd of the sandbox's own; without the part that serves kubelets, which wants networks.
pub fn start_containerd(sandbox: &Sandbox) {
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    let config = format!(
        "version = 2\n\
         root = {:?}\n\
         state = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n\
         address = {:?}\n",
        path("containerd"),
        path("containerd-state"),
        path("containerd.sock")
    );
    let file = sandbox.path("containerd.toml");
    sandbox.write(&file, config);
    let file = file.to_string_lossy();
    sandbox.daemon(
        "containerd successfully booted",
        "containerd",
        ["--config", &file],
    );
}

/// Writes `hosts.toml` for the proxy and the CA beside it, as `client-config containerd` prints it, with further
/// lines; the folder that containerd is told of.
pub fn containerd_hosts(scene: &Scene, capabilities: &[&str], more: &str) -> String {
    let host = scene.host();
    let hosts = scene.sandbox.path("hosts");
    let ca = hosts.join(&host).join("ca.crt");
    scene.sandbox.trust(&scene.proxy.pki().ca(), &ca);
    let text = format!(
        "server = \"https://{host}\"\n\n\
         [host.\"https://{host}\"]\n\
         capabilities = {capabilities:?}\n\
         ca = {ca:?}\n{more}"
    );
    scene
        .sandbox
        .write(&hosts.join(&host).join("hosts.toml"), text);
    hosts.to_string_lossy().into_owned()
}

/// Runs containerd's own command in it, which must end well; returns its standard output.
pub fn ctr(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let socket = sandbox.path("containerd.sock");
    let own = ["--address", &socket.to_string_lossy()].map(str::to_owned);
    sandbox.must(
        "ctr",
        own.iter()
            .map(String::as_str)
            .chain(arguments.iter().copied()),
    )
}

/// Has containerd run an image to its end; returns what it printed.
///
/// Control groups are the machine's, whatever the sandbox: a container has the name of its sandbox, so that
/// no other test's container of the same name takes its group away.
pub fn ctr_run(sandbox: &Sandbox, image: &str) -> String {
    ctr(sandbox, &["run", "--rm", image, &sandbox.name()])
}

/// The words of a podman command with stores of the sandbox's own, which outlive it there.
fn podman_words(sandbox: &Sandbox, words: &[&str]) -> Vec<String> {
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    let (root, run) = (path("podman"), path("podman-run"));
    let stores = [
        "--root",
        &root,
        "--runroot",
        &run,
        "--storage-driver",
        "overlay",
    ];
    let quiet = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"];
    let all = stores.iter().chain(&quiet).chain(words);
    all.map(|word| (*word).to_owned()).collect()
}

/// Runs podman in it, which must end well; returns its standard output.
pub fn podman(sandbox: &Sandbox, words: &[&str]) -> String {
    let words = podman_words(sandbox, words);
    sandbox.must("podman", words.iter().map(String::as_str))
}

/// Runs podman in it, which must fail and say `why`.
pub fn podman_fails(sandbox: &Sandbox, why: &str, words: &[&str]) {
    let words = podman_words(sandbox, words);
    sandbox.must_fail(why, "podman", words.iter().map(String::as_str));
}

/// The greeting of the sample image that podman has under this name.
pub fn podman_greeting(sandbox: &Sandbox, image: &str) -> String {
    let mounted = podman(sandbox, &["image", "mount", image]);
    sandbox.must("cat", [&*format!("{}/greeting", mounted.trim())])
}
