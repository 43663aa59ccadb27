//! What the store promises, tried on a real directory.

mod blobs;
mod eviction;
mod images;
mod keeping;
mod model;
mod records;
mod restart;
mod scrub;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::oci::Digest;

use super::{Blob, CacheMetrics, Limit, Partial, Store, StoreOptions};

/// A store in a directory of its own.
struct Scene {
    dir: tempfile::TempDir,
    options: StoreOptions,
    metrics: CacheMetrics,
}

impl Scene {
    fn new() -> Self {
        Self::with_limit(1 << 30)
    }

    fn with_limit(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            max_size: Limit::Bytes(bytes),
            min_free: Limit::Bytes(0),
            ..StoreOptions::new(dir.path())
        };
        Self {
            dir,
            options,
            metrics: CacheMetrics::default(),
        }
    }

    /// Opens the store and waits for its index. The index is compared with the disk after that.
    fn open(&self) -> Store {
        let store = Store::open(self.options.clone(), self.metrics.clone()).unwrap();
        assert!(store.wait_ready(Duration::from_secs(30)));
        store
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir
            .path()
            .join("blobs/sha256")
            .join(&hex[..2])
            .join(hex)
    }

    fn fills(&self) -> usize {
        self.dir.path().join("fills").read_dir().unwrap().count()
    }
}

fn partial(store: &Store, content: &[u8]) -> Partial {
    let len = content.len() as u64;
    let mut partial = store.begin(Digest::of(content), len, b"").unwrap();
    for piece in content.chunks(256 << 10) {
        partial.append(piece).unwrap();
    }
    partial
}

fn put(store: &Store, content: &[u8]) -> Blob {
    store
        .commit(partial(store, content).verify().unwrap())
        .unwrap()
}

fn read(blob: &Blob) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(blob.len()).unwrap() + 1];
    let read = blob.content().read_at(0, &mut content).unwrap();
    content.truncate(read);
    content
}

fn found(store: &Store, content: &[u8]) -> bool {
    store.blob(&Digest::of(content)).unwrap().is_some()
}

/// `size` bytes that differ for each `n`.
fn content(n: u8, size: usize) -> Vec<u8> {
    let mut content = vec![n; size];
    if let Some(first) = content.first_mut() {
        *first = !n;
    }
    content
}

/// Waits for what a thread of the store does by itself.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// Bytes of all files under `path` whose name passes.
fn disk_bytes(path: &Path, pass: &dyn Fn(&str) -> bool) -> u64 {
    path.read_dir()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                disk_bytes(&entry.path(), pass)
            } else if pass(&entry.file_name().to_string_lossy()) {
                metadata.len()
            } else {
                0
            }
        })
        .sum()
}
