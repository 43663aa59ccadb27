//! A place of its own for container tools: private mounts over `/etc`, `/run`, `/dev/shm` and
//! `/var/lib/containers`, private process ids. The machine's own daemons, stores and settings are neither
//! seen nor touched, and when the sandbox ends, so does every process in it, however deep it was daemonised.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;

use super::{DOMAIN, program};

/// Process 1 of a sandbox. It tells its process id as the machine sees it, and lives until its
/// standard input closes, which also happens when the test itself is killed.
const INIT: &str = r#"
set -eu
read -r pid _ </proc/self/stat
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir etc-upper etc-work home tmp
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc-upper,workdir=$1/etc-work" /etc
mount -t tmpfs tmpfs /run
# What skopeo and podman remember of blobs, by host and port: another test may have had that port.
mkdir -p /var/lib/containers
mount -t tmpfs tmpfs /var/lib/containers
# Where podman takes a lock for each container, and leaves it to those that end with the sandbox.
mount -t tmpfs tmpfs /dev/shm
# crun refuses a machine that has version 1 and 2 side by side.
umount /sys/fs/cgroup/unified 2>/dev/null || true
printf '127.0.0.1 localhost\n::1 localhost %s\n' "$2" >/etc/hosts
rm -rf /etc/docker /etc/containers/certs.d /etc/containers/registries.conf.d
echo "$pid"
exec >/dev/null
read -r _ || true
"#;

/// A running sandbox; everything in it ends when it is dropped.
pub struct Sandbox {
    dir: TempDir,
    pid: String,
    process: Child,
    stdin: Option<ChildStdin>,
    daemons: Mutex<Vec<Child>>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    /// Whether it ended with 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Standard output and standard error, for reading.
    pub said: String,
}

impl Sandbox {
    /// A sandbox in which [`DOMAIN`] is `::1`: an address of 127.0.0.0/8 would have dockerd accept
    /// any certificate, and none.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut process = Command::new(program("unshare"))
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "bash",
                "-c",
                INIT,
                "init",
            ])
            .arg(dir.path())
            .arg(DOMAIN)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let stdin = process.stdin.take();
        let mut pid = String::new();
        let stdout = process.stdout.take().expect("asked for a pipe");
        BufReader::new(stdout)
            .read_line(&mut pid)
            .expect("a line of the sandbox");
        assert!(
            !pid.trim().is_empty(),
            "no sandbox: it needs root and mount namespaces"
        );
        Self {
            dir,
            pid: pid.trim().to_owned(),
            process,
            stdin,
            daemons: Mutex::new(Vec::new()),
        }
    }

    /// A name that no other sandbox of the machine has, of letters and digits.
    pub fn name(&self) -> String {
        let folder = self.dir.path().file_name().expect("a folder of /tmp");
        let letters = |character: &char| character.is_ascii_alphanumeric();
        folder.to_string_lossy().chars().filter(letters).collect()
    }

    /// A path of the sandbox's own folder, as programs in it see it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path inside, as the test sees it.
    pub fn outside(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(&self.pid).join("root").join(inside)
    }

    /// Writes a file inside, with the folders above it.
    pub fn write(&self, inside: &Path, content: impl AsRef<[u8]>) {
        let file = self.outside(inside);
        fs::create_dir_all(file.parent().expect("a file has a folder")).expect("folders are made");
        fs::write(file, content).expect("the sandbox is writable");
    }

    /// Puts the CA's certificate of the PEM file `ca` at `inside`.
    pub fn trust(&self, ca: &Path, inside: &Path) {
        self.write(inside, fs::read(ca).expect("the CA's certificate"));
    }

    /// The command `name` with `arguments`, inside. It has 2 minutes.
    pub fn command<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.enter();
        command.args([
            program("timeout").as_os_str(),
            "--kill-after=5".as_ref(),
            "120".as_ref(),
        ]);
        command
            .arg(program(name))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Ran {
        let output = self
            .command(name, arguments)
            .output()
            .expect("nsenter starts");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        Ran {
            success: output.status.success(),
            said: format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)),
            stdout,
        }
    }

    /// Runs it and fails the test unless it ends with 0; returns its standard output.
    pub fn must<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> String {
        let arguments: Vec<&str> = arguments.into_iter().collect();
        let ran = self.run(name, arguments.iter().copied());
        assert!(
            ran.success,
            "{name} {} failed:\n{}",
            arguments.join(" "),
            ran.said
        );
        ran.stdout
    }

    /// Runs it and fails the test unless it fails and says `why`.
    pub fn must_fail<'a>(
        &self,
        why: &str,
        name: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) {
        let ran = self.run(name, arguments);
        assert!(
            !ran.success,
            "{name} worked, though it should not:\n{}",
            ran.said
        );
        assert!(
            ran.said.contains(why),
            "{name} does not say {why:?}:\n{}",
            ran.said
        );
    }

    /// Starts a daemon and waits until it logs `ready` on standard error. It lives as long as the
    /// sandbox.
    pub fn daemon<'a>(
        &self,
        ready: &str,
        name: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) {
        let mut command = self.enter();
        command.arg(program(name)).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter starts");
        let stderr = child.stderr.take().expect("asked for a pipe");
        self.daemons
            .lock()
            .expect("no test thread panicked here")
            .push(child);
        let (sender, is_ready) = std::sync::mpsc::channel();
        let (ready, name) = (ready.to_owned(), name.to_owned());
        let wanted = ready.clone();
        std::thread::spawn(move || {
            // Read to the end: a daemon whose pipe is full stands still.
            let mut said = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains(&wanted) {
                    let _gone = sender.send(Ok(()));
                }
                said += &format!("  {line}\n");
            }
            let _gone = sender.send(Err(said));
        });
        match is_ready.recv_timeout(super::PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(said)) => panic!("{name} ended at start:\n{said}"),
            Err(_) => panic!("{name} did not say {ready:?} in time"),
        }
    }

    fn enter(&self) -> Command {
        let mut command = Command::new(program("nsenter"));
        command
            .args(["--target", &self.pid, "--mount", "--pid", "--"])
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"));
        command
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.stdin.take()); // process 1 ends, and the kernel ends the rest
        let _already_ended = self.process.wait();
        let daemons = self
            .daemons
            .get_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        for mut daemon in daemons {
            let _already_ended = daemon.wait();
        }
    }
}
