//! `verify`: hashes everything again, as fast as the disk gives it.

use std::time::{Duration, Instant};

use super::message::{Event, Verified};
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::{Damage, Scrubbed, Store};

/// How often it is told how far it has come.
const TELL_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(parts: &Parts, output: &Output) -> Result<(), OperationError> {
    let store = parts.store.clone();
    let verify = output.blocking(move |output| verify(&store, output));
    verify.await
}

fn verify(store: &Store, output: &Output) -> Result<(), OperationError> {
    store.wait_ready(INDEX_WAIT);
    let total_bytes = store.usage().final_bytes;
    let mut sum = Verified::default();
    let mut has_failed = false;
    let mut told = Instant::now();
    output.tell_blocking(Event::Verifying {
        bytes: 0,
        total_bytes,
    })?;
    for step in store.scrub(None) {
        match step {
            Scrubbed::Read(bytes) => sum.bytes += bytes,
            Scrubbed::Sound { read, .. } => {
                sum.bytes += read;
                sum.sound += 1;
            }
            // It was removed meanwhile, as is everybody's right.
            Scrubbed::Gone(_) => {}
            Scrubbed::Damaged { digest, damage } => {
                sum.damaged += 1;
                let damage = words(damage);
                output.tell_blocking(Event::Damaged { digest, damage })?;
            }
            Scrubbed::Foreign(path) => output.tell_blocking(Event::Foreign { path })?,
            Scrubbed::Unreadable { path, error } => {
                sum.unreadable += 1;
                let reason = error;
                output.tell_blocking(Event::Unreadable { path, reason })?;
            }
            Scrubbed::Log {
                repository,
                damaged,
            } => {
                sum.repositories += 1;
                if damaged > 0 {
                    sum.damaged_records += 1;
                    output.tell_blocking(Event::DamagedRecords {
                        upstream: repository.upstream.to_string(),
                        repository: repository.repository,
                        stretches: damaged as u64,
                    })?;
                }
            }
            Scrubbed::Failing => has_failed = true,
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let bytes = sum.bytes;
            output.tell_blocking(Event::Verifying { bytes, total_bytes })?;
        }
        if output.is_gone() {
            return Err(super::Gone.into());
        }
    }
    output.tell_blocking(Event::Verified(sum))?;
    if has_failed {
        let why =
            "the disk fails: one file after the other cannot be read, and the rest was not tried";
        return Err(OperationError::Failed(why.to_owned()));
    }
    match damage(&sum) {
        None => Ok(()),
        Some(damage) => Err(OperationError::Failed(format!(
            "damage was found: {damage}"
        ))),
    }
}

/// What is wrong with a blob, in words.
fn words(damage: Damage) -> String {
    match damage {
        Damage::Digest(found) => format!("it hashes to {found}"),
        Damage::Length(found) => format!("it is {found} bytes long"),
        Damage::Unreadable => "it cannot be read".to_owned(),
        Damage::NotAFile => "it is not a file".to_owned(),
    }
}

/// The damage there was, in words; `None` if there was none.
fn damage(sum: &Verified) -> Option<String> {
    let counted = [
        (sum.damaged, "damaged blobs"),
        (sum.damaged_records, "repositories with damaged records"),
        (sum.unreadable, "unreadable files"),
    ];
    let parts: Vec<String> = counted
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
