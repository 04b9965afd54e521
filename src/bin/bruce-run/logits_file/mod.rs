//! Files of log-probabilities, as llama-perplexity writes and reads them (`--kl-divergence-base`).
//!
//! All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `_logits_` |
//! | 4 | tokens in a chunk, i32 |
//! | 4 | size of the vocabulary, i32 |
//! | 4 | number of chunks, i32 |
//! | | the tokens of all chunks, i32 each, as the text has them |
//! | | for every chunk a row for each token that is scored: those behind the middle, but for the chunk's last |
//!
//! A row holds the log-probabilities of the next token in 65535 even steps from the least to the largest; what is more
//! than 16 below the largest counts as the least. It is a scale (f32), the least (f32), and a step (u16) for each entry
//! of the vocabulary, with two bytes more where that is odd.

mod read;
mod write;

pub use read::{LogitsReader, Row};
pub use write::LogitsWriter;

const MAGIC: &[u8; 8] = b"_logits_";
/// Bytes before the tokens.
const HEADER_BYTES: u64 = 20;

/// What a file holds: enough to know its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extents {
    chunk_size: u32,
    n_vocab: u32,
    n_chunks: u32,
}

impl Extents {
    /// Rows of a chunk: its tokens behind the middle, but for the last.
    fn rows_per_chunk(self) -> u64 {
        u64::from(self.chunk_size - 1 - self.chunk_size / 2)
    }

    /// Bytes of a row.
    fn row_bytes(self) -> u64 {
        8 + 2 * u64::from(self.n_vocab).next_multiple_of(2)
    }

    /// Bytes of a file; `None` where that is more than any file has.
    fn file_bytes(self) -> Option<u64> {
        let tokens = u64::from(self.chunk_size).checked_mul(u64::from(self.n_chunks))?.checked_mul(4)?;
        let rows = self.rows_per_chunk().checked_mul(u64::from(self.n_chunks))?;
        rows.checked_mul(self.row_bytes())?.checked_add(tokens)?.checked_add(HEADER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const EXTENTS: Extents = Extents { chunk_size: 6, n_vocab: 5, n_chunks: 2 };

    fn rows() -> Vec<[f32; 5]> {
        (0..4).map(|i| [i as f32, 0.5, -3.0, 2.25, -100.0]).collect()
    }

    /// Two chunks of six tokens: two rows each.
    fn write(path: &Path) {
        let tokens: Vec<u32> = (0..12).map(|i| i % 5).collect();
        let mut writer = LogitsWriter::create(path, 6, 5, &tokens).expect("a file");
        for chunk in rows().chunks(2) {
            writer.chunk(&chunk.concat(), 1).expect("room");
        }
        writer.finish().expect("a name");
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logits");
        write(&path);
        assert_eq!(fs::metadata(&path).expect("a file").len(), EXTENTS.file_bytes().expect("a size"));
        let mut reader = LogitsReader::open(&path, 5).expect("a file of logits");
        assert_eq!((reader.chunk_size(), reader.n_chunks()), (6, 2));
        assert_eq!(reader.tokens(1), [1, 2, 3, 4, 0, 1]);
        for chunk in rows().chunks(2) {
            let read = reader.next_chunk().expect("a chunk");
            assert_eq!(read.len(), 2);
            for (row, logits) in read.iter().zip(chunk) {
                let sum: f32 = logits.iter().map(|l| l.exp()).sum();
                for (token, logit) in logits.iter().enumerate() {
                    // At most half a step of 16 / 65535, and nothing below 16 under the largest.
                    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                    let expected = logit.max(largest - 16.0) - sum.ln();
                    assert!((row.log_probability(token) - expected).abs() < 2e-4, "{token} of {logits:?}");
                }
            }
        }
    }

    #[test]
    fn files_that_are_none_or_not_whole_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logits");
        write(&path);
        let whole = fs::read(&path).expect("a file");
        let refused = |bytes: &[u8], n_vocab: usize, words: &[&str]| {
            fs::write(&path, bytes).expect("a file");
            let error = LogitsReader::open(&path, n_vocab).err().expect("refused").to_string();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
        };
        for end in 0..whole.len() {
            refused(&whole[..end], 5, &["found", "expected"]);
        }
        refused(&[&whole[..], &[0]].concat(), 5, &["149 bytes", "expected 148"]);
        refused(b"GGUF\x03\0\0\0 and so on and on", 5, &["expected", "_logits_"]);
        refused(&whole, 6, &["vocabulary", "found 5", "expected 6"]);
        let changed = |at: usize, value: i32| {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        refused(&changed(8, -6), 5, &["tokens in a chunk", "-6"]);
        refused(&changed(8, 1), 5, &["tokens in a chunk", "1"]);
        refused(&changed(16, 0), 5, &["number of chunks", "0"]);
        refused(&changed(16, i32::MAX), 5, &["bytes"]);
        refused(&changed(20, 5), 5, &["token 0 of chunk 1", "found 5"]);
        refused(&changed(20, -1), 5, &["token 0 of chunk 1", "found -1"]);
    }

    #[test]
    fn a_damaged_row_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logits");
        write(&path);
        let mut bytes = fs::read(&path).expect("a file");
        let second_chunk = 20 + 4 * 12 + 2 * 20;
        bytes[second_chunk..second_chunk + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).expect("a file");
        let mut reader = LogitsReader::open(&path, 5).expect("a file of logits");
        assert!(reader.next_chunk().is_ok());
        let error = reader.next_chunk().expect_err("refused").to_string();
        assert!(error.contains("row 0 of chunk 2") && error.contains("NaN"), "{error}");
    }
}
