//! Which of the x86-64 kernels multiplies rows of a shape.
#![allow(clippy::needless_range_loop, reason = "arrays of registers are walked side by side")]

#[cfg(avx512)]
#[clippy::msrv = "1.89"]
mod amx;
mod blocks;
mod floats;
mod rows;
#[cfg_attr(avx512, clippy::msrv = "1.89")]
mod rows_short;
#[cfg(avx512)]
#[clippy::msrv = "1.89"]
mod rows_vnni;
mod steps;
#[cfg(avx512)]
mod tile_config;
mod tiles;
#[cfg(avx512)]
#[clippy::msrv = "1.89"]
mod vnni;

use self::blocks::*;
use self::floats::{BF16, F16, F32};
use crate::TensorType;
use crate::matmul::{ActivationKind, Shape};

/// An instruction set that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// AVX2, FMA and F16C, as all of these have.
    Avx2,
    #[cfg(avx512)]
    AvxVnni,
    #[cfg(avx512)]
    Avx512Vnni,
    /// AVX-512 VNNI with tile registers for bytes.
    #[cfg(avx512)]
    Amx,
}

impl Isa {
    /// Those that this processor has, the slowest first.
    pub(crate) fn supported() -> impl DoubleEndedIterator<Item = Self> {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        #[cfg(avx512)]
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        let all = [
            (Self::Avx2, avx2),
            #[cfg(avx512)]
            (Self::AvxVnni, avx2 && is_x86_feature_detected!("avxvnni")),
            #[cfg(avx512)]
            (Self::Avx512Vnni, avx2 && avx512),
            #[cfg(avx512)]
            (Self::Amx, avx2 && avx512 && tile_config::is_usable()),
        ];
        all.into_iter().filter(|(_, supported)| *supported).map(|(isa, _)| isa)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Avx2 => "avx2",
            #[cfg(avx512)]
            Self::AvxVnni => "avx-vnni",
            #[cfg(avx512)]
            Self::Avx512Vnni => "avx512-vnni",
            #[cfg(avx512)]
            Self::Amx => "amx",
        }
    }
}

/// Rows of activations from which on tile registers are worth their longer unpacking.
#[cfg(avx512)]
const AMX_ROWS: usize = 24;

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
        ($rows:ident, $ty:ident) => {
            match (shape.n_acts, isa) {
                (1..=3, _) => $rows::multiply::<$ty>(isa, weights, activations, shape, out),
                (_, Isa::Avx2) => tiles::multiply::<$ty, { tiles::AVX2 }>(weights, activations, shape, out),
                #[cfg(avx512)]
                (_, Isa::AvxVnni) => {
                    tiles::multiply::<$ty, { tiles::AVX_VNNI }>(weights, activations, shape, out)
                }
                #[cfg(avx512)]
                (AMX_ROWS.., Isa::Amx) => amx::multiply::<$ty>(weights, activations, shape, out),
                #[cfg(avx512)]
                (_, Isa::Avx512Vnni | Isa::Amx) => {
                    tiles::multiply::<$ty, { tiles::AVX512_VNNI }>(weights, activations, shape, out)
                }
            }
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(avx512)]
        if isa >= Isa::Avx512Vnni && rows_vnni::multiply(ty, weights, activations, shape, out) {
            return true;
        }
        match ty {
            TensorType::Q2_K => kernels!(rows, Q2_K),
            TensorType::Q3_K => kernels!(rows, Q3_K),
            TensorType::Q4_K => kernels!(rows, Q4_K),
            TensorType::Q5_K => kernels!(rows, Q5_K),
            TensorType::Q6_K => kernels!(rows, Q6_K),
            TensorType::IQ4_XS => kernels!(rows, IQ4_XS),
            TensorType::Q4_0 => kernels!(rows_short, Q4_0),
            TensorType::Q4_1 => kernels!(rows_short, Q4_1),
            TensorType::Q5_0 => kernels!(rows_short, Q5_0),
            TensorType::Q5_1 => kernels!(rows_short, Q5_1),
            TensorType::IQ4_NL => kernels!(rows_short, IQ4_NL),
            TensorType::Q8_0 => kernels!(rows_short, Q8_0),
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
