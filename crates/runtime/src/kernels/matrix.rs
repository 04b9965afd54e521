//! Weights as kernels see them.

use ggml::{Sources, Tensor};
use quants::TensorType;
use quants::matmul::{self, ActivationKind};
use std::ops::Range;

/// A matrix `[n_cols, n_rows]` in the layout of files.
#[derive(Clone)]
pub(crate) struct Matrix {
    tensor: Tensor,
    /// Where it begins in the tensor, in bytes.
    offset: usize,
    ty: TensorType,
    row_bytes: usize,
    pub n_cols: usize,
    pub n_rows: usize,
}

/// Bytes of weights that a tile holds where rows allow it: enough to be worth the asking, few enough for the second
/// level of cache.
const TILE_BYTES: usize = 96 << 10;
const MAX_TILE_ROWS: usize = 128;
/// With few rows of activations weights are read once, so that tiles may be larger than caches: a matrix is cut into so
/// many of them for each thread, within limits. Reading is slow at the beginning of each, until the processor foresees it.
const FEW_TILES: usize = 8;
const MAX_FEW_TILE_BYTES: usize = 1 << 20;
/// With so many rows of activations a tile has at least so many rows, whatever they take: for each tile all of the
/// activations are read.
const MANY: usize = 16;
const MANY_TILE_ROWS: usize = 64;
/// Tiles are whole multiples of this many rows.
const TILE_STEP: usize = 16;

impl Matrix {
    /// The `index`-th matrix of `tensor: [n_cols, n_rows, n]`, in host memory.
    ///
    /// # Panics
    /// When the tensor is not [`served`].
    pub fn new(tensor: &Tensor, index: usize) -> Matrix {
        assert!(tensor.is_host_weight(), "callers ask first");
        Matrix::somewhere(tensor, index)
    }

    /// As [`new`](Self::new), for a tensor that may have no place: then its bytes come to
    /// [`multiply_bytes`](Self::multiply_bytes) from elsewhere.
    ///
    /// # Panics
    /// When there are no kernels for its type.
    pub fn somewhere(tensor: &Tensor, index: usize) -> Matrix {
        let ty = multiplied_type(tensor).expect("callers ask first");
        let (ne, nb) = (tensor.ne(), tensor.nb());
        assert!(index < ne[2], "matrix {index} of {tensor:?}");
        Matrix {
            tensor: tensor.clone(),
            offset: index * nb[2],
            ty,
            row_bytes: nb[1],
            n_cols: ne[0],
            n_rows: ne[1],
        }
    }

    /// The tensor it is a part of.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// How activations must be quantized for it.
    pub fn activations(&self) -> ActivationKind {
        matmul::activation_kind(self.ty)
    }

    /// How many rows a tile should have that is multiplied with so many rows of activations, by one of so many threads.
    pub fn tile_rows(&self, n_acts: usize, n_threads: usize) -> usize {
        let rows_of = |bytes: usize| bytes / self.row_bytes / TILE_STEP * TILE_STEP;
        if n_acts < MANY {
            let bytes = (self.n_rows * self.row_bytes / (FEW_TILES * n_threads))
                .clamp(TILE_BYTES, MAX_FEW_TILE_BYTES);
            rows_of(bytes).max(TILE_STEP)
        } else {
            rows_of(TILE_BYTES).clamp(MANY_TILE_ROWS, MAX_TILE_ROWS)
        }
    }

    /// Products of the weight rows `rows` with every row of `activations`, `rows.len()` to each, into the beginning of
    /// `out`.
    pub fn multiply(&self, sources: &Sources<'_>, rows: Range<usize>, activations: &[u8], out: &mut [f32]) {
        let bytes = &sources.weight(&self.tensor)[self.offset..];
        self.multiply_bytes(&bytes[rows.start * self.row_bytes..rows.end * self.row_bytes], activations, out);
    }

    /// As [`multiply`](Self::multiply), of the weight rows in `bytes`.
    pub fn multiply_bytes(&self, bytes: &[u8], activations: &[u8], out: &mut [f32]) {
        let n_rows = bytes.len() / self.row_bytes;
        matmul::multiply(self.ty, bytes, self.n_cols, activations, out, n_rows)
            .expect("sizes follow from the model's shapes");
    }

    /// The weight rows `rows` within `tile`, whose first row is that numbered `first`.
    pub fn rows_of_tile<'t>(&self, tile: &'t [u8], first: usize, rows: &Range<usize>) -> &'t [u8] {
        &tile[(rows.start - first) * self.row_bytes..(rows.end - first) * self.row_bytes]
    }
}

/// Whether there are kernels for a weight where it lies.
pub(crate) fn served(tensor: &Tensor) -> bool {
    multiplied_type(tensor).is_some() && tensor.is_host_weight()
}

fn multiplied_type(tensor: &Tensor) -> Option<TensorType> {
    TensorType::from_id(tensor.ty().id()).filter(|ty| matmul::supports(*ty))
}
