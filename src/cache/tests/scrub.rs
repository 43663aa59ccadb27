//! Hashing everything again.

use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::*;
use crate::cache::content::Identity;
use crate::cache::index::Stamp;
use crate::cache::{Damage, Scrubbed, lock};
use crate::oci::RepoKey;

/// Flips a byte, and has the store believe that it hashed the file since: what rot looks like.
fn rot(scene: &Scene, store: &Store, digest: &Digest) {
    let path = scene.path_of(digest);
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3).unwrap();
    let identity = Identity::of(&file.metadata().unwrap());
    lock(&store.shared().index).set_stamp(digest, Stamp { identity, when: 0 });
}

fn verdicts(store: &Store) -> Vec<Scrubbed> {
    let all = store.scrub(None);
    all.filter(|told| !matches!(told, Scrubbed::Read(_)))
        .collect()
}

fn damaged(told: &[Scrubbed]) -> Vec<(Digest, Damage)> {
    let damaged = told.iter().filter_map(|told| match told {
        Scrubbed::Damaged { digest, damage } => Some((*digest, *damage)),
        _ => None,
    });
    damaged.collect()
}

#[test]
fn d19_rot_behind_a_stamp_is_found_told_first_and_then_taken_away() {
    let scene = Scene::new();
    let store = scene.open();
    let all: Vec<Digest> = (0..20)
        .map(|n| put(&store, &content(n, 700_000)).digest())
        .collect();
    rot(&scene, &store, &all[7]);
    assert!(
        store.blob(&all[7]).unwrap().unwrap().stamped(),
        "nothing is seen of it"
    );
    let reader = store.blob(&all[7]).unwrap().unwrap();
    let mut scrub = store.scrub(None);
    let told = scrub.find(|told| matches!(told, Scrubbed::Damaged { .. }));
    let Some(Scrubbed::Damaged { digest, damage }) = told else {
        panic!("{told:?}");
    };
    assert_eq!(digest, all[7]);
    assert!(matches!(damage, Damage::Digest(_)));
    assert!(scene.path_of(&digest).exists());
    assert!(scrub.position().is_none_or(|position| position < digest));
    scrub.next();
    assert!(!scene.path_of(&digest).exists());
    assert!(!reader.stamped(), "its reader is told");
    assert!(scrub.position() >= Some(digest));
    let sound = scrub.filter(|told| matches!(told, Scrubbed::Sound { .. }));
    let behind = all.iter().filter(|other| **other > digest).count();
    assert!(sound.count() >= behind.saturating_sub(1));
    assert_eq!(scene.metrics.quarantined.get(), 1);
    assert_eq!(damaged(&verdicts(&store)), []);
    assert_eq!(store.usage().blobs, 19);
}

#[test]
fn d19_a_scrub_begins_again_behind_what_is_done() {
    let scene = Scene::new();
    let store = scene.open();
    let mut all: Vec<Digest> = (0..40)
        .map(|n| put(&store, &content(n, 10)).digest())
        .collect();
    all.sort_unstable();
    let mut first = store.scrub(None);
    let sound = |told: Scrubbed| match told {
        Scrubbed::Sound { digest, .. } => Some(digest),
        _ => None,
    };
    let mut seen: Vec<Digest> = first.by_ref().filter_map(sound).take(15).collect();
    assert_eq!(first.position(), Some(all[14]));
    seen.extend(store.scrub(first.position()).filter_map(sound));
    assert_eq!(seen, all);
}

#[test]
fn d09_what_cannot_be_the_blob_is_taken_away_and_what_is_not_ours_left() {
    let scene = Scene::new();
    let store = scene.open();
    let [long, folder, lost, whole] =
        std::array::from_fn(|n| put(&store, &content(n as u8, 5000)).digest());
    let file = std::fs::File::options()
        .append(true)
        .open(scene.path_of(&long));
    std::io::Write::write_all(&mut file.unwrap(), b"more").unwrap();
    std::fs::remove_file(scene.path_of(&folder)).unwrap();
    std::fs::create_dir(scene.path_of(&folder)).unwrap();
    std::fs::remove_file(scene.path_of(&lost)).unwrap();
    let foreign = scene.path_of(&whole).with_file_name("notes.txt");
    std::fs::write(&foreign, "mine").unwrap();
    let told = verdicts(&store);
    let mut found = damaged(&told);
    found.sort_unstable_by_key(|(_, damage)| format!("{damage:?}"));
    assert_eq!(
        found,
        [(long, Damage::Length(5004)), (folder, Damage::NotAFile)]
    );
    let strange: Vec<_> = told
        .iter()
        .filter(|t| matches!(t, Scrubbed::Foreign(_)))
        .collect();
    let [Scrubbed::Foreign(path)] = strange[..] else {
        panic!("{strange:?}");
    };
    assert_eq!(scene.dir.path().join(path), foreign);
    assert!(foreign.exists() && scene.path_of(&folder).is_dir());
    assert!(!scene.path_of(&long).exists());
    assert_eq!(store.usage().blobs, 1);
    assert_eq!(store.usage().final_bytes, 5000);
}

