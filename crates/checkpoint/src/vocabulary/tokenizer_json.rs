//! tokenizer.json of the `tokenizers` library: BPE vocabulary, merges, added tokens; checked before use.
//!
//! The library itself panics or accepts quietly where such a file is inconsistent, so consistency is
//! established here: ids unique, every merge made of tokens and making one, added tokens with one id each.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result, quoted};
use crate::json::kind;

/// Ids from here on are not meant: the largest vocabularies have a few hundred thousand tokens.
const MAX_ID: u64 = 1 << 24;

/// A token added to the vocabulary, found in text before anything else is split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) special: bool,
}

#[derive(Debug)]
pub(super) struct TokenizerJson {
    /// Text and id of the model's own tokens, in the order of the file.
    pub(super) vocab: Vec<(String, u32)>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<AddedToken>,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
}

impl TokenizerJson {
    /// Whether this is SentencePiece's BPE in another file: `▁` for spaces, bytes as `<0x41>`.
    pub(super) fn is_sentencepiece_style(&self) -> bool {
        self.byte_fallback
            && !mentions(&self.pre_tokenizer, "ByteLevel")
            && !mentions(&self.decoder, "ByteLevel")
    }

    /// The id that text has as a whole token.
    pub(super) fn added_id(&self, text: &str) -> Option<u32> {
        self.added.iter().find(|t| t.text == text).map(|t| t.id)
    }
}

/// Whether a component, or one of a sequence of components, is of this type.
pub(super) fn mentions(component: &Value, type_name: &str) -> bool {
    let own = component.get("type").and_then(Value::as_str) == Some(type_name);
    let lists = ["pretokenizers", "decoders", "normalizers", "processors"];
    let inner = lists.iter().filter_map(|key| component.get(key)?.as_array()).flatten();
    own || inner.into_iter().any(|c| c.get("type").and_then(Value::as_str) == Some(type_name))
}

/// The tokenizer in a parsed tokenizer.json.
pub(super) fn read(file: &Path, mut map: Map<String, Value>) -> Result<TokenizerJson> {
    let bad = |what: &str, found: String, expected: &str| Error::malformed(file, what, found, expected);
    let Some(Value::Object(mut model)) = map.remove("model") else {
        return Err(bad("model", "no such object".into(), "a BPE model"));
    };
    // The oldest files have no type; only BPE has merges.
    match model.get("type") {
        Some(Value::String(name)) if name == "BPE" => {}
        None if model.contains_key("merges") => {}
        other => return Err(bad("model.type", other.map_or("no such key".into(), kind), "\"BPE\"")),
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(value) = model.get(key).filter(|v| v.as_str().is_some_and(|s| !s.is_empty())) {
            return Err(bad(&format!("model.{key}"), kind(value), "none: GGUF has no key for it"));
        }
    }
    let vocab = read_vocab(file, &mut model)?;
    let merges = read_merges(file, &model, &vocab)?;
    let added = read_added(file, &map, &vocab)?;
    let flag = |key: &str| model.get(key).and_then(Value::as_bool).unwrap_or(false);
    let mut take = |key: &str| map.remove(key).unwrap_or(Value::Null);
    Ok(TokenizerJson {
        byte_fallback: flag("byte_fallback"),
        ignore_merges: flag("ignore_merges"),
        normalizer: take("normalizer"),
        pre_tokenizer: take("pre_tokenizer"),
        post_processor: take("post_processor"),
        decoder: take("decoder"),
        vocab,
        merges,
        added,
    })
}

fn id_of(file: &Path, what: &str, text: &str, id: &Value) -> Result<u32> {
    match id.as_u64() {
        Some(id) if id < MAX_ID => Ok(id as u32),
        _ => Err(Error::malformed(
            file,
            format!("{what}: {}", quoted(text)),
            format!("id {}", kind(id)),
            format!("an id below {MAX_ID}"),
        )),
    }
}

