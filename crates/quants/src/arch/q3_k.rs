//! Q3_K (`scalar::q3_k`): scales are searched for a sub-block to a lane, quants made in the order of the weights.

use super::columns::{columns, emphasize, padded, sums_of_rows};
use super::{Chunk, Kernel, Simd, nearest, symmetric};
use crate::scalar::float::{f16_from_f32, f32_from_f16};
use crate::scalar::q3_k::{
    LEN, N_SUB, OFFSET, Q3_K, SCALE_OFFSET, SUB_LEN, pack, quantize_q3_k, quantize_weighted_q3_k,
};
use crate::scalar::round;
use crate::scalar::search::NEGLIGIBLE;

pub(super) struct Quantize<'a>(pub(super) Chunk<'a>);

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weights, _) = self.0.weights.as_chunks::<LEN>();
        let (blocks, _) = self.0.blocks.as_chunks_mut::<Q3_K>();
        match self.0.importance {
            Some(importance) => weighted(simd, weights, importance.as_chunks::<LEN>().0, blocks),
            None => unweighted(simd, weights, blocks),
        }
    }
}

/// Vectors of sub-blocks that descend side by side: each step waits for the one before.
const GROUPS: usize = 4;

/// The most super-blocks in so many vectors.
const MAX_TOGETHER: usize = GROUPS * 16 / N_SUB;

#[inline(always)]
fn unweighted<S: Simd>(simd: S, weights: &[[f32; LEN]], blocks: &mut [[u8; Q3_K]]) {
    let together = GROUPS * S::LANES / N_SUB;
    let mut room = [[0.0; LEN]; MAX_TOGETHER];
    for (weights, blocks) in weights.chunks(together).zip(blocks.chunks_mut(together)) {
        let n_floats = together * LEN;
        let rows = padded(weights.as_flattened(), &mut room.as_flattened_mut()[..n_floats]);
        let (scales, magnitudes) = descend(simd, rows);
        let fits = scales.as_chunks::<N_SUB>().0.iter().zip(magnitudes.as_chunks().0);
        for ((weights, block), (scales, magnitudes)) in weights.iter().zip(blocks).zip(fits) {
            if store_unweighted(simd, weights, scales, magnitudes, block).is_none() {
                quantize_q3_k(weights, block);
            }
        }
    }
}

