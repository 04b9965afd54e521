//! The search for scales and minima of sub-blocks (`scalar::search`), a sub-block to a lane.
//!
//! [`GROUPS`] vectors of sub-blocks go side by side, since a lone running sum would wait for its own last addition. What
//! costs is the work for each candidate and weight, and that is no more than the reference's multiplications and
//! additions:
//!
//! - Rounding is the addition of a large number and its subtraction. It gives the reference's integer as long as numbers
//!   are below 2^22, and as the grid is monotonic, looking at the smallest and the largest weight is enough to know that.
//!   In the same way it is known whether quants need to be brought into their range, which most candidates' don't.
//!   Where numbers are larger, or infinite, all lanes go the reference's way in integers.
//! - Quants of the winner are not kept but its grid is, and quants are made of it if ever they are needed.

use super::{Simd, array, nearest};
use crate::scalar::search::{AffineFit, AffineSearch, Deviation, Grid, Limit};

/// Vectors of sub-blocks that are searched side by side.
pub(super) const GROUPS: usize = 2;

/// One number for each of the sub-blocks that are searched together.
type Lanes<S> = [<S as Simd>::F32; GROUPS];

/// Outcomes of the search, as in `AffineFit`.
pub(super) struct Fits<S: Simd> {
    pub(super) scale: Lanes<S>,
    pub(super) min: Lanes<S>,
    pub(super) inverse: Lanes<S>,
    pub(super) low: Lanes<S>,
    /// 1 where a candidate won, so that the search's `limit` holds for the grid; else 0.
    pub(super) from_candidate: Lanes<S>,
    /// The sums of the importances.
    pub(super) importance: Lanes<S>,
}

/// How quants that are rounded come into their range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bounds {
    /// They are there already.
    Keep,
    /// They are not too large.
    Bottom,
    /// They are not too small.
    Top,
    Both,
    /// In integers that wrap around, as the reference does it where numbers are too large for rounding.
    Wrap,
}

/// Adding it leaves integers below 2^22 in the low bits of the fraction, rounded to nearest, ties to even.
const MAGIC: f32 = 12_582_912.0;
/// Numbers below it are rounded by adding [`MAGIC`].
const ROUNDED: f32 = 4_194_303.0;

/// For each weight of a sub-block (`N`), a vector over the sub-blocks.
pub(super) type Columns<S, const N: usize> = [Lanes<S>; N];

#[inline(always)]
fn each<S: Simd>(f: impl Fn(usize) -> S::F32) -> Lanes<S> {
    array(f)
}

