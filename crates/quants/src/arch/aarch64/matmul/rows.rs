//! Few rows of activations: four rows of weights at a time, read in place, vectors along the columns.
//!
//! Four sub-blocks' partial sums are added across at once and multiplied with their scales in one vector; the sums of the
//! four weight rows are added across likewise, so that the float arithmetic works on four rows in one vector too.

use std::arch::aarch64::*;

use super::blocks::*;
use super::dots::{dot, sums_across};
use crate::matmul::{LONG, LONG_SUMS, SHORT, Shape};

/// Rows of activations that are multiplied together, at most.
const MAX_ACTS: usize = 4;
/// Bytes to fetch ahead in each of the rows.
const AHEAD: usize = 1024;

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, and `weights`, `activations` and `out` be as large as the shape says.
pub(super) unsafe fn multiply<const TY: u32, const ISA: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    for w in (0..shape.n_rows).step_by(GROUP) {
        let n_rows = GROUP.min(shape.n_rows - w);
        for a in (0..shape.n_acts).step_by(MAX_ACTS) {
            // SAFETY: rows within the shape. Missing rows of weights are stood in for by the last one; what comes of
            // them is not stored.
            unsafe {
                let blocks: [*const u8; GROUP] =
                    std::array::from_fn(|r| weights.add((w + r.min(n_rows - 1)) * shape.row_bytes));
                let activations = activations.add(a * shape.layout.row_bytes);
                let out = out.add(a * shape.out_stride + w);
                match shape.n_acts - a {
                    1 => group::<TY, ISA, 1>(blocks, activations, shape, out, n_rows),
                    2 => group::<TY, ISA, 2>(blocks, activations, shape, out, n_rows),
                    3 => group::<TY, ISA, 3>(blocks, activations, shape, out, n_rows),
                    _ => group::<TY, ISA, MAX_ACTS>(blocks, activations, shape, out, n_rows),
                }
            }
        }
    }
}

/// `N` rows of activations times four rows of weights that begin with `blocks`, of which the first `n_rows` are stored.
///
/// # Safety
///
/// As for [`multiply`], for these rows.
#[inline(always)]
unsafe fn group<const TY: u32, const ISA: u32, const N: usize>(
    blocks: [*const u8; GROUP],
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
    n_rows: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let dots = if const { is_long(TY) } {
            long::<TY, ISA, N>(blocks, activations, shape)
        } else {
            short::<TY, ISA, N>(blocks, activations, shape)
        };
        for (n, dots) in dots.into_iter().enumerate() {
            store(out.add(n * shape.out_stride), dots, n_rows);
        }
    }
}

/// Writes the first `n` results of a group.
///
/// # Safety
///
/// `to` must be writable for `n` floats.
#[inline(always)]
pub(super) unsafe fn store(to: *mut f32, dots: float32x4_t, n: usize) {
    // SAFETY: as promised by the caller, and for fewer than four only as many as are asked for.
    unsafe {
        if n >= GROUP {
            vst1q_f32(to, dots);
        } else {
            let mut all = [0.0; GROUP];
            vst1q_f32(all.as_mut_ptr(), dots);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, n);
        }
    }
}

/// The dot products of four rows in super-blocks of 256 with `N` rows of activations.
///
/// # Safety
///
/// As for [`multiply`], for these rows.
#[inline(always)]
unsafe fn long<const TY: u32, const ISA: u32, const N: usize>(
    mut blocks: [*const u8; GROUP],
    activations: *const u8,
    shape: &Shape,
) -> [float32x4_t; N] {
    let traits = const { traits(TY) };
    let n_blocks = shape.n_cols / LONG;
    // SAFETY: all offsets lie within rows of the shape.
    unsafe {
        let zero = vdupq_n_s32(0);
        let mut dots = [vdupq_n_f32(0.0); N];
        for b in 0..n_blocks {
            let stride = GROUP * shape.row_bytes;
            let ahead = ahead(b, n_blocks, AHEAD / traits.block_bytes, stride, traits.block_bytes);
            let mut isums = [[zero; GROUP]; N];
            let mut msums = [[zero; GROUP]; N];
            for r in 0..GROUP {
                prefetch(blocks[r].wrapping_offset(ahead), traits.block_bytes);
                let factors = scales::<TY>(blocks[r]);
                let mut sums = [zero; N];
                for n in 0..N {
                    let row = activations.add(n * shape.layout.row_bytes);
                    if traits.minima || traits.offset != 0 {
                        let asums = row.add(shape.layout.sums + 2 * LONG_SUMS * b).cast::<i16>();
                        let msum = if traits.sub_len == 16 {
                            let msum = products(factors.mins[0], vld1q_s16(asums));
                            add_products(msum, factors.mins[1], vld1q_s16(asums.add(8)))
                        } else {
                            products(factors.mins[0], vld1q_s16(asums.add(16)))
                        };
                        if traits.minima {
                            msums[n][r] = msum;
                        } else {
                            sums[n] = vnegq_s32(msum);
                        }
                    }
                }
                let columns = activations.add(b * LONG);
                half::<TY, ISA, 0, N>(&mut sums, blocks[r], &factors, columns, shape);
                half::<TY, ISA, 1, N>(&mut sums, blocks[r], &factors, columns, shape);
                for n in 0..N {
                    isums[n][r] = sums[n];
                }
            }
            let (d, dmin) = float_scales::<TY>(&blocks);
            for n in 0..N {
                let scale = activations.add(n * shape.layout.row_bytes + shape.layout.scales + 4 * b);
                let scale = vld1q_dup_f32(scale.cast());
                let isum = vcvtq_f32_s32(sums_across(isums[n]));
                dots[n] = vfmaq_f32(dots[n], vmulq_f32(d, scale), isum);
                if traits.minima {
                    let msum = vcvtq_f32_s32(sums_across(msums[n]));
                    dots[n] = vfmsq_f32(dots[n], vmulq_f32(dmin, scale), msum);
                }
            }
            blocks = blocks.map(|block| block.wrapping_add(traits.block_bytes));
        }
        dots
    }
}

