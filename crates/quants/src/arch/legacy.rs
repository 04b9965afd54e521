//! Q8_0, Q4_0 and Q5_0 (`scalar::legacy`). Without importance a block is a few vectors in the order of the weights; with
//! it, a block is a lane of the search.

use super::columns::{columns, emphasize, padded, sums_of_rows};
use super::{Chunk, Kernel, Simd, nearest, symmetric};
use crate::scalar::legacy::{
    LEN, Q4_0, Q5_0, Q8_0, quantize_q4_0, quantize_q5_0, quantize_q8_0, quantize_weighted_q4_0,
    quantize_weighted_q5_0, store_f16, store_fifth_bits, store_nibbles,
};
use crate::scalar::search::NEGLIGIBLE;

pub(super) struct QuantizeQ8<'a>(pub(super) Chunk<'a>);

impl Kernel for QuantizeQ8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weights, _) = self.0.weights.as_chunks::<LEN>();
        let (blocks, _) = self.0.blocks.as_chunks_mut::<Q8_0>();
        for (weights, block) in weights.iter().zip(blocks) {
            if quantize_q8(simd, weights, block).is_none() {
                quantize_q8_0(weights, block);
            }
        }
    }
}

/// The scale's reciprocal; `None` where it is not an ordinary number.
#[inline(always)]
pub(super) fn reciprocal(d: f32) -> Option<f32> {
    let inverse = 1.0 / d;
    (inverse.is_finite() && inverse != 0.0).then_some(inverse)
}

/// `None` where scale or reciprocal are zero or not finite, which is left to the reference.
#[inline(always)]
fn quantize_q8<S: Simd>(simd: S, weights: &[f32; LEN], block: &mut [u8; Q8_0]) -> Option<()> {
    let n_vectors = LEN / S::LANES;
    let x = |v: usize| simd.load_slice(&weights[v * S::LANES..]);
    let mut largest = simd.splat(0.0);
    for v in 0..n_vectors {
        largest = simd.max(simd.abs(x(v)), largest);
    }
    let d = simd.largest(largest) / 127.0;
    let inverse = simd.splat(reciprocal(d)?);
    // Ties go away from zero: see `scalar::round`.
    let almost_half = simd.splat(0.5_f32.next_down());
    let mut integers = [simd.splat_i32(0); 4];
    for (v, integers) in integers[..n_vectors].iter_mut().enumerate() {
        let value = simd.mul(x(v), inverse);
        *integers = simd.truncate(simd.add(value, simd.copysign(almost_half, value)));
    }
    store_f16(&mut block[..2], d);
    block[2..].copy_from_slice(&simd.narrow(&integers[..n_vectors]));
    Some(())
}

/// Q4_0 with `HALF` = 8, Q5_0 with 16; `BYTES` goes with it.
pub(super) struct QuantizeSymmetric<'a, const HALF: u8, const BYTES: usize>(pub(super) Chunk<'a>);

pub(super) fn quantize_q4(chunk: Chunk<'_>) -> QuantizeSymmetric<'_, 8, Q4_0> {
    QuantizeSymmetric(chunk)
}

pub(super) fn quantize_q5(chunk: Chunk<'_>) -> QuantizeSymmetric<'_, 16, Q5_0> {
    QuantizeSymmetric(chunk)
}

impl<const HALF: u8, const BYTES: usize> Kernel for QuantizeSymmetric<'_, HALF, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Chunk { weights, importance, blocks } = self.0;
        if let Some(importance) = importance {
            return weighted::<S, HALF, BYTES>(simd, weights, importance, blocks);
        }
        let (weights, _) = weights.as_chunks::<LEN>();
        let (blocks, _) = blocks.as_chunks_mut::<BYTES>();
        for (weights, block) in weights.iter().zip(blocks) {
            if unweighted::<S, HALF>(simd, weights, block).is_none() {
                match HALF {
                    8 => each(weights, block, quantize_q4_0),
                    _ => each(weights, block, quantize_q5_0),
                }
            }
        }
    }
}

/// Calls the reference for a block.
fn each<const BYTES: usize>(
    weights: &[f32; LEN],
    block: &mut [u8],
    quantize: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for block in block.as_chunks_mut().0 {
        quantize(weights, block);
    }
}

