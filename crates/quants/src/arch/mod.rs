//! Kernels for instruction sets, chosen at run time, once for each chunk of rows.
//!
//! - [`Level`]: which instruction sets kernels use. A level other than scalar can only be had where the processor has it.
//! - [`Simd`]: the few vector operations that kernels are written in. Its implementations are zero-sized tokens, one for
//!   each instruction set (`x86`, `aarch64`), whose existence proves that the processor has it.
//! - [`Kernel`]: code that is generic over [`Simd`]; [`Simd::vectorize`] compiles it for the token's instruction set.
//! - [`matmul`]: kernels that multiply, with levels of their own.
//! - [`attention`]: attention over a cache, at the levels of [`matmul`].
//!
//! A kernel gives the bytes of the scalar reference. In kernels that search, a lane is a sub-block, so that within a lane
//! each operation comes in the reference's order; no two operations are ever contracted into one.
#![allow(
    unsafe_code,
    reason = "instructions beyond the baseline, each behind a token that proves them present"
)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod affine;
mod affine_k;
pub(crate) mod attention;
mod columns;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod cursor;
mod float;
mod iq4;
mod legacy;
mod legacy_affine;
pub(crate) mod matmul;
mod q3_k;
mod q6_k;
mod scales;
mod simd;
mod steps;
mod symmetric;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::TensorType;
pub(crate) use simd::{Kernel, Simd};
pub(crate) use steps::Steps;

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
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::Neon),
}

impl Level {
    /// The reference, which runs everywhere.
    pub const SCALAR: Self = Self(Isa::Scalar);

    /// What every processor of the architecture has.
    #[cfg(target_arch = "aarch64")]
    const BASELINE: Self = Self(Isa::Neon(aarch64::Neon::new()));
    #[cfg(not(target_arch = "aarch64"))]
    const BASELINE: Self = Self::SCALAR;

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
        Self::BASELINE
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
        #[cfg(target_arch = "aarch64")]
        levels.push(Self::BASELINE);
        levels
    }

    /// The level's name in lower case, for reports: `scalar`, `avx2`, `avx512`, `neon`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(avx512)]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
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
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(simd) => quantize_with(simd, ty, chunk),
    }
}

/// Reads the blocks with a kernel of this level; false where the level has none for the type. The lengths match.
pub(crate) fn dequantize(level: Level, ty: TensorType, blocks: &[u8], weights: &mut [f32]) -> bool {
    let is_known = float::is_float(ty);
    match level.0 {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(simd) if is_known => simd.vectorize(float::Widen(ty, blocks, weights)),
        #[cfg(avx512)]
        Isa::Avx512(simd) if is_known => simd.vectorize(float::Widen(ty, blocks, weights)),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(simd) if is_known => simd.vectorize(float::Widen(ty, blocks, weights)),
        _ => return false,
    }
    true
}

/// The table of kernels.
fn quantize_with<S: Simd>(simd: S, ty: TensorType, chunk: Chunk<'_>) -> Result<(), Chunk<'_>> {
    match ty {
        _ if float::is_float(ty) => simd.vectorize(float::Narrow(ty, chunk)),
        // The search for steps is faster in vectors of eight.
        TensorType::IQ4_NL | TensorType::IQ4_XS if S::LANES > 8 => return Err(chunk),
        TensorType::Q2_K => simd.vectorize(affine_k::Quantize::new(affine_k::Q2K, chunk)),
        TensorType::Q4_K => simd.vectorize(affine_k::Quantize::new(affine_k::Q4K, chunk)),
        TensorType::Q5_K => simd.vectorize(affine_k::Quantize::new(affine_k::Q5K, chunk)),
        TensorType::Q4_0 => simd.vectorize(legacy::quantize_q4(chunk)),
        TensorType::Q4_1 => simd.vectorize(legacy_affine::quantize_q4(chunk)),
        TensorType::Q5_1 => simd.vectorize(legacy_affine::quantize_q5(chunk)),
        TensorType::Q5_0 => simd.vectorize(legacy::quantize_q5(chunk)),
        TensorType::Q8_0 => simd.vectorize(legacy::QuantizeQ8(chunk)),
        TensorType::IQ4_NL => simd.vectorize(iq4::QuantizeNl(chunk)),
        TensorType::IQ4_XS => simd.vectorize(iq4::QuantizeXs(chunk)),
        TensorType::Q3_K => simd.vectorize(q3_k::Quantize(chunk)),
        TensorType::Q6_K => simd.vectorize(q6_k::Quantize(chunk)),
        _ => return Err(chunk),
    }
    Ok(())
}

/// The array of `f(0)`, `f(1)` and so on.
///
/// Unlike the standard library's, and the adapters of its iterators, it is sure to be inlined: kernels are compiled for their
/// instruction set only as far as everything in them is.
#[inline(always)]
fn array<T: Copy, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut values = [f(0); N];
    let mut i = 1;
    while i < N {
        values[i] = f(i);
        i += 1;
    }
    values
}

/// The integers that `scalar::round::nearest` gives, whatever the numbers.
#[inline(always)]
fn nearest<S: Simd>(simd: S, values: S::F32) -> S::I32 {
    const MAGIC: f32 = 12_582_912.0;
    const FRACTION: i32 = (1 << 23) - 1;
    let bits = simd.bits(simd.add(values, simd.splat(MAGIC)));
    simd.sub_i32(simd.and_i32(bits, simd.splat_i32(FRACTION)), simd.splat_i32(1 << 22))
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
