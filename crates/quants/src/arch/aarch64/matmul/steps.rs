//! Steps over unpacked tiles: up to four rows of activations times eight rows of weights.

use std::arch::aarch64::*;

use super::blocks::{load, traits};
use super::dots::{DOTPROD, dot_pairs, dot_quads};
use super::tiles::{Dots, ROWS, STEP, Tile};
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT};

/// Sums of eight weight rows with up to four rows of activations, as the instruction set leaves them.
///
/// For `sdot` vector 2 n + j holds those of four weight rows, 4 j and on, with activations n. For `smmla` vector 4 p + q
/// holds those of activations 2 p with weight rows 2 q and 2 q + 1, then those of activations 2 p + 1.
type Sums = [int32x4_t; 2 * STEP];

/// How many of [`Sums`] are used with `n` rows of activations.
const fn used(isa: u32, n: usize) -> usize {
    if isa == DOTPROD { 2 * n } else { 4 * n.div_ceil(2) }
}

/// Sixteen columns of eight rows, as [`add_columns`] reads them.
#[inline(always)]
pub(super) fn interleaved<const ISA: u32>(rows: &[int8x16_t; ROWS]) -> [int8x16_t; ROWS] {
    let mut out = *rows;
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        if ISA == DOTPROD {
            for j in 0..2 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|r| vreinterpretq_s32_s8(rows[4 * j + r]));
                let (ab, cd) = ([vtrn1q_s32(a, b), vtrn2q_s32(a, b)], [vtrn1q_s32(c, d), vtrn2q_s32(c, d)]);
                for k in 0..2 {
                    let (ab, cd) = (vreinterpretq_s64_s32(ab[k]), vreinterpretq_s64_s32(cd[k]));
                    out[2 * k + j] = vreinterpretq_s8_s64(vtrn1q_s64(ab, cd));
                    out[2 * k + 4 + j] = vreinterpretq_s8_s64(vtrn2q_s64(ab, cd));
                }
            }
        } else {
            for q in 0..ROWS / 2 {
                (out[q], out[4 + q]) = pairs(rows[2 * q], rows[2 * q + 1]);
            }
        }
    }
    out
}

/// The lower eight bytes of both, and the upper ones.
#[inline(always)]
fn pairs(a: int8x16_t, b: int8x16_t) -> (int8x16_t, int8x16_t) {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        (vreinterpretq_s8_s64(vtrn1q_s64(a, b)), vreinterpretq_s8_s64(vtrn2q_s64(a, b)))
    }
}

/// What each of [`Sums`] is multiplied with, number `v` with `v % 4`, given the scales of rows.
#[inline(always)]
pub(super) fn scales<const ISA: u32>(a: int32x4_t, b: int32x4_t) -> [int32x4_t; ROWS / 2] {
    if ISA == DOTPROD {
        return [a, b, a, b];
    }
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        [vtrn1q_s64(a, a), vtrn2q_s64(a, a), vtrn1q_s64(b, b), vtrn2q_s64(b, b)]
            .map(|v| vreinterpretq_s32_s64(v))
    }
}

/// Adds sixteen columns' products.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, and eight vectors be readable.
#[inline(always)]
unsafe fn add_columns<const ISA: u32, const N: usize>(
    sums: &mut Sums,
    weights: *const int8x16_t,
    x: [int8x16_t; N],
) {
    // SAFETY: as promised by the caller.
    unsafe {
        if ISA == DOTPROD {
            macro_rules! quads {
                ($($quad:literal)*) => {
                    $(for j in 0..2 {
                        let weights = *weights.add(2 * $quad + j);
                        for n in 0..N {
                            sums[2 * n + j] = dot_quads::<$quad>(sums[2 * n + j], weights, x[n]);
                        }
                    })*
                };
            }
            quads!(0 1 2 3);
        } else {
            for p in 0..N.div_ceil(2) {
                // A missing row is stood in for by the one before.
                let (lower, upper) = pairs(x[2 * p], x[(2 * p + 1).min(N - 1)]);
                for q in 0..ROWS / 2 {
                    let sum = &mut sums[4 * p + q];
                    *sum = dot_pairs(*sum, lower, *weights.add(q));
                    *sum = dot_pairs(*sum, upper, *weights.add(4 + q));
                }
            }
        }
    }
}

/// The sums of each row of activations with the eight weight rows.
#[inline(always)]
fn by_rows<const ISA: u32, const N: usize>(sums: &Sums) -> [[int32x4_t; 2]; N] {
    std::array::from_fn(|n| {
        if ISA == DOTPROD {
            return [sums[2 * n], sums[2 * n + 1]];
        }
        [0, 1].map(|j| {
            let at = n / 2 * 4 + 2 * j;
            // SAFETY: every processor that this is compiled for has NEON.
            unsafe {
                let (a, b) = (vreinterpretq_s64_s32(sums[at]), vreinterpretq_s64_s32(sums[at + 1]));
                vreinterpretq_s32_s64(if n % 2 == 0 { vtrn1q_s64(a, b) } else { vtrn2q_s64(a, b) })
            }
        })
    })
}

