//! The operations that make the result, and their order; compiled once for each instruction set.
#![allow(clippy::needless_range_loop, reason = "arrays of registers are walked side by side")]

use super::{BLOCK, Cells, Token};
use std::ops::Range;

/// Running sums of a dot product.
pub(crate) const LANES: usize = 16;

/// Sixteen floats, as far apart in memory as a cache line is long.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

const ZERO: Lanes = Lanes([0.0; LANES]);

/// What is to be computed. Lengths and ranges have been checked.
pub(crate) struct Job<'a> {
    pub(crate) keys: Cells<'a>,
    pub(crate) values: Cells<'a>,
    pub(crate) scale: f32,
    pub(crate) tokens: &'a [Token<'a>],
    /// Queries of a token.
    pub(crate) n_heads: usize,
}

/// Rows are padded with zeros to whole [`Lanes`].
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// `[key lanes, rows]`: scaled queries; a row for each token and head.
    pub(crate) queries: Vec<Lanes>,
    /// `[value lanes, rows]`.
    pub(crate) gathered: Vec<Lanes>,
    /// `[key lanes, BLOCK]`.
    pub(crate) keys: Vec<Lanes>,
    /// `[value lanes, BLOCK]`.
    pub(crate) values: Vec<Lanes>,
    /// `[rows]`: of the block that is looked at.
    pub(crate) scores: Vec<[f32; BLOCK]>,
    /// `[rows]`: the largest score so far.
    pub(crate) largest: Vec<f32>,
    /// `[rows]`.
    pub(crate) total: Vec<f32>,
}

/// What depends on how an instruction set arranges keys and queries. In [`Buffers`] only it looks at these.
pub(crate) trait Steps {
    /// Stores the elements of a query, which are to be scaled.
    #[inline(always)]
    fn keep_query(&self, query: &[f32], scale: f32, kept: &mut [Lanes]) {
        for (lanes, part) in kept.iter_mut().zip(query.chunks(LANES)) {
            for (lane, element) in lanes.0.iter_mut().zip(part) {
                *lane = element * scale;
            }
        }
    }

