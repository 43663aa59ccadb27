//! What is whole on disk: opened, checked against what is known of it, and read.

use std::sync::Arc;

use bytes::Bytes;

use super::error::FillError;
use super::flow::Flow;
use super::reader::{Following, Reader, Source};
use super::verifying::Belief;
use super::{Content, Fills, Parts, Pass, Shared, Want};
use crate::cache::{Blob, Damage, Store};
use crate::oci::ByteRange;
use crate::telemetry::Outcome;

impl Fills {
    /// What is whole on disk.
    pub(super) async fn open_stored(
        &self,
        pass: &Pass,
        want: &Want,
    ) -> Result<Option<Content>, FillError> {
        let Some(blob) = self.shared.stored(pass).await? else {
            return Ok(None);
        };
        let size = blob.len();
        let source = match self.shared.believe(&blob).await? {
            Belief::Believed if want.mapped => mapped(&blob, &self.shared.store),
            Belief::Believed => Believed::File(blob, self.shared.store.clone()),
            Belief::Verifying(flow) => Believed::Flow(flow),
            Belief::Damaged => return Ok(None),
        };
        let read = |range| {
            let source = match &source {
                Believed::Mapped(bytes) => Source::Mapped(bytes.clone()),
                Believed::File(blob, store) => Source::File {
                    blob: blob.clone(),
                    store: store.clone(),
                },
                Believed::Flow(flow) => Source::Flow(Following::new(flow.attend())),
            };
            (
                range,
                Reader::new(range, source, self.shared.buffers.clone()),
            )
        };
        let ranges = want
            .ranges
            .as_ref()
            .filter(|ranges| !ranges.repeat_content(size));
        let parts = match ranges {
            None => Parts::Whole((size > 0).then(|| {
                read(ByteRange {
                    start: 0,
                    end: size,
                })
                .1
            })),
            Some(ranges) => {
                let ranges = ranges
                    .resolve(size)
                    .map_err(|_| FillError::Unsatisfiable { size })?;
                match ranges[..] {
                    [range] => {
                        let (range, reader) = read(range);
                        Parts::One(range, reader)
                    }
                    _ => Parts::Many(ranges.into_iter().map(read).collect()),
                }
            }
        };
        Ok(Some(Content {
            size,
            outcome: Outcome::Hit,
            parts,
        }))
    }
}

impl Shared {
    /// The file under the blob's name, if it is one and has the size that a manifest tells.
    pub(super) async fn stored(&self, pass: &Pass) -> Result<Option<Blob>, FillError> {
        let blob = match self.store.blob_now(&pass.digest) {
            Some(blob) => Some(blob),
            None => {
                let (store, digest) = (self.store.clone(), pass.digest);
                let opened = tokio::task::spawn_blocking(move || store.blob(&digest)).await;
                opened.map_err(|_| FillError::Lost)?.unwrap_or_else(|error| {
                    // A disk that cannot tell is a miss: the upstream has it as well.
                    tracing::warn!(oci.digest = %pass.digest, %error, "cannot look into the cache");
                    None
                })
            }
        };
        match (blob, pass.stated_size()) {
            (Some(blob), Some(size)) if blob.len() != size => {
                let store = self.store.clone();
                let damage = Damage::Length(size);
                let _ = tokio::task::spawn_blocking(move || store.quarantine(&blob, damage)).await;
                Ok(None)
            }
            (blob, _) => Ok(blob),
        }
    }
}

/// How a file on disk is read.
enum Believed {
    Mapped(Bytes),
    File(Blob, Store),
    Flow(Arc<Flow>),
}

/// Maps a blob for the socket; one that cannot be mapped is read instead.
fn mapped(blob: &Blob, store: &Store) -> Believed {
    match blob.map() {
        Ok(mapping) => Believed::Mapped(Bytes::from_owner(mapping)),
        Err(_) => Believed::File(blob.clone(), store.clone()),
    }
}
