//! Attention for AArch64: the definition's steps in vectors of four lanes, in the definition's own order.
//!
//! The compiler makes no vectors of the definition here, only scalar multiplications. Thirty-two registers hold the sums of
//! six dot products, or four rows of sixteen lanes that are gathered, and what is multiplied.
#![allow(clippy::needless_range_loop, reason = "arrays of registers are walked side by side")]

use super::matmul::widen_halves;
use crate::TensorType;
use crate::attention::{BLOCK, Buffers, Cells, Job, LANES, Lanes, Steps, attend_by, exponential};
use std::arch::aarch64::*;
use std::ops::Range;

/// Sixteen lanes.
type Vectors = [float32x4_t; LANES / 4];

/// Does the job.
pub(crate) fn attend(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    attend_by(job, buffers, out, &Neon);
}

/// The steps of the kernels; every processor that they are compiled for has NEON.
struct Neon;

impl Steps for Neon {
    #[inline(always)]
    fn widen(&self, job: &Job<'_>, cells: Range<usize>, buffers: &mut Buffers) {
        let (n_k, n_v) = (job.keys.dim.div_ceil(LANES), job.values.dim.div_ceil(LANES));
        for cell in cells {
            let place = cell % BLOCK;
            widen(&job.keys, cell, &mut buffers.keys[place * n_k..][..n_k]);
            widen(&job.values, cell, &mut buffers.values[place * n_v..][..n_v]);
        }
    }

    #[inline(always)]
    fn look_at(
        &self,
        buffers: &mut Buffers,
        rows: Range<usize>,
        cells: Range<usize>,
        [n_k, n_v]: [usize; 2],
    ) {
        let Buffers { queries, gathered, keys, values, scores, largest, total } = buffers;
        let queries = &queries[rows.start * n_k..rows.end * n_k];
        let scores = &mut scores[rows.clone()];
        for (queries, scores) in queries.chunks(2 * n_k).zip(scores.chunks_mut(2)) {
            match scores.len() {
                2 => score::<2, 3>(queries, keys, scores, &cells, n_k),
                _ => score::<1, 4>(queries, keys, scores, &cells, n_k),
            }
        }
        for row in rows.clone() {
            let (largest, total) = (&mut largest[row], &mut total[row]);
            if let Some(factor) = weigh(&mut scores[row - rows.start], largest, total, &cells) {
                for lanes in &mut gathered[row * n_v..][..n_v] {
                    for lane in &mut lanes.0 {
                        *lane *= factor;
                    }
                }
            }
        }
        let gathered = &mut gathered[rows.start * n_v..rows.end * n_v];
        for (gathered, scores) in gathered.chunks_mut(4 * n_v).zip(scores.chunks(4)) {
            match scores.len() {
                4 => gather::<4>(gathered, values, scores, &cells, n_v),
                3 => gather::<3>(gathered, values, scores, &cells, n_v),
                2 => gather::<2>(gathered, values, scores, &cells, n_v),
                _ => gather::<1>(gathered, values, scores, &cells, n_v),
            }
        }
    }
}

#[inline(always)]
fn load(lanes: &Lanes) -> Vectors {
    // SAFETY: sixteen floats can be read.
    [0, 4, 8, 12].map(|at| unsafe { vld1q_f32(lanes.0.as_ptr().add(at)) })
}

#[inline(always)]
fn store(vectors: Vectors, lanes: &mut Lanes) {
    for (i, vector) in vectors.into_iter().enumerate() {
        // SAFETY: sixteen floats can be written.
        unsafe { vst1q_f32(lanes.0.as_mut_ptr().add(4 * i), vector) }
    }
}

/// Scores of `R` rows with the cells, `C` at a time.
#[inline(always)]
fn score<const R: usize, const C: usize>(
    queries: &[Lanes],
    keys: &[Lanes],
    scores: &mut [[f32; BLOCK]],
    cells: &Range<usize>,
    n: usize,
) {
    if cells.len() < C {
        for cell in cells.clone() {
            let dots = dots::<R, 1>(queries, &keys[cell * n..], n);
            for r in 0..R {
                scores[r][cell] = dots[r][0];
            }
        }
        return;
    }
    for cell in cells.clone().step_by(C) {
        // Some of the last cells are taken twice.
        let cell = cell.min(cells.end - C);
        let dots = dots::<R, C>(queries, &keys[cell * n..], n);
        for r in 0..R {
            scores[r][cell..cell + C].copy_from_slice(&dots[r]);
        }
    }
}

/// Dot products of `R` rows of queries with `C` of keys, each of `n` times sixteen lanes.
#[inline(always)]
fn dots<const R: usize, const C: usize>(queries: &[Lanes], keys: &[Lanes], n: usize) -> [[f32; C]; R] {
    let (queries, keys) = (&queries[..R * n], &keys[..C * n]);
    // SAFETY: there is NEON; the offsets lie within the rows, whose lengths have just been checked.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); 4]; C]; R];
        for i in 0..n {
            for part in 0..4 {
                let lanes = |of: &[Lanes], row: usize| {
                    vld1q_f32(of.as_ptr().add(row * n + i).cast::<f32>().add(4 * part))
                };
                let mut key = [vdupq_n_f32(0.0); C];
                for c in 0..C {
                    key[c] = lanes(keys, c);
                }
                for r in 0..R {
                    let query = lanes(queries, r);
                    for c in 0..C {
                        sums[r][c][part] = vfmaq_f32(sums[r][c][part], query, key[c]);
                    }
                }
            }
        }
        let mut dots = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                dots[r][c] = add_up(sums[r][c]);
            }
        }
        dots
    }
}

