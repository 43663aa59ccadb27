//! Bytes become an entry only when they are right, and what is not right any more is no entry.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::cache::{AppendError, BeginError, Damage, Degradation, Mismatch, lock};

#[test]
fn a_committed_blob_is_found_whole_and_stamped() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(1, 700_000);
    assert!(!found(&store, &content));
    let blob = put(&store, &content);
    assert!(blob.stamped());
    assert_eq!(read(&blob), content);
    drop(blob);
    let blob = store.blob(&Digest::of(&content)).unwrap().unwrap();
    assert!(blob.stamped());
    assert_eq!(read(&blob), content);
    assert_eq!(blob.map().unwrap().as_ref(), content);
    assert_eq!(
        std::fs::read(scene.path_of(&blob.digest())).unwrap(),
        content
    );
    assert_eq!(scene.fills(), 0);
    let mode = scene
        .path_of(&blob.digest())
        .metadata()
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn u22_empty_and_tiny_blobs_are_blobs() {
    let scene = Scene::new();
    let store = scene.open();
    for size in [0, 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1] {
        let content = content(9, size);
        let blob = put(&store, &content);
        assert_eq!(blob.len(), size as u64);
        assert_eq!(read(&blob), content);
        assert_eq!(blob.map().unwrap().as_ref(), content);
    }
}

#[test]
fn a_reader_follows_the_file_and_outlives_commit() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(2, 1000);
    let mut partial = store.begin(Digest::of(&content), 1000, b"").unwrap();
    let reader = partial.reader();
    let mut buffer = [0; 2000];
    assert_eq!(reader.read_at(0, &mut buffer).unwrap(), 0);
    partial.append(&content[..600]).unwrap();
    assert_eq!(reader.read_at(100, &mut buffer).unwrap(), 500);
    partial.append(&content[600..]).unwrap();
    let blob = store.commit(partial.verify().unwrap()).unwrap();
    assert_eq!(reader.read_at(0, &mut buffer).unwrap(), 1000);
    assert_eq!(&buffer[..1000], content);
    if let Some(read) = blob.content().read_now(10, &mut buffer).unwrap() {
        assert_eq!(&buffer[..read], &content[10..10 + read]);
    }
}

#[test]
fn u02_more_than_declared_fails_early_and_harms_nothing() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(3, 10);
    let mut partial = store.begin(Digest::of(&content), 10, b"").unwrap();
    let error = partial.append(&[0; 11]).unwrap_err();
    assert!(matches!(error, AppendError::TooLong { declared: 10 }));
    partial.append(&content).unwrap();
    store.commit(partial.verify().unwrap()).unwrap();
}

#[test]
fn u09_what_is_in_the_file_is_never_written_over() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(8, 30);
    let digest = Digest::of(&content);
    let mut partial = store.begin(digest, 30, b"").unwrap();
    let lie = [0xee; 30];
    assert_eq!(partial.write(0, &content[..10]).unwrap(), 0..10);
    assert_eq!(partial.write(0, &lie[..10]).unwrap(), 0..0);
    // Ahead of the hash as well, and where only a part of a piece is there.
    assert_eq!(partial.write(20, &content[20..]).unwrap(), 20..20);
    assert_eq!(partial.write(25, &lie[..5]).unwrap(), 25..25);
    let mut piece = lie;
    piece[10..20].copy_from_slice(&content[10..20]);
    assert_eq!(partial.write(0, &piece).unwrap(), 10..20);
    partial.catch_up(&mut [0; 30]).unwrap();
    let blob = store.commit(partial.verify().unwrap()).unwrap();
    assert_eq!(read(&blob), content);
    assert_eq!(store.usage().final_bytes, 30);
}

#[test]
fn u01_u03_short_or_wrong_content_never_gets_a_name() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(4, 10);
    let digest = Digest::of(&content);
    let mut partial = store.begin(digest, 10, b"").unwrap();
    partial.append(&content[..9]).unwrap();
    let (mut partial, mismatch) = partial.verify().unwrap_err();
    let short = Mismatch::Length {
        written: 9,
        declared: 10,
    };
    assert_eq!(mismatch, short);
    // One that is merely short can go on.
    partial.append(&[!content[9]]).unwrap();
    let (partial, mismatch) = partial.verify().unwrap_err();
    assert!(matches!(mismatch, Mismatch::Digest { expected, .. } if expected == digest));
    drop(partial);
    assert_eq!(scene.fills(), 0);
    assert!(!found(&store, &content));
}

