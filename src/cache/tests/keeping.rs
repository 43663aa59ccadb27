//! What goes, what stays: images go whole, pins stay, and what cannot be fetched again goes last.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use proptest::prelude::*;

use super::images::{IMAGE, INDEX, image_about, image_of, index_of, repo, tag};
use super::*;
use crate::cache::{Degradation, Image, Pin, Pins, Prune, RemoveError, Removed};
use crate::oci::{Reference, RepoKey};

const LIMIT: u64 = 200_000;

/// Images of 30 kB: a config and two layers, of which others may have one too.
struct Kept {
    scene: Scene,
    store: Store,
    state: tempfile::TempDir,
}

impl Kept {
    fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    fn with_limit(limit: u64) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut scene = Scene::with_limit(limit);
        scene.options.pins = Pins::open(state.path(), []);
        let store = scene.open();
        Self {
            scene,
            store,
            state,
        }
    }

    fn record(&self, repo: &RepoKey, media_type: &str, manifest: &Bytes) -> Digest {
        let now = SystemTime::now();
        let records = self.store.records();
        records.put_manifest(repo, media_type, manifest.clone(), now)
    }

    fn tag(&self, repo: &RepoKey, name: &str, digest: Digest) {
        let records = self.store.records();
        records.put_tag(repo, &tag(name), digest, SystemTime::now());
    }

    /// Puts an image of these blobs and tags it.
    fn image(&self, repo: &RepoKey, name: &str, blobs: &[&[u8]]) -> Digest {
        let digest = self.record(repo, IMAGE, &image_of(blobs));
        self.tag(repo, name, digest);
        for blob in blobs {
            if self.store.blob(&Digest::of(blob)).unwrap().is_none() {
                put(&self.store, blob);
            }
        }
        digest
    }

    /// Puts a blob that no manifest names, and takes it away again.
    fn press(&self, size: usize) {
        let blob = content(255, size);
        if !found(&self.store, &blob) {
            put(&self.store, &blob);
        }
        std::fs::remove_file(self.scene.path_of(&Digest::of(&blob))).unwrap();
        assert!(!found(&self.store, &blob));
    }

    fn found(&self, repo: &RepoKey, name: &str) -> Option<Image> {
        let record = self.store.records().tag(repo, &tag(name))?;
        self.store.image(repo, &record.digest)
    }

    fn pin(&self, text: &str) {
        self.store.pins().pin(text.parse().unwrap()).unwrap();
    }
}

fn layers(from: u8, count: u8, size: usize) -> Vec<Vec<u8>> {
    (from..from + count).map(|n| content(n, size)).collect()
}

fn slices(blobs: &[Vec<u8>]) -> Vec<&[u8]> {
    blobs.iter().map(Vec::as_slice).collect()
}

/// Whether a blob is there, without using it.
fn is_there(store: &Store, blob: &[u8]) -> bool {
    store.stored_len(&Digest::of(blob)).is_some()
}

#[test]
fn what_an_image_came_to_need_since_it_was_chosen_to_go_stays() {
    let kept = Kept::new();
    let app = repo("team/app");
    let blob = content(1, 10_000);
    put(&kept.store, &blob);
    let shared = kept.store.shared();
    // Chosen, and while the records are written an image comes that names it.
    let digest = kept.record(&app, IMAGE, &image_of(&[&blob]));
    assert!(!shared.remove_unused(&Digest::of(&blob)));
    assert!(is_there(&kept.store, &blob));
    kept.store.records().forget_manifest(&app, &digest);
    assert!(shared.remove_unused(&Digest::of(&blob)));
    assert!(!is_there(&kept.store, &blob));
}

