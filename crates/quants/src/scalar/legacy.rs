//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 weights, one scale. The scale comes straight from the extremes; only where the
//! importance of columns is known is it searched for (in Q8_0 not even then).
//!
//! | type | weight        | bytes | scale d (F16) | minimum m (F16) | fifth bits | quants |
//! |------|---------------|-------|---------------|-----------------|------------|--------|
//! | Q4_0 | d (q - 8)     | 18    | 0..2          |                 |            | 2..18  |
//! | Q4_1 | d q + m       | 20    | 0..2          | 2..4            |            | 4..20  |
//! | Q5_0 | d (q - 16)    | 22    | 0..2          |                 | 2..6       | 6..22  |
//! | Q5_1 | d q + m       | 24    | 0..2          | 2..4            | 4..8       | 8..24  |
//! | Q8_0 | d q, q signed | 34    | 0..2          |                 |            | 2..34  |
//!
//! All little-endian. Byte i of the 4- and 5-bit quants holds the low four bits of weight i in its low and of weight
//! i + 16 in its high half; bit i of the fifth bits belongs to weight i. Q8_0 has one byte for each weight.
//!
//! In Q4_0 and Q5_0 the weight of the largest magnitude becomes the most negative quant, so d has the opposite sign.
//! Quants are computed with the unrounded scale.

use super::emphasis::{emphasize, sum_of_squares};
use super::float::{f16_from_f32, f32_from_f16};
use super::round::round;
use super::search::{AffineSearch, fit_affine, fit_symmetric};
use crate::TensorType;

/// Weights in a block of any of these types.
pub(crate) const LEN: usize = 32;

pub(crate) const Q4_0: usize = 2 + 16;
pub(crate) const Q4_1: usize = 2 + 2 + 16;
pub(crate) const Q5_0: usize = 2 + 4 + 16;
pub(crate) const Q5_1: usize = 2 + 2 + 4 + 16;
pub(crate) const Q8_0: usize = 2 + 32;

const _: () = {
    assert!(TensorType::Q4_0.block_len() == LEN && TensorType::Q4_0.block_bytes() == Q4_0);
    assert!(TensorType::Q4_1.block_len() == LEN && TensorType::Q4_1.block_bytes() == Q4_1);
    assert!(TensorType::Q5_0.block_len() == LEN && TensorType::Q5_0.block_bytes() == Q5_0);
    assert!(TensorType::Q5_1.block_len() == LEN && TensorType::Q5_1.block_bytes() == Q5_1);
    assert!(TensorType::Q8_0.block_len() == LEN && TensorType::Q8_0.block_bytes() == Q8_0);
};

pub(crate) fn quantize_q4_0(weights: &[f32; LEN], block: &mut [u8; Q4_0]) {
    let d = extreme(weights) / -8.0;
    let inverse = reciprocal(d);
    let quants = weights.map(|weight| ((weight * inverse + 8.5) as u8).min(15));
    store_f16(&mut block[..2], d);
    store_nibbles(&mut block[2..], &quants);
}

/// Whole rows, as long as the importance.
pub(crate) fn quantize_weighted_q4_0(weights: &[f32], importance: &[f32], blocks: &mut [u8]) {
    each_emphasized(weights, importance, blocks, |weights, emphasis, block: &mut [u8; Q4_0]| {
        let mut quants = [0; LEN];
        let d = fit_symmetric(weights, emphasis, 8, &mut quants);
        store_f16(&mut block[..2], d);
        store_nibbles(&mut block[2..], &quants);
    });
}

pub(crate) fn dequantize_q4_0(block: &[u8; Q4_0], weights: &mut [f32; LEN]) {
    let d = load_f16(&block[..2]);
    *weights = load_nibbles(&block[2..]).map(|quant| (f32::from(quant) - 8.0) * d);
}

pub(crate) fn quantize_q4_1(weights: &[f32; LEN], block: &mut [u8; Q4_1]) {
    let (min, max) = range(weights);
    let d = (max - min) / 15.0;
    let inverse = reciprocal(d);
    let quants = weights.map(|weight| (((weight - min) * inverse + 0.5) as u8).min(15));
    store_f16(&mut block[..2], d);
    store_f16(&mut block[2..4], min);
    store_nibbles(&mut block[4..], &quants);
}