#[test]
fn a_partial_given_up_hands_its_hash_on() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(5, 10);
    let mut partial = store.begin(Digest::of(&content), 10, b"").unwrap();
    partial.append(&content[..6]).unwrap();
    let (mut hasher, written) = partial.abandon();
    hasher.update(&content[usize::try_from(written).unwrap()..]);
    assert_eq!(hasher.finish(), Digest::of(&content));
    assert_eq!(scene.fills(), 0);
}

#[test]
fn d06_a_file_that_is_not_what_was_written_is_discarded() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(6, 100);
    let verified = partial(&store, &content).verify().unwrap();
    let fill = scene.dir.path().join("fills").read_dir().unwrap().next();
    let fill = std::fs::File::options()
        .write(true)
        .open(fill.unwrap().unwrap().path());
    fill.unwrap().set_len(99).unwrap();
    store.commit(verified).unwrap_err();
    assert_eq!(scene.fills(), 0);
    assert!(!found(&store, &content));
}

#[test]
fn d07_a_rename_that_fails_leaves_nothing() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(7, 100);
    let digest = Digest::of(&content);
    // A file where the directory of the shard belongs.
    std::fs::write(scene.path_of(&digest).parent().unwrap(), "").unwrap();
    let verified = partial(&store, &content).verify().unwrap();
    let reader = verified.reader();
    store.commit(verified).unwrap_err();
    assert_eq!(scene.fills(), 0);
    assert!(!found(&store, &content));
    assert!(!store.health().is_whole());
    // Who follows the fill is not harmed, and its bytes are counted until it is done.
    let mut buffer = [0; 100];
    assert_eq!(reader.read_at(0, &mut buffer).unwrap(), 100);
    assert_eq!(store.usage().unlinked_bytes, 100);
    drop(reader);
    assert_eq!(store.usage().unlinked_bytes, 0);
    assert_eq!(store.usage().temporary_bytes, 0);

    std::fs::remove_file(scene.path_of(&digest).parent().unwrap()).unwrap();
    put(&store, &content);
    assert!(
        store.health().is_whole(),
        "a commit that works ends the fault"
    );
}

#[test]
fn a_blob_committed_by_two_at_once_is_counted_once() {
    let scene = Scene::new();
    let store = scene.open();
    for n in 0..50 {
        let content = content(n, 10_000);
        let all = [partial(&store, &content), partial(&store, &content)];
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for partial in all {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    let verified = partial.verify().unwrap();
                    barrier.wait();
                    store.commit(verified).unwrap();
                });
            }
        });
        let blob = store.blob(&Digest::of(&content)).unwrap().unwrap();
        assert!(blob.stamped());
        let known = lock(&store.shared().index).known(&blob.digest()).unwrap();
        let stamped = known.stamp.map(|stamp| stamp.identity);
        assert_eq!(stamped, blob.content().identity(), "{n}");
        let usage = store.usage();
        assert_eq!(usage.final_bytes, (u64::from(n) + 1) * 10_000, "{n}");
        assert_eq!(usage.unlinked_bytes + usage.temporary_bytes, 0, "{n}");
    }
}

#[test]
fn d09_a_file_of_another_length_is_an_instant_miss_and_refetched() {
    let scene = Scene::new();
    let store = scene.open();
    for (n, len) in [(1, 0), (2, 99), (3, 101)] {
        let content = content(n, 100);
        let digest = put(&store, &content).digest();
        let path = scene.path_of(&digest);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        assert!(store.blob(&digest).unwrap().is_none(), "length {len}");
        assert!(!path.exists());
        assert_eq!(read(&put(&store, &content)), content);
    }
    assert_eq!(scene.metrics.quarantined.get(), 3);
    assert_eq!(store.usage().final_bytes, 300);
    assert_eq!(store.usage().unlinked_bytes, 0);
}

#[test]
fn d09_a_changed_or_exchanged_file_loses_its_stamp() {
    let scene = Scene::new();
    let store = scene.open();
    let (one, two) = (content(1, 100), content(2, 100));
    let paths = [&one, &two].map(|content| scene.path_of(&put(&store, content).digest()));
    let file = std::fs::File::options()
        .write(true)
        .open(&paths[0])
        .unwrap();
    file.write_all_at(b"rot", 50).unwrap();
    let blob = store.blob(&Digest::of(&one)).unwrap().unwrap();
    assert!(!blob.stamped());

    std::fs::rename(&paths[0], &paths[1]).unwrap();
    let blob = store.blob(&Digest::of(&two)).unwrap().unwrap();
    assert!(!blob.stamped());
    assert_ne!(
        read(&blob),
        two,
        "the file itself is what is open, not a memory of it"
    );
    store.quarantine(&blob, Damage::Digest(Digest::of(&read(&blob))));
    assert!(store.blob(&Digest::of(&two)).unwrap().is_none());
    assert_eq!(store.usage().unlinked_bytes, 100);
    drop(blob);
    assert_eq!(store.usage().unlinked_bytes, 0);
    assert!(put(&store, &two).stamped());
}

