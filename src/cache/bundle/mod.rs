//! Bundles: images carried from one store to another where no wire goes, as the archive of an image
//! layout (image-spec `image-layout.md`) that other tools read as well.
//!
//! An export is the same bytes for the same content, and every blob is hashed while it is read. An
//! import hashes every byte, gives the blobs their names by [`Store::commit`] like any download, and
//! writes an image's records only when everything that the image needs is there: who looks from
//! outside sees the whole image or nothing of it. A record so written stands for upstream's word, on
//! the word of the operator who imports.
//!
//! | file | is |
//! | --- | --- |
//! | `archive.rs` | tar: what may be in it, and how it is written |
//! | `export.rs` | the plan of a bundle, and writing it |
//! | `search.rs` | what belongs to the images asked for |
//! | `import.rs` | reading an archive in whatever order, its blobs into the store |
//! | `apply.rs` | what is whole becomes records |
//! | `contents.rs` | what an archive is found to hold, and which of it is needed |
//!
//! [`Store::commit`]: super::Store::commit

mod apply;
mod archive;
mod contents;
mod export;
mod import;
mod search;

#[cfg(any(test, fuzzing))]
pub use contents::fuzz_bundle;
pub use export::{ExportError, ExportImage, ExportOptions, Incomplete, Plan};
pub use import::{ImportError, ImportOptions, Imported, Place, Placing, Tally, import};
