//! Raw bindings to ggml: its functions, structures and constants as bindgen writes them, and facts about the build.
//!
//! No opinions live here; the crate `ggml` puts safe handles over these. Enums come in as integers, because a library
//! may return a value that the headers it was bound from did not have.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs, unsafe_code)]
#![allow(clippy::all, unsafe_op_in_unsafe_fn)]

include!("bindings.rs");

/// CPU features (rustc's names, separated by commas) that the linked CPU backend was compiled for; empty where the
/// backend is chosen at run time.
pub const BUILD_CPU_FEATURES: &str = env!("GGML_CPU_FEATURES");

/// Whether ggml is a shared library that loads its CPU backend at run time.
pub const PORTABLE: bool = cfg!(feature = "portable");
