//! The GGUF container: a validating, memory-mapped reader and a streaming writer.
//!
//! A GGUF file (versions 2 and 3, little-endian) is, one after the other:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `GGUF` |
//! | 4 | version, u32 |
//! | 8 | number of tensors, u64 |
//! | 8 | number of metadata entries, u64 |
//! | | metadata entries: key (string), value type (u32), value |
//! | | tensor entries: name (string), number of axes (u32), extents (u64 each), type (u32), offset (u64) |
//! | | zeros up to a multiple of the alignment |
//! | | tensor data; offsets count from here and are multiples of the alignment |
//!
//! A string is its length (u64) and that many bytes of UTF-8. An array is its element type (u32), its length (u64) and
//! the elements. The alignment is 32 unless the entry `general.alignment` (u32) says otherwise. The format's document
//! is `docs/gguf.md` of ggml.
//!
//! This crate knows no model: which keys and tensors there should be is the business of others.
//!
//! # Stricter than llama.cpp
//! The reader refuses a few files that llama.cpp loads, because they can only be mistakes or attacks: strings that are
//! not UTF-8 (the format demands it), bool values other than 0 and 1, tensors with no axes or an empty one, control
//! characters in names, tensors whose data overlap, an alignment above 1 MiB, and parts of a split file that disagree.

mod cursor;
mod error;
mod header;
mod layout;
mod metadata;
pub mod mmap;
mod reader;
mod value;
mod writer;

pub use error::Error;
pub use header::{DEFAULT_ALIGNMENT, TensorInfo};
pub use layout::{Layout, TensorSpec};
pub use metadata::Metadata;
pub use reader::Gguf;
pub use value::{Array, Value};
pub use writer::{Overwrite, Writer, discard_partial_files};