    /// Reads keys and values of these cells, which belong to one block.
    fn widen(&self, job: &Job<'_>, cells: Range<usize>, buffers: &mut Buffers);

    /// Adds the `cells` of the block to what the `rows` have gathered, in vectors of so many [`Lanes`] for keys and values.
    fn look_at(&self, buffers: &mut Buffers, rows: Range<usize>, cells: Range<usize>, n_lanes: [usize; 2]);
}

impl Buffers {
    fn begin(&mut self, job: &Job<'_>) {
        let rows = job.tokens.len() * job.n_heads;
        let (n_k, n_v) = (job.keys.dim.div_ceil(LANES), job.values.dim.div_ceil(LANES));
        // Padding stays zero: whatever the buffers held is overwritten.
        for (buffer, len) in [
            (&mut self.queries, rows * n_k),
            (&mut self.gathered, rows * n_v),
            (&mut self.keys, BLOCK * n_k),
            (&mut self.values, BLOCK * n_v),
        ] {
            buffer.clear();
            buffer.resize(len, ZERO);
        }
        self.scores.resize(rows.max(self.scores.len()), [0.0; BLOCK]);
        self.largest.clear();
        self.largest.resize(rows, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(rows, 0.0);
    }
}

/// Does the job. `widen` reads one row of cells; `R` rows times `C` cells are multiplied together, and `G` rows of `V` lanes
/// are gathered together: as many as the registers hold, which changes no result.
#[inline(always)]
pub(crate) fn attend_with<const R: usize, const C: usize, const G: usize, const V: usize>(
    job: &Job<'_>,
    buffers: &mut Buffers,
    out: &mut [f32],
    widen: impl Fn(&Cells<'_>, usize, &mut [Lanes]),
) {
    attend_by(job, buffers, out, &Plain::<_, R, C, G, V>(widen));
}

/// Does the job by these steps.
#[inline(always)]
pub(crate) fn attend_by(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32], steps: &impl Steps) {
    buffers.begin(job);
    let n_lanes = [job.keys.dim.div_ceil(LANES), job.values.dim.div_ceil(LANES)];
    let [n_k, n_v] = n_lanes;
    let (dim_k, n_heads) = (job.keys.dim, job.n_heads);
    let queries = job.tokens.iter().flat_map(|token| token.queries.chunks_exact(dim_k));
    for (kept, query) in buffers.queries.chunks_exact_mut(n_k).zip(queries) {
        steps.keep_query(query, job.scale, kept);
    }
    let first = job.tokens.iter().map(|token| token.visible.start).min().unwrap_or(0);
    let end = job.tokens.iter().map(|token| token.visible.end).max().unwrap_or(0);
    for block in first / BLOCK..end.div_ceil(BLOCK) {
        let start = block * BLOCK;
        let cells_of = |token: &Token<'_>| {
            token.visible.start.clamp(start, start + BLOCK) - start
                ..token.visible.end.clamp(start, start + BLOCK) - start
        };
        steps.widen(job, start.max(first)..(start + BLOCK).min(end), buffers);
        let mut rest = job.tokens;
        while let Some(token) = rest.first() {
            // Tokens that see the same cells of the block go together.
            let cells = cells_of(token);
            let n_same = rest.iter().take_while(|other| cells_of(other) == cells).count();
            let at = (job.tokens.len() - rest.len()) * n_heads;
            if !cells.is_empty() {
                steps.look_at(buffers, at..at + n_same * n_heads, cells, n_lanes);
            }
            rest = &rest[n_same..];
        }
    }
    let dim_v = job.values.dim;
    for (row, out) in out.chunks_exact_mut(dim_v).enumerate() {
        let gathered = &buffers.gathered[row * n_v..][..n_v];
        for (out, lanes) in out.chunks_mut(LANES).zip(gathered) {
            for (out, lane) in out.iter_mut().zip(&lanes.0) {
                *out = lane / buffers.total[row];
            }
        }
    }
}

/// The steps in safe Rust, everything in its own order.
struct Plain<W, const R: usize, const C: usize, const G: usize, const V: usize>(W);

impl<W, const R: usize, const C: usize, const G: usize, const V: usize> Steps for Plain<W, R, C, G, V>
where
    W: Fn(&Cells<'_>, usize, &mut [Lanes]),
{
    #[inline(always)]
    fn widen(&self, job: &Job<'_>, cells: Range<usize>, buffers: &mut Buffers) {
        let (n_k, n_v) = (job.keys.dim.div_ceil(LANES), job.values.dim.div_ceil(LANES));
        for cell in cells {
            let place = cell % BLOCK;
            (self.0)(&job.keys, cell, &mut buffers.keys[place * n_k..][..n_k]);
            (self.0)(&job.values, cell, &mut buffers.values[place * n_v..][..n_v]);
        }
    }

    #[inline(always)]
    fn look_at(
        &self,
        buffers: &mut Buffers,
        rows: Range<usize>,
        cells: Range<usize>,
        [n_k, n_v]: [usize; 2],
    ) {
        look_at::<R, C, G, V>(buffers, rows, cells, n_k, n_v);
    }
}

/// Adds the `cells` of the block to what the `rows` have gathered.
#[inline(always)]
fn look_at<const R: usize, const C: usize, const G: usize, const V: usize>(
    buffers: &mut Buffers,
    rows: Range<usize>,
    cells: Range<usize>,
    n_k: usize,
    n_v: usize,
) {
    let Buffers { queries, gathered, keys, values, scores, largest, total } = buffers;
    let mut row = rows.start;
    while row + R <= rows.end {
        score::<R, C>(&queries[row * n_k..], keys, &mut scores[row..row + R], cells.clone(), n_k);
        row += R;
    }
    while row < rows.end {
        score::<1, 4>(&queries[row * n_k..], keys, &mut scores[row..row + 1], cells.clone(), n_k);
        row += 1;
    }
    for row in rows.clone() {
        if let Some(factor) = weigh(&mut scores[row], &mut largest[row], &mut total[row], cells.clone()) {
            for lanes in &mut gathered[row * n_v..][..n_v] {
                for lane in &mut lanes.0 {
                    *lane *= factor;
                }
            }
        }
    }
    let mut row = rows.start;
    while row + G <= rows.end {
        gather::<G, V>(&mut gathered[row * n_v..], values, &scores[row..row + G], cells.clone(), n_v);
        row += G;
    }
    while row < rows.end {
        gather::<1, 4>(&mut gathered[row * n_v..], values, &scores[row..row + 1], cells.clone(), n_v);
        row += 1;
    }
}

/// Scores of `R` rows with the cells.
#[inline(always)]
fn score<const R: usize, const C: usize>(
    queries: &[Lanes],
    keys: &[Lanes],
    scores: &mut [[f32; BLOCK]],
    cells: Range<usize>,
    n: usize,
) {
    let mut cell = cells.start;
    while cell + C <= cells.end {
        let dots = dots::<R, C>(queries, &keys[cell * n..], n);
        for r in 0..R {
            scores[r][cell..cell + C].copy_from_slice(&dots[r]);
        }
        cell += C;
    }
    while cell < cells.end {
        let dots = dots::<R, 1>(queries, &keys[cell * n..], n);
        for r in 0..R {
            scores[r][cell] = dots[r][0];
        }
        cell += 1;
    }
}

#[inline(always)]
fn dots<const R: usize, const C: usize>(queries: &[Lanes], keys: &[Lanes], n: usize) -> [[f32; C]; R] {
    let (queries, keys) = (&queries[..R * n], &keys[..C * n]);
    let mut sums = [[ZERO; C]; R];
    for i in 0..n {
        for r in 0..R {
            for c in 0..C {
                for l in 0..LANES {
                    let sum = &mut sums[r][c].0[l];
                    *sum = queries[r * n + i].0[l].mul_add(keys[c * n + i].0[l], *sum);
                }
            }
        }
    }
    let mut dots = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            dots[r][c] = add_up(&sums[r][c].0);
        }
    }
    dots
}