/// Scales and largest magnitudes of as many sub-blocks as fit in [`GROUPS`] vectors.
#[inline(always)]
fn descend<S: Simd>(simd: S, rows: &[f32]) -> ([f32; MAX_TOGETHER * N_SUB], [f32; MAX_TOGETHER * N_SUB]) {
    const ROUNDS: usize = 5;
    let zero = simd.splat(0.0);
    let half = i32::from(OFFSET);
    let quant = |values| {
        let (lowest, highest) = (simd.splat_i32(-half), simd.splat_i32(half - 1));
        simd.to_f32(simd.clamp_i32(nearest(simd, values), lowest, highest))
    };
    let zeros = [[zero; GROUPS]; SUB_LEN];
    let (mut x, mut w, mut wx, mut q) = (zeros, zeros, zeros, zeros);
    let mut magnitude = [zero; GROUPS];
    let (mut sum_wqx, mut sum_wqq) = ([zero; GROUPS], [zero; GROUPS]);
    for g in 0..GROUPS {
        let n_floats = S::LANES * SUB_LEN;
        let weights = columns::<S, SUB_LEN>(simd, &rows[g * n_floats..][..n_floats]);
        let (extreme, largest) = symmetric::extremes(simd, &weights);
        magnitude[g] = largest;
        let inverse = simd.div(simd.splat(-f32::from(OFFSET)), extreme);
        for j in 0..SUB_LEN {
            x[j][g] = weights[j];
            w[j][g] = simd.mul(weights[j], weights[j]);
            wx[j][g] = simd.mul(w[j][g], weights[j]);
            q[j][g] = quant(simd.mul(inverse, weights[j]));
            sum_wqx[g] = simd.add(sum_wqx[g], simd.mul(wx[j][g], q[j][g]));
            sum_wqq[g] = simd.add(sum_wqq[g], simd.mul(simd.mul(w[j][g], q[j][g]), q[j][g]));
        }
    }

    // A lane where nothing changes in as many steps as there are weights would not change later either, and so is done; a
    // vector is done with its last lane.
    let mut idle = [0; GROUPS];
    for round in 0..ROUNDS {
        for j in 0..SUB_LEN {
            for g in 0..GROUPS {
                if idle[g] == SUB_LEN {
                    continue;
                }
                idle[g] += 1;
                let (x, w, wx, old) = (x[j][g], w[j][g], wx[j][g], q[j][g]);
                let others_wqx = simd.sub(sum_wqx[g], simd.mul(wx, old));
                let others_wqq = simd.sub(sum_wqq[g], simd.mul(simd.mul(w, old), old));
                let new = quant(simd.div(simd.mul(x, others_wqq), others_wqx));
                let is_other = simd.and(simd.lt(zero, others_wqx), simd.not(simd.eq(new, old)));
                // In the first round there is nearly always one; later the branch saves the wait for the sums.
                if round > 0 && !simd.any(is_other) {
                    continue;
                }
                let wqx = simd.add(others_wqx, simd.mul(wx, new));
                let wqq = simd.add(others_wqq, simd.mul(simd.mul(w, new), new));
                let gain = simd.mul(simd.mul(wqx, wqx), sum_wqq[g]);
                let is_better = simd.lt(simd.mul(simd.mul(sum_wqx[g], sum_wqx[g]), wqq), gain);
                let wins = simd.and(simd.and(is_other, simd.lt(zero, wqq)), is_better);
                q[j][g] = simd.select(wins, new, old);
                sum_wqx[g] = simd.select(wins, wqx, sum_wqx[g]);
                sum_wqq[g] = simd.select(wins, wqq, sum_wqq[g]);
                idle[g] = if simd.any(wins) { 0 } else { idle[g] };
            }
        }
        if idle == [SUB_LEN; GROUPS] {
            break;
        }
    }

    let mut scales = [0.0; MAX_TOGETHER * N_SUB];
    let mut magnitudes = [0.0; MAX_TOGETHER * N_SUB];
    for g in 0..GROUPS {
        let has_scale =
            simd.and(simd.lt(zero, sum_wqq[g]), simd.not(simd.lt(magnitude[g], simd.splat(NEGLIGIBLE))));
        let scale = simd.select(has_scale, simd.div(sum_wqx[g], sum_wqq[g]), zero);
        scales[g * S::LANES..][..S::LANES].copy_from_slice(simd.store(scale).as_ref());
        magnitudes[g * S::LANES..][..S::LANES].copy_from_slice(simd.store(magnitude[g]).as_ref());
    }
    (scales, magnitudes)
}

/// `None` as for [`store`].
#[inline(always)]
fn store_unweighted<S: Simd>(
    simd: S,
    weights: &[f32; LEN],
    scales: &[f32; N_SUB],
    magnitudes: &[f32; N_SUB],
    block: &mut [u8; Q3_K],
) -> Option<()> {
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &scale in scales {
        if scale.abs() > magnitude {
            (extreme, magnitude) = (scale, scale.abs());
        }
    }
    if extreme == 0.0 {
        // All scales are zero; the quants of sub-blocks that are negligible too.
        return magnitudes.iter().all(|&magnitude| magnitude < NEGLIGIBLE).then(|| block.fill(0));
    }
    let inverse = -f32::from(SCALE_OFFSET) / extreme;
    let half = SCALE_OFFSET as i8;
    let stored_scales =
        scales.map(|scale| ((round::nearest(inverse * scale) as i8).clamp(-half, half - 1) + half) as u8);
    store(simd, weights, &stored_scales, magnitudes, f16_from_f32(1.0 / inverse), block)
}

