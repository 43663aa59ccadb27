//! Which manifests and blobs an image is made of, fetched and recorded on the way.
//!
//! The walk is bounded: a manifest is looked at once, [`MAX_MANIFESTS`] of them at most, and what refers
//! to what refers to an image [`MAX_DEPTH`] times over.

use std::collections::{HashSet, VecDeque};

use super::{Choice, Warmed};
use crate::cache::StoredManifest;
use crate::fill::{FillError, Fills, referrers_tag};
use crate::oci::{Descriptor, Digest, Manifest, Platform, Reference, RepoKey};
use crate::upstream::UpstreamError;

/// Most manifests of one image. Indexes in use name some dozens, and images have a handful of referrers.
const MAX_MANIFESTS: usize = 1024;

/// The signature of an SBOM of an image is of depth 2; nobody goes further.
const MAX_DEPTH: u32 = 3;

/// What cosign appends to the tag that it makes of an image's digest.
const COSIGN: [&str; 3] = [".sig", ".att", ".sbom"];

/// A manifest whose parts are still to be looked at.
struct Todo {
    manifest: StoredManifest,
    /// How many references it is away from the image; its own manifests are 0.
    depth: u32,
}

pub(super) struct Walk<'a> {
    fills: &'a Fills,
    repo: &'a RepoKey,
    choice: &'a Choice,
    seen: HashSet<Digest>,
    todo: VecDeque<Todo>,
    blobs: Vec<(Digest, u64)>,
    known_blobs: HashSet<Digest>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(fills: &'a Fills, repo: &'a RepoKey, choice: &'a Choice) -> Self {
        Self {
            fills,
            repo,
            choice,
            seen: HashSet::new(),
            todo: VecDeque::new(),
            blobs: Vec::new(),
            known_blobs: HashSet::new(),
        }
    }

    /// Follows everything from `manifest` on, and notes in `warmed` what is wrong.
    pub(super) async fn run(&mut self, manifest: StoredManifest, warmed: &mut Warmed) {
        self.push(manifest, 0, warmed);
        let mut is_top = true;
        while let Some(Todo { manifest, depth }) = self.todo.pop_front() {
            let digest = manifest.digest;
            let parsed = match Manifest::parse(&manifest.media_type, &manifest.bytes) {
                Ok(parsed) => parsed,
                Err(error) => {
                    warmed.errors.push(format!("manifest {digest}: {error}"));
                    continue;
                }
            };
            for blob in parsed.blobs() {
                if self.known_blobs.insert(blob.digest) {
                    self.blobs.push((blob.digest, blob.size));
                }
            }
            let chosen = match is_top {
                true => self.chosen(parsed.children(), warmed),
                false => parsed.children().iter().map(|c| c.digest).collect(),
            };
            is_top = false;
            for child in chosen {
                self.follow(child, depth, warmed).await;
            }
            if self.choice.referrers && depth < MAX_DEPTH {
                self.referrers(digest, depth, warmed).await;
            }
        }
    }

    /// What the image's blobs are, and their sizes in bytes; each once.
    pub(super) fn into_blobs(self) -> Vec<(Digest, u64)> {
        self.blobs
    }

    fn push(&mut self, manifest: StoredManifest, depth: u32, warmed: &mut Warmed) {
        self.seen.insert(manifest.digest);
        warmed.manifests += 1;
        warmed.referrers += u64::from(depth > 0);
        self.todo.push_back(Todo { manifest, depth });
    }

    async fn follow(&mut self, digest: Digest, depth: u32, warmed: &mut Warmed) {
        if self.seen.contains(&digest) {
            return;
        }
        if self.seen.len() >= MAX_MANIFESTS {
            let cut = format!("it leads to more than {MAX_MANIFESTS} manifests");
            if warmed.errors.last() != Some(&cut) {
                warmed.errors.push(cut);
            }
            return;
        }
        let reference = Reference::Digest(digest);
        match self.fills.fetch_manifest(self.repo, &reference).await {
            Ok((_, found)) => self.push(found.what, depth, warmed),
            Err(error) => {
                self.seen.insert(digest);
                warmed.failed(&format!("manifest {digest}"), &error);
            }
        }
    }

    /// Which manifests of the image's own index are wanted.
    fn chosen(&self, children: &[Descriptor], warmed: &mut Warmed) -> Vec<Digest> {
        let (chosen, missing) = choose(children, self.choice);
        for platform in missing {
            let there: Vec<String> = children.iter().filter_map(runs_on).collect();
            warmed.errors.push(format!(
                "there is none for {platform}, only for {}",
                there.join(", ")
            ));
        }
        chosen
    }

    /// What refers to a manifest, by the registry's list and by the tags that tools make of its digest.
    async fn referrers(&mut self, subject: Digest, depth: u32, warmed: &mut Warmed) {
        match self.fills.fetch_referrers(self.repo, subject).await {
            Ok(list) => {
                for digest in list.digests() {
                    self.follow(digest, depth + 1, warmed).await;
                }
            }
            Err(FillError::Upstream(error)) if error.says_no() => {
                let note = format!("what refers to it could not be listed: {error}");
                if !warmed.notes.contains(&note) {
                    warmed.notes.push(note);
                }
            }
            Err(error) => warmed.failed(&format!("referrers of {subject}"), &error),
        }
        // Signatures of signatures are not made under tags.
        if depth > 0 {
            return;
        }
        let Some(tag) = referrers_tag(&subject) else {
            return;
        };
        for suffix in [""].iter().chain(&COSIGN) {
            let Ok(tag) = format!("{tag}{suffix}").parse() else {
                continue;
            };
            let reference = Reference::Tag(tag);
            match self.fills.fetch_manifest(self.repo, &reference).await {
                Ok((_, found)) if self.seen.contains(&found.what.digest) => {}
                Ok((_, found)) => self.push(found.what, depth + 1, warmed),
                Err(FillError::Upstream(UpstreamError::Absent(_))) => {}
                Err(error) => warmed.failed(&reference.to_string(), &error),
            }
        }
    }
}

