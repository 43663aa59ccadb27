//! Tending the cache: every operation is a typed [`Request`] that is answered by typed [`Event`]s.
//!
//! There is one implementation, [`Operations`], and two ways to it: over the admin socket of a running
//! proxy, and within the process of a command that has the store to itself. Neither way knows what the
//! operations do, and no operation knows which way it was asked.
//!
//! The invariant: a stream of items ends with exactly one [`Event::End`], whatever happens to the
//! operation; one without has been cut, and is a failure.
//!
//! | file | is |
//! | --- | --- |
//! | `message/` | requests and events |
//! | `wire` | how they are written in a byte stream |
//! | `running` | an operation under way: its input, its output, its end |
//! | `names` | which repository an image's name means |
//! | `stats`, `list`, `verify`, `prune`, `pins`, `remove`, `refresh`, `warm`, `export`, `import` | the operations |

mod export;
mod import;
mod list;
mod message;
mod names;
mod pins;
mod prune;
mod refresh;
mod remove;
mod running;
mod stats;
mod verify;
mod warm;
pub mod wire;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use message::{
    Answers, BytesByState, Event, Export, Fault, ImageState, ImportTally, ListedImage,
    ListedPlatform, Missing, PinnedBy, Pruned, Reason, Removed, Request, Stats, Time, Verified,
    Warm, WarmDone, WarmProgress, WarmSummary,
};
pub use names::{Asked, Elsewhere, Names, NoPin, is_pinnable};
pub use running::{DATA_BYTES, Gone, Input, Item, OperationError, Output, Running};

use crate::cache::Store;
use crate::fill::Fills;
use crate::jobs::scrub::Healer;
use crate::jobs::warm::Warmer;

/// Tells how clients were answered up to now.
pub type AnswersNow = Box<dyn Fn() -> Answers + Send + Sync>;

/// What operations work on.
pub struct Parts {
    /// The cache.
    pub store: Store,
    /// The gate to content, where the upstream is asked.
    pub fills: Fills,
    /// How clients were answered, where any are.
    pub answers: Option<AnswersNow>,
    /// What fills it.
    pub warmer: Warmer,
    /// What fetches again what was damaged.
    pub healer: Healer,
    /// What the configuration says of them. It may be another while one runs.
    pub setting: Arc<ArcSwap<Setting>>,
}

/// What the configuration says of operations.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What images are called.
    pub names: Names,
    /// Longest manifest that is taken in, in bytes.
    pub max_manifest_bytes: u64,
}

impl Parts {
    fn names(&self) -> Names {
        self.setting.load().names.clone()
    }
}

/// The operations of one store. Clone is cheap.
#[derive(Clone)]
pub struct Operations {
    parts: Arc<Parts>,
}

impl Operations {
    /// Puts the parts together; nothing runs until it is asked for.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
        }
    }

    /// Starts an operation. `input` is what some of them take in beside the request.
    ///
    /// # Cancel safety
    /// Dropping what is returned ends the operation at its next step; nothing is left half done.
    pub fn start(&self, request: Request, input: Input) -> Running {
        let parts = Arc::clone(&self.parts);
        Running::spawn(move |output| async move {
            let writes_records = request.writes_records();
            let outcome = run(&parts, request, input, &output).await;
            if writes_records {
                settle(&parts, &output).await?;
            }
            outcome
        })
    }
}

/// Makes durable what an operation did, before it is said to be done: records are otherwise on disk within a
/// second, and whoever was told may pull the plug before that.
async fn settle(parts: &Parts, output: &Output) -> Result<(), OperationError> {
    let store = parts.store.clone();
    let flushed = move |_: &Output| {
        store
            .flush()
            .map_err(|error| OperationError::failed(&error))
    };
    output.blocking(flushed).await
}

/// Which operation a request means.
async fn run(
    parts: &Parts,
    request: Request,
    input: Input,
    output: &Output,
) -> Result<(), OperationError> {
    match request {
        Request::Stats => stats::run(parts, output).await,
        Request::List { images } => list::run(parts, images, output).await,
        Request::Verify => verify::run(parts, output).await,
        Request::Pins => pins::list(parts, output).await,
        Request::Pin { images } => pins::change(parts, images, pins::Change::Pin, output).await,
        Request::Unpin { images } => pins::change(parts, images, pins::Change::Unpin, output).await,
        Request::Remove { images, dry_run } => remove::run(parts, images, dry_run, output).await,
        Request::Prune {
            older_than_seconds,
            to_bytes,
            unreferenced,
            dry_run,
        } => {
            let wanted = prune::Wanted {
                older_than: older_than_seconds.map(std::time::Duration::from_secs),
                to_bytes,
                unreferenced,
                dry_run,
            };
            prune::run(parts, wanted, output).await
        }
        Request::Refresh { images } => refresh::run(parts, images, output).await,
        Request::Warm(warm) => warm::run(parts, warm, output).await,
        Request::Export(request) => export::run(parts, request, output).await,
        Request::Import { rename, platforms } => {
            import::run(parts, rename, platforms, input, output).await
        }
    }
}
