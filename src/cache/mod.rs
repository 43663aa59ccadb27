//! Verified blobs and records on disk within a quota.