/// The best scale and minimum for each sub-block. `quants` is room to work in.
#[inline(always)]
pub(super) fn fit<S: Simd, const N: usize>(
    simd: S,
    search: &AffineSearch,
    weights: &Columns<S, N>,
    importance: &Columns<S, N>,
    quants: &mut Columns<S, N>,
) -> Fits<S> {
    let zero = simd.splat(0.0);
    let one = simd.splat(1.0);
    let (mut lowest, mut high) = (weights[0], weights[0]);
    let mut sum_w = importance[0];
    let mut sum_wx = each::<S>(|g| simd.mul(importance[0][g], weights[0][g]));
    for (x, w) in weights.iter().zip(importance).skip(1) {
        for g in 0..GROUPS {
            lowest[g] = simd.min(x[g], lowest[g]);
            high[g] = simd.max(x[g], high[g]);
            sum_w[g] = simd.add(sum_w[g], w[g]);
            sum_wx[g] = simd.add(sum_wx[g], simd.mul(w[g], x[g]));
        }
    }
    let mut low = each::<S>(|g| simd.select(simd.lt(zero, lowest[g]), zero, lowest[g]));
    let flat: [S::Mask; GROUPS] = array(|g| simd.eq(low[g], high[g]));
    let first_low = low;
    // A range for the flat sub-blocks that does not send all lanes to the slow way.
    let high = each::<S>(|g| simd.select(flat[g], simd.add(low[g], one), high[g]));
    let largest = high;

    let top = simd.splat(f32::from(search.top));
    let mut inverse = each::<S>(|g| simd.div(top, simd.sub(high[g], low[g])));
    let mut scale = each::<S>(|g| simd.div(one, inverse[g]));
    match needed_bounds(simd, search.top, &inverse, &low, &lowest, &largest) {
        Bounds::Wrap => quantize(simd, Bounds::Wrap, search.top, weights, (&inverse, &low), quants),
        _ => quantize(simd, Bounds::Both, search.top, weights, (&inverse, &low), quants),
    }
    let mut best_error = error(simd, search.deviation, weights, importance, quants, &scale, &low);
    let mut best_low = low;
    let mut from_candidate = [zero; GROUPS];

    for i in 0..search.count {
        let n_quants = simd.splat(search.quants_in_range(i));
        let trial = each::<S>(|g| simd.div(n_quants, simd.sub(high[g], low[g])));
        let bounds = needed_bounds(simd, search.top, &trial, &low, &lowest, &largest);
        // One copy of the loop for each of them.
        let grid = (&trial, &low);
        let sums = match bounds {
            Bounds::Keep => sums(simd, Bounds::Keep, search.top, weights, importance, grid, quants),
            Bounds::Bottom => sums(simd, Bounds::Bottom, search.top, weights, importance, grid, quants),
            Bounds::Top => sums(simd, Bounds::Top, search.top, weights, importance, grid, quants),
            Bounds::Wrap if search.limit == Limit::AfterRounding => {
                sums(simd, Bounds::Wrap, search.top, weights, importance, grid, quants)
            }
            Bounds::Both | Bounds::Wrap => {
                sums(simd, Bounds::Both, search.top, weights, importance, grid, quants)
            }
        };

        let mut is_solvable = [simd.lt(zero, zero); GROUPS];
        let mut is_above = is_solvable;
        let (mut trial_scale, mut trial_low) = ([zero; GROUPS], [zero; GROUPS]);
        for g in 0..GROUPS {
            let (w, wx) = (sum_w[g], sum_wx[g]);
            let [wq, wqq, wqx] = sums[g];
            let determinant = simd.sub(simd.mul(w, wqq), simd.mul(wq, wq));
            is_solvable[g] = simd.lt(zero, determinant);
            trial_scale[g] = simd.div(simd.sub(simd.mul(w, wqx), simd.mul(wx, wq)), determinant);
            trial_low[g] = simd.div(simd.sub(simd.mul(wqq, wx), simd.mul(wq, wqx)), determinant);
            is_above[g] = simd.lt(zero, trial_low[g]);
        }
        if (0..GROUPS).any(|g| simd.any(is_above[g])) {
            for g in 0..GROUPS {
                let [_, wqq, wqx] = sums[g];
                trial_low[g] = simd.select(is_above[g], zero, trial_low[g]);
                trial_scale[g] = simd.select(is_above[g], simd.div(wqx, wqq), trial_scale[g]);
            }
        }
        let error = error(simd, search.deviation, weights, importance, quants, &trial_scale, &trial_low);
        for g in 0..GROUPS {
            let wins = simd.and(is_solvable[g], simd.lt(error[g], best_error[g]));
            best_error[g] = simd.select(wins, error[g], best_error[g]);
            scale[g] = simd.select(wins, trial_scale[g], scale[g]);
            inverse[g] = simd.select(wins, trial[g], inverse[g]);
            best_low[g] = simd.select(wins, low[g], best_low[g]);
            low[g] = simd.select(wins, trial_low[g], low[g]);
            from_candidate[g] = simd.select(wins, one, from_candidate[g]);
        }
    }

    let or_zero = |values: Lanes<S>| each::<S>(|g| simd.select(flat[g], zero, values[g]));
    Fits {
        scale: or_zero(scale),
        min: each::<S>(|g| simd.neg(simd.select(flat[g], first_low[g], low[g]))),
        inverse: or_zero(inverse),
        low: or_zero(best_low),
        from_candidate: or_zero(from_candidate),
        importance: sum_w,
    }
}

