//! Weights in the order that searches want: a vector holds one column of as many rows as it has lanes, where a row is
//! whatever shares a sum: a sub-block, a super-block, or a row of the tensor.

use super::Simd;
use crate::scalar::emphasis::sum_of_squares;

/// The `N` columns of the rows, which lie one after the other.
#[inline(always)]
pub(super) fn columns<S: Simd, const N: usize>(simd: S, rows: &[f32]) -> [S::F32; N] {
    debug_assert_eq!(rows.len(), S::LANES * N);
    let mut columns = [simd.splat(0.0); N];
    for (i, eight) in columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *eight = eight_columns(simd, rows, N, i * 8);
    }
    columns
}

/// Eight columns from the given one on, of rows of this length.
#[inline(always)]
pub(super) fn eight_columns<S: Simd>(simd: S, rows: &[f32], row_len: usize, first: usize) -> [S::F32; 8] {
    const ZEROS: &[f32; 8] = &[0.0; 8];
    let mut eights = [ZEROS; 16];
    for (row, eight) in eights[..S::LANES].iter_mut().enumerate() {
        *eight = rows[row * row_len + first..].first_chunk().unwrap_or(ZEROS);
    }
    simd.transpose(&eights[..S::LANES])
}

/// The sum of the squares of each row, added up in order.
#[inline(always)]
fn sums_of_squares<S: Simd>(simd: S, rows: &[f32], row_len: usize) -> S::F32 {
    debug_assert_eq!(rows.len(), S::LANES * row_len);
    let mut sum = simd.splat(0.0);
    for first in (0..row_len).step_by(8) {
        for x in eight_columns(simd, rows, row_len, first) {
            sum = simd.add(sum, simd.mul(x, x));
        }
    }
    sum
}

/// The sums of the squares of up to [`Simd::LANES`] rows, each added up in order; zeros where there are fewer rows.
#[inline(always)]
pub(super) fn sums_of_rows<S: Simd>(simd: S, rows: &[f32], row_len: usize) -> [f32; 16] {
    let mut sums = [0.0; 16];
    if rows.len() == S::LANES * row_len && row_len.is_multiple_of(8) {
        let vector = simd.store(sums_of_squares(simd, rows, row_len));
        sums[..S::LANES].copy_from_slice(vector.as_ref());
    } else {
        for (sum, row) in sums.iter_mut().zip(rows.chunks(row_len)) {
            *sum = sum_of_squares(row);
        }
    }
    sums
}

/// `importance * sqrt(mean_square + weight^2)` of each weight, as in `scalar::emphasis`.
#[inline(always)]
pub(super) fn emphasize<S: Simd, const N: usize>(
    simd: S,
    weights: &[S::F32; N],
    importance: &[S::F32; N],
    mean_square: S::F32,
) -> [S::F32; N] {
    let mut emphasis = *importance;
    for (w, &x) in emphasis.iter_mut().zip(weights) {
        *w = simd.mul(*w, simd.sqrt(simd.add(mean_square, simd.mul(x, x))));
    }
    emphasis
}

/// The square of each weight.
#[inline(always)]
pub(super) fn squares<S: Simd, const N: usize>(simd: S, weights: &[S::F32; N]) -> [S::F32; N] {
    let mut squares = *weights;
    for x in &mut squares {
        *x = simd.mul(*x, *x);
    }
    squares
}

/// The slice, or, where it is shorter than the room, a copy there with zeros after it.
#[inline(always)]
pub(super) fn padded<'a>(floats: &'a [f32], room: &'a mut [f32]) -> &'a [f32] {
    if floats.len() >= room.len() {
        return &floats[..room.len()];
    }
    room[..floats.len()].copy_from_slice(floats);
    room[floats.len()..].fill(0.0);
    room
}
