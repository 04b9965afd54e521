//! Importance matrices: how much each column of a weight matters, as files.
//!
//! A calibration text is run through a model, and for every matrix the squares of what it is multiplied with are added
//! up, column by column. The mean square of a column says how much an error in that column's weights costs. A stacked
//! tensor has one row of sums per expert, and a count for each of how many tokens chose it.
//!
//! # Formats
//! GGUF, by llama.cpp's `llama-imatrix` (tools/imatrix/imatrix.cpp, `save_imatrix`):
//!
//! | what | content |
//! |---|---|
//! | `general.type` | `imatrix` |
//! | `imatrix.datasets` | names of the calibration texts, strings |
//! | `imatrix.chunk_count` | chunks of text, u32 |
//! | `imatrix.chunk_size` | tokens of a chunk, u32 |
//! | `<tensor>.in_sum2` | sums of squares, F32, `[n_cols, n_mats]` |
//! | `<tensor>.counts` | tokens, F32, `[1, n_mats]` |
//!
//! The legacy format (`.dat`; read, not written) is, all integers i32 and little-endian: number of entries; for each
//! the length of its name, the name, the number of calls, the number of values, the values as F32 (means times calls;
//! experts that were never reached hold the mean 1); then, if they are there, the number of chunks, the length of the
//! calibration text's name, and the name.

mod error;
mod legacy;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;

pub use error::Error;
pub use merge::Mismatch;

/// Sums over a calibration text, by tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// For each tensor, under its name in a model file (`blk.0.ffn_up_exps.weight`), what was collected.
    pub entries: BTreeMap<String, Entry>,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Chunks of text that were run; 0 where that is not known.
    pub chunk_count: u32,
    /// Tokens of a chunk; 0 where that is not known, as in the legacy format.
    pub chunk_size: u32,
}

/// What was collected for one tensor.
///
/// Values are finite and not negative in everything that was read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Sums of squares, `[n_mats][n_cols]`: the columns of the first matrix, then those of the next.
    pub sums: Vec<f32>,
    /// For each matrix the number of tokens that went into its sums. The legacy format has one number for all, of
    /// calls, and sums to match.
    pub counts: Vec<u64>,
}

impl Entry {
    /// Sums and counts of one matrix or of a stack of them.
    ///
    /// # Panics
    /// There are no counts, or the sums are not a whole number of columns for each.
    pub fn new(sums: Vec<f32>, counts: Vec<u64>) -> Entry {
        assert!(!counts.is_empty() && !sums.is_empty() && sums.len().is_multiple_of(counts.len()));
        Entry { sums, counts }
    }

    /// The mean square of every column, `[n_mats][n_cols]`; 1 for all columns of a matrix that no token reached.
    ///
    /// As llama-quantize computes it (tools/quantize/quantize.cpp, `load_imatrix`), to the last bit.
    pub fn importance(&self) -> Vec<f32> {
        let n_cols = self.sums.len() / self.counts.len();
        let mut means = self.sums.clone();
        for (matrix, count) in means.chunks_exact_mut(n_cols).zip(&self.counts) {
            match *count as f32 {
                0.0 => matrix.fill(1.0),
                count => matrix.iter_mut().for_each(|sum| *sum /= count),
            }
        }
        means
    }
}
