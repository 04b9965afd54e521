//! IQ4_NL and IQ4_XS: 4 bits that index a grid of uneven steps, finer near zero; 32 weights to a scale.
//!
//! ```text
//! IQ4_NL   weight = d * grid[q]
//! IQ4_XS   weight = d * (scale[s] - 32) * grid[q]        s: the weight's sub-block
//! ```
//!
//! | IQ4_NL | IQ4_XS   | content |
//! |--------|----------|---------|
//! | 0..2   | 0..2     | d, F16 |
//! |        | 2..4     | upper 2 bits of the 6-bit scales, from the lowest bits up |
//! |        | 4..8     | lower 4 bits of the scales, two to a byte, from the lowest bits up |
//! | 2..18  | 8..136   | q: byte 16 s + i holds weights i and (above) i + 16 of sub-block s |
//!
//! All little-endian. Quants are computed with the unrounded d.

use super::emphasis::{emphasize, sum_of_squares};
use super::float::{f16_from_f32, f32_from_f16};
use super::round::nearest;
use super::search::NEGLIGIBLE;
use crate::TensorType;

pub(crate) const LEN: usize = 256;
pub(crate) const SUB_LEN: usize = 32;
pub(crate) const N_SUB: usize = LEN / SUB_LEN;
pub(crate) const IQ4_NL: usize = 2 + SUB_LEN / 2;
pub(crate) const IQ4_XS: usize = 2 + 2 + N_SUB / 2 + LEN / 2;
const _: () = {
    assert!(TensorType::IQ4_NL.block_len() == SUB_LEN && TensorType::IQ4_NL.block_bytes() == IQ4_NL);
    assert!(TensorType::IQ4_XS.block_len() == LEN && TensorType::IQ4_XS.block_bytes() == IQ4_XS);
};

/// What the quants stand for (`kvalues_iq4nl` in `ggml-common.h`).
pub(crate) const GRID: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Half-way points of the grid. From there on, up to the next, weights go to the upper neighbour.
pub(crate) const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (GRID[i] as f32 + GRID[i + 1] as f32) / 2.0;
        i += 1;
    }
    thresholds
};