#[test]
fn d09_what_is_no_regular_file_is_a_miss_without_waiting_and_is_replaced() {
    let scene = Scene::new();
    let store = scene.open();
    let target = scene.dir.path().join("target");
    std::fs::write(&target, "untouched").unwrap();
    type Plant<'a> = Box<dyn Fn(&Path) + 'a>;
    let plants: [Plant<'_>; 4] = [
        Box::new(|path| std::fs::create_dir(path).unwrap()),
        Box::new(|path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("something"), "").unwrap();
        }),
        Box::new(|path| {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }),
        Box::new(|path| symlink(&target, path).unwrap()),
    ];
    for (n, plant) in (0..).zip(plants) {
        let content = content(n, 50);
        let path = scene.path_of(&put(&store, &content).digest());
        std::fs::remove_file(&path).unwrap();
        plant(&path);
        assert!(!found(&store, &content), "plant {n}");
        assert_eq!(read(&put(&store, &content)), content, "plant {n}");
        assert!(found(&store, &content), "plant {n}");
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(store.usage().final_bytes, 4 * 50);
}

#[test]
fn d10_a_linked_shard_is_not_followed() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(1, 50);
    let path = scene.path_of(&Digest::of(&content));
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), path.parent().unwrap()).unwrap();
    store
        .commit(partial(&store, &content).verify().unwrap())
        .unwrap_err();
    std::fs::write(elsewhere.path().join(path.file_name().unwrap()), &content).unwrap();
    assert!(!found(&store, &content));
    assert_eq!(elsewhere.path().read_dir().unwrap().count(), 1);
}

#[test]
fn d13_a_directory_that_vanishes_gives_misses_and_is_told() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(1, 50);
    drop(put(&store, &content));
    let away = scene.dir.path().with_extension("away");
    std::fs::rename(scene.dir.path(), &away).unwrap();
    let error = store.begin(Digest::of(b"new"), 3, b"").unwrap_err();
    assert!(matches!(error, BeginError::Disk(_)));
    assert_eq!(store.health().degraded[0].0, Degradation::Missing);
    std::fs::rename(&away, scene.dir.path()).unwrap();
    put(&store, b"new");
    assert!(store.health().is_whole());
    assert_eq!(
        read(&store.blob(&Digest::of(&content)).unwrap().unwrap()),
        content
    );
}

#[test]
fn an_unstamped_file_is_stamped_by_who_hashed_it() {
    let scene = Scene::new();
    let content = content(1, 50);
    let digest = put(&scene.open(), &content).digest();
    // A new change time, with the content as it was.
    std::fs::set_permissions(scene.path_of(&digest), PermissionsExt::from_mode(0o640)).unwrap();
    let store = scene.open();
    let blob = store.blob(&digest).unwrap().unwrap();
    assert!(!blob.stamped());
    store.mark_verified(&blob);
    assert!(blob.stamped());
    drop((blob, store));
    let store = scene.open();
    assert!(store.blob(&digest).unwrap().unwrap().stamped());
}

#[test]
fn a_file_changed_since_it_was_opened_gets_no_stamp() {
    let scene = Scene::new();
    let content = content(1, 50);
    let digest = put(&scene.open(), &content).digest();
    std::fs::write(scene.path_of(&digest), &content).unwrap();
    let store = scene.open();
    let blob = store.blob(&digest).unwrap().unwrap();
    std::fs::write(scene.path_of(&digest), &content).unwrap();
    store.mark_verified(&blob);
    assert!(!blob.stamped());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn reads_at_any_offset_give_the_content(
        content: Vec<u8>,
        offset in 0usize..300,
        len in 0usize..300,
    ) {
        let scene = Scene::new();
        let store = scene.open();
        let blob = put(&store, &content);
        let mut buffer = vec![0; len];
        let read = blob.content().read_at(offset as u64, &mut buffer).unwrap();
        let rest = content.get(offset..).unwrap_or_default();
        prop_assert_eq!(&buffer[..read], &rest[..len.min(rest.len())]);
    }
}
