//! What runs by itself, for nobody in particular, behind what clients ask for.
//!
//! A job is an endless future that its owner runs and drops. It knows the gate to content and what the
//! proxy tells of pulls, and nothing of clients.
//!
//! | file | is |
//! | --- | --- |
//! | `resume.rs` | going on with downloads that broke off |
//! | `prefetch.rs` | the other layers of an image, once a client asks for one |
//! | `scrub.rs` | hashing everything stored again, and fetching again what was damaged |

mod prefetch;
mod resume;
mod scrub;

pub use prefetch::{PrefetchMetrics, prefetch, pulls};
pub use resume::resume;
pub use scrub::{ScrubMetrics, ScrubOptions, scrub};
