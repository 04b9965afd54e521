//! Weights that are floats: 16 running sums for each dot product, those of a few rows kept in registers. NEON.

use std::arch::aarch64::*;
use std::mem::MaybeUninit;

use super::blocks::widen_halves;
use crate::TensorType;
use crate::matmul::{FLOAT_LANES, Shape};

pub(super) const F32: u32 = TensorType::F32.id();
pub(super) const F16: u32 = TensorType::F16.id();
pub(super) const BF16: u32 = TensorType::BF16.id();

/// Rows of weights in a tile.
const ROWS: usize = 16;
/// Rows of activations whose running sums are kept while a tile moves along the columns.
const PANEL: usize = 32;
/// Columns of a tile: two rows of activations and a tile's weights fit a small first cache.
const COLUMNS: usize = 512;

/// The 16 running sums of a dot product.
type Sums = [float32x4_t; 4];
type Panel = [[MaybeUninit<Sums>; PANEL]; ROWS];

/// Where a step's rows are and what it does with them.
#[derive(Clone, Copy)]
struct Step<'a> {
    weights: *const u8,
    activations: *const u8,
    first_column: usize,
    n_columns: usize,
    shape: &'a Shape,
}

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// `weights`, `activations` and `out` must be as large as the shape says.
pub(super) unsafe fn multiply<const TY: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let mut panel: Panel = [[MaybeUninit::uninit(); PANEL]; ROWS];
    for first_act in (0..shape.n_acts).step_by(PANEL) {
        let n_acts = PANEL.min(shape.n_acts - first_act);
        for w in (0..shape.n_rows).step_by(ROWS) {
            let n_rows = ROWS.min(shape.n_rows - w);
            // SAFETY: the offsets are rows within the shape.
            unsafe {
                let weights = weights.add(w * shape.row_bytes);
                let activations = activations.add(first_act * shape.layout.row_bytes);
                for first_column in (0..shape.n_cols).step_by(COLUMNS) {
                    let n_columns = COLUMNS.min(shape.n_cols - first_column);
                    let step = Step { weights, activations, first_column, n_columns, shape };
                    tile::<TY>(step, n_rows, n_acts, &mut panel);
                }
                for a in 0..n_acts {
                    let out = out.add((first_act + a) * shape.out_stride + w);
                    for (r, dots) in panel[..n_rows].iter().enumerate() {
                        out.add(r).write(sum_across(dots[a].assume_init()));
                    }
                }
            }
        }
    }
}

/// # Safety
///
/// The step must lie within its shape for so many rows of each.
#[inline(always)]
unsafe fn tile<const TY: u32>(step: Step<'_>, n_rows: usize, n_acts: usize, panel: &mut Panel) {
    let mut a = 0;
    while a < n_acts {
        let n = (n_acts - a).min(3);
        let mut r = 0;
        while r < n_rows {
            // SAFETY: as promised by the caller; rows r.. and a.. are within n_rows and n_acts.
            unsafe {
                r += match (n_rows - r, n) {
                    (4.., 1) => rows::<TY, 4, 1>(step, r, a, panel),
                    (_, 1) => rows::<TY, 1, 1>(step, r, a, panel),
                    (2.., 2) => rows::<TY, 2, 2>(step, r, a, panel),
                    (_, 2) => rows::<TY, 1, 2>(step, r, a, panel),
                    (2.., _) => rows::<TY, 2, 3>(step, r, a, panel),
                    _ => rows::<TY, 1, 3>(step, r, a, panel),
                };
            }
        }
        a += n;
    }
}

/// Adds the step's columns to the running sums of `W` rows of weights from `r` on and `N` rows of activations from `a`
/// on; the result is `W`.
///
/// # Safety
///
/// The step must lie within its shape for these rows.
#[inline(always)]
unsafe fn rows<const TY: u32, const W: usize, const N: usize>(
    step: Step<'_>,
    r: usize,
    a: usize,
    panel: &mut Panel,
) -> usize {
    let size = const { weight_bytes(TY) };
    // SAFETY: all offsets lie within the rows; those of activations are padded to whole vectors.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); 4]; N]; W];
        if step.first_column > 0 {
            for w in 0..W {
                for n in 0..N {
                    sums[w][n] = panel[r + w][a + n].assume_init();
                }
            }
        }
        let weights: [*const u8; W] = std::array::from_fn(|w| {
            step.weights.add((r + w) * step.shape.row_bytes + step.first_column * size)
        });
        let activations: [*const f32; N] = std::array::from_fn(|n| {
            let row = step.activations.add((a + n) * step.shape.layout.row_bytes);
            row.cast::<f32>().add(step.first_column)
        });
        let whole = step.n_columns / FLOAT_LANES * FLOAT_LANES;
        for i in (0..whole).step_by(FLOAT_LANES) {
            for part in 0..4 {
                let at = i + part * FLOAT_LANES / 4;
                let x: [float32x4_t; N] = std::array::from_fn(|n| vld1q_f32(activations[n].add(at)));
                for w in 0..W {
                    let weight = load::<TY>(weights[w].add(at * size));
                    for n in 0..N {
                        sums[w][n][part] = vfmaq_f32(sums[w][n][part], weight, x[n]);
                    }
                }
            }
        }
        if whole < step.n_columns {
            for w in 0..W {
                let mut padded = [0_u8; FLOAT_LANES * 4];
                let rest = (step.n_columns - whole) * size;
                std::ptr::copy_nonoverlapping(weights[w].add(whole * size), padded.as_mut_ptr(), rest);
                for part in 0..4 {
                    let weight = load::<TY>(padded.as_ptr().add(part * FLOAT_LANES / 4 * size));
                    for n in 0..N {
                        let x = vld1q_f32(activations[n].add(whole + part * FLOAT_LANES / 4));
                        sums[w][n][part] = vfmaq_f32(sums[w][n][part], weight, x);
                    }
                }
            }
        }
        for w in 0..W {
            for n in 0..N {
                panel[r + w][a + n].write(sums[w][n]);
            }
        }
    }
    W
}

const fn weight_bytes(ty: u32) -> usize {
    match ty {
        F32 => 4,
        F16 | BF16 => 2,
        _ => panic!("not a type of floats"),
    }
}

/// Four weights.
///
/// # Safety
///
/// They must be readable.
#[inline(always)]
unsafe fn load<const TY: u32>(from: *const u8) -> float32x4_t {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe {
        match TY {
            F32 => vld1q_f32(from.cast()),
            F16 => widen_halves(vld1_u16(from.cast())),
            _ => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.cast())))),
        }
    }
}

/// The sum of the 16: i with i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
fn sum_across(sums: Sums) -> f32 {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        let four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
        let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    }
}