fn runs_on(child: &Descriptor) -> Option<String> {
    let platform = child.platform.as_ref()?;
    (platform.os != "unknown").then(|| platform.to_string())
}

/// The children of an index that are wanted, and the platforms that are and of which there is none. One
/// that names no platform is part of every one.
fn choose<'c>(children: &[Descriptor], choice: &'c Choice) -> (Vec<Digest>, Vec<&'c Platform>) {
    let wanted = &choice.platforms;
    if wanted.is_empty() {
        return (children.iter().map(|child| child.digest).collect(), vec![]);
    }
    let is_wanted = |child: &&Descriptor| match &child.platform {
        Some(platform) => wanted.iter().any(|wanted| platform.is(wanted)),
        None => child.attests.is_none(),
    };
    let chosen: HashSet<Digest> = children
        .iter()
        .filter(is_wanted)
        .map(|child| child.digest)
        .collect();
    let attests = |child: &Descriptor| {
        choice.referrers && child.attests.is_some_and(|image| chosen.contains(&image))
    };
    let missing = wanted.iter().filter(|wanted| {
        let mut platforms = children.iter().filter_map(|child| child.platform.as_ref());
        !children.is_empty() && !platforms.any(|platform| platform.is(wanted))
    });
    let digests = children
        .iter()
        .filter(|child| chosen.contains(&child.digest) || attests(child))
        .map(|child| child.digest);
    (digests.collect(), missing.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(name: &str, platform: Option<&str>, attests: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: "x/y".to_owned(),
            digest: Digest::of(name.as_bytes()),
            size: 1,
            urls: Vec::new(),
            platform: platform.map(|text| text.parse().unwrap()),
            attests: attests.map(|image| Digest::of(image.as_bytes())),
        }
    }

    fn chosen(platforms: &[&str], referrers: bool) -> (Vec<&'static str>, Vec<String>) {
        let names = ["amd", "arm", "any", "amd-sbom", "arm-sbom"];
        let children = [
            child("amd", Some("linux/amd64"), None),
            child("arm", Some("linux/arm64/v8"), None),
            child("any", None, None),
            child("amd-sbom", Some("unknown/unknown"), Some("amd")),
            child("arm-sbom", Some("unknown/unknown"), Some("arm")),
        ];
        let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
        let choice = Choice {
            platforms,
            referrers,
        };
        let (chosen, missing) = choose(&children, &choice);
        let name = |digest: &Digest| {
            let is = |name: &&&str| Digest::of(name.as_bytes()) == *digest;
            *names.iter().find(is).unwrap()
        };
        (
            chosen.iter().map(name).collect(),
            missing.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn an_index_is_cut_to_the_platforms_that_are_wanted() {
        let all = vec!["amd", "arm", "any", "amd-sbom", "arm-sbom"];
        assert_eq!(chosen(&[], true), (all.clone(), vec![]));
        assert_eq!(chosen(&[], false), (all, vec![]), "all is all");
        let one = chosen(&["linux/arm64"], true);
        assert_eq!(one, (vec!["arm", "any", "arm-sbom"], vec![]));
        let bare = chosen(&["linux/arm64"], false);
        assert_eq!(bare, (vec!["arm", "any"], vec![]));
        let (some, missing) = chosen(&["linux/amd64", "linux/s390x"], false);
        assert_eq!(some, ["amd", "any"]);
        assert_eq!(missing, ["linux/s390x"]);
    }
}
