//! What runs behind what clients ask for: by itself, and for whoever tends the cache.
//!
//! A job is an endless future that its owner runs and drops; an operation is asked for and ends. Both know
//! the gate to content and the cache, and nothing of clients.
//!
//! | file | is |
//! | --- | --- |
//! | `resume` | going on with downloads that broke off |
//! | `operations` | tending the cache: requests, events, and what they do |

pub mod operations;
mod resume;

pub use resume::resume;
