//! The vocabulary: what each token is, and which tokens have a role.
//!
//! Everything the file says is checked here, once, so that the encoders can index without doubt.

use super::{Error, TokenId};
use gguf::{Array, Metadata, Value};
use model_spec::keys;
use std::collections::HashMap;

/// What a token is, by its number in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Text.
    Normal,
    /// Stands for what no other token can write.
    Unknown,
    /// Structure, such as the end of a turn; never part of a text.
    Control,
    /// Text that is kept whole wherever it occurs.
    UserDefined,
    /// A place that training left empty.
    Unused,
    /// One byte, written `<0x0A>`.
    Byte,
}

impl TokenType {
    /// Numbers outside the list are read as unused, as they take part in nothing.
    fn from_number(number: i32) -> TokenType {
        match number {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            6 => TokenType::Byte,
            _ => TokenType::Unused,
        }
    }
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SentencePiece's byte-pair encoding with scores (`llama`).
    SentencePiece,
    /// Byte-level byte-pair encoding with ranked merges (`gpt2`).
    ByteLevel,
}

/// Keys whose value is the id of a token with a role. The deprecated names of the fill-in-the-middle tokens are
/// left out: nothing here asks for them.
const ROLE_KEYS: [&str; 9] = [
    keys::TOKENIZER_BOS_ID,
    keys::TOKENIZER_EOS_ID,
    keys::TOKENIZER_EOT_ID,
    keys::TOKENIZER_EOM_ID,
    keys::TOKENIZER_UNK_ID,
    keys::TOKENIZER_PAD_ID,
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];

/// Text by which llama.cpp knows a token that ends the model's turn, whatever the metadata says.
const END_TEXTS: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|file_sep|>",
];

/// Text by which llama.cpp knows the end of a turn (eot), in the order in which the first one present is taken.
const END_OF_TURN_TEXTS: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// Text by which llama.cpp knows padding and repository marks of fill-in-the-middle models, which end a generation
/// too. Of each group only the first one present counts.
const FILL_END_TEXTS: [&[&str]; 2] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
];

/// The checked vocabulary of one model.
#[derive(Debug)]
pub(super) struct Vocab {
    pub(super) kind: Kind,
    /// Name of the rule that cuts text into words; empty where the file names none.
    pub(super) pre: String,
    pub(super) texts: Vec<String>,
    pub(super) types: Vec<TokenType>,
    /// The bytes of tokens that are not UTF-8.
    pub(super) raw: HashMap<TokenId, Vec<u8>>,
    /// Present for SentencePiece: the higher, the earlier a merge happens.
    pub(super) scores: Vec<f32>,
    /// Present for byte-level: pairs of texts in order of rank.
    pub(super) merges: Vec<String>,
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) eot: Option<TokenId>,
    pub(super) unk: Option<TokenId>,
    pub(super) pad: Option<TokenId>,
    /// Tokens that end a generation, ascending.
    pub(super) ends: Vec<TokenId>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: bool,
    pub(super) add_space_prefix: bool,
    pub(super) warnings: Vec<String>,
}

