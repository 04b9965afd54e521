//! Products of queries with keys and of probabilities with values, over the cells of one block.
//!
//! Keys lie transposed, so that a vector holds one element of many cells: the sixteen sums of a dot product are then made
//! one after the other for all of these cells, and added up without moving anything across vectors. Elements are in the
//! order of the sums that they belong to: 0, 16, 32 and so on, then 1, 17, 33; so are those of queries.

use super::vector::{Vector, exp};
use crate::attention::{BLOCK, LANES};
use std::ops::Range;

/// Scores of `R` rows with all cells of a block, `C` vectors of them.
///
/// # Safety
///
/// The processor must have the vector's instructions; `queries` must be good for `R` rows of `n` times [`LANES`] floats,
/// `keys` for as many elements of [`BLOCK`] cells, `scores` for `R` blocks.
#[inline(always)]
pub(super) unsafe fn score<V: Vector, const R: usize, const C: usize>(
    queries: *const f32,
    keys: *const f32,
    scores: *mut f32,
    n: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut fours = [[[V::splat(0.0); C]; R]; 4];
        for (l, four) in fours.iter_mut().enumerate() {
            let eight = add(sum::<V, R, C>(queries, keys, n, l), sum::<V, R, C>(queries, keys, n, l + 8));
            let other =
                add(sum::<V, R, C>(queries, keys, n, l + 4), sum::<V, R, C>(queries, keys, n, l + 12));
            *four = add(eight, other);
        }
        let dots = add(add(fours[0], fours[2]), add(fours[1], fours[3]));
        for r in 0..R {
            for c in 0..C {
                dots[r][c].store(scores.add(r * BLOCK + c * V::LEN));
            }
        }
    }
}

#[inline(always)]
unsafe fn add<V: Vector, const R: usize, const C: usize>(mut a: [[V; C]; R], b: [[V; C]; R]) -> [[V; C]; R] {
    for r in 0..R {
        for c in 0..C {
            // SAFETY: as promised by the caller.
            a[r][c] = unsafe { V::add(a[r][c], b[r][c]) };
        }
    }
    a
}

/// Adds the products of `R` factors, which lie `stride` apart, with `C` vectors, which lie one behind the other.
///
/// # Safety
///
/// The processor must have the vector's instructions, and both be readable.
#[inline(always)]
unsafe fn multiply_outer<V: Vector, const R: usize, const C: usize>(
    factors: *const f32,
    stride: usize,
    vectors: *const f32,
    sums: &mut [[V; C]; R],
) {
    // SAFETY: as promised by the caller.
    unsafe {
        // Registers hold the fewer of the two; the others come one after the other.
        if R < C {
            let mut factor = [V::splat(0.0); R];
            for r in 0..R {
                factor[r] = V::splat(*factors.add(r * stride));
            }
            for c in 0..C {
                let vector = V::load(vectors.add(c * V::LEN));
                for r in 0..R {
                    sums[r][c] = V::fma(factor[r], vector, sums[r][c]);
                }
            }
        } else {
            let mut vector = [V::splat(0.0); C];
            for c in 0..C {
                vector[c] = V::load(vectors.add(c * V::LEN));
            }
            for r in 0..R {
                let factor = V::splat(*factors.add(r * stride));
                for c in 0..C {
                    sums[r][c] = V::fma(factor, vector[c], sums[r][c]);
                }
            }
        }
    }
}

/// Sum `l` of each dot product.
#[inline(always)]
unsafe fn sum<V: Vector, const R: usize, const C: usize>(
    queries: *const f32,
    keys: *const f32,
    n: usize,
    l: usize,
) -> [[V; C]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        for i in l * n..(l + 1) * n {
            let (queries, keys) = (queries.add(i), keys.add(i * BLOCK));
            multiply_outer(queries, n * LANES, keys, &mut sums);
        }
        sums
    }
}

/// Makes probabilities of a row's scores, up to their sum. What was gathered before must be multiplied with the result.
///
/// # Safety
///
/// The processor must have the vector's instructions.
#[inline(always)]
pub(super) unsafe fn weigh<V: Vector, const C: usize>(
    scores: &mut [f32; BLOCK],
    largest: &mut f32,
    total: &mut f32,
    cells: &Range<usize>,
) -> Option<f32> {
    if cells.len() < BLOCK {
        scores[..cells.start].fill(f32::NEG_INFINITY);
        scores[cells.end..].fill(f32::NEG_INFINITY);
    }
    // SAFETY: as promised by the caller; the vectors lie within the block.
    unsafe {
        let mut block = [V::splat(0.0); C];
        let mut max = V::splat(f32::NEG_INFINITY);
        for c in 0..C {
            block[c] = V::load(scores.as_ptr().add(c * V::LEN));
            max = V::max(block[c], max);
        }
        let factor = if V::exceeds(max, V::splat(*largest)) {
            let new = max.largest();
            let mut factor = [0.0; 16];
            exp(V::splat(*largest - new)).store(factor.as_mut_ptr());
            *largest = new;
            *total *= factor[0];
            Some(factor[0])
        } else {
            None
        };
        for c in 0..C {
            block[c] = exp(V::sub(block[c], V::splat(*largest)));
            block[c].store(scores.as_mut_ptr().add(c * V::LEN));
        }
        *total += V::add_up(&block);
        factor
    }
}

/// Adds the cells' values, weighed, to what `R` rows have gathered: `N` vectors of them.
///
/// # Safety
///
/// The processor must have the vector's instructions; `gathered` must be good for `R` rows, `values` for the cells of a
/// block, each of `stride` floats and with so many vectors from here on; `weights` for `R` blocks.
#[inline(always)]
pub(super) unsafe fn gather<V: Vector, const R: usize, const N: usize>(
    gathered: *mut f32,
    values: *const f32,
    weights: *const f32,
    cells: &Range<usize>,
    stride: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = V::load(gathered.add(r * stride + n * V::LEN));
            }
        }
        for cell in cells.clone() {
            multiply_outer(weights.add(cell), BLOCK, values.add(cell * stride), &mut sums);
        }
        for r in 0..R {
            for n in 0..N {
                sums[r][n].store(gathered.add(r * stride + n * V::LEN));
            }
        }
    }
}