/// Adds the parts of scale * quant * activation quant over the `H`-th half of a super-block to the lanes of the sums.
///
/// # Safety
///
/// The block and, from the super-block's first column on, `N` rows of activations must be readable, and the processor
/// have what `ISA` stands for.
#[inline(always)]
unsafe fn half<const TY: u32, const ISA: u32, const H: usize, const N: usize>(
    sums: &mut [int32x4_t; N],
    block: *const u8,
    factors: &Scales,
    activations: *const u8,
    shape: &Shape,
) {
    let traits = const { traits(TY) };
    // SAFETY: as promised by the caller; activations are never -128.
    unsafe {
        let zero = vdupq_n_s32(0);
        let quants = quants::<TY, H>(block);
        for n in 0..N {
            let x = |i: usize| load(activations.add(n * shape.layout.row_bytes + H * LONG / 2 + 16 * i));
            if traits.sub_len == 16 {
                let four = |at: usize| {
                    sums_across([0, 1, 2, 3].map(|i| dot::<ISA>(zero, quants[at + i], x(at + i))))
                };
                sums[n] = vmlaq_s32(sums[n], four(0), four_of(factors.scales[H], 0));
                sums[n] = vmlaq_s32(sums[n], four(4), four_of(factors.scales[H], 1));
            } else {
                let dots = [0, 1, 2, 3].map(|i| {
                    let first = dot::<ISA>(zero, quants[2 * i], x(2 * i));
                    dot::<ISA>(first, quants[2 * i + 1], x(2 * i + 1))
                });
                sums[n] = vmlaq_s32(sums[n], sums_across(dots), four_of(factors.scales[0], H));
            }
        }
    }
}

/// The lower or the upper four of eight.
#[inline(always)]
fn four_of(v: int16x8_t, half: usize) -> int32x4_t {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe { if half == 0 { vmovl_s16(vget_low_s16(v)) } else { vmovl_high_s16(v) } }
}

/// Eight products, in four sums.
#[inline(always)]
fn products(a: int16x8_t, b: int16x8_t) -> int32x4_t {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe { vmlal_high_s16(vmull_s16(vget_low_s16(a), vget_low_s16(b)), a, b) }
}

#[inline(always)]
fn add_products(sums: int32x4_t, a: int16x8_t, b: int16x8_t) -> int32x4_t {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe { vmlal_high_s16(vmlal_s16(sums, vget_low_s16(a), vget_low_s16(b)), a, b) }
}

/// The dot products of four rows in blocks of 32 with `N` rows of activations.
///
/// # Safety
///
/// As for [`multiply`], for these rows.
#[inline(always)]
unsafe fn short<const TY: u32, const ISA: u32, const N: usize>(
    mut blocks: [*const u8; GROUP],
    activations: *const u8,
    shape: &Shape,
) -> [float32x4_t; N] {
    let traits = const { traits(TY) };
    let n_blocks = shape.n_cols / SHORT;
    // SAFETY: all offsets lie within rows of the shape.
    unsafe {
        let mut dots = [vdupq_n_f32(0.0); N];
        for b in 0..n_blocks {
            let stride = GROUP * shape.row_bytes;
            let ahead = ahead(b, n_blocks, AHEAD / traits.block_bytes, stride, traits.block_bytes);
            let mut isums = [[vdupq_n_s32(0); GROUP]; N];
            for n in 0..N {
                if traits.offset != 0 {
                    let sums = activations.add(n * shape.layout.row_bytes + shape.layout.sums);
                    let sum = i32::from(sums.cast::<i16>().add(b).read_unaligned());
                    let taken_off = -i32::from(traits.offset) * sum;
                    isums[n] = [vsetq_lane_s32::<0>(taken_off, vdupq_n_s32(0)); GROUP];
                }
            }
            for r in 0..GROUP {
                prefetch(blocks[r].wrapping_offset(ahead), traits.block_bytes);
                let quants = short_quants::<TY>(blocks[r]);
                for n in 0..N {
                    let x = activations.add(n * shape.layout.row_bytes + b * SHORT);
                    let first = dot::<ISA>(isums[n][r], quants[0], load(x));
                    isums[n][r] = dot::<ISA>(first, quants[1], load(x.add(16)));
                }
            }
            let (d, m) = float_scales::<TY>(&blocks);
            for n in 0..N {
                let row = activations.add(n * shape.layout.row_bytes);
                let scale = vld1q_dup_f32(row.add(shape.layout.scales + 4 * b).cast());
                let isum = vcvtq_f32_s32(sums_across(isums[n]));
                dots[n] = vfmaq_f32(dots[n], vmulq_f32(d, scale), isum);
                if traits.minima {
                    let sum = row.add(shape.layout.sums).cast::<i16>().add(b).read_unaligned();
                    dots[n] = vfmaq_n_f32(dots[n], vmulq_f32(m, scale), f32::from(sum));
                }
            }
            blocks = blocks.map(|block| block.wrapping_add(traits.block_bytes));
        }
        dots
    }
}
