//! What lies on disk, looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// `sha256:…` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Every regular file below `folder`; a folder that is not there has none.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry.expect("a folder being read");
            // Files come and go while the proxy runs.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Fails unless every file under `blobs/` of the cache hashes to its name; returns their digests.
pub fn assert_blobs_are_sound(cache: &Path) -> Vec<String> {
    let blobs = cache.join("blobs");
    let mut digests = Vec::new();
    for file in files_below(&blobs) {
        let Ok(bytes) = fs::read(&file) else { continue }; // evicted meanwhile
        let hex = file
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        let name = format!("sha256:{hex}");
        assert_eq!(
            digest(&bytes),
            name,
            "{} does not hash to its name",
            file.display()
        );
        assert_eq!(
            file,
            blobs.join("sha256").join(&hex[..2]).join(&hex),
            "in the wrong place"
        );
        digests.push(name);
    }
    digests
}

/// Bytes that the files below `folder` occupy, by their lengths.
pub fn bytes_below(folder: &Path) -> u64 {
    files_below(folder)
        .iter()
        .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
        .sum()
}
