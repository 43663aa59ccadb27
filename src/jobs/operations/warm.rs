//! `warm`: fills the cache with images.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::MissedTickBehavior;

use super::message::{Event, Warm, WarmDone, WarmProgress, WarmSummary};
use super::{Gone, OperationError, Output, Parts};
use crate::jobs::warm::{Choice, Progress, Reached, Target, Warmed};
use crate::oci::ImageName;

/// Between two reports of how far images have come: what a person takes for movement.
const REPORT: Duration = Duration::from_millis(200);

pub(super) async fn run(parts: &Parts, warm: Warm, output: &Output) -> Result<(), OperationError> {
    let usage = |error: String| OperationError::Usage(error);
    let choice = Choice {
        platforms: warm.platforms.clone(),
        referrers: warm.referrers,
    };
    let names = parts.names();
    let mut targets = Vec::with_capacity(warm.images.len());
    for image in &warm.images {
        let repo = names.route(image);
        targets.push(Target {
            name: image.to_string(),
            repo: repo.map_err(|error| usage(format!("{image}: {error}")))?,
            reference: image.reference.clone(),
        });
    }

    let running = Mutex::new(Vec::<Running>::new());
    let lock = || running.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = |number, progress| {
        lock().push(Running {
            number,
            progress,
            told: None,
        });
    };
    let mut warming = pin!(parts.warmer.images(targets, &choice, begun));
    let mut summary = WarmSummary::default();
    let mut report = tokio::time::interval(REPORT);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = warming.next() => {
                let Some((number, warmed)) = done else { break };
                lock().retain(|running| running.number != number);
                let done = describe(&warm.images[number], warmed, &mut summary);
                output.tell(Event::WarmDone(done)).await?;
            }
            _ = report.tick() => {
                let moved = moved(&mut lock());
                for (number, reached) in moved {
                    tell_progress(output, &warm.images[number], reached).await?;
                }
            }
        }
    }
    let failed = summary.failed.clone();
    let count = summary.images;
    output.tell(Event::WarmSummary(summary)).await?;
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Err(OperationError::Failed(format!(
        "{} of {count} images are not in the cache as upstream has them: {}",
        failed.len(),
        names.join(", ")
    )))
}

/// An image that is being warmed.
struct Running {
    number: usize,
    progress: Arc<Progress>,
    /// What was told of it last.
    told: Option<Reached>,
}

/// The images that have come further since they were looked at last.
fn moved(running: &mut [Running]) -> Vec<(usize, Reached)> {
    let mut moved = Vec::new();
    for running in running {
        let reached = running.progress.reached();
        if reached.blobs > 0 && running.told != Some(reached) {
            running.told = Some(reached);
            moved.push((running.number, reached));
        }
    }
    moved
}

async fn tell_progress(output: &Output, image: &ImageName, reached: Reached) -> Result<(), Gone> {
    let image = image.clone();
    let progress = WarmProgress { image, reached };
    output.tell(Event::WarmProgress(progress)).await
}

fn describe(image: &ImageName, warmed: Warmed, summary: &mut WarmSummary) -> WarmDone {
    summary.images += 1;
    summary.bytes = summary.bytes.saturating_add(warmed.bytes);
    summary.fetched_bytes += warmed.fetched_bytes;
    if warmed.is_complete() {
        summary.complete += 1;
    } else {
        summary.failed.push(image.clone());
    }
    let image = image.clone();
    WarmDone { image, warmed }
}
