//! What a blob is worth, what a pull uses, and what has to go together.

use std::collections::{HashMap, HashSet};

use crate::oci::{Digest, Reference, RepoKey};

use super::{Casualties, Child, NodeId, References, RepoId, Standing};

impl References {
    pub(in crate::cache) fn standing(&self, digest: &Digest) -> Standing {
        match self.blobs.get(digest) {
            Some(blob) if blob.pinned > 0 => Standing::Pinned,
            Some(blob) if blob.whole > 0 => Standing::Whole,
            Some(blob) if !blob.by.is_empty() => Standing::Partial,
            _ => Standing::Loose,
        }
    }

    /// The blobs whose standing may have changed since the last call.
    pub(in crate::cache) fn take_changed(&mut self) -> Vec<Digest> {
        std::mem::take(&mut self.changed)
    }

    /// Bytes of all that pins lead to, on disk or not, as manifests tell them; shared blobs once.
    pub(in crate::cache) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Whether a pin leads to a manifest or blob of this repository. The pins are settled.
    pub(in crate::cache) fn is_pinned(&self, key: &RepoKey, digest: &Digest) -> bool {
        let Some(&repo) = self.ids.get(key) else {
            return false;
        };
        let repository = &self.repositories[repo as usize];
        if let Some(id) = repository.nodes.get(digest)
            && self.nodes[*id as usize].is_pinned
        {
            return true;
        }
        self.blobs.get(digest).is_some_and(|blob| {
            let nodes = blob.by.iter().map(|id| &self.nodes[*id as usize]);
            blob.pinned > 0 && nodes.into_iter().any(|n| n.is_pinned && n.repo == repo)
        })
    }

    /// The blobs that a pull of this manifest uses: its own and those of all it leads to. True beside
    /// them if the use is to be written down: once in `interval` seconds.
    pub(in crate::cache) fn uses(
        &mut self,
        key: &RepoKey,
        digest: &Digest,
        now: i64,
        interval: i64,
    ) -> (Vec<Digest>, bool) {
        let root = self.ids.get(key).and_then(|repo| {
            let repository = &self.repositories[*repo as usize];
            repository.nodes.get(digest).copied()
        });
        let Some(root) = root else {
            return (Vec::new(), false);
        };
        let reached = self.reach([root]);
        let node = &mut self.nodes[root as usize];
        let is_noted = !(0..interval).contains(&now.saturating_sub(node.noted_use));
        if is_noted {
            node.noted_use = now;
        }
        let blobs = reached.into_iter().flat_map(|id| {
            let blobs = &self.nodes[id as usize].links.blobs;
            blobs.iter().map(|(digest, _)| *digest)
        });
        (blobs.collect(), is_noted)
    }

    /// The stored manifest of this repository that names the blob; of several the one that was pulled last,
    /// as far as that was written down.
    pub(in crate::cache) fn naming(&self, key: &RepoKey, blob: &Digest) -> Option<Digest> {
        let repo = *self.ids.get(key)?;
        let named = self.blobs.get(blob)?;
        let nodes = named.by.iter().map(|id| &self.nodes[*id as usize]);
        let here = nodes.filter(|node| node.repo == repo && node.is_stored);
        here.max_by_key(|node| node.noted_use)
            .map(|node| node.digest)
    }

    /// What has to go with a blob so that no image is left that lacks it: the manifests that name it, the
    /// indexes that are left without an image, and what is about one of these. Nothing that is pinned.
    pub(in crate::cache) fn casualties(&self, blob: &Digest) -> Vec<Casualties> {
        let named = self.blobs.get(blob);
        let by = named.map_or(Vec::new(), |named| named.by.clone());
        let mut by_repository: HashMap<RepoId, Casualties> = HashMap::new();
        for id in self.fallen(by) {
            let node = &self.nodes[id as usize];
            let key = &self.repositories[node.repo as usize].key;
            let entry = by_repository.entry(node.repo);
            entry.or_insert_with(|| Casualties::none_of(key)).add(node);
        }
        by_repository.into_values().collect()
    }

    /// What goes when somebody takes a tag or manifest away, and the blobs that nothing needs then. A tag
    /// goes alone if its manifest has others, is part of an index or is pinned. `None` if there is no such
    /// thing. The pins are settled.
    pub(in crate::cache) fn removal(
        &self,
        key: &RepoKey,
        reference: &Reference,
    ) -> Option<(Casualties, Vec<Digest>)> {
        let repository = &self.repositories[*self.ids.get(key)? as usize];
        let id = *match reference {
            Reference::Tag(tag) => repository.tags.get(tag)?,
            Reference::Digest(digest) => repository.nodes.get(digest)?,
        };
        let node = &self.nodes[id as usize];
        let mut casualties = Casualties::none_of(key);
        if let Reference::Tag(tag) = reference
            && (!node.is_stored
                || node.is_pinned
                || node.tags.len() > 1
                || !node.parents.is_empty())
        {
            casualties.tags.push(tag.clone());
            return Some((casualties, Vec::new()));
        }
        if !node.is_stored {
            return None;
        }
        let fallen = self.fallen(vec![id]);
        for id in &fallen {
            casualties.add(&self.nodes[*id as usize]);
        }
        let mut loose: Vec<Digest> = casualties.blobs.clone();
        loose.sort_unstable();
        loose.dedup();
        loose.retain(|digest| {
            let blob = self.blobs.get(digest);
            blob.is_some_and(|blob| blob.by.iter().all(|id| fallen.contains(id)))
        });
        Some((casualties, loose))
    }

    fn fallen(&self, mut left: Vec<NodeId>) -> HashSet<NodeId> {
        let mut fallen = HashSet::new();
        while let Some(id) = left.pop() {
            let node = &self.nodes[id as usize];
            if !node.is_stored || node.is_pinned || !fallen.insert(id) {
                continue;
            }
            left.extend(&node.referrers);
            left.extend(node.parents.iter().filter(|parent| {
                let mut images = self.children(**parent).filter(|(_, child)| child.is_image);
                !images.any(|(id, _)| self.nodes[id as usize].is_stored && !fallen.contains(&id))
            }));
            // Attestations go with the last index that names them.
            left.extend(self.children(id).filter_map(|(child, _)| {
                let node = &self.nodes[child as usize];
                let is_needed = node.parents.iter().any(|parent| !fallen.contains(parent));
                (!is_needed && node.tags.is_empty()).then_some(child)
            }));
        }
        fallen
    }

    pub(super) fn children(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Child)> {
        let node = &self.nodes[id as usize];
        let repository = &self.repositories[node.repo as usize];
        let children = node.links.children.iter();
        children.filter_map(|child| Some((*repository.nodes.get(&child.digest)?, child)))
    }

    /// Everything stored that these lead to, themselves included: children and referrers.
    pub(super) fn reach(&self, roots: impl IntoIterator<Item = NodeId>) -> HashSet<NodeId> {
        let mut reached = HashSet::new();
        let mut left: Vec<NodeId> = roots.into_iter().collect();
        while let Some(id) = left.pop() {
            let node = &self.nodes[id as usize];
            if node.is_stored && reached.insert(id) {
                left.extend(self.children(id).map(|(child, _)| child));
                left.extend(&node.referrers);
            }
        }
        reached
    }
}
