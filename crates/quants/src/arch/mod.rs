//! Kernels for instruction sets, chosen at run time, once for each chunk of rows.
//!
//! - [`Level`]: which instruction sets kernels use. A level other than scalar can only be had where the processor has it.
//! - [`Simd`]: the few vector operations that kernels are written in. Its implementations are zero-sized tokens, one for
//!   each instruction set (`x86`), whose existence proves that the processor has it.
//! - [`Kernel`]: code that is generic over [`Simd`]; [`Simd::vectorize`] compiles it for the token's instruction set.
//!
//! A kernel gives the bytes of the scalar reference. In kernels that search, a lane is a sub-block, so that within a lane
//! each operation comes in the reference's order; no two operations are ever contracted into one.
#![allow(
    unsafe_code,
    reason = "instructions beyond the baseline, each behind a token that proves them present"
)]

mod simd;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::TensorType;
pub(crate) use simd::{Kernel, Simd};

/// Which instructions the kernels use. All levels give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(avx512)]
    Avx512(x86::Avx512),
}

impl Level {
    /// The reference, which runs everywhere.
    pub const SCALAR: Self = Self(Isa::Scalar);

    /// The best level that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            #[cfg(avx512)]
            if let Some(token) = x86::Avx512::detect() {
                return Self(Isa::Avx512(token));
            }
            if let Some(token) = x86::Avx2::detect() {
                return Self(Isa::Avx2(token));
            }
        }
        Self::SCALAR
    }

    /// Every level that this processor has, the scalar one first.
    pub fn all_supported() -> Vec<Self> {
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(x86::Avx2::detect().map(|token| Self(Isa::Avx2(token))));
            #[cfg(avx512)]
            levels.extend(x86::Avx512::detect().map(|token| Self(Isa::Avx512(token))));
        }
        levels
    }

    /// The level's name in lower case, for reports: `scalar`, `avx2`, `avx512`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(avx512)]
            Isa::Avx512(_) => "avx512",
        }
    }
}

/// Weights to convert and where the blocks go. The lengths match: whoever makes one has checked them.
pub(crate) struct Chunk<'a> {
    /// Whole blocks; whole rows where there is an importance.
    pub(crate) weights: &'a [f32],
    /// How much the error in each column counts, as long as a row; `None` where nothing is known.
    pub(crate) importance: Option<&'a [f32]>,
    /// Every byte of it is written.
    pub(crate) blocks: &'a mut [u8],
}

/// Converts the chunk with a kernel of this level, or gives it back where the level has none for the type.
pub(crate) fn quantize<'a>(level: Level, ty: TensorType, chunk: Chunk<'a>) -> Result<(), Chunk<'a>> {
    match level.0 {
        Isa::Scalar => Err(chunk),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(simd) => quantize_with(simd, ty, chunk),
        #[cfg(avx512)]
        Isa::Avx512(simd) => {
            quantize_with(simd, ty, chunk).or_else(|chunk| quantize_with(simd.avx2(), ty, chunk))
        }
    }
}

/// The table of kernels.
fn quantize_with<S: Simd>(simd: S, ty: TensorType, chunk: Chunk<'_>) -> Result<(), Chunk<'_>> {
    let _ = (simd, ty);
    Err(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_the_last_of_the_supported_ones() {
        let levels = Level::all_supported();
        assert_eq!(levels[0], Level::SCALAR);
        assert_eq!(levels.last(), Some(&Level::detect()));
        assert!(levels.is_sorted());
    }
}