/// What the quants that this grid makes of weights between `lowest` and `highest` need.
#[inline(always)]
fn needed_bounds<S: Simd>(
    simd: S,
    top: u8,
    inverse: &Lanes<S>,
    low: &Lanes<S>,
    lowest: &Lanes<S>,
    highest: &Lanes<S>,
) -> Bounds {
    let rounded = simd.splat(ROUNDED);
    let (first, last) = (simd.splat(-0.5), simd.splat(f32::from(top) + 0.5));
    let (mut is_rounded, mut is_low, mut is_high) = (true, false, false);
    for g in 0..GROUPS {
        let a = simd.mul(inverse[g], simd.sub(lowest[g], low[g]));
        let b = simd.mul(inverse[g], simd.sub(highest[g], low[g]));
        // Not where one of them is NaN.
        let is_within = simd.and(simd.lt(simd.abs(a), rounded), simd.lt(simd.abs(b), rounded));
        is_rounded &= simd.all(is_within);
        // The range of a grid may be negative.
        is_low |= simd.any(simd.lt(simd.min(a, b), first));
        is_high |= simd.any(simd.le(last, simd.max(a, b)));
    }
    match (is_rounded, is_low, is_high) {
        (false, ..) => Bounds::Wrap,
        (true, true, true) => Bounds::Both,
        (true, true, false) => Bounds::Bottom,
        (true, false, true) => Bounds::Top,
        (true, false, false) => Bounds::Keep,
    }
}

/// The quant of a weight, as a float.
#[inline(always)]
fn quant<S: Simd>(simd: S, bounds: Bounds, top: u8, x: S::F32, inverse: S::F32, low: S::F32) -> S::F32 {
    let magic = simd.splat(MAGIC);
    let value = simd.mul(inverse, simd.sub(x, low));
    let bounded = match bounds {
        Bounds::Keep => value,
        Bounds::Bottom => simd.max(value, simd.splat(0.0)),
        Bounds::Top => simd.min(value, simd.splat(f32::from(top))),
        Bounds::Both => simd.min(simd.max(value, simd.splat(0.0)), simd.splat(f32::from(top))),
        Bounds::Wrap => {
            let integer = nearest(simd, value);
            let (first, last) = (simd.splat_i32(0), simd.splat_i32(i32::from(top)));
            return simd.to_f32(simd.clamp_i32(integer, first, last));
        }
    };
    simd.sub(simd.add(bounded, magic), magic)
}

#[inline(always)]
fn quantize<S: Simd, const N: usize>(
    simd: S,
    bounds: Bounds,
    top: u8,
    weights: &Columns<S, N>,
    (inverse, low): (&Lanes<S>, &Lanes<S>),
    quants: &mut Columns<S, N>,
) {
    for (q, x) in quants.iter_mut().zip(weights) {
        for g in 0..GROUPS {
            q[g] = quant(simd, bounds, top, x[g], inverse[g], low[g]);
        }
    }
}

/// Makes the quants, and for each group the sums over w q, w q q and w q x.
#[inline(always)]
fn sums<S: Simd, const N: usize>(
    simd: S,
    bounds: Bounds,
    top: u8,
    weights: &Columns<S, N>,
    importance: &Columns<S, N>,
    (inverse, low): (&Lanes<S>, &Lanes<S>),
    quants: &mut Columns<S, N>,
) -> [[S::F32; 3]; GROUPS] {
    let mut sums = [[simd.splat(0.0); 3]; GROUPS];
    for ((quants, x), w) in quants.iter_mut().zip(weights).zip(importance) {
        for g in 0..GROUPS {
            let q = quant(simd, bounds, top, x[g], inverse[g], low[g]);
            quants[g] = q;
            let wq = simd.mul(w[g], q);
            let [sum_wq, sum_wqq, sum_wqx] = &mut sums[g];
            *sum_wq = simd.add(*sum_wq, wq);
            *sum_wqq = simd.add(*sum_wqq, simd.mul(wq, q));
            *sum_wqx = simd.add(*sum_wqx, simd.mul(wq, x[g]));
        }
    }
    sums
}

