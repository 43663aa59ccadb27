//! The vocabulary of registries: what the OCI distribution and image specifications name, parsed once.
//!
//! Pure: no I/O, no async, no sockets. Every type here has one way in, its parser, and prints back to
//! what it was parsed from. It knows nothing of ECR, of caches or of this program's configuration.

mod as_text;
mod digest;
mod error;
pub mod header;
mod image;
pub mod layout;
mod manifest;
mod pattern;
mod platform;
mod range;
mod reference;
mod referrers;
mod route;
mod routed;
mod routing;

pub use digest::{Digest, DigestText, Hasher, ParseDigestError};
pub use error::{ErrorCode, error_body};
pub use image::{ImageName, ImagePattern, ParseImageError, Which, host_of};
pub use manifest::{Descriptor, Manifest, ManifestKind, ParseManifestError, media_type};
pub use pattern::{ParsePatternError, Pattern};
pub use platform::{ParsePlatformError, Platform};
pub use range::{
    ByteRange, ContentRange, ParseContentRangeError, RangeSet, Unsatisfiable, parse_upload_range,
};
pub use reference::{
    ParseNameError, ParseReferenceError, ParseTagError, Reference, RepoKey, RepositoryName, Tag,
};
pub use referrers::Referrers;
pub use route::{ParseRequestError, Request, escaped, query_value};
pub use routed::Routed;
pub use routing::{Because, Home, Led, NameRoute, Namespace, Renaming, Routes, Taken, Written};
