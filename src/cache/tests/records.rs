//! Repositories know what they hold, after a restart and whatever happened to their logs.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::cache::{Held, HeldBy};
use crate::oci::{RepoKey, Tag};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn repo(name: &str) -> RepoKey {
    RepoKey {
        upstream: "prod".into(),
        repository: name.parse().unwrap(),
    }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A manifest with a config and a layer.
fn manifest(config: &Digest, layer: &Digest) -> Bytes {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{IMAGE}",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":7}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer}","size":9}}]}}"#
    )
    .into()
}

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn log_of(scene: &Scene, name: &str) -> PathBuf {
    scene
        .dir
        .path()
        .join("repositories/prod")
        .join(name)
        .join("_log")
}

#[test]
fn what_a_repository_holds_survives_a_restart() {
    let scene = Scene::new();
    let app = repo("team/app");
    let bytes = manifest(&digest(1), &digest(2));
    let store = scene.open();
    let records = store.records();
    let named = records.put_manifest(&app, IMAGE, bytes.clone(), at(100));
    assert_eq!(named, Digest::of(&bytes));
    records.put_held(&app, digest(3), Some(33), at(200));
    records.put_tag(&app, &tag("v1"), named, at(300));

    let check = |store: &Store| {
        let records = store.records();
        let stored = records.manifest(&app, &named).unwrap();
        assert_eq!((&*stored.media_type, &stored.bytes), (IMAGE, &bytes));
        assert_eq!(stored.digest, named);
        let held = Held {
            size: Some(9),
            is_stated: true,
            by: HeldBy::Manifest,
            checked_at: at(100),
        };
        assert_eq!(records.holds(&app, &digest(2)), Some(held));
        let held = Held {
            size: Some(33),
            is_stated: false,
            by: HeldBy::Upstream,
            checked_at: at(200),
        };
        assert_eq!(records.holds(&app, &digest(3)), Some(held));
        let found = records.tag(&app, &tag("v1")).unwrap();
        assert_eq!((found.digest, found.checked_at), (named, at(300)));
        // Another repository holds none of it, whatever its name.
        for other in [repo("team/ap"), repo("team"), repo("team/app/sub")] {
            assert_eq!(records.manifest(&other, &named), None);
            assert_eq!(records.holds(&other, &digest(2)), None);
            assert_eq!(records.holds(&other, &digest(3)), None);
            assert_eq!(records.tag(&other, &tag("v1")), None);
        }
    };
    check(&store);
    store.flush().unwrap();
    check(&store);
    drop(store);
    check(&scene.open());
}

#[test]
fn appends_are_on_disk_soon_without_anybody_asking() {
    let scene = Scene::new();
    let store = scene.open();
    store
        .records()
        .put_held(&repo("app"), digest(1), None, at(1));
    eventually("the log is there", || log_of(&scene, "app").exists());
    let first = log_of(&scene, "app").metadata().unwrap().len();
    store
        .records()
        .put_held(&repo("app"), digest(2), None, at(1));
    eventually("the log has grown", || {
        log_of(&scene, "app").metadata().unwrap().len() > first
    });
    store.flush().unwrap();
    let on_disk = disk_bytes(scene.dir.path(), &|name| {
        name == "_log" || name.starts_with("index")
    });
    assert_eq!(store.usage().record_bytes, on_disk);
}

#[test]
fn no_upstream_no_record() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let records = store.records();
    let named = records.put_manifest(&app, IMAGE, manifest(&digest(1), &digest(2)), at(1));
    let other = records.put_manifest(&app, IMAGE, manifest(&digest(1), &digest(3)), at(1));
    records.put_held(&app, digest(4), None, at(1));
    records.put_tag(&app, &tag("v1"), named, at(1));
    store.flush().unwrap();

    records.forget_manifest(&app, &named);
    records.forget_blob(&app, &digest(4));
    records.forget_blob(&app, &digest(3));
    records.forget_tag(&app, &tag("v1"));
    let check = |store: &Store| {
        let records = store.records();
        assert_eq!(records.manifest(&app, &named), None);
        assert!(records.manifest(&app, &other).is_some());
        assert!(
            records.holds(&app, &digest(1)).is_some(),
            "another manifest names it"
        );
        for n in 2..5 {
            assert_eq!(records.holds(&app, &digest(n)), None, "{n}");
        }
        assert_eq!(records.tag(&app, &tag("v1")), None);
    };
    check(&store);
    drop(store);
    check(&scene.open());
    check(&scene.open());
}

#[test]
fn a_repository_called_like_a_log_is_a_repository() {
    let scene = Scene::new();
    let store = scene.open();
    for name in ["a", "a/log", "a/log/log"] {
        store
            .records()
            .put_held(&repo(name), Digest::of(name.as_bytes()), None, at(1));
    }
    drop(store);
    let store = scene.open();
    for name in ["a", "a/log", "a/log/log"] {
        let held = store
            .records()
            .holds(&repo(name), &Digest::of(name.as_bytes()));
        assert!(held.is_some(), "{name}");
    }
}

