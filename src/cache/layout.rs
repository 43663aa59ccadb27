//! Where things are under the store's directory, and whether the directory can be trusted.
//!
//! The invariant: below the root no path leads through a symbolic link. Every directory is opened by
//! its parent's descriptor without following links; files are opened the same way by their callers.
//! Paths are walked anew each time, so a store whose directory vanishes is noticed.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::oci::Digest;

use super::spans::Spans;

/// Layout number; a change of the layout bumps it and migrates.
const VERSION: u32 = 1;

const VERSION_FILE: &str = "VERSION";
const LOCK_FILE: &str = "LOCK";

/// Names of the store's directories, from the root.
pub(super) const BLOBS: [&str; 2] = ["blobs", "sha256"];
pub(super) const FILLS: [&str; 1] = ["fills"];
pub(super) const REPOSITORIES: &str = "repositories";

/// Why the store was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory is missing and cannot be made, or cannot be read.
    #[error("cannot use {path} as the cache directory")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another ecr-proxy")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Anybody may write to it, so nothing in it can be trusted.
    #[error("{path} is writable by everybody; `chmod o-w` it, or choose another directory")]
    WorldWritable {
        /// The directory.
        path: PathBuf,
    },
    /// One of the store's directories is a link or not a directory.
    #[error("{path} must be a directory of its own, not a link or a file")]
    NotADirectory {
        /// What is in its place.
        path: PathBuf,
    },
    /// One of the store's directories is on another mount, where no file can be renamed to.
    #[error("{path} is on another mount than the cache directory; the whole must be on one")]
    SplitMount {
        /// The directory that is elsewhere.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{path} has layout {found}; this release knows {VERSION} and older")]
    NewerLayout {
        /// The directory.
        path: PathBuf,
        /// The layout found.
        found: u32,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the cache")]
    Thread(#[source] io::Error),
}

/// The store's directory, locked for this process.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    /// Held for the life of the store. The lock goes with the process, so it is never stale; it is
    /// close-on-exec, so no child keeps it. `None` on a file system that cannot be written and has
    /// no lock file.
    lock: Option<File>,
}

impl Layout {
    /// Makes, checks and locks the directory. Also returns why it cannot be written, if so.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<io::Error>), OpenError> {
        let at = |source| OpenError::Directory {
            path: dir.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at)?;
        // The root itself may be a link to where the administrator has room.
        let root = dir.canonicalize().map_err(at)?;
        let metadata = root.metadata().map_err(at)?;
        if metadata.mode() & 0o002 != 0 {
            return Err(OpenError::WorldWritable { path: root });
        }

        let mut layout = Self { root, lock: None };
        let mut read_only = None;
        match layout.acquire() {
            Ok(lock) => layout.lock = Some(lock),
            Err(Acquire::InUse) => return Err(OpenError::InUse { path: layout.root }),
            Err(Acquire::Failed(error)) => read_only = Some(error),
        }
        layout.check_version()?;
        let made = layout.make_all();
        layout.check_parts()?;
        let writable = rustix::fs::access(&layout.root, Access::WRITE_OK);
        for failed in [made.err(), writable.err().map(io::Error::from)] {
            read_only = read_only.or(failed);
        }
        Ok((layout, read_only))
    }

    fn acquire(&self) -> Result<File, Acquire> {
        let path = self.root.join(LOCK_FILE);
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::open(&path, flags | OFlags::RDWR | OFlags::CREATE, mode)
            .or_else(|_| rustix::fs::open(&path, flags | OFlags::RDONLY, mode))
            .map_err(|error| Acquire::Failed(error.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file.into()),
            Err(Errno::WOULDBLOCK) => Err(Acquire::InUse),
            Err(error) => Err(Acquire::Failed(error.into())),
        }
    }

    fn check_version(&self) -> Result<(), OpenError> {
        let root = self.directory(&[]).map_err(|error| self.unusable(error))?;
        let text = read_small(&root, VERSION_FILE).unwrap_or_default();
        match text.trim().parse::<u32>() {
            Ok(found) if found > VERSION => Err(OpenError::NewerLayout {
                path: self.root.clone(),
                found,
            }),
            Ok(_) => Ok(()),
            // Missing, or damaged: a number once written is only ever replaced whole.
            Err(_) => {
                let text = format!("{VERSION}\n");
                // A directory that cannot be written is reported by `make_all`.
                let _ = replace_file(&root, VERSION_FILE, text.as_bytes());
                Ok(())
            }
        }
    }

    fn make_all(&self) -> io::Result<()> {
        self.make_directory(&BLOBS)?;
        self.make_directory(&FILLS)?;
        self.make_directory(&[REPOSITORIES])?;
        Ok(())
    }

    fn check_parts(&self) -> Result<(), OpenError> {
        let mount = |directory: &OwnedFd| -> io::Result<(u32, u32, Option<u64>)> {
            let statx = rustix::fs::statx(
                directory,
                "",
                AtFlags::EMPTY_PATH,
                StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
            )?;
            // Kernels before 5.8 do not tell the mount; the device is then all we have.
            let known = statx.stx_mask & StatxFlags::MNT_ID.bits() != 0;
            Ok((
                statx.stx_dev_major,
                statx.stx_dev_minor,
                known.then_some(statx.stx_mnt_id),
            ))
        };
        let root = self
            .directory(&[])
            .and_then(|root| mount(&root))
            .map_err(|error| self.unusable(error))?;
        for part in [&BLOBS[..1], &BLOBS, &FILLS, &[REPOSITORIES]] {
            let path = self.root.join(part.join("/"));
            match self.directory(part).and_then(|part| mount(&part)) {
                Ok(found) if found != root => return Err(OpenError::SplitMount { path }),
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::LOOP | Errno::NOTDIR) => {
                        return Err(OpenError::NotADirectory { path });
                    }
                    // Could not be made: nothing to read there either, and it was reported.
                    Some(Errno::NOENT) => {}
                    _ => {
                        return Err(OpenError::Directory {
                            path,
                            source: error,
                        });
                    }
                },
            }
        }
        Ok(())
    }

    fn unusable(&self, source: io::Error) -> OpenError {
        OpenError::Directory {
            path: self.root.clone(),
            source,
        }
    }

    /// Opens a directory, given by its components from the root.
    pub(super) fn directory(&self, components: &[&str]) -> io::Result<OwnedFd> {
        let mut directory = rustix::fs::open(&self.root, DIRECTORY, Mode::empty())?;
        for component in components {
            directory = rustix::fs::openat(&directory, *component, DIRECTORY, Mode::empty())?;
        }
        Ok(directory)
    }

    /// Opens a directory, making what is missing of it durably. The root itself is not made again,
    /// and nothing is if it is no longer the one that was locked: what is mounted elsewhere now must
    /// not be filled up underneath its mount point.
    pub(super) fn make_directory(&self, components: &[&str]) -> io::Result<OwnedFd> {
        let mut directory = rustix::fs::open(&self.root, DIRECTORY, Mode::empty())?;
        let mut made_any = false;
        for component in components {
            let opened = rustix::fs::openat(&directory, *component, DIRECTORY, Mode::empty());
            directory = match opened {
                Err(Errno::NOENT) => {
                    if !made_any && !self.still_locked()? {
                        return Err(Errno::STALE.into());
                    }
                    made_any = true;
                    match rustix::fs::mkdirat(&directory, *component, Mode::RWXU) {
                        Ok(()) => {
                            if let Err(error) = rustix::fs::fsync(&directory) {
                                // Made again, and synced then, by the next one who needs it.
                                let _ = rustix::fs::unlinkat(
                                    &directory,
                                    *component,
                                    AtFlags::REMOVEDIR,
                                );
                                return Err(error.into());
                            }
                        }
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    rustix::fs::openat(&directory, *component, DIRECTORY, Mode::empty())?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }

    /// True while the lock we hold is the one that a second process would meet.
    pub(super) fn still_locked(&self) -> io::Result<bool> {
        let Some(lock) = &self.lock else {
            return Ok(true);
        };
        let held = rustix::fs::fstat(lock)?;
        let path = self.root.join(LOCK_FILE);
        match rustix::fs::lstat(&path) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Size of the file system and what an unprivileged process may still use of it, in bytes.
    pub(super) fn room(&self) -> io::Result<Room> {
        let vfs = rustix::fs::statvfs(&self.root)?;
        Ok(Room {
            total: vfs.f_blocks.saturating_mul(vfs.f_frsize),
            used: vfs
                .f_blocks
                .saturating_sub(vfs.f_bfree)
                .saturating_mul(vfs.f_frsize),
            available: vfs.f_bavail.saturating_mul(vfs.f_frsize),
        })
    }
}

enum Acquire {
    InUse,
    Failed(io::Error),
}

/// A file system's figures, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) total: u64,
    pub(super) used: u64,
    pub(super) available: u64,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory under `blobs/sha256/` that holds `digest`.
pub(super) fn shard(digest: &Digest) -> String {
    shard_name(digest.as_bytes()[0])
}

pub(super) fn shard_name(first_byte: u8) -> String {
    format!("{first_byte:02x}")
}

/// Opens a file for reading without following a link and without waiting for a FIFO's writer.
pub(super) fn open_file(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?.into())
}

/// Makes a file that must not be there yet.
pub(super) fn create_file(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::openat(directory, name, flags, mode)?.into())
}

/// Opens a file for appending, if it is there.
pub(super) fn open_for_append(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?.into())
}

/// Where a file has data rather than holes; all of it where the file system does not tell.
pub(super) fn data_in(file: &File) -> Spans {
    let mut spans = Spans::default();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return spans,
            Err(_) => break,
        };
        match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) if end > start => {
                spans.add(start..end);
                at = end;
            }
            Ok(_) | Err(_) => break,
        }
    }
    Spans::up_to(u64::MAX)
}

