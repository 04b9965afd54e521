//! Q2_K, Q4_K and Q5_K: the searches in lanes, what follows them as in the reference, compiled for longer vectors.

use super::affine::{Columns, GROUPS, StoredFits, emphasize_columns, fit, load_columns};
use super::scales::fit_scales;
use super::{Chunk, Kernel, Simd, array};
use crate::scalar::search::{AffineFit, AffineSearch};
use crate::scalar::{affine_k, q2_k};

/// Weights in a super-block of any of these formats.
const LEN: usize = 256;
/// The largest number of lanes and of sub-blocks in a super-block.
const MOST: usize = 16;

/// A format with `N_SUB` sub-blocks of `N` weights.
pub(super) trait Format<const N: usize, const N_SUB: usize, const BYTES: usize> {
    /// The search where no importances are known.
    const SEARCH: AffineSearch;
    /// The largest scale and minimum of a sub-block.
    const TOP_SCALE: u8;
    /// What the mean square of a super-block counts for in weighted importances.
    const VARIANCE_FACTOR: f32;

    /// How much each weight's error counts where nothing is known of the columns.
    fn importance<S: Simd>(simd: S, weights: &Columns<S, N>, importance: &mut Columns<S, N>);

    /// Writes a block whose scales are rounded fits.
    fn store(weights: &[f32; LEN], fits: &[AffineFit; N_SUB], block: &mut [u8; BYTES]);

    /// Writes a block whose scales have been searched.
    fn store_weighted(
        weights: &[f32; LEN],
        fits: &[AffineFit; N_SUB],
        scales: FittedHeader<N_SUB>,
        block: &mut [u8; BYTES],
    );
}

/// The scales and minima of a super-block, and the steps they are counted in.
pub(super) struct FittedHeader<const N_SUB: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; N_SUB],
    mins: [u8; N_SUB],
}

pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q2K;

impl Format<{ affine_k::SUB_LEN }, { affine_k::N_SUB }, { affine_k::Q4_K }> for Q4K {
    const SEARCH: AffineSearch = affine_k::SEARCH_Q4_K;
    const TOP_SCALE: u8 = affine_k::TOP_SCALE;
    const VARIANCE_FACTOR: f32 = 2.0;

    #[inline(always)]
    fn importance<S: Simd>(
        simd: S,
        weights: &Columns<S, { affine_k::SUB_LEN }>,
        importance: &mut Columns<S, { affine_k::SUB_LEN }>,
    ) {
        magnitude_and_root_mean_square(simd, weights, importance);
    }

    #[inline(always)]
    fn store(weights: &[f32; LEN], fits: &[AffineFit; affine_k::N_SUB], block: &mut [u8; affine_k::Q4_K]) {
        affine_k::store_q4_k(weights, fits, &affine_k::Header::round(fits), block);
    }

    #[inline(always)]
    fn store_weighted(
        weights: &[f32; LEN],
        fits: &[AffineFit; affine_k::N_SUB],
        scales: FittedHeader<{ affine_k::N_SUB }>,
        block: &mut [u8; affine_k::Q4_K],
    ) {
        let FittedHeader { d, dmin, scales, mins } = scales;
        affine_k::store_q4_k(weights, fits, &affine_k::Header::new(d, dmin, scales, mins), block);
    }
}

impl Format<{ affine_k::SUB_LEN }, { affine_k::N_SUB }, { affine_k::Q5_K }> for Q5K {
    const SEARCH: AffineSearch = affine_k::SEARCH_Q5_K;
    const TOP_SCALE: u8 = affine_k::TOP_SCALE;
    const VARIANCE_FACTOR: f32 = 2.0;

    #[inline(always)]
    fn importance<S: Simd>(
        simd: S,
        weights: &Columns<S, { affine_k::SUB_LEN }>,
        importance: &mut Columns<S, { affine_k::SUB_LEN }>,
    ) {
        magnitude_and_root_mean_square(simd, weights, importance);
    }

    #[inline(always)]
    fn store(weights: &[f32; LEN], fits: &[AffineFit; affine_k::N_SUB], block: &mut [u8; affine_k::Q5_K]) {
        affine_k::store_q5_k(weights, fits, &affine_k::Header::round(fits), block);
    }

    #[inline(always)]
    fn store_weighted(
        weights: &[f32; LEN],
        fits: &[AffineFit; affine_k::N_SUB],
        scales: FittedHeader<{ affine_k::N_SUB }>,
        block: &mut [u8; affine_k::Q5_K],
    ) {
        let FittedHeader { d, dmin, scales, mins } = scales;
        let limit = |scales: [u8; affine_k::N_SUB]| scales.map(|scale| scale.min(affine_k::TOP_SCALE));
        let header = affine_k::Header::new(d, dmin, limit(scales), limit(mins));
        affine_k::store_q5_k(weights, fits, &header, block);
    }
}

