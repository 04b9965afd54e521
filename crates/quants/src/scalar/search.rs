//! Searches for the scale (and minimum) of a sub-block: quantize with each of a list of candidate scales, solve the
//! weighted least squares problem for the quants that come out, keep the best.
//!
//! Running sums go over the weights in order, and of equally good candidates the first wins; with another order the
//! sums, and now and then the winner, would differ from ggml's.

use super::round::nearest;

/// Sub-blocks whose weights are all smaller than this count as zero.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// How [`fit_affine`] searches.
#[derive(Clone, Copy)]
pub(crate) struct AffineSearch {
    /// Quants lie in `0..=top`.
    pub(crate) top: u8,
    /// The candidates spread the range over `top + first + step * i` quants, for `i` in `0..count`.
    pub(crate) first: f32,
    pub(crate) step: f32,
    pub(crate) count: u8,
    pub(crate) deviation: Deviation,
    pub(crate) limit: Limit,
}

/// What of a difference makes up the error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deviation {
    Square,
    Magnitude,
}

/// When candidates' quants are brought into `0..=top`. The first quants of all are rounded before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Numbers too large for rounding wrap around first.
    AfterRounding,
    /// Infinities and NaN become `top` and 0.
    BeforeRounding,
}

impl AffineSearch {
    /// What ggml does where importances are known, for quants in `0..=top`.
    pub(crate) const fn weighted(top: u8) -> Self {
        let (deviation, limit) = (Deviation::Square, Limit::BeforeRounding);
        Self { top, first: -0.9, step: 0.05, count: 37, deviation, limit }
    }

    /// How many quants candidate `i` spreads the range over.
    #[inline(always)]
    pub(crate) fn quants_in_range(&self, i: u8) -> f32 {
        self.first + self.step * f32::from(i) + f32::from(self.top)
    }
}

/// The candidates of [`fit_symmetric`]: how many tenths of a quant they spread the largest weight beyond `half`. The last
/// is there twice, which changes nothing but lets the sums of all candidates fill vector registers.
const SYMMETRIC_TENTHS: [i8; 20] = [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9];

/// The outcome of [`fit_affine`]: `weight = scale * quant - min`, and how the quants came about.
#[derive(Clone, Copy, Default)]
pub(crate) struct AffineFit {
    pub(crate) scale: f32,
    /// Never negative: zero stays within the range of the sub-block.
    pub(crate) min: f32,
    pub(crate) grid: Grid,
}

/// A way to make quants of weights: `inverse * (weight - low)`, rounded.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) inverse: f32,
    pub(crate) low: f32,
    pub(crate) limit: Limit,
}

impl Default for Grid {
    /// Makes zeros of all weights.
    fn default() -> Self {
        Self { inverse: 0.0, low: 0.0, limit: Limit::AfterRounding }
    }
}

impl Grid {
    #[inline(always)]
    pub(crate) fn quantize<const N: usize>(&self, weights: &[f32; N], top: u8) -> [u8; N] {
        let mut quants = [0; N];
        for (quant, &x) in quants.iter_mut().zip(weights) {
            let value = self.inverse * (x - self.low);
            *quant = match self.limit {
                Limit::AfterRounding => nearest(value).clamp(0, i32::from(top)) as u8,
                Limit::BeforeRounding => {
                    let value = if value > 0.0 { value } else { 0.0 };
                    nearest(if value < f32::from(top) { value } else { f32::from(top) }) as u8
                }
            };
        }
        quants
    }
}

/// The best scale and minimum found for the weights.
pub(super) fn fit_affine<const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    search: &AffineSearch,
) -> AffineFit {
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
        return AffineFit { scale: 0.0, min: -low, grid: Grid::default() };
    }

    let top = f32::from(search.top);
    let mut grid = Grid { inverse: top / (high - low), low, limit: Limit::AfterRounding };
    let mut scale = 1.0 / grid.inverse;
    let quants = grid.quantize(weights, search.top);
    let mut best_error = error(search.deviation, weights, importance, &quants, scale, low);

    for i in 0..search.count {
        // From here on `low` is the best minimum so far, so a candidate's range depends on who won before it. The range
        // may have become tiny or negative by then.
        let trial = Grid { inverse: search.quants_in_range(i) / (high - low), low, limit: search.limit };
        let quants = trial.quantize(weights, search.top);
        let (mut sum_wq, mut sum_wqq, mut sum_wqx) = (0.0, 0.0, 0.0);
        for ((&q, &x), &w) in quants.iter().zip(weights).zip(importance) {
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
            let error = error(search.deviation, weights, importance, &quants, trial_scale, trial_low);
            if error < best_error {
                grid = trial;
                (best_error, scale, low) = (error, trial_scale, trial_low);
            }
        }
    }
    AffineFit { scale, min: -low, grid }
}

