//! Tokens, scores and types from each kind of tokenizer file.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::sentencepiece::{PieceKind, SentencePiece, Training, byte_value};
use super::special::token_text;
use super::table::{ADDED_SCORE, Table, added};
use super::tokenizer_json::TokenizerJson;
use super::{Companions, TokenType};
use crate::error::{Error, Result, quoted};
use crate::json::kind;

/// tokenizer.model, then added_tokens.json, then `added_tokens_decoder` of tokenizer_config.json, each
/// replacing what came before.
pub(super) fn from_sentencepiece(
    table: &mut Table,
    model: &SentencePiece,
    companions: &Companions<'_>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let dir = companions.dir;
    if model.training != Training::Bpe {
        warnings.push(format!(
            "{}: model type: found {:?}, expected Bpe; GGUF's reader splits by merging, so ids may differ from the \
             original's",
            dir.join("tokenizer.model").display(),
            model.training
        ));
    }
    for (id, piece) in model.pieces.iter().enumerate() {
        let kind = match piece.kind {
            PieceKind::Unknown => TokenType::Unknown,
            PieceKind::Control => TokenType::Control,
            PieceKind::Unused => TokenType::Unused,
            PieceKind::Byte => TokenType::Byte,
            // The converter does not tell these apart.
            PieceKind::Normal | PieceKind::UserDefined => TokenType::Normal,
        };
        table.set(id as u64, &piece.text, piece.score, kind, "tokenizer.model");
    }
    for (text, id) in companions.added_tokens.iter().flatten() {
        let id = added_id(companions, "added_tokens.json", text, id)?;
        table.set(id, text, ADDED_SCORE, TokenType::UserDefined, "added_tokens.json");
    }
    for (id, text, special) in added_tokens_decoder(companions)? {
        if let Some(other) = table.get(id).filter(|other| *other != text) {
            warnings.push(format!(
                "{}: added_tokens_decoder: found {} for id {id}, which was {}; replaced",
                dir.join("tokenizer_config.json").display(),
                quoted(&text),
                quoted(other)
            ));
        }
        let (text, kind) = added(&text, special);
        table.set(id, &text, ADDED_SCORE, kind, "tokenizer_config.json");
    }
    Ok(())
}

fn added_id(companions: &Companions<'_>, file: &str, text: &str, id: &Value) -> Result<u64> {
    id.as_u64().ok_or_else(|| {
        let what = format!("token {}", quoted(text));
        Error::malformed(companions.dir.join(file), what, format!("id {}", kind(id)), "a token id")
    })
}

/// Id, text and whether it is special, of every entry.
fn added_tokens_decoder(companions: &Companions<'_>) -> Result<Vec<(u64, String, bool)>> {
    let file = || companions.dir.join("tokenizer_config.json");
    let config = companions.tokenizer_config.as_ref();
    let entries = match config.and_then(|c| c.get("added_tokens_decoder")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return Err(Error::malformed(
                file(),
                "added_tokens_decoder",
                kind(other),
                "an object of ids and tokens",
            ));
        }
    };
    let mut tokens = Vec::with_capacity(entries.len());
    for (id, token) in entries {
        let number = id.parse::<u64>().map_err(|_| {
            Error::malformed(file(), "added_tokens_decoder", format!("key {}", quoted(id)), "a token id")
        })?;
        let Some(text) = token.get("content").and_then(Value::as_str).filter(|t| !t.is_empty()) else {
            let what = format!("added_tokens_decoder: {number}");
            return Err(Error::malformed(file(), what, kind(token), "an object with content"));
        };
        tokens.push((
            number,
            text.to_owned(),
            token.get("special").and_then(Value::as_bool).unwrap_or(false),
        ));
    }
    Ok(tokens)
}

/// A SentencePiece vocabulary that comes as tokenizer.json, which has merges instead of scores.
///
/// llama.cpp's converter gives every token the score -1000; its own tokenizer, which merges by score, then
/// splits text otherwise than the original. The score here is minus the rank of the first merge that makes
/// the token, which keeps the original's order of merging and so its ids. It also calls tokens user-defined
/// that the file calls special; here they are control tokens, so that user text never becomes one.
pub(super) fn from_sentencepiece_json(
    table: &mut Table,
    tokenizer: &TokenizerJson,
    companions: &Companions<'_>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const FILE: &str = "tokenizer.json";
    let file = companions.dir.join(FILE);
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(tokenizer.merges.len());
    for (rank, (left, right)) in tokenizer.merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let specials = special_texts(companions);
    let mut bytes = HashSet::new();
    let mut unreachable = 0;
    for (text, id) in &tokenizer.vocab {
        let kind = if let Some(byte) = byte_value(text) {
            bytes.insert(byte);
            TokenType::Byte
        } else if specials.contains(text) || tokenizer.added.iter().any(|t| t.special && t.id == *id) {
            TokenType::Control
        } else {
            TokenType::Normal
        };
        let rank = ranks.get(text).copied();
        if kind == TokenType::Normal && rank.is_none() && text.chars().nth(1).is_some() {
            unreachable += 1;
        }
        let score = match kind {
            TokenType::Normal => -(rank.unwrap_or(tokenizer.merges.len()) as f32),
            _ => 0.0,
        };
        table.set((*id).into(), text, score, kind, FILE);
    }
    if bytes.len() != 256 {
        let found = format!("{} of 256", bytes.len());
        return Err(Error::malformed(
            file,
            "byte tokens <0x00> to <0xFF>",
            found,
            "all, as byte_fallback is set",
        ));
    }
    if unreachable > 0 {
        warnings.push(format!(
            "{}: merges: found none that makes {unreachable} of the tokens; GGUF's reader may use those tokens where \
             the original does not",
            file.display()
        ));
    }
    let known: HashSet<u32> = tokenizer.vocab.iter().map(|(_, id)| *id).collect();
    for token in tokenizer.added.iter().filter(|t| !known.contains(&t.id)) {
        let control = token.special || specials.contains(&token.text);
        let kind = if control { TokenType::Control } else { TokenType::UserDefined };
        table.set(token.id.into(), &token.text, ADDED_SCORE, kind, FILE);
    }
    Ok(())
}

