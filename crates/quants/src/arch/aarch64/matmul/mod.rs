//! Which of the AArch64 kernels multiplies rows of a shape.
#![allow(clippy::needless_range_loop, reason = "arrays of registers are walked side by side")]

mod blocks;
mod dots;
mod floats;
mod rows;
mod steps;
mod tiles;

pub(super) use self::blocks::widen_halves;
use self::blocks::*;
use self::dots::{DOTPROD, I8MM, NEON};
use self::floats::{BF16, F16, F32};
use crate::TensorType;
use crate::matmul::Shape;
use std::arch::is_aarch64_feature_detected;

/// An instruction set that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// What every processor has.
    Neon,
    /// Sums of four products of bytes: Arm v8.2 with its extension, as all Apple M and Neoverse cores have.
    Dotprod,
    /// These in matrices of two rows: Apple M2, Neoverse V1 and N2 and later ones.
    I8mm,
}

impl Isa {
    /// Those that this processor has, the slowest first.
    pub(crate) fn supported() -> impl DoubleEndedIterator<Item = Self> {
        let dotprod = is_aarch64_feature_detected!("dotprod");
        let i8mm = dotprod && is_aarch64_feature_detected!("i8mm");
        let all = [(Self::Neon, true), (Self::Dotprod, dotprod), (Self::I8mm, i8mm)];
        all.into_iter().filter(|(_, supported)| *supported).map(|(isa, _)| isa)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Neon => "neon",
            Self::Dotprod => "neon-dotprod",
            Self::I8mm => "neon-i8mm",
        }
    }
}

/// Whether there is a kernel for the type; if so the products have been written.
///
/// # Safety
///
/// The processor must have the instruction set, and `weights`, `activations` and `out` be as large as the shape says.
pub(crate) unsafe fn multiply(
    isa: Isa,
    ty: TensorType,
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) -> bool {
    macro_rules! kernels {
        ($ty:ident) => {
            match (shape.n_acts, isa) {
                // Without instructions for sums of products, tiles would save little.
                (_, Isa::Neon) => rows::multiply::<$ty, NEON>(weights, activations, shape, out),
                (1..=3, _) => rows::multiply::<$ty, DOTPROD>(weights, activations, shape, out),
                (_, Isa::Dotprod) => tiles::multiply::<$ty, DOTPROD>(weights, activations, shape, out),
                (_, Isa::I8mm) => tiles::multiply::<$ty, I8MM>(weights, activations, shape, out),
            }
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        match ty {
            TensorType::Q2_K => kernels!(Q2_K),
            TensorType::Q3_K => kernels!(Q3_K),
            TensorType::Q4_K => kernels!(Q4_K),
            TensorType::Q5_K => kernels!(Q5_K),
            TensorType::Q6_K => kernels!(Q6_K),
            TensorType::IQ4_XS => kernels!(IQ4_XS),
            TensorType::Q4_0 => kernels!(Q4_0),
            TensorType::Q4_1 => kernels!(Q4_1),
            TensorType::Q5_0 => kernels!(Q5_0),
            TensorType::Q5_1 => kernels!(Q5_1),
            TensorType::IQ4_NL => kernels!(IQ4_NL),
            TensorType::Q8_0 => kernels!(Q8_0),
            TensorType::F32 => floats::multiply::<F32>(weights, activations, shape, out),
            TensorType::F16 => floats::multiply::<F16>(weights, activations, shape, out),
            TensorType::BF16 => floats::multiply::<BF16>(weights, activations, shape, out),
            _ => return false,
        }
    }
    true
}
