//! Steps over unpacked tiles with AVX2.
//!
//! Products of pairs are added in 16 bits as long as they can't overflow, and widened together: by `madd` with the
//! sub-block's scale, which multiplies and widens at once.

use std::arch::x86_64::*;

use super::blocks::traits;
use super::tiles::{AVX2, DOTS, LongTile, ShortTile, Starts, excess, scale_at};
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT};

/// Four bytes in each lane.
///
/// # Safety
///
/// Four bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(from: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

/// Keeps the compiler from adding in another order: it makes trees of sums, for which there are too few registers.
#[inline]
#[target_feature(enable = "avx2")]
fn in_turn(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags))
    };
    sum
}

/// Adds one super-block's part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// The activations must be within their shape, and `dots` readable (after the first block) and writable for `N` rows.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn long<const TY: u32, const N: usize>(
    tile: &LongTile,
    activations: Cursor<'_>,
    dots: *mut f32,
) {
    let (traits, pairs) = const { (traits(TY), traits(TY).pairs()) };
    let quads = traits.sub_len / 4;
    let mut isums = [_mm256_setzero_si256(); N];
    // SAFETY: all offsets lie within the rows.
    unsafe {
        let columns = activations.block * LONG;
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.row(n).add(columns));
        for i in 0..LONG / traits.sub_len {
            let scale = tile.scales[scale_at(i, traits.sub_len)];
            for q in (i * quads..(i + 1) * quads).step_by(pairs) {
                let mut products = [_mm256_setzero_si256(); N];
                for p in q..q + pairs {
                    let weights = tile.quants[p];
                    let magnitudes = _mm256_abs_epi8(weights);
                    for n in 0..N {
                        let x = broadcast(rows[n].add(4 * p));
                        let product = if traits.wide() {
                            _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights))
                        } else {
                            _mm256_maddubs_epi16(weights, x)
                        };
                        products[n] =
                            in_turn(if p == q { product } else { _mm256_add_epi16(products[n], product) });
                    }
                }
                for n in 0..N {
                    isums[n] = _mm256_add_epi32(isums[n], _mm256_madd_epi16(products[n], scale));
                }
            }
        }
        for n in 0..N {
            let mut isum = isums[n];
            let mut msum = _mm256_setzero_si256();
            if traits.minima || traits.offset != 0 {
                let sums = activations.long_sums(n, traits.sub_len);
                for k in 0..LONG / traits.sub_len / 2 {
                    let pair = _mm256_madd_epi16(tile.mins[k], broadcast(sums.add(2 * k).cast()));
                    msum = _mm256_add_epi32(msum, pair);
                }
            }
            if !traits.minima {
                isum = _mm256_sub_epi32(isum, msum);
            }
            let scale = _mm256_set1_ps(activations.scale(n, 0));
            let at = dots.add(n * DOTS);
            let dot = if activations.block == 0 { _mm256_setzero_ps() } else { _mm256_loadu_ps(at) };
            let d = _mm256_mul_ps(tile.d[0], scale);
            let mut dot = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isum), dot);
            if traits.minima {
                let dmin = _mm256_mul_ps(tile.dmin[0], scale);
                dot = _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(msum), dot);
            }
            _mm256_storeu_ps(at, dot);
        }
    }
}

/// Adds `n_blocks` blocks' part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// So many blocks must be in the tile, the activations be within their shape, and `dots` readable (after the first
/// block) and writable for `N` rows.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn short<const TY: u32, const N: usize>(
    tile: *const ShortTile,
    activations: Cursor<'_>,
    starts: &Starts,
    n_blocks: usize,
    dots: *mut f32,
) {
    let (traits, pairs) = const { (traits(TY), traits(TY).pairs()) };
    let ones = _mm256_set1_epi16(1);
    // SAFETY: all offsets lie within the tile and the rows.
    unsafe {
        let columns = activations.block * SHORT;
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.row(n).add(columns));
        let mut sums = [_mm256_setzero_ps(); N];
        if activations.block > 0 {
            sums = std::array::from_fn(|n| _mm256_loadu_ps(dots.add(n * DOTS)));
        }
        for b in 0..n_blocks {
            let mut isums: [__m256i; N] = std::array::from_fn(|n| {
                _mm256_set1_epi32(if const { excess(TY, AVX2) != 0 } { starts[n][b] } else { 0 })
            });
            for q in (0..SHORT / 4).step_by(pairs) {
                let mut products = [_mm256_setzero_si256(); N];
                for p in q..q + pairs {
                    let weights = (*tile).quants[8 * b + p];
                    let magnitudes = _mm256_abs_epi8(weights);
                    for n in 0..N {
                        let x = broadcast(rows[n].add(SHORT * b + 4 * p));
                        let product = if traits.wide() {
                            _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights))
                        } else {
                            _mm256_maddubs_epi16(weights, x)
                        };
                        products[n] =
                            in_turn(if p == q { product } else { _mm256_add_epi16(products[n], product) });
                    }
                }
                for n in 0..N {
                    isums[n] = _mm256_add_epi32(isums[n], _mm256_madd_epi16(products[n], ones));
                }
            }
            let d = (*tile).d[b];
            for n in 0..N {
                let scale = _mm256_set1_ps(activations.scale(n, b));
                let d = _mm256_mul_ps(d, scale);
                sums[n] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isums[n]), sums[n]);
                if traits.minima {
                    let sum = _mm256_set1_ps(activations.short_sum(n, b));
                    sums[n] = _mm256_fmadd_ps(_mm256_mul_ps((*tile).m[b], scale), sum, sums[n]);
                }
            }
        }
        for n in 0..N {
            _mm256_storeu_ps(dots.add(n * DOTS), sums[n]);
        }
    }
}
