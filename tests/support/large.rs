//! Stores of many blobs, made without fetching them.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ecr_proxy::cache::{CacheMetrics, Limit, Store, StoreOptions};
use ecr_proxy::oci::{Digest, RepoKey};

/// Length of each blob in bytes: one block of most disks.
pub const LEN: u64 = 4096;

/// The upstream that the blobs are recorded to be of.
pub const UPSTREAM: &str = "prod";

/// Blobs that one repository holds.
const EACH: u64 = 1000;

/// A blob of a large store.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    number: u64,
    digest: Digest,
}

impl Small {
    fn new(number: u64) -> Self {
        let digest = Digest::of(&content(number));
        Self { number, digest }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where clients ask for it.
    pub fn path(&self) -> String {
        format!("/v2/{}/blobs/{}", repository(self.number), self.digest)
    }
}

fn content(number: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(LEN).expect("small")];
    content[..8].copy_from_slice(&number.to_le_bytes());
    content
}

fn repository(number: u64) -> String {
    format!("team/app-{}", number / EACH)
}

/// Makes a store of `count` blobs in `cache`, each hashed, stamped and recorded, as if it had been in use.
pub fn make(cache: &Path, count: u64) -> Vec<Small> {
    let blobs: Vec<Small> = (0..count).map(Small::new).collect();
    let folder = cache.join("blobs/sha256");
    for first_byte in 0..=255_u8 {
        fs::create_dir_all(folder.join(format!("{first_byte:02x}"))).expect("a writable folder");
    }
    for blob in &blobs {
        let hex = blob.digest.hex();
        let file = folder.join(&hex[..2]).join(&hex);
        fs::write(file, content(blob.number)).expect("a writable folder");
    }
    let store = open(cache, Limit::Percent(100.0), CacheMetrics::default());
    for blob in &blobs {
        let repo = RepoKey {
            upstream: UPSTREAM.into(),
            repository: repository(blob.number).parse().expect("a name"),
        };
        let records = store.records();
        records.put_held(&repo, blob.digest, Some(LEN), SystemTime::now());
    }
    // Stamps every one of them.
    store.scrub(None).for_each(drop);
    assert_eq!(store.usage().blobs, count);
    store.flush().expect("a writable folder");
    blobs
}

/// Opens the store in `cache` and waits for its index.
pub fn open(cache: &Path, max_size: Limit, metrics: CacheMetrics) -> Store {
    let options = StoreOptions {
        max_size,
        min_free: Limit::Bytes(0),
        ..StoreOptions::new(cache)
    };
    let store = Store::open(options, metrics).expect("nobody else has it");
    assert!(store.wait_ready(Duration::from_secs(120)), "no index");
    store
}