#[test]
fn a_tag_confirmed_all_day_does_not_grow_the_log() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let records = store.records();
    let named = records.put_manifest(&app, IMAGE, manifest(&digest(1), &digest(2)), at(1));
    for minute in 0..5000 {
        for second in (0..60).step_by(5) {
            records.put_tag(&app, &tag("latest"), named, at(minute * 60 + second));
        }
        if minute % 500 == 0 {
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
    records.put_tag(&app, &tag("latest"), named, at(5000 * 60));
    store.flush().unwrap();
    let len = log_of(&scene, "app").metadata().unwrap().len();
    assert!(len < 128 << 10, "{len}");
    records.put_tag(&app, &tag("latest"), named, at(5000 * 60 + 7));
    drop(store);
    let store = scene.open();
    let found = store.records().tag(&app, &tag("latest")).unwrap();
    assert_eq!(
        found.checked_at,
        at(5000 * 60 + 7),
        "an orderly end keeps the exact time"
    );
    assert!(
        store.records().manifest(&app, &named).is_some(),
        "through the compaction"
    );
}

#[test]
fn what_is_asked_for_without_waiting_is_answered_once_it_is_in_memory() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let named = store
        .records()
        .put_manifest(&app, IMAGE, manifest(&digest(1), &digest(2)), at(1));
    drop(store);
    let store = scene.open();
    let records = store.records();
    assert_eq!(records.manifest_now(&app, &named), None);
    // Whether it was read by itself so far or not, it is not denied.
    assert_ne!(records.holds_now(&app, &digest(2)), Some(None));
    assert!(records.manifest(&app, &named).is_some());
    assert!(records.manifest_now(&app, &named).unwrap().is_some());
    assert!(records.holds_now(&app, &digest(2)).unwrap().is_some());
    assert_eq!(records.tag_now(&app, &tag("v1")), Some(None));
}

/// Flips a bit where these bytes begin in a repository's log.
fn damage(scene: &Scene, name: &str, bytes: &[u8]) {
    let path = log_of(scene, name);
    let mut log = std::fs::read(&path).unwrap();
    let position = log.windows(bytes.len()).position(|window| window == bytes);
    log[position.unwrap()] ^= 1;
    std::fs::write(&path, log).unwrap();
}

#[test]
fn d09_a_manifest_damaged_on_disk_is_not_served() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let bytes = manifest(&digest(1), &digest(2));
    let named = store
        .records()
        .put_manifest(&app, IMAGE, bytes.clone(), at(1));
    drop(store);
    // Loaded whole, and damaged before its bytes are read.
    let store = scene.open();
    assert!(store.records().holds(&app, &digest(1)).is_some());
    damage(&scene, "app", &bytes);
    assert_eq!(store.records().manifest(&app, &named), None);
    assert_eq!(store.records().holds(&app, &digest(1)), None);
}

/// Waits until what is on disk of a repository tells of `digest`, as it does after a kill.
fn is_written(scene: &Scene, name: &str, digest: &Digest) {
    eventually("the record is on disk", || {
        let log = std::fs::read(log_of(scene, name)).unwrap();
        log.windows(32).any(|window| window == digest.as_bytes())
    });
}

#[test]
fn d09_what_is_recorded_after_damage_was_met_is_written_like_anything_else() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let bytes = manifest(&digest(1), &digest(2));
    let named = store
        .records()
        .put_manifest(&app, IMAGE, bytes.clone(), at(1));
    drop(store);
    let store = scene.open();
    assert!(store.records().holds(&app, &digest(1)).is_some());
    damage(&scene, "app", &bytes);
    // Forgotten by who asks, not by who changes anything.
    assert_eq!(store.records().manifest(&app, &named), None);
    store.records().put_held(&app, digest(5), None, at(1));
    is_written(&scene, "app", &digest(5));
}

#[test]
fn d09_a_log_that_lost_its_name_is_written_anew_by_itself() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    store.records().put_held(&app, digest(1), None, at(1));
    drop(store);
    let path = log_of(&scene, "app");
    let mut log = std::fs::read(&path).unwrap();
    let name = log.windows(8).position(|at| at == b"prod/app").unwrap();
    log[name] ^= 1;
    std::fs::write(&path, log).unwrap();
    let store = scene.open();
    store.records().put_held(&app, digest(5), None, at(1));
    is_written(&scene, "app", &digest(5));
    is_written(&scene, "app", &digest(1));
}

#[test]
fn records_wait_for_a_disk_that_refuses_them() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    // A file where the repository's directory belongs.
    let path = scene.dir.path().join("repositories/prod");
    std::fs::write(&path, "").unwrap();
    // It cannot even be looked for there, so nothing is known and nothing kept.
    store.records().put_held(&app, digest(1), None, at(1));
    std::fs::remove_file(&path).unwrap();
    store.records().put_held(&app, digest(2), None, at(1));
    std::fs::write(&path, "").unwrap();
    store.flush().unwrap_err();
    assert!(!store.health().is_whole());
    assert!(store.records().holds(&app, &digest(2)).is_some());
    std::fs::remove_file(&path).unwrap();
    store.flush().unwrap();
    drop(store);
    let store = scene.open();
    assert!(store.records().holds(&app, &digest(2)).is_some());
}

