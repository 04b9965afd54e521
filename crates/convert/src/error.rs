//! Why a conversion fails.

use std::path::PathBuf;

use quants::TensorType;

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
    /// The metadata describes no model that can be converted.
    #[error(transparent)]
    Model(#[from] model_spec::Error),
    /// A file of weights cannot be read.
    #[error("{}: cannot read weights: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file that notes how far a run has come cannot be used.
    #[error("{}: cannot {action}: {source}", file.display())]
    Journal {
        /// The file.
        file: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Somebody else is writing the same output.
    #[error("{}: output: found another run at work on it, expected none", path.display())]
    Busy {
        /// The output.
        path: PathBuf,
    },
    /// A GGUF file has tensors that no part of a Llama or Mixtral uses.
    #[error("{}: {n} unknown tensors: found {names}, expected only those of a Llama or Mixtral", file.display())]
    UnknownTensors {
        /// The file that was opened.
        file: PathBuf,
        /// How many.
        n: usize,
        /// The first of them.
        names: String,
    },
    /// Tensors that every such model has are not there.
    #[error("{}: {n} of {expected} tensors: missing {names}", file.display())]
    MissingTensors {
        /// The file that was opened.
        file: PathBuf,
        /// How many.
        n: usize,
        /// How many such a model has.
        expected: usize,
        /// The first of them.
        names: String,
    },
    /// One expert's weights are in two tensors, one of each layout.
    #[error("{}: {tensor}: found a second {expert}, expected each expert once", file.display())]
    ExpertTwice {
        /// The file.
        file: PathBuf,
        /// The second tensor.
        tensor: String,
        /// The expert's tensor by its own name.
        expert: String,
    },
    /// Types are to be kept, and the input has none that were chosen.
    #[error("{}: found a checkpoint, expected a GGUF file, whose tensors' types can be kept", path.display())]
    NoTypesToKeep {
        /// The directory.
        path: PathBuf,
    },
    /// Experts that are to be stacked have different types, and these are to be kept.
    #[error("{}: {tensor}: found experts of types {first} and {second}, expected one type to stack them", file.display())]
    MixedExperts {
        /// The file.
        file: PathBuf,
        /// The stacked tensor that was to be.
        tensor: String,
        /// The type of one expert.
        first: &'static str,
        /// Another one's.
        second: &'static str,
    },
    /// A quantized weight would have to be quantized again, which nobody allowed.
    #[error("{}: {tensor}: found type {ty}, which is quantized already, expected F32, F16 or BF16", file.display())]
    Requantize {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: &'static str,
    },
    /// A weight is of a type that cannot be read here.
    #[error("{}: {tensor}: found type {ty}, expected one that can be read: {}", file.display(), readable_types())]
    CannotDequantize {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: &'static str,
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
    /// A file cannot be made as small as it is to be.
    #[error("target: found {found}, expected {minimum} at least for this model and these rules")]
    TargetTooSmall {
        /// What it was to be.
        found: String,
        /// The least that is possible.
        minimum: String,
        /// Whether types were tried that need importances.
        has_importance: bool,
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

fn readable_types() -> String {
    let readable = TensorType::ALL.iter().filter(|ty| quants::can_dequantize(**ty));
    readable.map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}
