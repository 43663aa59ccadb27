//! Files that the operator wrote: configuration, users, certificates, keys, policies.
//!
//! Invariant: reading one never waits for long and never fills the memory, whatever has its name: a pipe
//! that nobody writes to, a device without end. What a path leads to by symbolic links is what counts.

use std::fs::{self, File, FileType};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// Some hundred thousand users; whatever is larger was not written for us.
const MAX_BYTES: u64 = 8 << 20;

/// How long the next bytes of a pipe are waited for: its writer is a program that was started with us.
const MAX_WAIT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Opens a regular file.
///
/// # Errors
/// It cannot be opened, or is something else.
pub fn open(path: &Path) -> io::Result<File> {
    match fs::metadata(path)?.file_type() {
        kind if kind.is_file() => open_at_once(path),
        kind => Err(is(kind, "and no regular file")),
    }
}

/// What a regular file holds.
///
/// # Errors
/// It cannot be read, is something else, or has more than 8 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    read_on(&open(path)?, &mut bytes)?;
    within_bounds(bytes)
}

/// What a regular file holds, as text.
///
/// # Errors
/// Those of [`read`], and it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    text(read(path)?)
}

/// Like [`read_text`], and takes also what comes through a pipe, such as standard input or what a shell makes
/// of `<(command)`. That can be had once: a second time is an error.
///
/// # Errors
/// Those of [`read_text`]; of a pipe, that nothing came for 10 s, or nothing at all.
pub fn read_text_once(path: &Path) -> io::Result<String> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return read_text(path);
    }
    let file = open_at_once(path)?;
    let mut bytes = Vec::new();
    loop {
        match read_on(&file, &mut bytes) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&file)?,
            Err(error) => return Err(error),
        }
    }
    // A device may well be empty: that is what /dev/null is for.
    if bytes.is_empty() && kind.is_fifo() {
        return Err(is(
            kind,
            "and nothing comes through it: what a pipe gives can be read once; what is to be read again has \
             to be a file",
        ));
    }
    text(within_bounds(bytes)?)
}

/// Opening a pipe would otherwise wait for its writer. To regular files this makes no difference.
fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

/// Adds what there is up to the end, or to one byte more than may be.
fn read_on(file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let had = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let more = (MAX_BYTES + 1).saturating_sub(had);
    file.take(more).read_to_end(bytes).map(drop)
}

fn wait(file: &File) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&MAX_WAIT)) {
        Ok(0) => {
            let why = format!("nothing came through it for {} s", MAX_WAIT.tv_sec);
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn within_bounds(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= MAX_BYTES => Ok(bytes),
        _ => {
            let why = format!("it has more than {} MiB", MAX_BYTES >> 20);
            Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
        }
    }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(bytes).map_err(not_text)
}

fn is(kind: FileType, what: &str) -> io::Error {
    let kind = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    io::Error::other(format!("it is {kind}, {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    fn said<T: std::fmt::Debug>(result: io::Result<T>) -> String {
        result.expect_err("refused").to_string()
    }

    fn pipe_in(folder: &Path) -> PathBuf {
        let path = folder.join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        path
    }

    #[test]
    fn what_a_link_leads_to_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "text").expect("file");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        assert_eq!(read_text(&link).expect("read"), "text");
        assert_eq!(read_text_once(&link).expect("read"), "text");
        fs::write(&file, [0xff]).expect("file");
        assert_eq!(said(read_text(&link)), "it is not UTF-8");
        fs::remove_file(&file).expect("removed");
        let error = read(&link).expect_err("dangling");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_pipe_a_directory_and_a_device_are_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = pipe_in(folder.path());
        for (path, kind) in [
            (folder.path(), "a directory"),
            (pipe.as_path(), "a pipe"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let wanted = format!("it is {kind}, and no regular file");
            assert_eq!(said(read(path)), wanted);
            assert_eq!(said(open(path)), wanted);
        }
    }

    #[test]
    fn a_file_of_more_than_8_mib_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        let opened = File::create(&file).expect("file");
        opened.set_len(MAX_BYTES).expect("sparse");
        assert!(read(&file).is_ok());
        opened.set_len(MAX_BYTES + 1).expect("sparse");
        assert_eq!(said(read(&file)), "it has more than 8 MiB");
        let endless = read_text_once(Path::new("/dev/zero"));
        assert_eq!(said(endless), "it has more than 8 MiB");
    }

    #[test]
    fn a_pipe_is_read_once_to_its_end() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let piece = "some text\n".repeat(20_000);
        let written = piece.clone();
        let writing = std::thread::spawn(move || {
            for _ in 0..2 {
                writer.write_all(written.as_bytes()).expect("it is read");
            }
        });
        assert_eq!(read_text_once(&path).expect("read"), piece.repeat(2));
        writing.join().expect("no panic");
        assert!(said(read_text_once(&path)).starts_with("it is a pipe, and nothing comes"));
        assert!(said(read_text(&path)).contains("no regular file"));
        assert_eq!(read_text_once(Path::new("/dev/null")).expect("read"), "");
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let pipe = pipe_in(folder.path());
        assert!(said(read_text_once(&pipe)).starts_with("it is a pipe, and nothing comes"));
    }
}
