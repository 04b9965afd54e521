//! Text to token ids and back.

/// Index of a token in the vocabulary.
pub type TokenId = u32;
