//! What belongs to an image that is to be exported: its manifests and blobs, and what refers to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::export::{ExportImage, ExportOptions, Incomplete, Plan};
use crate::cache::{Image, ImageContent, ImageManifest, Store, StoredManifest};
use crate::oci::layout::{LayoutImage, LayoutIndex, annotation};
use crate::oci::{Digest, ImageName, Platform, Reference, RepoKey, Tag, media_type};

/// Looks for everything that belongs to images.
pub(super) struct Search<'a> {
    store: &'a Store,
    options: &'a ExportOptions,
    manifests: BTreeMap<Digest, StoredManifest>,
    blobs: BTreeMap<Digest, u64>,
    /// What stands in the index of the layout, by repository, name and digest: each once, and in an
    /// order that does not depend on the order in which it was asked for.
    tops: BTreeMap<(String, Option<String>, Digest), LayoutImage>,
    /// What a repository has that refers to something else.
    referring: HashMap<RepoKey, Referring>,
    missing: Vec<String>,
}

/// What of a repository refers to other manifests of it.
#[derive(Default)]
struct Referring {
    by_subject: HashMap<Digest, Vec<Digest>>,
    /// Tags that begin with `sha256-`, as signatures have them where registries know no referrers.
    tags: Vec<(Tag, Digest)>,
}

impl<'a> Search<'a> {
    pub(super) fn new(store: &'a Store, options: &'a ExportOptions) -> Self {
        Self {
            store,
            options,
            manifests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            tops: BTreeMap::new(),
            referring: HashMap::new(),
            missing: Vec::new(),
        }
    }

    /// The plan, if nothing is missing.
    pub(super) fn end(self) -> Result<Plan, Incomplete> {
        if !self.missing.is_empty() {
            return Err(Incomplete(self.missing));
        }
        Ok(Plan {
            layout: LayoutIndex::new(self.tops.into_values().collect()),
            manifests: self.manifests,
            blobs: self.blobs,
        })
    }

    /// Takes an image into the plan, with what refers to it.
    pub(super) fn image(&mut self, image: &ExportImage) {
        let digest = match &image.name.reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => {
                let record = self.store.records().tag(&image.repo, tag);
                record.map(|record| record.digest)
            }
        };
        let found = digest.and_then(|digest| self.store.image(&image.repo, &digest));
        let Some(found) = found else {
            let name = &image.name;
            self.missing.push(format!("{name} is not in the cache"));
            return;
        };
        let taken = self.take(image, &found, &self.options.platforms.clone());
        if self.options.referrers {
            self.referrers(image, taken);
        }
    }

    /// Takes what refers to `subjects`, and what refers to that.
    fn referrers(&mut self, image: &ExportImage, mut subjects: Vec<Digest>) {
        let mut seen = HashSet::new();
        while let Some(subject) = subjects.pop() {
            if !seen.insert(subject) {
                continue;
            }
            let referring = self.referring(&image.repo);
            let by_subject = referring.by_subject.get(&subject).into_iter().flatten();
            let by_subject = by_subject.map(|digest| (Reference::Digest(*digest), *digest));
            let prefix = format!("sha256-{}", subject.hex());
            let by_tag = referring.tags.iter().filter(|(tag, _)| {
                let rest = tag.as_str().strip_prefix(&prefix);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            let by_tag = by_tag.map(|(tag, digest)| (Reference::Tag(tag.clone()), *digest));
            let referrers: Vec<_> = by_subject.chain(by_tag).collect();
            for (reference, digest) in referrers {
                let Some(found) = self.store.image(&image.repo, &digest) else {
                    continue;
                };
                let referrer = ExportImage {
                    repo: image.repo.clone(),
                    name: ImageName {
                        reference,
                        ..image.name.clone()
                    },
                };
                // Whatever it says of platforms: a signature is of the whole.
                subjects.extend(self.take(&referrer, &found, &[]));
            }
        }
    }

    fn referring(&mut self, repo: &RepoKey) -> &Referring {
        let records = self.store.records();
        self.referring.entry(repo.clone()).or_insert_with(|| {
            let mut referring = Referring::default();
            for manifest in records.manifests(repo) {
                if let Some(subject) = manifest.subject {
                    let known = referring.by_subject.entry(subject).or_default();
                    known.push(manifest.digest);
                }
            }
            for (tag, record) in records.tags(repo) {
                if tag.as_str().starts_with("sha256-") {
                    referring.tags.push((tag, record.digest));
                }
            }
            referring
        })
    }

    /// Takes what `found` leads to on `platforms`, all of it if none are named, and answers which
    /// manifests those are. What is not there is noted.
    fn take(&mut self, image: &ExportImage, found: &Image, platforms: &[Platform]) -> Vec<Digest> {
        let name = image.name.to_string();
        let mut walk = Walk {
            image: found,
            platforms,
            stored: BTreeSet::new(),
            blobs: BTreeMap::new(),
            complete: BTreeSet::new(),
            partial: BTreeSet::new(),
            left_out: BTreeSet::new(),
            trouble: Vec::new(),
        };
        walk.manifest(&found.manifests[0]);
        if let Some(why) = walk.why(&name) {
            self.missing.push(why);
            return Vec::new();
        }
        for digest in &walk.stored {
            // Held a moment ago; one that is gone is told like any other.
            let Some(manifest) = self.store.records().manifest(&image.repo, digest) else {
                self.missing
                    .push(format!("{name}: {digest} is not in the cache any more"));
                return Vec::new();
            };
            self.manifests.insert(*digest, manifest);
        }
        self.blobs.extend(&walk.blobs);
        let top = self.top(image, found, &walk);
        let tag = match &image.name.reference {
            Reference::Tag(tag) => Some(tag.to_string()),
            Reference::Digest(_) => None,
        };
        let key = (image.name.repository.to_string(), tag, found.digest());
        // One that was asked for by its digest has a name, and keeps it if it is a referrer as well.
        self.tops.entry(key).or_insert(top);
        walk.stored.into_iter().collect()
    }

    /// How a manifest stands in the index of the layout.
    fn top(&self, image: &ExportImage, found: &Image, walk: &Walk<'_>) -> LayoutImage {
        let name = image.name.to_string();
        let content = found.manifests[0].content.as_ref();
        let repository = image.name.repository.to_string();
        let mut annotations = BTreeMap::from([(annotation::REPOSITORY.to_owned(), repository)]);
        let mut annotate = |key: &str, value: String| annotations.insert(key.to_owned(), value);
        if let Reference::Tag(tag) = &image.name.reference {
            annotate(annotation::TAG, tag.to_string());
        }
        let is_referrer = content.is_some_and(|content| content.subject.is_some());
        if matches!(image.name.reference, Reference::Tag(_)) || !is_referrer {
            annotate(annotation::REF_NAME, name.clone());
            if image.name.domain.is_some() {
                annotate(annotation::CONTAINERD_NAME, name);
            }
        }
        if !walk.left_out.is_empty() {
            let platforms: Vec<_> = walk.complete.iter().map(ToString::to_string).collect();
            annotate(annotation::PLATFORMS, platforms.join(","));
        }
        LayoutImage {
            media_type: content.map_or_else(String::new, |content| content.media_type.to_string()),
            digest: found.digest(),
            size: found.manifests[0].size,
            annotations,
        }
    }
}

/// One image, looked through for the platforms asked for.
struct Walk<'a> {
    image: &'a Image,
    platforms: &'a [Platform],
    stored: BTreeSet<Digest>,
    blobs: BTreeMap<Digest, u64>,
    /// Platforms that are complete.
    complete: BTreeSet<Platform>,
    /// Platforms of which something is missing.
    partial: BTreeSet<Platform>,
    /// Platforms that were not asked for.
    left_out: BTreeSet<String>,
    /// What is not as it should be.
    trouble: Vec<String>,
}