/// Whole rows, as long as the importance.
pub(crate) fn quantize_weighted_q4_1(weights: &[f32], importance: &[f32], blocks: &mut [u8]) {
    each_emphasized(weights, importance, blocks, |weights, emphasis, block: &mut [u8; Q4_1]| {
        let fit = fit_affine(weights, emphasis, &AffineSearch::weighted(15));
        store_f16(&mut block[..2], fit.scale);
        store_f16(&mut block[2..4], -fit.min);
        store_nibbles(&mut block[4..], &fit.grid.quantize(weights, 15));
    });
}

pub(crate) fn dequantize_q4_1(block: &[u8; Q4_1], weights: &mut [f32; LEN]) {
    let d = load_f16(&block[..2]);
    let min = load_f16(&block[2..4]);
    *weights = load_nibbles(&block[4..]).map(|quant| f32::from(quant) * d + min);
}

pub(crate) fn quantize_q5_0(weights: &[f32; LEN], block: &mut [u8; Q5_0]) {
    let d = extreme(weights) / -16.0;
    let inverse = reciprocal(d);
    let quants = weights.map(|weight| ((weight * inverse + 16.5) as u8).min(31));
    store_f16(&mut block[..2], d);
    store_fifth_bits(&mut block[2..6], &quants);
    store_nibbles(&mut block[6..], &quants);
}

/// Whole rows, as long as the importance.
pub(crate) fn quantize_weighted_q5_0(weights: &[f32], importance: &[f32], blocks: &mut [u8]) {
    each_emphasized(weights, importance, blocks, |weights, emphasis, block: &mut [u8; Q5_0]| {
        let mut quants = [0; LEN];
        let d = fit_symmetric(weights, emphasis, 16, &mut quants);
        store_f16(&mut block[..2], d);
        store_fifth_bits(&mut block[2..6], &quants);
        store_nibbles(&mut block[6..], &quants);
    });
}

pub(crate) fn dequantize_q5_0(block: &[u8; Q5_0], weights: &mut [f32; LEN]) {
    let d = load_f16(&block[..2]);
    let quants = with_fifth_bits(load_nibbles(&block[6..]), &block[2..6]);
    *weights = quants.map(|quant| (f32::from(quant) - 16.0) * d);
}

pub(crate) fn quantize_q5_1(weights: &[f32; LEN], block: &mut [u8; Q5_1]) {
    let (min, max) = range(weights);
    let d = (max - min) / 31.0;
    let inverse = reciprocal(d);
    let quants = weights.map(|weight| ((weight - min) * inverse + 0.5) as u8);
    store_f16(&mut block[..2], d);
    store_f16(&mut block[2..4], min);
    store_fifth_bits(&mut block[4..8], &quants);
    store_nibbles(&mut block[8..], &quants);
}

/// Whole rows, as long as the importance.
pub(crate) fn quantize_weighted_q5_1(weights: &[f32], importance: &[f32], blocks: &mut [u8]) {
    each_emphasized(weights, importance, blocks, |weights, emphasis, block: &mut [u8; Q5_1]| {
        let fit = fit_affine(weights, emphasis, &AffineSearch::weighted(31));
        let quants = fit.grid.quantize(weights, 31);
        store_f16(&mut block[..2], fit.scale);
        store_f16(&mut block[2..4], -fit.min);
        store_fifth_bits(&mut block[4..8], &quants);
        store_nibbles(&mut block[8..], &quants);
    });
}

pub(crate) fn dequantize_q5_1(block: &[u8; Q5_1], weights: &mut [f32; LEN]) {
    let d = load_f16(&block[..2]);
    let min = load_f16(&block[2..4]);
    let quants = with_fifth_bits(load_nibbles(&block[8..]), &block[4..8]);
    *weights = quants.map(|quant| f32::from(quant) * d + min);
}

