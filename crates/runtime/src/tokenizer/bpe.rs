//! Byte-level BPE: words as strings of one printable character per byte, merged by the `tokenizers` crate.
//!
//! The crate is given only what has been checked here, since it indexes without checks of its own: a merge whose
//! parts or result are no tokens would make it panic.

use super::pre::PreTokenizer;
use super::vocab::Vocab;
use super::{Error, TokenId};
use std::collections::{HashMap, HashSet};
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab as Vocabulary};

/// The printable character that stands for each byte: itself where it is a visible Latin-1 character, otherwise the
/// next free one from U+0100 on (the alphabet of GPT-2's `bytes_to_unicode`).
fn alphabet() -> [char; 256] {
    let mut free = 0x100u32;
    std::array::from_fn(|byte| {
        let visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if visible {
            byte as u32
        } else {
            free += 1;
            free - 1
        };
        char::from_u32(code).unwrap_or_default()
    })
}

/// Writes tokens of byte-level vocabularies back as bytes.
pub(super) struct ByteAlphabet {
    bytes: HashMap<char, u8>,
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        ByteAlphabet { bytes: alphabet().into_iter().zip(0..=255).collect() }
    }

    /// The bytes that `text` stands for; a text with a character outside the alphabet stands for itself.
    pub(super) fn decode(&self, text: &str) -> Vec<u8> {
        let bytes: Option<Vec<u8>> = text.chars().map(|c| self.bytes.get(&c).copied()).collect();
        bytes.unwrap_or_else(|| text.as_bytes().to_vec())
    }
}

/// The encoder of one vocabulary.
pub(super) struct ByteLevel {
    alphabet: [char; 256],
    pre: PreTokenizer,
    model: BPE,
}

impl ByteLevel {
    /// # Errors
    /// [`Error::Merge`] for merges that do not join two tokens to a third.
    pub(super) fn new(vocab: &Vocab, pre: PreTokenizer) -> Result<Self, Error> {
        // Tokens that only a template may write are unknown to the model, so that no text can spell one.
        let mut tokens = Vocabulary::default();
        let mut guarded = HashSet::new();
        for (text, id) in vocab.texts.iter().zip(0..) {
            if vocab.is_guarded(id) {
                guarded.insert(text.as_str());
            } else {
                tokens.insert(text.clone(), id);
            }
        }
        let mut merges = Vec::with_capacity(vocab.merges.len());
        let mut joined = String::new();
        for (index, text) in vocab.merges.iter().enumerate() {
            let fail = |expected| Error::Merge { index, text: text.chars().take(200).collect(), expected };
            // A part may itself begin with a space in vocabularies that are not quite byte-level.
            let split = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(i, _)| i);
            let (left, right) = match split {
                Some(i) if i + 1 < text.len() => (&text[..i], &text[i + 1..]),
                _ => return Err(fail("two tokens with a space between them")),
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let parts = [left, right, joined.as_str()];
            if parts.iter().all(|part| tokens.contains_key(*part)) {
                merges.push((left.to_owned(), right.to_owned()));
            } else if !parts.iter().all(|part| tokens.contains_key(*part) || guarded.contains(part)) {
                return Err(fail("two tokens that join to a third"));
            }
        }
        let model = BPE::builder()
            .vocab_and_merges(tokens, merges)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(|error| Error::Bpe(error.to_string()))?;
        Ok(ByteLevel { alphabet: alphabet(), pre, model })
    }

    /// Appends the tokens of `text` to `out`.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut spelled = String::new();
        for word in self.pre.words(text) {
            spelled.clear();
            spelled.extend(word.bytes().map(|byte| self.alphabet[usize::from(byte)]));
            // The model fails only over an unknown token, and is given none: bytes without a token vanish, as they do
            // in the original tokenizers.
            if let Ok(tokens) = self.model.tokenize(&spelled) {
                out.extend(tokens.into_iter().map(|token| token.id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        let a = alphabet();
        assert_eq!(a[usize::from(b'A')], 'A');
        assert_eq!(a[usize::from(b' ')], 'Ġ');
        assert_eq!(a[usize::from(b'\n')], 'Ċ');
        assert_eq!(a[usize::from(b'\t')], 'ĉ');
        assert_eq!(a[0], 'Ā');
        assert_eq!(a[0xad], 'Ń');
        assert_eq!(a[0xff], 'ÿ');
        let decoder = ByteAlphabet::new();
        for byte in 0..=255u8 {
            assert_eq!(decoder.decode(&a[usize::from(byte)].to_string()), [byte]);
        }
        assert_eq!(decoder.decode("ĠhĠ"), b" h ");
        assert_eq!(decoder.decode("中Ġ"), "中Ġ".as_bytes());
    }
}