impl<'a> Walk<'a> {
    fn manifest(&mut self, manifest: &'a ImageManifest) {
        let before = self.trouble.len();
        match &manifest.content {
            None => {
                let digest = manifest.digest;
                self.trouble.push(format!("manifest {digest}"));
            }
            Some(content) => self.content(manifest.digest, content),
        }
        if let Some(platform) = &manifest.platform {
            match self.trouble.len() == before {
                true => self.complete.insert(platform.clone()),
                false => self.partial.insert(platform.clone()),
            };
        }
    }

    fn content(&mut self, digest: Digest, content: &'a ImageContent) {
        if !self.stored.insert(digest) {
            return;
        }
        let plain = content.media_type.split(';').next().unwrap_or_default();
        if !media_type::MANIFESTS.contains(&plain.trim()) {
            let media_type = &content.media_type;
            self.trouble
                .push(format!("what manifest {digest} of type {media_type} names"));
        }
        for blob in &content.blobs {
            match blob.is_stored {
                true => {
                    self.blobs.insert(blob.digest, blob.size);
                }
                false => self.trouble.push(format!("blob {}", blob.digest)),
            }
        }
        for child in &content.children {
            match self.image.manifest(child) {
                Some(child) if self.is_wanted(child) => self.manifest(child),
                Some(child) => {
                    let platform = child.platform.as_ref();
                    let named = platform.map_or("no platform".to_owned(), ToString::to_string);
                    self.left_out.insert(named);
                }
                None => self
                    .trouble
                    .push("more manifests than are looked at".to_owned()),
            }
        }
    }

    fn is_wanted(&self, child: &ImageManifest) -> bool {
        let is = |platform: &Platform| self.platforms.iter().any(|wanted| platform.is(wanted));
        self.platforms.is_empty() || child.platform.as_ref().is_some_and(is)
    }

    /// Why the image called `name` cannot be exported, if it cannot.
    fn why(&self, name: &str) -> Option<String> {
        if self.trouble.is_empty() {
            let nothing = self.complete.is_empty() && !self.left_out.is_empty();
            let has = Listed(&self.left_out);
            return nothing
                .then(|| format!("{name} has none of the platforms asked for; it has {has}"));
        }
        let mut why = format!("{name} is not complete in the cache");
        if !self.partial.is_empty() {
            why += &format!(" for {}", Listed(&self.partial));
        }
        let missing: BTreeSet<_> = self.trouble.iter().collect();
        why += &format!(": there is no {}", Listed(&missing));
        if !self.complete.is_empty() {
            let complete = Listed(&self.complete);
            why += &format!("; it is complete for {complete} (--platform exports only those)");
        }
        Some(why)
    }
}

/// Things with commas between them.
struct Listed<'a, T>(&'a BTreeSet<T>);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, item) in self.0.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{item}")?;
        }
        Ok(())
    }
}
