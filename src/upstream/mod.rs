//! Talking to a registry.
