//! The vocabulary as `tokenizer.ggml.*` wants it, whichever tokenizer files the checkpoint carries.
//!
//! Which file is read follows llama.cpp's converter, so that ids, types and special tokens come out the same:
//! `tokenizer.model` first; then a `tokenizer.json` of SentencePiece style (BPE with byte fallback); then a
//! `tokenizer.json` of byte-level BPE. The other files (tokenizer_config.json, added_tokens.json,
//! special_tokens_map.json, generation_config.json) add tokens and say what they are for. Where two files
//! disagree, the one the converter would follow wins and a warning says exactly what disagrees.

mod build;
mod pre;
mod sentencepiece;
mod special;
mod table;
mod tokenizer_json;

use std::path::Path;

use serde_json::{Map, Value};

use crate::directory::Directory;
use crate::error::{Error, Result, list, quoted};
use crate::json;
use sentencepiece::SentencePiece;
use table::Table;
use tokenizer_json::TokenizerJson;

/// Tokenizer files with vocabularies of a few hundred thousand tokens stay far below.
const MAX_TOKENIZER: u64 = 256 << 20;
/// The other files have a few kilobytes, tokenizer_config.json at times a few hundred.
const MAX_SMALL: u64 = 16 << 20;

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

/// The files beside the tokenizer that say more about tokens.
pub(crate) struct Companions<'a> {
    dir: &'a Directory,
    /// config.json.
    config: &'a Map<String, Value>,
    tokenizer_config: Option<Map<String, Value>>,
    special_tokens_map: Option<Map<String, Value>>,
    generation_config: Option<Map<String, Value>>,
    added_tokens: Option<Map<String, Value>>,
}

impl<'a> Companions<'a> {
    fn read(dir: &'a Directory, config: &'a Map<String, Value>, warnings: &mut Vec<String>) -> Result<Self> {
        // Only advice comes from this one; many are broken.
        let generation_config = dir.read_json("generation_config.json", MAX_SMALL).unwrap_or_else(|e| {
            warnings.push(format!("{e}; left out"));
            None
        });
        Ok(Companions {
            dir,
            config,
            tokenizer_config: dir.read_json("tokenizer_config.json", MAX_SMALL)?,
            special_tokens_map: dir.read_json("special_tokens_map.json", MAX_SMALL)?,
            generation_config,
            added_tokens: dir.read_json("added_tokens.json", MAX_SMALL)?,
        })
    }

    /// Files that give special tokens by text, in the order of their authority.
    fn named_maps(&self) -> impl Iterator<Item = (&'static str, &Map<String, Value>)> {
        let maps = [
            ("tokenizer_config.json", &self.tokenizer_config),
            ("special_tokens_map.json", &self.special_tokens_map),
        ];
        maps.into_iter().filter_map(|(name, map)| Some((name, map.as_ref()?)))
    }
}

