//! A text in chunks, as llama.cpp's measuring tools cut it.
//!
//! Chunks have the context's size and are read on their own, the first token replaced by the BOS token where the model
//! begins texts with one. What is left at the end of the text is not used.

use bruce::exit::with_hint;
use runtime::session::{Logits, Session};
use runtime::tokenizer::{AddBos, Special, TokenId, Tokenizer};
use std::path::Path;
use std::time::Instant;

/// Size of a chunk where none is named; llama-perplexity's.
pub const DEFAULT_SIZE: usize = 512;

/// The tokens of a text that fill whole chunks.
pub struct Chunks {
    tokens: Vec<TokenId>,
    size: usize,
    n_text_tokens: usize,
}

impl Chunks {
    /// Cuts the text of a file, whose name is for messages, into chunks of `size`, at most `wanted` of them; all where that is
    /// negative.
    ///
    /// # Errors
    /// Where it has less than two chunks.
    pub fn of_text(
        text: &str,
        path: &Path,
        tokenizer: &Tokenizer,
        special: Special,
        size: usize,
        wanted: i64,
    ) -> Result<Chunks, anyhow::Error> {
        let mut tokens = tokenizer.encode(text, special, AddBos::Auto);
        let n_text_tokens = tokens.len();
        if n_text_tokens < 2 * size {
            let error = anyhow::anyhow!(
                "{}: found {n_text_tokens} tokens, expected at least {} (two chunks of {size})",
                path.display(),
                2 * size
            );
            return Err(with_hint(error, "give a longer text, or smaller chunks with -c"));
        }
        let n_chunks = n_text_tokens / size;
        let n_chunks = usize::try_from(wanted).map_or(n_chunks, |wanted| wanted.min(n_chunks));
        tokens.truncate(n_chunks * size);
        Ok(Chunks { tokens, size, n_text_tokens })
    }

    /// Leaves out the first `n_skipped` chunks, and keeps at most `wanted` of the others; all where that is negative.
    pub fn keep(&mut self, n_skipped: usize, wanted: i64) {
        self.tokens.drain(..(n_skipped * self.size).min(self.tokens.len()));
        if let Ok(wanted) = usize::try_from(wanted) {
            self.tokens.truncate(wanted.saturating_mul(self.size));
        }
    }

    /// Tokens of the whole text.
    pub fn n_text_tokens(&self) -> usize {
        self.n_text_tokens
    }

    /// Number of chunks.
    pub fn n_chunks(&self) -> usize {
        self.tokens.len() / self.size
    }

    /// The tokens of all chunks.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = &[TokenId]> {
        self.tokens.chunks_exact(self.size)
    }
}

/// Says how long the chunks that are left will take, when the first has been read.
pub fn say_time_left(start: Instant, n_left: usize) {
    let left = start.elapsed().as_secs_f64() * n_left as f64;
    bruce::say!("about {} to go", bruce::size::seconds(left));
}

/// The tokens that the model reads for a chunk.
pub fn as_read(tokenizer: &Tokenizer, chunk: &[TokenId]) -> Vec<TokenId> {
    let mut chunk = chunk.to_vec();
    if let (Some(first), Some(bos)) = (chunk.first_mut(), tokenizer.bos().filter(|_| tokenizer.adds_bos())) {
        *first = bos;
    }
    chunk
}

/// Reads a chunk into an empty context. The session then has the logits of the tokens from the middle on, so that each
/// has half a chunk before it; returned are those tokens.
///
/// # Errors
/// As [`Session::decode`].
pub fn decode<'a>(session: &mut Session, chunk: &'a [TokenId]) -> Result<&'a [TokenId], runtime::Error> {
    let read = as_read(session.model().tokenizer(), chunk);
    let middle = chunk.len() / 2;
    session.truncate(0);
    session.decode(&read[..middle], Logits::None)?;
    session.decode(&read[middle..], Logits::All)?;
    Ok(&chunk[middle..])
}