#[inline(always)]
fn weighted<S: Simd>(simd: S, weights: &[[f32; LEN]], importance: &[[f32; LEN]], blocks: &mut [[u8; Q3_K]]) {
    for (i, (weights, blocks)) in weights.chunks(S::LANES).zip(blocks.chunks_mut(S::LANES)).enumerate() {
        let importance = |s: usize| &importance[(i * S::LANES + s) % importance.len()];
        let sums = sums_of_rows(simd, weights.as_flattened(), LEN);
        let mut scales = [[0.0; N_SUB]; 16];
        let mut emphases = [[0.0; N_SUB]; 16];
        let mut magnitudes = [[0.0; N_SUB]; 16];
        for (s, weights) in weights.iter().enumerate() {
            let mean_square = simd.splat(2.0 * sums[s] / LEN as f32);
            for (g, rows) in weights.chunks_exact(S::LANES * SUB_LEN).enumerate() {
                let x = columns::<S, SUB_LEN>(simd, rows);
                let row = &importance(s)[g * S::LANES * SUB_LEN..][..S::LANES * SUB_LEN];
                let w = emphasize(simd, &x, &columns(simd, row), mean_square);
                let mut sum = simd.splat(0.0);
                for &w in &w {
                    sum = simd.add(sum, w);
                }
                let fits = symmetric::fit(simd, &x, &w, OFFSET);
                let lanes = g * S::LANES..(g + 1) * S::LANES;
                scales[s][lanes.clone()].copy_from_slice(simd.store(fits.scale).as_ref());
                magnitudes[s][lanes.clone()].copy_from_slice(simd.store(fits.magnitude).as_ref());
                emphases[s][lanes].copy_from_slice(simd.store(sum).as_ref());
            }
        }

        // Scales of scales, a super-block to a lane.
        let rows = columns::<S, N_SUB>(simd, &scales.as_flattened()[..S::LANES * N_SUB]);
        let w = columns::<S, N_SUB>(simd, &emphases.as_flattened()[..S::LANES * N_SUB]);
        let fits = symmetric::fit(simd, &rows, &w, SCALE_OFFSET);
        let [d, inverse, largest] = [fits.scale, fits.inverse, fits.magnitude].map(|v| simd.store(v));
        for (s, (weights, block)) in weights.iter().zip(blocks).enumerate() {
            let (inverse, largest) = (inverse.as_ref()[s], largest.as_ref()[s]);
            let half = i32::from(SCALE_OFFSET);
            let stored_scales = match largest < NEGLIGIBLE {
                true => [0; N_SUB],
                false => scales[s]
                    .map(|scale| (round::nearest(inverse * scale).clamp(-half, half - 1) + half) as u8),
            };
            let d = f16_from_f32(d.as_ref()[s]);
            // NaN among the scales too is left to the reference.
            let is_finite = scales[s].iter().all(|scale| scale.is_finite());
            if !is_finite || store(simd, weights, &stored_scales, &magnitudes[s], d, block).is_none() {
                quantize_weighted_q3_k(weights, importance(s), block);
            }
        }
    }
}

/// `None` where the super-block has something in it that only the reference knows: weights that are not finite, or
/// sub-blocks whose scales are rounded to zero, so that the search's quants show.
#[inline(always)]
fn store<S: Simd>(
    simd: S,
    weights: &[f32; LEN],
    stored_scales: &[u8; N_SUB],
    magnitudes: &[f32; N_SUB],
    d: u16,
    block: &mut [u8; Q3_K],
) -> Option<()> {
    let scales = stored_scales.map(|s| f32_from_f16(d) * (f32::from(s) - f32::from(SCALE_OFFSET)));
    let is_known = |s: usize| match scales[s] == 0.0 {
        true => magnitudes[s] < NEGLIGIBLE,
        false => magnitudes[s] < f32::INFINITY,
    };
    if !(0..N_SUB).all(is_known) {
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
    pack(&quants, stored_scales, d, block);
    Some(())
}
