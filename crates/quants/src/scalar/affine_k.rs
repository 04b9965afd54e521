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
use super::search::{AffineFit, AffineSearch, Deviation, Limit, fit_affine, fit_scales, quantize_affine};
use crate::TensorType;

pub(crate) const LEN: usize = 256;
pub(crate) const SUB_LEN: usize = 32;
pub(crate) const N_SUB: usize = LEN / SUB_LEN;
/// d, dmin and the sub-blocks' scales and minima, alike in both formats.
const HEADER: usize = 2 + 2 + 12;
const FIFTH_BITS: usize = LEN / 8;
const NIBBLES: usize = LEN / 2;

pub(crate) const Q4_K: usize = HEADER + NIBBLES;
pub(crate) const Q5_K: usize = HEADER + FIFTH_BITS + NIBBLES;
const _: () = {
    assert!(TensorType::Q4_K.block_len() == LEN && TensorType::Q4_K.block_bytes() == Q4_K);
    assert!(TensorType::Q5_K.block_len() == LEN && TensorType::Q5_K.block_bytes() == Q5_K);
};

/// The largest scale and minimum of a sub-block.
pub(crate) const TOP_SCALE: u8 = 63;

/// Q4_K's search where no importances are known.
pub(crate) const SEARCH_Q4_K: AffineSearch = AffineSearch {
    top: 15,
    first: -1.0,
    step: 0.1,
    count: 21,
    deviation: Deviation::Square,
    limit: Limit::AfterRounding,
};
/// Q5_K's search where no importances are known.
pub(crate) const SEARCH_Q5_K: AffineSearch =
    AffineSearch { top: 31, first: -0.5, step: 0.1, count: 16, ..SEARCH_Q4_K };

pub(super) fn quantize_q4_k(weights: &[f32; LEN], block: &mut [u8; Q4_K]) {
    let fits = fit_sub_blocks(weights, &SEARCH_Q4_K);
    store_q4_k(weights, &fits, &Header::round(&fits), block);
}

pub(super) fn quantize_weighted_q4_k(weights: &[f32; LEN], importance: &[f32; LEN], block: &mut [u8; Q4_K]) {
    let (fits, sums) = fit_sub_blocks_weighted(weights, importance, &AffineSearch::weighted(15));
    store_q4_k(weights, &fits, &Header::fit(&fits, &sums, u8::MAX), block);
}

pub(super) fn quantize_q5_k(weights: &[f32; LEN], block: &mut [u8; Q5_K]) {
    let fits = fit_sub_blocks(weights, &SEARCH_Q5_K);
    store_q5_k(weights, &fits, &Header::round(&fits), block);
}

pub(super) fn quantize_weighted_q5_k(weights: &[f32; LEN], importance: &[f32; LEN], block: &mut [u8; Q5_K]) {
    let (fits, sums) = fit_sub_blocks_weighted(weights, importance, &AffineSearch::weighted(31));
    store_q5_k(weights, &fits, &Header::fit(&fits, &sums, TOP_SCALE), block);
}

/// Writes the block: quantizes with the header's scales and minima, as far as they are not zero.
#[inline(always)]
pub(crate) fn store_q4_k(
    weights: &[f32; LEN],
    fits: &[AffineFit; N_SUB],
    header: &Header,
    block: &mut [u8; Q4_K],
) {
    let header = header.pack();
    let quants = quantize_super_block(weights, fits, &header, 15);
    block[..HEADER].copy_from_slice(&header);
    store_nibbles(&mut block[HEADER..], &quants);
}

