//! What a request means.