#[test]
fn an_image_goes_whole_with_its_tags_and_leaves_what_others_need() {
    let kept = Kept::new();
    let (app, other) = (repo("team/app"), repo("team/other"));
    let base = content(100, 30_000);
    let (old, new) = (layers(0, 2, 30_000), layers(10, 2, 30_000));
    let first = kept.image(&app, "v1", &[&base, &old[0], &old[1]]);
    kept.tag(&app, "stable", first);
    // Another repository holds the same image.
    kept.record(&other, IMAGE, &image_of(&[&base, &old[0], &old[1]]));
    kept.image(&app, "v2", &[&base, &new[0], &new[1]]);
    kept.press(90_000);

    let records = kept.store.records();
    for (repo, name) in [(&app, "v1"), (&app, "stable")] {
        assert_eq!(records.tag(repo, &tag(name)), None, "{name}");
    }
    assert_eq!(records.manifest(&app, &first), None);
    assert_eq!(records.manifest(&other, &first), None);
    assert_eq!(records.holds(&other, &Digest::of(&base)), None);
    assert!(!is_there(&kept.store, &old[0]) && !is_there(&kept.store, &old[1]));
    assert!(kept.found(&app, "v2").unwrap().is_complete());
    assert_eq!(kept.scene.metrics.evicted_manifests.get(), 2);

    // And so it is after a restart.
    let Kept { scene, store, .. } = kept;
    drop(store);
    let store = scene.open();
    assert_eq!(store.records().manifest(&app, &first), None);
    assert_eq!(store.records().tags(&app).len(), 1);
}

#[test]
fn what_only_a_gone_image_needed_goes_before_anything_older() {
    let kept = Kept::new();
    let app = repo("app");
    let (one, two) = (layers(0, 3, 20_000), layers(10, 3, 20_000));
    kept.image(&app, "one", &slices(&one));
    kept.image(&app, "two", &slices(&two));
    // Used since, all but one.
    for blob in &one[1..] {
        assert!(found(&kept.store, blob));
    }
    // The log counts too, from when it is written.
    kept.press(120_000);
    assert!(one.iter().all(|blob| !is_there(&kept.store, blob)));
    assert!(kept.found(&app, "two").unwrap().is_complete());
}

#[test]
fn a_pull_of_a_manifest_is_a_use_of_all_that_it_leads_to() {
    let kept = Kept::new();
    let app = repo("app");
    let (one, two) = (layers(0, 3, 20_000), layers(10, 3, 20_000));
    let amd64 = image_of(&slices(&one));
    let child = kept.image(&app, "one", &slices(&one));
    let index = kept.record(&app, INDEX, &index_of(&[&amd64, &image_of(&[b"absent"])]));
    kept.image(&app, "two", &slices(&two));
    // Its layers are where it goes to already: nobody asks for them.
    kept.store.manifest_used(&app, &index);
    kept.press(110_000);
    assert!(kept.store.image(&app, &child).unwrap().is_complete());
    assert_eq!(kept.found(&app, "two"), None);
    // Again within the minute, which is not written down by itself.
    kept.image(&app, "two", &slices(&two));
    kept.store.manifest_used(&app, &index);
    let Kept { scene, store, .. } = kept;
    drop(store);
    let kept = Kept {
        store: scene.open(),
        scene,
        state: tempfile::tempdir().unwrap(),
    };
    kept.press(110_000);
    assert!(kept.store.image(&app, &child).unwrap().is_complete());
    assert_eq!(kept.found(&app, "two"), None);
}

#[test]
fn an_index_goes_with_the_last_of_its_images_and_a_signature_with_what_it_is_about() {
    let kept = Kept::new();
    let app = repo("app");
    let (one, two) = (layers(0, 2, 30_000), layers(10, 2, 30_000));
    let (amd64, arm64) = (image_of(&slices(&one)), image_of(&slices(&two)));
    let attestation = image_of(&[b"config of an attestation", b"statement"]);
    let text = String::from_utf8(index_of(&[&amd64, &arm64, &attestation]).to_vec()).unwrap();
    let text = text.replace(
        r#""os":"linux","architecture":"s390x""#,
        r#""os":"unknown","architecture":"unknown""#,
    );
    let signature = image_about(&[b"{}", b"signed"], Some(Digest::of(&amd64)));
    kept.image(&app, "amd64", &slices(&one));
    kept.image(&app, "arm64", &slices(&two));
    let index = kept.record(&app, INDEX, &text.into());
    kept.tag(&app, "v1", index);
    for manifest in [&attestation, &signature] {
        kept.record(&app, IMAGE, manifest);
    }
    let listed = || {
        let records = kept.store.records();
        let manifests = records.manifests(&app);
        manifests.iter().map(|m| m.digest).collect::<HashSet<_>>()
    };
    assert_eq!(listed().len(), 5);
    kept.press(110_000);
    let left = HashSet::from([index, Digest::of(&arm64), Digest::of(&attestation)]);
    assert_eq!(listed(), left);
    kept.press(170_000);
    assert_eq!(listed(), HashSet::new());
    assert_eq!(kept.store.records().tags(&app), []);
}

