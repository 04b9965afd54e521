//! Rows to quantized blocks and back, byte for byte as ggml does it.

mod types;

pub use types::TensorType;
