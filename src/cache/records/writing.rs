//! The thread that writes records: what changed is gathered, written in one go, and kept until it is.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::cache::lock;
use crate::cache::repository_log::{Batch, RepositoryLog};

use super::{Inner, Repository};

/// How long changes gather before they are written: well within the second that is promised, long
/// enough that a pull's records share one sync.
const GATHER: Duration = Duration::from_millis(200);

/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) fn enqueue(&self, repository: Arc<Repository>) {
        let mut queue = lock(&self.queue);
        if !queue
            .dirty
            .iter()
            .any(|known| Arc::ptr_eq(known, &repository))
        {
            queue.dirty.push(repository);
        }
        drop(queue);
        self.queued.notify_all();
    }

    pub(super) fn write_loop(&self) {
        loop {
            let queue = self
                .queued
                .wait_while(lock(&self.queue), |queue| {
                    queue.dirty.is_empty() && !queue.stop
                })
                .unwrap_or_else(PoisonError::into_inner);
            drop(queue);
            if self.pause(GATHER) || (self.write_out().is_err() && self.pause(RETRY)) {
                return;
            }
        }
    }

    /// Waits; true if it is time to stop.
    fn pause(&self, time: Duration) -> bool {
        let waited = self
            .queued
            .wait_timeout_while(lock(&self.queue), time, |queue| !queue.stop);
        waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// Writes what is queued. What fails stays queued.
    pub(super) fn write_out(&self) -> io::Result<()> {
        let _writing = lock(&self.writing);
        // Before the queue is taken: the records of what is noted by now are in it, or written.
        let evicted = self.shared.evicted.mark();
        let dirty = std::mem::take(&mut lock(&self.queue).dirty);
        let mut result = Ok(());
        for repository in dirty {
            match self.write_one(&repository) {
                Ok(()) => {}
                Err(error) => {
                    self.shared.write_failed(&error);
                    if let Some(log) = &mut *lock(&repository.log) {
                        log.write_failed();
                    }
                    lock(&self.queue).dirty.push(repository);
                    result = Err(error);
                }
            }
        }
        if result.is_ok()
            && let Err(error) = self.shared.evicted.settle(evicted)
        {
            self.shared.write_failed(&error);
        }
        result
    }

    fn write_one(&self, repository: &Repository) -> io::Result<()> {
        let batch = lock(&repository.log)
            .as_mut()
            .and_then(RepositoryLog::take_batch);
        let Some(batch) = batch else {
            return Ok(());
        };
        let directory = self.shared.layout.make_directory(&repository.borrowed())?;
        match batch {
            Batch::Append {
                at,
                frames,
                manifests,
            } => {
                RepositoryLog::append_to(&directory, at, &frames)?;
                if let Some(log) = &mut *lock(&repository.log) {
                    log.appended(at, frames.len(), &manifests);
                }
            }
            Batch::Rewrite { salt, entries } => {
                let name = repository.key.to_string();
                let rewritten = RepositoryLog::write_new(&name, &directory, salt, entries)?;
                if let Some(log) = &mut *lock(&repository.log) {
                    log.adopt(&directory, rewritten)?;
                    self.tell(repository, log);
                }
                rustix::fs::fsync(&directory)?;
            }
        }
        self.shared.health.written();
        let size = lock(&repository.log).as_ref().map(RepositoryLog::len);
        if let Some(size) = size {
            self.resized(repository.path(), size);
        }
        Ok(())
    }

    fn resized(&self, path: String, size: u64) {
        let old = lock(&self.sizes).insert(path, size);
        self.shared.ledger.records_changed(size, old.unwrap_or(0));
    }

    /// A log of `size` bytes was found by the walk; what its writer said since is newer.
    pub(super) fn measured(&self, path: String, size: u64) {
        if let std::collections::hash_map::Entry::Vacant(entry) = lock(&self.sizes).entry(path) {
            entry.insert(size);
            self.shared.ledger.records_changed(size, 0);
        }
    }
}
