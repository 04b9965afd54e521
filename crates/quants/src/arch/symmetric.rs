//! The search for a scale of signed quants (`scalar::search::fit_symmetric`), a sub-block to a lane.
//!
//! Two candidates are tried side by side, so that their four running sums don't wait for each other. Quants are rounded by
//! adding a large number and subtracting it; as a candidate spreads the largest weight over a known number of quants, all
//! are far below 2^22, where that gives the reference's integer, and most candidates need one of the bounds of the range
//! at most. That takes finite weights: of others the reference makes something else.

use super::Simd;
use crate::scalar::search::NEGLIGIBLE;

/// One number for each of the sub-blocks that are searched together.
pub(super) struct Fits<S: Simd> {
    /// 0 for negligible sub-blocks.
    pub(super) scale: S::F32,
    /// The best candidate, which made the quants that the scale goes with: `inverse * weight`, rounded and bounded.
    pub(super) inverse: S::F32,
    /// The largest magnitude of a weight.
    pub(super) magnitude: S::F32,
}

struct Search<'a, S: Simd, const N: usize> {
    simd: S,
    half: u8,
    /// The weight of the largest magnitude.
    extreme: S::F32,
    x: &'a [S::F32; N],
    w: &'a [S::F32; N],
    /// Products of the two.
    wx: &'a [S::F32; N],
}

/// For the best candidate so far.
struct Best<S: Simd> {
    scale: S::F32,
    /// Scale times the sum of w q x: what the squared error is reduced by.
    gain: S::F32,
    inverse: S::F32,
}

/// The weight of the largest magnitude, the first of several, and the magnitude.
#[inline(always)]
pub(super) fn extremes<S: Simd, const N: usize>(simd: S, weights: &[S::F32; N]) -> (S::F32, S::F32) {
    let (mut extreme, mut magnitude) = (simd.splat(0.0), simd.splat(0.0));
    for &x in weights {
        let is_larger = simd.lt(magnitude, simd.abs(x));
        extreme = simd.select(is_larger, x, extreme);
        magnitude = simd.max(simd.abs(x), magnitude);
    }
    (extreme, magnitude)
}

/// The best scale found for quants in `-half..half`. All weights are finite.
#[inline(always)]
pub(super) fn fit<S: Simd, const N: usize>(
    simd: S,
    weights: &[S::F32; N],
    importance: &[S::F32; N],
    half: u8,
) -> Fits<S> {
    let (extreme, magnitude) = extremes(simd, weights);
    let mut products = *weights;
    for (product, &w) in products.iter_mut().zip(importance) {
        *product = simd.mul(w, *product);
    }
    let search = Search { simd, half, extreme, x: weights, w: importance, wx: &products };

    let zero = simd.splat(0.0);
    let ([inverse, _], [[wqx, wqq], _]) = search.sums::<false, true>([0, 0]);
    let scale = simd.select(simd.eq(wqq, zero), zero, simd.div(wqx, wqq));
    let mut best = Best { scale, gain: simd.mul(scale, wqx), inverse };
    // Largest weights of at most half - 1/2 quants stay within the range on either side, those below half + 1/2 on the
    // lower side; half is even, so that half + 1/2 rounds into the range but for an error of the division.
    for tenths in [[-9, -8], [-7, -6]] {
        search.compare::<false, false>(tenths, &mut best);
    }
    for tenths in [[-5, -4], [-3, -2], [-1, 1], [2, 3]] {
        search.compare::<false, true>(tenths, &mut best);
    }
    for tenths in [[4, 5], [6, 7], [8, 9]] {
        search.compare::<true, true>(tenths, &mut best);
    }

    let is_negligible = simd.lt(magnitude, simd.splat(NEGLIGIBLE));
    Fits { scale: simd.select(is_negligible, zero, best.scale), inverse: best.inverse, magnitude }
}

impl<S: Simd, const N: usize> Search<'_, S, N> {
    /// Keeps the better ones of these two candidates and the best so far, which wins a draw.
    #[inline(always)]
    fn compare<const LOW: bool, const HIGH: bool>(&self, tenths: [i8; 2], best: &mut Best<S>) {
        let simd = self.simd;
        let (inverses, sums) = self.sums::<LOW, HIGH>(tenths);
        for (inverse, [wqx, wqq]) in inverses.into_iter().zip(sums) {
            let is_better = simd.lt(simd.mul(best.gain, wqq), simd.mul(wqx, wqx));
            let wins = simd.and(simd.lt(simd.splat(0.0), wqq), is_better);
            let scale = simd.div(wqx, wqq);
            best.scale = simd.select(wins, scale, best.scale);
            best.gain = simd.select(wins, simd.mul(scale, wqx), best.gain);
            best.inverse = simd.select(wins, inverse, best.inverse);
        }
    }

    /// Two candidates' inverse scales, and their sums of w q x and w q q. `LOW` and `HIGH`: whether quants may be outside
    /// of the range there.
    #[inline(always)]
    fn sums<const LOW: bool, const HIGH: bool>(&self, tenths: [i8; 2]) -> ([S::F32; 2], [[S::F32; 2]; 2]) {
        const MAGIC: f32 = 12_582_912.0;
        let simd = self.simd;
        let magic = simd.splat(MAGIC);
        let half = f32::from(self.half);
        let (lowest, highest) = (simd.splat(-half), simd.splat(half - 1.0));
        let inverse = |tenths| simd.div(simd.splat(-(half + 0.1 * f32::from(tenths))), self.extreme);
        let inverses = [inverse(tenths[0]), inverse(tenths[1])];
        let mut sums = [[simd.splat(0.0); 2]; 2];
        for ((&x, &w), &wx) in self.x.iter().zip(self.w).zip(self.wx) {
            for c in 0..2 {
                let mut q = simd.mul(inverses[c], x);
                if HIGH {
                    q = simd.min(q, highest);
                }
                if LOW {
                    q = simd.max(q, lowest);
                }
                q = simd.sub(simd.add(q, magic), magic);
                sums[c][0] = simd.add(sums[c][0], simd.mul(wx, q));
                sums[c][1] = simd.add(sums[c][1], simd.mul(simd.mul(w, q), q));
            }
        }
        (inverses, sums)
    }
}
