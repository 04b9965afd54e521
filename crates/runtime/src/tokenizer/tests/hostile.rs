//! Vocabularies that are broken or meant to do harm, and texts of a size or shape that could.

use super::fixtures::*;
use crate::tokenizer::*;
use gguf::{Array, Metadata};
use model_spec::keys;
use std::time::{Duration, Instant};

const BYTES_OF_A: [(&str, f32, i32); 4] =
    [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("a", -1.0, 1)];

/// The message of the refusal.
fn refused(metadata: &Metadata) -> String {
    match Tokenizer::from_metadata(metadata) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn missing_and_mistyped_values_are_named() {
    let good = spm_metadata(&BYTES_OF_A);
    Tokenizer::from_metadata(&good).unwrap();
    for key in [keys::TOKENIZER_MODEL, keys::TOKENIZER_TOKENS, keys::TOKENIZER_SCORES] {
        let mut metadata = good.clone();
        metadata.remove(key);
        assert!(refused(&metadata).contains(key), "{key} missing");
        metadata.set(key, 7u32);
        assert!(refused(&metadata).contains(key), "{key} a number");
    }
    for key in
        [keys::TOKENIZER_TOKEN_TYPE, keys::TOKENIZER_BOS_ID, keys::TOKENIZER_ADD_BOS, keys::TOKENIZER_PRE]
    {
        let mut metadata = good.clone();
        metadata.set(key, Array::F32(vec![0.5]));
        assert!(refused(&metadata).contains(key), "{key} of a wrong type");
    }
}

#[test]
fn unknown_kinds_are_named() {
    let mut metadata = spm_metadata(&BYTES_OF_A);
    metadata.set(keys::TOKENIZER_MODEL, "bert");
    let message = refused(&metadata);
    assert!(message.contains("\"bert\"") && message.contains("llama, gpt2"), "{message}");
}

#[test]
fn arrays_of_different_lengths_are_refused() {
    for (key, values) in [
        (keys::TOKENIZER_SCORES, Array::F32(vec![0.0; 3])),
        (keys::TOKENIZER_SCORES, Array::F32(vec![0.0; 5])),
        (keys::TOKENIZER_TOKEN_TYPE, Array::I32(vec![1; 3])),
        (keys::TOKENIZER_TOKEN_TYPE, Array::I32(vec![])),
    ] {
        let mut metadata = spm_metadata(&BYTES_OF_A);
        metadata.set(key, values);
        let message = refused(&metadata);
        assert!(message.contains(key) && message.contains("expected 4"), "{message}");
    }
    let mut metadata = spm_metadata(&BYTES_OF_A);
    metadata.set(keys::TOKENIZER_TOKENS, Array::String(vec![]));
    assert!(refused(&metadata).contains("at least one token"));
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    for key in
        [keys::TOKENIZER_BOS_ID, keys::TOKENIZER_EOS_ID, keys::TOKENIZER_UNK_ID, keys::TOKENIZER_PAD_ID]
    {
        for id in [4, u32::MAX] {
            let mut metadata = spm_metadata(&BYTES_OF_A);
            metadata.set(key, id);
            let message = refused(&metadata);
            assert!(message.contains(key) && message.contains(&id.to_string()), "{message}");
        }
    }
}

#[test]
fn duplicates_broken_bytes_and_nan_scores_are_refused() {
    let message = spm(&[("a", 0.0, 1), ("b", 0.0, 1), ("a", 0.0, 1)]).err().unwrap().to_string();
    assert!(message.contains("tokens 0 and 2"), "{message}");
    for text in ["<0xZZ>", "<0x0>", "<0x+1>", "x", "<0x0A"] {
        let message = spm(&[(text, 0.0, 6)]).err().unwrap().to_string();
        assert!(message.contains(text) && message.contains("<0xFF>"), "{message}");
    }
    assert!(spm(&[("a", 0.0, 1), ("b", f32::NAN, 1)]).err().unwrap().to_string().contains("token 1"));
}

#[test]
fn merges_that_join_nothing_are_refused() {
    // The last one made a buffer of the tokenizers crate overflow: both parts are tokens, the whole is longer than any.
    for merge in ["", " ", "a", "a ", " a", "a b", "ab c", "zz a", "longest-a longest-a"] {
        let metadata = byte_level_metadata("gpt-2", &[("longest-a", 1)], &[merge]);
        let message = refused(&metadata);
        assert!(
            message.contains(keys::TOKENIZER_MERGES) && message.contains("index 0"),
            "{merge:?}: {message}"
        );
    }
    let mut metadata = byte_level_metadata("gpt-2", &[], &[]);
    metadata.remove(keys::TOKENIZER_MERGES);
    assert!(refused(&metadata).contains(keys::TOKENIZER_MERGES));
}

#[test]
fn tokens_that_are_not_utf8_are_kept_as_bytes() {
    let mut metadata = spm_metadata(&BYTES_OF_A);
    let strings = vec![b"<unk>".to_vec(), b"<s>".to_vec(), b"\xe4\xb8".to_vec(), b"a".to_vec()];
    metadata.set(keys::TOKENIZER_TOKENS, Array::Bytes(strings));
    metadata.set(keys::TOKENIZER_TOKEN_TYPE, Array::I32(vec![2, 3, 1, 1]));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.token_bytes(2), b"\xe4\xb8");
    assert_eq!(tokenizer.encode("a", Special::Literal, AddBos::Continue), [3]);
    assert!(tokenizer.warnings()[0].contains("not UTF-8"));
}

