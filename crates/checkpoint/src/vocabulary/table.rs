//! One row per embedding row: which token has which id.
//!
//! Rows that no tokenizer file names become `[PADn]`, unused, and tokens beyond the last row are left out, as
//! llama.cpp's converter does; both are said with the counts.

use std::collections::HashMap;

use super::{Companions, TokenType};
use crate::error::{Error, Result, list, quoted};

/// Score of ids without a token.
const PAD_SCORE: f32 = -10000.0;
/// Score of added tokens.
pub(super) const ADDED_SCORE: f32 = -1000.0;

/// Tokens under construction.
pub(super) struct Table {
    pub(super) tokens: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<TokenType>,
    /// The file that gave each token; `None` where none did.
    sources: Vec<Option<&'static str>>,
    /// Tokens beyond the last row, with the file that has them.
    beyond: Vec<(u64, String, &'static str)>,
}

impl Table {
    pub(super) fn new(n_rows: usize) -> Table {
        Table {
            tokens: (0..n_rows).map(|i| format!("[PAD{i}]")).collect(),
            scores: vec![PAD_SCORE; n_rows],
            types: vec![TokenType::Unused; n_rows],
            sources: vec![None; n_rows],
            beyond: Vec::new(),
        }
    }

    /// Gives `id` a token, replacing the one it may have.
    pub(super) fn set(&mut self, id: u64, text: &str, score: f32, kind: TokenType, source: &'static str) {
        match usize::try_from(id).ok().filter(|id| *id < self.tokens.len()) {
            Some(id) => {
                self.tokens[id] = text.to_owned();
                self.scores[id] = score;
                self.types[id] = kind;
                self.sources[id] = Some(source);
            }
            None => self.beyond.push((id, text.to_owned(), source)),
        }
    }

    /// The token that a file has given this id.
    pub(super) fn get(&self, id: u64) -> Option<&str> {
        let id = usize::try_from(id).ok()?;
        self.sources.get(id)?.and(Some(self.tokens[id].as_str()))
    }

    /// Says how the tokens fit the embedding.
    ///
    /// # Errors
    /// Two ids have the same text: llama.cpp aborts on such a file.
    pub(super) fn finish(&mut self, companions: &Companions<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let dir = companions.dir;
        let n_rows = self.tokens.len();
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(n_rows);
        for (id, text) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(text, id) {
                let file = self.sources[id].or(self.sources[first]).unwrap_or("tokenizer.json");
                let found = format!("{}, which token {first} is too", quoted(text));
                return Err(Error::malformed(
                    dir.join(file),
                    format!("token {id}"),
                    found,
                    "a text of its own",
                ));
            }
        }
        if !self.beyond.is_empty() {
            let named: Vec<String> = self.beyond.iter().map(|(id, text, _)| format!("{id} {text}")).collect();
            warnings.push(format!(
                "{}: vocabulary: found {} tokens, expected {n_rows}, the rows of the embedding; left out: {}",
                dir.join(self.beyond[0].2).display(),
                n_rows as u64 + self.beyond.len() as u64,
                list(&named, 8)
            ));
        }
        let empty: Vec<usize> = (0..n_rows).filter(|id| self.sources[*id].is_none()).collect();
        if let (Some(first), Some(last)) = (empty.first(), empty.last()) {
            warnings.push(format!(
                "{}: vocabulary: found {} tokens, expected {n_rows}, the rows of the embedding; {} ids from {first} to \
                 {last} become unused tokens [PAD{first}] and so on",
                dir.path().display(),
                n_rows - empty.len(),
                empty.len()
            ));
        }
        Ok(())
    }
}

/// Whether a token was surely meant as a control token, although its file does not say so.
pub(super) fn looks_special(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

/// The type of an added token, and its text as llama.cpp looks for it in user text.
pub(super) fn added(text: &str, special: bool) -> (String, TokenType) {
    if special || looks_special(text) {
        (text.to_owned(), TokenType::Control)
    } else {
        (text.replace('▁', " "), TokenType::UserDefined)
    }
}