/// Adds one super-block's part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// The tile must hold a super-block of the type, the activations be within their shape, and `dots` readable (after the
/// first block) and writable for `N` rows; the processor must have what `ISA` stands for.
pub(super) unsafe fn long<const TY: u32, const ISA: u32, const N: usize>(
    tile: *const Tile,
    activations: Cursor<'_>,
    dots: *mut Dots,
) {
    let traits = const { traits(TY) };
    // SAFETY: all offsets lie within the tile and the rows.
    unsafe {
        let zero = vdupq_n_s32(0);
        let quants = (&raw const (*tile).quants).cast::<int8x16_t>();
        let scales = (&raw const (*tile).scales).cast::<[int32x4_t; ROWS / 2]>();
        let columns = activations.block * LONG;
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.row(n).add(columns));
        let mut isums = [zero; 2 * STEP];
        for s in 0..LONG / traits.sub_len {
            let mut sums = [zero; 2 * STEP];
            for c in s * traits.sub_len / 16..(s + 1) * traits.sub_len / 16 {
                let x = std::array::from_fn(|n| load(rows[n].add(16 * c)));
                add_columns::<ISA, N>(&mut sums, quants.add(c * ROWS), x);
            }
            for v in 0..const { used(ISA, N) } {
                let scale = (*scales.add(s))[v % 4];
                isums[v] = vmlaq_s32(isums[v], sums[v], scale);
            }
        }
        for (n, isums) in by_rows::<ISA, N>(&isums).into_iter().enumerate() {
            let mut msums = [zero; 2];
            if traits.minima {
                let asums = activations.long_sums(n, traits.sub_len);
                for part in 0..LONG / traits.sub_len / 8 {
                    let asums = vld1q_s16(asums.add(8 * part));
                    macro_rules! add {
                        ($($k:literal)*) => {
                            $(let mins = (*tile).mins[8 * part + $k];
                            msums[0] = vmlal_laneq_s16::<$k>(msums[0], vget_low_s16(mins), asums);
                            msums[1] = vmlal_high_laneq_s16::<$k>(msums[1], mins, asums);)*
                        };
                    }
                    add!(0 1 2 3 4 5 6 7);
                }
            }
            let scale = vdupq_n_f32(activations.scale(n, 0));
            let at = dots.add(n);
            let mut dot = if activations.block == 0 { [vdupq_n_f32(0.0); 2] } else { *at };
            for j in 0..2 {
                let d = vmulq_f32((*tile).d[0][j], scale);
                dot[j] = vfmaq_f32(dot[j], d, vcvtq_f32_s32(isums[j]));
                if traits.minima {
                    let dmin = vmulq_f32((*tile).m[0][j], scale);
                    dot[j] = vfmsq_f32(dot[j], dmin, vcvtq_f32_s32(msums[j]));
                }
            }
            *at = dot;
        }
    }
}

/// Adds `n_blocks` blocks' part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// As for [`long`], for so many blocks.
pub(super) unsafe fn short<const TY: u32, const ISA: u32, const N: usize>(
    tile: *const Tile,
    activations: Cursor<'_>,
    n_blocks: usize,
    dots: *mut Dots,
) {
    let traits = const { traits(TY) };
    // SAFETY: all offsets lie within the tile and the rows.
    unsafe {
        let quants = (&raw const (*tile).quants).cast::<int8x16_t>();
        let columns = activations.block * SHORT;
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.row(n).add(columns));
        let mut sums = [[vdupq_n_f32(0.0); 2]; N];
        if activations.block > 0 {
            sums = std::array::from_fn(|n| *dots.add(n));
        }
        for b in 0..n_blocks {
            let mut isums = [vdupq_n_s32(0); 2 * STEP];
            for c in [2 * b, 2 * b + 1] {
                let x = std::array::from_fn(|n| load(rows[n].add(16 * c)));
                add_columns::<ISA, N>(&mut isums, quants.add(c * ROWS), x);
            }
            for (n, isums) in by_rows::<ISA, N>(&isums).into_iter().enumerate() {
                let scale = vdupq_n_f32(activations.scale(n, b));
                for j in 0..2 {
                    let d = vmulq_f32((*tile).d[b][j], scale);
                    sums[n][j] = vfmaq_f32(sums[n][j], d, vcvtq_f32_s32(isums[j]));
                    if traits.minima {
                        let m = vmulq_f32((*tile).m[b][j], scale);
                        sums[n][j] = vfmaq_n_f32(sums[n][j], m, activations.short_sum(n, b));
                    }
                }
            }
        }
        for n in 0..N {
            *dots.add(n) = sums[n];
        }
    }
}