pub(crate) fn quantize_q8_0(weights: &[f32; LEN], block: &mut [u8; Q8_0]) {
    let mut largest = 0.0;
    for weight in weights {
        let magnitude = weight.abs();
        largest = if largest > magnitude { largest } else { magnitude };
    }
    let d = largest / 127.0;
    let inverse = reciprocal(d);
    store_f16(&mut block[..2], d);
    for (quant, weight) in block[2..].iter_mut().zip(weights) {
        *quant = round(weight * inverse) as u8;
    }
}

pub(crate) fn dequantize_q8_0(block: &[u8; Q8_0], weights: &mut [f32; LEN]) {
    let d = load_f16(&block[..2]);
    for (weight, &quant) in weights.iter_mut().zip(&block[2..]) {
        *weight = f32::from(quant as i8) * d;
    }
}

/// Calls the function with the weights of each block and how much their errors count. The mean square is the row's.
fn each_emphasized<const BYTES: usize>(
    weights: &[f32],
    importance: &[f32],
    blocks: &mut [u8],
    quantize_block: impl Fn(&[f32; LEN], &[f32; LEN], &mut [u8; BYTES]),
) {
    let row_len = importance.len();
    let (importance, _) = importance.as_chunks();
    let (blocks, _) = blocks.as_chunks_mut();
    if row_len == 0 {
        return;
    }
    let rows = weights.chunks_exact(row_len).zip(blocks.chunks_exact_mut(importance.len()));
    for (row, blocks) in rows {
        let mean_square = sum_of_squares(row) / row_len as f32;
        let (row, _) = row.as_chunks();
        for ((weights, importance), block) in row.iter().zip(importance).zip(blocks) {
            quantize_block(weights, &emphasize(weights, importance, mean_square), block);
        }
    }
}

/// The weight of the largest magnitude, with its sign; the first one where several share it.
fn extreme(weights: &[f32; LEN]) -> f32 {
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &weight in weights {
        if magnitude < weight.abs() {
            (extreme, magnitude) = (weight, weight.abs());
        }
    }
    extreme
}

/// The smallest and the largest weight; of zeros with different signs, the first.
fn range(weights: &[f32; LEN]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &weight in weights {
        min = if weight < min { weight } else { min };
        max = if weight > max { weight } else { max };
    }
    (min, max)
}

/// 1 / `scale`; 0 for a scale of 0, and NaN for denormals so small that the reciprocal overflows.
///
/// There ggml multiplies with infinity and converts what comes out, infinite or NaN, to an integer, which C leaves
/// undefined. On x86-64 all of it becomes 0 in the low byte. Rust's conversion makes the same of NaN, and all other
/// products lie well within the range of the quants.
fn reciprocal(scale: f32) -> f32 {
    let reciprocal = 1.0 / scale;
    match (scale == 0.0, reciprocal.is_infinite()) {
        (true, _) => 0.0,
        (false, true) => f32::NAN,
        (false, false) => reciprocal,
    }
}

#[inline]
pub(crate) fn store_f16(bytes: &mut [u8], value: f32) {
    bytes.copy_from_slice(&f16_from_f32(value).to_le_bytes());
}

fn load_f16(bytes: &[u8]) -> f32 {
    f32_from_f16(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[inline]
pub(crate) fn store_nibbles(bytes: &mut [u8], quants: &[u8; LEN]) {
    let (low, high) = quants.split_at(LEN / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}

fn load_nibbles(bytes: &[u8]) -> [u8; LEN] {
    std::array::from_fn(|i| if i < LEN / 2 { bytes[i] & 15 } else { bytes[i - LEN / 2] >> 4 })
}

#[inline]
pub(crate) fn store_fifth_bits(bytes: &mut [u8], quants: &[u8; LEN]) {
    let mut bits = 0;
    for (i, eight) in quants.as_chunks::<8>().0.iter().enumerate() {
        // The product gathers the lowest bit of each byte in the uppermost byte.
        let fifths = u64::from_le_bytes(*eight) >> 4 & 0x0101_0101_0101_0101;
        bits |= ((fifths.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (i * 8);
    }
    bytes.copy_from_slice(&bits.to_le_bytes());
}

fn with_fifth_bits(nibbles: [u8; LEN], bytes: &[u8]) -> [u8; LEN] {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::array::from_fn(|i| nibbles[i] | ((bits >> i & 1) as u8) << 4)
}