/// `None` where scale or reciprocal are zero or not finite, which is left to the reference.
#[inline(always)]
fn unweighted<S: Simd, const HALF: u8>(simd: S, weights: &[f32; LEN], block: &mut [u8]) -> Option<()> {
    let n_vectors = LEN / S::LANES;
    let x = |v: usize| simd.load_slice(&weights[v * S::LANES..]);
    let (mut high, mut low) = (x(0), simd.neg(x(0)));
    for v in 1..n_vectors {
        high = simd.max(x(v), high);
        low = simd.max(simd.neg(x(v)), low);
    }
    let (high, low) = (simd.largest(high), simd.largest(low));
    let extreme = match high == low {
        // Both signs have the largest magnitude: the first counts.
        true => *weights.iter().find(|x| x.abs() == high)?,
        false if high > low => high,
        false => -low,
    };
    let d = extreme / -f32::from(HALF);
    let inverse = simd.splat(reciprocal(d)?);
    let mut integers = [simd.splat_i32(0); 4];
    for (v, integers) in integers[..n_vectors].iter_mut().enumerate() {
        let shifted = simd.add(simd.mul(x(v), inverse), simd.splat(f32::from(HALF) + 0.5));
        let top = i32::from(HALF) * 2 - 1;
        *integers = simd.clamp_i32(simd.truncate(shifted), simd.splat_i32(0), simd.splat_i32(top));
    }
    store::<HALF>(block, d, &simd.narrow(&integers[..n_vectors]));
    Some(())
}

#[inline(always)]
fn store<const HALF: u8>(block: &mut [u8], d: f32, quants: &[u8; LEN]) {
    store_f16(&mut block[..2], d);
    if HALF == 16 {
        store_fifth_bits(&mut block[2..6], quants);
        store_nibbles(&mut block[6..], quants);
    } else {
        store_nibbles(&mut block[2..], quants);
    }
}

#[inline(always)]
fn weighted<S: Simd, const HALF: u8, const BYTES: usize>(
    simd: S,
    weights: &[f32],
    importance: &[f32],
    blocks: &mut [u8],
) {
    let row_len = importance.len();
    let (blocks, _) = blocks.as_chunks_mut::<BYTES>();
    if row_len == 0 {
        return;
    }
    let (together, n_blocks) = (S::LANES * row_len, row_len / LEN);
    let n_floats = S::LANES * LEN;
    let mut rooms = [[0.0; 16 * LEN]; 2];
    for (rows, blocks) in weights.chunks(together).zip(blocks.chunks_mut(S::LANES * n_blocks)) {
        let sums = sums_of_rows(simd, rows, row_len);
        for ((row, blocks), sum) in rows.chunks(row_len).zip(blocks.chunks_mut(n_blocks)).zip(sums) {
            // With weights that are not finite in it, the whole row is left to the reference.
            if !sum.is_finite() && !row.iter().all(|x| x.is_finite()) {
                match HALF {
                    8 => quantize_weighted_q4_0(row, importance, blocks.as_flattened_mut()),
                    _ => quantize_weighted_q5_0(row, importance, blocks.as_flattened_mut()),
                }
                continue;
            }
            let mean_square = simd.splat(sum / row_len as f32);
            let (row, _) = row.as_chunks::<LEN>();
            let (columns_of_row, _) = importance.as_chunks::<LEN>();
            let groups = row.chunks(S::LANES).zip(columns_of_row.chunks(S::LANES));
            for ((weights, importance), blocks) in groups.zip(blocks.chunks_mut(S::LANES)) {
                let [room, importance_room] = &mut rooms;
                let x = columns(simd, padded(weights.as_flattened(), &mut room[..n_floats]));
                let w = columns(simd, padded(importance.as_flattened(), &mut importance_room[..n_floats]));
                let w = emphasize(simd, &x, &w, mean_square);
                let fits = symmetric::fit::<S, LEN>(simd, &x, &w, HALF);
                let [d, inverse, magnitude] =
                    [fits.scale, fits.inverse, fits.magnitude].map(|lanes| simd.store(lanes));
                for (b, (weights, block)) in weights.iter().zip(blocks).enumerate() {
                    let quants = match magnitude.as_ref()[b] < NEGLIGIBLE {
                        true => [0; LEN],
                        false => winners::<S, HALF>(simd, weights, inverse.as_ref()[b]),
                    };
                    store::<HALF>(block, d.as_ref()[b], &quants);
                }
            }
        }
    }
}

/// The stored quants of the candidate that won.
#[inline(always)]
fn winners<S: Simd, const HALF: u8>(simd: S, weights: &[f32; LEN], inverse: f32) -> [u8; LEN] {
    let half = i32::from(HALF);
    let mut integers = [simd.splat_i32(0); 4];
    let n_vectors = LEN / S::LANES;
    for (v, integers) in integers[..n_vectors].iter_mut().enumerate() {
        let x = simd.load_slice(&weights[v * S::LANES..]);
        let q = nearest(simd, simd.mul(simd.splat(inverse), x));
        let q = simd.clamp_i32(q, simd.splat_i32(-half), simd.splat_i32(half - 1));
        *integers = simd.sub_i32(q, simd.splat_i32(-half));
    }
    simd.narrow(&integers[..n_vectors])
}
