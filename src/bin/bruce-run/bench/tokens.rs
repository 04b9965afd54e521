//! Which tokens a bench computes.

use runtime::model::Model;
use runtime::tokenizer::{AddBos, Special};
use std::path::Path;

/// Tokens without end: of a text, or random ones. Which they are matters where experts are chosen by them: repeated tokens
/// would flatter every cache.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Ids that follow no pattern, the same in each run.
    Random(Random),
    /// A text's, from the beginning again when it ends.
    Text {
        /// All of them; at least one.
        ids: Vec<u32>,
        /// The next.
        at: usize,
    },
}

impl Tokens {
    /// Those of the text in a file, as `model` reads it; random ones without.
    ///
    /// # Errors
    /// Where the file can't be read or holds no text.
    pub fn new(file: Option<&Path>, model: &Model) -> Result<Tokens, anyhow::Error> {
        let Some(file) = file else { return Ok(Tokens::Random(Random(0x9e37_79b9_7f4a_7c15))) };
        let ids = model.tokenizer().encode(&crate::text_file(file)?, Special::Literal, AddBos::Never);
        if ids.is_empty() {
            return Err(anyhow::anyhow!("{}: found no tokens, expected text", file.display()));
        }
        Ok(Tokens::Text { ids, at: 0 })
    }

    /// The next `n`, each below `n_vocab`.
    pub fn take(&mut self, n: u32, n_vocab: u32) -> Vec<u32> {
        let mut next = || match self {
            Tokens::Random(random) => random.below(n_vocab),
            Tokens::Text { ids, at } => {
                let id = ids[*at];
                *at = (*at + 1) % ids.len();
                id
            }
        };
        (0..n).map(|_| next()).collect()
    }

    /// Tokens after which they repeat themselves.
    pub fn period(&self) -> Option<usize> {
        match self {
            Tokens::Random(_) => None,
            Tokens::Text { ids, .. } => Some(ids.len()),
        }
    }
}

/// Numbers that follow no pattern, the same in each run (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (high % u64::from(n.max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_stay_in_the_vocabulary_and_differ() {
        let tokens = Tokens::Random(Random(1)).take(500, 1000);
        assert!(tokens.iter().all(|id| *id < 1000));
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 300, "{} distinct", distinct.len());
    }

    #[test]
    fn a_text_goes_on_where_it_was_left() {
        let mut text = Tokens::Text { ids: vec![3, 1, 4, 1, 5], at: 0 };
        assert_eq!(text.take(3, 9), [3, 1, 4]);
        assert_eq!(text.take(4, 9), [1, 5, 3, 1]);
        assert_eq!(text.period(), Some(5));
    }
}