#[test]
fn pinned_images_stay_whatever_comes_and_go_when_they_are_unpinned() {
    let kept = Kept::new();
    let (app, other) = (repo("team/app"), repo("team/other"));
    kept.pin("team/app:release-*");
    // Recorded after the pin was made.
    let pinned = layers(0, 3, 20_000);
    let digest = kept.image(&app, "release-1", &slices(&pinned));
    let shared = kept.image(&other, "v1", &slices(&pinned));
    kept.image(&app, "v1", &slices(&layers(10, 3, 20_000)));
    for n in 20..40 {
        put(&kept.store, &content(n, 60_000));
        assert!(kept.store.usage().final_bytes <= LIMIT);
    }
    assert!(kept.found(&app, "release-1").unwrap().is_complete());
    assert_eq!(kept.found(&app, "v1"), None);
    assert!(kept.store.image(&other, &shared).unwrap().is_complete());
    let is_pinned = |repo: &RepoKey, digest| kept.store.is_pinned(repo, &Reference::Digest(digest));
    assert!(is_pinned(&app, digest) && is_pinned(&app, Digest::of(&pinned[1])));
    assert!(!is_pinned(&other, digest) && !is_pinned(&other, Digest::of(&pinned[1])));
    // A whole store of pinned content takes nothing in.
    kept.pin("**:*");
    let one_more = layers(40, 1, 130_000);
    kept.image(&app, "big", &slices(&one_more));
    let error = kept.store.begin(Digest::of(b"new"), 60_000, b"");
    assert!(matches!(
        error,
        Err(crate::cache::BeginError::NoRoom { .. })
    ));
    assert!(kept.found(&app, "release-1").unwrap().is_complete());

    let pin: Pin = "team/app:release-*".parse().unwrap();
    assert!(kept.store.pins().unpin(&"**:*".parse().unwrap()).unwrap());
    assert!(kept.store.pins().unpin(&pin).unwrap());
    kept.press(190_000);
    assert_eq!(kept.found(&app, "release-1"), None);
    assert_eq!(kept.store.image(&other, &shared), None);
}

#[test]
fn pins_hold_after_a_restart_and_too_many_of_them_are_told() {
    let mut kept = Kept::with_limit(100_000);
    let app = repo("app");
    let blobs = layers(0, 3, 30_000);
    kept.image(&app, "v1", &slices(&blobs));
    kept.pin("app:v1");
    eventually("the pinned bytes are told", || {
        kept.scene.metrics.pinned_bytes.get() == 90_000
    });
    assert!(kept.store.health().is_whole());
    kept.scene.options.max_size = Limit::Bytes(80_000);
    let Kept {
        mut scene,
        store,
        state,
    } = kept;
    drop(store);
    scene.options.pins = Pins::open(state.path(), []);
    let store = scene.open();
    eventually("it is told that they do not fit", || {
        let health = store.health();
        health
            .degraded
            .iter()
            .any(|(what, _)| *what == Degradation::PinsTooLarge)
    });
    assert!(blobs.iter().all(|blob| is_there(&store, blob)));
    store.pins().unpin(&"app:v1".parse().unwrap()).unwrap();
    eventually("it fits", || store.health().is_whole());
    eventually("and is trimmed", || store.usage().final_bytes <= 80_000);
}

