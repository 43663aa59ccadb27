//! Filling the cache with images: every manifest, config and layer, and what refers to them.
//!
//! An image that is here already costs a HEAD for its tag and the lists of its referrers. What goes wrong
//! with one part stops neither the others nor other images; all of it is told at the end.
//!
//! | file | is |
//! | --- | --- |
//! | `mod.rs` | an image's blobs, and how far they have come |
//! | `walk.rs` | which manifests and blobs an image is made of |
//! | `schedule.rs` | warming again and again, as the configuration says |

mod schedule;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::fill::{FillError, Fills, Found};
use crate::oci::{Digest, Platform, Reference, RepoKey};
use crate::telemetry::Outcome;
pub use schedule::{Schedule, WarmMetrics};
use walk::Walk;

/// Blobs fetched at once, for all images together: a few keep a line busy while others begin and end.
const BLOBS_AT_ONCE: usize = 3;

/// Images looked at at once.
const IMAGES_AT_ONCE: usize = 2;

/// An image, as it was asked for and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was asked for.
    pub name: String,
    /// Its repository.
    pub repo: RepoKey,
    /// Its tag or digest.
    pub reference: Reference,
}

/// What of an image is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of an index only the manifests for these; all if empty.
    pub platforms: Vec<Platform>,
    /// Whatever refers to it as well: signatures, SBOMs, attestations.
    pub referrers: bool,
}

/// What became of an image. Its fields are words of messages, as [`Reached`]'s are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    /// What the image's name means now.
    pub digest: Option<Digest>,
    /// Its manifests, those of referrers among them.
    pub manifests: u64,
    /// The manifests among them that only refer to the image.
    pub referrers: u64,
    /// Its blobs.
    pub blobs: u64,
    /// Their sizes in bytes, together.
    pub bytes: u64,
    /// The blobs that had to be fetched.
    pub fetched_blobs: u64,
    /// Their sizes in bytes, together.
    pub fetched_bytes: u64,
    /// Why something of it is not in the cache, or may be another by now.
    pub errors: Vec<String>,
    /// What is odd without keeping anybody from pulling it.
    pub notes: Vec<String>,
}

impl Warmed {
    /// Whether all of it is in the cache, as upstream has it now.
    pub fn is_complete(&self) -> bool {
        self.errors.is_empty()
    }

    fn failed(&mut self, what: &str, error: &FillError) {
        self.errors.push(format!("{what}: {error}"));
    }
}

/// How far an image has come; read while it is being warmed.
#[derive(Debug, Default)]
pub struct Progress {
    blobs: AtomicU64,
    blobs_done: AtomicU64,
    bytes: AtomicU64,
    bytes_done: AtomicU64,
}

/// What a [`Progress`] was at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Blobs that the image has, as far as is known.
    pub blobs: u64,
    /// Blobs that are whole in the cache.
    pub blobs_done: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that are in the cache.
    pub bytes_done: u64,
}

impl Progress {
    /// How far it is now.
    pub fn reached(&self) -> Reached {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Reached {
            blobs: read(&self.blobs),
            blobs_done: read(&self.blobs_done),
            bytes: read(&self.bytes),
            bytes_done: read(&self.bytes_done),
        }
    }
}

/// Warms images, a few blobs at a time. Clones share that bound.
#[derive(Clone)]
pub struct Warmer {
    fills: Fills,
    blobs: Arc<Semaphore>,
}

impl Warmer {
    /// One that fills through this gate.
    pub fn new(fills: Fills) -> Self {
        Self {
            fills,
            blobs: Arc::new(Semaphore::new(BLOBS_AT_ONCE)),
        }
    }

    /// Warms images, [`IMAGES_AT_ONCE`] at a time: what became of each with its number, as they end.
    /// `begun` gets the number of an image and its progress when its turn comes.
    ///
    /// # Cancel safety
    /// Fills that were begun go on without the caller.
    pub fn images(
        &self,
        targets: Vec<Target>,
        choice: &Choice,
        begun: impl Fn(usize, Arc<Progress>) + Send,
    ) -> impl Stream<Item = (usize, Warmed)> + Send {
        let begin = move |(number, target): (usize, Target)| {
            let progress = Arc::new(Progress::default());
            begun(number, Arc::clone(&progress));
            let (this, choice) = (self.clone(), choice.clone());
            async move { (number, this.image(&target, &choice, &progress).await) }
        };
        stream::iter(targets.into_iter().enumerate())
            .map(begin)
            .buffer_unordered(IMAGES_AT_ONCE)
    }

    /// Warms one image.
    ///
    /// # Cancel safety
    /// Fills that were begun go on without the caller.
    pub async fn image(&self, target: &Target, choice: &Choice, progress: &Progress) -> Warmed {
        let mut warmed = Warmed::default();
        let found = self
            .fills
            .fetch_manifest(&target.repo, &target.reference)
            .await;
        // All of it is of one place, what refers to it included.
        let (repo, found) = match found {
            Ok(found) => found,
            Err(error) => {
                warmed.failed("manifest", &error);
                return warmed;
            }
        };
        if let Some(stale) = found.how.staleness() {
            let age = Duration::from_secs(stale.age.as_secs());
            let age = humantime::format_duration(age);
            warmed.errors.push(format!(
                "upstream cannot answer: the cache has it as it was {age} ago"
            ));
        }
        warmed.digest = Some(found.what.digest);
        let mut walk = Walk::new(&self.fills, &repo, choice);
        walk.run(found.what, &mut warmed).await;
        let blobs = walk.into_blobs();
        warmed.blobs = blobs.len() as u64;
        // Sizes are what manifests say.
        let sizes = blobs.iter().map(|(_, size)| *size);
        warmed.bytes = sizes.fold(0, u64::saturating_add);
        progress.blobs.store(warmed.blobs, Ordering::Relaxed);
        progress.bytes.store(warmed.bytes, Ordering::Relaxed);
        let mut fetched = stream::iter(blobs)
            .map(|(digest, _)| self.blob(&repo, digest, progress))
            .buffer_unordered(BLOBS_AT_ONCE);
        while let Some((digest, result)) = fetched.next().await {
            match result {
                Ok(fetched) if fetched.how.outcome() == Outcome::Hit => {}
                Ok(fetched) => {
                    warmed.fetched_blobs += 1;
                    warmed.fetched_bytes += fetched.what;
                }
                Err(error) => warmed.failed(&format!("blob {digest}"), &error),
            }
        }
        warmed
    }

    async fn blob(
        &self,
        repo: &RepoKey,
        digest: Digest,
        progress: &Progress,
    ) -> (Digest, Result<Found<u64>, FillError>) {
        let Ok(_turn) = self.blobs.acquire().await else {
            return (digest, Err(FillError::Lost));
        };
        let before = AtomicU64::new(0);
        let advance = |now: u64, _| {
            let before = before.swap(now, Ordering::Relaxed);
            // A download that is begun anew goes back to its start.
            let count = &progress.bytes_done;
            if now >= before {
                count.fetch_add(now - before, Ordering::Relaxed);
            } else {
                count.fetch_sub(before - now, Ordering::Relaxed);
            }
        };
        let result = self.fills.fetch(repo, digest, &advance).await;
        if result.is_ok() {
            progress.blobs_done.fetch_add(1, Ordering::Relaxed);
        }
        (digest, result)
    }
}
