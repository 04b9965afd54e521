//! The operations that attention consists of, with vectors of eight floats.

use super::cells::{BF16, F16, Q8_0, eight};
use crate::attention::exponential;
use std::arch::x86_64::*;

/// A vector of an instruction set.
///
/// The methods are inlined into functions that are compiled for the instruction set, which is what all of them require of
/// the processor. Pointers need no alignment.
pub(super) trait Vector: Copy {
    /// Floats in a vector.
    const LEN: usize;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    unsafe fn add(a: Self, b: Self) -> Self;
    unsafe fn sub(a: Self, b: Self) -> Self;
    unsafe fn mul(a: Self, b: Self) -> Self;
    /// `a` where it is larger than `b`, else `b`.
    unsafe fn max(a: Self, b: Self) -> Self;
    /// Whether `a` is larger than `b` anywhere.
    unsafe fn exceeds(a: Self, b: Self) -> bool;
    /// The largest of all, none of which is NaN.
    unsafe fn largest(self) -> f32;
    /// The last steps of [`exp`]: the power of 2 in the lowest bits of `shifted` times `p`, 0 where `x` is too low.
    unsafe fn scale_exp(p: Self, shifted: Self, x: Self) -> Self;
    /// The sums of 16 lanes over a block's vectors, added up by halves.
    unsafe fn add_up(block: &[Self]) -> f32;
    /// Elements of a type from here on, widened; of [`Q8_0`] its quants.
    unsafe fn read<const TY: u32>(from: *const u8) -> Self;
    /// Likewise, with quants of 16 bits.
    unsafe fn read_halves<const TY: u32>(from: *const i16) -> Self;
    /// Stores, one behind the other, what [`eight`] elements of these rows become when they are transposed. There are twice
    /// as many rows as floats in a vector.
    unsafe fn transpose<const TY: u32>(rows: &[*const u8], at: usize, dim: usize, to: *mut i16);
}

/// e to the power of `x`, by the operations of [`crate::attention`]'s definition.
///
/// # Safety
///
/// The processor must have the vector's instruction set.
#[inline(always)]
pub(super) unsafe fn exp<V: Vector>(x: V) -> V {
    use exponential::*;
    // SAFETY: as promised by the caller.
    unsafe {
        let rounder = V::splat(ROUNDER);
        let shifted = V::fma(x, V::splat(LOG2_E), rounder);
        let n = V::sub(shifted, rounder);
        let r = V::fma(n, V::splat(-LN_2_LOW), V::fma(n, V::splat(-LN_2_HIGH), x));
        let mut p = V::splat(LEADING);
        for coefficient in COEFFICIENTS {
            p = V::fma(r, p, V::splat(coefficient));
        }
        V::scale_exp(p, shifted, x)
    }
}

/// The sum of 8 lanes by halves.
#[inline(always)]
pub(super) unsafe fn add_eight(eight: __m256) -> f32 {
    // SAFETY: the caller's instruction set has AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Functions that consist of one expression over intrinsics.
macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the caller's instruction set has them, and pointers are good for a vector.
            unsafe { $body }
        })*
    };
}

#[cfg(avx512)]
pub(super) use functions;

impl Vector for __m256 {
    const LEN: usize = 8;

    functions! {
        load(from: *const f32) -> Self = _mm256_loadu_ps(from);
        splat(value: f32) -> Self = _mm256_set1_ps(value);
        fma(a: Self, b: Self, c: Self) -> Self = _mm256_fmadd_ps(a, b, c);
        add(a: Self, b: Self) -> Self = _mm256_add_ps(a, b);
        sub(a: Self, b: Self) -> Self = _mm256_sub_ps(a, b);
        mul(a: Self, b: Self) -> Self = _mm256_mul_ps(a, b);
        max(a: Self, b: Self) -> Self = _mm256_max_ps(a, b);
        exceeds(a: Self, b: Self) -> bool = _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
        scale_exp(p: Self, shifted: Self, x: Self) -> Self = {
            let bias = _mm256_set1_epi32(exponential::BIAS as i32);
            let power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), bias), 23);
            let is_low = _mm256_cmp_ps(x, _mm256_set1_ps(exponential::LOWEST), _CMP_LT_OQ);
            _mm256_andnot_ps(is_low, _mm256_mul_ps(p, _mm256_castsi256_ps(power)))
        };
        add_up(block: &[Self]) -> f32 = {
            add_eight(_mm256_add_ps(_mm256_add_ps(block[0], block[2]), _mm256_add_ps(block[1], block[3])))
        };
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as promised by the caller.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: as promised by the caller.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps(self, 1));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn read<const TY: u32>(from: *const u8) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            match TY {
                F16 | BF16 => Self::read_halves::<TY>(from.cast()),
                Q8_0 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                _ => Self::load(from.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn read_halves<const TY: u32>(from: *const i16) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            let halves = _mm_loadu_si128(from.cast());
            match TY {
                F16 => _mm256_cvtph_ps(halves),
                BF16 => _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)),
                _ => _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(halves)),
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose<const TY: u32>(rows: &[*const u8], at: usize, dim: usize, to: *mut i16) {
        // SAFETY: as promised by the caller.
        unsafe {
            let mut parts = [_mm256_setzero_si256(); 8];
            for r in 0..8 {
                parts[r] = _mm256_set_m128i(eight::<TY>(rows[r + 8], at, dim), eight::<TY>(rows[r], at, dim));
            }
            // Elements 0 and 1, 2 and 3 and so on of four rows, then of the other four.
            let mut pairs = parts;
            for r in [0, 4] {
                let (a, b) = (
                    _mm256_unpacklo_epi16(parts[r], parts[r + 1]),
                    _mm256_unpackhi_epi16(parts[r], parts[r + 1]),
                );
                let (c, d) = (
                    _mm256_unpacklo_epi16(parts[r + 2], parts[r + 3]),
                    _mm256_unpackhi_epi16(parts[r + 2], parts[r + 3]),
                );
                pairs[r] = _mm256_unpacklo_epi32(a, c);
                pairs[r + 1] = _mm256_unpackhi_epi32(a, c);
                pairs[r + 2] = _mm256_unpacklo_epi32(b, d);
                pairs[r + 3] = _mm256_unpackhi_epi32(b, d);
            }
            for r in 0..4 {
                let to = to.add(4 * r * Self::LEN).cast();
                _mm256_storeu_si256(to, _mm256_unpacklo_epi64(pairs[r], pairs[r + 4]));
                _mm256_storeu_si256(to.add(1), _mm256_unpackhi_epi64(pairs[r], pairs[r + 4]));
            }
        }
    }
}
