//! Random operations against a map: whatever happens, an entry is right, and the account adds up.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::cache::{ContentFile, Damage};

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Begin(u8),
    DropPartial,
    CommitPartial,
    Hold(u8),
    Release,
    Quarantine(u8),
    Corrupt(u8),
    Unlink(u8),
    Restart,
    LoseIndex,
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0u8..12;
    prop_oneof![
        6 => n.clone().prop_map(Step::Put),
        2 => n.clone().prop_map(Step::Begin),
        2 => Just(Step::DropPartial),
        2 => Just(Step::CommitPartial),
        3 => n.clone().prop_map(Step::Hold),
        3 => Just(Step::Release),
        1 => n.clone().prop_map(Step::Quarantine),
        1 => n.clone().prop_map(Step::Corrupt),
        1 => n.prop_map(Step::Unlink),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseIndex),
    ]
}

const LIMIT: u64 = 20_000;

fn blob_content(n: u8) -> Vec<u8> {
    content(n, 400 + usize::from(n) * 300)
}

fn contents() -> HashMap<Digest, Vec<u8>> {
    (0..12)
        .map(|n| (Digest::of(&blob_content(n)), blob_content(n)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn l19_stamped_blobs_are_right_and_the_account_adds_up(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let contents = contents();
        let scene = Scene::with_limit(LIMIT);
        let mut store = scene.open();
        let mut partials = Vec::new();
        let mut held: Vec<(Blob, bool)> = Vec::new();
        let mut readers: Vec<ContentFile> = Vec::new();
        for step in steps {
            match step {
                Step::Put(n) | Step::Begin(n) => {
                    let content = blob_content(n);
                    let len = content.len() as u64;
                    if let Ok(mut partial) = store.begin(Digest::of(&content), len, b"") {
                        partial.append(&content).unwrap();
                        readers.push(partial.reader());
                        if matches!(step, Step::Put(_)) {
                            held.push((store.commit(partial.verify().unwrap()).unwrap(), true));
                        } else {
                            partials.push(partial);
                        }
                    }
                }
                Step::DropPartial => drop(partials.pop()),
                Step::CommitPartial => {
                    if let Some(partial) = partials.pop() {
                        store.commit(partial.verify().unwrap()).unwrap();
                    }
                }
                Step::Hold(n) => {
                    if let Some(blob) = store.blob(&Digest::of(&blob_content(n))).unwrap() {
                        let right = read(&blob) == contents[&blob.digest()];
                        prop_assert!(right || !blob.stamped(), "stamped and wrong");
                        held.push((blob, right));
                    }
                }
                Step::Release => {
                    held.pop();
                    readers.pop();
                }
                Step::Quarantine(n) => {
                    let digest = Digest::of(&blob_content(n));
                    if let Some(blob) = store.blob(&digest).unwrap() {
                        store.quarantine(&blob, Damage::Unreadable);
                        prop_assert!(store.blob(&digest).unwrap().is_none());
                    }
                }
                Step::Corrupt(n) => {
                    let content = blob_content(n);
                    let path = scene.path_of(&Digest::of(&content));
                    if path.exists() {
                        // Replaced, so that who has the file open keeps right bytes.
                        std::fs::write(scene.dir.path().join("other"), vec![0; content.len()])
                            .unwrap();
                        std::fs::rename(scene.dir.path().join("other"), path).unwrap();
                    }
                }
                Step::Unlink(n) => {
                    let _ = std::fs::remove_file(scene.path_of(&Digest::of(&blob_content(n))));
                }
                Step::Restart | Step::LoseIndex => {
                    partials.clear();
                    readers.clear();
                    held.clear();
                    drop(store);
                    if matches!(step, Step::LoseIndex) {
                        let _ = std::fs::remove_file(scene.dir.path().join("index"));
                    }
                    store = scene.open();
                }
            }
            for (blob, right) in &held {
                prop_assert_eq!(read(blob) == contents[&blob.digest()], *right);
            }
            let usage = store.usage();
            let used = usage.final_bytes + usage.temporary_bytes + usage.unlinked_bytes;
            prop_assert!(used + usage.record_bytes <= LIMIT + 8192, "{usage:?}");
        }
        drop((partials, held, readers));
        // Look at every name once, so that what was removed behind the store's back is found out.
        for digest in contents.keys() {
            drop(store.blob(digest).unwrap());
        }
        let usage = store.usage();
        prop_assert_eq!((usage.temporary_bytes, usage.unlinked_bytes), (0, 0));
        let blobs = disk_bytes(&scene.dir.path().join("blobs"), &|_| true);
        prop_assert_eq!(usage.final_bytes, blobs);
        prop_assert_eq!(scene.fills(), 0);
    }
}