#[inline(always)]
fn error<S: Simd, const N: usize>(
    simd: S,
    deviation: Deviation,
    weights: &Columns<S, N>,
    importance: &Columns<S, N>,
    quants: &Columns<S, N>,
    scale: &Lanes<S>,
    low: &Lanes<S>,
) -> Lanes<S> {
    let mut sums = [simd.splat(0.0); GROUPS];
    for ((q, x), w) in quants.iter().zip(weights).zip(importance) {
        for g in 0..GROUPS {
            let difference = simd.sub(simd.add(simd.mul(scale[g], q[g]), low[g]), x[g]);
            let error = match deviation {
                Deviation::Square => simd.mul(difference, difference),
                Deviation::Magnitude => simd.abs(difference),
            };
            sums[g] = simd.add(sums[g], simd.mul(w[g], error));
        }
    }
    sums
}

/// Brings sub-blocks into lanes, one after the other.
#[inline(always)]
pub(super) fn load_columns<'a, S: Simd, const N: usize>(
    simd: S,
    sub_block: impl Fn(usize) -> &'a [f32; N],
    columns: &mut Columns<S, N>,
) {
    for g in 0..GROUPS {
        let sub_blocks: [&[[f32; 8]]; 16] = array(|lane| {
            // Lanes that this instruction set does not have get something, too.
            sub_block(g * S::LANES + lane.min(S::LANES - 1)).as_chunks().0
        });
        for (i, columns) in columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let rows: [&[f32; 8]; 16] = array(|lane| &sub_blocks[lane][i]);
            for (columns, vector) in columns.iter_mut().zip(simd.transpose(&rows[..S::LANES])) {
                columns[g] = vector;
            }
        }
    }
}

/// Makes emphases of importances, as in `scalar::emphasis`, with the mean square that goes with each sub-block.
#[inline(always)]
pub(super) fn emphasize_columns<S: Simd, const N: usize>(
    simd: S,
    mean_square: impl Fn(usize) -> f32,
    weights: &Columns<S, N>,
    importance: &mut Columns<S, N>,
) {
    for g in 0..GROUPS {
        let mut mean_squares = S::Floats::default();
        for (lane, each) in mean_squares.as_mut().iter_mut().enumerate() {
            *each = mean_square(g * S::LANES + lane);
        }
        let mean_squares = simd.load(&mean_squares);
        for (w, x) in importance.iter_mut().zip(weights) {
            let root = simd.sqrt(simd.add(mean_squares, simd.mul(x[g], x[g])));
            w[g] = simd.mul(w[g], root);
        }
    }
}

/// Fits in memory, sub-block after sub-block.
pub(super) struct StoredFits<S: Simd> {
    scale: InMemory<S>,
    min: InMemory<S>,
    inverse: InMemory<S>,
    low: InMemory<S>,
    from_candidate: InMemory<S>,
    importance: InMemory<S>,
}

type InMemory<S> = [<S as Simd>::Floats; GROUPS];

impl<S: Simd> StoredFits<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, fits: &Fits<S>) -> Self {
        let store = |values: &Lanes<S>| array(|g| simd.store(values[g]));
        Self {
            scale: store(&fits.scale),
            min: store(&fits.min),
            inverse: store(&fits.inverse),
            low: store(&fits.low),
            from_candidate: store(&fits.from_candidate),
            importance: store(&fits.importance),
        }
    }

    #[inline(always)]
    fn at(values: &InMemory<S>, i: usize) -> f32 {
        values[i / S::LANES].as_ref()[i % S::LANES]
    }

    /// The sum of the sub-block's importances.
    #[inline(always)]
    pub(super) fn importance(&self, i: usize) -> f32 {
        Self::at(&self.importance, i)
    }

    /// The fit of sub-block `i`; `limit` is the search's.
    #[inline(always)]
    pub(super) fn fit(&self, i: usize, limit: Limit) -> AffineFit {
        let limit = if Self::at(&self.from_candidate, i) != 0.0 { limit } else { Limit::AfterRounding };
        let grid = Grid { inverse: Self::at(&self.inverse, i), low: Self::at(&self.low, i), limit };
        AffineFit { scale: Self::at(&self.scale, i), min: Self::at(&self.min, i), grid }
    }
}
