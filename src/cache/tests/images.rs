//! What is stored of an image is told as it is: by stored manifests alone, and by what is on disk.

use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::cache::{Image, lock};
use crate::oci::{RepoKey, Tag, media_type};

pub(super) const IMAGE: &str = media_type::OCI_MANIFEST;
pub(super) const INDEX: &str = media_type::OCI_INDEX;

pub(super) fn repo(name: &str) -> RepoKey {
    RepoKey {
        upstream: "prod".into(),
        repository: name.parse().unwrap(),
    }
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn descriptor(digest: &Digest, size: usize, more: &str) -> String {
    format!(r#"{{"mediaType":"x/y","digest":"{digest}","size":{size}{more}}}"#)
}

/// An image manifest of these blobs, the first of which is the config.
pub(super) fn image_of(blobs: &[&[u8]]) -> Bytes {
    image_about(blobs, None)
}

pub(super) fn image_about(blobs: &[&[u8]], subject: Option<Digest>) -> Bytes {
    let blobs: Vec<String> = blobs
        .iter()
        .map(|blob| descriptor(&Digest::of(blob), blob.len(), ""))
        .collect();
    let subject = subject.map_or(String::new(), |digest| {
        format!(r#","subject":{}"#, descriptor(&digest, 1, ""))
    });
    format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]{subject}}}"#,
        blobs[0],
        blobs[1..].join(",")
    )
    .into()
}

/// An index of these manifests.
pub(super) fn index_of(manifests: &[&Bytes]) -> Bytes {
    let architectures = ["amd64", "arm64", "s390x"];
    let manifests = manifests.iter().zip(architectures.iter().cycle());
    let manifests: Vec<String> = manifests
        .map(|(manifest, architecture)| {
            let platform =
                format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}"#);
            descriptor(&Digest::of(manifest), manifest.len(), &platform)
        })
        .collect();
    format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        manifests.join(",")
    )
    .into()
}

fn missing_blobs(image: &Image) -> Vec<Digest> {
    image.missing_blobs().iter().map(|b| b.digest).collect()
}

fn record(store: &Store, repo: &RepoKey, media_type: &str, manifest: &Bytes) -> Digest {
    let now = SystemTime::now();
    store
        .records()
        .put_manifest(repo, media_type, manifest.clone(), now)
}

#[test]
fn an_image_is_complete_when_all_that_it_names_is_here() {
    let scene = Scene::new();
    let store = scene.open();
    let app = repo("team/app");
    let blobs: Vec<_> = (0..5).map(|n| content(n, 100 + usize::from(n))).collect();
    // They share the layer 1.
    let amd64 = image_of(&[&blobs[0], &blobs[1], &blobs[2]]);
    let arm64 = image_of(&[&blobs[3], &blobs[1], &blobs[4]]);
    let index = index_of(&[&amd64, &arm64]);
    let root = record(&store, &app, INDEX, &index);

    let image = store.image(&app, &root).unwrap();
    assert_eq!(image.missing_manifests().count(), 2);
    assert_eq!(
        image.missing_manifests().next().unwrap().size,
        amd64.len() as u64
    );
    assert_eq!(image.blobs().len(), 0, "what is not stored names nothing");
    assert!(!image.is_complete() && !image.is_pullable());

    let one = record(&store, &app, IMAGE, &amd64);
    for blob in &blobs[..2] {
        put(&store, blob);
    }
    let image = store.image(&app, &root).unwrap();
    assert_eq!(missing_blobs(&image), [Digest::of(&blobs[2])]);
    assert!(!image.is_complete_under(&one));

    put(&store, &blobs[2]);
    let image = store.image(&app, &root).unwrap();
    assert!(image.is_pullable() && !image.is_complete());
    let children: Vec<_> = image
        .children()
        .map(|(child, whole)| {
            (
                child.platform.as_ref().unwrap().architecture.as_str(),
                whole,
            )
        })
        .collect();
    assert_eq!(children, [("amd64", true), ("arm64", false)]);

    record(&store, &app, IMAGE, &arm64);
    for blob in &blobs[3..] {
        put(&store, blob);
    }
    let image = store.image(&app, &root).unwrap();
    assert!(image.is_complete());
    assert_eq!(image.blobs().len(), 5, "a shared layer once");
    let bytes = index.len() + amd64.len() + arm64.len() + (100..105).sum::<usize>();
    assert_eq!(image.stored_bytes(), bytes as u64);

    // Another repository's manifests are none of this one's.
    let other = repo("team/other");
    record(&store, &other, INDEX, &index);
    let image = store.image(&other, &root).unwrap();
    assert_eq!(image.missing_manifests().count(), 2);
    assert_eq!(store.image(&other, &one), None);
}

