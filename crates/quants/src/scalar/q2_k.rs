//! Q2_K: 256 weights in 16 sub-blocks of 16; each sub-block has a scale and a minimum of 4 bits, relative to the
//! super-block's two F16 scales.
//!
//! ```text
//! weight = d * scale[s] * q - dmin * min[s]        s: the weight's sub-block
//! ```
//!
//! | bytes  | content |
//! |--------|---------|
//! | 0..16  | byte s: scale\[s\], and above it min\[s\] |
//! | 16..80 | q: in half h of the super-block, byte 32 h + i holds weights i, i + 32, i + 64, i + 96, from the lowest bits up |
//! | 80..82 | d, F16 |
//! | 82..84 | dmin, F16 |

use super::affine_k::weighted_importance;
use super::float::{f16_from_f32, f32_from_f16};
use super::round::nearest;
use super::search::{AffineFit, AffineSearch, Deviation, Limit, fit_affine, fit_scales, quantize_affine};
use crate::TensorType;

pub(crate) const LEN: usize = 256;
pub(crate) const SUB_LEN: usize = 16;
pub(crate) const N_SUB: usize = LEN / SUB_LEN;
const QUANTS: usize = LEN / 4;
pub(crate) const Q2_K: usize = N_SUB + QUANTS + 2 + 2;
const _: () = assert!(TensorType::Q2_K.block_len() == LEN && TensorType::Q2_K.block_bytes() == Q2_K);

/// The largest quant.
pub(crate) const TOP: u8 = 3;
/// The largest scale and minimum of a sub-block.
pub(crate) const TOP_SCALE: u8 = 15;

/// The search where no importances are known.
pub(crate) const SEARCH: AffineSearch = AffineSearch {
    top: TOP,
    first: -0.5,
    step: 0.1,
    count: 16,
    deviation: Deviation::Magnitude,
    limit: Limit::AfterRounding,
};

pub(super) fn quantize_q2_k(weights: &[f32; LEN], block: &mut [u8; Q2_K]) {
    let (sub_blocks, _) = weights.as_chunks::<SUB_LEN>();
    // Large weights count more.
    let fits = std::array::from_fn(|s| fit_affine(&sub_blocks[s], &sub_blocks[s].map(f32::abs), &SEARCH));
    store_q2_k(weights, &fits, &Header::round(&fits), block);
}

pub(super) fn quantize_weighted_q2_k(weights: &[f32; LEN], importance: &[f32; LEN], block: &mut [u8; Q2_K]) {
    let mut sum_xx = 0.0;
    for x in weights {
        sum_xx += x * x;
    }
    let variance = sum_xx / LEN as f32;
    let (sub_blocks, _) = weights.as_chunks::<SUB_LEN>();
    let (columns, _) = importance.as_chunks::<SUB_LEN>();
    let mut sums = [0.0; N_SUB];
    let fits = std::array::from_fn(|s| {
        let importance = weighted_importance(&sub_blocks[s], &columns[s], variance);
        for w in &importance {
            sums[s] += w;
        }
        fit_affine(&sub_blocks[s], &importance, &AffineSearch::weighted(TOP))
    });
    store_q2_k(weights, &fits, &Header::fit(&fits, &sums), block);
}

/// The scales and minima of a super-block in the form they are stored in.
pub(crate) struct Header {
    /// F16.
    pub(crate) d: u16,
    /// F16.
    pub(crate) dmin: u16,
    /// Each sub-block's scale, and above it its minimum.
    pub(crate) scales: [u8; N_SUB],
}

impl Header {
    /// The fits in steps of a 15th of the largest scale and the largest minimum.
    #[inline(always)]
    pub(crate) fn round(fits: &[AffineFit; N_SUB]) -> Self {
        let (d, scales) = round_scales(fits.map(|fit| fit.scale));
        let (dmin, mins) = round_scales(fits.map(|fit| fit.min));
        Self { d, dmin, scales: std::array::from_fn(|s| scales[s] | mins[s] << 4) }
    }

