//! `verify`: hashes everything again, as fast as the disk gives it, and has what was damaged fetched
//! again.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::message::{Event, Verified};
use super::stats::INDEX_WAIT;
use super::{OperationError, Output, Parts};
use crate::cache::{Damage, Scrubbed, Store};
use crate::jobs::scrub::{Healed, Healer};
use crate::oci::Digest;

/// How often it is told how far it has come.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// After so many blobs in a row that cannot be fetched now, the rest is left for later.
const GIVE_UP: usize = 3;

pub(super) async fn run(parts: &Parts, output: &Output) -> Result<(), OperationError> {
    let (store, healer) = (parts.store.clone(), parts.healer.clone());
    let verify = output.blocking(move |output| verify(&store, &healer, output));
    let Found {
        mut sum,
        damaged,
        has_failed,
    } = verify.await?;
    sum.healed = heal(&parts.healer, damaged, output).await?;
    output.tell(Event::Verified(sum)).await?;
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

/// Has what was taken away fetched again: how many came. The others stay wanted.
async fn heal(
    healer: &Healer,
    damaged: Vec<Digest>,
    output: &Output,
) -> Result<u64, OperationError> {
    let mut healed = 0;
    let mut failures = 0;
    for digest in damaged {
        match healer.heal(digest).await {
            Healed::Whole => {
                (healed, failures) = (healed + 1, 0);
                output.tell(Event::Healed { digest }).await?;
            }
            Healed::Unneeded => {}
            Healed::Later => failures += 1,
        }
        if failures == GIVE_UP {
            break;
        }
    }
    Ok(healed)
}

/// What a pass found.
#[derive(Default)]
struct Found {
    sum: Verified,
    damaged: Vec<Digest>,
    has_failed: bool,
}

fn verify(store: &Store, healer: &Healer, output: &Output) -> Result<Found, OperationError> {
    store.wait_ready(INDEX_WAIT);
    let total_bytes = store.usage().final_bytes;
    let mut found = Found::default();
    let sum = &mut found.sum;
    let mut told = Instant::now();
    // Taken away by the step after the one that told of it.
    let mut leaving = None;
    output.tell_blocking(Event::Verifying {
        bytes: 0,
        total_bytes,
    })?;
    for step in store.scrub(None) {
        drop(leaving.take());
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
                found.damaged.push(digest);
                let remember = healer.remember(digest, damage);
                leaving = Some(Handle::current().block_on(remember));
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
            Scrubbed::Failing => found.has_failed = true,
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
    Ok(found)
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
