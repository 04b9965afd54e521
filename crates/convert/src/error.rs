//! Why a conversion fails.

use std::path::PathBuf;

/// What went wrong, with the tensor and the value that show it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The output cannot be laid out or written.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The importances can't be read.
    #[error(transparent)]
    Imatrix(#[from] imatrix::Error),
    /// Importances that do not fit the model.
    #[error("{}: {what}: found {found}, expected {expected}", file.display())]
    Importance {
        /// The file they come from.
        file: PathBuf,
        /// The tensor.
        what: String,
        /// What is there.
        found: String,
        /// What the model asks for.
        expected: String,
    },
    /// A type that makes garbage, or can't be made, without importances.
    #[error("{tensor}: found type {ty} without importances, expected an importance matrix for it")]
    NeedsImportance {
        /// The output tensor.
        tensor: String,
        /// The type.
        ty: &'static str,
    },
    /// A rule about types does not fit the model.
    #[error(transparent)]
    Rule(#[from] crate::recipe::RuleError),
    /// A weight is not a number a model can compute with.
    #[error("{}: tensor {tensor} [{row}, {col}]: found {value}, expected a finite number", file.display())]
    NonFinite {
        /// The shard.
        file: PathBuf,
        /// The tensor's name in the shard.
        tensor: String,
        /// Row of the first such element, in the order of the shard.
        row: u64,
        /// Its column.
        col: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// A weight is finite but too large for the type chosen for it.
    #[error("{}: tensor {tensor} [{row}, {col}]: found {value}, expected a value that {ty} can hold", file.display())]
    TooLarge {
        /// The shard.
        file: PathBuf,
        /// The tensor's name in the shard.
        tensor: String,
        /// Row of the first such element, in the order of the shard.
        row: u64,
        /// Its column.
        col: u64,
        /// The value.
        value: f32,
        /// The type.
        ty: &'static str,
    },
    /// The recipe wants a type that cannot be made yet.
    #[error("{tensor}: found type {ty}, which {file_type} asks for, expected one that can be quantized to")]
    CannotQuantize {
        /// The output tensor.
        tensor: String,
        /// The type.
        ty: &'static str,
        /// The recipe.
        file_type: &'static str,
    },
    /// A weight does not have the shape that the model's numbers ask for.
    #[error("{}: {tensor}: found shape {found:?}, expected {expected:?}", file.display())]
    Shape {
        /// The shard.
        file: PathBuf,
        /// The tensor's name in the shard.
        tensor: String,
        /// Rows and columns.
        found: Vec<u64>,
        /// Rows and columns the model asks for.
        expected: Vec<u64>,
    },
    /// A chunk's size does not fit its type.
    #[error("{tensor}: {source}")]
    Quants {
        /// The output tensor.
        tensor: String,
        /// What does not fit.
        source: quants::Error,
    },
    /// No outputs, or not as many paths as outputs.
    #[error("outputs: found {found}, expected {expected}")]
    Outputs {
        /// How many.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many.
        threads: usize,
        /// The system's answer.
        reason: String,
    },
}