#[test]
fn o12_what_cannot_be_fetched_again_goes_last() {
    let kept = Kept::new();
    let is_cut_off = Arc::new(AtomicBool::new(false));
    let flag = is_cut_off.clone();
    kept.store
        .when_cut_off(move || flag.load(Ordering::Relaxed));
    let app = repo("app");
    let (old, mid, newcomer) = (
        layers(0, 2, 30_000),
        layers(10, 2, 30_000),
        layers(20, 2, 30_000),
    );
    kept.image(&app, "old", &slices(&old));
    kept.image(&app, "mid", &slices(&mid));
    // Half of the newcomer, and something that nothing names.
    let manifest = kept.record(&app, IMAGE, &image_of(&slices(&newcomer)));
    kept.tag(&app, "new", manifest);
    put(&kept.store, &newcomer[0]);
    let loose = content(99, 30_000);
    put(&kept.store, &loose);

    is_cut_off.store(true, Ordering::Relaxed);
    let there = || {
        let blobs = [&loose, &newcomer[0], &old[0], &mid[0]];
        blobs.map(|blob| is_there(&kept.store, blob))
    };
    assert_eq!(there(), [true; 4]);
    // For each, 10 kB are missing, and as many are made room for besides; and for what is written down of the
    // images, which is a little, and may come later.
    let mut held = vec![put(&kept.store, &content(200, 30_000))];
    assert_eq!(there(), [false, true, true, true]);
    held.push(put(&kept.store, &content(201, 30_000)));
    assert_eq!(there(), [false, false, true, true]);
    assert_eq!(kept.found(&app, "new"), None, "nor is it listed");
    held.push(put(&kept.store, &content(202, 30_000)));
    assert_eq!(
        there(),
        [false, false, false, true],
        "then the least recently used"
    );
    assert!(kept.found(&app, "mid").unwrap().is_complete());
}

#[test]
fn without_upstream_the_rest_of_an_image_goes_before_the_next_image() {
    let kept = Kept::new();
    kept.store.when_cut_off(|| true);
    let app = repo("app");
    let images = [0, 10].map(|n| [content(n, 5_000), content(n + 1, 80_000)]);
    for (image, name) in images.iter().zip(["old", "mid"]) {
        kept.image(&app, name, &slices(image));
    }
    // More than the first blob of the older image, less than the whole of it.
    put(&kept.store, &content(200, 80_000));
    assert_eq!(kept.found(&app, "old"), None);
    assert!(!images[0].iter().any(|blob| is_there(&kept.store, blob)));
    let mid = kept.found(&app, "mid");
    assert!(mid.is_some_and(|image| image.is_complete()));
}

#[test]
fn an_image_is_removed_with_what_only_it_needs() {
    let kept = Kept::new();
    let app = repo("app");
    let (one, two, base) = (
        layers(0, 2, 10_000),
        layers(10, 2, 10_000),
        content(50, 5_000),
    );
    let first = kept.image(&app, "v1", &[&base, &one[0], &one[1]]);
    kept.image(&app, "v2", &[&base, &two[0], &two[1]]);
    let by_tag = |name: &str| Reference::Tag(tag(name));
    let remove = |name: &str, is_dry| kept.store.remove(&app, &by_tag(name), is_dry);
    let whole = Removed {
        blobs: 2,
        bytes: 20_000,
        manifests: 1,
        tags: 1,
    };
    assert_eq!(remove("v1", true), Ok(whole));
    assert!(kept.found(&app, "v1").unwrap().is_complete(), "a dry run");
    assert_eq!(remove("v3", false), Err(RemoveError::NotFound));
    // One of two tags goes alone.
    kept.tag(&app, "also", first);
    let tag_alone = Removed {
        tags: 1,
        ..Removed::default()
    };
    assert_eq!(remove("also", false), Ok(tag_alone));
    assert!(kept.found(&app, "v1").unwrap().is_complete());
    kept.pin("app:v1");
    assert_eq!(remove("v1", false), Err(RemoveError::Pinned));
    let by_digest = kept.store.remove(&app, &Reference::Digest(first), false);
    assert_eq!(by_digest, Err(RemoveError::Pinned));
    kept.store.pins().unpin(&"app:v1".parse().unwrap()).unwrap();
    // Who reads a blob of it goes on.
    let reader = kept.store.blob(&Digest::of(&one[0])).unwrap().unwrap();
    let all_but_one = Removed {
        blobs: 1,
        bytes: 10_000,
        ..whole
    };
    assert_eq!(remove("v1", false), Ok(all_but_one));
    assert_eq!(read(&reader), one[0]);
    assert_eq!(kept.found(&app, "v1"), None);
    assert!(!is_there(&kept.store, &one[1]));
    assert!(kept.found(&app, "v2").unwrap().is_complete());
}