/// As [`store_q4_k`].
#[inline(always)]
pub(crate) fn store_q5_k(
    weights: &[f32; LEN],
    fits: &[AffineFit; N_SUB],
    header: &Header,
    block: &mut [u8; Q5_K],
) {
    let header = header.pack();
    let quants = quantize_super_block(weights, fits, &header, 31);
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

pub(super) fn dequantize_q4_k(block: &[u8; Q4_K], weights: &mut [f32; LEN]) {
    let quants = load_nibbles(&block[HEADER..]);
    dequantize_super_block(&block[..HEADER], &quants, weights);
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

/// Each sub-block's scale and minimum where no importances are known.
fn fit_sub_blocks(weights: &[f32; LEN], search: &AffineSearch) -> [AffineFit; N_SUB] {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    std::array::from_fn(|s| fit_affine(&weights[s], &importance(&weights[s]), search))
}

/// Each sub-block's scale and minimum, and the sum of its weights' importances.
fn fit_sub_blocks_weighted(
    weights: &[f32; LEN],
    column_importance: &[f32; LEN],
    search: &AffineSearch,
) -> ([AffineFit; N_SUB], [f32; N_SUB]) {
    let mut sum_xx = 0.0;
    for x in weights {
        sum_xx += x * x;
    }
    let variance = 2.0 * sum_xx / LEN as f32;
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let (column_importance, _) = column_importance.as_chunks::<SUB_LEN>();
    let mut sums = [0.0; N_SUB];
    let fits = std::array::from_fn(|s| {
        let importance = weighted_importance(&weights[s], &column_importance[s], variance);
        for w in &importance {
            sums[s] += w;
        }
        fit_affine(&weights[s], &importance, search)
    });
    (fits, sums)
}

/// Quantizes with scales and minima as the reader of the header sees them.
#[inline(always)]
fn quantize_super_block(
    weights: &[f32; LEN],
    fits: &[AffineFit; N_SUB],
    header: &[u8; HEADER],
    top: u8,
) -> [u8; LEN] {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let mut quants = [0; LEN];
    let stored = Header::unpack(header).stored();
    for (s, quants) in quants.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let (scale, min) = stored[s];
        // With a scale that was rounded to zero the quants have no effect; those of the search stay.
        *quants = if scale != 0.0 {
            quantize_affine(&weights[s], scale, min, top)
        } else {
            fits[s].grid.quantize(&weights[s], top)
        };
    }
    quants
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

/// How much each weight's error counts where the columns' importance is known.
pub(super) fn weighted_importance<const N: usize>(
    weights: &[f32; N],
    column_importance: &[f32; N],
    variance: f32,
) -> [f32; N] {
    std::array::from_fn(|i| column_importance[i] * (variance + weights[i] * weights[i]).sqrt())
}

fn dequantize_super_block(header: &[u8], quants: &[u8; LEN], weights: &mut [f32; LEN]) {
    let stored = Header::unpack(header).stored();
    let (quants, _) = quants.as_chunks::<SUB_LEN>();
    for ((&(scale, min), quants), weights) in stored.iter().zip(quants).zip(weights.as_chunks_mut().0) {
        *weights = quants.map(|quant| scale * f32::from(quant) - min);
    }
}

/// The scales and minima of a super-block in the form they are stored in.
pub(crate) struct Header {
    /// F16.
    pub(crate) d: u16,
    /// F16.
    pub(crate) dmin: u16,
    pub(crate) scales: [u8; N_SUB],
    pub(crate) mins: [u8; N_SUB],
}

impl Header {
    /// The fits in steps of a 63rd of the largest scale and the largest minimum.
    #[inline(always)]
    pub(crate) fn round(fits: &[AffineFit; N_SUB]) -> Self {
        let (d, scales) = round_scales(fits.map(|fit| fit.scale));
        let (dmin, mins) = round_scales(fits.map(|fit| fit.min));
        Self { d, dmin, scales, mins }
    }

    /// The fits in the steps that are best for the sub-blocks' importances, and no more than `limit` of them.
    fn fit(fits: &[AffineFit; N_SUB], importance: &[f32; N_SUB], limit: u8) -> Self {
        let (d, scales) = fit_scales(&fits.map(|fit| fit.scale), importance, TOP_SCALE);
        let (dmin, mins) = fit_scales(&fits.map(|fit| fit.min), importance, TOP_SCALE);
        Self::new(d, dmin, scales.map(|scale| scale.min(limit)), mins.map(|min| min.min(limit)))
    }

    /// Scales in steps of `d`, minima in steps of `dmin`.
    #[inline(always)]
    pub(crate) fn new(d: f32, dmin: f32, scales: [u8; N_SUB], mins: [u8; N_SUB]) -> Self {
        Self { d: f16_from_f32(d), dmin: f16_from_f32(dmin), scales, mins }
    }

    /// Each sub-block's scale and minimum as the reader of the block computes them.
    #[inline(always)]
    fn stored(&self) -> [(f32, f32); N_SUB] {
        let (d, dmin) = (f32_from_f16(self.d), f32_from_f16(self.dmin));
        std::array::from_fn(|s| (d * f32::from(self.scales[s]), dmin * f32::from(self.mins[s])))
    }

    #[inline(always)]
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

    #[inline(always)]
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

/// The step between scales (or minima), a 63rd of the largest, as F16, and each of them in such steps.
#[inline(always)]
fn round_scales(scales: [f32; N_SUB]) -> (u16, [u8; N_SUB]) {
    let mut top = 0.0;
    for scale in scales {
        top = if scale > top { scale } else { top };
    }
    let inverse = if top > 0.0 { f32::from(TOP_SCALE) / top } else { 0.0 };
    // Wraps around as C's conversion does, should a search ever end with a negative scale.
    let mut rounded = [0; N_SUB];
    for (rounded, scale) in rounded.iter_mut().zip(scales) {
        *rounded = (nearest(inverse * scale) as u8).min(TOP_SCALE);
    }
    (f16_from_f32(top / f32::from(TOP_SCALE)), rounded)
}

#[inline(always)]
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
