//! What can be wrong with a vocabulary.

/// Why no tokenizer can be made of a file's metadata.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A metadata value of the wrong type.
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
    /// A key that every tokenizer of this kind needs.
    #[error("{key}: found nothing, expected {expected}")]
    Missing {
        /// The GGUF key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// A kind of tokenizer that this program does not have.
    #[error("{key}: found \"{found}\", expected one of {expected}")]
    Model {
        /// The GGUF key.
        key: &'static str,
        /// The kind.
        found: String,
        /// The kinds there are.
        expected: &'static str,
    },
    /// Two arrays that must go together have different lengths.
    #[error("{key}: found {found} values, expected {expected} (the number of tokens)")]
    Length {
        /// The GGUF key of the array.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// A special token's id that is no token.
    #[error("{key}: found {found}, expected a token id below {n_vocab}")]
    Id {
        /// The GGUF key.
        key: &'static str,
        /// The id.
        found: u64,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// Two tokens with one text.
    #[error("{key}: found {text:?} as tokens {first} and {second}, expected every token once", key = model_spec::keys::TOKENIZER_TOKENS)]
    Duplicate {
        /// The text.
        text: String,
        /// The smaller id.
        first: u32,
        /// The larger id.
        second: u32,
    },
    /// A byte token whose text names no byte.
    #[error("token {id}: found {text:?} of type byte, expected <0x00> to <0xFF>")]
    ByteToken {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
    /// A score that cannot be compared.
    #[error("token {id}: found the score NaN, expected a number")]
    Score {
        /// The token.
        id: u32,
    },
    /// A merge that does not join two tokens to a third.
    #[error("{key}: found {text:?} at index {index}, expected {expected}", key = model_spec::keys::TOKENIZER_MERGES)]
    Merge {
        /// Position in the list.
        index: usize,
        /// The merge.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A refusal of the `tokenizers` crate.
    #[error("byte-level BPE: {0}")]
    Bpe(String),
}
