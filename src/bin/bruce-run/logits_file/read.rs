//! Reads a file chunk by chunk, after its header and its size were checked.

use super::{Extents, HEADER_BYTES, MAGIC};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// A file being read.
pub struct LogitsReader {
    path: PathBuf,
    file: BufReader<File>,
    extents: Extents,
    tokens: Vec<u32>,
    /// The rows of the current chunk.
    rows: Vec<u8>,
    n_read: usize,
}

/// The log-probabilities of one token's successors.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    scale: f32,
    least: f32,
    /// Two bytes for each entry of the vocabulary.
    steps: &'a [u8],
}

impl Row<'_> {
    /// Natural logarithm of the probability that `token` follows.
    pub fn log_probability(&self, token: usize) -> f32 {
        self.scale * f32::from(u16::from_le_bytes([self.steps[2 * token], self.steps[2 * token + 1]]))
            + self.least
    }

    /// All of them, in the order of the vocabulary.
    pub fn log_probabilities(&self) -> impl Iterator<Item = f32> + '_ {
        let steps = self.steps.chunks_exact(2).map(|step| f32::from(u16::from_le_bytes([step[0], step[1]])));
        steps.map(|step| self.scale * step + self.least)
    }
}

impl LogitsReader {
    /// Opens a file and checks all of it but the rows.
    ///
    /// # Errors
    /// Names the field that is wrong, and whether the file has another size than its header says.
    pub fn open(path: &Path, n_vocab: usize) -> Result<LogitsReader, anyhow::Error> {
        let shown = path.display();
        // Asked before opening: opening a pipe would wait for somebody to write to it.
        let metadata = std::fs::metadata(path).with_context(|| format!("{shown}: cannot open"))?;
        if !metadata.is_file() {
            bail!("{shown}: found no regular file, expected one of log-probabilities");
        }
        let file = File::open(path).with_context(|| format!("{shown}: cannot open"))?;
        let mut file = BufReader::new(file);
        let mut header = [0; HEADER_BYTES as usize];
        let n = read_up_to(&mut file, &mut header).with_context(|| format!("{shown}: cannot read"))?;
        if !header[..n.min(8)].eq(&MAGIC[..n.min(8)]) || n == 0 {
            bail!(
                "{shown}: format: found another one, expected log-probabilities, which begin with \"_logits_\""
            );
        }
        if n < header.len() {
            bail!("{shown}: header: found the end of the file after {n} bytes, expected {HEADER_BYTES}");
        }
        let field = |at: usize, name: &str, least: i32| {
            let value = i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            u32::try_from(value)
                .ok()
                .filter(|_| value >= least)
                .with_context(|| format!("{shown}: {name}: found {value}, expected at least {least}"))
        };
        let extents = Extents {
            chunk_size: field(8, "tokens in a chunk", 3)?,
            n_vocab: field(12, "size of the vocabulary", 1)?,
            n_chunks: field(16, "number of chunks", 1)?,
        };
        if extents.n_vocab as usize != n_vocab {
            bail!(
                "{shown}: size of the vocabulary: found {}, expected {n_vocab}, as the model has",
                extents.n_vocab
            );
        }
        let expected = extents.file_bytes().map_or("more than any file has".to_owned(), |n| n.to_string());
        if extents.file_bytes() != Some(metadata.len()) {
            bail!(
                "{shown}: found {} bytes, expected {expected} for {} chunks of {} tokens; was it written to its end?",
                metadata.len(),
                extents.n_chunks,
                extents.chunk_size
            );
        }
        let mut reader = LogitsReader {
            path: path.to_path_buf(),
            file,
            extents,
            tokens: Vec::new(),
            rows: Vec::new(),
            n_read: 0,
        };
        reader.read_tokens()?;
        Ok(reader)
    }

    fn read_tokens(&mut self) -> Result<(), anyhow::Error> {
        let n = self.chunk_size() * self.n_chunks();
        let mut bytes = vec![0; 4 * n];
        self.fill(&mut bytes)?;
        self.tokens.reserve_exact(n);
        for (i, token) in bytes.chunks_exact(4).enumerate() {
            let token = i32::from_le_bytes([token[0], token[1], token[2], token[3]]);
            match u32::try_from(token) {
                Ok(id) if id < self.extents.n_vocab => self.tokens.push(id),
                _ => bail!(
                    "{}: token {} of chunk {}: found {token}, expected one below {}",
                    self.path.display(),
                    i % self.chunk_size(),
                    i / self.chunk_size() + 1,
                    self.extents.n_vocab
                ),
            }
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), anyhow::Error> {
        // The size was checked, so that an early end means that somebody cut the file meanwhile.
        self.file.read_exact(bytes).with_context(|| format!("{}: cannot read", self.path.display()))
    }

    /// Tokens in a chunk, at least three.
    pub fn chunk_size(&self) -> usize {
        self.extents.chunk_size as usize
    }

    /// Number of chunks, at least one.
    pub fn n_chunks(&self) -> usize {
        self.extents.n_chunks as usize
    }

    /// The tokens of a chunk, as the text has them.
    ///
    /// # Panics
    /// When there are not so many chunks.
    pub fn tokens(&self, chunk: usize) -> &[u32] {
        &self.tokens[chunk * self.chunk_size()..][..self.chunk_size()]
    }

    /// The rows of the next chunk; call it no more often than there are chunks.
    ///
    /// # Errors
    /// Where the file can't be read, or a row holds what no log-probability is.
    pub fn next_chunk(&mut self) -> Result<Vec<Row<'_>>, anyhow::Error> {
        let row_bytes = self.extents.row_bytes() as usize;
        let mut rows = std::mem::take(&mut self.rows);
        rows.resize(self.extents.rows_per_chunk() as usize * row_bytes, 0);
        self.fill(&mut rows)?;
        self.rows = rows;
        self.n_read += 1;
        let n_vocab = self.extents.n_vocab as usize;
        let decoded = self.rows.chunks_exact(row_bytes).enumerate().map(|(i, row)| {
            let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
            let (scale, least) = (float(0), float(4));
            // A probability of at most 1 (with rounding) and at least exp(-16) of the likeliest.
            if !(scale.is_finite() && scale >= 0.0 && least.is_finite()) {
                bail!(
                    "{}: row {i} of chunk {}: found scale {scale} and minimum {least}, expected finite numbers",
                    self.path.display(),
                    self.n_read
                );
            }
            Ok(Row { scale, least, steps: &row[8..8 + 2 * n_vocab] })
        });
        decoded.collect()
    }
}

/// Fills as much of `bytes` as the file has, and says how much.
fn read_up_to(file: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < bytes.len() {
        match file.read(&mut bytes[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}
