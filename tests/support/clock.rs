//! A clock of one proxy's own, which the test sets while it runs: libfaketime before the program. The
//! monotonic clock and the times of files stay the kernel's, as they do when a real clock is set.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::program;
use super::proxy::Builder;

/// What time it is for the proxies that were given it.
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// Right at first.
    pub fn right() -> Self {
        let clock = Self {
            dir: TempDir::new().expect("a temporary directory"),
        };
        clock.correct();
        clock
    }

    /// From now on it shows this, and goes on from there.
    pub fn set(&self, now: SystemTime) {
        let real = SystemTime::now();
        self.write(&match now.duration_since(real) {
            Ok(ahead) => format!("+{}", ahead.as_secs()),
            Err(behind) => format!("-{}", behind.duration().as_secs()),
        });
    }

    /// From now on it is ahead by so much.
    pub fn ahead(&self, by: Duration) {
        self.write(&format!("+{}", by.as_secs()));
    }

    /// From now on it is right.
    pub fn correct(&self) {
        self.write("+0");
    }

    /// The proxy that `builder` starts goes by this clock.
    pub fn govern(&self, builder: Builder) -> Builder {
        self.govern_deadlines(builder)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// The same, and for what is measured by the monotonic clock time passes with it: to put it ahead is to
    /// have waited.
    pub fn govern_deadlines(&self, builder: Builder) -> Builder {
        let file = self.file();
        let file = file.to_str().expect("a UTF-8 path");
        let library = library();
        builder
            .env("LD_PRELOAD", library.to_str().expect("a UTF-8 path"))
            .env("FAKETIME_TIMESTAMP_FILE", file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("NO_FAKE_STAT", "1")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }

    /// Whole at any moment: it is read whenever the time is asked for.
    fn write(&self, offset: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, format!("{offset}\n")).expect("the directory is writable");
        fs::rename(new, self.file()).expect("the directory is writable");
    }
}

/// The form of the library for programs of several threads.
fn library() -> PathBuf {
    program("faketime"); // says how to get it
    let folders = fs::read_dir("/usr/lib").expect("/usr/lib can be listed");
    folders
        .map(|folder| folder.expect("a folder being read").path())
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|candidate| candidate.is_file())
        .expect("the library comes with faketime")
}
