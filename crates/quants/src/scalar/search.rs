//! Searches for the scale (and minimum) of a sub-block: quantize with each of a list of candidate scales, solve the
//! weighted least squares problem for the quants that come out, keep the best.
//!
//! Running sums go over the weights in order, and of equally good candidates the first wins; with another order the
//! sums, and now and then the winner, would differ from ggml's.

use super::round::nearest;

/// Sub-blocks whose weights are all smaller than this count as zero.
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// The candidates of [`fit_affine`]: `top + first + step * i` quants over the range, for i in `0..count`.
pub(super) struct Candidates {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: u8,
}

/// The candidates of [`fit_symmetric`]: how many tenths of a quant they spread the largest weight beyond `half`. The last
/// is there twice, which changes nothing but lets the sums of all candidates fill vector registers.
const SYMMETRIC_TENTHS: [i8; 20] = [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9];

/// Scale and minimum of `weight = scale * quant - min`.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// The best scale and minimum found for quants in `0..=top`, and the quants that go with them. The minimum is never
/// negative: zero stays within the range of the sub-block.
pub(super) fn fit_affine<const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    top: u8,
    candidates: &Candidates,
    quants: &mut [u8; N],
) -> Affine {
    let (mut low, mut high) = (weights[0], weights[0]);
    let mut sum_w = importance[0];
    let mut sum_wx = importance[0] * weights[0];
    for (&x, &w) in weights.iter().zip(importance).skip(1) {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
        sum_w += w;
        sum_wx += w * x;
    }
    low = if low > 0.0 { 0.0 } else { low };
    if low == high {
        quants.fill(0);
        return Affine { scale: 0.0, min: -low };
    }

    let top_f32 = f32::from(top);
    let inverse = top_f32 / (high - low);
    let mut scale = 1.0 / inverse;
    *quants = quantize_affine(weights, inverse, low, top);
    let mut best_error = squared_error(weights, importance, quants, scale, low);

    for i in 0..candidates.count {
        // From here on `low` is the best minimum so far, so a candidate's range depends on who won before it. The range
        // may have become tiny or negative by then.
        let inverse = (candidates.first + candidates.step * f32::from(i) + top_f32) / (high - low);
        let trial = quantize_affine(weights, inverse, low, top);
        let (mut sum_wq, mut sum_wqq, mut sum_wqx) = (0.0, 0.0, 0.0);
        for ((&q, &x), &w) in trial.iter().zip(weights).zip(importance) {
            let wq = w * f32::from(q);
            sum_wq += wq;
            sum_wqq += wq * f32::from(q);
            sum_wqx += wq * x;
        }
        let determinant = sum_w * sum_wqq - sum_wq * sum_wq;
        if determinant > 0.0 {
            let mut trial_scale = (sum_w * sum_wqx - sum_wx * sum_wq) / determinant;
            let mut trial_low = (sum_wqq * sum_wx - sum_wq * sum_wqx) / determinant;
            if trial_low > 0.0 {
                trial_low = 0.0;
                trial_scale = sum_wqx / sum_wqq;
            }
            let error = squared_error(weights, importance, &trial, trial_scale, trial_low);
            if error < best_error {
                *quants = trial;
                (best_error, scale, low) = (error, trial_scale, trial_low);
            }
        }
    }
    Affine { scale, min: -low }
}

fn quantize_affine<const N: usize>(weights: &[f32; N], inverse: f32, low: f32, top: u8) -> [u8; N] {
    weights.map(|x| nearest(inverse * (x - low)).clamp(0, i32::from(top)) as u8)
}

fn squared_error<const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    quants: &[u8; N],
    scale: f32,
    low: f32,
) -> f32 {
    let mut sum = 0.0;
    for ((&q, &x), &w) in quants.iter().zip(weights).zip(importance) {
        let difference = scale * f32::from(q) + low - x;
        sum += w * (difference * difference);
    }
    sum
}

/// The best scale found for signed quants in `-half..half`, and the quants that go with it, stored with `half` added.
/// A negligible sub-block gets scale 0 and stored quants 0. The scale may be negative.
pub(super) fn fit_symmetric<const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    half: u8,
    quants: &mut [u8; N],
) -> f32 {
    let (mut extreme, mut magnitude) = (0.0, 0.0);
    for &x in weights {
        if x.abs() > magnitude {
            (extreme, magnitude) = (x, x.abs());
        }
    }
    if magnitude < NEGLIGIBLE {
        quants.fill(0);
        return 0.0;
    }

    let inverses = SYMMETRIC_TENTHS.map(|tenths| -(f32::from(half) + 0.1 * f32::from(tenths)) / extreme);
    let mut sums_wqx = [0.0; SYMMETRIC_TENTHS.len()];
    let mut sums_wqq = [0.0; SYMMETRIC_TENTHS.len()];
    for (&x, &w) in weights.iter().zip(importance) {
        for c in 0..inverses.len() {
            let q = quantize_symmetric(x, inverses[c], half) as f32;
            sums_wqx[c] += w * x * q;
            sums_wqq[c] += w * q * q;
        }
    }

    let mut winner = 0;
    let mut scale = if sums_wqq[0] != 0.0 { sums_wqx[0] / sums_wqq[0] } else { 0.0 };
    let mut best = scale * sums_wqx[0];
    for c in 1..inverses.len() {
        let (sum_wqx, sum_wqq) = (sums_wqx[c], sums_wqq[c]);
        if sum_wqq > 0.0 && sum_wqx * sum_wqx > best * sum_wqq {
            scale = sum_wqx / sum_wqq;
            best = scale * sum_wqx;
            winner = c;
        }
    }
    *quants = weights.map(|x| (quantize_symmetric(x, inverses[winner], half) + i32::from(half)) as u8);
    scale
}

#[inline]
fn quantize_symmetric(x: f32, inverse: f32, half: u8) -> i32 {
    let half = i32::from(half);
    nearest(inverse * x).clamp(-half, half - 1)
}
