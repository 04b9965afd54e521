//! Which kernel multiplies.

#[cfg(target_arch = "x86_64")]
use super::x86_64::matmul as x86_64;
use crate::matmul::{ActivationKind, Shape, multiply_scalar};
use crate::{Error, TensorType};

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Level {
    /// All that this processor has, the slowest first.
    pub(crate) fn supported() -> Vec<Self> {
        let mut levels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        if Self::best() == Self::Avx2 {
            levels.push(Self::Avx2);
        }
        levels
    }

    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Self::Avx2;
        }
        Self::Scalar
    }
}

/// Stores a row of activations. All levels give the same bytes.
pub(crate) fn quantize_activations(kind: ActivationKind, row: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if Level::best() != Level::Scalar {
        // SAFETY: the processor has AVX2, as every level but the scalar one needs.
        return unsafe { x86_64::quantize_activations(kind, row, out) };
    }
    crate::matmul::quantize_activations(kind, row, out);
}

/// [`crate::matmul::multiply`] with sizes that have been checked.
pub(crate) fn multiply_checked(
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: &mut [f32],
) {
    // SAFETY: the results' length has been checked, and the slice is borrowed for nobody else.
    unsafe { run(Level::best(), ty, weights, activations, shape, out.as_mut_ptr()) }
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
    unsafe { run(Level::best(), ty, weights, activations, &shape, out) };
    Ok(())
}

/// # Safety
///
/// That of [`multiply_raw`], for the rows of `shape`, and the processor must have the level.
pub(crate) unsafe fn run(
    level: Level,
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: *mut f32,
) {
    if shape.n_rows == 0 || shape.n_acts == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx2 {
        // SAFETY: as promised by the caller.
        let done = unsafe { x86_64::multiply(ty, weights.as_ptr(), activations.as_ptr(), shape, out) };
        if done {
            return;
        }
    }
    multiply_scalar(ty, weights, activations, shape, |a, w, dot| {
        // SAFETY: rows within the shape, for which the caller vouches.
        unsafe { out.add(a * shape.out_stride + w).write(dot) };
    });
}

/// [`run`] with a slice, for tests of each level.
#[cfg(test)]
pub(crate) fn run_level(
    level: Level,
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: &mut [f32],
) {
    assert!(Level::supported().contains(&level));
    assert!(out.len() >= shape.out_len());
    // SAFETY: just checked, and the slice is borrowed for nobody else.
    unsafe { run(level, ty, weights, activations, shape, out.as_mut_ptr()) }
}
