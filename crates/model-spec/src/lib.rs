//! What a Llama or Mixtral is in GGUF: hyperparameters, keys, tensor names and shapes.
//!
//! One table serves both directions. The converter asks it how to name and shape what it writes; the
//! runtime asks the same table what a file must contain. Nothing here reads or writes files.
//!
//! - [`HyperParams`]: the numbers that define a model, read from and written to GGUF metadata, validated.
//! - [`TensorId`] and [`TensorRole`]: which tensor is meant, its GGUF name, its shape.
//! - [`keys`]: the metadata keys; [`ValueKind`]: what readers expect under them.
//! - [`FileType`]: `general.file_type`, and the names llama-quantize gives to its recipes.

mod error;
mod file_type;
mod hparams;
pub mod keys;
mod metadata;
mod rope;
mod rope_metadata;
mod tensor;
mod value_kind;

pub use error::Error;
pub use file_type::FileType;
pub use hparams::{Architecture, HyperParams, MAX_EXPERTS, MAX_LAYERS};
pub use rope::{Rope, RopeScaling};
pub use tensor::{TensorId, TensorKind, TensorRole};
pub use value_kind::ValueKind;
