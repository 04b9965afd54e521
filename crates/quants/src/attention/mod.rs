//! Attention of tokens over the cells of a cache, for the heads of queries that share one head of keys and values.
//!
//! # What the result is
//!
//! Keys and values are widened to single precision, which is exact for the types that [`supports`] names; queries are
//! multiplied by the scale first. A token's cells are taken in blocks of [`BLOCK`] that begin at multiples of it; of a block
//! only the cells that the token sees exist. For each query, `largest` begins as minus infinity, the sums as 0:
//!
//! ```text
//! for each block:  score   = sum of fma(query[i], key[i], ...) in 16 lanes, lane i mod 16, added up by halves
//!                  if some score > largest:  factor = exp(largest - that score), largest = that score,
//!                                            total *= factor, gathered *= factor
//!                  p       = exp(score - largest)
//!                  total  += sum of p in 16 lanes, lane cell mod 16, added up by halves
//!                  gathered[i] = fma(p, value[i], gathered[i]), cell after cell
//! result = gathered / total
//! ```
//!
//! Adding up by halves means: lane l and lane l + 8, then 4, 2 and 1 apart. `exp` is a polynomial of our own, also defined
//! by its operations. So all [levels](Level) give the same bits, and the result for a token depends on its query and the
//! cells it sees: not on the tokens beside it, the threads or the machine.
//!
//! The online softmax is that of Milakov and Gimelshein (arXiv 1805.02867), in blocks as in FlashAttention
//! (arXiv 2205.14135).

mod definition;
#[cfg(test)]
mod tests;

use crate::matmul::Level;
use crate::{Error, TensorType};
pub(crate) use definition::{Buffers, Job, LANES, Lanes, Steps, attend_by, attend_with, exponential};
use std::ops::Range;

/// Cells that are looked at together.
pub const BLOCK: usize = 32;

/// Whether keys and values of this type can be read.
pub fn supports(ty: TensorType) -> bool {
    use TensorType::*;
    matches!(ty, F32 | F16 | BF16 | Q8_0)
}

/// One head of keys or of values: a row for each cell, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    pub(crate) ty: TensorType,
    pub(crate) rows: &'a [u8],
    pub(crate) dim: usize,
    pub(crate) row_bytes: usize,
}

impl<'a> Cells<'a> {
    /// Whole rows of `dim` elements of type `ty`.
    ///
    /// # Errors
    /// [`Error::CannotAttend`] for a type that can't be read, [`Error::PartialBlock`] where a row is empty or does not fill
    /// its last block, [`Error::RowBytes`] where `rows` does not fill its last row.
    pub fn new(ty: TensorType, rows: &'a [u8], dim: usize) -> Result<Self, Error> {
        if !supports(ty) {
            return Err(Error::CannotAttend { found: ty });
        }
        if dim == 0 || !dim.is_multiple_of(ty.block_len()) {
            return Err(Error::PartialBlock { ty, found: dim });
        }
        let row_bytes = dim / ty.block_len() * ty.block_bytes();
        if !rows.len().is_multiple_of(row_bytes) {
            return Err(Error::RowBytes { ty, what: "cells", found: rows.len(), expected: row_bytes });
        }
        Ok(Cells { ty, rows, dim, row_bytes })
    }

    /// How many cells there are.
    pub fn len(&self) -> usize {
        self.rows.len() / self.row_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// A token that looks at the cells.
#[derive(Clone, Debug)]
pub struct Token<'a> {
    /// Its queries, one head behind the other.
    pub queries: &'a [f32],
    /// The cells it sees; at least one.
    pub visible: Range<usize>,
}

/// Memory of one thread for [`attend`]; it grows as needed and is worth keeping.
#[derive(Debug, Default)]
pub struct Workspace(Buffers);

/// Writes what each of `tokens` gathers to `out`: for each token and each of its heads, as many floats as a value has.
///
/// # Panics
/// Where keys and values are not equally many, queries are not as many whole heads for every token, a token sees no cell or
/// one that is not there, or `out` has another length.
pub fn attend(
    keys: Cells<'_>,
    values: Cells<'_>,
    scale: f32,
    tokens: &[Token<'_>],
    workspace: &mut Workspace,
    out: &mut [f32],
) {
    attend_at(Level::current(), keys, values, scale, tokens, workspace, out);
}

/// As [`attend`], with the kernels of this level.
///
/// # Panics
/// As [`attend`].
pub fn attend_at(
    level: Level,
    keys: Cells<'_>,
    values: Cells<'_>,
    scale: f32,
    tokens: &[Token<'_>],
    workspace: &mut Workspace,
    out: &mut [f32],
) {
    let Some(first) = tokens.first() else {
        assert!(out.is_empty(), "attention: {} results for no token", out.len());
        return;
    };
    let n_cells = keys.len();
    assert_eq!(n_cells, values.len(), "attention: keys and values");
    let n_heads = first.queries.len() / keys.dim;
    for token in tokens {
        assert_eq!(token.queries.len(), n_heads * keys.dim, "attention: queries of a token");
        let Range { start, end } = token.visible;
        assert!(start < end && end <= n_cells, "attention: cells {start}..{end} of {n_cells}");
    }
    assert_eq!(out.len(), tokens.len() * n_heads * values.dim, "attention: results");
    let job = Job { keys, values, scale, tokens, n_heads };
    crate::arch::attention::attend(level, &job, &mut workspace.0, out);
}
