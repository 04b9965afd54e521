//! Q4_K and Q5_K: 256 weights in 8 sub-blocks of 32; each sub-block has a scale and a minimum of 6 bits, relative to
//! the super-block's two F16 scales.
//!
//! ```text
//! weight = d * scale[s] * q - dmin * min[s]        s: the weight's sub-block
//! ```
//!
//! | bytes of Q4_K | of Q5_K | content |
//! |---------------|---------|---------|
//! | 0..2          | 0..2    | d, F16 |
//! | 2..4          | 2..4    | dmin, F16 |
//! | 4..8          | 4..8    | byte i: scale\[i\], and above it the upper 2 bits of scale\[i + 4\] |
//! | 8..12         | 8..12   | byte i: min\[i\], and above it the upper 2 bits of min\[i + 4\] |
//! | 12..16        | 12..16  | byte i: lower 4 bits of scale\[i + 4\], and above them those of min\[i + 4\] |
//! |               | 16..48  | byte i: bit s is the fifth bit of weight i of sub-block s |
//! | 16..144       | 48..176 | byte 32 p + i: lower 4 bits of weight i of sub-block 2 p, above them those of sub-block 2 p + 1 |

use super::float::{f16_from_f32, f32_from_f16};
use super::round::nearest;
use super::search::{Affine, Candidates, fit_affine};
use crate::TensorType;

const LEN: usize = 256;
const SUB_LEN: usize = 32;
const N_SUB: usize = LEN / SUB_LEN;
/// d, dmin and the sub-blocks' scales and minima, alike in both formats.
const HEADER: usize = 2 + 2 + 12;
const FIFTH_BITS: usize = LEN / 8;
const NIBBLES: usize = LEN / 2;

const Q4_K: usize = HEADER + NIBBLES;
const Q5_K: usize = HEADER + FIFTH_BITS + NIBBLES;
const _: () = {
    assert!(TensorType::Q4_K.block_len() == LEN && TensorType::Q4_K.block_bytes() == Q4_K);
    assert!(TensorType::Q5_K.block_len() == LEN && TensorType::Q5_K.block_bytes() == Q5_K);
};

/// The largest scale and minimum of a sub-block.
const TOP_SCALE: u8 = 63;

pub(super) fn quantize_q4_k(weights: &[f32; LEN], block: &mut [u8; Q4_K]) {
    let (header, quants) =
        quantize_super_block(weights, 15, &Candidates { first: -1.0, step: 0.1, count: 21 });
    block[..HEADER].copy_from_slice(&header);
    store_nibbles(&mut block[HEADER..], &quants);
}

pub(super) fn dequantize_q4_k(block: &[u8; Q4_K], weights: &mut [f32; LEN]) {
    let quants = load_nibbles(&block[HEADER..]);
    dequantize_super_block(&block[..HEADER], &quants, weights);
}

pub(super) fn quantize_q5_k(weights: &[f32; LEN], block: &mut [u8; Q5_K]) {
    let (header, quants) =
        quantize_super_block(weights, 31, &Candidates { first: -0.5, step: 0.1, count: 16 });
    let (fifth_bits, nibbles) = block[HEADER..].split_at_mut(FIFTH_BITS);
    fifth_bits.fill(0);
    for (s, quants) in quants.as_chunks::<SUB_LEN>().0.iter().enumerate() {
        for (bits, quant) in fifth_bits.iter_mut().zip(quants) {
            *bits |= (quant >> 4) << s;
        }
    }
    store_nibbles(nibbles, &quants);
    block[..HEADER].copy_from_slice(&header);
}

pub(super) fn dequantize_q5_k(block: &[u8; Q5_K], weights: &mut [f32; LEN]) {
    let (header, rest) = block.split_at(HEADER);
    let (fifth_bits, nibbles) = rest.split_at(FIFTH_BITS);
    let mut quants = load_nibbles(nibbles);
    for (s, quants) in quants.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        for (quant, bits) in quants.iter_mut().zip(fifth_bits) {
            *quant |= (bits >> s & 1) << 4;
        }
    }
    dequantize_super_block(header, &quants, weights);
}

