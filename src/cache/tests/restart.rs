//! What survives the end of the process, orderly or not, and what is found instead of what was left.

use super::*;
use crate::cache::{AppendError, OpenError};

#[test]
fn blobs_their_stamps_and_their_order_of_use_survive_a_restart() {
    let scene = Scene::with_limit(100_000);
    let contents: Vec<_> = (0..3).map(|n| content(n, 30_000)).collect();
    let store = scene.open();
    for content in &contents {
        put(&store, content);
    }
    assert!(found(&store, &contents[0]));
    drop(store);

    let store = scene.open();
    assert_eq!(store.usage().blobs, 3);
    put(&store, &content(9, 30_000));
    assert!(!found(&store, &contents[1]), "the least recently used one");
    let blob = store.blob(&Digest::of(&contents[0])).unwrap().unwrap();
    assert!(blob.stamped());
}

#[test]
fn c05_a_lost_or_damaged_index_is_rebuilt_from_the_files() {
    let scene = Scene::new();
    let content = content(1, 300);
    let digest = put(&scene.open(), &content).digest();
    let index = scene.dir.path().join("index");
    for damage in [None, Some(&b""[..]), Some(&b"noise noise noise"[..])] {
        match damage {
            None => std::fs::remove_file(&index).unwrap(),
            Some(bytes) => std::fs::write(&index, bytes).unwrap(),
        }
        let store = scene.open();
        let usage = store.usage();
        assert_eq!((usage.blobs, usage.final_bytes), (1, 300));
        let blob = store.blob(&digest).unwrap().unwrap();
        assert!(!blob.stamped(), "nobody knows who wrote it");
        store.mark_verified(&blob);
        drop((blob, store));
        let store = scene.open();
        assert!(store.blob(&digest).unwrap().unwrap().stamped());
    }
}

#[test]
fn c01_blobs_that_the_index_does_not_know_or_that_are_gone_are_found_out_before_it_is_ready() {
    let scene = Scene::new();
    let store = scene.open();
    let (kept, gone, planted) = (content(1, 10), content(2, 20), content(3, 30));
    put(&store, &kept);
    put(&store, &gone);
    drop(store);
    std::fs::remove_file(scene.path_of(&Digest::of(&gone))).unwrap();
    let path = scene.path_of(&Digest::of(&planted));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &planted).unwrap();
    let store = scene.open();
    let usage = store.usage();
    assert_eq!((usage.blobs, usage.final_bytes), (2, 40));
    let blob = store.blob(&Digest::of(&planted)).unwrap().unwrap();
    assert!(!blob.stamped());
}

#[test]
fn d14_debris_of_earlier_runs_is_removed_and_other_files_are_left() {
    let scene = Scene::new();
    drop(scene.open());
    let fills = scene.dir.path().join("fills");
    let hex = Digest::of(b"x").hex();
    std::fs::write(fills.join(format!("{hex}.00000000000000ff-7.part")), "old").unwrap();
    let foreign = ["notes.txt", "x.00000000000000ff-7.part"].map(|name| fills.join(name));
    for path in &foreign {
        std::fs::write(path, "theirs").unwrap();
    }
    std::fs::create_dir(scene.dir.path().join("lost+found")).unwrap();
    let store = scene.open();
    let live = partial(&store, &content(1, 10));
    eventually("old temporaries are gone, the live one is not", || {
        scene.fills() == 3
    });
    assert!(foreign.iter().all(|path| path.exists()));
    eventually("they are counted", || {
        scene.metrics.foreign_files.get() == 2
    });
    store.commit(live.verify().unwrap()).unwrap();
}

#[test]
fn d20_a_second_owner_is_refused_while_the_first_lives() {
    let scene = Scene::new();
    let store = scene.open();
    let second = Store::open(scene.options.clone(), CacheMetrics::default());
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    drop(store);
    scene.open();
}

#[test]
fn a_download_in_progress_keeps_the_lock_until_it_is_given_up() {
    let scene = Scene::new();
    let store = scene.open();
    let partial = partial(&store, &content(1, 10));
    drop(store);
    Store::open(scene.options.clone(), CacheMetrics::default()).unwrap_err();
    drop(partial);
    assert_eq!(scene.fills(), 0);
    scene.open();
}

#[test]
fn a_stamp_survives_an_end_that_comes_before_the_index_is_whole() {
    let scene = Scene::new();
    // Shards enough that the first walk takes longer than this.
    let store = scene.open();
    for n in 0..40 {
        put(&store, &content(n, 10));
    }
    drop(store);
    std::fs::remove_file(scene.dir.path().join("index")).unwrap();
    let open = || Store::open(scene.options.clone(), scene.metrics.clone()).unwrap();
    let store = open();
    let content = content(99, 10);
    put(&store, &content);
    eventually("loaded", || {
        store.flush().is_ok() && scene.dir.path().join("index").exists()
    });
    drop(store);
    let store = scene.open();
    assert!(
        store
            .blob(&Digest::of(&content))
            .unwrap()
            .unwrap()
            .stamped()
    );
    assert_eq!(store.usage().blobs, 41);
}

#[test]
fn d11_what_changed_while_nothing_could_be_written_is_written_afterwards() {
    let scene = Scene::new();
    let store = scene.open();
    put(&store, &content(1, 10));
    store.flush().unwrap();
    // In the way of the new snapshot, as a disk that refuses would be.
    let obstacle = scene.dir.path().join("index.new");
    std::fs::create_dir_all(obstacle.join("full")).unwrap();
    std::fs::remove_file(scene.dir.path().join("index.journal")).unwrap();
    put(&store, &content(2, 10));
    drop(store);
    std::fs::remove_dir_all(obstacle).unwrap();
    let store = scene.open();
    eventually("both are known", || store.usage().blobs == 2);
    assert!(found(&store, &content(2, 10)));
}