impl Vocab {
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Vocab, Error> {
        let model = metadata.str(keys::TOKENIZER_MODEL)?.ok_or(Error::Missing {
            key: keys::TOKENIZER_MODEL,
            expected: "the tokenizer's kind (a file of weights alone cannot be run)",
        })?;
        let kind = match model {
            "llama" => Kind::SentencePiece,
            "gpt2" => Kind::ByteLevel,
            other => {
                return Err(Error::Model {
                    key: keys::TOKENIZER_MODEL,
                    found: other.chars().take(64).collect(),
                    expected: "llama, gpt2",
                });
            }
        };
        let mut warnings = Vec::new();
        let (texts, raw) = texts(metadata)?;
        let n_vocab = texts.len();
        let index = index(&texts)?;
        let types = types(metadata, n_vocab)?;
        let scores = match kind {
            Kind::SentencePiece => scores(metadata, n_vocab)?,
            Kind::ByteLevel => Vec::new(),
        };
        let merges = match kind {
            Kind::SentencePiece => Vec::new(),
            Kind::ByteLevel => {
                let key = keys::TOKENIZER_MERGES;
                let expected = "the merges of a byte-level vocabulary";
                metadata.strings(key)?.map(<[String]>::to_vec).ok_or(Error::Missing { key, expected })?
            }
        };
        for (id, ty) in types.iter().enumerate() {
            if *ty == TokenType::Byte && byte_of(&texts[id]).is_none() {
                return Err(Error::ByteToken { id: id as TokenId, text: texts[id].clone() });
            }
        }
        let [bos, eos, eot, eom, unk, pad, fim_pad, fim_rep, fim_sep] = roles(metadata, n_vocab)?;
        // SentencePiece models have these places by custom, also where a file does not say so.
        let by_custom = |id: TokenId| (kind == Kind::SentencePiece && (id as usize) < n_vocab).then_some(id);
        let pre = metadata.str(keys::TOKENIZER_PRE)?.unwrap_or_default().to_owned();
        if !raw.is_empty() {
            warnings.push(format!("{} tokens are not UTF-8; no text becomes one of them", raw.len()));
        }
        let mut vocab = Vocab {
            kind,
            pre,
            raw,
            bos: bos.or(by_custom(1)),
            eos: eos.or(by_custom(2)),
            eot: eot.or_else(|| END_OF_TURN_TEXTS.iter().find_map(|text| index.get(text).copied())),
            unk: unk.or(by_custom(0)),
            pad,
            ends: Vec::new(),
            add_bos: metadata.bool(keys::TOKENIZER_ADD_BOS)?,
            add_eos: metadata.bool(keys::TOKENIZER_ADD_EOS)?.unwrap_or(false),
            add_space_prefix: metadata
                .bool(keys::TOKENIZER_ADD_SPACE_PREFIX)?
                .unwrap_or(kind == Kind::SentencePiece),
            scores,
            merges,
            types,
            warnings: Vec::new(),
            texts: Vec::new(),
        };
        vocab.mark_ends(&index, &[vocab.eos, vocab.eot, eom, fim_pad, fim_rep, fim_sep], &mut warnings);
        drop(index);
        vocab.texts = texts;
        vocab.warnings = warnings;
        Ok(vocab)
    }

    /// Collects the tokens that end a generation, the way llama.cpp does: those the metadata names and those of
    /// well-known text, which count as control tokens whatever their type.
    fn mark_ends(
        &mut self,
        index: &HashMap<&str, TokenId>,
        named: &[Option<TokenId>],
        warnings: &mut Vec<String>,
    ) {
        let known = END_TEXTS.iter().filter_map(|text| index.get_key_value(text));
        let fill =
            FILL_END_TEXTS.iter().filter_map(|group| group.iter().find_map(|t| index.get_key_value(t)));
        for (text, &id) in known.chain(fill) {
            self.ends.push(id);
            let ty = &mut self.types[id as usize];
            if *ty != TokenType::Control {
                if *ty != TokenType::Unknown {
                    warnings.push(format!("token {id} {text:?}: found type {ty:?}, treated as Control"));
                }
                *ty = TokenType::Control;
            }
        }
        self.ends.extend(named.iter().flatten());
        // Harmony and Solar end a message with <|end|> and a turn with the others.
        let present = |text: &str| index.contains_key(text);
        let turn_goes_on = (present("<|return|>") && (present("<|call|>") || present("<|calls|>")))
            || (present("<|flush|>") && (present("<|call|>") || present("<|calls|>")));
        let not_an_end = if turn_goes_on { index.get("<|end|>") } else { None };
        self.ends.retain(|id| Some(id) != not_an_end);
        self.ends.sort_unstable();
        self.ends.dedup();
    }