fn error<const N: usize>(
    deviation: Deviation,
    weights: &[f32; N],
    importance: &[f32; N],
    quants: &[u8; N],
    scale: f32,
    low: f32,
) -> f32 {
    let mut sum = 0.0;
    for ((&q, &x), &w) in quants.iter().zip(weights).zip(importance) {
        let difference = scale * f32::from(q) + low - x;
        sum += match deviation {
            Deviation::Square => w * (difference * difference),
            Deviation::Magnitude => w * difference.abs(),
        };
    }
    sum
}

/// The quants of weights with this scale and minimum.
///
/// In a loop: closures that go through the standard library are not compiled for the caller's instruction set.
#[inline(always)]
pub(crate) fn quantize_affine<const N: usize>(weights: &[f32; N], scale: f32, min: f32, top: u8) -> [u8; N] {
    let mut quants = [0; N];
    for (quant, x) in quants.iter_mut().zip(weights) {
        *quant = nearest((x + min) / scale).clamp(0, i32::from(top)) as u8;
    }
    quants
}

/// Sub-blocks' scales (or minima) as multiples of one scale, and that scale: quants in `0..=top`, best for the importance
/// of each sub-block. After the scale's search the quants are moved one by one while that helps.
///
/// Scales are as good as never negative; where one is, its quant wraps around as a byte does in ggml.
pub(crate) fn fit_scales<const N: usize>(
    scales: &[f32; N],
    importance: &[f32; N],
    top: u8,
) -> (f32, [u8; N]) {
    let top_int = i32::from(top);
    let top = f32::from(top);
    let mut highest = 0.0;
    for &x in scales {
        highest = if highest > x { highest } else { x };
    }
    if highest < NEGLIGIBLE {
        return (0.0, [0; N]);
    }

    let mut inverse = top / highest;
    let step = 1.0 / inverse;
    let mut best_error = 0.0;
    for (&x, &w) in scales.iter().zip(importance) {
        let difference = x - step * f32::from(nearest(inverse * x) as u8);
        best_error += w * difference * difference;
    }
    for tenths in [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0] {
        let trial = (0.1 * tenths + top) / highest;
        let step = 1.0 / trial;
        let mut error = 0.0;
        for (&x, &w) in scales.iter().zip(importance) {
            let difference = x - step * nearest(trial * x).min(top_int) as f32;
            error += w * difference * difference;
        }
        if error < best_error {
            (best_error, inverse) = (error, trial);
        }
    }

    let mut quants = [0; N];
    let (mut sum_wqx, mut sum_wqq) = (0.0, 0.0);
    for ((quant, &x), &w) in quants.iter_mut().zip(scales).zip(importance) {
        let q = nearest(inverse * x).min(top_int);
        sum_wqx += w * x * q as f32;
        sum_wqq += w * q as f32 * q as f32;
        *quant = q as u8;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((quant, &x), &w) in quants.iter_mut().zip(scales).zip(importance) {
            let q = f32::from(*quant);
            // The sums of the others alone, which say where this one would best be.
            let (mut wqx, mut wqq) = (sum_wqx - w * x * q, sum_wqq - w * q * q);
            if !(wqx > 0.0 && wqq > 0.0) {
                continue;
            }
            let moved_quant = nearest(x * wqq / wqx).min(top_int);
            if moved_quant == i32::from(*quant) {
                continue;
            }
            wqx += w * x * moved_quant as f32;
            wqq += w * moved_quant as f32 * moved_quant as f32;
            if wqx * wqx * sum_wqq > sum_wqx * sum_wqx * wqq {
                (*quant, sum_wqx, sum_wqq) = (moved_quant as u8, wqx, wqq);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    (if sum_wqq > 0.0 { sum_wqx / sum_wqq } else { 0.0 }, quants)
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
