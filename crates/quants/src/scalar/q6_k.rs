//! Q6_K: 256 weights in 16 sub-blocks of 16; each sub-block has a signed 8-bit scale, relative to the super-block's
//! F16 scale.
//!
//! ```text
//! weight = d * scale[s] * (q - 32)        s: the weight's sub-block
//! ```
//!
//! | bytes    | content |
//! |----------|---------|
//! | 0..128   | lower 4 bits of q: in half h of the super-block, byte 64 h + i holds weights i and (above) i + 64, for i in 0..64 |
//! | 128..192 | upper 2 bits of q: byte 32 h + i holds weights i, i + 32, i + 64, i + 96, from the lowest bits up |
//! | 192..208 | scales, i8 |
//! | 208..210 | d, F16 |

use super::float::{f16_from_f32, f32_from_f16};
use super::round::nearest;
use super::search::{NEGLIGIBLE, fit_symmetric};
use crate::TensorType;

pub(crate) const LEN: usize = 256;
pub(crate) const SUB_LEN: usize = 16;
pub(crate) const N_SUB: usize = LEN / SUB_LEN;
/// Half a super-block, the unit in which bits are spread over bytes.
const HALF: usize = LEN / 2;
const LOW: usize = LEN / 2;
const HIGH: usize = LEN / 4;
pub(crate) const Q6_K: usize = LOW + HIGH + N_SUB + 2;
const _: () = assert!(TensorType::Q6_K.block_len() == LEN && TensorType::Q6_K.block_bytes() == Q6_K);

/// Quants lie in `-OFFSET..OFFSET` and are stored with it added.
pub(crate) const OFFSET: u8 = 32;

pub(crate) fn quantize_q6_k(weights: &[f32; LEN], block: &mut [u8; Q6_K]) {
    quantize_weighted_q6_k(weights, &weights.map(|x| x * x), block);
}

/// The importance of the columns is taken as it is, regardless of the weights.
pub(crate) fn quantize_weighted_q6_k(weights: &[f32; LEN], importance: &[f32; LEN], block: &mut [u8; Q6_K]) {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let (importance, _) = importance.as_chunks();
    let mut quants = [0; LEN];
    let mut scales = [0.0; N_SUB];
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for (s, quants) in quants.as_chunks_mut().0.iter_mut().enumerate() {
        scales[s] = fit_symmetric(&weights[s], &importance[s], OFFSET, quants);
        if scales[s].abs() > magnitude {
            (extreme, magnitude) = (scales[s], scales[s].abs());
        }
    }
    if magnitude < NEGLIGIBLE {
        block.fill(0);
        return;
    }

    let inverse = -128.0 / extreme;
    let scales = scales.map(|scale| nearest(inverse * scale).min(127) as i8);
    let d = f16_from_f32(1.0 / inverse);
    for ((&scale, weights), quants) in scales.iter().zip(weights).zip(quants.as_chunks_mut().0) {
        let scale = f32_from_f16(d) * f32::from(scale);
        // With a scale that was rounded to zero the quants have no effect; those of the search stay.
        if scale != 0.0 {
            let half = i32::from(OFFSET);
            *quants = weights.map(|x| (nearest(x / scale).clamp(-half, half - 1) + half) as u8);
        }
    }
    pack(&quants, &scales, d, block);
}

pub(crate) fn dequantize_q6_k(block: &[u8; Q6_K], weights: &mut [f32; LEN]) {
    let (low, rest) = block.split_at(LOW);
    let (high, rest) = rest.split_at(HIGH);
    let (scales, d) = rest.split_at(N_SUB);
    let d = f32_from_f16(u16::from_le_bytes([d[0], d[1]]));
    for (h, weights) in weights.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
        let (low, high) = (&low[h * 64..][..64], &high[h * 32..][..32]);
        for (quarter, weights) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // The first two quarters of the half are in the lower nibbles, the others in the upper.
            let low = &low[quarter % 2 * 32..][..32];
            for (i, weight) in weights.iter_mut().enumerate() {
                let nibble = low[i] >> (quarter / 2 * 4) & 15;
                let quant = nibble | (high[i] >> (quarter * 2) & 3) << 4;
                let scale = scales[h * 8 + quarter * 2 + i / SUB_LEN] as i8;
                *weight = d * f32::from(scale) * (f32::from(quant) - f32::from(OFFSET));
            }
        }
    }
}

#[inline(always)]
pub(crate) fn pack(quants: &[u8; LEN], scales: &[i8; N_SUB], d: u16, block: &mut [u8; Q6_K]) {
    let (low, rest) = block.split_at_mut(LOW);
    let (high, rest) = rest.split_at_mut(HIGH);
    for (h, quants) in quants.as_chunks::<HALF>().0.iter().enumerate() {
        for i in 0..64 {
            low[h * 64 + i] = quants[i] & 15 | quants[i + 64] << 4;
        }
        for i in 0..32 {
            high[h * 32 + i] = quants[i] >> 4
                | (quants[i + 32] >> 4) << 2
                | (quants[i + 64] >> 4) << 4
                | (quants[i + 96] >> 4) << 6;
        }
    }
    for (byte, &scale) in rest.iter_mut().zip(scales) {
        *byte = scale as u8;
    }
    rest[N_SUB..].copy_from_slice(&d.to_le_bytes());
}