#[test]
fn a_blob_found_whole_is_believed_from_then_on() {
    let scene = Scene::new();
    let digest = put(&scene.open(), &content(1, 5000)).digest();
    for name in ["index", "index.journal"] {
        std::fs::remove_file(scene.dir.path().join(name)).unwrap();
    }
    let store = scene.open();
    assert!(!store.blob(&digest).unwrap().unwrap().stamped());
    assert_eq!(damaged(&verdicts(&store)), []);
    assert!(store.blob(&digest).unwrap().unwrap().stamped());
}

#[test]
fn d09_a_damaged_log_is_told_and_written_anew() {
    let scene = Scene::new();
    let repo = RepoKey {
        upstream: "prod".into(),
        repository: "team/app".parse().unwrap(),
    };
    {
        let store = scene.open();
        for n in 0..10 {
            let digest = Digest::of(&[n]);
            store
                .records()
                .put_held(&repo, digest, Some(7), SystemTime::now());
        }
    }
    let log = scene.dir.path().join("repositories/prod/team/app/_log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let store = scene.open();
    let logs = || {
        let all = verdicts(&store).into_iter();
        all.filter_map(|told| match told {
            Scrubbed::Log {
                repository,
                damaged,
            } => Some((repository, damaged)),
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(logs(), [(repo.clone(), 1)]);
    eventually("the log is written anew", || logs() == [(repo.clone(), 0)]);
    let held = (0..10).filter(|n| store.records().holds(&repo, &Digest::of(&[*n])).is_some());
    assert_eq!(held.count(), 9);
}

#[test]
fn how_far_it_has_come_survives_a_restart_and_rubbish_is_the_beginning() {
    let scene = Scene::new();
    let digest = Digest::of(b"x");
    let mut progress = scene.open().scrub_progress();
    assert_eq!(progress, Default::default());
    progress.begun = Some(5);
    progress.set_after(Some(digest));
    progress.set_wanted([digest]);
    scene.open().keep_scrub_progress(&progress).unwrap();
    let again = scene.open().scrub_progress();
    assert_eq!(again, progress);
    assert_eq!(
        (again.after(), again.wanted()),
        (Some(digest), vec![digest])
    );
    std::fs::write(scene.dir.path().join("scrub"), "rubbish").unwrap();
    assert_eq!(scene.open().scrub_progress(), Default::default());
}

#[test]
fn l07_a_blob_that_cannot_be_opened_for_a_moment_is_not_damaged() {
    let scene = Scene::new();
    let store = scene.open();
    let all: Vec<_> = (0..3).map(|n| content(n, 700_000)).collect();
    let digests: Vec<_> = all
        .iter()
        .map(|content| put(&store, content).digest())
        .collect();
    let mut scrub = store.scrub(None);
    let begun = scrub.find(|told| matches!(told, Scrubbed::Read(_)));
    assert_eq!(begun, Some(Scrubbed::Read(256 << 10)), "it is opened again");
    let first = *digests.iter().min().unwrap();
    let shard = scene.path_of(&first).parent().unwrap().to_owned();
    let aside = scene.dir.path().join("aside");
    std::fs::rename(&shard, &aside).unwrap();
    std::fs::write(&shard, "").unwrap();
    let told = scrub.next().unwrap();
    std::fs::remove_file(&shard).unwrap();
    std::fs::rename(&aside, &shard).unwrap();
    let told: Vec<_> = std::iter::once(told).chain(scrub).collect();
    assert_eq!(damaged(&told), []);
    let unreadable = |told: &&Scrubbed| matches!(told, Scrubbed::Unreadable { .. });
    assert_eq!(told.iter().filter(unreadable).count(), 1, "{told:?}");
    assert!(all.iter().all(|content| found(&store, content)));
}
