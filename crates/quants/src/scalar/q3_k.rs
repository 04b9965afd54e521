//! Q3_K: 256 weights in 16 sub-blocks of 16; each sub-block has a scale of 6 bits, relative to the super-block's F16
//! scale.
//!
//! ```text
//! weight = d * (scale[s] - 32) * (q - 4)        s: the weight's sub-block
//! ```
//!
//! | bytes    | content |
//! |----------|---------|
//! | 0..32    | byte i: bit 4 h + k is the upper bit of q of weight 32 k + i in half h of the super-block |
//! | 32..96   | lower 2 bits of q: byte 32 h + i holds weights i, i + 32, i + 64, i + 96 of half h, from the lowest bits up |
//! | 96..104  | byte i: lower 4 bits of scale\[i\], and above them those of scale\[i + 8\] |
//! | 104..108 | byte i: upper 2 bits of scale\[i\], \[i + 4\], \[i + 8\], \[i + 12\], from the lowest bits up |
//! | 108..110 | d, F16 |

use super::emphasis::{emphasize, sum_of_squares};
use super::float::{f16_from_f32, f32_from_f16};
use super::round::nearest;
use super::search::{NEGLIGIBLE, fit_symmetric};
use crate::TensorType;

pub(crate) const LEN: usize = 256;
pub(crate) const SUB_LEN: usize = 16;
pub(crate) const N_SUB: usize = LEN / SUB_LEN;
const UPPER: usize = LEN / 8;
const LOWER: usize = LEN / 4;
const SCALES: usize = 12;
pub(crate) const Q3_K: usize = UPPER + LOWER + SCALES + 2;
const _: () = assert!(TensorType::Q3_K.block_len() == LEN && TensorType::Q3_K.block_bytes() == Q3_K);

/// Quants lie in `-OFFSET..OFFSET` and are stored with it added.
pub(crate) const OFFSET: u8 = 4;
/// The same for the scales of the sub-blocks.
pub(crate) const SCALE_OFFSET: u8 = 32;

pub(crate) fn quantize_q3_k(weights: &[f32; LEN], block: &mut [u8; Q3_K]) {
    let (sub_blocks, _) = weights.as_chunks::<SUB_LEN>();
    let mut quants = [0; LEN];
    let mut scales = [0.0; N_SUB];
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for (s, quants) in quants.as_chunks_mut().0.iter_mut().enumerate() {
        scales[s] = descend(&sub_blocks[s], quants);
        if scales[s].abs() > magnitude {
            (extreme, magnitude) = (scales[s], scales[s].abs());
        }
    }

    if extreme == 0.0 {
        // Scales of zero, stored without their offset: what that means has no effect beside the super-block's.
        pack(&quants, &[0; N_SUB], 0, block);
        return;
    }
    let inverse = -f32::from(SCALE_OFFSET) / extreme;
    let half = SCALE_OFFSET as i8;
    // In blocks of denormals the inverse can be infinite; then the low byte of what `nearest` makes of that counts.
    let scales = scales.map(|scale| ((nearest(inverse * scale) as i8).clamp(-half, half - 1) + half) as u8);
    let d = f16_from_f32(1.0 / inverse);
    requantize(weights, &scales, d, &mut quants);
    pack(&quants, &scales, d, block);
}

pub(crate) fn quantize_weighted_q3_k(weights: &[f32; LEN], importance: &[f32; LEN], block: &mut [u8; Q3_K]) {
    let mean_square = 2.0 * sum_of_squares(weights) / LEN as f32;
    let emphasis = emphasize(weights, importance, mean_square);
    let (sub_blocks, _) = weights.as_chunks::<SUB_LEN>();
    let (emphasis, _) = emphasis.as_chunks::<SUB_LEN>();
    let mut quants = [0; LEN];
    let mut scales = [0.0; N_SUB];
    for (s, quants) in quants.as_chunks_mut().0.iter_mut().enumerate() {
        scales[s] = fit_symmetric(&sub_blocks[s], &emphasis[s], OFFSET, quants);
    }

    let sums = std::array::from_fn(|s| {
        let mut sum = 0.0;
        for w in emphasis[s] {
            sum += w;
        }
        sum
    });
    let mut stored_scales = [0; N_SUB];
    let d = f16_from_f32(fit_symmetric(&scales, &sums, SCALE_OFFSET, &mut stored_scales));
    requantize(weights, &stored_scales, d, &mut quants);
    pack(&quants, &stored_scales, d, block);
}

