//! Rows of weights times rows of activations.
//!
//! A row of activations is quantized once ([`ActivationKind::quantize`]); [`multiply`] takes its dot products with whole
//! rows of weights, straight from the bytes of the file.
//!
//! # What a dot product is
//!
//! Weights in blocks meet activations in 8 bits. Within a block everything is integers and exact; across blocks, in
//! their order, one number in single precision is kept, with `fma` rounding once:
//!
//! ```text
//! dot = 0
//! for each block:  dot = fma(d * a, isum, dot)
//!                  dot = fma(-(dmin * a), msum, dot)           Q4_K, Q5_K and Q2_K only
//!                  dot = fma(m * a, asum, dot)                 Q4_1 and Q5_1 only
//!
//! d, dmin, m  the weight block's F16 scales, m its minimum
//! a           the activation block's scale
//! isum        sum of scale[s] * quant * activation quant, scale[s] being 1 in blocks of 32
//! msum        sum of min[s] * activation quant
//! asum        sum of the activation quants
//! ```
//!
//! Floats (F32, F16, BF16) are summed in 16 running sums, the one of column mod 16, by `fma`, and these pairwise: i with
//! i + 8, then i + 4, i + 2, i + 1.
//!
//! All kernels, the scalar one too, do exactly these operations in exactly this order. So the bits of a dot product
//! depend on its two rows only: not on the instruction set, on the other rows of the batch, or on how rows are spread
//! over threads.
//!
//! # Errors of rounding
//!
//! An activation is off by at most half a step of its block, largest magnitude / 254. With n blocks the sum adds at most
//! 2 n + 2 roundings, so that the dot product of the quantized rows is exact within (2 n + 2) * 2^-24 * the sum of the
//! magnitudes of the blocks' contributions.

mod activations;
mod blocks;
mod scalar;
#[cfg(test)]
mod tests;

pub use activations::ActivationKind;
pub(crate) use activations::{LONG, LONG_SUMS, Layout, SHORT, quantize as quantize_activations};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use blocks::IQ4_GRID;
pub(crate) use scalar::{LANES as FLOAT_LANES, multiply as multiply_scalar};

use crate::{Error, TensorType};

pub use crate::arch::matmul::Level;

/// Whether weights of this type can be multiplied.
pub fn supports(ty: TensorType) -> bool {
    activations::kind_for(ty).is_some()
}

/// How activations must be stored to be multiplied with weights of this type; F32 for types that are not supported.
pub fn activation_kind(ty: TensorType) -> ActivationKind {
    activations::kind_for(ty).unwrap_or(ActivationKind::F32)
}

/// Sizes of a multiplication, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) n_cols: usize,
    /// Bytes of a row of weights.
    pub(crate) row_bytes: usize,
    /// Rows of weights.
    pub(crate) n_rows: usize,
    /// Rows of activations.
    pub(crate) n_acts: usize,
    /// Floats from one row of results to the next.
    pub(crate) out_stride: usize,
    /// Where the parts of a row of activations lie.
    pub(crate) layout: Layout,
}

impl Shape {
    /// # Errors
    ///
    /// Those of [`multiply`], except that the length of the results is not looked at.
    pub(crate) fn new(
        ty: TensorType,
        weights: &[u8],
        n_cols: usize,
        activations: &[u8],
        out_stride: usize,
    ) -> Result<Self, Error> {
        let kind = activations::kind_for(ty).ok_or(Error::CannotMultiply { found: ty })?;
        let row_bytes = ty.row_bytes(n_cols as u64).filter(|&bytes| bytes > 0);
        let Some(row_bytes) = row_bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
            return Err(Error::PartialBlock { ty, found: n_cols });
        };
        let layout = kind.layout(n_cols);
        for (what, found, expected) in
            [("weights", weights.len(), row_bytes), ("activations", activations.len(), layout.row_bytes)]
        {
            if !found.is_multiple_of(expected) {
                return Err(Error::RowBytes { ty, what, found, expected });
            }
        }
        let (n_rows, n_acts) = (weights.len() / row_bytes, activations.len() / layout.row_bytes);
        Ok(Self { n_cols, row_bytes, n_rows, n_acts, out_stride, layout })
    }

    /// Floats that the results span.
    fn out_len(&self) -> usize {
        match (self.n_rows, self.n_acts) {
            (0, _) | (_, 0) => 0,
            (n_rows, n_acts) => (n_acts - 1).saturating_mul(self.out_stride).saturating_add(n_rows),
        }
    }
}

/// Writes the dot products of all rows of weights with all rows of activations: that of weight row w and activation row
/// a to `out[a * out_stride + w]`. Other elements of `out` are left alone.
///
/// `weights` holds whole rows of `n_cols` weights of type `ty`, `activations` whole rows of
/// [`activation_kind(ty)`](activation_kind), one behind the other. To use several threads, give each a range of the
/// weight rows. Nothing is allocated.
///
/// # Errors
///
/// [`Error::CannotMultiply`] for a type without a kernel, [`Error::PartialBlock`] where a row is empty or does not fill
/// its last block, [`Error::RowBytes`] where the weights or the activations do not fill their last row,
/// [`Error::Output`] where `out` is too short or its rows would overlap.
pub fn multiply(
    ty: TensorType,
    weights: &[u8],
    n_cols: usize,
    activations: &[u8],
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    multiply_at(Level::current(), ty, weights, n_cols, activations, out, out_stride)
}

/// As [`multiply`], with the kernels of this level.
///
/// # Errors
///
/// As [`multiply`].
pub fn multiply_at(
    level: Level,
    ty: TensorType,
    weights: &[u8],
    n_cols: usize,
    activations: &[u8],
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    let shape = Shape::new(ty, weights, n_cols, activations, out_stride)?;
    let expected = shape.out_len();
    if out.len() < expected || (shape.n_acts > 1 && out_stride < shape.n_rows) {
        return Err(Error::Output {
            rows: shape.n_acts,
            cols: shape.n_rows,
            found: out.len(),
            stride: out_stride,
        });
    }
    crate::arch::matmul::multiply_checked(level, ty, weights, activations, &shape, out);
    Ok(())
}
