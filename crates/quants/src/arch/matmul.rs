//! Which kernel multiplies.

use crate::matmul::{Shape, multiply_scalar};
use crate::{Error, TensorType};

/// [`crate::matmul::multiply`] with sizes that have been checked.
pub(crate) fn multiply_checked(
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: &mut [f32],
) {
    // SAFETY: the results' length has been checked, and the slice is borrowed for nobody else.
    unsafe { run(ty, weights, activations, shape, out.as_mut_ptr()) }
}

/// [`multiply`](crate::matmul::multiply) to a place that several threads share, each of them writing its own columns of
/// the same rows.
///
/// # Errors
///
/// Those of [`multiply`](crate::matmul::multiply), except that the length of the results is not known.
///
/// # Safety
///
/// `out.add(a * out_stride + w)` must be valid for writes, aligned, and neither read nor written by anyone else meanwhile,
/// for each row w of `weights` and a of `activations`.
pub unsafe fn multiply_raw(
    ty: TensorType,
    weights: &[u8],
    n_cols: usize,
    activations: &[u8],
    out: *mut f32,
    out_stride: usize,
) -> Result<(), Error> {
    let shape = Shape::new(ty, weights, n_cols, activations, out_stride)?;
    // SAFETY: as promised by the caller.
    unsafe { run(ty, weights, activations, &shape, out) };
    Ok(())
}

/// # Safety
///
/// That of [`multiply_raw`], for the rows of `shape`.
unsafe fn run(ty: TensorType, weights: &[u8], activations: &[u8], shape: &Shape, out: *mut f32) {
    multiply_scalar(ty, weights, activations, shape, |a, w, dot| {
        // SAFETY: rows within the shape, for which the caller vouches.
        unsafe { out.add(a * shape.out_stride + w).write(dot) };
    });
}