    /// The fits in the steps that are best for the sub-blocks' importances.
    fn fit(fits: &[AffineFit; N_SUB], importance: &[f32; N_SUB]) -> Self {
        let (d, scales) = fit_scales(&fits.map(|fit| fit.scale), importance, TOP_SCALE);
        let (dmin, mins) = fit_scales(&fits.map(|fit| fit.min), importance, TOP_SCALE);
        Self::new(d, dmin, scales, mins)
    }

    /// Scales in steps of `d`, minima in steps of `dmin`.
    #[inline(always)]
    pub(crate) fn new(d: f32, dmin: f32, scales: [u8; N_SUB], mins: [u8; N_SUB]) -> Self {
        Self {
            d: f16_from_f32(d),
            dmin: f16_from_f32(dmin),
            scales: std::array::from_fn(|s| scales[s] | mins[s] << 4),
        }
    }
}

/// The step between scales (or minima), a 15th of the largest, as F16, and each of them in such steps.
#[inline(always)]
fn round_scales(scales: [f32; N_SUB]) -> (u16, [u8; N_SUB]) {
    let mut top = 0.0;
    for scale in scales {
        top = if scale > top { scale } else { top };
    }
    let inverse = if top > 0.0 { f32::from(TOP_SCALE) / top } else { 0.0 };
    // Cut to a byte as C's conversion does, should a search ever end with a negative scale.
    let mut rounded = [0; N_SUB];
    for (rounded, scale) in rounded.iter_mut().zip(scales) {
        *rounded = nearest(inverse * scale) as u8;
    }
    (f16_from_f32(top / f32::from(TOP_SCALE)), rounded)
}

/// Writes the block: quantizes with the header's scales and minima, as far as they are not zero.
#[inline(always)]
pub(crate) fn store_q2_k(
    weights: &[f32; LEN],
    fits: &[AffineFit; N_SUB],
    header: &Header,
    block: &mut [u8; Q2_K],
) {
    let (weights, _) = weights.as_chunks::<SUB_LEN>();
    let mut quants = [0; LEN];
    let (d, dmin) = (f32_from_f16(header.d), f32_from_f16(header.dmin));
    for (s, quants) in quants.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let scale = d * f32::from(header.scales[s] & 15);
        let min = dmin * f32::from(header.scales[s] >> 4);
        // With a scale that was rounded to zero the quants have no effect; those of the search stay.
        *quants = if scale != 0.0 {
            quantize_affine(&weights[s], scale, min, TOP)
        } else {
            fits[s].grid.quantize(&weights[s], TOP)
        };
    }
    block[..N_SUB].copy_from_slice(&header.scales);
    for (h, quants) in quants.as_chunks::<{ LEN / 2 }>().0.iter().enumerate() {
        let bytes = &mut block[N_SUB + h * 32..][..32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = quants[i] | quants[i + 32] << 2 | quants[i + 64] << 4 | quants[i + 96] << 6;
        }
    }
    block[N_SUB + QUANTS..][..2].copy_from_slice(&header.d.to_le_bytes());
    block[N_SUB + QUANTS + 2..].copy_from_slice(&header.dmin.to_le_bytes());
}

pub(super) fn dequantize_q2_k(block: &[u8; Q2_K], weights: &mut [f32; LEN]) {
    let (scales, rest) = block.split_at(N_SUB);
    let (quants, rest) = rest.split_at(QUANTS);
    let d = f32_from_f16(u16::from_le_bytes([rest[0], rest[1]]));
    let dmin = f32_from_f16(u16::from_le_bytes([rest[2], rest[3]]));
    for (s, weights) in weights.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[s] & 15);
        let min = dmin * f32::from(scales[s] >> 4);
        // Eight sub-blocks to a half, two to each of its quarters.
        let (quants, shift) = (&quants[s / 8 * 32 + s % 2 * SUB_LEN..][..SUB_LEN], s % 8 / 2 * 2);
        for (weight, quant) in weights.iter_mut().zip(quants) {
            *weight = scale * f32::from(quant >> shift & 3) - min;
        }
    }
}
