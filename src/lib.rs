//! The caching front door for AWS ECR: one TLS reverse proxy under the owner's domain.
//!
//! The map, from the bottom up; an arrow of imports may skip layers and never turns back:
//!
//! | module | is |
//! | --- | --- |
//! | [`oci`] | the vocabulary of registries, pure: digests, names, requests, ranges, manifests, error codes |
//! | [`telemetry`], [`clock`], [`buffers`] | metric handles, wall time and pooled memory, passed in as values |
//! | [`files`] | reading what the operator wrote |
//! | [`access`] | who is asking, and what they may do |
//! | [`upstream`] | talking to a registry: tokens, redirects, deadlines, retries |
//! | [`cache`] | verified blobs and records on disk within a quota |
//! | [`fill`] | the one gate to content: proof that a repository holds a digest, one upstream body, its readers |
//! | [`proxy`] | what a request means; the story of a pull reads top to bottom in [`proxy`] |
//! | [`jobs`] | what runs by itself, and what tends the cache |
//! | [`tls`], [`server`], [`admin`] | certificates, sockets, and the operator's doors |
//! | [`config`], [`cli`] | what the operator wrote, checked once; one file per command |
//! | `fuzzing` | in tests only: every parser of somebody else's bytes, as something that takes any |
//! | [`simulator`] | a faithful simulated ECR for the demo and the tests; imports nothing of the above |

#![deny(unsafe_code, missing_docs)]
#![warn(rust_2018_idioms, unreachable_pub)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is for those who work on the program: `cargo doc --document-private-items`"
)]

pub mod access;
pub mod admin;
pub mod buffers;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod files;
pub mod fill;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod jobs;
pub mod oci;
pub mod proxy;
pub mod server;
pub mod simulator;
pub mod telemetry;
pub mod tls;
pub mod upstream;
