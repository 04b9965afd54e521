//! IQ4_NL and IQ4_XS (`scalar::iq4`): a sub-block to a lane.

use super::columns::{columns, emphasize, padded, squares};
use super::symmetric::extremes;
use super::{Chunk, Kernel, Simd, Steps};
use crate::scalar::emphasis::sum_of_squares;
use crate::scalar::float::f16_from_f32;
use crate::scalar::iq4::{
    GRID, IQ4_NL, IQ4_XS, LEN, N_SUB, SCALE_OFFSET, SPREADS, SUB_LEN, THRESHOLDS, reciprocal,
};
use crate::scalar::round;
use crate::scalar::search::NEGLIGIBLE;

const STEPS: Steps = Steps::new(&THRESHOLDS, &GRID);

pub(super) struct QuantizeNl<'a>(pub(super) Chunk<'a>);

impl Kernel for QuantizeNl<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weights, _) = self.0.weights.as_chunks::<SUB_LEN>();
        let (blocks, _) = self.0.blocks.as_chunks_mut::<IQ4_NL>();
        let importance = self.0.importance.map(|importance| importance.as_chunks::<SUB_LEN>().0);
        let mut rooms = [[0.0; 16 * SUB_LEN]; 2];
        let mut gathered = [[0.0; SUB_LEN]; 16];
        let n_floats = S::LANES * SUB_LEN;
        for (i, (weights, blocks)) in weights.chunks(S::LANES).zip(blocks.chunks_mut(S::LANES)).enumerate() {
            let [room, importance_room] = &mut rooms;
            let x = columns(simd, padded(weights.as_flattened(), &mut room[..n_floats]));
            let w = match importance {
                None => squares(simd, &x),
                Some(columns_of_row) => {
                    // Blocks of several rows may share a vector.
                    for (b, gathered) in gathered[..weights.len()].iter_mut().enumerate() {
                        *gathered = columns_of_row[(i * S::LANES + b) % columns_of_row.len()];
                    }
                    let rows = gathered[..weights.len()].as_flattened();
                    let importance = columns(simd, padded(rows, &mut importance_room[..n_floats]));
                    let mut sum = simd.splat(0.0);
                    for &x in &x {
                        sum = simd.add(sum, simd.mul(x, x));
                    }
                    emphasize(simd, &x, &importance, simd.mul(sum, simd.splat(2.0 / SUB_LEN as f32)))
                }
            };
            let d = simd.store(fit(simd, &x, &w));
            for ((weights, block), &d) in weights.iter().zip(blocks).zip(d.as_ref()) {
                let (scale, quants) = block.split_at_mut(2);
                scale.copy_from_slice(&f16_from_f32(d).to_le_bytes());
                store_quants(simd, weights, d, quants);
            }
        }
    }
}

pub(super) struct QuantizeXs<'a>(pub(super) Chunk<'a>);

impl Kernel for QuantizeXs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weights, _) = self.0.weights.as_chunks::<LEN>();
        let (blocks, _) = self.0.blocks.as_chunks_mut::<IQ4_XS>();
        let importance = self.0.importance.map(|importance| importance.as_chunks::<LEN>().0);
        let together = S::LANES / N_SUB;
        let mut rooms = [[0.0; 16 * SUB_LEN]; 2];
        let mut gathered = [[0.0; LEN]; 2];
        let n_floats = S::LANES * SUB_LEN;
        for (i, (weights, blocks)) in weights.chunks(together).zip(blocks.chunks_mut(together)).enumerate() {
            let [room, importance_room] = &mut rooms;
            let x = columns(simd, padded(weights.as_flattened(), &mut room[..n_floats]));
            let w = match importance {
                None => squares(simd, &x),
                Some(columns_of_row) => {
                    let mut mean_squares = S::Floats::default();
                    for (b, weights) in weights.iter().enumerate() {
                        gathered[b] = columns_of_row[(i * together + b) % columns_of_row.len()];
                        let mean_square = sum_of_squares(weights) * (2.0 / LEN as f32);
                        mean_squares.as_mut()[b * N_SUB..][..N_SUB].fill(mean_square);
                    }
                    let rows = gathered[..weights.len()].as_flattened();
                    let importance = columns(simd, padded(rows, &mut importance_room[..n_floats]));
                    emphasize(simd, &x, &importance, simd.load(&mean_squares))
                }
            };
            let scales = simd.store(fit(simd, &x, &w));
            let scales = scales.as_ref().as_chunks::<N_SUB>().0;
            for ((weights, block), scales) in weights.iter().zip(blocks).zip(scales) {
                store_iq4_xs(simd, weights, scales, block);
            }
        }
    }
}

