//! Matrix products and the expert feed-forward network on [`quants::matmul`], as custom nodes of the graph.
//!
//! A product is two nodes: activations are quantized once, then multiplied with as many matrices as take them in that
//! form. The feed-forward network of a layer's experts is four: activations, sorted by expert; gate and up with SiLU and
//! product; the hidden rows, quantized; down and the weighted sum. Each node cuts its matrices into tiles of rows that
//! the threads take one by one, so that every weight is read once in a pass and a thread that is held up delays nobody.
//!
//! Experts that are not in memory come from a pool, tile by tile; `streamed` is the same computation in the order in which
//! tiles arrive.
//!
//! A token's results don't depend on the others in its batch, nor on the number of threads: a dot product is a function
//! of its two rows, and a token's experts are added up in their own order.

mod activations;
mod attention;
mod experts;
mod grouping;
mod matrix;
mod projection;
mod silu;
mod streamed;

pub(crate) use activations::quantized;
pub(crate) use attention::{attends, attention};
pub(crate) use experts::{Beside, experts};
pub(crate) use matrix::{Matrix, served};
pub(crate) use projection::project;
pub(crate) use streamed::Stream;

/// Whose code multiplies with weights that the CPU computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// This program's, straight from the layout of the file; ggml's for types that it has none for.
    #[default]
    Bruce,
    /// ggml's.
    Ggml,
}

/// Bytes of weights from which on our kernels are the default.
const LARGE_MODEL: u64 = 128 << 20;

impl Kernels {
    /// The default for a model with so many bytes of weights: ggml's where the model is small, as speed matters little
    /// there and the answers are llama.cpp's token by token; ours where it is large.
    pub fn for_weights(size_bytes: u64) -> Kernels {
        if size_bytes < LARGE_MODEL { Kernels::Ggml } else { Kernels::Bruce }
    }
}
