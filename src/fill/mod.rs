//! The one gate to content.
