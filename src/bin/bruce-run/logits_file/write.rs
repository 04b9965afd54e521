//! Writes a file chunk by chunk. It gets its name when the last chunk is there.

use super::{Extents, MAGIC};
use crate::parallel::map;
use gguf::{NewFile, Overwrite};
use std::path::Path;

/// A file being written.
pub struct LogitsWriter {
    file: NewFile,
    n_vocab: usize,
}

impl LogitsWriter {
    /// Starts a file for the chunks of `chunk_size` that `tokens` holds. As with llama-perplexity, a file that is there
    /// is replaced, once the new one is complete.
    ///
    /// # Errors
    /// Where the file can't be made, or the numbers don't fit the format.
    pub fn create(
        path: &Path,
        chunk_size: usize,
        n_vocab: usize,
        tokens: &[u32],
    ) -> Result<LogitsWriter, anyhow::Error> {
        let number = |n: usize| i32::try_from(n).map(|n| n as u32);
        let extents = Extents {
            chunk_size: number(chunk_size)?,
            n_vocab: number(n_vocab)?,
            n_chunks: number(tokens.len() / chunk_size)?,
        };
        let mut header = MAGIC.to_vec();
        for n in [extents.chunk_size, extents.n_vocab, extents.n_chunks].iter().chain(tokens) {
            header.extend(n.to_le_bytes());
        }
        let mut file = NewFile::create(path, Overwrite::Replace)?;
        file.append(&header)?;
        Ok(LogitsWriter { file, n_vocab })
    }

    /// Adds a chunk: the logits of its scored tokens, one after the other.
    ///
    /// # Errors
    /// Where the disk is full.
    pub fn chunk(&mut self, logits: &[f32], n_threads: usize) -> Result<(), anyhow::Error> {
        let n_rows = logits.len() / self.n_vocab;
        // In pieces, so that the encoded form of a long chunk need not be in memory at once.
        for first in (0..n_rows).step_by(256) {
            let n = (n_rows - first).min(256);
            let row = |i: usize| encode(&logits[(first + i) * self.n_vocab..][..self.n_vocab]);
            self.file.append(&map(n, n_threads, row).concat())?;
        }
        Ok(())
    }

    /// Completes the file.
    ///
    /// # Errors
    /// Where it can't be made durable or get its name.
    pub fn finish(self) -> Result<(), anyhow::Error> {
        Ok(self.file.finish()?)
    }
}

/// How far below the largest logit the least one may be told apart.
const RANGE: f32 = 16.0;

/// The row of one token's logits. In single precision but for the sum, as in llama-perplexity, so that the same logits
/// give the same bytes.
fn encode(logits: &[f32]) -> Vec<u8> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - RANGE);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    let least = min - max - sum.ln() as f32;
    let scale = (max - min) / 65535.0;
    let mut row = Vec::with_capacity(8 + 2 * logits.len().next_multiple_of(2));
    row.extend(scale.to_le_bytes());
    row.extend(least.to_le_bytes());
    let inverse = 1.0 / scale;
    row.extend(logits.iter().flat_map(|logit| {
        let step = if scale != 0.0 && *logit > min { nearest(inverse * (logit - min)) } else { 0 };
        step.to_le_bytes()
    }));
    row.resize(8 + 2 * logits.len().next_multiple_of(2), 0);
    row
}

/// Rounds to nearest, ties to even: the sum has no bits for fractions left. `0 <= x < 65536.5`.
fn nearest(x: f32) -> u16 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    ((x + SHIFT).to_bits() & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_rounded_to_even() {
        for (x, expected) in [(0.0, 0), (0.5, 0), (1.5, 2), (2.4, 2), (65535.0, 65535), (65534.6, 65535)] {
            assert_eq!(nearest(x), expected, "{x}");
        }
    }

    #[test]
    fn equal_logits_have_no_steps() {
        let row = encode(&[3.0; 4]);
        assert_eq!(row[..4], 0f32.to_le_bytes());
        assert_eq!(row[4..8], (-(4f64.ln() as f32)).to_le_bytes());
        assert_eq!(row[8..], [0; 8]);
    }

    #[test]
    fn the_range_is_bounded() {
        let row = encode(&[0.0, -8.0, -16.0, -1e9, f32::NEG_INFINITY]);
        let steps: Vec<u16> = row[8..].chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(steps, [65535, 32768, 0, 0, 0, 0]);
    }
}
