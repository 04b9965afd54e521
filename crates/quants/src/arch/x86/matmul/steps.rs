//! Steps over unpacked tiles with AVX2.
//!
//! Products of pairs are added in 16 bits as long as they can't overflow, and widened together: by `madd` with the
//! sub-block's scale, which multiplies and widens at once.

use std::arch::x86_64::*;

use super::blocks::traits;
use super::rows::GROUP;
use super::tiles::{AVX2, DOTS, LongTile, ShortTile, Starts, excess, groups, scale_at};
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT};

/// Vectors of weights in a tile.
const VECTORS: usize = groups(AVX2);

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

/// Keeps the compiler from knowing where the pointer comes from. It would compute the address of each row's broadcasts from
/// the one before, though all rows' pointers have a register, and keep in too few registers what it has loaded before.
#[inline(always)]
fn opaque<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, readonly, nostack, preserves_flags))
    };
    pointer
}

/// Sums of products of `N` rows of activations with the weight rows of each of a tile's vectors.
type Sums<const N: usize> = [[__m256i; VECTORS]; N];

/// In 16 bits the products of as many columns as these have room for, pairs of them, and their sums: columns from the first
/// of `quants` and of each row on.
///
/// Both of the tile's vectors are multiplied with each broadcast: alone, one would wait for the loads.
///
/// # Safety
///
/// So many columns must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products<const TY: u32, const N: usize>(quants: *const __m256i, rows: [*const u8; N]) -> Sums<N> {
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; N];
    // Columns 4 p .. 4 p + 4. Called for each p, as the compiler would not unroll a loop of this length.
    let mut add = |p: usize| {
        for n in 0..N {
            // SAFETY: as promised by the caller.
            let x = unsafe { broadcast(rows[n].add(4 * p)) };
            for v in 0..VECTORS {
                // SAFETY: likewise.
                let weights = unsafe { *quants.add(VECTORS * p + v) };
                let product = if const { traits(TY).wide() } {
                    _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
                } else {
                    _mm256_maddubs_epi16(weights, x)
                };
                sums[n][v] = in_turn(if p == 0 { product } else { _mm256_add_epi16(sums[n][v], product) });
            }
        }
    };
    let pairs = const { traits(TY).pairs() };
    add(0);
    if pairs > 1 {
        add(1);
    }
    if pairs > 2 {
        add(2);
        add(3);
    }
    if pairs > 4 {
        add(4);
        add(5);
        add(6);
        add(7);
    }
    sums
}

/// Adds one super-block's part to the dot products of a tile's weight rows with `N` rows of activations.
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
    let mut isums: Sums<N> = [[_mm256_setzero_si256(); VECTORS]; N];
    // SAFETY: all offsets lie within the rows.
    unsafe {
        let columns = activations.block * LONG;
        let rows: [*const u8; N] = std::array::from_fn(|n| opaque(activations.row(n).add(columns)));
        for i in 0..LONG / traits.sub_len {
            let scales = &tile.scales[VECTORS * scale_at(i, traits.sub_len)..][..VECTORS];
            for p in (i * quads..(i + 1) * quads).step_by(pairs) {
                let quants = tile.quants.as_ptr().add(VECTORS * p);
                let products = products::<TY, N>(quants, rows.map(|row| row.add(4 * p)));
                for n in 0..N {
                    for v in 0..VECTORS {
                        let sum = _mm256_madd_epi16(products[n][v], scales[v]);
                        isums[n][v] = _mm256_add_epi32(isums[n][v], sum);
                    }
                }
            }
        }
        for n in 0..N {
            let mut msums = [_mm256_setzero_si256(); VECTORS];
            if traits.minima || traits.offset != 0 {
                let sums = activations.long_sums(n, traits.sub_len);
                let mins = opaque(tile.mins.as_ptr());
                for k in 0..LONG / traits.sub_len / 2 {
                    let sums = broadcast(sums.add(2 * k).cast());
                    for v in 0..VECTORS {
                        let pair = _mm256_madd_epi16(*mins.add(VECTORS * k + v), sums);
                        msums[v] = _mm256_add_epi32(msums[v], pair);
                    }
                }
            }
            let scale = _mm256_set1_ps(activations.scale(n, 0));
            for v in 0..VECTORS {
                let (mut isum, msum) = (isums[n][v], msums[v]);
                if !traits.minima {
                    isum = _mm256_sub_epi32(isum, msum);
                }
                let at = dots.add(n * DOTS + v * GROUP);
                let dot = if activations.block == 0 { _mm256_setzero_ps() } else { _mm256_loadu_ps(at) };
                let d = _mm256_mul_ps(tile.d[v], scale);
                let mut dot = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isum), dot);
                if traits.minima {
                    let dmin = _mm256_mul_ps(tile.dmin[v], scale);
                    dot = _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(msum), dot);
                }
                _mm256_storeu_ps(at, dot);
            }
        }
    }
}

/// Adds `n_blocks` blocks' part to the dot products of a tile's weight rows with `N` rows of activations.
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
        let rows: [*const u8; N] = std::array::from_fn(|n| opaque(activations.row(n).add(columns)));
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; N];
        if activations.block > 0 {
            sums = std::array::from_fn(|n| {
                std::array::from_fn(|v| _mm256_loadu_ps(dots.add(n * DOTS + v * GROUP)))
            });
        }
        for b in 0..n_blocks {
            let mut isums: Sums<N> = std::array::from_fn(|n| {
                let start = if const { excess(TY, AVX2) != 0 } { starts[n][b] } else { 0 };
                [_mm256_set1_epi32(start); VECTORS]
            });
            for p in (0..SHORT / 4).step_by(pairs) {
                let quants = (&raw const (*tile).quants).cast::<__m256i>().add(VECTORS * (8 * b + p));
                let products = products::<TY, N>(quants, rows.map(|row| row.add(SHORT * b + 4 * p)));
                for n in 0..N {
                    for v in 0..VECTORS {
                        let sum = _mm256_madd_epi16(products[n][v], ones);
                        isums[n][v] = _mm256_add_epi32(isums[n][v], sum);
                    }
                }
            }
            for n in 0..N {
                let scale = _mm256_set1_ps(activations.scale(n, b));
                for v in 0..VECTORS {
                    let d = _mm256_mul_ps((*tile).d[VECTORS * b + v], scale);
                    sums[n][v] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isums[n][v]), sums[n][v]);
                    if traits.minima {
                        let sum = _mm256_set1_ps(activations.short_sum(n, b));
                        let m = _mm256_mul_ps((*tile).m[VECTORS * b + v], scale);
                        sums[n][v] = _mm256_fmadd_ps(m, sum, sums[n][v]);
                    }
                }
            }
        }
        for n in 0..N {
            for v in 0..VECTORS {
                _mm256_storeu_ps(dots.add(n * DOTS + v * GROUP), sums[n][v]);
            }
        }
    }
}