impl Format<{ q2_k::SUB_LEN }, { q2_k::N_SUB }, { q2_k::Q2_K }> for Q2K {
    const SEARCH: AffineSearch = q2_k::SEARCH;
    const TOP_SCALE: u8 = q2_k::TOP_SCALE;
    const VARIANCE_FACTOR: f32 = 1.0;

    #[inline(always)]
    fn importance<S: Simd>(
        simd: S,
        weights: &Columns<S, { q2_k::SUB_LEN }>,
        importance: &mut Columns<S, { q2_k::SUB_LEN }>,
    ) {
        for (w, x) in importance.iter_mut().zip(weights) {
            for g in 0..GROUPS {
                w[g] = simd.abs(x[g]);
            }
        }
    }

    #[inline(always)]
    fn store(weights: &[f32; LEN], fits: &[AffineFit; q2_k::N_SUB], block: &mut [u8; q2_k::Q2_K]) {
        q2_k::store_q2_k(weights, fits, &q2_k::Header::round(fits), block);
    }

    #[inline(always)]
    fn store_weighted(
        weights: &[f32; LEN],
        fits: &[AffineFit; q2_k::N_SUB],
        scales: FittedHeader<{ q2_k::N_SUB }>,
        block: &mut [u8; q2_k::Q2_K],
    ) {
        let FittedHeader { d, dmin, scales, mins } = scales;
        q2_k::store_q2_k(weights, fits, &q2_k::Header::new(d, dmin, scales, mins), block);
    }
}

#[inline(always)]
fn magnitude_and_root_mean_square<S: Simd, const N: usize>(
    simd: S,
    weights: &Columns<S, N>,
    importance: &mut Columns<S, N>,
) {
    let mut sum_xx = [simd.splat(0.0); GROUPS];
    for x in weights {
        for g in 0..GROUPS {
            sum_xx[g] = simd.add(sum_xx[g], simd.mul(x[g], x[g]));
        }
    }
    let n = simd.splat(N as f32);
    let root_mean_square: [_; GROUPS] = array(|g| simd.sqrt(simd.div(sum_xx[g], n)));
    for (w, x) in importance.iter_mut().zip(weights) {
        for g in 0..GROUPS {
            w[g] = simd.add(root_mean_square[g], simd.abs(x[g]));
        }
    }
}

/// Makes blocks of a [`Format`].
pub(super) struct Quantize<'a, F, const N: usize, const N_SUB: usize, const BYTES: usize> {
    chunk: Chunk<'a>,
    format: std::marker::PhantomData<F>,
}

impl<'a, F, const N: usize, const N_SUB: usize, const BYTES: usize> Quantize<'a, F, N, N_SUB, BYTES>
where
    F: Format<N, N_SUB, BYTES>,
{
    pub(super) fn new(_format: F, chunk: Chunk<'a>) -> Self {
        const { assert!(N * N_SUB == LEN && N.is_multiple_of(8) && N_SUB <= MOST) };
        Self { chunk, format: std::marker::PhantomData }
    }
}

impl<F, const N: usize, const N_SUB: usize, const BYTES: usize> Kernel for Quantize<'_, F, N, N_SUB, BYTES>
where
    F: Format<N, N_SUB, BYTES>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { chunk, .. } = self;
        let (weights, _) = chunk.weights.as_chunks::<LEN>();
        let (blocks, _) = chunk.blocks.as_chunks_mut::<BYTES>();
        // As many super-blocks at a time as there are lanes, so that their own sums and scales have a lane each.
        let columns = chunk.importance.map(|importance| importance.as_chunks::<LEN>().0);
        let mut start = 0;
        for (weights, blocks) in weights.chunks(S::LANES).zip(blocks.chunks_mut(S::LANES)) {
            match columns {
                Some(columns) => {
                    let columns: [&[f32; LEN]; MOST] = array(|b| &columns[(start + b) % columns.len()]);
                    simd.vectorize(Weighted::<F, N, N_SUB, BYTES> {
                        weights,
                        columns: &columns,
                        blocks,
                        format: std::marker::PhantomData,
                    });
                }
                None => simd.vectorize(Unweighted::<F, N, N_SUB, BYTES> {
                    weights,
                    blocks,
                    format: std::marker::PhantomData,
                }),
            }
            start += S::LANES;
        }
    }
}

/// Up to [`Simd::LANES`] super-blocks.
struct Unweighted<'a, F, const N: usize, const N_SUB: usize, const BYTES: usize> {
    weights: &'a [[f32; LEN]],
    blocks: &'a mut [[u8; BYTES]],
    format: std::marker::PhantomData<F>,
}