#[inline(always)]
fn store_iq4_xs<S: Simd>(simd: S, weights: &[f32; LEN], scales: &[f32; N_SUB], block: &mut [u8; IQ4_XS]) {
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &scale in scales {
        if scale.abs() > magnitude {
            (extreme, magnitude) = (scale, scale.abs());
        }
    }
    let d = -extreme / SCALE_OFFSET as f32;
    let inverse = reciprocal(d);
    block[..2].copy_from_slice(&f16_from_f32(d).to_le_bytes());
    let (stored_scales, quants) = block[2..].split_at_mut(2 + N_SUB / 2);
    stored_scales.fill(0);
    for (s, weights) in weights.as_chunks::<SUB_LEN>().0.iter().enumerate() {
        let scale = round::nearest(inverse * scales[s]).clamp(-SCALE_OFFSET, SCALE_OFFSET - 1);
        store_quants(simd, weights, d * scale as f32, &mut quants[s * 16..][..16]);
        let stored = (scale + SCALE_OFFSET) as u8;
        stored_scales[s / 4] |= (stored >> 4) << (s % 4 * 2);
        stored_scales[2 + s / 2] |= (stored & 15) << (s % 2 * 4);
    }
}

/// The best scale found for each sub-block (`scalar::iq4::fit`).
#[inline(always)]
fn fit<S: Simd>(simd: S, x: &[S::F32; SUB_LEN], w: &[S::F32; SUB_LEN]) -> S::F32 {
    let zero = simd.splat(0.0);
    let (extreme, magnitude) = extremes(simd, x);
    let lowest = f32::from(GRID[0]);
    let first = simd.div(simd.splat(1.0), simd.div(simd.neg(extreme), simd.splat(lowest)));
    let [wqx, wqq] = sums(simd, x, w, first);
    let mut scale = simd.select(simd.lt(zero, wqq), simd.div(wqx, wqq), zero);
    let mut best = simd.mul(scale, wqx);
    for spread in SPREADS {
        let inverse = simd.div(simd.splat(f32::from(spread) + lowest), extreme);
        let [wqx, wqq] = sums(simd, x, w, inverse);
        let is_better = simd.lt(simd.mul(best, wqq), simd.mul(wqx, wqx));
        let wins = simd.and(simd.lt(zero, wqq), is_better);
        let trial = simd.div(wqx, wqq);
        scale = simd.select(wins, trial, scale);
        best = simd.select(wins, simd.mul(trial, wqx), best);
    }
    simd.select(simd.lt(magnitude, simd.splat(NEGLIGIBLE)), zero, scale)
}

/// The sums of w q x and w q q for quants with this inverse scale.
#[inline(always)]
fn sums<S: Simd>(simd: S, x: &[S::F32; SUB_LEN], w: &[S::F32; SUB_LEN], inverse: S::F32) -> [S::F32; 2] {
    let mut sums = [simd.splat(0.0); 2];
    for (&x, &w) in x.iter().zip(w) {
        let (_, q) = simd.step(&STEPS, simd.mul(inverse, x));
        let wq = simd.mul(w, q);
        sums[0] = simd.add(sums[0], simd.mul(wq, x));
        sums[1] = simd.add(sums[1], simd.mul(wq, q));
    }
    sums
}

#[inline(always)]
fn store_quants<S: Simd>(simd: S, weights: &[f32; SUB_LEN], scale: f32, bytes: &mut [u8]) {
    let inverse = simd.splat(reciprocal(scale));
    let mut integers = [simd.splat_i32(0); 4];
    let n_vectors = SUB_LEN / S::LANES;
    for (v, integers) in integers[..n_vectors].iter_mut().enumerate() {
        let x = simd.load_slice(&weights[v * S::LANES..]);
        (*integers, _) = simd.step(&STEPS, simd.mul(inverse, x));
    }
    let quants = simd.narrow(&integers[..n_vectors]);
    let (low, high) = quants.split_at(SUB_LEN / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low | high << 4;
    }
}