#[test]
fn a_prune_takes_what_it_describes_and_a_dry_one_only_tells() {
    let kept = Kept::new();
    let app = repo("app");
    let loose = content(99, 10_000);
    put(&kept.store, &loose);
    kept.image(&app, "v1", &slices(&layers(0, 2, 10_000)));
    kept.image(&app, "v2", &slices(&layers(10, 2, 10_000)));
    kept.pin("app:v2");
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let nothing = Prune {
        unused_since: Some(long_ago),
        ..Prune::default()
    };
    assert_eq!(kept.store.prune(&nothing, false), Removed::default());
    let unreferenced = Prune {
        unreferenced: true,
        ..Prune::default()
    };
    let told = kept.store.prune(&unreferenced, true);
    assert_eq!((told.blobs, told.bytes, told.manifests), (1, 10_000, 0));
    assert!(is_there(&kept.store, &loose));
    assert_eq!(kept.store.prune(&unreferenced, false), told);
    assert!(!is_there(&kept.store, &loose));
    let everything = kept.store.prune(&Prune::default(), true);
    let v1 = Removed {
        blobs: 2,
        bytes: 20_000,
        manifests: 1,
        tags: 1,
    };
    assert_eq!(everything, v1);
    let usage = kept.store.usage();
    let used = usage.final_bytes + usage.record_bytes;
    let a_little = Prune {
        down_to: Some(used - 1),
        ..Prune::default()
    };
    let removed = kept.store.prune(&a_little, false);
    assert_eq!((removed.blobs, removed.manifests, removed.tags), (1, 1, 1));
    assert_eq!(kept.store.prune(&Prune::default(), false).blobs, 1);
    assert!(kept.found(&app, "v2").unwrap().is_complete());
}

