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
//! # Where this reader and llama.cpp's differ
//! This one refuses a few files that llama.cpp loads:
//! - keys and tensor names that are not UTF-8 or hold control characters, and keys above 65535 bytes: the format rules
//!   them out, nothing could ask for them, and they would reach terminals;
//! - bools other than 0 and 1: the format rules them out, and every such file is damaged;
//! - tensors with no axes or an empty one: nothing could compute with them;
//! - an alignment above 1 MiB: no system needs one, and padding to it has been used to make sizes wrap;
//! - parts of a split file whose own numbers contradict the first part's.
//!
//! It accepts some that llama.cpp refuses: tensor data in any order and with gaps, and a split file given by any of its
//! parts. Strings that are not UTF-8 are accepted by both ([`Value::Bytes`]): vocabularies of raw bytes exist.

mod coverage;
mod cursor;
mod error;
mod header;
mod layout;
mod metadata;
pub mod mmap;
mod new_file;
mod partial;
pub mod position;
mod reader;
mod split;
mod value;
mod writer;

pub use error::Error;
pub use header::{DEFAULT_ALIGNMENT, TensorInfo};
pub use layout::{Layout, TensorSpec, parts_of_size};
pub use metadata::Metadata;
pub use new_file::NewFile;
pub use partial::{PartialFile, discard_partial_files};
pub use reader::Gguf;
pub use split::SplitName;
pub use value::{Array, Value};
pub use writer::{Overwrite, Writer, hidden_name};
