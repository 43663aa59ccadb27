//! Stub.
mod registry;
pub use registry::{EcrHost, ParseRegistryError, Registry, RegistryKind};
