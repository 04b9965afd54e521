//! What can be wrong with a request to convert weights.

use crate::TensorType;

/// Why weights were not converted. Nothing was written in any of these cases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Blocks of this type can't be made here.
    #[error("quantize: found type {found}, expected one of {}", list(crate::can_quantize))]
    CannotQuantize {
        /// The type asked for.
        found: TensorType,
    },
    /// Blocks of this type can't be read here.
    #[error("dequantize: found type {found}, expected one of {}", list(crate::can_dequantize))]
    CannotDequantize {
        /// The type asked for.
        found: TensorType,
    },
    /// Weights of this type can't be multiplied here.
    #[error("multiply: found type {found}, expected one of {}", list(crate::matmul::supports))]
    CannotMultiply {
        /// The type asked for.
        found: TensorType,
    },
    /// Keys or values of this type can't be read by attention.
    #[error("attend: found type {found}, expected one of {}", list(crate::attention::supports))]
    CannotAttend {
        /// The type asked for.
        found: TensorType,
    },
    /// Weights or activations do not fill whole rows.
    #[error("{ty}: bytes of {what}: found {found}, expected a multiple of {expected}")]
    RowBytes {
        /// The weights' type.
        ty: TensorType,
        /// Which of the two.
        what: &'static str,
        /// Bytes given.
        found: usize,
        /// Bytes of a row.
        expected: usize,
    },
    /// The results do not fit where they are to go.
    #[error(
        "results: found {found} floats with rows {stride} apart, expected room for {rows} rows of {cols}"
    )]
    Output {
        /// Rows of activations.
        rows: usize,
        /// Rows of weights.
        cols: usize,
        /// Floats given.
        found: usize,
        /// Floats from one row to the next.
        stride: usize,
    },
    /// The weights do not fill whole blocks.
    #[error("{ty}: number of weights: found {found}, expected a multiple of {}", ty.block_len())]
    PartialBlock {
        /// The quantized side's type.
        ty: TensorType,
        /// Weights given.
        found: usize,
    },
    /// The weights do not fill whole rows, of which there is one importance for each column.
    #[error("{ty}: number of weights: found {found}, expected a multiple of the row length {row_len}")]
    PartialRow {
        /// The quantized side's type.
        ty: TensorType,
        /// Weights given.
        found: usize,
        /// Columns, as many as there are importances.
        row_len: usize,
    },
    /// The buffer of blocks does not have the size that the weights take.
    #[error("{ty}: bytes for {weights} weights: found {found}, expected {expected}")]
    Size {
        /// The quantized side's type.
        ty: TensorType,
        /// Weights on the other side.
        weights: usize,
        /// Bytes in the buffer.
        found: usize,
        /// Bytes that this many weights take.
        expected: usize,
    },
}

/// The names of the types for which `supported` holds.
fn list(supported: fn(TensorType) -> bool) -> String {
    let names: Vec<_> = TensorType::ALL.iter().filter(|&&ty| supported(ty)).map(|ty| ty.name()).collect();
    names.join(", ")
}