fn read_vocab(file: &Path, model: &mut Map<String, Value>) -> Result<Vec<(String, u32)>> {
    let Some(Value::Object(entries)) = model.remove("vocab") else {
        return Err(Error::malformed(file, "model.vocab", "no such object", "an object of texts and ids"));
    };
    if entries.is_empty() {
        return Err(Error::malformed(file, "model.vocab", "no tokens", "at least one"));
    }
    let mut vocab = Vec::with_capacity(entries.len());
    let mut texts: HashMap<u32, usize> = HashMap::with_capacity(entries.len());
    for (text, id) in entries {
        let id = id_of(file, "model.vocab", &text, &id)?;
        if let Some(first) = texts.insert(id, vocab.len()) {
            let (first, _): &(String, u32) = &vocab[first];
            let found = format!("id {id}, which {} has too", quoted(first));
            return Err(Error::malformed(
                file,
                format!("model.vocab: {}", quoted(&text)),
                found,
                "an id of its own",
            ));
        }
        vocab.push((text, id));
    }
    Ok(vocab)
}

fn read_merges(
    file: &Path,
    model: &Map<String, Value>,
    vocab: &[(String, u32)],
) -> Result<Vec<(String, String)>> {
    let entries = match model.get("merges") {
        Some(Value::Array(entries)) => entries,
        None => return Ok(Vec::new()),
        Some(other) => return Err(Error::malformed(file, "model.merges", kind(other), "an array")),
    };
    let texts: std::collections::HashSet<&str> = vocab.iter().map(|(text, _)| text.as_str()).collect();
    let mut merges = Vec::with_capacity(entries.len());
    for (rank, entry) in entries.iter().enumerate() {
        // "a b" until tokenizers 0.20, ["a", "b"] since.
        let parts = match entry {
            Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match &pair[..] {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let what = || format!("model.merges: merge {rank}");
        let Some((left, right)) = parts.filter(|(l, r)| !l.is_empty() && !r.is_empty()) else {
            return Err(Error::malformed(file, what(), kind(entry), "two tokens"));
        };
        let whole = format!("{left}{right}");
        if let Some(unknown) = [left, right, &whole].into_iter().find(|text| !texts.contains(text)) {
            return Err(Error::malformed(file, what(), quoted(unknown), "a token of the vocabulary"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

fn read_added(file: &Path, map: &Map<String, Value>, vocab: &[(String, u32)]) -> Result<Vec<AddedToken>> {
    let entries = match map.get("added_tokens") {
        Some(Value::Array(entries)) => entries.as_slice(),
        None | Some(Value::Null) => &[],
        Some(other) => return Err(Error::malformed(file, "added_tokens", kind(other), "an array")),
    };
    let by_id: HashMap<u32, &str> = vocab.iter().map(|(text, id)| (*id, text.as_str())).collect();
    let by_text: HashMap<&str, u32> = vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
    let mut added: Vec<AddedToken> = Vec::with_capacity(entries.len());
    let mut seen_ids = HashMap::new();
    let mut seen_texts = HashMap::new();
    for (n, entry) in entries.iter().enumerate() {
        let what = format!("added_tokens[{n}]");
        let text = match entry.get("content") {
            Some(Value::String(text)) if !text.is_empty() => text.clone(),
            other => {
                let found = other.map_or("no content".into(), kind);
                return Err(Error::malformed(file, what, found, "a text"));
            }
        };
        let id = id_of(file, &what, &text, entry.get("id").unwrap_or(&Value::Null))?;
        let other_text = by_id.get(&id).copied().filter(|t| *t != text);
        let other_text = other_text.map(str::to_owned).or_else(|| seen_ids.get(&id).cloned());
        if let Some(other) = other_text.filter(|other| *other != text) {
            let found = format!("id {id} for {}, which {} has", quoted(&text), quoted(&other));
            return Err(Error::malformed(file, what, found, "an id of its own"));
        }
        let other_id = by_text.get(text.as_str()).copied().or_else(|| seen_texts.get(&text).copied());
        if let Some(other) = other_id.filter(|other| *other != id) {
            let found = format!("{} with id {id}, which has id {other} already", quoted(&text));
            return Err(Error::malformed(file, what, found, "each token once"));
        }
        if seen_ids.insert(id, text.clone()).is_some() {
            continue;
        }
        seen_texts.insert(text.clone(), id);
        let special = entry.get("special").and_then(Value::as_bool).unwrap_or(false);
        added.push(AddedToken { id, text, special });
    }
    Ok(added)
}

#[cfg(test)]
#[path = "tokenizer_json_tests.rs"]
mod tests;