/// The scale found by starting at that which maps the largest weight to -4 and then, weight by weight, moving to the
/// quant that is best with the scale that suits all others, as long as that improves the fit; and the quants that go
/// with it, stored. Errors count with the square of the weight. A negligible sub-block gets scale 0 and stored quants 0.
fn descend(weights: &[f32; SUB_LEN], stored: &mut [u8; SUB_LEN]) -> f32 {
    const ROUNDS: usize = 5;
    let half = i32::from(OFFSET);
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &x in weights {
        if x.abs() > magnitude {
            (extreme, magnitude) = (x, x.abs());
        }
    }
    if magnitude < NEGLIGIBLE {
        stored.fill(0);
        return 0.0;
    }

    let inverse = -f32::from(OFFSET) / extreme;
    let mut quants = weights.map(|x| nearest(inverse * x).clamp(-half, half - 1));
    let (mut sum_wqx, mut sum_wqq) = (0.0, 0.0);
    for (&x, &q) in weights.iter().zip(&quants) {
        let (w, q) = (x * x, q as f32);
        sum_wqx += w * x * q;
        sum_wqq += w * q * q;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (&x, quant) in weights.iter().zip(&mut quants) {
            let (w, q) = (x * x, *quant as f32);
            let mut trial_wqx = sum_wqx - w * x * q;
            if trial_wqx > 0.0 {
                let mut trial_wqq = sum_wqq - w * q * q;
                let trial = nearest(x * trial_wqq / trial_wqx).clamp(-half, half - 1);
                if trial != *quant {
                    let q = trial as f32;
                    trial_wqx += w * x * q;
                    trial_wqq += w * q * q;
                    if trial_wqq > 0.0 && trial_wqx * trial_wqx * sum_wqq > sum_wqx * sum_wqx * trial_wqq {
                        (*quant, sum_wqx, sum_wqq) = (trial, trial_wqx, trial_wqq);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    *stored = quants.map(|q| (q + half) as u8);
    if sum_wqq > 0.0 { sum_wqx / sum_wqq } else { 0.0 }
}

/// The stored quants that go with the rounded scales. With a scale that was rounded to zero they have no effect; those of
/// the search stay.
fn requantize(weights: &[f32; LEN], scales: &[u8; N_SUB], d: u16, quants: &mut [u8; LEN]) {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let half = i32::from(OFFSET);
    for ((&scale, weights), quants) in scales.iter().zip(weights).zip(quants.as_chunks_mut().0) {
        let scale = f32_from_f16(d) * (f32::from(scale) - f32::from(SCALE_OFFSET));
        if scale != 0.0 {
            *quants = weights.map(|x| (nearest(x / scale).clamp(-half, half - 1) + half) as u8);
        }
    }
}

#[inline(always)]
pub(crate) fn pack(quants: &[u8; LEN], scales: &[u8; N_SUB], d: u16, block: &mut [u8; Q3_K]) {
    block.fill(0);
    let (upper, rest) = block.split_at_mut(UPPER);
    let (lower, rest) = rest.split_at_mut(LOWER);
    for (k, quants) in quants.as_chunks::<UPPER>().0.iter().enumerate() {
        for (i, quant) in quants.iter().enumerate() {
            upper[i] |= (quant >> 2) << k;
            lower[k / 4 * 32 + i] |= (quant & 3) << (k % 4 * 2);
        }
    }
    for (s, scale) in scales.iter().enumerate() {
        rest[s % 8] |= (scale & 15) << (s / 8 * 4);
        rest[8 + s % 4] |= (scale >> 4) << (s / 4 * 2);
    }
    rest[SCALES..].copy_from_slice(&d.to_le_bytes());
}

pub(crate) fn dequantize_q3_k(block: &[u8; Q3_K], weights: &mut [f32; LEN]) {
    let (upper, rest) = block.split_at(UPPER);
    let (lower, rest) = rest.split_at(LOWER);
    let (scales, d) = rest.split_at(SCALES);
    let d = f32_from_f16(u16::from_le_bytes([d[0], d[1]]));
    for (s, weights) in weights.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let nibble = scales[s % 8] >> (s / 8 * 4) & 15;
        let scale = nibble | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        // Eight sub-blocks to a half, two to each of its quarters.
        let (quarter, column) = (s / 2, s % 2 * SUB_LEN);
        let upper = &upper[column..][..SUB_LEN];
        let lower = &lower[s / 8 * 32 + column..][..SUB_LEN];
        for ((weight, upper), lower) in weights.iter_mut().zip(upper).zip(lower) {
            let quant = lower >> (quarter % 4 * 2) & 3 | (upper >> quarter & 1) << 2;
            *weight = scale * (f32::from(quant) - 4.0);
        }
    }
}