#[test]
fn a_log_moved_to_another_repository_proves_nothing() {
    let scene = Scene::new();
    let store = scene.open();
    store
        .records()
        .put_held(&repo("private"), digest(1), None, at(1));
    drop(store);
    std::fs::rename(
        log_of(&scene, "private").parent().unwrap(),
        log_of(&scene, "public").parent().unwrap(),
    )
    .unwrap();
    let store = scene.open();
    assert_eq!(store.records().holds(&repo("public"), &digest(1)), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn c05_a_damaged_log_loses_records_and_invents_none(
        cut: prop::sample::Index,
        flip: Option<(prop::sample::Index, u8)>,
    ) {
        let scene = Scene::new();
        let app = repo("app");
        let store = scene.open();
        for n in 0..10 {
            store.records().put_held(&app, digest(n), Some(n.into()), at(n.into()));
            if n == 4 {
                store.flush().unwrap();
            }
        }
        drop(store);
        let path = log_of(&scene, "app");
        let mut log = std::fs::read(&path).unwrap();
        log.truncate(cut.index(log.len() + 1));
        if let Some((at, with)) = flip && !log.is_empty() {
            let at = at.index(log.len());
            log[at] ^= with;
        }
        std::fs::write(&path, log).unwrap();
        let store = scene.open();
        let records = store.records();
        for n in 0..20 {
            if let Some(held) = records.holds(&app, &digest(n)) {
                prop_assert_eq!((held.size, held.checked_at), (Some(n.into()), at(n.into())));
                prop_assert!(n < 10);
            }
        }
        // What is written now is read back, past whatever was cut.
        records.put_held(&app, digest(30), None, at(1));
        drop(store);
        prop_assert!(scene.open().records().holds(&app, &digest(30)).is_some());
    }
}

#[test]
fn lists_of_referrers_survive_a_restart_and_a_rewritten_log() {
    let scene = Scene::new();
    let app = repo("team/app");
    let (subject, other) = (digest(1), digest(2));
    let store = scene.open();
    let records = store.records();
    let entries = |n: usize| Bytes::from(format!("[{}]", "7,".repeat(n) + "7"));
    // Each takes the place of the one before, so that the log grows until it is written anew.
    for n in 0..400 {
        records.put_referrer_list(&app, subject, entries(n), at(100));
        records.put_referrer_list(&app, other, "[]".into(), at(100));
        store.flush().unwrap();
    }
    let written: usize = (0..400).map(|n| entries(n).len()).sum();
    let len = std::fs::metadata(log_of(&scene, "team/app")).unwrap().len();
    assert!(len < written as u64, "{len} bytes, never written anew");
    drop(store);
    let store = scene.open();
    let records = store.records();
    let known = records.referrer_list(&app, &subject).unwrap();
    assert_eq!((known.entries, known.checked_at), (entries(399), at(100)));
    let known = records.referrer_list(&app, &other).unwrap();
    assert_eq!(known.entries, "[]");
    assert_eq!(records.referrer_list(&repo("team/other"), &subject), None);
    // What refers to a manifest that is gone is gone, too.
    let named = records.put_manifest(&app, IMAGE, manifest(&digest(3), &digest(4)), at(100));
    records.put_referrer_list(&app, named, "[]".into(), at(100));
    records.forget_manifest(&app, &named);
    assert_eq!(records.referrer_list(&app, &named), None);
    drop(store);
    assert_eq!(scene.open().records().referrer_list(&app, &named), None);
}

#[test]
fn l14_asking_about_whatever_there_is_not_does_not_fill_the_records() {
    let scene = Scene::new();
    let app = repo("app");
    let store = scene.open();
    let records = store.records();
    let stored = records.put_manifest(&app, IMAGE, manifest(&digest(1), &digest(2)), at(1));
    records.put_referrer_list(&app, stored, "[7]".into(), at(1));
    let unknown = |n: u64| Digest::of(&n.to_le_bytes());
    let all = 10_000;
    for n in 0..all {
        records.put_referrer_list(&app, unknown(n), "[]".into(), at(2 + n));
    }
    store.flush().unwrap();
    records.put_held(&app, digest(5), None, at(1));
    drop(store);
    let store = scene.open();
    let records = store.records();
    let known = (0..all).filter(|n| records.referrer_list(&app, &unknown(*n)).is_some());
    assert!(known.count() <= 1024);
    assert!(records.referrer_list(&app, &unknown(all - 1)).is_some());
    assert!(records.referrer_list(&app, &stored).is_some());
    let len = log_of(&scene, "app").metadata().unwrap().len();
    assert!(len < 256 << 10, "{len}");
}
