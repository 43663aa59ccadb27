//! What runs behind what clients ask for: by itself, and for whoever tends the cache.
//!
//! A job is an endless future that its owner runs and drops; an operation is asked for and ends. Both know
//! the gate to content, the cache and what the proxy tells of pulls, and nothing of clients.
//!
//! | file | is |
//! | --- | --- |
//! | `reload.rs` | files that are read again when they change, or on SIGHUP |
//! | `resume.rs` | going on with downloads that broke off |
//! | `prefetch.rs` | the other layers of an image, once a client asks for one |
//! | `scrub/` | hashing everything stored again, and fetching again what was damaged |
//! | `warm/` | filling the cache with images |
//! | `operations/` | tending the cache: requests, events, and what they do |

pub mod operations;
mod prefetch;
mod reload;
mod resume;
mod scrub;
pub mod warm;

pub use prefetch::{PrefetchMetrics, prefetch, pulls};
pub use reload::{Refused, Reload, ReloadMetrics, Reread};
pub use resume::resume;
pub use scrub::{Healed, Healer, ScrubMetrics, ScrubOptions, scrub};
