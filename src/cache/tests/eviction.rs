//! The store stays under its limit, and nobody who reads is disturbed.

use super::*;
use crate::cache::BeginError;

#[test]
fn the_least_recently_used_goes_first() {
    let scene = Scene::with_limit(100_000);
    let store = scene.open();
    let contents: Vec<_> = (0..4).map(|n| content(n, 24_000)).collect();
    for content in &contents[..3] {
        put(&store, content);
    }
    assert!(found(&store, &contents[0]));
    put(&store, &contents[3]);
    put(&store, &content(9, 24_000));
    assert!(found(&store, &contents[0]), "used again");
    assert!(!found(&store, &contents[1]), "least recently used");
    assert!(store.usage().final_bytes <= 100_000);
    assert!(scene.metrics.evictions.get() >= 1);
}

#[test]
fn d04_what_is_in_use_is_not_evicted_and_what_does_not_fit_is_refused() {
    let scene = Scene::with_limit(100_000);
    let store = scene.open();
    let (one, two) = (content(1, 45_000), content(2, 45_000));
    let first = put(&store, &one);
    let second = partial(&store, &two);
    let error = store.begin(Digest::of(b"third"), 45_000, b"").unwrap_err();
    assert!(matches!(error, BeginError::NoRoom { .. }));
    let error = store.begin(Digest::of(b"third"), 100_001, b"").unwrap_err();
    assert!(matches!(error, BeginError::TooLarge { limit: 100_000, .. }));
    let usage = store.usage();
    assert_eq!((usage.final_bytes, usage.temporary_bytes), (45_000, 45_000));

    drop(second);
    assert_eq!(store.usage().temporary_bytes, 0);
    drop(first);
    put(&store, &two);
    put(&store, &content(3, 45_000));
    assert!(!found(&store, &one));
}

#[test]
fn d17_a_partial_dropped_under_a_reader_counts_until_the_reader_is_done() {
    let scene = Scene::with_limit(100_000);
    let store = scene.open();
    let partial = partial(&store, &content(1, 60_000));
    let reader = partial.reader();
    drop(partial);
    assert_eq!(scene.fills(), 0);
    assert_eq!(store.usage().unlinked_bytes, 60_000);
    store.begin(Digest::of(b"second"), 60_000, b"").unwrap_err();
    drop(reader);
    store.begin(Digest::of(b"second"), 60_000, b"").unwrap();
}

#[test]
fn d18_names_that_cannot_be_removed_do_not_stop_eviction() {
    let scene = Scene::with_limit(100_000);
    let store = scene.open();
    // A full directory in its place: the unlink fails as it would for an immutable file.
    for n in 0..4 {
        let digest = put(&store, &content(n, 10_000)).digest();
        let path = scene.path_of(&digest);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("in the way"), "").unwrap();
    }
    for n in 10..40 {
        put(&store, &content(n, 10_000));
        assert!(store.usage().final_bytes <= 100_000);
    }
    assert!(found(&store, &content(39, 10_000)));
    assert!(scene.metrics.unlink_failures.get() >= 4);
}

#[test]
fn d04_the_account_agrees_with_the_disk() {
    let scene = Scene::with_limit(100_000);
    let store = scene.open();
    for n in 0..60 {
        drop(put(&store, &content(n, 1000 + usize::from(n) * 130)));
        let usage = store.usage();
        assert!(usage.final_bytes + usage.temporary_bytes + usage.unlinked_bytes <= 100_000);
    }
    // The janitor may still be making room.
    eventually("the account is the disk's", || {
        disk_bytes(&scene.dir.path().join("blobs"), &|_| true) == store.usage().final_bytes
    });
    store.flush().unwrap();
    let records = disk_bytes(scene.dir.path(), &|name| name.starts_with("index"));
    assert_eq!(store.usage().record_bytes, records);
}

#[test]
fn a_blob_removed_behind_our_back_is_a_miss_and_leaves_the_account() {
    let scene = Scene::new();
    let store = scene.open();
    let content = content(1, 100);
    let blob = put(&store, &content);
    std::fs::remove_file(scene.path_of(&blob.digest())).unwrap();
    assert!(!found(&store, &content));
    let usage = store.usage();
    assert_eq!(
        (usage.final_bytes, usage.unlinked_bytes, usage.blobs),
        (0, 100, 0)
    );
    drop(blob);
    assert_eq!(store.usage().unlinked_bytes, 0);
}
