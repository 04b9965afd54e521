//! F16 and BF16: the reference's loops over weights (`scalar::float`), which have no branches, compiled for wider vectors.

use super::{Chunk, Kernel, Simd};
use crate::TensorType;
use crate::scalar::float::{bf16_from_f32, f16_from_f32, f32_from_f16};

/// Whether there are kernels for the type.
pub(super) const fn is_float(ty: TensorType) -> bool {
    matches!(ty, TensorType::F16 | TensorType::BF16)
}

/// Makes F16 of the weights, or else BF16.
pub(super) struct Narrow<'a>(pub(super) TensorType, pub(super) Chunk<'a>);

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.1.weights.iter().zip(self.1.blocks.as_chunks_mut::<2>().0);
        if self.0 == TensorType::F16 {
            for (weight, block) in pairs {
                *block = f16_from_f32(*weight).to_le_bytes();
            }
        } else {
            for (weight, block) in pairs {
                *block = bf16_from_f32(*weight).to_le_bytes();
            }
        }
    }
}

/// Reads weights from F16, or else from BF16.
pub(super) struct Widen<'a>(pub(super) TensorType, pub(super) &'a [u8], pub(super) &'a mut [f32]);

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.1.as_chunks::<2>().0.iter().zip(self.2);
        if self.0 == TensorType::F16 {
            for (block, weight) in pairs {
                *weight = f32_from_f16(u16::from_le_bytes(*block));
            }
        } else {
            for (block, weight) in pairs {
                *weight = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
            }
        }
    }
}
