//! Which of the x86-64 kernels multiplies rows of a shape.

use super::matmul_blocks::*;
use super::matmul_floats::{self as floats, BF16, F16, F32};
use super::{matmul_rows as rows, matmul_tiles as tiles};
use crate::TensorType;
use crate::matmul::{ActivationKind, Shape};

/// Whether there is a kernel for the type; if so the products have been written.
///
/// # Safety
///
/// The processor must have AVX2, FMA and F16C, and `weights`, `activations` and `out` be as large as the shape says.
pub(crate) unsafe fn multiply(
    ty: TensorType,
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) -> bool {
    macro_rules! kernels {
        ($kernel:ident, $ty:ident) => {
            match shape.n_acts {
                1 => rows::$kernel::<$ty, 1>(weights, activations, shape, out),
                2 => rows::$kernel::<$ty, 2>(weights, activations, shape, out),
                3 => rows::$kernel::<$ty, 3>(weights, activations, shape, out),
                _ => tiles::multiply::<$ty>(weights, activations, shape, out),
            }
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        match ty {
            TensorType::Q2_K => kernels!(long, Q2_K),
            TensorType::Q3_K => kernels!(long, Q3_K),
            TensorType::Q4_K => kernels!(long, Q4_K),
            TensorType::Q5_K => kernels!(long, Q5_K),
            TensorType::Q6_K => kernels!(long, Q6_K),
            TensorType::IQ4_XS => kernels!(long, IQ4_XS),
            TensorType::Q4_0 => kernels!(short, Q4_0),
            TensorType::IQ4_NL => kernels!(short, IQ4_NL),
            TensorType::Q8_0 => kernels!(short, Q8_0),
            TensorType::F32 => floats::multiply::<F32>(weights, activations, shape, out),
            TensorType::F16 => floats::multiply::<F16>(weights, activations, shape, out),
            TensorType::BF16 => floats::multiply::<BF16>(weights, activations, shape, out),
            _ => return false,
        }
    }
    true
}

/// Stores a row of activations.
///
/// # Safety
///
/// The processor must have AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn quantize_activations(kind: ActivationKind, row: &[f32], out: &mut [u8]) {
    crate::matmul::quantize_activations(kind, row, out);
}
