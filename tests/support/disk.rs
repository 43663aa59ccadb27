//! What the disk does to a running proxy: calls that fail, and a file system that is full.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, Proxy, program};

/// Flips a byte; size and modification time stay as they were.
pub fn rot(file: &Path) {
    let opened = fs::File::options().read(true).write(true).open(file);
    let opened = opened.expect("open");
    let before = opened.metadata().expect("its state");
    let mut byte = [0];
    let middle = before.len() / 2;
    opened.read_exact_at(&mut byte, middle).expect("read");
    opened.write_all_at(&[byte[0] ^ 1], middle).expect("write");
    let modified = before.modified().expect("its time");
    opened.set_modified(modified).expect("set its time");
}

/// System calls of a running proxy tampered with by strace; as they were again when dropped.
///
/// A `when=` in the expression counts for each of its threads apart.
pub struct Injection {
    strace: Child,
}

impl Injection {
    /// In force when this returns. Each of `expressions` is one of strace's, such as
    /// `fsync:error=EIO` or `pwrite64:error=ENOSPC:when=3`.
    pub fn into<'a>(proxy: &Proxy, expressions: impl IntoIterator<Item = &'a str>) -> Self {
        Self::start(Command::new(program("strace")), proxy, expressions)
    }

    /// As [`Injection::into`] for the calls that concern one file.
    pub fn at<'a>(
        file: &Path,
        proxy: &Proxy,
        expressions: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut command = Command::new(program("strace"));
        command.arg("-P").arg(file);
        Self::start(command, proxy, expressions)
    }

    fn start<'a>(
        mut command: Command,
        proxy: &Proxy,
        expressions: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        command.args(["-f", "-o", "/dev/null", "-p", &proxy.pid().to_string()]);
        let mut calls = Vec::new();
        for expression in expressions {
            calls.push(expression.split(':').next().expect("the first part"));
            command.args(["-e", &format!("inject={expression}")]);
        }
        command.args(["-e", &format!("trace={}", calls.join(","))]);
        let mut strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start strace");
        let stderr = BufReader::new(strace.stderr.take().expect("asked for a pipe"));
        let (sender, attached) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end: one whose pipe is full stands still, and its tracee with it.
            for line in stderr.lines().map_while(Result::ok) {
                let _gone = sender.send(line);
            }
        });
        let said = attached.recv_timeout(PATIENCE).expect("strace attaches");
        assert!(said.contains("attached"), "strace says {said:?}");
        Self { strace }
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Not yet waited for, so the id is still strace's; it lets go of the proxy and ends.
        let _already_ended = kill_process(Pid::from_child(&self.strace), Signal::TERM);
        let _already_waited = self.strace.wait();
    }
}

/// A file that takes room from a file system; gone when dropped.
pub struct Ballast {
    file: PathBuf,
}

impl Ballast {
    /// Takes all of the room below `folder` but `spare` bytes.
    pub fn leaving(folder: &Path, spare: u64) -> Self {
        let ballast = Self {
            file: folder.join("ballast"),
        };
        let mut file = File::create(&ballast.file).expect("make the ballast");
        let piece = vec![1; 64 * 1024];
        while available(folder) > spare + piece.len() as u64 {
            file.write_all(&piece).expect("there is room left");
        }
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.file).expect("the ballast is there");
    }
}

/// Bytes that can still be written to the file system of `folder`.
pub fn available(folder: &Path) -> u64 {
    let vfs = rustix::fs::statvfs(folder).expect("a mounted file system");
    vfs.f_bavail * vfs.f_frsize
}

/// Bytes that the file system of `folder` holds, files without a name included.
pub fn occupied(folder: &Path) -> u64 {
    let vfs = rustix::fs::statvfs(folder).expect("a mounted file system");
    (vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize
}