#[test]
fn a_blob_of_another_length_than_the_manifest_says_does_not_complete_it() {
    let scene = Scene::new();
    let store = scene.open();
    let (app, blob) = (repo("app"), content(1, 100));
    put(&store, &blob);
    let text = String::from_utf8(image_of(&[&blob, &blob]).to_vec()).unwrap();
    let lying = text.replacen("\"size\":100", "\"size\":101", 1);
    let root = record(&store, &app, IMAGE, &lying.into());
    assert!(!store.image(&app, &root).unwrap().is_complete());
}

#[test]
fn a_blob_is_of_the_image_that_was_pulled_last() {
    let scene = Scene::new();
    let (store, app, other) = (scene.open(), repo("app"), repo("other"));
    let (one, two) = (image_of(&[b"c1", b"base"]), image_of(&[b"c2", b"base"]));
    let (one, two) = (
        record(&store, &app, IMAGE, &one),
        record(&store, &app, IMAGE, &two),
    );
    let named_by = |repo: &RepoKey, blob: &[u8]| {
        let manifest = store.manifest_naming(repo, &Digest::of(blob));
        manifest.map(|manifest| manifest.digest)
    };
    assert_eq!(named_by(&app, b"c1"), Some(one));
    assert_eq!(named_by(&app, b"c2"), Some(two));
    assert_eq!(named_by(&app, b"c3"), None);
    assert_eq!(named_by(&other, b"c1"), None);
    let later = i64::MAX / 4;
    for (last, now) in [(one, later), (two, later * 2)] {
        lock(&store.shared().index).touch_image(&app, &last, now);
        assert_eq!(named_by(&app, b"base"), Some(last));
    }
}

#[test]
fn an_index_of_very_many_manifests_is_looked_at_in_part() {
    let scene = Scene::new();
    let store = scene.open();
    let app = repo("app");
    let manifests: Vec<Bytes> = (0..5000u32).map(|n| n.to_string().into()).collect();
    let root = record(
        &store,
        &app,
        INDEX,
        &index_of(&manifests.iter().collect::<Vec<_>>()),
    );
    let image = store.image(&app, &root).unwrap();
    assert!(image.is_cut && !image.is_complete());
    assert_eq!(image.manifests.len(), 4096);
}

#[test]
fn everything_recorded_is_listed_whether_or_not_it_is_loaded_or_written() {
    let scene = Scene::new();
    let (app, odd) = (
        repo("team/app"),
        RepoKey {
            upstream: "Prod EU%2f".into(),
            repository: "team/app/log".parse().unwrap(),
        },
    );
    let blob = content(1, 10);
    let manifest = image_of(&[&blob]);
    let signature = image_about(&[&blob], Some(Digest::of(&manifest)));
    let check = |store: &Store| {
        let records = store.records();
        assert_eq!(records.repositories(), [odd.clone(), app.clone()]);
        let tags = records.tags(&app);
        assert_eq!(tags.len(), 2);
        assert_eq!(
            (&tags[0].0, tags[0].1.digest),
            (&tag("v1"), Digest::of(&manifest))
        );
        let manifests = records.manifests(&app);
        let mut expected = [Digest::of(&manifest), Digest::of(&signature)];
        expected.sort();
        assert_eq!(
            manifests.iter().map(|m| m.digest).collect::<Vec<_>>(),
            expected
        );
        let referrers = records.referrers(&app, &Digest::of(&manifest));
        assert_eq!(referrers.len(), 1);
        assert_eq!(referrers[0].bytes, signature);
    };
    let store = scene.open();
    let root = record(&store, &app, IMAGE, &manifest);
    record(&store, &app, IMAGE, &signature);
    record(&store, &odd, IMAGE, &manifest);
    for name in ["v2", "v1"] {
        store
            .records()
            .put_tag(&app, &tag(name), root, SystemTime::now());
    }
    // Asked for and not there.
    assert_eq!(store.records().tags(&repo("nothing")), []);
    check(&store);
    store.flush().unwrap();
    check(&store);
    drop(store);
    let store = scene.open();
    check(&store);
    // A repository of which all was forgotten is none.
    store.records().forget_manifest(&odd, &root);
    assert_eq!(store.records().repositories(), [app]);
}
