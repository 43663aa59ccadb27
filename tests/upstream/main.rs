//! What comes from an upstream is what was asked for, or an error that says what went wrong: against the
//! simulated ECR with every fault of its script, and against Debian's docker-registry.

mod blobs;
mod docker_registry;
mod lists;
mod manifests;
mod origins;
mod secrets;
#[path = "../support/stopwatch.rs"]
mod stopwatch;
mod support;
mod tls;
mod tokens;