/// Texts that any file calls special, with Llama's usual ones where none does.
fn special_texts(companions: &Companions<'_>) -> HashSet<String> {
    let mut texts = HashSet::new();
    for (key, usual) in [
        ("bos_token", Some("<s>")),
        ("eos_token", Some("</s>")),
        ("unk_token", Some("<unk>")),
        ("sep_token", None),
        ("pad_token", None),
        ("cls_token", None),
        ("mask_token", None),
    ] {
        let stated: Vec<String> =
            companions.named_maps().filter_map(|(_, map)| token_text(map, key)).collect();
        match usual {
            Some(usual) if stated.is_empty() => texts.extend([usual.to_owned()]),
            _ => texts.extend(stated),
        }
    }
    for (_, map) in companions.named_maps() {
        let more =
            ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|key| map.get(key));
        for token in more.filter_map(Value::as_array).flatten() {
            let text = token.as_str().or_else(|| token.get("content").and_then(Value::as_str));
            texts.extend(text.map(str::to_owned));
        }
    }
    texts
}

/// Byte-level BPE: the model's tokens, the added ones, and those that only tokenizer_config.json has.
pub(super) fn from_bpe(
    table: &mut Table,
    tokenizer: &TokenizerJson,
    companions: &Companions<'_>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const FILE: &str = "tokenizer.json";
    let file = companions.dir.join(FILE);
    let added_ids: HashSet<u32> = tokenizer.added.iter().map(|t| t.id).collect();
    let n_rows = table.tokens.len() as u64;
    let mut odd: Option<&str> = None;
    let mut n_odd = 0;
    for (text, id) in &tokenizer.vocab {
        // Merges may need these; what is added can be left out, what merging makes cannot.
        if u64::from(*id) >= n_rows && !added_ids.contains(id) {
            let what = format!("model.vocab: {}", quoted(text));
            let expected = format!("an id below {n_rows}, the rows of the embedding");
            return Err(Error::malformed(file, what, format!("id {id}"), expected));
        }
        if !added_ids.contains(id) && !text.chars().all(is_byte_character) {
            n_odd += 1;
            odd = odd.or(Some(text));
        }
        table.set((*id).into(), text, 0.0, TokenType::Normal, FILE);
    }
    if let Some(text) = odd {
        warnings.push(format!(
            "{}: model.vocab: found {n_odd} tokens with characters that stand for no byte, such as {}; their text is \
             lost when printed",
            file.display(),
            quoted(text)
        ));
    }
    for token in &tokenizer.added {
        let (text, kind) = added(&token.text, token.special);
        table.set(token.id.into(), &text, 0.0, kind, FILE);
    }
    for (id, text, special) in added_tokens_decoder(companions)? {
        match table.get(id) {
            None => {
                let (text, kind) = added(&text, special);
                table.set(id, &text, 0.0, kind, "tokenizer_config.json");
            }
            Some(other) if other != text && other != added(&text, special).0 => warnings.push(format!(
                "{}: added_tokens_decoder: found {} for id {id}, expected {} as in tokenizer.json, which is used",
                companions.dir.join("tokenizer_config.json").display(),
                quoted(&text),
                quoted(other)
            )),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Merges as GGUF writes them: both parts with a space between, so that a space within is written as `Ġ`.
pub(super) fn merges(tokenizer: &TokenizerJson) -> Vec<String> {
    let part = |text: &str| text.replace(' ', "Ġ");
    tokenizer.merges.iter().map(|(left, right)| format!("{} {}", part(left), part(right))).collect()
}

/// Whether a character stands for a byte in GPT-2's alphabet: printable Latin-1 for itself, and 68 characters
/// from U+0100 on for the rest.
fn is_byte_character(c: char) -> bool {
    matches!(c, '!'..='~' | '¡'..='¬' | '®'..='ÿ' | '\u{100}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_256_characters() {
        assert_eq!((0..0x1000).filter_map(char::from_u32).filter(|c| is_byte_character(*c)).count(), 256);
        assert!(is_byte_character('Ġ') && is_byte_character('Ċ') && !is_byte_character(' '));
    }
}
