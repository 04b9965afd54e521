//! Rows to quantized blocks and back, byte for byte as ggml does it.
//!
//! - [`TensorType`]: which types exist and how many bytes a row of each takes.
//! - [`quantize`] and [`dequantize`]: whole blocks of weights, in memory, without allocating. The result for a block
//!   depends on that block alone, so rows may be cut into chunks and spread over threads freely.
//! - [`quantize_weighted`]: the same with an importance for each column, on whole rows.
//! - [`Level`]: which instructions the kernels use. It is detected; tests and benchmarks choose with [`quantize_at`],
//!   [`quantize_weighted_at`] and [`dequantize_at`].
//! - [`matmul`]: rows of weights times rows of activations.
//! - [`attention`]: queries over the keys and values of a cache.
//!
//! Scalar code is the reference, and there is one place where kernels are chosen (`dispatch`), once for each call.
//!
//! # What equal means
//!
//! [`quantize`] writes the bytes of `ggml_quantize_chunk` without an importance matrix, [`quantize_weighted`] those with
//! one, [`dequantize`] the bits of the
//! type's `to_float`, both as a ggml-base compiled for plain x86-64 without asserts computes them: each operation
//! rounded on its own (no fused multiply-add), sums in ggml's order, C's undefined float to integer conversions as that
//! processor resolves them. That includes signed zeros, denormals, scales beyond the range of F16, and infinities.
//! NaN among the weights neither panics nor stalls: F16 and BF16 store it as ggml does, elsewhere the block that holds
//! it gets arbitrary (though repeatable) contents. Callers that read other people's files reject it first.

mod arch;
pub mod attention;
mod dispatch;
mod error;
pub mod matmul;
mod scalar;
#[cfg(test)]
mod tests;
mod types;

pub use arch::Level;
pub use dispatch::{
    can_dequantize, can_quantize, dequantize, dequantize_at, quantize, quantize_at, quantize_weighted,
    quantize_weighted_at,
};
pub use error::Error;
pub use types::TensorType;
