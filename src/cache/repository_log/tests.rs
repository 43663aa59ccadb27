//! What a repository holds is the same in memory and on disk, whatever was denied and forgotten.

use std::fs::File;

use proptest::prelude::*;

use super::*;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const AT: SystemTime = SystemTime::UNIX_EPOCH;

fn blob(n: u8) -> Digest {
    Digest::of(&[n])
}

/// A manifest that names the blobs whose bits are set in `names`.
fn manifest(names: u8) -> StoredManifest {
    let layers: Vec<_> = (0..3)
        .filter(|n| names & (1 << n) != 0)
        .map(|n| format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":9}}"#, blob(n)))
        .collect();
    let bytes = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":7}},"layers":[{}]}}"#,
        blob(names + 100),
        layers.join(",")
    ));
    StoredManifest::new(Digest::of(&bytes), IMAGE.into(), bytes)
}

/// Writes what there is to be written.
fn flush(log: &mut RepositoryLog, directory: &OwnedFd) {
    match log.take_batch() {
        None => {}
        Some(Batch::Append {
            at,
            frames,
            manifests,
        }) => {
            RepositoryLog::append_to(directory, at, &frames).unwrap();
            log.appended(at, frames.len(), &manifests);
        }
        Some(Batch::Rewrite { salt, entries }) => {
            let name = log.name.clone();
            let new = RepositoryLog::write_new(&name, directory, salt, entries);
            log.adopt(directory, new.unwrap()).unwrap();
        }
    }
}

/// A log on a disk, and beside it what is to be so.
struct Twin {
    log: RepositoryLog,
    directory: OwnedFd,
    _folder: tempfile::TempDir,
    /// The manifests that are stored, and which blobs each of them proves.
    manifests: HashMap<u8, u8>,
    /// The blobs that upstream was heard to hold.
    held: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Held(u8),
    ForgetBlob(u8),
    ForgetManifest(u8),
    Rewrite,
    Restart,
}

impl Twin {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            log: RepositoryLog::empty("team/app".to_owned()),
            directory: File::open(folder.path()).unwrap().into(),
            _folder: folder,
            manifests: HashMap::new(),
            held: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Put(names) => {
                self.log.put_manifest(&manifest(names), AT);
                self.manifests.entry(names).or_insert(names);
            }
            Step::Held(n) => {
                self.log.put_held(blob(n), Some(9), AT);
                self.held |= 1 << n;
            }
            Step::ForgetBlob(n) => {
                self.log.forget_blob(&blob(n));
                self.held &= !(1 << n);
                for proven in self.manifests.values_mut() {
                    *proven &= !(1 << n);
                }
            }
            Step::ForgetManifest(names) => {
                self.log.forget_manifest(&manifest(names).digest);
                self.manifests.remove(&names);
            }
            Step::Rewrite => {
                self.log.write_anew();
                flush(&mut self.log, &self.directory);
            }
            Step::Restart => {
                flush(&mut self.log, &self.directory);
                let name = self.log.name.clone();
                self.log = RepositoryLog::load(name, Some(&self.directory)).unwrap();
            }
        }
        let proven = self.manifests.values().fold(0, |all, proven| all | proven);
        for n in 0..3 {
            let is_held = (proven | self.held) & (1 << n) != 0;
            assert_eq!(
                self.log.holds(&blob(n)).is_some(),
                is_held,
                "{n} after {step:?}"
            );
        }
    }
}

#[test]
fn a_denial_counts_for_the_manifests_before_it_and_for_none_after() {
    use Step::{ForgetBlob, ForgetManifest, Put, Restart, Rewrite};
    for middle in [None, Some(Restart), Some(Rewrite)] {
        let mut twin = Twin::new();
        twin.take(&Put(0b001));
        twin.take(&ForgetBlob(0));
        twin.take(&Put(0b011));
        for step in middle.iter().chain([&ForgetManifest(0b001), &Restart]) {
            twin.take(step);
        }
        assert!(twin.log.holds(&blob(0)).is_some());
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..8).prop_map(Step::Put),
        1 => (0u8..3).prop_map(Step::Held),
        3 => (0u8..3).prop_map(Step::ForgetBlob),
        2 => (0u8..8).prop_map(Step::ForgetManifest),
        1 => Just(Step::Rewrite),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_is_held_is_the_same_in_memory_and_on_disk(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut twin = Twin::new();
        for step in steps.iter().chain([&Step::Restart, &Step::Rewrite, &Step::Restart]) {
            twin.take(step);
        }
    }
}