/// How many grid units the candidates of [`fit`] spread the largest weight beyond the lowest grid point.
pub(crate) const SPREADS: [i8; 15] = [-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

/// Scales in IQ4_XS lie in `-SCALE_OFFSET..SCALE_OFFSET` and are stored with it added.
pub(crate) const SCALE_OFFSET: i32 = 32;

pub(crate) fn quantize_iq4_nl(weights: &[f32; SUB_LEN], block: &mut [u8; IQ4_NL]) {
    store_iq4_nl(weights, &weights.map(|x| x * x), block);
}

pub(crate) fn quantize_weighted_iq4_nl(
    weights: &[f32; SUB_LEN],
    importance: &[f32; SUB_LEN],
    block: &mut [u8; IQ4_NL],
) {
    let mean_square = sum_of_squares(weights) * (2.0 / SUB_LEN as f32);
    store_iq4_nl(weights, &emphasize(weights, importance, mean_square), block);
}

fn store_iq4_nl(weights: &[f32; SUB_LEN], emphasis: &[f32; SUB_LEN], block: &mut [u8; IQ4_NL]) {
    let d = fit(weights, emphasis);
    let (scale, quants) = block.split_at_mut(2);
    scale.copy_from_slice(&f16_from_f32(d).to_le_bytes());
    store_quants(weights, d, quants);
}

pub(crate) fn dequantize_iq4_nl(block: &[u8; IQ4_NL], weights: &mut [f32; SUB_LEN]) {
    let d = f32_from_f16(u16::from_le_bytes([block[0], block[1]]));
    load_weights(&block[2..], d, weights);
}

pub(crate) fn quantize_iq4_xs(weights: &[f32; LEN], block: &mut [u8; IQ4_XS]) {
    store_iq4_xs(weights, &weights.map(|x| x * x), block);
}

pub(crate) fn quantize_weighted_iq4_xs(
    weights: &[f32; LEN],
    importance: &[f32; LEN],
    block: &mut [u8; IQ4_XS],
) {
    let mean_square = sum_of_squares(weights) * (2.0 / LEN as f32);
    store_iq4_xs(weights, &emphasize(weights, importance, mean_square), block);
}

fn store_iq4_xs(weights: &[f32; LEN], emphasis: &[f32; LEN], block: &mut [u8; IQ4_XS]) {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let (emphasis, _) = emphasis.as_chunks();
    let mut scales = [0.0; N_SUB];
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for (scale, (weights, emphasis)) in scales.iter_mut().zip(weights.iter().zip(emphasis)) {
        *scale = fit(weights, emphasis);
        if scale.abs() > magnitude {
            (extreme, magnitude) = (*scale, scale.abs());
        }
    }

    let d = -extreme / SCALE_OFFSET as f32;
    let inverse = reciprocal(d);
    block[..2].copy_from_slice(&f16_from_f32(d).to_le_bytes());
    let (stored_scales, quants) = block[2..].split_at_mut(2 + N_SUB / 2);
    stored_scales.fill(0);
    for (s, weights) in weights.iter().enumerate() {
        let scale = nearest(inverse * scales[s]).clamp(-SCALE_OFFSET, SCALE_OFFSET - 1);
        store_quants(weights, d * scale as f32, &mut quants[s * 16..][..16]);
        let stored = (scale + SCALE_OFFSET) as u8;
        stored_scales[s / 4] |= (stored >> 4) << (s % 4 * 2);
        stored_scales[2 + s / 2] |= (stored & 15) << (s % 2 * 4);
    }
}

pub(crate) fn dequantize_iq4_xs(block: &[u8; IQ4_XS], weights: &mut [f32; LEN]) {
    let d = f32_from_f16(u16::from_le_bytes([block[0], block[1]]));
    for (s, weights) in weights.as_chunks_mut().0.iter_mut().enumerate() {
        let upper = block[2 + s / 4] >> (s % 4 * 2) & 3;
        let lower = block[4 + s / 2] >> (s % 2 * 4) & 15;
        let scale = f32::from(upper << 4 | lower) - SCALE_OFFSET as f32;
        load_weights(&block[8 + s * 16..][..16], d * scale, weights);
    }
}

/// The best scale found: quantize with each of a list of candidates, solve the weighted least squares problem for the
/// quants that come out, keep the best. Zero for negligible weights.
fn fit(weights: &[f32; SUB_LEN], emphasis: &[f32; SUB_LEN]) -> f32 {
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &x in weights {
        if x.abs() > magnitude {
            (extreme, magnitude) = (x, x.abs());
        }
    }
    if magnitude < NEGLIGIBLE {
        return 0.0;
    }

    let lowest = f32::from(GRID[0]);
    let mut inverses = [0.0; 1 + SPREADS.len()];
    // The first candidate maps the largest weight to the upper end, where the grid stops short of it.
    inverses[0] = 1.0 / (-extreme / lowest);
    for (inverse, spread) in inverses[1..].iter_mut().zip(SPREADS) {
        *inverse = (f32::from(spread) + lowest) / extreme;
    }
    let mut sums_wqx = [0.0; 1 + SPREADS.len()];
    let mut sums_wqq = [0.0; 1 + SPREADS.len()];
    for (&x, &w) in weights.iter().zip(emphasis) {
        for c in 0..inverses.len() {
            let q = f32::from(GRID[nearest_on_grid(inverses[c] * x)]);
            sums_wqx[c] += w * q * x;
            sums_wqq[c] += w * q * q;
        }
    }

    let mut scale = if sums_wqq[0] > 0.0 { sums_wqx[0] / sums_wqq[0] } else { 0.0 };
    let mut best = scale * sums_wqx[0];
    for (sum_wqx, sum_wqq) in sums_wqx.into_iter().zip(sums_wqq).skip(1) {
        if sum_wqq > 0.0 && sum_wqx * sum_wqx > best * sum_wqq {
            scale = sum_wqx / sum_wqq;
            best = scale * sum_wqx;
        }
    }
    scale
}

/// The index of the grid point next to `value`, the upper of two equally near ones; the last one for NaN.
#[inline]
fn nearest_on_grid(value: f32) -> usize {
    THRESHOLDS.len() - THRESHOLDS.iter().filter(|&&threshold| value < threshold).count()
}

/// 1 / `scale`, but 0 for 0.
#[inline]
pub(crate) fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn store_quants(weights: &[f32; SUB_LEN], scale: f32, bytes: &mut [u8]) {
    let inverse = reciprocal(scale);
    let quants = weights.map(|x| nearest_on_grid(inverse * x) as u8);
    let (low, high) = quants.split_at(SUB_LEN / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low | high << 4;
    }
}

fn load_weights(bytes: &[u8], scale: f32, weights: &mut [f32; SUB_LEN]) {
    let (low, high) = weights.split_at_mut(SUB_LEN / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = scale * f32::from(GRID[usize::from(byte & 15)]);
        *high = scale * f32::from(GRID[usize::from(byte >> 4)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_grid_point_is_that_of_a_search_by_distance() {
        let by_distance = |value: f32| {
            let distance = |&i: &usize| (value - f32::from(GRID[i])).abs();
            (0..16).rev().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
        };
        for quarters in -560..=560_i16 {
            let value = f32::from(quarters) / 4.0;
            for value in [value.next_down(), value, value.next_up()] {
                assert_eq!(nearest_on_grid(value), by_distance(value), "{value}");
            }
        }
        assert_eq!(nearest_on_grid(f32::NEG_INFINITY), 0);
        assert_eq!(nearest_on_grid(f32::INFINITY), 15);
        assert_eq!(nearest_on_grid(f32::NAN), 15);
    }
}