#[inline(always)]
fn add_up(lanes: &[f32; LANES]) -> f32 {
    let mut eight = [0.0; 8];
    for l in 0..8 {
        eight[l] = lanes[l] + lanes[l + 8];
    }
    let mut four = [0.0; 4];
    for l in 0..4 {
        four[l] = eight[l] + eight[l + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Makes probabilities of scores, up to their sum. What was gathered before must be multiplied with the result.
#[inline(always)]
fn weigh(scores: &mut [f32; BLOCK], largest: &mut f32, total: &mut f32, cells: Range<usize>) -> Option<f32> {
    for place in 0..BLOCK {
        if !cells.contains(&place) {
            scores[place] = f32::NEG_INFINITY;
        }
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for half in scores.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            lanes[l] = if half[l] > lanes[l] { half[l] } else { lanes[l] };
        }
    }
    let block = lanes.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let factor = (block > *largest).then(|| {
        let factor = exp(*largest - block);
        *largest = block;
        *total *= factor;
        factor
    });
    let mut sums = [0.0; LANES];
    for half in scores.as_chunks_mut::<LANES>().0 {
        for l in 0..LANES {
            half[l] = exp(half[l] - *largest);
            sums[l] += half[l];
        }
    }
    *total += add_up(&sums);
    factor
}

/// The numbers in [`exp`].
pub(crate) mod exponential {
    pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// ln 2 in two parts, the first with so few bits that its multiples are exact.
    pub(crate) const LN_2_HIGH: f32 = 0.693_359_4;
    pub(crate) const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding 1.5 * 2^23 rounds to a whole number, which is then in the lowest bits.
    pub(crate) const ROUNDER: f32 = 12_582_912.0;
    /// Of r^7 in the Taylor polynomial.
    pub(crate) const LEADING: f32 = 1.0 / 5040.0;
    /// Of r^6 down to r^0.
    pub(crate) const COEFFICIENTS: [f32; 7] =
        [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    /// What is added to an exponent where it is stored.
    pub(crate) const BIAS: u32 = 127;
    /// Where the result becomes 0.
    pub(crate) const LOWEST: f32 = -87.0;
}

/// exp(x) for x <= 0, within 2 units in the last place where the result is above e^-87, 0 below. Only operations that
/// compilers turn into vectors: x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 7, whose
/// remainder is below 2^-28.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    use exponential::*;
    let shifted = x.mul_add(LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = LEADING;
    for coefficient in COEFFICIENTS {
        p = r.mul_add(p, coefficient);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(BIAS) << 23);
    if x < LOWEST { 0.0 } else { p * power }
}

/// Adds the cells' values, weighed, to what `G` rows have gathered.
#[inline(always)]
fn gather<const G: usize, const V: usize>(
    gathered: &mut [Lanes],
    values: &[Lanes],
    weights: &[[f32; BLOCK]],
    cells: Range<usize>,
    n: usize,
) {
    let mut i = 0;
    while i + V <= n {
        gather_lanes::<G, V>(gathered, values, weights, cells.clone(), n, i);
        i += V;
    }
    while i < n {
        gather_lanes::<G, 1>(gathered, values, weights, cells.clone(), n, i);
        i += 1;
    }
}

/// As [`gather`], for the lanes from `i` on.
#[inline(always)]
fn gather_lanes<const G: usize, const V: usize>(
    gathered: &mut [Lanes],
    values: &[Lanes],
    weights: &[[f32; BLOCK]],
    cells: Range<usize>,
    n: usize,
    i: usize,
) {
    let weights = &weights[..G];
    let mut sums = [[ZERO; V]; G];
    for g in 0..G {
        for v in 0..V {
            sums[g][v] = gathered[g * n + i + v];
        }
    }
    for (cell, value) in values.chunks_exact(n).enumerate().take(cells.end).skip(cells.start) {
        let value = &value[i..i + V];
        for g in 0..G {
            let weight = weights[g][cell % BLOCK];
            for v in 0..V {
                for l in 0..LANES {
                    let sum = &mut sums[g][v].0[l];
                    *sum = weight.mul_add(value[v].0[l], *sum);
                }
            }
        }
    }
    for g in 0..G {
        for v in 0..V {
            gathered[g * n + i + v] = sums[g][v];
        }
    }
}