/// Searches each sub-block's scale and minimum, rounds them to what the header can hold, and quantizes again with the
/// rounded ones.
fn quantize_super_block(weights: &[f32; LEN], top: u8, candidates: &Candidates) -> ([u8; HEADER], [u8; LEN]) {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let mut quants = [0; LEN];
    let mut fits = [Affine { scale: 0.0, min: 0.0 }; N_SUB];
    let (mut top_scale, mut top_min) = (0.0, 0.0);
    for ((fit, weights), quants) in fits.iter_mut().zip(weights).zip(quants.as_chunks_mut().0) {
        *fit = fit_affine(weights, &importance(weights), top, candidates, quants);
        top_scale = if fit.scale > top_scale { fit.scale } else { top_scale };
        top_min = if fit.min > top_min { fit.min } else { top_min };
    }

    let header = Header {
        d: f16_from_f32(top_scale / f32::from(TOP_SCALE)),
        dmin: f16_from_f32(top_min / f32::from(TOP_SCALE)),
        scales: round_scales(fits.map(|fit| fit.scale), top_scale),
        mins: round_scales(fits.map(|fit| fit.min), top_min),
    };
    for ((fit, weights), quants) in
        header.fits().into_iter().zip(weights).zip(quants.as_chunks_mut::<SUB_LEN>().0)
    {
        // With a scale that was rounded to zero the quants have no effect; those of the search stay.
        if fit.scale != 0.0 {
            *quants = weights.map(|x| nearest((x + fit.min) / fit.scale).clamp(0, i32::from(top)) as u8);
        }
    }
    (header.pack(), quants)
}

/// How much each weight's error counts where nothing is known of the activations: large weights count more.
fn importance(weights: &[f32; SUB_LEN]) -> [f32; SUB_LEN] {
    let mut sum_xx = 0.0;
    for x in weights {
        sum_xx += x * x;
    }
    let root_mean_square = (sum_xx / SUB_LEN as f32).sqrt();
    weights.map(|x| root_mean_square + x.abs())
}

/// The sub-blocks' scales (or minima) in steps of a 63rd of the largest.
fn round_scales(scales: [f32; N_SUB], top: f32) -> [u8; N_SUB] {
    let inverse = if top > 0.0 { f32::from(TOP_SCALE) / top } else { 0.0 };
    // Wraps around as C's conversion does, should a search ever end with a negative scale.
    scales.map(|scale| (nearest(inverse * scale) as u8).min(TOP_SCALE))
}

fn dequantize_super_block(header: &[u8], quants: &[u8; LEN], weights: &mut [f32; LEN]) {
    let fits = Header::unpack(header).fits();
    let (quants, _) = quants.as_chunks::<SUB_LEN>();
    for ((fit, quants), weights) in fits.iter().zip(quants).zip(weights.as_chunks_mut().0) {
        *weights = quants.map(|quant| fit.scale * f32::from(quant) - fit.min);
    }
}

/// The scales and minima of a super-block as stored.
struct Header {
    d: u16,
    dmin: u16,
    scales: [u8; N_SUB],
    mins: [u8; N_SUB],
}

impl Header {
    /// Each sub-block's scale and minimum as the reader of the block sees them.
    fn fits(&self) -> [Affine; N_SUB] {
        let (d, dmin) = (f32_from_f16(self.d), f32_from_f16(self.dmin));
        std::array::from_fn(|s| Affine {
            scale: d * f32::from(self.scales[s]),
            min: dmin * f32::from(self.mins[s]),
        })
    }

    fn pack(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&self.d.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        for i in 0..4 {
            let (scale, min) = (self.scales[i + 4], self.mins[i + 4]);
            bytes[4 + i] = self.scales[i] | (scale >> 4) << 6;
            bytes[8 + i] = self.mins[i] | (min >> 4) << 6;
            bytes[12 + i] = scale & 15 | (min & 15) << 4;
        }
        bytes
    }

    fn unpack(bytes: &[u8]) -> Self {
        let upper = |byte: u8| byte >> 6 << 4;
        Self {
            d: u16::from_le_bytes([bytes[0], bytes[1]]),
            dmin: u16::from_le_bytes([bytes[2], bytes[3]]),
            scales: std::array::from_fn(|s| match s {
                0..4 => bytes[4 + s] & 63,
                _ => bytes[8 + s] & 15 | upper(bytes[s]),
            }),
            mins: std::array::from_fn(|s| match s {
                0..4 => bytes[8 + s] & 63,
                _ => bytes[8 + s] >> 4 | upper(bytes[4 + s]),
            }),
        }
    }
}

fn store_nibbles(bytes: &mut [u8], quants: &[u8; LEN]) {
    let (pairs, _) = quants.as_chunks::<{ 2 * SUB_LEN }>();
    for (bytes, pair) in bytes.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(pairs) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[i] & 15 | pair[i + SUB_LEN] << 4;
        }
    }
}

fn load_nibbles(bytes: &[u8]) -> [u8; LEN] {
    let mut quants = [0; LEN];
    let (pairs, _) = quants.as_chunks_mut::<{ 2 * SUB_LEN }>();
    for (pair, bytes) in pairs.iter_mut().zip(bytes.as_chunks::<SUB_LEN>().0) {
        for (i, byte) in bytes.iter().enumerate() {
            pair[i] = byte & 15;
            pair[i + SUB_LEN] = byte >> 4;
        }
    }
    quants
}