    /// Whether only a template may write `id`: control and unknown tokens, and tokens that look like control tokens
    /// though their file calls them text.
    pub(super) fn is_guarded(&self, id: TokenId) -> bool {
        match self.types[id as usize] {
            TokenType::Control | TokenType::Unknown => true,
            TokenType::UserDefined => {
                let text = &self.texts[id as usize];
                let between = |open, close| text.starts_with(open) && text.ends_with(close);
                between("<|", "|>") || between("<｜", "｜>")
            }
            _ => false,
        }
    }
}

/// The byte that a text such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())
        .flatten()
}

/// Bytes of the tokens that are not UTF-8.
type RawTokens = HashMap<TokenId, Vec<u8>>;

/// The texts of all tokens, and the bytes of those that are not UTF-8, which get a text that no input contains.
fn texts(metadata: &Metadata) -> Result<(Vec<String>, RawTokens), Error> {
    let key = keys::TOKENIZER_TOKENS;
    let strings = metadata.byte_strings(key)?.ok_or(Error::Missing { key, expected: "the vocabulary" })?;
    if strings.is_empty() {
        return Err(Error::Missing { key, expected: "at least one token" });
    }
    if u32::try_from(strings.len()).is_err() {
        return Err(Error::Length { key, found: strings.len(), expected: u32::MAX as usize });
    }
    let mut raw = HashMap::new();
    let texts = strings.into_iter().zip(0..).map(|(bytes, id)| match std::str::from_utf8(bytes) {
        // A name of its own for each empty token, as llama.cpp gives.
        Ok("") => format!("[EMPTY_{id}]"),
        Ok(text) => text.to_owned(),
        Err(_) => {
            raw.insert(id, bytes.to_vec());
            format!("[RAW_{id}]\0")
        }
    });
    Ok((texts.collect(), raw))
}

fn index(texts: &[String]) -> Result<HashMap<&str, TokenId>, Error> {
    let mut index = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let second = id as TokenId;
        if let Some(first) = index.insert(text.as_str(), second) {
            return Err(Error::Duplicate { text: text.clone(), first, second });
        }
    }
    Ok(index)
}

fn types(metadata: &Metadata, n_vocab: usize) -> Result<Vec<TokenType>, Error> {
    let key = keys::TOKENIZER_TOKEN_TYPE;
    let numbers: Vec<i32> = match metadata.get(key) {
        None => return Ok(vec![TokenType::Normal; n_vocab]),
        Some(Value::Array(Array::I32(values))) => values.clone(),
        Some(_) => {
            let values = metadata.u32s(key)?.unwrap_or_default();
            values.into_iter().map(|v| i32::try_from(v).unwrap_or(-1)).collect()
        }
    };
    check_length(key, numbers.len(), n_vocab)?;
    Ok(numbers.into_iter().map(TokenType::from_number).collect())
}

fn scores(metadata: &Metadata, n_vocab: usize) -> Result<Vec<f32>, Error> {
    let key = keys::TOKENIZER_SCORES;
    let scores: Vec<f32> = match metadata.get(key) {
        Some(Value::Array(Array::I32(values))) => values.iter().map(|&v| v as f32).collect(),
        _ => metadata
            .f32s(key)?
            .map(<[f32]>::to_vec)
            .ok_or(Error::Missing { key, expected: "the scores of a SentencePiece vocabulary" })?,
    };
    check_length(key, scores.len(), n_vocab)?;
    match scores.iter().position(|score| score.is_nan()) {
        Some(id) => Err(Error::Score { id: id as TokenId }),
        None => Ok(scores),
    }
}

fn check_length(key: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { key, found, expected }) }
}

fn roles(metadata: &Metadata, n_vocab: usize) -> Result<[Option<TokenId>; ROLE_KEYS.len()], Error> {
    let mut ids = [None; ROLE_KEYS.len()];
    for (slot, key) in ids.iter_mut().zip(ROLE_KEYS) {
        if let Some(id) = metadata.u32(key)? {
            if id as usize >= n_vocab {
                return Err(Error::Id { key, found: id.into(), n_vocab });
            }
            *slot = Some(id);
        }
    }
    Ok(ids)
}
