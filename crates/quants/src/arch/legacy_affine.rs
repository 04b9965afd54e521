//! Q4_1 and Q5_1 (`scalar::legacy`). Without importance a block is a few vectors in the order of the weights; with it, a
//! block is a lane of the search.

use super::affine::{Columns, GROUPS, StoredFits, emphasize_columns, fit, load_columns};
use super::columns::sums_of_rows;
use super::legacy::reciprocal;
use super::{Chunk, Kernel, Simd};
use crate::scalar::legacy::{
    LEN, Q4_1, Q5_1, quantize_q4_1, quantize_q5_1, store_f16, store_fifth_bits, store_nibbles,
};
use crate::scalar::search::AffineSearch;

/// Q4_1 with `TOP` = 15, Q5_1 with 31; `BYTES` goes with it.
pub(super) struct Quantize<'a, const TOP: u8, const BYTES: usize>(Chunk<'a>);

pub(super) fn quantize_q4(chunk: Chunk<'_>) -> Quantize<'_, 15, Q4_1> {
    Quantize(chunk)
}

pub(super) fn quantize_q5(chunk: Chunk<'_>) -> Quantize<'_, 31, Q5_1> {
    Quantize(chunk)
}

impl<const TOP: u8, const BYTES: usize> Kernel for Quantize<'_, TOP, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Chunk { weights, importance, blocks } = self.0;
        let (blocks, _) = blocks.as_chunks_mut::<BYTES>();
        if let Some(importance) = importance {
            return weighted::<S, TOP, BYTES>(simd, weights, importance, blocks);
        }
        for (weights, block) in weights.as_chunks::<LEN>().0.iter().zip(blocks) {
            if unweighted::<S, TOP>(simd, weights, block).is_none() {
                match block.as_mut_slice() {
                    block if TOP == 15 => {
                        block.as_chunks_mut().0.iter_mut().for_each(|b| quantize_q4_1(weights, b))
                    }
                    block => block.as_chunks_mut().0.iter_mut().for_each(|b| quantize_q5_1(weights, b)),
                }
            }
        }
    }
}

/// `None` where scale or reciprocal are zero or not finite, which is left to the reference.
#[inline(always)]
fn unweighted<S: Simd, const TOP: u8>(simd: S, weights: &[f32; LEN], block: &mut [u8]) -> Option<()> {
    let n_vectors = LEN / S::LANES;
    let x = |v: usize| simd.load_slice(&weights[v * S::LANES..]);
    let (mut high, mut low) = (simd.splat(f32::MIN), simd.splat(f32::MAX));
    for v in 0..n_vectors {
        high = simd.max(x(v), high);
        low = simd.min(x(v), low);
    }
    let (high, mut low) = (simd.largest(high), -simd.largest(simd.neg(low)));
    if low == 0.0 {
        // Its sign is stored: the first zero counts.
        low = *weights.iter().find(|x| **x == 0.0)?;
    }
    let d = (high - low) / f32::from(TOP);
    let inverse = simd.splat(reciprocal(d)?);
    let mut integers = [simd.splat_i32(0); 4];
    for (v, integers) in integers[..n_vectors].iter_mut().enumerate() {
        let value = simd.mul(simd.sub(x(v), simd.splat(low)), inverse);
        let integer = simd.truncate(simd.add(value, simd.splat(0.5)));
        *integers = simd.clamp_i32(integer, simd.splat_i32(0), simd.splat_i32(TOP.into()));
    }
    store::<TOP>(block, d, low, &simd.narrow(&integers[..n_vectors]));
    Some(())
}

#[inline(always)]
fn store<const TOP: u8>(block: &mut [u8], d: f32, min: f32, quants: &[u8; LEN]) {
    store_f16(&mut block[..2], d);
    store_f16(&mut block[2..4], min);
    if TOP == 31 {
        store_fifth_bits(&mut block[4..8], quants);
        store_nibbles(&mut block[8..], quants);
    } else {
        store_nibbles(&mut block[4..], quants);
    }
}

#[inline(always)]
fn weighted<S: Simd, const TOP: u8, const BYTES: usize>(
    simd: S,
    weights: &[f32],
    importance: &[f32],
    blocks: &mut [[u8; BYTES]],
) {
    let search = const { AffineSearch::weighted(TOP) };
    let row_len = importance.len();
    if row_len == 0 {
        return;
    }
    let (columns, _) = importance.as_chunks::<LEN>();
    let n_blocks = columns.len();
    let zeros: Columns<S, LEN> = [[simd.splat(0.0); GROUPS]; LEN];
    let (mut x, mut w, mut room) = (zeros, zeros, zeros);
    // As many rows at a time as there are lanes, so that their own sums have a lane each.
    for (rows, blocks) in weights.chunks(S::LANES * row_len).zip(blocks.chunks_mut(S::LANES * n_blocks)) {
        let sums = sums_of_rows(simd, rows, row_len);
        let (rows, _) = rows.as_chunks::<LEN>();
        for first in (0..rows.len()).step_by(S::LANES * GROUPS) {
            // Lanes beyond the last block repeat it.
            let at = |i: usize| (first + i).min(rows.len() - 1);
            load_columns(simd, |i| &rows[at(i)], &mut x);
            load_columns(simd, |i| &columns[at(i) % n_blocks], &mut w);
            emphasize_columns(simd, |i| sums[at(i) / n_blocks] / row_len as f32, &x, &mut w);
            let fits = StoredFits::new(simd, &fit(simd, &search, &x, &w, &mut room));
            let blocks = &mut blocks[first..];
            for (i, (weights, block)) in rows[first..].iter().zip(blocks).take(S::LANES * GROUPS).enumerate()
            {
                let fit = fits.fit(i, search.limit);
                store::<TOP>(block, fit.scale, -fit.min, &fit.grid.quantize(weights, TOP));
            }
        }
    }
}
