//! Q6_K (`scalar::q6_k`): scales are searched for a sub-block to a lane, quants made in the order of the weights.

use super::columns::{columns, squares};
use super::symmetric;
use super::{Chunk, Kernel, Simd, nearest};
use crate::scalar::float::{f16_from_f32, f32_from_f16};
use crate::scalar::q6_k::{LEN, N_SUB, OFFSET, Q6_K, SUB_LEN, pack, quantize_q6_k, quantize_weighted_q6_k};
use crate::scalar::round;
use crate::scalar::search::NEGLIGIBLE;

pub(super) struct Quantize<'a>(pub(super) Chunk<'a>);

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weights, _) = self.0.weights.as_chunks::<LEN>();
        let (blocks, _) = self.0.blocks.as_chunks_mut::<Q6_K>();
        let importance = self.0.importance.map(|importance| importance.as_chunks::<LEN>().0);
        for (i, (weights, block)) in weights.iter().zip(blocks).enumerate() {
            let importance = importance.map(|columns| &columns[i % columns.len()]);
            if quantize(simd, weights, importance, block).is_none() {
                match importance {
                    Some(importance) => quantize_weighted_q6_k(weights, importance, block),
                    None => quantize_q6_k(weights, block),
                }
            }
        }
    }
}

/// `None` where the super-block has something in it that only the reference knows: weights that are not finite, or
/// sub-blocks whose scales are rounded to zero, so that the search's quants show.
#[inline(always)]
fn quantize<S: Simd>(
    simd: S,
    weights: &[f32; LEN],
    importance: Option<&[f32; LEN]>,
    block: &mut [u8; Q6_K],
) -> Option<()> {
    let mut scales = [0.0; N_SUB];
    let mut magnitudes = [0.0; N_SUB];
    for (g, rows) in weights.chunks_exact(S::LANES * SUB_LEN).enumerate() {
        let x = columns::<S, SUB_LEN>(simd, rows);
        let w = match importance {
            Some(importance) => columns(simd, &importance[g * S::LANES * SUB_LEN..][..S::LANES * SUB_LEN]),
            None => squares(simd, &x),
        };
        let fits = symmetric::fit(simd, &x, &w, OFFSET);
        scales[g * S::LANES..][..S::LANES].copy_from_slice(simd.store(fits.scale).as_ref());
        magnitudes[g * S::LANES..][..S::LANES].copy_from_slice(simd.store(fits.magnitude).as_ref());
    }

    let (mut extreme, mut magnitude) = (0.0, 0.0);
    let mut is_finite = true;
    for s in 0..N_SUB {
        is_finite &= magnitudes[s] < f32::INFINITY;
        if scales[s].abs() > magnitude {
            (extreme, magnitude) = (scales[s], scales[s].abs());
        }
    }
    if !is_finite {
        return None;
    }
    if magnitude < NEGLIGIBLE {
        block.fill(0);
        return Some(());
    }

    let inverse = -128.0 / extreme;
    let stored_scales = scales.map(|scale| round::nearest(inverse * scale).min(127) as i8);
    let d = f16_from_f32(1.0 / inverse);
    let scales = stored_scales.map(|scale| f32_from_f16(d) * f32::from(scale));
    if (0..N_SUB).any(|s| scales[s] == 0.0 && magnitudes[s] >= NEGLIGIBLE) {
        return None;
    }

    let mut quants = [0; LEN];
    let half = i32::from(OFFSET);
    for (k, quants) in quants.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let mut integers = [simd.splat_i32(0); 4];
        for (v, integer) in integers.iter_mut().enumerate().take(32 / S::LANES) {
            let first = k * 32 + v * S::LANES;
            let x = simd.load_slice(&weights[first..]);
            let q = nearest(simd, simd.div(x, simd.splat(scales[first / SUB_LEN])));
            let q = simd.clamp_i32(q, simd.splat_i32(-half), simd.splat_i32(half - 1));
            *integer = simd.sub_i32(q, simd.splat_i32(-half));
        }
        *quants = simd.narrow(&integers[..32 / S::LANES]);
    }
    for (quants, &scale) in quants.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(&scales) {
        if scale == 0.0 {
            quants.fill(0);
        }
    }
    pack(&quants, &stored_scales, d, block);
    Some(())
}
