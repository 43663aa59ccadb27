//! What is whole on disk: opened, checked against what is known of it, and read.

use std::sync::Arc;

use bytes::Bytes;

use super::error::FillError;
use super::flow::Flow;
use super::found::Found;
use super::reader::{Following, Reader, Source};
use super::verifying::Belief;
use super::{Content, Fills, Parts, Pass, Shared, Want};
use crate::cache::{Blob, Damage, Mapping, Store};
use crate::oci::{ByteRange, Digest};
use crate::telemetry::Outcome;

impl Fills {
    /// What is whole on disk.
    pub(super) async fn open_stored(
        &self,
        pass: &Pass,
        want: &Want,
    ) -> Result<Option<Found<Content>>, FillError> {
        let Some(blob) = self.shared.stored(pass).await? else {
            return Ok(None);
        };
        let mut size = blob.len();
        let source = match self.shared.believe(&blob).await? {
            Belief::Believed if want.mapped => mapped(&blob, &self.shared.store),
            Belief::Believed => Believed::File(blob.clone(), self.shared.store.clone()),
            Belief::Verifying(flow) => {
                // The file being verified may be one that had the name before this one.
                let Some(len) = flow.len() else {
                    return Ok(None);
                };
                size = len;
                Believed::Flow(flow)
            }
            Belief::Damaged => return Ok(None),
        };
        let read = |range: ByteRange| {
            let source = match &source {
                Believed::Mapped(blob, store, mapping) => Source::Mapped {
                    bytes: Bytes::from_owner(mapping.clone()),
                    mapping: mapping.clone(),
                    blob: blob.clone(),
                    store: store.clone(),
                },
                Believed::File(blob, store) => Source::File {
                    blob: blob.clone(),
                    store: store.clone(),
                },
                Believed::Flow(flow) => Source::Flow(Following::new(flow.attend_to(range.end))),
            };
            (
                range,
                Reader::new(range, source, self.shared.buffers.clone()),
            )
        };
        let asked = want
            .ranges
            .as_ref()
            .filter(|ranges| !ranges.repeat_content(size));
        let ranges = match asked {
            Some(ranges) => ranges
                .resolve(size)
                .map_err(|_| FillError::Unsatisfiable { size })?,
            None if size == 0 => Vec::new(),
            None => vec![ByteRange {
                start: 0,
                end: size,
            }],
        };
        let mut readers: Vec<_> = ranges.into_iter().map(read).collect();
        let believed = !matches!(source, Believed::Flow(_));
        if let Some((_, first)) = readers.first_mut().filter(|_| believed)
            && first.prime().await.is_err()
        {
            // Nobody has received anything yet, so it can still be fetched again.
            self.shared.quarantine(blob, Damage::Unreadable).await;
            return Ok(None);
        }
        let parts = if asked.is_none() {
            Parts::Whole(readers.pop().map(|(_, reader)| reader))
        } else if readers.len() > 1 {
            Parts::Many(readers)
        } else {
            let (range, reader) = readers.pop().ok_or(FillError::Unsatisfiable { size })?;
            Parts::One(range, reader)
        };
        Ok(Some(Found::by(Outcome::Hit, Content { size, parts })))
    }
}

impl Shared {
    /// The file under the blob's name, if it is one.
    pub(super) async fn named(&self, digest: Digest) -> Result<Option<Blob>, FillError> {
        if let Some(blob) = self.store.blob_now(&digest) {
            return Ok(Some(blob));
        }
        let store = self.store.clone();
        let opened = tokio::task::spawn_blocking(move || store.blob(&digest)).await;
        Ok(opened
            .map_err(|_| FillError::Lost)?
            .unwrap_or_else(|error| {
                // A disk that cannot tell is a miss: the upstream has it as well.
                tracing::warn!(oci.digest = %digest, %error, "cannot look into the cache");
                None
            }))
    }

    /// The file under the blob's name, if it is one and has the size that a manifest tells.
    ///
    /// # Errors
    /// [`FillError::SizeMismatch`] where a manifest tells another size than the content has.
    pub(super) async fn stored(&self, pass: &Pass) -> Result<Option<Blob>, FillError> {
        let blob = self.named(pass.digest).await?;
        match (blob, pass.size.described) {
            // The file was hashed: it is the manifest that is wrong, and other repositories' may not be.
            (Some(blob), Some(expected)) if blob.len() != expected && blob.stamped() => {
                Err(FillError::SizeMismatch {
                    expected,
                    declared: blob.len(),
                })
            }
            (Some(blob), Some(size)) if blob.len() != size => {
                self.quarantine(blob, Damage::Length(size)).await;
                Ok(None)
            }
            (blob, _) => Ok(blob),
        }
    }

    async fn quarantine(&self, blob: Blob, damage: Damage) {
        let store = self.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.quarantine(&blob, damage)).await;
    }
}

/// How a file on disk is read.
enum Believed {
    Mapped(Blob, Store, Mapping),
    File(Blob, Store),
    Flow(Arc<Flow>),
}

/// Maps a blob for the socket; one that cannot be mapped is read instead.
fn mapped(blob: &Blob, store: &Store) -> Believed {
    match blob.map() {
        Ok(mapping) => Believed::Mapped(blob.clone(), store.clone(), mapping),
        Err(_) => Believed::File(blob.clone(), store.clone()),
    }
}
