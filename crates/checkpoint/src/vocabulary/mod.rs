//! The vocabulary as `tokenizer.ggml.*` wants it, whichever tokenizer files the checkpoint carries.
//!
//! Which file is read follows llama.cpp's converter, so that ids, types and special tokens come out the same:
//! `tokenizer.model` first; then a `tokenizer.json` of SentencePiece style (BPE with byte fallback); then a
//! `tokenizer.json` of byte-level BPE. The other files (tokenizer_config.json, added_tokens.json,
//! special_tokens_map.json, generation_config.json) add tokens and say what they are for. Where two files
//! disagree, the one the converter would follow wins and a warning says exactly what disagrees.

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerModel {
    /// SentencePiece-style BPE driven by scores; `llama` in GGUF.
    Spm,
    /// Byte-level BPE driven by a list of merges; `gpt2` in GGUF.
    Bpe,
}

impl TokenizerModel {
    /// The value of `tokenizer.ggml.model`.
    pub const fn ggml_name(self) -> &'static str {
        match self {
            TokenizerModel::Spm => "llama",
            TokenizerModel::Bpe => "gpt2",
        }
    }
}

/// What a token is for; the number is GGUF's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum TokenType {
    /// Ordinary text.
    Normal = 1,
    /// Stands for what the vocabulary lacks.
    Unknown = 2,
    /// Steers the model; never text.
    Control = 3,
    /// Added as a whole word; found before anything else is split.
    UserDefined = 4,
    /// Fills an id that no token has.
    Unused = 5,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte = 6,
}

/// What a special token marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Begin of text.
    Bos,
    /// End of text.
    Eos,
    /// Unknown text.
    Unk,
    /// Between two texts.
    Sep,
    /// Padding.
    Pad,
    /// Classification.
    Cls,
    /// A masked word.
    Mask,
    /// End of turn.
    Eot,
    /// End of message.
    Eom,
    /// Fill in the middle: before the prefix.
    Prefix,
    /// Fill in the middle: before the suffix.
    Suffix,
    /// Fill in the middle: before the middle.
    Middle,
}

/// Tokens, what they are, and how text is split into them; index = token id.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// SentencePiece style or byte-level.
    pub model: TokenizerModel,
    /// The pre-tokenizer's name in llama.cpp; `default` for SentencePiece style.
    pub pre: String,
    /// Text of every token, in the alphabet of the model: `▁` for spaces, or GPT-2's characters for bytes.
    pub tokens: Vec<String>,
    /// Score of every token; empty for byte-level BPE.
    pub scores: Vec<f32>,
    /// Type of every token.
    pub types: Vec<TokenType>,
    /// Merges in order of rank, the two parts separated by a space; empty for SentencePiece style.
    pub merges: Vec<String>,
    /// Ids of special tokens, in the order in which llama.cpp's converter writes them; all below the number
    /// of tokens.
    pub special_ids: Vec<(Special, u32)>,
    /// Whether the tokenizer adds such a token by itself, in the converter's order.
    pub add_special: Vec<(Special, bool)>,
    /// Whether a space is put in front of text; `None` leaves it to the reader's default.
    pub add_space_prefix: Option<bool>,
    /// The chat template (Jinja).
    pub chat_template: Option<String>,
    /// Further templates by name, in the order of the file: `tool_use`, `rag`. Names are ASCII letters, digits
    /// and underscores.
    pub named_templates: Vec<(String, String)>,
}

impl Vocabulary {
    /// The id of a special token.
    pub fn special(&self, special: Special) -> Option<u32> {
        self.special_ids.iter().find(|(s, _)| *s == special).map(|(_, id)| *id)
    }

    /// Whether the tokenizer adds this special token by itself; `None` where no file says.
    pub fn adds(&self, special: Special) -> Option<bool> {
        self.add_special.iter().find(|(s, _)| *s == special).map(|(_, adds)| *adds)
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