#[test]
fn empty_tokens_get_names_and_match_nothing() {
    let tokenizer =
        spm(&[("", 0.0, 4), ("<s>", 0.0, 3), ("", 0.0, 1), ("a", -1.0, 1), ("▁", -2.0, 1)]).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Parse, AddBos::Never), [4, 3]);
    assert_eq!(tokenizer.token_text(2), Some("[EMPTY_2]"));
}

#[test]
fn characters_without_a_token_become_one_unknown() {
    let tokenizer =
        spm(&[BYTES_OF_A[0], BYTES_OF_A[1], BYTES_OF_A[2], ("a", -1.0, 1), ("▁", -2.0, 1)]).unwrap();
    assert_eq!(tokenizer.encode("a中文a é", Special::Literal, AddBos::Never), [4, 3, 0, 3, 4, 0]);
}

#[test]
fn unused_pieces_fall_back_to_their_halves() {
    // SentencePiece joins through an unused piece and takes it apart again at the end.
    let tokens = [
        ("<unk>", 0.0, 2),
        ("▁", -9.0, 1),
        ("a", -9.0, 1),
        ("b", -9.0, 1),
        ("c", -9.0, 1),
        ("ab", -1.0, 5),
        ("abc", -2.0, 1),
    ];
    let tokenizer = spm(&tokens).unwrap();
    assert_eq!(tokenizer.encode("abc", Special::Literal, AddBos::Never), [1, 6]);
    assert_eq!(tokenizer.encode("abab", Special::Literal, AddBos::Never), [1, 2, 3, 2, 3]);
}

#[test]
fn the_highest_score_joins_first_then_the_leftmost() {
    let tokens =
        [("<unk>", 0.0, 2), ("a", -9.0, 1), ("▁", -9.0, 1), ("aa", -1.0, 1), ("b", -9.0, 1), ("ab", -0.5, 1)];
    let tokenizer = spm(&tokens).unwrap();
    assert_eq!(tokenizer.encode("aaa", Special::Literal, AddBos::Continue), [3, 1]);
    assert_eq!(tokenizer.encode("aaab", Special::Literal, AddBos::Continue), [3, 5]);
}

/// Texts of a quarter of a megabyte that trip quadratic or recursive encoders.
fn giants() -> Vec<(&'static str, String)> {
    let n = 1 << 18;
    vec![
        ("one letter", "a".repeat(n)),
        ("spaces", " ".repeat(n)),
        ("newlines and spaces", " \n".repeat(n / 2)),
        ("digits", "1".repeat(n)),
        ("punctuation", "<".repeat(n)),
        ("begun control tokens", "<|im_".repeat(n / 5)),
        ("prose", "The quick brown fox, it's said, jumps over 13 lazy dogs.\n".repeat(n / 57)),
        ("emoji", "🔥".repeat(n / 4)),
        ("apostrophes", "'".repeat(n)),
    ]
}

fn check_giants(tokenizer: &Tokenizer) {
    for (name, text) in giants() {
        let start = Instant::now();
        let ids = tokenizer.encode(&text, Special::Parse, AddBos::Never);
        // Generous, for busy machines; quadratic time would be minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{name}: {:?}", start.elapsed());
        assert_eq!(tokenizer.decode(&ids, ControlText::Show).len(), text.len(), "{name}");
    }
}

#[test]
fn giant_texts_take_no_time_with_sentencepiece() {
    check_giants(&tiny_moe());
}

#[test]
fn giant_texts_take_no_time_with_bytes() {
    for pre in ["smollm", "llama-bpe", "deepseek-v3", "default"] {
        let tokens = [("aa", 1), ("aaaa", 1), ("ĠĠ", 1), ("<|im_end|>", 3), ("<|im_start|>", 3)];
        let metadata = byte_level_metadata(pre, &tokens, &["a a", "aa aa", "Ġ Ġ"]);
        check_giants(&Tokenizer::from_metadata(&metadata).unwrap());
    }
}

#[test]
fn a_hundred_thousand_control_tokens_are_no_burden() {
    let names: Vec<String> = (0..100_000).map(|i| format!("<|reserved_special_token_{i}|>")).collect();
    let mut tokens: Vec<(&str, f32, i32)> = names.iter().map(|name| (name.as_str(), 0.0, 3)).collect();
    tokens.push(("<", -1.0, 1));
    tokens.push(("▁", -1.0, 1));
    let start = Instant::now();
    let tokenizer = spm(&tokens).unwrap();
    let text = names[77_777].repeat(10_000);
    assert_eq!(tokenizer.encode(&text, Special::Parse, AddBos::Never), vec![77_777; 10_000]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
