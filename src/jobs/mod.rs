//! What runs by itself, for nobody in particular, behind what clients ask for.
//!
//! A job is an endless future that its owner runs and drops. It knows the gate to content and nothing
//! of clients.

mod resume;

pub use resume::resume;