impl<F, const N: usize, const N_SUB: usize, const BYTES: usize> Kernel for Unweighted<'_, F, N, N_SUB, BYTES>
where
    F: Format<N, N_SUB, BYTES>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let zeros = [[simd.splat(0.0); GROUPS]; N];
        let (mut x, mut w, mut room) = (zeros, zeros, zeros);
        let per_fit = S::LANES * GROUPS / N_SUB;
        for (weights, blocks) in self.weights.chunks(per_fit).zip(self.blocks.chunks_mut(per_fit)) {
            load_columns(
                simd,
                |i| sub_block(&weights[(i / N_SUB).min(weights.len() - 1)], i % N_SUB),
                &mut x,
            );
            F::importance(simd, &x, &mut w);
            let fits = StoredFits::new(simd, &fit(simd, &F::SEARCH, &x, &w, &mut room));
            for (b, (weights, block)) in weights.iter().zip(blocks).enumerate() {
                F::store(weights, &array(|s| fits.fit(b * N_SUB + s, F::SEARCH.limit)), block);
            }
        }
    }
}

/// Up to [`Simd::LANES`] super-blocks, and each one's part of the importances.
struct Weighted<'a, F, const N: usize, const N_SUB: usize, const BYTES: usize> {
    weights: &'a [[f32; LEN]],
    columns: &'a [&'a [f32; LEN]; MOST],
    blocks: &'a mut [[u8; BYTES]],
    format: std::marker::PhantomData<F>,
}

impl<F, const N: usize, const N_SUB: usize, const BYTES: usize> Kernel for Weighted<'_, F, N, N_SUB, BYTES>
where
    F: Format<N, N_SUB, BYTES>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { weights, columns, blocks, .. } = self;
        let last = weights.len() - 1;
        let search = &const { AffineSearch::weighted(F::SEARCH.top) };
        let variances = variances(simd, weights, F::VARIANCE_FACTOR);
        let variances = variances.as_ref();

        let zeros = [[simd.splat(0.0); GROUPS]; N];
        let (mut x, mut w, mut room) = (zeros, zeros, zeros);
        let per_fit = S::LANES * GROUPS / N_SUB;
        let mut all_fits = [[AffineFit::default(); N_SUB]; MOST];
        let mut scales = [[0.0; MOST]; MOST];
        let mut mins = [[0.0; MOST]; MOST];
        let mut importance = [[0.0; MOST]; MOST];
        for start in (0..weights.len()).step_by(per_fit) {
            let at = |i: usize| (start + i / N_SUB).min(last);
            load_columns(simd, |i| sub_block(&weights[at(i)], i % N_SUB), &mut x);
            load_columns(simd, |i| sub_block(columns[at(i)], i % N_SUB), &mut w);
            emphasize_columns(simd, |i| variances[at(i)], &x, &mut w);
            let fits = StoredFits::new(simd, &fit(simd, search, &x, &w, &mut room));
            for b in 0..per_fit.min(weights.len() - start) {
                all_fits[start + b] = array(|s| fits.fit(b * N_SUB + s, search.limit));
                for s in 0..N_SUB {
                    scales[s][start + b] = all_fits[start + b][s].scale;
                    mins[s][start + b] = all_fits[start + b][s].min;
                    importance[s][start + b] = fits.importance(b * N_SUB + s);
                }
            }
        }

        let load = |lanes: &[f32; MOST]| {
            let mut floats = S::Floats::default();
            floats.as_mut().copy_from_slice(&lanes[..S::LANES]);
            simd.load(&floats)
        };
        let importance: [S::F32; N_SUB] = array(|s| load(&importance[s]));
        let sets: [_; N_SUB] = array(|s| [load(&scales[s]), load(&mins[s])]);
        let (steps, quants) = fit_scales(simd, &sets, &importance, F::TOP_SCALE);
        let (d, dmin) = (simd.store(steps[0]), simd.store(steps[1]));
        let quants: [[S::Floats; 2]; N_SUB] = array(|s| [simd.store(quants[s][0]), simd.store(quants[s][1])]);
        for (b, (weights, block)) in weights.iter().zip(blocks).enumerate() {
            let header = FittedHeader {
                d: d.as_ref()[b],
                dmin: dmin.as_ref()[b],
                scales: array(|s| quants[s][0].as_ref()[b] as u8),
                mins: array(|s| quants[s][1].as_ref()[b] as u8),
            };
            F::store_weighted(weights, &all_fits[b], header, block);
        }
    }
}

/// The mean squares of the super-blocks, times a factor, a super-block to a lane.
#[inline(always)]
fn variances<S: Simd>(simd: S, weights: &[[f32; LEN]], factor: f32) -> S::Floats {
    let last = weights.len() - 1;
    let rows: [&[[f32; 8]]; MOST] = array(|b| weights[b.min(last)].as_chunks().0);
    let mut sum = simd.splat(0.0);
    for i in 0..LEN / 8 {
        let rows: [&[f32; 8]; MOST] = array(|b| &rows[b][i]);
        for x in simd.transpose(&rows[..S::LANES]) {
            sum = simd.add(sum, simd.mul(x, x));
        }
    }
    simd.store(simd.div(simd.mul(simd.splat(factor), sum), simd.splat(LEN as f32)))
}

/// Weights or importances of a sub-block.
#[inline(always)]
fn sub_block<const N: usize>(super_block: &[f32; LEN], s: usize) -> &[f32; N] {
    &super_block.as_chunks().0[s]
}