/// The one download that broke off, as the store takes it up.
fn taken_up(store: &Store, content: &[u8]) -> Partial {
    let (partial, note) = store.resume(&Digest::of(content)).unwrap();
    assert_eq!(&note[..], b"note");
    partial
}

#[test]
fn c01_what_is_in_a_download_with_holes_is_known_after_a_restart() {
    const PIECE: usize = 1 << 20;
    let scene = Scene::new();
    let content = content(5, 12 * PIECE);
    let piece = |number: usize| &content[number * PIECE..(number + 1) * PIECE];
    let offset = |number: usize| (number * PIECE) as u64;

    let store = scene.open();
    let digest = Digest::of(&content);
    let mut partial = store.begin(digest, content.len() as u64, b"note").unwrap();
    partial.append(piece(0)).unwrap();
    for ahead in [8, 9, 4, 5, 10, 11] {
        partial.write(offset(ahead), piece(ahead)).unwrap();
    }
    assert_eq!(partial.written(), offset(1));
    drop((partial, store));

    let store = scene.open();
    let partial = taken_up(&store, &content);
    let gaps = [offset(1)..offset(4), offset(6)..offset(8)];
    assert_eq!(partial.present().gaps(0..content.len() as u64), gaps);
    drop((partial, store));

    let store = scene.open();
    let mut partial = taken_up(&store, &content);
    let mut room = vec![0; PIECE / 2];
    for missing in [6, 1, 2, 3, 7] {
        partial.write(offset(missing), piece(missing)).unwrap();
        while partial.is_behind() {
            partial.catch_up(&mut room).unwrap();
        }
    }
    assert_eq!(partial.written(), content.len() as u64);
    let blob = store.commit(partial.verify().unwrap()).unwrap();
    assert_eq!(read(&blob), content);
}

#[test]
fn c01_what_was_not_noted_of_a_download_with_holes_is_not_believed_to_be_there() {
    let scene = Scene::new();
    let content = content(6, 8 << 20);
    let store = scene.open();
    let mut partial = store
        .begin(Digest::of(&content), content.len() as u64, b"note")
        .unwrap();
    partial.append(&content[..1 << 20]).unwrap();
    partial.write(7 << 20, &content[7 << 20..]).unwrap();
    drop((partial, store));
    let store = scene.open();
    let partial = taken_up(&store, &content);
    let gaps = partial.present().gaps(0..content.len() as u64);
    let gap = (1 << 20)..(8 << 20);
    assert!(gaps.iter().eq([&gap]), "its length alone says otherwise");
}

#[test]
fn a_download_gone_on_with_right_after_a_restart_is_no_debris() {
    let scene = Scene::new();
    let store = scene.open();
    let all = content(7, 2 << 20);
    let len = all.len() as u64;
    let mut partial = store.begin(Digest::of(&all), len, b"note").unwrap();
    partial.append(&all[..1 << 20]).unwrap();
    drop((partial, store));
    // Much to look at before what earlier runs left is.
    for n in 0..3000 {
        let path = format!("repositories/prod/{n}");
        std::fs::create_dir_all(scene.dir.path().join(path)).unwrap();
    }
    let store = Store::open(scene.options.clone(), scene.metrics.clone()).unwrap();
    let mut partial = taken_up(&store, &all);
    assert!(store.wait_ready(Duration::from_secs(30)));
    while partial.is_behind() {
        partial.catch_up(&mut vec![0; 256 << 10]).unwrap();
    }
    partial.append(&all[1 << 20..]).unwrap();
    store.commit(partial.verify().unwrap()).unwrap();
    assert_eq!(scene.fills(), 0);
}

#[test]
fn d01_bytes_that_cannot_be_noted_are_not_taken_for_hashed() {
    let scene = Scene::new();
    let store = scene.open();
    let all = content(7, 8 << 20);
    let len = all.len() as u64;
    let mut partial = store.begin(Digest::of(&all), len, b"note").unwrap();
    partial.append(&all[..1 << 20]).unwrap();
    partial.write(4 << 20, &all[4 << 20..5 << 20]).unwrap();
    drop(partial);
    let mut partial = taken_up(&store, &all);
    while partial.is_behind() {
        partial.catch_up(&mut vec![0; 256 << 10]).unwrap();
    }
    let fills = scene.dir.path().join("fills");
    for entry in fills.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "note")
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    let next = &all[1 << 20..3 << 20];
    let error = partial.append(next).unwrap_err();
    assert!(matches!(error, AppendError::Disk(_)), "{error}");
    // Whoever goes on without the disk has that piece still to come.
    let (mut hash, written) = partial.abandon();
    assert_eq!(written, 1 << 20);
    hash.update(&all[1 << 20..]);
    assert_eq!(hash.finish(), Digest::of(&all));
}

#[test]
fn a_blob_that_came_another_way_is_not_gone_on_with() {
    let scene = Scene::new();
    let store = scene.open();
    let all = content(7, 2 << 20);
    let len = all.len() as u64;
    let mut partial = store.begin(Digest::of(&all), len, b"note").unwrap();
    partial.append(&all[..1 << 20]).unwrap();
    drop(partial);
    assert_eq!(store.interrupted().len(), 1);
    put(&store, &all);
    assert_eq!(store.interrupted(), []);
    assert_eq!((scene.fills(), store.usage().temporary_bytes), (0, 0));
}
