//! Files that only their owner may read: keys, certificates and accounts that we made or were given.
//!
//! Invariant: a file under its final name is whole, and is never on disk with wider rights than 0600.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file or directory cannot be read or written.
#[derive(Debug, Error)]
#[error("cannot {act} {}", path.display())]
pub struct PrivateFileError {
    /// What was tried: `read`, `write` or `create`.
    act: &'static str,
    /// The file or directory.
    path: PathBuf,
    /// What the system says.
    source: io::Error,
}

/// Makes a directory of mode 0700, or gives it to one that was there.
pub(super) fn create_directory(directory: &Path) -> Result<(), PrivateFileError> {
    let failed = |source| PrivateFileError {
        act: "create",
        path: directory.into(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    // One that was there may have been made with wider rights.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// The file's text, or `None` where there is none.
pub(super) fn read_if_any(path: &Path) -> Result<Option<String>, PrivateFileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PrivateFileError {
            act: "read",
            path: path.into(),
            source,
        }),
    }
}

/// Writes a file of mode 0600: temporary, sync, rename, sync of the directory.
pub(super) fn write(path: &Path, text: &str) -> Result<(), PrivateFileError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        // A left-over keeps its rights when it is opened again, so it goes first.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| PrivateFileError {
        act: "write",
        path: path.into(),
        source,
    })
}
