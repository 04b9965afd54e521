//! Metadata for tests: from the tokenizer files of test checkpoints, and small ones made up.

use crate::tokenizer::{Error, Tokenizer};
use gguf::{Array, Metadata};
use model_spec::keys;
use std::path::PathBuf;

/// A path inside the project.
pub(super) fn in_project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A file of the folder of made test checkpoints. None, and a word on stderr, where there is none.
pub(super) fn in_test_models(path: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("BRUCE_TEST_MODELS") else {
        eprintln!("skipped: BRUCE_TEST_MODELS names no folder with {path}");
        return None;
    };
    let file = PathBuf::from(dir).join(path);
    if !file.exists() {
        eprintln!("skipped: {} is not there", file.display());
        return None;
    }
    Some(file)
}

/// A text and the ids the original library gives it.
#[derive(serde::Deserialize)]
pub(super) struct Golden {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

pub(super) fn golden(path: &str) -> Vec<Golden> {
    let file = std::fs::read_to_string(in_project(path)).expect(path);
    file.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The metadata that belongs to a SentencePiece model file, as the converters write it.
pub(super) fn of_sentencepiece(path: &std::path::Path) -> Metadata {
    let file = std::fs::read(path).expect("a SentencePiece model");
    let (mut texts, mut scores, mut types) = (vec![], vec![], vec![]);
    // ModelProto.pieces is field 1, a message of piece = 1, score = 2, type = 3 (normal unless stated).
    for (field, bytes) in messages(&file) {
        if field == 1 {
            let (mut text, mut score, mut ty) = (String::new(), 0f32, 1i32);
            for (field, value) in messages(bytes) {
                match field {
                    1 => text = String::from_utf8(value.to_vec()).expect("UTF-8"),
                    2 => score = f32::from_le_bytes(value.try_into().expect("four bytes")),
                    3 => ty = i32::from(value[0]),
                    _ => {}
                }
            }
            texts.push(text);
            scores.push(score);
            types.push(ty);
        }
    }
    let mut metadata = Metadata::new();
    metadata.set(keys::TOKENIZER_MODEL, "llama");
    metadata.set(keys::TOKENIZER_PRE, "default");
    metadata.set(keys::TOKENIZER_TOKENS, Array::String(texts));
    metadata.set(keys::TOKENIZER_SCORES, Array::F32(scores));
    metadata.set(keys::TOKENIZER_TOKEN_TYPE, Array::I32(types));
    metadata.set(keys::TOKENIZER_BOS_ID, 1u32);
    metadata.set(keys::TOKENIZER_EOS_ID, 2u32);
    metadata.set(keys::TOKENIZER_UNK_ID, 0u32);
    metadata.set(keys::TOKENIZER_ADD_BOS, true);
    metadata
}

/// The fields of a protocol-buffer message: number and bytes (of a varint its own).
fn messages(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (&first, rest) = bytes.split_first().expect("a whole varint");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let before = bytes;
        let (start, len) = match key & 7 {
            0 => {
                varint(&mut bytes);
                (0, before.len() - bytes.len())
            }
            1 => (0, 8),
            2 => {
                let len = varint(&mut bytes) as usize;
                (before.len() - bytes.len(), len)
            }
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, &before[start..start + len]));
        bytes = &before[start + len..];
    }
    fields
}

/// The metadata that belongs to a byte-level `tokenizer.json`, with `pre` as the converters name it.
pub(super) fn of_tokenizer_json(path: &std::path::Path, pre: &str) -> Metadata {
    let file = std::fs::read(path).expect("a tokenizer.json");
    let json: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let added = json["added_tokens"].as_array().expect("added tokens");
    let n =
        vocab.values().chain(added.iter().map(|t| &t["id"])).filter_map(|id| id.as_u64()).max().unwrap() + 1;
    let mut texts = vec![String::new(); n as usize];
    let mut types = vec![1i32; n as usize];
    for (text, id) in vocab {
        texts[id.as_u64().unwrap() as usize] = text.clone();
    }
    for token in added {
        let id = token["id"].as_u64().unwrap() as usize;
        texts[id] = token["content"].as_str().unwrap().to_owned();
        types[id] = if token["special"].as_bool().unwrap() { 3 } else { 4 };
    }
    let merges = json["model"]["merges"].as_array().expect("merges");
    let merges = merges
        .iter()
        .map(|merge| match merge.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => merge.as_str().unwrap().to_owned(),
        })
        .collect();
    let mut metadata = Metadata::new();
    metadata.set(keys::TOKENIZER_MODEL, "gpt2");
    metadata.set(keys::TOKENIZER_PRE, pre);
    metadata.set(keys::TOKENIZER_TOKENS, Array::String(texts));
    metadata.set(keys::TOKENIZER_TOKEN_TYPE, Array::I32(types));
    metadata.set(keys::TOKENIZER_MERGES, Array::String(merges));
    metadata
}

/// The tokenizer of the model that ships with the project.
pub(super) fn tiny_moe() -> Tokenizer {
    let metadata = of_sentencepiece(&in_project("models/tiny-moe/tokenizer.model"));
    Tokenizer::from_metadata(&metadata).expect("tiny-moe's tokenizer")
}

/// A SentencePiece vocabulary: text, score, type.
pub(super) fn spm_metadata(tokens: &[(&str, f32, i32)]) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set(keys::TOKENIZER_MODEL, "llama");
    metadata.set(keys::TOKENIZER_TOKENS, Array::String(tokens.iter().map(|t| t.0.to_owned()).collect()));
    metadata.set(keys::TOKENIZER_SCORES, Array::F32(tokens.iter().map(|t| t.1).collect()));
    metadata.set(keys::TOKENIZER_TOKEN_TYPE, Array::I32(tokens.iter().map(|t| t.2).collect()));
    metadata
}

pub(super) fn spm(tokens: &[(&str, f32, i32)]) -> Result<Tokenizer, Error> {
    Tokenizer::from_metadata(&spm_metadata(tokens))
}

/// A byte-level vocabulary: all bytes, then `tokens` with their types, from id 256 on.
pub(super) fn byte_level_metadata(pre: &str, tokens: &[(&str, i32)], merges: &[&str]) -> Metadata {
    let mut free = '\u{100}'..;
    let mut texts: Vec<String> = ('\0'..='\u{ff}')
        .map(|c| match c {
            '!'..='~' | '¡'..='¬' | '®'..='ÿ' => c.to_string(),
            _ => free.next().unwrap().to_string(),
        })
        .collect();
    let mut types = vec![1; 256];
    texts.extend(tokens.iter().map(|t| t.0.to_owned()));
    types.extend(tokens.iter().map(|t| t.1));
    let mut metadata = Metadata::new();
    metadata.set(keys::TOKENIZER_MODEL, "gpt2");
    metadata.set(keys::TOKENIZER_PRE, pre);
    metadata.set(keys::TOKENIZER_TOKENS, Array::String(texts));
    metadata.set(keys::TOKENIZER_TOKEN_TYPE, Array::I32(types));
    metadata.set(keys::TOKENIZER_MERGES, Array::String(merges.iter().map(|&m| m.to_owned()).collect()));
    metadata
}