/// The sum of sixteen lanes, by halves.
#[inline(always)]
fn add_up(lanes: Vectors) -> f32 {
    // SAFETY: there is NEON.
    unsafe {
        let four = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
        vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
    }
}

/// Makes probabilities of a row's scores, up to their sum. What was gathered before must be multiplied with the result.
#[inline(always)]
fn weigh(scores: &mut [f32; BLOCK], largest: &mut f32, total: &mut f32, cells: &Range<usize>) -> Option<f32> {
    scores[..cells.start].fill(f32::NEG_INFINITY);
    scores[cells.end..].fill(f32::NEG_INFINITY);
    // SAFETY: there is NEON; the vectors lie within the block.
    unsafe {
        let mut block = [vdupq_n_f32(0.0); BLOCK / 4];
        let mut max = vdupq_n_f32(f32::NEG_INFINITY);
        for i in 0..block.len() {
            block[i] = vld1q_f32(scores.as_ptr().add(4 * i));
            // Where one is NaN it is the other, as in the definition.
            max = vmaxnmq_f32(max, block[i]);
        }
        let max = vmaxnmvq_f32(max);
        let factor = (max > *largest).then(|| {
            let factor = vgetq_lane_f32::<0>(exp(vdupq_n_f32(*largest - max)));
            *largest = max;
            *total *= factor;
            factor
        });
        for i in 0..block.len() {
            block[i] = exp(vsubq_f32(block[i], vdupq_n_f32(*largest)));
            vst1q_f32(scores.as_mut_ptr().add(4 * i), block[i]);
        }
        *total += add_up([0, 1, 2, 3].map(|i| vaddq_f32(block[i], block[i + 4])));
        factor
    }
}

/// The definition's exponential function.
#[inline(always)]
fn exp(x: float32x4_t) -> float32x4_t {
    use exponential::*;
    // SAFETY: there is NEON.
    unsafe {
        let rounder = vdupq_n_f32(ROUNDER);
        let shifted = vfmaq_f32(rounder, x, vdupq_n_f32(LOG2_E));
        let n = vsubq_f32(shifted, rounder);
        let r = vfmaq_f32(x, n, vdupq_n_f32(-LN_2_HIGH));
        let r = vfmaq_f32(r, n, vdupq_n_f32(-LN_2_LOW));
        let mut p = vdupq_n_f32(LEADING);
        for coefficient in COEFFICIENTS {
            p = vfmaq_f32(vdupq_n_f32(coefficient), r, p);
        }
        let power = vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(BIAS));
        let power = vreinterpretq_f32_u32(vshlq_n_u32::<23>(power));
        let is_zero = vcltq_f32(x, vdupq_n_f32(LOWEST));
        vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(p, power)), is_zero))
    }
}

/// Adds the cells' values, weighed, to what `G` rows have gathered.
#[inline(always)]
fn gather<const G: usize>(
    gathered: &mut [Lanes],
    values: &[Lanes],
    weights: &[[f32; BLOCK]],
    cells: &Range<usize>,
    n: usize,
) {
    let weights = &weights[..G];
    for i in 0..n {
        let mut sums: [Vectors; G] = std::array::from_fn(|g| load(&gathered[g * n + i]));
        for cell in cells.clone() {
            let value = load(&values[cell * n + i]);
            for g in 0..G {
                for part in 0..4 {
                    // SAFETY: there is NEON.
                    sums[g][part] =
                        unsafe { vfmaq_n_f32(sums[g][part], value[part], weights[g][cell % BLOCK]) };
                }
            }
        }
        for g in 0..G {
            store(sums[g], &mut gathered[g * n + i]);
        }
    }
}

/// Reads the row of a cell; lanes behind its end are left alone.
#[inline(always)]
fn widen(cells: &Cells<'_>, cell: usize, out: &mut [Lanes]) {
    let row = &cells.rows[cell * cells.row_bytes..][..cells.row_bytes];
    match cells.ty {
        TensorType::F16 => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(2 * LANES)) {
                widen_f16(bytes, lanes);
            }
        }
        TensorType::BF16 => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(2 * LANES)) {
                for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *lane = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
        }
        TensorType::Q8_0 => {
            for (lanes, block) in out.as_chunks_mut::<2>().0.iter_mut().zip(row.as_chunks::<34>().0) {
                let d = crate::scalar::f32_from_f16(u16::from_le_bytes([block[0], block[1]]));
                for (lanes, quants) in lanes.iter_mut().zip(block[2..].as_chunks::<LANES>().0) {
                    for (lane, quant) in lanes.0.iter_mut().zip(quants) {
                        *lane = f32::from(*quant as i8) * d;
                    }
                }
            }
        }
        _ => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(4 * LANES)) {
                for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *lane = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Reads up to sixteen elements.
#[inline(always)]
fn widen_f16(bytes: &[u8], lanes: &mut Lanes) {
    let Ok(whole) = <&[u8; 2 * LANES]>::try_from(bytes) else {
        for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *lane = crate::scalar::f32_from_f16(u16::from_le_bytes(*bytes));
        }
        return;
    };
    // SAFETY: sixteen halves can be read.
    let read = |at: usize| unsafe { vld1_u16(whole.as_ptr().cast::<u16>().add(at)) };
    store([0, 4, 8, 12].map(|at| widen_halves(read(at))), lanes);
}
