//! The vocabulary of registries.