/// Removes a name; one that is already gone is no error.
pub(super) fn remove_name(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a whole file durably under `name`: it has the old content or the new one at any moment.
pub(super) fn replace_file(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    replace(directory, name, content, File::sync_all)?;
    rustix::fs::fsync(directory)?;
    Ok(())
}

/// Writes a whole file under `name` that a power cut may cost or empty.
pub(super) fn replace_hint(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    replace(directory, name, content, |_| Ok(()))
}

fn replace(
    directory: &OwnedFd,
    name: &str,
    content: &[u8],
    sync: fn(&File) -> io::Result<()>,
) -> io::Result<()> {
    use std::io::Write;

    let temporary = format!("{name}.new");
    // Left by a crash, ours alone: the store is locked.
    remove_name(directory, &temporary)?;
    let mut file = create_file(directory, &temporary)?;
    let written = file
        .write_all(content)
        .and_then(|()| sync(&file))
        .and_then(|()| {
            Ok(rustix::fs::renameat(
                directory,
                &*temporary,
                directory,
                name,
            )?)
        });
    if written.is_err() {
        let _ = remove_name(directory, &temporary);
    }
    written
}

fn read_small(directory: &OwnedFd, name: &str) -> io::Result<String> {
    use std::io::Read;

    let mut text = String::new();
    open_file(directory, name)?
        .take(64)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn d20_a_second_owner_is_refused_and_the_lock_goes_with_the_first() {
        let dir = root();
        let (first, _) = Layout::open(dir.path()).unwrap();
        assert!(matches!(
            Layout::open(dir.path()),
            Err(OpenError::InUse { .. })
        ));
        drop(first);
        Layout::open(dir.path()).unwrap();
    }

    #[test]
    fn directories_and_files_are_closed_to_others() {
        let dir = root();
        let path = dir.path().join("new/cache");
        Layout::open(&path).unwrap();
        for (name, mode) in [
            ("", 0o700),
            ("fills", 0o700),
            ("LOCK", 0o600),
            ("VERSION", 0o600),
        ] {
            let found = path.join(name).metadata().unwrap().mode() & 0o777;
            assert_eq!(found, mode, "{name}");
        }
    }

    #[test]
    fn d10_a_world_writable_root_is_refused() {
        let dir = root();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        assert!(matches!(
            Layout::open(dir.path()),
            Err(OpenError::WorldWritable { .. })
        ));
    }

    #[test]
    fn d10_a_linked_directory_is_refused_and_its_target_untouched() {
        let dir = root();
        let elsewhere = root();
        symlink(elsewhere.path(), dir.path().join("blobs")).unwrap();
        assert!(matches!(
            Layout::open(dir.path()),
            Err(OpenError::NotADirectory { .. })
        ));
        assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_newer_layout_is_refused_and_a_damaged_version_rewritten() {
        let dir = root();
        let version = dir.path().join("VERSION");
        std::fs::write(&version, "2\n").unwrap();
        assert!(matches!(
            Layout::open(dir.path()),
            Err(OpenError::NewerLayout { found: 2, .. })
        ));
        std::fs::write(&version, "").unwrap();
        Layout::open(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&version).unwrap(), "1\n");
    }

    #[test]
    fn d13_a_root_that_was_replaced_is_not_filled() {
        let dir = root();
        let path = dir.path().join("cache");
        let (layout, _) = Layout::open(&path).unwrap();
        std::fs::remove_dir(path.join("fills")).unwrap();
        layout.make_directory(&FILLS).unwrap();
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        std::fs::create_dir(&path).unwrap();
        layout.make_directory(&FILLS).unwrap_err();
        assert_eq!(path.read_dir().unwrap().count(), 0);
    }
}
