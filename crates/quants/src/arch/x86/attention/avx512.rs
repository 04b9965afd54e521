//! Vectors of sixteen floats.

use super::cells::{BF16, F16, Q8_0, eight};
use super::vector::{Vector, add_eight, functions};
use crate::attention::exponential;
use std::arch::x86_64::*;

impl Vector for __m512 {
    const LEN: usize = 16;

    functions! {
        load(from: *const f32) -> Self = _mm512_loadu_ps(from);
        splat(value: f32) -> Self = _mm512_set1_ps(value);
        fma(a: Self, b: Self, c: Self) -> Self = _mm512_fmadd_ps(a, b, c);
        add(a: Self, b: Self) -> Self = _mm512_add_ps(a, b);
        sub(a: Self, b: Self) -> Self = _mm512_sub_ps(a, b);
        mul(a: Self, b: Self) -> Self = _mm512_mul_ps(a, b);
        max(a: Self, b: Self) -> Self = _mm512_max_ps(a, b);
        exceeds(a: Self, b: Self) -> bool = _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
        scale_exp(p: Self, shifted: Self, x: Self) -> Self = {
            let bias = _mm512_set1_epi32(exponential::BIAS as i32);
            let power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(shifted), bias), 23);
            let is_kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(exponential::LOWEST), _CMP_NLT_UQ);
            _mm512_maskz_mul_ps(is_kept, p, _mm512_castsi512_ps(power))
        };
        add_up(block: &[Self]) -> f32 = {
            let sums = _mm512_add_ps(block[0], block[1]);
            add_eight(_mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1)))
        };
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: as promised by the caller.
        unsafe { _mm256_max_ps(_mm512_castps512_ps256(self), _mm512_extractf32x8_ps(self, 1)).largest() }
    }

    #[inline(always)]
    unsafe fn read<const TY: u32>(from: *const u8) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            match TY {
                F16 | BF16 => Self::read_halves::<TY>(from.cast()),
                Q8_0 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))),
                _ => Self::load(from.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn read_halves<const TY: u32>(from: *const i16) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            let halves = _mm256_loadu_si256(from.cast());
            match TY {
                F16 => _mm512_cvtph_ps(halves),
                BF16 => _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)),
                _ => _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(halves)),
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose<const TY: u32>(rows: &[*const u8], at: usize, dim: usize, to: *mut i16) {
        // SAFETY: as promised by the caller.
        unsafe {
            let mut parts = [_mm512_setzero_si512(); 8];
            for r in 0..8 {
                let lower =
                    _mm256_set_m128i(eight::<TY>(rows[r + 8], at, dim), eight::<TY>(rows[r], at, dim));
                let upper =
                    _mm256_set_m128i(eight::<TY>(rows[r + 24], at, dim), eight::<TY>(rows[r + 16], at, dim));
                parts[r] = _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
            }
            // Elements 0 and 1, 2 and 3 and so on of four rows, then of the other four.
            let mut pairs = parts;
            for r in [0, 4] {
                let (a, b) = (
                    _mm512_unpacklo_epi16(parts[r], parts[r + 1]),
                    _mm512_unpackhi_epi16(parts[r], parts[r + 1]),
                );
                let (c, d) = (
                    _mm512_unpacklo_epi16(parts[r + 2], parts[r + 3]),
                    _mm512_unpackhi_epi16(parts[r + 2], parts[r + 3]),
                );
                pairs[r] = _mm512_unpacklo_epi32(a, c);
                pairs[r + 1] = _mm512_unpackhi_epi32(a, c);
                pairs[r + 2] = _mm512_unpacklo_epi32(b, d);
                pairs[r + 3] = _mm512_unpackhi_epi32(b, d);
            }
            for r in 0..4 {
                let to = to.add(4 * r * Self::LEN).cast();
                _mm512_storeu_si512(to, _mm512_unpacklo_epi64(pairs[r], pairs[r + 4]));
                _mm512_storeu_si512(to.add(1), _mm512_unpackhi_epi64(pairs[r], pairs[r + 4]));
            }
        }
    }
}