#[derive(Clone, Debug)]
enum Step {
    /// An image of some of the blobs, under one of the tags of one of the repositories.
    Pull(u8, u8, Vec<u8>),
    /// Its manifest alone.
    Look(u8, u8),
    /// Only its manifest and first blob come.
    Begin(u8, u8, Vec<u8>),
    Press(u8),
    Remove(u8, u8),
    Prune(u8),
    Pin(u8, u8),
    Unpin(u8, u8),
    CutOff(bool),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let blobs = || prop::collection::vec(0u8..16, 1..5);
    let (repos, tags) = (0u8..2, 0u8..4);
    let name = (repos, tags);
    prop_oneof![
        8 => (name.clone(), blobs()).prop_map(|((r, t), blobs)| Step::Pull(r, t, blobs)),
        4 => name.clone().prop_map(|(r, t)| Step::Look(r, t)),
        2 => (name.clone(), blobs()).prop_map(|((r, t), blobs)| Step::Begin(r, t, blobs)),
        4 => (1u8..8).prop_map(Step::Press),
        1 => name.clone().prop_map(|(r, t)| Step::Remove(r, t)),
        1 => (0u8..10).prop_map(Step::Prune),
        1 => name.clone().prop_map(|(r, t)| Step::Pin(r, t)),
        1 => name.prop_map(|(r, t)| Step::Unpin(r, t)),
        1 => any::<bool>().prop_map(Step::CutOff),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_image_is_left_half_and_nothing_pinned_goes(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut kept = Kept::with_limit(100_000);
        let is_cut_off = Arc::new(AtomicBool::new(false));
        let blob = |n: u8| content(n, 2_000 + usize::from(n) * 700);
        let repos = [repo("team/a"), repo("team/b")];
        let name = |t: u8| format!("v{t}");
        // Blobs that came for an image since it was recorded: what it may not lose by itself.
        let mut whole: HashMap<(RepoKey, Digest), Vec<Digest>> = HashMap::new();
        for step in steps {
            // All that is pinned and complete has to be so afterwards.
            let pinned: Vec<(RepoKey, u8)> = repos
                .iter()
                .flat_map(|repo| (0..4).map(|t| (repo.clone(), t)))
                .filter(|(repo, t)| {
                    let reference = Reference::Tag(tag(&name(*t)));
                    let is_moved = matches!(
                        &step,
                        Step::Pull(r, moved, _) | Step::Begin(r, moved, _)
                            if repos[usize::from(*r)] == *repo && moved == t
                    );
                    kept.store.is_pinned(repo, &reference)
                        && !is_moved
                        && kept.found(repo, &name(*t)).is_some_and(|image| image.is_complete())
                })
                .collect();
            match &step {
                Step::Pull(r, t, numbers) | Step::Begin(r, t, numbers) => {
                    let repo = &repos[usize::from(*r)];
                    let blobs: Vec<Vec<u8>> = numbers.iter().map(|n| blob(*n)).collect();
                    let digest = kept.record(repo, IMAGE, &image_of(&slices(&blobs)));
                    kept.tag(repo, &name(*t), digest);
                    let count = match step {
                        Step::Pull(..) => blobs.len(),
                        _ => 1,
                    };
                    for blob in &blobs[..count] {
                        let digest = Digest::of(blob);
                        if kept.store.blob(&digest).unwrap().is_none()
                            && let Ok(mut partial) = kept.store.begin(digest, blob.len() as u64, b"")
                        {
                            partial.append(blob).unwrap();
                            kept.store.commit(partial.verify().unwrap()).unwrap();
                        }
                    }
                    let image = kept.store.image(repo, &digest);
                    if let Some(image) = image.filter(Image::is_complete) {
                        let blobs = image.blobs().iter().map(|blob| blob.digest).collect();
                        whole.insert((repo.clone(), digest), blobs);
                    }
                }
                Step::Look(r, t) => {
                    let repo = &repos[usize::from(*r)];
                    if let Some(record) = kept.store.records().tag(repo, &tag(&name(*t))) {
                        kept.store.manifest_used(repo, &record.digest);
                    }
                }
                Step::Press(n) => {
                    let size = u64::from(*n) * 10_000;
                    // Dropped at once: only the room is made.
                    drop(kept.store.begin(Digest::of(&[*n]), size, b""));
                }
                Step::Remove(r, t) => {
                    let reference = Reference::Tag(tag(&name(*t)));
                    let repo = &repos[usize::from(*r)];
                    let told = kept.store.remove(repo, &reference, true);
                    prop_assert_eq!(kept.store.remove(repo, &reference, false), told);
                }
                Step::Prune(n) => {
                    let down_to = Some(u64::from(*n) * 10_000);
                    kept.store.prune(&Prune { down_to, ..Prune::default() }, false);
                }
                Step::Pin(r, t) => kept.pin(&format!("{}:{}", repos[usize::from(*r)].repository, name(*t))),
                Step::Unpin(r, t) => {
                    let pin = format!("{}:{}", repos[usize::from(*r)].repository, name(*t));
                    kept.store.pins().unpin(&pin.parse().unwrap()).unwrap();
                }
                Step::CutOff(now) => is_cut_off.store(*now, Ordering::Relaxed),
                Step::Restart => {
                    let Kept { mut scene, store, state } = kept;
                    drop(store);
                    scene.options.pins = Pins::open(state.path(), []);
                    kept = Kept { store: scene.open(), scene, state };
                    let flag = is_cut_off.clone();
                    kept.store.when_cut_off(move || flag.load(Ordering::Relaxed));
                }
            }
            // No image is left in the records that lost a blob.
            whole.retain(|(repo, digest), blobs| {
                let is_listed = kept.store.records().manifest(repo, digest).is_some();
                let is_whole = blobs.iter().all(|blob| kept.store.stored_len(blob).is_some());
                assert!(is_whole || !is_listed, "{step:?} left {repo}@{digest} half");
                is_listed
            });
            for repo in &repos {
                for (tag, record) in kept.store.records().tags(repo) {
                    let is_stored = kept.store.records().manifest(repo, &record.digest).is_some();
                    prop_assert!(is_stored, "{step:?} left {repo}:{tag} without its manifest");
                }
            }
            for (repo, t) in pinned {
                let image = kept.found(&repo, &name(t));
                prop_assert!(image.is_some_and(|image| image.is_complete()), "{step:?} {repo}:{t}");
            }
            let usage = kept.store.usage();
            let used = usage.final_bytes + usage.temporary_bytes + usage.unlinked_bytes;
            prop_assert!(used <= 100_000, "{usage:?}");
        }
    }
}
