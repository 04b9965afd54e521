//! The search for super-blocks' scales (`scalar::search::fit_scales`), a super-block to a lane.

use super::{Simd, nearest};
use crate::scalar::search::NEGLIGIBLE;

/// Sets of scales that are searched side by side: the sub-blocks' scales and their minima.
pub(super) const SETS: usize = 2;

/// The scale of each set, and for each sub-block its quant in each set, a whole number that fits a byte.
pub(super) type FittedScales<S, const N: usize> = ([<S as Simd>::F32; SETS], [[<S as Simd>::F32; SETS]; N]);

/// For each super-block, one scale for each set, and its sub-blocks' multiples of it in `0..=top`.
#[inline(always)]
pub(super) fn fit_scales<S: Simd, const N: usize>(
    simd: S,
    scales: &[[S::F32; SETS]; N],
    importance: &[S::F32; N],
    top: u8,
) -> FittedScales<S, N> {
    let top_int = simd.splat_i32(top.into());
    let top = simd.splat(f32::from(top));
    let byte = simd.splat_i32(0xFF);
    let zero = simd.splat(0.0);
    let one = simd.splat(1.0);
    let product = |a, b, c| simd.mul(simd.mul(a, b), c);

    let mut highest = [zero; SETS];
    for x in scales {
        for g in 0..SETS {
            highest[g] = simd.max(highest[g], x[g]);
        }
    }
    let mut inverse: [S::F32; SETS] = std::array::from_fn(|g| simd.div(top, highest[g]));
    let mut best_error = [zero; SETS];
    for g in 0..SETS {
        let step = simd.div(one, inverse[g]);
        for (x, &w) in scales.iter().zip(importance) {
            let quant = simd.and_i32(nearest(simd, simd.mul(inverse[g], x[g])), byte);
            let difference = simd.sub(x[g], simd.mul(step, simd.to_f32(quant)));
            best_error[g] = simd.add(best_error[g], product(w, difference, difference));
        }
    }
    for tenths in [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0] {
        let n_quants = simd.add(simd.splat(0.1 * tenths), top);
        for g in 0..SETS {
            let trial = simd.div(n_quants, highest[g]);
            let step = simd.div(one, trial);
            let mut error = zero;
            for (x, &w) in scales.iter().zip(importance) {
                let quant = simd.min_i32(nearest(simd, simd.mul(trial, x[g])), top_int);
                let difference = simd.sub(x[g], simd.mul(step, simd.to_f32(quant)));
                error = simd.add(error, product(w, difference, difference));
            }
            let wins = simd.lt(error, best_error[g]);
            best_error[g] = simd.select(wins, error, best_error[g]);
            inverse[g] = simd.select(wins, trial, inverse[g]);
        }
    }

    // Quants as bytes, but as floats.
    let mut quants = [[zero; SETS]; N];
    let (mut sum_wqx, mut sum_wqq) = ([zero; SETS], [zero; SETS]);
    for ((quants, x), &w) in quants.iter_mut().zip(scales).zip(importance) {
        for g in 0..SETS {
            let quant = simd.min_i32(nearest(simd, simd.mul(inverse[g], x[g])), top_int);
            let q = simd.to_f32(quant);
            sum_wqx[g] = simd.add(sum_wqx[g], product(w, x[g], q));
            sum_wqq[g] = simd.add(sum_wqq[g], product(w, q, q));
            quants[g] = simd.to_f32(simd.and_i32(quant, byte));
        }
    }
    for _ in 0..5 {
        let mut moved = simd.lt(zero, zero);
        for ((quants, x), &w) in quants.iter_mut().zip(scales).zip(importance) {
            for g in 0..SETS {
                let q = quants[g];
                let wqx = simd.sub(sum_wqx[g], product(w, x[g], q));
                let wqq = simd.sub(sum_wqq[g], product(w, q, q));
                let is_solvable = simd.and(simd.lt(zero, wqx), simd.lt(zero, wqq));
                let best = nearest(simd, simd.div(simd.mul(x[g], wqq), wqx));
                let best = simd.min_i32(best, top_int);
                let best_float = simd.to_f32(best);
                let differs = simd.not(simd.eq(best_float, q));
                let wqx = simd.add(wqx, product(w, x[g], best_float));
                let wqq = simd.add(wqq, product(w, best_float, best_float));
                let is_better = simd.lt(product(sum_wqx[g], sum_wqx[g], wqq), product(wqx, wqx, sum_wqq[g]));
                let moves = simd.and(simd.and(is_solvable, differs), is_better);
                quants[g] = simd.select(moves, simd.to_f32(simd.and_i32(best, byte)), q);
                sum_wqx[g] = simd.select(moves, wqx, sum_wqx[g]);
                sum_wqq[g] = simd.select(moves, wqq, sum_wqq[g]);
                moved = simd.or(moved, moves);
            }
        }
        // A super-block that moved nothing would not the next time either.
        if !simd.any(moved) {
            break;
        }
    }

    let negligible = simd.splat(NEGLIGIBLE);
    let is_negligible: [S::Mask; SETS] = std::array::from_fn(|g| simd.lt(highest[g], negligible));
    let scale = std::array::from_fn(|g| {
        let scale = simd.select(simd.lt(zero, sum_wqq[g]), simd.div(sum_wqx[g], sum_wqq[g]), zero);
        simd.select(is_negligible[g], zero, scale)
    });
    let quants = quants.map(|quants| std::array::from_fn(|g| simd.select(is_negligible[g], zero, quants[g])));
    (scale, quants)
}
