//! `list`: the images in the cache, with how much of each is there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use super::message::{Event, ImageState, ListedImage, ListedPlatform, Missing, Time};
use super::names::is_about;
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::{Image, Store};
use crate::oci::{Digest, ImagePattern, Reference, RepoKey, Tag, Which};

pub(super) async fn run(
    parts: &Parts,
    images: Option<ImagePattern>,
    output: &Output,
) -> Result<(), OperationError> {
    let names = parts.names();
    let wanted = match &images {
        None => None,
        Some(images) => Some((names.patterns(images)?, images.which.clone())),
    };
    let store = parts.store.clone();
    let list = output.blocking(move |output| {
        // What is on disk is not known before.
        store.wait_ready(INDEX_WAIT);
        for repo in store.records().repositories() {
            let about = wanted.as_ref().map(|(patterns, _)| patterns);
            if about.is_none_or(|patterns| is_about(patterns, &repo)) {
                let which = wanted.as_ref().map(|(_, which)| which);
                let name = names.written(&repo);
                list(&store, &repo, which, |image| {
                    output.tell_blocking(Event::Image(ListedImage {
                        domain: name.domain.clone(),
                        repository: name.repository.clone(),
                        ..image
                    }))
                })?;
            }
        }
        Ok(())
    });
    list.await
}

/// Tells the images of one repository: what has a tag, in order of tags, then what has none and is no
/// part of another image and about none.
fn list<E>(
    store: &Store,
    repo: &RepoKey,
    wanted: Option<&Which>,
    mut tell: impl FnMut(ListedImage) -> Result<(), E>,
) -> Result<(), E> {
    let is_wanted = |tag: Option<&Tag>, digest: &Digest| {
        wanted.is_none_or(|wanted| wanted.matches(tag, digest))
    };
    let manifests = store.records().manifests(repo);
    let mut referrers: HashMap<Digest, u64> = HashMap::new();
    for manifest in &manifests {
        if let Some(subject) = manifest.subject {
            *referrers.entry(subject).or_default() += 1;
        }
    }
    let listed = |image: &Image, tag: Option<Tag>, checked: SystemTime| ListedImage {
        referrers: referrers.get(&image.digest()).copied().unwrap_or(0),
        checked: Time(checked),
        is_pinned: store.is_pinned(repo, &Reference::Digest(image.digest()))
            || tag
                .as_ref()
                .is_some_and(|tag| store.is_pinned(repo, &Reference::Tag(tag.clone()))),
        tag,
        ..describe(store, repo, image)
    };

    let mut tagged = HashSet::new();
    for (tag, record) in store.records().tags(repo) {
        tagged.insert(record.digest);
        // A tag whose manifest is gone names nothing that is here.
        if is_wanted(Some(&tag), &record.digest)
            && let Some(image) = store.image(repo, &record.digest)
        {
            tell(listed(&image, Some(tag), record.checked_at))?;
        }
    }

    // What an index leads to is listed with it.
    let indexes = manifests.iter().filter(|manifest| manifest.is_index());
    let parts: HashSet<Digest> = indexes
        .filter_map(|index| store.image(repo, &index.digest))
        .flat_map(|image| image.manifests.into_iter().skip(1))
        .map(|part| part.digest)
        .collect();
    for manifest in &manifests {
        let digest = &manifest.digest;
        if !tagged.contains(digest)
            && !parts.contains(digest)
            && manifest.subject.is_none()
            && is_wanted(None, digest)
            && let Some(image) = store.image(repo, digest)
        {
            tell(listed(&image, None, manifest.checked_at))?;
        }
    }
    Ok(())
}

/// What there is of an image, without what its records say beside it.
fn describe(store: &Store, repo: &RepoKey, image: &Image) -> ListedImage {
    let missing_blobs = image.missing_blobs();
    let platforms: BTreeSet<(String, bool)> = image
        .children()
        .filter_map(|(child, is_complete)| {
            let platform = child.platform.as_ref()?;
            (platform.os != "unknown").then(|| (platform.to_string(), is_complete))
        })
        .collect();
    ListedImage {
        upstream: repo.upstream.to_string(),
        domain: None,
        repository: repo.repository.clone(),
        tag: None,
        digest: image.digest(),
        state: match (image.is_complete(), image.is_pullable()) {
            (true, _) => ImageState::Complete,
            (false, true) => ImageState::SomePlatforms,
            (false, false) => ImageState::Partial,
        },
        platforms: platforms
            .into_iter()
            .map(|(platform, is_complete)| ListedPlatform {
                platform,
                is_complete,
            })
            .collect(),
        bytes: image.stored_bytes(),
        missing: Missing {
            manifests: image.missing_manifests().count() as u64,
            blobs: missing_blobs.len() as u64,
            bytes: missing_blobs
                .iter()
                .fold(0, |sum, blob| sum.saturating_add(blob.size)),
        },
        referrers: 0,
        is_pinned: false,
        checked: Time(SystemTime::UNIX_EPOCH),
        last_use: last_use(store, image).map(Time),
    }
}

/// When all of one of its manifests was last used: a blob that it shares with others may have been used
/// for them since, so of each manifest the blob that was not used for longest tells.
fn last_use(store: &Store, image: &Image) -> Option<SystemTime> {
    let contents = image.manifests.iter().filter_map(|m| m.content.as_ref());
    contents
        .filter_map(|content| {
            let stored = content.blobs.iter().filter(|blob| blob.is_stored);
            stored.filter_map(|blob| store.last_use(&blob.digest)).min()
        })
        .max()
}