/// The vocabulary of a checkpoint whose embedding has `n_rows` rows.
///
/// `config` is config.json; `pre` overrides the recognised pre-tokenizer.
pub(crate) fn load(
    dir: &Directory,
    config: &Map<String, Value>,
    n_rows: u32,
    pre: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<Vocabulary> {
    let companions = Companions::read(dir, config, warnings)?;
    let stated = config.get("vocab_size").and_then(Value::as_u64);
    if let Some(stated) = stated.filter(|n| *n != u64::from(n_rows)) {
        warnings.push(format!(
            "{}: vocab_size: found {stated}, expected {n_rows}, the rows of the embedding, which are used",
            dir.join("config.json").display()
        ));
    }
    let file = dir.join("tokenizer.json");
    let (model, tokenizer) = read_files(dir, &file, warnings)?;
    let mut table = Table::new(n_rows as usize);
    let mut vocabulary = Vocabulary {
        model: TokenizerModel::Spm,
        pre: "default".into(),
        tokens: Vec::new(),
        scores: Vec::new(),
        types: Vec::new(),
        merges: Vec::new(),
        special_ids: Vec::new(),
        add_special: Vec::new(),
        add_space_prefix: None,
        chat_template: None,
        named_templates: Vec::new(),
    };
    match (&model, &tokenizer) {
        (Some(model), _) => {
            build::from_sentencepiece(&mut table, model, &companions, warnings)?;
            if let Some(tokenizer) = &tokenizer {
                compare_files(&file, model, tokenizer, &table, warnings);
            }
        }
        (None, Some(tokenizer)) if tokenizer.is_sentencepiece_style() => {
            build::from_sentencepiece_json(&mut table, tokenizer, &companions, warnings)?;
        }
        (None, Some(tokenizer)) => {
            vocabulary.model = TokenizerModel::Bpe;
            vocabulary.pre = pre_tokenizer(&file, tokenizer, pre, warnings)?;
            build::from_bpe(&mut table, tokenizer, &companions, warnings)?;
            vocabulary.merges = build::merges(tokenizer);
        }
        (None, None) => return Err(no_tokenizer(dir)),
    }
    table.finish(&companions, warnings)?;
    let specials = special::read(&companions, tokenizer.as_ref(), &table.tokens, warnings)?;
    special::compare(&companions, &specials, &table.tokens, warnings);
    let templates = special::read_templates(&companions, warnings)?;
    vocabulary.special_ids = specials.ids;
    vocabulary.add_special = specials.adds;
    vocabulary.chat_template = templates.main;
    vocabulary.named_templates = templates.named;
    vocabulary.add_space_prefix = space_prefix(&companions, model.as_ref(), tokenizer.as_ref(), warnings);
    apply_size_rules(&mut vocabulary, stated.unwrap_or(u64::from(n_rows)));
    if vocabulary.special(Special::Eos).is_none() {
        warnings.push(format!("{}: end token: found none, so answers may not end", dir.path().display()));
    }
    vocabulary.tokens = table.tokens;
    vocabulary.types = table.types;
    if vocabulary.model == TokenizerModel::Spm {
        vocabulary.scores = table.scores;
    }
    Ok(vocabulary)
}

/// tokenizer.model and tokenizer.json, those that there are.
fn read_files(
    dir: &Directory,
    file: &Path,
    warnings: &mut Vec<String>,
) -> Result<(Option<SentencePiece>, Option<TokenizerJson>)> {
    let model = match dir.read("tokenizer.model", MAX_TOKENIZER)? {
        Some(bytes) => Some(sentencepiece::parse(&dir.join("tokenizer.model"), &bytes)?),
        None => None,
    };
    let tokenizer = match read_tokenizer_json(dir, file) {
        // Beside a tokenizer.model this one only adds.
        Err(e) if model.is_some() => {
            warnings.push(format!("{e}; left out, as tokenizer.model is used"));
            None
        }
        other => other?,
    };
    Ok((model, tokenizer))
}

fn read_tokenizer_json(dir: &Directory, file: &Path) -> Result<Option<TokenizerJson>> {
    let Some(bytes) = dir.read("tokenizer.json", MAX_TOKENIZER)? else { return Ok(None) };
    tokenizer_json::read(file, json::parse_object(file, &bytes)?).map(Some)
}

fn no_tokenizer(dir: &Directory) -> Error {
    let there = |name: &str| matches!(dir.file(name), Ok(Some(_)));
    let found = if there("tekken.json") {
        "only tekken.json"
    } else if there("vocab.json") {
        "only vocab.json"
    } else {
        "none"
    };
    let expected = "tokenizer.model or tokenizer.json (copy them from the base model of the merge)";
    Error::malformed(dir.path(), "tokenizer", found, expected)
}

fn pre_tokenizer(
    file: &Path,
    tokenizer: &TokenizerJson,
    chosen: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<String> {
    let recognised = pre::recognise(&tokenizer.pre_tokenizer, tokenizer.ignore_merges);
    // NFC is applied by most of these tokenizers and left out by llama.cpp for all.
    if !tokenizer.normalizer.is_null() && !tokenizer_json::mentions(&tokenizer.normalizer, "NFC") {
        warnings.push(format!(
            "{}: normalizer: found {}, which GGUF has no key for; such text may get other ids",
            file.display(),
            json::kind(&tokenizer.normalizer["type"])
        ));
    }
    match (chosen, recognised) {
        (Some(chosen), Some(recognised)) if chosen != recognised => {
            warnings.push(format!(
                "{}: pre_tokenizer: found {}, but {} was asked for and is used",
                file.display(),
                quoted(recognised),
                quoted(chosen)
            ));
            Ok(chosen.to_owned())
        }
        (Some(chosen), _) => Ok(chosen.to_owned()),
        (None, Some(recognised)) => Ok(recognised.to_owned()),
        (None, None) => {
            let text: String = tokenizer.pre_tokenizer.to_string();
            let expected = "one that llama.cpp has (gpt-2, smollm, llama-bpe, smaug-bpe, qwen2, tekken, gpt-4o), or the \
                            name of one stated by hand";
            Err(Error::malformed(file, "pre_tokenizer", quoted(&text), expected))
        }
    }
}

/// What tokenizer.json says of ids that tokenizer.model, which is used, has otherwise.
fn compare_files(
    file: &Path,
    model: &SentencePiece,
    tokenizer: &TokenizerJson,
    table: &Table,
    warnings: &mut Vec<String>,
) {
    let piece = |id: u32| model.pieces.get(id as usize).map(|p| p.text.as_str());
    let all = tokenizer.vocab.iter().map(|(text, id)| (*id, text.as_str()));
    let other: Vec<_> =
        all.filter(|(id, text)| piece(*id) != Some(text) && table.get((*id).into()) != Some(text)).collect();
    let file = file.display();
    if tokenizer.vocab.len() != model.pieces.len() || !other.is_empty() {
        let examples: Vec<String> = other
            .iter()
            .map(|(id, text)| format!("{id} is {text} there and {} here", piece(*id).unwrap_or("nothing")))
            .collect();
        let examples = if examples.is_empty() { "none".to_owned() } else { list(&examples, 4) };
        warnings.push(format!(
            "{file}: vocabulary: found {} tokens, expected {} as in tokenizer.model, which is used; different ids: {examples}",
            tokenizer.vocab.len(),
            model.pieces.len(),
        ));
    }
    for token in &tokenizer.added {
        let used = table.get(token.id.into());
        if used != Some(&token.text) && used != Some(&token.text.replace('▁', " ")) {
            let used = used.map_or("no token".to_owned(), quoted);
            warnings.push(format!(
                "{file}: added token {}: found {}, expected {used} by tokenizer.model, added_tokens.json and \
                 tokenizer_config.json, which are used",
                token.id,
                quoted(&token.text)
            ));
        }
    }
}

/// Whether a space goes in front of text, where that is stated or differs from SentencePiece's habit.
fn space_prefix(
    companions: &Companions<'_>,
    model: Option<&SentencePiece>,
    tokenizer: Option<&TokenizerJson>,
    warnings: &mut Vec<String>,
) -> Option<bool> {
    let config = companions.tokenizer_config.as_ref();
    if let Some(stated) = config.and_then(|c| c.get("add_prefix_space")).and_then(Value::as_bool) {
        return Some(stated);
    }
    // The converter states nothing in the cases below, and readers then put a space where the original
    // tokenizer does not.
    let (file, adds) = match (model, tokenizer) {
        (Some(model), _) => ("tokenizer.model", model.adds_space),
        (None, Some(tokenizer)) if tokenizer.is_sentencepiece_style() => {
            let scheme = |c: &Value| c.get("prepend_scheme").and_then(Value::as_str) != Some("never");
            let metaspace = tokenizer_json::mentions(&tokenizer.pre_tokenizer, "Metaspace");
            let prepends = tokenizer_json::mentions(&tokenizer.normalizer, "Prepend");
            ("tokenizer.json", prepends || (metaspace && scheme(&tokenizer.pre_tokenizer)))
        }
        _ => return None,
    };
    if !adds {
        warnings.push(format!(
            "{}: puts no space in front of text; stated in the GGUF, although llama.cpp's converter does not",
            companions.dir.join(file).display()
        ));
        return Some(false);
    }
    None
}

/// What the converter knows by the size of the vocabulary alone: CodeLlama's infill tokens, and that the
/// models with 49152 tokens (SmolLM, Granite) begin texts with nothing.
fn apply_size_rules(vocabulary: &mut Vocabulary, stated_size: u64) {
    if stated_size == 32016 {
        for (special, id) in [
            (Special::Prefix, 32007),
            (Special::Suffix, 32008),
            (Special::Middle, 32009),
            (Special::Eot, 32010),
        ] {
            if vocabulary.special(special).is_none() {
                vocabulary.special_ids.push((special, id));
            }
        }
    }
    if stated_size == 49152 {
        match vocabulary.add_special.iter_mut().find(|(s, _)| *s == Special::Bos) {
            Some(entry) => entry.1 = false,
            None => vocabulary.add_special.push((Special::Bos, false)),
        }
    }
}

/// Makers of tokenizer.model for tests.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::sentencepiece::tests::{proto_of, small_pieces};
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
